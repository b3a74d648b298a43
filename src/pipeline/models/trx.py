"""Temporal cross-transformer (TRX; Perrett et al., CVPR 2021, Section 3): queries rebuilt from tuples of frames."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.errors import UserError
from pipeline.models.positions import PositionCode

CHUNK = 16 * 2**20
"""Numbers that a chunk of episodes may hold at a time: 64 MiB of float32 for each kind of intermediate result."""


def frame_tuples(frames: int, cardinality: int) -> Tensor:
    """Ordered choices of `cardinality` of the frames 0..frames-1: (P, cardinality), P = binomial coefficient.

    Raises UserError if there are fewer frames than that, or the cardinality is below 1.
    """
    if not 1 <= cardinality <= frames:
        raise UserError(f"tuples of {cardinality} out of {frames} frames; change cardinalities or the number of frames")
    return torch.tensor(list(combinations(range(frames), cardinality)))


def check_frames(expected: int, *videos: Tensor) -> None:
    """Raises UserError unless each of `videos` (..., T, D) has T = expected frames."""
    for video in videos:
        if video.shape[-2] != expected:
            raise UserError(
                f"a video has {video.shape[-2]} frames, the model is built for {expected}; set model.frames"
            )


class TupleLinear(nn.Linear):
    """A linear map of the features of `cardinality` frames, one after the other, into `out_dim`.

    The map of a tuple is the sum of the maps of its frames at their places, so frames are mapped once a place and
    not once a tuple: for triples of 8 frames 24 products in place of 168.
    """

    def __init__(self, dim: int, out_dim: int, cardinality: int) -> None:
        super().__init__(dim * cardinality, out_dim)
        self.cardinality = cardinality

    def forward(self, frames: Tensor, tuples: Tensor) -> Tensor:
        """frames (..., T, dim), tuples (P, cardinality) -> (..., P, out_dim)."""
        total = self.bias
        for place, weight in enumerate(self.weight.chunk(self.cardinality, dim=1)):
            total = total + F.linear(frames, weight).index_select(-2, tuples[:, place])
        return total


def episode_chunks(support: Tensor, query: Tensor, numbers: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Parts of supports (E, ...) and queries (E, ...), of as many episodes as hold CHUNK numbers at `numbers` each."""
    size = max(1, CHUNK // numbers)
    return zip(support.split(size), query.split(size), strict=True)


class TemporalCrossTransformer(nn.Module):
    """Distance of a query to each class from all ordered tuples of `cardinality` frames.

    Frames get a position code (0.1 times a sinusoid) and dropout. Every query tuple asks all tuples of all K shots of
    a class (keys with LayerNorm, scaled by sqrt(out_dim)); what it gets back is its own prototype. The distance is the
    squared Euclidean distance of the query's values and their prototypes, divided by the number of tuples.

    Args:
        dim: width of the frame features.
        out_dim: width of keys and values; 1152 in the paper.
        cardinality: frames of a tuple; the paper uses one transformer for pairs and one for triples.
        frames: T, frames of a video.
        dropout: on the frames, after the position code.

    Raises UserError if a video has another number of frames, or the tuples are longer than it.
    """

    def __init__(
        self, dim: int, out_dim: int = 1152, cardinality: int = 2, frames: int = 8, dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.frames, self.out_dim = frames, out_dim
        self.position = PositionCode(dim, dropout=dropout)
        self.key = TupleLinear(dim, out_dim, cardinality)
        self.value = TupleLinear(dim, out_dim, cardinality)
        self.norm = nn.LayerNorm(out_dim)
        self.register_buffer("tuples", frame_tuples(frames, cardinality), persistent=False)

    def forward(self, support: Tensor, query: Tensor) -> Tensor:
        """support (E, N, K, T, dim), query (E, Q, T, dim) -> squared distances (E, Q, N)."""
        check_frames(self.frames, support, query)
        (way, shots), queries, tuples = support.shape[1:3], query.shape[1], len(self.tuples)
        numbers = tuples * max(way * shots * self.out_dim, queries * way * self.out_dim, queries * way * shots * tuples)
        return torch.cat([self._distances(s, q) for s, q in episode_chunks(support, query, numbers)])

    def _distances(self, support: Tensor, query: Tensor) -> Tensor:
        way, queries = support.shape[1], query.shape[1]
        support, query = self.position(support), self.position(query)
        asked = self.norm(self.key(query, self.tuples)).flatten(1, 2)  # (e, Q * P, out)
        keys = self.norm(self.key(support, self.tuples)).flatten(2, 3)  # (e, N, K * P, out)
        values = self.value(support, self.tuples).flatten(2, 3)
        prototypes = F.scaled_dot_product_attention(asked[:, None].expand(-1, way, -1, -1), keys, values)
        wanted = self.value(query, self.tuples).flatten(1, 2)[:, None]
        squared = (wanted - prototypes).square().sum(-1).unflatten(-1, (queries, -1))  # (e, N, Q, P)
        return squared.mean(-1).transpose(1, 2)
