"""Cells and trainings that nobody measured, for tests of what is made from them."""

from __future__ import annotations

import csv
import json
import math
import random
from pathlib import Path

from pipeline.plan import Plan

LEVEL = {"lga": 78, "task_adapter_pp": 62, "task_adapter": 56, "clip_fsar": 70, "clip_finetune": 40}
CURVE = ("step", "loss", "loss_matching", "accuracy", "learning_rate", "seconds", "validation_accuracy")


def fill(plan: Plan, results: Path) -> None:
    """Write every cell of `plan` and every training below `results`."""
    (results / "cells").mkdir(parents=True, exist_ok=True)
    for cell in plan.cells.values():
        (results / "cells" / f"{cell.id}.json").write_text(json.dumps(_cell(cell)))
    for run in plan.runs.values():
        folder, noise = results / "runs" / run.id, random.Random(run.id)
        folder.mkdir(parents=True, exist_ok=True)
        record = {"run": run.id, "seconds": 12.5, "steps": 48 if run.train else 0, "workers": 1}
        (folder / "train.json").write_text(json.dumps(record))
        if run.train:
            with (folder / "curve.csv").open("w", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(CURVE)
                for step in range(1, 49):
                    loss = 2 * math.exp(-step / 20) + noise.gauss(0.4, 0.1)
                    accuracy = "" if step % 24 else 50 + step / 3 + noise.random()
                    writer.writerow([step, loss, loss / 2, min(1, 0.5 + step / 100), 3e-4, step * 0.3, accuracy])


def _cell(cell) -> dict:
    noise, run, measure = random.Random(cell.id), cell.run, cell.measure.settled()
    searched = measure.alpha == "val"
    grid = [index / 10 for index in range(11)]
    curve = {kind: [[alpha, 80 - 20 * abs(alpha - 0.4)] for alpha in grid] for kind in ("val", "test")}
    if measure.metric == "time_ms":
        value, half = 5 + 3 * noise.random(), 0.3
    elif measure.metric == "params_m":
        value, half = 0.2 + noise.random(), None
    else:
        depth = run.model.get("layers", run.model.get("order_layers", 4))
        depth = depth if isinstance(depth, int) else 4
        value = LEVEL.get(run.method, 50) + 8 * math.log(1 + depth) / math.log(13) + noise.gauss(0, 1.5)
        value, half = value - 3 * (measure.way - 5) + 6 * (measure.shot > 1), 54 / math.sqrt(measure.episodes or 200)
    return {
        "cell": cell.id, "run": run.id, "metric": measure.metric, "value": value, "ci95": half,
        "n": measure.episodes or 200, "alpha": 0.4 if searched else None, "alpha_curve": curve if searched else None,
        "dataset": run.dataset.rsplit("-", 1)[0], "scale": run.scale, "selection": run.selection, "seed": run.seed,
        "coverage": None, "measure": measure.model_dump(mode="json"),
    }  # fmt: skip
