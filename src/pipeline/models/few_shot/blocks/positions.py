"""Position codes of the few-shot heads: sinusoids added to the features of frames or patches."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def sinusoid(length: int, dim: int, stretched: bool = False) -> Tensor:
    """Sine in the even and cosine in the odd dimensions, at positions 0..length-1: (length, dim).

    Dimensions 2j and 2j + 1 share the frequency 10000^(-2j / dim) (Vaswani et al., NeurIPS 2017, Section 3.5).
    `stretched` is the form of HyRSM and MoLo: dimension i has the frequency 10000^(-2i / dim), odd or even.
    """
    dimension = torch.arange(dim, dtype=torch.float64)
    exponent = 2 * dimension if stretched else dimension - dimension % 2
    angle = torch.arange(length, dtype=torch.float64)[:, None] * 10000.0 ** (-exponent / dim)
    return torch.where(dimension % 2 == 0, angle.sin(), angle.cos()).float()


class PositionCode(nn.Module):
    """gain * x + weight * sinusoid, then dropout, for tokens x (..., n, dim).

    TRX and STRM: gain 1, weight 0.1. HyRSM and MoLo: gain sqrt(dim / A), weight B, stretched sinusoid.
    """

    def __init__(
        self, dim: int, gain: float = 1.0, weight: float = 0.1, dropout: float = 0.1, stretched: bool = False
    ) -> None:
        super().__init__()
        self.dim, self.gain, self.weight, self.stretched = dim, gain, weight, stretched
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(..., n, dim) -> (..., n, dim)."""
        code = sinusoid(x.shape[-2], self.dim, self.stretched).to(x)
        return self.dropout(self.gain * x + self.weight * code)
