"""Assumptions of what runs cost: GPU hours at paper scale, core seconds with the demo's networks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from pipeline.experiment import Asset

# Floating-point operations of CLIP ViT-B/16 on one 224 x 224 frame: 2 * 17.6 G multiply-adds. A training step costs
# three times a forward pass.
FLOP_PER_FRAME = 35.2e9
# Sustained speed of one current data-centre GPU on this model in fp32 with TF32 products, a stated assumption.
GPU_FLOPS = 60e12
SET_CLIPS = {"train": 600, "test": 200}  # of a set whose definition does not say how many it has (`expected`), a guess


class Seconds(NamedTuple):
    """Of one core, for a run with the demo's networks: of a training's start, of one of its steps, of its tests.

    Those of each kind are about the means over the demo's runs, two at a time on two cores: the benchmarks of
    `all_tables`.
    """

    start: float
    step: float
    tests: float


@dataclass(frozen=True)
class Cost:
    """GPU hours of a run at paper scale."""

    training: float
    testing: float


def clips_of(dataset: Asset) -> dict[str, int]:
    """Clips of each split of a data set, as its definition expects them; a guess where it does not."""
    expected = dataset.options.get("expected") or {}
    found = {name: int(expected.get("clips", expected).get(name, 0)) for name in ("train", "val", "test")}
    found["train"] += int(expected.get("base", 0))
    found["test"] += int(expected.get("queries", 0))
    return found if any(found.values()) else {"train": SET_CLIPS["train"], "val": 0, "test": SET_CLIPS["test"]}


def hours(frames: float) -> float:
    """GPU hours of CLIP ViT-B/16 on so many frames, forwards."""
    return FLOP_PER_FRAME * frames / GPU_FLOPS / 3600


__all__ = ["FLOP_PER_FRAME", "GPU_FLOPS", "Cost", "Seconds", "clips_of", "hours"]
