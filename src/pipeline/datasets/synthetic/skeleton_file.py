"""Reading and writing skeletons in the text format of NTU RGB+D.

Layout: number of frames; for each frame the number of bodies; for each body one line of ten fields, the
number of joints and one line of twelve numbers for each joint (x y z, depth-image x y, colour-image x y,
orientation w x y z, tracking).
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from pydantic_core import to_json

from pipeline.errors import UserError

JOINT_COUNT = 25
_FIRST_BODY = 72057594037900000  # identifiers of the sensor are of this size


def write_skeleton(
    path: str | Path,
    joints: np.ndarray,
    *,
    pixels: np.ndarray | None = None,
    orientation: np.ndarray | None = None,
) -> None:
    """Write `joints` (T, M, 25, 3), metres, in full precision: reading gives back the same numbers.

    `pixels` (T, M, 25, 2) are written as both depth and colour position, `orientation` (T, M, 25, 4) as w x y
    z; zeros stand for what is not given. A body whose joints are all zero in a frame is absent from that
    frame. Raises UserError for another shape or for numbers that are not finite.
    """
    joints = np.asarray(joints, dtype=np.float64)
    if joints.ndim != 4 or joints.shape[2:] != (JOINT_COUNT, 3) or not len(joints):
        raise UserError(f"{path}: a skeleton needs shape (frames, bodies, 25, 3), not {joints.shape}")
    if not np.isfinite(joints).all():
        raise UserError(f"{path}: the skeleton holds numbers that are not finite; remove those frames first")
    frames, bodies = joints.shape[:2]
    pixels = np.zeros((frames, bodies, JOINT_COUNT, 2)) if pixels is None else pixels
    orientation = np.zeros((frames, bodies, JOINT_COUNT, 4)) if orientation is None else orientation
    table = np.concatenate([joints, pixels, pixels, orientation], axis=-1).tolist()
    present = joints.any(axis=(2, 3))
    lines = [str(frames)]
    for t in range(frames):
        lines.append(str(int(present[t].sum())))
        for m in np.flatnonzero(present[t]):
            lines += [f"{_FIRST_BODY + m} 0 1 1 1 1 0 0 0 2", str(JOINT_COUNT)]
            # The shortest numbers that read back alike, as those of repr, but a file takes half as long.
            rows = to_json(table[t][m]).decode()
            lines.append(rows[2:-2].replace("],[", " 2\n").replace(",", " ") + " 2")
    partial = Path(f"{path}.tmp")
    partial.write_text("\n".join(lines) + "\n", "utf-8")
    os.replace(partial, path)


def read_skeleton(path: str | Path) -> np.ndarray:
    """Joints (T, M, 25, 3) float64, metres; M counts the body identifiers of the file in order of appearance.

    Zeros where a body is absent. Raises UserError for a missing, truncated or malformed file and for a file
    in which no frame has a body.
    """
    try:
        words = Path(path).read_text("utf-8").split()
    except OSError as error:
        raise UserError(f"{path}: cannot read the skeleton file ({error.strerror})") from error
    try:
        return _parse(words, path)
    except (IndexError, ValueError) as error:
        raise UserError(f"{path}: the skeleton file is truncated or malformed; fetch or generate it again") from error


def _parse(words: list[str], path: str | Path) -> np.ndarray:
    at = 0
    slots: dict[str, int] = {}
    found: list[tuple[int, int, np.ndarray]] = []
    frames = int(words[at])
    at += 1
    for t in range(frames):
        bodies = int(words[at])
        at += 1
        for _ in range(bodies):
            slot = slots.setdefault(words[at], len(slots))
            if int(words[at + 10]) != JOINT_COUNT:
                raise ValueError("number of joints")
            at += 11
            numbers = np.array(words[at : at + 12 * JOINT_COUNT], dtype=np.float64)
            found.append((t, slot, numbers.reshape(JOINT_COUNT, 12)[:, :3]))
            at += 12 * JOINT_COUNT
    if not found:
        raise UserError(f"{path}: no frame of the skeleton file has a body; leave this clip out")
    joints = np.zeros((frames, len(slots), JOINT_COUNT, 3))
    for t, slot, body in found:
        joints[t, slot] = body
    return joints
