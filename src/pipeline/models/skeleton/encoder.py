"""What all skeleton encoders have in common: blocks that a method can run in two parts and weigh joint by joint.

Shapes: N samples, M persons, T frames (fewer after strided blocks), V joints, C channels. A sequence is
(N, C, T, V, M); the state between blocks is (N * M, C, T, V), sample by sample.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from pipeline.datasets.skeletons.graph import SkeletonGraph, get_graph
from pipeline.errors import UserError


class SkeletonEncoder(nn.Module):
    """Base of the encoders.

    A subclass fills `blocks`, modules called as `block(state, scale)`, in its constructor and calls `_set_widths`.

    Attributes:
        graph: the skeleton.
        joints, persons: V and M of the sequences it takes.
        n_blocks: number of blocks.
        channels: width C after each block.
        dim: width of the final feature of a joint (`features`).
        pooled_dim: width of `pool`.
        embedding_dim: width of `head`.
        classifier: linear layer on the embedding, or None.
    """

    blocks: nn.ModuleList

    def __init__(self, graph: SkeletonGraph | str | Mapping[str, Any], persons: int) -> None:
        super().__init__()
        self.graph = get_graph(graph)
        self.joints, self.persons = len(self.graph), persons
        self.classifier: nn.Linear | None = None

    def _set_widths(
        self, channels: Sequence[int], dim: int, classes: int | None, pooled: int | None = None, embedding: int = 0
    ) -> None:
        self.channels, self.dim = list(channels), dim
        self.pooled_dim = pooled or dim
        self.embedding_dim = embedding or self.pooled_dim
        if classes:
            self.classifier = nn.Linear(self.embedding_dim, classes)
            nn.init.normal_(self.classifier.weight, 0, math.sqrt(2 / classes))

    @property
    def n_blocks(self) -> int:
        return len(self.blocks)

    # ------------------------------------------------------------------------------------------ the trunk
    def embed(self, x: Tensor) -> Tensor:
        """Sequences (N, C, T, V, M) -> the state before the first block. Raises UserError for another V or M."""
        if x.shape[-2:] != (self.joints, self.persons):
            raise UserError(
                f"{type(self).__name__} is set up for {self.joints} joints and {self.persons} persons, the sequences "
                f"have {x.shape[-2]} and {x.shape[-1]}; change its graph or persons, or prepare the data again"
            )
        return self._embed(x)

    def _embed(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def run(self, state: Tensor, first: int, last: int, scale: Tensor | None = None) -> Tensor:
        """Blocks first .. last - 1 (from 0) on a state -> state.

        `scale` (N, V) weighs the joints, for all persons alike: each of these blocks multiplies it onto its
        spatially interacted feature, that is onto what its graph convolution or spatial attention returns, before
        its temporal part. A block's own shortcut around both parts is not weighed. Raises UserError unless
        0 <= first <= last <= n_blocks.
        """
        if not 0 <= first <= last <= self.n_blocks:
            raise UserError(f"no blocks {first} to {last} in {type(self).__name__}: it has {self.n_blocks}")
        if scale is not None:
            scale = scale.repeat_interleave(self.persons, dim=0)[:, None, None, :]
        for block in self.blocks[first:last]:
            state = block(state, scale)
        return state

    def pre_features(self, state: Tensor) -> Tensor:
        """The state between two blocks, averaged over frames and persons -> (N, V, C)."""
        return state.unflatten(0, (-1, self.persons)).mean((1, 3)).transpose(1, 2)

    def features(self, state: Tensor) -> Tensor:
        """The state after the last block -> final features (N, M, C, T, V)."""
        return state.unflatten(0, (-1, self.persons))

    # ------------------------------------------------------------------------------------------- the head
    def pool(self, features: Tensor) -> Tensor:
        """Final features (N, M, C, T, V) -> (N, pooled_dim): averaged over frames and persons, then `pool_joints`."""
        return self.pool_joints(features.mean((1, 3)).transpose(1, 2))

    def pool_joints(self, joints: Tensor) -> Tensor:
        """Joint features (N, V, C) -> (N, pooled_dim): here their mean."""
        return joints.mean(1)

    def hidden(self, pooled: Tensor) -> Tensor:
        """The deterministic part of `head` (N, pooled_dim) -> (N, D'), for measuring distances between samples."""
        return pooled

    def head(self, pooled: Tensor) -> Tensor:
        """(N, pooled_dim) -> the embedding (N, embedding_dim) that the classifier reads."""
        return self.hidden(pooled)

    def logits(self, embedding: Tensor) -> Tensor:
        """(N, embedding_dim) -> (N, classes). Raises UserError if the encoder was built without `classes`."""
        if self.classifier is None:
            raise UserError(f"{type(self).__name__} has no classifier; build it with the number of classes")
        return self.classifier(embedding)

    def regularisation(self, embedding: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Losses, already weighted, that the encoder's own training adds to the cross-entropy; names "loss_*"."""
        return {}

    def forward(self, x: Tensor) -> Tensor:
        """Sequences (N, C, T, V, M) -> embeddings (N, embedding_dim)."""
        return self.head(self.pool(self.features(self.run(self.embed(x), 0, self.n_blocks))))


def normalise_input(norm: nn.BatchNorm1d, x: Tensor) -> Tensor:
    """Batch norm of every channel of every joint: (N, M, V, C, T) -> state (N * M, C, T, V).

    `norm` has V * C features, or M * V * C to tell the persons apart as well.
    """
    n, m, v, c, t = x.shape
    return norm(x.reshape(-1, norm.num_features, t)).view(n * m, v, c, t).permute(0, 2, 3, 1).contiguous()
