"""What cells need that is not there yet. No numerics are loaded: a command asks it before the cluster gets the work."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.datasets.coverage import present_clips
from pipeline.experiment import Cell, Measure, Run, digest
from pipeline.metrics import METRICS
from pipeline.workspace import Workspace


def scores_path(ws: Workspace, run: Run, measure: Measure, split: str) -> Path:
    """Cache file of the scores of `measure` on `split`; of a data set that lacks clips, by those that are there."""
    scoring = measure.scoring_on(split)
    if present := present_clips(ws.store(run)):
        scoring |= {"present": present}
    name = f"{split}-{measure.way}way-{measure.shot}shot-{digest(scoring)}.npz"
    return ws.scores(run.id) / name


def needed_scores(cells: Sequence[Cell], ws: Workspace) -> dict[Path, tuple[Measure, str]]:
    """Score files that `cells` need and that are not there yet."""
    wanted: dict[Path, tuple[Measure, str]] = {}
    for cell in cells:
        measure = cell.measure.settled()
        if not METRICS[measure.metric].scored:
            continue
        wanted[scores_path(ws, cell.run, measure, "test")] = (measure, "test")
        if measure.alpha == "val":
            wanted[scores_path(ws, cell.run, measure, "val")] = (measure, "val")
    return {path: value for path, value in wanted.items() if not path.is_file()}


def needed_work(cells: Sequence[Cell], ws: Workspace) -> bool:
    """Whether `score_run` has anything to do."""
    return bool(needed_scores(cells, ws) or needed_values(cells, ws))


def needed_values(cells: Sequence[Cell], ws: Workspace) -> dict[Path, Measure]:
    """Files of what is read off the model itself (`value_path`) that `cells` need and that are not there yet."""
    wanted = {value_path(ws, c.run, c.measure): c.measure for c in cells if not METRICS[c.measure.metric].scored}
    return {path: measure for path, measure in wanted.items() if not path.is_file()}


def value_path(ws: Workspace, run: Run, measure: Measure) -> Path:
    """File of what `measure` reads off the model itself: times, a number of parameters, a teacher's predictions."""
    task = digest(measure.model_dump(include={"way", "shot", "query", "episode_seed", "matcher"}))
    settings = measure.model_dump() | {"part": measure.part or "all", "task": task}
    return ws.scores(run.id) / f"{METRICS[measure.metric].file.format(**settings)}.json"
