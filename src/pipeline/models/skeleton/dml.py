"""SL-DML (Memmesheimer et al., ICPR 2020) and Skeleton-DML (WACV 2022): metric learning on pictures of skeletons."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pipeline.compat import MODELS
from pipeline.models.skeleton.base import SkeletonModel
from pipeline.models.skeleton.losses import mined_triplets, triplet_loss


@MODELS.register_module()
class SkeletonDML(SkeletonModel):
    """A triplet loss on mined triplets of the embeddings, and the cross-entropy of a linear classifier on them.

    The two methods differ in the picture alone (`frames.feed.layout`). A test compares embeddings.

    Args:
        margin: of the triplet loss.
        epsilon: by which a pair may be easier than the hardest one of its anchor.
        triplet_weight, class_weight: of the two losses.
    """

    training_only = ("encoder.classifier.",)

    def __init__(
        self, *args: Any, margin: float = 0.2, epsilon: float = 0.1, triplet_weight: float = 0.5,
        class_weight: float = 0.5, **kwargs: Any,
    ) -> None:  # fmt: skip
        super().__init__(*args, **kwargs)
        self.margin, self.epsilon = margin, epsilon
        self.triplet_weight, self.class_weight = triplet_weight, class_weight

    def encoder_losses(self, embedding: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """{"loss_class", "loss_triplet", "accuracy"}, the losses weighted."""
        losses = super().encoder_losses(embedding, labels)
        losses["loss_class"] = self.class_weight * losses["loss_class"]
        triplets = mined_triplets(embedding, labels, self.epsilon)
        losses["loss_triplet"] = self.triplet_weight * triplet_loss(embedding, triplets, self.margin)
        return losses
