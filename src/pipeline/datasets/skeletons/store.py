"""The skeleton store: every clip cleaned once, then read from one file that is mapped into memory.

A store is a folder: `joints.bin` (the persons of one clip after the other, (M, T, V, C) each), `table.npz` (where
each clip lies), `index.csv` of the clips it holds, `skipped.csv` of those it does not, with the reason, and
`manifest.json`, written last. While it is built, shards of clips are written by as many processes as wanted and
appended in order; what is done is not done again after an interruption.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import mmap
import multiprocessing
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.datasets.index import Clip, read_index, write_index  # fmt: skip
from pipeline.datasets.skeletons.definition import SkeletonPolicy
from pipeline.datasets.skeletons.preprocess import prepare_clip
from pipeline.datasets.skeletons.source import Source
from pipeline.errors import UserError
from pipeline.files import read_json, write_bytes, write_csv, write_text
from pipeline.guarded import Unreadable
from pipeline.progress import bar
from pipeline.shards import ShardFolder

FORMAT = 1  # of the store's files
SHARD = 512  # clips: little is lost when a build is killed
DATA = "joints.bin"
_PART = "joints.part"

ReportProgress = Callable[[int, int], None]


def build_skeleton_store(
    index_csv: str | Path,
    source: Source,
    folder: str | Path,
    policy: SkeletonPolicy,
    workers: int = 1,
    progress: ReportProgress | None = None,
    audit: Callable[[list[tuple[Clip, str]]], Mapping[str, Any]] | None = None,
) -> Path:
    """Read and clean the clips of `index_csv` (their paths are the source's) into the store `folder`.

    Returns its manifest. A complete store is left alone; a build that was interrupted goes on after its finished
    shards. Clips that cannot be used are left out and listed in `skipped.csv`; `audit` is given them before the store
    is finished: what it raises leaves the shards as they are, what it returns goes into the manifest.
    progress(done, all) is called after each shard; without it a `progress.bar` is shown. Memory does not grow with
    the number of clips. `workers` > 1 starts processes (spawn), which the calling script must allow by a __main__
    guard.

    Raises UserError when the folder holds a complete store of another policy, no clip can be used, a worker dies,
    or the disk is full.
    """
    folder, clips = Path(folder), read_index(index_csv)
    identity = {
        "format": FORMAT,
        "policy": policy.stored,
        "index": hashlib.sha256(Path(index_csv).read_bytes()).hexdigest(),
        "shape": [source.joints, source.channels, source.spatial],
        "shard": SHARD,
    }
    store = ShardFolder(folder, identity, "skeleton store")
    if store.complete():
        return folder / "manifest.json"
    try:
        with store.filling(), _reporting(progress, len(clips)) as report:
            store.begin(("shard-*", _PART, DATA, "table.npz", "index.csv", "skipped.csv"))
            _write_shards(clips, source, folder, policy, workers if source.parallel else 1, report)
            return _finish(clips, folder, identity, audit or (lambda _: {}))
    except BrokenProcessPool:
        raise UserError(
            f"a process that read skeletons for {folder} was ended (out of memory?); finished parts are kept: "
            "run again with fewer workers"
        ) from None


@contextmanager
def _reporting(progress: ReportProgress | None, total: int) -> Iterator[Callable[[int], None]]:
    """A function to call with the number of clips done: `progress`, or that of a bar."""
    if progress is not None:
        yield lambda done: progress(done, total)
        return
    with bar("cleaning", total, "skeletons") as cleaning:
        yield cleaning.to


# ------------------------------------------------------------------------------------------------ building
def _blob(folder: Path, shard: int) -> Path:
    return folder / f"shard-{shard:05d}.bin"


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return -1


class _Parts:
    """Shards of an unfinished build: written in any order, appended to one file in theirs.

    `ends[k]` is where shard k ends in that file; only a leading run of shards has been appended.
    """

    def __init__(self, folder: Path, shards: int) -> None:
        self.folder, self.shards = folder, shards
        self.records: dict[int, dict[str, Any]] = {}
        self.ends: list[int] = []
        have = max(_size(folder / _PART), _size(folder / DATA))  # DATA: interrupted while finishing
        if _size(folder / DATA) >= 0:
            os.replace(folder / DATA, folder / _PART)
        for shard in range(shards):
            record = read_json(_blob(folder, shard).with_suffix(".json"))
            end = self.end + record["bytes"] if record else 0
            if record and len(self.ends) == shard and end <= have:
                self.ends.append(end)
            elif not record or _size(_blob(folder, shard)) != record["bytes"]:
                continue
            self.records[shard] = record

    @property
    def end(self) -> int:
        """Bytes appended so far."""
        return self.ends[-1] if self.ends else 0

    def append(self) -> None:
        """Append the shards whose turn it is; a part that a killed build left is overwritten."""
        while (shard := len(self.ends)) in self.records:
            blob = _blob(self.folder, shard)
            with open(self.folder / _PART, "ab") as out:
                out.truncate(self.end)
                with open(blob, "rb") as file:
                    shutil.copyfileobj(file, out, 2**20)
            self.ends.append(self.end + self.records[shard]["bytes"])
            blob.unlink()


def _write_shards(
    clips: Sequence[Clip],
    source: Source,
    folder: Path,
    policy: SkeletonPolicy,
    workers: int,
    report: Callable[[int], None],
) -> None:
    shards = range(-(-len(clips) // SHARD))
    parts = _Parts(folder, len(shards))
    todo = [k for k in shards if k not in parts.records]
    paths = {k: [clip.path for clip in clips[k * SHARD : (k + 1) * SHARD]] for k in todo}
    done = len(clips) - sum(map(len, paths.values()))
    report(done)
    parts.append()
    for shard, record in _run(source, folder, policy, paths, min(workers, len(todo))):
        parts.records[shard] = record
        parts.append()
        done += len(paths[shard])
        report(done)


def _run(
    source: Source, folder: Path, policy: SkeletonPolicy, paths: Mapping[int, list[str]], workers: int
) -> Iterator[tuple[int, dict[str, Any]]]:
    """(shard, record) of every shard, as they are done."""
    if workers <= 1:
        for shard, names in paths.items():
            yield shard, _write_shard(source, folder, policy, shard, names)
        return
    context = multiprocessing.get_context("spawn")  # forking a process that has threads can deadlock
    pool = ProcessPoolExecutor(workers, context)
    waiting: dict[Future, int] = {}
    queue = iter(paths.items())
    try:
        while True:
            for shard, names in queue:
                waiting[pool.submit(_write_shard, source, folder, policy, shard, names)] = shard
                if len(waiting) >= 2 * workers:
                    break
            if not waiting:
                return
            for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                yield waiting.pop(future), future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _write_shard(
    source: Source, folder: Path, policy: SkeletonPolicy, shard: int, paths: Sequence[str]
) -> dict[str, Any]:
    """Clean the clips at `paths` into a blob, put it and its record in place, and return the record."""
    began = time.monotonic()
    blob, rows, total = _blob(folder, shard), [], 0
    temporary = folder / f".{blob.name}.{os.getpid()}.tmp"
    try:
        with open(temporary, "wb") as file:
            for path in paths:
                try:
                    clip = source.read(path)
                    joints = prepare_clip(clip, policy, source.spatial)
                except Unreadable as error:
                    rows.append({"skipped": str(error)})
                    continue
                file.write(np.ascontiguousarray(joints, dtype=policy.dtype).data)
                total += joints.size * np.dtype(policy.dtype).itemsize
                rows.append({"m": joints.shape[0], "t": joints.shape[1], "size": list(getattr(clip, "size", (0, 0)))})
        os.replace(temporary, blob)
    finally:
        temporary.unlink(missing_ok=True)
    record = {"bytes": total, "seconds": round(time.monotonic() - began, 3), "clips": rows}
    write_text(blob.with_suffix(".json"), json.dumps(record))
    return record


def _finish(
    clips: Sequence[Clip],
    folder: Path,
    identity: Mapping[str, Any],
    audit: Callable[[list[tuple[Clip, str]]], Mapping[str, Any]],
) -> Path:
    """Write data, table, index, skipped clips and, last, the manifest; then remove what is left of the shards."""
    shards = range(-(-len(clips) // SHARD))
    records = [read_json(_blob(folder, shard).with_suffix(".json")) for shard in shards]
    rows = [row for record in records for row in record["clips"]]  # type: ignore[index]
    both = list(zip(clips, rows, strict=True))
    skipped = [(clip.clip, clip.path, row["skipped"]) for clip, row in both if "skipped" in row]
    write_csv(folder / "skipped.csv", ("clip", "path", "reason"), skipped)
    kept = [(clip, row) for clip, row in both if "skipped" not in row]
    if not kept:
        raise UserError(
            f"none of the {len(clips)} skeleton clips can be used; the first, {skipped[0][1]}: {skipped[0][2]}"
        )
    audited = audit([(clip, row["skipped"]) for clip, row in both if "skipped" in row])
    persons = np.array([row["m"] for _, row in kept], dtype=np.int64)
    frames = np.array([row["t"] for _, row in kept], dtype=np.int64)
    joints, channels, _ = identity["shape"]
    numbers = persons * frames * joints * channels
    buffer = io.BytesIO()
    np.savez(
        buffer,
        start=np.cumsum(numbers) - numbers,  # in numbers, not bytes
        persons=persons.astype(np.int32),
        frames=frames.astype(np.int32),
        size=np.array([row["size"] for _, row in kept], dtype=np.int32),
    )
    write_bytes(folder / "table.npz", buffer.getvalue())
    write_index(folder / "index.csv", [clip for clip, _ in kept])
    os.replace(folder / _PART, folder / DATA)
    manifest = {
        **identity,
        "clips": len(kept),
        "frames": int(frames.sum()),
        "bytes": int(numbers.sum()) * np.dtype(identity["policy"]["dtype"]).itemsize,
        "seconds": round(sum(record["seconds"] for record in records), 3),  # type: ignore[index]
        "skipped": len(skipped),
        **audited,
    }
    path = write_text(folder / "manifest.json", json.dumps(manifest, indent=1) + "\n")
    for left in folder.glob("shard-*"):
        left.unlink()
    return path


# ------------------------------------------------------------------------------------------------- reading
class SkeletonStore:
    """Reads a skeleton store.

    clips, labels, splits: of each clip. skipped: {clip: reason} of those left out. joints V, channels C, spatial: how
    many of the channels are coordinates. Safe to hand to worker processes: pickled it is its folder's name, and
    the data are mapped read-only on first use. Raises UserError when the folder holds no store, an unfinished or
    damaged one, or (when `policy` is given) one of another policy.
    """

    def __init__(self, folder: str | Path, policy: SkeletonPolicy | None = None) -> None:
        self.folder = Path(folder)
        self.manifest = read_json(self.folder / "manifest.json")
        if self.manifest is None:
            raise UserError(self._why_missing())
        if self.manifest["format"] != FORMAT:
            raise UserError(f"the skeleton store {folder} has another version's format; delete it and build it again")
        if policy is not None:
            ShardFolder(self.folder, {"policy": policy.stored}, "skeleton store").complete()
        index = read_index(self.folder / "index.csv")
        self.clips = [clip.clip for clip in index]
        self.labels = [clip.label for clip in index]
        self.splits = [clip.split for clip in index]
        self.joints, self.channels, self.spatial = self.manifest["shape"]
        self._dtype = np.dtype(self.manifest["policy"]["dtype"])
        try:
            with np.load(self.folder / "table.npz", allow_pickle=False) as table:
                self._start, self._size = table["start"], table["size"]
                self._persons, self._frames = table["persons"], table["frames"]
            with open(self.folder / "skipped.csv", newline="", encoding="utf-8") as file:
                self.skipped = {row["clip"]: row["reason"] for row in csv.DictReader(file)}
        except (OSError, ValueError, KeyError) as error:
            raise self._damaged("table.npz or skipped.csv") from error
        if _size(self.folder / DATA) != self.manifest["bytes"]:
            raise self._damaged(DATA)
        self._data: np.ndarray | None = None

    def _why_missing(self) -> str:
        if (self.folder / "identity.json").exists():
            return f"the skeleton store {self.folder} is incomplete: its build was interrupted; run the build again"
        return f"there is no skeleton store in {self.folder}; build it first"

    def _damaged(self, name: str) -> UserError:
        return UserError(f"{self.folder}: {name} is damaged; delete the skeleton store and build it again")

    def __reduce__(self) -> tuple[type[SkeletonStore], tuple[Path]]:
        return SkeletonStore, (self.folder,)

    def __len__(self) -> int:
        return len(self.clips)

    def classes(self, split: str | None = None) -> list[str]:
        """Sorted class names of one split, or of all."""
        return sorted({label for label, of in zip(self.labels, self.splits, strict=True) if split in (None, of)})

    def persons(self, i: int) -> int:
        """Persons of clip `i`."""
        return int(self._persons[i])

    def frames(self, i: int) -> int:
        """Frames of clip `i`."""
        return int(self._frames[i])

    def size(self, i: int) -> tuple[int, int]:
        """(height, width) in pixels of clip `i`'s video, (0, 0) for 3D skeletons."""
        return int(self._size[i, 0]), int(self._size[i, 1])

    def read(self, i: int) -> np.ndarray:
        """Clip `i`: (M, T, V, C) float32, an array of its own; M is how many persons there are."""
        if self._data is None:
            with open(self.folder / DATA, "rb") as file:
                self._data = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), self._dtype)
        shape = (self.persons(i), self.frames(i), self.joints, self.channels)
        start = int(self._start[i])
        return self._data[start : start + math.prod(shape)].reshape(shape).astype(np.float32)
