"""Frames as networks take them, the plain way: a clip at a time, in float32, on the host."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from pipeline.datasets.transforms import BRIGHTNESS, CONTRAST, GRAYSCALE, HUE, SATURATION

LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def training_clip(
    frames: np.ndarray, rng: np.random.Generator, mean: Sequence[float], std: Sequence[float], crop: int,
    flip: float = 0.0, jitter: bool = False,
) -> np.ndarray:  # fmt: skip
    """A training clip (T, 3, crop, crop): mirrored, cut, its colours changed, normalised."""
    if flip and rng.random() < flip:
        frames = frames[:, :, ::-1]
    top, left = (int(rng.integers(0, room - crop + 1)) for room in frames.shape[1:3])
    pixels = frames[:, top : top + crop, left : left + crop].astype(np.float32) / 255
    if jitter:
        grey = rng.random() < GRAYSCALE
        amounts = [rng.uniform(1 - most, 1 + most) for most in (BRIGHTNESS, CONTRAST, SATURATION)]
        amounts.append(rng.uniform(-HUE, HUE))
        pixels = changed(pixels, grey, amounts, rng.permutation(4))
    return normalised(pixels, mean, std)


def normalised(pixels: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """(T, H, W, 3) in [0, 1] -> (T, 3, H, W)."""
    return ((pixels - np.float32(mean)) / np.float32(std)).transpose(0, 3, 1, 2)


def changed(pixels: np.ndarray, grey: bool, amounts: Sequence[float], order: Sequence[int]) -> np.ndarray:
    """Colours of (T, H, W, 3) in [0, 1] changed one after the other, hue by OpenCV."""
    if grey:
        pixels = np.repeat(_grey(pixels), 3, axis=-1)
    for number in order:
        pixels = _CHANGES[number](pixels, np.float32(amounts[number]))
    return pixels


def _grey(pixels: np.ndarray) -> np.ndarray:
    return (pixels @ LUMA)[..., None]


def _blend(pixels: np.ndarray, other: np.ndarray | np.float32, factor: np.float32) -> np.ndarray:
    return np.clip(factor * pixels + (1 - factor) * other, 0, 1, dtype=np.float32)


def _hue(pixels: np.ndarray, turn: np.float32) -> np.ndarray:
    hsv = cv2.cvtColor(pixels.reshape(-1, pixels.shape[2], 3), cv2.COLOR_RGB2HSV)
    hsv[..., 0] = (hsv[..., 0] + 360 * turn) % 360
    return np.clip(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB), 0, 1).reshape(pixels.shape)


_CHANGES = (
    lambda pixels, factor: _blend(pixels, np.float32(0), factor),
    lambda pixels, factor: _blend(pixels, _grey(pixels).mean(axis=(1, 2, 3), keepdims=True), factor),
    lambda pixels, factor: _blend(pixels, _grey(pixels), factor),
    _hue,
)
