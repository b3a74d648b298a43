"""What a training item costs the host, how many bytes of it travel, and how long a fast model waits for the next."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.lines import Line, timed
from benchmarks.pixels import training_clip
from pipeline.datasets.frames import FrameStore
from pipeline.datasets.loading import loader, read_ahead, use_loaders
from pipeline.datasets.sampling import sample_positions
from pipeline.datasets.transforms import CLIP_MEAN, CLIP_STD, ClipTransform, normalise, normalise_changed
from pipeline.tasks.few_shot.episodes import EpisodeDataset

TOPIC = "4 data"
CHEAPER, JITTERED, SMALLER, TWICE, WAIT = 3.0, 5.0, 4.0, 1.8, 5.0
FRAMES, STEP = 8, 0.08
"""Frames of a clip, and seconds of a step of a model that keeps a GPU busy."""
LOADERS = 8
"""Processes that read ahead."""


class Regrouped(FrameStore):
    """A store whose clips lie in three classes, whatever they show: enough clips of each for an episode."""

    def by_class(self, split: str | None = None) -> dict[str, np.ndarray]:
        return {str(i): np.arange(i, len(self), 3) for i in range(3)}

    def __reduce__(self) -> tuple:
        return Regrouped, (self.folder,)


def measure(folder: Path, crop: int = 224, items: int = 3, videos: int = 400, steps: int = 12) -> list[Line]:
    """Lines of the frame store in `folder`. Seconds of an item are the processor's: of one core."""
    store = Regrouped(folder)
    warnings.filterwarnings("ignore", message="This DataLoader will create")  # more processes than cores are meant
    queries = len(store) // 3 - 1
    episodes = partial(
        EpisodeDataset, store, "train", way=3, shot=1, query=queries, episodes=10_000, seed=0, frames=FRAMES,
        mode="segment_random", transform=ClipTransform(crop, train=True),
    )  # fmt: skip
    plain, jittered = episodes(), episodes(query_transform=ClipTransform(crop, train=True, flip=0.5), jitter=True)
    try:
        return [
            *_items(plain, jittered, items),
            *_rates(plain, items),
            *_waiting(plain, steps),
            _test(store, crop, videos),
        ]
    finally:
        use_loaders(-1)


def _items(plain: EpisodeDataset, jittered: EpisodeDataset, repeats: int) -> Iterator[Line]:
    """CPU seconds and bytes of an item."""
    clips = plain.sampler.way * (plain.sampler.shot + plain.sampler.query)
    note = f"{clips} clips of {plain.frames} frames, their JPEGs decoded"
    for name, items, target in (("", plain, CHEAPER), (", queries jittered", jittered, JITTERED)):
        before, after = _cpu([partial(_in_float, items), items.__getitem__], repeats)
        targets = (("ratio", target),)
        yield Line(TOPIC, f"item of a training{name}: float32 on the host, or bytes", before, after, targets=targets,
                   equal=_equal(items), note=note)  # fmt: skip
    sizes = [sum(part.nbytes for part in read[:2]) / 1e6 for read in (_in_float(plain, 0), _frames(plain[0]))]
    yield Line(TOPIC, "item of a training: what goes to the device", *sizes, unit="MB", targets=(("ratio", SMALLER),))


def _frames(item: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    return item["support"], item["query"]


def _in_float(items: EpisodeDataset, i: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Supports and queries of an item as the plain way makes them, from the same random numbers."""
    drawn, rng = items.sampler.draw(i), np.random.default_rng(np.random.SeedSequence([items.seed, i]))
    order = rng.permutation(drawn.support.size)
    parts = []
    for clips, look, jitter in (
        (drawn.support.reshape(-1)[order], items.transform, False),
        (drawn.query, items.query_transform, "query" in items.colours),
    ):
        made = [
            training_clip(items.read_clip(int(clip), rng), rng, CLIP_MEAN, CLIP_STD, look.crop, look.flip, jitter)
            for clip in clips
        ]
        parts.append(torch.stack([torch.from_numpy(np.ascontiguousarray(clip)) for clip in made]))
    return parts[0], parts[1]


def _equal(items: EpisodeDataset) -> bool:
    """Whether the device makes of an item what the plain way makes, to 2e-5 of values of about 1."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (CLIP_MEAN, CLIP_STD))
    item = items[1]
    support = normalise(item["support"], mean, std)
    colours = item.get("query_colours")
    if colours is None:
        query = normalise(item["query"], mean, std)
    else:
        query = normalise_changed(item["query"], colours, mean, std)
    wanted = _in_float(items, 1)
    return all(torch.allclose(a, b, atol=2e-5) for a, b in zip((support, query), wanted, strict=True))


def _cpu(works: list[Callable[[int], object]], repeats: int) -> list[float]:
    """The least processor time of each of some works that take turns."""
    found: list[list[float]] = [[] for _ in works]
    for i in range(repeats + 1):
        for work, times in zip(works, found, strict=True):
            began = time.process_time()
            work(i)
            times.append(time.process_time() - began)
    return [min(times[1:]) for times in found]


def _rates(items: EpisodeDataset, count: int) -> Iterator[Line]:
    """Seconds of an item that one and two other processes read."""
    count *= 4
    one, two = (min(_seconds_read(items, processes, count) for _ in range(2)) for processes in (1, 2))
    yield Line(TOPIC, "item of a training: read by one process, or by two", one, two, targets=(("ratio", TWICE),),
               note=f"{1 / one:.1f} and {1 / two:.1f} items a second")  # fmt: skip


def _seconds_read(items: EpisodeDataset, processes: int, count: int) -> float:
    feed = _feed(items, processes)
    list(islice(feed, 4 * processes))  # their start, and what they read ahead meanwhile
    return timed(lambda: list(islice(feed, count)))[0] / count


def _feed(items: EpisodeDataset, processes: int) -> Iterator[Any]:
    use_loaders(processes)
    return iter(loader(items, items.item_bytes))


def _waiting(items: EpisodeDataset, steps: int) -> Iterator[Line]:
    """The share of time that a model waits which takes `STEP` seconds of a device a step, and none of this one."""
    shares = [_wait_share(_feed(items, processes), steps, 2 * processes) for processes in (0, 1, 2, LOADERS)]
    for processes, share in zip((1, 2, LOADERS), shares[1:], strict=True):
        yield Line(TOPIC, f"a step of {1000 * STEP:.0f} ms waits: items read by its process, or by {processes} others",
                   shares[0], share, unit="%", targets=(("fast", WAIT),))  # fmt: skip
    seconds = _cpu([items.__getitem__], 2)[0]
    clips = items.sampler.way * (items.sampler.shot + items.sampler.query)
    worst = 30 / clips * seconds / LOADERS  # LGA's items have 30 clips
    share = 100 * max(worst - STEP, 0.0) / max(worst, STEP)
    yield Line(TOPIC, f"the same for LGA's item of 240 frames and {LOADERS} processes with a core each, computed", None,
               share, unit="%", targets=(("fast", WAIT),), note=f"an item every {1000 * worst:.0f} ms")  # fmt: skip


def _wait_share(feed: Iterator[Any], steps: int, first: int) -> float:
    """Per cent of the time of `steps` steps, after the `first` ones, while which the processes start."""
    next(feed)
    waited, began = 0.0, time.perf_counter()
    for step in range(first + steps):
        if step == first:
            waited, began = 0.0, time.perf_counter()
        waited += timed(lambda: next(feed))[0]
        time.sleep(STEP)
    return 100 * waited / (time.perf_counter() - began)


def _test(store: FrameStore, crop: int, videos: int, batch: int = 32) -> Line:
    """Seconds of a test of `videos` videos beside a model that takes as long as the reading of them."""
    transform = ClipTransform(crop)

    def read(clip: int) -> torch.Tensor:
        return transform(store.read(clip, sample_positions(store.n_frames(clip), FRAMES, "segment_centre", None)))

    clips = np.resize(np.arange(len(store)), videos).tolist()
    alone, _ = timed(lambda: [read(clip) for clip in clips[:batch]])

    def seconds(processes: int) -> float:
        use_loaders(processes)

        def test() -> None:
            for _ in read_ahead(read, clips, batch, FRAMES * 3 * crop**2):
                time.sleep(alone)

        return timed(test)[0]

    one_after_other, beside = seconds(0), seconds(1)
    return Line(TOPIC, f"test of {videos} videos: read between the batches of the model, or beside it", one_after_other,
                beside, note=f"{1000 * alone / batch:.1f} ms to read a video, as long for the model")  # fmt: skip
