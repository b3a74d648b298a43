"""What runs cost: operations, frames and memory at paper scale, core seconds with the demo's networks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from pipeline.experiment import Asset

# Floating-point operations of a network on one 224 x 224 frame, forwards, counted by torch.utils.flop_counter; of LTG's
# on one of 8 frames, of MemDPC's on one of 128 x 128. A training step costs three times a forward pass. A network that
# is not named counts as CLIP's.
FRAME_FLOP = {"clip_vit_b16": 33.7e9, "resnet50": 8.2e9, "vit_b16": 47.5e9, "vit_s16": 11.9e9, "r3d18": 4.7e9,
              "r2d3d18": 1.2e9}  # fmt: skip
CLIP_FLOP = {"infogcn": 3.5e9, "hdgcn": 3.7e9, "motionbert": 287e9, "image": 4.7e9}  # likewise, of a clip of skeletons
SKELETON_FRAMES = 0.6  # a clip of skeletons is read in the time of so many stored frames of 256 x 256
SET_CLIPS = {"train": 600, "test": 200}  # of a set whose definition does not say how many it has (`expected`), a guess

# MB that a network in training keeps of a 224 x 224 frame for the backward pass in float32: counted, on a CPU. A small
# ViT has half the width of a base one; MemDPC's frames have 128 x 128 pixels.
KEPT_MB = {"clip_vit_b16": 147.0, "resnet50": 85.0, "vit_b16": 167.0, "vit_s16": 84.0, "r2d3d18": 6.8}
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
    """Work of a run at paper scale: floating-point operations of its training and of its tests, and what its training
    reads, in stored frames of 256 x 256."""

    training: float
    testing: float
    reading: float = 0.0


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


def bases_of(dataset: Asset) -> dict[str, int]:
    """Clips of each named set of base classes that a definition expects."""
    expected = dataset.options.get("expected") or {}
    return {str(name): count for name, count in expected.items() if str(name).endswith("%")}


def frame_flop(backbone: str) -> float:
    """Operations of a backbone, by its key, on a frame, forwards."""
    return next((flop for name, flop in FRAME_FLOP.items() if backbone.startswith(name)), FRAME_FLOP["clip_vit_b16"])


def frames_read(frames: Mapping[str, Any]) -> float:
    """What a view of a clip takes to read, in frames of 256 x 256; of a short side, the other is a third longer."""
    return frames["number"] * frame_size(frames)


def frame_size(frames: Mapping[str, Any]) -> float:
    """Pixels of a stored frame, in those of one of 256 x 256."""
    size = frames["store"]["size"]
    return (size * size * 4 / 3 if isinstance(size, int) else size[0] * size[1]) / 256**2


__all__ = [
    "CLIP_FLOP",
    "LAYERS",
    "MOTIONBERT_GB",
    "SKELETON_FRAMES",
    "Cost",
    "Seconds",
    "bases_of",
    "clips_of",
    "frame_flop",
    "frame_size",
    "frames_read",
    "kept_gb",
]
