"""From the bodies that a sensor tracked to clean, centred arrays of persons.

The steps are those of SGN's scripts (Zhang et al., CVPR 2020), which CTR-GCN, InfoGCN and HD-GCN share: bodies
that are noise are dropped, the others are assigned to two persons, frames without a person are cut, and the
middle of the spine in the first frame becomes the origin. Where those scripts are wrong, the right form is the
default of `SkeletonPolicy` and the released one is a named value.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pipeline.datasets.skeletons.definition import SkeletonPolicy
from pipeline.datasets.skeletons.ntu import Body, Recording
from pipeline.guarded import Unreadable

# Heuristics of SGN's denoising.
NOISE_FRAMES = 11  # a body seen in no more frames than this is noise
SPREAD = 0.8  # a pose wider than this times its height is doubtful
SPREAD_SHARE = 0.69754  # a body with this share of doubtful poses is noise


RELEASED = SkeletonPolicy(gap="close", actors="hull", single="copy", alignment="axes_released")
"""What InfoGCN's scripts make of NTU RGB+D 120."""


class Pose(NamedTuple):
    """Persons of a clip as a reader gives them: joints (M, T, V, C) float32, zeros where a person is absent.

    size: (height, width) in pixels of the video of 2D poses; (0, 0) where there is none.
    """

    joints: np.ndarray
    size: tuple[int, int] = (0, 0)


def prepare_clip(clip: Recording | Pose, policy: SkeletonPolicy, spatial: int = 3) -> np.ndarray:
    """Clean persons (M, T, V, C) float32 of a clip, 1 <= M <= policy.bodies, each frame with at least one.

    spatial: how many of the C numbers of a joint are coordinates; the rest (a confidence) is left as it is.
    Raises Unreadable when nothing is left or a number is not finite.
    """
    if isinstance(clip, Recording):
        joints = assign_actors(denoise(clip.bodies, policy), clip.frames, policy)
    else:
        joints = clip.joints[: policy.bodies].astype(np.float32)
        if not np.isfinite(joints).all():
            raise Unreadable(f"{int((~np.isfinite(joints)).any((0, 2, 3)).sum())} frames with non-finite numbers")
    present = joints.any(axis=(2, 3))
    if not present.any():
        raise Unreadable("no body in any frame")
    joints = joints[present.any(axis=1)][:, present.any(axis=0)]
    return centre(joints, policy.center, spatial) if policy.origin == "first" else joints


# ------------------------------------------------------------------------------------------- tracked bodies
def motion(joints: np.ndarray) -> float:
    """How much the joints (n, V, 3) of a body are spread over space and time: the sum of the variances."""
    return float(joints.reshape(-1, 3).var(axis=0, dtype=np.float64).sum())


def denoise(bodies: Sequence[Body], policy: SkeletonPolicy) -> list[Body]:
    """Bodies that are no noise, the one with the most motion first; a single body is never dropped.

    Where every body is short the released script fails; here all of them are kept.
    """
    if len(bodies) == 1:
        return list(bodies)
    moves = {body.id: motion(body.joints) for body in bodies}
    kept = list(bodies)
    if policy.denoise == "ntu":
        kept = [body for body in kept if len(body.frames) > NOISE_FRAMES] or kept
        for body in tuple(kept):
            if len(kept) == 1:
                break
            low, high = body.joints[..., :2].min(axis=1), body.joints[..., :2].max(axis=1)
            wide, tall = (high - low).T
            plausible = wide <= SPREAD * tall
            if (~plausible).mean() >= SPREAD_SHARE:
                kept.remove(body)
            elif not plausible.all():
                moves[body.id] = min(moves[body.id], motion(body.joints[plausible]))
    return sorted(kept, key=lambda body: -moves[body.id])


def seen_in(body: Body, gap: str) -> np.ndarray:
    """Frames (n,) in which a body is placed under a gap policy."""
    return body.frames if gap == "keep" else body.frames[0] + np.arange(len(body.frames))


def assign_actors(bodies: Sequence[Body], frames: int, policy: SkeletonPolicy) -> np.ndarray:
    """Persons (policy.bodies, frames, V, 3) from bodies in order of their motion.

    Each body joins the first person with which it does not overlap; one that overlaps with all is left out.
    """
    persons = np.zeros((policy.bodies, frames, *bodies[0].joints.shape[1:]), dtype=np.float32)
    taken = np.zeros((policy.bodies, frames), dtype=bool)
    hulls: list[tuple[int, int] | None] = [None] + [(0, 0)] * (policy.bodies - 1)
    for body in bodies:
        places = seen_in(body, policy.gap)
        first, last = int(places[0]), int(places[-1])
        for m in range(policy.bodies):
            hull = hulls[m]
            if policy.actors == "frames":
                free = not taken[m, places].any()
            else:
                free = hull is None or min(hull[1], last) - max(hull[0], first) <= 0
            if free:
                persons[m, places] = body.joints
                taken[m, places] = True
                hulls[m] = (first, last) if hull is None else (min(hull[0], first), max(hull[1], last))
                break
    return persons


# ------------------------------------------------------------------------------------------------- geometry
def centre(joints: np.ndarray, joint: int, spatial: int = 3) -> np.ndarray:
    """Persons (M, T, V, C) with `joint` of the first person's first frame as the origin.

    Absent persons, and joints without confidence where there is one, stay zero.
    """
    present = joints.any(axis=(2, 3))
    first = int(present[0].argmax())
    known = present[..., None, None] if spatial == joints.shape[-1] else joints[..., spatial:].any(-1, keepdims=True)
    out = joints.copy()
    out[..., :spatial] = np.where(known, joints[..., :spatial] - joints[0, first, joint, :spatial], 0)
    return out


def show(joints: np.ndarray, policy: SkeletonPolicy) -> np.ndarray:
    """Stored persons (M, T, V, C) as models see them: aligned, (policy.bodies, T, V, C)."""
    if policy.alignment != "none":
        joints = align(joints, policy.axes, policy.alignment)
    m = len(joints)
    if m >= policy.bodies:
        return joints[: policy.bodies]
    if policy.single == "copy" and m == 1:
        return np.repeat(joints, policy.bodies, axis=0)
    out = np.zeros((policy.bodies, *joints.shape[1:]), dtype=joints.dtype)
    out[:m] = joints
    return out


def align(joints: np.ndarray, axes: Sequence[int], how: str) -> np.ndarray:
    """Every person of (M, T, V, 3) in the frame of its own body: x along the hips, z along the spine.

    how: axes or axes_released, see `SkeletonPolicy.alignment`. A person whose axes cannot be told (joints that
    coincide) is left as it is, or made zero by axes_released.
    """
    turned = np.zeros_like(joints) if how == "axes_released" else joints.copy()
    for person, out in zip(joints, turned, strict=True):
        present = person.any(axis=(1, 2))
        frame = 0 if how == "axes_released" or not present.any() else int(present.argmax())
        basis = body_axes(person[frame], axes, mirrored=how == "axes_released")
        if basis is not None:
            np.matmul(person, basis.T, out=out)
    return turned


def body_axes(pose: np.ndarray, axes: Sequence[int], mirrored: bool = False) -> np.ndarray | None:
    """Rows x, y, z (3, 3) of a body's own frame in one pose (V, 3): hips made orthogonal to the spine, the third
    axis, spine. Determinant 1, or -1 when `mirrored`. None where a length is zero.
    """
    low, high, right, left = (pose[joint].astype(np.float64) for joint in axes)
    spine, hips = high - low, left - right
    if not (length := np.linalg.norm(spine)):
        return None
    spine /= length
    hips -= (spine @ hips) * spine
    if not (length := np.linalg.norm(hips)):
        return None
    hips /= length
    third = np.cross(hips, spine) if mirrored else np.cross(spine, hips)
    return np.stack([hips, third, spine]).astype(np.float32)


__all__ = [
    "RELEASED",
    "Pose",
    "SkeletonPolicy",
    "align",
    "assign_actors",
    "body_axes",
    "centre",
    "denoise",
    "motion",
    "prepare_clip",
    "seen_in",
    "show",
]
