"""A CLIP with eyes from ImageNet: a frozen image tower, and a text tower that was aligned to it.

This is locked-image tuning (LiT, Zhai et al., CVPR 2022) at the size of a laptop. The image tower is
EfficientNet-Lite0, whose weights come with a Python package, so methods that read texts have real features on a machine
that reaches no hub. `pipeline.training.pretrain.align` makes it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pipeline.compat import MODELS, quiet
from pipeline.errors import UserError
from pipeline.models.backbones.clip import load_model, load_tokenizer, tokenize
from pipeline.models.backbones.efficientnet import PACKAGE, EfficientNetBackbone
from pipeline.models.backbones.weights import read_state

if TYPE_CHECKING:
    from transformers import CLIPTextConfig

NAME = "locked_clip"
IMAGE, TEXT, PROJECTION = "image", "text", "projection.safetensors"
NORM = 10.0  # mean length of the features of frames, and of sentences, as about in CLIP


@MODELS.register_module()
class LockedCLIP(nn.Module):
    """EfficientNet-Lite0 and a small text tower, both frozen; frames pass a fixed projection to the width of texts.

    Args:
        source: a folder that `save` wrote; or the configuration of a text tower, for one with random weights, no
            tokenizer, and a projection that `fit_projection` is yet to make.
        image: of the image tower where `source` is a configuration, see `EfficientNetBackbone`.

    Raises:
        UserError: timm or the package of the weights is not installed, or a file is missing or broken.

    The towers are `.image` and `.text`; `.dim` is the width of the features, `.max_length` the longest text in tokens,
    `.mean` and `.std` normalise RGB in [0, 1]; `.image_size` is None: frames may have any size.
    """

    image_size: int | None = None

    def __init__(self, source: str | os.PathLike | CLIPTextConfig, image: str | os.PathLike = PACKAGE) -> None:
        super().__init__()
        from transformers import CLIPTextModelWithProjection

        folder = Path(source).expanduser() if isinstance(source, str | os.PathLike) else None
        if folder and not (folder / IMAGE).is_dir():
            raise UserError(f"{folder} holds no image tower ({IMAGE}/); have the workflow make the backbone again")
        self.image = EfficientNetBackbone(folder / IMAGE if folder else image)
        if folder:
            self.text = load_model(CLIPTextModelWithProjection, folder / TEXT, "it again")
            self.tokenizer = load_tokenizer(folder / TEXT, self.text.config)
        else:
            self.text, self.tokenizer = CLIPTextModelWithProjection(source), None
        self.dim: int = self.text.config.projection_dim
        self.max_length: int = self.text.config.max_position_embeddings
        self.mean, self.std = self.image.mean, self.image.std
        self.projection = nn.Linear(self.image.dim, self.dim)
        if folder:
            self.projection.load_state_dict(read_state(folder / PROJECTION, NAME, "make the backbone again"))
        self.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> LockedCLIP:
        """Stays in evaluation mode: statistics of BatchNorm are those of ImageNet."""
        return super().train(False)

    def encode_frames(self, x: Tensor) -> Tensor:
        """Features of normalised frames, (B, T, 3, H, W) -> (B, T, D); not L2-normalised."""
        return self.projection(self.image.encode_frames(x))

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Features of sentences: n strings -> (n, D); not L2-normalised."""
        return self.encode_tokens(self.tokenize(texts))

    def encode_tokens(self, ids: Tensor) -> Tensor:
        """Features of token ids, (n, L) -> (n, D); what follows the end-of-text token has no influence."""
        return self.text(input_ids=ids).text_embeds

    def tokenize(self, texts: Sequence[str], length: int | None = None) -> Tensor:
        """Token ids (n, L), as `CLIPBackbone.tokenize`."""
        return tokenize(self.tokenizer, texts, length, self.max_length).to(self.projection.weight.device)

    @torch.no_grad()
    def fit_projection(self, frames: Tensor) -> None:
        """Make the projection from features (n, W) that the image tower gives of base classes' frames.

        It takes their mean away, which all frames of a data set share, and keeps the D directions in which they differ
        most (PCA). The mean length becomes `NORM`.

        Raises:
            UserError: there are fewer frames than directions.
        """
        if min(frames.shape) < self.dim:
            raise UserError(
                f"{len(frames)} frames of width {frames.shape[1]} give no {self.dim} directions; lower width"
            )
        mean = frames.mean(0)
        directions = torch.linalg.eigh(torch.cov((frames - mean).T))[1].flip(-1)[:, : self.dim].T
        weight = directions * NORM / ((frames - mean) @ directions.T).norm(dim=-1).mean()
        self.projection.weight.copy_(weight)
        self.projection.bias.copy_(-weight @ mean)

    @torch.no_grad()
    def fit_length(self, ids: Tensor) -> None:
        """Scale the text tower so that the mean length of its features of sentences, ids (n, L), is `NORM`."""
        self.text.text_projection.weight.mul_(NORM / self.encode_tokens(ids).norm(dim=-1).mean())

    def save(self, folder: str | os.PathLike) -> None:
        """Write config.json, both towers (the text tower as Hugging Face lays it out) and the projection."""
        folder = Path(folder)
        self.image.save(folder / IMAGE)
        with quiet():
            self.text.save_pretrained(folder / TEXT)
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(folder / TEXT)
        save_file(
            {name: value.contiguous() for name, value in self.projection.state_dict().items()}, folder / PROJECTION
        )
        (folder / "config.json").write_text(json.dumps({"model_type": NAME}, indent=1) + "\n", encoding="utf-8")
