"""What the tests of SeFAR share."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch

from pipeline.models.semi.fusion import ElementNetwork

RENAMED = {"vit.model": "backbone", "post_fusion1": "head.pair.0", "post_fusion0": "head.single.0",
           "global_fusion": "head.whole.0", "ln1": "head.pair.2", "ln2": "head.single.2", "ln3": "head.whole.2",
           "fc": "head.classifier"}  # fmt: skip


def _released(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, torch.Tensor]:
    state = {}
    for name, value in arrays.items():
        if name.startswith(prefix):
            name = name.removeprefix(prefix)
            old = next(old for old in RENAMED if name.startswith(f"{old}."))
            state[RENAMED[old] + name.removeprefix(old)] = torch.from_numpy(value)
    return state


@pytest.fixture
def released_state():
    """`released_state(arrays, prefix)`: the tensors of the released SeFAR under this project's names."""
    return _released


@pytest.fixture
def sefar_network(golden) -> ElementNetwork:
    """The tiny network of the reference arrays, in evaluation mode."""
    source = {"width": 48, "depth": 2, "heads": 4, "patch": 16, "image_size": 48}
    network = ElementNetwork({"source": source, "drop_path": 0.0}, (2, 2, 4), 7, "fusion", 0.5)
    network.load_state_dict(_released(golden("sefar_tiny"), "weights/"))
    return network.eval()
