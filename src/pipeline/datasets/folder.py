"""Data sets of one's own (`kind: folder`): a folder for each class, or a table of paths and labels."""

from __future__ import annotations

import os
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.datasets.duplicates import check_duplicates
from pipeline.datasets.frames import probe_clips
from pipeline.datasets.index import SPLITS, Clip, write_prepared
from pipeline.datasets.located import locate, report_map, without_suffix
from pipeline.datasets.splits import (
    MIN_CLIPS,
    assign_splits,
    class_list,
    display_label,
    required,
)
from pipeline.datasets.videos import IMAGE_SUFFIXES, VIDEO_SUFFIXES, natural_key
from pipeline.errors import UserError, unknown
from pipeline.files import write_csv
from pipeline.guarded import Failure
from pipeline.names import composed, near_path
from pipeline.textfiles import read_table, slashed

__all__ = ["class_folders", "clips_below", "display_label", "normalise_label", "prepare_folder"]

NUMBER_PREFIX = r"\d+[\s._-]+"


@dataclass(frozen=True, slots=True)
class _Found:
    """A clip on disk: path below the root, the class's name as written there, split if a table has it."""

    path: str
    raw: str
    split: str = ""


def normalise_label(name: str, strip_prefix: bool | str = False, mapping: Mapping[str, str] | None = None) -> str:
    """The class name used everywhere: as given, unless configured otherwise.

    mapping: {name as given: class name}; it wins. strip_prefix: true takes a leading number off (01_jump:
    jump), a regular expression what it matches at the start. Unicode is composed (NFC) and outer blanks
    go, so that names from file systems and from lists compare equal. Raises UserError when nothing is left
    or the expression is wrong.
    """
    name = unicodedata.normalize("NFC", str(name)).strip()
    if mapping and name in mapping:
        return str(mapping[name])
    if strip_prefix:
        pattern = NUMBER_PREFIX if strip_prefix is True else strip_prefix
        try:
            name = re.sub(rf"\A(?:{pattern})", "", name).strip()
        except re.error as error:
            raise UserError(f"strip_prefix {pattern!r} is not a regular expression ({error}); correct it") from None
    if not name:
        raise UserError(f"strip_prefix {strip_prefix!r} leaves nothing of a class name; correct it")
    return name


def prepare_folder(spec: Mapping[str, Any], out_folder: str | Path, workers: int = 1) -> Path:
    """Prepare a data set of one's own; returns its `index.csv`.

    spec: the keys of `kinds.folder.FolderDefinition`. root has one folder a class (clips may lie in subfolders); a clip
    is a video file or a folder of jpg/png frames. splits: see `splits.assign_splits`; classes in none are left out.
    strip_prefix, map: see `normalise_label`. duplicates: see `check_duplicates`.

    Every clip is opened and decoded at its start and near its end: `clips.csv` records frames, fps and
    size, and `unreadable.csv` those left out, with the reason. Raises UserError on a wrong configuration,
    an empty class, or a class left with too few clips.
    """
    root = Path(required(spec, "root"))
    if not root.is_dir():
        raise UserError(f"there is no folder {root}; correct the data set's root{near_path(root)}")
    pattern = checked_pattern(spec.get("pattern", ""))
    if spec.get("labels"):
        found = _placed(root, list(_from_table(root, Path(spec["labels"]))), Path(out_folder))
    else:
        found = list(_from_folders(root, pattern))
    labels = _labels({item.raw for item in found}, spec)
    split_of = _splits(found, labels, spec, root)
    kept = [item for item in found if item.path and labels[item.raw] in split_of]
    _check_empty({labels[item.raw] for item in kept}, found, labels, split_of, root)
    clips = [
        Clip(name, item.path, labels[item.raw], split_of[labels[item.raw]])
        for name, item in zip(_clip_names(kept), kept, strict=True)
    ]
    check_duplicates(root, clips, spec.get("duplicates", "error"))
    probes = probe_clips(root, clips, workers, pattern)
    both = list(zip(clips, probes, strict=True))
    unreadable = [(clip.path, probe.reason) for clip, probe in both if isinstance(probe, Failure)]
    index = write_prepared(out_folder, root, clips, unreadable, int(spec.get("min_clips", MIN_CLIPS)))
    rows = [
        (clip.clip, probe.frames, round(probe.fps, 3), probe.height, probe.width)
        for clip, probe in both
        if not isinstance(probe, Failure)
    ]
    write_csv(Path(out_folder) / "clips.csv", ("clip", "frames", "fps", "height", "width"), rows)
    return index


def checked_pattern(pattern: str) -> str:
    """The pattern; raises UserError when it is no regular expression."""
    try:
        re.compile(pattern)
    except re.error as error:
        raise UserError(f"pattern {pattern!r} is not a regular expression ({error}); correct it") from None
    return pattern


def class_folders(root: str | Path, pattern: str = "") -> dict[str, list[str]]:
    """{name of a class folder: paths below `root` of the clips in it}, in natural order; an empty folder has none.

    A clip is a video file or a folder of jpg/png frames, perhaps in subfolders, of names that `pattern` matches. Raises
    UserError when `root` has no class folders, or a folder holds pictures beside videos.
    """
    found: dict[str, list[str]] = {}
    for item in _from_folders(Path(root), pattern):
        found.setdefault(item.raw, []).extend([item.path] if item.path else [])
    return found


def clips_below(root: str | Path, pattern: str = "") -> list[str]:
    """Paths below the folder `root` of all clips in it, at any depth, in natural order; "" if it is itself one.

    Raises UserError when a folder holds pictures beside videos.
    """
    root = Path(root)
    if _is_clip(root, pattern):
        return [""]
    return [path.removeprefix("./") for path in _clips_below(root, ".", set(), pattern)]


def _from_folders(root: Path, pattern: str) -> Iterator[_Found]:
    """Clips of each class folder; an empty one gives an item without path."""
    names = [name for name in _entries(root) if (root / name).is_dir()]
    if not names:
        raise UserError(f"{root} has no class folders; make one folder a class, or give labels: a CSV file")
    for name in names:
        if _is_clip(root / name, pattern):
            raise UserError(f"{root / name} holds frames directly; put the frames of each clip in a folder of its own")
        paths = list(_clips_below(root, name, set(), pattern))
        yield from (_Found(path, name) for path in paths or [""])


def _clips_below(root: Path, folder: str, seen: set[str], pattern: str) -> Iterator[str]:
    """Paths (below root) of videos and frame folders in `folder`, in natural order."""
    real = os.path.realpath(root / folder)
    if real in seen:
        return  # a link that leads in a circle
    seen.add(real)
    for name in _entries(root / folder):
        path = f"{folder}/{name}"
        if (root / path).is_dir():
            if _is_clip(root / path, pattern):
                yield path
            else:
                yield from _clips_below(root, path, seen, pattern)
        elif name.lower().endswith(VIDEO_SUFFIXES) and re.search(pattern, name):
            yield path  # a broken link too: probing it tells that the file is missing


def _entries(folder: Path) -> list[str]:
    """Names in a folder, in natural order; of those that are not UTF-8, which no table can hold, a line is printed."""
    names = sorted((name for name in os.listdir(folder) if name[0] != "."), key=natural_key)
    for name in names:
        if (said := os.fsencode(name).decode("utf-8", "backslashreplace")) != name:
            print(f"left out: {folder}/{said}: its name is not UTF-8; rename it", file=sys.stderr, flush=True)
    return [name for name in names if os.fsencode(name).decode("utf-8", "backslashreplace") == name]


def _is_clip(folder: Path, pattern: str) -> bool:
    """Whether a folder holds the frames of a clip; raises UserError where it holds videos too."""
    names = [name for name in os.listdir(folder) if name[0] != "." and re.search(pattern, name)]
    pictures = sorted(name for name in names if name.lower().endswith(IMAGE_SUFFIXES))
    films = sorted(name for name in names if name.lower().endswith(VIDEO_SUFFIXES))
    if pictures and films:
        raise UserError(
            f"{folder} holds pictures ({_some(pictures)}) beside videos ({_some(films)}); move one kind away, or say "
            "by `pattern:`, a regular expression, which names are clips"
        )
    return bool(pictures)


def _some(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def _placed(root: Path, found: list[_Found], folder: Path) -> list[_Found]:
    """Rows of a table with the paths as they lie below the root."""
    paths = [item.path for item in found]
    places = locate(root, paths)
    report_map(folder, paths, places)
    return [replace(item, path=place.path or item.path) for item, place in zip(found, places, strict=True)]


def _from_table(root: Path, table: Path) -> Iterator[_Found]:
    """Rows of a table path,label[,split]."""
    seen: dict[str, int] = {}
    for line, row in enumerate(read_table(table, "the table of labels", ("path", "label")), start=2):
        path, label, split = slashed(row["path"]), row["label"], row.get("split", "")
        if not path or not label:
            raise UserError(f"{table}, line {line}: path or label is empty; fill it in")
        if split and split not in SPLITS:
            raise unknown("split", split, SPLITS, f"{table}, line {line}")
        inside = Path(os.path.relpath(path, root) if os.path.isabs(path) else path).as_posix()
        if (first := seen.setdefault(inside, line)) != line:
            raise UserError(f"{table}, line {line}: {inside} is in line {first} already; keep one")
        yield _Found(inside, label, split)


def _labels(raw: set[str], spec: Mapping[str, Any]) -> dict[str, str]:
    """{name as given: class name}. Two names may become one only where the map says so."""
    mapping = {unicodedata.normalize("NFC", str(key)): value for key, value in (spec.get("map") or {}).items()}
    for name in mapping:
        if name not in {unicodedata.normalize("NFC", name) for name in raw}:
            raise unknown("class", name, raw, "map")
    labels = {name: normalise_label(name, spec.get("strip_prefix", False), mapping) for name in raw}
    first: dict[str, str] = {}
    for name in sorted(raw):
        other = first.setdefault(labels[name], name)
        if other != name and not {other, name} <= mapping.keys():
            raise UserError(f"the classes {other!r} and {name!r} both become {labels[name]!r}; map them to say so")
    return labels


def _splits(found: list[_Found], labels: Mapping[str, str], spec: Mapping[str, Any], root: Path) -> dict[str, str]:
    """{class: split}"""
    if spec.get("splits"):
        # Lists may use the names as given or the class names.
        given = {composed(name): label for name, label in labels.items()}
        splits = {
            key: value
            if isinstance(value, int)
            else [given.get(composed(name), name) for name in class_list(value, key)]
            for key, value in spec["splits"].items()
            if value
        }
        return assign_splits(sorted(set(labels.values())), splits, str(root))
    assigned: dict[str, str] = {}
    for item in found:
        if not item.split:
            raise UserError(f"{root}: no splits are given; add splits with train, val and test classes or counts")
        if assigned.setdefault(labels[item.raw], item.split) != item.split:
            raise UserError(
                f"{spec['labels']}: the class {labels[item.raw]!r} is in {assigned[labels[item.raw]]} and "
                f"{item.split}; few-shot splits share no class"
            )
    return assigned


def _check_empty(
    kept: set[str], found: list[_Found], labels: Mapping[str, str], split_of: Mapping[str, str], root: Path
) -> None:
    for item in found:
        label = labels[item.raw]
        if label in split_of and label not in kept:
            raise UserError(
                f"the class {label!r} has 0 clips: {root / item.raw} holds no video "
                f"({', '.join(VIDEO_SUFFIXES)}) and no folder of frames; add clips or leave the class out"
            )


def _clip_names(found: list[_Found]) -> list[str]:
    """Paths without suffix; with it where two clips differ in nothing else."""
    short = [without_suffix(item.path) for item in found]
    times = Counter(short)
    return [name if times[name] == 1 else item.path for name, item in zip(short, found, strict=True)]
