"""A folder in which the workflow is run for real, once, at budgets of seconds."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

REPO = Path(__file__).resolve().parents[2]
TINY = {
    "datasets": {
        name: {"clips_per_class": 6, "size": 40, "nuisance": 0.5} for name in ("synthetic_scene", "synthetic_temporal")
    },
    "frames": {"store": {"size": [36, 36], "frames": 8}, "crop": 32},
    "backbones": {"clip_nano": {"steps": 3, "batch": 16, "model": {"image_size": 32, "layers": 2}}},
    "train": {
        "steps": 2,
        "episodes_per_step": 2,
        "validate_every": 1,
        "validation_episodes": 20,
        "checkpoint_every": 1,
        "warmup_steps": 0,
        "milestones": [2],
    },
    "measure": {"episodes": 40, "val_episodes": 30},
    "cluster": {"idle_minutes": 1, "slots": 1, "dashboard": False},  # started anew by some of the tests
}


class Workflow:
    """Runs Snakemake in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY))

    def start(self, *arguments: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "snakemake", "-s", str(REPO / "Snakefile"), "--configfile", "tiny.yaml"]
        command += ["--cores", "2", *arguments]
        return subprocess.Popen(
            command, cwd=self.folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ}
        )

    def run(self, *arguments: str, timeout: float = 400) -> tuple[int, str]:
        """Exit status and output of `snakemake ARGUMENTS`."""
        process = self.start(*arguments)
        out, _ = process.communicate(timeout=timeout)
        return process.returncode, out

    def pipeline(self, *arguments: str, timeout: float = 200) -> tuple[int, str]:
        """Exit status and output of `python -m pipeline ARGUMENTS`."""
        done = subprocess.run(
            [sys.executable, "-m", "pipeline", *arguments],
            cwd=self.folder, capture_output=True, text=True, timeout=timeout,
        )  # fmt: skip
        return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="session")
def workflow(tmp_path_factory) -> Workflow:
    """A folder without results."""
    return Workflow(tmp_path_factory.mktemp("workflow"))


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Workflow:
    """A folder in which LGA's Table 2 and Table 6 have been made."""
    flow = Workflow(tmp_path_factory.mktemp("finished"))
    status, out = flow.run("results/lga/table2.csv", "results/lga/table6.csv")
    assert status == 0, out[-6000:]
    return flow
