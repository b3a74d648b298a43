"""Temporal cross-transformer (TRX; Perrett et al., CVPR 2021, Section 3): queries rebuilt from tuples of frames."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.errors import UserError
from pipeline.models.few_shot.blocks.positions import PositionCode

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

    def frames(self, frames: Tensor) -> Tensor:
        """What a tuple's map is a sum of, place by place, the bias in the first: (..., T, dim) -> (..., F, out_dim)."""
        weights = self.weight.chunk(self.cardinality, dim=1)
        return torch.cat([F.linear(frames, w, None if place else self.bias) for place, w in enumerate(weights)], dim=-2)


def episode_chunks(support: Tensor, query: Tensor, numbers: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Parts of supports (E, ...) and queries (E, ...), of as many episodes as hold CHUNK numbers at `numbers` each."""
    size = max(1, CHUNK // numbers)
    return zip(support.split(size), query.split(size), strict=True)


class TupleFrames(NamedTuple):
    """What matching takes of a video, worked out once for it. F = cardinality * T frames at their places in a tuple.

    keys, values (..., F, out): a tuple's is the sum of those of its frames. Keys are centred and weighted by the
    LayerNorm. spread (..., P): one over the deviation of each tuple's key. offset (..., P): what the LayerNorm's bias
    adds to the product of a query's key with the tuple's. length (..., P): squared length of each tuple's value.
    """

    keys: Tensor
    values: Tensor
    spread: Tensor
    offset: Tensor
    length: Tensor


class TemporalCrossTransformer(nn.Module):
    """Distance of a query to each class from all ordered tuples of `cardinality` frames.

    Frames get a position code (0.1 times a sinusoid) and dropout. Every query tuple asks all tuples of all K shots of
    a class (keys with LayerNorm, scaled by sqrt(out_dim)); what it gets back is its own prototype. The distance is the
    squared Euclidean distance of the query's values and their prototypes, divided by the number of tuples.

    Keys and values of tuples are never written down: both are sums over frames, so their products are sums of products
    of frames, of which there are fewer (for triples of 8 frames 24 x 24 in place of 56 x 56 a pair of videos).

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
        chosen = F.one_hot(frame_tuples(frames, cardinality), frames).flatten(1).float()
        self.register_buffer("places", chosen, persistent=False)  # (P, F): which frames, and where, make a tuple

    def forward(self, support: Tensor, query: Tensor) -> Tensor:
        """support (E, N, K, T, dim), query (E, Q, T, dim) -> squared distances (E, Q, N)."""
        return self.compare(self.embed(support), self.embed(query))

    def embed(self, videos: Tensor) -> TupleFrames:
        """What `compare` takes of videos (..., T, dim)."""
        check_frames(self.frames, videos)
        x = self.position(videos)
        keys, values = self.key.frames(x), self.value.frames(x)
        keys = keys - keys.mean(-1, keepdim=True)
        spread = (self._lengths(keys) / self.out_dim + self.norm.eps).rsqrt()
        keys = keys * self.norm.weight
        offset = spread * (keys @ self.norm.bias @ self.places.T)
        return TupleFrames(keys, values, spread, offset, self._lengths(values))

    def _lengths(self, frames: Tensor) -> Tensor:
        """Squared length of the sum of the frames of each tuple: (..., F, out) -> (..., P)."""
        return ((self.places @ (frames @ frames.mT)) * self.places).sum(-1)

    def compare(self, support: TupleFrames, query: TupleFrames) -> Tensor:
        """`embed` of supports (E, N, K, ...) and of queries (E, Q, ...) -> squared distances (E, Q, N)."""
        (way, shots), queries = support.keys.shape[1:3], query.keys.shape[1]
        tuples, frames = self.places.shape
        numbers = way * shots * max(queries * tuples * tuples, frames * self.out_dim)
        size = max(1, CHUNK // numbers)
        parts = zip(*(tensor.split(size) for tensor in (*support, *query)), strict=True)
        return torch.cat([self._distances(TupleFrames(*part[:5]), TupleFrames(*part[5:])) for part in parts])

    def _distances(self, support: TupleFrames, query: TupleFrames) -> Tensor:
        # (e, Q, P, N * K * F): products of the query's tuples with the supports' frames
        asked, wanted = (
            self.places @ (q.flatten(1, 2) @ s.flatten(1, 3).mT).unflatten(1, q.shape[1:3])
            for q, s in ((query.keys, support.keys), (query.values, support.values))
        )
        of_class, scale = support.keys.shape[1:4], self.out_dim**-0.5
        asked = (asked * (scale * query.spread)[..., None]).unflatten(-1, of_class) @ self.places.T
        logits = torch.addcmul(scale * support.offset[:, None, None], asked, support.spread[:, None, None])
        weight = logits.flatten(-2).softmax(-1).unflatten(-1, logits.shape[-2:])  # (e, Q, P, N, K, P)
        of_frames = (weight @ self.places).flatten(-2)  # (e, Q, P, N, K * F): how much of each frame in a prototype
        crossed = (of_frames * wanted.unflatten(-1, of_frames.shape[-2:])).sum(-1)
        values = support.values.flatten(2, 3)
        mixed = of_frames.movedim(3, 1).flatten(2, 3)  # (e, N, Q * P, K * F)
        own = ((mixed @ (values @ values.mT)) * mixed).sum(-1).unflatten(-1, query.length.shape[1:])
        squared = query.length[..., None] - 2 * crossed + own.movedim(1, -1)
        return squared.mean(2)
