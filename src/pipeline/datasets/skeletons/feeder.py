"""What skeleton encoders are fed: cropped and resized clips for graph encoders, 2D poses for MotionBERT.

Everything random in an item depends on (seed, epoch, number of the clip) alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.utils.data import Dataset

from pipeline.datasets.skeletons.definition import Feed, SkeletonPolicy
from pipeline.datasets.skeletons.layouts import coco_to_h36m
from pipeline.datasets.skeletons.preprocess import show
from pipeline.datasets.skeletons.store import SkeletonStore
from pipeline.errors import UserError


# ------------------------------------------------------------------------------------------- graph encoders
def valid_frames(joints: np.ndarray) -> int:
    """How many frames of (M, T, V, C) are not zero: all of them, unless an alignment emptied some."""
    return int(joints.any(axis=(0, 2, 3)).sum())


def crop_length(valid: int, share: float, least: int = 64) -> int:
    """Frames of a training crop: a share of the valid ones, at least `least`, at most all."""
    return min(max(int(valid * share), least), valid)


def centre_crop(valid: int, share: float) -> tuple[int, int]:
    """First frame and end of the middle part of `valid` frames."""
    margin = int((1 - share) * valid / 2)
    return margin, valid - margin


def resize_time(joints: np.ndarray, frames: int) -> np.ndarray:
    """(M, T, V, C) at another number of frames, linear between them (pixel centres, no aligned corners)."""
    n = joints.shape[1]
    at = ((np.arange(frames) + 0.5) * (n / frames) - 0.5).clip(0)
    low = np.minimum(at.astype(np.int64), n - 1)
    high = np.minimum(low + 1, n - 1)
    weight = (at - low).astype(np.float32)[:, None, None]
    return joints[:, low] * (1 - weight) + joints[:, high] * weight


def rotation_matrix(angles: Sequence[float] | np.ndarray) -> np.ndarray:
    """Rz Ry Rx (3, 3) float32 for angles about x, y, z in radians, turning the axes (not the points)."""
    (cx, cy, cz), (sx, sy, sz) = np.cos(angles), np.sin(angles)
    about_x = np.array([[1, 0, 0], [0, cx, sx], [0, -sx, cx]])
    about_y = np.array([[cy, 0, -sy], [0, 1, 0], [sy, 0, cy]])
    about_z = np.array([[cz, sz, 0], [-sz, cz, 0], [0, 0, 1]])
    return (about_z @ about_y @ about_x).astype(np.float32)


def rotate(joints: np.ndarray, angles: Sequence[float] | np.ndarray, spatial: int = 3) -> np.ndarray:
    """All frames and persons (..., C) turned by the same angles about x, y, z; 2D poses by the last only."""
    turn = rotation_matrix(angles if spatial == 3 else (0.0, 0.0, angles[2]))[:spatial, :spatial]
    if spatial == joints.shape[-1]:
        return joints @ turn.T
    return np.concatenate([joints[..., :spatial] @ turn.T, joints[..., spatial:]], axis=-1)


class SkeletonDataset(Dataset):
    """Clips of a store for graph encoders: (x, label, number).

    x: (C, T, V, M) float32, T = feed.frames, M = policy.bodies; label: the one given for the clip; number: the
    clip's place among `numbers`. train: random crop and rotation, else the middle of the clip, as it is. Item i is
    of the epoch that `set_epoch` gave; dataset[epoch, i] names it itself (for samplers whose workers live on).
    """

    def __init__(
        self,
        store: SkeletonStore,
        numbers: Sequence[int] | np.ndarray,
        labels: Sequence[int] | np.ndarray,
        policy: SkeletonPolicy,
        feed: Feed | None = None,
        *,
        train: bool = False,
        seed: int = 0,
    ) -> None:
        self.store, self.policy, self.feed = store, policy, feed or Feed()
        self.numbers, self.labels = np.asarray(numbers, dtype=np.int64), np.asarray(labels, dtype=np.int64)
        if len(self.numbers) != len(self.labels):
            raise ValueError(f"{len(self.numbers)} clips and {len(self.labels)} labels")
        self.train, self.seed, self.epoch = train, seed, 0
        if policy.alignment != "none" and store.spatial != 3:
            raise UserError(f"{store.folder} holds 2D poses; set policy: alignment: none")

    def set_epoch(self, epoch: int) -> None:
        """Which random crops and rotations the next items have."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, item: int | tuple[int, int]) -> tuple[torch.Tensor, int, int]:
        epoch, i = item if isinstance(item, tuple) else (self.epoch, item)
        x = self._look(int(self.numbers[i]), self._draw(epoch, i) if self.train else None)
        return torch.from_numpy(np.ascontiguousarray(x.transpose(3, 1, 2, 0))), int(self.labels[i]), i

    def _draw(self, epoch: int, i: int) -> np.random.Generator:
        return np.random.default_rng(np.random.SeedSequence([self.seed, epoch, i]))

    def _look(self, number: int, rng: np.random.Generator | None) -> np.ndarray:
        """Clip `number` of the store as (M, T, V, C), with augmentation when there is a generator."""
        joints, feed = show(self.store.read(number), self.policy), self.feed
        valid = max(valid_frames(joints), 1)
        if rng is None:
            begin, end = centre_crop(valid, feed.test_crop)
        else:
            length = crop_length(valid, rng.uniform(*feed.crop), feed.min_crop)
            begin = int(rng.integers(valid - length + 1))
            end = begin + length
        x = resize_time(joints[:, begin:end], feed.frames)
        if rng is not None and feed.rotation:
            x = rotate(x, rng.uniform(-feed.rotation, feed.rotation, 3), self.store.spatial)
        return x


MIN_VISIBLE = 4  # key points with confidence that a clip must have


def image_to_camera(points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Pixels (..., 2) -> coordinates of which the longer side of the image (height, width) spans -1 to 1."""
    return points / max(size) * 2 - 1


def track_persons(points: np.ndarray) -> np.ndarray:
    """Two persons (2, T, V, 2), swapped back wherever the first one jumps to where the second was; more are cut.

    Where the first person's joints are, in sum, nearer to the second's of the frame before than to its own, the
    two are exchanged from there on.
    """
    if len(points) < 2:
        return points
    step = np.linalg.norm(points[0, 1:] - points[0, :-1], axis=-1).sum(axis=-1)
    jump = np.linalg.norm(points[0, 1:] - points[1, :-1], axis=-1).sum(axis=-1)
    swapped = np.concatenate([[0], np.cumsum(step > jump) % 2]).astype(bool)[:, None, None]
    return np.stack([np.where(swapped, points[1], points[0]), np.where(swapped, points[0], points[1])])


def resample_positions(n: int, frames: int, draws: np.ndarray | None = None) -> np.ndarray:
    """`frames` of `n` frames, int64 ascending, evenly spaced (the end is not one of them).

    draws (frames,): training, numbers in [0, 1). Where n >= frames each frame is drawn within its stride, else each
    is rounded down (draw >= 0.5) or up.
    """
    even = np.arange(frames) * (n / frames)
    if draws is None:
        return even.astype(np.int64)
    if n < frames:
        chosen = np.sort(np.where(np.asarray(draws) >= 0.5, np.floor(even), np.ceil(even)))
    else:
        chosen = even + np.asarray(draws) * (n / frames)
    return chosen.clip(0, n - 1).astype(np.int64)


def crop_scale(motion: np.ndarray, ratio: float) -> np.ndarray:
    """(..., 3) x, y, confidence -> x, y within -1 to 1 of a square `ratio` times the box of all visible key points.

    Zeros where fewer than four key points are visible, or all at one place.
    """
    visible = motion[motion[..., 2] != 0][:, :2]
    if len(visible) < MIN_VISIBLE:
        return np.zeros_like(motion)
    low, high = visible.min(axis=0), visible.max(axis=0)
    scale = float((high - low).max()) * ratio
    if not scale:
        return np.zeros_like(motion)
    out = motion.copy()
    out[..., :2] = ((motion[..., :2] - (low + high - scale) / 2) / scale - 0.5) * 2
    return out.clip(-1, 1)


def random_move(motion: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """(M, T, V, 3) turned, scaled and shifted in the image plane, changing evenly from first to last frame.

    draws (4, 2): angle in degrees, scale, shift x, shift y; at the start and at the end.
    """
    t = motion.shape[1]
    angle, scale, shift_x, shift_y = (np.linspace(start, end, t) for start, end in draws)
    angle = np.deg2rad(angle)
    cos, sin = scale * np.cos(angle), scale * np.sin(angle)
    turn = np.stack([np.stack([cos, -sin], -1), np.stack([sin, cos], -1)], -2)  # (T, 2, 2)
    out = motion.copy()
    out[..., :2] = np.einsum("tij,mtvj->mtvi", turn, motion[..., :2]) + np.stack([shift_x, shift_y], -1)[:, None]
    return out


MOVE_LOW = np.array([-10.0, 0.9, -0.1, -0.1])
MOVE_HIGH = np.array([10.0, 1.1, 0.1, 0.1])


class MotionBertDataset(SkeletonDataset):
    """2D poses of a store, COCO key points in pixels, for MotionBERT: (x (M=2, T, 17, 3), label, number).

    x, y within -1 to 1 and confidence, T = feed.frames, in the joints of Human3.6M. The released code draws the
    training frames once for all epochs; here, as everything else, anew in each.
    """

    def __init__(self, store: SkeletonStore, *args: object, **kwargs: object) -> None:
        super().__init__(store, *args, **kwargs)  # type: ignore[arg-type]
        if (store.joints, store.spatial, store.channels) != (17, 2, 3):
            raise UserError(f"{store.folder}: MotionBERT takes COCO poses, 17 joints of x, y, confidence")
        if store.manifest["policy"]["origin"] != "none":
            raise UserError(f"{store.folder}: MotionBERT takes poses in pixels; set policy: origin: none")

    def __getitem__(self, item: int | tuple[int, int]) -> tuple[torch.Tensor, int, int]:
        epoch, i = item if isinstance(item, tuple) else (self.epoch, item)
        x = self._look(int(self.numbers[i]), self._draw(epoch, i) if self.train else None)
        return torch.from_numpy(x.astype(np.float32)), int(self.labels[i]), i

    def _look(self, number: int, rng: np.random.Generator | None) -> np.ndarray:
        joints, feed = self.store.read(number)[:2], self.feed
        size = self.store.size(number)
        if not min(size):
            raise UserError(f"the clip {self.store.clips[number]} has no image size; MotionBERT needs it")
        points = coco_to_h36m(track_persons(image_to_camera(joints[..., :2], size)))
        chosen = resample_positions(joints.shape[1], feed.frames, None if rng is None else rng.random(feed.frames))
        confidence = joints[..., 2:] if feed.confidence == "released" else coco_to_h36m(joints[..., 2:])
        motion = np.concatenate([points, confidence], axis=-1)[:, chosen]
        if len(motion) == 1:
            motion = np.concatenate([motion, np.zeros_like(motion)])
        if rng is None:
            return crop_scale(motion, feed.test_scale)
        if feed.move:
            motion = random_move(motion, rng.uniform(MOVE_LOW, MOVE_HIGH, (2, 4)).T)
        return crop_scale(motion, rng.uniform(*feed.scale))
