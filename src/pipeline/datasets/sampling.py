"""Which frames of a clip a model sees."""

from __future__ import annotations

import numpy as np

from pipeline.errors import unknown

MODES = ("segment_random", "segment_centre", "kinetics_grid", "linspace", "linspace_jitter")
JITTER = 5  # frames by which TRX moves both ends of its grid in training
KINETICS_RATE = 35  # frames between two sampled ones; CLIP-FSAR's Kinetics configurations
KINETICS_FPS = 12  # the frame rate that this distance is meant for


def sample_positions(
    n: int,
    t: int,
    mode: str,
    rng: np.random.Generator | None = None,
    *,
    fps: float = 0.0,
    source_frames: int = 0,
) -> np.ndarray:
    """Choose `t` of `n` stored frames: int64 (t,), ascending, in 0..n-1; frames repeat when n < t.

    Modes:
    - segment_random: one frame uniformly inside each of t equal segments (CLIP-FSAR on HMDB51, UCF101,
      SSv2, in training and test). Segments have n/t frames; CLIP-FSAR rounds that down and never shows the
      last n mod t frames.
    - segment_centre: the middle frame of each segment, int(n/(2t) + n/t*i); needs no generator.
    - kinetics_grid: an even grid with a random start (the middle one when rng is None), CLIP-FSAR on
      Kinetics-100. It counts in frames of the video: give `fps`, and `source_frames` when n of them are
      stored.
    - linspace: an even grid from the second frame to the last but one; linspace_jitter moves its ends inwards
      by up to 5 frames each (TRX, STRM: test and training).

    Raises UserError on an unknown mode, ValueError on n or t below 1 or a missing generator.
    """
    if n < 1 or t < 1:
        raise ValueError(f"cannot choose {t} of {n} frames")
    if mode == "segment_centre":
        # Integer form of int(n/(2t) + n/t*i): no rounding that depends on the machine.
        return (2 * np.arange(t, dtype=np.int64) + 1) * n // (2 * t)
    if mode == "segment_random":
        if rng is None:
            raise ValueError("segment_random needs a random generator")
        edges = np.arange(t + 1, dtype=np.int64) * n // t
        return edges[:-1] + rng.integers(0, np.maximum(np.diff(edges), 1))
    if mode in ("linspace", "linspace_jitter"):
        return _linspace(n, t, rng if mode == "linspace_jitter" else None)
    if mode == "kinetics_grid":
        return _kinetics_grid(n, t, rng, fps or 30.0, max(source_frames, n))
    raise unknown("frame sampling mode", mode, MODES)


def _linspace(n: int, t: int, rng: np.random.Generator | None) -> np.ndarray:
    first, last = min(1, n - 1), max(n - 2, 0)
    if rng is not None and n > t:  # never so far that the ends meet
        reach = min(JITTER, max((last - first - t) // 2, 0))
        first, last = first + int(rng.integers(0, reach + 1)), last - int(rng.integers(0, reach + 1))
    return np.linspace(first, max(first, last), t).astype(np.int64)


def _kinetics_grid(n: int, t: int, rng: np.random.Generator | None, fps: float, source: int) -> np.ndarray:
    """Grid of t frames over a window of t*35*fps/12 frames that stops 35 frames before the window's end."""
    length = int(t * KINETICS_RATE * fps / KINETICS_FPS)
    if length > source:
        length = source // t * t
    if length <= KINETICS_RATE:  # too short for the rule: the grid would have no extent
        return sample_positions(n, t, "segment_centre")
    spare = source - length
    start = rng.uniform(0, spare + 1) if rng is not None else spare / 2
    grid = np.linspace(start, start + length - KINETICS_RATE, t)
    grid = np.clip(grid.astype(np.int64), 0, source - 1)
    return grid * n // source  # stored frame j stands for source frames j*source/n and on
