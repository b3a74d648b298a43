"""Semi-supervised recognition of videos: recipe, tests and cost. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from pipeline.experiment import Run
from pipeline.tasks.costs import Cost, Seconds, frame_flop, frame_size, kept_gb
from pipeline.tasks.kind import Kind
from pipeline.tasks.recipe import OFF, Checked, Count, Epochs, Recipe, Share, Switch, Whole

SMALL = Seconds(1.5, 0.045, 2.0)
UNLABELLED = 0.03  # seconds of a step for each unlabelled clip beside a labelled one
OF_PHASES = 0.25  # seconds of a step of a training in two phases
Percent = Annotated[float, Field(gt=0, le=100)]


class Pretraining(Checked):
    """Training on all training videos, whose labels it does not see, before that on the labelled ones."""

    epochs: Count = Field(description="passes over all training videos")
    steps: Count | None = Field(description="steps of all epochs together; null: as many as the set gives")
    milestones: list[Annotated[float, Field(ge=0)]] = Field(description="epochs at which the rate falls to a tenth")
    weight_decay: float = Field(ge=0, description="as the optimiser takes it, until the labelled videos come")
    backbone_rate: float = Field(gt=0, description="factor of the backbone's learning rate on the labelled videos")


class SemiTrain(Epochs):
    """A training on labelled and unlabelled videos."""

    label_rate: Percent = Field(description="per cent of the training videos that have labels")
    warm_epochs: Whole = Field(description="epochs on labelled videos only, after which the teacher starts as a copy")
    unlabelled: Whole = Field(description="unlabelled videos for each labelled one; 0: none, so no teacher")
    labelled_per_step: Count = Field(description="labelled videos whose gradients make one step")
    scale: tuple[float, float] = Field(description="the short side in units of the crop, drawn between these two")
    flip: Share = Field(description="probability that a labelled or a strong view is mirrored")
    randaugment: Whole = Field(
        0, description="operations of RandAugment on the strong view; 0: none", json_schema_extra=OFF
    )
    paired_views: Switch = Field(
        False, description="the strong view is the weak one, changed further", json_schema_extra=OFF
    )
    decay: Literal["cosine"] | None = Field(
        None, description="cosine: from the warm-up to zero; null: at the milestones", json_schema_extra=OFF
    )
    pretraining: Pretraining | None = Field(
        None, description="a phase before all others, without labels; null: none", json_schema_extra=OFF
    )
    clip_gradient: float = Field(0.0, ge=0, description="largest norm of the gradient; 0: any", json_schema_extra=OFF)


class SemiRecipe(Recipe):
    """A method that learns all classes from few labelled and many unlabelled videos."""

    task: Literal["semi"] = Field(description="kind of task")
    train: SemiTrain = Field(description="how it is trained")


def frames_shown(run: Run) -> int:
    """Frames of a video that a run shows: those of all its elements."""
    from pipeline.datasets.elements import parse_elements  # brings numpy

    return sum(parse_elements(run.model["elements"]))


class Semi(Kind):
    """All classes, few labels: videos."""

    name, words = "semi", "semi-supervised methods"
    recipe, train = SemiRecipe, SemiTrain
    model, task = "pipeline.models.semi:SeFARModel", "pipeline.tasks.semi.task:SemiTask"
    metrics = ("opposite_pct", "teacher_time_share_pct", "teacher_spread_pct")

    def cost(self, run: Run, clips: Mapping[str, int]) -> Cost:
        """The student on labelled, perturbed and mixed clips, the teacher on the weak ones; LTG has two networks."""
        train, two = run.train, run.model["type"] == "LTG"
        clip = frames_shown(run) * frame_flop(run.backbone) * (1 + two)
        if not train:
            return Cost(0.0, clip * clips["test"])
        labelled = train["epochs"] * clips["train"] * train["label_rate"] / 100
        if train.get("steps"):
            labelled = train["steps"] * train["labelled_per_step"]
        if pretraining := train.get("pretraining"):
            labelled += pretraining["epochs"] * clips["train"]  # of which it does not see the labels
        unlabelled = labelled * (1 - train["warm_epochs"] / train["epochs"]) * train["unlabelled"]
        views = (1 + (not two and bool(run.model.get("mixing", 10)))) * 3 + 1  # forward passes' worth
        read = (labelled + 2 * unlabelled) * frames_shown(run) * frame_size(run.frames)
        return Cost(clip * (3 * labelled + views * unlabelled), clip * clips["test"], read)

    def memory(self, run: Run) -> float:
        """Of the student: labelled videos, and unlabelled ones perturbed and, with mixing, mixed as well."""
        train, model = run.train, run.model
        if not train:
            return 0.0
        videos = train["batch"] * (1 + train["unlabelled"] * (1 + bool(model.get("mixing", 10))))
        return kept_gb(run.backbone, videos * frames_shown(run), model.get("activation_checkpointing", False))

    def seconds(self, run: Run) -> Seconds:
        train = run.train
        if not train:
            return Seconds(0.0, 0.0, SMALL.tests)
        if pretraining := train.get("pretraining"):
            steps = (pretraining["steps"] or 0) + (train["steps"] or 0)
            return Seconds(SMALL.start, steps * OF_PHASES, SMALL.tests)
        step = SMALL.step + train["unlabelled"] * UNLABELLED
        return Seconds(SMALL.start, (train["steps"] or 0) * step, SMALL.tests)


__all__ = ["Semi"]
