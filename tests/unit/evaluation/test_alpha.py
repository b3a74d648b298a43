"""The search for alpha on a real Ray: one experiment of Tune serves run after run."""

from __future__ import annotations

import pytest


@pytest.mark.slow
def test_one_experiment_serves_run_after_run(on_own_ray):
    assert on_own_ray("alpha_search.py") == {
        "right": [True, True, True], "again": True, "living": True, "ended": True, "kept": 1,
        "failure": "a trial of the search for alpha failed",
    }  # fmt: skip
