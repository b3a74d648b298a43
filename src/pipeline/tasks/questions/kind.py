"""Questions on videos: recipe, tests and cost. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from pipeline.experiment import Run
from pipeline.tasks.costs import Cost, Seconds
from pipeline.tasks.kind import Kind
from pipeline.tasks.recipe import Checked, Count, Epochs, Recipe
from pipeline.tasks.semi.kind import Percent

SMALL = Seconds(3.0, 0.07, 4.0)
LANGUAGE_PARAMETERS, QUESTION_TOKENS = 6.7e9, 150  # Vicuna-7B; about so many of a question with its options


class Encoder(Checked):
    """The run whose features are read: of the same data set, label rate and seed."""

    method: str = Field(description="its method, a video classifier")
    backbone: str = Field("", description="its backbone, if not the method's")
    model: dict[str, Any] = Field({}, description="laid over its model")
    train: dict[str, Any] = Field({}, description="laid over its training")


class QuestionTrain(Epochs):
    """A training on questions on the labelled videos."""

    label_rate: Percent = Field(description="per cent of the training videos, with a question on each")
    batches_per_step: Count = Field(description="batches whose gradients make one step")
    decay: Literal["steps", "cosine", "exponential"] = Field(description="steps: at the milestones; else to final_rate")
    final_rate: float = Field(gt=0, description="share of the learning rate at the end")


class QuestionRecipe(Recipe):
    """A method that answers questions on videos from the frozen features of another run."""

    task: Literal["questions"] = Field(description="kind of task")
    encoder: Encoder = Field(description="whose features it reads")
    train: QuestionTrain = Field(description="how it is trained")


class Questions(Kind):
    """Four options to a video."""

    name, words = "questions", "methods that answer questions"
    recipe, train = QuestionRecipe, QuestionTrain
    model, task = "pipeline.models.questions:QuestionModel", "pipeline.tasks.questions.task:QuestionTask"

    def cost(self, run: Run, clips: Mapping[str, int]) -> Cost:
        """Gradients go back through the language model, which is frozen; four options at test."""
        question, train = LANGUAGE_PARAMETERS * QUESTION_TOKENS * 2, run.train
        shown = train.get("epochs", 0) * clips["train"] * train.get("label_rate", 0) / 100
        return Cost(2 * question * shown, 4 * question * clips["test"])

    def computes(self, run: Run, asked: str) -> str:
        return "bf16"  # as the language model is loaded

    def seconds(self, run: Run) -> Seconds:
        return Seconds(SMALL.start if run.train else 0.0, (run.train.get("steps") or 0) * SMALL.step, SMALL.tests)


__all__ = ["Questions"]
