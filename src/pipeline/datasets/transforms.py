"""From stored frames to what a network takes: crop, flip, colour jitter, normalisation.

MMAction2's own RandomCrop, Flip and ColorJitter draw from numpy's global state, which other code in a
worker changes; an episode must depend on its seed alone, so these few lines take a generator.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch

from pipeline.errors import UserError, unknown

# Of [0, 1] RGB.
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

BRIGHTNESS, CONTRAST, SATURATION, HUE, GRAYSCALE = 0.5, 0.5, 0.5, 0.25, 0.3  # CLIP-FSAR, Kinetics-100
COLOURS = ("one", "all")
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601, as OpenCV's and PIL's grey


@dataclass(frozen=True)
class ClipTransform:
    """Turns uint8 RGB frames (T, H, W, 3) into a float32 tensor (T, 3, crop, crop), normalised.

    crop: side of the square cut out, in pixels: at one random place for all frames when `train` (at a place of
    its own for each frame if `per_frame`, as Task-Adapter's released code), else from the centre. mean, std: of
    [0, 1] RGB. flip: probability of mirroring the whole clip, in training. jitter: CLIP-FSAR's colour jitter, in
    training, one draw for all frames. colour: "one" of brightness, contrast, saturation and hue changes in training
    (TEAM), or "all" of them.

    Raises UserError for another colour, and calling it when the frames are smaller than the crop.
    """

    crop: int
    mean: Sequence[float] = CLIP_MEAN
    std: Sequence[float] = CLIP_STD
    train: bool = False
    flip: float = 0.0
    jitter: bool = False
    per_frame: bool = False
    colour: str | None = None

    def __post_init__(self) -> None:
        if self.colour not in (None, *COLOURS):
            raise unknown("colour", self.colour, COLOURS)

    def __call__(self, frames: np.ndarray, rng: np.random.Generator | None = None) -> torch.Tensor:
        if self.train and rng is None:
            raise ValueError("a training transform needs a random generator")
        if self.train and self.flip and rng.random() < self.flip:
            frames = frames[:, :, ::-1]
        frames = self._cut(frames, rng)
        pixels = frames.astype(np.float32)
        pixels /= 255
        if self.train and self.jitter:
            pixels = colour_jitter(pixels, rng)
        if self.train and self.colour:
            pixels = colour_change(pixels, rng, 1 if self.colour == "one" else 4)
        pixels -= np.asarray(self.mean, np.float32)  # in place: the loader's time goes into such copies
        pixels /= np.asarray(self.std, np.float32)
        return torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))

    def _cut(self, frames: np.ndarray, rng: np.random.Generator | None) -> np.ndarray:
        height, width = frames.shape[1:3]
        if min(height, width) < self.crop:
            raise UserError(
                f"frames are stored with {height}x{width} pixels and the network takes "
                f"{self.crop}x{self.crop}; store larger frames (policy: size)"
            )
        spare = height - self.crop, width - self.crop
        if self.train and self.per_frame:
            corners = rng.integers(0, np.add(spare, 1), (len(frames), 2))
            cut = [frame[y : y + self.crop, x : x + self.crop] for frame, (y, x) in zip(frames, corners, strict=True)]
            return np.stack(cut)
        if self.train:
            top, left = (int(rng.integers(0, room + 1)) for room in spare)
        else:
            top, left = (room // 2 for room in spare)
        return frames[:, top : top + self.crop, left : left + self.crop]


def colour_jitter(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Change the colours of a clip, all its frames alike: float32 (T, H, W, 3) in [0, 1] to the same.

    Grey with probability 0.3; then brightness, contrast and saturation by factors in 0.5..1.5 and hue by
    up to a quarter turn, in random order (CLIP-FSAR's queries on Kinetics-100).
    """
    if rng.random() < GRAYSCALE:
        pixels = np.repeat(_grey(pixels), 3, axis=-1)
    return colour_change(pixels, rng, 4)


def colour_change(pixels: np.ndarray, rng: np.random.Generator, number: int) -> np.ndarray:
    """The first `number` of the four changes of `colour_jitter`, in random order."""
    changes = [
        (_brightness, rng.uniform(1 - BRIGHTNESS, 1 + BRIGHTNESS)),
        (_contrast, rng.uniform(1 - CONTRAST, 1 + CONTRAST)),
        (_saturation, rng.uniform(1 - SATURATION, 1 + SATURATION)),
        (_hue, rng.uniform(-HUE, HUE)),
    ]
    for i in rng.permutation(len(changes))[:number]:
        change, amount = changes[i]
        pixels = change(pixels, np.float32(amount))
    return pixels


def _grey(pixels: np.ndarray) -> np.ndarray:
    """(T, H, W, 1)"""
    return (pixels @ _LUMA)[..., None]


def _blend(pixels: np.ndarray, other: np.ndarray | float, factor: np.float32) -> np.ndarray:
    return np.clip(factor * pixels + (1 - factor) * other, 0, 1, dtype=np.float32)


def _brightness(pixels: np.ndarray, factor: np.float32) -> np.ndarray:
    return _blend(pixels, np.float32(0), factor)


def _contrast(pixels: np.ndarray, factor: np.float32) -> np.ndarray:
    return _blend(pixels, _grey(pixels).mean(axis=(1, 2, 3), keepdims=True), factor)


def _saturation(pixels: np.ndarray, factor: np.float32) -> np.ndarray:
    return _blend(pixels, _grey(pixels), factor)


def _hue(pixels: np.ndarray, turn: np.float32) -> np.ndarray:
    # OpenCV converts images of three channels of any size: the clip as one tall image.
    hsv = cv2.cvtColor(pixels.reshape(-1, pixels.shape[2], 3), cv2.COLOR_RGB2HSV)
    hsv[..., 0] = (hsv[..., 0] + 360 * turn) % 360
    return np.clip(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB), 0, 1).reshape(pixels.shape)
