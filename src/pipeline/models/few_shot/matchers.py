"""Matchers by name: distances of all query-prototype pairs from frame features."""

from __future__ import annotations

from torch import Tensor

from pipeline.errors import unknown
from pipeline.models.few_shot.matching import bimhm, episode_distances, otam_bidirectional, prototype_cosine
from pipeline.models.matchers import FRAME_MATCHERS


def frame_distance(matcher: str, query: Tensor, prototypes: Tensor, lam: float = 0.5) -> Tensor:
    """Distances of queries (E, Q, T, D) to prototypes (E, N, T, D): (E, Q, N).

    otam: ordered alignment, both directions. bi_mhm: bidirectional mean Hausdorff, summed over frames.
    mean: cosine of the mean frames, which knows no order.
    """
    if matcher == "otam":
        return otam_bidirectional(episode_distances(query, prototypes), lam)
    if matcher == "bi_mhm":
        return bimhm(episode_distances(query, prototypes))
    if matcher == "mean":
        return prototype_cosine(query, prototypes)
    raise unknown("matcher", matcher, FRAME_MATCHERS)
