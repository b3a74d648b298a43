"""From the frames of a batch, as the loader gives them, to what a network takes; on the model's device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.model import BaseDataPreprocessor
from torch import Tensor

from pipeline.datasets.transforms import normalise, normalise_changed

COLOURS = "_colours"
"""Key of the colours of the frames `KEY`, KEY + COLOURS: how they change (`transforms.draw_colours`)."""


class Pixels(BaseDataPreprocessor):
    """Brings batches to the device and normalises what is uint8 in them, frames (..., H, W, 3) -> (..., 3, H, W).

    Everything else stays as it is. Frames (E, M, T, H, W, 3) with colours (E, M, 9) are changed by these before.

    Args:
        mean, std: of RGB in [0, 1].
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__(non_blocking=True)
        for name, values in (("mean", mean), ("std", std)):
            values = torch.tensor(values, dtype=torch.float32)[:, None, None]
            self.register_buffer(name, values, persistent=False)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.mean.device

    def pixels(self, frames: Tensor, colours: Tensor | None = None) -> Tensor:
        """Frames as a network takes them, float32 on the device."""
        frames = frames.to(self.device, non_blocking=True)
        if colours is None:
            return normalise(frames, self.mean, self.std)
        changed = normalise_changed(frames.flatten(0, 1), colours.flatten(0, 1), self.mean, self.std)
        return changed.unflatten(0, frames.shape[:2])

    def forward(self, data: dict[str, Any], training: bool = False) -> dict[str, Any]:
        colours = {key: value for key, value in data.items() if key.endswith(COLOURS)}
        moved = self.cast_data({key: value for key, value in data.items() if key not in colours})
        return {key: self._each(value, colours.get(key + COLOURS)) for key, value in moved.items()}

    def _each(self, value: Any, colours: Tensor | None) -> Any:
        if isinstance(value, Tensor):
            return self.pixels(value, colours) if value.dtype == torch.uint8 else value
        return [self._each(part, None) for part in value] if isinstance(value, list | tuple) else value
