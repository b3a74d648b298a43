import numpy as np
import pytest

from pipeline.errors import UserError
from pipeline.tasks.one_shot import calibration
from pipeline.tasks.one_shot.calibration import (
    BaseStatistics,
    Calibration,
    base_statistics,
    calibrate,
    predict_calibrated,
    statistics_for,
    tukey,
)

SIGNS = np.array([-1, -1, 1, 1, 1, 1])


def statistics(signs=1):
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), 30)
    centres = rng.uniform(0.5, 3, (4, 6))
    return base_statistics(signs * np.abs(centres[labels] + 0.2 * rng.standard_normal((120, 6))), labels)


@pytest.fixture(scope="module")
def base():
    return statistics()


@pytest.mark.parametrize(
    "case, settings",
    [
        ("k2", {}),
        ("k1", {"nearest": 1}),
        ("k3_alpha0", {"nearest": 3, "alpha": 0.0}),
        ("k2_alpha05", {"alpha": 0.5}),
        ("k2_no_tukey", {"tukey": "none"}),
    ],
)
def test_equal_to_the_released_code(golden, case, settings):
    data = golden("distribution_calibration")
    features = data["in.base_features"]
    labels = np.repeat(np.arange(len(features)), features.shape[1])
    shuffled = np.random.default_rng(0).permutation(len(labels))
    base = base_statistics(features.reshape(len(labels), -1)[shuffled], labels[shuffled])
    np.testing.assert_allclose(base.means, data["out.base_means"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(base.covariances, data["out.base_covs"], rtol=1e-5, atol=1e-6)
    made = Calibration(**settings)
    exemplars = tukey(data["in.support_raw"], made)
    if case == "k2":
        np.testing.assert_allclose(exemplars, data["out.support_tukey"], rtol=1e-5, atol=1e-6)
    means, covariances, chosen = calibrate(exemplars, base, made)
    np.testing.assert_allclose(means, data[f"out.{case}_mean"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(covariances, data[f"out.{case}_cov"], rtol=1e-5, atol=1e-6)
    if case == "k2":
        np.testing.assert_array_equal(np.sort(chosen), np.sort(data["out.nearest2_indices"]))
        lowest = np.linalg.eigvalsh(covariances).min(1)
        np.testing.assert_allclose(lowest, data["out.k2_cov_min_eigenvalue"], rtol=1e-3, atol=1e-5)


def test_alpha_on_the_variances_only(base):
    exemplars = np.ones((2, 6))
    every, few = (calibrate(exemplars, base, Calibration(spread=s))[1] for s in ("all", "diagonal"))
    np.testing.assert_allclose(every - few, np.broadcast_to(0.21 * (1 - np.eye(6)), (2, 6, 6)), atol=1e-12)


def test_the_transform_of_signed_features():
    x = np.array([[4.0, -4.0, 0.0]])
    np.testing.assert_allclose(tukey(x, Calibration(), signed=True), [[2, -2, 0]])
    np.testing.assert_allclose(tukey(x, Calibration(tukey="signed")), [[2, -2, 0]])
    np.testing.assert_allclose(tukey(x, Calibration(tukey="none")), x)
    np.testing.assert_allclose(tukey(np.abs(x), Calibration()), tukey(np.abs(x), Calibration(tukey="power")))
    with pytest.raises(UserError, match="tukey is power, and some features are negative"):
        tukey(x, Calibration(tukey="power"))


@pytest.mark.parametrize("signs", [1, SIGNS], ids=["never negative", "signed"])
def test_queries_near_an_exemplar_are_of_its_class(signs):
    base, rng = statistics(signs), np.random.default_rng(1)
    exemplars = signs * base.means[[0, 2, 3]] ** 2  # which the transform takes to where the base classes are
    queries = np.repeat(exemplars, 5, axis=0) * rng.uniform(0.95, 1.05, (15, 6))
    settings = Calibration(samples=50, alpha=0.01)
    got = [predict_calibrated(exemplars, queries, base, settings, np.random.default_rng(s)) for s in (3, 3)]
    np.testing.assert_array_equal(got[0], np.repeat(np.arange(3), 5))
    np.testing.assert_array_equal(*got)


def test_a_covariance_without_full_rank_can_be_drawn_from():
    flat = BaseStatistics(np.zeros((2, 5)), np.zeros((2, 5, 5)))
    exemplars = np.eye(5)[:2]
    got = predict_calibrated(exemplars, exemplars, flat, Calibration(samples=20), np.random.default_rng(0))
    np.testing.assert_array_equal(got, [0, 1])


def test_features_of_any_size_come_to_an_end(monkeypatch):
    """Those of a network that has learnt nothing can be thousands wide; the optimum is then never reached."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    steps, fit = [], LogisticRegression.fit

    def counted(self, known, labels):
        fit(self, known, labels)
        steps.append(int(self.n_iter_[0]))
        return self

    monkeypatch.setattr(LogisticRegression, "fit", counted)
    monkeypatch.setattr(calibration, "NEWTON_STEPS", 9)  # this small example would end after 30
    rng = np.random.default_rng(0)
    base = base_statistics(3e4 * rng.standard_normal((160, 16)), np.repeat(np.arange(4), 40))
    exemplars = 3e4 * rng.standard_normal((4, 16))
    with pytest.warns(ConvergenceWarning):
        predict_calibrated(exemplars, exemplars, base, Calibration(samples=100), np.random.default_rng(0))
    assert steps == [9]


def test_what_cannot_be_calibrated(base):
    with pytest.raises(UserError, match="nearest is 5, but there are 4 base classes"):
        calibrate(np.ones((2, 6)), base, Calibration(nearest=5))
    with pytest.raises(UserError, match=r"base class 1 has 1 sample\(s\)"):
        base_statistics(np.ones((3, 2)), np.array([0, 0, 1]))


def test_the_scale_of_the_features_matters_less_where_all_are_transformed():
    """Released: the base means as they are, the exemplars as their roots, so that another scale is another test."""
    rng = np.random.default_rng(1)
    centres = rng.uniform(0, 2, (7, 8)) * (rng.random((7, 8)) < 0.5)
    labels, asked = np.repeat(np.arange(4), 40), np.repeat(np.arange(3), 60)

    def around(of):
        return np.abs(centres[of] + 0.25 * rng.standard_normal((len(of), 8)))

    base, exemplars, queries = around(labels), around(np.arange(3) + 4), around(asked + 4)
    right = {}
    for kind in ("plain", "transformed"):
        settings = Calibration(base=kind, alpha=0.0, samples=200)
        for scale in (1, 30):
            parts = [scale * part for part in (base, exemplars, queries)]
            found = statistics_for(parts[0], labels, *parts[1:], settings)
            predicted = predict_calibrated(*parts[1:], found, settings, np.random.default_rng(0))
            right[kind, scale] = (predicted == asked).mean()
    assert right["plain", 1] > 0.9 and right["transformed", 1] > 0.9
    assert right["plain", 30] < 0.6 and right["transformed", 30] > 0.8
    want = base_statistics(base, labels)
    np.testing.assert_array_equal(statistics_for(base, labels, exemplars, queries, Calibration()).means, want.means)
