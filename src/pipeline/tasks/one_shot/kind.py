"""One-shot tests of skeletons: recipe, tests and cost. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from pipeline.config import parse
from pipeline.errors import unknown
from pipeline.experiment import Measure, Run
from pipeline.tasks.costs import CLIP_FLOP, MOTIONBERT_GB, SKELETON_FRAMES, Cost, Seconds
from pipeline.tasks.kind import Kind
from pipeline.tasks.recipe import Count, Epochs, Recipe, Whole

SMALL = Seconds(1.0, 0.08, 3.0)
ONE_SHOT = ("feature", "calibration")


class OneShotTrain(Epochs):
    """A training on the clips of the base classes."""

    per_class: Whole = Field(description="clips of each class in a batch; 0: any number")
    batches_per_step: Count = Field(description="batches whose gradients make one step, split over the workers")
    head_learning_rate: float | None = Field(gt=0, description="learning rate outside the backbone; null: the same")
    decay: Literal["steps", "cosine", "exponential"] = Field(
        description="steps: at the milestones; cosine, exponential: to final_rate"
    )
    final_rate: float = Field(gt=0, description="share of the learning rate at the end, for cosine and exponential")
    base_set: str = Field(description="base classes to train on, a name of the data set's protocol.bases")


class OneShotRecipe(Recipe):
    """A method that is trained on skeletons of base classes and told novel ones by one exemplar each."""

    task: Literal["one_shot"] = Field(description="kind of task")
    train: OneShotTrain = Field(description="how it is trained")


class OneShot(Kind):
    """One exemplar of each novel class, and queries: skeletons."""

    name, words = "one_shot", "methods on skeletons"
    recipe, train = OneShotRecipe, OneShotTrain
    model, task = "pipeline.models.skeleton.base:SkeletonModel", "pipeline.tasks.one_shot.task:OneShotTask"

    def check_measure(self, measure: Measure, model: Mapping[str, Any], where: str) -> None:
        super().check_measure(measure.model_copy(update={"one_shot": {}}), model, where)
        if not measure.one_shot:
            return
        from pipeline.tasks.one_shot.calibration import Calibration

        place = f"{where}, measure.one_shot"
        if odd := set(measure.one_shot) - set(ONE_SHOT):
            raise unknown("key", min(odd), ONE_SHOT, place)
        parse(Calibration, measure.one_shot.get("calibration", {}), f"{place}.calibration")

    def cost(self, run: Run, clips: Mapping[str, int]) -> Cost:
        clip, train = CLIP_FLOP.get(run.model.get("encoder", ""), CLIP_FLOP["infogcn"]), run.train
        shown = train["epochs"] * clips.get(train["base_set"], clips["train"]) if train else 0
        return Cost(3 * clip * shown, clip * clips["test"], SKELETON_FRAMES * shown)

    def memory(self, run: Run) -> float:
        transformer = run.train and run.frames.get("feed", {}).get("kind") == "motionbert"
        return MOTIONBERT_GB * run.train["batch"] if transformer else 0.0

    def seconds(self, run: Run) -> Seconds:
        return Seconds(SMALL.start if run.train else 0.0, (run.train.get("steps") or 0) * SMALL.step, SMALL.tests)

    def look(self, task: Any, model: Any, **shown: str) -> Mapping[str, Any]:
        from pipeline.tasks.one_shot.look import look

        return look(task, model, **shown)


__all__ = ["OneShot"]
