"""Cells and trainings that nobody measured, for tests of what is made from them."""

from __future__ import annotations

import csv
import json
import math
import random
from pathlib import Path

import numpy as np

from pipeline.experiment import Run
from pipeline.inspection import write_look
from pipeline.plan import Plan
from pipeline.workspace import Workspace

LEVEL = {"lga": 78, "task_adapter_pp": 62, "task_adapter": 56, "clip_fsar": 70, "clip_finetune": 40}
MOVES = [f"{move} {way}" for move in ("cartwheel", "hop", "lean") for way in ("left", "right")]
CURVE = ("step", "loss", "loss_matching", "accuracy", "learning_rate", "seconds", "validation_accuracy")


def fill(plan: Plan, results: Path) -> None:
    """Write every cell of `plan`, every training and what figures need to know of it below `results`."""
    (results / "cells").mkdir(parents=True, exist_ok=True)
    for cell in plan.cells.values():
        (results / "cells" / f"{cell.id}.json").write_text(json.dumps(_cell(cell)))
    for run in plan.inspected:
        write_look(plan.runs[run], Workspace(results), look(plan.runs[run]))
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


def look(run: Run) -> dict[str, np.ndarray]:
    """What an inspection of `run` may hold."""
    noise = np.random.default_rng(list(run.id.encode()))
    if "feed" in run.frames:
        names = np.array([f"class {i}" for i in range(5)])
        joints = np.array(["pelvis", "head", "left ankle", "right ankle"])
        shares = noise.dirichlet(np.ones(4), (2, 5))
        attention = noise.uniform(0, 2, (2, 5, 9, 4))
        return {
            "joints": joints, "parents": np.array([-1, 0, 0, 0]), "base_classes": names, "novel_classes": names,
            "importance": shares[0], "target": shares[1], "base_attention": attention[0],
            "novel_attention": attention[1], "poses": noise.normal(size=(5, 4, 2)),
        }  # fmt: skip
    stages = 3 if run.model.get("text") == "stages" else 1
    return {
        "classes": np.array(["hop", "lean", "spin", "wave", "kick"]), "labels": np.repeat(np.arange(5), 6),
        "points": noise.normal(size=(30, 2)), "frames": noise.integers(0, 255, (3, 8, 12, 12, 3), dtype=np.uint8),
        "seconds": np.tile(np.arange(8) / 4, (3, 1)), "phases": np.tile([1, 1, 1, 2, 2, 3, 3, 3], (3, 1)),
        "atoms": np.array([["begins", "goes on", "ends"]] * 3),
        "attention": noise.dirichlet(np.ones(16), (3, 8)).reshape(3, 8, 4, 4),
        "stage_scores": noise.uniform(-1, 1, (3, 5, stages)),
    }  # fmt: skip


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
    more: dict = {}
    if measure.metric == "teacher_spread_pct":
        more["teacher"] = _teacher(noise)
        value, half = 100 * sum(more["teacher"]["deviation"]) / 200, 0.4
    elif measure.metric == "opposite_pct":
        more = {"confusion": _confusion(noise), "classes": MOVES}
        places = [(true, said) for true in range(6) for said in range(6)]
        value = 100 * sum(more["confusion"][t][s] for t, s in places if s == t ^ 1) / (18 * 6)
    return more | {
        "cell": cell.id, "run": run.id, "metric": measure.metric, "value": value, "ci95": half,
        "n": measure.episodes or 200, "alpha": 0.4 if searched else None, "alpha_curve": curve if searched else None,
        "dataset": run.dataset.rsplit("-", 1)[0], "scale": run.scale, "selection": run.selection, "seed": run.seed,
        "coverage": None, "measure": measure.model_dump(mode="json"),
    }  # fmt: skip


def _teacher(noise: random.Random) -> dict:
    """Of 200 videos: the surer and the steadier, the more often right."""
    confidence = [0.2 + 0.8 * noise.random() for _ in range(200)]
    deviation = [0.25 * (1.05 - value) * (0.5 + noise.random()) for value in confidence]
    return {"confidence": confidence, "deviation": deviation, "right": [noise.random() < c for c in confidence]}


def _confusion(noise: random.Random) -> list[list[int]]:
    """Of 18 videos of each of 6 classes."""
    table = [[0] * 6 for _ in range(6)]
    for true in range(6):
        for said in noise.choices([true, true ^ 1, noise.randrange(6)], (6, 2, 1), k=18):
            table[true][said] += 1
    return table
