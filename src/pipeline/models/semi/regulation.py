"""What the teacher's predictions tell: pseudo-labels, and how far to trust each of them."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

BETA, EPSILON = 20.0, 1e-9  # SeFAR, Eq. 7


class Pseudo(NamedTuple):
    """Of B videos: mean probabilities (B, C), their largest's class and value (B,), its standard deviation (B,)."""

    probabilities: Tensor
    labels: Tensor
    confidence: Tensor
    deviation: Tensor


def pseudo_labels(logits: Tensor) -> Pseudo:
    """Sum up U passes of the teacher, (U, B, C). The deviation is the unbiased one over the passes; 0 if U is 1."""
    passes = logits.float().softmax(-1)
    mean = passes.mean(0)
    confidence, labels = mean.max(-1)
    spread = passes.std(0) if len(passes) > 1 else torch.zeros_like(mean)
    return Pseudo(mean, labels, confidence, spread.gather(-1, labels[:, None]).squeeze(-1))


def adaptive_weight(
    confidence: Tensor, deviation: Tensor, beta: float = BETA, epsilon: float = EPSILON, factor: float = 2.0
) -> Tensor:
    """SeFAR's adaptive regulation (Eq. 7): eta in 0..1, near 1 for a confident and steady prediction, (B,) -> (B,).

    eta = f sigmoid(e^mu - e) * f (sigmoid(1 / (beta sigma + epsilon)) - 1/2). The released code has f = 2 in both
    factors, the paper prints neither (f = 1).
    """
    certain = factor * torch.sigmoid(confidence.exp() - math.e)
    steady = factor * (torch.sigmoid(1 / (beta * deviation + epsilon)) - 0.5)
    return certain * steady


def threshold_weight(confidence: Tensor, threshold: float) -> Tensor:
    """1 where the confidence (B,) reaches the threshold, else 0 (FixMatch, SVFormer)."""
    return (confidence >= threshold).to(confidence.dtype)
