"""InfoGCN (Chi et al., CVPR 2022): self-attention graph convolutions and a latent trained towards class priors."""

from __future__ import annotations

import math
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
    shortcut,
)
from pipeline.models.skeleton.encoder import SkeletonEncoder, normalise_input
from pipeline.models.skeleton.losses import latent_losses

MAX_STD = 100.0  # cap of the latent's noise


class SelfAttentionGraphConv(nn.Module):
    """InfoGCN's SA-GC: (B, C, T, V) -> (B, C', T, V).

    In each frame and head the joints attend to each other; the attention is multiplied with a learned topology
    (`heads`, V, V) that starts as identity, and the mixed joints go through a linear map per head. Sum over
    heads, BN (weight 1e-6 at the start), shortcut, ReLU. Raises UserError if `width_in` is below 8.
    """

    def __init__(self, width_in: int, width_out: int, joints: int, heads: int) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, width_in // 8
        if not self.head_dim:
            raise UserError(f"block width {width_in} is below 8: no channel left for an attention head")
        self.topology = nn.Parameter(torch.eye(joints).repeat(heads, 1, 1))
        self.norm = nn.LayerNorm(width_in)
        self.to_qk = nn.Linear(width_in, 2 * heads * self.head_dim)
        nn.init.normal_(self.to_qk.weight, 0, 1)
        self.mix = nn.ModuleList(nn.Linear(width_in, width_out) for _ in range(heads))
        for mix in self.mix:
            nn.init.normal_(mix.weight, 0, math.sqrt(2 / (width_in * width_out * heads)))
            nn.init.zeros_(mix.bias)
        self.bn = nn.BatchNorm2d(width_out)
        nn.init.constant_(self.bn.weight, 1e-6)
        self.down = shortcut(width_in, width_out, 1)

    def attention(self, tokens: Tensor) -> Tensor:
        """(B, T, V, C) -> (heads, B, T, V, V), rows sum to 1."""
        q, k = self.to_qk(self.norm(tokens)).unflatten(-1, (2, self.heads, self.head_dim)).movedim((-3, -2), (0, 1))
        return (q @ k.transpose(-1, -2) * self.head_dim**-0.5).softmax(-1)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.permute(0, 2, 3, 1)
        graphs = self.attention(tokens) * self.topology[:, None, None]
        mixed = sum(mix(graph @ tokens) for mix, graph in zip(self.mix, graphs, strict=True))
        return F.relu(self.bn(mixed.permute(0, 3, 1, 2)) + self.down(x))


@MODELS.register_module()
class InfoGCN(SkeletonEncoder):
    """InfoGCN's encoder, its latent head and, with `classes`, its classifier.

    Input: I - A^k of the joints (`SkeletonGraph.power_transform`; k 8 = joints, 1 = bones on NTU), linear to
    `channels[0]`, plus a learned position per joint, BN. Head: ReLU(linear) = `hidden`, then mu and log-variance;
    the embedding is mu + noise * exp(noise_ratio * logvar) in training (noise from torch's global generator, the
    factor at most 100) and mu otherwise. The published model is the default: 1,567,087 parameters with 100
    classes. `prior` holds the classes' orthogonal latent targets of norm `prior_gain`, drawn once.

    Raises:
        UserError: k below 1, widths and strides of different number, or a width that does not fit.
    """

    prior: Tensor

    def __init__(
        self,
        graph: SkeletonGraph | str | Mapping[str, Any] = "ntu25",
        in_channels: int = 3,
        persons: int = 2,
        classes: int | None = None,
        k: int = 8,
        channels: Sequence[int] = (64, 64, 64, 128, 128, 128, 256, 256, 256),
        strides: Sequence[int] = (1, 1, 1, 2, 1, 1, 2, 1, 1),
        heads: int = 3,
        noise_ratio: float = 0.5,
        prior_gain: float = 3.0,
    ) -> None:
        super().__init__(graph, persons)
        if k < 1:
            raise UserError(f"InfoGCN's k is {k}, which makes its input zero; use 1 for bones or 8 for NTU's joints")
        self.noise_ratio = noise_ratio
        first, width = channels[0], channels[-1]
        self.register_buffer("transform", self.graph.power_transform(k), persistent=False)
        self.to_joint = nn.Linear(in_channels, first)
        self.position = nn.Parameter(torch.randn(1, self.joints, first))
        self.norm = nn.BatchNorm1d(persons * self.joints * first)

        def block(index: int, before: int, after: int, stride: int) -> SpatioTemporalBlock:
            spatial = SelfAttentionGraphConv(before, after, self.joints, heads)
            temporal = nn.Sequential(MultiScaleTemporal(after, stride), nn.ReLU())  # a ReLU before the sum, too
            return SpatioTemporalBlock(spatial, temporal, shortcut(before, after, stride))

        self.blocks = build_blocks(block, first, channels, strides)
        self.fc, self.fc_mu, self.fc_logvar = (nn.Linear(width, width) for _ in range(3))
        for layer in (self.fc, self.fc_mu, self.fc_logvar):
            nn.init.xavier_uniform_(layer.weight, gain=math.sqrt(2))
        self._set_widths(channels, width, classes)
        if classes:
            self.register_buffer("prior", nn.init.orthogonal_(torch.empty(classes, width), gain=prior_gain))

    def _embed(self, x: Tensor) -> Tensor:
        joints = self.transform @ x.permute(0, 4, 2, 3, 1)  # (N, M, T, V, C)
        joints = self.to_joint(joints) + self.position
        return normalise_input(self.norm, joints.permute(0, 1, 3, 4, 2))

    def hidden(self, pooled: Tensor) -> Tensor:
        """ReLU(linear) (N, D): not negative, so fit for distribution calibration's power transform."""
        return F.relu(self.fc(pooled))

    def sample(self, mu: Tensor, logvar: Tensor, noise: Tensor | None = None) -> Tensor:
        """The latent (N, D) from its mean and log-variance; `noise` is drawn if not given, and unused in eval mode."""
        if not self.training:
            return mu
        noise = torch.randn_like(mu) if noise is None else noise
        # The cap is on the exponent: exp would overflow first, and its gradient be inf * 0.
        return mu + noise * (self.noise_ratio * logvar).clamp(max=math.log(MAX_STD)).exp()

    def head(self, pooled: Tensor) -> Tensor:
        """(N, D) -> the latent z (N, D)."""
        hidden = self.hidden(pooled)
        return self.sample(self.fc_mu(hidden), self.fc_logvar(hidden))

    def regularisation(self, embedding: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """InfoGCN's two maximum mean discrepancy terms on the latent. Needs `classes`."""
        return latent_losses(embedding, labels, self.prior)
