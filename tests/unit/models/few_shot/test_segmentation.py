"""Segmenters against frame-by-frame references, and TW-FINCH against the released code's partitions."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from pipeline.errors import UserError
from pipeline.models.few_shot.blocks import segmentation as S

torch.set_num_threads(1)


def _randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _cosine(a, b) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def _slow_cluster(f: np.ndarray, phases: int) -> list[int]:
    """Algorithm 1 of LGA with lists."""
    clusters = [[i] for i in range(len(f))]
    while len(clusters) > phases:
        means = [np.mean([f[i] for i in c], axis=0) for c in clusters]
        similar = [_cosine(a, b) for a, b in pairwise(means)]
        j = int(np.argmax(similar))
        clusters[j : j + 2] = [clusters[j] + clusters[j + 1]]
    return [k for k, c in enumerate(clusters) for _ in c]


def _stages(lengths, noise: float, seed: int, width: int = 16) -> torch.Tensor:
    """Piecewise constant features with noise, (T, D)."""
    centres = _randn(len(lengths), width, seed=seed)
    f = centres.repeat_interleave(torch.tensor(lengths), dim=0)
    return f + noise * _randn(*f.shape, seed=seed + 1000)


def _same_partition(a, b) -> bool:
    def canonical(labels):
        seen: dict[int, int] = {}
        return [seen.setdefault(int(x), len(seen)) for x in labels]

    return canonical(a) == canonical(b)


# ------------------------------------------------------------------------------------------- CLUSTER
@pytest.mark.parametrize(("frames", "phases"), [(8, 3), (8, 1), (8, 8), (8, 4), (5, 2), (16, 6), (1, 1)])
def test_cluster_follows_algorithm_1(frames, phases):
    f = _randn(3, 7, frames, 12, seed=frames + phases)
    f[1] += 2  # a common offset, as CLIP features have
    got = S.cluster_segment(f, phases)
    assert got.shape == (3, 7, frames) and got.dtype == torch.int64
    for video, phase in zip(f.flatten(0, 1).numpy(), got.flatten(0, 1).tolist(), strict=True):
        assert phase == _slow_cluster(video, phases)


def test_cluster_takes_the_first_of_equal_pairs():
    f = torch.eye(6, dtype=torch.float64)[[0, 0, 1, 1, 2, 2]]  # three pairs with cosine one
    assert S.cluster_segment(f, 5).tolist() == [0, 0, 1, 2, 3, 4]
    assert S.cluster_segment(f, 4).tolist() == [0, 0, 1, 1, 2, 3]
    assert S.cluster_segment(torch.ones(4, 3), 2).tolist() == [0, 0, 0, 1]
    assert S.cluster_segment(torch.zeros(4, 3), 2).tolist() == [0, 0, 0, 1]


def test_cluster_finds_uneven_phases_that_equal_parts_miss():
    lengths = [(1, 5, 2), (4, 1, 3), (2, 1, 5), (5, 2, 1)]
    agree_cluster = agree_hard = total = 0
    for seed in range(40):
        length = lengths[seed % 4]
        truth = np.repeat([0, 1, 2], length)
        f = _stages(length, 0.15, seed)
        agree_cluster += int((S.cluster_segment(f, 3).numpy() == truth).sum())
        agree_hard += int((S.hard_segment(8, 3).numpy() == truth).sum())
        total += 8
    assert agree_cluster / total > 0.98
    assert agree_hard / total < 0.75


def test_assignments_carry_no_gradient():
    f = _randn(2, 8, 6).requires_grad_()
    for name in S.SEGMENTERS:
        assert not S.segment(f, 3, name).requires_grad


# ---------------------------------------------------------------------------------------------- HARD
def test_hard_puts_the_longer_parts_first():
    assert S.hard_segment(8, 3).tolist() == [0, 0, 0, 1, 1, 1, 2, 2]
    for frames in range(1, 12):
        for phases in range(1, frames + 1):
            parts = np.array_split(np.arange(frames), phases)
            assert S.hard_segment(frames, phases).tolist() == [k for k, p in enumerate(parts) for _ in p]


# ------------------------------------------------------------------------------------------- overlap
@pytest.mark.parametrize("overlap", [0, 1, 2, 9])
def test_overlap_gives_frames_of_both_neighbours(overlap):
    for assignment in (
        [0, 0, 0, 1, 1, 1, 2, 2],
        [0, 1, 1, 1, 1, 1, 1, 2],
        [0, 1, 0, 1, 2, 2, 1, 2],
        [0, 0, 1, 1],
    ):
        phases = max(assignment) + 1
        want = np.zeros((phases, len(assignment)), dtype=bool)
        for k in range(phases):
            own = [t for t, phase in enumerate(assignment) if phase == k]
            before = [t for t, phase in enumerate(assignment) if phase == k - 1]
            after = [t for t, phase in enumerate(assignment) if phase == k + 1]
            want[k, own + before[max(len(before) - overlap, 0) :] + after[:overlap]] = True
        got = S.overlap_masks(torch.tensor(assignment), phases, overlap)
        assert got.dtype == torch.bool
        np.testing.assert_array_equal(got.numpy(), want)


def test_overlap_of_the_hard_split_at_eight_frames():
    members = [torch.nonzero(row).flatten().tolist() for row in S.overlap_masks(S.hard_segment(8, 3), 3)]
    assert members == [[0, 1, 2, 3], [2, 3, 4, 5, 6], [5, 6, 7]]


# ------------------------------------------------------------------------------------------ TW-FINCH
def test_twfinch_partitions_of_released_code(golden):
    data = golden("twfinch")
    names = [k[len("in.") :] for k in data if k.startswith("in.")]
    assert len(names) == 25
    for name in names:
        levels = list(S.twfinch_partitions(torch.tensor(data[f"in.{name}"]).double()[None]))
        want = data[f"out.tw_{name}_partitions"]
        assert len(levels) == want.shape[1], name
        for level, partition in zip(levels, want.T, strict=True):
            assert _same_partition(level[0], partition), name


def test_twfinch_required_counts_of_released_helper(golden):
    data = golden("twfinch")
    helpers = [k for k in data if k.startswith("out.tw_") and k.endswith("_helper")]
    assert len(helpers) == 75
    for key in helpers:
        name, count = key.removeprefix("out.tw_").removesuffix("_helper").rsplit("_req", 1)
        got = S.tw_finch(torch.tensor(data[f"in.{name}"]), int(count))
        assert _same_partition(got, data[key]), key


def test_twfinch_of_a_batch_is_that_of_each_video():
    f = torch.cat([_randn(20, 8, 6), _randn(20, 8, 6, seed=1).cumsum(1), _randn(20, 8, 6, seed=2) + 3])
    for phases in (1, 2, 3, 5, 8):
        got = S.tw_finch(f.reshape(6, 10, 8, 6), phases).reshape(60, 8)
        for video, phase in zip(f, got, strict=True):
            assert torch.equal(S.tw_finch(video, phases), phase)
            assert phase.unique().tolist() == list(range(phases))
            times = [np.flatnonzero(phase.numpy() == k).mean() for k in range(phases)]
            assert times == sorted(times)


def test_twfinch_cuts_the_largest_cluster_at_its_weakest_link():
    cut = 0
    for seed in range(60):
        f = _randn(8, 6, seed=seed).cumsum(0)
        first = next(S.twfinch_partitions(f[None]))[0].tolist()
        clusters = [[t for t in range(8) if first[t] == label] for label in sorted(set(first))]
        if len(clusters) >= 3:
            continue
        cut += 1
        while len(clusters) < 3:
            largest = max(clusters, key=len)  # the first of equal ones
            links = [_cosine(f[a].numpy(), f[b].numpy()) for a, b in pairwise(largest)]
            j = int(np.argmin(links)) + 1
            clusters.remove(largest)
            clusters = sorted([*clusters, largest[:j], largest[j:]])
        clusters.sort(key=lambda c: (np.mean(c), c[0]))
        want = [next(k for k, c in enumerate(clusters) if t in c) for t in range(8)]
        assert S.tw_finch(f, 3).tolist() == want
    assert cut > 20


# ------------------------------------------------------------------------------------------- segment
@pytest.mark.parametrize("method", ["cluster", "hard", "twfinch"])
def test_segment_covers_every_frame_and_every_phase(method):
    f = _randn(2, 5, 8, 6)
    for phases in (1, 3, 8):
        bare, shared = S.segment(f, phases, method, 0), S.segment(f, phases, method)
        assert bare.shape == shared.shape == (2, 5, phases, 8) and shared.dtype == torch.bool
        assert (bare.sum(-2) == 1).all() and bare.any(-1).all()
        assert (shared | ~bare).all()
        # each inner boundary lends one frame either way
        assert (shared.sum((-1, -2)) == 8 + 2 * (phases - 1)).all()


def test_segment_explains_what_it_cannot_do():
    f = _randn(2, 3)
    for method in S.SEGMENTERS:
        with pytest.raises(UserError, match="2 frames into 3 phases"):
            S.segment(f, 3, method)
    with pytest.raises(UserError, match=r"'clusters'.*did you mean 'cluster'"):
        S.segment(f, 2, "clusters")
    with pytest.raises(UserError, match="overlap"):
        S.segment(f, 2, overlap=-1)
    with pytest.raises(UserError, match="number of phases is 0"):
        S.segment(f, 0)
