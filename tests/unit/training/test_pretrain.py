"""Pretraining of nano CLIP and of nano ResNet, and of words for a frozen image tower, on a toy of four colours."""

from __future__ import annotations

import json
import math
from functools import partial

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pipeline.errors import UserError
from pipeline.experiment import Asset
from pipeline.models.backbones.clip import CLIPBackbone
from pipeline.models.backbones.locked_clip import LockedCLIP
from pipeline.models.backbones.resnet import NANO_RESNET, ResNetBackbone
from pipeline.models.semi.timesformer import ElementTimeSformer
from pipeline.stages import pretrain_backbone
from pipeline.training import pretrain as module
from pipeline.training.pretrain import align, contrastive_loss, pretrain, pretrain_classifier
from pipeline.workspace import Workspace

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (40, 50, 220), "yellow": (220, 210, 40)}
SMALL = {"width": 32, "mlp_width": 64, "layers": 3, "image_size": 32, "patch_size": 8, "projection_dim": 32}
SMALL_TEXT = {"width": 32, "mlp_width": 64, "layers": 2}
SMALL_RESNET = {"width": 4}
SMALL_VIT = {"width": 32, "depth": 2, "heads": 4, "patch": 8}
BOTH = pytest.mark.parametrize(
    "train",
    [
        partial(pretrain, model=SMALL),
        partial(align, image_size=32, width=8, model=SMALL_TEXT),
        partial(pretrain_classifier, image_size=32, model=SMALL_RESNET),
        partial(pretrain_classifier, kind="vit", words=True, image_size=32, model=SMALL_VIT),
    ],
    ids=["clip", "locked", "resnet", "vit"],
)


@pytest.fixture(autouse=True)
def colours_for_eyes(monkeypatch):
    """No package with weights is needed: the image tower of a locked CLIP is `Eyes`."""
    monkeypatch.setattr("pipeline.models.backbones.locked_clip.EfficientNetBackbone", Eyes)


class Store:
    """Squares of a colour on noise, in memory, with what pretraining needs of a frame store."""

    def __init__(self, colours=tuple(COLOURS), clips=10, frames=6, splits=("train",)):
        rng = np.random.default_rng(0)
        self.clips, self.labels, self.splits, self.videos = [], [], [], []
        for name in colours:
            for i in range(clips):
                video = rng.integers(0, 60, (frames, 36, 36, 3)).astype(np.uint8)
                y, x = rng.integers(0, 20, 2)
                video[:, y : y + 14, x : x + 14] = COLOURS[name]
                self.clips.append(f"{name}_{i}")
                self.labels.append(name)
                self.splits.append(splits[i % len(splits)])
                self.videos.append(video)
        self.read_clips: set[int] = set()

    def classes(self, split):
        return sorted({name for name, of in zip(self.labels, self.splits, strict=True) if of == split})

    def n_frames(self, i):
        return len(self.videos[i])

    def read(self, i, positions):
        self.read_clips.add(i)
        return self.videos[i][np.asarray(positions)]


class Corpus:
    """Sentences by class name."""

    def label(self, name):
        return f"{name} square"

    def atomic(self, name, count):
        return [f"a {name} square in part {word}" for word in ("one", "two", "three")[:count]]

    def global_text(self, name):
        return f"The picture shows a {name} square in front of dark noise."


class Eyes(torch.nn.Module):
    """An image tower that sees the mean colour of each of 16 places."""

    dim, mean, std = 48, (0.5,) * 3, (0.5,) * 3

    def __init__(self, source):
        super().__init__()
        self.source = source

    def encode_frames(self, x):
        return torch.nn.functional.adaptive_avg_pool2d(x.flatten(0, 1), 4).flatten(1).unflatten(0, x.shape[:2])

    def save(self, folder):
        folder.mkdir(parents=True)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Folder, report and losses of a short training."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("pretrain") / "nano"
    losses = []
    report = pretrain(
        [(Store(), Corpus())], folder, steps=80, batch=32, held_out=0.2, model=SMALL,
        progress=lambda step, steps, loss: losses.append(loss),
    )  # fmt: skip
    return folder, report, losses


def test_learns(trained):
    _, report, losses = trained
    assert len(losses) == 80
    assert np.mean(losses[-8:]) < np.mean(losses[:8]) - 0.5
    assert report["retrieval"]["clips"] == 8 and report["retrieval"]["chance"] == 0.25
    assert report["retrieval"]["top1"] >= 0.75


def test_folder_is_complete_and_loads(trained):
    folder, report, _ = trained
    names = {path.name for path in folder.iterdir()}
    wanted = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "pretrain.json"}
    assert names == wanted and [path.name for path in folder.parent.iterdir()] == ["nano"]
    assert json.loads((folder / "pretrain.json").read_text()) == report
    backbone = CLIPBackbone(folder)
    image = torch.zeros(1, 2, 3, 32, 32)
    assert backbone.encode_frames(image).shape == (1, 2, 32) and backbone.encode_text(["red"]).shape == (
        1,
        32,
    )


def test_words_never_seen_say_nothing(trained):
    """A word of the vocabulary without a sentence and a word outside it give the same feature."""
    backbone = CLIPBackbone(trained[0])
    known, unknown = backbone.encode_text(["a red video", "a red zeppelin"])
    assert not torch.equal(*backbone.tokenize(["a red video", "a red zeppelin"]))
    torch.testing.assert_close(known, unknown)


def test_resnet_learns(tmp_path):
    losses = []
    report = pretrain_classifier(
        [(Store(), Corpus())], tmp_path / "nano", steps=60, batch=32, held_out=0.2, image_size=32, model=SMALL_RESNET,
        progress=lambda step, steps, loss: losses.append(loss),
    )  # fmt: skip
    assert len(losses) == 60 and report["loss"] == pytest.approx(np.mean(losses[-6:]))
    assert report["loss"] < np.mean(losses[:6]) - 0.5  # log 12 at the start; thirds of a clip look the same: log 3
    assert report["recognition"]["clips"] == 8 and report["recognition"]["chance"] == 0.25
    assert report["recognition"]["top1"] >= 0.75
    names = {path.name for path in (tmp_path / "nano").iterdir()}
    assert names == {"config.json", "model.safetensors", "pretrain.json"}
    assert json.loads((tmp_path / "nano" / "pretrain.json").read_text()) == report
    backbone = ResNetBackbone(tmp_path / "nano").eval()
    assert backbone.architecture == NANO_RESNET | SMALL_RESNET
    assert backbone.encode_frames(torch.zeros(1, 2, 3, 32, 32)).shape == (1, 2, 32)
    assert backbone.resnet.conv1.bn.num_batches_tracked == 60


def test_vit_learns_and_its_parts_over_time_stay_new(tmp_path):
    settings = {"kind": "vit", "words": True, "batch": 32, "held_out": 0.2, "image_size": 32, "model": SMALL_VIT}
    report = pretrain_classifier([(Store(), Corpus())], tmp_path / "nano", steps=60, **settings)
    assert report["recognition"]["clips"] == 8 and report["recognition"]["top1"] >= 0.75
    names = {path.name for path in (tmp_path / "nano").iterdir()}
    assert names == {"config.json", "model.safetensors", "pretrain.json"}
    torch.manual_seed(1)
    vit = ElementTimeSformer(tmp_path / "nano", [2, 4]).eval()
    assert vit.architecture == SMALL_VIT | {"image_size": 32}
    saved = load_file(tmp_path / "nano" / "model.safetensors")
    assert saved.keys() == vit.image_parameters().keys()
    assert all(torch.equal(value, saved[name]) for name, value in vit.image_parameters().items())
    assert all(not block.temporal_fc.weight.any() for block in vit.blocks)
    # A clip of one picture is that picture.
    one = ElementTimeSformer(tmp_path / "nano", [1]).eval()
    frame = torch.rand(1, 1, 3, 32, 32)
    torch.testing.assert_close(vit(frame.expand(1, 4, 3, 32, 32), 1), one(frame))


def test_unknown_kind(tmp_path):
    with pytest.raises(UserError, match="did you mean 'vit'"):
        pretrain_classifier([(Store(), Corpus())], tmp_path / "x", kind="vot")


def test_resnet_of_several_sets(tmp_path):
    stores = [Store(("red", "green"), clips=4), Store(("blue", "yellow", "red"), clips=4)]
    report = pretrain_classifier(
        [(store, Corpus()) for store in stores], tmp_path / "x", steps=2, batch=8, held_out=0.25, image_size=32,
        model=SMALL_RESNET,
    )  # fmt: skip
    assert report["settings"]["classes"] == [["green", "red"], ["blue", "red", "yellow"]]
    assert report["recognition"]["clips"] == 5
    assert report["recognition"]["chance"] == pytest.approx((2 / 2 + 3 / 3) / 5)


def load_vit(folder):
    return ElementTimeSformer(folder, [1])


@pytest.mark.parametrize(
    ("kind", "loads"),
    [("resnet", ResNetBackbone), ("vit", load_vit), ("locked_clip", LockedCLIP), (None, CLIPBackbone)],
)
def test_stage_trains_the_kind_that_the_backbone_has(tmp_path, monkeypatch, kind, loads):
    monkeypatch.setattr("pipeline.datasets.frames.FrameStore", lambda folder: Store(clips=2))
    monkeypatch.setattr("pipeline.text.corpus.load_corpus", lambda path: Corpus())
    spec = {"sources": ["set"], "stores": ["frames"], "texts": [""], "steps": 1, "batch": 4}
    small = {"resnet": SMALL_RESNET, "vit": SMALL_VIT, "locked_clip": SMALL_TEXT}
    spec |= {"kind": kind, "model": small[kind], "image_size": 32} if kind else {"model": SMALL}
    spec |= {"width": 32} if kind == "locked_clip" else {}
    asset = Asset(name="nano", spec=spec)
    config = pretrain_backbone(asset, Workspace(tmp_path), 1)
    assert config == tmp_path / "backbones" / asset.key / "config.json"
    assert loads(config.parent).dim == 32


@pytest.mark.parametrize(
    ("spec", "message"), [({"kind": "resent"}, "did you mean 'resnet'"), ({"stepz": 3}, "did you mean 'steps'")]
)
def test_stage_names_what_it_does_not_know(tmp_path, spec, message):
    asset = Asset(name="nano", spec={"sources": [], "stores": [], "texts": [], **spec})
    with pytest.raises(UserError, match=message):
        pretrain_backbone(asset, Workspace(tmp_path), 1)


def _weights(folder):
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*.safetensors")))


def test_words_for_eyes_that_stay_as_they_are(tmp_path):
    losses = []
    report = align(
        [(Store(), Corpus())], tmp_path / "locked", steps=60, batch=32, held_out=0.2, image_size=32, width=8,
        model=SMALL_TEXT, progress=lambda step, steps, loss: losses.append(loss),
    )  # fmt: skip
    assert len(losses) == 60 and np.mean(losses[-6:]) < np.mean(losses[:6]) - 0.5
    assert report["retrieval"]["clips"] == 8 and report["retrieval"]["top1"] >= 0.75
    assert sorted(path.name for path in (tmp_path / "locked").iterdir()) == [
        "config.json", "image", "pretrain.json", "projection.safetensors", "text",
    ]  # fmt: skip
    backbone = LockedCLIP(tmp_path / "locked").train()
    assert backbone.image.source == tmp_path / "locked" / "image" and not backbone.training
    assert not [name for name, value in backbone.named_parameters() if value.requires_grad]
    store, red = Store(), backbone.encode_text(["red square"])
    frames = torch.from_numpy(np.stack(store.videos)[:, ::3, 2:34, 2:34]).permute(0, 1, 4, 2, 3) / 127.5 - 1
    seen = backbone.encode_frames(frames)
    assert seen.shape == (40, 2, 8) and seen.mean((0, 1)).abs().max() < 2  # what all frames share is taken away
    assert seen.norm(dim=-1).mean() == pytest.approx(10, rel=0.2) and red.norm() == pytest.approx(10, rel=0.2)
    likest = torch.nn.functional.cosine_similarity(seen.mean(1), red).topk(10).indices
    assert [store.labels[i] for i in likest].count("red") >= 8


def test_a_locked_clip_that_is_not_whole(tmp_path):
    with pytest.raises(UserError, match=r"80 frames of width 48 give no 64 directions; lower width"):
        align([(Store(frames=2), Corpus())], tmp_path, held_out=0, image_size=32, width=64, model=SMALL_TEXT)
    with pytest.raises(UserError, match=r"holds no image tower \(image/\)"):
        LockedCLIP(tmp_path)


@BOTH
def test_same_seed_same_weights(tmp_path, train):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        torch.manual_seed(len(name) + seed * 7)  # the global generator has no say
        before = torch.get_rng_state()
        train([(Store(clips=4), Corpus())], tmp_path / name, steps=3, batch=8, seed=seed)
        assert torch.equal(before, torch.get_rng_state())
    assert _weights(tmp_path / "a") == _weights(tmp_path / "b") != _weights(tmp_path / "c")


def test_several_sets_give_one_model(tmp_path):
    first, second = Store(("red", "green"), clips=4), Store(("blue", "yellow", "red"), clips=4)
    report = pretrain(
        [(first, Corpus()), (second, Corpus())], tmp_path / "x", steps=2, batch=8, held_out=0.25, model=SMALL
    )
    assert report["settings"]["classes"] == [["green", "red"], ["blue", "red", "yellow"]]
    assert report["retrieval"]["clips"] == 5
    assert report["retrieval"]["chance"] == pytest.approx((2 / 2 + 3 / 3) / 5)
    tokenizer = CLIPBackbone(tmp_path / "x").tokenizer
    assert {"green", "yellow"} <= tokenizer.get_vocab().keys()


@BOTH
def test_novel_classes_are_never_read(tmp_path, train):
    store = Store()
    store.splits = ["train" if name in ("red", "blue") else "test" for name in store.labels]
    report = train([(store, Corpus())], tmp_path / "x", steps=1, batch=4)
    assert {store.labels[i] for i in store.read_clips} == {"red", "blue"}
    assert report["settings"]["classes"] == [["blue", "red"]]
    if train.func is align:
        assert "yellow" not in LockedCLIP(tmp_path / "x").tokenizer.get_vocab()
    if train.func is pretrain:
        assert "yellow" not in CLIPBackbone(tmp_path / "x").tokenizer.get_vocab()


def test_frames_in_memory_are_bounded(tmp_path):
    report = pretrain([(Store(), Corpus())], tmp_path / "x", steps=1, batch=4, max_frames=90, model=SMALL)
    assert report["frames"] == 80  # 40 clips, two frames each


@BOTH
@pytest.mark.parametrize(
    ("arguments", "splits", "message"),
    [
        ({"split": "test"}, ("train",), "only base classes"),
        ({}, ("test",), "no clips of split"),
        ({}, ("train", "test"), "'blue' is in split 'train' and in another"),
    ],
)
def test_refuses_anything_but_base_classes(tmp_path, train, arguments, splits, message):
    with pytest.raises(UserError, match=message):
        train([(Store(clips=2, splits=splits), Corpus())], tmp_path / "x", **arguments)
    assert not any(tmp_path.iterdir())


@BOTH
def test_divergence_is_reported(tmp_path, train):
    with pytest.raises(UserError, match="diverged at step"):
        train([(Store(clips=2), Corpus())], tmp_path / "x", steps=3, batch=4, lr=math.inf)
    assert not any(tmp_path.iterdir())


def _short(folder, **arguments):
    pretrain([(Store(clips=2), Corpus())], folder, steps=2, batch=4, model=SMALL, **arguments)


def test_interruption_while_training_leaves_nothing(tmp_path):
    def stop(step, steps, loss):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _short(tmp_path / "x", progress=stop)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("moment", [1, 2])
def test_interruption_while_writing_keeps_the_old_folder(tmp_path, monkeypatch, moment):
    folder = tmp_path / "x"
    _short(folder)
    old = _weights(folder)
    replace, calls = module.os.replace, []

    def interrupted(source, target):
        calls.append(target)
        if len(calls) == moment:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(module.os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        _short(folder, seed=5)
    assert _weights(folder) == old and [path.name for path in tmp_path.iterdir()] == ["x"]
    monkeypatch.undo()
    _short(folder, seed=5)
    assert _weights(folder) != old


def test_loss_counts_every_true_sentence_as_positive():
    """Two frames of one sentence, one of another; against sums written out by hand."""
    logits = torch.tensor([[2.0, 0.5], [1.0, -1.0], [0.0, 3.0]])
    positive = torch.tensor([[True, False], [True, False], [True, True]])
    rows = [2 - math.log(math.exp(2) + math.exp(0.5)), 1 - math.log(math.exp(1) + math.exp(-1))]
    rows.append((0 + 3) / 2 - math.log(1 + math.exp(3)))
    columns = [(2 + 1 + 0) / 3 - math.log(math.exp(2) + math.exp(1) + 1)]
    columns.append(3 - math.log(math.exp(0.5) + math.exp(-1) + math.exp(3)))
    expected = -(sum(rows) / 3 + sum(columns) / 2) / 2
    assert contrastive_loss(logits, positive).item() == pytest.approx(expected, abs=1e-6)


def test_unknown_field_of_a_caption(tmp_path):
    with pytest.raises(UserError, match=r"unknown field 'labels'.*captions"):
        _short(tmp_path / "out", captions=["{labels}"])
    assert not any(tmp_path.iterdir())


def test_captions_are_what_frames_are_paired_with(tmp_path):
    captions = ["{label}", "{label}: {atomic}"]
    report = pretrain([(Store(clips=2), Corpus())], tmp_path, steps=1, batch=4, model=SMALL, captions=captions)
    assert report["settings"]["captions"] == captions
    vocabulary = json.loads((tmp_path / "tokenizer.json").read_text())["model"]["vocab"]
    assert "part" in vocabulary and "dark" not in vocabulary
