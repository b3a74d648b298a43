"""The heavy part of a measurement: videos through the model, episodes into score files."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import torch

from pipeline.datasets.episodes import episode_table
from pipeline.datasets.frames import FrameStore
from pipeline.evaluation.evaluate import needed_scores, needed_values, scoring_of
from pipeline.evaluation.few_shot import class_texts, encode_clips, score_split, split_clips
from pipeline.experiment import Cell, Measure, Run
from pipeline.models.build import load_trained
from pipeline.workspace import Workspace, write_json

TIMED_TASKS = 20


def score_run(run: Run, cells: Sequence[Cell], ws: Workspace) -> int:
    """Compute the missing scores, times and counts of `cells`, each video encoded once; returns how many."""
    wanted = needed_scores(cells, ws)
    values = needed_values(cells, ws)
    if not wanted and not values:
        return 0
    store = FrameStore(ws.store(run))
    model = load_trained(run, ws, store).to("cuda" if torch.cuda.is_available() else "cpu")
    features = {split: None for _, split in wanted.values()}
    for split in features:
        features[split] = encode_clips(run, model, store, split_clips(store, split))
    for path, (measure, split) in wanted.items():
        scoring = scoring_of(measure, split)
        score_split(
            run, model, ws, store, split, way=scoring["way"], shot=scoring["shot"], query=scoring["query"],
            episodes=scoring["episodes"], seed=scoring["episode_seed"], matcher=scoring["matcher"],
            features=features[split],
        ).save(path)  # fmt: skip
    for path, measure in values.items():
        if measure.metric == "time_ms":
            write_json(path, {"milliseconds": time_tasks(run, measure, model, store, ws)})
        else:
            write_json(path, {"parameters": tuned_parameters(model, measure.part)})
    return len(wanted) + len(values)


def tuned_parameters(model: torch.nn.Module, part: str = "") -> int:
    """Number of trainable parameters whose names begin with `part`."""
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
