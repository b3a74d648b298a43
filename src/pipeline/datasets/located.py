"""Which file below a root a list means: its path as listed, or the one file that differs from it in little."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from pipeline.datasets.coverage import MISSING
from pipeline.datasets.duplicates import same_files
from pipeline.datasets.index import SPLITS, Clip
from pipeline.datasets.videos import IMAGE_SUFFIXES, VIDEO_SUFFIXES, natural_key
from pipeline.files import write_csv
from pipeline.names import TIME_RANGE, Key, Names, ambiguous, folded, normal


def video_stem(path: str) -> str:
    """File name without a video's suffix; other dots are part of the name."""
    name = os.path.basename(path)
    stem, suffix = os.path.splitext(name)
    return stem if suffix.lower() in VIDEO_SUFFIXES else name


def without_suffix(path: str) -> str:
    """A path without a video's suffix."""
    return os.path.join(os.path.dirname(path), video_stem(path))


def _stem(path: str) -> str:
    return video_stem(folded(path))


FILE_KEYS: dict[str, Key] = {
    "case, normal form or slashes": folded,
    "its suffix": lambda path: without_suffix(folded(path)),
    "its folder": _stem,
    "its time range": lambda path: TIME_RANGE.sub("", _stem(path)),
    "blanks and hyphens": lambda path: normal(TIME_RANGE.sub("", _stem(path))),
}


class Placed(NamedTuple):
    """Where a listed clip lies below the root, and in what its name differs; or no path, and why it is not found."""

    path: str | None
    how: str = ""
    reason: str = ""


def locate(root: Path, paths: Sequence[str]) -> list[Placed]:
    """Each listed path as it lies below `root`.

    Raises UserError where several files fit one that is not there as listed.
    """
    exact = {path for path in paths if os.path.lexists(os.path.join(root, path))}
    names = Names(_clips_below(root), FILE_KEYS) if len(exact) < len(set(paths)) else None
    return [Placed(path) if path in exact or names is None else _placed(root, path, names, exact) for path in paths]


def _placed(root: Path, path: str, names: Names, taken: Collection[str]) -> Placed:
    """A path that is not there as listed. A file of another folder that is listed itself is not meant."""
    found, how = names.candidates(path)
    folder = os.path.dirname(folded(path))
    if folder:
        own = [one for one in found if os.path.basename(os.path.dirname(folded(one))) == os.path.basename(folder)]
        found = own or [one for one in found if one not in taken]
    if len(found) > 1 and not _one_file(root, found):
        raise ambiguous("listed clip", path, found, str(root))
    if found:
        return Placed(found[0], how)
    nearest = names.nearest(path, taken)
    return Placed(None, reason=MISSING + (f"; the nearest that is there is {nearest}" if nearest else ""))


def _one_file(root: Path, paths: Sequence[str]) -> bool:
    """Whether all of these are copies of one file."""
    groups = same_files(root, [Clip(path, path, "", SPLITS[0]) for path in paths])
    return bool(groups) and len(groups[0]) == len(paths)


def _clips_below(root: Path) -> Iterator[str]:
    """Paths below `root` of all video files and folders of pictures, in natural order."""
    seen = set()  # real folders, against links that lead in a circle
    for folder, folders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders.sort(key=natural_key)
        inside = os.path.relpath(folder, root)
        if inside != "." and any(file.lower().endswith(IMAGE_SUFFIXES) for file in files):
            yield inside
        for file in sorted(files, key=natural_key):
            if file.lower().endswith(VIDEO_SUFFIXES):
                yield os.path.normpath(os.path.join(inside, file))


def report_map(folder: Path, paths: Sequence[str], placed: Sequence[Placed]) -> None:
    """Write the clips that lie under another name than listed to `located.csv`, and say how many there are."""
    odd = [(path, one.path, one.how) for path, one in zip(paths, placed, strict=True) if one.path and one.how]
    write_csv(folder / "located.csv", ("listed", "found", "differs in"), odd)
    if odd:
        listed, found, how = odd[0]
        print(
            f"{len(odd)} of {len(paths)} listed clips lie under another name, such as {listed}: {found} (other in "
            f"{how}); the map is {folder / 'located.csv'}"
        )


__all__ = ["Placed", "locate", "report_map", "video_stem", "without_suffix"]
