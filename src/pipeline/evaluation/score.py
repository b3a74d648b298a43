"""The heavy part of a measurement: videos through the model, episodes into score files."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from pipeline.evaluation.evaluate import measure_run
from pipeline.evaluation.needed import needed_scores, needed_values
from pipeline.experiment import Cell, Run
from pipeline.files import exclusive, write_json
from pipeline.metrics import METRICS
from pipeline.models.build import load_weights
from pipeline.tasks.few_shot.scoring import remove_features
from pipeline.tasks.kinds import check_metric, kind_of_model, task_of
from pipeline.workspace import Workspace


def evaluate_run(run: Run, cells: Sequence[Cell], ws: Workspace) -> list[Path]:
    """Measure cells of a trained run: score the episodes, choose alpha by Ray Tune, write the cells.

    What was encoded is kept as long as other cells of the run are not measured; two measurements of a run wait for each
    other. Needs a running Ray cluster where an alpha is to be chosen.
    """
    from pipeline.evaluation.alpha import search_with_tune

    with exclusive(ws.scores(run.id) / ".lock"):
        others = {cell.id for cell in ws.unmeasured(ws.read_cells(run.id))} - {cell.id for cell in cells}
        score_run(run, cells, ws, keep=bool(others))
        measured = measure_run(run, cells, ws, partial(search_with_tune, ws.ray / "tune"))
        if not others:
            remove_features(ws, run)
    return measured


def score_run(run: Run, cells: Sequence[Cell], ws: Workspace, keep: bool = False) -> int:
    """Compute the missing scores, times and counts of `cells`, each video encoded once; returns how many.

    keep: what was encoded is kept for other cells of the run.
    """
    wanted = needed_scores(cells, ws)
    values = needed_values(cells, ws)
    if not wanted and not values:
        return 0
    task = task_of(run, ws)
    model = load_weights(task.build(), run, ws).to("cuda" if torch.cuda.is_available() else "cpu")
    for path, (measure, split) in wanted.items():
        task.scores(model, measure, split, keep).save(path)
    kind = kind_of_model(run)
    for path, measure in values.items():
        check_metric(measure, kind, run.id)
        write_json(path, METRICS[measure.metric].model(task, model, measure))
    return len(wanted) + len(values)
