"""One axis of a table as a Ray Tune sweep: each trial is one run of the plan, trained like any other."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from typing import Any

from pipeline.cluster.client import Client, connect, join
from pipeline.config import Cluster
from pipeline.errors import UserError
from pipeline.progress import Bar, bar
from pipeline.workspace import Workspace


def _trial(config: dict[str, Any]) -> None:
    """Let the cluster train one run, unless that is done, and report what its training says of itself."""
    from ray import tune

    ws, run_id = Workspace(config["root"]), config["run"]
    record = ws.run(run_id) / "train.json"
    if not record.is_file():
        settings = Cluster.model_validate(config["cluster"])
        if settings.mode == "shared":
            Client(ws, settings).run(run_id, "train", {"run": run_id})
        else:
            from pipeline.training.ray_train import fit

            fit(ws.read_run(run_id), ws, settings, alone=False)
    content = json.loads(record.read_text("utf-8"))
    tune.report({key: content[key] for key in ("validation_accuracy", "selected_step", "seconds") if key in content})


def sweep(name: str, ws: Workspace, settings: Cluster) -> Path:
    """Train the runs of the planned sweep `name` as trials of one Ray Tune experiment; finished ones are kept.

    Returns the table of trials, `results/sweeps/NAME.csv`.

    Raises:
        UserError: a trial failed; the others are finished all the same.
    """
    plan = ws.read_sweep(name)
    join(ws, settings) if settings.mode == "shared" else connect(ws, settings)
    from ray import tune  # after the client has set Ray's environment

    class Trials(tune.Callback):
        """Counts the trials that have ended."""

        shown: Bar

        def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
            self.shown.advance()

        def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
            self.shown.advance()

    trials = Trials()
    tuner = tune.Tuner(
        tune.with_resources(_trial, {"cpu": 0.01}),
        param_space={
            "run": tune.grid_search(plan["runs"]),
            "root": str(ws.root.resolve()),
            "cluster": settings.model_dump(mode="json"),
        },
        tune_config=tune.TuneConfig(
            max_concurrent_trials=settings.slots,
            trial_name_creator=lambda trial: trial.config["run"],
            trial_dirname_creator=lambda trial: trial.config["run"],
        ),
        run_config=tune.RunConfig(
            name=name, storage_path=str((ws.ray / "tune").resolve()), verbose=0, callbacks=[trials]
        ),
    )
    with bar("sweeping", len(plan["runs"]), "trials") as trials.shown:
        results = tuner.fit()
    if results.errors:
        reason = [line for line in str(results.errors[0]).splitlines() if line.strip()][-1]
        raise UserError(
            f"sweep {name}: {len(results.errors)} of {len(results)} trials failed; the first: {reason[:200]}"
        )
    rows = []
    for result in results:
        run = ws.read_run(result.config["run"])
        value: Any = run.model_dump()
        for part in plan["axis"].split("."):
            value = value[part]
        metrics = {key: result.metrics.get(key) for key in ("validation_accuracy", "selected_step", "seconds")}
        rows.append({plan["axis"]: value, "run": run.id, **metrics})
    path = ws.root / "sweeps" / f"{name}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    with temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(sorted(rows, key=lambda row: row[plan["axis"]]))
    os.replace(temporary, path)
    return path
