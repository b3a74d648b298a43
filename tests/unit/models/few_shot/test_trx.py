"""TRX against released code, and against its formulas in loops."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from resnet_stub import BACKBONE, assert_gradients, by_class, episodes, randn, scramble
from torch.testing import assert_close

from pipeline.errors import UserError
from pipeline.models.few_shot.blocks import tuples as trx
from pipeline.models.few_shot.blocks.positions import PositionCode, sinusoid
from pipeline.models.few_shot.blocks.tuples import TemporalCrossTransformer, TupleLinear, frame_tuples
from pipeline.models.few_shot.trx import TRX

NAMES = {"key": "k_linear", "value": "v_linear", "norm": "norm_k"}


def _load(model, data, prefix):
    """Weights of the released class, under its names; its norm_v is never used."""
    state = {
        f"{ours}.{part}": torch.tensor(data[f"{prefix}{theirs}.{part}"])
        for ours, theirs in NAMES.items()
        for part in ("weight", "bias")
    }
    model.load_state_dict(state)
    return model.eval()


def _slow(model, support, query):
    """Distances (Q, N) of one episode, tuple by tuple."""
    frames, dim = query.shape[-2:]
    out, tuples = model.out_dim, list(itertools.combinations(range(frames), model.key.cardinality))

    def embed(video, layer):
        coded = []
        for t in range(frames):
            code = [0.1 * (math.sin, math.cos)[i % 2](t / 10000 ** ((i - i % 2) / dim)) for i in range(dim)]
            coded.append(video[t] + torch.tensor(code, dtype=video.dtype))
        return [layer.weight @ torch.cat([coded[t] for t in chosen]) + layer.bias for chosen in tuples]

    def normed(x):
        centred = (x - x.mean()) / torch.sqrt(x.var(unbiased=False) + 1e-5)
        return centred * model.norm.weight + model.norm.bias

    result = torch.zeros(len(query), len(support), dtype=query.dtype)
    for q, n in itertools.product(range(len(query)), range(len(support))):
        keys = [normed(k) for video in support[n] for k in embed(video, model.key)]
        values = [v for video in support[n] for v in embed(video, model.value)]
        for asked, wanted in zip(embed(query[q], model.key), embed(query[q], model.value), strict=True):
            score = torch.stack([normed(asked) @ key for key in keys]) / math.sqrt(out)
            weight = score.softmax(0)
            got = sum(w * v for w, v in zip(weight, values, strict=True))
            result[q, n] += ((wanted - got) ** 2).sum() / len(tuples)
    return result


@pytest.mark.parametrize(("variant", "sizes", "frames"), [("a", (2, 3), 8), ("b", (2, 3, 4), 5)])
@torch.no_grad()
def test_released_code(golden, variant, sizes, frames):
    data = golden("trx")
    support, query = (torch.tensor(data[f"in.{variant}_{k}"]) for k in ("support", "query"))
    labels, out = torch.tensor(data[f"in.{variant}_support_labels"]), {"a": 24, "b": 20}[variant]
    dim = query.shape[-1]
    model = TRX({**BACKBONE, "dim": dim}, sizes, out, frames).eval()
    for i, (size, transformer) in enumerate(zip(sizes, model.transformers, strict=True)):
        _load(transformer, data, f"w.{variant}.transformers.{i}.")
        pe = torch.tensor(data[f"w.{variant}.transformers.{i}.pe.pe"])[0]
        assert_close(0.1 * sinusoid(len(pe), dim), pe, rtol=0, atol=1e-7)
        logits = -transformer(by_class(support, labels), query[None])[0]
        assert_close(logits, torch.tensor(data[f"out.{variant}_logits_tuple{size}"]), rtol=1e-5, atol=1e-5)
    scores = model.match(query[None], model.prototypes(by_class(support, labels)))
    assert_close(scores["vv"][0], torch.tensor(data[f"out.{variant}_logits"]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("count", "way", "shots", "queries", "frames", "size"), [(2, 3, 2, 2, 4, 2), (1, 2, 3, 1, 4, 3), (3, 1, 1, 2, 3, 1)]
)
@torch.no_grad()
def test_formulas_in_loops(count, way, shots, queries, frames, size):
    model = scramble(TemporalCrossTransformer(6, 5, size, frames))
    support, query = randn(count, way, shots, frames, 6), randn(count, queries, frames, 6, seed=1)
    got = model(support, query)
    assert got.shape == (count, queries, way)
    for e in range(count):
        assert_close(got[e], _slow(model, support[e], query[e]), rtol=1e-6, atol=1e-6)


@torch.no_grad()
def test_chunks_of_episodes_and_other_queries_change_nothing(monkeypatch):
    model = scramble(TemporalCrossTransformer(6, 5, 2, 4))
    support, query = randn(5, 3, 2, 4, 6), randn(5, 4, 4, 6, seed=1)
    whole = model(support, query)
    assert torch.equal(whole, model(support, query))  # no dropout in evaluation
    assert_close(model(support, query[:, :1]), whole[:, :1])
    order = torch.randperm(2)
    assert_close(model(support[:, :, order], query), whole)
    monkeypatch.setattr(trx, "CHUNK", 1)
    assert_close(model(support, query), whole)


def test_tuples_and_their_linear_map():
    tuples = frame_tuples(8, 3)
    assert tuples.shape == (56, 3) and (tuples.diff(dim=1) > 0).all() and len(tuples.unique(dim=0)) == 56
    layer, frames = TupleLinear(4, 5, 3), torch.randn(2, 8, 4)
    plain = torch.nn.functional.linear(frames[:, tuples].flatten(-2), layer.weight, layer.bias)
    assert_close(layer(frames, tuples), plain)
    with pytest.raises(UserError, match="tuples of 4 out of 3 frames"):
        frame_tuples(3, 4)


def test_a_video_is_told_from_its_reverse_and_wrong_frames_are_refused():
    model = scramble(TemporalCrossTransformer(6, 5, 2, 4))
    video = randn(1, 1, 4, 6)
    same, back = (model(video[:, :, None], v).item() for v in (video, video.flip(2)))
    assert same != pytest.approx(back, rel=1e-3)
    with pytest.raises(UserError, match="a video has 5 frames, the model is built for 4"):
        model(randn(1, 1, 1, 4, 6), randn(1, 1, 5, 6))


def test_training_reaches_every_parameter_and_drops_frames():
    torch.manual_seed(0)
    model = TRX(BACKBONE, (2, 3), 12, frames=4, normalise="none")
    assert model.mean == (0.0, 0.0, 0.0)
    losses = model.loss(**episodes())
    assert set(losses) == {"loss_matching", "accuracy"}
    assert_gradients(model, losses)
    code = PositionCode(16).train()
    assert not torch.equal(code(torch.ones(2, 4, 16)), code(torch.ones(2, 4, 16)))
    with pytest.raises(UserError, match="unknown matcher 'otam' in method TRX"):
        model.match(torch.zeros(1, 1, 4, 16), torch.zeros(1, 2, 1, 4, 16), None, "otam")
