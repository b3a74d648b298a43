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
from pipeline.workspace import Workspace

pytestmark = pytest.mark.slow


@pytest.fixture
def folder(finished, tmp_path):
    """A results folder with the data of the finished one, and no training; `add(train=...)` plans one."""
    made = tmp_path / "results"
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


def test_sigterm_keeps_a_checkpoint_and_the_same_command_goes_on(folder):
    results, add = folder
    run = add(steps=300, milestones=[300], checkpoint_every=1000, validate_every=300)
    status, out = _train(results, run)
    assert status == 0, out
    undisturbed = _curve(results, run)
    (results / "runs").rename(results / "before")
    process, progress = _start(results, run), results / "progress" / f"train-{run}.json"
    end = time.monotonic() + 120
    while time.monotonic() < end and process.poll() is None:
        bars = json.loads(progress.read_text())["bars"] if progress.is_file() else []
        if bars and bars[0]["done"] >= 3:
            break
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGTERM)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 2 and "ended by a signal, with a checkpoint" in out, out
    assert list((results / "ray/train" / run).glob("*/state.pt"))
    status, out = _train(results, run)
    assert status == 0, out
    assert _curve(results, run) == undisturbed
