"""BlazePose (Bazarevsky et al., 2020): a detector of persons, then 33 landmarks in a turned square around each.

The two networks are files of the mediapipe wheel, which is neither imported nor needed otherwise; LiteRT runs them.
Anchors, thresholds and squares are those of MediaPipe's graphs (modules/pose_detection, modules/pose_landmark). The
detector looks at every frame; where it misses somebody who was in the frame before, the landmarks of that frame say
where to look (MediaPipe's mode for videos does so first, and detects only when that fails).
"""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from pipeline.errors import UserError
from pipeline.pose.estimator import LOOKED_AT, needs
from pipeline.pose.tracking import distinct

_FACE = ("eye inner", "eye", "eye outer")
JOINTS = (
    "nose", *(f"left {part}" for part in _FACE), *(f"right {part}" for part in _FACE),
    "left ear", "right ear", "left mouth", "right mouth",
    *(f"{side} {part}" for part in ("shoulder", "elbow", "wrist", "pinky", "index", "thumb", "hip", "knee", "ankle",
                                    "heel", "foot index") for side in ("left", "right")),
)  # fmt: skip
FILES = {"pose_detection.tflite": "pose_detection", "pose_landmark_full.tflite": "pose_landmark"}

_DETECTED = 0.5  # least score of a detection, and of landmarks
_OVERLAP = 0.3  # detections whose faces overlap by more are one person
_MARGIN = 1.25  # side of the square by that of the circle around the body
_SIDE, _CROP = 224, 256  # pixels that the networks see
_HIP, _TOP = 33, 34  # landmarks that say where the body is: middle of the hips, and a point of the circle around it
_KERNEL = 3  # landmarks are refined in a window of 7 x 7 of the heat map


class BlazePose:
    """Persons by BlazePose's full model; confidence is its estimate that a joint is to be seen."""

    joints = JOINTS

    def __init__(self, models: str = "", device: str = "cpu") -> None:
        try:
            from ai_edge_litert.interpreter import Interpreter
        except ImportError as error:
            raise needs("ai-edge-litert", error) from None
        if device != "cpu":
            raise UserError(f"the pose backend blazepose runs on the CPU, not on {device}; use rtmpose or device cpu")
        paths = find_models(models)
        self.about = {path.name: hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in paths}
        self._detector, self._landmarks = (_Network(Interpreter, path) for path in paths)
        self._anchors = anchors()
        self._before: list[np.ndarray] = []

    def begin(self) -> None:
        """See `PoseEstimator.begin`."""
        self._before = []

    def estimate(self, frame: np.ndarray) -> np.ndarray:
        """See `PoseEstimator.estimate`."""
        detected = self._detect(frame)
        missed = [square for square in self._before if not any(same_body(square, other) for other in detected)]
        looked = [self._look(frame, square) for square in (detected + missed)[:LOOKED_AT]]
        found = np.array([landmarks for landmarks, sure in looked if sure >= _DETECTED]).reshape(-1, 39, 3)
        poses = found[:, : len(JOINTS)]
        kept = distinct(poses)
        self._before = [around(*found[i, (_HIP, _TOP), :2]) for i in kept]
        return poses[kept].astype(np.float32)

    def _detect(self, frame: np.ndarray) -> list[np.ndarray]:
        """Squares around persons, as `around` gives them, the surest first."""
        height, width = frame.shape[:2]
        whole = np.array([width / 2, height / 2, max(height, width), 0.0])
        image = crop(frame, whole, _SIDE, cv2.BORDER_CONSTANT).astype(np.float32) / 127.5 - 1
        boxes, scores = self._detector(image)
        scores = sigmoid(scores[0, :, 0])
        likely = scores >= _DETECTED
        points = (boxes[0, likely] / _SIDE).reshape(-1, 6, 2)
        points[:, [0, 2, 3, 4, 5]] += self._anchors[likely, None]  # 1 is the size of the face's box
        return [around(*to_image(points[2:4], whole)) for points in merge(points, scores[likely])[:LOOKED_AT]]

    def _look(self, frame: np.ndarray, square: np.ndarray) -> tuple[np.ndarray, float]:
        """All 39 landmarks (x, y in pixels of the frame, confidence), and how sure it is that a person is there."""
        image = crop(frame, square, _CROP, cv2.BORDER_REPLICATE).astype(np.float32) / 255
        numbers, sure, _, heat, _ = self._landmarks(image)
        numbers = numbers.reshape(-1, 5)
        points = refine(numbers[:, :2] / _CROP, sigmoid(heat[0]))
        return np.concatenate([to_image(points, square), sigmoid(numbers[:, 3:4])], axis=1), float(sure.item())


class _Network:
    """A LiteRT network: an image (S, S, 3) float32 in, its outputs in their order."""

    def __init__(self, interpreter: Any, path: Path) -> None:
        try:
            self._run = interpreter(str(path), num_threads=1)
            self._run.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            raise UserError(f"{path} is not a network that LiteRT can run ({error}); fetch it again") from None
        self._input = self._run.get_input_details()[0]["index"]
        self._outputs = [output["index"] for output in self._run.get_output_details()]

    def __call__(self, image: np.ndarray) -> list[np.ndarray]:
        self._run.set_tensor(self._input, image[None])
        self._run.invoke()
        return [self._run.get_tensor(index) for index in self._outputs]


def find_models(folder: str = "") -> list[Path]:
    """The two networks: in `folder`, or among the files of an installed mediapipe, which is not imported.

    Raises UserError when they are not there.
    """
    if folder:
        places = [Path(folder).expanduser() / name for name in FILES]
    else:
        spec = importlib.util.find_spec("mediapipe")
        roots = spec.submodule_search_locations if spec else None
        if not roots:
            raise UserError(
                "BlazePose's networks are not found: `pip install --no-deps mediapipe==0.10.14` has them, or put "
                f"{' and '.join(FILES)} in a folder and name it with --models"
            )
        places = [Path(roots[0]) / "modules" / inside / name for name, inside in FILES.items()]
    for path in places:
        if not path.is_file():
            raise UserError(f"there is no {path}; BlazePose needs it (mediapipe==0.10.14 has it)")
    return places


def sigmoid(x: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)), without overflow."""
    return 0.5 * (1 + np.tanh(0.5 * x))


def anchors() -> np.ndarray:
    """Centres (2254, 2) of the detector's anchors, x, y in 0 to 1: two at each place of grids of 28 and 14 places a
    side, six of one of 7."""
    grids = []
    for side, count in ((28, 2), (14, 2), (7, 6)):
        y, x = np.mgrid[:side, :side]
        grids.append(np.repeat((np.stack([x, y], -1).reshape(-1, 2) + 0.5) / side, count, axis=0))
    return np.concatenate(grids).astype(np.float32)


def merge(points: np.ndarray, scores: np.ndarray) -> list[np.ndarray]:
    """Detections (N, 6, 2) (centre and size of the face, four key points): those whose faces overlap are averaged.

    The mean is weighted by the scores (N,). One entry for each person, the surest first.
    """
    low, high = points[:, 0] - points[:, 1] / 2, points[:, 0] + points[:, 1] / 2
    area = np.prod(high - low, axis=1)
    left, merged = np.argsort(-scores, kind="stable"), []
    while len(left):
        sides = np.minimum(high[left[0]], high[left]) - np.maximum(low[left[0]], low[left])
        shared = np.prod(sides.clip(0), axis=1)
        same = shared / np.maximum(area[left[0]] + area[left] - shared, 1e-9) > _OVERLAP
        same[0] = True
        merged.append(np.average(points[left[same]], axis=0, weights=scores[left[same]]))
        left = left[~same]
    return merged


def around(centre: np.ndarray, top: np.ndarray) -> np.ndarray:
    """The square (x, y, side, angle) of a body: around `centre`, turned so that `top` is above it."""
    x, y = top - centre
    return np.array([*centre, 2 * np.hypot(x, y) * _MARGIN, np.pi / 2 - np.arctan2(-y, x)])


def same_body(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether the centres of two squares are near each other: nearer than a fifth of a body's height or so."""
    return bool(np.hypot(*(one[:2] - other[:2])) < 0.15 * max(one[2], other[2]))


def to_image(points: np.ndarray, square: np.ndarray) -> np.ndarray:
    """Points (..., 2), 0 to 1 within a square, in pixels of the image."""
    x, y, side, angle = square
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    return (points - 0.5) @ turn * side + (x, y)


def crop(frame: np.ndarray, square: np.ndarray, size: int, border: int) -> np.ndarray:
    """The square of the frame, upright, as an image of `size` x `size` pixels."""
    corners = to_image(np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), square).astype(np.float32)
    there = np.array([[0, 0], [size, 0], [0, size]], dtype=np.float32)
    return cv2.warpAffine(
        frame, cv2.getAffineTransform(corners, there), (size, size), flags=cv2.INTER_LINEAR, borderMode=border
    )


def refine(points: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Landmarks (V, 2), 0 to 1, moved to the centre of the heat (S, S, V) in a window around them, where it is hot."""
    size, out = heat.shape[0], points.copy()
    for joint, (column, row) in enumerate(np.floor(points * size).astype(int)):
        if not (0 <= column < size and 0 <= row < size):
            continue
        top, left = max(row - _KERNEL, 0), max(column - _KERNEL, 0)
        window = heat[top : row + _KERNEL + 1, left : column + _KERNEL + 1, joint]
        if window.max() >= 0.5:
            total = window.sum()
            out[joint, 0] = (window.sum(axis=0) @ np.arange(left, left + window.shape[1])) / total / size
            out[joint, 1] = (window.sum(axis=1) @ np.arange(top, top + window.shape[0])) / total / size
    return out
