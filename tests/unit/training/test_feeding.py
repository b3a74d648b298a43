"""A training whose frames travel as uint8, and are read ahead, is the training of the plain way."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny import OVERLAY, bare_plan

from benchmarks.pixels import changed, normalised
from pipeline.config import merge
from pipeline.datasets import loading
from pipeline.datasets.loading import loaders, use_loaders
from pipeline.errors import UserError
from pipeline.models.build import WEIGHTS, build_model, load_weights
from pipeline.models.few_shot.base import FewShotModel
from pipeline.models.pixels import Pixels
from pipeline.tasks.few_shot.episodes import EpisodeDataset
from pipeline.tasks.few_shot.scoring import encode_clips, split_clips
from pipeline.training.train import train_run

TRAIN = {"steps": 3, "validate_every": 3, "optimizer": "sgd", "learning_rate": 0.05}


@pytest.fixture(autouse=True)
def as_before(monkeypatch):
    monkeypatch.setattr(loading, "_asked", [0])


def _plain(frames, mean, std, colours=None):
    """Clips (V, T, h, w, 3) uint8 as `encode` takes them, each worked out on the host."""
    made = []
    for number, clip in enumerate(frames.numpy()):
        pixels = clip.astype(np.float32) / 255
        if colours is not None:
            grey, *rest = colours[number].tolist()
            pixels = changed(pixels, bool(grey), rest[:4], [int(change) for change in rest[4:]])
        made.append(normalised(pixels, mean, std))
    return torch.from_numpy(np.stack(made))


def _curve(ws, run):
    with (ws.run(run.id) / "curve.csv").open() as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


@pytest.mark.parametrize("jitter", [False, True])
def test_losses_weights_and_features_are_those_of_the_plain_way(world, tmp_path, monkeypatch, jitter):
    run = world.run(method="clip_fsar", train=TRAIN | {"jitter_queries": jitter, "flip": 0.5})
    found, clips = [], split_clips(world.store, "test")
    for name in ("here", "plain", "ahead"):
        ws = world.elsewhere(tmp_path / name)
        with monkeypatch.context() as patch:
            if name == "plain":
                _in_the_plain_way(patch)
            use_loaders(2 if name == "ahead" else 0)
            train_run(run, ws)
            features = encode_clips(run, load_weights(build_model(run, ws, world.store), run, ws), world.store, clips)
        found.append((_curve(ws, run), load_file(ws.run(run.id) / WEIGHTS), features))
    for losses, weights, features in found[1:]:
        assert losses == pytest.approx(found[0][0], abs=1e-5) and len(losses) == 3
        assert max(float((weights[name] - value).abs().max()) for name, value in found[0][1].items()) < 1e-5
        torch.testing.assert_close(features, found[0][2], atol=1e-5, rtol=1e-5)
    assert found[2][0] == found[0][0]  # who reads them changes not a bit


def _in_the_plain_way(patch):
    """Items hold float32 frames, worked out clip by clip where they are read."""
    item, backbone = EpisodeDataset.__getitem__, {}
    made = Pixels.__init__

    def remember(self, mean, std):
        made(self, mean, std)
        backbone["statistics"] = mean, std

    def plain(self, i):
        read = item(self, i)
        colours = read.pop("query_colours", None)
        read["support"] = _plain(read["support"], *backbone["statistics"])
        read["query"] = _plain(read["query"], *backbone["statistics"], colours)
        return read

    patch.setattr(Pixels, "__init__", remember)
    patch.setattr(EpisodeDataset, "__getitem__", plain)
    patch.setattr(FewShotModel, "pixels", lambda self, frames: _plain(frames, self.mean, self.std))


def test_frames_travel_as_bytes(world):
    from pipeline.tasks.kinds import task_of

    task = task_of(world.run(method="lga", train={"jitter_queries": True}), world.ws)
    model = task.build()
    items = task.items(model)
    item = items[0]
    frames = item["support"].nbytes + item["query"].nbytes
    assert item["support"].dtype == item["query"].dtype == torch.uint8 and frames == items.item_bytes
    batch = model.data_preprocessor({name: value[None] for name, value in item.items()}, True)
    assert batch["support"].dtype == torch.float32 and "query_colours" not in batch
    assert sum(batch[name].nbytes for name in ("support", "query")) == 4 * frames
    assert batch["query"].shape == (1, 3, 8, 3, 32, 32)


def test_how_items_are_read_is_no_part_of_a_run():
    def run(overlay=None, **train):
        plan = bare_plan(merge(OVERLAY, overlay or {}))
        return plan.cell({"dataset": "hmdb51", "method": "otam", "train": train}, 0, "the test").run

    assert run({"cluster": {"loaders": 4, "compile": True}}).id == run().id
    for overlay in (
        {"train": {"loader_workers": 2}},
        {"budgets": {"otam": {"train": {"loader_workers": 2}}}},
        {"methods": {"otam": {"train": {"loader_workers": 2}}}},
    ):
        with pytest.raises(UserError, match="train.loader_workers changes no number, .*; set cluster.loaders instead"):
            run(overlay)
    with pytest.raises(UserError, match="the test .*train.compile changes no number, .*; set cluster.compile instead"):
        run(compile=True)


def test_a_worker_is_prepared(tmp_path, monkeypatch):
    """It reads relative paths from where it was asked, for Ray gives it a folder of its own; slow numbers are zero."""
    from pipeline.config import Cluster
    from pipeline.training import ray_train

    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    (tmp_path / "asked").mkdir()
    settings = Cluster(loaders=3, threads=1).model_dump(include=ray_train.FOR_WORKERS)
    ray_train._prepare_worker(settings | {"folder": str(tmp_path / "asked")})
    assert Path.cwd() == tmp_path / "asked" and loaders(1000, 100)[0] == 3
    assert not (torch.full((8,), 1e-38) * 0.01).any()
    torch.set_flush_denormal(False)
    torch.set_num_threads(threads)
