"""Alignment of a query's frames and matching by stages: released numbers, Eq. 15-17, slow references."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from pipeline.errors import UserError
from pipeline.models.few_shot.blocks.alignment import (
    ConvAlignment,
    CrossAlignment,
    build_alignment,
    stage_similarity,
    stage_weights,
)

torch.set_num_threads(1)


def _randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _close(got: torch.Tensor, want, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(got.detach(), torch.as_tensor(want), rtol=tolerance, atol=tolerance)


def _cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(a @ b / (a.norm() * b.norm()))


@pytest.mark.parametrize("norm", [False, True])
@torch.no_grad()
def test_attention_over_queries_gives_the_released_numbers(golden, norm):
    arrays = golden("ta_cross_attention")
    frames = torch.from_numpy(arrays["in.query_features"])[None]
    module, name = CrossAlignment(512, norm=norm, over="queries"), "layernorm" if norm else "plain"
    if norm:
        module.norms[0].weight.copy_(torch.from_numpy(arrays["w.layernorm_variant.ln_1.weight"]))
        module.norms[0].bias.copy_(torch.from_numpy(arrays["w.layernorm_variant.ln_1.bias"]))
    aligned = module(frames)
    assert aligned.shape == (1, 5, 7, 512)
    _close(aligned[0].transpose(0, 1), arrays[f"out.aligned_{name}"])
    # The residual is the frame that gave the keys.
    _close(aligned[0, :, 0] - frames[0, :, 1], arrays[f"out.attention_output_{name}_pair0"])
    both = module(torch.cat((frames, frames.flip(1)), dim=0))  # episodes do not mix
    _close(both[1], aligned[0].flip(0))


def _slow(frames: torch.Tensor, layers: int, over: str, window: int, norms: list[nn.Module]) -> torch.Tensor:
    """Queries (Q, T, D) of one episode -> (Q, T - 1, D), pair of frames by pair of frames."""
    queries, count, dim = frames.shape
    out = torch.zeros(queries, count - 1, dim)
    for q, i in itertools.product(range(queries), range(1, count)):
        if over == "queries":
            keys = frames[:, i]
        else:
            keys = frames[q, i : i + window]
        aligned = frames[q, i - 1]
        for norm in norms:
            mixed = norm(torch.softmax(keys @ aligned / dim**0.5, 0) @ keys)
            aligned = mixed + (frames[q, i] if over == "queries" else aligned)
        out[q, i - 1] = aligned
    return out


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize(("over", "window"), [("frames", 1), ("frames", 3), ("frames", 99), ("queries", 1)])
@pytest.mark.parametrize("layers", [1, 2, 3])
@torch.no_grad()
def test_alignment_is_its_slow_self(layers, over, window, norm):
    module, frames = CrossAlignment(6, layers, norm, over, window), _randn(2, 3, 5, 6)
    for i, parameter in enumerate(module.parameters()):
        parameter.copy_(_randn(*parameter.shape, seed=i))
    got = module(frames)
    for e in range(2):
        _close(got[e], _slow(frames[e], layers, over, window, list(module.norms)))


def test_the_default_is_eq_15_of_a_query_alone():
    """With one next frame the softmax is 1: frame i-1 plus frame i, whatever the other queries are."""
    frames = _randn(2, 3, 8, 6)
    _close(CrossAlignment(6)(frames), frames[..., :-1, :] + frames[..., 1:, :], 1e-6)
    # The printed equation with one query: attention over the queries, the residual on frame i-1.
    alone = frames.flatten(0, 1)[:, None]
    printed = CrossAlignment(6, over="queries")(alone) - alone[..., 1:, :] + alone[..., :-1, :]
    _close(CrossAlignment(6)(frames), printed.reshape(2, 3, 7, 6), 1e-6)


def test_alignment_has_no_weights_but_the_norms():
    assert not list(CrossAlignment(512, layers=3).parameters())
    assert sum(p.numel() for p in CrossAlignment(512, norm=True).parameters()) == 1_024
    assert sum(p.numel() for p in ConvAlignment(512).parameters()) == 3 * 512 * 512 + 512


def test_gradients_of_alignment_are_finite():
    for over, window in (("frames", 1), ("frames", 3), ("queries", 1)):
        frames = _randn(1, 2, 4, 6).requires_grad_()
        CrossAlignment(6, over=over, window=window)(frames).square().sum().backward()
        assert torch.isfinite(frames.grad).all() and frames.grad.abs().sum() > 0


@torch.no_grad()
def test_conv_mixes_three_neighbours_and_keeps_the_frame():
    module, frames = ConvAlignment(4), _randn(2, 3, 8, 4)
    got = module(frames)
    padded = torch.cat((torch.zeros(2, 3, 1, 4), frames, torch.zeros(2, 3, 1, 4)), dim=2)
    for t in range(8):
        mixed = sum(padded[:, :, t + k] @ module.conv.weight[:, :, k].T for k in range(3)) + module.conv.bias
        _close(got[:, :, t], mixed + frames[:, :, t])


@pytest.mark.parametrize(
    ("frames", "stages", "members"),
    [
        (7, 3, [{0, 1, 2}, {2, 3, 4}, {4, 5, 6}]),
        (8, 3, [{0, 1, 2}, {2, 3, 4, 5}, {5, 6, 7}]),
        (15, 3, [{0, 1, 2, 3, 4, 5}, {5, 6, 7, 8, 9}, {9, 10, 11, 12, 13, 14}]),
        (4, 3, [{0, 1}, {1, 2}, {2, 3}]),
        (2, 3, [{0}, {0, 1}, {1}]),
        (1, 3, [{0}, {0}, {0}]),
        (7, 1, [set(range(7))]),
        (7, 2, [{0, 1, 2, 3}, {3, 4, 5, 6}]),
    ],
)
def test_stages_share_a_frame(frames, stages, members):
    weights = stage_weights(frames, stages)
    assert [set(row.nonzero().flatten().tolist()) for row in weights] == members
    _close(weights.sum(-1), torch.ones(stages), 1e-6)
    assert all(len(set(row[row > 0].tolist())) == 1 for row in weights)


@pytest.mark.parametrize("average_first", [True, False])
@pytest.mark.parametrize("stages", [1, 3])
@pytest.mark.parametrize("frames", [7, 8])
def test_stage_similarity_is_its_slow_self(frames, stages, average_first):
    video, texts = _randn(2, 3, frames, 6), _randn(2, 4, stages, 6, seed=1)
    got = stage_similarity(video, texts, average_first)
    assert got.shape == (2, 3, 4)
    members = {
        (7, 1): [range(7)], (8, 1): [range(8)],
        (7, 3): [(0, 1, 2), (2, 3, 4), (4, 5, 6)], (8, 3): [(0, 1, 2), (2, 3, 4, 5), (5, 6, 7)],
    }[frames, stages]  # fmt: skip
    for e, q, n in itertools.product(range(2), range(3), range(4)):
        total = 0.0
        for s, places in enumerate(members):
            if average_first:
                total += _cosine(sum(video[e, q, t] for t in places) / len(places), texts[e, n, s])
            else:
                total += sum(_cosine(video[e, q, t], texts[e, n, s]) for t in places) / len(places)
        assert got[e, q, n].item() == pytest.approx(total / stages, abs=1e-5)


def test_what_is_built():
    frames = _randn(1, 2, 8, 6)
    assert build_alignment("none", 6)(frames) is frames
    assert isinstance(build_alignment("conv", 6), ConvAlignment)
    module = build_alignment("attention", 6, layers=2, norm=True, over="queries", window=3)
    assert (module.over, module.window, len(module.norms)) == ("queries", 3, 2)
    for build, message in (
        (lambda: build_alignment("atention", 6), "alignment 'atention'; did you mean 'attention'"),
        (lambda: build_alignment("attention", 6, over="frame"), "alignment_over 'frame'; did you mean 'frames'"),
        (lambda: build_alignment("attention", 6, layers=0), "alignment_layers is 0"),
        (lambda: build_alignment("attention", 6, window=0), "alignment_window 0"),
        (lambda: build_alignment("attention", 6)(_randn(1, 2, 1, 6)), "two frames or more"),
    ):
        with pytest.raises(UserError, match=message):
            build()


@torch.no_grad()
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_layers_of_it_over_one_next_frame_attend_to_nothing(layers):
    """Table 7: with the default window k layers are F(i-1) + k F(i), without a parameter; with two next frames not."""
    frames = _randn(2, 3, 5, 6)
    module = CrossAlignment(6, layers)
    assert not list(module.parameters())
    _close(module(frames), frames[..., :-1, :] + layers * frames[..., 1:, :])
    wider = CrossAlignment(6, layers, window=2)(frames) - module(frames)
    assert wider[..., :-1, :].abs().max() > 0.1 and wider[..., -1, :].abs().max() < 1e-5  # the last has one next frame
