"""Mean-Hausdorff matchers: Bi-MHM (HyRSM, CVPR 2022; MoLo, CVPR 2023) and LGA's aligned AB-MHM (Eq. 2).

Masks are boolean, True = the frame belongs. A minimum over no frame at all is +inf, so every phase must have
at least one frame on both sides; the segmenters see to that.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pipeline.errors import unknown
from pipeline.models.few_shot.matching.distances import EPS, cosine_distance, episode_distances

DIRECTIONS = ("both", "query")


def bimhm(d: Tensor, mask_q: Tensor | None = None, mask_s: Tensor | None = None, direction: str = "both") -> Tensor:
    """Sum of nearest-frame distances: d (..., Tq, Ts), masks (..., Tq) and (..., Ts) -> (...).

    Every query frame's nearest support frame, plus (direction "both") every support frame's nearest query
    frame. A sum, not a mean, as the released heads of HyRSM and MoLo; "query" is MoLo's single direction.
    Raises UserError for another direction.
    """
    if direction not in DIRECTIONS:
        raise unknown("matching direction", direction, DIRECTIONS)
    total = _nearest(d, mask_q, mask_s)
    return total if direction == "query" else total + _nearest(d.transpose(-1, -2), mask_s, mask_q)


def _nearest(d: Tensor, rows: Tensor | None, columns: Tensor | None) -> Tensor:
    """Sum over the `rows` of d of the minimum over its `columns`."""
    if columns is not None:
        d = torch.where(columns.unsqueeze(-2), d, torch.inf)
    nearest = d.amin(-1)
    if rows is not None:
        nearest = torch.where(rows, nearest, 0)
    return nearest.sum(-1)


def abmhm(d: Tensor, seg_q: Tensor, seg_s: Tensor, frames: int | None = None) -> Tensor:
    """AB-MHM from frame distances: d (..., Tq, Ts), phases (..., L, Tq) and (..., L, Ts) -> (...).

    LGA Eq. 2: Bi-MHM between the frames of phase k on both sides, summed over the L phases, divided by
    `frames` (default Tq: frames that two phases share do not raise the divisor). For features that do not
    depend on the phase a frame is seen in; otherwise use `abmhm_phases`. Leading dimensions broadcast.
    """
    per_phase = bimhm(d.unsqueeze(-3), seg_q, seg_s)
    return per_phase.sum(-1) / (frames or d.shape[-2])


def abmhm_phases(
    fq: Tensor,
    mq: Tensor,
    fs: Tensor,
    ms: Tensor,
    eps: float = EPS,
    frames: int | None = None,
    distances: Callable[[Tensor, Tensor, float], Tensor] = episode_distances,
) -> Tensor:
    """AB-MHM of all pairs of an episode, from the features that a fusion gives a frame in each phase.

    fq (..., Q, L, Tq, D) with mq (..., Q, L, Tq), fs (..., N, L, Ts, D) with ms (..., N, L, Ts) -> (..., Q,
    N). Divided by `frames` (default Tq). distances: of frames, as `episode_distances` gives them. Works phase
    by phase, so its memory is that of one phase's distances.
    """
    total = 0
    for k in range(fq.shape[-3]):
        d = distances(fq[..., k, :, :], fs[..., k, :, :], eps)
        total = total + bimhm(d, mq[..., k, :].unsqueeze(-2), ms[..., k, :].unsqueeze(-3))
    return total / (frames or fq.shape[-2])


def prototype_cosine(fq: Tensor, fs: Tensor, eps: float = EPS) -> Tensor:
    """Order-free distance 1 - cos of the mean frames: (..., Q, Tq, D), (..., N, Ts, D) -> (..., Q, N).

    A prototypical network with the cosine instead of the Euclidean distance.
    """
    return cosine_distance(fq.mean(-2), fs.mean(-2), eps)
