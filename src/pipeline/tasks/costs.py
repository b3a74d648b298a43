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


# MB that a network in training keeps of a 224 x 224 frame for the backward pass in float32: counted, on a CPU. A small
# ViT has half the width of a base one; MemDPC's frames have 128 x 128 pixels.
KEPT_MB = {"clip_vit_b16": 147.0, "resnet50": 85.0, "vit_b16": 167.0, "vit_s16": 84.0,
           "r2d3d18": 6.8}  # fmt: skip
MOTIONBERT_GB = 2.0  # likewise, of a clip
LAYERS = 12  # of a ViT
INPUT_MB = (
    0.61  # the input of a layer of a base ViT, 197 x 768 numbers: activation checkpointing keeps it of each layer
)


class Seconds(NamedTuple):
    """Of one core, for a run with the demo's networks: of a training's start, of one of its steps, of its tests.

    Those of each kind are about the means over the demo's runs, two at a time on two cores, as `train.json` has them.
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


def kept_gb(backbone: str, frames: int, checkpointing: bool = False, layers: int = LAYERS) -> float:
    """GB that the activations of so many frames take in a training step in float32; 0 where that is not known.

    backbone: its key. layers: of a ViT, those that are trained, or lie above one that is. checkpointing: one layer's
    activations at a time, and the inputs of all.
    """
    kept = next((mb for name, mb in KEPT_MB.items() if backbone.startswith(name)), 0.0) * layers / LAYERS
    if checkpointing and kept:
        kept = kept / layers + INPUT_MB * layers
    return frames * kept / 1000


def hours(frames: float) -> float:
    """GPU hours of CLIP ViT-B/16 on so many frames, forwards."""
    return FLOP_PER_FRAME * frames / GPU_FLOPS / 3600


__all__ = ["FLOP_PER_FRAME", "GPU_FLOPS", "LAYERS", "MOTIONBERT_GB", "Cost", "Seconds", "clips_of", "hours", "kept_gb"]
