"""MoLo against released code, and against its formulas in loops."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from resnet_stub import BACKBONE, assert_gradients, by_class, episodes, randn, scramble
from torch.testing import assert_close

from pipeline.errors import UserError
from pipeline.models.few_shot.blocks.motion import MotionDecoder, MotionMaps, frame_differences
from pipeline.models.few_shot.blocks.positions import sinusoid
from pipeline.models.few_shot.molo import MoLo, long_short_distances, streams


def _model(**kwargs):
    torch.manual_seed(0)
    return MoLo(BACKBONE, base_classes=7, ffn=8, **kwargs)


def _tokens(data, side):
    """Both streams of the released matching's inputs as one episode (1, videos, 17, D)."""
    parts = torch.tensor(data[f"in.molo_{side}"]), torch.tensor(data[f"in.molo_{side}_motion"])
    return torch.cat(parts, dim=1)[None]


@pytest.mark.parametrize(("weight", "out"), [(0.3, "default"), (1.0, "coff1"), (0.0, "rgb_only")])
@torch.no_grad()
def test_scores_of_released_code(golden, weight, out):
    data = golden("bimhm")
    model = _model(motion_weight=weight).eval()
    prototypes = model.prototypes(_tokens(data, "support")[:, :, None])
    got = model.match(_tokens(data, "query"), prototypes)["vv"][0]
    assert_close(got, torch.tensor(data[f"out.molo_{out}_logits"]), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_long_short_distances_of_released_code(golden):
    data = golden("bimhm")
    query, support = streams(_tokens(data, "query")), streams(_tokens(data, "support"))
    assert [part.shape[2] for part in query] == [9, 8]
    for name, scale, asked, held in zip(("", "_motion"), ("scale", "scale_motion"), query, support, strict=True):
        for direction, distance in zip(("s2q", "q2s"), long_short_distances(asked, held), strict=True):
            want = torch.tensor(data[f"out.molo_logits_{direction}{name}"])
            assert_close(-torch.tensor(data[f"in.{scale}"]) * distance[0], want, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_motion_is_the_convolved_next_frame_minus_this_one():
    model, maps = scramble(MotionMaps(8, reduction=4)), randn(2, 5, 8, 3, 4)
    motion = model(maps)
    assert motion.shape == (2, 4, 2, 3, 4)
    for b in range(2):
        reduced = F.conv3d(maps[b].transpose(0, 1)[None], model.reduce.weight, model.reduce.bias, padding=1)[0]
        for t in range(4):
            moved = F.conv2d(reduced[None, :, t + 1], model.move.weight, model.move.bias, padding=1)[0]
            assert_close(motion[b, t], moved - reduced[:, t])
            shown = [
                (model.expand.weight[:, :, 0, 0] @ motion[b, t, :, y, x] + model.expand.bias).clamp_min(0)
                for y, x in itertools.product(range(3), range(4))
            ]
            assert_close(model.tokens(motion)[b, t], torch.stack(shown).mean(0))
    with pytest.raises(UserError, match="two frames"):
        model(maps[:, :1])
    with pytest.raises(UserError, match="8 is not a multiple of reduction 3"):
        MotionMaps(8, reduction=3)


@torch.no_grad()
def test_streams_are_a_class_token_and_the_frames_of_a_transformer():
    model = scramble(_model(position_a=4.0, position_b=0.5))
    clips = randn(3, 4, 3, 32, 32)
    maps = model.backbone.feature_maps(clips)
    appearance, motion = streams(model.encode(clips))
    assert appearance.shape == (3, 5, 16) and motion.shape == (3, 4, 16)
    sources = (
        (appearance, model.appearance, maps.mean((3, 4))),
        (motion, model.motion, model.motion_maps.tokens(model.motion_maps(maps))),
    )
    for got, stream, frames in sources:
        for b in range(3):
            tokens = torch.cat((stream.token[None], frames[b]))
            tokens = math.sqrt(16 / 4) * tokens + 0.5 * sinusoid(len(tokens), 16, stretched=True)
            assert_close(got[b], stream.transformer(tokens).clamp_min(0))


def _slow_cosine_distance(x, y):
    return 1 - (x @ y / (x.norm() * y.norm() + 0.01)).item()


@pytest.mark.parametrize(("way", "shots", "queries", "frames"), [(3, 2, 2, 4), (2, 3, 1, 2)])
@torch.no_grad()
def test_formulas_in_loops(way, shots, queries, frames):
    model = _model().double().eval()
    support, query = randn(2, way, shots, 2 * frames + 1, 6), randn(2, queries, 2 * frames + 1, 6, seed=1)
    got = model.match(query, model.prototypes(support))["vv"]
    assert got.shape == (2, queries, way)
    for e, q, n in itertools.product(range(2), range(queries), range(way)):
        mean, total = sum(support[e, n, k] for k in range(shots)) / shots, 0.0
        for weight, part in ((1, slice(1, frames + 1)), (0.3, slice(frames + 2, None))):
            d = [[_slow_cosine_distance(x, y) for y in mean[part]] for x in query[e, q, part]]
            total += weight * (sum(map(min, d)) + sum(map(min, zip(*d, strict=True))))
        assert got[e, q, n].item() == pytest.approx(-total, rel=1e-6)


@torch.no_grad()
def test_videos_and_queries_alone():
    model = scramble(_model())
    clips = randn(6, 4, 3, 32, 32)
    whole = model.encode(clips)
    assert_close(model.encode(clips[:2]), whole[:2])
    prototypes, query = model.prototypes(whole[:4].reshape(1, 2, 2, 9, 16)), whole[None, 4:]
    both = model.match(query, prototypes)["vv"]
    assert torch.equal(both, model.match(query, prototypes, None, "bi_mhm")["vv"])
    assert_close(model.match(query[:, 1:], prototypes)["vv"], both[:, 1:])
    with pytest.raises(UserError, match="unknown matcher 'otam' in method MoLo"):
        model.match(query, prototypes, None, "otam")


@pytest.mark.parametrize(("start", "size"), [((7, 7), (224, 224)), ((4, 4), (32, 32)), ((8, 6), (64, 50))])
def test_decoder_draws_frames_of_any_size(start, size):
    decoder, seen = MotionDecoder(4), []
    for block in decoder.blocks:
        block.register_forward_hook(lambda _, __, out: seen.append(tuple(out.shape[1:])))
    assert decoder(torch.randn(2, 4, *start), size).shape == (2, 3, *size)
    assert [shape[0] for shape in seen] == [128, 32, 16] and seen[-1][1:] == size
    if start == (7, 7):
        assert [shape[1] for shape in seen] == [14, 56, 224]


def test_training_reaches_every_parameter():
    model = _model()
    losses = model.loss(**episodes())
    assert set(losses) == {"loss_matching", "loss_contrast", "loss_reconstruction", "loss_class", "accuracy"}
    assert_gradients(model, losses)
    assert any("running_mean" in name for name in model.trained_state())


@pytest.mark.parametrize("name", ["contrast", "reconstruction", "class"])
def test_a_loss_of_weight_zero_has_no_parameters(name):
    model = _model(**{f"{name}_weight": 0.0})
    losses = model.loss(**episodes())
    assert f"loss_{name}" not in losses
    assert_gradients(model, losses)


@torch.no_grad()
def test_losses_in_loops():
    model, batch = _model(contrast_weight=0.5, reconstruction_weight=0.25, class_weight=2.0).eval(), episodes()
    model.scales.copy_(torch.tensor([1.3, 0.7]))
    losses = model.loss(**batch)
    contrast, classes, drawn = torch.zeros(4), [], []
    for e in range(2):
        support, query = model.encode(batch["support"][e]), model.encode(batch["query"][e])
        held, labels = by_class(support, batch["support_labels"][e])[0].mean(1), batch["query_labels"][e]
        for s, (first, last) in enumerate(((0, 5), (5, 9))):  # class token, then the frames of each stream
            for direction, (a, b) in enumerate((("held", "asked"), ("asked", "held"))):
                logits = torch.zeros(len(query), len(held))
                for q, n in itertools.product(range(len(query)), range(len(held))):
                    side = {"held": held[n], "asked": query[q]}
                    frames, token = side[a][first + 1 : last], side[b][first]
                    logits[q, n] = -model.scales[s] * sum(_slow_cosine_distance(x, token) for x in frames)
                contrast[2 * s + direction] += F.cross_entropy(logits, labels, reduction="sum") / (2 * len(query))
        for part, tokens in (("support", support), ("query", query)):
            for clip, video, label in zip(batch[part][e], tokens, batch[f"{part}_labels"][e], strict=True):
                logits = model.classifier(video[:5].mean(0) + video[5:].mean(0))
                classes.append(F.cross_entropy(logits, batch["class_ids"][e, label]))
                motion = model.encode_training(clip[None])[1][0]
                for t in range(3):
                    picture = model.decoder(motion[t : t + 1], (32, 32))[0]
                    drawn.append(((picture - (clip[t + 1] - clip[t])) ** 2).mean())
    assert_close(losses["loss_contrast"], 0.5 * contrast.sum(), rtol=1e-4, atol=1e-5)
    assert_close(losses["loss_reconstruction"], 0.25 * torch.stack(drawn).mean(), rtol=1e-4, atol=1e-5)
    assert_close(losses["loss_class"], 2 * torch.stack(classes).mean(), rtol=1e-4, atol=1e-5)


def test_frame_differences():
    clips = randn(2, 4, 3, 5, 5)
    assert torch.equal(frame_differences(clips)[:, 1], clips[:, 2] - clips[:, 1])
