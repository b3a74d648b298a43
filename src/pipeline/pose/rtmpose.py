"""RTMPose (Jiang et al., 2023) with a YOLOX detector, as ONNX networks: rtmlib prepares and decodes, ONNX Runtime runs.

RTMPose was trained on RGB and YOLOX on BGR; each gets what it was trained on (rtmlib gives both what it is given).
"""

from __future__ import annotations

import contextlib
import hashlib
import io
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from pipeline.errors import UserError
from pipeline.pose.estimator import LOOKED_AT, needs

JOINTS = (
    "nose", "left eye", "right eye", "left ear", "right ear",
    *(f"{side} {part}" for part in ("shoulder", "elbow", "wrist", "hip", "knee", "ankle")
      for side in ("left", "right")),
)  # fmt: skip
MODES = ("lightweight", "balanced", "performance")  # rtmlib's pairs of networks, which it can fetch


class RtmPose:
    """Persons by RTMPose; confidence is the height of its peaks, cut to 0 to 1.

    models: a folder with one yolox*.onnx and one rtmpose*.onnx (COCO's 17 joints), or a mode of rtmlib (empty:
    balanced), whose networks rtmlib fetches once.
    """

    joints = JOINTS

    def __init__(self, models: str = "", device: str = "cpu") -> None:
        try:
            import onnxruntime
            import rtmlib
        except ImportError as error:
            raise needs("rtmlib or onnxruntime", error) from None
        if device == "cuda" and "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
            raise UserError("this ONNX Runtime has no CUDA; `pip install onnxruntime-gpu` in place of onnxruntime")
        paths = find_models(models)
        self.about = {path.name: hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in paths}
        detector, pose = paths
        self._detector = _open(rtmlib.YOLOX, onnxruntime, detector, device, turned=False)
        self._pose = _open(rtmlib.RTMPose, onnxruntime, pose, device, turned=True)

    def begin(self) -> None:
        """See `PoseEstimator.begin`: frames are looked at by themselves."""

    def estimate(self, frame: np.ndarray) -> np.ndarray:
        """See `PoseEstimator.estimate`."""
        boxes = np.asarray(self._detector(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))).reshape(-1, 4)[:LOOKED_AT]
        if not len(boxes):  # rtmlib would take the whole image
            return np.zeros((0, len(JOINTS), 3), dtype=np.float32)
        points, scores = self._pose(frame, bboxes=boxes)
        return np.concatenate(
            [points, np.clip(scores, 0, 1)[..., None]], axis=-1, dtype=np.float32, casting="same_kind"
        )


def _open(kind: Any, onnxruntime: Any, path: Path, device: str, turned: bool) -> Any:
    """A network of rtmlib with the input size that its file states, on one thread: workers are processes.

    turned: rtmlib wants (width, height) of it, not (height, width).
    """
    providers = ["CUDAExecutionProvider", "CPUExecutionProvider"] if device == "cuda" else ["CPUExecutionProvider"]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=providers)
        _, _, height, width = session.get_inputs()[0].shape
        size = (int(width), int(height)) if turned else (int(height), int(width))
        with contextlib.redirect_stdout(io.StringIO()):
            made = kind(str(path), model_input_size=size, backend="onnxruntime", device="cpu")
    except Exception as error:  # ONNX Runtime's errors have no common class
        raise UserError(f"{path} is not a network of fixed input size that ONNX Runtime can run ({error})") from None
    made.session = session
    return made


def find_models(models: str = "") -> tuple[Path, Path]:
    """Files of detector and pose network, fetched by rtmlib if `models` names one of its modes.

    Raises UserError when they are not there or cannot be fetched.
    """
    if models and models not in MODES:
        folder = Path(models).expanduser()
        return _only(folder, "yolox*.onnx"), _only(folder, "rtmpose*.onnx")
    from rtmlib import Body
    from rtmlib.tools.file import download_checkpoint

    wanted = Body.MODE[models or "balanced"]
    try:
        return Path(download_checkpoint(wanted["det"])), Path(download_checkpoint(wanted["pose"]))
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(
            f"RTMPose's networks cannot be fetched ({error}); fetch {wanted['det']} and {wanted['pose']} elsewhere, "
            "put their end2end.onnx as yolox.onnx and rtmpose.onnx in a folder, and name it with --models"
        ) from None


def _only(folder: Path, pattern: str) -> Path:
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise UserError(f"{folder} holds {len(found)} files {pattern}; put exactly one there (docs/pose.md)")
    return found[0]
