"""An articulated figure of 25 joints, moved by forward kinematics and seen by a pinhole camera.

Joint order is that of NTU RGB+D. Coordinates are those of a camera looking along +z: x to the right of the
image, y up, z away from the camera, metres. At rest the figure stands on the floor (y = 0), faces the camera
(-z) and has its left side at +x. A *pose* is a vector of `len(POSE)` numbers, metres and degrees; any pose
keeps all bone lengths.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

JOINTS = (
    "base of spine", "middle of spine", "neck", "head",
    "left shoulder", "left elbow", "left wrist", "left hand",
    "right shoulder", "right elbow", "right wrist", "right hand",
    "left hip", "left knee", "left ankle", "left foot",
    "right hip", "right knee", "right ankle", "right foot",
    "spine", "tip of left hand", "left thumb", "tip of right hand", "right thumb",
)  # fmt: skip
PARENTS = np.array(
    [-1, 0, 20, 2, 20, 4, 5, 6, 20, 8, 9, 10, 0, 12, 13, 14, 0, 16, 17, 18, 1, 7, 7, 11, 11], dtype=np.int64
)
# Parents before children, so that one pass resolves the tree.
ORDER = (0, 1, 20, 2, 3, 4, 5, 6, 7, 21, 22, 8, 9, 10, 11, 23, 24, 12, 13, 14, 15, 16, 17, 18, 19)

# Offset of each joint from its parent at rest, metres (an adult of about 1.75 m).
_REST = np.array(
    [
        [0, 0, 0], [0, 0.26, 0], [0, 0.08, 0], [0, 0.18, 0],
        [0.19, -0.02, 0], [0, -0.29, 0], [0, -0.25, 0], [0, -0.08, 0],
        [-0.19, -0.02, 0], [0, -0.29, 0], [0, -0.25, 0], [0, -0.08, 0],
        [0.10, -0.04, 0], [0, -0.42, 0], [0, -0.40, 0], [0.02, -0.05, -0.12],
        [-0.10, -0.04, 0], [0, -0.42, 0], [0, -0.40, 0], [-0.02, -0.05, -0.12],
        [0, 0.24, 0], [0, -0.07, 0], [-0.03, -0.03, -0.03], [0, -0.07, 0], [0.03, -0.03, -0.03],
    ],
    dtype=np.float64,
)  # fmt: skip
_ARM_BONES = (5, 6, 7, 9, 10, 11, 21, 22, 23, 24)
_LEG_BONES = (13, 14, 15, 17, 18, 19)
_TRUNK_BONES = (1, 20, 2, 3)
_SHOULDERS, _HIPS = (4, 8), (12, 16)

# Degrees of freedom. `elev`ation of a limb: 0 hangs down, 90 is level, 180 points up; `azim`uth is the
# direction in which it is elevated: 0 to its own outer side, 90 to the front, 180 across the body. `flex`
# bends the elbow further in the direction of `azim + turn`; `knee` bends backwards. `jump` lifts the figure
# off the floor.
POSE = (
    "x", "jump", "yaw", "roll", "bend", "lean", "nod",
    "left_arm_elev", "left_arm_azim", "left_arm_flex", "left_arm_turn",
    "right_arm_elev", "right_arm_azim", "right_arm_flex", "right_arm_turn",
    "left_leg_elev", "left_leg_azim", "left_leg_knee",
    "right_leg_elev", "right_leg_azim", "right_leg_knee",
)  # fmt: skip
INDEX = {name: i for i, name in enumerate(POSE)}
IN_METRES = np.array([name in ("x", "jump") for name in POSE])


@dataclass(frozen=True)
class Body:
    """Rest offsets (25, 3) in metres and a factor for the thickness of the limbs."""

    offsets: np.ndarray
    girth: float = 1.0


def make_body(rng: np.random.Generator | None = None, spread: float = 1.0) -> Body:
    """A body of average shape, or a random one; `spread` scales the deviation from the average."""
    offsets = _REST.copy()
    if rng is None:
        return Body(offsets)
    arms, legs, trunk, shoulders, hips, girth = 1 + spread * rng.uniform(-1, 1, 6) * (
        0.07, 0.08, 0.06, 0.12, 0.15, 0.18
    )  # fmt: skip
    for bones, factor in ((_ARM_BONES, arms), (_LEG_BONES, legs), (_TRUNK_BONES, trunk)):
        offsets[list(bones)] *= factor
    offsets[list(_SHOULDERS)] *= shoulders
    offsets[list(_HIPS)] *= hips
    return Body(offsets, float(girth))


def _rotation(axis: int, degrees: np.ndarray) -> np.ndarray:
    """Rotation matrices (T, 3, 3) about coordinate axis 0, 1 or 2 by `degrees` (T,)."""
    angle = np.deg2rad(np.asarray(degrees, dtype=np.float64))
    c, s = np.cos(angle), np.sin(angle)
    i, j = (axis + 1) % 3, (axis + 2) % 3
    out = np.zeros((*angle.shape, 3, 3))
    out[..., axis, axis] = 1
    out[..., i, i] = out[..., j, j] = c
    out[..., i, j], out[..., j, i] = -s, s
    return out


def _swing(side: int, elevation: np.ndarray, azimuth: np.ndarray) -> np.ndarray:
    """Rotation (T, 3, 3) of a hanging bone to `elevation` towards `azimuth`; side +1 left, -1 right."""
    about = _rotation(1, side * azimuth)
    return about @ _rotation(2, side * elevation) @ np.swapaxes(about, -1, -2)


def forward_kinematics(poses: np.ndarray, body: Body) -> tuple[np.ndarray, np.ndarray]:
    """Joints (T, 25, 3), metres, and the global rotations (T, 25, 3, 3) of the bones that end in them.

    `poses` is (T, len(POSE)). The lowest joint touches the floor in every frame, unless the pose says jump.
    """
    p = {name: poses[:, i] for name, i in INDEX.items()}
    frames = len(poses)
    local: dict[int, np.ndarray] = {}
    # The trunk bends in two equal parts, which looks like a back rather than a hinge.
    spine = _rotation(2, -p["lean"] / 2) @ _rotation(0, -p["bend"] / 2)
    local[1] = local[20] = spine
    local[3] = _rotation(0, -p["nod"])
    for side, name, elbow, wrist, knee, ankle in ((1, "left", 5, 6, 13, 14), (-1, "right", 9, 10, 17, 18)):
        azimuth = p[f"{name}_arm_azim"]
        local[elbow] = _swing(side, p[f"{name}_arm_elev"], azimuth)
        local[wrist] = _swing(side, p[f"{name}_arm_flex"], azimuth + p[f"{name}_arm_turn"])
        local[knee] = _swing(side, p[f"{name}_leg_elev"], p[f"{name}_leg_azim"])
        local[ankle] = _swing(side, p[f"{name}_leg_knee"], np.full(frames, -90.0))
    turned = np.empty((frames, 25, 3, 3))
    joints = np.zeros((frames, 25, 3))
    turned[:, 0] = _rotation(1, p["yaw"]) @ _rotation(2, -p["roll"])
    for j in ORDER[1:]:
        parent = PARENTS[j]
        turned[:, j] = turned[:, parent] @ local[j] if j in local else turned[:, parent]
        joints[:, j] = joints[:, parent] + turned[:, j] @ body.offsets[j]
    joints[:, :, 0] += p["x"][:, None]
    joints[:, :, 1] += (p["jump"] - joints[:, :, 1].min(axis=1))[:, None]
    return joints, turned


@dataclass(frozen=True)
class Camera:
    """Where the figure is seen from. Angles in degrees; `shift` in parts of the image; `zoom` 1 shows
    2.45 m.
    """

    yaw: float = 0.0
    pitch: float = 6.0
    zoom: float = 1.0
    shift: tuple[float, float] = (0.0, 0.0)
    distance: float = 3.6
    height: float = 1.0

    def rotation(self) -> np.ndarray:
        """(3, 3) rotation from the world to the camera's axes."""
        return _rotation(0, np.array(-self.pitch)) @ _rotation(1, np.array(self.yaw))

    def view(self, joints: np.ndarray) -> np.ndarray:
        """World points (..., 3) as seen from the camera: x right, y up, z depth, metres."""
        seen = (joints - (0.0, self.height, 0.0)) @ self.rotation().T
        seen[..., 2] += self.distance
        return seen

    def focal(self, size: int) -> float:
        """Focal length in pixels of a square image of `size` pixels."""
        return self.zoom * size * self.distance / 2.45

    def project(self, points: np.ndarray, size: int) -> np.ndarray:
        """Pixel positions (..., 2) of camera points (..., 3)."""
        depth = np.maximum(points[..., 2:], 0.3)
        centre = size * (0.5 + np.asarray(self.shift))
        return centre + self.focal(size) * points[..., :2] * (1.0, -1.0) / depth
