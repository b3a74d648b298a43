"""The kinds of task that there are. A new one is a folder and a line here."""

from __future__ import annotations

from collections.abc import Mapping
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from pipeline.errors import UserError, unknown
from pipeline.experiment import Measure, Run
from pipeline.tasks.few_shot.kind import FewShot
from pipeline.tasks.kind import Kind
from pipeline.tasks.one_shot.kind import OneShot
from pipeline.tasks.questions.kind import Questions
from pipeline.tasks.semi.kind import Semi

if TYPE_CHECKING:
    from pipeline.tasks.base import Task
    from pipeline.workspace import Workspace

KINDS: dict[str, Kind] = {kind.name: kind for kind in (FewShot(), OneShot(), Semi(), Questions())}


def kind_of(recipe: Mapping[str, Any], where: str) -> Kind:
    """The kind of task of a recipe.

    Raises:
        UserError: the recipe, at `where`, names none, or one that there is not.
    """
    if "task" not in recipe:
        raise UserError(f"{where}: key task is missing; give the kind of task: {', '.join(KINDS)}")
    if recipe["task"] not in KINDS:
        raise unknown("task", recipe["task"], KINDS, f"{where}, key task")
    return KINDS[recipe["task"]]


def check_metric(measure: Measure, kind: Kind, where: str) -> None:
    """Raise UserError for a metric that is of other kinds alone."""
    others = [other.words for other in KINDS.values() if measure.metric in other.metrics]
    if others and measure.metric not in kind.metrics:
        raise UserError(f"{where}: metric {measure.metric} is of {', '.join(others)}, not of {kind.words}")


def kind_of_model(run: Run) -> Kind:
    """The kind of task of a planned run, by the class of its model; this imports torch.

    Raises:
        UserError: there is no such model.
    """
    from pipeline.compat import MODELS

    bases = {resolve_name(kind.model): kind for kind in KINDS.values() if resolve_name(kind.task)}  # registers models
    classes = {name: entry for name, entry in MODELS.module_dict.items() if isinstance(entry, type)}
    wanted = classes.get(run.model["type"])
    if found := [kind for base, kind in bases.items() if wanted and issubclass(wanted, base)]:
        return found[0]
    known = [name for name, entry in classes.items() if issubclass(entry, tuple(bases))]
    raise unknown("model type", run.model["type"], known, f"method {run.method}")


def task_of(run: Run, ws: Workspace) -> Task:
    """The task of a planned run; raises UserError where its model is not known."""
    return resolve_name(kind_of_model(run).task)(run, ws)


__all__ = ["KINDS", "check_metric", "kind_of", "kind_of_model", "task_of"]
