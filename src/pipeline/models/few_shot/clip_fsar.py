"""CLIP-FSAR (Wang et al., IJCV 2023): the class text joins the support's frames in one transformer layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pipeline.compat import MODELS
from pipeline.models.few_shot.base import FewShotModel, Scores
from pipeline.models.few_shot.blocks.necks import ContextTransformer
from pipeline.models.few_shot.matchers import frame_distance
from pipeline.models.few_shot.matching import clipfsar_visual_log_probability, cosine_similarity, merge_shots


class Query(NamedTuple):
    """Backbone frames and frames after the transformer, each (E, Q, T, D)."""

    frames: Tensor
    context: Tensor


@MODELS.register_module()
class ClipFsar(FewShotModel):
    """Support: mean of the shots, frame by frame; then [T frames ; class text] through the transformer, of which the
    T frames stay. Query: its T frames through the same transformer. Distance: OTAM with lambda 0.5.

    With several sentences a class (LGA's dagger row) the class text is the mean of their features.
    """

    def __init__(
        self,
        backbone: dict[str, Any],
        base_texts: Sequence[Sequence[str]],
        matcher: str = "otam",
        lam: float = 0.5,
        heads: int = 8,
        **kwargs: Any,
    ) -> None:
        super().__init__(backbone, base_texts, **kwargs)
        self.neck = ContextTransformer(self.backbone.dim, heads=heads)
        self.matcher, self.lam = matcher, lam

    def prototypes(self, support: Tensor, texts: Tensor | None) -> Tensor:
        """(E, N, K, T, D) and (E, N, L, D) -> (E, N, T, D); without texts the frames go through alone, as a query's."""
        frames = merge_shots(support)
        if texts is None:
            return self.neck(frames)
        tokens = torch.cat((frames, texts.mean(-2, keepdim=True)), dim=-2)
        return self.neck(tokens)[..., : frames.shape[-2], :]

    def relate_queries(self, queries: Tensor) -> Query:
        """(E, Q, T, D) and the same through the transformer, without a text."""
        return Query(queries, self.neck(queries))

    def frame_features(self, queries: Any) -> Tensor:
        """The frames (E, Q, T, D) that have seen each other."""
        return queries.context

    def match(self, query: Query, prototypes: Tensor, texts: Tensor | None, matcher: str | None = None) -> Scores:
        """{"vv": -D, "vt": scaled cosine (where there are texts), "log_vv": CLIP-FSAR's own softmax((8 - D) / 8)},
        each (E, Q, N)."""
        distance = frame_distance(matcher or self.matcher, query.context, prototypes, self.lam)
        scores = {"vv": -distance, "log_vv": clipfsar_visual_log_probability(distance)}
        if texts is None:
            return scores
        shape = query.frames.shape[:2]
        per_query = texts[:, None].expand(-1, shape[1], -1, -1, -1).flatten(0, 1)
        return scores | {"vt": self.video_text(query.frames.flatten(0, 1), per_query).unflatten(0, shape)}

    def video_text(self, features: Tensor, texts: Tensor) -> Tensor:
        """Learnt scale times the cosine of the mean backbone frame and the class text: (B, T, D) -> (B, C)."""
        pooled, classes = features.mean(-2), texts.mean(-2)
        return self.scale * cosine_similarity(pooled[:, None], classes).squeeze(-2)
