"""The curves of a training where people watch them: TensorBoard always, Weights & Biases or MLflow on request.

MMEngine's visualiser writes them. Each training is a run of its own there, under its readable id.
"""

from __future__ import annotations

import importlib.util
import os
import time
from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner

from pipeline.errors import UserError
from pipeline.experiment import Run

PROJECT = "few-shot-action-tables"
FOLDER = "tensorboard"  # in the folder of the run
ASIDE = ("step", "seconds")  # columns of a curve that are no curves


def visualizer(run: Run, folder: Path, tracker: str) -> dict[str, Any]:
    """MMEngine's settings of a visualiser that writes to `folder` and to `tracker` (wandb, mlflow; empty: neither).

    Raises:
        UserError: the package of the tracker is not installed.
    """
    if tracker and importlib.util.find_spec(tracker) is None:
        raise UserError(
            f"cluster.tracker is {tracker}, and the package {tracker} is not installed: pip install {tracker}"
        )
    backends: list[dict[str, Any]] = [{"type": "TensorboardVisBackend"}]
    if tracker == "wandb":  # a training that goes on is the same run there
        asked = {"project": PROJECT, "name": run.id, "id": run.id, "resume": "allow", "dir": str(folder)}
        backends.append({"type": "WandbVisBackend", "init_kwargs": asked})
    elif tracker == "mlflow":
        where = os.environ.get("MLFLOW_TRACKING_URI") or (folder.parents[1] / "mlruns").absolute().as_uri()
        backends.append({"type": "MLflowVisBackend", "exp_name": PROJECT, "run_name": run.id, "tracking_uri": where})
    # MMEngine keeps visualisers by name, so two trainings of one run in a process need two names.
    name = f"{run.id}-{time.time_ns()}"
    return {"type": "Visualizer", "name": name, "vis_backends": backends, "save_dir": str(folder / FOLDER)}


class Tracked(Hook):
    """Hands the new rows of the curve to the visualiser, after each step."""

    priority = "VERY_LOW"  # after the validation, whose accuracy stands in the row

    def __init__(self, rows: list[dict[str, Any]], every: int) -> None:
        self.rows, self.every, self.told = rows, every, len(rows)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict | None = None
    ) -> None:
        if (runner.iter + 1) % self.every == 0:
            self._tell(runner)

    def _tell(self, runner: Runner) -> None:
        new, self.told = self.rows[self.told :], len(self.rows)
        for row in new if is_main_process() else ():
            values = {name: float(value) for name, value in row.items() if name not in ASIDE}
            runner.visualizer.add_scalars(values, step=row["step"])

    def after_train(self, runner: Runner) -> None:
        self._tell(runner)
        runner.visualizer.close()
