"""One training: MMEngine's Runner on the episodes of a run.

The same function runs in this process, in a Ray Train worker of one training, and in a worker of the shared
cluster. The loss of episode i depends on (seed, i) and the weights only, and a step averages the same episodes on
1..N workers, so the number of workers changes nothing but the time.
"""

from __future__ import annotations

import csv
import json
import math
import os
import shutil
import socket
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from mmengine.dataset import DefaultSampler
from mmengine.dist import all_gather_object, all_reduce, barrier, get_rank, get_world_size, is_main_process
from mmengine.hooks import Hook, ParamSchedulerHook
from mmengine.model import BaseModel
from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.optim.scheduler.lr_scheduler import LRSchedulerMixin
from mmengine.optim.scheduler.param_scheduler import _ParamScheduler
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS, PARAM_SCHEDULERS
from mmengine.runner import Runner
from safetensors.torch import save_file
from torch.utils.data import DataLoader, Dataset

from pipeline.cluster.stop_files import stop_file
from pipeline.datasets.loading import loader
from pipeline.errors import UserError
from pipeline.evaluation.health import last_loss
from pipeline.experiment import Run
from pipeline.files import new_file, write_json
from pipeline.models.build import WEIGHTS
from pipeline.models.few_shot.compiled import compile_layers
from pipeline.models.few_shot.precision import use_precision
from pipeline.progress import Bar, bar
from pipeline.scores import EpisodeScores, outcome
from pipeline.tasks.base import Task
from pipeline.tasks.kinds import task_of
from pipeline.training.metrics import Watched
from pipeline.training.trackers import Tracked, visualizer
from pipeline.workspace import Workspace

Report = Callable[[dict[str, Any], Path | None], None]
"""Called with metrics and, at checkpoints, a folder to keep."""

READ_EVERY = 10
"""Optimiser steps after which a training on a GPU fetches its losses, which waits for all that is under way there."""
UNDECAYED = ("neck.block.norm", "neck.layers.0.norm", "frames.norm", "videos.norm", "transformer.layers.0.norm")
"""LayerNorms of the new blocks: as released they take no weight decay, while those of CLIP do."""
STATE = "state.pt"
AGREE_STEPS = 10  # several workers ask each other so often whether to keep a checkpoint


class EpisodeSeed(Hook):
    """Seed dropout by the episode, so that its loss does not depend on the worker or on earlier episodes."""

    priority = "VERY_HIGH"

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        torch.manual_seed(self.seed * 1_000_003 + int(data_batch["episode"].flatten()[0]))


@PARAM_SCHEDULERS.register_module()
class StepFactors(LRSchedulerMixin, _ParamScheduler):
    """A learning rate that changes at given steps and stays between them.

    milestones: steps at which it falls to a tenth of what it was, or pairs [step, factor of the first rate].
    """

    def __init__(self, optimizer: Any, *args: Any, milestones: list, **kwargs: Any) -> None:
        self.factors: list[tuple[int, float]] = [(0, 1.0)]
        for entry in milestones:
            step, factor = entry if isinstance(entry, list | tuple) else (entry, 0.1 * self.factors[-1][1])
            self.factors.append((step, factor))
        super().__init__(optimizer, *args, **kwargs)

    def _factor(self, step: int) -> float:
        return [factor for first, factor in self.factors if first <= step][-1]

    def _get_value(self) -> list[float]:
        # Relative to the last step, for a warm-up may act on the same rate.
        change = self._factor(self.last_step) / self._factor(max(self.last_step - 1, 0))
        return [group[self.param_name] * change for group in self.optimizer.param_groups]


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class EqualTogether(DefaultOptimWrapperConstructor):
    """Parameters of equal settings in one group. MMEngine makes a group of each, and an optimiser starts anew for each
    group: a step of AdamW over 80 small layers takes 3.4 ms so, and 0.5 ms in one group and fused."""

    def add_params(
        self, params: list[dict[str, Any]], module: torch.nn.Module, prefix: str = "", **others: Any
    ) -> None:
        super().add_params(params, module, prefix, **others)
        if not prefix:  # it calls itself for what is below
            groups: dict[tuple, dict[str, Any]] = {}
            for group in params:
                settings = {key: value for key, value in group.items() if key != "params"}
                groups.setdefault(tuple(sorted(settings.items())), settings | {"params": []})["params"] += group[
                    "params"
                ]
            params[:] = groups.values()


class StepSchedule(ParamSchedulerHook):
    """Learning rates by optimiser steps, not by iterations, whose number in a step depends on the workers."""

    def __init__(self, every: int) -> None:
        self.every = every

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict | None = None
    ) -> None:
        if (runner.iter + 1) % self.every == 0:
            super().after_train_iter(runner, batch_idx, data_batch, outputs)


class Curve(Hook):
    """Mean of the losses over each optimiser step, written to `curve.csv`; stops at a loss that is no number.

    reads: steps after which the losses are fetched from the device; between them nothing waits for it. Whoever needs
    the rows of all steps calls `read` first.
    """

    def __init__(self, run: Run, path: Path, every: int, start: int, reads: int = 1) -> None:
        self.run, self.path, self.every, self.reads = run, path, every, reads
        self.sums: dict[str, Any] = {}
        self.unread: list[tuple[torch.Tensor, dict[str, Any]]] = []
        self.rows: list[dict[str, Any]] = _read_curve(path, start)
        self.began = time.monotonic()

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict | None = None
    ) -> None:
        for name, value in (outputs or {}).items():  # stays on the device: no wait for it between steps
            self.sums[name] = self.sums.get(name, 0.0) + value.detach()
        if (runner.iter + 1) % self.every:
            return
        step = (runner.iter + 1) // self.every
        means = torch.stack([torch.as_tensor(total, dtype=torch.float64) for total in self.sums.values()]) / self.every
        rate, seconds = runner.optim_wrapper.get_lr()["lr"][0], time.monotonic() - self.began
        row = {"step": step, **dict.fromkeys(self.sums), "learning_rate": rate, "seconds": seconds}
        self.unread.append((means, row))
        self.sums = {}
        if step % self.reads == 0:
            self.read()

    def read(self) -> None:
        """Fetch the losses of the steps since the last call and add them to the rows; all workers do it at once."""
        if not self.unread:
            return
        means = torch.cat([found for found, _ in self.unread])
        all_reduce(means, "mean")  # so that every worker sees the loss of the whole step
        values, unread = means.tolist(), self.unread
        self.unread = []
        for found, row in unread:
            names, values_of_row, values = list(row)[1 : 1 + len(found)], values[: len(found)], values[len(found) :]
            row |= dict(zip(names, values_of_row, strict=True))
            if not math.isfinite(row["loss"]):
                raise FloatingPointError(f"{self.run.id}: the loss is {row['loss']} at step {row['step']}")
            self.rows.append(row)

    def write(self) -> None:
        """Write all rows so far."""
        if not self.rows or not is_main_process():
            return
        temporary = self.path.with_suffix(".tmp")
        with temporary.open("w", encoding="utf-8", newline="") as file:
            columns = dict.fromkeys(key for row in self.rows for key in row)  # not every step is validated
            writer = csv.DictWriter(file, fieldnames=list(columns), restval="")
            writer.writeheader()
            writer.writerows(self.rows)
        os.replace(temporary, self.path)

    def after_train(self, runner: Runner) -> None:
        self.read()
        self.write()


class Shown(Hook):
    """Tells a progress bar each step."""

    priority = "VERY_LOW"

    def __init__(self, shown: Bar, curve: Curve, every: int) -> None:
        self.shown, self.curve, self.every = shown, curve, every

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict | None = None
    ) -> None:
        if (runner.iter + 1) % self.every == 0:
            note = f"loss {float(self.curve.rows[-1]['loss']):.3f}" if self.curve.rows else ""
            self.shown.to((runner.iter + 1) // self.every, note)


def _read_curve(path: Path, steps: int) -> list[dict[str, Any]]:
    """Rows of an interrupted training up to the step that it resumes from."""
    if not steps or not path.is_file():
        return []
    with path.open(encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if int(row["step"]) <= steps]


class Keeper(Hook):
    """Validates, remembers the best weights, and hands checkpoints to `report`."""

    priority = "LOW"

    def __init__(
        self,
        run: Run,
        train: dict[str, Any],
        curve: Curve,
        validate: Callable[[BaseModel], EpisodeScores],
        report: Report | None,
        every: int,
        stop: Path,
    ) -> None:
        self.run, self.train, self.curve, self.validate = run, train, curve, validate
        self.report, self.every, self.stop = report, every, stop
        self.best: dict[str, Any] = {"accuracy": -1.0, "step": 0, "state": {}, "outcome": None}

    def before_train(self, runner: Runner) -> None:
        """The untrained model, where it counts; a resumed training has seen it."""
        if self.train.get("untrained_counts") and self.run.selection != "last" and self.best["accuracy"] < 0:
            self._select(unwrap(runner.model), 0)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict | None = None
    ) -> None:
        if (runner.iter + 1) % self.every:
            return
        step, train = (runner.iter + 1) // self.every, self.train
        last = step == train["steps"]
        if self.run.selection != "last" and (last or step % train["validate_every"] == 0):
            self._select(unwrap(runner.model), step)
        if not self.report:
            return
        asked = self._asked(step)
        if asked or last or step % train["checkpoint_every"] == 0:
            self._checkpoint(runner, step)
        if asked and is_main_process():
            self.stop.unlink(missing_ok=True)

    def _asked(self, step: int) -> bool:
        """Whether somebody asks for a checkpoint; several workers agree on that every now and then."""
        if get_world_size() == 1:
            return self.stop.exists()
        if step % AGREE_STEPS:
            return False
        asked = torch.tensor(float(is_main_process() and self.stop.exists()))
        all_reduce(asked, "max")
        return bool(asked)

    def _select(self, model: BaseModel, step: int) -> None:
        self.curve.read()
        if is_main_process():
            scores = self.validate(model)
            found = outcome(scores.trained, scores.labels, scores.spread)
            if step:
                self.curve.rows[-1]["validation_accuracy"] = found["accuracy"]
            if found["accuracy"] > self.best["accuracy"]:
                state = {name: value.detach().cpu().clone() for name, value in model.trained_state().items()}
                self.best = {"accuracy": found["accuracy"], "step": step, "state": state, "outcome": found}
        barrier()

    def _checkpoint(self, runner: Runner, step: int) -> None:
        self.curve.read()
        self.curve.write()
        metrics = {"run": self.run.id, "step": step, "best": self.best["accuracy"]}
        metrics["loss"] = float(self.curve.rows[-1]["loss"])
        folder = None
        if is_main_process():
            folder = Path(runner.work_dir) / "checkpoint"
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            torch.save(
                {
                    "model": unwrap(runner.model).trained_state(),
                    "optimizer": runner.optim_wrapper.state_dict(),
                    "schedulers": [scheduler.state_dict() for scheduler in runner.param_schedulers],
                    # Where the best step is this one, its weights are the model's and are written once.
                    "best": self.best | ({"state": {}} if self.best["step"] == step else {}),
                    "step": step,
                },
                folder / STATE,
            )
            write_json(folder / "meta.json", {"run": self.run.id, "step": step})
        self.report(metrics, folder)
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)  # whoever takes checkpoints has a copy


class Restore(Hook):
    """Continue from a checkpoint: weights, optimiser, schedule, the best so far, and the place in the data."""

    priority = "HIGHEST"

    def __init__(self, checkpoint: Path, keeper: Keeper, every: int) -> None:
        self.state = torch.load(checkpoint / STATE, map_location="cpu", weights_only=True)
        self.checkpoint, self.keeper, self.every = checkpoint, keeper, every

    def before_train(self, runner: Runner) -> None:
        unwrap(runner.model).load_trained_state(self.state["model"])
        try:
            runner.optim_wrapper.load_state_dict(self.state["optimizer"])
        except ValueError as error:
            raise UserError(
                f"{self.checkpoint}: not of this version ({error}); delete it, and the training starts anew"
            ) from None
        for scheduler, state in zip(runner.param_schedulers, self.state["schedulers"], strict=True):
            scheduler.load_state_dict(state)
        best = self.state["best"]
        self.keeper.best = best | ({"state": self.state["model"]} if best["step"] == self.state["step"] else {})
        runner.train_loop._iter = self.state["step"] * self.every
        runner.optim_wrapper.initialize_count_status(runner.model, runner.iter, runner.max_iters)


class Skipping(Dataset):
    """A dataset whose first items, which a resumed training walks past, cost nothing."""

    def __init__(self, dataset: Dataset, first: int) -> None:
        self.dataset, self.first = dataset, first

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        return self.dataset[i] if i >= self.first else {}


def unwrap(model: torch.nn.Module) -> BaseModel:
    """The model inside a DistributedDataParallel wrapper."""
    return getattr(model, "module", model)


def train_run(
    run: Run, ws: Workspace, report: Report | None = None, checkpoint: Path | None = None, tracker: str = "",
    compiled: bool = False, precision: str = "float32", anywhere: bool = False,
) -> Path:  # fmt: skip
    """Train `run` and leave weights, curve and record in its folder; returns the record `train.json`.

    Args:
        report: takes metrics and checkpoints while it goes (Ray Train's); without it there are none.
        checkpoint: a checkpoint folder of the same run to continue from.
        tracker: where the curve goes beside TensorBoard (`pipeline.training.trackers`).
        compiled: the layers of the frame tower pass `torch.compile`, where the method has such.
        precision, anywhere: as of `use_precision`; the record says in what was computed.

    Raises:
        UserError: the data, the backbone or a setting is wrong.
        FloatingPointError: the loss is no number any more.
    """
    started = time.time()
    folder = ws.run(run.id)
    folder.mkdir(parents=True, exist_ok=True)
    task = task_of(run, ws)
    here = os.environ.get("PIPELINE_NODE") or os.environ.get("SLURMD_NODENAME") or socket.gethostname()
    record = {"run": run.id, "seconds": 0.0, "steps": 0, "workers": get_world_size(), "classes": task.classes()}
    record |= task.counts()
    record["nodes"] = sorted(set(all_gather_object(here)))
    if run.train:
        model = task.build()
        record["precision"] = "amp" if run.train["amp"] else use_precision(model, precision, anywhere)
        if compiled:
            compile_layers(model)
        record |= _fit(task, model, report, checkpoint, tracker)
    barrier()
    if is_main_process():
        write_json(folder / "run.json", run.model_dump(mode="json"))
        record["seconds"] = round(time.time() - started, 2)
        write_json(folder / "train.json", record)
    barrier()
    return folder / "train.json"


def _fit(task: Task, model: BaseModel, report: Report | None, checkpoint: Path | None, tracker: str) -> dict[str, Any]:
    run, train, world = task.run, task.schedule(), get_world_size()
    if train["items"] % world:
        raise UserError(
            f"{run.id}: {train['items']} episodes (or batches) a step cannot be split over {world} workers; "
            "change cluster.workers or train.episodes_per_step (train.batches_per_step)"
        )
    every = train["items"] // world  # iterations of each worker that make one step
    folder = task.ws.run(run.id)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError(
            f"{run.id}: {run.method} has nothing to train on a frozen backbone; set train: {{ steps: 0 }} in its row, "
            "or give it another backbone"
        )
    start = 0
    if checkpoint:
        start = int(json.loads((checkpoint / "meta.json").read_text("utf-8"))["step"])
    curve = Curve(run, folder / "curve.csv", every, start, READ_EVERY if torch.cuda.is_available() else 1)
    keeper = Keeper(run, train, curve, task.validate, report, every, stop_file(task.ws, run.id))
    hooks: list[Hook] = [EpisodeSeed(run.seed), *task.hooks(model, every), curve, keeper, Tracked(curve.rows, every)]
    hooks.append(Watched(run.id, curve.rows, every))
    if checkpoint:
        hooks.append(Restore(checkpoint, keeper, every))
    read = task.items(model)
    items = Skipping(read, start * train["items"])
    feed = loader(items, read.item_bytes, sampler=DefaultSampler(items, shuffle=False))
    with bar("training", train["steps"], "steps", start) as shown:
        hooks.append(Shown(shown, curve, every))
        tracked = visualizer(run, folder, tracker) if is_main_process() else dict(type="Visualizer", vis_backends=[])
        runner = _runner(run, train, model, feed, hooks, every, folder / f"log-{get_rank()}", tracked)
        runner.train()
    best = {"state": unwrap(runner.model).trained_state(), "step": train["steps"], "accuracy": None, "outcome": None}
    if run.selection != "last":
        best = keeper.best
    if is_main_process():
        with new_file(folder / WEIGHTS) as temporary:
            save_file({name: value.detach().cpu().contiguous() for name, value in best["state"].items()}, temporary)
        task.clean()
    known = task.chance_loss(unwrap(runner.model))
    return {
        "steps": train["steps"], "selected_step": best["step"], "validation_accuracy": best["accuracy"],
        "validation": best.get("outcome"), "last_loss": last_loss(curve.rows, *known) if known else None,
    }  # fmt: skip


def _parameter_groups(model: BaseModel, train: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Parameters, by parts of their names, whose weight decay or learning rate is another."""
    groups = {name: {"decay_mult": 0.0} for name in UNDECAYED}
    if train.get("bn_undecayed"):  # in torchvision's names those of the shortcuts have no "bn", so they are decayed
        kind = torch.nn.modules.batchnorm._NormBase
        norms = (name for name, module in model.named_modules() if isinstance(module, kind))
        groups |= {f"{name}.": {"decay_mult": 0.0} for name in norms if "downsample" not in name}
    if getattr(model, "norms_undecayed", False):
        norms = (name for name, module in model.named_modules() if isinstance(module, torch.nn.LayerNorm))
        groups |= {f"{name}.": {"decay_mult": 0.0} for name in norms if not name.startswith("backbone.")}
    if train.get("pretraining"):  # after which the backbone may learn at another rate
        groups |= {"network.backbone.": {"lr_mult": 1.0}}
    if train.get("head_learning_rate"):
        factor = train["head_learning_rate"] / train["learning_rate"]
        groups |= {prefix: {"lr_mult": factor} for prefix in model.head_prefixes}
    return groups


def _runner(
    run: Run, train: dict[str, Any], model: BaseModel, feed: DataLoader, hooks: list[Hook], every: int, work_dir: Path,
    tracked: dict[str, Any],
) -> Runner:  # fmt: skip
    warmup = train["warmup_steps"]
    optimizers = {"adam": "Adam", "adamw": "AdamW", "sgd": "SGD", "rmsprop": "RMSprop"}
    if train["amp"] and not torch.cuda.is_available():
        raise UserError(f"{run.id}: train.amp is true, and mixed precision needs a GPU; set train.amp: false")
    options = {} if train["optimizer"] == "rmsprop" else {"fused": True}  # which has no such form
    if train["optimizer"] == "sgd":
        options |= {"momentum": train.get("momentum", 0.0), "nesterov": train.get("nesterov", False)}
    schedulers = [dict(type="StepFactors", by_epoch=False, milestones=train["milestones"])]
    if train.get("decay") == "cosine":
        rest = {"begin": warmup, "end": train["steps"], "eta_min_ratio": train.get("final_rate", 0.0)}
        schedulers = [dict(type="CosineAnnealingLR", by_epoch=False, T_max=train["steps"] - warmup, **rest)]
    elif train.get("decay") == "exponential":  # by the same factor each epoch, spread over its steps
        schedulers = [dict(type="ExponentialLR", by_epoch=False, gamma=train["final_rate"] ** (1 / train["steps"]))]
    if warmup:
        if not 0 < train["warmup_start"] <= train["learning_rate"]:
            raise UserError(
                f"{run.id}: the warm-up begins at train.warmup_start = {train['warmup_start']:g}; it must lie above 0 "
                f"and at most at train.learning_rate = {train['learning_rate']:g}"
            )
        factor = train["warmup_start"] / train["learning_rate"]
        schedulers.insert(0, dict(type="LinearLR", by_epoch=False, start_factor=factor, end=warmup + 1))
    distributed = get_world_size() > 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Runner(
            model=model,
            work_dir=str(work_dir),
            train_dataloader=feed,
            train_cfg=dict(by_epoch=False, max_iters=train["steps"] * every, val_interval=10**9),
            optim_wrapper=dict(
                constructor="EqualTogether",
                type="AmpOptimWrapper" if train["amp"] else "OptimWrapper",
                **({"dtype": "bfloat16"} if train["amp"] else {}),
                optimizer=dict(
                    type=optimizers[train["optimizer"]],
                    lr=train["learning_rate"],
                    weight_decay=train["weight_decay"],
                    **options,
                ),
                accumulative_counts=every,
                **({"clip_grad": {"max_norm": train["clip_gradient"]}} if train.get("clip_gradient") else {}),
                paramwise_cfg=dict(custom_keys=_parameter_groups(model, train)),
            ),
            param_scheduler=schedulers,
            default_hooks=dict(
                param_scheduler=StepSchedule(every),
                checkpoint=None,
                logger=None,
                timer=None,
                runtime_info=None,
                sampler_seed=None,
            ),
            custom_hooks=hooks,
            launcher="pytorch" if distributed else "none",
            env_cfg=dict(dist_cfg=dict(backend="nccl" if torch.cuda.is_available() else "gloo")),
            log_level="ERROR",
            visualizer=tracked,
            default_scope="mmaction",
            randomness=dict(seed=run.seed),
            experiment_name=f"{run.id}-{time.time_ns()}",
            cfg=dict(
                model_wrapper_cfg=dict(
                    type="MMDistributedDataParallel",
                    find_unused_parameters=bool(train.get("pretraining")),  # a phase may leave some alone
                    **({} if torch.cuda.is_available() else {"device_ids": None}),  # MMEngine gives CPUs one too
                )
            ),
        )
