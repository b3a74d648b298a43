"""Dual-level temporal elements (SeFAR, Eq. 5): which frames of a video each element shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from pipeline.errors import UserError, unknown

POLICIES = ("spread", "step", "pairs", "stride")
STRIDE = 3  # frames from one shown to the next (MemDPC)


def parse_elements(elements: str | int) -> tuple[int, ...]:
    """Lengths of the elements, the context last: "2-2-4" -> (2, 2, 4); "8" is one element of 8 frames.

    Raises UserError when it is no such text.
    """
    parts = str(elements).strip("{} ").split("-")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise UserError(f"elements {elements!r} is not a combination; write the lengths as in 2-2-4, the context last")
    return tuple(int(part) for part in parts)


def element_slots(lengths: Sequence[int], policy: str = "spread") -> list[np.ndarray]:
    """Which of the sum(lengths) equal time slots of a video each element has: one ascending array an element.

    - spread (the released code): from the context backwards, each element takes slots evenly from those still free.
      No slot is used twice, and the frames of a short element lie far apart: {2-2-4} is [3, 7], [1, 5], [0, 2, 4, 6].
    - step (the paper's words): an element of L frames takes every floor(K/L)-th of the K slots. Where the m-th
      starts is not said; here at slot m (the context at 0), so elements may share frames.
    - pairs: as spread; `ElementSampler` shows each frame with the one that follows.
    - stride: of one element; `ElementSampler` takes no slots there.

    Raises UserError for another policy.
    """
    if policy not in POLICIES:
        raise unknown("element policy", policy, POLICIES)
    total = sum(lengths)
    if policy == "step":
        starts = [*range(len(lengths) - 1), 0]
        steps = [total // length for length in lengths]
        return [
            start % (total - (length - 1) * step) + step * np.arange(length)
            for start, step, length in zip(starts, steps, lengths, strict=True)
        ]
    free, slots = np.arange(total), []
    for length in reversed(lengths):
        picks = -(-np.arange(length) * len(free) // length)  # rounded up
        slots.insert(0, free[picks])
        free = np.delete(free, picks)
    return slots


@dataclass(frozen=True)
class ElementSampler:
    """Draws the frames of the elements: one frame in each time slot of the whole video.

    elements: a combination such as "2-2-4". policy: see `element_slots`.
    """

    elements: str | int = "2-2-4"
    policy: str = "spread"

    @cached_property
    def lengths(self) -> tuple[int, ...]:
        """Frames of each element, the context last."""
        return parse_elements(self.elements)

    @cached_property
    def slots(self) -> list[np.ndarray]:
        """Slots of each element."""
        return element_slots(self.lengths, self.policy)

    def edges(self, n: int) -> np.ndarray:
        """First frame of each slot of a video of n frames, and n itself: (K + 1,); halves go to the even number.

        Raises UserError when there are fewer frames than slots.
        """
        total = sum(self.lengths)
        if n < total:
            raise UserError(
                f"a video of {n} frames is too short for the {total} frames of the elements {self.elements}; "
                "leave it out, or store more of its frames"
            )
        return np.rint(np.arange(total + 1) * n / total).astype(np.int64)

    def sample(self, n: int, rng: np.random.Generator | None = None) -> list[np.ndarray]:
        """Frames 0..n-1 of each element, ascending: at random within its slots, or their centres without `rng`; of
        pairs each frame, and the one that follows it in the video. With a stride `at_a_stride`.

        Raises UserError when the video has fewer frames than there are slots.
        """
        if self.policy == "stride":
            return [at_a_stride(n, length, rng) for length in self.lengths]
        if self.policy == "pairs":
            shown = ElementSampler(self.elements).sample(n - 1, rng)
            return [np.stack((frames, frames + 1), axis=1).ravel() for frames in shown]
        edges = self.edges(n)
        frames = (edges[:-1] + edges[1:] - 1) // 2 if rng is None else rng.integers(edges[:-1], edges[1:])
        return [frames[slots] for slots in self.slots]


def at_a_stride(n: int, count: int, rng: np.random.Generator | None = None) -> np.ndarray:
    """`count` of the frames 0..n-1 that are STRIDE apart, from a random one on, or around the middle without `rng`.

    A shorter video is shown whole: its frames lie closer, and where it has fewer than `count`, some come twice.
    """
    window = min(n, count * STRIDE)
    start = (n - window) // 2 if rng is None else rng.integers(n - window + 1)
    return start + np.arange(count) * window // count
