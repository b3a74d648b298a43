"""Clips that are one file under several names: told by the file itself, not by what lists call it."""

from __future__ import annotations

import hashlib
import os
import sys
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from pathlib import Path

from pipeline.datasets.index import Clip
from pipeline.errors import UserError, unknown

POLICIES = ("error", "keep")
_HEAD = 1 << 12  # bytes that are compared first
_LEAST = 256  # bytes of a film or picture; what is shorter is damaged, and alike for that


def check_duplicates(root: str | Path, clips: Sequence[Clip], policy: str = "error") -> None:
    """Raise UserError where a file is in two splits, and print a warning where it is there twice within one.

    policy: error, or keep: leave them in with a warning.
    """
    if policy not in POLICIES:
        raise unknown("policy of duplicates", policy, POLICIES, "the data set's configuration")
    across, within = [], []
    for same in same_files(root, clips):
        (across if len({clip.split for clip in same}) > 1 else within).append(same)
    if across and policy == "error":
        raise UserError(
            f"{_said(across)}; what is trained on must not be tested: take it out of one list, or set duplicates: keep"
        )
    for found in filter(None, (across, within)):
        print(f"warning: {_said(found)}", file=sys.stderr, flush=True)


def _said(groups: Sequence[Sequence[Clip]]) -> str:
    one, other = _apart(groups[0])
    more = f" ({len(groups)} files are)" if len(groups) > 1 else ""
    place = "the same file" if one.path == other.path else f"the same file as {other.path}"
    return f"{one.path} is in {one.split} as {one.clip!r} and in {other.split} as {other.clip!r}, {place}{more}"


def _apart(same: Sequence[Clip]) -> tuple[Clip, Clip]:
    """The first clip and one of another split, if there is any."""
    return same[0], next((clip for clip in same if clip.split != same[0].split), same[1])


def same_files(root: str | Path, clips: Iterable[Clip]) -> list[list[Clip]]:
    """Clips that are the same file or folder of frames: of one resolved path, or of the same size and contents.

    Files that are missing, or too short to be films, are like no other.
    """
    by_place: dict[str, list[Clip]] = defaultdict(list)
    for clip in clips:
        by_place[os.path.realpath(os.path.join(root, clip.path))].append(clip)
    groups = _split(list(by_place), _size)
    for tell in (_beginning, _whole):
        groups = [part for group in groups for part in _split(group, tell) if len(part) > 1]
    alike = {place: min(group) for group in groups for place in group}
    merged: dict[str, list[Clip]] = defaultdict(list)
    for place, found in by_place.items():
        merged[alike.get(place, place)] += found
    return [found for found in merged.values() if len(found) > 1]


def _split(places: Sequence[str], tell: Callable[[str], Hashable]) -> list[list[str]]:
    parts: dict[Hashable, list[str]] = defaultdict(list)
    for place in places:
        try:
            if (key := tell(place)) is not None:
                parts[key].append(place)
        except OSError:
            continue
    return [part for part in parts.values() if len(part) > 1]


def _files(place: str) -> list[str]:
    """The file itself, or those of a folder, in order."""
    return [os.path.join(place, name) for name in sorted(os.listdir(place))] if os.path.isdir(place) else [place]


def _size(place: str) -> Hashable:
    files = _files(place)
    return (len(files), os.path.isdir(place), os.path.getsize(files[0]) or None) if files else None


def _beginning(place: str) -> Hashable:
    files = _files(place)
    with open(files[0], "rb") as file:
        head = file.read(_HEAD)
    if len(head) < _LEAST:
        return None
    return hashlib.sha256(head).digest(), sum(map(os.path.getsize, files))


def _whole(place: str) -> Hashable:
    made = hashlib.sha256()
    for path in _files(place):
        if os.path.isfile(path):
            with open(path, "rb") as file:
                made.update(hashlib.file_digest(file, "sha256").digest())
    return made.digest()
