"""A prediction as a picture: the frames that the model saw, cut into phases, above the scores of the best classes."""

from __future__ import annotations

import textwrap
from pathlib import Path

import numpy as np

from pipeline.actions.clips import Sampled
from pipeline.actions.predict import Prediction
from pipeline.figures.strip import strip, words
from pipeline.figures.style import COLOURS, STYLE, content
from pipeline.files import write_bytes

FRAME = 1.25  # inches
BRANCHES = (("score", "both", 0.26), ("video_video", "video-video", 0.0), ("video_text", "video-text", -0.26))


def write_picture(path: Path, found: Prediction, seen: Sampled) -> Path:
    """Draw a prediction (PNG)."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    count = len(seen.pixels)
    with matplotlib.rc_context(STYLE | {"savefig.dpi": 120}):
        figure = Figure(figsize=(count * FRAME + 0.4, FRAME * seen.pixels.shape[1] / seen.pixels.shape[2] + 3.3))
        FigureCanvasAgg(figure)
        top, bottom = figure.add_gridspec(2, 1, height_ratios=(0.9 + FRAME, 2.0), hspace=0.32, top=0.9, bottom=0.06,
                                          left=0.015, right=0.985)  # fmt: skip
        figure.suptitle(_title(found), x=0.015, ha="left", fontsize=12)
        when = [f"{time:.1f} s" for time in found.seconds] or [f"frame {number}" for number in found.frames]
        strip(figure.add_subplot(top), seen.pixels, when, found.phase)
        lower = bottom.subgridspec(1, 2, width_ratios=(1, 1.15), wspace=0.05)
        words(figure.add_subplot(lower[0]), found.texts if len(found.texts) == len(set(found.phase)) else [])
        _bars(figure.add_subplot(lower[1]), found)
        return write_bytes(path, content(figure, "png"))


def _title(found: Prediction) -> str:
    best = found.top[0]
    said = f"{found.clip.name}: {best.label}, {100 * best.score:.0f} %"
    if not found.truth:
        return said
    return f"{said} ({'right' if found.right else f'it is {found.truth}'})"


def _bars(axes, found: Prediction) -> None:
    """Probabilities of the best classes, of both branches together and of each."""
    places = np.arange(len(found.top))[::-1]
    drawn = [branch for branch in BRANCHES if getattr(found.top[0], branch[0]) is not None]
    if found.top[0].video_text is None:  # the videos alone
        drawn = [("score", "video-video", 0.0)]
    for number, (key, name, shift) in enumerate(drawn):
        values = [100 * getattr(guess, key) for guess in found.top]
        axes.barh(places + shift, values, height=0.24, color=COLOURS[(5, 0, 4)[number]], label=name)
        for place, value in zip(places, values, strict=True):
            axes.text(value + 1, place + shift, f"{value:.0f}", fontsize=6, va="center")
    names = [textwrap.fill(guess.label, 26) for guess in found.top]  # beside the texts of the phases
    axes.set_yticks(places, names, fontsize=8)
    axes.yaxis.tick_left()
    axes.set_xlim(0, 108)
    axes.set_xticks([0, 50, 100], ["0", "50", "100 %"], fontsize=8)
    axes.legend(loc="lower right", fontsize=8)
