"""TimeSformer with divided space-time attention (Bertasius et al., ICML 2021) for clips of several lengths.

MMAction2's TimeSformer, which computes the same, ties every attention to one number of frames, keeps all attention
weights in memory, and needs an MMEngine scope to be built; hence these few lines. Tensors have timm's names, so that
ImageNet weights of a ViT load as they are.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pipeline.compat import MODELS, DropPath, quiet
from pipeline.errors import UserError, unknown
from pipeline.models.backbones.weights import hub_name, read_state

NORM_EPS = 1e-6
INIT_STD = 0.02
HEAD_WIDTH = 64  # of every ViT that timm publishes
ARCHITECTURES: dict[str, dict[str, int]] = {
    "nano": {"width": 96, "depth": 4, "heads": 3, "patch": 8, "image_size": 64},
    "small": {"width": 384, "depth": 12, "heads": 6, "patch": 16, "image_size": 224},
    "base": {"width": 768, "depth": 12, "heads": 12, "patch": 16, "image_size": 224},
}
_WEIGHTS = "model.safetensors"
_CLASSIFIER = ("head.", "pre_logits.")
_OVER_TIME = re.compile("temporal_|time_embed")
MODEL_TYPE = "image_vit"  # in the config.json that `save` writes


class Attention(nn.Module):
    """Multi-head self-attention over the middle dimension: (B, n, D) -> (B, n, D)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """Two linear layers, four times as wide between them, with GELU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class DividedBlock(nn.Module):
    """Attention over the frames of each patch, then over the patches of each frame, then an MLP; all pre-norm.

    State: (B, 1 + P * T, D), the class token, then the patches with time running fastest. The class token takes no
    part in time; in space it attends with each frame, and moves by the mean of what the T frames give it.
    """

    def __init__(self, width: int, heads: int, drop_path: float) -> None:
        super().__init__()
        self.temporal_norm1, self.norm1, self.norm2 = (nn.LayerNorm(width, eps=NORM_EPS) for _ in range(3))
        self.temporal_attn, self.attn = Attention(width, heads), Attention(width, heads)
        self.temporal_fc = nn.Linear(width, width)
        self.mlp = MLP(width)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, frames: int) -> Tensor:
        cls, patches = x[:, :1], x[:, 1:].unflatten(1, (-1, frames))  # (B, 1, D), (B, P, T, D)
        across = self.drop_path(self.temporal_attn(self.temporal_norm1(patches.flatten(0, 1))))
        patches = patches + self.temporal_fc(across).unflatten(0, patches.shape[:2])

        images = torch.cat((cls[:, :, None].expand(-1, -1, frames, -1), patches), 1).transpose(1, 2)  # (B, T, 1+P, D)
        within = self.drop_path(self.attn(self.norm1(images.flatten(0, 1)))).unflatten(0, images.shape[:2])
        cls = cls + within[:, :, 0].mean(1, keepdim=True)
        patches = patches + within[:, :, 1:].transpose(1, 2)

        x = torch.cat((cls, patches.flatten(1, 2)), 1)
        return x + self.drop_path(self.mlp(self.norm2(x)))


class PatchEmbedding(nn.Module):
    """Frames (N, 3, H, W) -> patches (N, P, D), row by row."""

    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


@MODELS.register_module()
class ElementTimeSformer(nn.Module):
    """One ViT for several elements of a video, each with a time embedding of its own.

    Args:
        source: a key of ARCHITECTURES, or an architecture like these (what it lacks is taken from "nano"), for random
            weights; or the ImageNet weights of a ViT in timm's names: a file (.safetensors, or .pth that torch reads
            with `weights_only`), a folder with `model.safetensors`, or a name on the Hugging Face hub, such as
            `timm/vit_base_patch16_224.orig_in21k_ft_in1k`. The attention over time and its norm then start as copies
            of those over space.
        frames: T of each element.
        drop_path: probability of dropping a branch in the last block; it grows linearly from 0 in the first.
        activation_checkpointing: in train mode, recompute activations in the backward pass.

        time_init: 0, as published: time embeddings and `temporal_fc` start at zero, so that a new network sees each
            frame on its own and learns over thousands of steps that they have an order. Above 0 they start with normal
            weights, of this deviation (`temporal_fc`: over the root of the width).

    Raises:
        UserError: a file is missing, broken or of another model, or the hub can't be reached.

    `temporal_fc` starts at zero, weight and bias, so that a new network sees each frame on its own.
    `.dim` is the width of the feature, `.image_size` the side in pixels, `.n_patches` P; `.mean` and `.std` are what
    SeFAR and SVFormer normalise RGB in [0, 1] with.
    """

    mean, std = (0.45,) * 3, (0.225,) * 3

    def __init__(
        self,
        source: str | os.PathLike | Mapping[str, int],
        frames: Sequence[int],
        drop_path: float = 0.1,
        activation_checkpointing: bool = False,
        time_init: float = 0.0,
    ) -> None:
        super().__init__()
        weights, shape = None, ARCHITECTURES.get(str(source))
        if isinstance(source, Mapping):
            shape = _complete(source)
        elif shape is None:
            path = _locate(source)
            weights = _read(path)
            shape = _architecture(path, weights)
        self.architecture, self.activation_checkpointing = shape, activation_checkpointing
        self.dim, self.image_size = shape["width"], shape["image_size"]
        self.n_patches = (self.image_size // shape["patch"]) ** 2
        self.cls_token = nn.Parameter(torch.zeros(1, 1, self.dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + self.n_patches, self.dim))
        self.time_embed = nn.ParameterList(nn.Parameter(torch.zeros(1, t, self.dim)) for t in frames)
        self.patch_embed = PatchEmbedding(self.dim, shape["patch"])
        rates = np.linspace(0, drop_path, shape["depth"])
        self.blocks = nn.ModuleList(DividedBlock(self.dim, shape["heads"], float(rate)) for rate in rates)
        self.norm = nn.LayerNorm(self.dim, eps=NORM_EPS)
        self._init_weights()
        if weights is not None:
            self._load(weights, path)
        if time_init:
            self._start_over_time(time_init)

    def _start_over_time(self, std: float) -> None:
        for time in self.time_embed:
            nn.init.normal_(time, std=std)
        for block in self.blocks:
            nn.init.normal_(block.temporal_fc.weight, std=std * self.dim**-0.5)

    def patches(self, *elements: Tensor) -> list[Tensor]:
        """Patch embeddings of normalised frames, each (B, T, 3, H, W) -> (B, T, P, D), before any position is added.

        Raises UserError if H or W is not `image_size`.
        """
        side = self.image_size
        for height, width in (x.shape[-2:] for x in elements):
            if (height, width) != (side, side):
                raise UserError(f"frames of {height}x{width} pixels for a ViT of {side}x{side}; crop them so")
        frames = torch.cat([x.flatten(0, 1) for x in elements])  # one pass is quicker than one for each
        parts = self.patch_embed(frames).split([x.shape[0] * x.shape[1] for x in elements])
        return [part.unflatten(0, x.shape[:2]) for part, x in zip(parts, elements, strict=True)]

    def encode(self, patches: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """Features of elements from their patches, each (B, T, P, D): the class tokens after the last norm, (B, D).

        The key is the number of the element, which chooses the time embedding. Elements of one length share a pass.
        Raises ValueError for another T.
        """
        together: dict[int, list[int]] = {}
        for element, x in patches.items():
            if x.shape[1] != self.time_embed[element].shape[1]:
                raise ValueError(f"element {element} has {self.time_embed[element].shape[1]} frames, not {x.shape[1]}")
            together.setdefault(x.shape[1], []).append(element)
        features = {}
        for frames, elements in together.items():
            placed = [patches[i] + self.pos_embed[:, 1:] + self.time_embed[i][:, :, None] for i in elements]
            parts = self._pass(torch.cat(placed), frames).split([len(x) for x in placed])
            features |= dict(zip(elements, parts, strict=True))
        return features

    def _pass(self, patches: Tensor, frames: int) -> Tensor:
        """(B, T, P, D), positions added -> (B, D)."""
        cls = (self.cls_token + self.pos_embed[:, :1]).expand(len(patches), -1, -1)
        x = torch.cat((cls, patches.transpose(1, 2).flatten(1, 2)), 1)
        for block in self.blocks:
            if self.activation_checkpointing and self.training and torch.is_grad_enabled():
                x = checkpoint(block, x, frames, use_reentrant=False)
            else:
                x = block(x, frames)
        return self.norm(x[:, 0])

    def forward(self, x: Tensor, element: int = 0) -> Tensor:
        """Normalised frames of an element, (B, T, 3, H, W) -> (B, D)."""
        return self.encode({element: self.patches(x)[0]})[element]

    def _init_weights(self) -> None:
        for parameter in (self.cls_token, self.pos_embed):
            nn.init.trunc_normal_(parameter, std=INIT_STD)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=INIT_STD)
                nn.init.zeros_(module.bias)
        for block in self.blocks:
            nn.init.zeros_(block.temporal_fc.weight)

    def image_parameters(self) -> dict[str, nn.Parameter]:
        """The parameters of the image ViT, by their names: all but those over time."""
        return {name: value for name, value in self.named_parameters() if not _OVER_TIME.search(name)}

    def save(self, folder: Path) -> None:
        """Write the image ViT to `folder` (config.json, model.safetensors), from which `source` loads it."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file(
            {name: value.detach().contiguous() for name, value in self.image_parameters().items()}, folder / _WEIGHTS
        )
        config = {"model_type": MODEL_TYPE, **self.architecture}
        (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")

    def _load(self, weights: Mapping[str, Tensor], path: Path) -> None:
        """Copy an image ViT into the network; none of its tensors may be missing or left over."""
        own = self.image_parameters()
        for what, names in (("lacks", own.keys() - weights.keys()), ("has too many:", weights.keys() - own.keys())):
            if names:
                raise UserError(f"{path} {what} {len(names)} tensors, such as {min(names)}; {_WANTED}")
        for name, value in weights.items():
            if value.shape != own[name].shape:
                raise UserError(f"{path}: {name} is {tuple(value.shape)}, not {tuple(own[name].shape)}; {_WANTED}")
        self.load_state_dict(dict(weights), strict=False)
        for block in self.blocks:
            block.temporal_attn.load_state_dict(block.attn.state_dict())
            block.temporal_norm1.load_state_dict(block.norm1.state_dict())


_WANTED = "give a plain ViT in timm's names, such as timm/vit_base_patch16_224.orig_in21k_ft_in1k"


def _complete(source: Mapping[str, int]) -> dict[str, int]:
    shape = {**ARCHITECTURES["nano"], **source}
    for key in shape:
        if key not in ARCHITECTURES["nano"]:
            raise unknown("key", key, ARCHITECTURES["nano"], "the architecture of a ViT")
    if shape["width"] % shape["heads"] or shape["image_size"] % shape["patch"]:
        raise UserError(
            f"a ViT's heads must divide its width, and its patch its image_size; here {shape['heads']} of "
            f"{shape['width']} and {shape['patch']} of {shape['image_size']}"
        )
    return shape


def _locate(source: str | os.PathLike) -> Path:
    """The file with the weights: `source` itself, in that folder, or in the hub's cache."""
    path, name = Path(source).expanduser(), str(source)
    if path.is_file():
        return path
    if path.is_dir():
        if not (path / _WEIGHTS).is_file():
            raise UserError(f"no weights in {path}: {_WEIGHTS} is missing; download the whole folder again")
        return path / _WEIGHTS
    if not hub_name(name):
        raise UserError(
            f"no ViT weights {name}; give a .safetensors or .pth file, a folder with {_WEIGHTS}, or for random weights "
            f"one of {', '.join(ARCHITECTURES)}"
        )
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        with quiet():
            return Path(hf_hub_download(name, _WEIGHTS))
    except (OSError, HfHubHTTPError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"can't get the ViT {name!r} from the hub ({reason:.120}) and there is no such file or folder; "
            f"download it on a machine with network (hf download {name} --local-dir FOLDER) and set path: FOLDER"
        ) from error


def _read(path: Path) -> dict[str, Tensor]:
    """Tensors of a file by name, without the classifier."""
    state = read_state(path, "a ViT", _WANTED)
    return {name: value for name, value in state.items() if not name.startswith(_CLASSIFIER)}


def _architecture(path: Path, weights: Mapping[str, Tensor]) -> dict[str, int]:
    """From the config.json that `save` wrote beside the weights; else from the shapes of the tensors."""
    config = path.with_name("config.json")
    if path.name == _WEIGHTS and config.is_file():
        try:
            content = json.loads(config.read_text(encoding="utf-8"))
            if content.get("model_type") == MODEL_TYPE:
                return {key: content[key] for key in ARCHITECTURES["nano"]}
        except (ValueError, AttributeError, KeyError) as error:
            raise UserError(f"can't read {config} ({error}); make or download the folder again") from error
    try:
        width, _, patch, _ = weights["patch_embed.proj.weight"].shape
        side = round((weights["pos_embed"].shape[1] - 1) ** 0.5)
    except (KeyError, ValueError, IndexError):
        raise UserError(f"{path} holds no ViT; {_WANTED}") from None
    depth = len({name.split(".")[1] for name in weights if name.startswith("blocks.")})
    return {"width": width, "depth": depth, "heads": width // HEAD_WIDTH, "patch": patch, "image_size": side * patch}
