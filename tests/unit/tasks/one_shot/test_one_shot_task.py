"""Skeletons through the one training loop: trained, interrupted, saved, loaded, tested."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny import CONFIG

from pipeline.errors import UserError
from pipeline.evaluation.evaluate import measure_run, search_in_process
from pipeline.evaluation.health import Outcome, Training, read_training, verdict
from pipeline.evaluation.score import score_run
from pipeline.experiment import store_key
from pipeline.models.build import WEIGHTS, load_weights
from pipeline.plan import Plan
from pipeline.scores import outcome
from pipeline.stages import make_frames, make_splits, make_texts, synthesize
from pipeline.tasks.kinds import task_of
from pipeline.tasks.one_shot.task import Batches
from pipeline.training.train import train_run
from pipeline.workspace import Workspace

GCN = {"channels": [8, 8, 16, 16], "strides": [1, 1, 2, 1]}
SMALL = {
    "infogcn": {"settings": GCN},
    "hdgcn": {"settings": GCN},
    "motionbert": {"settings": {"width": 8, "depth": 2, "heads": 2, "representation": 8, "embedding": 12}},
}
GUIDED = {"n_pre": 2, "space": 16, "mlp_hidden": 16, "heads": 2, "layers": 1}
METHODS = {
    "infogcn": SMALL["infogcn"],
    "hdgcn": SMALL["hdgcn"],
    "motionbert": SMALL["motionbert"],
    "gap": SMALL["infogcn"],
    "crossglg": {**SMALL["infogcn"], **GUIDED},
    "crossglg_hdgcn": {**SMALL["hdgcn"], **GUIDED},
    "crossglg_motionbert": {**SMALL["motionbert"], **GUIDED},
}
TRAIN = {
    "epochs": 2, "steps": None, "batch": 20, "learning_rate": 0.01, "validate_epochs": 1, "milestones": [1],
    "warmup_epochs": 0,
}  # fmt: skip


class SkeletonWorld:
    """A workspace with a generated skeleton set, and the plan that it belongs to."""

    def __init__(self, root):
        overlay = {
            "scale": "demo",
            "datasets": {
                "synthetic_scene": {"clips_per_class": 4, "size": 32},
                "synthetic_skeleton": {"feed": {"frames": 8}},
            },
            "measure": {"episodes": 10, "val_episodes": 10},
        }  # fmt: skip
        self.plan, self.ws = Plan.read(CONFIG, overlay), Workspace(root)
        run = self.cell("infogcn").run
        for key in (self.plan.datasets[run.dataset].spec["reads"], run.dataset):
            asset = self.plan.datasets[key]
            self.plan.write_specs(root / "specs")
            if asset.spec["kind"] == "synthetic":
                synthesize(asset, self.ws, 1)
            make_splits(asset, self.ws, 1)
            make_texts(asset, self.ws)
        frames = self.plan.frames(asset)
        make_frames(asset, self.ws, store_key(frames), frames["store"], 1)

    def cell(self, method, model=None, train=None, measure=None, **rest):
        """The cell of one method, small."""
        experiment = {
            "dataset": "ntu120_oneshot",
            "method": method,
            "model": {**METHODS[method], **(model or {})},
            "train": {**TRAIN, **(train or {})},
            "measure": measure or {},
        }
        return self.plan.cell({**experiment, **rest}, 0, "the test")

    def elsewhere(self, folder):
        """The same data under another root."""
        folder.mkdir(parents=True)
        for name in ("data", "specs"):
            (folder / name).symlink_to(self.ws.root / name)
        return Workspace(folder)


@pytest.fixture(scope="module")
def skeletons(tmp_path_factory):
    torch.set_num_threads(1)
    return SkeletonWorld(tmp_path_factory.mktemp("skeletons"))


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_is_saved_and_gives_the_same_predictions_again(skeletons, tmp_path, method):
    ws = skeletons.elsewhere(tmp_path / "ws")
    cells = [skeletons.cell(method, measure={"matcher": kind}) for kind in ("nearest", "calibration")]
    run = cells[0].run
    assert cells[1].run == run  # one training, two measurements
    train_run(run, ws)
    record = json.loads((ws.run(run.id) / "train.json").read_text())
    assert record["steps"] == 2 * (26 * 4 // 20) and record["classes"] == {"train": 26, "test": 10, "val": 10}
    assert 0 <= record["validation_accuracy"] <= 100
    known = read_training(ws.run(run.id) / "train.json")
    assert (known.validation.classes, known.validation.accuracy) == (10, record["validation_accuracy"])
    assert known.last_loss.name == ("loss_contrast" if method == "motionbert" else "loss_class")
    of_equal_features = math.log(26) if method != "motionbert" else 10 / 7 * math.log(19)
    assert known.last_loss.chance == pytest.approx(of_equal_features)
    assert score_run(run, cells, ws) == 2
    values = [json.loads(path.read_text()) for path in measure_run(run, cells, ws, search_in_process)]
    assert all(value["n"] == 10 * 3 for value in values)  # all clips of the novel classes but the exemplars
    assert all((x["predictions"]["classes"], x["predictions"]["accuracy"]) == (10, x["value"]) for x in values)
    assert all(0 < value["predictions"]["spread"] < 10 for value in values)
    task = task_of(run, ws)
    again = [task.scores(load_weights(task.build(), run, ws), cell.measure, "test") for cell in cells]
    for cell, scores, value in zip(cells, again, values, strict=True):
        right = 100 * (scores.trained[:, 0].argmax(1) == scores.labels[:, 0]).mean()
        assert right == pytest.approx(value["value"]), cell.id


def test_an_encoder_that_died_is_flagged(skeletons, tmp_path):
    """As too large a learning rate leaves it: all hidden features 0, and yet some accuracy comes out."""
    ws, cell = skeletons.elsewhere(tmp_path / "ws"), skeletons.cell("infogcn")
    task = task_of(cell.run, ws)
    model = task.build()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    for scores in (task.validate(model), task.scores(model, cell.measure, "test")):
        found = Outcome(**outcome(scores.trained, scores.labels, scores.spread))
        assert found.spread == 0 and found.accuracy == pytest.approx(10)
        (note,) = verdict(Training(), [found], trained=True)
        assert note.startswith("did not learn: test 10.0 ± ")
        assert note.endswith("(chance 10.0), constant features in test, one class for 100 % of the test queries")


def test_no_module_of_training_is_in_the_weights_at_test(skeletons, tmp_path):
    """The text guides training only: the model without it has fewer tensors and the same features."""
    ws, cell = skeletons.elsewhere(tmp_path / "ws"), skeletons.cell("crossglg")
    train_run(cell.run, ws)
    task = task_of(cell.run, ws)
    whole = load_weights(task.build(), cell.run, ws).eval()
    exported = whole.exported_state()
    assert any(name.startswith("guidance.") for name in load_file(ws.run(cell.run.id) / WEIGHTS))
    assert not any(name.startswith("guidance.") for name in exported)
    bare = type(whole)(task.definition.graph, task.definition.policy.bodies, 26, None, **settings_of(cell.run)).eval()
    assert bare.exported_state().keys() == exported.keys()
    bare.load_state_dict(exported, strict=False)
    x = torch.randn(3, 3, 8, 25, 1, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(bare.embed(x), whole.embed(x)) and torch.equal(
            bare.embed(x, "hidden"), whole.embed(x, "hidden")
        )


def settings_of(run):
    """The arguments of the model, without what reads its texts."""
    return {key: value for key, value in run.model.items() if key not in ("type", "text", "text_source", "corpus")}


class Killed(BaseException):
    """What ends a training from outside."""


@pytest.mark.parametrize("method", ["infogcn", "motionbert"])
def test_a_training_that_was_killed_ends_as_if_it_had_not_been(skeletons, tmp_path, method):
    """Noise of the latent, order of the batches, random crops, statistics of the norms: all continue."""
    whole, cut = skeletons.elsewhere(tmp_path / "whole"), skeletons.elsewhere(tmp_path / "cut")
    run = skeletons.cell(method, train={"epochs": 3}).run
    train_run(run, whole)

    def kill(metrics, checkpoint):
        checkpoint.rename(tmp_path / "kept")
        raise Killed

    with pytest.raises(Killed):
        train_run(run, cut, kill)
    step = json.loads((tmp_path / "kept" / "meta.json").read_text())["step"]
    assert step == 5  # after the first epoch
    train_run(run, cut, None, tmp_path / "kept")
    one, two = (load_file(ws.run(run.id) / WEIGHTS) for ws in (whole, cut))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_epochs_become_steps_and_a_base_set_makes_them_fewer(skeletons, tmp_path):
    ws = skeletons.elsewhere(tmp_path / "ws")
    half = task_of(skeletons.cell("infogcn", train={"base_set": "50%"}).run, ws)
    assert half.classes()["train"] == 13
    assert half.schedule()["steps"] == 2 * (13 * 4 // 20) and half.schedule()["milestones"] == [2]
    fixed = task_of(skeletons.cell("infogcn", train={"steps": 30, "base_set": "50%", "warmup_epochs": 0.2}).run, ws)
    schedule = fixed.schedule()  # the same recipe, stretched
    assert [schedule[key] for key in ("steps", "milestones", "warmup_steps", "validate_every")] == [30, [15], 3, 15]
    with pytest.raises(UserError, match=r"unknown base set '55%'"):
        task_of(skeletons.cell("infogcn", train={"base_set": "55%"}).run, ws).classes()


class Eleven:
    """Eleven clips of three classes."""

    labels = np.array([0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2])

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, item):
        return torch.full((3, 2, 4, 1), float(item[1])), int(self.labels[item[1]]), item


def test_batches_cover_an_epoch_once_and_depend_on_seed_and_number_only():
    made = Batches(Eleven(), batch=5, per_class=0, seed=3, count=6)
    assert len(made) == 6 and made.per_epoch == 2
    clips = [made[i]["x"][:, 0, 0, 0, 0].int().tolist() for i in range(4)]
    for first in (0, 2):
        assert len({*clips[first], *clips[first + 1]}) == 10  # nothing twice in an epoch, one left out
    assert clips[0] != clips[2]
    again = Batches(Eleven(), batch=5, per_class=0, seed=3, count=6)
    assert again[3]["x"][:, 0, 0, 0, 0].int().tolist() == clips[3]  # asked out of order
    assert Batches(Eleven(), 5, 0, 4, 6)[0]["x"][:, 0, 0, 0, 0].int().tolist() != clips[0]
    assert made[1]["labels"].tolist() == Eleven.labels[clips[1]].tolist() and made[1]["episode"] == 1
    with pytest.raises(IndexError):
        made[6]


def test_a_batch_larger_than_the_set_is_filled_up():
    made = Batches(Eleven(), batch=16, per_class=0, seed=0, count=1)
    assert set(made[0]["x"][:, 0, 0, 0, 0].int().tolist()) == set(range(11))


def test_batches_of_a_contrastive_loss_have_pairs():
    made = Batches(Eleven(), batch=4, per_class=2, seed=0, count=4)
    for i in range(4):
        assert sorted(np.unique(made[i]["labels"].numpy(), return_counts=True)[1]) == [2, 2]
