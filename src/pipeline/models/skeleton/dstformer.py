"""DSTformer, the encoder of MotionBERT (Zhu et al., ICCV 2023), with MotionBERT's one-shot embedding."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.compat import MODELS
from pipeline.datasets.skeletons.graph import SkeletonGraph
from pipeline.errors import UserError
from pipeline.models.skeleton.encoder import SkeletonEncoder

NORM_EPS = 1e-6


class AttentionLayer(nn.Module):
    """Self-attention over the last but one dimension and an MLP (GELU), both pre-norm with residual: (..., n, C).

    `scale` (broadcast to the shape) weighs what the attention adds to the residual stream.
    """

    def __init__(self, dim: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=NORM_EPS), nn.LayerNorm(dim, eps=NORM_EPS)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        attended = self._attend(self.norm1(x))
        x = x + (attended if scale is None else attended * scale)
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))

    def _attend(self, x: Tensor) -> Tensor:
        # One batch dimension: scaled_dot_product_attention then always finds its fast kernels.
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1)).flatten(0, -5)  # (B, n, 3, heads, C / heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape))


class Stream(nn.Module):
    """Attention over joints, then over frames, or the other way round: (B, T, V, C), scale (B, 1, V, 1)."""

    def __init__(self, dim: int, heads: int, hidden: int, space_first: bool) -> None:
        super().__init__()
        self.space, self.time = (AttentionLayer(dim, heads, hidden) for _ in range(2))
        self.space_first = space_first

    def forward(self, x: Tensor, scale: Tensor | None) -> Tensor:
        if self.space_first:
            x = self.space(x, scale)
        x = self.time(x.transpose(1, 2)).transpose(1, 2)
        return x if self.space_first else self.space(x, scale)


class DualStreamBlock(nn.Module):
    """A space-time and a time-space stream, fused by weights that each token predicts: state -> state.

    `scale` (B, 1, 1, V) weighs the spatial attention of both streams. The residual streams pass it by, so a zero
    leaves a joint to itself: it takes nothing from the other joints.
    """

    def __init__(self, dim: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.st = Stream(dim, heads, hidden, space_first=True)
        self.ts = Stream(dim, heads, hidden, space_first=False)
        self.fuse = nn.Linear(2 * dim, 2)

    def forward(self, state: Tensor, scale: Tensor | None = None) -> Tensor:
        x = state.permute(0, 2, 3, 1)
        scale = None if scale is None else scale.transpose(-1, -2)
        st, ts = self.st(x, scale), self.ts(x, scale)
        weight = self.fuse(torch.cat((st, ts), dim=-1)).softmax(-1)
        return (st * weight[..., :1] + ts * weight[..., 1:]).permute(0, 3, 1, 2)


@MODELS.register_module()
class DSTformer(SkeletonEncoder):
    """DSTformer and MotionBERT's one-shot head: dropout, mean over frames and persons, linear from all joints, L2.

    The final feature of a joint is the "motion representation", tanh(linear(LayerNorm)). The defaults are the
    published one-shot model: 60,294,157 parameters with `pose_head`, the linear map to 3-D poses that its
    pre-training uses and recognition does not (1,539 of them). Input: (x, y, confidence), at most `max_frames`.
    Raises UserError if `heads` does not divide `width`.
    """

    def __init__(
        self,
        graph: SkeletonGraph | str | Mapping[str, Any] = "h36m17",
        in_channels: int = 3,
        persons: int = 2,
        classes: int | None = None,
        width: int = 512,
        depth: int = 5,
        heads: int = 8,
        mlp_ratio: float = 2.0,
        representation: int = 512,
        embedding: int = 2048,
        dropout: float = 0.1,
        max_frames: int = 243,
        pose_head: bool = False,
    ) -> None:
        super().__init__(graph, persons)
        if heads < 1 or width % heads:
            raise UserError(f"DSTformer's width {width} is not a multiple of its {heads} heads; change width or heads")
        self.max_frames = max_frames
        self.to_joint = nn.Linear(in_channels, width)
        self.joint_position = nn.Parameter(torch.zeros(1, self.joints, width))
        self.time_position = nn.Parameter(torch.zeros(1, max_frames, 1, width))
        self.blocks = nn.ModuleList(DualStreamBlock(width, heads, int(width * mlp_ratio)) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.represent = nn.Linear(width, representation)
        self.pose = nn.Linear(representation, 3) if pose_head else None
        self._init_weights()
        self.dropout = nn.Dropout(dropout)
        self.to_embedding = nn.Linear(representation * self.joints, embedding)
        self._set_widths([width] * depth, representation, classes, representation * self.joints, embedding)

    def _init_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        for position in (self.joint_position, self.time_position):
            nn.init.trunc_normal_(position, std=0.02)
        for block in self.blocks:  # the streams count the same at first
            nn.init.zeros_(block.fuse.weight)
            nn.init.constant_(block.fuse.bias, 0.5)

    def _embed(self, x: Tensor) -> Tensor:
        frames = x.shape[2]
        if frames > self.max_frames:
            raise UserError(f"DSTformer takes at most {self.max_frames} frames, not {frames}; raise max_frames")
        tokens = self.to_joint(x.permute(0, 4, 2, 3, 1).flatten(0, 1))  # (N * M, T, V, C)
        return (tokens + self.joint_position + self.time_position[:, :frames]).permute(0, 3, 1, 2)

    def features(self, state: Tensor) -> Tensor:
        """The state after the last block -> motion representation (N, M, C, T, V), within -1 .. 1."""
        representation = self.represent(self.norm(state.permute(0, 2, 3, 1))).tanh()
        return super().features(representation.permute(0, 3, 1, 2))

    def poses(self, features: Tensor) -> Tensor:
        """Motion representation (N, M, C, T, V) -> 3-D poses (N, M, T, V, 3). Raises UserError without `pose_head`."""
        if self.pose is None:
            raise UserError("this DSTformer has no pose head; build it with pose_head: true")
        return self.pose(features.permute(0, 1, 3, 4, 2))

    def pool(self, features: Tensor) -> Tensor:
        return super().pool(self.dropout(features))

    def pool_joints(self, joints: Tensor) -> Tensor:
        """Joint features (N, V, C) -> (N, V * C): side by side."""
        return joints.flatten(1)

    def hidden(self, pooled: Tensor) -> Tensor:
        """(N, V * C) -> embeddings (N, D) of length 1."""
        return F.normalize(self.to_embedding(pooled), dim=-1)

    def load_released(self, weights: Mapping[str, Tensor]) -> None:
        """Take the weights of a MotionBERT checkpoint: its pre-trained backbone, or backbone and one-shot head.

        A pose head in it is left out where the encoder has none, and an embedding layer stays as it is where the
        checkpoint has none. Raises UserError if the weights are of another model or size.
        """
        renamed = released_names(weights)
        if self.pose is None:
            renamed = {name: value for name, value in renamed.items() if not name.startswith("pose.")}
        own = self.state_dict()
        optional = {name for name in own if name.startswith(("to_embedding.", "classifier.", "pose."))}
        wrong = sorted((own.keys() - optional - renamed.keys()) | (renamed.keys() - own.keys()))
        wrong = wrong or [name for name, value in renamed.items() if own[name].shape != value.shape]
        if wrong:
            raise UserError(f"the checkpoint does not fit this DSTformer: {wrong[0]!r} is missing or of another size")
        self.load_state_dict(renamed, strict=False)


_RELEASED = (
    (r"^module\.", ""),
    (r"^backbone\.", ""),
    (r"^head\.fc1\.", "to_embedding."),
    (r"^head\.", "pose."),
    (r"^joints_embed\.", "to_joint."),
    (r"^pos_embed$", "joint_position"),
    (r"^temp_embed$", "time_position"),
    (r"^pre_logits\.fc\.", "represent."),
    (r"^ts_attn\.(\d+)\.", r"blocks.\1.fuse."),
    (r"^blocks_(st|ts)\.(\d+)\.", r"blocks.\2.\1."),
    (r"\.(norm[12])_s\.", r".space.\1."),
    (r"\.(norm[12])_t\.", r".time.\1."),
    (r"\.(?:attn|mlp)_s\.", ".space."),
    (r"\.(?:attn|mlp)_t\.", ".time."),
)


def released_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """MotionBERT's parameter names as this module's."""
    renamed = {}
    for name, value in weights.items():
        for pattern, replacement in _RELEASED:
            name = re.sub(pattern, replacement, name)
        renamed[name] = value
    return renamed
