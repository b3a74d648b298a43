"""A pose estimator that sees what tests draw: a red dot is a person, a white frame is a fault of the estimator.

A look takes DOTS_SECONDS, of the environment.
"""

import os
import time

import numpy as np

from pipeline.pose.rtmpose import JOINTS

OFFSETS = np.array([(i % 4 - 1.5, i // 4 - 2.0) for i in range(17)]) * 3  # joints around the dot, pixels


class Dots:
    joints = JOINTS

    def __init__(self, models="", device="cpu"):
        self.about = {"dots": models or "1"}

    def begin(self):
        pass

    def estimate(self, frame):
        time.sleep(float(os.environ.get("DOTS_SECONDS", 0)))
        if frame.min() > 200:
            raise ValueError("a white frame")
        red = (frame[..., 0] > 150) & (frame[..., 1] < 100)
        if not red.any():
            return np.zeros((0, 17, 3), dtype=np.float32)
        centre = np.argwhere(red).mean(axis=0)[::-1]
        return np.concatenate([centre + OFFSETS, np.full((17, 1), 0.5)], axis=1)[None].astype(np.float32)


class Headless(Dots):
    joints = tuple(f"left {name}" if name == "nose" else name for name in JOINTS)
