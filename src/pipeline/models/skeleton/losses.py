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


@torch.no_grad()
def mined_triplets(embedding: Tensor, labels: Tensor, epsilon: float = 0.1) -> Tensor:
    """Places (n, 3) of anchor, positive and negative in a batch of embeddings (N, D).

    Of an anchor's positives and negatives those are kept that are less than `epsilon` easier than its hardest negative
    and hardest positive (cosine). Its kept positives, the hardest first, meet its kept negatives, the hardest last, one
    to one; the shorter list is repeated. So pytorch-metric-learning's multi-similarity miner and triplet loss of 2020.
    """
    unit = F.normalize(embedding, dim=-1)
    similar, alike = unit @ unit.T, labels[:, None] == labels
    found = []
    for anchor in range(len(labels)):
        row = similar[anchor]
        positives, negatives = alike[anchor].clone(), ~alike[anchor]
        positives[anchor] = False
        if not (positives.any() and negatives.any()):
            continue
        positives &= row - epsilon < row[negatives].max()
        negatives &= row + epsilon > row[alike[anchor] & (torch.arange(len(row), device=row.device) != anchor)].min()
        one, other = (places.nonzero().flatten() for places in (positives, negatives))
        if not (len(one) and len(other)):
            continue
        one, other = one[row[one].argsort()], other[row[other].argsort()]
        turns = torch.arange(max(len(one), len(other)), device=row.device)
        anchors = torch.full_like(turns, anchor)
        found.append(torch.stack((anchors, one[turns % len(one)], other[turns % len(other)]), dim=1))
    return torch.cat(found) if found else labels.new_zeros(0, 3)


def triplet_loss(embedding: Tensor, triplets: Tensor, margin: float = 0.2) -> Tensor:
    """Mean of max(0, d(a, p) - d(a, n) + margin) over the triplets (n, 3) where it is positive, else zero.

    d: Euclidean distance of the normalised embeddings, 1e-6 added to their difference.
    """
    unit = F.normalize(embedding, dim=-1)
    anchor, positive, negative = (unit[places] for places in triplets.T)
    value = F.pairwise_distance(anchor, positive) - F.pairwise_distance(anchor, negative) + margin
    counted = value > 0
    return (value * counted).sum() / counted.sum().clamp(min=1)
