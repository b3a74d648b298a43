"""What a kind of task brings to the one training loop and to the one way of measuring.

A task knows the data of a run, builds its model, says what a worker gets in one iteration, and scores the model.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from mmengine.hooks import Hook
from torch.utils.data import Dataset

from pipeline.experiment import Measure, Run
from pipeline.scores import EpisodeScores
from pipeline.workspace import Workspace

SELECTION_SEED = 1  # of the episodes that select a checkpoint; tests use other ones


class Items(Dataset):
    """What training sees: item i is a dict of tensors, or of lists of tensors, and depends on (seed, i) alone."""

    @property
    def item_bytes(self) -> int:
        """Bytes of an item, where other processes are to read items ahead; 0 where that is not worth it."""
        return 0


class Task:
    """One run, as training and evaluation see it."""

    def __init__(self, run: Run, ws: Workspace) -> None:
        self.run, self.ws = run, ws

    @property
    def selection_split(self) -> str:
        """The split on which a checkpoint is selected."""
        return "test" if self.run.selection == "test" else "val"

    def classes(self) -> dict[str, int]:
        """Number of classes of each split."""
        raise NotImplementedError

    def counts(self) -> dict[str, int]:
        """What else of the data `train.json` tells."""
        return {}

    def schedule(self) -> dict[str, Any]:
        """The recipe with all lengths in optimiser steps, and `items`, the iterations of all workers in one step."""
        raise NotImplementedError

    def build(self) -> torch.nn.Module:
        """The untrained model, initialised from the run's seed."""
        raise NotImplementedError

    def items(self, model: torch.nn.Module) -> Items:
        """What training sees, in its order: item i is one worker's iteration, and depends on (seed, i) alone."""
        raise NotImplementedError

    def hooks(self, model: torch.nn.Module, every: int) -> list[Hook]:
        """What the training of this kind does beside the steps; `every` iterations of a worker are a step."""
        return []

    def clean(self) -> None:
        """Delete what nobody needs once the run is trained."""

    def validate(self, model: torch.nn.Module) -> EpisodeScores:
        """Scores by whose accuracy a checkpoint is selected; the model stays as it was."""
        raise NotImplementedError

    def chance_loss(self, model: torch.nn.Module) -> tuple[str, float] | None:
        """Name of a loss of the training, and what guessing gives of it; None where that is not known."""
        return None

    def scores(self, model: torch.nn.Module, measure: Measure, split: str, keep: bool = False) -> EpisodeScores:
        """Scores of the test (or validation) that `measure` names; `keep` what other tests of the run read, too."""
        raise NotImplementedError

    def parameters(self, model: torch.nn.Module, part: str = "") -> int:
        """Number of trainable parameters whose names begin with `part`."""
        return sum(p.numel() for name, p in model.named_parameters() if p.requires_grad and name.startswith(part))


class TimesTasks(Protocol):
    """A task of which whole test tasks can be timed."""

    def times(self, model: torch.nn.Module, measure: Measure) -> list[float]:
        """Milliseconds of each of some test tasks: from the stored clips to the answer."""
        ...


class HasTeacher(Protocol):
    """A task that trains with a teacher; what the metrics of one ask.

    Raises UserError for a method of this kind that has none.
    """

    def teacher_shares(self, model: torch.nn.Module) -> list[float]:
        """Share of the teacher's predictions in the time of training, in per cent, of each of some iterations."""
        ...

    def teacher_predictions(self, model: torch.nn.Module) -> dict[str, list]:
        """What the teacher predicts for V test videos: confidence, deviation and right, each (V,)."""
        ...


def epochs_as_steps(train: dict[str, Any], steps: int) -> dict[str, Any]:
    """A recipe that counts in epochs, `train["epochs"]` of them in all, as one that counts in optimiser steps.

    `warmup_epochs`, `milestones` and `validate_epochs` are taken along, rounded to whole steps.
    """
    epoch = steps / train["epochs"]
    every = max(round(train["validate_epochs"] * epoch), 1)
    return train | {
        "steps": steps, "warmup_steps": round(train["warmup_epochs"] * epoch),
        "milestones": [round(number * epoch) for number in train["milestones"]],
        "validate_every": every, "checkpoint_every": every,
    }  # fmt: skip
