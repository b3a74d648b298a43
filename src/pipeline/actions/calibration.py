"""Probabilities that mean something: at which temperature the scores of a model become probabilities.

Of a trained run it is fitted on episodes of its validation classes and kept with the run. Of a frozen backbone it
comes from how far apart the examples of different classes are, corrected by what each example says of the others
where a class has two or more.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
from pydantic import Field

from pipeline.datasets.index import classes_of, read_index
from pipeline.errors import UserError
from pipeline.experiment import Frozen, Measure, Run
from pipeline.files import write_json
from pipeline.scores import EpisodeScores, calibration_error, fitted_temperature, fused, probabilities
from pipeline.workspace import Workspace

FILE = "calibration.json"
SHOTS = (1, 5)
EPISODES = 400
WAY = 5
# Measured on five classes of UTD-MHAD at a time, examples of one person and queries of the others, with
# efficientnet_lite0 (benchmarks/own_actions.py): the gap between classes over the best temperature, how much the
# logarithm of that temperature differs from one choice of examples to the next, and the error that is left.
GAPS = {"otam": 27.0, "ab_mhm": 19.0}
DEFAULT_GAPS = 23.0
DEVIATION = 0.4
ERROR = 0.1


class Calibration(Frozen):
    """How the scores of a model become probabilities."""

    temperature: float = Field(1.0, description="what logits are divided by before the softmax")
    error: float = Field(ERROR, description="expected calibration error (0 to 1) where it was measured")
    source: str = Field("none: probabilities are those of the method", description="what it was fitted on")


# --------------------------------------------------------------------------------------- a frozen backbone
def from_support(own: np.ndarray, labels: Sequence[int], matcher: str) -> Calibration:
    """The calibration that the examples themselves give.

    own (V, V): minus the distance of each example to each, itself included; labels (V,): their classes, 0 to N-1.
    """
    labels = np.asarray(labels)
    other = labels[:, None] != labels[None]
    gap = max(float(own.diagonal().mean() - own[other].mean()), 1e-6)
    around = gap / GAPS.get(matcher, DEFAULT_GAPS)
    if min(np.bincount(labels)) < 2:
        return Calibration(temperature=around, source="how far apart the examples of the classes are")
    logits = np.stack([_leave_one_out(own, labels, i) for i in range(len(labels))])
    # Examples of one person or place are more alike than clips to come: alone they would give far too sure an answer.
    temperature = fitted_temperature(logits, labels, around, certainty=1 / DEVIATION**2)
    return Calibration(temperature=temperature, source=f"leave-one-out over the {len(labels)} examples")


def _leave_one_out(own: np.ndarray, labels: np.ndarray, i: int) -> np.ndarray:
    """Scores (N,) of example i as a query, without itself among the examples."""
    others = np.arange(len(labels)) != i
    return np.array([own[i, others & (labels == label)].mean() for label in range(labels.max() + 1)])


# -------------------------------------------------------------------------------------------- a trained run
def calibrations(run: Run, ws: Workspace, alphas: dict[int, float]) -> dict[str, Calibration]:
    """Those of a run, by what is scored: "video-1" and "both-1" of one shot, and so on (see `key`).

    Fitted on validation episodes at the first call, which encodes the validation clips, and kept in the run's folder;
    empty where the run has no validation classes with clips enough.
    """
    path = ws.run(run.id) / FILE
    if path.is_file():
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept["alphas"] == _named(alphas):
            return {name: Calibration.model_validate(found) for name, found in kept["calibrations"].items()}
    try:
        scores = _validation_scores(run, ws)
    except UserError:  # no frames, or too few clips
        return {}
    found = {}
    for shot, of_shot in scores.items():
        found[key(shot, texts=False)] = _fitted(of_shot.log_vv, of_shot.labels, shot)
        if of_shot.log_vt is not None:
            alpha = alphas[min(alphas, key=lambda n: (abs(n - shot), n))] if alphas else None
            own = alpha is None and of_shot.both is not None
            logits = of_shot.both if own else fused(of_shot, "both", 0.5 if alpha is None else alpha)
            found[key(shot, texts=True)] = _fitted(logits, of_shot.labels, shot)
    content = {name: item.model_dump(mode="json") for name, item in found.items()}
    write_json(path, {"alphas": _named(alphas), "calibrations": content})
    return found


def key(shot: int, texts: bool) -> str:
    """The name of a calibration."""
    return f"{'both' if texts else 'video'}-{shot}"


def nearest(known: dict[str, Calibration], shots: int, texts: bool) -> Calibration:
    """The calibration for the nearest number of shots; without any, the method's own probabilities."""
    fitting = {int(name.rsplit("-", 1)[1]): name for name in known if name.startswith(key(0, texts)[:-1])}
    if not fitting:
        return Calibration()
    return known[fitting[min(fitting, key=lambda n: (abs(n - shots), n))]]


def _named(alphas: dict[int, float]) -> dict[str, float]:
    return {str(shot): alpha for shot, alpha in alphas.items()}


def _validation_scores(run: Run, ws: Workspace) -> dict[int, EpisodeScores]:
    """Scores of validation episodes, by the number of shots that the classes have clips for."""
    from pipeline.models.build import load_weights
    from pipeline.tasks.kinds import task_of

    clips = [clip for clip in read_index(ws.dataset(run.dataset) / "index.csv") if clip.split == "val"]
    names = [clip.label for clip in clips]
    if len(classes_of(clips, "val")) < 2:
        raise UserError(f"{run.id} has no validation classes")
    least = min(names.count(name) for name in set(names))
    task = task_of(run, ws)
    model = load_weights(task.build(), run, ws)
    found = {}
    for shot in (shot for shot in SHOTS if shot < least):
        measure = Measure(way=WAY, shot=shot, query=1, val_episodes=EPISODES)
        found[shot] = task.scores(model, measure, "val")
    return found


def _fitted(logits: np.ndarray, labels: np.ndarray, shot: int) -> Calibration:
    """On scores (E, Q, N) of validation episodes with labels (E, Q)."""
    flat, right = logits.reshape(-1, logits.shape[-1]).astype(np.float64), labels.reshape(-1)
    temperature = fitted_temperature(flat, right)
    certain = probabilities(flat, temperature)
    error = calibration_error(certain.max(-1), certain.argmax(-1) == right)
    source = f"{len(logits)} validation episodes of {logits.shape[-1]} classes, {shot} clip{'s' * (shot > 1)} each"
    return Calibration(temperature=temperature, error=error, source=source)
