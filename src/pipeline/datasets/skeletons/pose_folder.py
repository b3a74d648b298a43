"""A folder of extracted poses, as `pipeline.pose.extract` writes it: shards of clips and their table."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import UserError
from pipeline.shards import read_arrays


@dataclass(frozen=True, slots=True)
class ClipPoses:
    """Persons of a clip (M, T, V, 3) float32: x, y in pixels, confidence; size (height, width) of its frames; fps 0
    where that is unknown."""

    joints: np.ndarray
    size: tuple[int, int]
    fps: float


def read_shard(path: str | Path) -> dict[str, np.ndarray] | None:
    """The arrays of a shard, as `_pack` writes them; None where it is missing or damaged."""
    return read_arrays(path, ("joints", "shape", "seen", "size", "fps", "failure"))


def clip_of(shard: Mapping[str, np.ndarray], place: int) -> ClipPoses:
    """Clip number `place` of a shard."""
    ends = np.cumsum(np.prod(shard["shape"], axis=1))
    shape = tuple(shard["shape"][place])
    joints = shard["joints"][ends[place] - np.prod(shape) : ends[place]].reshape(shape)
    return ClipPoses(joints, (int(shard["size"][place, 0]), int(shard["size"][place, 1])), float(shard["fps"][place]))


def read_table(out: str | Path) -> tuple[dict[str, Any], list[dict[str, str]]]:
    """Manifest and rows of poses.csv of a folder; raises UserError when it holds no finished poses."""
    try:
        manifest = json.loads((Path(out) / "manifest.json").read_text(encoding="utf-8"))
        with open(Path(out) / "poses.csv", newline="", encoding="utf-8") as file:
            return manifest, list(csv.DictReader(file))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{out} holds no finished poses ({error}); run `python -m pipeline pose`, again if it was interrupted"
        ) from None
