"""An epoch over skeletons as many as NTU RGB+D 120 has, read from the store's memory map in random order."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from benchmarks.lines import Line, memory, timed
from pipeline.datasets.index import Clip, write_index
from pipeline.datasets.skeletons.bench import measure as build_and_read
from pipeline.datasets.skeletons.bench import write_samples
from pipeline.datasets.skeletons.definition import SkeletonPolicy
from pipeline.datasets.skeletons.store import DATA, FORMAT, SkeletonStore
from pipeline.files import write_csv

TOPIC = "5 teacher and skeletons"
NTU = 113_945
SHAPE = (64, 25, 3)
"""Frames, joints, coordinates of a clip."""
FLAT = 64.0
"""MB by which the memory may grow in an epoch of 2.2 GB."""
BATCH = 64


def measure(folder: Path, clips: int = NTU, files: int = 200) -> list[Line]:
    """Lines of an epoch of `clips` clips, and of a store built from `files` files."""
    store = write_store(folder / "ntu", clips)
    before = memory("RssAnon")
    seconds, (total, most) = timed(lambda: _epoch(store))
    of_clip = _numbers(min(clips, 1000)).sum((1, 2, 3), dtype=np.float64)
    wanted = float(np.resize(of_clip, clips).sum())
    gigabytes = store.manifest["bytes"] / 1e9
    (store.folder / DATA).unlink()
    write_samples(folder / "files", files)
    speed = build_and_read(folder / "files", 1)
    return [
        Line(
            TOPIC, f"epoch of {clips:,} skeletons ({gigabytes:.1f} GB) from the map", None, seconds,
            memory=max(most - before, 0), targets=(("memory", FLAT),), equal=abs(total - wanted) < 0.01,
            note="memory: of the process's own; pages of the file are the kernel's to drop",
        ),
        Line(
            TOPIC, "skeleton files cleaned and stored, a thousand", None, 1000 / speed.build_rate,
            note=f"{speed.build_rate:.0f} files/s; read back {speed.read_rate:.0f} clips/s",
        ),
    ]  # fmt: skip


def _numbers(clips: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((clips, *SHAPE), dtype=np.float32)


def write_store(folder: Path, clips: int) -> SkeletonStore:
    """A store of `clips` random clips of one person, in the store's own files; blocks of a thousand repeat."""
    folder.mkdir(parents=True, exist_ok=True)
    block, size = _numbers(min(clips, 1000)), int(np.prod(SHAPE))
    with open(folder / DATA, "wb") as file:
        for first in range(0, clips, len(block)):
            file.write(block[: clips - first].data)
    np.savez(
        folder / "table.npz", start=np.arange(clips) * size, persons=np.ones(clips, np.int32),
        frames=np.full(clips, SHAPE[0], np.int32), size=np.zeros((clips, 2), np.int32),
    )  # fmt: skip
    write_index(
        folder / "index.csv", [Clip(f"clip{i:06d}", f"clip{i:06d}", f"c{i % 120}", "train") for i in range(clips)]
    )
    write_csv(folder / "skipped.csv", ("clip", "path", "reason"), [])
    manifest = {
        "format": FORMAT, "policy": SkeletonPolicy().stored, "shape": [*SHAPE[1:], 3], "clips": clips,
        "bytes": clips * size * 4,
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return SkeletonStore(folder)


def _epoch(store: SkeletonStore) -> tuple[float, float]:
    """Sum of all numbers, and the most memory (MB) between two batches."""
    order, total, most = np.random.default_rng(1).permutation(len(store)), 0.0, 0.0
    for number, first in enumerate(range(0, len(order), BATCH)):
        batch = np.stack([store.read(int(i)) for i in order[first : first + BATCH]])
        total += float(batch.sum(dtype=np.float64))
        if number % 50 == 0:
            most = max(most, memory("RssAnon"))
    return total, most
