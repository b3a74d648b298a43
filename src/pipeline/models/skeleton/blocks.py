"""The graph-then-time block that InfoGCN, HD-GCN and ST-GCN share, and the first two's multi-scale convolution."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.errors import UserError


class SpatioTemporalBlock(nn.Module):
    """ReLU(temporal(scale * spatial(x)) + residual(x)), `residual` None for none: state (B, C, T, V) -> (B, C', T', V).

    `scale` broadcasts over the spatial part's output, (B, 1, 1, V); a zero leaves a joint only the shortcut and what
    the temporal part makes of zeros.
    """

    def __init__(self, spatial: nn.Module, temporal: nn.Module, residual: nn.Module | None) -> None:
        super().__init__()
        self.spatial, self.temporal, self.residual = spatial, temporal, residual

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        mixed = self.spatial(x)
        if scale is not None:
            mixed = mixed * scale
        out = self.temporal(mixed)
        return F.relu(out if self.residual is None else out + self.residual(x))


class Pointwise(nn.Conv2d):
    """1x1 convolution with a stride in time, as one of stride 1 on the frames that it keeps: the same numbers.

    A processor's kernel for a strided 1x1 convolution of few channels has ended the process (oneDNN in PyTorch 2.13,
    AVX-512); this one is a matrix product.
    """

    def __init__(self, width_in: int, width_out: int, stride: int = 1) -> None:
        super().__init__(width_in, width_out, 1)
        self.step = stride

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x[:, :, :: self.step])


class MultiScaleTemporal(nn.Module):
    """Temporal convolution in four branches of a quarter of the width each, no shortcut: (B, C, T, V) -> (B, C, T', V).

    Branches: 1x1, BN, ReLU, then 5x1 with dilation 1; the same with dilation 2; the same, then max over 3 frames;
    a plain 1x1. All end in BN and `stride` in time. The 1x1 of the first three are one convolution here and the
    last BN of all four are one, which is the same. Raises UserError unless 4 divides `width`.
    """

    def __init__(self, width: int, stride: int = 1) -> None:
        super().__init__()
        if width % 4:
            raise UserError(f"block width {width} is not a multiple of 4, the branches of its temporal convolution")
        part = width // 4
        self.reduce = nn.Sequential(nn.Conv2d(width, 3 * part, 1), nn.BatchNorm2d(3 * part), nn.ReLU())
        self.over_time = nn.ModuleList(
            nn.Conv2d(part, part, (5, 1), (stride, 1), (2 * dilation, 0), (dilation, 1)) for dilation in (1, 2)
        )
        self.pool = nn.MaxPool2d((3, 1), (stride, 1), (1, 0))
        self.plain = Pointwise(width, part, stride)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        *dilated, pooled = self.reduce(x).chunk(3, dim=1)
        branches = [conv(part) for conv, part in zip(self.over_time, dilated, strict=True)]
        return self.norm(torch.cat((*branches, self.pool(pooled), self.plain(x)), dim=1))


def pointwise(width_in: int, width_out: int, stride: int = 1) -> nn.Sequential:
    """1x1 convolution and BN, the shortcut where the shape changes."""
    conv = Pointwise(width_in, width_out, stride)
    init_conv(conv)
    return nn.Sequential(conv, nn.BatchNorm2d(width_out))


def shortcut(width_in: int, width_out: int, stride: int) -> nn.Module:
    """A block's residual connection."""
    return nn.Identity() if (width_in, stride) == (width_out, 1) else pointwise(width_in, width_out, stride)


def init_conv(conv: nn.Conv2d | nn.Conv1d, merged: int = 1) -> None:
    """Normal weights with variance 2 / fan-out and zero bias; `merged` convolutions are stacked in this one."""
    fan_out = conv.out_channels // merged * math.prod(conv.kernel_size)
    nn.init.normal_(conv.weight, 0, math.sqrt(2 / fan_out))
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)


def build_blocks(
    block: Callable[[int, int, int, int], nn.Module], width_in: int, channels: Sequence[int], strides: Sequence[int]
) -> nn.ModuleList:
    """block(index, width before, width after, stride) for each of `channels`. Raises UserError for unequal lengths."""
    if len(channels) != len(strides) or not channels:
        raise UserError(f"{len(channels)} block widths but {len(strides)} strides; give one of each a block")
    before = (width_in, *channels[:-1])
    return nn.ModuleList(map(block, range(len(channels)), before, channels, strides))
