"""`index.csv`: the clips of a prepared data set, one row a clip."""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from pipeline.errors import UserError, unknown
from pipeline.files import write_csv

SPLITS = ("train", "val", "test")


@dataclass(frozen=True, slots=True)
class Clip:
    """One clip of a data set.

    clip: name of the clip, unique in its data set. path: its video file or folder of frames, relative to
    the data set's root. label: name of its class. split: train, val or test.
    """

    clip: str
    path: str
    label: str
    split: str


COLUMNS = tuple(field.name for field in fields(Clip))
LISTED = "listed.csv"  # all that the lists of a data set name, found or not


def write_index(path: str | Path, clips: Iterable[Clip]) -> Path:
    """Write `clips` as `index.csv`; raises UserError on a repeated clip or an unknown split."""
    clips = list(clips)
    _check(clips, Path(path))
    return write_csv(path, COLUMNS, (tuple(asdict(clip).values()) for clip in clips))


def read_index(path: str | Path) -> list[Clip]:
    """Clips of an `index.csv`, in the order of its rows.

    Raises UserError when the file is missing or empty, lacks a column, has an empty cell, names an unknown
    split, or has a clip twice.
    """
    path = Path(path)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            missing = [column for column in COLUMNS if column not in (reader.fieldnames or ())]
            if missing:
                raise UserError(f"{path} lacks the column {', '.join(missing)}; it needs {','.join(COLUMNS)}")
            clips = [Clip(**{column: (row[column] or "").strip() for column in COLUMNS}) for row in reader]
    except FileNotFoundError:
        raise UserError(f"there is no data set index {path}; prepare the data set first") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is not a CSV file in UTF-8 ({error}); write it again") from None
    if not clips:
        raise UserError(f"{path} lists no clip; prepare the data set again")
    _check(clips, path)
    return clips


def write_prepared(
    folder: str | Path,
    root: str | Path,
    clips: Iterable[Clip],
    unreadable: Iterable[tuple[str, str]],
    min_clips: int,
) -> Path:
    """Write what preparing a data set found: `index.csv`, `unreadable.csv` (path, reason), and `listed.csv` of both.

    Raises UserError when a class of the data set is left with fewer than `min_clips` readable clips.
    """
    clips, unreadable = list(clips), list(unreadable)
    write_csv(Path(folder) / "unreadable.csv", ("path", "reason"), unreadable)
    write_csv(Path(folder) / LISTED, COLUMNS, (tuple(asdict(clip).values()) for clip in clips))
    lost = dict(unreadable)
    good = Counter(clip.label for clip in clips if clip.path not in lost)
    for label in classes_of(clips):
        if good[label] < min_clips:
            where = _common_folder(root, clips, label)
            first = next((clip.path for clip in clips if clip.label == label and clip.path in lost), "")
            why = f"; left out is {first}: {lost[first]}" if first else ""
            raise UserError(
                f"the class {label!r} has {good[label]} readable clip(s) in {where}, and min_clips is "
                f"{min_clips}; add clips or leave the class out of the splits{why}"
            )
    return write_index(Path(folder) / "index.csv", [clip for clip in clips if clip.path not in lost])


def _common_folder(root: str | Path, clips: Sequence[Clip], label: str) -> str:
    folders = {os.path.dirname(clip.path) for clip in clips if clip.label == label}
    return os.path.commonpath([os.path.join(root, folder) for folder in folders])


def classes_of(clips: Iterable[Clip], split: str | None = None) -> list[str]:
    """Sorted class names of one split, or of all."""
    return sorted({clip.label for clip in clips if split in (None, clip.split)})


def _check(clips: Sequence[Clip], path: Path) -> None:
    for row, clip in enumerate(clips, start=2):
        if clip.split not in SPLITS:
            raise unknown("split", clip.split, SPLITS, f"{path}, line {row}")
        empty = [column for column in COLUMNS if not getattr(clip, column)]
        if empty:
            raise UserError(f"{path}, line {row}: {empty[0]} is empty; fill it in")
    name, times = Counter(clip.clip for clip in clips).most_common(1)[0] if clips else ("", 0)
    if times > 1:
        raise UserError(f"{path} lists the clip {name!r} {times} times; a clip's name must be unique")
