"""A clip of skeletons as one picture: a row a joint, colours for what stands in its columns (SL-DML, Skeleton-DML)."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from PIL import Image

from pipeline.datasets.skeletons.feeder import SkeletonDataset
from pipeline.datasets.skeletons.store import SkeletonStore
from pipeline.errors import UserError

Layout = Literal["axes", "triples"]


def skeleton_image(joints: np.ndarray, layout: Layout) -> np.ndarray:
    """Joints (M, T, V, 3) -> (M * V, T, 3) in 0..1, the first person's joints on top.

    One minimum and maximum holds for the whole clip. axes: column t shows frame t, red, green and blue are its x, y, z.
    triples: the x of all frames, then their y, then their z, cut into threes: a column shows three consecutive numbers
    of one axis (two columns may show two axes, where T is no multiple of 3). A clip in which nothing differs is black.
    """
    rows = joints.transpose(0, 2, 3, 1).reshape(-1, 3, joints.shape[1])
    low, high = rows.min(), rows.max()
    shown = (rows - low) / (high - low) if high > low else np.zeros_like(rows)
    return shown.transpose(0, 2, 1) if layout == "axes" else shown.reshape(len(rows), -1, 3)


class ImageDataset(SkeletonDataset):
    """Clips of a store as square pictures (3, size, size, 1) in 0..1, of all their frames: (x, label, number).

    A person who is in no frame has no rows. The picture has 8 bits before it is resized, rounded down. Training turns
    it by up to `feed.turn` degrees.
    """

    def __init__(self, store: SkeletonStore, *args: object, **kwargs: object) -> None:
        super().__init__(store, *args, **kwargs)  # type: ignore[arg-type]
        if store.spatial != 3:
            raise UserError(f"{store.folder} holds 2D poses, and a picture's colours are x, y and z; take 3D skeletons")

    def __getitem__(self, item: int | tuple[int, int]) -> tuple[torch.Tensor, int, int]:
        epoch, i = item if isinstance(item, tuple) else (self.epoch, item)
        picture = self._picture(int(self.numbers[i]), self._draw(epoch, i) if self.train else None)
        x = torch.from_numpy(picture.astype(np.float32) / 255).permute(2, 0, 1).unsqueeze(-1)
        return x, int(self.labels[i]), i

    def _picture(self, number: int, rng: np.random.Generator | None) -> np.ndarray:
        joints, feed = self.store.read(number)[..., :3].astype(np.float64), self.feed
        seen = joints.any(axis=(1, 2, 3))
        pixels = (skeleton_image(joints[seen] if seen.any() else joints[:1], feed.layout) * 255).astype(np.uint8)
        picture = Image.fromarray(np.ascontiguousarray(pixels)).resize(
            (feed.size, feed.size), Image.Resampling.BILINEAR
        )
        if rng is not None and feed.turn:
            picture = picture.rotate(rng.uniform(-feed.turn, feed.turn), Image.Resampling.NEAREST)
        return np.asarray(picture)
