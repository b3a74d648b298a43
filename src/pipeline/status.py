"""What is done, what runs, what has failed and what has not learnt: from the plan and the results folder alone.

Done is what has its file. What runs, and how far it is, stands in the files of `pipeline.progress`. Why something has
failed stands there too, or at the end of its log where it was killed, by Slurm say, or by the memory's end.
"""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

from pipeline.evaluation.health import read_outcome, read_training, verdict
from pipeline.plan import Plan
from pipeline.progress import REASON_LINES, line, read_job, span
from pipeline.steps import STAGES, Step, steps_of
from pipeline.workspace import Workspace

STARTING = 120.0  # seconds in which a job that has said nothing yet is one that starts
SILENT = 60.0  # seconds after which it is said how old the news is
FAULT = re.compile(r"^error: |^Traceback|\w(Error|Exception)\b|\b([Kk]illed|CANCELLED|TIME LIMIT|[Oo]ut of memory)\b")
_TAIL = 16_384  # bytes of a log that are read


def read_status(plan: Plan, root: Path | str = "results") -> dict[str, Any]:
    """{scale, kinds: {kind: [done, all]}, running: [...], failed: [...], unhealthy: [...]}, ready for JSON.

    Of what runs: stage, name, fraction (or null) and left (seconds, or null), bars as `progress.Bar.state` gives them.
    Of what has failed: stage, name, reason (lines) and log. Of what has not learnt: run, and notes on what says so.
    """
    jobs = {path.stem: record for path in (Path(root) / "progress").glob("*.json") if (record := read_job(path))}
    out: dict[str, Any] = {"scale": plan.config.settings.scale, "kinds": {}, "running": [], "failed": []}
    # Logs that are read no more: trials of a sweep share one, and one that is being written speaks of no end yet.
    seen = {
        STAGES["sweep"].log(Workspace(root), sweep=record["name"])
        for record in jobs.values()
        if (record["stage"], record["state"]) == ("sweep", "running")
    }
    for step in steps_of(plan, root):
        done, record = step.done, jobs.pop(f"{step.stage}-{step.name}", None)
        count = out["kinds"].setdefault(step.kind, [0, 0])
        count[0], count[1] = count[0] + done, count[1] + 1
        if record is not None and record["state"] == "running":
            out["running"].append(_running(record))
        elif not done and (failure := _failure(step, record, seen)):
            out["failed" if "reason" in failure else "running"].append(failure)
    for record in jobs.values():  # sweeps, and what these settings do not ask for
        if record["state"] == "running":
            out["running"].append(_running(record))
    notes = {run: run_health(plan, run, Workspace(root)) for run in plan.runs}
    out["unhealthy"] = [{"run": run, "notes": found} for run, found in notes.items() if found]
    return out


def run_health(plan: Plan, run: str, ws: Workspace) -> list[str]:
    """What says that a run has not learnt anything: its training, and the tests that are measured so far."""
    files = [path for cell in plan.cells_of.get(run, ()) if (path := ws.cell(cell)).is_file()]
    outcomes = [found for path in files if (found := read_outcome(path))]
    return verdict(read_training(ws.trained(run)), outcomes, bool(plan.runs[run].train))


def _running(record: dict[str, Any]) -> dict[str, Any]:
    first = record["bars"][0] if record["bars"] else None
    fraction = round(first["done"] / first["total"], 4) if first else None
    kept = {key: record[key] for key in ("stage", "name", "bars", "started", "updated", "host")}
    return kept | {"fraction": fraction, "left": first["left"] if first else None}


def _failure(step: Step, record: dict[str, Any] | None, seen: set[Path]) -> dict[str, Any] | None:
    """Why a job that is not done has failed; None where it has not been tried, or nothing speaks of a failure.

    One whose log is new and empty has only begun, and is given as one that runs.
    """
    reason = record["reason"] if record and record["state"] == "failed" else None
    if reason is None and step.log.is_file() and step.log not in seen:
        lines = _tail(step.log)
        if any(FAULT.search(text) for text in lines):
            reason = lines[-REASON_LINES:]
        elif not lines and time.time() - step.log.stat().st_mtime < STARTING:
            seen.add(step.log)
            return {"stage": step.stage, "name": step.name, "bars": [], "fraction": None, "left": None}
    if reason is None and record:
        reason = [f"its process on {record['host']} was ended"]
    if reason is None:
        return None
    seen.add(step.log)
    log = str(step.log) if step.log.is_file() else ""
    return {"stage": step.stage, "name": step.name, "reason": reason, "log": log}


def _tail(path: Path) -> list[str]:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL))
        text = file.read().decode(errors="replace")
    return [part.rstrip() for part in text.splitlines() if part.strip()][-40:]


def totals(plan: Plan, root: Path | str, seconds: float) -> str:
    """One line for the end of a workflow: how many numbers and trainings of all tables are done, and its `seconds`."""
    ws = Workspace(root)
    cells = sum(ws.cell(cell).is_file() for cell in plan.cells)
    trained = [run.id for run in plan.runs.values() if run.train]
    done = sum(ws.trained(run).is_file() for run in trained)
    return f"done: {cells} of {len(plan.cells)} cells, {done} of {len(trained)} trainings; {span(seconds)} this time"


def print_status(found: dict[str, Any]) -> None:
    """The status in words."""
    parts = [f"{done} of {total} {kind}" for kind, (done, total) in found["kinds"].items()]
    print(f"scale {found['scale']}, done: {', '.join(parts)}")
    for entry in found["running"]:
        share = "" if entry["fraction"] is None else f", {100 * entry['fraction']:.0f} %"
        left = "" if entry["left"] is None else f", {span(entry['left'])} left"
        silent = time.time() - entry.get("updated", time.time())
        old = f" (as of {span(silent)} ago)" if silent > SILENT else ""
        print(f"running: {entry['stage']} {entry['name']}{share}{left}{old}")
        for state in entry["bars"]:
            print(f"    {line(state)}")
    if not found["running"]:
        print("running: nothing")
    for entry in found["failed"]:
        print(f"failed: {entry['stage']} {entry['name']}")
        for text in entry["reason"]:
            print(f"    {text}")
        if entry["log"]:
            print(f"    log: {entry['log']}")
    for entry in found["unhealthy"]:
        print(f"flagged: {entry['run']}")
        for text in entry["notes"]:
            print(f"    {text}")
