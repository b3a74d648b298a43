"""Scores of episodes, and what is read off them: numpy only, so that a job that needs no model starts at once."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import UserError
from pipeline.intervals import ci95

SAME = 1e-5  # logits that differ by no more are the same but for rounding


@dataclass(frozen=True)
class EpisodeScores:
    """Scores of E episodes with Q queries and N classes.

    log_vv, log_vt: log-probabilities (E, Q, N) float32, log_vt None where the method reads no text.
    labels: (E, Q) place of the right class.
    both: logits (E, Q, N) float32 of a method that fuses the two itself, else None.
    spread: of the features behind them (`spread_of`), where it is known.
    """

    log_vv: np.ndarray
    log_vt: np.ndarray | None
    labels: np.ndarray
    both: np.ndarray | None = None
    spread: float | None = None

    @property
    def trained(self) -> np.ndarray:
        """The scores (E, Q, N) that training works on: what selects a checkpoint."""
        return self.log_vv if self.both is None else self.both

    def save(self, path: Path) -> None:
        """Write as .npz, atomically."""
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.tmp.npz")
        arrays = {"log_vv": self.log_vv, "labels": self.labels.astype(np.int16)}
        optional = {"log_vt": self.log_vt, "both": self.both, "spread": self.spread}
        np.savez(temporary, **arrays, **{name: value for name, value in optional.items() if value is not None})
        temporary.replace(path)

    @classmethod
    def load(cls, path: Path) -> EpisodeScores:
        """Read what `save` wrote."""
        with np.load(path, allow_pickle=False) as file:
            spread = float(file["spread"]) if "spread" in file else None
            return cls(file["log_vv"], file.get("log_vt"), file["labels"].astype(np.int64), file.get("both"), spread)


def fused(scores: EpisodeScores, score: str, alpha: float | str) -> np.ndarray:
    """Logits (E, Q, N) of one kind of score: both fused by `alpha` (LGA, Eq. 5), or "own", as the method does.

    Raises:
        UserError: alpha is "own" and the method fuses nothing.
    """
    if score == "both" and alpha == "own":
        if scores.both is None:
            raise UserError("measure.alpha is `own`, and this method fuses no scores itself; set a number, or `val`")
        return scores.both
    if score == "vv" or scores.log_vt is None:
        return scores.log_vv
    if score == "vt":
        return scores.log_vt
    return alpha * scores.log_vv + (1 - alpha) * scores.log_vt


def accuracy(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Share of right answers of each episode, in per cent: (E, Q, N), (E, Q) -> (E,)."""
    return 100.0 * (logits.argmax(-1) == labels).mean(-1)


def alpha_curve(scores: EpisodeScores, grid: Sequence[float]) -> list[tuple[float, float]]:
    """(alpha, mean accuracy in per cent) over the grid."""
    return [(float(a), float(accuracy(fused(scores, "both", a), scores.labels).mean())) for a in grid]


def best_alpha(curve: Sequence[tuple[float, float]]) -> float:
    """The alpha with the highest accuracy; of equal ones the nearest to 0.5, then the smaller."""
    top = max(value for _, value in curve)
    return min((alpha for alpha, value in curve if value == top), key=lambda a: (abs(a - 0.5), a))


def summary(values: np.ndarray) -> dict[str, Any]:
    """Mean, 95 % interval and number of per-episode accuracies."""
    return {"value": float(values.mean()), "ci95": float(ci95(values)), "n": len(values)}


def spread_of(features: np.ndarray) -> float:
    """Standard deviation of features (V, D) over the videos, relative to their size: 0 if they are all the same."""
    size = float(np.square(features, dtype=np.float64).mean())
    return float(np.sqrt(features.var(0, dtype=np.float64).mean() / size)) if 0 < size < np.inf else 0.0


def outcome(logits: np.ndarray, labels: np.ndarray, spread: float | None = None) -> dict[str, Any]:
    """What logits (E, Q, N) say of queries with labels (E, Q), as `pipeline.evaluation.health.Outcome` reads it."""
    said, right = logits.argmax(-1), accuracy(logits, labels)
    content = b"".join(np.ascontiguousarray(places, dtype="<i2").tobytes() for places in (said, labels))
    return {
        "accuracy": float(right.mean()),
        "ci95": float(ci95(right)) if len(right) > 1 else None,
        "classes": logits.shape[-1],
        "most_said": _most(said, logits.shape[-1]),
        "most_true": _most(labels, logits.shape[-1]),
        "constant_scores": _constant(logits),
        "spread": spread,
        "digest": hashlib.sha256(content).hexdigest()[:16],
    }


def _most(places: np.ndarray, classes: int) -> float:
    """Share of the queries (E, Q) that get the class which is said most: in their episode, or over all where each is
    an episode of its own."""
    rows = places.T if places.shape[1] == 1 else places
    shares = np.stack([(rows == place).mean(1) for place in range(classes)])
    return float(shares.max(0).mean())


def _constant(logits: np.ndarray) -> bool:
    """Whether the logits (E, Q, N) of no class differ from those of another, or of no query of an episode."""
    queries = logits.transpose(1, 0, 2) if logits.shape[1] == 1 else logits
    alike = np.ptp(logits, axis=-1).max() <= SAME
    return bool(alike or (queries.shape[1] > 1 and np.ptp(queries, axis=1).max() <= SAME))


TEMPERATURES = np.geomspace(1e-3, 1e2, 251)
BINS = 10


def fitted_temperature(logits: np.ndarray, labels: np.ndarray, around: float = 1.0, certainty: float = 0.0) -> float:
    """The temperature at which softmax(logits / temperature) gives the labels the highest likelihood.

    logits (n, N), labels (n,). certainty: of a normal prior of the temperature's logarithm about that of `around`, one
    over its variance; 0 is none.
    """
    tried = around * TEMPERATURES
    right = np.arange(len(labels)), labels
    likelihood = [_log_softmax(logits / temperature)[right].sum() for temperature in tried]
    return float(tried[np.argmax(np.array(likelihood) - certainty * np.log(tried / around) ** 2 / 2)])


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def probabilities(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Softmax of logits (..., N) at a temperature."""
    return np.exp(_log_softmax(np.asarray(logits, dtype=np.float64) / temperature))


def calibration_error(certain: np.ndarray, right: np.ndarray) -> float:
    """Expected calibration error (Guo et al., ICML 2017) of n answers, in 0 to 1.

    certain (n,): the probability of each answer; right (n,): whether it is the right one. In ten equally wide bins of
    probability, the mean gap between both, weighted by the answers in the bin.
    """
    place = np.minimum((np.asarray(certain) * BINS).astype(int), BINS - 1)
    gaps = [abs(np.mean(right[place == i]) - np.mean(certain[place == i])) * (place == i).mean() for i in set(place)]
    return float(sum(gaps))
