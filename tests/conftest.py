"""Fixtures shared by all tests."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

REPO = Path(__file__).resolve().parents[1]
# Two processes test at a time, and each starts others: more threads would only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
if find_spec("torchvision"):  # which transformers takes, and beside a torch of another build cannot without this
    import pipeline.compat  # noqa: F401


def pytest_collection_modifyitems(items):
    """Files with long tests come first, so that no process is left with one at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: ("unit" in item.path.parts, item.path not in slow))


@pytest.fixture(scope="session")
def repo() -> Path:
    """Root of the repository."""
    return REPO


@pytest.fixture(scope="session")
def reference_data() -> Path:
    """Folder with real clips, lists and reference outputs; it is no part of the project."""
    folder = Path(os.environ.get("FEWSHOT_TEST_DATA", REPO.parent / "shared" / "data"))
    if not (folder / "golden").is_dir():
        pytest.skip(f"no reference data in {folder} (set FEWSHOT_TEST_DATA)")
    return folder


@pytest.fixture(scope="session")
def golden(reference_data):
    """`golden("otam_head")` gives the arrays that the released research code computed."""

    def load(name: str) -> dict[str, np.ndarray]:
        with np.load(reference_data / "golden" / f"{name}.npz", allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}

    return load


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """A tiny data set with frames, texts and a random CLIP (see `tiny`); read-only, use `world.elsewhere` to write."""
    import torch
    from tiny import make_world

    from pipeline.datasets.loading import use_loaders

    torch.set_num_threads(1)
    use_loaders(0)  # also where there is a GPU: tests count what is read in this process
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="session")
def ray_here():
    """A Ray cluster of a few CPUs for the tests that do not start their own; the environment of its drivers.

    A look at a frame for poses (`dots.Dots`) takes 0.1 s there.
    """
    from pipeline.cluster import head as cluster
    from pipeline.cluster.folders import ray_folder
    from pipeline.config import Cluster

    folders = [str(REPO / name) for name in ("src", "tests", "tests/unit/pose")]
    before = dict(os.environ)
    os.environ.update(cluster.environment(secrets.token_hex(32)) | {"PYTHONPATH": os.pathsep.join(folders)})
    with ray_folder() as temporary:
        log = Path(temporary).with_name("head.log")
        try:
            head, address = cluster.start_head(Cluster(dashboard=False), "127.0.0.1", 2, temporary, log)
            variables = {**os.environ, "DOTS_SECONDS": "0.1", cluster.OURS: str(log.with_name(cluster.HEAD))}
        finally:
            os.environ.clear()
            os.environ.update(before)
        try:
            yield variables | {"RAY_ADDRESS": address}
        finally:
            cluster.end_process(head, 15)


@pytest.fixture
def on_own_ray(tmp_path):
    """What a script of this folder that starts a Ray of its own prints last, as JSON: see `alpha_search.py`."""

    def run(script: str):
        done = subprocess.run(
            [sys.executable, "-W", "ignore", str(REPO / "tests" / script), str(tmp_path)],
            capture_output=True, text=True, timeout=300,
            env={key: value for key, value in os.environ.items() if not key.startswith("RAY_")},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout.splitlines()[-1])

    return run
