"""Files of NTU RGB+D 60 and 120: names, the list of samples with missing skeletons, and `.skeleton` files.

A `.skeleton` file holds the number of frames; for each frame the number of bodies; for each body one line that
starts with its identifier, the number of joints and one line of twelve numbers for each joint, of which the
first three are x y z in metres.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline.errors import UserError
from pipeline.guarded import Unreadable

JOINTS = 25
SUFFIX = ".skeleton"
_NAME = re.compile(r"S(\d{3})C(\d{3})P(\d{3})R(\d{3})A(\d{3})")


class NtuName(NamedTuple):
    """What the name of a sample says; all numbers start at 1."""

    setup: int
    camera: int
    subject: int
    repetition: int
    action: int


def parse_name(name: str) -> NtuName | None:
    """The numbers in a sample's name (S001C002P003R002A013), None when it is not such a name."""
    found = _NAME.fullmatch(name)
    return NtuName(*map(int, found.groups())) if found else None


def read_missing(path: str | Path) -> set[str]:
    """Names in the published list of samples with missing or incomplete skeletons; its prose is skipped.

    Raises UserError when the file cannot be read or names no sample.
    """
    try:
        data = Path(path).read_bytes()
        encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
        words = data.decode(encoding, errors="replace").split()
    except OSError as error:
        raise UserError(f"cannot read the list of missing skeletons {path} ({error.strerror}); correct it") from None
    names = {word for word in words if _NAME.fullmatch(word)}
    if not names:
        raise UserError(f"{path} names no sample (like S001C002P005R002A008); give the published list, or none")
    return names


@dataclass(frozen=True, slots=True)
class Body:
    """One tracked body: frames (n,) ascending, in which it is seen; joints (n, V, 3) float32, metres."""

    id: str
    frames: np.ndarray
    joints: np.ndarray


@dataclass(frozen=True, slots=True)
class Recording:
    """The bodies of a file, in the order in which they appear.

    frames: how many frames have a body; only these are counted by `Body.frames`. dropped: the frames of the file
    without one.
    """

    frames: int
    dropped: tuple[int, ...]
    bodies: tuple[Body, ...]


def read_recording(path: str | Path, joints: int = JOINTS) -> Recording:
    """Read a `.skeleton` file.

    Raises Unreadable when the file is missing, truncated or malformed, no frame has a body, a body has another
    number of joints, or a coordinate is not finite.
    """
    try:
        lines = Path(path).read_bytes().removeprefix(b"\xef\xbb\xbf").replace(b"\r", b"").split(b"\n")
    except OSError as error:
        raise Unreadable(f"cannot be read ({error.strerror})") from None
    try:
        return _parse(lines, joints)
    except (IndexError, ValueError):
        raise Unreadable("truncated or malformed") from None


def _parse(lines: list[bytes], joints: int) -> Recording:
    words: list[bytes] = []
    seen: dict[bytes, list[tuple[int, int]]] = {}  # body -> (frame, place in `words`)
    dropped: list[int] = []
    line, frames, place = 1, 0, 0
    total = int(lines[0])
    last: list[bytes] = []
    width = 0
    for frame in range(total):
        bodies = int(lines[line])
        line += 1
        if not bodies:
            dropped.append(frame)
            continue
        for _ in range(bodies):
            body = lines[line].split(None, 1)[0]
            if int(lines[line + 1]) != joints:
                raise Unreadable(f"a body has {int(lines[line + 1])} joints, the skeleton {joints}")
            block = lines[line + 2 : line + 2 + joints]
            for text in block:
                words += text.split(None, 3)[:3]
            line += 2 + joints
            last, width = block, width or len(block[0].split())
            found = seen.setdefault(body, [])
            if not found or found[-1][0] != frames:  # a sensor that lists a body twice: the first one counts
                found.append((frames, place))
            place += 1
        frames += 1
    if not place:
        raise Unreadable(f"no body in any of its {total} frames")
    if len(last[-1].split()) < width:
        raise Unreadable("truncated or malformed")  # cut within its last line
    table = np.array(list(map(float, words)), dtype=np.float32).reshape(place, joints, 3)
    if not np.isfinite(table).all():
        raise Unreadable(f"{int((~np.isfinite(table)).any((1, 2)).sum())} poses with numbers that are not finite")
    bodies = []
    for name, found in seen.items():
        where = np.array(found, dtype=np.int64)
        bodies.append(Body(name.decode("ascii", "replace"), where[:, 0], table[where[:, 1]]))
    return Recording(frames, tuple(dropped), tuple(bodies))
