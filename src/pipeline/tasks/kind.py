"""What the plan, the estimates and the look inside ask of a kind of task. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from pipeline.config import parse
from pipeline.errors import UserError, unknown
from pipeline.experiment import Measure, Run
from pipeline.models.matchers import MATCHERS
from pipeline.tasks.costs import Cost, Seconds
from pipeline.tasks.recipe import Recipe, Train, settled

if TYPE_CHECKING:
    from pipeline.tasks.base import Task


class Kind:
    """A kind of task: the folder `tasks/NAME`, whose `kind.py` has a subclass of this, named in `tasks.kinds`."""

    name: ClassVar[str]
    """As a recipe says it: `task: NAME`."""
    words: ClassVar[str]
    """What its methods are, for messages."""
    recipe: ClassVar[type[Recipe]]
    train: ClassVar[type[Train]]
    model: ClassVar[str]
    """Base class of its models, `module:Class`: imported only where a model is built."""
    task: ClassVar[str]
    """Its `Task`, likewise."""
    metrics: ClassVar[tuple[str, ...]] = ()
    """Metrics that it has beside accuracy and the number of parameters."""
    scaled: ClassVar[bool] = False
    """Whether the settings' general `train`, of rates and lengths, is meant for it."""

    def keys(self, train: Mapping[str, Any]) -> set[str]:
        """Keys that a recipe with the part `train` may have there."""
        return {*train, *self.train.off()} if train else set()

    def settle(self, train: Mapping[str, Any], measure: Measure, where: str) -> dict[str, Any]:
        """The training of a run, checked: what depends on its test is filled in, what is off is left out.

        Raises:
            UserError: a key that is missing, unknown or wrong.
        """
        if not train or train.get("steps") == 0:
            return {}  # nothing is trained, so nothing of a recipe matters
        return settled(train, self.train, parse(self.train, train, f"{where}, train"))

    def settle_model(self, model: Mapping[str, Any], train: Mapping[str, Any], where: str) -> dict[str, Any]:
        """The settings of a model: what depends on its training is filled in. Raises UserError if that can't be."""
        return dict(model)

    def check_measure(self, measure: Measure, model: Mapping[str, Any], where: str) -> None:
        """Raise UserError for a metric, matcher or setting of a test that a model of this kind does not have."""
        kind = model.get("type", "")
        if measure.matcher is not None and kind in MATCHERS and measure.matcher not in MATCHERS[kind]:
            if not MATCHERS[kind]:
                raise UserError(f"{where}: measure.matcher is {measure.matcher!r}, and {kind} has none; leave it out")
            raise unknown("matcher", measure.matcher, MATCHERS[kind], f"{where}, measure.matcher ({kind})")
        if measure.one_shot:
            raise UserError(f"{where}: measure.one_shot is of tests of skeletons; {kind} has none, leave it out")

    def cost(self, run: Run, clips: Mapping[str, int]) -> Cost:
        """Its work at paper scale, on a data set with `clips` in each split and in each named set of base classes."""
        raise NotImplementedError

    def computes(self, run: Run, asked: str) -> str:
        """In what numbers a training computes on a GPU where `asked` (`cluster.precision`) are wanted."""
        return "float32" if asked == "bf16" else asked  # bf16 is of CLIP's frame tower

    def memory(self, run: Run) -> float:
        """About the GB that the activations of a training step take on a GPU, in float32; 0 where they are few."""
        return 0.0

    def seconds(self, run: Run) -> Seconds:
        """Core seconds with the demo's networks; `step` is that of all its steps."""
        raise NotImplementedError

    def look(self, task: Task, model: Any, **shown: str) -> Mapping[str, Any]:
        """The arrays that figures show of a trained run.

        Raises:
            UserError: there is nothing to show.
        """
        raise UserError(f"{task.run.id}: nothing of the method {task.run.method} is shown in a figure")


__all__ = ["Kind"]
