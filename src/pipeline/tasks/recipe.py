"""What a method's YAML says, whatever its kind of task: `config/methods/NAME.yaml`, checked.

A recipe names its kind (`task`), whose `kind.py` has the model of its training. What is checked is kept as it was
written: the identity of a run is that of the keys given, not of defaults.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Whole = Annotated[int, Field(strict=True, ge=0)]
Count = Annotated[int, Field(strict=True, ge=1)]
Switch = Annotated[bool, Field(strict=True)]
Share = Annotated[float, Field(ge=0, le=1)]
OFF = {"off": True}
"""Marks a key that, with a value that is off, is as one that is not there."""


class Checked(BaseModel):
    """Strict about unknown keys."""

    model_config = ConfigDict(extra="forbid")


class Train(Checked):
    """How weights are trained: the part that every kind of task has."""

    optimizer: Literal["adam", "adamw", "sgd"] = Field(description="optimiser of all trained weights")
    learning_rate: float = Field(gt=0, description="learning rate after the warm-up")
    weight_decay: float = Field(ge=0, description="as the optimiser takes it: L2 in adam and sgd, decoupled in adamw")
    momentum: Share | None = Field(None, description="momentum of sgd")
    nesterov: Switch = Field(False, description="Nesterov's momentum, for sgd")
    warmup_start: float = Field(ge=0, description="learning rate at the first step, from which it grows linearly")
    amp: Switch = Field(description="compute in bfloat16 where it is safe; needs a GPU")

    @classmethod
    def off(cls) -> set[str]:
        """Keys that are left out of a run's identity where they are off."""
        return {key for key, field in cls.model_fields.items() if field.json_schema_extra == OFF}


class Epochs(Train):
    """A training whose length is counted in epochs."""

    epochs: Count = Field(description="passes over the training set")
    steps: Count | None = Field(description="steps of all epochs together; null: as many as the set gives")
    batch: Count = Field(description="clips in a forward pass")
    milestones: list[Annotated[float, Field(ge=0)]] = Field(
        description="epochs at which the learning rate falls to a tenth"
    )
    warmup_epochs: float = Field(ge=0, description="length of the warm-up")
    validate_epochs: float = Field(gt=0, description="epochs from one validation and checkpoint to the next")


class Recipe(Checked):
    """A method: its model, its training and how it is tested."""

    task: str = Field(description="kind of task: few_shot, one_shot, semi or questions")
    recipe: Count = Field(1, description="raised by hand when a change in the code changes results")
    backbone: str = Field("", description="entry of config/backbones.yaml that the method builds on")
    model: dict[str, Any] = Field(description="`type` (a class in MODELS) and the arguments of its constructor")
    models: dict[str, dict[str, Any]] = Field({}, description="data set -> settings laid over `model` there")
    options: dict[str, Any] = Field(
        {}, description="rarely used settings of the model with their defaults; one at its default enters no id"
    )
    train: Train | None = Field(None, description="how it is trained; without it nothing is")
    schedules: dict[str, dict[str, Any]] = Field(
        {}, description="data set, or DATASET/BASE SET -> keys laid over `train` there"
    )
    measure: dict[str, Any] = Field({}, description="how it is tested, if not as by default")
    frames: dict[str, Any] = Field({}, description="how frames are chosen, or how skeletons are shown")


def settled(train: Mapping[str, Any], model: type[Train], checked: Train) -> dict[str, Any]:
    """The keys of a recipe as they are given, numbers read as such, without those that are off."""
    values = checked.model_dump(mode="json", include=set(train))
    return {key: values[key] for key in train if values[key] or key not in model.off()}


__all__ = ["OFF", "Checked", "Count", "Epochs", "Recipe", "Share", "Switch", "Train", "Whole", "settled"]
