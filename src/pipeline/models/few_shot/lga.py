"""LGA (ICCV 2025): language-guided action anatomy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pipeline.compat import MODELS
from pipeline.errors import unknown
from pipeline.models import matchers
from pipeline.models.few_shot.base import FewShotModel, Scores
from pipeline.models.few_shot.blocks.necks import PhaseFusion
from pipeline.models.few_shot.blocks.segmentation import segment
from pipeline.models.few_shot.matchers import frame_distance
from pipeline.models.few_shot.matching import (
    abmhm_phases,
    episode_distances,
    merge_shots,
    norm_distances,
    phase_text_similarity,
    pool_phases,
)

MATCHERS = matchers.MATCHERS["LGA"]
DIVISORS = ("own", "frames", "none")
DISTANCES = {"cosine": episode_distances, "norm": norm_distances}
POOLED = ("backbone", "fused")


class Phases(NamedTuple):
    """Fused frames of videos: features (..., L, T, D), of which the places in mask (..., L, T) count."""

    features: Tensor
    mask: Tensor

    def frames(self) -> Tensor:
        """One feature for each frame, (..., T, D): the mean where two phases share it (for OTAM and Bi-MHM)."""
        weight = self.mask.unsqueeze(-1).to(self.features.dtype)
        return (self.features * weight).sum(-3) / weight.sum(-3).clamp_min(1)


class Query(NamedTuple):
    """Backbone frames (..., T, D) of queries, and their fused phases: features (..., L, T, D), mask (..., L, T)."""

    frames: Tensor
    features: Tensor
    mask: Tensor


@MODELS.register_module()
class LGA(FewShotModel):
    """Phases of a video found by clustering its frames, fused with the atomic descriptions of a class, and matched
    phase by phase (AB-MHM) and against the texts.

    Args:
        atoms: L, the number of phases (and of texts a class, unless the text is the label).
        segmenter: cluster, hard or twfinch (LGA Table 5); none is one phase, that is no visual anatomy.
        overlap: frames that neighbouring phases share on each side of their boundary.
        scale, attention: the fusion (Table 3; Eq. 1 is L and cross).
        residual: around the attention; Eq. 1 prints none.
        matcher: ab_mhm (Eq. 2), bi_mhm or otam (Table 4); the latter two see one feature a frame.
        lam: softness of OTAM.
        divisor: own, AB-MHM is divided by T as Eq. 2 prints and the other matchers are not, as they are released, so
            that their logits are about T times steeper beside the same video-text score; frames, all are divided by T;
            none, none is.
        distance: of two frames in AB-MHM: cosine (1 - cosine, 0.01 added to the product of the norms), or norm, the
            length of their difference, as printed.
        pooled: what Eq. 4 pools of a query: its backbone frames, or the fused ones, as printed.

    Clustering sees detached backbone features. A class with K shots has one segmentation, that of their mean.
    """

    def __init__(
        self,
        backbone: dict[str, Any],
        base_texts: Sequence[Sequence[str]],
        atoms: int = 3,
        segmenter: str = "cluster",
        overlap: int = 1,
        scale: str = "L",
        attention: str = "cross",
        residual: bool = True,
        matcher: str = "ab_mhm",
        lam: float = 0.5,
        heads: int = 8,
        divisor: str = "own",
        distance: str = "cosine",
        pooled: str = "backbone",
        **kwargs: Any,
    ) -> None:
        super().__init__(backbone, base_texts, **kwargs)
        for name, value, known in (
            ("matcher", matcher, MATCHERS),
            ("divisor", divisor, DIVISORS),
            ("distance", distance, DISTANCES),
            ("pooled", pooled, POOLED),
        ):
            if value not in known:
                raise unknown(name, value, known)
        self.divisor, self.distance, self.pooled = divisor, distance, pooled
        self.neck = PhaseFusion(
            self.backbone.dim, heads=heads, scale=scale, attention=attention, residual_attention=residual
        )
        self.atoms, self.segmenter, self.overlap = atoms, segmenter, overlap
        self.matcher, self.lam = matcher, lam

    def phases(self, frames: Tensor) -> Tensor:
        """Membership of frames (..., T, D) in phases: bool (..., L, T)."""
        if self.segmenter == "none":
            return torch.ones(*frames.shape[:-2], 1, frames.shape[-2], dtype=torch.bool, device=frames.device)
        return segment(frames.detach(), self.atoms, self.segmenter, self.overlap)

    def prototypes(self, support: Tensor, texts: Tensor | None) -> Phases:
        """(E, N, K, T, D) and (E, N, L, D) -> fused phases of each class (Eq. 1)."""
        frames = merge_shots(support)
        mask = self.phases(frames)
        return Phases(self.neck(frames, mask, texts), mask)

    def relate_queries(self, queries: Tensor) -> Query:
        """(E, Q, T, D) with its phases, fused without a text, for a query has none."""
        mask = self.phases(queries)
        return Query(queries, self.neck(queries, mask, None), mask)

    def frame_features(self, queries: Query) -> Tensor:
        """The fused frames (E, Q, T, D)."""
        return Phases(queries.features, queries.mask).frames()

    def match(self, query: Query, prototypes: Phases, texts: Tensor | None, matcher: str | None = None) -> Scores:
        """{"vv": -D (Eq. 2, 3), "vt": Eq. 4, where there are texts}, each (E, Q, N)."""
        name, frames = matcher or self.matcher, query.frames.shape[-2]
        if name == "ab_mhm":
            by = 1 if self.divisor == "none" else frames
            measure = DISTANCES[self.distance]
            distance = abmhm_phases(*query[1:], *prototypes, frames=by, distances=measure)
        else:
            by = frames if self.divisor == "frames" else 1
            seen = Phases(query.features, query.mask).frames()
            distance = frame_distance(name, seen, prototypes.frames(), self.lam) / by
        if texts is None:
            return {"vv": -distance}
        pooled = self._pool(query, texts)
        return {"vv": -distance, "vt": self.scale * phase_text_similarity(pooled, texts)}

    def video_text(self, features: Tensor, texts: Tensor) -> Tensor:
        """Learnt scale times the sum over phases of the cosine of phase and text (Eq. 4): (B, T, D) -> (B, C)."""
        mask = self.phases(features)
        fused = self.neck(features[None], mask[None], None)[0] if self.pooled == "fused" else features.unsqueeze(-3)
        pooled = self._pool(Query(features, fused, mask), texts)
        return self.scale * phase_text_similarity(pooled[None], texts[None])[0]

    def _pool(self, query: Query, texts: Tensor) -> Tensor:
        """Mean frame of each phase (..., L, D); of the whole video where a class has one text, or the video one
        phase."""
        fused = self.pooled == "fused"
        if texts.shape[-2] == query.mask.shape[-2] > 1:
            return pool_phases(query.features if fused else query.frames.unsqueeze(-3), query.mask)
        frames = Phases(query.features, query.mask).frames() if fused else query.frames
        return frames.mean(-2, keepdim=True).expand(*frames.shape[:-2], texts.shape[-2], -1)
