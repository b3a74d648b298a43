"""TRX (Perrett et al., CVPR 2021): temporal-relational cross-transformers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.compat import MODELS
from pipeline.errors import unknown
from pipeline.models import matchers
from pipeline.models.few_shot.base import FewShotModel, Scores, in_parts
from pipeline.models.few_shot.blocks.tuples import TemporalCrossTransformer, TupleFrames

MATCHERS = matchers.MATCHERS["TRX"]


@MODELS.register_module()
class TRX(FewShotModel):
    """Frame features, then one temporal cross-transformer for each size of the frame tuples; distances are averaged.

    Args:
        cardinalities: sizes of the tuples; the paper uses pairs and triples.
        out_dim: width of keys and values.
        frames: T.
        dropout: on the frames of the transformers.

    Matching has no prototype of its own: the shots of a class are asked anew by every query. What a video brings to it
    (`TupleFrames`, of each transformer) is worked out once a test.
    """

    wants_text = False
    condensed = True

    def __init__(
        self,
        backbone: dict[str, Any],
        cardinalities: Sequence[int] = (2, 3),
        out_dim: int = 1152,
        frames: int = 8,
        dropout: float = 0.1,
        **kwargs: Any,
    ) -> None:
        super().__init__(backbone, **kwargs)
        self.transformers = nn.ModuleList(
            TemporalCrossTransformer(self.backbone.dim, out_dim, size, frames, dropout) for size in cardinalities
        )

    def condense(self, features: Tensor, matcher: str | None = None) -> list[TupleFrames]:
        """(V, T, D) -> of each transformer what it takes of a video, 0.4 MB each in the paper's sizes."""
        device = next(self.parameters()).device
        return in_parts(lambda part: self._embed(part.to(device)), features)

    def _embed(self, videos: Tensor) -> list[TupleFrames]:
        return [transformer.embed(videos) for transformer in self.transformers]

    def prototypes(self, support: Tensor, texts: Tensor | None = None) -> Tensor:
        """The shots themselves: (E, N, K, T, D)."""
        return support

    def match(
        self,
        query: Tensor | list[TupleFrames],
        prototypes: Tensor | list[TupleFrames],
        texts: Tensor | None = None,
        matcher: str | None = None,
    ) -> Scores:
        """Queries (E, Q, T, D) -> {"vv": (E, Q, N)}: minus the mean distance over the tuple sizes.

        Both videos as they are, or both as `condense` gives them. Raises UserError for a matcher other than "trx".
        """
        if matcher not in (None, *MATCHERS):
            raise unknown("matcher", matcher, MATCHERS, "method TRX")
        if isinstance(query, Tensor):
            query, prototypes = self._embed(query), self._embed(prototypes)
        each = zip(self.transformers, prototypes, query, strict=True)
        distances = [transformer.compare(of_class, asked) for transformer, of_class, asked in each]
        return {"vv": -torch.stack(distances).mean(0)}
