"""A guard against work that is done twice: it counts work, not seconds, so that a busy machine cannot break it."""

from __future__ import annotations

import csv
from collections import Counter
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch
from tiny import OVERLAY, bare_plan

from benchmarks.counting import HostReads
from benchmarks.workflow import trainings
from pipeline.config import merge
from pipeline.datasets import frames as decoding
from pipeline.datasets.frames import FramePolicy, build_frame_store, encode_clip
from pipeline.datasets.index import read_index
from pipeline.datasets.kinds.registry import data_of
from pipeline.evaluation.score import score_run
from pipeline.experiment import canonical
from pipeline.models.backbones.clip import CLIPBackbone
from pipeline.models.build import build_model
from pipeline.models.few_shot.base import FewShotModel
from pipeline.models.few_shot.blocks import necks
from pipeline.models.few_shot.blocks.adapters import TextTower
from pipeline.models.few_shot.blocks.tuples import TemporalCrossTransformer
from pipeline.models.semi import SeFARModel
from pipeline.plan import Plan
from pipeline.tasks.few_shot import scoring as testing
from pipeline.tasks.few_shot.scoring import encode_clips, score_split, split_clips
from pipeline.tasks.few_shot.task import FewShotTask
from pipeline.tasks.kinds import task_of
from pipeline.training import train as module
from pipeline.training.train import Curve, train_run

METHODS = (
    "lga", "clip_fsar", "otam", "task_adapter", "task_adapter_pp", "clip_finetune", "hyrsm", "hyrsm_pp", "molo", "strm",
    "trx",
)  # fmt: skip


class Calls:
    """Counts the calls of a function that is replaced by itself, and adds up what `size` says of their arguments."""

    def __init__(self, monkeypatch, where, name, size=lambda *_: 1):
        self.calls, self.size = 0, 0
        original = getattr(where, name)

        def counted(*args, **kwargs):
            self.calls += 1
            self.size += size(*args)
            return original(*args, **kwargs)

        monkeypatch.setattr(where, name, counted)


# ------------------------------------------------------------------------------------------ encoder calls
def test_all_measurements_of_a_run_encode_each_video_of_a_split_once(world, tmp_path, monkeypatch):
    ws, run = world.elsewhere(tmp_path), world.run(method="lga")
    train_run(run, ws)
    measures = [{"shot": 1}, {"shot": 5}, {"shot": 1, "matcher": "otam"}, {"shot": 5, "alpha": 0.5}, {"way": 3}]
    cells = [world.cell(method="lga", measure=measure) for measure in measures]
    assert {cell.run.id for cell in cells} == {run.id} and len({cell.id for cell in cells}) == 5
    encoded = Calls(monkeypatch, CLIPBackbone, "encode_frames", lambda _, clips: len(clips))
    texts = Calls(monkeypatch, CLIPBackbone, "encode_text")
    scored = score_run(run, cells, ws)
    videos = {split: len(split_clips(world.store, split)) for split in ("val", "test")}
    assert encoded.size == videos["val"] + videos["test"] == 120  # 10 classes of 6 each
    assert scored == 8  # score files: four tasks on either split, alpha 0.5 and the search share theirs
    assert texts.calls == 1 + scored  # a building of the model, and once for each file: no episode encodes a text
    assert score_run(run, cells, ws) == 0 and encoded.size == 120


def test_more_episodes_encode_nothing_more(world, monkeypatch):
    run = world.run(method="otam")
    model = build_model(run, world.ws, world.store).eval()
    encoded = Calls(monkeypatch, CLIPBackbone, "encode_frames", lambda _, clips: len(clips))
    sizes = []
    for episodes in (1, 300):
        score_split(run, model, world.ws, world.store, "test", way=5, shot=1, query=1, episodes=episodes, seed=0)
        sizes.append(encoded.size)
    assert sizes == [60, 120]


def test_a_step_encodes_the_texts_of_its_classes_only(world, monkeypatch):
    run = world.run(method="task_adapter_pp")
    task = FewShotTask(run, world.ws)
    model = task.build().train()
    rows = Calls(monkeypatch, TextTower, "rest", lambda _tower, _clip, tokens, _ends: len(tokens))
    trunks = Calls(monkeypatch, TextTower, "trunk")
    model(mode="loss", **_batch(task, model))
    assert rows.size == run.train["way"] == 3 and len(world.store.classes("train")) == 26
    assert trunks.calls == 0  # what lies below the adapters was worked out when the model was built


def test_the_teacher_looks_at_a_video_once_for_all_its_predictions(monkeypatch):
    torch.manual_seed(0)
    small = {"width": 16, "depth": 1, "heads": 2, "patch": 8, "image_size": 16}
    model = SeFARModel({"source": small}, 4, passes=7)
    model.start_teacher()
    weak = [torch.randn(2, frames, 3, 16, 16) for frames in model.lengths]
    looked = Calls(monkeypatch, type(model.teacher), "patches")
    assert model.teacher_logits(weak).shape == (7, 2, 4) and looked.calls == 1


# ---------------------------------------------------------------------------------------- decoded frames
def test_training_and_test_decode_no_video(world, tmp_path, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise AssertionError("a video was opened")

    monkeypatch.setattr(av, "open", refuse)
    ws, run = world.elsewhere(tmp_path), world.run(method="otam")
    dataset = world.plan.datasets[run.dataset]
    clip = read_index(world.ws.dataset(run.dataset) / "index.csv")[0]
    with pytest.raises(AssertionError, match="a video was opened"):  # so it would be seen
        encode_clip(data_of(dataset).root(world.ws) / clip.path, FramePolicy())
    train_run(run, ws)
    assert score_run(run, [world.cell(method="otam")], ws) > 0


def test_a_store_that_is_there_decodes_nothing_and_a_new_one_each_clip_once(world, tmp_path, monkeypatch):
    given = []

    def decode_here(function, jobs, workers, timeout):
        given.extend(jobs)
        return (function(job) for job in jobs)

    monkeypatch.setattr(decoding, "guarded_map", decode_here)
    dataset = world.plan.datasets[world.run(method="otam").dataset]
    index, root = world.ws.dataset(dataset.key) / "index.csv", data_of(dataset).root(world.ws)
    few = tmp_path / "index.csv"
    few.write_text("".join(index.read_text().splitlines(keepends=True)[:6]))
    for _ in range(2):
        build_frame_store(few, root, tmp_path / "store", FramePolicy((16, 16), 2), 1)
    assert sorted(given) == sorted(str(root / clip.path) for clip in read_index(few)) and len(given) == 5


# --------------------------------------------------------------------------------------- optimiser steps
def _batch(task, model, episode=0):
    return model.data_preprocessor({name: value[None] for name, value in task.items(model)[episode].items()}, True)


@pytest.mark.parametrize("method", METHODS)
def test_a_step_never_waits_for_the_device(world, monkeypatch, method):
    """Of a step the host reads nothing: no number, no mask whose count it must know."""
    monkeypatch.setattr(necks, "picks", lambda _: False)  # as on a GPU
    run = world.run(method=method)
    task = task_of(run, world.ws)
    model = task.build().train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    batch = _batch(task, model)
    with HostReads() as reads:
        losses = model(mode="loss", **batch)
        sum(value for name, value in losses.items() if name.startswith("loss")).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert reads.counts == Counter()


def test_what_is_left_out_on_a_cpu_has_no_say(world, monkeypatch):
    run = world.run(method="lga")
    model = build_model(run, world.ws, world.store).eval()
    settings = dict(way=5, shot=5, query=1, episodes=4, seed=0)
    found = []
    for picked in (True, False):
        monkeypatch.setattr(necks, "picks", lambda _, picked=picked: picked)
        found.append(score_split(run, model, world.ws, world.store, "test", **settings).log_vv)
    np.testing.assert_allclose(*found, atol=1e-6)
    assert np.ptp(found[0]) > 1e-3


def test_reads_are_seen():
    x = torch.arange(6.0)
    with HostReads() as reads:
        float(x.sum()), x.tolist(), x[x > 2], x.unique(), bool((x > 0).all()), x.nonzero()
        x[torch.tensor([1, 2])], x.sort(), x.argmax(), torch.where(x > 2, x, 0)
    assert reads.counts == {"item": 2, "tolist": 1, "mask": 1, "unique": 1, "nonzero": 1} and reads.total == 6
    assert torch.Tensor.tolist is reads._tolist


@pytest.mark.parametrize(("reads", "times"), [(1, 20), (10, 2), (7, 3)])
def test_losses_are_fetched_in_one_piece_every_so_many_steps(tmp_path, reads, times):
    curve = Curve(SimpleNamespace(id="run"), tmp_path / "curve.csv", 2, 0, reads)
    rate = SimpleNamespace(get_lr=lambda: {"lr": [0.5]})
    with HostReads() as seen:
        for i in range(40):
            losses = {"loss": torch.tensor(float(i)), "accuracy": torch.tensor(0.25)}
            curve.after_train_iter(SimpleNamespace(iter=i, optim_wrapper=rate), i, None, losses)
        curve.after_train(None)
    assert seen.counts == {"tolist": times}
    with (tmp_path / "curve.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(int(row["step"]), float(row["loss"])) for row in rows] == [(s, 2 * s - 1.5) for s in range(1, 21)]
    assert {(row["accuracy"], row["learning_rate"]) for row in rows} == {("0.25", "0.5")}
    assert list(rows[0]) == ["step", "loss", "accuracy", "learning_rate", "seconds"]


def test_a_loss_that_is_no_number_stops_at_the_next_reading(tmp_path):
    curve = Curve(SimpleNamespace(id="run"), tmp_path / "curve.csv", 1, 0, 3)
    rate = SimpleNamespace(get_lr=lambda: {"lr": [0.5]})

    def step(i, loss):
        curve.after_train_iter(SimpleNamespace(iter=i, optim_wrapper=rate), i, None, {"loss": torch.tensor(loss)})

    step(0, 1.0)
    step(1, float("nan"))
    with pytest.raises(FloatingPointError, match="run: the loss is nan at step 2"):
        step(2, 1.0)
    assert [row["step"] for row in curve.rows] == [1]


def test_rows_are_complete_wherever_they_are_needed(world, tmp_path, monkeypatch):
    """Validation and checkpoints come between two readings; the curve is that of a training which reads each step."""
    run = world.run(method="otam", train={"steps": 5, "validate_every": 2, "checkpoint_every": 2})
    curves = []
    for reads in (1, 4):
        ws, kept = world.elsewhere(tmp_path / str(reads)), []
        monkeypatch.setattr(module, "Curve", lambda *args, reads=reads: Curve(*args[:4], reads))
        train_run(run, ws, lambda metrics, _folder, kept=kept: kept.append((metrics["step"], metrics["loss"])))
        with (ws.run(run.id) / "curve.csv").open() as file:
            rows = [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]
        assert [int(row["step"]) for row in rows] == [1, 2, 3, 4, 5]
        assert [bool(row["validation_accuracy"]) for row in rows] == [False, True, False, True, True]
        assert kept == [(step, float(rows[step - 1]["loss"])) for step in (2, 4, 5)]
        curves.append(rows)
    assert curves[0] == curves[1]


def test_activations_are_recomputed_where_a_key_asks(world, monkeypatch):
    """The same gradient with every layer run twice."""
    grads, calls = [], []
    for on in (False, True):
        overlay = merge(OVERLAY, {"methods": {"otam": {"model": {"activation_checkpointing": on}}}})
        run = bare_plan(overlay).cell({"dataset": "hmdb51", "method": "otam"}, 0, "the test").run
        task = FewShotTask(run, world.ws)
        model = task.build().train()
        layer = model.backbone.clip.vision_model.encoder.layers[0].mlp
        count = []
        layer.register_forward_pre_hook(lambda *_, count=count: count.append(1))
        model(mode="loss", **_batch(task, model))["loss_matching"].backward()
        grads.append(layer.fc1.weight.grad)
        calls.append(len(count))
    assert calls == [1, 2]
    torch.testing.assert_close(grads[0], grads[1])


# ---------------------------------------------------------------------------------------------- matching
@pytest.mark.parametrize("method", ["otam", "lga", "clip_freeze", "task_adapter_pp"])
@pytest.mark.parametrize("shot", [1, 5])
def test_episodes_of_a_call_fit_into_the_cache_and_their_number_changes_nothing(world, monkeypatch, method, shot):
    run = world.run(method=method)
    model = build_model(run, world.ws, world.store).eval()
    features = encode_clips(run, model, world.store, split_clips(world.store, "test"))
    matched = Calls(monkeypatch, type(model), "match")
    settings = dict(way=5, shot=shot, query=1, episodes=12, seed=0, features=features)
    found = []
    for size in (1, 10**9):
        monkeypatch.setattr(testing, "IN_CACHE", size)
        before = matched.calls
        found.append(score_split(run, model, world.ws, world.store, "test", **settings))
        assert matched.calls - before == (12 if size == 1 else -(-12 // model.episodes_at_once))
    np.testing.assert_allclose(found[0].log_vv, found[1].log_vv, atol=1e-5)
    assert np.ptp(found[0].log_vv) > 1e-3


def test_order_free_matching_moves_one_frame_a_video(world, monkeypatch):
    run = world.run(method="clip_freeze")
    model = build_model(run, world.ws, world.store).eval()
    features = encode_clips(run, model, world.store, split_clips(world.store, "test"))
    moved = Calls(monkeypatch, testing, "_take", lambda tree, places: tree[0].numel() * places.numel())
    settings = dict(way=5, shot=1, query=1, episodes=40, seed=0, features=features)
    sizes, scores = [], []
    for condense in (type(model).condense, FewShotModel.condense):
        monkeypatch.setattr(type(model), "condense", condense)
        before = moved.size
        scores.append(score_split(run, model, world.ws, world.store, "test", **settings).log_vv)
        sizes.append(moved.size - before)
    assert sizes[1] == 8 * sizes[0] > 0
    np.testing.assert_allclose(*scores, atol=1e-6)


@pytest.mark.parametrize("shot", [1, 5])
def test_trx_maps_a_video_once_however_many_episodes_ask_it(world, monkeypatch, shot):
    run = world.run(method="trx")
    model = build_model(run, world.ws, world.store).eval()
    features = encode_clips(run, model, world.store, split_clips(world.store, "test"))
    mapped = Calls(monkeypatch, TemporalCrossTransformer, "embed", lambda _, videos: videos.shape[:-2].numel())
    settings = dict(way=5, shot=shot, query=1, episodes=30, seed=0, features=features)
    scores = score_split(run, model, world.ws, world.store, "test", **settings)
    assert mapped.size == 2 * 60  # by the transformer of pairs and by that of triples
    monkeypatch.setattr(type(model), "condensed", False)
    monkeypatch.setattr(type(model), "condense", FewShotModel.condense)
    anew = score_split(run, model, world.ws, world.store, "test", **settings)
    assert mapped.size - 2 * 60 == 2 * 30 * (5 + 5 * shot)
    np.testing.assert_allclose(scores.log_vv, anew.log_vv, atol=1e-4)
    assert np.ptp(scores.log_vv) > 1e-3


# ----------------------------------------------------------------------------------------- trained runs
@pytest.mark.parametrize("scale", ["demo", "paper"])
def test_tables_share_their_trainings(repo, scale):
    plan = Plan.read(repo / "config", {"scale": scale})
    contents = Counter(canonical(run.model_dump(mode="json", exclude={"id"})) for run in plan.runs.values())
    assert set(contents.values()) == {1}  # no two runs are the same training under two names
    apart, together = trainings(plan)
    assert together == sum(bool(run.train) for run in plan.runs.values())
    assert together < 0.85 * apart, (together, apart)
    in_tables = {
        (paper, number): {c.run.id for entry in plan.table_entries(paper, number) for c in entry.cells if c.run.train}
        for paper, number in plan.tables()
    }
    shared = [("task_adapter", "4", "5"), ("task_adapter", "4", "1"), ("crossglg", "4", "1"), ("lga", "4", "1")]
    for paper, one, two in shared:
        tables = [runs for (p, number), runs in in_tables.items() if p == paper and number.startswith(one)]
        others = [runs for (p, number), runs in in_tables.items() if p == paper and number.startswith(two)]
        assert set().union(*tables) & set().union(*others), (paper, one, two)
