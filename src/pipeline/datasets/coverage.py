"""How much of a data set is there: the clips that its lists name against those that could be read.

Videos vanish from their publishers, so a set such as Kinetics is never whole. `index.csv` holds the clips that were
found; `listed.csv`, where there is one, all that the lists name. A store's `coverage.csv` says of every listed clip
whether it is in the store and why not, and its manifest counts them by split.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.datasets.index import COLUMNS, LISTED, SPLITS, Clip, read_index
from pipeline.errors import UserError
from pipeline.experiment import digest
from pipeline.files import read_json, write_csv

COVERAGE = "coverage.csv"
MISSING = "the file is missing"
Failures = Sequence[tuple[Clip, str]]
"""Clips of an index that could not be read, with the reason."""


@dataclass(frozen=True)
class Audit:
    """Compares what a store can hold with what is listed, before and after the clips are read.

    name: of the data set. folder: where it was prepared. store: folder of its store. minimum: share of the listed
    clips of each split that must be there. again: what else is to be deleted before an unreadable clip is read anew.
    published: {split: clips} of a set whose lists name only what is there, such as a pickle.
    """

    name: str
    folder: Path
    store: Path
    minimum: float = 0.0
    again: Path | None = None
    published: Mapping[str, int] = field(default_factory=dict)

    def before(self) -> None:
        """Raise UserError where files that are missing already leave too few clips, so that none is read in vain."""
        rows = self._rows([])
        if self._short(self._count(rows)):
            self._write(rows)
            raise self._error(rows, [])

    def __call__(self, failures: Failures) -> dict[str, Any]:
        """Write `coverage.csv` and return what the manifest says of it.

        Raises:
            UserError: too few of the listed clips of a split are there.
        """
        rows = self._rows(failures)
        self._write(rows)
        if self._short(counts := self._count(rows)):
            raise self._error(rows, failures)
        present = sorted(clip.clip for clip, reason in rows if not reason)
        whole = all(count["present"] == count["listed"] for count in counts.values())
        return {"coverage": counts} | ({} if whole else {"present": digest(present)})

    def _count(self, rows: Sequence[tuple[Clip, str]]) -> dict[str, dict[str, int]]:
        """{split: {listed, present}} of the splits that list a clip, or of which clips are published."""
        counts = {split: {"listed": 0, "present": 0} for split in SPLITS}
        for clip, reason in rows:
            counts[clip.split]["listed"] += 1
            counts[clip.split]["present"] += not reason
        for split, count in counts.items():
            count["listed"] = max(count["listed"], self.published.get(split, 0))
        return {split: count for split, count in counts.items() if count["listed"]}

    def after(self) -> None:
        """Raise UserError where a store that was complete before has too few clips for the minimum of today."""
        counts = (read_json(self.store / "manifest.json") or {}).get("coverage", {})
        if short := self._short(counts):
            raise UserError(
                f"{self._said(counts, short)}; the list with reasons is {self.store / COVERAGE}. "
                f"S{self._setting(counts)}"
            )

    def _rows(self, failures: Failures) -> list[tuple[Clip, str]]:
        """Every listed clip with the reason why it is not there, empty where it is."""
        index = read_index(self.folder / "index.csv")
        bad = {clip.clip: reason for clip, reason in failures}
        rows = [(clip, bad.get(clip.clip, "")) for clip in index]
        if not (self.folder / LISTED).is_file():
            return rows
        names, reasons = {clip.clip for clip in index}, _reasons(self.folder / "unreadable.csv")
        with (self.folder / LISTED).open(newline="", encoding="utf-8") as file:
            listed = [Clip(**row) for row in csv.DictReader(file)]
        return rows + [(clip, reasons.get(clip.path, MISSING)) for clip in listed if clip.clip not in names]

    def _write(self, rows: Sequence[tuple[Clip, str]]) -> None:
        lines = [
            (clip.clip, clip.path, clip.label, clip.split, "no" if reason else "yes", reason) for clip, reason in rows
        ]
        write_csv(self.store / COVERAGE, (*COLUMNS, "present", "reason"), lines)

    def _short(self, counts: Mapping[str, Mapping[str, int]]) -> list[str]:
        """Splits with too few clips."""
        return [split for split, count in counts.items() if count["present"] < self.minimum * count["listed"] - 1e-9]

    def _error(self, rows: Sequence[tuple[Clip, str]], failures: Failures) -> UserError:
        counts = self._count(rows)
        stale = [self.again] if failures and self.again else []
        if sum(bool(reason) for _, reason in rows) > len(failures):  # found or not was settled with the splits
            stale.append(self.folder / "index.csv")
        first = f"delete {' and '.join(map(str, stale))} and run again" if stale else "run again"
        return UserError(
            f"{self._said(counts, self._short(counts))}; the list with reasons is {self.store / COVERAGE}. "
            f"Add or mend files, {first}; or s{self._setting(counts)}"
        )

    def _said(self, counts: Mapping[str, Mapping[str, int]], short: Sequence[str]) -> str:
        parts = [
            f"{counts[split]['listed'] - counts[split]['present']:,} of {counts[split]['listed']:,} {split} clips"
            for split in short
        ]
        return (
            f"data set {self.name}: {' and '.join(parts)} are missing or unreadable, and min_coverage is "
            f"{self.minimum:g}"
        )

    def _setting(self, counts: Mapping[str, Mapping[str, int]]) -> str:
        """What to set to go on (its first letter left out): the highest round number that lets the set pass."""
        lowest = min(count["present"] / count["listed"] for count in counts.values())
        return (
            f"et min_coverage: {math.floor(100 * lowest) / 100:g} in config/datasets/{self.name}.yaml to go on with "
            "what is there"
        )


def read_coverage(store: str | Path) -> dict[str, float]:
    """{split: share of its listed clips that are in a store}; empty where that is not known.

    A store of an earlier version says nothing of it; it is whole where nothing was left out.
    """
    store = Path(store)
    manifest = read_json(store / "manifest.json") or {}
    if counts := manifest.get("coverage"):
        return {split: count["present"] / count["listed"] for split, count in counts.items()}
    left_out = manifest.get("failures", manifest.get("skipped"))
    if left_out == 0 and not _reasons(store.parent / "unreadable.csv"):
        return dict.fromkeys(SPLITS, 1.0)
    return {}


def present_clips(store: str | Path) -> str:
    """Short hash of the clips that are in a store which lacks some; empty for a whole one, or where it is not known."""
    return (read_json(Path(store) / "manifest.json") or {}).get("present", "")


def _reasons(path: Path) -> dict[str, str]:
    """{path of a clip: why it was left out} of an `unreadable.csv`; empty where there is none."""
    if not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        return {row["path"]: row["reason"] for row in csv.DictReader(file)}
