"""Training curves: loss and validation accuracy of every training behind a paper's tables."""

from __future__ import annotations

import csv
import math
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import UserError, unknown
from pipeline.figures.style import COLOURS, canvas, caption, write
from pipeline.workspace import Workspace

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from pipeline.experiment import Run
    from pipeline.plan import Plan

PANELS = 4  # beside one another
SMOOTHED = 0.1  # fraction of a training over which its loss is averaged


def runs_of(plan: Plan, paper: str) -> list[Run]:
    """The trainings behind the tables of a paper; models that are not trained are left out."""
    runs = {cell.run.id: cell.run for entry in plan.entries if entry.paper == paper for cell in entry.cells}
    return [run for run in runs.values() if run.train]


def read_curve(path: Path, points: int = 0) -> dict[str, list[float | None]]:
    """The columns of a `curve.csv`; an empty field is None.

    Args:
        points: where there are more lines, about so many of them, evenly; all that were validated are kept.
    """
    with path.open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    every = math.ceil(len(lines) / points) if points else 1
    kept = [x for i, x in enumerate(lines) if i % every == 0 or i == len(lines) - 1 or x.get("validation_accuracy")]
    return {key: [float(x[key]) if x[key] else None for x in kept] for key in (lines[0] if lines else ())}


def write_training(plan: Plan, paper: str, results_dir: Path | str = "results") -> tuple[Path, ...]:
    """Writes `RESULTS/PAPER/training.png`, `.svg` and `.pdf` and returns their paths.

    Raises:
        UserError: no such paper, or a training has no curve yet.
    """
    return write(draw_training(plan, paper, results_dir), Path(results_dir) / paper / "training")


def draw_training(plan: Plan, paper: str, results_dir: Path | str = "results") -> Figure:
    """For each method its loss (above) and validation accuracy (below) over the steps, one line a training.

    Raises:
        UserError: no such paper, or a training has no curve yet.
    """
    if paper not in plan.papers:
        raise unknown("paper", paper, plan.papers)
    methods, ws = defaultdict(list), Workspace(results_dir)
    for run in runs_of(plan, paper):
        methods[run.method].append(run)
    if not methods:
        raise UserError(f"paper {paper}: nothing in its tables is trained")
    names = list(methods)
    datasets = sorted({_dataset(run) for runs in methods.values() for run in runs})
    across, down = min(PANELS, len(names)), math.ceil(len(names) / PANELS)
    with canvas(2 * down, across, (2.9 * across + 0.6, 4.4 * down)) as (figure, axes):
        for axis in axes.flat:
            axis.set_visible(False)
        for index, name in enumerate(names):
            row, column = divmod(index, PANELS)
            above, below = axes[2 * row][column], axes[2 * row + 1][column]
            for run in methods[name]:
                _lines(above, below, _read(ws, run), COLOURS[datasets.index(_dataset(run))])
            below.set_xlim(above.get_xlim())
            above.set_title(name.replace("_", " "))
            below.set_xlabel("step")
            if column == 0:
                above.set_ylabel("training loss")
                below.set_ylabel("validation\naccuracy (%)")
            for axis in (above, below):
                axis.set_visible(True)
        handles = [above.plot([], [], color=COLOURS[i], label=name)[0] for i, name in enumerate(datasets)]
        figure.legend(handles, datasets, loc="outside upper center", ncols=len(datasets))
        count = sum(map(len, methods.values()))
        caption(figure, f"{count} trainings at scale {plan.config.settings.scale}; the loss is a running mean.")
    return figure


def _dataset(run: Run) -> str:
    return run.dataset.rsplit("-", 1)[0].replace("_", " ")


def _read(ws: Workspace, run: Run) -> dict[str, list[float | None]]:
    path = ws.run(run.id) / "curve.csv"
    if not path.is_file():
        make = f"snakemake --config scale={run.scale} -- {ws.run(run.id) / 'train.json'}"
        raise UserError(f"{path}: not trained yet; make it with `{make}`")
    return read_curve(path)


def _lines(above, below, curve: dict[str, list[float | None]], colour: str) -> None:
    steps, losses = curve["step"], curve["loss"]
    width = max(1, round(SMOOTHED * len(losses)))
    sums = [0.0]
    for loss in losses:
        sums.append(sums[-1] + (loss or 0.0))
    means = [(sums[i + 1] - sums[max(0, i + 1 - width)]) / min(i + 1, width) for i in range(len(losses))]
    above.plot(steps, means, color=colour, alpha=0.6, linewidth=1)
    points = [(s, a) for s, a in zip(steps, curve.get("validation_accuracy", []), strict=False) if a is not None]
    below.plot([s for s, _ in points], [a for _, a in points], "o-", color=colour, alpha=0.6, linewidth=1, markersize=3)
