"""Figures of what cells hold beside their number: what a teacher predicts, what is confused, curves of alpha.

Of several training seeds the teacher's predictions are the first one's, confusions are of all of them together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from pipeline.errors import UserError
from pipeline.figures.style import COLOURS, DASHES, INK, MARKS, PAPER, canvas, legend
from pipeline.intervals import wilson95
from pipeline.metrics import METRICS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from pipeline.inspection import Look
    from pipeline.sheets import Table
    from pipeline.tables.records import CellFile, Record, TeacherVideos

    Looks = Mapping[tuple[str, str], Look]
    """(row, column) -> what is seen in its run, of its first seed."""
    Cells = Mapping[tuple[str, str], Sequence[CellFile]]
    """(row, column) -> its cells, one a seed."""

DRAWN = 30  # videos of Figure 4 c
BINS, LEAST = 10, 20  # at most so many bins, with so many videos at least
NAMED = 20  # up to so many classes are named
BESIDE = {
    "spread": f"Bars: standard deviation of the teacher's predictions for {DRAWN} test videos drawn at random; in the "
    "titles the mean over all that were asked for.",
    "reliability": "Bars: 95 % Wilson intervals; the bins of a line hold equally many videos, to within one.",
    "alpha": "Eq. 5 of LGA: alpha is the weight of the video-video score. Each scale is its panel's own.",
    "confusion": "Framed: taken for the opposite direction; above: the share of all test videos.",
}
"""What is drawn, for the caption."""


def spread(table: Table, found: list[Record], cells: Cells) -> Figure:
    """The teacher's confidence with its deviation for some videos, one panel for each place (SeFAR, Figure 4 c)."""
    spec, measured = table.figure, _of(table, found, "teacher")
    with canvas(1, len(measured), (3.1 * len(measured) + 0.6, 4.0), sharey=True) as (figure, axes):
        for index, (axis, record) in enumerate(zip(axes[0], measured, strict=True)):
            confidence, deviation, right = drawn(cells[record.row, record.column][0].teacher)
            place = np.arange(1, len(right) + 1)
            axis.errorbar(
                place, confidence, deviation, fmt="none", ecolor=COLOURS[index], elinewidth=1.2, capsize=1.5, alpha=0.7
            )
            for mark, chosen, face in (("right", right, COLOURS[index]), ("wrong", ~right, PAPER)):
                axis.plot(
                    place[chosen], confidence[chosen], "o", color=COLOURS[index], markerfacecolor=face, label=mark
                )
            axis.set_title(f"{_title(table, record)}\n{words(record)} {shown(record)}", fontsize=10)
            axis.set(xlabel=spec.x, xticks=[1, *range(10, DRAWN + 1, 10)])
        axes[0][0].set(ylabel=spec.y, yticks=range(0, 101, 20))
        _marks(figure)
    return figure


def drawn(teacher: TeacherVideos, videos: int = DRAWN) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Confidence and deviation in per cent, and rightness, of the first `videos` of the draw, by confidence."""
    confidence, deviation, right = (
        np.asarray(getattr(teacher, k)[:videos]) for k in ("confidence", "deviation", "right")
    )
    order = np.argsort(confidence, kind="stable")
    return 100 * confidence[order], 100 * deviation[order], right[order].astype(bool)


def reliability(table: Table, found: list[Record], cells: Cells) -> Figure:
    """Accuracy by bins of confidence and of deviation, one line for each place (SeFAR, Figure 5)."""
    spec, measured = table.figure, _of(table, found, "teacher")
    kinds = {"confidence": "confidence", "deviation": "standard deviation"}
    with canvas(1, 2, (8.6, 4.2), sharey=True) as (figure, axes):
        for axis, (key, name) in zip(axes[0], kinds.items(), strict=True):
            for index, record in enumerate(measured):
                teacher = cells[record.row, record.column][0].teacher
                x, y, low, high = bins(getattr(teacher, key), teacher.right)
                behind = len(measured) - 1 - index  # thicker, so that equal lines are seen
                axis.errorbar(
                    x, y, [y - low, high - y], label=_title(table, record), capsize=2.5, elinewidth=1,
                    color=COLOURS[index], marker=MARKS[index], linestyle=DASHES[index % len(DASHES)],
                    markersize=5 + 1.5 * behind, linewidth=1.4 + 0.7 * behind,
                )  # fmt: skip
            axis.set(title=f"by {name}", xlabel=spec.x)
        axes[0][0].set(ylabel=spec.y, ylim=(-4, 105))
        legend(figure, axes[0][0])
    return figure


def bins(values: Sequence[float], right: Sequence[bool]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Of V videos in bins of equally many, in the order of `values` (shares, 0..1), all in per cent.

    Mean value, accuracy, and both ends of its 95 % interval (Wilson), each (bins,).
    """
    order = np.argsort(values, kind="stable")
    count = min(BINS, max(len(order) // LEAST, 1))
    parts = np.array_split(order, count)
    hits = [int(np.asarray(right)[part].sum()) for part in parts]
    ends = np.array([wilson95(hit, len(part)) for hit, part in zip(hits, parts, strict=True)])
    mean = np.array([np.asarray(values)[part].mean() for part in parts])
    share = np.array([hit / len(part) for hit, part in zip(hits, parts, strict=True)])
    return 100 * mean, 100 * share, 100 * ends[:, 0], 100 * ends[:, 1]


def confusion(table: Table, found: list[Record], cells: Cells) -> Figure:
    """One matrix for each row, side by side, of which each row adds up to 1 (SeFAR, Figure 8)."""
    spec, measured = table.figure, _of(table, found, "confusion")
    classes = cells[measured[0].row, measured[0].column][0].classes
    named = len(classes) <= NAMED
    edges = np.arange(len(classes) + 1) - 0.5
    beside = 0.07 * max(map(len, classes)) if named else 0.3  # inches that names take
    with canvas(1, len(measured), (3.7 * len(measured) + 1.4 + beside, 4.5 + beside), sharey=True) as (figure, axes):
        figure.set_layout_engine("compressed")  # squares leave room that the other layout does not see
        for axis, record in zip(axes[0], measured, strict=True):
            shares = normalised([cell.confusion for cell in cells[record.row, record.column]])
            picture = axis.pcolormesh(edges, edges, 100 * shares, cmap="Blues", vmin=0, vmax=100)
            axis.set(aspect="equal", ylim=(edges[-1], edges[0]))
            _frames(axis, len(classes))
            axis.set_title(f"{record.row}: {shown(record)} {words(record)}")
            axis.grid(visible=False)
            axis.set_xlabel(spec.x)
            _ticks(axis, classes if named else [])
        axes[0][0].set_ylabel(spec.y)
        bar = figure.colorbar(picture, ax=axes[0].tolist(), shrink=0.75, label="share of the true class (%)")
        bar.outline.set_visible(False)
        bar.solids.set_rasterized(False)  # nothing here is an image, which the report would have to load
    return figure


def normalised(counts: Sequence[Sequence[Sequence[int]]]) -> np.ndarray:
    """Sum of the matrices (C, C) of counts, each row divided by its sum; a class without videos stays 0."""
    summed = np.asarray(counts).sum(0)
    return summed / np.maximum(summed.sum(1, keepdims=True), 1)


def alpha(table: Table, found: list[Record], cells: Cells) -> Figure:
    """Accuracy on validation and test against alpha, with the chosen one, a panel a place; ours, not a paper's."""
    spec = table.figure
    curves = [(r, cells[r.row, r.column][0]) for r in found if (r.row, r.column) in cells]
    curves = [(record, cell) for record, cell in curves if cell.alpha_curve]
    if not curves:
        raise UserError(f"{table.title}: no alpha was chosen on validation; a figure of alpha needs measure.alpha: val")
    across = 2 if len(curves) == 4 else min(len(curves), 3)
    down = -(-len(curves) // across)
    with canvas(down, across, (3.1 * across + 0.6, 2.9 * down + 0.9)) as (figure, axes):
        for axis in axes.flat[len(curves) :]:
            axis.set_visible(False)
        for axis, (record, cell) in zip(axes.flat, curves, strict=False):
            for index, (split, name) in enumerate((("val", "validation classes"), ("test", "test classes"))):
                points = np.array(cell.alpha_curve[split]).T
                axis.plot(*points, color=COLOURS[index], linestyle=DASHES[index], marker=MARKS[index], markersize=3.5,
                          label=name)  # fmt: skip
            axis.axvline(cell.alpha, color=INK, linestyle=":", linewidth=1.2, label="chosen on validation")
            value = dict(map(tuple, cell.alpha_curve["test"]))[cell.alpha]
            axis.plot([cell.alpha], [value], "*", color=COLOURS[1], markersize=12, label="measured")
            axis.set_title(f"{_title(table, record)}: {value:.1f} %", fontsize=10)
            axis.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0\ntexts", "0.25", "0.5", "0.75", "1\nvideos"])
            axis.set_xlabel(spec.x)
        for axis in axes[:, 0]:
            axis.set_ylabel(spec.y)
        legend(figure, axes[0][0])
    return figure


def inspected(found: list[Record], looks: Looks) -> list[tuple[Record, Look]]:
    """The places that were measured, each with what is seen in its run; UserError without any."""
    places = [(record, looks[record.row, record.column]) for record in found if (record.row, record.column) in looks]
    if not places:
        raise UserError(f"{found[0].paper}, {found[0].table}: no run of it was looked into")
    return places


SINGLE: dict[str, Callable[[Table, list[Record], Cells], Figure]] = {
    "spread": spread,
    "reliability": reliability,
    "confusion": confusion,
    "alpha": alpha,
}


# Parts


def _of(table: Table, found: list[Record], key: str) -> list[Record]:
    """The measured places of the metrics that keep `key` beside their numbers; UserError without any."""
    metrics = [name for name, metric in METRICS.items() if key in metric.beside]
    places = [record for record in found if record.metric in metrics and record.status == "measured"]
    if not places:
        needed = " or ".join(metrics)
        raise UserError(f"{table.title}: a figure of the kind {table.figure.kind} needs a column with metric: {needed}")
    return places


def shown(record: Record) -> str:
    """The measured value with its unit, as a table rounds it."""
    metric = METRICS[record.metric]
    return f"{record.value:.{metric.decimals}f} {metric.unit}"


def words(record: Record) -> str:
    """What was measured."""
    return METRICS[record.metric].words


def _title(table: Table, record: Record) -> str:
    """Column of a place, with its row where there are several."""
    return record.column if len(table.rows) == 1 else f"{record.row}, {record.column}"


def _marks(figure: Figure) -> None:
    """The legend of right and wrong predictions, in no panel's colour."""
    from matplotlib.lines import Line2D

    style = {"color": INK, "marker": "o", "linestyle": ""}
    handles = [Line2D([], [], label="right", **style), Line2D([], [], label="wrong", markerfacecolor=PAPER, **style)]
    figure.legend(handles, ["right", "wrong"], loc="outside upper center", ncols=2)


def _frames(axis: Axes, classes: int) -> None:
    """Frames around the places (2k, 2k + 1) and (2k + 1, 2k)."""
    from matplotlib.patches import Rectangle

    style = {"fill": False, "edgecolor": COLOURS[1], "linewidth": 1.3 if classes <= NAMED else 0.7, "clip_on": False}
    for true in range(classes):
        axis.add_patch(Rectangle(((true ^ 1) - 0.5, true - 0.5), 1, 1, **style))


def _ticks(axis: Axes, names: Sequence[str]) -> None:
    if names:
        axis.set_xticks(range(len(names)), names, rotation=90, fontsize=8)
        axis.set_yticks(range(len(names)), names, fontsize=8)
    axis.tick_params(length=0)
    axis.spines[:].set(visible=True, color="#8a8a8a", linewidth=0.6)
