"""CLIP (Radford et al., ICML 2021) in Hugging Face format, as an encoder of frames and sentences."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pipeline.compat import MODELS, quiet
from pipeline.errors import UserError, unknown
from pipeline.models.backbones.weights import (
    check_finite,
    describe_file,
    hub_name,
    read_statistics,
    write_statistics,
)
from pipeline.textfiles import load_json, read_text

if TYPE_CHECKING:
    from transformers import CLIPConfig, CLIPModel, CLIPTextConfig

logger = logging.getLogger(__name__)

# Of RGB in [0, 1]; the same numbers in every release of CLIP.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
# CLIP ViT-B/16: 149.6 M parameters, 224 x 224 pixels, 512 features.
VIT_B_16: dict[str, Any] = {"vision_config": {"patch_size": 16}}

_DTYPES = ("float32", "bfloat16", "float16")
_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


@MODELS.register_module()
class CLIPBackbone(nn.Module):
    """Both towers of CLIP with their projections and the tokenizer that belongs to them.

    Args:
        source: folder with `config.json`, weights and tokenizer files; or a name on the Hugging Face hub,
            such as `openai/clip-vit-base-patch16`; or a configuration (`CLIPConfig` or dict, see `VIT_B_16`)
            for random weights without a tokenizer.
        attention: attention kernel of transformers ("sdpa", "eager", "flash_attention_2").
        dtype: type of the parameters. Mixed precision is the trainer's matter (`torch.autocast`).
        freeze_text: the text tower, its projection and the logit scale take no gradient.
        activation_checkpointing: in train mode, recompute the frame tower's activations in the backward pass.

    Raises:
        UserError: a file is missing, broken or of another model, or the hub can't be reached.

    The transformers model is `.clip`; `.dim` is the width of the features, `.image_size` the side in pixels,
    `.max_length` the longest text in tokens, `.mean` and `.std` what frames are normalised with.
    """

    def __init__(
        self,
        source: str | os.PathLike | CLIPConfig | dict,
        *,
        attention: str = "sdpa",
        dtype: str = "float32",
        freeze_text: bool = True,
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if dtype not in _DTYPES:
            raise unknown("dtype", dtype, _DTYPES, "CLIPBackbone")
        if isinstance(source, str | os.PathLike):
            folder = _folder(source)
            self.clip = _load(folder, attention, getattr(torch, dtype))
            self.tokenizer = load_tokenizer(folder, self.clip.config.text_config)
            self.mean, self.std = read_statistics(folder, (CLIP_MEAN, CLIP_STD))
        else:
            from transformers import CLIPConfig, CLIPModel

            config = CLIPConfig(**source) if isinstance(source, dict) else source
            self.clip = CLIPModel._from_config(config, attn_implementation=attention, dtype=getattr(torch, dtype))
            self.tokenizer = None
            self.mean, self.std = CLIP_MEAN, CLIP_STD
        self.dim: int = self.clip.config.projection_dim
        self.image_size: int = self.clip.config.vision_config.image_size
        self.max_length: int = self.clip.config.text_config.max_position_embeddings
        self.freeze_text = freeze_text
        if freeze_text:
            self.clip.text_model.requires_grad_(False)
            self.clip.text_projection.requires_grad_(False)
            self.clip.logit_scale.requires_grad_(False)
        if activation_checkpointing:
            self.clip.vision_model.gradient_checkpointing_enable({"use_reentrant": False})

    def encode_frames(self, x: Tensor) -> Tensor:
        """Features of normalised frames, (B, T, 3, H, W) -> (B, T, D): CLS token, post_layernorm, projection.

        Not L2-normalised. Raises UserError if H or W is not `image_size`.
        """
        side = self.image_size
        if tuple(x.shape[-2:]) != (side, side):
            height, width = x.shape[-2:]
            raise UserError(
                f"frames of {height}x{width} pixels for a CLIP of {side}x{side}; crop frames to {side} pixels"
            )
        pooled = self.clip.vision_model(pixel_values=x.flatten(0, 1)).pooler_output
        return self.clip.visual_projection(pooled).unflatten(0, x.shape[:2])

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Features of sentences: n strings -> (n, D), from the end-of-text token through the projection.

        Not L2-normalised; no gradient if the text tower is frozen. Raises UserError without a tokenizer.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze_text):
            return self.encode_tokens(self.tokenize(texts))

    def encode_tokens(self, ids: Tensor) -> Tensor:
        """Features of token ids, (n, L) -> (n, D); what follows the end-of-text token has no influence."""
        return self.clip.text_projection(self.clip.text_model(input_ids=ids).pooler_output)

    def tokenize(self, texts: Sequence[str], length: int | None = None) -> Tensor:
        """Token ids (n, L) on the model's device, zero after the end-of-text token as in OpenAI's tokenizer.

        L is `length`, or that of the longest text. A text beyond `max_length` loses its last words, never its
        end-of-text token, and one warning tells how many did.
        """
        ids = tokenize(self.tokenizer, texts, length, self.max_length)
        return ids.to(self.clip.text_projection.weight.device)

    def save(self, folder: str | os.PathLike) -> None:
        """Write config.json, model.safetensors and the tokenizer into `folder`, as Hugging Face lays them
        out, and what frames are normalised with where it is not CLIP's own."""
        with quiet():
            self.clip.save_pretrained(folder)
        if (self.mean, self.std) != (CLIP_MEAN, CLIP_STD):
            write_statistics(Path(folder), (self.mean, self.std))
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(folder)


def tokenize(tokenizer: Any, texts: Sequence[str], length: int | None, most: int) -> Tensor:
    """Token ids as `CLIPBackbone.tokenize`, `most` in a text at most; UserError without a tokenizer."""
    if tokenizer is None:
        raise UserError("a CLIP built from a configuration alone has no tokenizer; give it a folder or a hub name")
    rows = [tokenizer(text, verbose=False)["input_ids"] for text in texts]
    limit = min(length or most, most)
    long = [i for i, row in enumerate(rows) if len(row) > limit]
    if long:
        logger.warning(
            "%d of %d texts are longer than %d tokens and were cut, the first: %.60r",
            len(long),
            len(rows),
            limit,
            texts[long[0]],
        )
    rows = [row if len(row) <= limit else [*row[: limit - 1], row[-1]] for row in rows]
    ids = torch.zeros(len(rows), length or max(map(len, rows)), dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
    return ids


def _folder(source: str | os.PathLike) -> Path:
    """`source` itself if it is a folder, else the folder of the hub's cache that holds this model."""
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    name, wanted = str(source), "give a folder in Hugging Face's format: config.json, weights and tokenizer files"
    if folder.is_file():
        what = describe_file(folder) or "a file, not a folder"
        raise UserError(f"{name} is {what}; {wanted}")
    if not hub_name(name):
        raise UserError(f"no CLIP folder {name}; {wanted}")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        with quiet():
            found = snapshot_download(name, allow_patterns=["*.json", "merges.txt", "model*.safetensors"])
            if not any((Path(found) / weights).exists() for weights in _WEIGHTS[:2]):
                found = snapshot_download(name, allow_patterns=["pytorch_model*.bin"])
    except (OSError, HfHubHTTPError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"can't get CLIP {name!r} from the hub ({reason:.120}) and there is no such folder; "
            f"download it on a machine with network (hf download {name} --local-dir FOLDER) "
            "and set path: FOLDER"
        ) from error
    return Path(found)


def _load(folder: Path, attention: str, dtype: torch.dtype) -> CLIPModel:
    """The model of a folder."""
    from transformers import CLIPModel

    _check_config(folder)
    return load_model(CLIPModel, folder, "a folder with both towers and their projections", attention, dtype)


def load_model(
    kind: Any, folder: Path, wanted: str, attention: str = "sdpa", dtype: torch.dtype = torch.float32
) -> Any:
    """A model of class `kind` from safetensors, or a state dict that torch reads with `weights_only`.

    Raises:
        UserError: weights are missing or broken; `wanted` says what to get.
    """
    if not any((folder / name).is_file() for name in _WEIGHTS):
        raise UserError(f"no weights in {folder}: model.safetensors is missing; download the whole CLIP folder")
    try:
        with quiet():
            model, report = kind.from_pretrained(
                folder,
                attn_implementation=attention,
                dtype=dtype,
                local_files_only=True,
                weights_only=True,
                output_loading_info=True,
            )
    except Exception as error:  # each file format fails with exceptions of its own
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"can't load CLIP from {folder} ({reason:.160}); download the folder again") from error
    if report["missing_keys"]:
        first = sorted(report["missing_keys"])[0]
        raise UserError(
            f"weights in {folder} lack {len(report['missing_keys'])} tensors of CLIP, such as {first}; "
            f"download {wanted}"
        )
    check_finite(model, folder)
    return model


def _check_config(folder: Path) -> None:
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(f"no config.json in {folder}; it must be a CLIP folder in Hugging Face format")
    try:
        kind = load_json(read_text(path)).get("model_type")
    except (ValueError, AttributeError) as error:
        raise UserError(f"{path} is not a JSON object ({error}); download the folder again") from error
    if kind != "clip":
        raise UserError(f"{path} describes a model of type {kind!r}, not 'clip'; give a CLIP folder")


def load_tokenizer(folder: Path, text: CLIPTextConfig) -> Any:
    """The folder's tokenizer, after a check that it marks the end of a text as the model expects."""
    from transformers import AutoTokenizer

    if not (folder / "tokenizer.json").is_file():
        for name in ("vocab.json", "merges.txt"):
            if not (folder / name).is_file():
                raise UserError(
                    f"no tokenizer in {folder}: neither tokenizer.json nor {name}; download the whole CLIP folder"
                )
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        ids = tokenizer("a")["input_ids"]
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"can't load the tokenizer in {folder} ({reason:.160}); download it again") from error
    # Old configs say eos_token_id 2, which transformers takes as "the highest id of the sentence".
    end = max(ids) if text.eos_token_id == 2 else text.eos_token_id
    if ids[-1] != end or len(tokenizer) > text.vocab_size:
        raise UserError(
            f"the tokenizer in {folder} does not belong to the weights "
            f"(end-of-text {ids[-1]}, {len(tokenizer)} tokens; the model wants {end}, "
            f"at most {text.vocab_size}); download all files together"
        )
    return tokenizer
