"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

REPO = Path(__file__).resolve().parents[1]


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

    torch.set_num_threads(1)
    return make_world(tmp_path_factory.mktemp("world"))
