"""STRM against its formulas in loops; the second head, trained or not."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from resnet_stub import BACKBONE, assert_gradients, episodes, randn, scramble
from torch.testing import assert_close

from pipeline.errors import UserError
from pipeline.models.few_shot.blocks import tuples as trx
from pipeline.models.few_shot.blocks.patch_enrichment import FrameMixer, NearestTuple, PatchEnrichment
from pipeline.models.few_shot.blocks.positions import sinusoid
from pipeline.models.few_shot.strm import STRM


def _model(**kwargs):
    torch.manual_seed(0)
    return STRM(BACKBONE, out_dim=12, frames=4, **kwargs)


def _apply(layers, x):
    """A chain of Linear and ReLU on one vector."""
    for layer in layers:
        x = layer.weight @ x + layer.bias if isinstance(layer, torch.nn.Linear) else x.clamp_min(0)
    return x


@torch.no_grad()
def test_patches_see_each_other():
    model, patches = scramble(PatchEnrichment(6)), randn(2, 5, 6)
    got = model(patches)
    for b in range(2):
        coded = patches[b] + 0.1 * sinusoid(5, 6)
        q, k, v = ([_apply([layer], x) for x in coded] for layer in (model.query, model.key, model.value))
        for i in range(5):
            weight = torch.stack([q[i] @ k[j] for j in range(5)]).softmax(0)  # no scale
            x = coded[i] + model.gamma * sum(w * value for w, value in zip(weight, v, strict=True))
            assert_close(got[b, i], x + _apply(model.bottleneck, x), rtol=1e-6, atol=1e-6)


@torch.no_grad()
def test_patch_attention_starts_at_nothing():
    model = PatchEnrichment(6).eval()
    model.value.bias += 5
    other = PatchEnrichment(6).eval()
    other.bottleneck.load_state_dict(model.bottleneck.state_dict())
    patches = randn(2, 5, 6).float()
    assert model.gamma == 0 and torch.equal(model(patches), other(patches))


@torch.no_grad()
def test_frames_then_channels_are_mixed():
    model, video = scramble(FrameMixer(6, 4)), randn(2, 4, 6)
    got = model(video)
    for b in range(2):
        coded = video[b] + 0.1 * sinusoid(4, 6)
        mixed = torch.stack([coded[:, c] + _apply(model.across_frames, coded[:, c]) for c in range(6)], dim=1)
        for t in range(4):
            assert_close(got[b, t], mixed[t] + _apply(model.across_channels, mixed[t]), rtol=1e-6, atol=1e-6)
    with pytest.raises(UserError, match="a video has 3 frames"):
        model(randn(2, 3, 6))


@pytest.mark.parametrize(("way", "shots", "queries", "size"), [(3, 2, 2, 2), (2, 1, 3, 3)])
@torch.no_grad()
def test_second_head_averages_the_nearest_tuples(monkeypatch, way, shots, queries, size):
    model = scramble(NearestTuple(6, size, frames=4))
    support, query = randn(2, way, shots, 4, 6), randn(2, queries, 4, 6, seed=1)
    got = model(support, query)
    tuples = list(itertools.combinations(range(4), size))

    def embed(video):
        return [_apply([model.project, torch.nn.ReLU()], torch.cat([video[t] for t in chosen])) for chosen in tuples]

    for e, q, n in itertools.product(range(2), range(queries), range(way)):
        held = [k for video in support[e, n] for k in embed(video)]
        nearest = [min((asked - k).norm().item() for k in held) for asked in embed(query[e, q])]
        assert got[e, q, n].item() == pytest.approx(sum(nearest) / len(tuples), abs=1e-6)
    monkeypatch.setattr(trx, "CHUNK", 1)
    assert_close(model(support, query), got)


@torch.no_grad()
def test_scores_of_both_heads():
    model = scramble(_model())
    clips = randn(5, 4, 3, 64, 64)  # maps of 8 x 8
    maps = model.backbone.feature_maps(clips)
    tokens = model.encode(clips)
    assert tokens.shape == (5, 8, 16)
    for b, t in itertools.product(range(5), range(4)):
        patches = [maps[b, t, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].amax((1, 2)) for i in range(4) for j in range(4)]
        assert_close(tokens[b, t], model.patches(torch.stack(patches)[None])[0].mean(0))
    assert_close(tokens[:, 4:], model.mixer(tokens[:, :4]))
    support, query = tokens[:4].reshape(1, 2, 2, 8, 16), tokens[None, 4:]
    scores = model.match(query, model.prototypes(support))
    assert_close(scores["main"], -model.transformers[0](support[..., 4:, :], query[..., 4:, :]))
    assert_close(scores["second"], -model.second_head[0](support[..., :4, :], query[..., :4, :]))
    assert_close(scores["vv"], scores["main"] + 0.1 * scores["second"])
    assert model.training_logits(scores) is scores["main"]
    with pytest.raises(UserError, match="unknown matcher 'otam' in method STRM"):
        model.match(query, support, None, "otam")


@torch.no_grad()
def test_videos_and_queries_alone():
    model = scramble(_model())
    clips = randn(6, 4, 3, 32, 32)
    whole = model.encode(clips)
    assert_close(model.encode(clips[:2]), whole[:2])
    support, query = whole[:4].reshape(1, 2, 2, 8, 16), whole[None, 4:]
    both = model.match(query, support)["vv"]
    assert torch.equal(both, model.match(query, support)["vv"])
    assert_close(model.match(query[:, 1:], support)["vv"], both[:, 1:])


@pytest.mark.parametrize("trained", [True, False])
def test_second_head_is_optimised_unless_told_otherwise(trained):
    model = _model(second_head_trained=trained, cardinalities=(2, 3))
    model.patches.gamma.data.fill_(0.5)  # at 0 nothing reaches the projections of the attention
    losses = model.loss(**episodes())
    assert set(losses) == {"loss_matching", "loss_tuples", "accuracy"}
    assert_gradients(model, losses, without=("patches.key.bias",))  # drops out of the softmax
    assert all(p.requires_grad == trained for p in model.second_head.parameters())
    assert {name for name, _ in model.second_head.named_parameters()} == {
        name.removeprefix("second_head.") for name in model.trained_state() if name.startswith("second_head.")
    }
    other = _model(second_head_trained=trained, cardinalities=(2, 3))
    other.second_head[0].project.weight.data.zero_()
    other.load_trained_state(model.trained_state())
    assert torch.equal(other.second_head[0].project.weight, model.second_head[0].project.weight)


def test_second_loss_is_weighted_cross_entropy():
    model, batch = _model(second_weight=0.3, dropout=0.0), episodes()
    seen = {}
    match = model.match
    model.match = lambda *args: seen.setdefault("scores", match(*args))
    losses = model.loss(**batch)
    labels = batch["query_labels"].flatten()
    for name, key, weight in (("loss_matching", "main", 1), ("loss_tuples", "second", 0.3)):
        assert_close(losses[name], weight * F.cross_entropy(seen["scores"][key].flatten(0, 1), labels))


@torch.no_grad()
def test_released_dropout_of_the_second_head_stays_on():
    tokens = randn(6, 8, 16).float()
    support, query = tokens[:4].reshape(1, 2, 2, 8, 16), tokens[None, 4:]
    for kept in (False, True):
        model = _model(second_head_dropout_in_test=kept).eval()
        one, two = model.match(query, support), model.match(query, support)
        assert torch.equal(one["main"], two["main"])
        assert torch.equal(one["second"], two["second"]) != kept
