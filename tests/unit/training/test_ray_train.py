"""Ray Train as the project uses it, on a real Ray."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_the_room_of_a_killed_controller_is_free_again(repo, tmp_path):
    script = repo / "tests" / "lost_controller.py"
    variables = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(script), str(tmp_path)],
        capture_output=True, text=True, timeout=300, env=variables,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen["works"] and seen["taken"]
    assert seen["freed"] is not None and seen["freed"] < 30
