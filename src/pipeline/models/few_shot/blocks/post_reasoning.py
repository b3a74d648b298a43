"""EMP-Net's blocks: attention over the tokens of a frozen CLIP, in space, in time, and with the text of a class."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.models.few_shot.blocks.necks import AttentionBlock

HEADS = 4
DROPOUT, FFN_DROPOUT = 0.2, 0.05


def cross_block(dim: int) -> AttentionBlock:
    """Attention of half the width, then a feed-forward network of a quarter, each with its residual."""
    return AttentionBlock(dim, HEADS, dim // 4, DROPOUT, FFN_DROPOUT, inner=dim // 2)


class SelfAttention(nn.Module):
    """LayerNorm and multi-head attention of half the width among the tokens of a group; the residual is the caller's.

    Released: one joint projection without bias, softmax over products divided by the root of a head's width, an output
    projection with bias, dropout after it.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.project = nn.Linear(dim, 3 * (dim // 2), bias=False)
        self.out = nn.Sequential(nn.Linear(dim // 2, dim), nn.Dropout(DROPOUT))

    def forward(self, x: Tensor) -> Tensor:
        """(B, n, D) -> (B, n, D)."""
        q, k, v = (
            part.unflatten(-1, (HEADS, -1)).transpose(-3, -2) for part in self.project(self.norm(x)).chunk(3, dim=-1)
        )
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(-3, -2).flatten(-2))


class SpaceTimeBlock(nn.Module):
    """Patches of a frame see each other, the CLS tokens of a video see each other, then one feed-forward network.

    Patches don't see the CLS token of their frame, and nothing here knows the order of frames.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.space, self.time = SelfAttention(dim), SelfAttention(dim)
        self.ffn = nn.Sequential(
            nn.Linear(dim, dim // 4),
            nn.GELU(),
            nn.Dropout(FFN_DROPOUT),
            nn.Linear(dim // 4, dim),
            nn.Dropout(FFN_DROPOUT),
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T, 1 + P, D), the CLS token of a frame first -> (B, T, 1 + P, D)."""
        cls, patches = tokens[:, :, 0], tokens[:, :, 1:]
        cls = cls + self.time(cls)
        patches = patches + self.space(patches.flatten(0, 1)).unflatten(0, patches.shape[:2])
        tokens = torch.cat((cls.unsqueeze(2), patches), dim=2)
        return tokens + self.ffn(tokens)
