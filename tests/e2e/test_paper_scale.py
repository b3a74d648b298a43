"""A row at paper scale, from a publisher's layout to a table: lists, relative roots, a language model, a Ray cluster a
training, readers.

It is the small form of `make rehearse`: generated data and a narrow network; sizes of frames, sampling, rules and the
way of the data are those of `scale=paper`. Budgets are cut.
"""

from __future__ import annotations

import csv
import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow


def test_a_row_from_the_publishers_files_to_the_table(repo, tmp_path):
    command = [sys.executable, "-m", "pipeline", "rehearse", "lga", "--small", "--folder", str(tmp_path / "rehearsal")]
    done = subprocess.run(command, cwd=repo, capture_output=True, text=True, timeout=900)
    folder = tmp_path / "rehearsal"
    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
    assert "1 of 1 families in " in done.stdout and f"; in {folder}, table: results/rehearsal/table1.md" in done.stdout
    with (folder / "results/rehearsal/table1.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert (row["status"], row["scale"], row["selection"], row["n"]) == ("measured", "paper", "val", "20")
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("LGA ")]
    assert row["run_id"] in line and f"{float(row['value']):.1f} ±" in line and " 0.0 GB" not in line
    run = json.loads((folder / "results/runs" / row["run_id"] / "run.json").read_text())
    assert run["frames"]["store"] == {"size": [256, 256], "frames": 0, "codec": "jpeg", "quality": 95}
    assert run["frames"]["crop"] == 224 and run["dataset"].startswith("hmdb51-")
    record = json.loads((folder / "results/runs" / row["run_id"] / "train.json").read_text())
    assert record["classes"] == {"train": 3, "val": 3, "test": 3} and record["steps"] == 2
