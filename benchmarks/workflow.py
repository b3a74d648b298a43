"""What the workflow costs before anything runs, and the trainings that its tables share."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

from benchmarks.lines import Line, timed
from benchmarks.world import World
from pipeline.plan import Plan
from pipeline.training.train import train_run

TOPIC = "6 workflow"
REPO = Path(__file__).resolve().parents[1]
ALL, ONE, START = 10.0, 4.0, 1.0
"""Seconds, at most."""


def measure(world: World, scale: str = "paper", dry_runs: bool = True) -> list[Line]:
    """Lines of dry runs at `scale`, of the plan, and of the start of a training."""
    lines = [startup(world)]
    if dry_runs:
        for target, limit in (("all_tables", ALL), ("results/lga/table4.csv", ONE)):
            seconds = min(timed(lambda target=target: _dry(target, scale))[0] for _ in range(2))
            what = f"snakemake -n {target} at {scale} scale"
            lines.append(Line(TOPIC, what, None, seconds, targets=(("fast", limit),)))
    plan = Plan.read(REPO / "config", {"scale": scale})
    apart, together = trainings(plan)
    places = sum(len(entry.cells) for entry in plan.entries)
    return [
        *lines,
        Line(TOPIC, f"trainings at {scale} scale: shared, or each table its own", apart, together, unit=""),
        Line(TOPIC, f"measurements at {scale} scale: shared, or each place its own", places, len(plan.cells), unit=""),
    ]


def startup(world: World) -> Line:
    """A training of one step in a process that has trained before, as in a slot of the shared cluster, or the first."""
    train = {"steps": 1, "episodes_per_step": 1, "warmup_steps": 0, "milestones": []}
    first, second = (world.cell(method=name, selection="last", train=train).run for name in ("otam", "lga"))
    (cold, _), (warm, _) = (timed(partial(train_run, run, world.ws)) for run in (first, second))
    what = "a whole training of one step in a process that trained before, or in a new one"
    return Line(TOPIC, what, cold, warm, targets=(("fast", START),), note="step included; imports of the first are not")


def trainings(plan: Plan) -> tuple[int, int]:
    """Trainings if every table had its own, and those that there are."""
    apart = 0
    for paper, number in plan.tables():
        apart += len({c.run.id for entry in plan.table_entries(paper, number) for c in entry.cells if c.run.train})
    return apart, sum(bool(run.train) for run in plan.runs.values())


def _dry(target: str, scale: str) -> None:
    command = [sys.executable, "-m", "snakemake", "-n", "--quiet", "--config", f"scale={scale}", "--", target]
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    subprocess.run(command, cwd=REPO, env=environment, check=True, capture_output=True)
