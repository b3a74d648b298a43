"""From the videos of a class to one prototype, and from the frames of a phase to one vector."""

from __future__ import annotations

from torch import Tensor

from pipeline.models.few_shot.matching.distances import EPS


def merge_shots(support: Tensor) -> Tensor:
    """Mean of the K videos of a class, frame by frame: (E, N, K, T, D) -> (E, N, T, D).

    CLIP-FSAR's MERGE_BEFORE; K = 1 changes nothing. Any leading dimensions in place of E, N.
    """
    return support.mean(-3)


def pool_phases(features: Tensor, mask: Tensor) -> Tensor:
    """Mean over the frames of each phase: (..., L, T, D), mask (..., L, T) -> (..., L, D).

    `features` may have size 1 at L (frames that are the same in every phase). A phase without frames gives
    zeros.
    """
    weight = mask.to(features.dtype)
    summed = (weight.unsqueeze(-2) @ features).squeeze(-2)
    return summed / weight.sum(-1, keepdim=True).clamp_min(1)


def phase_text_similarity(pooled: Tensor, texts: Tensor, eps: float = EPS) -> Tensor:
    """Video-text score of LGA Eq. 4 before its scale: (..., Q, L, D), (..., N, L, D) -> (..., Q, N).

    Sum over the phases of the cosine between a query's pooled phase and a class's atomic description. The
    softmax of (learnt scale * this) is p_v-t. With L = 1 it is CLIP-FSAR's class-text score (eps 0.01 in
    training, 0 at test).
    """
    length_q, length_t = pooled.norm(dim=-1), texts.norm(dim=-1)
    dots = pooled.transpose(-3, -2) @ texts.transpose(-3, -2).transpose(-1, -2)  # (..., L, Q, N)
    norms = length_q.transpose(-1, -2).unsqueeze(-1) * length_t.transpose(-1, -2).unsqueeze(-2)
    return (dots / (norms + eps)).sum(-3)
