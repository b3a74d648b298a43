"""What is broken in other people's packages, mended in one place.

Import `MODELS`, `TRANSFORMS` and friends from here, never from mmaction or mmcv: mmaction2 1.2.0 cannot be imported as
shipped, and mmcv-lite warns of what it lacks.
"""

from __future__ import annotations

import re
import sys
import types
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import torch


def _patch_mmaction() -> None:
    """Let `import mmaction.models` work.

    - The 1.2.0 wheel lacks `mmaction.models.localizers.drn`, which its own package imports.
    - With transformers installed it imports multimodal models written for a much older transformers.
    """
    if "mmaction.models" in sys.modules:
        return
    package = types.ModuleType("mmaction.models.localizers.drn")
    module = types.ModuleType("mmaction.models.localizers.drn.drn")
    package.__path__ = []  # marks it as a package
    module.DRN = package.DRN = type("DRN", (), {"__doc__": "Not in the wheel of mmaction2 1.2.0."})
    sys.modules.setdefault(package.__name__, package)
    sys.modules.setdefault(module.__name__, module)
    import mmaction.utils.dependency as dependency

    dependency.WITH_MULTIMODAL = False


def _patch_torchvision() -> None:
    """Let `import torchvision` work beside a torch of another build, for timm and transformers.

    They take plain Python of it. A wheel for CUDA beside a torch for CPU alone cannot load its compiled operators, and
    fails on describing them: each gets a name here, which nothing calls.
    """
    spec = find_spec("torchvision")
    if spec is None or "torchvision" in sys.modules:
        return
    folder = Path(spec.submodule_search_locations[0])
    try:
        for library in folder.glob("_C*.so"):
            torch.ops.load_library(library)
    except OSError:
        described = (folder / "_meta_registrations.py").read_text(encoding="utf-8")
        for name in re.findall(r'register_fake\("(torchvision::\w+)"\)', described):
            torch.library.define(name, "() -> ()")


_patch_torchvision()
_patch_mmaction()

with warnings.catch_warnings():
    # mmcv-lite asks for mmcv in its place, for the sake of an operator that nothing here uses.
    warnings.filterwarnings("ignore", "Fail to import ``MultiScaleDeformableAttention``")
    import mmaction.models  # noqa: F401  (registers the models)
    from mmaction.registry import MODELS, TRANSFORMS
    from mmcv.cnn import ConvModule
    from mmcv.cnn.bricks import DropPath


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and load reports of transformers and the hub; what matters in them is raised here."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
    from transformers.utils import logging as hf

    hub_off, bar_on, level = are_progress_bars_disabled(), hf.is_progress_bar_enabled(), hf.get_verbosity()
    disable_progress_bars()
    hf.disable_progress_bar()
    hf.set_verbosity_error()
    try:
        yield
    finally:
        hf.set_verbosity(level)
        if bar_on:
            hf.enable_progress_bar()
        if not hub_off:
            enable_progress_bars()


__all__ = ["MODELS", "TRANSFORMS", "ConvModule", "DropPath", "quiet"]
