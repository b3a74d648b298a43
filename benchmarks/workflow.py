"""What the workflow costs before anything runs, and the trainings that its tables share."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from benchmarks.lines import Line, timed
from pipeline.plan import Plan

TOPIC = "6 workflow"
REPO = Path(__file__).resolve().parents[1]
ALL, ONE = 10.0, 4.0


def measure(scale: str = "paper", dry_runs: bool = True) -> list[Line]:
    """Lines of dry runs at `scale`, and of the plan."""
    lines = []
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
