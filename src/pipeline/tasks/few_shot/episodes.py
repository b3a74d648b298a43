"""Few-shot episodes: which clips are support and query, for every method the same.

Episode i of a seed depends on (seed, i) and the clips of each class only: not on earlier draws, the worker
or the machine. The random numbers come from Philox, a counter-based generator: an episode uses a fixed
count of them, so episode i starts at a known place of the stream, and thousands of episodes are drawn in
one sweep.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from pipeline.datasets.frames import FrameStore
from pipeline.datasets.sampling import sample_positions
from pipeline.datasets.transforms import draw_colours
from pipeline.errors import UserError
from pipeline.models.pixels import COLOURS
from pipeline.tasks.base import Items

_WORDS = 4  # 64-bit numbers that Philox makes from one value of its counter

Labels = Sequence[str] | Sequence[int] | np.ndarray | Mapping[str, Sequence[int]]


@dataclass(frozen=True, slots=True)
class Episode:
    """One N-way K-shot task.

    classes: (N,) index into the sorted class names. support: (N, K) clip indices. query: (N*q,) clip
    indices in random order. query_labels: (N*q,) place of each query's class among the N.
    """

    classes: np.ndarray
    support: np.ndarray
    query: np.ndarray
    query_labels: np.ndarray


class EpisodeTable(NamedTuple):
    """E episodes, as in `Episode`: support (E, N, K), query and labels (E, N*q), classes (E, N); int64."""

    support: np.ndarray
    query: np.ndarray
    labels: np.ndarray
    classes: np.ndarray


class EpisodeSampler:
    """Draws N-way K-shot episodes with `query` queries a class.

    labels: {class name: its clip indices}, or the label of clip 0, 1, ... Classes of an episode are drawn
    without replacement, and so are the clips of each; the order of classes, of supports and of queries is
    random.

    Raises UserError when there are fewer classes than `way`, or a class has fewer than shot + query clips.
    """

    def __init__(self, labels: Labels, way: int, shot: int, query: int, seed: int) -> None:
        if min(way, shot, query) < 1:
            raise UserError(f"an episode needs way, shot and query of 1 or more, not {way}, {shot}, {query}")
        groups = clips_by_class(labels)
        _check_classes(groups, way, shot + query)
        self.names = list(groups)
        self.way, self.shot, self.query, self.seed = way, shot, query, seed
        self._sizes = np.array([len(clips) for clips in groups.values()], dtype=np.int64)
        self._first = np.concatenate([[0], np.cumsum(self._sizes)[:-1]])
        self._clips = np.concatenate([np.asarray(clips, dtype=np.int64) for clips in groups.values()])
        self._key = np.random.SeedSequence(seed).generate_state(2, np.uint64)
        numbers = way + way * (shot + query) + way * query
        self._stride = -(-numbers // _WORDS) * _WORDS

    def draw(self, i: int) -> Episode:
        """Episode number `i` (0 or more)."""
        table = self.table(1, first=i)
        return Episode(table.classes[0], table.support[0], table.query[0], table.labels[0])

    def table(self, n: int, first: int = 0) -> EpisodeTable:
        """Episodes number `first` to `first + n - 1`."""
        way, shot, query = self.way, self.shot, self.query
        uniform = self._uniform(first, n)
        for_classes, for_clips, for_order = np.split(
            uniform[:, : way + way * (shot + 2 * query)], [way, way + way * (shot + query)], axis=1
        )
        classes = _without_replacement(for_classes, np.full(n, len(self.names)))
        places = _without_replacement(for_clips.reshape(n, way, shot + query), self._sizes[classes])
        clips = self._clips[self._first[classes][..., None] + places]
        order = np.argsort(for_order, axis=1, kind="stable")
        labels = np.broadcast_to(np.repeat(np.arange(way), query), (n, way * query))
        return EpisodeTable(
            support=np.ascontiguousarray(clips[..., :shot]),
            query=np.take_along_axis(clips[..., shot:].reshape(n, way * query), order, axis=1),
            labels=np.take_along_axis(labels, order, axis=1),
            classes=classes,
        )

    def _uniform(self, first: int, n: int) -> np.ndarray:
        """(n, stride) numbers in [0, 1): row j belongs to episode first + j."""
        generator = np.random.Philox(key=self._key)
        generator.advance(first * self._stride // _WORDS)
        raw = generator.random_raw(n * self._stride).reshape(n, self._stride)
        return (raw >> np.uint64(11)) * 2.0**-53


def episode_table(labels: Labels, way: int, shot: int, query: int, n: int, seed: int) -> EpisodeTable:
    """The first `n` episodes of `EpisodeSampler` with these arguments; row i equals its `draw(i)`."""
    return EpisodeSampler(labels, way, shot, query, seed).table(n)


def clips_by_class(labels: Labels) -> dict[str, np.ndarray]:
    """{class: clip indices}, classes sorted, from such a mapping or from the label of each clip."""
    if isinstance(labels, Mapping):
        return {name: np.asarray(labels[name], dtype=np.int64) for name in sorted(labels)}
    names, inverse = np.unique(np.asarray(labels), return_inverse=True)
    order = np.argsort(inverse, kind="stable")
    groups = np.split(order, np.cumsum(np.bincount(inverse))[:-1]) if len(names) else []
    return dict(zip(names.tolist(), groups, strict=True))


def _check_classes(groups: Mapping[str, np.ndarray], way: int, needed: int) -> None:
    if len(groups) < way:
        raise UserError(f"{way}-way episodes need {way} classes, and there are {len(groups)}; lower the way")
    small = [f"{name} ({len(clips)})" for name, clips in groups.items() if len(clips) < needed]
    if small:
        more = f" and {len(small) - 5} more" if len(small) > 5 else ""
        raise UserError(
            f"an episode takes {needed} clips of a class; too few in {', '.join(small[:5])}{more}: "
            "add clips, leave these classes out, or lower shot or query"
        )


def _without_replacement(uniform: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """(..., k) distinct numbers below `sizes` (...), in random order, from uniform numbers (..., k).

    The j-th pick is a rank among the numbers not yet taken: to turn it into a number, step over those
    taken, from the lowest up.
    """
    picks = np.empty(uniform.shape, dtype=np.int64)
    for j in range(uniform.shape[-1]):
        left = sizes - j
        pick = np.minimum((uniform[..., j] * left).astype(np.int64), left - 1)
        for taken in np.moveaxis(np.sort(picks[..., :j], axis=-1), -1, 0):
            pick += pick >= taken
        picks[..., j] = pick
    return picks


class EpisodeDataset(Items):
    """Episodes as tensors, read from a frame store.

    Item i is a dict: support (N*K, T, h, w, 3) and query (N*q, T, h, w, 3) uint8; support_labels (N*K,),
    query_labels (N*q,) in 0..N-1; class_ids (N,) index into the sorted classes of the split; episode, the
    number i itself; with `jitter` query_colours (N*q, 9), how the colours of the queries are to change
    (`transforms.draw_colours`). Supports and queries are both in random order. Everything random in it (clips,
    frames, crops, colours) is seeded by (seed, i) alone, so every worker gives the same item.

    frames: T. mode: one of `sampling.MODES`. transform: for the clips; query_transform: for the queries,
    when they are treated differently (CLIP-FSAR on Kinetics-100). start: number of the first episode.
    """

    def __init__(
        self,
        store: FrameStore,
        split: str,
        *,
        way: int,
        shot: int,
        query: int,
        episodes: int,
        seed: int,
        frames: int,
        mode: str,
        transform: Callable[[np.ndarray, np.random.Generator], torch.Tensor],
        query_transform: Callable[[np.ndarray, np.random.Generator], torch.Tensor] | None = None,
        jitter: bool = False,
        start: int = 0,
    ) -> None:
        self.store, self.frames, self.mode = store, frames, mode
        self.sampler = EpisodeSampler(store.by_class(split), way, shot, query, seed)
        self.classes = self.sampler.names
        self.episodes, self.seed, self.start = episodes, seed, start
        self.transform, self.query_transform, self.jitter = transform, query_transform or transform, jitter

    def __len__(self) -> int:
        return self.episodes

    @property
    def item_bytes(self) -> int:
        return self.sampler.way * (self.sampler.shot + self.sampler.query) * self.clip_bytes

    @property
    def clip_bytes(self) -> int:
        """Bytes of a clip of an item."""
        return self.frames * 3 * self.transform.crop**2

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        if not 0 <= i < self.episodes:
            raise IndexError(i)
        number = self.start + i
        drawn = self.sampler.draw(number)
        rng = np.random.default_rng(np.random.SeedSequence([self.seed, number]))
        order = rng.permutation(drawn.support.size)
        labels = np.repeat(np.arange(self.sampler.way), self.sampler.shot)[order]
        support = self._read(drawn.support.reshape(-1)[order], self.transform, rng)
        colours: list[np.ndarray] | None = [] if self.jitter else None
        query = self._read(drawn.query, self.query_transform, rng, colours)
        jittered = {"query" + COLOURS: torch.from_numpy(np.stack(colours))} if colours else {}
        return jittered | {
            "support": support,
            "query": query,
            "support_labels": torch.from_numpy(labels),
            "query_labels": torch.from_numpy(drawn.query_labels),
            "class_ids": torch.from_numpy(drawn.classes),
            "episode": torch.tensor(number),
        }

    def _read(
        self, clips: np.ndarray, transform: Callable, rng: np.random.Generator, colours: list[np.ndarray] | None = None
    ) -> torch.Tensor:
        """Views of clips; `colours`, if given, takes how those of each are to change, drawn after its crop."""
        views = []
        for clip in clips:
            views.append(transform(self.read_clip(int(clip), rng), rng))
            if colours is not None:
                colours.append(draw_colours(rng))
        return torch.stack(views)

    def read_clip(self, clip: int, rng: np.random.Generator) -> np.ndarray:
        """The T sampled frames of a clip, uint8 (T, H, W, 3)."""
        store = self.store
        positions = sample_positions(
            store.n_frames(clip),
            self.frames,
            self.mode,
            rng,
            fps=store.fps(clip),
            source_frames=store.source_frames(clip),
        )
        return store.read(clip, positions)
