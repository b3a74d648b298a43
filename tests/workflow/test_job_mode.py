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
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import psutil
import pytest

from pipeline.files import write_json
from pipeline.training.ray_train import latest_checkpoint
from pipeline.training.train import train_run
from pipeline.workspace import Workspace

pytestmark = pytest.mark.slow
STARTED: list[subprocess.Popen] = []
STEPS = 150
LONG = {"steps": STEPS, "milestones": [STEPS], "checkpoint_every": 1000, "validate_every": STEPS}


@pytest.fixture
def folder(world, tmp_path):
    """A results folder with the data of the tiny world, and no training; `add(**train)` plans one of LGA."""
    results = world.elsewhere(tmp_path / "results").root
    (results / "specs").unlink()
    shutil.copytree(world.ws.root / "specs", results / "specs", copy_function=os.link)  # with plans of its own

    def add(**train):
        run = world.run(method="lga", train=train)
        write_json(results / "specs" / f"{run.id}.json", run.model_dump(mode="json"))
        return run.id

    yield results, add
    for process in STARTED:  # that a failed test has left
        process.kill()
    STARTED.clear()


def _here(world, folder, **train):
    """The losses of a training in this process, without Ray."""
    run, ws = world.run(method="lga", train=train), world.elsewhere(folder)
    train_run(run, ws)
    return _curve(ws.root, run.id)


@pytest.fixture(scope="module")
def undisturbed(world, tmp_path_factory):
    """The losses of the LONG training."""
    return _here(world, tmp_path_factory.mktemp("undisturbed") / "results", **LONG)


def _start(results, run, environment=None, **settings):
    words = json.dumps({"mode": "job", "dashboard": False} | settings)
    command = [sys.executable, "-m", "pipeline", "train", run, "--results", str(results), "--settings", words]
    STARTED.append(_popen(command, environment))
    return STARTED[-1]


def _popen(command, environment=None):
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def _train(results, run, environment=None, **settings):
    """Exit status and output of a training: a cluster of its own, or that of the `environment`."""
    process = _start(results, run, environment, **settings)
    out, _ = process.communicate(timeout=300)
    return process.returncode, out


def _curve(results, run):
    with (results / "runs" / run / "curve.csv").open() as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


def _listens(process):
    """Addresses on which a process and all that it has started listen, until it ends."""
    found = set()
    while process.poll() is None:
        below = []
        with suppress(psutil.NoSuchProcess):  # it has ended meanwhile
            below = psutil.Process(process.pid).children(recursive=True)
        for each in below:
            with suppress(psutil.Error):
                found |= {
                    c.laddr.ip.removeprefix("::ffff:")
                    for c in each.net_connections("tcp")
                    if c.status == psutil.CONN_LISTEN
                }
        time.sleep(0.2)
    return found


def test_two_workers_train_as_one(world, folder, tmp_path):
    """On a Ray cluster of the job's own, each with processes that read ahead: the losses of a training without Ray.

    Nothing listens beyond loopback.
    """
    results, add = folder
    run = add()
    process = _start(results, run, workers=2, loaders=2)
    with ThreadPoolExecutor() as looking:
        listens = looking.submit(_listens, process)
        out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, out
    assert listens.result() == {"127.0.0.1"}
    record = json.loads((results / "runs" / run / "train.json").read_text())
    assert record["workers"] == 2 and len(record["nodes"]) == 1
    assert _curve(results, run) == pytest.approx(_here(world, tmp_path / "here"), rel=1e-4)
    assert not list((results / "ray/train").iterdir())  # no checkpoint is kept of what is finished


@pytest.mark.parametrize("mode", ["job", "shared"])
def test_a_gpu_that_no_machine_has_is_an_error_and_no_wait(folder, mode):
    """In the job's error, and in `status`."""
    results, add = folder
    run = add()
    status, out = _train(results, run, mode=mode, gpus=64)
    (line,) = [text for text in out.splitlines() if text.startswith("error: ")]
    assert status == 2 and run in line if mode == "job" else status == 2
    assert "1 CPU and 64 GPU are asked for" in line and "room for 0; cluster.gpus: 0 trains on CPUs" in line
    record = json.loads((results / "progress" / f"train-{run}.json").read_text())
    assert record["state"] == "failed" and "64 GPU are asked for" in " ".join(record["reason"])


def test_a_poisoned_run_fails_at_once_with_its_id(folder, ray_here):
    results, add = folder
    run = add(learning_rate=1e30, steps=20, milestones=[20])
    status, out = _train(results, run, ray_here)
    assert status == 2, out
    (line,) = [text for text in out.splitlines() if text.startswith("error: ")]
    assert line.startswith(f"error: {run}: the loss is ") and "at step" in line
    assert not (results / "runs" / run / "train.json").exists()


def _wait_for_steps(results, run, process, steps):
    """Until a training that `process` waits for has done so many steps."""
    progress, end = results / "progress" / f"train-{run}.json", time.monotonic() + 240
    while time.monotonic() < end and process.poll() is None:
        bars = json.loads(progress.read_text())["bars"] if progress.is_file() else []
        if bars and bars[0]["done"] >= steps:
            return
        time.sleep(0.05)
    pytest.fail(
        f"{run} has not done {steps} steps" + (f": {process.communicate()[0]}" if process.poll() is not None else "")
    )


def test_sigterm_keeps_a_checkpoint_and_the_same_command_goes_on(folder, undisturbed, ray_here):
    results, add = folder
    run = add(**LONG)
    process = _start(results, run)
    _wait_for_steps(results, run, process, 3)
    os.kill(process.pid, signal.SIGTERM)
    out, _ = process.communicate(timeout=200)
    assert process.returncode == 2 and "ended by a signal, with a checkpoint" in out, out
    assert list((results / "ray/train" / run).glob("*/state.pt"))
    status, out = _train(results, run, ray_here)
    assert status == 0, out
    assert _curve(results, run) == undisturbed


@pytest.mark.fault
def test_the_end_of_a_shared_cluster_keeps_a_checkpoint(folder, undisturbed, ray_here):
    results, add = folder
    run = add(**LONG)
    process = _start(results, run, mode="shared", slots=1, dashboard=True)
    _wait_for_steps(results, run, process, 3)
    stop = [sys.executable, "-m", "pipeline", "cluster", "stop", "--results", str(results)]
    assert subprocess.run(stop, capture_output=True, text=True, timeout=60).stdout == "stopped\n"
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 2 and "run the same command again, it resumes" in out, out
    kept = latest_checkpoint(Workspace(results), run)
    assert 3 <= json.loads((kept / "meta.json").read_text())["step"] < STEPS
    assert not list(results.glob("runs/*/stop"))
    status, out = _train(results, run, ray_here)
    assert status == 0, out
    assert _curve(results, run) == undisturbed


@pytest.mark.fault
def test_a_killed_sweep_trains_only_what_is_unfinished(folder, undisturbed, ray_here):
    results, add = folder
    short, long = add(), add(**LONG | {"checkpoint_every": 20})
    plan = {"name": "killed", "axis": "train.steps", "runs": [short, long]}
    (results / "specs/sweep-killed.json").write_text(json.dumps(plan))
    command = [sys.executable, "-m", "pipeline", "sweep", "killed", "--results", str(results)]
    command += ["--settings", json.dumps({"mode": "job", "dashboard": False, "slots": 1})]
    STARTED.append(process := _popen(command))
    _wait_for_steps(results, long, process, 45)
    process.kill()
    process.wait(30)
    record = results / "runs" / short / "train.json"
    before, kept = record.stat(), latest_checkpoint(Workspace(results), long)
    assert kept is not None and not (results / "sweeps").exists()
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=ray_here)
    assert done.returncode == 0, done.stdout + done.stderr
    assert record.stat().st_mtime_ns == before.st_mtime_ns  # the finished trial was not trained again
    with (results / "sweeps/killed.csv").open() as file:
        assert [row["train.steps"] for row in csv.DictReader(file)] == ["2", str(STEPS)]
    assert _curve(results, long) == undisturbed
