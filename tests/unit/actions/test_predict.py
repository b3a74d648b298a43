"""Labels for clips from a few examples a class: what is printed, written and drawn, from a run and from an export."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
from shard_tasks import run_here

from pipeline import __main__ as cli
from pipeline import shards
from pipeline.actions import features
from pipeline.actions.clips import labelled_clips
from pipeline.actions.command import Asked, embed_clips, predict_clips
from pipeline.actions.features import ModelName, embed_folder, read_features
from pipeline.actions.model import ActionModel, Encoded, describe_run, load_model, model_of_run
from pipeline.actions.predict import Labeller, proportion
from pipeline.datasets.index import read_index
from pipeline.errors import UserError
from pipeline.files import write_json
from pipeline.models.build import build_model, class_sentences
from pipeline.scores import calibration_error
from pipeline.tasks.few_shot.episodes import EpisodeTable
from pipeline.tasks.few_shot.scoring import encode_clips, score_episodes
from pipeline.text.corpus import load_corpus
from pipeline.training.train import train_run

WAY, SHOTS = 3, 2


@pytest.fixture(scope="module")
def trained(world, tmp_path_factory):
    """A trained LGA run whose validation chose alpha 0.7 for one shot."""
    ws = world.elsewhere(tmp_path_factory.mktemp("actions"))
    cell = world.cell(method="lga", measure={"score": "both", "shot": 1})
    train_run(cell.run, ws)
    other = world.cell(method="lga", measure={"score": "both", "shot": 1, "matcher": "otam"})
    for which, alpha in ((cell, 0.7), (other, 0.1)):
        write_json(ws.cell(which.id), {"measure": which.measure.model_dump(mode="json"), "alpha": alpha})
    return ws, cell.run


@pytest.fixture(scope="module")
def clips(world, tmp_path_factory):
    """Numbers in the frame store of `SHOTS` + 1 clips of `WAY` test classes, and folders `support` and `query` of
    their videos; a broken video lies among the queries."""
    root = tmp_path_factory.mktemp("own")
    data = world.ws.dataset(world.run(method="lga").dataset)
    index = read_index(data / "index.csv")
    numbers = {}
    for name, mine in sorted(world.store.by_class("test").items())[:WAY]:
        numbers[name] = mine[: SHOTS + 1].tolist()
        for place, number in enumerate(numbers[name]):
            folder = root / ("support" if place < SHOTS else "query") / name
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(data / "generated" / index[number].path, folder / f"{place}.mp4")
    (folder / "broken.mp4").write_bytes(b"no video" * 50)
    return numbers, root, data / "texts.json"


def call(monkeypatch, capsys, *arguments):
    """Exit status, stdout and stderr of the entry point."""
    monkeypatch.setattr(sys, "argv", ["pipeline", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    return caught.value.code or 0, *capsys.readouterr()


def test_scores_are_those_of_the_evaluation(world, trained, clips):
    """The videos' own path from file to score gives what a test episode of the same clips gives."""
    ws, run = trained
    numbers, root, texts = clips
    model = model_of_run(run, ws)
    corpus = load_corpus(texts)
    flat = [number for mine in numbers.values() for number in mine]
    features = encode_clips(run, model.model, world.store, flat)
    places = np.arange(len(flat)).reshape(WAY, SHOTS + 1)
    table = EpisodeTable(places[None, :, :SHOTS], places[None, :, SHOTS], np.arange(WAY)[None], np.arange(WAY)[None])
    sentences = class_sentences(corpus, list(numbers), run.model)
    expected = score_episodes(model.model, features, table, model.model.encode_texts(sentences))

    support = list(model.encode(labelled_clips(root / "support")))
    labeller = Labeller(model, support, corpus)
    assert labeller.alpha == 0.7  # the nearest number of shots, and not the other matcher's
    queries = [item for item in model.encode(labelled_clips(root / "query")) if isinstance(item, Encoded)]
    assert [item.clip.label for item in queries] == list(numbers)
    for row, item in enumerate(queries):
        found = labeller.predict(item)
        video, text = expected.log_vv[0, row], expected.log_vt[0, row]
        both = 0.7 * video + 0.3 * text
        both = np.exp(both) / np.exp(both).sum()
        assert [guess.label for guess in found.top] == [labeller.classes[i] for i in np.argsort(-both)]
        for guess in found.top:
            i = labeller.classes.index(guess.label)
            assert guess.score == pytest.approx(both[i], abs=2e-5)
            assert guess.video_video == pytest.approx(np.exp(video[i]), abs=2e-5)
            assert guess.video_text == pytest.approx(np.exp(text[i]), abs=2e-5)
        assert len(found.phase) == run.frames["number"] and found.phase == sorted(found.phase)
        assert sorted(set(found.phase)) == [1, 2, 3]
        assert found.texts == corpus.atomic(found.top[0].label, 3)


def test_predict_labels_goes_on_after_a_broken_video_and_counts(monkeypatch, capsys, trained, clips, tmp_path):
    ws, run = trained
    _, root, texts = clips
    out = tmp_path / "out"
    status, shown, errors = call(
        monkeypatch, capsys, "predict", "--support", root / "support", "--query", root / "query", "--method", "lga",
        "--texts", texts, "--truth", "--results", ws.root, "--out", out, "--pictures", 2,
    )  # fmt: skip
    assert status == 0, errors
    record = json.loads((out / "predictions.json").read_text())
    assert record["run"] == run.id and record["alpha"] == 0.7 and set(record["shots"].values()) == {SHOTS}
    (bad,) = record["unreadable"]
    assert bad["clip"].endswith("broken.mp4") and bad["part"] == "query"
    assert [line for line in errors.splitlines() if "left out" in line] == [
        f"left out: query {bad['clip']}: {bad['reason']}"
    ]
    right = sum(query["top"][0]["label"] == query["truth"] for query in record["queries"])
    assert len(record["queries"]) == WAY and record["accuracy"]["right"] == right and record["accuracy"]["n"] == WAY
    value, low, high = proportion(right, WAY)
    assert f"accuracy {value:.1f} %, 95 % interval {low:.1f} to {high:.1f}: {right} of {WAY} right" in shown
    fitted = record["calibration"]
    assert "400 validation episodes" in fitted["source"] and "1 clip each" in fitted["source"]
    kept = json.loads((ws.run(run.id) / "calibration.json").read_text())
    assert kept["calibrations"]["both-1"] == fitted and kept["alphas"] == {"1": 0.7} and fitted["temperature"] > 0
    certain = np.array([query["top"][0]["score"] for query in record["queries"]])
    good = np.array([query["top"][0]["label"] == query["truth"] for query in record["queries"]])
    assert record["calibration_error"] == pytest.approx(calibration_error(certain, good))
    assert f"expected calibration error {100 * record['calibration_error']:.1f} %" in shown
    close = [query["top"][0]["score"] - query["top"][1]["score"] < fitted["error"] for query in record["queries"]]
    assert [query["unsure"] for query in record["queries"]] == close and shown.count(": unsure: ") == sum(close)
    lines = [line for line in shown.splitlines() if ".mp4: " in line]
    assert len(lines) == WAY and all("video-text" in line and "; phases 1: " in line for line in lines)
    pictures = sorted(out.glob("*.png"))
    assert len(pictures) == 2 and not list(out.glob(".*"))
    drawn = cv2.imread(str(pictures[0]))
    assert drawn.shape[1] > 1000 and len(np.unique(drawn.reshape(-1, 3), axis=0)) > 100


def test_a_class_with_fewer_clips_shows_them_again(trained, clips):
    ws, run = trained
    model = model_of_run(run, ws)
    support = list(model.encode(labelled_clips(clips[1] / "support")))
    (query, *_) = (item for item in model.encode(labelled_clips(clips[1] / "query")) if isinstance(item, Encoded))
    alone, repeated = [support[0], *support[SHOTS:]], [support[0]] * SHOTS + support[SHOTS:]
    assert Labeller(model, alone).predict(query).top == Labeller(model, repeated).predict(query).top
    assert Labeller(model, alone).predict(query).top != Labeller(model, support).predict(query).top


def test_without_texts_a_clip_is_most_like_itself(monkeypatch, capsys, trained, clips, tmp_path):
    ws, run = trained
    _, root, _ = clips
    one = tmp_path / "one"
    for folder in (root / "query").iterdir():
        (one / folder.name).mkdir(parents=True)
        shutil.copy(folder / f"{SHOTS}.mp4", one / folder.name)
    query = next((root / "query").iterdir()) / f"{SHOTS}.mp4"
    model = model_of_run(run, ws)
    predict_clips(model, Asked(one, query, pictures=0), tmp_path / "single", lambda line: None)
    record = json.loads((tmp_path / "single" / "predictions.json").read_text())
    (found,) = record["queries"]
    assert found["top"][0]["label"] == query.parent.name and found["top"][0]["video_text"] is None
    assert "truth" not in found and "accuracy" not in record and record["texts"] is None
    status, shown, _ = call(
        monkeypatch, capsys, "predict", "--support", one, "--query", one, "--run", run.id[:12], "--truth",
        "--results", ws.root, "--out", tmp_path / "out", "--pictures", 0,
    )  # fmt: skip
    assert status == 0 and f"{WAY} of {WAY} right" in shown and "video-video alone" in shown
    assert not list((tmp_path / "out").glob("*.png"))


@pytest.mark.parametrize("method", ["clip_fsar", "otam", "task_adapter", "task_adapter_pp"])
def test_other_methods_label_with_and_without_texts(world, clips, method):
    run = world.run(method=method)
    model = ActionModel(describe_run(run, world.ws), build_model(run, world.ws, world.store))
    _, root, texts = clips
    support = list(model.encode(labelled_clips(root / "support")))
    for corpus in (None, load_corpus(texts)):
        labeller = Labeller(model, support[:-1], corpus)  # one class has a clip fewer
        assert sorted(labeller.shots.values()) == [SHOTS - 1, SHOTS, SHOTS]
        found = labeller.predict(support[0])
        assert sum(guess.score for guess in found.top) == pytest.approx(1, abs=1e-5)
        reads = corpus is not None and model.model.wants_text
        assert all((guess.video_text is not None) == reads for guess in found.top)
        if method in ("clip_fsar", "otam") and corpus is None:
            single = Labeller(model, support[::SHOTS])
            assert all(single.predict(clip).top[0].label == clip.clip.label for clip in support[::SHOTS])


BLOCKED = """
import runpy, sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("ray", "snakemake"):
            raise ImportError(f"{{name}} is blocked")
sys.meta_path.insert(0, Blocked())
for arguments in {calls!r}:
    sys.argv = ["pipeline", *arguments]
    try:
        runpy.run_module("pipeline", run_name="__main__")
    except SystemExit as end:
        assert not end.code, end.code
"""


def test_an_exported_model_needs_no_workflow(monkeypatch, capsys, repo, trained, clips, tmp_path):
    """In a process without Ray and Snakemake, in an empty folder, with the answers of the run that it came from."""
    ws, run = trained
    _, root, texts = clips
    status, shown, errors = call(monkeypatch, capsys, "export", "lga", "--to", tmp_path / "model", "--results", ws.root)
    assert status == 0 and shown.strip() == str(tmp_path / "model"), errors
    files = [path for path in (tmp_path / "model").rglob("*") if path.is_file()]
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".txt"} and len(files) >= 4
    about = json.loads((tmp_path / "model" / "model.json").read_text())
    assert about["run"] == run.id and about["alphas"] == {"1": 0.7}
    asked = ["predict", "--model", "model", "--support", str(root / "support"), "--query", str(root / "query")]
    asked += ["--texts", str(texts), "--truth", "--pictures", "1"]
    embedded = ["embed", str(root / "query"), "--model", "model", "--labelled", "--out", "features.npz"]
    environment = {**os.environ, "PYTHONPATH": str(repo / "src"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", BLOCKED.format(calls=[asked, embedded])],
        cwd=tmp_path, env=environment, text=True, capture_output=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"features.npz: {WAY} clips, 1 left out" in done.stdout and "accuracy " in done.stdout
    found = json.loads((tmp_path / "predictions" / "predictions.json").read_text())
    assert len(list((tmp_path / "predictions").glob("*.png"))) == 1

    monkeypatch.setattr(torch, "load", None)  # and nothing is unpickled
    here = model_of_run(run, ws, calibrate=True)
    asked = Asked(root / "support", root / "query", texts=str(texts), truth=True, pictures=0)
    predict_clips(here, asked, tmp_path / "here", lambda line: None)
    of_run = json.loads((tmp_path / "here" / "predictions.json").read_text())
    assert len(of_run["queries"]) == len(found["queries"]) == WAY
    for mine, theirs in zip(of_run["queries"], found["queries"], strict=True):
        assert [guess["label"] for guess in mine["top"]] == [guess["label"] for guess in theirs["top"]]
        for a, b in zip(mine["top"], theirs["top"], strict=True):
            assert a["score"] == pytest.approx(b["score"], abs=1e-5)
    with np.load(tmp_path / "features.npz", allow_pickle=False) as file:
        good = [item for item in here.encode(labelled_clips(root / "query")) if isinstance(item, Encoded)]
        np.testing.assert_allclose(file["features"], torch.stack([item.features for item in good]), atol=1e-5)
        assert file["labels"].tolist() == [item.clip.label for item in good] and str(file["run"]) == run.id
        assert file["clips"].tolist() == [item.clip.name for item in good]


@pytest.mark.parametrize("nodes", [1, 2])
def test_features_of_many_clips_go_into_shards(monkeypatch, capsys, trained, clips, tmp_path, nodes):
    """What the file has, shard by shard; made again is only what is not whole; by tasks of other nodes alike."""
    ws, run = trained
    _, root, _ = clips
    monkeypatch.setattr(features, "SHARD", 2)
    monkeypatch.setattr(shards, "_over_nodes", run_here)
    name, found, out = (
        ModelName(run=run.id, results=str(ws.root)),
        labelled_clips(root / "query"),
        tmp_path / "features",
    )
    manifest = embed_folder(name, root / "query", found, out, nodes=nodes)
    assert (manifest["features"], manifest["failures"], manifest["run"]) == (WAY, 1, run.id)
    assert sorted(path.name for path in out.glob("shard-*")) == ["shard-00000.npz", "shard-00001.npz"]
    embed_clips(model_of_run(run, ws), found, tmp_path / "features.npz")
    with np.load(tmp_path / "features.npz", allow_pickle=False) as file, open(out / "clips.csv", newline="") as table:
        rows = list(csv.DictReader(table))
        assert [row["clip"] for row in rows] == file["clips"].tolist()
        assert [row["label"] for row in rows] == file["labels"].tolist()
        for row, want in zip(rows, file["features"], strict=True):
            np.testing.assert_allclose(
                read_features(out / row["shard"])["features"][int(row["place"])], want, atol=1e-5
            )
        assert manifest["shape"] == list(want.shape)
    with open(out / "failures.csv", newline="") as table:
        assert [row["clip"].endswith("broken.mp4") and row["reason"] != "" for row in csv.DictReader(table)] == [True]

    monkeypatch.setattr(ActionModel, "encode", None)  # what is complete is left alone
    assert embed_folder(name, root / "query", found, out, nodes=nodes) == manifest
    with pytest.raises(UserError, match="holds features made with other clips"):
        embed_folder(name, root / "query", found[:2], out)
    monkeypatch.undo()
    monkeypatch.setattr(features, "SHARD", 2)
    monkeypatch.setattr(shards, "_over_nodes", run_here)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    (out / "manifest.json").unlink()
    (out / "shard-00001.npz").write_bytes(before["shard-00001.npz"][:100])  # damaged
    kept = (out / "shard-00000.npz").stat().st_mtime_ns
    embed_folder(name, root / "query", found, out, nodes=nodes)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert (out / "shard-00000.npz").stat().st_mtime_ns == kept


def test_the_command_writes_features_of_any_clips(monkeypatch, capsys, trained, clips, tmp_path):
    ws, run = trained
    _, root, _ = clips
    one = next(path for path in sorted((root / "support").rglob("*.mp4")))
    common = ("--run", run.id, "--results", ws.root)
    for clip, count in ((one, 1), (root / "query", WAY)):
        out = tmp_path / f"features-{count}"
        status, shown, errors = call(monkeypatch, capsys, "embed", clip, *common, "--out", out)
        left_out = ", 1 left out (failures.csv)" if count > 1 else ""
        assert status == 0 and shown.splitlines()[-1] == f"{out}: {count} clips{left_out}", errors
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "broken.mp4").write_bytes(b"no video" * 50)
    mistakes = [
        ((root / "query", "--nodes", "2"), "features.npz is a file: --out features"),
        ((root / "query", "--out", tmp_path), "is there and holds no features"),
        ((root / "support", "--out", tmp_path / "features-1"), "holds features made with other clips"),
        ((tmp_path / "bad", "--out", tmp_path / "none"), "none of the 1 clips can be read; the first, broken.mp4"),
    ]
    for arguments, message in mistakes:
        status, _, errors = call(monkeypatch, capsys, "embed", *arguments, *common)
        line = [line for line in errors.splitlines() if line][-1]
        assert status == 2 and line.startswith("error: ") and message in line and "Traceback" not in errors, errors
    assert not (tmp_path / "none" / "manifest.json").exists()


def test_damaged_and_foreign_exports_are_refused(trained, tmp_path):
    from pipeline.actions.model import export_model

    ws, run = trained
    folder = export_model(run, ws, tmp_path / "model")
    assert export_model(run, ws, folder) == folder  # again, over its own
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(UserError, match="cannot be loaded"):
        load_model(folder)
    shutil.rmtree(folder / "backbone")
    with pytest.raises(UserError, match="backbone is missing"):
        load_model(folder)
    about = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps(about | {"format": 99}))
    with pytest.raises(UserError, match="another version"):
        load_model(folder)
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.tex").touch()
    with pytest.raises(UserError, match="holds no exported model"):
        export_model(run, ws, tmp_path / "precious")
    with pytest.raises(UserError, match="holds no exported model"):
        load_model(tmp_path / "precious")
    assert (tmp_path / "precious" / "thesis.tex").exists()


def test_mistakes_are_one_line(monkeypatch, capsys, trained, clips, tmp_path):
    ws, run = trained
    _, root, texts = clips
    own = ("--support", root / "support", "--query", root / "query", "--results", ws.root, "--out", tmp_path / "out")
    mistakes = [
        (("--run", "nothing"), "no trained few-shot run 'nothing'"),
        (("--run", run.id, "--model", tmp_path), "not both"),
        (("--run", run.id, "--backbone", tmp_path), "--backbone and --matcher go without a run"),
        (("--run", run.id, "--reject", "1.5"), "reject is 1.5"),
        (("--run", run.id, "--alpha", "0.5"), "give texts"),
        (("--run", run.id, "--alpha", "1.5", "--texts", texts), "alpha is 1.5"),
        (("--run", run.id, "--texts", tmp_path / "none.json"), "there is no corpus"),
        (("--run", run.id, "--truth", "--support", one_class(root, tmp_path)), "1 class"),
        (("--run", run.id, "--truth", "--query", root), "has no readable clip in the support"),
    ]
    for more, message in mistakes:
        status, _, errors = call(monkeypatch, capsys, "predict", *own, *more)
        line = [line for line in errors.splitlines() if line][-1]
        assert status == 2 and line.startswith("error: ") and message in line and "Traceback" not in errors
    assert not (tmp_path / "out").exists()


def one_class(root, folder):
    """A support folder of a single class."""
    name = next((root / "support").iterdir())
    shutil.copytree(name, folder / "alone" / name.name)
    return folder / "alone"


def test_the_interval_is_wilsons():
    """Against the closed form."""
    z, right, count = 1.959964, 73, 191
    share = right / count
    middle = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * np.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    assert proportion(right, count) == pytest.approx((100 * share, 100 * (middle - half), 100 * (middle + half)))
    assert proportion(3, 3)[2] == pytest.approx(100) and proportion(3, 3)[1] < 50
