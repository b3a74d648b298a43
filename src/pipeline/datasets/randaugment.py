"""RandAugment (Cubuk et al., NeurIPS 2020) as FixMatch's strong view has it: some operations, then a grey square."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

CUTOUT = 0.5  # largest side of the square over that of the picture
GREY = (127, 127, 127)
Operation = Callable[[Image.Image, float], Image.Image]


def _moved(matrix: Callable[[float, int, int], tuple[float, ...]]) -> Operation:
    """An affine map; what comes from outside of the picture is grey."""
    return lambda image, v: image.transform(
        image.size, Image.Transform.AFFINE, matrix(v, *image.size), Image.Resampling.BILINEAR, fillcolor=GREY
    )


# name: (smallest, largest value, what it does). FixMatch's ranges; values are drawn evenly.
OPERATIONS: dict[str, tuple[float, float, Operation]] = {
    "autocontrast": (0, 1, lambda image, v: ImageOps.autocontrast(image)),
    "brightness": (0.05, 0.95, lambda image, v: ImageEnhance.Brightness(image).enhance(v)),
    "colour": (0.05, 0.95, lambda image, v: ImageEnhance.Color(image).enhance(v)),
    "contrast": (0.05, 0.95, lambda image, v: ImageEnhance.Contrast(image).enhance(v)),
    "equalize": (0, 1, lambda image, v: ImageOps.equalize(image)),
    "identity": (0, 1, lambda image, v: image),
    "posterize": (4, 8, lambda image, v: ImageOps.posterize(image, int(v))),
    "rotate": (-30, 30, lambda image, v: image.rotate(v, Image.Resampling.BILINEAR, fillcolor=GREY)),
    "sharpness": (0.05, 0.95, lambda image, v: ImageEnhance.Sharpness(image).enhance(v)),
    "shear_x": (-0.3, 0.3, _moved(lambda v, w, h: (1, v, 0, 0, 1, 0))),
    "shear_y": (-0.3, 0.3, _moved(lambda v, w, h: (1, 0, 0, v, 1, 0))),
    "solarize": (0, 256, lambda image, v: ImageOps.solarize(image, int(v))),
    "translate_x": (-0.3, 0.3, _moved(lambda v, w, h: (1, 0, v * w, 0, 1, 0))),
    "translate_y": (-0.3, 0.3, _moved(lambda v, w, h: (1, 0, 0, 0, 1, v * h))),
}


def rand_augment(frames: np.ndarray, operations: int, rng: np.random.Generator) -> np.ndarray:
    """Frames of a clip, uint8 RGB (T, H, W, 3), after `operations` drawn operations and the grey square, all alike.

    With 0 operations the frames are what they were.
    """
    if not operations:
        return frames
    drawn = [OPERATIONS[name] for name in rng.choice(list(OPERATIONS), operations)]
    steps = [(operation, float(rng.uniform(low, high))) for low, high, operation in drawn]
    out = []
    for frame in frames:
        image = Image.fromarray(frame)
        for operation, value in steps:
            image = operation(image, value)
        out.append(np.asarray(image))
    return _cut_out(np.stack(out), rng)


def _cut_out(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    height, width = frames.shape[1:3]
    side = round(rng.uniform(0, CUTOUT) * min(height, width))
    top, left = (int(rng.integers(room)) - side // 2 for room in (height, width))
    frames = frames.copy()
    frames[:, max(top, 0) : max(top + side, 0), max(left, 0) : max(left + side, 0)] = GREY
    return frames
