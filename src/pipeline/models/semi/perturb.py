"""Strong augmentation of elements: perturbations of time (SeFAR, Eq. 6, Tables 4 and 7) and dropped colour channels."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import unknown

PERTURBATIONS = (
    "spatial", "slow", "t_drop", "all_shuffle", "local_shuffle", "warping", "t_half", "all_reverse", "moderate",
    "channels",
)  # fmt: skip
_WITH_CONTEXT = ("all_shuffle", "all_reverse")
T_DROP = 0.5  # probability that a frame gives way to the one before it (Zou et al., CVIU 2023)


def warp_order(frames: int, kept: Sequence[int], switches: Sequence[int]) -> np.ndarray:
    """SVFormer's temporal warping: which frame to show at each of the `frames` positions.

    kept: the frames that stay, ascending. Between two of them that are not neighbours, lo and hi, the first fills
    lo..switch-1 and the second switch..hi; `switches` has one value in lo..hi for each such gap, so either may
    vanish. The first kept frame also fills all before it, the last all after it.
    """
    order = np.full(frames, kept[-1])
    order[: kept[0] + 1] = kept[0]
    remaining = iter(switches)
    for lo, hi in pairwise(kept):
        switch = next(remaining) if hi - lo > 1 else hi
        order[lo:switch], order[switch : hi + 1] = lo, hi
    return order


def _warp(frames: int, rng: np.random.Generator) -> np.ndarray:
    """One time in three each: keep a quarter of the frames (2 of 8), half of them (4 of 8), or all."""
    share = rng.choice((4, 2, 1))
    if share == 1:
        return np.arange(frames)
    kept = np.sort(rng.choice(frames, max(frames // share, 1), replace=False))
    gaps = [(lo, hi) for lo, hi in pairwise(kept) if hi - lo > 1]
    return warp_order(frames, kept, [rng.integers(lo, hi + 1) for lo, hi in gaps])


def _half(frames: int, rng: np.random.Generator) -> np.ndarray:
    """Either half of the frames fills the other one too; a middle frame stays."""
    order, half = np.arange(frames), frames // 2
    if rng.random() < 0.5:
        order[:half] = order[frames - half :]
    else:
        order[frames - half :] = order[:half]
    return order


def frame_order(kind: str, frames: int, rng: np.random.Generator) -> np.ndarray:
    """Which of the `frames` of an element to show at each position under the perturbation `kind`: (T,)."""
    order = np.arange(frames)
    if kind in ("moderate", "all_reverse"):
        return order[::-1].copy()
    if kind in ("local_shuffle", "all_shuffle"):
        return rng.permutation(frames)
    if kind == "slow":  # half the speed: the first half of the frames, each shown twice
        return order // 2
    if kind == "t_drop":
        stays = rng.random(frames) >= T_DROP
        stays[0] = True
        return np.maximum.accumulate(np.where(stays, order, 0))
    if kind == "warping":
        return _warp(frames, rng)
    if kind == "t_half":
        return _half(frames, rng)
    return order  # spatial, channels


def draw_orders(kind: str, lengths: Sequence[int], videos: int, rng: np.random.Generator) -> list[np.ndarray]:
    """`frame_order` of every video for each element: arrays (B, T).

    The fine elements are perturbed, and the context too by "all_shuffle" and "all_reverse"; a single element is
    perturbed itself. Raises UserError for an unknown kind.

    spatial: nothing. slow: half the speed. t_drop: frames give way to the one before (p = 0.5). local_shuffle: any
    order within each fine element; all_shuffle: within the context too. warping: SVFormer's. t_half: one half fills
    the other. moderate: fine elements run backwards (the paper's choice); all_reverse: the context too. channels:
    no order, but `perturb` swaps red and blue of the fine elements, as the released code does by mistake.
    """
    if kind not in PERTURBATIONS:
        raise unknown("perturbation", kind, PERTURBATIONS, "model.perturbation")
    fixed = len(lengths) - 1 if len(lengths) > 1 and kind not in _WITH_CONTEXT else None
    return [
        np.stack([np.arange(t) if i == fixed else frame_order(kind, t, rng) for _ in range(videos)])
        for i, t in enumerate(lengths)
    ]


def perturb(elements: Sequence[Tensor], orders: Sequence[Tensor], kind: str) -> list[Tensor]:
    """Elements (B, T, 3, H, W) with their frames in the given orders (B, T); colours reversed by "channels"."""
    rows = torch.arange(len(elements[0]), device=elements[0].device)[:, None]
    shown = [x[rows, order] for x, order in zip(elements, orders, strict=True)]
    if kind == "channels":
        fine = max(len(shown) - 1, 1)
        shown = [x.flip(2) if i < fine else x for i, x in enumerate(shown)]
    return shown


def drop_channels(x: Tensor, kept: Tensor, p: float) -> Tensor:
    """Blank whole colour channels of clips x (B, T, 3, H, W) where kept (B, 3) is false; the rest grows by 1/(1-p)."""
    return x * (kept / (1 - p))[:, None, :, None, None]
