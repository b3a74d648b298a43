"""Losses of the skeleton encoders: InfoGCN's terms on the latent, supervised contrastive learning."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def latent_discrepancy(z: Tensor, labels: Tensor, prior: Tensor) -> tuple[Tensor, Tensor]:
    """InfoGCN's conditional and marginal discrepancies of latents z (N, D) from `prior` (classes, D) -> two scalars.

    The mean square, over the classes present and D, of (mean z of the class - its prior), and the 2-norm of the
    batch's mean z.
    """
    present, index = labels.unique(return_inverse=True)
    one_hot = F.one_hot(index, len(present)).to(z.dtype)
    means = one_hot.T @ z / one_hot.sum(0)[:, None]
    return F.mse_loss(means, prior[present].to(z.dtype)), z.mean(0).norm()


def latent_losses(
    z: Tensor, labels: Tensor, prior: Tensor, conditional: float = 0.1, marginal: float = 1e-4
) -> dict[str, Tensor]:
    """`latent_discrepancy` with InfoGCN's weights: {"loss_prior", "loss_mean"}."""
    by_class, overall = latent_discrepancy(z, labels, prior)
    return {"loss_prior": conditional * by_class, "loss_mean": marginal * overall}


def supervised_contrastive_loss(
    features: Tensor, labels: Tensor, temperature: float = 0.1, base_temperature: float = 0.07
) -> Tensor:
    """SupCon (Khosla et al., NeurIPS 2020, Eq. 2) on unit features (N, views, D), every view an anchor -> scalar.

    The mean over anchors, times temperature / base_temperature as in its released code and in MotionBERT's.
    Anchors without a second feature of their class are left out; zero if none has one.
    """
    n, views, _ = features.shape
    flat, labels = features.transpose(0, 1).flatten(0, 1), labels.repeat(views)
    itself = torch.eye(n * views, dtype=torch.bool, device=features.device)
    scores = (flat @ flat.T / temperature).masked_fill(itself, -torch.inf)
    log_probability = scores.log_softmax(-1).masked_fill(itself, 0)
    positives = (labels[:, None] == labels) & ~itself
    count = positives.sum(-1)
    per_anchor = (log_probability * positives).sum(-1) / count.clamp(min=1)
    anchors = (count > 0).sum().clamp(min=1)
    return -temperature / base_temperature * per_anchor.sum() / anchors


def contrastive_chance(batch: int, temperature: float = 0.1, base_temperature: float = 0.07) -> float:
    """`supervised_contrastive_loss` of a batch of equal features, one view each, which tell nothing apart."""
    return temperature / base_temperature * math.log(max(batch - 1, 1))
