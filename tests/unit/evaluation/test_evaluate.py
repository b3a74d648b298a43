"""Cells from cached scores: alpha on the validation classes only, nothing computed twice."""

from __future__ import annotations

import json
from operator import itemgetter

import numpy as np
import pytest
import torch

from pipeline.errors import UserError
from pipeline.evaluation import score as score_module
from pipeline.evaluation.evaluate import measure_run, search_in_process
from pipeline.evaluation.needed import needed_scores, needed_work, scores_path, value_path
from pipeline.evaluation.score import score_run
from pipeline.experiment import Cell, Measure
from pipeline.metrics import METRICS, TEST, Metric
from pipeline.models.build import load_weights
from pipeline.models.few_shot.base import FewShotModel
from pipeline.scores import EpisodeScores, accuracy, alpha_curve, best_alpha, fused, outcome, summary
from pipeline.tasks.few_shot import scoring as few_shot
from pipeline.tasks.kinds import task_of
from pipeline.training.train import train_run
from pipeline.workspace import Workspace

# ----------------------------------------------------------------------------------------------- scores


def _random_scores(seed=0, episodes=40, text=True):
    rng = np.random.default_rng(seed)
    logs = [torch.randn(episodes, 5, 5, generator=torch.Generator().manual_seed(seed + i)) for i in (0, 100)]
    log_vv, log_vt = (x.log_softmax(-1).numpy() for x in logs)
    return EpisodeScores(log_vv, log_vt if text else None, rng.integers(0, 5, (episodes, 5)))


def test_fused_scores_are_the_weighted_geometric_mean():
    scores = _random_scores()
    p_vv, p_vt = np.exp(scores.log_vv), np.exp(scores.log_vt)
    for alpha in (0.0, 0.3, 1.0):
        np.testing.assert_allclose(np.exp(fused(scores, "both", alpha)), p_vv**alpha * p_vt ** (1 - alpha), rtol=1e-5)
    assert fused(scores, "vv", 0.2) is scores.log_vv and fused(scores, "vt", 0.2) is scores.log_vt
    assert fused(_random_scores(text=False), "both", 0.5).shape == (40, 5, 5)


def test_own_scores_of_a_method_are_taken_as_they_are():
    scores = _random_scores()
    both = np.random.default_rng(1).normal(size=scores.log_vv.shape).astype(np.float32)
    fusing = EpisodeScores(scores.log_vv, scores.log_vt, scores.labels, both)
    assert fused(fusing, "both", "own") is both and fusing.trained is both
    assert fused(fusing, "vv", "own") is scores.log_vv and fused(fusing, "vt", "own") is scores.log_vt
    # a number fuses the two probabilities, whatever the method does of itself
    np.testing.assert_array_equal(fused(fusing, "both", 0.3), fused(scores, "both", 0.3))
    assert scores.trained is scores.log_vv


@pytest.mark.parametrize("text", [True, False])
def test_own_scores_of_a_method_that_has_none_are_an_error(text):
    with pytest.raises(UserError, match="measure.alpha is `own`, and this method fuses no scores itself"):
        fused(_random_scores(text=text), "both", "own")


def test_accuracy_counts_the_queries_of_each_episode():
    logits = np.zeros((2, 4, 3))
    for e, q, n in ((0, 0, 1), (0, 1, 2), (0, 2, 0), (0, 3, 0), (1, 0, 2), (1, 1, 2), (1, 2, 1), (1, 3, 1)):
        logits[e, q, n] = 1
    assert accuracy(logits, np.array([[1, 2, 0, 1], [0, 0, 0, 1]])).tolist() == [75.0, 25.0]


def test_alpha_curve_and_its_best_point():
    scores = _random_scores()
    curve = alpha_curve(scores, [0, 0.5, 1])
    assert [alpha for alpha, _ in curve] == [0.0, 0.5, 1.0]
    assert curve[0][1] == pytest.approx(100 * (scores.log_vt.argmax(-1) == scores.labels).mean())
    assert curve[2][1] == pytest.approx(100 * (scores.log_vv.argmax(-1) == scores.labels).mean())
    assert best_alpha([(0.0, 10), (0.5, 30), (1.0, 20)]) == 0.5
    assert best_alpha([(0.0, 30), (0.4, 30), (0.6, 30), (1.0, 30)]) == 0.4  # as near to 0.5, so the smaller
    assert best_alpha([(0.9, 7), (0.0, 7)]) == 0.9


def test_scores_survive_the_disk(tmp_path):
    for text, both in ((True, None), (False, None), (True, np.ones((40, 5, 5), np.float32))):
        plain = _random_scores(text=text)
        scores = EpisodeScores(plain.log_vv, plain.log_vt, plain.labels, both)
        scores.save(tmp_path / "deep" / "scores.npz")
        loaded = EpisodeScores.load(tmp_path / "deep" / "scores.npz")
        assert (loaded.log_vv == scores.log_vv).all() and (loaded.labels == scores.labels).all()
        assert loaded.log_vt is None if not text else (loaded.log_vt == scores.log_vt).all()
        assert loaded.both is None if both is None else (loaded.both == both).all()
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["scores.npz"]


# ------------------------------------------------------------------------------------------------ cells


@pytest.fixture(scope="module")
def trained(world, tmp_path_factory):
    """A trained LGA run with cells of every kind, scored once; tests must leave it as it was."""
    ws = world.elsewhere(tmp_path_factory.mktemp("evaluated"))
    measures = [
        {"score": "both"}, {"score": "vv"}, {"score": "vt"}, {"score": "both", "alpha": 0.3},
        {"score": "both", "shot": 5}, {"metric": "time_ms"},
    ]  # fmt: skip
    cells = [world.cell(method="lga", measure=measure) for measure in measures]
    (run,) = {cell.run.id: cell.run for cell in cells}.values()
    train_run(run, ws)
    score_run(run, cells, ws)
    measure_run(run, cells, ws, search_in_process)
    return ws, run, cells


class Counter:
    """Clips encoded since it was made."""

    def __init__(self, monkeypatch):
        self.clips = 0
        original = FewShotModel.encode

        def encode(model, clips):
            self.clips += len(clips)
            return original(model, clips)

        monkeypatch.setattr(FewShotModel, "encode", encode)


def _record(ws, cell):
    return json.loads(ws.cell(cell.id).read_text())


def test_a_cell_is_the_accuracy_of_its_scores(trained):
    ws, run, (both, vv, vt, fixed, five, _) = trained
    for cell, kind, alpha in ((vv, "vv", None), (vt, "vt", None), (fixed, "both", 0.3)):
        record, scores = _record(ws, cell), EpisodeScores.load(scores_path(ws, run, cell.measure, "test"))
        values = accuracy(fused(scores, kind, alpha or 0.0), scores.labels)
        assert record["value"] == pytest.approx(values.mean())
        assert record["ci95"] == pytest.approx(1.96 * values.std(ddof=1) / np.sqrt(24))
        assert record["n"] == 24 and record["alpha"] == alpha and record["alpha_curve"] is None
        assert record["cell"] == cell.id and record["run"] == run.id and record["metric"] == "accuracy_pct"
        said = outcome(fused(scores, kind, alpha or 0.0), scores.labels)
        assert record["predictions"] == said and (said["classes"], said["accuracy"]) == (5, values.mean())
        assert record["dataset"] == "synthetic_scene" and record["scale"] == "demo" and record["selection"] == "val"
    # one file of scores serves every kind of score of a shot
    names = {scores_path(ws, run, cell.measure, "test") for cell in (both, vv, vt, fixed)}
    assert len(names) == 1 and scores_path(ws, run, five.measure, "test") not in names


def test_a_cell_says_how_much_of_its_data_set_was_there(trained, world, tmp_path):
    ws, run, cells = trained
    assert {(_record(ws, cell)["coverage"], _record(ws, cell)["coverage_train"]) for cell in cells} == {(1.0, 1.0)}
    partial = Workspace(tmp_path / "partial")
    for name in ("scores", "runs"):
        (partial.root / name).parent.mkdir(exist_ok=True)
        (partial.root / name).symlink_to((ws.root / name).resolve())
    partial.store(run).mkdir(parents=True)
    counts = {"train": {"listed": 8, "present": 4}, "test": {"listed": 4, "present": 3}}
    (partial.store(run) / "manifest.json").write_text(json.dumps({"coverage": counts}))
    (path,) = measure_run(run, cells[1:2], partial, search_in_process)
    record = json.loads(path.read_text())
    assert (record["coverage"], record["coverage_train"]) == (0.75, 0.5)
    assert record["value"] == _record(ws, cells[1])["value"] and record["cell"] == cells[1].id
    # scores of other clips are others: what was cached of the whole set, or of other parts of it, is not read
    names = set()
    for present in ("", "12345678", "abcdefab"):
        (partial.store(run) / "manifest.json").write_text(json.dumps({"coverage": counts, "present": present}))
        names.add(scores_path(partial, run, cells[1].measure, "test").name)
        assert bool(needed_scores(cells[1:2], partial)) == bool(present)
    assert len(names) == 3 and scores_path(ws, run, cells[1].measure, "test").name in names


def test_alpha_comes_from_the_validation_classes_and_the_whole_curve_is_kept(trained):
    ws, run, (both, *_, five, _time) = trained
    for cell in (both, five):
        record = _record(ws, cell)
        val, test = (EpisodeScores.load(scores_path(ws, run, cell.measure, split)) for split in ("val", "test"))
        grid = cell.measure.alpha_grid
        assert len(grid) == 11 and val.labels.shape == (30, 5)
        curve = alpha_curve(val, grid)
        assert record["alpha_curve"]["val"] == [list(point) for point in curve]
        assert record["alpha_curve"]["test"] == [list(point) for point in alpha_curve(test, grid)]
        assert record["alpha"] == best_alpha(curve)
        assert record["value"] == pytest.approx(dict(alpha_curve(test, grid))[record["alpha"]])


def test_alpha_never_looks_at_the_test_scores(trained, tmp_path, world):
    """Test scores that would favour the other end of the grid change the accuracy, not alpha."""
    _ws, run, (both, *_) = trained
    other = world.elsewhere(tmp_path)
    labels = np.zeros((30, 5), int)
    good, bad = np.full((30, 5, 5), -9.0, np.float32), np.full((30, 5, 5), -9.0, np.float32)
    good[..., 0], bad[..., 1] = -0.1, -0.01
    EpisodeScores(good, bad, labels).save(scores_path(other, run, both.measure, "val"))
    EpisodeScores(bad, good, labels).save(scores_path(other, run, both.measure, "test"))
    asked = []

    def search(name, files, grid):
        asked.extend(files.values())
        return search_in_process(name, files, grid)

    measure_run(run, [both], other, search)
    record = _record(other, both)
    assert record["alpha"] == 0.6 and record["value"] == 0.0  # the tie of all good alphas goes to the nearest to 0.5
    assert asked == [scores_path(other, run, both.measure, "val")]


def test_another_grid_encodes_nothing_and_trains_nothing(trained, monkeypatch):
    ws, run, (both, *_) = trained
    before = {path: path.stat().st_mtime_ns for path in [*ws.scores(run.id).iterdir(), *ws.run(run.id).rglob("*")]}
    counter = Counter(monkeypatch)
    finer = Cell(run=run, measure=both.measure.model_copy(update={"alpha_grid": (0.0, 0.25, 0.5, 0.75, 1.0)}))
    assert finer.id != both.id and not needed_work([finer], ws)
    assert score_run(run, [finer], ws) == 0
    (path,) = measure_run(run, [finer], ws, search_in_process)
    assert path == ws.cell(finer.id) and len(_record(ws, finer)["alpha_curve"]["val"]) == 5
    assert counter.clips == 0
    assert before == {p: p.stat().st_mtime_ns for p in [*ws.scores(run.id).iterdir(), *ws.run(run.id).rglob("*")]}


def test_a_deleted_cell_comes_back_as_it_was(trained, monkeypatch):
    ws, run, cells = trained
    counter = Counter(monkeypatch)
    for cell in cells:
        text = ws.cell(cell.id).read_text()
        ws.cell(cell.id).unlink()
        assert score_run(run, [cell], ws) == 0
        measure_run(run, [cell], ws, search_in_process)
        assert ws.cell(cell.id).read_text() == text
    assert counter.clips == 0


def test_a_deleted_score_file_is_the_only_one_made_again(trained, monkeypatch):
    ws, run, cells = trained
    path = scores_path(ws, run, cells[4].measure, "test")
    before = EpisodeScores.load(path)
    path.unlink()
    counter = Counter(monkeypatch)
    assert list(needed_scores(cells, ws)) == [path] and needed_work(cells, ws)
    assert score_run(run, cells, ws) == 1 and counter.clips == 60  # the clips of the test classes, once
    after = EpisodeScores.load(path)
    assert (before.log_vv == after.log_vv).all() and (before.log_vt == after.log_vt).all()


def test_one_pass_serves_all_measurements_of_a_run(trained, tmp_path, world, monkeypatch):
    """1-shot, 5-shot, test and validation: each clip of the two splits is encoded once."""
    ws, run, cells = trained
    other = world.elsewhere(tmp_path)
    (other.root / "runs").symlink_to(ws.root / "runs")
    counter = Counter(monkeypatch)
    assert score_run(run, cells[:5], other) == 4
    assert counter.clips == 60 + 60
    for path in ws.scores(run.id).glob("*.npz"):
        same = EpisodeScores.load(other.scores(run.id) / path.name)
        assert (same.log_vv == EpisodeScores.load(path).log_vv).all()


def test_a_table_measures_its_own_cells_and_another_one_encodes_nothing_anew(trained, tmp_path, world, monkeypatch):
    ws, run, cells = trained
    other = world.elsewhere(tmp_path)
    (other.root / "runs").symlink_to(ws.root / "runs")
    monkeypatch.setattr("pipeline.evaluation.alpha.search_with_tune", lambda _, *asked: search_in_process(*asked))
    monkeypatch.setattr(Workspace, "read_cells", lambda self, run: cells[:5])
    counter = Counter(monkeypatch)
    score_module.evaluate_run(run, cells[1:3], other)  # single scores of one-shot tasks
    assert counter.clips == 60 and [path.name for path in other.scores(run.id).glob("features*")] == [
        "features-test.safetensors"
    ]
    assert sorted(path.stem for path in (other.root / "cells").iterdir()) == sorted(cell.id for cell in cells[1:3])
    assert len(list(other.scores(run.id).glob("*.npz"))) == 1
    score_module.evaluate_run(run, [cells[4]], other)  # five shots, alpha by validation: another split
    assert counter.clips == 60 + 60
    score_module.evaluate_run(run, [cells[0], cells[3]], other)
    assert counter.clips == 120 and not list(other.scores(run.id).glob("features*"))  # nobody needs them any more
    for path in ws.scores(run.id).glob("*.npz"):
        assert (EpisodeScores.load(other.scores(run.id) / path.name).log_vv == EpisodeScores.load(path).log_vv).all()


def test_scores_are_cached_by_all_that_they_depend_on(trained):
    ws, run, (both, *_) = trained
    names = {scores_path(ws, run, both.measure, split) for split in ("val", "test")}
    for change in (
        {"way": 4}, {"shot": 2}, {"query": 2}, {"episodes": 25}, {"episode_seed": 1}, {"matcher": "otam"}
    ):  # fmt: skip
        path = scores_path(ws, run, both.measure.model_copy(update=change), "test")
        assert path not in names, change
        names.add(path)
    for change in ({"alpha": 0.3}, {"alpha_grid": (0.1,)}, {"score": "vv"}, {"val_episodes": 31}):
        assert scores_path(ws, run, both.measure.model_copy(update=change), "test") in names, change
    longer = both.measure.model_copy(update={"val_episodes": 31})
    assert scores_path(ws, run, longer, "val") not in names
    # neither the number of test episodes nor their seed moves the episodes that choose alpha
    moved = both.measure.model_copy(update={"episodes": 99, "episode_seed": 5})
    assert scores_path(ws, run, moved, "val") in names


def test_milliseconds_of_whole_tasks(trained, monkeypatch):
    ws, run, cells = trained
    record = _record(ws, cells[5])
    times = json.loads(value_path(ws, run, cells[5].measure).read_text())["milliseconds"]
    assert len(times) == few_shot.TIMED_TASKS and min(times) > 0
    assert record["metric"] == "time_ms" and record["value"] == pytest.approx(np.mean(times))
    assert record["n"] == 20 and record["alpha"] is None
    task = task_of(run, ws)
    model, counter = load_weights(task.build(), run, ws), Counter(monkeypatch)
    task.times(model, cells[5].measure)
    assert counter.clips == 22 * 10  # 5 supports and 5 queries of each of 20 tasks and 2 that warm up


def test_tasks_of_another_form_are_timed_anew(trained, monkeypatch):
    ws, run, cells = trained
    monkeypatch.setattr(few_shot, "TIMED_TASKS", 2)
    counter = Counter(monkeypatch)
    longer = Cell(run=run, measure=cells[5].measure.model_copy(update={"shot": 5}))
    assert needed_work([longer], ws) and score_run(run, [longer, cells[5]], ws) == 1
    assert counter.clips == 4 * 30
    assert len(json.loads(value_path(ws, run, longer.measure).read_text())["milliseconds"]) == 2


# --------------------------------------------------------------------- methods that fuse their scores


PARTS = ("visual.adapters", "text.adapters", "")


@pytest.fixture(scope="module")
def adapted(world, tmp_path_factory):
    """A trained Task-Adapter++ with cells of every kind."""
    ws = world.elsewhere(tmp_path_factory.mktemp("adapted"))
    measures = [
        {}, {"score": "vv"}, {"score": "vt"}, {"alpha": 0.3}, {"alpha": "val"}, {"metric": "time_ms"},
        *({"metric": "params_m", "part": part} for part in PARTS),
    ]  # fmt: skip
    cells = [world.cell(method="task_adapter_pp", measure={"episodes": 24, **measure}) for measure in measures]
    (run,) = {cell.run.id: cell.run for cell in cells}.values()
    train_run(run, ws)
    score_run(run, cells, ws)
    measure_run(run, cells, ws, search_in_process)
    return ws, run, cells


def test_the_product_of_a_method_is_measured_as_it_is(adapted):
    ws, run, (own, vv, vt, fixed, searched, *_) = adapted
    assert own.measure.alpha == "own" and own.measure.score == "both"
    scores = EpisodeScores.load(scores_path(ws, run, own.measure, "test"))
    assert scores.both.shape == (24, 5, 5)
    offset = run.model["offset"]
    for cell, logits in ((own, scores.both), (vv, scores.log_vv), (vt, scores.log_vt)):
        record = _record(ws, cell)
        assert record["value"] == pytest.approx(accuracy(logits, scores.labels).mean())
        assert record["alpha"] is None and record["alpha_curve"] is None
    # log-probabilities are the cosines up to a constant of each query, and their product the score of Eq. 18
    for name in ("log_vv", "log_vt"):
        assert np.ptp(getattr(scores, name), axis=-1).max() < 2
    assert offset == 0.5 and (scores.both > 0).all() and (scores.both < 1.5**2).all()
    assert _record(ws, fixed)["alpha"] == 0.3 and _record(ws, searched)["alpha"] in searched.measure.alpha_grid
    # validation episodes are scored for the search alone
    names = {path.name.split("-")[0] for path in ws.scores(run.id).glob("*.npz")}
    assert names == {"test", "val"} and len(list(ws.scores(run.id).glob("*.npz"))) == 2


def test_a_method_that_fuses_nothing_cannot_be_asked_for_its_own_score(trained):
    ws, run, (both, *_) = trained
    cell = Cell(run=run, measure=both.measure.model_copy(update={"alpha": "own"}))
    with pytest.raises(UserError, match="measure.alpha is `own`"):
        measure_run(run, [cell], ws, search_in_process)
    assert not ws.cell(cell.id).exists()


def test_opposites_need_a_choice_among_all_classes(trained):
    """Episodes name other classes each time."""
    ws, run, (_, vv, *_) = trained
    cell = Cell(run=run, measure=vv.measure.model_copy(update={"metric": "opposite_pct"}))
    assert not needed_work([cell], ws)
    with pytest.raises(UserError, match="opposite_pct needs a test in which every video is told from all classes"):
        measure_run(run, [cell], ws, search_in_process)
    assert not ws.cell(cell.id).exists()


@pytest.mark.parametrize("metric", ["teacher_spread_pct", "teacher_time_share_pct"])
def test_a_method_of_episodes_has_no_teacher(trained, metric):
    ws, run, (_, vv, *_) = trained
    cell = Cell(run=run, measure=vv.measure.model_copy(update={"metric": metric}))
    with pytest.raises(UserError, match=f"{run.id}: metric {metric} is of semi-supervised methods, not of"):
        score_run(run, [cell], ws)
    assert not value_path(ws, run, cell.measure).exists()


def test_a_metric_is_one_entry(trained, tmp_path, monkeypatch):
    """One that is read off a model, and one of the answers to a test."""
    ws, run, (_, vv, *_) = trained
    monkeypatch.setitem(METRICS, "tensors", Metric(
        "tensors", "trained tensors", ("part",), itemgetter("count"), decimals=0, file="tensors-{part}",
        model=lambda task, model, measure: {"count": len(model.trained_state()), "of": type(task).__name__},
        beside={"classes": itemgetter("of")},
    ))  # fmt: skip
    monkeypatch.setitem(METRICS, "first_pct", Metric(
        "%", "the first class", TEST, itemgetter("share"),
        answers=lambda answers: {"share": 100.0 * (answers.logits.argmax(-1) == 0).mean(-1)},
    ))  # fmt: skip
    counted = Cell(run=run, measure=Measure(metric="tensors", shot=3, episodes=7))
    assert counted.id == Cell(run=run, measure=Measure(metric="tensors")).id
    said = Cell(run=run, measure=vv.measure.model_copy(update={"metric": "first_pct"}))
    kept = value_path(ws, run, counted.measure)
    try:
        assert score_run(run, [counted, said], ws) == 1 and kept.name == "tensors-all.json"
        paths = measure_run(run, [counted, said], ws, search_in_process)
        number, share = (json.loads(path.read_text()) for path in paths)
        assert number["value"] > 1 and number["ci95"] is None and number["classes"] == "FewShotTask"
        scores = EpisodeScores.load(scores_path(ws, run, vv.measure, "test"))
        assert share["value"] == pytest.approx(100 * (scores.log_vv.argmax(-1) == 0).mean()) and share["n"] == 24
        assert share["predictions"] == _record(ws, vv)["predictions"]
    finally:
        for path in (kept, ws.cell(counted.id), ws.cell(said.id)):
            path.unlink(missing_ok=True)


def test_cells_of_parameters_hold_the_count_in_millions(adapted, world):
    ws, run, cells = adapted
    task = task_of(run, ws)
    model = load_weights(task.build(), run, ws)
    found = {}
    for cell in [cell for cell in cells if cell.measure.metric == "params_m"]:
        record, part = _record(ws, cell), cell.measure.part
        found[part] = round(1e6 * record["value"])
        tuned = [p.numel() for name, p in model.named_parameters() if p.requires_grad and name.startswith(part)]
        assert found[part] == sum(tuned) == task.parameters(model, part)
        assert record["ci95"] is None and record["n"] == 1 and record["alpha"] is None
        kept = json.loads(value_path(ws, run, cell.measure).read_text())
        assert kept == {"parameters": found[part]}
    width = 32  # of CLIP: one layer of four adapters, one of one, and the temporal embedding
    adapter = 2 * width * (width // 4) + width // 4 + width
    assert found == {"visual.adapters": 4 * adapter, "text.adapters": adapter, "": 5 * adapter + 8 * width}


def test_parameters_depend_on_no_task(adapted, world):
    """Shots, ways, scores and episodes are of no account, so all such places of a table are one cell."""
    _, _, cells = adapted
    first = next(cell for cell in cells if cell.measure.metric == "params_m")
    for change in ({"shot": 5}, {"way": 3}, {"query": 2}, {"episodes": 7}, {"score": "vv"}, {"matcher": "otam"}):
        measure = {"metric": "params_m", "part": first.measure.part, **change}
        assert world.cell(method="task_adapter_pp", measure=measure).id == first.id, change
    other = world.cell(method="task_adapter_pp", measure={"metric": "params_m", "part": "visual.adapters.0"})
    assert other.id != first.id
    # the part is of no account for an accuracy
    one, two = (world.cell(method="task_adapter_pp", measure={"part": part}) for part in ("", "visual"))
    assert one.id == two.id


def test_whole_tasks_of_videos_that_see_each_other_are_timed(adapted):
    ws, _, cells = adapted
    record = _record(ws, next(cell for cell in cells if cell.measure.metric == "time_ms"))
    assert record["value"] > 0 and record["n"] == 20


def test_a_run_of_no_steps_is_measured_without_a_training(world, tmp_path):
    """Table 3's frozen CLIP: the same run for every recipe and seed."""
    ws = world.elsewhere(tmp_path)
    experiment = {"method": "task_adapter", "model": {"finetune": "none"}}
    cell = world.cell(**experiment, train={"steps": 0}, measure={"episodes": 24})
    run = cell.run
    assert run.train == {} and run.selection == "last"
    others = (world.run(seed=seed, **experiment, train={"steps": 0, "optimizer": "sgd"}) for seed in (0, 3))
    assert {other.id for other in others} == {run.id}
    assert world.run(**experiment, train={"steps": 1}).id != run.id
    train_run(run, ws)
    assert json.loads((ws.run(run.id) / "train.json").read_text())["steps"] == 0
    assert not list(ws.run(run.id).glob("*.safetensors"))
    parameters = world.cell(**experiment, train={"steps": 0}, measure={"metric": "params_m"})
    score_run(run, [cell, parameters], ws)
    measure_run(run, [cell, parameters], ws, search_in_process)
    assert 0 <= _record(ws, cell)["value"] <= 100 and _record(ws, parameters)["value"] == 0


def test_missing_scores_are_said(trained, world, tmp_path):
    _, run, cells = trained
    empty = world.elsewhere(tmp_path)
    with pytest.raises(UserError, match=rf"is missing: run `python -m pipeline evaluate {run.id}`"):
        measure_run(run, cells, empty, search_in_process)
    with pytest.raises(UserError, match=r"is missing: run `python -m pipeline evaluate"):
        measure_run(run, cells[5:], empty, search_in_process)
    with pytest.raises(UserError, match=r"model.safetensors is missing: train it"):
        score_run(run, cells, empty)
    assert not (empty.root / "cells").exists()


def test_summary_needs_two_episodes():
    assert summary(np.array([0.0, 100.0])) == {"value": 50.0, "ci95": pytest.approx(98.0), "n": 2}
    with pytest.raises(UserError, match="at least two episodes"):
        summary(np.array([50.0]))
