"""A project folder on a two-node Slurm, prepared once: data and backbones are made on this machine."""

from __future__ import annotations

from pathlib import Path

import pytest
from project import Project
from two_nodes import Slurm, lacking

REASON = lacking()


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.cluster)
            item.add_marker(pytest.mark.slow)
            if REASON:
                item.add_marker(pytest.mark.skip(reason=f"no two-node Slurm here: {REASON}"))


@pytest.fixture(scope="session")
def slurm(tmp_path_factory):
    """The two nodes."""
    with Slurm(tmp_path_factory.mktemp("slurm")) as built:
        yield built


@pytest.fixture(scope="session")
def plain(tmp_path_factory, slurm) -> Project:
    """A folder in which one training of each paper was made and measured on one machine."""
    project = Project(tmp_path_factory.mktemp("plain"), slurm)
    local = ["snakemake", "--configfile", "overlay.yaml", "--cores", "2", "--", "results/nodes/table4.csv"]
    status, out = project.run(*local)
    assert status == 0, out[-6000:]
    return project
