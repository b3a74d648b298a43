"""Semi-supervised runs through the one training loop: trained, interrupted, saved, loaded, tested."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from semi_world import SemiWorld
from tiny import CONFIG

from pipeline.errors import UserError
from pipeline.evaluation.evaluate import measure_run, search_in_process
from pipeline.evaluation.health import read_training
from pipeline.evaluation.needed import needed_scores, needed_values
from pipeline.evaluation.score import score_run
from pipeline.models.build import WEIGHTS, load_weights
from pipeline.plan import Plan
from pipeline.scores import EpisodeScores
from pipeline.tasks.kinds import task_of
from pipeline.tasks.semi.task import _batched
from pipeline.training.train import train_run

PLAN = Plan.read(CONFIG, None, "none")
RECIPES = {name: PLAN.method(name, "the test")[0] for name in PLAN.config.names("methods")}
METHODS = [name for name, said in RECIPES.items() if said["task"] == "semi" and said["model"]["type"] != "FrozenFrames"]


@pytest.fixture(scope="module")
def semi(tmp_path_factory):
    torch.set_num_threads(1)
    return SemiWorld(tmp_path_factory.mktemp("semi"))


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_is_saved_and_gives_the_same_predictions_again(semi, tmp_path, method):
    ws, cell = semi.elsewhere(tmp_path / "ws"), semi.cell(method)
    train_run(cell.run, ws)
    record = json.loads((ws.run(cell.run.id) / "train.json").read_text())
    assert record["steps"] == 6 + cell.run.train.get("pretraining", {}).get("steps", 0)
    assert record["classes"] == {"train": 12, "val": 12, "test": 12, "labelled": 12}
    assert (record["labelled_videos"], record["unlabelled_videos"]) == (27, 81)  # 25 % of 12 classes of 9
    assert 0 <= record["validation_accuracy"] <= 100
    known = read_training(ws.run(cell.run.id) / "train.json")
    assert (known.validation.classes, known.validation.accuracy) == (12, record["validation_accuracy"])
    assert (known.last_loss.name, known.last_loss.chance) == ("loss_labelled", pytest.approx(math.log(12)))
    assert score_run(cell.run, [cell], ws) == 1
    (path,) = measure_run(cell.run, [cell], ws, search_in_process)
    value = json.loads(path.read_text())
    assert value["n"] == 36 and value["ci95"] >= 0
    assert (value["predictions"]["classes"], value["predictions"]["accuracy"]) == (12, value["value"])
    task = task_of(cell.run, ws)
    scores = task.scores(load_weights(task.build(), cell.run, ws), cell.measure, "test")
    assert 100 * (scores.trained[:, 0].argmax(1) == scores.labels[:, 0]).mean() == pytest.approx(value["value"])


def test_the_labels_are_those_of_their_videos(semi, tmp_path):
    """What a training can learn by heart: its labelled videos, whose loss falls far below chance."""
    ws = semi.elsewhere(tmp_path / "ws")
    learn = {"steps": 150, "batch": 12, "labelled_per_step": 12, "optimizer": "adamw", "learning_rate": 3e-3}
    train = {**learn, "label_rate": 10, "scale": [1.0, 1.0], "warmup_epochs": 1, "warmup_start": 1e-4}
    run = semi.cell("sefar_supervised", train=train, model={"dropout": 0.1}, selection="last").run
    train_run(run, ws)
    lines = (ws.run(run.id) / "curve.csv").read_text().splitlines()
    losses = [float(line.split(",")[lines[0].split(",").index("loss")]) for line in lines[1:]]
    assert np.mean(losses[:5]) > 2.2 and np.mean(losses[-10:]) < 1.5, losses[::15]


class Killed(BaseException):
    """What ends a training from outside."""


@pytest.mark.parametrize("after", [1, 2])
def test_a_training_that_was_killed_ends_as_if_it_had_not_been(semi, tmp_path, after):
    """Before the teacher starts, and when it is there: order, crops, dropout, mixing, and the teacher continue."""
    whole, cut = semi.elsewhere(tmp_path / "whole"), semi.elsewhere(tmp_path / "cut")
    run = semi.cell("sefar", selection="last").run
    train_run(run, whole)
    seen = []

    def kill(metrics, checkpoint):
        seen.append(metrics["step"])
        if len(seen) == after:
            checkpoint.rename(tmp_path / "kept")
            raise Killed

    with pytest.raises(Killed):
        train_run(run, cut, kill)
    state = torch.load(tmp_path / "kept" / "state.pt", weights_only=True)["model"]
    assert any(name.startswith("teacher.") for name in state) == (after == 2)
    train_run(run, cut, None, tmp_path / "kept")
    one, two = (load_file(ws.run(run.id) / WEIGHTS) for ws in (whole, cut))
    assert any(name.startswith("teacher.") for name in one)
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_labels_of_unlabelled_videos_are_never_read(semi, tmp_path):
    """Lists with wrong labels of the unlabelled videos train the same weights, to the bit."""
    weights = []
    for name, swap in (("right", False), ("wrong", True)):
        cell = semi.listed(name, tmp_path / name, swap)
        ws = semi.elsewhere(tmp_path / f"ws-{name}")
        train_run(cell.run, ws)
        weights.append(load_file(ws.run(cell.run.id) / WEIGHTS))
        videos = task_of(cell.run, ws).videos
        assert len(videos.labelled) == 24 and len(videos.classes) == 12
        assert len(videos.unlabelled) == 144 - 24 - round(0.1 * 144)  # some are held out
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_items_depend_on_seed_and_number_only(semi):
    task = task_of(semi.cell("sefar").run, semi.ws)
    items, again = task.items(task.build()), task.items(task.build())
    assert len(items) == 3 * 2 * 2
    first, last = items[0], items[11]
    assert set(first) == {"labelled", "labels", "episode"}  # warm-up
    assert set(last) == {*first, "weak", "strong", "progress"} and last["progress"] == 1
    assert [tuple(x.shape) for x in last["weak"]] == [(2, t, 32, 32, 3) for t in (2, 2, 4)]
    assert all(a.equal(b) for a, b in zip(again[11]["strong"], last["strong"], strict=True))
    assert not last["strong"][0].equal(last["weak"][0])
    other = task_of(semi.cell("sefar", seed=1).run, semi.ws)
    assert not other.items(other.build())[11]["strong"][0].equal(last["strong"][0])
    with pytest.raises(IndexError):
        items[12]


def test_elements_reach_the_model_normalised(semi):
    """In float32, to the last bit as each of them would be worked out alone on the host."""
    task = task_of(semi.cell("sefar").run, semi.ws)
    model = task.build()
    item = task.items(model)[11]
    batch = model.data_preprocessor({key: _batched(value) for key, value in item.items()}, True)
    assert set(batch) == {"labelled", "labels", "weak", "strong", "progress"} and batch["progress"] == 1.0
    for part in ("labelled", "weak", "strong"):
        for element, frames in zip(batch[part], item[part], strict=True):
            pixels = frames.numpy().astype(np.float32) / 255
            wanted = (pixels - np.float32(model.mean)) / np.float32(model.std)
            np.testing.assert_array_equal(element.numpy(), wanted.transpose(0, 1, 4, 2, 3))


def test_every_unlabelled_video_comes_before_one_comes_again(semi):
    task = task_of(semi.cell("sefar").run, semi.ws)
    items, total = task.items(task.build()), len(task.videos.unlabelled)
    stream = np.concatenate([items._unlabelled(first) for first in range(0, 2 * total, items.others)])
    for turn in (0, 1):
        assert sorted(stream[turn * total : (turn + 1) * total]) == sorted(task.videos.unlabelled)
    assert stream[:total].tolist() != stream[total : 2 * total].tolist()
    assert not set(task.videos.labelled) & set(stream)
    assert {task.store.splits[clip] for clip in stream} == {"train"}


def test_an_epoch_is_a_pass_over_the_labelled_videos(semi):
    run = semi.cell("sefar", train={"steps": None}).run
    schedule = task_of(run, semi.ws).schedule()
    assert schedule["items"] == 2 and schedule["steps"] == 3 * (27 // 2 // 2)  # 25 % of 108 videos; the rest is dropped
    with pytest.raises(UserError, match="labelled_per_step is 5, no multiple of train.batch 2"):
        task_of(semi.cell("sefar", train={"labelled_per_step": 5}).run, semi.ws).schedule()


def test_the_teacher_moves_once_a_step_by_as_much_as_in_its_iterations(semi):
    task = task_of(semi.cell("sefar").run, semi.ws)
    one = task.build()
    one.start_teacher()
    with torch.no_grad():
        one.network.head.classifier.bias.add_(1)
    for _ in range(4):
        one.update_teacher()
    many = one.teacher.head.classifier.bias.clone()
    one.teacher.head.classifier.bias.sub_(one.teacher.head.classifier.bias - one.network.head.classifier.bias + 1)
    one.update_teacher(4)
    torch.testing.assert_close(one.teacher.head.classifier.bias, many)


def test_the_time_of_the_teacher_is_measured_and_changes_nothing(semi, tmp_path):
    ws = semi.elsewhere(tmp_path / "ws")
    cell = semi.cell("sefar", measure={"metric": "teacher_time_share_pct"})
    train_run(cell.run, ws)
    assert len(needed_values([cell], ws)) == 1 and score_run(cell.run, [cell], ws) == 1
    (path,) = measure_run(cell.run, [cell], ws, search_in_process)
    assert 0 < json.loads(path.read_text())["value"] < 100
    task = task_of(cell.run, ws)
    model = load_weights(task.build(), cell.run, ws)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    task.teacher_shares(model)
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())
    other = task_of(semi.cell("sefar_supervised").run, semi.ws)
    with pytest.raises(UserError, match="sees no unlabelled video"):
        other.teacher_shares(other.build())


@pytest.fixture(scope="module")
def taught(semi, tmp_path_factory):
    """A trained run of SeFAR, in a workspace of its own."""
    ws, run = semi.elsewhere(tmp_path_factory.mktemp("taught") / "ws"), semi.cell("sefar", selection="last").run
    train_run(run, ws)
    return ws, run


def test_the_spread_of_the_teacher_is_that_of_its_passes(semi, taught, monkeypatch):
    ws, run = taught
    cell = semi.cell("sefar", selection="last", measure={"metric": "teacher_spread_pct", "episodes": 7})
    assert cell.id == semi.cell("sefar", selection="last", measure={"metric": "teacher_spread_pct"}).id
    assert cell.run.id == run.id and len(needed_values([cell], ws)) == 1
    assert score_run(run, [cell], ws) == 1 and not needed_values([cell], ws)
    (path,) = measure_run(run, [cell], ws, search_in_process)
    record = json.loads(path.read_text())
    found = record["teacher"]
    assert record["n"] == 36 == len(found["confidence"]) == len(found["deviation"]) == len(found["right"])
    assert record["value"] == pytest.approx(100 * np.mean(found["deviation"])) and record["value"] > 0
    assert record["ci95"] == pytest.approx(1.96 * 100 * np.std(found["deviation"], ddof=1) / 6)

    task = task_of(run, ws)
    model = load_weights(task.build(), run, ws)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    passes, ask = [], model.teacher_logits

    def listen(weak):
        passes.append(ask(weak))
        return passes[-1]

    monkeypatch.setattr(model, "teacher_logits", listen)
    state = torch.get_rng_state()
    assert task.teacher_predictions(model) == found  # nothing about it is left to chance
    assert torch.get_rng_state().equal(state)
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())

    each = torch.cat(passes, 1).double().softmax(-1).numpy()  # (U, V, C)
    assert each.shape == (10, 36, 12)
    names, test = task.store.classes(), [i for i, of in enumerate(task.store.splits) if of == "test"]
    for video, clip in enumerate(np.random.default_rng(4).permutation(test)):
        mean = each[:, video].mean(0)
        best = int(mean.argmax())
        assert found["confidence"][video] == pytest.approx(mean[best], rel=1e-5)
        assert found["deviation"][video] == pytest.approx(np.std(each[:, video, best], ddof=1), rel=1e-4)
        assert found["right"][video] == (names[best] == task.store.labels[clip])


def test_the_teacher_is_asked_about_a_draw_of_the_test_videos(semi, taught, monkeypatch):
    ws, run = taught
    task = task_of(run, ws)
    model = load_weights(task.build(), run, ws)
    shown = []
    monkeypatch.setattr(task, "_seen", lambda clip, side, seen=task._seen: shown.append(clip) or seen(clip, side))
    task.teacher_predictions(model)
    every = shown.copy()
    shown.clear()
    monkeypatch.setattr("pipeline.tasks.semi.task.TEACHER_VIDEOS", 10)
    few = task.teacher_predictions(model)
    assert len(few["right"]) == 10 and shown == every[:10]
    assert shown != sorted(shown) and {task.store.splits[clip] for clip in every} == {"test"}


def test_a_checkpoint_without_a_teacher_asks_the_copy_that_it_would_start_as(semi, taught):
    ws, run = taught
    task = task_of(run, ws)
    model = load_weights(task.build(), run, ws)
    own = task.teacher_predictions(model)
    model.teacher = None
    copy = task.teacher_predictions(model)
    assert model.teacher is None and copy["confidence"] != own["confidence"]
    model.start_teacher()
    assert task.teacher_predictions(model) == copy


def test_a_teacher_that_predicts_once_or_is_none_has_no_spread(semi):
    once = task_of(semi.cell("sefar", model={"threshold": 0.3}).run, semi.ws)
    with pytest.raises(UserError, match="predicts once, so nothing deviates"):
        once.teacher_predictions(once.build())
    none = task_of(semi.cell("sefar_supervised", model={"dropout": 0.5}).run, semi.ws)
    model = none.build()
    model.threshold = None
    with pytest.raises(UserError, match="sees no unlabelled video"):
        none.teacher_predictions(model)


def test_opposites_are_read_off_the_scores_of_the_accuracy(semi, taught):
    ws, run = taught
    accurate = semi.cell("sefar", selection="last")
    cell = semi.cell("sefar", selection="last", measure={"metric": "opposite_pct"})
    assert cell.id != accurate.id and needed_scores([cell], ws).keys() == needed_scores([accurate], ws).keys()
    assert score_run(run, [cell, accurate], ws) == 1 and not needed_values([cell, accurate], ws)
    opposed, right = (
        json.loads(path.read_text()) for path in measure_run(run, [cell, accurate], ws, search_in_process)
    )
    scores = EpisodeScores.load(next(ws.scores(run.id).glob("test-*.npz")))
    said, truth = scores.log_vv[:, 0].argmax(-1), scores.labels[:, 0]
    store = task_of(run, ws).store
    names = opposed["classes"]
    assert names == store.classes() and len(names) == 12
    turn = {"left": "right", "up": "down", "clockwise": "counterclockwise"}
    turn |= {there: here for here, there in turn.items()}
    other = {name: " ".join(turn.get(word, word) for word in name.split()) for name in names}
    assert set(other.values()) == set(names) and all(name != other[name] for name in names)
    share = np.mean([names[one] == other[names[true]] for one, true in zip(said, truth, strict=True)])
    assert opposed["value"] == pytest.approx(100 * share) and opposed["n"] == 36
    assert opposed["predictions"] == right["predictions"]  # of the same videos: its health is that of the accuracy
    table = np.array(opposed["confusion"])
    assert table.shape == (12, 12) and (table.sum(1) == 3).all()
    assert 100 * np.trace(table) / 36 == pytest.approx(right["value"])
    for one, true in zip(said, truth, strict=True):
        table[true, one] -= 1
    assert not table.any()


def test_a_released_test_is_random_but_repeats(semi):
    methods = {"methods": {"sefar": {"frames": {"test_view": "random"}}}}
    run = semi.cell("sefar").run
    random = run.model_copy(update={"frames": run.frames | methods["methods"]["sefar"]["frames"]})
    task = task_of(run, semi.ws)
    model = task.build().eval()
    other = task_of(random, semi.ws)
    found = [other.scores(model, None, "test").log_vv for _ in range(2)]
    assert np.array_equal(*found) and not np.array_equal(found[0], task.scores(model, None, "test").log_vv)
    wrong = task_of(run.model_copy(update={"frames": run.frames | {"test_view": "corner"}}), semi.ws)
    with pytest.raises(UserError, match="unknown view 'corner'"):
        wrong.scores(model, None, "test")


def test_a_wrong_rate_is_an_error(semi):
    with pytest.raises(UserError, match="label rate 1 is not a share"):
        task_of(semi.cell("sefar", train={"label_rate": 100}).run, semi.ws).schedule()


def test_scores_keep_more_classes_than_a_byte_counts(tmp_path):
    labels = np.array([[287], [0], [174]])
    EpisodeScores(np.zeros((3, 1, 288), np.float32), None, labels).save(tmp_path / "scores.npz")
    assert EpisodeScores.load(tmp_path / "scores.npz").labels.tolist() == labels.tolist()
