"""One-shot tests of skeletons: one exemplar of each novel class, all other clips of these classes as queries.

Features are computed once for each clip, as a test shows it, without chance. A query is given to the class of the
nearest exemplar, or to the one that a classifier of calibrated distributions names.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field

from pipeline.datasets.loading import read_ahead
from pipeline.datasets.skeletons.definition import Feed, SkeletonPolicy
from pipeline.datasets.skeletons.feeder import MotionBertDataset, SkeletonDataset
from pipeline.datasets.skeletons.protocols import OneShotSplit
from pipeline.datasets.skeletons.store import SkeletonStore
from pipeline.experiment import Frozen
from pipeline.intervals import ci95
from pipeline.models.skeleton.base import Feature, SkeletonModel
from pipeline.progress import bar
from pipeline.scores import spread_of
from pipeline.tasks.one_shot.calibration import Calibration, predict_calibrated, statistics_for

DATASETS = {"graph": SkeletonDataset, "motionbert": MotionBertDataset}
BATCH = 64


class OneShot(Frozen):
    """How a trained encoder is tested."""

    classifier: Literal["calibration", "nearest"] = Field(
        "calibration", description="nearest: the exemplar of the largest cosine; calibration: see `calibration`"
    )
    feature: Literal["auto", "embedding", "hidden"] = Field(
        "auto", description="auto: hidden, which is not negative for graph encoders, for calibration; else embedding"
    )
    calibration: Calibration = Calibration()

    @property
    def of(self) -> Feature:
        """The feature that is meant."""
        if self.feature != "auto":
            return self.feature
        return "hidden" if self.classifier == "calibration" else "embedding"


class OneShotResult(NamedTuple):
    """predicted, labels (Q,): places among the novel classes. value, interval: per cent right, half width at 95 %.
    spread: of the queries' features (`scores.spread_of`)."""

    predicted: np.ndarray
    labels: np.ndarray
    value: float
    interval: float
    spread: float

    def by_class(self, classes: int) -> np.ndarray:
        """Per cent right of each class (classes,)."""
        right = np.bincount(self.labels, self.predicted == self.labels, minlength=classes)
        return 100 * right / np.bincount(self.labels, minlength=classes).clip(1)


def as_tested(
    store: SkeletonStore, numbers: Sequence[int] | np.ndarray, policy: SkeletonPolicy, feed: Feed
) -> SkeletonDataset:
    """Clips of a store as a test shows them."""
    return DATASETS[feed.kind](store, numbers, np.zeros(len(numbers), dtype=np.int64), policy, feed, train=False)


def sequences(dataset: SkeletonDataset, items: Sequence[Any] | np.ndarray) -> torch.Tensor:
    """Items of a data set, numbers or (epoch, number), as the model takes them: (B, C, T, V, M).

    Those of MotionBERT's come as (M, T, V, C).
    """
    return _as_taken(dataset, torch.stack([dataset[item][0] for item in items]))


def _as_taken(dataset: SkeletonDataset, x: torch.Tensor) -> torch.Tensor:
    return x.permute(0, 4, 2, 3, 1) if isinstance(dataset, MotionBertDataset) else x


@torch.inference_mode()
def features(
    model: SkeletonModel,
    dataset: SkeletonDataset,
    indices: Sequence[int] | np.ndarray,
    feature: Feature = "embedding",
    batch: int = BATCH,
) -> np.ndarray:
    """Features (n, D) float32 of items `indices` of a data set, on the model's device, in evaluation mode.

    What is random in a model that keeps its dropout (`test_dropout`) comes from one seed, whatever was drawn before.
    """
    device, training = next(model.parameters()).device, model.training
    model.eval()
    try:
        with torch.random.fork_rng(), bar("encoding", len(indices), "clips") as encoding:
            torch.manual_seed(0)
            parts = []
            size = dataset[indices[0]][0].nbytes if len(indices) else 0
            for read in read_ahead(lambda item: dataset[item][0], indices, batch, size):
                x = _as_taken(dataset, read).to(device, non_blocking=True)
                parts.append(model.embed(x, feature).float().cpu())
                encoding.advance(len(x))
    finally:
        model.train(training)
    return torch.cat(parts).numpy()


def predict_nearest(exemplars: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Places (Q,) of the exemplars (K, D) with the largest cosine to queries (Q, D); of equal ones the first."""

    def unit(x: np.ndarray) -> np.ndarray:
        return x / np.linalg.norm(x, axis=1, keepdims=True).clip(1e-12)

    return (unit(queries.astype(np.float64)) @ unit(exemplars.astype(np.float64)).T).argmax(1)


def result(predicted: np.ndarray, labels: np.ndarray, spread: float) -> OneShotResult:
    """Accuracy over queries with the normal interval of a proportion.

    The queries count as independent. The exemplars are fixed by the protocol, so the interval does not tell how much
    the value would change with others.
    """
    right = 100.0 * (predicted == labels)
    return OneShotResult(predicted, labels, float(right.mean()), ci95(right), spread)


def measure_one_shot(
    model: SkeletonModel,
    store: SkeletonStore,
    split: OneShotSplit,
    policy: SkeletonPolicy,
    feed: Feed,
    settings: OneShot,
    seed: int = 0,
    batch: int = BATCH,
) -> OneShotResult:
    """Test `model` on a split; the base clips are read for calibration only. `seed` is of the drawn features."""

    def of(numbers: np.ndarray) -> np.ndarray:
        return features(model, as_tested(store, numbers, policy, feed), range(len(numbers)), settings.of, batch)

    exemplars, queries = of(split.exemplars), of(split.queries)
    if settings.classifier == "nearest":
        predicted = predict_nearest(exemplars, queries)
    else:
        base = statistics_for(of(split.base), split.base_labels, exemplars, queries, settings.calibration)
        rng = np.random.default_rng(seed)
        predicted = predict_calibrated(exemplars, queries, base, settings.calibration, rng)
    return result(predicted, split.query_labels, spread_of(queries))
