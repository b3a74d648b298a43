"""TRX (Perrett et al., CVPR 2021): temporal-relational cross-transformers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.compat import MODELS
from pipeline.errors import unknown
from pipeline.models.methods.base import FewShotModel, Scores
from pipeline.models.trx import TemporalCrossTransformer

MATCHERS = ("trx",)


@MODELS.register_module()
class TRX(FewShotModel):
    """Frame features, then one temporal cross-transformer for each size of the frame tuples; distances are averaged.

    Args:
        cardinalities: sizes of the tuples; the paper uses pairs and triples.
        out_dim: width of keys and values.
        frames: T.
        dropout: on the frames of the transformers.

    Matching has no prototype of its own: the shots of a class are asked anew by every query.
    """

    wants_text = False

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

    def prototypes(self, support: Tensor, texts: Tensor | None = None) -> Tensor:
        """The shots themselves: (E, N, K, T, D)."""
        return support

    def match(
        self, query: Tensor, prototypes: Tensor, texts: Tensor | None = None, matcher: str | None = None
    ) -> Scores:
        """Queries (E, Q, T, D) -> {"vv": (E, Q, N)}: minus the mean distance over the tuple sizes.

        Raises UserError for a matcher other than "trx".
        """
        if matcher not in (None, *MATCHERS):
            raise unknown("matcher", matcher, MATCHERS, "method TRX")
        distances = [transformer(prototypes, query) for transformer in self.transformers]
        return {"vv": -torch.stack(distances).mean(0)}
