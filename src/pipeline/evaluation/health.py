"""Whether a run has learnt anything: one verdict from what its training and its tests know of themselves.

A training writes its last losses and its validation into `train.json`, a test what was predicted into its cell. Here
both are held against chance. Nothing heavy is imported, for tables and `status` read this.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, FiniteFloat

from pipeline.config import parse
from pipeline.errors import UserError

MOST = 0.9
"""Share of the queries from which on one class is said for almost every one."""
CONSTANT = 1e-4
"""Spread of features, relative to their size, below which they are all the same."""
FEWEST_STEPS = 10
LAST_PART = 0.1  # of a training, but at least FEWEST_STEPS: over these steps its last loss is averaged


class Outcome(BaseModel):
    """What was predicted for the queries of a test or validation."""

    accuracy: FiniteFloat
    """Per cent."""
    ci95: FiniteFloat | None = None
    """Half width of its 95 % interval; None of a single episode."""
    classes: int
    """Classes that a query is told from; chance is one of so many."""
    most_said: float
    """Share (0..1) of the queries that get the class which is said most."""
    most_true: float
    """The same of the true classes."""
    constant_scores: bool
    """No query's scores differ from another's, or no class's from another's."""
    spread: float | None = None
    """Standard deviation of the queries' features, relative to their size; None where only scores are known."""
    digest: str = ""
    """Short hash of the predicted and true class of each query."""

    @property
    def chance(self) -> float:
        """Accuracy of guessing, in per cent."""
        return 100 / self.classes


class LastLoss(BaseModel):
    """The loss over the last steps of a training, and what guessing would give."""

    name: str
    value: FiniteFloat
    chance: FiniteFloat


class Training(BaseModel):
    """What `train.json` says of its own health, and in what it computed; an older one says nothing."""

    precision: str = "float32"
    last_loss: LastLoss | None = None
    validation: Outcome | None = None
    selected_step: int | None = None
    """After how many steps the weights were taken that are measured."""


def last_loss(rows: Sequence[Mapping[str, Any]], name: str, chance: float) -> dict[str, Any]:
    """`LastLoss` of the loss `name` in the `rows` of a curve, one a step; there may be a phase without it."""
    rows = [row for row in rows if row.get(name, "") != ""]
    last = rows[-max(FEWEST_STEPS, round(LAST_PART * len(rows))) :]
    return {"name": name, "value": sum(float(row[name]) for row in last) / len(last), "chance": chance}


def read_training(path: Path) -> Training:
    """What a `train.json` says; nothing where there is none.

    Raises:
        UserError: it is damaged.
    """
    return parse(Training, _read(path), str(path)) if path.is_file() else Training()


def read_outcome(path: Path) -> Outcome | None:
    """What a cell file says of the predictions; None where it does not.

    Raises:
        UserError: it is damaged.
    """
    found = _read(path).get("predictions")
    return parse(Outcome, found, str(path)) if found else None


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: damaged file ({error}); delete it, and the workflow makes it again") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: damaged file (no JSON object); delete it, and the workflow makes it again")
    return content


def verdict(training: Training, outcomes: Sequence[Outcome], trained: bool) -> list[str]:
    """What is wrong with a run, one note for its training and one for each test that differs; empty where it is fine.

    "did not learn: ..." where a test is no better than guessing, or, without one, the validation or the loss; of a
    model that was not `trained` it says "at chance: ...". Where the training looks so but a test is clearly above
    chance, its note is "doubtful: ...".
    """
    label = "did not learn" if trained else "at chance"
    of_tests = list(dict.fromkeys(", ".join(_faults(outcome, "test")) for outcome in outcomes))
    of_training = _faults(training.validation, "validation") if training.validation else []
    fine = "" in of_tests if of_tests else training.validation and not of_training
    if (loss := training.last_loss) and 0 < loss.chance <= loss.value:  # 0: it has no weight in this training
        of_training.insert(0, f"training loss {loss.value:.2f} (chance {loss.chance:.2f})")
    notes = [f"{'doubtful' if fine else label}: {', '.join(of_training)}"] if of_training else []
    return notes + [f"{label}: {text}" for text in of_tests if text]


def _faults(outcome: Outcome, name: str) -> list[str]:
    found = []
    if outcome.ci95 is not None and outcome.accuracy - outcome.ci95 <= outcome.chance:
        found.append(f"{name} {outcome.accuracy:.1f} ± {outcome.ci95:.1f} (chance {outcome.chance:.1f})")
    if outcome.spread is not None and outcome.spread < CONSTANT:
        found.append(f"constant features in {name}")
    if outcome.most_said >= MOST > outcome.most_true:
        found.append(f"one class for {100 * outcome.most_said:.0f} % of the {name} queries")
    elif outcome.constant_scores:
        found.append(f"constant scores in {name}")
    return found
