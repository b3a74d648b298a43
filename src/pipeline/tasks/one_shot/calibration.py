"""Distribution calibration (Yang et al., ICLR 2021): a novel class's distribution, borrowed from similar base classes.

N base classes, K novel ones with one exemplar each, D dimensions of a feature. Arrays are float64.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from pydantic import Field

from pipeline.errors import UserError
from pipeline.experiment import Frozen

KEY = "measure.one_shot.calibration"  # where its settings stand
# A dozen are enough for a network that has learnt; on the features of one that has not there may be no end.
NEWTON_STEPS = 50


class Calibration(Frozen):
    """How exemplars are turned into a classifier; the defaults are the released code's."""

    tukey: Literal["auto", "power", "signed", "none"] = Field(
        "auto",
        description="transform of exemplars and queries. power: x^beta, for features that are never negative; signed: "
        "sign(x) |x|^beta; auto: the first where it can be used, else the second; none",
    )
    beta: float = Field(0.5, gt=0, le=1, description="exponent of the transform")
    nearest: int = Field(2, ge=1, description="k: base classes whose mean and covariance an exemplar borrows")
    alpha: float = Field(0.21, ge=0, description="added to the covariance")
    spread: Literal["all", "diagonal"] = Field(
        "all",
        description="where alpha is added: to every entry, as released, or to the variances",
    )
    samples: int = Field(750, ge=1, description="features drawn for each novel class")
    base: Literal["plain", "transformed"] = Field(
        "plain",
        description="of which features of the base classes the statistics are. plain: as the encoder gives them, as "
        "released, while exemplars and queries are transformed: the result depends on the scale of the features; "
        "transformed: like the others",
    )


class BaseStatistics(NamedTuple):
    """means (N, D) and unbiased covariances (N, D, D) of the base classes, of untransformed features."""

    means: np.ndarray
    covariances: np.ndarray


def base_statistics(features: np.ndarray, labels: np.ndarray) -> BaseStatistics:
    """Statistics of features (n, D) with labels (n,) in 0 .. N - 1.

    Raises UserError when a class has fewer than two samples.
    """
    features = np.asarray(features, dtype=np.float64)
    counts = np.bincount(labels)
    if counts.min() < 2:
        raise UserError(f"base class {int(counts.argmin())} has {counts.min()} sample(s); a covariance needs two")
    groups = [features[labels == c] for c in range(len(counts))]
    return BaseStatistics(
        np.stack([group.mean(0) for group in groups]),
        np.stack([np.cov(group, rowvar=False).reshape(group.shape[1], -1) for group in groups]),
    )


def tukey(features: np.ndarray, settings: Calibration, signed: bool = False) -> np.ndarray:
    """Tukey's ladder of powers on features (n, D). `signed` decides "auto".

    Raises UserError for "power" with features that are negative.
    """
    features = np.asarray(features, dtype=np.float64)
    if settings.tukey == "none":
        return features
    if settings.tukey == "power" and (features < 0).any():
        raise UserError(f"{KEY}.tukey is power, and some features are negative; set auto, signed or none")
    if settings.tukey == "signed" or (settings.tukey == "auto" and signed):
        return np.sign(features) * np.abs(features) ** settings.beta
    return features**settings.beta


def statistics_for(
    features: np.ndarray, labels: np.ndarray, exemplars: np.ndarray, queries: np.ndarray, settings: Calibration
) -> BaseStatistics:
    """`base_statistics` of base features (n, D) as `settings.base` says; all features are as the encoder gives them."""
    if settings.base == "transformed":
        signed = bool(min(features.min(), exemplars.min(), queries.min()) < 0)
        features = tukey(features, settings, signed)
    return base_statistics(features, labels)


def calibrate(
    exemplars: np.ndarray, base: BaseStatistics, settings: Calibration
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Means (K, D) and covariances (K, D, D) of the novel classes, and whose statistics they borrow (K, k).

    exemplars (K, D), transformed. Each takes the `nearest` base classes by Euclidean distance to their means. Its mean
    is that of their means and itself, k + 1 vectors of equal weight; its covariance the mean of theirs, plus alpha.
    Raises UserError when there are fewer base classes than `nearest`.
    """
    if settings.nearest > len(base.means):
        raise UserError(f"{KEY}.nearest is {settings.nearest}, but there are {len(base.means)} base classes")
    distances = np.linalg.norm(exemplars[:, None] - base.means, axis=-1)
    chosen = np.argsort(distances, axis=1, kind="stable")[:, : settings.nearest]
    means = (base.means[chosen].sum(1) + exemplars) / (settings.nearest + 1)
    size = exemplars.shape[1]
    added = np.full((size, size), settings.alpha) if settings.spread == "all" else settings.alpha * np.eye(size)
    return means, base.covariances[chosen].mean(1) + added, chosen


def predict_calibrated(
    exemplars: np.ndarray,
    queries: np.ndarray,
    base: BaseStatistics,
    settings: Calibration,
    rng: np.random.Generator,
) -> np.ndarray:
    """Places (Q,) among the exemplars (K, D) that queries (Q, D) are taken for; all as the encoder gives them.

    A logistic regression of the exemplars and `samples` features drawn around each. Newton's method finds its optimum;
    scikit-learn's default, as released, stops short of it on such features, and takes ten times as many passes.
    """
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    signed = bool(min(exemplars.min(), queries.min()) < 0)
    exemplars, queries = tukey(exemplars, settings, signed), tukey(queries, settings, signed)
    means, covariances, _ = calibrate(exemplars, base, settings)
    drawn = [
        rng.multivariate_normal(mean, covariance, settings.samples, method="eigh", check_valid="ignore")
        for mean, covariance in zip(means, covariances, strict=True)
    ]
    places = np.arange(len(exemplars))
    known = np.concatenate([exemplars, *drawn])
    labels = np.concatenate([places, np.repeat(places, settings.samples)])
    with threadpool_limits(1):  # products this small are slower on several threads, and trainings run beside it
        return LogisticRegression(solver="newton-cg", max_iter=NEWTON_STEPS).fit(known, labels).predict(queries)
