"""HD-GCN (Lee et al., ICCV 2023): graph convolution over the layers of a hierarchy of joints.

B is samples times persons, L the layers of the hierarchy. All layers are computed at once: what the paper has as
a convolution per layer is a grouped convolution here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.compat import MODELS
from pipeline.datasets.skeletons.graph import SkeletonGraph
from pipeline.errors import UserError
from pipeline.models.skeleton.blocks import (
    MultiScaleTemporal,
    SpatioTemporalBlock,
    build_blocks,
    init_conv,
    shortcut,
)
from pipeline.models.skeleton.encoder import SkeletonEncoder, normalise_input

SUBSETS = 3  # self links, inner to outer joints, outer to inner joints


def nearest(x: Tensor, k: int) -> Tensor:
    """Indices (..., n, k) of the k vectors nearest to each of the n columns of x (..., C, n), itself included."""
    with torch.no_grad():
        columns = x.transpose(-1, -2)
        return torch.cdist(columns, columns).topk(min(k, x.shape[-1]), dim=-1, largest=False).indices


class EdgeConv(nn.Module):
    """Edge convolution: (B, G, C, n) -> (B, G, C, n), G groups with weights of their own, n joints or layers.

    Each place takes the maximum, over the `k` places nearest in feature space, of LeakyReLU(BN(W [neighbour - x, x])).
    """

    def __init__(self, width: int, k: int, groups: int = 1) -> None:
        super().__init__()
        self.k, self.groups = k, groups
        self.conv = nn.Conv2d(2 * width * groups, width * groups, 1, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(width * groups)
        init_conv(self.conv, merged=groups)

    def forward(self, x: Tensor) -> Tensor:
        index = nearest(x, self.k)  # (B, G, n, k)
        own = x[..., None].expand(*x.shape, index.shape[-1])
        neighbours = own.gather(-2, index[:, :, None].expand_as(own))
        pairs = torch.cat((neighbours - own, own), dim=2).flatten(1, 2)  # (B, G * 2C, n, k)
        return F.leaky_relu(self.norm(self.conv(pairs)), 0.2).amax(-1).unflatten(1, (self.groups, -1))


class HierarchyAttention(nn.Module):
    """A-HA: the sum of the layers, each weighed by a sigmoid per channel. (B, L, C, T, V) -> (B, C, T, V).

    Of a layer it looks at the maximum over time, reduced to C / 4 and averaged over the joints of its two groups;
    an edge convolution relates each layer to its 3 nearest.
    """

    def __init__(self, width: int, groups: Sequence[Sequence[int]], joints: int) -> None:
        super().__init__()
        low = width // 4
        self.reduce = nn.Sequential(nn.Conv2d(width, low, 1), nn.BatchNorm2d(low), nn.ReLU())
        init_conv(self.reduce[0])
        self.edge = EdgeConv(low, k=3)
        self.expand = nn.Conv1d(low, width, 1)
        members = torch.zeros(len(groups) - 1, joints)
        for layer, row in enumerate(members):
            inside = [*groups[layer], *groups[layer + 1]]
            row[inside] = 1 / len(inside)
        self.register_buffer("members", members, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        low = self.reduce(x.amax(3).transpose(1, 2))  # (B, C / 4, L, V)
        low = torch.einsum("bclv,lv->bcl", low, self.members)
        weight = self.expand(self.edge(low[:, None])[:, 0]).sigmoid()  # (B, C, L)
        return torch.einsum("blctv,bcl->bctv", x, weight)


class HierarchyGraphConv(nn.Module):
    """HD-GCN's graph convolution: (B, C, T, V) -> (B, C', T, V).

    Per layer: 1x1 to C' / 4, BN, ReLU; aggregated over the layer's three learnable graphs, each followed by a 1x1
    and BN; and an edge convolution (k 5) of the mean over time; the four joined are C' wide. The layers are summed
    or, with `attention`, weighed by A-HA. BN (weight 1e-6 at the start), shortcut, ReLU.
    """

    def __init__(self, width_in: int, width_out: int, graph: SkeletonGraph, center: int, attention: bool) -> None:
        super().__init__()
        if width_out % 4:
            raise UserError(f"block width {width_out} is not a multiple of 4, the branches of HD-GCN's convolution")
        self.adjacency = nn.Parameter(graph.hierarchy_adjacency(center))
        layers, low = len(self.adjacency), width_out // 4
        self.layers = layers
        self.reduce = nn.Sequential(nn.Conv2d(width_in, layers * low, 1), nn.BatchNorm2d(layers * low), nn.ReLU())
        all_low = layers * SUBSETS * low
        self.mix = nn.Sequential(nn.Conv2d(all_low, all_low, 1, groups=layers * SUBSETS), nn.BatchNorm2d(all_low))
        init_conv(self.reduce[0], merged=layers)
        init_conv(self.mix[0], merged=layers * SUBSETS)
        self.edge = EdgeConv(low, k=5, groups=layers)
        self.attention = HierarchyAttention(width_out, graph.hierarchy(center), len(graph)) if attention else None
        self.down = shortcut(width_in, width_out, 1)
        self.bn = nn.BatchNorm2d(width_out)
        nn.init.constant_(self.bn.weight, 1e-6)

    def forward(self, x: Tensor) -> Tensor:
        low = self.reduce(x).unflatten(1, (self.layers, -1))  # (B, L, C / 4, T, V)
        mixed = torch.einsum("blctu,lsvu->blsctv", low, self.adjacency)
        mixed = self.mix(mixed.flatten(1, 3)).unflatten(1, (self.layers, -1))
        edge = self.edge(low.mean(3))[:, :, :, None].expand_as(low)
        joined = torch.cat((mixed, edge), dim=2)  # (B, L, C, T, V)
        joined = joined.sum(1) if self.attention is None else self.attention(joined)
        return F.relu(self.bn(joined) + self.down(x))


def _init_temporal(temporal: MultiScaleTemporal) -> None:
    """HD-GCN's own start of its temporal convolutions: fan-out normal weights, BN weights around 1."""
    init_conv(temporal.reduce[0], merged=3)
    for conv in (*temporal.over_time, temporal.plain):
        init_conv(conv)
    for norm in (temporal.reduce[1], temporal.norm):
        nn.init.normal_(norm.weight, 1, 0.02)


@MODELS.register_module()
class HDGCN(SkeletonEncoder):
    """HD-GCN's encoder and, with `classes`, its classifier; the embedding is the pooled feature.

    `center` names the joint that the hierarchy starts from (default: the skeleton's centre; on NTU "base of spine",
    "mid of spine" and "spine" are the paper's centres of mass 1, 2 and 21). The first block has no shortcut
    around it and no A-HA. The published model is the default: 1,670,260 parameters with 100 classes.
    Raises UserError for an unknown joint or widths and strides of different number.
    """

    def __init__(
        self,
        graph: SkeletonGraph | str | Mapping[str, Any] = "ntu25",
        in_channels: int = 3,
        persons: int = 2,
        classes: int | None = None,
        center: str | None = None,
        channels: Sequence[int] = (64, 64, 64, 64, 128, 128, 128, 256, 256, 256),
        strides: Sequence[int] = (1, 1, 1, 1, 2, 1, 1, 2, 1, 1),
    ) -> None:
        super().__init__(graph, persons)
        origin = self.graph.center if center is None else self.graph.joint(center)
        self.norm = nn.BatchNorm1d(persons * self.joints * in_channels)

        def block(index: int, before: int, after: int, stride: int) -> SpatioTemporalBlock:
            spatial = HierarchyGraphConv(before, after, self.graph, origin, attention=index > 0)
            temporal = MultiScaleTemporal(after, stride)
            _init_temporal(temporal)
            return SpatioTemporalBlock(spatial, temporal, shortcut(before, after, stride) if index else None)

        self.blocks = build_blocks(block, in_channels, channels, strides)
        self._set_widths(channels, channels[-1], classes)

    def _embed(self, x: Tensor) -> Tensor:
        return normalise_input(self.norm, x.permute(0, 4, 3, 1, 2))
