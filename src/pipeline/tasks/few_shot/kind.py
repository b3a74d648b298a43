"""Few-shot episodes of videos: recipe, tests and cost. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from pipeline.errors import UserError
from pipeline.experiment import Measure, Run
from pipeline.tasks.costs import LAYERS, Cost, Seconds, frame_flop, frames_read, kept_gb
from pipeline.tasks.kind import Kind
from pipeline.tasks.recipe import OFF, Count, Recipe, Share, Switch, Train, Whole

SMALL = Seconds(2.0, 0.1, 5.0)  # a step: one episode of 80 frames
VIEWS = "stored views of each clip, from which the frozen layers are computed once; 0: a fresh view each time"


class FewShotTrain(Train):
    """A training on episodes."""

    steps: Whole = Field(description="optimiser steps; 0: nothing is trained")
    episodes_per_step: Count = Field(description="episodes whose gradients make one step, on any number of workers")
    way: Count = Field(description="classes in an episode")
    shot: Count | Literal["test"] = Field(description="supports per class; test: as many as the test has")
    query: Count | dict[Count, Count] = Field(
        description="queries per class; as a mapping, shots -> queries, of which the largest number of shots up to the "
        "training's counts"
    )
    video_text_weight: float = Field(ge=0, description="weight of the video-text loss; 0: none")
    milestones: list[Whole | tuple[Whole, float]] = Field(
        description="steps at which the learning rate falls to a tenth; [step, share]: to that share of the full rate"
    )
    warmup_steps: Whole = Field(description="length of the warm-up")
    validate_every: Count = Field(description="steps from one validation to the next")
    validation_episodes: Count = Field(description="episodes in a validation")
    checkpoint_every: Count = Field(description="steps from one checkpoint to the next")
    crop: Literal["clip", "frame"] = Field(description="one random crop per clip, or one per frame")
    flip: Share = Field(description="probability that a clip is mirrored")
    jitter_queries: Switch = Field(description="flip and colour jitter for the queries only")
    jitter_supports: Switch = Field(
        False, description="flip and colour jitter for the supports only", json_schema_extra=OFF
    )
    colour: Literal["one", "all"] | None = Field(
        None, description="change one of brightness, contrast, saturation and hue of every clip, or all of them",
        json_schema_extra=OFF,
    )  # fmt: skip
    stored_views: Whole = Field(0, description=VIEWS, json_schema_extra=OFF)
    untrained_counts: Switch = Field(
        False, description="the model before its first step is one of those that validation chooses from",
        json_schema_extra=OFF,
    )  # fmt: skip
    bn_apart: Switch = Field(
        False, description="supports and queries each have their own batch statistics", json_schema_extra=OFF
    )
    bn_undecayed: Switch = Field(False, description="no weight decay on batch normalisation", json_schema_extra=OFF)


class FewShotRecipe(Recipe):
    """A method that is trained and tested on episodes of videos."""

    task: Literal["few_shot"] = Field(description="kind of task")
    train: FewShotTrain | None = Field(None, description="how it is trained; without it the backbone stays as it is")


class FewShot(Kind):
    """N classes with K labelled videos each, and queries."""

    name, words = "few_shot", "few-shot methods"
    recipe, train = FewShotRecipe, FewShotTrain
    model, task = "pipeline.models.few_shot.base:FewShotModel", "pipeline.tasks.few_shot.task:FewShotTask"
    metrics = ("time_ms",)
    scaled = True

    def settle(self, train: Mapping[str, Any], measure: Measure, where: str) -> dict[str, Any]:
        train = dict(train)
        if train.get("shot") == "test":
            train["shot"] = measure.shot
        if "query" in train:
            train["query"] = _by_shots(train["query"], train["shot"], f"{where}, train.query")
        return super().settle(train, measure, where)

    def settle_model(self, model: Mapping[str, Any], train: Mapping[str, Any], where: str) -> dict[str, Any]:
        shot = train.get("shot", 1)
        return {key: _by_shots(value, shot, f"{where}, model.{key}") for key, value in model.items()}

    def check_measure(self, measure: Measure, model: Mapping[str, Any], where: str) -> None:
        super().check_measure(measure, model, where)
        if (model.get("type"), measure.matcher) == ("TaskAdapter", "trx") and model.get("matcher") != "trx":
            raise UserError(
                f"{where}: measure.matcher trx has weights of its own; set model.matcher: trx, to train them"
            )

    def cost(self, run: Run, clips: Mapping[str, int]) -> Cost:
        """Frozen layers are not gone back through."""
        train, clip = run.train, run.frames["number"] * frame_flop(run.backbone)
        tests = clip * 2 * clips["test"]
        if not train:
            return Cost(0.0, tests)
        shown = train["steps"] * train["episodes_per_step"] * train["way"] * (train["shot"] + train["query"])
        back = 2 * _trained_layers(run) / LAYERS
        return Cost((1 + back) * clip * shown, tests, shown * frames_read(run.frames))

    def computes(self, run: Run, asked: str) -> str:
        return asked if run.backbone.startswith("clip") else super().computes(run, asked)

    def memory(self, run: Run) -> float:
        train, model = run.train, run.model
        if not train:
            return 0.0
        frames = train["way"] * (train["shot"] + train["query"]) * run.frames["number"]
        return kept_gb(run.backbone, frames, model.get("activation_checkpointing", False), _trained_layers(run))

    def seconds(self, run: Run) -> Seconds:
        train = run.train
        if not train:
            return Seconds(0.0, 0.0, SMALL.tests)
        episodes = train["steps"] * train["episodes_per_step"]
        frames = train["way"] * (train["shot"] + train["query"]) * run.frames["number"]
        return Seconds(SMALL.start, episodes * frames / 80 * SMALL.step, SMALL.tests)

    def look(self, task: Any, model: Any, **shown: str) -> Mapping[str, Any]:
        from pipeline.tasks.few_shot.look import look

        return look(task, model, **shown)


def _trained_layers(run: Run) -> int:
    """Layers of the frame tower that are trained, or lie above one that is."""
    return run.model.get("layers", LAYERS) if run.model.get("finetune") == "adapters" else LAYERS


def _by_shots(value: Any, shot: int, where: str) -> Any:
    """A setting that has another value for other shots: that of the most shots up to `shot`; any other as it is."""
    if not (isinstance(value, Mapping) and value and all(isinstance(shots, int) for shots in value)):
        return value
    if fewer := [shots for shots in value if shots <= shot]:
        return value[max(fewer)]
    raise UserError(f"{where} is {dict(value)} and says nothing of {shot} shots; give a number")


__all__ = ["FewShot"]
