"""What a pose estimator is, and how one is opened by its name."""

from __future__ import annotations

import functools
import importlib
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from pipeline.errors import UserError, unknown

BACKENDS = {"blazepose": "pipeline.pose.blazepose:BlazePose", "rtmpose": "pipeline.pose.rtmpose:RtmPose"}
LOOKED_AT = 5  # persons of a frame, the surest ones; tracking keeps fewer


class PoseEstimator(Protocol):
    """Finds persons in the frames of a clip, one after the other; made with (models, device) of `PoseSettings`.

    joints: names of its V joints, those of COCO where it has them. about: what decides its numbers (networks and
    their checksums), for the record of what was extracted.
    """

    joints: tuple[str, ...]
    about: dict[str, str]

    def begin(self) -> None:
        """The next frame is the first of another clip."""
        ...

    def estimate(self, frame: np.ndarray) -> np.ndarray:
        """Persons (N, V, 3) float32 of a frame uint8 RGB (H, W, 3): x, y in pixels, confidence 0 to 1.

        N may be 0; the surest person comes first.
        """
        ...


@dataclass(frozen=True, slots=True)
class PoseSettings:
    """How poses are extracted.

    backend: a name of `BACKENDS`, or `package.module:Class` of a `PoseEstimator`. layout: the skeleton that is
    written. persons: of a clip at most. frames: of a clip at most, evenly spaced; 0 takes all. models: folder with the
    networks (empty: where the backend finds them). device: cpu or cuda.
    """

    backend: str = "rtmpose"
    layout: str = "coco17"
    persons: int = 2
    frames: int = 0
    models: str = ""
    device: str = "cpu"


@functools.cache
def open_estimator(backend: str, models: str = "", device: str = "cpu") -> PoseEstimator:
    """The estimator of a backend, one for each process.

    Raises:
        UserError: there is no such backend, or what it needs is not installed or not found.
    """
    place = BACKENDS.get(backend, backend)
    if ":" not in place:
        raise unknown("pose backend", backend, BACKENDS)
    module, name = place.split(":", 1)
    try:
        made = getattr(importlib.import_module(module), name)
    except (ModuleNotFoundError, AttributeError) as error:
        raise UserError(
            f"the pose backend {backend} cannot be imported ({error}); correct package.module:Class"
        ) from None
    return made(models, device)


def needs(package: str, error: ImportError) -> UserError:
    """Error for a package of a backend that is missing."""
    return UserError(
        f"{package} is not installed ({error}); pose extraction needs `pip install -e '.[pose]'` and "
        "`pip install --no-deps -r requirements-pose.txt`"
    )
