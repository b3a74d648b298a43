"""Labels for clips of one's own: from folders of clips to classes, and a model that needs nothing of the workflow."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

from pipeline.actions.clips import labelled_clips, loose_clips
from pipeline.actions.command import Asked, embed_clips, predict_clips
from pipeline.actions.model import ActionModel, choose_run, export_model, load_model, model_of_run
from pipeline.actions.predict import Labeller, proportion
from pipeline.datasets.index import read_index
from pipeline.errors import UserError
from pipeline.evaluation.few_shot import encode_clips
from pipeline.experiment import Run
from pipeline.text.corpus import load_corpus
from pipeline.training.train import train_run
from pipeline.workspace import Workspace

BLOCKED = """
import sys, runpy

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("ray", "snakemake"):
            raise ImportError(f"{name} is not to be imported")

if __name__ == "__main__":
    sys.meta_path.insert(0, Blocked())
    sys.argv = ["pipeline", *sys.argv[1:]]
    runpy.run_module("pipeline", run_name="__main__")
"""


@pytest.fixture(scope="module")
def own(world, tmp_path_factory):
    """A trained run of LGA, and folders of clips: three of each of three novel classes to support, two to ask for."""
    root = tmp_path_factory.mktemp("own")
    ws = world.elsewhere(root / "ws")
    run = world.run(method="lga")
    train_run(run, ws)
    source = world.ws.dataset(run.dataset)
    clips = [clip for clip in read_index(source / "index.csv") if clip.split == "test"]
    for label in sorted({clip.label for clip in clips})[:3]:
        for i, clip in enumerate([clip for clip in clips if clip.label == label][:5]):
            folder = root / ("support" if i < 3 else "query") / label
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(source / "generated" / clip.path, folder)
    return root, ws, run


def _features(model, clips):
    return torch.stack([item.features for item in model.encode(clips)])


def test_features_are_those_of_the_frame_store(world, own):
    root, ws, run = own
    model = model_of_run(run, ws)
    clips = loose_clips(root / "support")
    names = [world.store.clips.index(next(c for c in world.store.clips if c.endswith(_stem(clip)))) for clip in clips]
    wanted = encode_clips(run, model.model, world.store, names)
    torch.testing.assert_close(_features(model, clips), wanted, rtol=1e-4, atol=1e-5)


def _stem(clip):
    return clip.path.rsplit("/", 1)[-1].rsplit(".", 1)[0]


def test_an_exported_model_is_the_trained_one(own, tmp_path):
    root, ws, run = own
    folder = export_model(run, ws, tmp_path / "model")
    assert not [path for path in folder.rglob("*") if path.suffix in (".pt", ".pth", ".bin", ".pkl")]
    known, made = model_of_run(run, ws), load_model(folder)
    state = made.model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in known.model.state_dict().items())
    clips = labelled_clips(root / "query")
    assert torch.equal(_features(known, clips), _features(made, clips))
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:100])
    with pytest.raises(UserError, match="export the model again"):
        load_model(folder)
    with pytest.raises(UserError, match="holds no exported model"):
        load_model(tmp_path)


@pytest.mark.slow
def test_an_exported_model_needs_neither_snakemake_nor_ray(own, tmp_path, repo):
    root, ws, run = own
    folder = export_model(run, ws, tmp_path / "model")
    (tmp_path / "blocked.py").write_text(BLOCKED)
    command = [sys.executable, "-W", "ignore", "blocked.py", "predict", "--model", str(folder)]
    command += ["--support", str(root / "support"), "--query", str(root / "query"), "--truth", "--pictures", "1"]
    environment = {**os.environ, "PYTHONPATH": str(repo / "src")}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "of 6 right" in done.stdout and len(list((tmp_path / "predictions").glob("*.png"))) == 1


def test_clips_that_cannot_be_read_are_left_out(own, tmp_path, capsys):
    root, ws, run = own
    model = model_of_run(run, ws)
    shutil.copytree(root / "support", tmp_path / "support")
    shutil.copytree(root / "query", tmp_path / "query")
    first = sorted(path.name for path in (tmp_path / "query").iterdir())[0]
    (tmp_path / "query" / first / "a broken.mp4").write_bytes(b"no video")
    (tmp_path / "support" / first / "gone.mp4").symlink_to(tmp_path / "nowhere.mp4")
    texts = str(ws.dataset(run.dataset) / "texts.json")
    asked = Asked(tmp_path / "support", tmp_path / "query", texts, 0.5, truth=True, pictures=0)
    record = json.loads(predict_clips(model, asked, tmp_path / "out").read_text())
    assert [(item["part"], item["clip"].rsplit("/")[-1]) for item in record["unreadable"]] == [
        ("support", "gone.mp4"), ("query", "a broken.mp4"),
    ]  # fmt: skip
    err = capsys.readouterr().err
    assert len([line for line in err.splitlines() if line.startswith("left out: ")]) == 2
    assert len(record["queries"]) == 6 and record["accuracy"]["n"] == 6 and len(record["shots"]) == 3
    right = sum(item["top"][0]["label"] == item["truth"] for item in record["queries"])
    assert record["accuracy"]["right"] == right


def test_scores_join_both_branches_and_phases_are_in_order(own):
    root, ws, run = own
    model = model_of_run(run, ws)
    corpus = load_corpus(ws.dataset(run.dataset) / "texts.json")
    support = list(model.encode(labelled_clips(root / "support")))
    (query, *_) = model.encode(labelled_clips(root / "query"))
    found = {alpha: Labeller(model, support, corpus, alpha).predict(query) for alpha in (0.0, 0.3, 1.0)}
    by_label = {guess.label: guess for guess in found[0.3].top}
    joined = {k: g.video_video**0.3 * g.video_text**0.7 for k, g in by_label.items()}  # LGA, Eq. 5
    for label, guess in by_label.items():
        assert guess.score == pytest.approx(joined[label] / sum(joined.values()), abs=1e-4)
    assert all(guess.score == guess.video_video for guess in found[1.0].top)
    assert all(guess.score == guess.video_text for guess in found[0.0].top)
    videos = Labeller(model, support).predict(query)
    assert all(guess.video_text is None and guess.score == guess.video_video for guess in videos.top)
    phase = found[0.3].phase
    assert phase == sorted(phase) and set(phase) == {1, 2, 3} and len(found[0.3].texts) == 3
    assert found[0.3].frames == sorted(found[0.3].frames)


@pytest.mark.parametrize("method", ["clip_fsar", "otam", "task_adapter_pp"])
def test_other_methods_label_a_clip_that_is_in_the_support(world, own, method):
    root, _, _ = own
    run = world.run(method=method)
    from pipeline.actions.model import describe_run
    from pipeline.models.build import build_model

    model = ActionModel(describe_run(run, world.ws), build_model(run, world.ws, world.store))
    clips = labelled_clips(root / "support")
    support = list(model.encode(clips))[::3]  # one of each class
    labeller = Labeller(model, support)
    assert [labeller.predict(item).top[0].label for item in support] == [item.clip.label for item in support]


def test_a_class_with_fewer_clips_shows_them_again(own):
    root, ws, run = own
    model = model_of_run(run, ws)
    support = list(model.encode(labelled_clips(root / "support")))
    (query, *_) = model.encode(labelled_clips(root / "query"))
    alone = [support[0], *support[3:]]  # one, three, three
    repeated = [support[0]] * 3 + support[3:]
    assert Labeller(model, alone).predict(query).top == Labeller(model, repeated).predict(query).top


def test_features_are_written(own, tmp_path):
    root, ws, run = own
    count, bad = embed_clips(model_of_run(run, ws), labelled_clips(root / "query"), tmp_path / "f.npz")
    with np.load(tmp_path / "f.npz", allow_pickle=False) as file:
        assert count == 6 and not bad and file["features"].shape[:2] == (6, run.frames["number"])
        assert file["features"].dtype == np.float32 and len(set(file["labels"])) == 3 and str(file["run"]) == run.id


def test_a_run_is_chosen_or_the_candidates_are_named(own, tmp_path):
    _, ws, run = own
    assert choose_run(ws, method="lga") == run == choose_run(ws, run.id[:6])
    with pytest.raises(UserError, match=f"no trained few-shot run of the method 'otam'.*{run.id}"):
        choose_run(ws, method="otam")
    twice = Workspace(tmp_path)
    for seed in (0, 1):
        other = Run.model_validate({**run.model_dump(), "seed": seed})
        folder = twice.run(other.id)
        folder.mkdir(parents=True)
        (folder / "run.json").write_text(other.model_dump_json())
        (folder / "train.json").write_text("{}")
    with pytest.raises(UserError, match="2 trained runs fit.*\n.*seed 0.*\n.*seed 1"):
        choose_run(twice, method="lga")


def test_wrong_folders_are_one_line(own, tmp_path):
    root, ws, run = own
    with pytest.raises(UserError, match="there is no folder"):
        labelled_clips(tmp_path / "nowhere")
    (tmp_path / "support" / "empty").mkdir(parents=True)
    with pytest.raises(UserError, match="empty holds no clip"):
        labelled_clips(tmp_path / "support")
    with pytest.raises(UserError, match="holds no video"):
        loose_clips(tmp_path / "support")
    shutil.copytree(root / "query", tmp_path / "query")
    next((tmp_path / "query").iterdir()).rename(tmp_path / "query" / "unheard of")
    with pytest.raises(UserError, match="'unheard of' has no readable clip in the support"):
        asked = Asked(root / "support", tmp_path / "query", truth=True)
        predict_clips(model_of_run(run, ws), asked, tmp_path / "out")


def test_the_interval_of_a_proportion():
    assert proportion(10, 10) == pytest.approx((100.0, 72.2467, 100.0), abs=1e-3)  # n / (n + 1.96^2)
    value, low, high = proportion(100, 200)
    assert value == 50 and high - 50 == pytest.approx(50 - low) and high == pytest.approx(56.87, abs=0.02)
