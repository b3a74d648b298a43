"""A published image encoder as it is, frame by frame: features of elements for the questions of SeFAR's Table 5."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.model import BaseModel
from torch import Tensor, nn

from pipeline.compat import MODELS, quiet
from pipeline.datasets.elements import parse_elements
from pipeline.errors import UserError, unknown
from pipeline.models.backbones.clip import CLIP_MEAN, CLIP_STD
from pipeline.models.backbones.resnet import IMAGENET_MEAN, IMAGENET_STD
from pipeline.models.semi.model import Elements, SeFARModel
from pipeline.models.semi.timesformer import MODEL_TYPE, ElementTimeSformer
from pipeline.textfiles import load_json, read_text

SIDE = 224  # pixels, at most
TOWERS = {
    "clip": ("CLIPVisionModel", CLIP_MEAN, CLIP_STD),
    "blip-2": ("Blip2VisionModel", CLIP_MEAN, CLIP_STD),  # EVA-CLIP ViT-g/14
    "dinov2": ("Dinov2Model", IMAGENET_MEAN, IMAGENET_STD),
}
"""Classes of transformers by model type, and what they normalise RGB in [0, 1] with."""


class FrameEncoder(nn.Module):
    """An image encoder on single frames: one of TOWERS, a folder or hub id; or the folder of a plain ViT.

    `.dim` is the width of its feature, `.image_size` the side in pixels. Raises UserError if it cannot be loaded.
    """

    def __init__(self, source: str | Mapping[str, int]) -> None:
        super().__init__()
        if isinstance(source, Mapping) or _plain_vit(Path(source)):
            self.tower: nn.Module = ElementTimeSformer(source, [1], drop_path=0.0)
            self.dim, self.image_size = self.tower.dim, self.tower.image_size
            return
        self.tower, mean, std = _load(source)
        for name, value in (("own_mean", mean), ("own_std", std)):
            self.register_buffer(name, torch.tensor(value)[:, None, None], persistent=False)
        self.dim = self.tower.config.hidden_size
        self.image_size = min(self.tower.config.image_size, SIDE)

    def forward(self, frames: Tensor) -> Tensor:
        """Frames (n, 3, H, W), normalised as for SeFAR -> the feature of the class token, (n, D)."""
        if isinstance(self.tower, ElementTimeSformer):
            return self.tower(frames[:, None])
        pixels = frames * ElementTimeSformer.std[0] + ElementTimeSformer.mean[0]
        return self.tower(pixel_values=(pixels - self.own_mean) / self.own_std).pooler_output


def _plain_vit(folder: Path) -> bool:
    """Whether a folder is one that `ElementTimeSformer.save` wrote."""
    config = folder / "config.json"
    return config.is_file() and load_json(read_text(config)).get("model_type") == MODEL_TYPE


def _load(source: str) -> tuple[Any, tuple[float, ...], tuple[float, ...]]:
    import transformers

    try:
        with quiet():
            kind = transformers.AutoConfig.from_pretrained(source).model_type
            if kind not in TOWERS:
                raise unknown("model type", kind, TOWERS, source)
            name, mean, std = TOWERS[kind]
            names = {r"^vision_model\.": ""} if kind == "blip-2" else None  # a part of a larger model
            load = getattr(transformers, name).from_pretrained
            tower, found = load(source, key_mapping=names, output_loading_info=True)
            if found["missing_keys"]:  # transformers would go on with random ones
                raise ValueError(f"{min(found['missing_keys'])} is missing")
            return tower, mean, std
    except (OSError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"can't load the image encoder {source!r} ({reason:.160}); download it on a machine with network "
            f"(hf download {source} --local-dir FOLDER) and set its path: FOLDER"
        ) from error


class _Network(nn.Module):
    """In the place of `ElementNetwork`: a backbone without a head."""

    def __init__(self, source: str | Mapping[str, int]) -> None:
        super().__init__()
        self.backbone = FrameEncoder(source)

    def features(self, elements: Elements) -> Tensor:
        """The mean feature of the frames of each element: (B, n, D)."""
        seen = [self.backbone(x.flatten(0, 1)).unflatten(0, x.shape[:2]).mean(1) for x in elements]
        return torch.stack(seen, dim=1)


@MODELS.register_module()
class FrozenFrames(SeFARModel):
    """The feature of an element is the mean of its frames', of an encoder that nobody trains; there is no classifier.

    Args:
        backbone: `source`, of `FrameEncoder`.
        classes: not read.
        elements: as in `SeFARModel`.
    """

    def __init__(self, backbone: Mapping[str, Any], classes: int, elements: str | int = "2-2-4") -> None:
        BaseModel.__init__(self)
        self.lengths = parse_elements(elements)
        self.network = _Network(backbone["source"]).requires_grad_(False)
        self.teacher = None
        self.mean, self.std = ElementTimeSformer.mean, ElementTimeSformer.std
        self.image_size = self.network.backbone.image_size

    def init_weights(self) -> None:
        """Nothing: MMEngine would have the parts of transformers draw their weights anew."""

    def predict(self, elements: Elements) -> Tensor:
        """Raises UserError: it has no classes."""
        raise UserError("FrozenFrames has features and no classes; name it as the encoder of a row (encoder: ...)")

    def loss(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Raises UserError: it is not trained."""
        raise UserError("FrozenFrames is not trained; set train: { steps: 0 }")
