"""From stored frames to what a network takes: crop, flip, colour jitter, normalisation.

The host chooses and copies pixels (`ClipTransform`) and draws all random numbers; the arithmetic on them (`normalise`,
`change_colours`) is for the device, some clips at a time. So frames travel as uint8, a quarter of the bytes.

MMAction2's own RandomCrop, Flip and ColorJitter draw from numpy's global state, which other code in a
worker changes; an episode must depend on its seed alone, so these few lines take a generator.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from pipeline.errors import UserError

# Of [0, 1] RGB.
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

BRIGHTNESS, CONTRAST, SATURATION, HUE, GRAYSCALE = 0.5, 0.5, 0.5, 0.25, 0.3  # CLIP-FSAR, Kinetics-100
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as OpenCV's and PIL's grey


@dataclass(frozen=True)
class ClipTransform:
    """Cuts the square that a network sees out of uint8 RGB frames (T, H, W, 3): uint8 (T, crop, crop, 3).

    crop: side of the square, in pixels: at one random place for all frames when `train` (at a place of its own for
    each frame if `per_frame`, as Task-Adapter's released code), else from the centre. flip: probability of mirroring
    the whole clip, in training.

    Calling it raises UserError when the frames are smaller than the crop.
    """

    crop: int
    train: bool = False
    flip: float = 0.0
    per_frame: bool = False

    def __call__(self, frames: np.ndarray, rng: np.random.Generator | None = None) -> Tensor:
        if self.train and rng is None:
            raise ValueError("a training transform needs a random generator")
        mirrored = bool(self.train and self.flip and rng.random() < self.flip)
        if mirrored:
            frames = frames[:, :, ::-1]
        cut = self._cut(frames, rng)
        return torch.from_numpy(mirror(cut[:, :, ::-1]) if mirrored else np.ascontiguousarray(cut))

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


def mirror(frames: np.ndarray) -> np.ndarray:
    """Frames (T, H, W, 3) mirrored, as a copy; numpy's own copy of a mirrored view takes some twenty times as long."""
    return np.stack([cv2.flip(np.ascontiguousarray(frame), 1) for frame in frames])


def normalise(frames: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """uint8 RGB frames (..., H, W, 3) as float32 (..., 3, H, W); mean and std (3, 1, 1) are of RGB in [0, 1]."""
    return _standardise(_planes(frames), mean, std)


def normalise_changed(frames: Tensor, colours: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """`normalise` of clips (B, T, H, W, 3) whose colours are changed before; colours (B, 9) as `draw_colours` gives."""
    return _standardise(change_colours(_planes(frames), colours), mean, std)


def _planes(frames: Tensor) -> Tensor:
    """uint8 (..., H, W, 3) -> float32 (..., 3, H, W) in [0, 1]."""
    planes = frames.movedim(-1, -3).to(torch.float32, memory_format=torch.contiguous_format)
    return planes.div_(255)


def _standardise(planes: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    return planes.sub_(mean).div_(std)


# ----------------------------------------------------------------------------------------------- colours
def draw_colours(rng: np.random.Generator) -> np.ndarray:
    """How the colours of a clip change, all its frames alike: float32 (9,).

    1 with probability 0.3 for grey; factors of brightness, contrast and saturation in 0.5..1.5; a turn of the hue of
    up to a quarter either way; and the order of these four (CLIP-FSAR's queries on Kinetics-100).
    """
    grey = rng.random() < GRAYSCALE
    factors = [rng.uniform(1 - most, 1 + most) for most in (BRIGHTNESS, CONTRAST, SATURATION)]
    return np.array([grey, *factors, rng.uniform(-HUE, HUE), *rng.permutation(4)], dtype=np.float32)


def change_colours(planes: Tensor, colours: Tensor) -> Tensor:
    """Clips float32 (B, T, 3, H, W) in [0, 1] with other colours, again in [0, 1]; colours (B, 9) as `draw_colours`.

    `colours` stays on the host, so that nothing waits for the device; clips that have the same change in turn are
    changed together.
    """
    changed = planes.clone()
    grey = colours[:, 0].nonzero()[:, 0].to(planes.device)
    changed[grey] = _grey(planes[grey]).expand(-1, -1, 3, -1, -1)
    for turn in colours[:, 5:].T:
        for number, change in enumerate(CHANGES):
            rows = (turn == number).nonzero()[:, 0]
            if len(rows):
                amount = colours[rows, 1 + number].to(planes.device)[:, None, None, None, None]
                rows = rows.to(planes.device)
                changed[rows] = change(changed[rows], amount)
    return changed


def _grey(planes: Tensor) -> Tensor:
    """(B, T, 1, H, W)"""
    red, green, blue = planes.split(1, dim=2)
    return _LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue


def _blend(planes: Tensor, other: Tensor | float, factor: Tensor) -> Tensor:
    return (factor * planes + (1 - factor) * other).clamp_(0, 1)


def _brightness(planes: Tensor, factor: Tensor) -> Tensor:
    return _blend(planes, 0.0, factor)


def _contrast(planes: Tensor, factor: Tensor) -> Tensor:
    return _blend(planes, _grey(planes).mean((2, 3, 4), keepdim=True), factor)


def _saturation(planes: Tensor, factor: Tensor) -> Tensor:
    return _blend(planes, _grey(planes), factor)


def _hue(planes: Tensor, turn: Tensor) -> Tensor:
    """Turn the hue of every pixel; its largest and smallest value among red, green and blue stay."""
    red, green, blue = planes.split(1, dim=2)
    most, least = planes.amax(2, keepdim=True), planes.amin(2, keepdim=True)
    spread = most - least
    # The hue in sixths of the circle, from red over green to blue; a grey pixel has none, so any number will do.
    sixths = torch.where(
        most == red,
        green - blue,
        torch.where(most == green, blue - red + 2 * spread, red - green + 4 * spread),
    ) / spread.clamp_min(torch.finfo(planes.dtype).tiny)
    sixths = sixths + 6 * turn
    # Each colour lies `spread` below the largest value in the two sixths opposite its own, and falls or rises between.
    away = torch.cat([torch.remainder(start + sixths, 6) for start in (5, 3, 1)], dim=2)
    return most - spread * torch.minimum(away, 4 - away).clamp(0, 1)


CHANGES: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (_brightness, _contrast, _saturation, _hue)
"""The changes of `draw_colours`, in the order of their amounts: planes (B, T, 3, H, W) by amounts (B, 1, 1, 1, 1)."""
