"""The metrics: all that is particular to one of them is its entry here.

A `Measure` and a column of a sheet name one. The entries lie on the ground, below everything that asks them, because
the identity of a cell depends on them (`settings`). Their functions import nothing: they get what they work on. Which
kinds of task have a metric that not all have stands with the kinds (`tasks.kind.Kind.metrics`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Annotated, Any

from pydantic import AfterValidator, WithJsonSchema

from pipeline.errors import unknown

Found = Mapping[str, Any]
"""What was found for one number, ready for JSON."""

TASK = ("way", "shot", "query", "episode_seed", "matcher", "one_shot")
TEST = (*TASK, "episodes", "val_episodes", "score", "alpha", "alpha_grid")


@dataclass(frozen=True)
class Metric:
    """One metric: what it is, how its number comes about, how it is shown."""

    unit: str
    words: str
    """What it is, for titles and captions."""
    settings: tuple[str, ...]
    """Keys of a `Measure` that change the number; the others are no part of the identity of a cell."""
    values: Callable[[Found], Sequence[float] | float]
    """The numbers in what was found, one for each episode, task or video; a single number has no interval."""
    answers: Callable[[Any], Found] | None = None
    """Finds it in the answers to a test (`evaluation.answers.Answers`): of a metric that is read off scores."""
    model: Callable[[Any, Any, Any], Found] | None = None
    """(task, model, measure) -> what is found in the model itself: of every other metric. A kind of task that has the
    metric has the method."""
    file: str = ""
    """Name of the file that keeps what was found in a model, without its ending: keys of the measure in braces, and
    {task}, a hash of the test tasks."""
    beside: Mapping[str, Callable[[Found], Any]] = field(default_factory=dict)
    """What a cell file keeps beside the number: key -> its content in what was found."""
    decimals: int = 1
    """Of numbers in tables."""
    lower_is_better: bool = True
    of_learning: bool = True
    """Whether the number means something only if the run has learnt anything."""
    of_clips: bool = True
    """Whether the number depends on which clips of the data set are there."""

    def __post_init__(self) -> None:
        if (self.answers is None) == (self.model is None) or bool(self.model) != bool(self.file):
            raise ValueError("a metric is read off answers, or off a model and has a file for that")

    @property
    def scored(self) -> bool:
        """Whether it is read off the scores of a test."""
        return self.answers is not None


METRICS = {
    "accuracy_pct": Metric(
        "%", "accuracy", TEST, itemgetter("right"), lower_is_better=False,
        answers=lambda answers: {"right": answers.right()},
    ),
    "opposite_pct": Metric(
        "%", "opposite", TEST, itemgetter("opposite"),
        answers=lambda answers: answers.opposites(),
        beside={"confusion": itemgetter("confusion"), "classes": itemgetter("classes")},
    ),
    "time_ms": Metric(
        "ms", "time of a task", TASK, itemgetter("milliseconds"), decimals=2, of_learning=False,
        model=lambda task, model, measure: {"milliseconds": task.times(model, measure)},
        file="time-{way}way-{shot}shot-{task}",
    ),
    "params_m": Metric(
        "million", "trained parameters", ("part",), lambda found: found["parameters"] / 1e6, decimals=3,
        of_learning=False, of_clips=False,
        model=lambda task, model, measure: {"parameters": task.parameters(model, measure.part)},
        file="params-{part}",
    ),
    "teacher_time_share_pct": Metric(
        "%", "the teacher's share of the time", (), itemgetter("percent"), of_learning=False,
        model=lambda task, model, measure: {"percent": task.teacher_shares(model)},
        file="teacher-time",
    ),
    "teacher_spread_pct": Metric(
        "%", "mean deviation", (), lambda found: [100 * share for share in found["deviation"]],
        model=lambda task, model, measure: task.teacher_predictions(model),
        file="teacher",
        beside={"teacher": dict},
    ),
}  # fmt: skip


def _known(name: str) -> str:
    if name not in METRICS:
        raise ValueError(str(unknown("metric", name, METRICS)))
    return name


MetricName = Annotated[str, AfterValidator(_known), WithJsonSchema({"type": "string", "enum": [*METRICS]})]
"""Type of a key that names a metric."""
