"""The papers' figures, from measured cells: what a sheet calls a figure (`figure:` in config/tables) is drawn.

The numbers are the records of the sheet, as in its CSV file; a missing cell is an error that names it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import UserError, unknown
from pipeline.figures.inside import KINDS as INSIDE
from pipeline.figures.single import BESIDE, SINGLE, shown
from pipeline.figures.style import COLOURS, DASHES, MARKS, canvas, caption, legend, write
from pipeline.inspection import read_look
from pipeline.metrics import METRICS
from pipeline.plan import Plan
from pipeline.sheets import Table, table_stem
from pipeline.tables.layout import layout
from pipeline.tables.records import Record, papers_with, read_cell, records

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INTERVALS = "Bars: 95 % intervals over the test."


def figures_of(plan: Plan, paper: str | None = None) -> list[tuple[str, str]]:
    """(paper, number) of every sheet that is drawn."""
    return [(name, number) for name, number in plan.tables(paper) if plan.papers[name].tables[number].figure]


def write_figure(plan: Plan, paper: str, number: str, results_dir: Path | str = "results") -> tuple[Path, ...]:
    """Writes `RESULTS/PAPER/FIGURE.png`, `.svg` and `.pdf` and returns their paths.

    Raises:
        UserError: no such paper or figure, or a cell is missing or damaged.
    """
    return write(draw(plan, paper, number, results_dir), Path(results_dir) / paper / table_stem(number))


def draw(plan: Plan, paper: str, number: str, results_dir: Path | str = "results") -> Figure:
    """The figure, drawn.

    Raises:
        UserError: no such paper or figure, or a cell or an inspection is missing or damaged.
    """
    papers_with(plan, number, paper)
    table = plan.papers[paper].tables[number]
    if table.figure is None:
        known = [name for _, name in figures_of(plan, paper)]
        raise unknown("figure", number, known, f"paper {paper} (its sheet has no `figure:`)")
    found = records(plan, paper, number, results_dir)
    if not any(record.status == "measured" for record in found):
        raise UserError(f"{paper}, {number}: nothing in it is measured, so there is nothing to draw")
    kind, entries = table.figure.kind, [entry for entry in plan.table_entries(paper, number) if entry.cells]
    if kind in SINGLE:
        cells = {(e.row, e.column): [read_cell(cell, results_dir) for cell in e.cells] for e in entries}
        figure = SINGLE[kind](table, found, cells)
    elif kind in INSIDE:
        needs, looks = INSIDE[kind].needs, {}
        for entry in entries:
            run = entry.cells[0].run
            looks[entry.row, entry.column] = read_look(run, results_dir, needs, plan.shown.get(run.id))
        figure = INSIDE[kind].draw(table, found, looks)
    else:
        figure = KINDS[kind](table, found)
    caption(figure, _measured(table, found))
    return figure


def _measured(table: Table, found: list[Record]) -> str:
    """How it was measured, what is drawn beside the numbers, and what was measured in place of what."""
    parts = [part for record in found for part in record.note.split("; ") if part.startswith("measured on ")]
    stand_ins = f" {'; '.join(dict.fromkeys(parts)).capitalize()}." if parts else ""
    kind = table.figure.kind
    beside = INSIDE[kind].caption if kind in INSIDE else BESIDE.get(kind, INTERVALS)
    return f"{layout(table, found).measured} {beside}{stand_ins}"


# Kinds


def lines(table: Table, found: list[Record]) -> Figure:
    """Value against the number in the names of rows or columns; one line for each of the others.

    Lines along the columns have one panel for each group of columns ("Set/5-way", "Set/6-way").
    """
    spec, at = table.figure, _places(found)
    rows, columns = [row.name for row in table.rows], [column.name for column in table.columns]
    if spec.series == "columns":
        panels = {"": [(name, rows, [(row, name) for row in rows]) for name in columns]}
    else:
        panels = {
            group: [(row, leaves, [(row, _joined(group, leaf)) for leaf in leaves]) for row in rows]
            for group, leaves in layout(table, found).groups
        }
    with canvas(1, len(panels), (6.4 if len(panels) == 1 else 4.6 * len(panels), 4.2), sharey=True) as (figure, axes):
        for axis, (title, series) in zip(axes[0], panels.items(), strict=True):
            for index, (name, points, places) in enumerate(series):
                here = [(_number(point), at[place]) for point, place in zip(points, places, strict=True) if place in at]
                _line(axis, index, len(series), name, here)
            axis.set(title=title, xlabel=spec.x)
            axis.set_xticks(sorted({_number(point) for _, points, _ in series for point in points}))
        axes[0][0].set_ylabel(spec.y)
        legend(figure, axes[0][0])
    return figure


def bars(table: Table, found: list[Record]) -> Figure:
    """One group of bars for each column, one bar in it for each row."""
    spec, at, columns = table.figure, _places(found), [column.name for column in table.columns]
    width = 0.8 / len(table.rows)
    with canvas(size=(max(6.4, 1.6 * len(columns)), 4.2)) as (figure, axes):
        axis = axes[0][0]
        for index, row in enumerate(table.rows):
            here = [(place, at[row.name, name]) for place, name in enumerate(columns) if (row.name, name) in at]
            here = [(place, record) for place, record in here if record.value is not None]
            shift = (index - (len(table.rows) - 1) / 2) * width
            x, y = [place + shift for place, _ in here], [record.value for _, record in here]
            style = {"color": COLOURS[index], "edgecolor": "white", "hatch": ("", "//", "..", "xx")[index % 4]}
            axis.bar(x, y, width * 0.92, label=row.name, linewidth=0, **style)
            axis.errorbar(x, y, _halves([record for _, record in here]), fmt="none", ecolor="#555555", capsize=2.5)
        axis.set(xlabel=spec.x, ylabel=spec.y)
        axis.set_xticks(range(len(columns)), columns)
        axis.grid(axis="x", visible=False)
        legend(figure, axis)
    return figure


def scatter(table: Table, found: list[Record]) -> Figure:
    """The second column against the first, on a logarithmic axis; a row with a printed x alone is a vertical line."""
    spec, at = table.figure, _places(found)
    first, second = (column.name for column in table.columns)
    with canvas(size=(6.8, 4.2)) as (figure, axes):
        axis, printed = axes[0][0], []
        axis.set_xscale("log")
        for index, row in enumerate(table.rows):
            x, y = at.get((row.name, first)), at.get((row.name, second))
            bars = {"fmt": "none", "ecolor": COLOURS[index], "capsize": 3}
            if x and y and x.value is not None and y.value is not None:
                name = f"{row.name}: {x.value:.3g} {METRICS[x.metric].unit}, {shown(y)}"
                axis.errorbar([x.value], [y.value], _halves([y]), _halves([x]), **bars)
                axis.plot([x.value], [y.value], MARKS[index], color=COLOURS[index], markersize=8, label=name)
            if x and x.published is not None:
                printed.append((x.published, row.name))
        _printed(axis, printed, METRICS[table.columns[0].metric].unit)
        axis.set(xlabel=spec.x, ylabel=spec.y)
        axis.margins(x=0.12, y=0.25)
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        legend(figure, axis)
    return figure


KINDS: dict[str, Callable[[Table, list[Record]], Figure]] = {"lines": lines, "bars": bars, "scatter": scatter}


# Parts


def _printed(axis: Axes, values: list[tuple[float, str]], unit: str) -> None:
    """The paper's values, as vertical lines; what lies closer than a tenth shares its label."""
    groups: list[list[tuple[float, str]]] = []
    for value, name in sorted(values):
        if groups and value < 1.1 * groups[-1][-1][0]:
            groups[-1].append((value, name))
        else:
            groups.append([(value, name)])
    for group in groups:
        for value, _ in group:
            axis.axvline(value, color="#7f7f7f", linestyle=":", linewidth=1.2)
        text = "\n".join(f"{name}, published: {value:g} {unit}" for value, name in group)
        axis.annotate(
            text, (group[0][0], 0.02), xycoords=("data", "axes fraction"), rotation=90, fontsize=7.5, va="bottom",
            ha="right", textcoords="offset points", xytext=(-2, 0),
        )  # fmt: skip


def _line(axis: Axes, index: int, count: int, name: str, points: Sequence[tuple[float, Record]]) -> None:
    """One line with intervals, a little to the side of the others, so that equal ones are seen."""
    points = [(x, record) for x, record in points if record.value is not None]
    shift = 0.06 * (index - (count - 1) / 2)
    x, y = [x + shift for x, _ in points], [record.value for _, record in points]
    style = {"color": COLOURS[index], "marker": MARKS[index], "linestyle": DASHES[index % len(DASHES)]}
    axis.errorbar(x, y, _halves([record for _, record in points]), label=name, capsize=2.5, elinewidth=1, **style)


def _halves(found: list[Record]) -> list[float]:
    return [record.ci95 or 0.0 for record in found]


def _places(found: list[Record]) -> dict[tuple[str, str], Record]:
    return {(record.row, record.column): record for record in found}


def _joined(group: str, leaf: str) -> str:
    return f"{group}/{leaf}" if leaf else group


def _number(name: str) -> float:
    """The number in the name of a row or column."""
    match = re.search(r"\d+(\.\d+)?", name)
    if not match:
        raise UserError(f"{name!r}: a figure of lines needs a number in the name of each point")
    return float(match[0])
