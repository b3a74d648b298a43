"""Which class test videos are taken for, and how often it is the one of the opposite direction (SeFAR, Figure 8).

In the order of the class list the classes 2k and 2k + 1 are opposites ("hop left", "hop right"). This holds for
FineGym-New, whose lists are in this order, and for the generated moves, whose names sort so.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from pipeline.errors import UserError


def check_pairs(classes: Sequence[str], where: str) -> None:
    """Raises UserError where `classes`, in their order, cannot be pairs of opposites.

    That is when their number is odd, or when they are numbered (lists without names: "class 007") and one is missing,
    so that the pairs behind it would be wrong ones.
    """
    if len(classes) % 2:
        raise UserError(f"{where} has {len(classes)} classes, so they don't form pairs of opposites; drop opposite_pct")
    numbers = [re.fullmatch(r"class (\d+)", name) for name in classes]
    gap = next((i for i, found in enumerate(numbers) if not found or int(found[1]) != i), None)
    if all(numbers) and gap is not None:
        raise UserError(
            f"{where} has no video of class {gap:03d}, so its classes don't form pairs of opposites; bring its videos"
        )


def confusion(said: np.ndarray, right: np.ndarray, classes: int) -> np.ndarray:
    """Counts (C, C) of V videos: row `right`, the true class, column `said`, the predicted one; both (V,)."""
    return np.bincount(right * classes + said, minlength=classes**2).reshape(classes, classes)


def opposite(said: np.ndarray, right: np.ndarray) -> np.ndarray:
    """(V,) 100 where a video is taken for the class of the opposite direction, else 0."""
    return 100.0 * (said == (right ^ 1))
