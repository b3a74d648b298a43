"""MoLo's motion autoencoder (Wang et al., CVPR 2023, Section 3.3): differences of feature maps, and what they show."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.errors import UserError


class MotionMaps(nn.Module):
    """Motion between neighbouring frames: a convolved map of the next frame minus the map of this one.

    Maps are first reduced to dim / reduction channels by a 3x3x3 convolution over time and space. Raises UserError if
    `reduction` does not divide `dim`.
    """

    def __init__(self, dim: int, reduction: int = 8) -> None:
        super().__init__()
        if reduction < 1 or dim % reduction:
            raise UserError(f"feature width {dim} is not a multiple of reduction {reduction}; change reduction")
        self.channels = dim // reduction
        self.reduce = nn.Conv3d(dim, self.channels, 3, padding=1)
        self.move = nn.Conv2d(self.channels, self.channels, 3, padding=1)
        self.expand = nn.Conv2d(self.channels, dim, 1)

    def forward(self, maps: Tensor) -> Tensor:
        """Feature maps (B, T, dim, h, w) -> motion maps (B, T - 1, channels, h, w). Raises UserError if T is 1."""
        if maps.shape[1] < 2:
            raise UserError("motion needs two frames of a video or more; raise frames.number")
        reduced = self.reduce(maps.transpose(1, 2)).transpose(1, 2)
        moved = self.move(reduced[:, 1:].flatten(0, 1)).unflatten(0, (len(maps), -1))
        return moved - reduced[:, :-1]

    def tokens(self, motion: Tensor) -> Tensor:
        """Motion maps (B, T - 1, channels, h, w) -> one feature each, (B, T - 1, dim)."""
        expanded = self.expand(motion.flatten(0, 1)).relu()
        return expanded.mean((-2, -1)).unflatten(0, motion.shape[:2])


class MotionDecoder(nn.Module):
    """Draws the difference of two frames from their motion map: three times bilinear upsampling, 3x3 convolution,
    BatchNorm and ReLU, then a 1x1 convolution.

    The sizes between are 1/5, 3/5 and all of the way on a logarithmic scale: from 7 to 224 that is x2, x4, x4.
    """

    WIDTHS = (128, 32, 16)
    STAGES = (1 / 5, 3 / 5, 1)

    def __init__(self, channels: int) -> None:
        super().__init__()
        widths = (channels, *self.WIDTHS)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(narrow, wide, 3, padding=1, bias=False), nn.BatchNorm2d(wide), nn.ReLU())
            for narrow, wide in zip(widths, self.WIDTHS, strict=False)
        )
        self.out = nn.Conv2d(self.WIDTHS[-1], 3, 1)

    def forward(self, motion: Tensor, size: tuple[int, int]) -> Tensor:
        """Motion maps (M, channels, h, w) -> pictures (M, 3, *size)."""
        start = motion.shape[-2:]
        for stage, block in zip(self.STAGES, self.blocks, strict=True):
            between = [round(a * (b / a) ** stage) for a, b in zip(start, size, strict=True)]
            motion = block(F.interpolate(motion, between, mode="bilinear", align_corners=True))
        return self.out(motion)


def frame_differences(clips: Tensor) -> Tensor:
    """Next frame minus this one: (B, T, 3, H, W) -> (B, T - 1, 3, H, W)."""
    return torch.diff(clips, dim=1)
