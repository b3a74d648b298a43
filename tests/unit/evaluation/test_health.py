"""Verdicts on runs that have learnt nothing, for every way in which they show it."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from pipeline.errors import UserError
from pipeline.evaluation.health import Outcome, Training, last_loss, read_outcome, read_training, verdict
from pipeline.scores import EpisodeScores, outcome, spread_of

FINE = {
    "accuracy": 44.0, "ci95": 4.7, "classes": 5, "most_said": 0.3, "most_true": 0.2, "constant_scores": False,
}  # fmt: skip
LOSS = {"name": "loss_class", "value": 1.2, "chance": math.log(5)}


def said(training=None, outcomes=(), trained=True):
    return verdict(Training(**(training or {})), [Outcome(**(FINE | x)) for x in outcomes], trained)


def test_what_learns_gets_no_note():
    assert said({"last_loss": LOSS, "validation": FINE}, [{}, {"accuracy": 30}]) == []
    assert said() == said({}, [{}]) == said({}, [{}], trained=False) == []  # older records, frozen models


@pytest.mark.parametrize(
    ("change", "note"),
    [
        ({"accuracy": 22.0, "ci95": 2.0}, "test 22.0 ± 2.0 (chance 20.0)"),
        ({"accuracy": 10.0, "ci95": 3.9}, "test 10.0 ± 3.9 (chance 20.0)"),
        ({"accuracy": 10.0, "ci95": 3.9, "classes": 10}, "test 10.0 ± 3.9 (chance 10.0)"),
        ({"accuracy": 52.0, "ci95": 2.1, "classes": 2}, "test 52.0 ± 2.1 (chance 50.0)"),
        ({"most_said": 209 / 230}, "one class for 91 % of the test queries"),
        ({"constant_scores": True}, "constant scores in test"),
        ({"spread": 0.0}, "constant features in test"),
    ],
)
def test_a_test_that_tells_nothing_apart(change, note):
    assert said({}, [change]) == [f"did not learn: {note}"]
    assert said({}, [change], trained=False) == [f"at chance: {note}"]


@pytest.mark.parametrize(
    "change",
    [
        {"accuracy": 22.1, "ci95": 2.0},
        {"accuracy": 15.0, "classes": 10},  # 5-way it would be chance
        {"most_said": 0.89},
        {"most_said": 0.95, "most_true": 0.93},  # a test in which nearly all are of one class
        {"spread": 0.01},
        {"accuracy": 0.0, "ci95": None},  # a single episode has no interval
    ],
)
def test_a_test_that_is_no_sign_of_harm(change):
    assert said({}, [change]) == []


def test_a_training_that_shows_nothing_for_itself():
    bad = LOSS | {"value": 2.61, "chance": math.log(10)}
    assert said({"last_loss": bad}) == ["did not learn: training loss 2.61 (chance 2.30)"]
    assert said({"last_loss": LOSS | {"value": math.log(5)}}) != []  # at it is not below it
    assert said({"last_loss": LOSS | {"value": 0.0, "chance": 0.0}}) == []  # of a loss without weight nothing is known
    at_chance = FINE | {"accuracy": 21, "most_said": 1.0}
    note = "training loss 2.61 (chance 2.30), validation 21.0 ± 4.7 (chance 20.0), "
    note += "one class for 100 % of the validation queries"
    assert said({"last_loss": bad, "validation": at_chance}) == [f"did not learn: {note}"]
    # What is clearly above chance has learnt something: the loss of a model that is too sure of itself may be high.
    assert said({"last_loss": bad, "validation": FINE}) == ["doubtful: training loss 2.61 (chance 2.30)"]
    assert said({"last_loss": bad, "validation": at_chance}, [{}]) == [f"doubtful: {note}"]


def test_tests_of_a_run_are_named_once():
    chance = {"accuracy": 20.0, "ci95": 1.0}
    assert said({"validation": FINE}, [chance, {}, chance]) == ["did not learn: test 20.0 ± 1.0 (chance 20.0)"]


def test_the_last_loss_is_that_of_the_last_tenth():
    rows = [{"loss": 9.0, "loss_a": str(float(i))} for i in range(200)]  # a resumed curve comes as text
    assert last_loss(rows, "loss_a", 1.5) == {"name": "loss_a", "value": 189.5, "chance": 1.5}
    assert last_loss(rows[:12], "loss_a", 1.5)["value"] == 6.5  # ten steps at least
    assert last_loss(rows[:3], "loss_a", 1.5)["value"] == 1.0


def test_records_without_health_are_read_and_damaged_ones_named(tmp_path):
    path = tmp_path / "train.json"
    assert read_training(path) == Training()
    for content in ({}, {"run": "a", "steps": 3, "validation_accuracy": 50.0}, {"validation": None, "last_loss": None}):
        path.write_text(json.dumps(content))
        assert read_training(path) == Training() and read_outcome(path) is None
    for content in ("{", "[]", '{"validation": {"accuracy": "high"}}'):
        path.write_text(content)
        with pytest.raises(UserError, match="train.json"):
            read_training(path)


# What scores say


def logits_of(places, classes):
    return np.eye(classes, dtype=np.float32)[np.asarray(places)]


def test_the_outcome_of_episodes():
    labels = np.array([[0, 1], [1, 0], [0, 1]])
    found = outcome(logits_of([[0, 1], [0, 0], [1, 1]], 2), labels)
    Outcome(**found)
    assert (found["accuracy"], found["classes"]) == (pytest.approx(200 / 3), 2)
    assert (found["most_said"], found["most_true"]) == (pytest.approx(5 / 6), 0.5)  # within each episode
    assert not found["constant_scores"] and found["spread"] is None
    collapsed = outcome(logits_of([[0, 0], [1, 1], [0, 0]], 2), labels)  # everywhere another one
    assert collapsed["most_said"] == 1 and collapsed["constant_scores"]


def test_the_outcome_of_queries_that_are_episodes_of_their_own():
    labels = np.array([[0], [1], [2], [0]])
    found = outcome(logits_of([[0], [0], [0], [1]], 3), labels, spread=0.2)
    assert (found["accuracy"], found["most_said"], found["most_true"], found["spread"]) == (25, 0.75, 0.5, 0.2)
    assert not found["constant_scores"]
    same = np.tile(np.float32([[[0.5, 0.2, 0.3]]]), (4, 1, 1))
    assert outcome(same, labels)["constant_scores"] and outcome(same, labels)["most_said"] == 1
    assert outcome(np.full((4, 1, 3), -1.1, np.float32), labels)["constant_scores"]  # of all classes
    assert outcome(same[:1], labels[:1])["ci95"] is None


def test_the_digest_is_of_what_is_said():
    labels = np.array([[0, 1], [1, 0]])
    one, other = logits_of([[0, 1], [0, 0]], 2), logits_of([[0, 1], [0, 1]], 2)
    digest = outcome(one, labels)["digest"]
    assert outcome(one * 3 - 1, labels)["digest"] == digest  # other scores, the same answers
    assert digest not in (outcome(other, labels)["digest"], outcome(one, 1 - labels)["digest"])


def test_features_that_are_all_the_same_have_no_spread():
    noise = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32)
    assert spread_of(np.zeros((5, 4), np.float32)) == spread_of(np.full((5, 4), 3.0, np.float32)) == 0
    assert spread_of(noise) == pytest.approx(1, abs=0.05)
    assert spread_of(10 + noise) == pytest.approx(0.1, abs=0.02)
    assert spread_of(np.full((5, 4), np.nan, np.float32)) == 0


def test_the_spread_survives_the_disk(tmp_path):
    scores = EpisodeScores(np.zeros((3, 1, 2), np.float32), None, np.zeros((3, 1), np.int64), spread=0.25)
    scores.save(tmp_path / "a.npz")
    assert EpisodeScores.load(tmp_path / "a.npz").spread == 0.25
