"""Where the phases of a video begin and end, of a method that finds any."""

from __future__ import annotations

from torch import Tensor

from pipeline.models.few_shot.base import FewShotModel
from pipeline.models.few_shot.blocks.segmentation import SEGMENTERS

PHASES = 3  # of methods that have no number of their own


def phases_of(model: FewShotModel, features: Tensor) -> list[int]:
    """The phase of each of a clip's frames (T, D), from 1: as the method cuts a video, else by clustering; empty
    where a method encodes something else."""
    if features.dim() != 2:
        return []
    kind = getattr(model, "segmenter", "cluster")
    if kind == "none":
        return [1] * len(features)
    return (SEGMENTERS[kind](features, min(getattr(model, "atoms", PHASES), len(features))) + 1).tolist()
