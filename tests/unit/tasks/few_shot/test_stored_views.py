"""Stored views: a training on tokens is that of the whole network on the same views, and its files come and go."""

from __future__ import annotations

import csv
import itertools
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny import OVERLAY, bare_plan, train_on_workers
from torch.utils.data import DataLoader

from pipeline.config import merge
from pipeline.errors import UserError
from pipeline.models.build import WEIGHTS
from pipeline.models.few_shot.blocks.adapters import VisionTower
from pipeline.tasks.few_shot import stored_views as module
from pipeline.tasks.few_shot.stored_views import FILES, Views
from pipeline.tasks.few_shot.task import FewShotTask
from pipeline.tasks.kinds import task_of
from pipeline.training.train import train_run

TRAIN = {
    "stored_views": 2, "steps": 4, "episodes_per_step": 2, "validate_every": 4,
    "optimizer": "sgd", "learning_rate": 0.05,
}  # fmt: skip


def _run(world, method="task_adapter_pp", selection="last", model=None, **train):
    return world.run(method=method, selection=selection, train=TRAIN | train, model=model or {})


def _found(ws, run):
    """Losses of the steps, and weights."""
    with (ws.run(run.id) / "curve.csv").open() as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file)]
    return losses, load_file(ws.run(run.id) / WEIGHTS)


def _assert_same(one, two, tolerance=1e-5):
    assert len(one[0]) == TRAIN["steps"] and one[0] == pytest.approx(two[0], abs=tolerance)
    assert one[1].keys() == two[1].keys()
    for name in one[1]:
        torch.testing.assert_close(one[1][name], two[1][name], atol=tolerance, rtol=0, msg=name)


def _frames(task, views, model):
    """In the place of `FewShotTask._stored`: the views as frames, for the whole network."""
    return views


def _views(world, run):
    """The views of a run, as frames."""
    task = FewShotTask(run, world.ws)
    task._stored = lambda views, model: views
    return task.items(task.build())


class Killed(BaseException):
    """What ends a training from outside."""


# ------------------------------------------------------------------------------------------------ the same training
@pytest.mark.parametrize(
    ("model", "selection"),
    [({}, "val"), ({"task": False}, "last"), ({"layers": 0, "aim": False, "task": False}, "last")],
    ids=["task", "videos", "text"],
)
def test_losses_are_those_of_the_whole_network_on_the_same_views(world, tmp_path, monkeypatch, model, selection):
    """Where the rest sees the task, where a video is seen alone, and where only CLS is stored."""
    run = _run(world, model=model, selection=selection)
    stored, whole = world.elsewhere(tmp_path / "stored"), world.elsewhere(tmp_path / "whole")
    train_run(run, stored)
    monkeypatch.setattr(FewShotTask, "_stored", _frames)
    train_run(run, whole)
    _assert_same(_found(stored, run), _found(whole, run))
    before = task_of(run, stored).build().trained_state()
    assert max(float((value - before[name]).abs().max()) for name, value in _found(stored, run)[1].items()) > 1e-3
    assert not list(stored.run(run.id).glob(FILES))


def test_views_of_supports_and_queries_that_are_treated_differently(world, tmp_path, monkeypatch):
    """EMP-Net: supports are flipped and their colours change, queries are as they are."""
    run = _run(world, "emp_net", optimizer="adam", learning_rate=1e-3)
    views = _views(world, run)
    assert {number for _, number in views.asked()} == {0, 1, 2, 3}
    assert torch.equal(views.view(5, 2), views.query_transform(*_frames_of(views, 5, 2)))
    assert torch.equal(views.view(5, 1), views.transform(*_frames_of(views, 5, 1)))
    assert set(views.colours) == {"support"} and (views.transform.flip, views.query_transform.flip) == (0.5, 0.0)
    assert views.changed_view(5, 1)[1].shape == (9,) and views.changed_view(5, 2)[1] is None
    stored, whole = world.elsewhere(tmp_path / "stored"), world.elsewhere(tmp_path / "whole")
    train_run(run, stored)
    monkeypatch.setattr(FewShotTask, "_stored", _frames)
    train_run(run, whole)
    _assert_same(_found(stored, run), _found(whole, run))


def _frames_of(views, clip, number):
    """Arguments of a transform: the frames that a view has, and the generator behind their choice."""
    rng = np.random.default_rng(np.random.SeedSequence([views.seed, clip, 1 + number]))
    return views.read_clip(clip, rng), rng


def test_views_are_another_training_than_fresh_ones(world, tmp_path):
    ws, runs = world.elsewhere(tmp_path), [_run(world), _run(world, stored_views=1), _run(world, stored_views=0)]
    for run in runs:
        train_run(run, ws)
    losses = [_found(ws, run)[0] for run in runs]
    assert all(max(abs(a - b) for a, b in zip(one, two, strict=True)) > 1e-4 for one, two in itertools.pairwise(losses))


def test_the_frozen_layers_see_a_view_once(world, tmp_path, monkeypatch):
    seen = []
    original = VisionTower.trunk
    monkeypatch.setattr(VisionTower, "trunk", lambda tower, clip, x: seen.append(len(x)) or original(tower, clip, x))
    run = _run(world, stored_views=1, steps=20, checkpoint_every=99)
    train_run(run, world.elsewhere(tmp_path))
    asked, clips = _views(world, run).asked(), world.store.splits.count("train")
    read = run.train["steps"] * run.train["episodes_per_step"] * run.train["way"] * 2
    assert sum(seen) == len(asked) + 1 <= clips + 1 < read  # one more shows how large they are


# ---------------------------------------------------------------------------------------------------- which views
def test_a_view_depends_on_seed_clip_and_number_alone(world):
    one, other = _views(world, _run(world)), _views(world, _run(world, steps=9))
    clip = one.sampler.draw(0).query[0]
    first = one.view(clip, 0)
    assert torch.equal(first, other.view(clip, 0))
    for different in (one.view(clip, 1), one.view(clip + 1, 0)):
        assert first.shape == different.shape and not torch.equal(first, different)
    seeded = _views(world, world.run(seed=1, method="task_adapter_pp", train=TRAIN))
    assert not torch.equal(first, seeded.view(clip, 0))


def test_episodes_take_their_views_in_any_order_and_process(world):
    views = _views(world, _run(world, stored_views=3, steps=40))
    late, again = views[70], views[70]
    other = list(DataLoader(views, batch_size=None, num_workers=1))
    for name in late:
        assert torch.equal(late[name], again[name]) and torch.equal(late[name], other[70][name])
    asked = views.asked()
    assert {number for _, number in asked} == {0, 1, 2} and asked == sorted(set(asked))
    trained_on = {i for i, split in enumerate(world.store.splits) if split == "train"}
    assert {clip for clip, _ in asked} < trained_on and 250 < len(asked) < 480  # of 480 draws out of 3 x 156
    plain = FewShotTask(_run(world, stored_views=0), world.ws)
    assert not isinstance(plain.items(plain.build()), Views)


@pytest.mark.slow
def test_two_workers_store_and_train_the_same_as_one(world, tmp_path):
    run = _run(world)
    alone, pair = world.elsewhere(tmp_path / "alone"), world.elsewhere(tmp_path / "pair")
    train_run(run, alone)
    train_on_workers(2, run, pair)
    _assert_same(_found(alone, run), _found(pair, run))
    assert not list(pair.run(run.id).glob(FILES))


# --------------------------------------------------------------------------------------------------- interrupted
def test_a_resumed_training_takes_the_files_again(world, tmp_path, monkeypatch):
    run, checkpoint = _run(world), tmp_path / "kept"

    def report(metrics, folder):
        if metrics["step"] == 2:
            shutil.copytree(folder, checkpoint)
            raise Killed

    whole, cut = world.elsewhere(tmp_path / "whole"), world.elsewhere(tmp_path / "cut")
    train_run(run, whole)
    with pytest.raises(Killed):
        train_run(run, cut, report)
    (file,) = cut.run(run.id).glob(FILES)
    assert file.name == "tokens-0-of-1.bin" and file.stat().st_size == len(_views(world, run).asked()) * 8 * 17 * 32 * 4
    written = []
    original = module._write
    monkeypatch.setattr(module, "_write", lambda path, *args: written.append(path) or original(path, *args))
    shutil.copy(file, tmp_path / "copy")
    train_run(run, cut, None, checkpoint)
    assert not written and not list(cut.run(run.id).glob(FILES))
    _assert_same(_found(whole, run), _found(cut, run), 1e-7)
    for damage in (lambda data: data[:-4], lambda data: b"\0" * 4096 + data[4096:]):  # cut short; of other layers
        file.write_bytes(damage((tmp_path / "copy").read_bytes()))
        train_run(run, cut, None, checkpoint)
        _assert_same(_found(whole, run), _found(cut, run), 1e-7)
    assert written == [file, file]


def test_nothing_half_written_is_left(world, tmp_path, monkeypatch):
    run, ws = _run(world), world.elsewhere(tmp_path)
    original, views = Views.changed_view, []

    def view(self, *pair):
        if len(views) == module.VIEWS_AT_ONCE + 2:
            raise OSError("unplugged")
        views.append(pair)
        return original(self, *pair)

    monkeypatch.setattr(Views, "changed_view", view)
    with pytest.raises(OSError, match="unplugged"):
        train_run(run, ws)
    assert not list(ws.run(run.id).glob("*tokens*"))


# -------------------------------------------------------------------------------------------------------- errors
def test_a_disk_that_is_too_small_is_known_beforehand(world, tmp_path, monkeypatch):
    run, ws = _run(world), world.elsewhere(tmp_path)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: SimpleNamespace(free=400_000))
    with pytest.raises(UserError, match=rf"{run.id}: the tokens of \d+ views take 0.00\d+ GB, and 0.0004 GB are free"):
        train_run(run, ws)
    assert not list(ws.run(run.id).glob("*tokens*"))


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        ("lga", {}, "train.stored_views: LGA trains the layers that see the frames"),
        ("trx", {}, "train.stored_views: TRX trains the layers that see the frames"),
        ("task_adapter_pp", {"model": {"temporal_embedding": "input"}}, "no frozen layer lies below"),
        ("task_adapter_pp", {"model": {"finetune": "full"}}, "no frozen layer lies below"),
        ("task_adapter", {"model": {"placement": "all"}}, "no frozen layer lies below"),
    ],
)
def test_a_method_without_frozen_layers(world, tmp_path, method, settings, message):
    with pytest.raises(UserError, match=message) as caught:
        train_run(_run(world, method, **settings), world.elsewhere(tmp_path))
    assert "\n" not in str(caught.value)


def test_the_key_is_part_of_the_identity_where_it_is_on():
    def run(overlay=None, method="task_adapter_pp", **train):
        plan = bare_plan(merge(OVERLAY, overlay or {}))
        return plan.cell({"dataset": "hmdb51", "method": method, "train": train}, 0, "the test").run

    plain, four = run(), run(stored_views=4)
    assert run(stored_views=0).id == plain.id != four.id and "stored_views" not in plain.train
    assert four.train == plain.train | {"stored_views": 4}
    for overlay in (
        {"train": {"stored_views": 4}},
        {"budgets": {"task_adapter_pp": {"train": {"stored_views": 4}}}},
        {"methods": {"task_adapter_pp": {"train": {"stored_views": 4}}}},
    ):
        assert run(overlay).id == four.id
    frozen = run({"train": {"stored_views": 4}}, method="clip_freeze")
    assert not frozen.train
    for train, message in (
        ({"stored_view": 4}, r"unknown train key 'stored_view' .*did you mean 'stored_views'\?"),
        ({"stored_views": True}, r"the test, train: key stored_views: .*integer \(got True\)"),
        ({"stored_views": -1}, r"key stored_views: .*greater than or equal to 0 \(got -1\)"),
        ({"stored_views": "4"}, r"key stored_views: .*integer \(got '4'\)"),
    ):
        with pytest.raises(UserError, match=message):
            run(**train)
    with pytest.raises(
        UserError, match=r"unknown train key 'stored_vews' in the settings.*did you mean 'stored_views'"
    ):
        run({"train": {"stored_vews": 4}})
    with pytest.raises(UserError, match="unknown train key 'stored_views'"):
        run(method="gap", stored_views=4)
    overlay = {"methods": {"sefar": {"train": {"stored_views": 4}}}}
    with pytest.raises(UserError, match=r"unknown key 'stored_views' in the settings .*key methods\.sefar"):
        run(overlay, method="sefar")
