"""Figures of what trained models see: of each measured place the inspection of its run (`pipeline.inspection`).

Of several training seeds it is the first one's.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from pipeline.figures.joints import blocks, importance, novel, skeletons
from pipeline.figures.single import inspected
from pipeline.figures.strip import strip, words
from pipeline.figures.style import COLOURS, MARKS, canvas, parts

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from pipeline.figures.single import Looks
    from pipeline.sheets import Table
    from pipeline.tables.records import Record


STAGES = {1: ("one text",), 3: ("beginning", "process", "end")}
STRONGEST = 0.75  # share of the colour where the attention is highest
SHOWN = 0  # the clip of the figure of attention, of those that were inspected


def tsne(table: Table, found: list[Record], looks: Looks) -> Figure:
    """The clips of a few test classes as each method sees them, one panel a place (LGA, Figure 4)."""
    places = inspected(found, looks)
    down = -(-len(places) // 2)
    with canvas(down, 2, (7.0, 3.4 * down + 0.5)) as (figure, axes):
        for axis in axes.flat[len(places) :]:
            axis.set_visible(False)
        for axis, (record, look) in zip(axes.flat, places, strict=False):
            for number, name in enumerate(look["classes"]):
                here = look["points"][look["labels"] == number]
                axis.plot(*here.T, MARKS[number], color=COLOURS[number], markersize=4.5, alpha=0.8, label=str(name))
            axis.set_title(f"{record.row}: {record.value:.1f} %")
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set(visible=True, color="#8a8a8a", linewidth=0.6)
        for axis in axes[-1]:
            axis.set_xlabel(table.figure.x)
        for axis in axes[:, 0]:
            axis.set_ylabel(table.figure.y)
        names = axes[0][0].get_legend_handles_labels()
        figure.legend(*names, loc="outside upper center", ncols=1 if max(map(len, names[1])) > 40 else 2)
    return figure


def attention(table: Table, found: list[Record], looks: Looks) -> Figure:
    """A clip with the attention of each method on its frames, and its cosines with the texts of each stage
    (Task-Adapter++, Figure 11)."""
    places = inspected(found, looks)
    look, rows = places[0][1], len(places) + 1
    frames, classes = look["frames"][SHOWN], [str(name) for name in look["classes"]]
    with parts((1.1 * len(frames) + 1.7, 1.12 * rows + 3.5), (1.28, *[1.12] * len(places), 2.6)) as (figure, axes):
        strip(axes[0], frames, when(look["seconds"][SHOWN]))
        for axis, (record, seen) in zip(axes[1:], places, strict=False):
            maps = seen["attention"][SHOWN]
            strip(axis, laid_over(frames, maps))
            moved = 50 * np.abs(maps - look["attention"][SHOWN]).sum((1, 2)).mean()
            name = record.row if seen is look else f"{record.row}\n{moved:.1f} % moved"
            axis.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
        scores = {record.row: seen["stage_scores"][SHOWN] for record, seen in places}
        _stages(axes[-1], scores)
        named = ["\n".join(textwrap.wrap(name + " (its own)" * (i == SHOWN), 24)) for i, name in enumerate(classes)]
        axes[-1].set_yticks(range(len(classes)), named, fontsize=8)
        axes[-1].set(xlabel=table.figure.x, ylabel=table.figure.y)
    return figure


def phases(table: Table, found: list[Record], looks: Looks) -> Figure:
    """Clips cut into phases, frame by frame, with the atomic texts of their classes; ours, not a paper's."""
    _, look = inspected(found, looks)[0]
    clips, count = look["frames"].shape[:2]
    with parts((1.15 * count + 0.3, 2.6 * clips + 0.4), (1.95, 0.8) * clips) as (figure, axes):
        for clip, (above, below) in enumerate(zip(axes[::2], axes[1::2], strict=True)):
            strip(above, look["frames"][clip], when(look["seconds"][clip]), look["phases"][clip])
            above.set_title(str(look["classes"][clip]), loc="left", fontsize=10, weight="bold")
            words(below, [str(text) for text in look["atoms"][clip]], width=16 * count, line=0.18)
    return figure


class Kind(NamedTuple):
    """How a kind is drawn, the arrays that it needs, and what the caption says of it."""

    draw: Callable[[Table, list[Record], Looks], Figure]
    needs: tuple[str, ...]
    caption: str


KINDS: dict[str, Kind] = {
    "tsne": Kind(
        tsne,
        ("classes", "labels", "points"),
        "A mark is a test clip of a class that was not trained on. t-SNE of one minus the mean cosine of the frames of "
        "two clips at the same place, of the features that are matched; in the titles the accuracy.",
    ),
    "attention": Kind(
        attention,
        ("classes", "frames", "seconds", "attention", "stage_scores"),
        "Colour: attention of the class token of the last layer, mean of the heads, each frame on its own scale; "
        "moved: share of it that lies elsewhere than in the first method, mean of the frames. "
        "Numbers: cosines of each stage of the clip with each class's text of that stage, the highest is bold.",
    ),
    "phases": Kind(
        phases,
        ("classes", "frames", "seconds", "phases", "atoms"),
        "The first test clips of three classes that were not trained on. Phases by CLUSTER on the frames' features "
        "alone; the texts are those of the clips' own class, in their order.",
    ),
    "importance": Kind(
        importance,
        ("joints", "base_classes", "importance", "target"),
        "Shares of all joints, which sum to 100 %; learnt ones are means over clips of base classes.",
    ),
    "blocks": Kind(
        blocks,
        ("joints", "base_classes", "base_attention"),
        "Attention that a joint gets of all joints, of its equal share; means over heads, frames and clips of base "
        "classes. Block 1 is the first.",
    ),
    "novel": Kind(
        novel,
        ("joints", "novel_classes", "novel_attention"),
        "Attention that a joint gets of all joints, of its equal share; means over blocks, heads, frames and clips of "
        "novel classes.",
    ),
    "skeletons": Kind(
        skeletons,
        ("joints", "parents", "novel_classes", "novel_attention", "poses"),
        "Circles grow with the attention that a joint gets of all joints, in means over blocks, heads, frames and "
        "clips of novel classes. The pose is one of the class's exemplar.",
    ),
}
"""By the name in a sheet."""


def laid_over(frames: np.ndarray, maps: np.ndarray) -> np.ndarray:
    """Grey frames (T, h, w, 3) uint8 with maps (T, y, x) in colour over them, each map on its own scale."""
    import cv2
    from matplotlib import colormaps

    out = []
    for pixels, values in zip(frames, maps, strict=True):
        wide = cv2.resize(values, pixels.shape[1::-1], interpolation=cv2.INTER_CUBIC).astype(np.float64)
        wide = ((wide - values.min()) / max(np.ptp(values), 1e-12)).clip(0, 1)
        grey = pixels.mean(-1, keepdims=True).repeat(3, -1) / 255
        share = STRONGEST * wide[..., None]
        out.append((1 - share) * grey + share * colormaps["inferno"](wide)[..., :3])
    return np.stack(out)


# Parts


def when(seconds: np.ndarray) -> list[str]:
    """Titles of frames: their times, or their numbers where these are not known."""
    if np.isnan(seconds).any():
        return [f"frame {i + 1}" for i in range(len(seconds))]
    return [f"{time:.1f} s" for time in seconds]


def _stages(axis: Axes, of_method: dict[str, np.ndarray]) -> None:
    """Matrices of cosines (classes, stages), side by side, with the numbers in them; the best of a stage is bold."""
    values = np.concatenate([scores.ravel() for scores in of_method.values()])
    low, high = values.min(), values.max()
    left, ticks = 0.0, {}
    for name, scores in of_method.items():
        classes, stages = scores.shape
        edges = left + np.arange(stages + 1), np.arange(classes + 1) - 0.5
        axis.pcolormesh(*edges, scores, cmap="Blues", vmin=low, vmax=high + 0.6 * (high - low) + 1e-9)  # readable
        for row, column in np.ndindex(classes, stages):
            best = scores[row, column] == scores[:, column].max()
            axis.text(left + column + 0.5, row, f"{scores[row, column]:.3f}", ha="center", va="center", fontsize=8.5,
                      weight="bold" if best else "normal", color="#111111")  # fmt: skip
        axis.text(left + stages / 2, -0.65, name, ha="center", va="bottom", fontsize=10)
        ticks |= {left + i + 0.5: text for i, text in enumerate(STAGES.get(stages, range(1, stages + 1)))}
        left += stages + 0.15
    axis.set(xlim=(0, left - 0.15), ylim=(classes - 0.5, -1.2))
    axis.set_xticks(list(ticks), list(ticks.values()))
    axis.tick_params(length=0)
    axis.grid(visible=False)
    axis.spines[:].set_visible(False)
