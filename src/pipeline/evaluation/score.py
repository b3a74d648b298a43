"""The heavy part of a measurement: videos through the model, episodes into score files."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from pipeline.datasets.episodes import episode_table
from pipeline.datasets.frames import FrameStore
from pipeline.evaluation.evaluate import measure_run, needed_scores, needed_values
from pipeline.evaluation.few_shot import class_texts, encode_clips, remove_features, split_clips
from pipeline.experiment import Cell, Measure, Run
from pipeline.models.build import load_weights
from pipeline.models.skeleton.base import SkeletonModel
from pipeline.training.tasks import task_of
from pipeline.workspace import Workspace, exclusive, write_json

TIMED_TASKS = 20


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
    for path, measure in values.items():
        if measure.metric == "time_ms":
            write_json(path, {"milliseconds": time_tasks(run, measure, model, task.store, ws)})
        elif measure.metric == "teacher_time_share_pct":
            write_json(path, {"percent": task.teacher_shares(model)})
        elif measure.metric == "teacher_spread_pct":
            write_json(path, task.teacher_predictions(model))
        else:
            write_json(path, {"parameters": tuned_parameters(model, measure.part)})
    return len(wanted) + len(values)


def tuned_parameters(model: torch.nn.Module, part: str = "") -> int:
    """Number of trainable parameters whose names begin with `part`; of a skeleton model that of the model at test."""
    if isinstance(model, SkeletonModel):
        return model.size()
    return sum(p.numel() for name, p in model.named_parameters() if p.requires_grad and name.startswith(part))


@torch.inference_mode()
def time_tasks(run: Run, measure: Measure, model: torch.nn.Module, store: FrameStore, ws: Workspace) -> list[float]:
    """Milliseconds of whole tasks, one by one: read and encode supports and queries, match (LGA, Figure 3)."""
    clips, classes = split_clips(store, "test"), store.classes("test")
    place = {name: [i for i, c in enumerate(clips) if store.labels[c] == name] for name in classes}
    table = episode_table(place, measure.way, measure.shot, measure.query, TIMED_TASKS + 2, measure.episode_seed)
    texts = class_texts(run, model, ws, classes)  # of the classes, known before a query comes
    times = []
    for i in range(TIMED_TASKS + 2):
        start = time.perf_counter()
        used = np.concatenate([table.support[i].ravel(), table.query[i]])
        features = encode_clips(run, model, store, [clips[j] for j in used])
        support = features[: table.support[i].size].unflatten(0, table.support[i].shape)
        query = model.relate_queries(features[table.support[i].size :][None])
        chosen = None if texts is None else texts[torch.from_numpy(table.classes[i])][None]
        prototypes = model.prototypes(model.relate_supports(support[None]), chosen)
        float(model.match(query, prototypes, chosen, measure.matcher)["vv"].sum())
        times.append(1000 * (time.perf_counter() - start))
    return times[2:]  # the first ones warm up
