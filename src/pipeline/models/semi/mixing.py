"""Tube TokenMix (SVFormer, CVPR 2023): two videos in one, patch by patch, with a target in the same proportion."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.models.semi.regulation import Pseudo


def tube_mask(patches: int, share: float, rng: np.random.Generator) -> np.ndarray:
    """Patches, int(share * P) of them at random, that stay in all frames: bool (P,)."""
    mask = np.zeros(patches, dtype=bool)
    mask[rng.permutation(patches)[: int(share * patches)]] = True
    return mask


def mix_patches(stay: Tensor, come: Tensor, mask: Tensor) -> Tensor:
    """Patch embeddings (B, T, P, D): those of `stay` where the mask (P,) is true, else of `come`."""
    return torch.where(mask[:, None], stay, come)


def mix_targets(target: Tensor, share: float, partner: Tensor) -> Tensor:
    """share * target + (1 - share) * target[partner], for targets (B, C) or weights (B,)."""
    return share * target + (1 - share) * target[partner]


def hardened(pseudo: Pseudo, weight: Tensor) -> Tensor:
    """Probabilities (B, C), one-hot where the weight is positive (SVFormer)."""
    one_hot = F.one_hot(pseudo.labels, pseudo.probabilities.shape[-1]).to(pseudo.probabilities.dtype)
    return torch.where(weight[:, None] > 0, one_hot, pseudo.probabilities)
