"""Frames of a clip side by side in one panel, with its phases below and their texts."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from pipeline.figures.style import COLOURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

GAP = 0.06  # between two frames, of a frame's width
BELOW = 0.34  # room below the frames for phases, of a frame's width


def strip(axes: Axes, frames: np.ndarray, titles: Sequence[str] = (), phases: Sequence[int] = ()) -> None:
    """Frames (T, h, w, 3), each with a title above it and below it a bar in the colour of its phase (from 1), whose
    number stands where it begins."""
    from matplotlib.patches import Rectangle

    height = frames.shape[1] / frames.shape[2]
    for i, pixels in enumerate(frames):
        left = i * (1 + GAP)
        axes.imshow(pixels, interpolation="none", extent=(left, left + 1, 0, height))
        if len(titles):
            axes.text(left + 0.5, height + 0.03, titles[i], fontsize=8, ha="center", va="bottom")
        if len(phases):
            colour = colour_of(phases[i])
            axes.add_patch(Rectangle((left - GAP / 4, -0.12), 1 + GAP / 2, 0.07, color=colour, linewidth=0))
            if i == 0 or phases[i] != phases[i - 1]:
                axes.text(left, -0.24, f"phase {phases[i]}", fontsize=8.5, color=colour, weight="bold", va="center")
    last = len(frames) * (1 + GAP) - GAP
    axes.set(xlim=(-GAP / 2, last + GAP / 2), ylim=(-BELOW * bool(len(phases)), height + 0.14 * bool(len(titles))))
    axes.set(xticks=[], yticks=[], aspect="equal", anchor="W")
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)


def words(axes: Axes, texts: Sequence[str], width: int = 52, line: float = 0.1) -> None:
    """The text of each phase, in its colour: `width` letters a line, which takes the share `line` of the height."""
    axes.axis("off")
    top = 0.97
    for number, text in enumerate(texts, 1):
        lines = textwrap.wrap(f"{number}  {text}", width, max_lines=3, subsequent_indent="    ")
        axes.text(0.0, top, "\n".join(lines), transform=axes.transAxes, fontsize=9, va="top", color=colour_of(number))
        top -= line * (len(lines) + 0.8)


def colour_of(phase: int) -> str:
    """The colour of a phase, from 1."""
    return COLOURS[(phase - 1) % len(COLOURS)]
