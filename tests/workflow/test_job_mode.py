"""A training as a Ray cluster of its own (`cluster.mode: job`), by hand, on this machine."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from pipeline.experiment import Run
from pipeline.training.ray_train import latest_checkpoint
from pipeline.workspace import Workspace

pytestmark = pytest.mark.slow
LONG = {"steps": 300, "milestones": [300], "checkpoint_every": 1000, "validate_every": 300}


def _folder(finished, made):
    made.mkdir()
    for name in ("data", "backbones"):
        (made / name).symlink_to(finished.folder / "results" / name)
    shutil.copytree(finished.folder / "results/specs", made / "specs")
    with (finished.folder / "results/lga/table2.csv").open() as file:
        first = next(csv.DictReader(file))["run_id"]
    run = Workspace(finished.folder / "results").read_run(first)

    def add(**train):
        planned = Run.model_validate({**run.model_dump(), "train": run.train | train})
        (made / "specs" / f"{planned.id}.json").write_text(planned.model_dump_json())
        return planned.id

    return made, add


@pytest.fixture
def folder(finished, tmp_path):
    """A results folder with the data of the finished one, and no training; `add(train=...)` plans one."""
    return _folder(finished, tmp_path / "results")


@pytest.fixture(scope="module")
def undisturbed(finished, tmp_path_factory):
    """The losses of the LONG training."""
    results, add = _folder(finished, tmp_path_factory.mktemp("undisturbed") / "results")
    run = add(**LONG)
    status, out = _train(results, run)
    assert status == 0, out
    return _curve(results, run)


def _start(results, run, **settings):
    words = json.dumps({"mode": "job", "dashboard": False} | settings)
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline", "train", run, "--results", str(results), "--settings", words],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def _train(results, run, **settings):
    process = _start(results, run, **settings)
    out, _ = process.communicate(timeout=300)
    return process.returncode, out


def _curve(results, run):
    with (results / "runs" / run / "curve.csv").open() as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


def test_two_workers_train_as_one(folder):
    results, add = folder
    run = add()
    status, out = _train(results, run)
    assert status == 0, out
    one = _curve(results, run)
    (results / "runs").rename(results / "before")
    status, out = _train(results, run, workers=2)
    assert status == 0, out
    record = json.loads((results / "runs" / run / "train.json").read_text())
    assert record["workers"] == 2 and len(record["nodes"]) == 1
    assert _curve(results, run) == pytest.approx(one, rel=1e-4)
    assert not list((results / "ray/train").iterdir())  # no checkpoint is kept of what is finished


def test_a_poisoned_run_fails_at_once_with_its_id(folder):
    results, add = folder
    run = add(learning_rate=1e30, steps=20, milestones=[20])
    status, out = _train(results, run)
    assert status == 2, out
    (line,) = [text for text in out.splitlines() if text.startswith("error: ")]
    assert line.startswith(f"error: {run}: the loss is ") and "at step" in line
    assert not (results / "runs" / run / "train.json").exists()


def _wait_for_steps(results, run, process, steps):
    """Until a training that `process` waits for has done so many steps."""
    progress, end = results / "progress" / f"train-{run}.json", time.monotonic() + 120
    while time.monotonic() < end and process.poll() is None:
        bars = json.loads(progress.read_text())["bars"] if progress.is_file() else []
        if bars and bars[0]["done"] >= steps:
            return
        time.sleep(0.05)
    pytest.fail(f"{run} has not done {steps} steps")


def test_sigterm_keeps_a_checkpoint_and_the_same_command_goes_on(folder, undisturbed):
    results, add = folder
    run = add(**LONG)
    process = _start(results, run)
    _wait_for_steps(results, run, process, 3)
    os.kill(process.pid, signal.SIGTERM)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 2 and "ended by a signal, with a checkpoint" in out, out
    assert list((results / "ray/train" / run).glob("*/state.pt"))
    status, out = _train(results, run)
    assert status == 0, out
    assert _curve(results, run) == undisturbed


def test_the_end_of_a_shared_cluster_keeps_a_checkpoint(folder, undisturbed):
    results, add = folder
    run = add(**LONG)
    process = _start(results, run, mode="shared")
    _wait_for_steps(results, run, process, 3)
    stop = [sys.executable, "-m", "pipeline", "cluster", "stop", "--results", str(results)]
    assert subprocess.run(stop, capture_output=True, text=True, timeout=60).stdout == "stopped\n"
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 2 and "run the same command again, it resumes" in out, out
    kept = latest_checkpoint(Workspace(results), run)
    assert 3 <= json.loads((kept / "meta.json").read_text())["step"] < 300
    assert not list(results.glob("runs/*/stop"))
    status, out = _train(results, run)
    assert status == 0, out
    assert _curve(results, run) == undisturbed


def test_a_killed_sweep_trains_only_what_is_unfinished(folder, undisturbed):
    results, add = folder
    short, long = add(), add(**LONG | {"checkpoint_every": 20})
    plan = {"name": "killed", "axis": "train.steps", "runs": [short, long]}
    (results / "specs/sweep-killed.json").write_text(json.dumps(plan))
    command = [sys.executable, "-m", "pipeline", "sweep", "killed", "--results", str(results)]
    command += ["--settings", json.dumps({"mode": "job", "dashboard": False, "slots": 1})]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    _wait_for_steps(results, long, process, 45)
    process.kill()
    process.wait(30)
    record = results / "runs" / short / "train.json"
    before, kept = record.stat(), latest_checkpoint(Workspace(results), long)
    assert kept is not None and not (results / "sweeps").exists()
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert record.stat().st_mtime_ns == before.st_mtime_ns  # the finished trial was not trained again
    with (results / "sweeps/killed.csv").open() as file:
        assert [row["train.steps"] for row in csv.DictReader(file)] == ["2", "300"]
    assert _curve(results, long) == undisturbed
