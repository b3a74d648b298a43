"""Whether a training in bfloat16 decides as one in float32: demo runs trained both ways, and with another seed beside.

    python -m benchmarks.precision [RESULTS]      after `make demo`, whose data and backbones it reads; on a CPU

Few-shot methods compute the layers of CLIP's frame tower in bfloat16, as at paper scale; SeFAR, which at paper scale
does not, its whole forward pass. Every test is in float32, on the same episodes or videos.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch

from pipeline.experiment import Measure, Run
from pipeline.intervals import ci95
from pipeline.models.build import load_weights
from pipeline.models.semi import SeFARModel
from pipeline.plan import Plan
from pipeline.scores import fused
from pipeline.tasks.kinds import task_of
from pipeline.training.train import train_run
from pipeline.workspace import Workspace

METHODS = ("lga", "task_adapter_pp", "sefar")
TABLE = "4"
ALPHA = 0.5  # of the score with texts: nothing is chosen, so that decisions differ by weights alone


def decisions(run: Run, measure: Measure, ws: Workspace, numbers: str) -> tuple[np.ndarray, np.ndarray]:
    """Train `run` and test it: the class that is said for each query, and whether it is right, (E, Q) both."""
    whole = torch.autocast("cpu", torch.bfloat16)(SeFARModel.forward) if numbers == "bf16" else SeFARModel.forward
    with patch.object(SeFARModel, "forward", whole):
        train_run(run, ws, precision=numbers, anywhere=True)
    task = task_of(run, ws)
    scores = task.scores(load_weights(task.build(), run, ws).eval(), measure, "test")
    said = (scores.trained if scores.log_vt is None else fused(scores, "both", ALPHA)).argmax(-1)
    return said, said == scores.labels


def measure(plan: Plan, results: Path, folder: Path, methods: tuple[str, ...] = METHODS) -> Iterator[list[str]]:
    """A row for each method: accuracy both ways, and the share of decisions that are equal; with another seed, too."""
    for method in methods:
        cells = (cell for cell in plan.cells.values() if cell.run.method == method and cell.run.train)
        cell = next(cell for cell in cells if cell.measure.metric == "accuracy_pct")
        found = {}
        for name, numbers, seed in (("float32", "float32", 0), ("bf16", "bf16", 0), ("seed 1", "float32", 1)):
            ws = Workspace(folder / method / name.replace(" ", "_"))
            ws.root.mkdir(parents=True)
            for part in ("data", "backbones", "specs"):
                (ws.root / part).symlink_to((results / part).resolve())
            found[name] = decisions(cell.run.model_copy(update={"seed": seed}), cell.measure, ws, numbers)
        said, right = found["float32"]
        shares = [100 * float((found[name][0] == said).mean()) for name in ("bf16", "seed 1")]
        yield [
            f"{method}, {plan.datasets[cell.run.dataset].name}", f"{said.size:,}",
            *(f"{100 * found[name][1].mean():.1f}" for name in ("float32", "bf16", "seed 1")),
            f"{ci95(100.0 * right.mean(-1)) if len(right) > 1 else 0.0:.1f}", *(f"{share:.1f}" for share in shares),
        ]  # fmt: skip


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.precision", description=__doc__.splitlines()[0])
    parser.add_argument("results", nargs="?", type=Path, default=Path("results"), help="folder of a demo that is done")
    given = parser.parse_args()
    plan = Plan.read("config", {"scale": "demo"}, number=TABLE)
    print("| run | decisions | float32 | bf16 | seed 1 | ± | equal in bf16 | equal with seed 1 |")
    print("|---|" + "---:|" * 7)
    with tempfile.TemporaryDirectory() as folder:
        for row in measure(plan, given.results, Path(folder)):
            print("| " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
