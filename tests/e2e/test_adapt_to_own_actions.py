"""`adapt` as a user calls it: the workflow trains on a folder of clips, is interrupted, goes on, and labels."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from films import film

from pipeline.models.backbones.resnet import ResNetBackbone

pytestmark = pytest.mark.slow
CLASSES, CLIPS, FRAMES = 7, 4, 12


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Clips whose frames count up by another step in each class; and a narrow ResNet."""
    folder = tmp_path_factory.mktemp("adapt")
    for kind in range(CLASSES):
        for clip in range(CLIPS):
            numbers = [(17 * clip + (2 * kind + 1) * i) % 256 for i in range(FRAMES)]
            film(folder / "own" / f"{kind}_by {2 * kind + 1}" / f"{clip}.mp4", numbers)
    torch.manual_seed(0)
    ResNetBackbone({"width": 4, "strides": [1, 2, 1, 1]}).save(folder / "resnet")
    return folder


def start(repo, folder, *words):
    """`adapt` in a process group of its own, as a terminal starts it."""
    command = [sys.executable, "-W", "ignore", "-m", "pipeline", "adapt", "--support", "own", "--strip-prefix"]
    command += ["--backbone", "resnet", "--steps", "6", "--config", str(repo / "config"), *words]
    environment = {**os.environ, "PYTHONPATH": str(repo / "src")}
    return subprocess.Popen(
        command, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        start_new_session=True,
    )  # fmt: skip


def test_it_goes_on_after_an_interrupt_and_labels(repo, made):
    first = start(repo, made)
    deadline = time.monotonic() + 200
    while not list((made / "results" / "data").glob("own_*/frames-*/manifest.json")):
        assert first.poll() is None and time.monotonic() < deadline, first.communicate()
        time.sleep(0.2)
    os.killpg(first.pid, signal.SIGINT)  # Ctrl-C reaches Snakemake too
    _, errors = first.communicate(timeout=120)
    assert first.returncode == 2, errors
    assert errors.splitlines()[-1] == "error: interrupted; the same command goes on from here"
    assert not list((made / "results").glob("own_*/adapted.json"))

    second = start(repo, made, "--query", "own", "--truth", "--out", "answers")
    shown, errors = second.communicate(timeout=400)
    assert second.returncode == 0, errors
    assert "28 clips of 7 classes: 3 to train on, 2 to choose the best step, 2 held out" in shown
    assert "training" in errors and "Traceback" not in errors
    (record,) = (made / "results").glob("own_*/adapted.json")
    found = json.loads(record.read_text("utf-8"))
    assert (record.parent / "table1.csv").is_file() and (record.parent / "table1.md").is_file()
    curve = (made / "results" / "runs" / found["run"] / "curve.csv").read_text("utf-8")
    assert len(curve.splitlines()) == 7
    answers = json.loads((made / "answers" / "predictions.json").read_text("utf-8"))
    assert len(answers["queries"]) == CLASSES * CLIPS and answers["accuracy"]["n"] == CLASSES * CLIPS
    assert answers["run"] == (found["run"] if found["better"] else "frozen resnet, otam")
