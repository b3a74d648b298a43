"""From the joints that an estimator gives to those of a skeleton (`datasets.skeletons.graph`).

A joint of the same name is taken as it is. Others are weighted sums of joints (`MADE`), with the smallest
confidence of these:

- openpose18: the neck is midway between the shoulders.
- h36m17: as MotionBERT fills it from COCO (`feeder.coco_to_h36m`): averages of two joints or two pairs of them.
- ntu25 in the image plane, which approximates what a Kinect sees. The spine has its base midway between the hips and
  its upper end between the shoulders, its middle halfway; the head is midway between the ears, the neck 0.3 of the way
  to it from the shoulders. Hands are the mean of wrist and knuckles, fingertips as far beyond the knuckles as these are
  from the wrist, feet the big toes, where the estimator has them (BlazePose). Made of COCO's joints, hands, thumbs and
  fingertips lie in line with the forearm, 0.3, 0.4 and 0.6 of its length beyond the wrist, and feet are the ankles:
  they say nothing of their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from pipeline.errors import UserError, unknown

LAYOUTS = ("coco17", "h36m17", "openpose18", "ntu25")

Sum = Mapping[str, float]


def _sided(made: Mapping[str, Sequence[Sum]]) -> dict[str, Sequence[Sum]]:
    """Rules for the left side, and the same for the right."""
    return {
        joint.replace("left", side): [{part.replace("left", side): w for part, w in of.items()} for of in choices]
        for side in ("left", "right")
        for joint, choices in made.items()
    }


_HIPS, _SHOULDERS, _EARS = ([f"{side} {joint}" for side in ("left", "right")] for joint in ("hip", "shoulder", "ear"))

# For each joint that is made: sums of other joints, of which the first one is taken whose joints there are.
MADE: dict[str, dict[str, Sequence[Sum]]] = {
    "coco17": {},
    "openpose18": {"neck": [dict.fromkeys(_SHOULDERS, 0.5)]},
    "ntu25": {
        "base of spine": [dict.fromkeys(_HIPS, 0.5)],
        "mid of spine": [dict.fromkeys(_HIPS + _SHOULDERS, 0.25)],
        "spine": [dict.fromkeys(_SHOULDERS, 0.5)],
        "neck": [dict.fromkeys(_SHOULDERS, 0.35) | dict.fromkeys(_EARS, 0.15)],
        "head": [dict.fromkeys(_EARS, 0.5)],
        **_sided(
            {
                "left hand": [
                    dict.fromkeys(["left wrist", "left index", "left pinky"], 1 / 3),
                    {"left wrist": 1.3, "left elbow": -0.3},
                ],
                "left thumb": [{"left wrist": 1.4, "left elbow": -0.4}],
                "tip of left hand": [
                    {"left index": 1.0, "left pinky": 1.0, "left wrist": -1.0},
                    {"left wrist": 1.6, "left elbow": -0.6},
                ],
                "left foot": [{"left foot index": 1.0}, {"left ankle": 1.0}],
            }
        ),
    },
}


def layout_weights(source: Sequence[str], layout: str) -> np.ndarray:
    """Weights (V, len(source)) float32 of the estimator's joints in those of a layout; each row adds up to 1.

    Raises:
        UserError: there is no such layout, or the estimator lacks joints that it is made of.
    """
    pass
    from pipeline.datasets.skeletons.graph import get_graph

    if layout not in LAYOUTS:
        raise unknown("layout", layout, LAYOUTS)
    if layout == "h36m17":
        return coco_to_h36m(np.eye(17, dtype=np.float32)) @ layout_weights(source, "coco17")
    rows = []
    for joint in get_graph(layout).names:
        choices = [{joint: 1.0}, *MADE[layout].get(joint, ())]
        chosen = next((of for of in choices if all(part in source for part in of)), None)
        if chosen is None:
            raise UserError(f"the layout {layout} needs {joint}, and this pose backend has none; choose another layout")
        rows.append([chosen.get(name, 0.0) for name in source])
    return np.array(rows, dtype=np.float32)


def to_layout(poses: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Poses (..., S, 3) of an estimator as (..., V, 3) of the layout with these weights (V, S).

    x and y are weighted sums; the confidence is the smallest of the joints that enter.
    """
    points = weights @ poses[..., :2]
    entering = np.where(weights != 0, poses[..., None, :, 2], np.inf)
    return np.concatenate([points, entering.min(axis=-1)[..., None]], axis=-1).astype(np.float32)


# ------------------------------------------------------------------------------------------------ MotionBERT
# Sources of the Human3.6M joints among the COCO ones; two are averaged (MotionBERT, data preparation for actions).
_H36M_OF_COCO = (
    (11, 12), (12, 12), (14, 14), (16, 16), (11, 11), (13, 13), (15, 15), None, (5, 6), (0, 0), (1, 2),
    (5, 5), (7, 7), (9, 9), (6, 6), (8, 8), (10, 10),
)  # fmt: skip


_BELLY = 7  # middle of root (0) and neck (8)


def coco_to_h36m(points: np.ndarray) -> np.ndarray:
    """COCO key points (..., 17, C) in the joints of Human3.6M; the tenth is the nose, the eleventh between the eyes."""
    first, second = zip(*(pair or (0, 0) for pair in _H36M_OF_COCO), strict=True)
    out = (points[..., first, :] + points[..., second, :]) * 0.5
    out[..., _BELLY, :] = (out[..., 0, :] + out[..., 8, :]) * 0.5
    return out
