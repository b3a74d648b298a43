"""What `status` makes of the plan and of the files below the results folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest

from pipeline import progress
from pipeline.plan import Plan
from pipeline.progress import bar, job
from pipeline.status import print_status, read_status, totals
from pipeline.steps import steps_of
from pipeline.workspace import Workspace


@pytest.fixture
def ws(tmp_path, monkeypatch):
    monkeypatch.setattr(progress, "WRITE_SECONDS", 0.0)
    return Workspace(tmp_path)


@pytest.fixture(scope="module")
def plan(repo):
    return Plan.read(repo / "config")


def test_status_counts_and_names_what_runs_and_why_it_failed(plan, ws, capsys):
    first, second, third, fourth, fifth = list(run for run in plan.runs if run not in plan.swept)[:5]
    done = ws.run(first) / "train.json"
    done.parent.mkdir(parents=True)
    done.write_text("{}")
    with pytest.raises(ValueError), job(ws, "train", second):
        raise ValueError("no such file")
    logs = {
        third: "torch says hello\nslurmstepd: error: *** JOB 7 CANCELLED AT noon DUE TO TIME LIMIT ***\n",
        fourth: "UserWarning: Fail to import X\nresults/runs/x/train.json\n",  # went well; its file was deleted since
        fifth: "",  # just begun
    }
    for run, text in logs.items():
        path = ws.root / "logs" / "train" / f"{run}.log"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    with job(ws, "evaluate", first), bar("matching", 4, "episodes") as matching:
        matching.to(1)
        found = read_status(plan, ws.root)
    trainings = found["kinds"]["trainings"]
    assert trainings == [1, len(plan.runs)] and found["kinds"]["measurements"][1] == len(plan.measured_together)
    assert [(e["stage"], e["name"], e["fraction"]) for e in found["running"]] == [
        ("train", fifth, None), ("evaluate", first, 0.25),
    ]  # fmt: skip
    assert {(e["stage"], e["name"]) for e in found["failed"]} == {("train", second), ("train", third)}
    reasons = {e["name"]: e for e in found["failed"]}
    assert reasons[second]["reason"] == ["ValueError: no such file"]
    assert "TIME LIMIT" in reasons[third]["reason"][-1] and reasons[third]["log"].endswith(f"{third}.log")
    json.dumps(found)
    print_status(found)
    out = capsys.readouterr().out
    assert f"1 of {len(plan.runs)} trainings" in out and "matching: 1 of 4 episodes" in out and "TIME LIMIT" in out
    # What has been made since is no failure any more.
    for run in (second, third):
        ws.run(run).mkdir(parents=True)
        (ws.run(run) / "train.json").write_text("{}")
    assert read_status(plan, ws.root)["failed"] == []


def test_status_names_what_has_not_learnt(plan, ws, capsys):
    run, other = [run for run, cells in plan.cells_of.items() if cells and plan.runs[run].train][:2]
    cell = next(iter(plan.cells_of[run]))
    loss = {"name": "loss_matching", "value": 1.7, "chance": 1.609}
    progress.write_json(ws.run(run) / "train.json", {"last_loss": loss})
    progress.write_json(ws.run(other) / "train.json", {"last_loss": loss | {"value": 1.5}})
    notes = ["did not learn: training loss 1.70 (chance 1.61)"]
    assert read_status(plan, ws.root)["unhealthy"] == [{"run": run, "notes": notes}]
    said = {"accuracy": 20.1, "ci95": 0.4, "classes": 5, "most_said": 1, "most_true": 0.2, "constant_scores": False}
    progress.write_json(ws.cell(cell), {"predictions": said})
    found = read_status(plan, ws.root)
    notes.append("did not learn: test 20.1 ± 0.4 (chance 20.0), one class for 100 % of the test queries")
    assert found["unhealthy"] == [{"run": run, "notes": notes}]
    print_status(found)
    assert f"flagged: {run}\n    {notes[0]}\n    {notes[1]}\n" in capsys.readouterr().out


def test_status_imports_nothing_heavy(repo, tmp_path):
    code = (
        "import sys, runpy; sys.argv = ['pipeline', 'status', '--json', '--results', sys.argv[1]]\n"
        "try:\n    runpy.run_module('pipeline', run_name='__main__')\n"
        "except SystemExit as end:\n    assert not end.code\n"
        "print(sorted({'torch', 'mmengine', 'ray', 'pandas', 'matplotlib', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=repo, text=True, capture_output=True,
        env={**os.environ, "PYTHONPATH": str(repo / "src")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found, heavy = done.stdout.splitlines()
    assert heavy == "[]" and json.loads(found)["running"] == []


def test_a_sweep_that_runs_has_not_failed_and_one_that_failed_is_named_once(plan, ws):
    name = next(iter(plan.swept.values()))
    log = ws.root / "logs" / "sweep" / f"{name}.log"
    log.parent.mkdir(parents=True)
    log.write_text("ValueError: of an earlier try\n")
    with job(ws, "sweep", name), bar("sweeping", 4, "trials", done=1):
        time.sleep(0.01)
        (entry,) = (found := read_status(plan, ws.root))["running"]
    assert found["failed"] == [] and (entry["stage"], entry["name"], entry["fraction"]) == ("sweep", name, 0.25)
    (failure,) = read_status(plan, ws.root)["failed"]  # its trials share the log
    assert plan.swept[failure["name"]] == name and failure["reason"] == ["ValueError: of an earlier try"]


def test_old_news_says_so_and_a_killed_process_has_failed(plan, ws, capsys):
    run, other = list(plan.cells_of)[:2]
    record = {"stage": "evaluate", "name": run, "state": "running", "pid": 1, "host": "a node of the cluster"}
    record |= {"started": time.time() - 400, "updated": time.time() - 300, "bars": []}
    progress.write_json(ws.progress("evaluate", run), record)
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        pass
    mine = {"name": other, "host": progress.socket.gethostname(), "pid": gone.pid}
    progress.write_json(ws.progress("evaluate", other), record | mine)
    found = read_status(plan, ws.root)
    print_status(found)
    assert f"running: evaluate {run} (as of 5 min ago)" in capsys.readouterr().out
    assert [(e["name"], e["reason"]) for e in found["failed"]] == [
        (other, [f"its process on {mine['host']} was ended"])
    ]  # fmt: skip


def test_steps_are_what_the_workflow_makes(plan):
    """As the rules do: frames of what is read, videos of what is generated, everything of the plan once."""
    steps = list(steps_of(plan, "results"))
    assert len({step.outputs for step in steps}) == len(steps)
    kinds = {kind: [step for step in steps if step.stage == kind] for kind in dict.fromkeys(s.stage for s in steps)}
    assert {step.name for step in kinds["train"]} == set(plan.runs)
    assert {path.stem for step in kinds["evaluate"] for path in step.outputs} == set(plan.cells)
    ws = Workspace("results")
    stores = {ws.store(run) / "manifest.json" for run in plan.runs.values()}
    for asset in plan.backbones.values():
        sources = zip(asset.spec.get("sources", ()), asset.spec.get("stores", ()), strict=True)
        stores |= {ws.dataset(key) / store / "manifest.json" for key, store in sources}
    assert {path for step in kinds["frames"] for path in step.outputs} == stores
    generated = {key for key, asset in plan.datasets.items() if asset.spec["kind"] == "synthetic"}
    assert {step.name for step in kinds["videos"]} == generated
    assert len(kinds["table"]) == len(plan.tables())


def test_totals_count_cells_and_trainings_that_are_there(plan, ws):
    trained = [run.id for run in plan.runs.values() if run.train]
    frozen = next(run.id for run in plan.runs.values() if not run.train)
    for path in (ws.run(trained[0]) / "train.json", ws.run(frozen) / "train.json", ws.cell(next(iter(plan.cells)))):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    assert 0 < len(trained) < len(plan.runs)
    expected = f"done: 1 of {len(plan.cells)} cells, 1 of {len(trained)} trainings; 42 min this time"
    assert totals(plan, ws.root, 2520.0) == expected
