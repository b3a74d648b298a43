"""The search for alpha on a real Ray: one experiment of Tune serves run after run."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_one_experiment_serves_run_after_run(repo, tmp_path):
    script = repo / "tests" / "alpha_search.py"
    variables = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(script), str(tmp_path)],
        capture_output=True, text=True, timeout=300, env=variables,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "right": [True, True, True], "again": True, "living": True, "ended": True, "kept": 1,
        "failure": "a trial of the search for alpha failed",
    }  # fmt: skip
