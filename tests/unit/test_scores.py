"""Probabilities out of scores: the temperature that fits, and the calibration error."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.scores import calibration_error, fitted_temperature, probabilities


def test_the_temperature_that_made_the_labels_is_found():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (4000, 5))
    for temperature in (0.5, 2.0):
        labels = np.array([rng.choice(5, p=row) for row in probabilities(logits, temperature)])
        assert fitted_temperature(logits, labels) == pytest.approx(temperature, rel=0.1)
        assert fitted_temperature(100 * logits, labels, around=100) == pytest.approx(100 * temperature, rel=0.1)
    few = logits[:4], logits[:4].argmax(-1)  # all right: alone they say that nothing is ever wrong
    assert fitted_temperature(*few) < 0.01
    assert 0.3 < fitted_temperature(*few, around=1.0, certainty=6.0) < 1
    assert fitted_temperature(*few, around=1.0, certainty=1e6) == pytest.approx(1, rel=0.05)


def test_the_calibration_error_is_the_gap_of_each_bin():
    certain = np.array([0.95, 0.95, 0.95, 0.95, 0.55, 0.55, 1.0])
    right = np.array([True, True, True, False, True, True, True])
    first = abs(0.8 - (4 * 0.95 + 1.0) / 5)  # 1.0 lies in the last bin, with 0.95
    assert calibration_error(certain, right) == pytest.approx(5 / 7 * first + 2 / 7 * 0.45)
    assert calibration_error(np.full(10, 0.7), np.arange(10) < 7) == pytest.approx(0)
