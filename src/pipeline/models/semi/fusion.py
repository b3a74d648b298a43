"""From the features of the elements to class scores: SeFAR's pairwise fusion, or one linear layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.compat import MODELS
from pipeline.errors import UserError, unknown

FUSION_WIDTH = 256
HEADS = ("fusion", "linear")


class FusionHead(nn.Module):
    """Every pair and every single element to 256 features, then all of them to 256, then dropout and classes.

    Pairs share one layer and singles another (Linear, GELU, LayerNorm); they are concatenated in this order. Not in
    the paper, which leaves the fusion open; this is the released head, 985,344 + 257 C parameters for ViT-B and
    three elements. dropout: also what makes the teacher's predictions vary.
    """

    def __init__(self, dim: int, elements: int, classes: int, dropout: float = 0.5) -> None:
        super().__init__()
        self.pairs = list(combinations(range(elements), 2))

        def layer(width: int) -> nn.Sequential:
            return nn.Sequential(nn.Linear(width, FUSION_WIDTH), nn.GELU(), nn.LayerNorm(FUSION_WIDTH))

        self.pair = layer(2 * dim) if self.pairs else None
        self.single = layer(dim)
        self.whole = layer((len(self.pairs) + elements) * FUSION_WIDTH)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(FUSION_WIDTH, classes)

    def feature(self, elements: Sequence[Tensor]) -> Tensor:
        """Features of the elements, each (B, D) -> (B, 256)."""
        parts = [self.pair(torch.cat((elements[i], elements[j]), -1)) for i, j in self.pairs]
        return self.whole(torch.cat([*parts, *map(self.single, elements)], -1))

    def forward(self, feature: Tensor) -> Tensor:
        """(..., 256) -> logits (..., C)."""
        return self.classifier(self.dropout(feature))


class LinearHead(nn.Module):
    """A linear layer on the feature of a single element (SVFormer); no dropout."""

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.0)
        self.classifier = nn.Linear(dim, classes)
        nn.init.trunc_normal_(self.classifier.weight, std=0.02)
        nn.init.zeros_(self.classifier.bias)

    def feature(self, elements: Sequence[Tensor]) -> Tensor:
        """The feature (B, D) of the only element."""
        return elements[0]

    def forward(self, feature: Tensor) -> Tensor:
        """(..., D) -> logits (..., C)."""
        return self.classifier(self.dropout(feature))


class ElementNetwork(nn.Module):
    """Elements of videos to logits: one TimeSformer for all elements, and a head.

    backbone: arguments of `ElementTimeSformer` but for the frames. lengths: T of each element. head: "fusion", or
    "linear" for a single element. Raises UserError when head and elements do not fit.
    """

    def __init__(
        self, backbone: Mapping[str, Any], lengths: Sequence[int], classes: int, head: str, dropout: float
    ) -> None:
        super().__init__()
        if head not in HEADS:
            raise unknown("head", head, HEADS, "model.head")
        if head == "linear" and len(lengths) > 1:
            raise UserError(f"a linear head takes one element, not {len(lengths)}; set model.head: fusion")
        self.backbone = MODELS.build({"type": "ElementTimeSformer", **backbone, "frames": lengths})
        if head == "linear":
            self.head: FusionHead | LinearHead = LinearHead(self.backbone.dim, classes)
        else:
            self.head = FusionHead(self.backbone.dim, len(lengths), classes, dropout)

    def patches(self, elements: Sequence[Tensor]) -> list[Tensor]:
        """Patch embeddings of elements, each (B, T, 3, H, W) -> (B, T, P, D)."""
        return self.backbone.patches(*elements)

    def features(self, elements: Sequence[Tensor]) -> Tensor:
        """Features of n elements, each (B, T, 3, H, W): (B, n, D)."""
        return torch.stack(self._encode(self.patches(elements)), 1)

    def feature(self, patches: Sequence[Tensor]) -> Tensor:
        """What the head's dropout and classifier take, (B, F), from patch embeddings."""
        return self.head.feature(self._encode(patches))

    def _encode(self, patches: Sequence[Tensor]) -> list[Tensor]:
        encoded = self.backbone.encode(dict(enumerate(patches)))
        return [encoded[i] for i in range(len(patches))]

    def forward(self, elements: Sequence[Tensor]) -> Tensor:
        """Elements, each (B, T, 3, H, W) -> logits (B, C)."""
        return self.head(self.feature(self.patches(elements)))

    def dropped_logits(self, elements: Sequence[Tensor], passes: int) -> Tensor:
        """Logits (U, B, C) of U passes with dropout in the head, whatever the mode.

        All that is random in such passes lies in the head, so the features are worked out once.
        """
        feature = self.feature(self.patches(elements)).repeat(passes, 1, 1)
        return self.head.classifier(F.dropout(feature, self.head.dropout.p, training=True))
