"""Commands of a run: pretrain, train, sweep, evaluate, inspect."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.options import Key, Results, RunId, Settings, app, settings_of, spread_over_nodes
from pipeline.progress import follow, job
from pipeline.workspace import Workspace


@app.command()
def pretrain(
    key: Key,
    results: Results = Path("results"),
    threads: Annotated[int, typer.Option(min=1)] = 1,
    anew: Annotated[bool, typer.Option("--anew", help="Pretrain even if it comes with the repository.")] = False,
    pack: Annotated[
        str, typer.Option(help="Also write it to FOLDER/KEY in half precision, as in config/pretrained.")
    ] = "",
) -> None:
    """Fetch a tiny backbone that comes with the repository, or pretrain it on frames and captions of base classes."""
    from pipeline.stages import pretrain_backbone

    ws = Workspace(results)
    with job(ws, "pretrain", key):
        print(pretrain_backbone(ws.read_asset(key), ws, threads, anew))
        if pack:
            from pipeline.models.backbones import shipped

            print(shipped.pack(ws.backbone(key), Path(pack) / key))


@app.command()
def train(run: RunId, results: Results = Path("results"), settings: Settings = "") -> None:
    """Train one run: on the shared Ray cluster, or as a Ray job of its own (cluster.mode: job).

    An interrupted training continues from its last checkpoint.
    """
    ws, cluster = Workspace(results), settings_of(settings)
    spread_over_nodes(ws, cluster)
    spec = ws.read_run(run)
    with follow(ws, "train", spec.id):
        if cluster.mode == "shared":
            from pipeline.cluster.client import Client

            Client(ws, cluster).run(spec.id, "train", {"run": spec.id})
        else:
            from pipeline.cluster.client import connect

            connect(ws, cluster)
            from pipeline.training.ray_train import fit

            fit(spec, ws, cluster)
    print(ws.run(spec.id) / "train.json")


@app.command()
def sweep(
    name: Annotated[str, typer.Argument(help="Name of the sweep, as `plan` lists it.")],
    results: Results = Path("results"),
    settings: Settings = "",
) -> None:
    """Train the runs along one axis of a table as one Ray Tune sweep; finished trials are kept."""
    ws, cluster = Workspace(results), settings_of(settings)
    spread_over_nodes(ws, cluster)
    if cluster.mode == "shared":
        from pipeline.cluster.client import running
        from pipeline.cluster.nodes import enter

        enter(running(ws) or {})
    from pipeline.training.sweep import sweep as tune_sweep

    with job(ws, "sweep", name):
        print(tune_sweep(name, ws, cluster))


@app.command()
def evaluate(
    run: RunId,
    cells: Annotated[list[str] | None, typer.Argument(help="Ids of its cells (default: all planned ones).")] = None,
    results: Results = Path("results"),
    settings: Settings = "",
) -> None:
    """Measure cells of a trained run: encode each video once, score the episodes, choose alpha by Ray Tune.

    A cell that is newer than the training and the data is not measured again.
    """
    from pipeline.evaluation.needed import needed_work

    ws, cluster = Workspace(results), settings_of(settings)
    spec = ws.read_run(run)
    asked = ws.read_cells(spec.id, cells)
    todo = ws.unmeasured(asked)
    by_tune = any(cell.measure.settled().alpha == "val" for cell in todo)
    name = cells[0] if cells else spec.id
    if not needed_work(todo, ws) and not by_tune:
        from pipeline.evaluation.evaluate import measure_run, search_in_process

        measure_run(spec, todo, ws, search_in_process)
    elif cluster.mode == "shared":
        from pipeline.cluster.client import Client

        with follow(ws, "evaluate", name):
            Client(ws, cluster).run(f"evaluate-{name}", "evaluate", {"run": spec.id, "cells": cells, "name": name})
    else:
        if by_tune:
            from pipeline.cluster.client import connect

            connect(ws, cluster)
        from pipeline.datasets.loading import use_loaders
        from pipeline.evaluation.score import evaluate_run

        use_loaders(cluster.loaders)
        with job(ws, "evaluate", name):
            evaluate_run(spec, todo, ws)
    for path in (ws.cell(cell.id) for cell in asked):
        record = json.loads(path.read_text("utf-8"))
        half = "" if record["ci95"] is None else f" +- {record['ci95']:.2f}"
        print(f"{path}: {record['value']:.2f}{half}")


@app.command()
def inspect(run: RunId, results: Results = Path("results")) -> None:
    """Look inside a trained run, for figures: features, attention, phases or joints of a few fixed clips (npz)."""
    from pipeline.inspection import inspect_run

    ws = Workspace(results)
    spec = ws.read_run(run)
    with job(ws, "inspect", spec.id):
        print(inspect_run(spec, ws))
