"""Figures of joints: how important they are, and which a skeleton encoder looks at (CrossGLG, Figures 4 to 6)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pipeline.figures.single import inspected
from pipeline.figures.style import INK, canvas

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from pipeline.figures.single import Looks
    from pipeline.sheets import Table
    from pipeline.tables.records import Record

CLASSES = 4  # of the two figures of attention
ROBUST = 98  # percentile of the attention that has the darkest colour: one joint may get nearly all of it


def importance(table: Table, found: list[Record], looks: Looks) -> Figure:
    """Above the joints that the texts name, below the weights that were learnt (Figure 4)."""
    _, look = inspected(found, looks)[0]
    names, joints = [str(name) for name in look["base_classes"]], look["joints"]
    with canvas(2, 1, (0.3 * len(joints) + 3.2, 0.26 * 2 * len(names) + 2.9), sharex=True) as (figure, axes):
        top = 100 * max(look["target"].max(), look["importance"].max())
        for axis, (title, key) in zip(
            axes[:, 0], (("named by the text", "target"), ("learnt (JID)", "importance")), strict=True
        ):
            picture = matrix(axis, 100 * look[key], 0, top)
            axis.set_title(title, fontsize=10)
            axis.set_yticks(range(len(names)), names, fontsize=8)
            axis.set_ylabel(table.figure.y)
        joint_ticks(axes[1][0], joints)
        axes[1][0].set_xlabel(table.figure.x)
        _bar(figure, picture, axes, "share of a joint (%)")
    return figure


def blocks(table: Table, found: list[Record], looks: Looks) -> Figure:
    """Attention on each joint in each block: a panel a method, in it the blocks of one class below those of another
    (Figure 5)."""
    places = inspected(found, looks)
    names = [str(name) for name in places[0][1]["base_classes"][:CLASSES]]
    values = [look["base_attention"][: len(names)] for _, look in places]
    top, count = np.percentile(values, ROBUST), values[0].shape[1]
    with canvas(1, len(places), (3.2 * len(places) + 0.9, 1.2 * len(names) + 1.9), sharey=True) as (figure, axes):
        for axis, (record, look), seen in zip(axes[0], places, values, strict=True):
            apart = np.pad(seen, ((0, 0), (0, 1), (0, 0)), constant_values=np.nan)  # an empty line below each class
            picture = matrix(axis, apart.reshape(-1, apart.shape[-1])[:-1], 0, top)
            axis.set_title(record.row, fontsize=10)
            axis.set_xlabel(table.figure.x)
            joint_ticks(axis, look["joints"], 6)
        shown = [
            (number * (count + 1) + block, block + 1) for number in range(len(names)) for block in range(0, count, 2)
        ]
        axes[0][0].set_yticks(*zip(*shown, strict=True), fontsize=7)
        axes[0][0].set_ylabel(table.figure.y)
        for number, name in enumerate(names):
            middle = number * (count + 1) + (count - 1) / 2
            axes[0][-1].annotate(
                _wrapped(name), (1.02, middle), xycoords=("axes fraction", "data"), va="center", fontsize=8
            )
        _bar(figure, picture, axes, "attention (1: equal share)", pad=0.03)
    return figure


def skeletons(table: Table, found: list[Record], looks: Looks) -> Figure:
    """A pose of each of a few novel classes, its joints as large as their attention, for each method (Figure 6)."""
    places = inspected(found, looks)
    names = [str(name) for name in places[0][1]["novel_classes"][:CLASSES]]
    values = [look["novel_attention"][: len(names)].mean(1) for _, look in places]
    low, top = np.min(values), np.max(values)
    poses = [pose - (pose.min(0) + pose.max(0)) / 2 for pose in places[0][1]["poses"][: len(names)]]
    reach = 1.15 * np.abs(poses).max((0, 1))
    size = (2.2 * len(names) + 1.2, 2.2 * reach[1] / reach[0] * len(places) + 1.3)
    with canvas(len(places), len(names), size, sharex=True, sharey=True) as (figure, axes):
        for row, (record, look), seen in zip(axes, places, values, strict=True):
            for axis, attention, pose in zip(row, seen, poses, strict=True):
                picture = skeleton(axis, pose, look["parents"], attention, low, top)
            row[0].set_ylabel(record.row)
        for axis, name in zip(axes[0], names, strict=True):
            axis.set_title(_wrapped(name, 22), fontsize=9)
        axes[0][0].set(xlim=(-reach[0], reach[0]), ylim=(-reach[1], reach[1]))
        _bar(figure, picture, axes, table.figure.y)
    return figure


def novel(table: Table, found: list[Record], looks: Looks) -> Figure:
    """Attention on each joint in novel classes, a line a class: a panel a method (Figure A1)."""
    places = inspected(found, looks)
    names = [_wrapped(str(name), 26) for name in places[0][1]["novel_classes"]]
    values = [look["novel_attention"].mean(1) for _, look in places]
    top = np.percentile(values, ROBUST)
    with canvas(1, len(places), (3.2 * len(places) + 2.4, 0.34 * len(names) + 1.9), sharey=True) as (figure, axes):
        for axis, (record, look), seen in zip(axes[0], places, values, strict=True):
            picture = matrix(axis, seen, 0, top)
            axis.set_title(record.row, fontsize=10)
            axis.set_xlabel(table.figure.x)
            joint_ticks(axis, look["joints"], 6)
        axes[0][0].set_yticks(range(len(names)), names, fontsize=7)
        axes[0][0].set_ylabel(table.figure.y)
        _bar(figure, picture, axes, "attention (1: equal share)")
    return figure


# Parts


def matrix(axis: Axes, values: np.ndarray, low: float, high: float):
    """Values (rows, columns) as colours, the first row on top."""
    rows, columns = values.shape
    edges = np.arange(columns + 1) - 0.5, np.arange(rows + 1) - 0.5
    picture = axis.pcolormesh(*edges, values, cmap="Blues", vmin=low, vmax=high)
    axis.set_ylim(rows - 0.5, -0.5)
    axis.grid(visible=False)
    axis.tick_params(length=0)
    axis.spines[:].set(visible=True, color="#8a8a8a", linewidth=0.6)
    return picture


def skeleton(axis: Axes, pose: np.ndarray, parents: Sequence[int], attention: np.ndarray, low: float, top: float):
    """A pose (V, 2) with its bones; size and colour of a joint grow with its attention (V,) between low and top."""
    for child, parent in enumerate(parents):
        if parent >= 0:
            axis.plot(*pose[[child, parent]].T, color="#8a8a8a", linewidth=1.5, zorder=1, solid_capstyle="round")
    size = 12 + 170 * (attention - low) / max(top - low, 1e-12)
    colours = {"c": attention, "cmap": "viridis_r", "vmin": low, "vmax": top, "edgecolors": INK, "linewidths": 0.5}
    picture = axis.scatter(*pose.T, s=size, zorder=2, **colours)
    axis.set(aspect="equal", xticks=[], yticks=[])
    axis.grid(visible=False)
    axis.spines[:].set_visible(False)
    return picture


def joint_ticks(axis: Axes, joints: Sequence[str], size: float = 8) -> None:
    """The names of the joints below a matrix."""
    axis.set_xticks(range(len(joints)), [str(name) for name in joints], rotation=90, fontsize=size)


def _bar(figure: Figure, picture, axes: np.ndarray, label: str, pad: float = 0.02) -> None:
    bar = figure.colorbar(picture, ax=axes.ravel().tolist(), shrink=0.75, label=label, pad=pad)
    bar.outline.set_visible(False)
    bar.solids.set_rasterized(False)  # an SVG file without an image in it


def _wrapped(name: str, width: int = 18) -> str:
    import textwrap

    return "\n".join(textwrap.wrap(name, width))
