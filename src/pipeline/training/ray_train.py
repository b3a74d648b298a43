"""Trainings as Ray Train jobs: one run on N workers, or a slot that takes run after run from the queue."""

from __future__ import annotations

import gc
import logging
import os
import secrets
import shutil
import sys
import traceback
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import ray.train
from ray.train import BackendConfig, Checkpoint, CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from pipeline.cluster.client import ask, connect
from pipeline.cluster.logs import reason_of
from pipeline.cluster.resources import need_of, wait_for_room
from pipeline.config import Cluster
from pipeline.errors import UserError
from pipeline.experiment import Run
from pipeline.files import system_error, write_text
from pipeline.progress import job
from pipeline.training.stopping import stoppable
from pipeline.training.watcher import WatcherCallback
from pipeline.workspace import Workspace

FAILURES = 3  # lost workers that one training survives
FULL = 1 << 20  # free bytes below which a disk is full


class LeanTrainer(DataParallelTrainer):
    """Without a process of 200 MB beside every training, which hands out shards of Ray Data that nothing here uses, and
    with a watcher of our own in place of Ray's (`pipeline.training.watcher`).
    """

    def _create_default_callbacks(self) -> list[Any]:
        other = (DatasetsCallback, PlacementGroupCleanerCallback)
        return [c for c in super()._create_default_callbacks() if not isinstance(c, other)] + [WatcherCallback()]


def latest_checkpoint(ws: Workspace, run_id: str) -> Path | None:
    """Folder of the newest checkpoint that Ray keeps of a run, wherever it was trained.

    One that Ray is about to delete may have lost a file already, and does not count.
    """
    found = (path.parent for path in (ws.ray / "train").glob(f"*/{run_id}-*/state.pt"))
    whole = sorted((folder for folder in found if (folder / "meta.json").is_file()), key=lambda folder: folder.name)
    return whole[-1] if whole else None


def _storage(ws: Workspace) -> str:
    path = ws.ray / "train"
    path.mkdir(parents=True, exist_ok=True)
    return str(path.resolve())


def _scaling(settings: Cluster, workers: int) -> ScalingConfig:
    strategy = "SPREAD" if settings.nodes > 1 else "PACK"
    return ScalingConfig(
        num_workers=workers, use_gpu=settings.gpus > 0, resources_per_worker=need_of(settings),
        placement_strategy=strategy,
    )  # fmt: skip


def _group(settings: Cluster) -> BackendConfig | None:
    """How the workers of a training speak with each other; a single one needs nobody."""
    if settings.workers == 1:
        return None
    from pipeline.training.group import Group  # with torch: the server of the shared cluster does without

    return Group()


def _report(run: Run) -> Any:
    """A `report` of `train_run` that hands metrics and checkpoints to Ray Train."""

    def report(metrics: dict[str, Any], folder: Path | None) -> None:
        checkpoint = Checkpoint.from_directory(folder) if folder else None
        name = f"{run.id}-{metrics['step']:08d}"
        ray.train.report(metrics, checkpoint=checkpoint, checkpoint_dir_name=name)

    return report


def _train(run: Run, ws: Workspace, report: Any, config: dict[str, Any]) -> None:
    from pipeline.training.train import train_run

    try:
        precision = config["precision"].get(run.method, "float32")
        train_run(run, ws, report, latest_checkpoint(ws, run.id), config["tracker"], config["compile"], precision)
    except (OSError, RuntimeError) as error:  # torch's own writer raises the latter
        said = system_error(error, ws.root) if isinstance(error, OSError) else None
        if said is None and shutil.disk_usage(ws.root).free < FULL:
            said = f"no space left on the disk of {ws.root}; the same command goes on"
        if said is None:
            raise
        raise UserError(f"{run.id}: {said}") from error


FOR_WORKERS = {"threads", "loaders", "tracker", "compile", "precision"}  # settings that the process of a training reads


def _prepare_worker(config: dict[str, Any]) -> None:
    gc.disable()  # modules are half a million objects and no garbage: looking for some takes a tenth of their import
    import torch
    from threadpoolctl import threadpool_limits

    import pipeline.evaluation.score
    import pipeline.training.train  # noqa: F401  (both are needed at once, and belong to what is frozen below)
    from pipeline.datasets.loading import use_loaders

    os.chdir(config["folder"])  # Ray gives its workers folders of their own, and the settings may name relative paths
    torch.set_num_threads(config["threads"])
    torch.set_flush_denormal(True)  # numbers below 1e-38 are slow: InfoGCN's trainings take a fifth less, and end alike
    threadpool_limits(config["threads"])  # numpy and scikit-learn take every core otherwise; slots run side by side
    use_loaders(config["loaders"])
    logging.getLogger("mmengine").setLevel(logging.ERROR)
    gc.freeze()  # nor is it looked for among them later, which takes a quarter of a second each time
    gc.enable()


# One training on N workers


def _worker(config: dict[str, Any]) -> None:
    _prepare_worker(config)
    run = Run.model_validate(config["run"])
    ws, first = Workspace(config["root"]), ray.train.get_context().get_world_rank() == 0
    try:
        with job(ws, "train", run.id, quiet=True) if first else nullcontext():
            _train(run, ws, _report(run), config)
    except (UserError, FloatingPointError) as error:  # would come again; all workers have it at the same step
        if first:
            try:
                write_text(_hopeless(ws, run.id), str(error))
            except OSError:
                raise error from None  # a full disk: Ray carries it


def _hopeless(ws: Workspace, run_id: str) -> Path:
    """The file that says why a training cannot go on; another attempt would end the same way."""
    return ws.run(run_id) / "failed.txt"


def fit(run: Run, ws: Workspace, settings: Cluster, alone: bool = True) -> None:
    """Train one run with `settings.workers` workers on the Ray cluster at RAY_ADDRESS, or on one of its own.

    alone: nobody else uses that cluster, so workers that do not start within minutes never will.

    A training that was killed continues from its last checkpoint. SIGTERM, and a Slurm job's time limit
    `settings.stop_minutes` before it comes, have it keep one and end.

    Raises:
        UserError: Ray has not what is asked for; a worker was lost more often than FAILURES; a setting is wrong; the
            loss is no number any more.
    """
    connect(ws, settings)
    try:
        wait_for_room(settings.workers, settings)
    except UserError as error:
        raise UserError(f"{run.id}: {error}") from None
    _hopeless(ws, run.id).unlink(missing_ok=True)
    storage = Path(_storage(ws))
    config = {"run": run.model_dump(mode="json"), "root": str(ws.root.resolve()), "folder": os.getcwd()}
    config |= settings.model_dump(include=FOR_WORKERS)
    trainer = LeanTrainer(
        _worker,
        train_loop_config=config,
        backend_config=_group(settings),
        scaling_config=_scaling(settings, settings.workers),
        run_config=RunConfig(
            name=run.id,
            storage_path=str(storage),
            failure_config=FailureConfig(max_failures=FAILURES, controller_failure_limit=FAILURES if alone else -1),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
        ),
    )
    try:
        with stoppable(run, ws, settings.stop_minutes):
            trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise UserError(f"{run.id}: {reason_of(error, settings.workers)}") from error
    if (reason := _hopeless(ws, run.id)).is_file():
        said = reason.read_text("utf-8")
        raise UserError(f"{run.id}: {said.removeprefix(f'{run.id}: ')}")
    shutil.rmtree(storage / run.id, ignore_errors=True)


# A slot of the shared cluster


def run_slot(number: int, root: Path, settings: Cluster, queue: str) -> None:
    """Keep one slot of the shared cluster at work until its queue (its address) closes.

    Raises an error of Ray Train where its worker dies or does not start: the server decides what then. A slot is one
    worker, so it needs no process group.
    """
    ws, name = Workspace(root), f"slot-{number}-{os.getpid()}-{secrets.token_hex(2)}"
    LeanTrainer(
        _slot_worker,
        train_loop_config={"slot": number, "root": str(root), "folder": os.getcwd(), "queue": queue}
        | settings.model_dump(include=FOR_WORKERS),
        scaling_config=_scaling(settings, 1),
        run_config=RunConfig(
            name=name,
            storage_path=_storage(ws),
            failure_config=FailureConfig(max_failures=0, controller_failure_limit=0),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
        ),
    ).fit()
    shutil.rmtree(Path(_storage(ws)) / name, ignore_errors=True)


def _slot_worker(config: dict[str, Any]) -> None:
    _prepare_worker(config)
    ws = Workspace(config["root"])
    queue, modules = ask({"queue": config["queue"]}, ws), len(sys.modules)
    while (item := queue.take(config["slot"])) is not None:
        message = ""
        try:
            _work(item, ws, config)
        except UserError as error:
            message = str(error)
        except Exception as error:
            traceback.print_exc()
            message = f"{type(error).__name__}: {reason_of(error, 1)}"
        gc.collect()  # models and runners refer to each other; a slot must not grow from run to run
        if len(sys.modules) > modules:  # as above, for what this work was the first to import
            gc.freeze()
            modules = len(sys.modules)
        queue.finish(item["key"], message)


def _work(item: dict[str, Any], ws: Workspace, config: dict[str, Any]) -> None:
    run = ws.read_run(item["arguments"]["run"])
    if item["kind"] == "train":
        with job(ws, "train", run.id, quiet=True):
            _train(run, ws, _report(run), config)
    elif item["kind"] == "evaluate":
        from pipeline.evaluation.score import evaluate_run

        arguments = item["arguments"]
        with job(ws, "evaluate", arguments["name"], quiet=True):
            evaluate_run(run, ws.unmeasured(ws.read_cells(run.id, arguments["cells"])), ws)
    else:
        raise UserError(f"unknown kind of work {item['kind']!r}")
