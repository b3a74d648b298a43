"""A checkout in a folder of its own, whose workflow runs on the tests' Slurm."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from two_nodes import Slurm

REPO = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
SMALL = ["--default-resources", "mem_mb=3000", "cpus_per_task=4", "runtime=20"]


class Project:
    """A checkout in a folder of its own, and the Slurm that runs it."""

    def __init__(self, folder: Path, slurm: Slurm | None = None) -> None:
        self.folder, self.slurm = folder, slurm
        self.results = folder / "results"
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("Snakefile", "workflow", "config", "slurm", "profiles"):
            (folder / name).symlink_to(REPO / name)
        shutil.copy(Path(__file__).with_name("overlay.yaml"), folder)

    def copy(self, folder: Path, *names: str) -> Project:
        """A new folder with the same data and backbones, and what else is named of the results."""
        made = Project(folder, self.slurm)
        for name in ("data", "backbones", *names):
            if (self.results / name).exists():
                shutil.copytree(self.results / name, made.results / name, copy_function=os.link)
        return made

    def environment(self) -> dict[str, str]:
        """Of commands in this folder."""
        base = self.slurm.environment if self.slurm else os.environ
        return {**base, "PATH": f"{BIN}:{base['PATH']}", "PYTHONPATH": str(REPO / "src")}

    def start(self, *command: str) -> subprocess.Popen:
        """A command whose output is gathered."""
        return subprocess.Popen(
            command, cwd=self.folder, env=self.environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL, text=True,
        )  # fmt: skip

    def run(self, *command: str, timeout: float = 500) -> tuple[int, str]:
        """Exit status and output of a command."""
        process = self.start(*command)
        try:
            out, _ = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            out, _ = process.communicate()
            pytest.fail(f"{' '.join(command)} takes more than {timeout} s:\n{out[-4000:]}")
        return process.returncode, out

    def slurm_run(self, *command: str) -> str:
        """What a command of Slurm prints, called in this folder; it must succeed."""
        status, out = self.run(*command)
        assert status == 0, out
        return out

    def snakemake(self, *targets: str, cluster: str = "{mode: job, dashboard: false}", jobs: int = 8) -> list[str]:
        """The command that sends the tables of the overlay through sbatch."""
        command = ["snakemake", "--profile", "slurm", "--jobs", str(jobs), "--retries", "5"]
        command += ["--slurm-init-seconds-before-status-checks", "1", "--configfile", "overlay.yaml", *SMALL]
        return [*command, "--config", "scale=demo", f"cluster={cluster}", "--", *targets]

    def table(self) -> list[dict[str, str]]:
        """The rows of the table that the overlay defines."""
        with (self.results / "nodes" / "table4.csv").open() as file:
            return list(csv.DictReader(file))

    def curve(self, run: str) -> list[dict[str, float]]:
        """The losses of a training, step by step."""
        with (self.results / "runs" / run / "curve.csv").open() as file:
            return [{"step": float(row["step"]), "loss": float(row["loss"])} for row in csv.DictReader(file)]

    def record(self, run: str) -> dict:
        """What a training says of itself."""
        return json.loads((self.results / "runs" / run / "train.json").read_text())
