"""Similarities and distances between the frames of two videos.

Two forms of the cosine are in use among few-shot heads and give different numbers: CLIP-FSAR, OTAM and MoLo
add 0.01 to the product of the norms, HyRSM normalises every frame to length one.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

EPS = 0.01
"""What the CLIP-FSAR family adds to |x||y|; at norms of about 10 it changes a cosine by 1e-4."""


def cosine_similarity(x: Tensor, y: Tensor, eps: float = EPS) -> Tensor:
    """x.y / (|x||y| + eps) of every pair of rows: (..., Tq, D), (..., Ts, D) -> (..., Tq, Ts).

    Leading dimensions broadcast. A zero row has similarity 0 as long as `eps` is positive.
    """
    norm_x, norm_y = torch.linalg.vector_norm(x, dim=-1), torch.linalg.vector_norm(y, dim=-1)
    return (x @ y.transpose(-1, -2)) / (norm_x.unsqueeze(-1) * norm_y.unsqueeze(-2) + eps)


def cosine_distance(x: Tensor, y: Tensor, eps: float = EPS) -> Tensor:
    """1 - `cosine_similarity`: (..., Tq, D), (..., Ts, D) -> (..., Tq, Ts)."""
    return 1 - cosine_similarity(x, y, eps)


def unit_similarity(x: Tensor, y: Tensor, eps: float = 1e-12) -> Tensor:
    """Cosine of rows divided by max(|row|, eps): (..., Tq, D), (..., Ts, D) -> (..., Tq, Ts).

    HyRSM's form, and that of CLIP-FSAR's video-text score at test time.
    """
    return F.normalize(x, dim=-1, eps=eps) @ F.normalize(y, dim=-1, eps=eps).transpose(-1, -2)


def episode_distances(query: Tensor, prototypes: Tensor, eps: float = EPS) -> Tensor:
    """Frame distances of all query-prototype pairs: (..., Q, Tq, D), (..., N, Ts, D) -> (..., Q, N, Tq, Ts).

    The leading dimensions (episodes) must be equal. One matrix product per episode serves its Q * N pairs;
    the result is a view with the time axes moved, which the matchers read without a copy.
    """
    (n_query, frames_q), (n_proto, frames_s) = query.shape[-3:-1], prototypes.shape[-3:-1]
    distance = cosine_distance(query.flatten(-3, -2), prototypes.flatten(-3, -2), eps)
    return distance.unflatten(-1, (n_proto, frames_s)).unflatten(-3, (n_query, frames_q)).transpose(-3, -2)


def norm_distances(query: Tensor, prototypes: Tensor, eps: float = EPS) -> Tensor:
    """As `episode_distances`, but the length of the difference of two frames (LGA, Eq. 2 as printed); no `eps`."""
    (n_query, frames_q), (n_proto, frames_s) = query.shape[-3:-1], prototypes.shape[-3:-1]
    distance = torch.cdist(query.flatten(-3, -2), prototypes.flatten(-3, -2))
    return distance.unflatten(-1, (n_proto, frames_s)).unflatten(-3, (n_query, frames_q)).transpose(-3, -2)
