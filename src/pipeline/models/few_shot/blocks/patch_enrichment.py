"""STRM's enrichment of patches and frames, and its second head (Thatipelli et al., CVPR 2022, Section 3)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.models.few_shot.blocks.positions import PositionCode
from pipeline.models.few_shot.blocks.tuples import TupleLinear, check_frames, episode_chunks, frame_tuples


class PatchEnrichment(nn.Module):
    """Self-attention over the patches of one frame, then a bottleneck network, each with a residual.

    One head, not scaled; the attention counts `gamma` times, a weight that is learnt and starts at 0. A position code
    comes first. The bottleneck has three layers, dim - dim/2 - dim/2 - dim.
    """

    def __init__(self, dim: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.position = PositionCode(dim, dropout=dropout)
        self.query, self.key, self.value = (nn.Linear(dim, dim) for _ in range(3))
        self.gamma = nn.Parameter(torch.zeros(()))
        half = dim // 2
        self.bottleneck = nn.Sequential(
            nn.Linear(dim, half), nn.ReLU(), nn.Linear(half, half), nn.ReLU(), nn.Linear(half, dim)
        )

    def forward(self, patches: Tensor) -> Tensor:
        """(B, n, dim) -> (B, n, dim)."""
        patches = self.position(patches)
        q, k, v = self.query(patches), self.key(patches), self.value(patches)
        patches = patches + self.gamma * F.scaled_dot_product_attention(q, k, v, scale=1.0)
        return patches + self.bottleneck(patches)


class FrameMixer(nn.Module):
    """Mixes the frames of a video, then the channels of each frame, with residuals (an MLP-mixer without norms).

    A position code comes first. Both networks have two layers and keep their width.
    """

    def __init__(self, dim: int, frames: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.frames = frames
        self.position = PositionCode(dim, dropout=dropout)
        self.across_frames = nn.Sequential(nn.Linear(frames, frames), nn.ReLU(), nn.Linear(frames, frames))
        self.across_channels = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim))

    def forward(self, video: Tensor) -> Tensor:
        """(B, T, dim) -> (B, T, dim). Raises UserError for another number of frames."""
        check_frames(self.frames, video)
        video = self.position(video)
        video = video + self.across_frames(video.transpose(-1, -2)).transpose(-1, -2)
        return video + self.across_channels(video)


class NearestTuple(nn.Module):
    """STRM's second head: distance of each query tuple to the nearest tuple of a class, averaged.

    Tuples of frames (no position code) are mapped to dim / 2 and rectified; distances are Euclidean, not squared.
    `always_drop` leaves the dropout on in evaluation, as it is in the released code, whose head no `eval()` reaches.
    """

    def __init__(
        self, dim: int, cardinality: int = 2, frames: int = 8, dropout: float = 0.1, always_drop: bool = False
    ) -> None:
        super().__init__()
        self.frames, self.dropout, self.always_drop = frames, dropout, always_drop
        self.project = TupleLinear(dim, dim // 2, cardinality)
        self.register_buffer("tuples", frame_tuples(frames, cardinality), persistent=False)

    def forward(self, support: Tensor, query: Tensor) -> Tensor:
        """support (E, N, K, T, dim), query (E, Q, T, dim) -> distances (E, Q, N)."""
        check_frames(self.frames, support, query)
        videos, tuples = support.shape[1:3].numel(), len(self.tuples)
        numbers = tuples * videos * max(self.project.out_features, query.shape[1] * tuples)
        return torch.cat([self._distances(s, q) for s, q in episode_chunks(support, query, numbers)])

    def _distances(self, support: Tensor, query: Tensor) -> Tensor:
        way = support.shape[1]
        held, asked = self._embed(support).flatten(1, 3), self._embed(query).flatten(1, 2)
        distance = torch.cdist(asked, held).unflatten(2, (way, -1)).amin(-1)  # (e, Q * P, N)
        return distance.unflatten(1, (query.shape[1], -1)).mean(2)

    def _embed(self, frames: Tensor) -> Tensor:
        frames = F.dropout(frames, self.dropout, self.training or self.always_drop)
        return self.project(frames, self.tuples).relu()
