"""HyRSM and HyRSM++ against released code, and against their formulas in loops."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from resnet_stub import BACKBONE, assert_gradients, by_class, episodes, randn, scramble
from torch.testing import assert_close

from pipeline.errors import UserError
from pipeline.models.few_shot.blocks.positions import sinusoid
from pipeline.models.few_shot.hyrsm import HyRSM, HyRSMPlusPlus, coherence_loss

NAMES = {
    "frames.norm": "temporal_atte_before.norm", "frames.project": "temporal_atte_before.fn.to_qkv",
    "frames.out.0": "temporal_atte_before.fn.to_out.0", "videos.query": "temporal_atte.w_qs",
    "videos.key": "temporal_atte.w_ks", "videos.value": "temporal_atte.w_vs", "videos.norm": "temporal_atte.layer_norm",
    "videos.out": "temporal_atte.fc", "join": "layer2.0", "classifier": "classification_layer",
}  # fmt: skip


def _released(data, **kwargs):
    model = HyRSM({**BACKBONE, "dim": 64}, base_classes=11, **kwargs)
    for ours, theirs in NAMES.items():
        for name, parameter in model.get_submodule(ours).named_parameters():
            parameter.data = torch.tensor(data[f"w.{theirs}.{name}"]).reshape(parameter.shape)
    return model.eval()


@pytest.mark.parametrize(
    ("case", "shots", "kwargs"),
    [
        ("shot1_default", 1, {}),
        ("shot1_default", 1, {"shots": "distance"}),  # the same thing with one shot
        ("shot1_k100", 1, {"position_a": 2048, "position_b": 0.01}),
        ("shot1_head4", 1, {"heads": 4}),
        ("shot5", 3, {}),
    ],
)
@torch.no_grad()
def test_released_code(golden, case, shots, kwargs):
    data = golden("hyrsm")
    model = _released(data, **kwargs)
    pe = torch.tensor(data["w.pe.pe"])[0]
    assert_close(sinusoid(len(pe), 64, stretched=True), pe, rtol=0, atol=1e-7)
    support, query = (model.frames(torch.tensor(data[f"in.{k}"])) for k in (f"support_{shots}shot", "query"))
    logits = model.classifier(torch.cat((support, query))).flatten(0, 1)
    assert_close(logits, torch.tensor(data[f"out.{case}_class_logits"]), rtol=1e-5, atol=1e-5)
    labels = torch.tensor(data[f"in.support_labels_{shots}shot"])
    prototypes = model.prototypes(by_class(support, labels))
    got = model.match(query[None], prototypes)["vv"][0]
    assert_close(got, torch.tensor(data[f"out.{case}_logits"]), rtol=1e-5, atol=2e-5)


@torch.no_grad()
def test_related_features_of_released_code(golden):
    data = golden("hyrsm")
    model = _released(data)
    support, query = (model.frames(torch.tensor(data[f"in.{k}"])) for k in ("support_1shot", "query"))
    code = model.frames.position(torch.tensor(data["in.query"]))
    assert_close(code, torch.tensor(data["out.shot1_default_pe_applied_query"]))
    before = torch.tensor(data["out.shot1_default_temporal_atte_before_query"]).relu()
    assert_close(query, before, rtol=1e-5, atol=1e-5)
    asked, supports = model.related(query[None], support[None])
    want = (torch.tensor(data[f"out.shot1_default_{k}"]) for k in ("query_features", "support_features_query0"))
    for got, value in zip((asked[0], torch.stack(list(supports))[:, 0, 0]), want, strict=True):
        assert_close(got, value, rtol=1e-5, atol=1e-5)


def _attention(q, k, v, heads):
    """Multi-head attention of rows, head by head and row by row."""
    width, out = q.shape[1] // heads, torch.zeros_like(q)
    for h, i in itertools.product(range(heads), range(len(q))):
        part = slice(h * width, (h + 1) * width)
        weight = torch.stack([q[i, part] @ row[part] / math.sqrt(width) for row in k]).softmax(0)
        out[i, part] = sum(w * row[part] for w, row in zip(weight, v, strict=True))
    return out


def _slow_related(model, query, supports):
    """Related query frames (T, D) and support frames (M, T, D) of one query and one task."""
    tokens = torch.stack([video.mean(0) for video in (*supports, query)])
    layer = model.videos
    attended = _attention(*(tokens @ w.weight.T for w in (layer.query, layer.key, layer.value)), layer.heads)
    learnt = layer.norm(attended @ layer.out.weight.T + layer.out.bias + tokens).clamp_min(0)
    join = [
        torch.stack([model.join.weight @ torch.cat((frame, token)) + model.join.bias for frame in video])
        for video, token in zip((*supports, query), learnt, strict=True)
    ]
    return join[-1], torch.stack(join[:-1])


def _slow_bimhm(a, b):
    d = [[1 - (x @ y / (x.norm() * y.norm())).item() for y in b] for x in a]
    return sum(map(min, d)) + sum(map(min, zip(*d, strict=True)))


@pytest.mark.parametrize("mode", ["prototype", "distance"])
@pytest.mark.parametrize(("way", "shots", "queries", "frames"), [(3, 2, 2, 4), (2, 3, 1, 3)])
@torch.no_grad()
def test_formulas_in_loops(mode, way, shots, queries, frames):
    model = scramble(HyRSM({**BACKBONE, "dim": 8}, 7, heads=2, shots=mode))
    support, query = randn(2, way, shots, frames, 8), randn(2, queries, frames, 8, seed=1)
    coded = model.frames(query[0])
    for video, got in zip(query[0], coded, strict=True):
        x = math.sqrt(0.8) * video + sinusoid(frames, 8, stretched=True)
        q, k, v = (model.frames.norm(x) @ model.frames.project.weight.T).chunk(3, dim=1)
        attended = _attention(q, k, v, 2) @ model.frames.out[0].weight.T + model.frames.out[0].bias
        assert_close(got, (x + attended).clamp_min(0), rtol=1e-6, atol=1e-6)
    scores = model.match(query, model.prototypes(support))["vv"]
    assert scores.shape == (2, queries, way)
    for e, q in itertools.product(range(2), range(queries)):
        held = support[e].mean(1) if mode == "prototype" else support[e].flatten(0, 1)
        asked, related = _slow_related(model, query[e, q], held)
        distances = torch.tensor([_slow_bimhm(asked, video) for video in related], dtype=torch.float64)
        assert_close(scores[e, q], -distances.reshape(way, -1).mean(1), rtol=1e-6, atol=1e-6)


@torch.no_grad()
def test_videos_and_queries_alone():
    model = scramble(HyRSM(BACKBONE, 7))
    clips = randn(6, 4, 3, 32, 32)
    whole = model.encode(clips)
    assert whole.shape == (6, 4, 16)
    assert_close(model.encode(clips[:2]), whole[:2])
    prototypes, query = model.prototypes(whole[:4].reshape(1, 2, 2, 4, 16)), whole[None, 4:]
    both = model.match(query, prototypes)["vv"]
    assert torch.equal(both, model.match(query, prototypes, None, "bi_mhm")["vv"])
    assert_close(model.match(query[:, 1:], prototypes)["vv"], both[:, 1:])


def test_settings_are_checked():
    with pytest.raises(UserError, match="unknown shots 'prototypes' in method HyRSM; did you mean 'prototype'"):
        HyRSM(BACKBONE, 7, shots="prototypes")
    with pytest.raises(UserError, match="16 is not a multiple of the 3 attention heads"):
        HyRSM(BACKBONE, 7, heads=3)
    with pytest.raises(UserError, match="unknown matcher 'otam' in method HyRSMPlusPlus"):
        HyRSMPlusPlus(BACKBONE, 7).match(torch.zeros(1, 1, 4, 16), torch.zeros(1, 2, 1, 4, 16), None, "otam")


@pytest.mark.parametrize("mode", ["prototype", "distance"])
@pytest.mark.parametrize("kind", [HyRSM, HyRSMPlusPlus])
def test_training_reaches_every_parameter(kind, mode):
    torch.manual_seed(0)
    model = kind(BACKBONE, base_classes=7, shots=mode)
    losses = model.loss(**episodes())
    further = {"loss_coherence"} if kind is HyRSMPlusPlus else set()
    assert set(losses) == {"loss_matching", "loss_class", "accuracy"} | further
    assert_gradients(model, losses)
    assert "coherence" not in model.eval().match(torch.ones(1, 1, 4, 16), torch.ones(1, 2, 1, 4, 16))


def test_frame_classifier_sees_the_class_of_each_video():
    model, batch = HyRSM(BACKBONE, 7, class_weight=0.5).eval(), episodes()
    got = model.loss(**batch)["loss_class"]
    losses = []
    for e in range(2):
        for part in ("support", "query"):
            for clip, label in zip(batch[part][e], batch[f"{part}_labels"][e], strict=True):
                logits = model.classifier(model.encode(clip[None])[0])
                losses += [F.cross_entropy(row, batch["class_ids"][e, label]) for row in logits]
    assert_close(got, 0.5 * torch.stack(losses).mean())
    assert HyRSM(BACKBONE, 7, class_weight=0).classifier is None


@pytest.mark.parametrize(("window", "balance", "push"), [(1, 51.0, 20.0), (3, 23.0, 10.0)])
def test_coherence_in_loops(window, balance, push):
    frames = randn(2, 3, 6, 5) + 1
    total = 0.0
    for video in frames.flatten(0, 1):
        for i, j in itertools.product(range(6), range(6)):
            d = 1 - (video[i] @ video[j] / (video[i].norm() * video[j].norm())).item()
            gap = abs(i - j)
            margin = 1 - math.exp(-((gap - window) ** 2) / balance)
            total += d / (gap**2 + 1) if gap <= window else push * max(margin - d, 0)
    assert coherence_loss(frames, window, balance, push).item() == pytest.approx(total / (6 * 36), rel=1e-6)


def test_coherence_counts_supports_once_for_every_query():
    model, batch = HyRSMPlusPlus(BACKBONE, 7, coherence_weight=0.5, heads=2), episodes()
    for module in model.modules():  # training mode, but nothing random
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    model.videos.train(False)
    got = model.loss(**batch)["loss_coherence"]
    supports, queries = [], []
    for e in range(2):
        held = model.prototypes(by_class(model.encode(batch["support"][e]), batch["support_labels"][e]))[0, :, 0]
        for query in model.encode(batch["query"][e]):
            asked, related = _slow_related(model, query, held)
            queries.append(asked)
            supports += list(related)
    want = sum(coherence_loss(torch.stack(videos), 1, 51.0, 20.0) for videos in (supports, queries))
    assert_close(got, 0.5 * want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("apart", [False, True])
def test_supports_and_queries_have_statistics_of_their_own(apart):
    """As the released code, in which they pass the network one after the other."""
    model, norm, seen = HyRSM({**BACKBONE, "dim": 16}, base_classes=7), torch.nn.BatchNorm2d(3), {}
    encode = model.encode

    def normed(clips):
        return encode(norm(clips.flatten(0, 1)).unflatten(0, clips.shape[:2])), None

    def relate_queries(queries):
        seen["queries"] = queries
        return queries

    model.encode_training, model.relate_queries, model.apart = normed, relate_queries, apart
    given = episodes(count=1, way=2, shots=1, queries=4)
    norm.eval()
    model.eval()
    torch.manual_seed(0)
    model.loss(**given)
    still = seen["queries"]
    norm.train()
    model.loss(**given | {"support": given["support"] + 9})  # only the statistics of all videos know of it
    of_all = seen["queries"]
    assert norm.num_batches_tracked == (2 if apart else 1)
    assert torch.allclose(of_all, still, atol=0.2) is apart
