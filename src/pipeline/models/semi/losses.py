"""Losses on unlabelled videos, and when they set in (SeFAR, Eqs. 3 and 8)."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

from pipeline.errors import unknown

MIX_LOSSES = ("logits", "probabilities")


def ssl_progress(epoch: int, epochs: int, warm_epochs: int = 0) -> float:
    """How much of the semi-supervised phase is over at the end of `epoch` (from 0): in 0..1.

    The phase begins after `warm_epochs` supervised epochs; the paper's n/M is without these.
    """
    return min(max((epoch + 1 - warm_epochs) / max(epochs - warm_epochs, 1), 0.0), 1.0)


def ramp_up(progress: float) -> float:
    """xi = sin(pi/2 * progress), the weight of the losses on unlabelled videos (Eq. 8)."""
    return math.sin(math.pi / 2 * progress)


def unlabelled_loss(logits: Tensor, labels: Tensor, weight: Tensor) -> Tensor:
    """Mean over videos of weight * cross-entropy: logits (B, C), pseudo-labels (B,), weight (B,) -> scalar."""
    return (weight * F.cross_entropy(logits, labels, reduction="none")).mean()


def mixed_loss(logits: Tensor, target: Tensor, weight: Tensor, on: str = "logits") -> Tensor:
    """Mean over videos of weight * mean over classes of a squared difference: (B, C), (B, C), (B,) -> scalar.

    on: what is compared with the target's probabilities. "logits" is what both released codes do and train with,
    "probabilities" compares like with like.
    """
    if on not in MIX_LOSSES:
        raise unknown("mix loss", on, MIX_LOSSES, "model.mix_loss")
    guess = logits.softmax(-1) if on == "probabilities" else logits
    return (weight * (guess - target).square().mean(-1)).mean()
