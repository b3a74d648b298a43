"""Frames that an earlier build of a store decoded, so that after a change of the index only new clips are decoded.

When the index of a store changes and its policy does not, its shards move to a folder `kept`. The new build copies
from there what it needs, deletes each old shard after its last use, and is then the same as one made from nothing.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.datasets.videos import ReadClip
from pipeline.experiment import digest

FOLDER = "kept"


def stamp(path: Path) -> list[int]:
    """What changes when a clip is replaced: length and time of its file; of a folder the number of frames and the
    newest time. Empty where it cannot be read."""
    try:
        if not path.is_dir():
            return [path.stat().st_size, path.stat().st_mtime_ns]
        with os.scandir(path) as entries:
            times = [entry.stat().st_mtime_ns for entry in entries]
        return [len(times), max(times, default=0)]
    except OSError:
        return []


def keep_shards(folder: Path, identity: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Move the shards of the store `identity` aside for the store `new`; those of another policy are deleted."""
    if any(identity.get(key) != new[key] for key in ("format", "policy")):
        shutil.rmtree(folder / FOLDER, ignore_errors=True)
        return
    (folder / FOLDER).mkdir(exist_ok=True)
    for suffix in ("bin", "json"):  # a record is never there without its frames
        for path in folder.glob(f"shard-*.{suffix}"):
            os.replace(path, folder / FOLDER / f"{digest(identity)}-{path.name}")


class _Place(NamedTuple):
    blob: Path
    start: int
    row: Mapping[str, Any]


class Kept:
    """The clips in the folder `kept` of a store, by their paths below `root`."""

    def __init__(self, folder: Path, root: Path) -> None:
        self.folder, self.root = folder / FOLDER, root
        self._places: dict[str, _Place] = {}
        for record in sorted(self.folder.glob("*.json")):
            self._load(record)

    def _load(self, path: Path) -> None:
        try:
            record, blob = json.loads(path.read_text(encoding="utf-8")), path.with_suffix(".bin")
            if blob.stat().st_size != record["bytes"]:
                return
        except (OSError, ValueError):
            return
        lengths = [sum(row.get("sizes", ())) for row in record["clips"]]
        for row, start in zip(record["clips"], accumulate(lengths, initial=0), strict=False):
            if row.get("stamp") and "sizes" in row:
                self._places[row["path"]] = _Place(blob, start, row)

    def holds(self, path: str) -> bool:
        """Whether the clip at `path` was decoded, and its file is the same still."""
        place = self._places.get(path)
        return place is not None and stamp(self.root / path) == place.row["stamp"]

    def read(self, path: str) -> ReadClip:
        """A clip that it holds."""
        blob, start, row = self._places[path]
        with blob.open("rb") as file:
            file.seek(start)
            frames = [file.read(size) for size in row["sizes"]]
        return ReadClip(frames, row["places"], row["times"], row["fps"], row["source_frames"])

    def keep_only(self, paths: Sequence[str]) -> None:
        """Delete the old shards of which no clip in `paths` is."""
        needed = {self._places[path].blob for path in paths}
        for blob in self.folder.glob("*.bin"):
            if blob not in needed:
                blob.with_suffix(".json").unlink(missing_ok=True)
                blob.unlink()
