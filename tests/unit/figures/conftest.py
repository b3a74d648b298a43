"""What the tests of figures share: a plan, and a results folder with made-up cells for all of it."""

from __future__ import annotations

import pytest
from made_up import fill

from pipeline.plan import Plan


@pytest.fixture(scope="module")
def plan(repo) -> Plan:
    return Plan.read(repo / "config")


@pytest.fixture(scope="module")
def results(plan, tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    fill(plan, folder)
    return folder
