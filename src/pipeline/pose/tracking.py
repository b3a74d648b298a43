"""Which poses of the frames of a clip are one person.

The rule, greedy: the poses of a frame are compared with the last pose of every track so far (`similarity`, the object
key-point similarity of COCO with one constant); the most similar pair is joined, then the next, down to `SAME`; a pose
that is left over begins a track. A pose in the place of a surer one of its frame is dropped before, and so in the end
is a track with fewer than a tenth of the frames of the longest. The tracks, those with the highest summed confidence
first, become persons: each is the first person who is not yet seen in any of its frames; what fits nowhere is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from pipeline.datasets.skeletons.definition import SkeletonPolicy
from pipeline.datasets.skeletons.ntu import Body
from pipeline.datasets.skeletons.preprocess import assign_actors

SAME = 0.1  # least similarity of two poses of a track
REPEATED = 0.7  # overlap of boxes (intersection over union) from which two poses of a frame are one
SHORT = 0.1  # of the frames of the longest track
REACH = 0.2  # distance of a joint, in sizes of a person, at which similarity falls to exp(-1/2)


@dataclass
class _Track:
    frames: list[int] = field(default_factory=list)
    poses: list[np.ndarray] = field(default_factory=list)

    @property
    def weight(self) -> float:
        """Summed confidence."""
        return float(sum(pose[:, 2].mean() for pose in self.poses))


def similarity(one: np.ndarray, other: np.ndarray) -> float:
    """How much two poses (V, 3) are the same, 0 to 1.

    The mean over joints, weighted by both confidences, of exp(-d^2 / (2 s^2 REACH^2)), d the distance of the joint and
    s^2 the area of the larger pose's box.
    """
    weight = np.sqrt(one[:, 2] * other[:, 2])
    if not weight.any():
        return 0.0
    area = max(float(np.prod(np.ptp(pose[pose[:, 2] > 0, :2], axis=0))) for pose in (one, other))
    distance = ((one[:, :2] - other[:, :2]) ** 2).sum(axis=1)
    return float(np.average(np.exp(-distance / (2 * max(area, 1.0) * REACH**2)), weights=weight))


def distinct(poses: np.ndarray) -> list[int]:
    """Which poses (N, V, 3) of a frame to keep, the surest first: those that are in the place of no surer one."""
    kept: list[int] = []
    for number in np.argsort(-poses[..., 2].mean(axis=1), kind="stable").tolist():
        if all(overlap(poses[number], poses[other]) < REPEATED for other in kept):
            kept.append(number)
    return kept


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    """Intersection over union of the boxes around two poses (V, 3)."""
    lows, highs = (np.stack([edge(pose[:, :2], axis=0) for pose in (one, other)]) for edge in (np.min, np.max))
    shared = np.prod((highs.min(axis=0) - lows.max(axis=0)).clip(0))
    return float(shared / max(np.prod(highs - lows, axis=1).sum() - shared, 1e-9))


def track(frames: Sequence[np.ndarray], persons: int = 2) -> np.ndarray:
    """Poses (N, V, 3) of every frame -> persons (M, T, V, 3) float32, zeros where one is not seen; M <= persons.

    The first person is the one seen longest and most surely; M is 0 where no frame has a pose.
    """
    tracks: list[_Track] = []
    for number, poses in enumerate(frames):
        _extend(tracks, poses[distinct(poses)], number)
    if not tracks:
        return np.zeros((0, len(frames), *frames[0].shape[1:]), dtype=np.float32)
    longest = max(len(made.frames) for made in tracks)
    kept = sorted((made for made in tracks if len(made.frames) >= SHORT * longest), key=lambda made: -made.weight)
    bodies = [Body("", np.array(made.frames), np.array(made.poses, dtype=np.float32)) for made in kept]
    joined = assign_actors(bodies, len(frames), SkeletonPolicy(bodies=persons))
    return joined[joined.any(axis=(1, 2, 3))]


def _extend(tracks: list[_Track], poses: np.ndarray, number: int) -> None:
    """Join the poses of frame `number` to the tracks, or begin new ones."""
    table = np.array([[similarity(made.poses[-1], pose) for pose in poses] for made in tracks])
    table = table.reshape(len(tracks), len(poses))
    left = set(range(len(poses)))
    while table.size and table.max() >= SAME:
        which, pose = np.unravel_index(int(table.argmax()), table.shape)
        tracks[which].frames.append(number)
        tracks[which].poses.append(poses[pose])
        table[which], table[:, pose] = -1, -1
        left.discard(int(pose))
    tracks += [_Track([number], [poses[pose]]) for pose in sorted(left)]
