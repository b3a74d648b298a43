"""All cells of one run, from cached scores (`pipeline.evaluation.score` makes them).

Scores are cached by what they depend on, so another alpha grid re-reads them and encodes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.datasets.coverage import read_coverage
from pipeline.errors import UserError
from pipeline.evaluation.answers import Answers
from pipeline.evaluation.needed import needed_scores, needed_values, scores_path, value_path
from pipeline.experiment import Cell, Run, digest
from pipeline.files import write_json
from pipeline.metrics import METRICS
from pipeline.scores import EpisodeScores, alpha_curve, best_alpha, fused, outcome, summary
from pipeline.workspace import Workspace

Curve = list[tuple[float, float]]
Search = Callable[[str, dict[str, Path], Sequence[float]], dict[str, Curve]]
"""(name, scores files, grid) -> the accuracy curve of each file."""


def measure_run(run: Run, cells: Sequence[Cell], ws: Workspace, search: Search) -> list[Path]:
    """Write the cell files of `cells` from cached scores; `search` finds the alpha curves.

    Raises:
        UserError: scores are missing.
    """
    if missing := [*needed_scores(cells, ws), *needed_values(cells, ws)]:
        raise UserError(f"{missing[0]} is missing: run `python -m pipeline evaluate {run.id}`")
    by_grid: dict[tuple[float, ...], dict[str, Path]] = {}
    for cell in cells:
        if cell.measure.settled().alpha == "val":
            path = scores_path(ws, run, cell.measure.settled(), "val")
            by_grid.setdefault(cell.measure.alpha_grid, {})[path.stem] = path
    curves = {grid: search(f"{run.id}-{digest(grid)}", files, grid) for grid, files in by_grid.items()}
    return [_write_cell(cell, ws, curves) for cell in cells]


def _write_cell(cell: Cell, ws: Workspace, curves: dict[tuple[float, ...], dict[str, Curve]]) -> Path:
    run, measure = cell.run, cell.measure.settled()
    there = read_coverage(ws.store(run))
    record: dict[str, Any] = {
        "cell": cell.id, "run": run.id, "metric": measure.metric, "alpha": None, "alpha_curve": None,
        "dataset": run.dataset.rsplit("-", 1)[0], "scale": run.scale, "selection": run.selection, "seed": run.seed,
        "coverage": there.get("test"), "coverage_train": there.get("train"), "measure": measure.model_dump(mode="json"),
    }  # fmt: skip
    metric = METRICS[measure.metric]
    if metric.scored:
        found, extra = _answered(cell, ws, curves)
    else:
        found, extra = json.loads(value_path(ws, run, measure).read_text("utf-8")), {}
    record |= _numbers(metric.values(found)) | {key: part(found) for key, part in metric.beside.items()} | extra
    path = ws.cell(cell.id)
    write_json(path, record)
    return path


def _numbers(values: float | Sequence[float]) -> dict[str, Any]:
    """Value, interval and number of what was measured; a single number is exact."""
    return summary(np.asarray(values)) if np.ndim(values) else {"value": values, "ci95": None, "n": 1}


def _answered(cell: Cell, ws: Workspace, curves: dict[tuple[float, ...], dict[str, Curve]]) -> tuple[dict, dict]:
    """What the metric of `cell` finds in the answers to its test, and what the cell file says of them beside it."""
    run, measure = cell.run, cell.measure.settled()
    scores = EpisodeScores.load(scores_path(ws, run, measure, "test"))
    alpha, extra = measure.alpha, {}
    if alpha == "val":
        curve = curves[measure.alpha_grid][scores_path(ws, run, measure, "val").stem]
        alpha = best_alpha(curve)
        extra["alpha_curve"] = {"val": curve, "test": alpha_curve(scores, measure.alpha_grid)}
    logits = fused(scores, measure.score, alpha)
    extra["alpha"] = alpha if measure.score == "both" and alpha != "own" else None
    extra["predictions"] = outcome(logits, scores.labels, scores.spread)
    answers = Answers(run, ws.store(run) / "index.csv", logits, scores.labels)
    return METRICS[measure.metric].answers(answers), extra


def search_in_process(name: str, files: dict[str, Path], grid: Sequence[float]) -> dict[str, Curve]:
    """The alpha curves, worked out here and now."""
    return {key: alpha_curve(EpisodeScores.load(path), grid) for key, path in files.items()}
