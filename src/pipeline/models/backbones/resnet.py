"""ResNet (He et al., CVPR 2016) as an encoder of frames: MMAction2's 2D ResNet, and a small one for the demo.

Weights have torchvision's tensor names, in and out, so that ImageNet weights of torchvision and timm load as they are.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.compat import MODELS, ConvModule  # before anything of mmaction, which it mends

# isort: split
from mmaction.models.backbones.resnet import BasicBlock, Bottleneck, ResNet, make_res_layer

from pipeline.errors import UserError, unknown
from pipeline.models.backbones.weights import locate_weights, read_state, read_statistics, write_statistics

# Of RGB in [0, 1]; those that torchvision and timm trained ResNets with.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# 309 thousand parameters, 128 features; at 64 x 64 pixels its last map is 4 x 4.
NANO_RESNET: dict[str, Any] = {"width": 16, "blocks": [1, 1, 1, 1], "strides": [1, 2, 2, 1]}

_WEIGHTS = "model.safetensors"
_CLASSIFIER = ("fc.weight", "fc.bias")


class SmallResNet(nn.Module):
    """ResNet of basic blocks with any width, depth and strides; MMAction2's starts at 64 channels.

    Args:
        width: channels of the stem and the first stage; each stage doubles them.
        blocks: basic blocks of each stage.
        strides: of the first block of each stage, after the stem's 4.
    """

    def __init__(self, width: int, blocks: Sequence[int], strides: Sequence[int]) -> None:
        super().__init__()
        norm, relu = {"type": "BN2d"}, {"type": "ReLU", "inplace": True}
        self.conv1 = ConvModule(3, width, 7, stride=2, padding=3, bias=False, norm_cfg=norm, act_cfg=relu)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        channels = width
        for i, (count, stride) in enumerate(zip(blocks, strides, strict=True)):
            planes = width * 2**i
            layer = make_res_layer(BasicBlock, channels, planes, count, stride=stride, norm_cfg=norm, act_cfg=relu)
            self.add_module(f"layer{i + 1}", layer)
            channels = planes
        self.feat_dim = channels

    def forward(self, x: Tensor) -> Tensor:
        """(n, 3, H, W) -> (n, feat_dim, h, w)."""
        for stage in self.children():
            x = stage(x)
        return x


@MODELS.register_module()
class ResNetBackbone(nn.Module):
    """Feature maps of frames, and their global average.

    Args:
        source: file with weights in torchvision's names (.safetensors, or .pth that torch reads with
            `weights_only`); folder with `model.safetensors` (and `config.json` as `save` writes it); or a name on
            the Hugging Face hub, such as `timm/resnet50.tv_in1k`; or an architecture for random weights:
            {"depth": 18 | 34 | 50 | 101 | 152}, or arguments of `SmallResNet` that differ from `NANO_RESNET`.
        norm_eval: BatchNorm normalises with its stored statistics in training too, and they stay as they are (its
            gains and biases are trained all the same). Off by default: the released TRX and HyRSM, and OTAM in
            the latter's code, train ResNet-50 with the statistics of the batch.

    Raises:
        UserError: a file is missing, broken or of another model, or the hub can't be reached.

    The network is `.resnet`; `.dim` is the width of the features, `.mean` and `.std` normalise RGB in [0, 1];
    `.image_size` is None: frames may have any size.
    """

    mean, std = IMAGENET_MEAN, IMAGENET_STD
    image_size: int | None = None

    def __init__(self, source: str | os.PathLike | Mapping[str, Any], *, norm_eval: bool = False) -> None:
        super().__init__()
        self.norm_eval = norm_eval
        if isinstance(source, str | os.PathLike):
            path = locate_weights(source, "ResNet", "timm/resnet50.tv_in1k")
            weights = _read(path)
            self.mean, self.std = read_statistics(path.parent, (IMAGENET_MEAN, IMAGENET_STD))
            self.architecture = _architecture(path, weights)
            self.resnet = _build(self.architecture)
            _load(self.resnet, weights, path)
        else:
            self.architecture = dict(source) if "depth" in source else {**NANO_RESNET, **source}
            self.resnet = _build(self.architecture)
        self.dim: int = self.resnet.feat_dim

    def feature_maps(self, x: Tensor) -> Tensor:
        """Last maps of normalised frames, (B, T, 3, H, W) -> (B, T, D, h, w); h and w are H/32, W/32 in ResNet-50."""
        frames = x.flatten(0, 1).contiguous(memory_format=torch.channels_last)  # twice as fast on CPU
        return self.resnet(frames).unflatten(0, x.shape[:2])

    def encode_frames(self, x: Tensor) -> Tensor:
        """Features of normalised frames, (B, T, 3, H, W) -> (B, T, D): the mean of each map."""
        return self.feature_maps(x).mean((-2, -1))

    def train(self, mode: bool = True) -> ResNetBackbone:
        """As in torch, but BatchNorm stays in evaluation if `norm_eval`."""
        super().train(mode)
        if self.norm_eval:
            for module in self.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        return self

    def save(self, folder: str | os.PathLike) -> None:
        """Write config.json and model.safetensors (torchvision's names) into `folder`."""
        from safetensors.torch import save_file

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        state = {_torchvision_name(name): value.contiguous() for name, value in self.resnet.state_dict().items()}
        save_file(state, folder / _WEIGHTS, {"format": "pt"})
        config = {"model_type": "resnet", **self.architecture}
        (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
        if (self.mean, self.std) != (IMAGENET_MEAN, IMAGENET_STD):
            write_statistics(folder, (self.mean, self.std))


def _build(architecture: Mapping[str, Any]) -> nn.Module:
    """Network with random weights."""
    for key in architecture:
        if key not in (("depth",) if "depth" in architecture else NANO_RESNET):
            raise unknown("key", key, ("depth", *NANO_RESNET), "the architecture of a ResNet")
    if "depth" not in architecture:
        return SmallResNet(**architecture)
    if architecture["depth"] not in ResNet.arch_settings:
        raise unknown("depth", architecture["depth"], ResNet.arch_settings, "the architecture of a ResNet")
    return ResNet(architecture["depth"])


def _torchvision_name(name: str) -> str:
    """MMAction2's name of a tensor -> torchvision's: layer1.0.conv2.bn.weight -> layer1.0.bn2.weight."""
    name = name.replace("downsample.conv.", "downsample.0.").replace("downsample.bn.", "downsample.1.")
    return re.sub(r"conv(\d)\.(conv|bn)\.", r"\2\1.", name)


def _read(path: Path) -> dict[str, Tensor]:
    """Tensors of a file by name, without the classifier."""
    state = read_state(path, "a ResNet", "give weights as torchvision or timm publish them")
    return {name: value for name, value in state.items() if name not in _CLASSIFIER}


def _architecture(path: Path, weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """From the config.json that `save` wrote beside the weights; else the depth that the tensors' names show."""
    config = path.with_name("config.json")
    if path.name == _WEIGHTS and config.is_file():
        try:
            content = json.loads(config.read_text(encoding="utf-8"))
            own = content.get("model_type") == "resnet" and ("depth" in content or "blocks" in content)
        except (ValueError, AttributeError) as error:
            raise UserError(f"{config} is not a JSON object ({error}); download the folder again") from error
        if own:
            return {key: value for key, value in content.items() if key in ("depth", *NANO_RESNET)}
    block = Bottleneck if "layer1.0.conv3.weight" in weights else BasicBlock
    numbers = [re.match(r"layer([1-4])\.(\d+)\.", name) for name in weights]
    found = {(int(number[1]), int(number[2])) for number in numbers if number}
    counts = tuple(sum(stage == i for stage, _ in found) for i in (1, 2, 3, 4))
    for depth, settings in ResNet.arch_settings.items():
        if settings == (block, counts):
            return {"depth": depth}
    raise UserError(
        f"{path} holds no ResNet in torchvision's names (conv1.weight, layer1.0.conv1.weight, ...); "
        "give weights such as timm/resnet50.tv_in1k"
    )


def _load(resnet: nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:
    """Copy `weights` into the network; none may be missing or left over. How many batches it saw is no weight."""
    own = {_torchvision_name(name): value for name, value in resnet.state_dict().items()}
    missing = sorted(name for name in own.keys() - weights.keys() if not name.endswith("num_batches_tracked"))
    odd = sorted(weights.keys() - own.keys())
    for what, names in (("lacks", missing), ("has too many:", odd)):
        if names:
            raise UserError(
                f"{path} {what} {len(names)} tensors, such as {names[0]}; it belongs to another kind of ResNet, "
                "give weights such as timm/resnet50.tv_in1k"
            )
    with torch.no_grad():
        for name, value in weights.items():
            if value.shape != own[name].shape:
                shapes = f"{tuple(value.shape)} instead of {tuple(own[name].shape)}"
                raise UserError(f"{path}: {name} is {shapes}; it belongs to another kind of ResNet")
            own[name].copy_(value)
