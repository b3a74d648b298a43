"""Training: the same result for any number of workers, after an interruption, and with the selection that was asked."""

from __future__ import annotations

import csv
import itertools
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.optim.scheduler import LinearLR
from safetensors.torch import load_file
from tiny import train_on_workers

from pipeline.errors import UserError
from pipeline.evaluation.health import read_training
from pipeline.experiment import Run
from pipeline.models.build import WEIGHTS
from pipeline.models.few_shot.base import FewShotModel
from pipeline.scores import EpisodeScores, outcome
from pipeline.tasks.base import SELECTION_SEED, Items
from pipeline.tasks.few_shot import task as few_shot_task
from pipeline.tasks.few_shot.episodes import EpisodeDataset
from pipeline.tasks.few_shot.task import FewShotTask
from pipeline.tasks.kinds import task_of
from pipeline.training import train as module
from pipeline.training.ray_train import latest_checkpoint
from pipeline.training.train import STATE, StepFactors, train_run
from pipeline.workspace import Workspace


def _curve(ws: Workspace, run: Run) -> list[dict[str, float | None]]:
    with (ws.run(run.id) / "curve.csv").open() as file:
        rows = list(csv.DictReader(file))
    return [{key: float(row[key]) if row[key] else None for key in row if key != "seconds"} for row in rows]


def _weights(ws: Workspace, run: Run) -> dict[str, torch.Tensor]:
    return load_file(ws.run(run.id) / WEIGHTS)


def _close(one: list[dict], two: list[dict], tolerance: float) -> None:
    assert [list(row) for row in one] == [list(row) for row in two]
    for a, b in zip(one, two, strict=True):
        for key in a:
            assert a[key] == (None if b[key] is None else pytest.approx(b[key], abs=tolerance)), (key, a["step"])


class Killed(BaseException):
    """What ends a training from outside."""


def _keep(folder: Path, until: int | None = None):
    """A `report` that keeps a copy of every checkpoint, and kills the training after that of step `until`."""
    steps = []

    def report(metrics, checkpoint):
        steps.append(metrics)
        shutil.copytree(checkpoint, folder / str(metrics["step"]))
        if metrics["step"] == until:
            raise Killed

    report.metrics = steps
    return report


# ------------------------------------------------------------------------------------------------ resume


@pytest.mark.parametrize("method", ["lga", "otam"])
@pytest.mark.parametrize("selection", ["val", "last"])
def test_a_training_that_was_killed_ends_as_if_it_had_not_been(world, tmp_path, method, selection):
    """Adam's moments, the schedule, dropout, the place in the data and the best step so far all continue."""
    train = {"steps": 6, "warmup_steps": 3, "milestones": [4], "validate_every": 2, "learning_rate": 3e-3}
    run = world.run(method=method, selection=selection, train=train)
    whole, cut = world.elsewhere(tmp_path / "whole"), world.elsewhere(tmp_path / "cut")
    train_run(run, whole, _keep(tmp_path / "a"))
    with pytest.raises(Killed):
        train_run(run, cut, _keep(tmp_path / "b", until=4))
    assert not (cut.run(run.id) / "train.json").exists() and not (cut.run(run.id) / WEIGHTS).exists()
    again = _keep(tmp_path / "c")
    train_run(run, cut, again, tmp_path / "b" / "3")  # the newest checkpoint was not saved in time
    assert [metrics["step"] for metrics in again.metrics] == [4, 5, 6]
    assert all(metrics["run"] == run.id for metrics in again.metrics)
    one, two = _weights(whole, run), _weights(cut, run)
    assert one.keys() == two.keys()
    for name in one:
        assert torch.equal(one[name], two[name]), name
    _close(_curve(whole, run), _curve(cut, run), 1e-6)
    assert [row["step"] for row in _curve(cut, run)] == [1, 2, 3, 4, 5, 6]
    records = [json.loads((ws.run(run.id) / "train.json").read_text()) for ws in (whole, cut)]
    assert [records[0][key] == records[1][key] for key in ("selected_step", "validation_accuracy")] == [True, True]
    assert not list(whole.run(run.id).rglob(STATE))  # checkpoints are the keeper's, the run's folder has none


def test_weights_of_a_best_step_are_written_once(world, tmp_path):
    run, ws = world.run(method="otam", train={"steps": 3}), world.elsewhere(tmp_path / "ws")
    train_run(run, ws, _keep(tmp_path / "kept"))
    folders = [tmp_path / "kept" / str(step) for step in (1, 2, 3)]
    states = [torch.load(folder / STATE, weights_only=True) for folder in folders]
    assert [not state["best"]["state"] for state in states] == [
        state["best"]["step"] == state["step"] for state in states
    ]
    assert states[0]["best"]["step"] == 1 and not list(ws.run(run.id).rglob(STATE))
    best = states[-1]["best"]["step"]
    chosen = states[best - 1]["model"]
    again = world.elsewhere(tmp_path / "again")
    train_run(run, again, None, folders[0])  # the best so far are the weights of that checkpoint
    for name, value in _weights(again, run).items():
        assert torch.equal(value, chosen[name]), name


def test_the_newest_whole_checkpoint_is_found(tmp_path):
    """Ray deletes old checkpoints file by file, and a training may stop in the midst of writing one."""
    ws = Workspace(tmp_path)
    assert latest_checkpoint(ws, "lga-scene-s0-0a") is None

    def folder(slot, name, *files):
        path = ws.ray / "train" / slot / name
        path.mkdir(parents=True)
        for file in files:
            (path / file).write_text("{}")
        return path

    folder("slot-0-77", "lga-scene-s0-0a-00000009", "state.pt")  # half of it is gone
    assert latest_checkpoint(ws, "lga-scene-s0-0a") is None
    whole = folder("slot-1-77", "lga-scene-s0-0a-00000006", "state.pt", "meta.json")
    folder("slot-0-77", "lga-scene-s0-0a-00000003", "state.pt", "meta.json")
    folder("slot-1-77", "lga-scene-s0-0a-00000012", "meta.json")
    folder("slot-0-77", "lga-scene-s0-0b-00000048", "state.pt", "meta.json")
    assert latest_checkpoint(ws, "lga-scene-s0-0a") == whole
    later = folder("lga-scene-s0-0a", "lga-scene-s0-0a-00000010", "state.pt", "meta.json")
    assert latest_checkpoint(ws, "lga-scene-s0-0a") == later


def test_a_resumed_training_does_not_decode_what_it_walks_past(world, tmp_path, monkeypatch):
    run, ws = world.run(method="otam", selection="last", train={"steps": 4}), world.elsewhere(tmp_path / "ws")
    train_run(run, ws, _keep(tmp_path / "kept"))
    drawn = []
    original = EpisodeDataset.__getitem__
    monkeypatch.setattr(EpisodeDataset, "__getitem__", lambda self, i: drawn.append(i) or original(self, i))
    train_run(run, ws, None, tmp_path / "kept" / "3")
    assert drawn == [6, 7]


def test_without_a_report_nothing_is_checkpointed_but_the_result_is_complete(world, tmp_path):
    run, ws = world.run(method="otam"), world.elsewhere(tmp_path)
    path = train_run(run, ws)
    assert path == ws.run(run.id) / "train.json"
    record = json.loads(path.read_text())
    assert record["run"] == run.id and record["steps"] == 2 and record["workers"] == 1
    assert record["classes"] == {"train": 26, "val": 10, "test": 10}
    assert Run.model_validate_json((ws.run(run.id) / "run.json").read_text()).id == run.id
    assert {item.suffix for item in ws.run(run.id).iterdir() if item.is_file()} == {".json", ".csv", ".safetensors"}


@pytest.mark.parametrize("counts", [True, False])
def test_the_untrained_model_is_chosen_where_it_counts_and_is_best(world, tmp_path, monkeypatch, counts):
    accuracies = iter([50.0] * counts + [40.0, 45.0])
    real = module.outcome
    monkeypatch.setattr(module, "outcome", lambda *scores: real(*scores) | {"accuracy": next(accuracies)})
    train = {"steps": 2, "learning_rate": 1e-2, "checkpoint_every": 1, "untrained_counts": counts}
    run, ws = world.run(method="otam", train=train), world.elsewhere(tmp_path)
    record = json.loads(train_run(run, ws, _keep(tmp_path / "kept")).read_text())
    assert (record["selected_step"], record["validation_accuracy"]) == ((0, 50.0) if counts else (2, 45.0))
    first = task_of(run, ws).build().trained_state()
    assert all(torch.equal(value, first[name]) for name, value in _weights(ws, run).items()) == counts
    assert [float(row["validation_accuracy"]) for row in _curve(ws, run)] == [40.0, 45.0]
    if counts:  # a training that goes on has looked at it before
        accuracies = iter([45.0])
        again = json.loads(train_run(run, ws, None, tmp_path / "kept" / "1").read_text())
        assert again["selected_step"] == 0
        assert all(torch.equal(value, first[name]) for name, value in _weights(ws, run).items())


def test_the_key_is_part_of_the_identity_where_it_is_on(world):
    plain, on = world.run(method="otam"), world.run(method="otam", train={"untrained_counts": True})
    assert world.run(method="otam", train={"untrained_counts": False}).id == plain.id != on.id


def test_a_method_with_nothing_to_train(world, tmp_path, monkeypatch):
    run = world.run(method="otam")
    build = FewShotTask.build
    monkeypatch.setattr(FewShotTask, "build", lambda task: build(task).requires_grad_(False))
    with pytest.raises(
        UserError, match=f"{run.id}: otam has nothing to train on a frozen backbone; set train: {{ steps"
    ):
        train_run(run, world.elsewhere(tmp_path))


# ----------------------------------------------------------------------------------------------- workers


@pytest.mark.slow
def test_two_workers_train_the_same_as_one(world, tmp_path):
    """Same episodes in a step, so the same loss curve, learning rates, validation and weights to rounding."""
    train = {"steps": 3, "episodes_per_step": 4, "optimizer": "sgd", "learning_rate": 0.05}
    train |= {"warmup_steps": 2, "validate_every": 3}
    run = world.run(method="lga", train=train)
    alone, pair = world.elsewhere(tmp_path / "alone"), world.elsewhere(tmp_path / "pair")
    train_run(run, alone)
    train_on_workers(2, run, pair)
    one, two = _weights(alone, run), _weights(pair, run)
    first = task_of(run, alone).build().trained_state()
    assert one.keys() == two.keys() == first.keys()
    moved = max(float((one[name] - first[name]).abs().max()) for name in one)
    apart = max(float((one[name] - two[name]).abs().max()) for name in one)
    assert moved > 1e-3 and apart < 1e-5
    _close(_curve(alone, run), _curve(pair, run), 1e-5)
    record = json.loads((pair.run(run.id) / "train.json").read_text())
    assert record["workers"] == 2 and record["selected_step"] >= 1


def test_episodes_that_cannot_be_split_over_the_workers(world, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "get_world_size", lambda: 3)
    run = world.run(method="otam", train={"episodes_per_step": 4})
    with pytest.raises(
        UserError, match=f"{run.id}: 4 episodes .*a step cannot be split over 3 workers.*cluster.workers"
    ):
        train_run(run, world.elsewhere(tmp_path))


# --------------------------------------------------------------------------------------------- recipe


@pytest.mark.parametrize("episodes_per_step", [1, 3])
def test_learning_rate_follows_the_steps(world, tmp_path, episodes_per_step):
    train = {
        "steps": 7, "episodes_per_step": episodes_per_step, "learning_rate": 1e-3, "warmup_steps": 3,
        "warmup_start": 1e-4, "milestones": [4, 6], "checkpoint_every": 100,
    }  # fmt: skip
    run, ws = world.run(method="otam", selection="last", train=train), world.elsewhere(tmp_path)
    train_run(run, ws)
    rates = [row["learning_rate"] for row in _curve(ws, run)]
    assert rates == pytest.approx([1e-4, 4e-4, 7e-4, 1e-3, 1e-4, 1e-4, 1e-5], rel=1e-6)


def _rates(milestones, steps, warmup=0, start=1e-5, first=1e-3, resume_at=None):
    """The learning rate of each step, as the trainer's schedulers give it."""

    def build():
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=first)
        schedulers = [LinearLR(optimizer, start_factor=start / first, end=warmup + 1, by_epoch=False)] if warmup else []
        return optimizer, [*schedulers, StepFactors(optimizer, milestones=milestones, by_epoch=False)]

    optimizer, schedulers = build()
    rates = []
    for step in range(steps):
        if step == resume_at:
            states = optimizer.state_dict(), [scheduler.state_dict() for scheduler in schedulers]
            optimizer, schedulers = build()
            optimizer.load_state_dict(states[0])
            for scheduler, state in zip(schedulers, states[1], strict=True):
                scheduler.load_state_dict(state)
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
    return rates


@pytest.mark.parametrize(
    ("milestones", "factors"),
    [
        ([], [1, 1, 1, 1, 1, 1, 1, 1]),
        ([3, 6], [1, 1, 1, 0.1, 0.1, 0.1, 0.01, 0.01]),  # to a tenth each
        ([[3, 0.5], [6, 0.1]], [1, 1, 1, 0.5, 0.5, 0.5, 0.1, 0.1]),  # of the first rate, not of the last one
        ([[2, 0.5], 5], [1, 1, 0.5, 0.5, 0.5, 0.05, 0.05, 0.05]),
        ([2, [5, 0.5]], [1, 1, 0.1, 0.1, 0.1, 0.5, 0.5, 0.5]),  # it may rise
        ([[4, 0.5], [4, 0.1]], [1, 1, 1, 1, 0.1, 0.1, 0.1, 0.1]),
        ([99], [1, 1, 1, 1, 1, 1, 1, 1]),
    ],
)
def test_learning_rate_at_milestones(milestones, factors):
    want = pytest.approx([1e-3 * factor for factor in factors], rel=1e-9)
    assert _rates(milestones, 8) == want
    for resume_at in range(1, 8):
        assert _rates(milestones, 8, resume_at=resume_at) == want


@pytest.mark.parametrize("resume_at", [None, 1, 3, 4, 5])
def test_warm_up_and_milestones_act_on_one_rate(resume_at):
    """The rate rises evenly to the first one; a milestone inside the warm-up scales what is left of it."""
    rates = _rates([[4, 0.5], [6, 0.1]], 8, warmup=4, start=2e-4, resume_at=resume_at)
    assert rates == pytest.approx([2e-4, 4e-4, 6e-4, 8e-4, 5e-4, 5e-4, 1e-4, 1e-4], rel=1e-9)
    inside = _rates([[2, 0.5]], 6, warmup=4, start=2e-4, resume_at=resume_at)
    assert inside == pytest.approx([2e-4, 4e-4, 3e-4, 4e-4, 5e-4, 5e-4], rel=1e-9)


def test_factors_of_a_recipe_reach_the_training_and_survive_its_interruption(world, tmp_path):
    train = {
        "steps": 7, "episodes_per_step": 2, "learning_rate": 1e-3, "warmup_steps": 2, "warmup_start": 1e-4,
        "milestones": [[3, 0.5], [5, 0.1], 6],
    }  # fmt: skip
    run, ws = world.run(method="otam", selection="last", train=train), world.elsewhere(tmp_path / "ws")
    with pytest.raises(Killed):
        train_run(run, ws, _keep(tmp_path / "kept", until=4))
    train_run(run, ws, None, tmp_path / "kept" / "4")
    rates = [row["learning_rate"] for row in _curve(ws, run)]
    assert rates == pytest.approx([1e-4, 5.5e-4, 1e-3, 5e-4, 5e-4, 1e-4, 1e-5], rel=1e-6)


def test_every_released_schedule_falls_below_its_first_rate_and_stays_positive(world):
    """Factors of a recipe are of its first rate, so each later one is lower."""
    for name in world.plan.config.names("methods"):
        method = world.plan.config.entry("methods", name, "test")
        for schedule in [{}, *method.get("schedules", {}).values()] if method.get("train", {}).get("steps") else ():
            train = {**method["train"], **schedule}
            optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=train["learning_rate"])
            schedule = StepFactors(optimizer, milestones=train["milestones"], by_epoch=False)
            factors = [schedule._factor(step) for step in range(train["steps"])]
            assert factors == sorted(factors, reverse=True) and factors[0] == 1 and factors[-1] > 0, name
            changes = {step for step, (a, b) in enumerate(itertools.pairwise(factors), 1) if a != b}
            steps = {entry[0] if isinstance(entry, list) else entry for entry in train["milestones"]}
            assert changes == {step for step in steps if step < train["steps"]}, name
            assert train["warmup_steps"] < train["steps"]


def test_one_step_of_warm_up_ends(world, tmp_path):
    train = {"steps": 3, "episodes_per_step": 1, "warmup_steps": 1, "warmup_start": 1e-5, "milestones": []}
    run, ws = world.run(method="otam", selection="last", train=train), world.elsewhere(tmp_path)
    train_run(run, ws)
    assert [row["learning_rate"] for row in _curve(ws, run)] == pytest.approx([1e-5, 1e-3, 1e-3])


def test_a_step_is_the_mean_over_its_episodes(world, tmp_path):
    """With plain SGD the first step moves the weights by the learning rate times the mean gradient."""
    train = {"steps": 1, "episodes_per_step": 3, "optimizer": "sgd", "learning_rate": 0.1, "weight_decay": 0.0}
    run, ws = world.run(method="otam", selection="last", train=train), world.elsewhere(tmp_path)
    train_run(run, ws)
    task = task_of(run, ws)
    model = task.build().train()
    before = {name: value.clone() for name, value in model.trained_state().items()}
    episodes, losses = task.items(model), []
    for i in range(3):
        batch = model.data_preprocessor(torch.utils.data.default_collate([episodes[i]]), True)
        losses.append(model(mode="loss", **batch)["loss_matching"])
    mean = torch.stack(losses).mean()
    mean.backward()
    after, parameters = _weights(ws, run), dict(model.named_parameters())
    for name in before:
        torch.testing.assert_close(after[name], before[name] - 0.1 * parameters[name].grad, atol=1e-6, rtol=1e-4)
    assert _curve(ws, run)[0]["loss"] == pytest.approx(mean.item(), abs=1e-5)


def test_training_learns_an_easy_task(world, tmp_path, monkeypatch):
    """The loss of the same few episodes falls; the random CLIP starts at chance."""
    train = {"steps": 20, "episodes_per_step": 1, "learning_rate": 3e-3, "way": 2, "validate_every": 100}
    run, ws = world.run(method="lga", selection="last", train=train), world.elsewhere(tmp_path)
    items = FewShotTask.items
    monkeypatch.setattr(FewShotTask, "items", lambda task, model: Repeat(items(task, model), 2))
    train_run(run, ws)
    losses = [row["loss"] for row in _curve(ws, run)]
    assert sum(losses[-4:]) < 0.9 * sum(losses[:4])


class Repeat(Items):
    """The first `count` items of a data set again and again."""

    def __init__(self, dataset, count):
        self.dataset, self.count = dataset, count

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, i):
        return self.dataset[i % self.count]


def test_seeds_train_on_other_episodes(world, tmp_path):
    ws = world.elsewhere(tmp_path)
    runs = [world.run(method="otam", selection="last", seed=seed) for seed in (0, 1)]
    for run in runs:
        train_run(run, ws)
    losses = [_curve(ws, run)[0]["loss"] for run in runs]
    assert abs(losses[0] - losses[1]) > 1e-3


@pytest.mark.parametrize("crop", ["clip", "frame"])
def test_frames_and_crops_of_a_training_are_those_of_the_recipe(world, crop):
    task = task_of(world.run(method="trx", train={"crop": crop}), world.ws)
    model = task.build()
    episodes = task.items(model)
    assert episodes.mode == "linspace_jitter" and episodes.transform.per_frame is (crop == "frame")
    assert model.data_preprocessor.mean.tolist() == [[[0.0]]] * 3 and episodes.transform.flip == 0.5
    task = task_of(world.run(method="hyrsm"), world.ws)
    model = task.build()
    episodes = task.items(model)
    assert episodes.mode == "segment_random" and set(episodes.colours) == {"query"}
    assert model.data_preprocessor.mean.flatten().tolist() == pytest.approx([0.45] * 3)
    assert (episodes.transform.flip, episodes.query_transform.flip) == (task.run.train["flip"], 0.5)


@pytest.mark.skipif(torch.cuda.is_available(), reason="mixed precision is for GPUs, and here is one")
def test_mixed_precision_without_a_gpu(world, tmp_path):
    run = world.run(method="otam", train={"amp": True})
    with pytest.raises(UserError, match=f"{run.id}: train.amp is true.*needs a GPU"):
        train_run(run, world.elsewhere(tmp_path))


def test_optimisers_differ(world, tmp_path):
    ws, runs = world.elsewhere(tmp_path), {}
    for name in ("adam", "adamw", "sgd"):
        runs[name] = world.run(method="otam", selection="last", train={"optimizer": name, "weight_decay": 0.1})
        train_run(runs[name], ws)
    weights = [_weights(ws, run)["backbone.clip.visual_projection.weight"] for run in runs.values()]
    assert all(not torch.equal(one, two) for one, two in itertools.pairwise(weights))


def test_wrong_settings_of_a_training(world, tmp_path):
    ws = world.elsewhere(tmp_path)
    with pytest.raises(
        UserError, match="key optimizer: Input should be 'adam', 'adamw', 'sgd' or 'rmsprop' .got 'lion'"
    ):
        world.run(method="otam", train={"optimizer": "lion"})
    run = world.run(method="otam", train={"way": 27})
    with pytest.raises(UserError, match="27-way episodes need 27 classes, and there are 26"):
        train_run(run, ws)
    run = world.run(method="otam", train={"shot": 5, "query": 2})
    with pytest.raises(UserError, match="an episode takes 7 clips"):
        train_run(run, ws)
    for start in (1.0, 0.0):
        run = world.run(method="otam", train={"warmup_start": start, "warmup_steps": 1, "learning_rate": 0.1})
        with pytest.raises(UserError, match=f"train.warmup_start = {start:g}; .* train.learning_rate = 0.1"):
            train_run(run, ws)
    assert not list((ws.root / "runs").rglob("train.json"))


def test_a_loss_that_is_no_number_stops_the_training_and_says_where(world, tmp_path, monkeypatch):
    run, ws = world.run(method="otam", train={"steps": 4}), world.elsewhere(tmp_path)
    original = FewShotModel.loss

    def loss(self, **episode):
        losses = original(self, **episode)
        if int(episode["episode"]) == 3:  # the second of step 2
            losses["loss_matching"] = losses["loss_matching"] * float("nan")
        return losses

    monkeypatch.setattr(FewShotModel, "loss", loss)
    with pytest.raises(FloatingPointError, match=f"{run.id}: the loss is nan at step 2"):
        train_run(run, ws)
    assert not (ws.run(run.id) / "train.json").exists() and not (ws.run(run.id) / WEIGHTS).exists()


# ------------------------------------------------------------------------------------------- selection


def _with_validation(monkeypatch, scores: list[float]) -> list[float]:
    left = list(scores)

    def validate(task, model):
        """Of ten episodes of one query each as many are right as the next score says."""
        right, labels = round(left.pop(0) / 10), np.zeros((10, 1), np.int64)
        logits = np.eye(5, dtype=np.float32)[[0] * right + [1] * (10 - right)]
        return EpisodeScores(logits[:, None], None, labels)

    monkeypatch.setattr(FewShotTask, "validate", validate)
    return left


@pytest.mark.parametrize(
    ("selection", "every", "scores", "chosen"),
    [
        ("val", 1, [10.0, 40.0, 30.0, 20.0], 2),
        ("val", 1, [10.0, 40.0, 40.0, 40.0], 2),  # of equal ones the earliest
        ("val", 3, [10.0, 40.0], 4),  # step 3 and, always, the last one
        ("test", 2, [50.0, 40.0], 2),
        ("last", 1, [], 4),
    ],
)
def test_weights_of_the_selected_step_are_kept(world, tmp_path, monkeypatch, selection, every, scores, chosen):
    left = _with_validation(monkeypatch, scores)
    run = world.run(method="otam", selection=selection, train={"steps": 4, "validate_every": every})
    ws = world.elsewhere(tmp_path / "ws")
    train_run(run, ws, _keep(tmp_path / "kept"))
    assert left == []
    state = torch.load(tmp_path / "kept" / str(chosen) / STATE, weights_only=True)["model"]
    kept = _weights(ws, run)
    assert all(torch.equal(kept[name], state[name]) for name in state) and kept.keys() == state.keys()
    others = [step for step in (1, 2, 3, 4) if step != chosen]
    for step in others:
        other = torch.load(tmp_path / "kept" / str(step) / STATE, weights_only=True)["model"]
        assert any(not torch.equal(kept[name], other[name]) for name in kept), step
    record = json.loads((ws.run(run.id) / "train.json").read_text())
    assert record["selected_step"] == chosen
    assert record["validation_accuracy"] == (max(scores) if scores else None)
    known = read_training(ws.run(run.id) / "train.json")
    assert (known.validation.accuracy, known.validation.chance) == (max(scores), 20) if scores else not known.validation
    losses = [float(row["loss_matching"]) for row in _curve(ws, run)]
    last = {"name": "loss_matching", "value": pytest.approx(np.mean(losses)), "chance": pytest.approx(math.log(3))}
    assert known.last_loss.model_dump() == last  # of three classes, as the episodes have
    validated = {row["step"]: row.get("validation_accuracy") for row in _curve(ws, run)}
    assert [value for value in validated.values() if value is not None] == scores


def test_the_score_that_is_trained_selects_the_checkpoint(world, monkeypatch):
    """The product, where a method makes one; else the video-video score."""
    labels = torch.zeros(2, 1, dtype=torch.int64).numpy()
    wrong, right = ([[[0.0, 1.0]]] * 2, [[[1.0, 0.0]]] * 2)
    for both, accuracy in ((None, 0.0), (right, 100.0)):
        arrays = [None if x is None else torch.tensor(x).numpy() for x in (wrong, both)]
        scores = EpisodeScores(arrays[0], arrays[0], labels, arrays[1])
        monkeypatch.setattr(few_shot_task, "score_split", lambda *_, scores=scores, **__: scores)
        task = task_of(world.run(method="task_adapter_pp"), world.ws)
        found = task.validate(torch.nn.Identity())
        assert outcome(found.trained, found.labels)["accuracy"] == accuracy


@pytest.mark.parametrize("shot", [1, 3, 5])
def test_a_checkpoint_is_selected_with_the_shots_it_is_trained_with(world, monkeypatch, shot):
    asked, labels = {}, torch.zeros(2, 1, dtype=torch.int64).numpy()
    scores = EpisodeScores(torch.zeros(2, 1, 2).numpy(), None, labels)
    monkeypatch.setattr(few_shot_task, "score_split", lambda *_, **settings: asked.update(settings) or scores)
    run = world.run(method="hyrsm", train={"shot": shot})
    task_of(run, world.ws).validate(torch.nn.Identity())
    assert (asked["shot"], asked["query"], asked["way"]) == (shot, 1, run.train["way"])


def test_parameters_of_equal_settings_are_one_group_and_move_as_if_each_were_alone():
    def built(constructor):
        torch.manual_seed(0)
        model = torch.nn.Sequential(
            torch.nn.Linear(3, 4), torch.nn.Sequential(torch.nn.LayerNorm(4), torch.nn.Linear(4, 2))
        )
        optimizer = {"type": "AdamW", "lr": 0.1, "weight_decay": 0.5, "fused": constructor is module.EqualTogether}
        keys = {"1.0.": {"decay_mult": 0.0}, "1.1.": {"lr_mult": 10.0}}
        return model, constructor({"optimizer": optimizer}, {"custom_keys": keys})(model).optimizer

    (model, together), (other, alone) = built(module.EqualTogether), built(DefaultOptimWrapperConstructor)
    assert [(len(group["params"]), group["lr"], group["weight_decay"]) for group in together.param_groups] == [
        (2, 0.1, 0.5), (2, 0.1, 0.0), (2, 1.0, 0.5),
    ]  # fmt: skip
    assert len(alone.param_groups) == 6
    for step in range(3):
        for network, optimizer in ((model, together), (other, alone)):
            optimizer.zero_grad()
            network(torch.arange(6.0).reshape(2, 3) + step).square().sum().backward()
            optimizer.step()
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)


def test_a_checkpoint_with_other_groups_is_one_line(world, tmp_path):
    run, ws = world.run(method="otam", train={"steps": 3}), world.elsewhere(tmp_path / "ws")
    with pytest.raises(Killed):
        train_run(run, ws, _keep(tmp_path, until=1))
    state = torch.load(tmp_path / "1" / STATE, weights_only=True)
    state["optimizer"]["param_groups"] *= 9
    torch.save(state, tmp_path / "1" / STATE)
    with pytest.raises(UserError, match="1: not of this version .* delete it, and the training starts anew"):
        train_run(run, ws, None, tmp_path / "1")


def test_batch_norm_without_weight_decay():
    """Released HyRSM and MoLo: none on what has "bn" in its name, so on all but the norms of the shortcuts."""
    from pipeline.models.backbones.resnet import ResNetBackbone
    from pipeline.training.train import _parameter_groups

    model = torch.nn.ModuleDict({"backbone": ResNetBackbone({"depth": 18})})
    groups = _parameter_groups(model, {"bn_undecayed": True})
    undecayed = {
        name for name, _ in model.named_parameters() if groups.get(max((k for k in groups if k in name), default=""))
    }
    norms = {f"{name}.{kind}" for name, module in model.named_modules()
             if isinstance(module, torch.nn.BatchNorm2d) for kind in ("weight", "bias")}  # fmt: skip
    assert undecayed == {name for name in norms if "downsample" not in name} and len(norms - undecayed) == 6
    assert not [name for name, _ in model.named_parameters() if any(k in name for k in _parameter_groups(model, {}))]


@pytest.mark.parametrize(("selection", "split"), [("val", "val"), ("test", "test")])
def test_the_selection_looks_at_its_own_split(world, tmp_path, monkeypatch, selection, split):
    seen, original = [], few_shot_task.score_split

    def spy(run, model, ws, store, which, **kwargs):
        assert not model.training
        seen.append((which, kwargs["seed"], kwargs["episodes"], kwargs["shot"]))
        return original(run, model, ws, store, which, **kwargs)

    monkeypatch.setattr(few_shot_task, "score_split", spy)
    run = world.run(method="otam", selection=selection)
    train_run(run, world.elsewhere(tmp_path))
    assert seen == [(split, SELECTION_SEED, 20, 1)] * 2


def test_validation_leaves_no_trace_in_the_training(world, tmp_path):
    """Validating more often changes nothing but what is selected."""
    ws = world.elsewhere(tmp_path / "ws")
    runs = [
        world.run(method="lga", selection=selection, train={"steps": 3, "validate_every": 1})
        for selection in ("val", "last")
    ]
    for run, name in zip(runs, "ab", strict=True):
        train_run(run, ws, _keep(tmp_path / name))
    states = [torch.load(tmp_path / name / "3" / STATE, weights_only=True)["model"] for name in "ab"]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
