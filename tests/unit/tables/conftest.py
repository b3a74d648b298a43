"""What the tests of all sheets read; each module names its PAPER."""

from __future__ import annotations

import csv

import pytest

from pipeline.plan import Plan


@pytest.fixture(scope="module")
def read_plan(repo):
    """`read_plan("paper")` is the plan at that scale."""
    return lambda scale: Plan.read(repo / "config", {"scale": scale})


@pytest.fixture(scope="module", params=["demo", "paper"])
def plan(read_plan, request) -> Plan:
    return read_plan(request.param)


@pytest.fixture(scope="module")
def entries(plan, request):
    """The places of the module's paper."""
    return {(e.table, e.row, e.column): e for e in plan.entries if e.paper == request.module.PAPER}


@pytest.fixture(scope="module")
def values(entries):
    """The printed value of each place that has one."""
    return {place: entry.published for place, entry in entries.items() if entry.published is not None}


@pytest.fixture(scope="module")
def printed(reference_data, request):
    """The lines of the list of all printed numbers that are of the module's paper."""
    path = reference_data.parent / "papers" / "published.csv"
    if not path.is_file():
        pytest.skip(f"no printed numbers in {path}")
    with path.open(newline="") as file:
        return [line for line in csv.DictReader(file) if line["paper"] == request.module.PAPER]
