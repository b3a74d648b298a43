"""A ResNet that sees a clip of skeletons as a picture (SL-DML, Skeleton-DML)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.compat import MODELS
from pipeline.datasets.skeletons.graph import SkeletonGraph
from pipeline.models.backbones.resnet import ResNetBackbone
from pipeline.models.skeleton.encoder import SkeletonEncoder


@MODELS.register_module()
class ImageEncoder(SkeletonEncoder):
    """ResNet and a linear layer, whose result is the embedding; what lies before it is hidden, and not negative.

    It takes pictures (N, 3, H, W, 1) as `datasets.skeletons.images` makes them, without ImageNet's mean and deviation:
    the released code leaves those out, too.

    Args:
        source: of `ResNetBackbone`.
        embedding: width.
        shrink: pixels to a side that are averaged first.
    """

    def __init__(
        self, graph: SkeletonGraph | str | Mapping[str, Any], persons: int, classes: int | None = None,
        source: str | Mapping[str, Any] = "timm/resnet18.tv_in1k", embedding: int = 128, shrink: int = 1,
    ) -> None:  # fmt: skip
        super().__init__(graph, persons)
        self.backbone, self.shrink = ResNetBackbone(source), shrink
        self.blocks = nn.ModuleList()
        self._set_widths((), self.backbone.dim, None, embedding=embedding)
        self.to_embedding = nn.Linear(self.backbone.dim, embedding)
        self.classifier = nn.Linear(embedding, classes) if classes else None

    def embed(self, x: Tensor) -> Tensor:
        """Pictures (N, 3, H, W, 1) -> features of the ResNet (N, D)."""
        pictures = x.squeeze(-1)
        if self.shrink > 1:
            pictures = F.avg_pool2d(pictures, self.shrink)
        return self.backbone.encode_frames(pictures[:, None]).squeeze(1)

    def features(self, state: Tensor) -> Tensor:
        """They are final: (N, D)."""
        return state

    def pool(self, features: Tensor) -> Tensor:
        """And pooled: (N, D)."""
        return features

    def head(self, pooled: Tensor) -> Tensor:
        """(N, D) -> the embedding, not normalised."""
        return self.to_embedding(pooled)
