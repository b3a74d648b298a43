"""Scores of episodes, and what is read off them: numpy only, so that a job that needs no model starts at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import UserError
from pipeline.evaluation.intervals import ci95


@dataclass(frozen=True)
class EpisodeScores:
    """Scores of E episodes with Q queries and N classes.

    log_vv, log_vt: log-probabilities (E, Q, N) float32, log_vt None where the method reads no text.
    labels: (E, Q) place of the right class.
    both: logits (E, Q, N) float32 of a method that fuses the two itself, else None.
    """

    log_vv: np.ndarray
    log_vt: np.ndarray | None
    labels: np.ndarray
    both: np.ndarray | None = None

    @property
    def trained(self) -> np.ndarray:
        """The scores (E, Q, N) that training works on: what selects a checkpoint."""
        return self.log_vv if self.both is None else self.both

    def save(self, path: Path) -> None:
        """Write as .npz, atomically."""
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.tmp.npz")
        arrays = {"log_vv": self.log_vv, "labels": self.labels.astype(np.int16)}
        optional = {"log_vt": self.log_vt, "both": self.both}
        np.savez(temporary, **arrays, **{name: value for name, value in optional.items() if value is not None})
        temporary.replace(path)

    @classmethod
    def load(cls, path: Path) -> EpisodeScores:
        """Read what `save` wrote."""
        with np.load(path, allow_pickle=False) as file:
            return cls(file["log_vv"], file.get("log_vt"), file["labels"].astype(np.int64), file.get("both"))


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
