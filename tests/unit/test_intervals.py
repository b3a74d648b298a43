"""Confidence intervals against brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from pipeline.errors import UserError
from pipeline.intervals import ci95, pool, wilson95


def test_ci95_is_the_normal_interval_of_a_mean():
    assert ci95([0.0, 100.0, 100.0, 0.0]) == pytest.approx(1.96 * math.sqrt(10000 / 3) / 2)
    assert ci95([40.0, 40.0, 40.0]) == 0.0


def test_ci95_covers_the_mean_of_simulated_episodes():
    """An episode is five queries at 70 %: 95 of 100 intervals have the truth inside."""
    rng = np.random.default_rng(0)
    runs = 20.0 * rng.binomial(5, 0.7, size=(3000, 200))
    inside = [abs(run.mean() - 70) <= ci95(run) for run in runs]
    assert np.mean(inside) == pytest.approx(0.95, abs=0.015)


@pytest.mark.parametrize("values", [[], [50.0], [[1.0, 2.0]]])
def test_ci95_needs_two_episodes(values):
    with pytest.raises(UserError, match="at least two episodes"):
        ci95(values)


@pytest.mark.parametrize(("right", "of"), [(0, 7), (3, 20), (10, 20), (99, 100), (5, 5)])
def test_wilson_is_its_formula(right, of):
    z, share = stats.norm.ppf(0.975), right / of
    middle = (share + z**2 / (2 * of)) / (1 + z**2 / of)
    half = z / (1 + z**2 / of) * math.sqrt(share * (1 - share) / of + z**2 / (4 * of**2))
    assert wilson95(right, of) == pytest.approx((middle - half, middle + half), abs=1e-12)
    assert 0 <= wilson95(right, of)[0] <= share <= wilson95(right, of)[1] <= 1


@pytest.mark.parametrize(("right", "of"), [(0, 0), (3, 2)])
def test_wilson_needs_tries(right, of):
    with pytest.raises(ValueError):
        wilson95(right, of)


def test_pool_of_one_seed_is_that_seed():
    assert pool([61.5], [0.4]) == (61.5, 0.4)


def test_pool_adds_both_variances_in_quadrature():
    mean, half = pool([60.0, 62.0, 64.0], [0.3, 0.4, 0.5])
    between = stats.t.ppf(0.975, 2) * 2.0 / math.sqrt(3)
    assert mean == 62.0
    assert half == pytest.approx(math.sqrt(between**2 + (0.09 + 0.16 + 0.25) / 3))


def test_pool_without_spread_keeps_the_error_of_the_shared_episodes():
    assert pool([50.0] * 5, [0.7] * 5) == (50.0, pytest.approx(0.7))


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize(("seeds", "spread", "error"), [(2, 1, 0.01), (2, 1, 0.3), (3, 1, 1), (5, 0.3, 1)])
def test_pool_covers_the_truth(seeds, spread, error, shared):
    """Brute force: trainings scatter by `spread`, the error of the episodes is common to them or not."""
    rng = np.random.default_rng(1)
    trials = 3000
    noise = rng.normal(0, error, (trials, 1 if shared else seeds))
    values = rng.normal(0, spread, (trials, seeds)) + noise
    inside = [abs(mean) <= half for mean, half in (pool(row, [1.96 * error] * seeds) for row in values)]
    assert np.mean(inside) >= 0.94


@pytest.mark.parametrize(("values", "intervals"), [([], []), ([1.0, 2.0], [0.1])])
def test_pool_needs_one_interval_per_value(values, intervals):
    with pytest.raises(ValueError, match="as many values"):
        pool(values, intervals)
