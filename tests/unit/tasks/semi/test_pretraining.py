"""A training of two phases: on all videos without labels, then on labelled ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from semi_world import SemiWorld
from tiny import train_on_workers

from pipeline.errors import UserError
from pipeline.models.build import WEIGHTS
from pipeline.tasks.kinds import task_of
from pipeline.tasks.semi.task import Phases, after_pretraining
from pipeline.training.train import StepFactors, train_run

SGD = {"optimizer": "sgd", "learning_rate": 0.01}
PHASES = {"epochs": 3, "steps": 3, "milestones": [2], "weight_decay": 1e-5, "backbone_rate": 0.1}


@pytest.fixture(scope="module")
def semi(tmp_path_factory):
    torch.set_num_threads(1)
    return SemiWorld(tmp_path_factory.mktemp("semi"))


def test_all_videos_come_without_labels_before_the_labelled_ones(semi):
    task = task_of(semi.cell("memdpc").run, semi.ws)
    items = task.items(task.build())
    assert len(items) == (3 + 6) * 2
    assert [set(items[i]) for i in (0, 5)] == [{"clips", "episode"}] * 2
    assert [tuple(x.shape) for x in items[5]["clips"]] == [(2, 16, 48, 48, 3)]
    assert set(items[6]) == {"labelled", "labels", "episode"} and items[6]["episode"] == 6
    read, seen = items._read, []
    items._read = lambda clips, *rest: seen.extend(clips) or read(clips, *rest)
    items.first = 54  # a round of 108 videos
    for i in range(54):
        items[i]
    assert sorted(seen) == [i for i, split in enumerate(task.store.splits) if split == "train"]
    assert set(seen) > set(task.videos.labelled)
    for i in (-1, len(items)):
        with pytest.raises(IndexError):
            items[i]


def test_each_phase_has_its_own_rates_and_decay(semi, tmp_path, monkeypatch):
    told = []

    def listen(hook, runner, **rest):
        before = len(runner.optim_wrapper.optimizer.state)
        act(hook, runner, **rest)
        groups, inside = runner.optim_wrapper.optimizer.param_groups, hook.backbone
        rates = {id(g["params"][0]) in inside: g["lr"] for g in groups}
        (decay,) = {g["weight_decay"] for g in groups}
        told.append((rates[True], rates[False], decay, before, len(runner.optim_wrapper.optimizer.state)))

    act = Phases.before_train_iter
    monkeypatch.setattr(Phases, "before_train_iter", listen)
    train = {"pretraining": PHASES, "milestones": [1], "weight_decay": 1e-3, "optimizer": "adam"}
    run = semi.cell("memdpc", train=train, selection="last").run
    train_run(run, semi.elsewhere(tmp_path / "ws"))
    steps = told[::2]  # two iterations a step
    assert [s[1] for s in steps] == pytest.approx([0.01] * 2 + [0.001] + [0.01] * 2 + [0.001] * 4)
    assert [s[0] for s in steps] == pytest.approx([0.01] * 2 + [0.001] + [0.001] * 2 + [0.0001] * 4)
    assert [s[2] for s in steps] == [1e-5] * 3 + [1e-3] * 6
    assert told[6][3] > 0 and told[6][4] == 0  # the optimiser forgets


@pytest.mark.parametrize("after", [1, 2])
def test_a_training_that_was_killed_ends_as_if_it_had_not_been(semi, tmp_path, after):
    """At the end of its first phase, and in the second."""
    whole, cut = semi.elsewhere(tmp_path / "whole"), semi.elsewhere(tmp_path / "cut")
    run = semi.cell("memdpc", train=SGD | {"pretraining": PHASES}, selection="last").run
    train_run(run, whole)
    kept = []

    def kill(metrics, checkpoint):
        kept.append(metrics["step"])
        if len(kept) == after:
            checkpoint.rename(tmp_path / "kept")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_run(run, cut, kill)
    assert kept[-1] == 3 * after
    train_run(run, cut, None, tmp_path / "kept")
    one, two = (load_file(ws.run(run.id) / WEIGHTS) for ws in (whole, cut))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.slow
def test_two_workers_train_both_phases(semi, tmp_path):
    """Either phase leaves some parameters without a gradient."""
    run = semi.cell("memdpc", train={"pretraining": PHASES}, model={"recolour": False}, selection="last").run
    pair = semi.elsewhere(tmp_path / "pair")
    train_on_workers(2, run, pair)
    state = load_file(pair.run(run.id) / WEIGHTS)
    assert all(torch.isfinite(value).all() for value in state.values())


def test_lengths_and_rates_at_published_sizes(golden):
    train = {"pretraining": PHASES | {"epochs": 500, "steps": None, "milestones": [300]}, "labelled_per_step": 32,
             "steps": 500 * 82, "milestones": [300 * 82], "checkpoint_every": 820}  # fmt: skip
    made = after_pretraining(train, 26_320)
    assert made["pretraining_steps"] == 500 * 822 and made["steps"] == 500 * (822 + 82)
    assert made["checkpoint_every"] == 10 * (822 + 82)
    schedule = object.__new__(StepFactors)
    schedule.factors = [(0, 1.0), *made["milestones"]]
    factors = [[schedule._factor(first + epoch * length) for epoch in range(500)]
               for first, length in ((0, 822), (500 * 822, 82))]  # fmt: skip
    for found in factors:
        np.testing.assert_allclose(found, golden("memdpc_block")["out.lr_multiplier.300_400"], rtol=1e-6)


def test_mistakes(semi):
    with pytest.raises(UserError, match="MemDPC takes no unlabelled videos beside labelled ones"):
        task_of(semi.cell("memdpc", train={"unlabelled": 1}).run, semi.ws).build()
    with pytest.raises(UserError, match="SeFARModel cannot be pretrained without labels"):
        task_of(semi.cell("sefar", train={"pretraining": PHASES}).run, semi.ws).build()
    with pytest.raises(UserError, match="pretraining.epochs"):
        semi.cell("memdpc", train={"pretraining": {"epochs": 0}})
