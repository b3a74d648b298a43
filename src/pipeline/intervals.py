"""95 % confidence intervals: of one measurement over its episodes, and of a mean over training seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from pipeline.errors import UserError

Z95 = 1.96


def ci95(values: ArrayLike) -> float:
    """Half width of the 95 % interval of the mean of independent `values`, in their unit.

    Args:
        values: (E,) one number per episode, for instance its accuracy in per cent.

    Raises:
        UserError: fewer than two episodes.
    """
    values = np.asarray(values, dtype=float)
    if values.ndim != 1 or values.size < 2:
        raise UserError(
            f"an interval needs at least two episodes, found {values.size}; raise `episodes` under `measure:`"
        )
    return float(Z95 * values.std(ddof=1) / math.sqrt(values.size))


def wilson95(right: int, of: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share, of which `right` of `of` independent tries were seen: its two ends, 0..1.

    It is not symmetric and stays within 0..1, so it holds for few tries and for shares near 0 and 1 as well.

    Raises:
        ValueError: no try, or more right ones than there were.
    """
    from scipy.stats import binomtest  # here: slow to import

    found = binomtest(right, of).proportion_ci(0.95, method="wilson")
    return float(found.low), float(found.high)


def pool(values: Sequence[float], intervals: Sequence[float]) -> tuple[float, float]:
    """Mean over k training seeds and the half width of its 95 % interval.

    All seeds are tested on the same episodes. So the error that comes from the choice of the episodes is
    common and does not shrink with k, while the spread between trainings does. With c the half widths of the
    k values and S their standard deviation (ddof 1), the two parts add in quadrature::

        interval^2 = mean(c^2) + (t(0.975, k - 1) * S / sqrt(k))^2

    t is Student's quantile (12.7 for two seeds, 4.3 for three), as S is known from k values only. The part of
    an episode's error that differs between trainings is in both terms, so the interval is, if anything, too
    wide; one t for the sum (Welch's degrees of freedom) would be too narrow for two seeds.

    Args:
        values: (k,) one measurement per seed.
        intervals: (k,) their half widths, as `ci95` gives them; 0 where there is none.

    Returns:
        Mean and half width; for one seed its own.
    """
    points, halves = np.asarray(values, dtype=float), np.asarray(intervals, dtype=float)
    if points.ndim != 1 or points.shape != halves.shape or not points.size:
        raise ValueError(f"need as many values as intervals, at least one; got {points.shape} and {halves.shape}")
    mean, count = float(points.mean()), points.size
    if count == 1:
        return mean, float(halves[0])
    from scipy.special import stdtrit  # here: slow to import, and one seed needs none of it

    between = float(stdtrit(count - 1, 0.975)) * float(points.std(ddof=1)) / math.sqrt(count)
    return mean, math.sqrt(float(np.mean(halves**2)) + between**2)
