"""What is read beside and in files of weights: tensors by name, and what frames are normalised with."""

from __future__ import annotations

import json
import math
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.compat import quiet
from pipeline.errors import UserError
from pipeline.textfiles import load_json, read_text

Statistics = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation of RGB in [0, 1]."""

WEIGHTS = "model.safetensors"
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".onnx")
_WRAPPERS = ("state_dict", "model_state_dict", "model", "net")
_PREFIXES = ("module.", "model.", "backbone.", "encoder.")


def hub_name(name: str) -> bool:
    """Whether a name may be one of the Hugging Face hub, OWNER/MODEL, and no file or folder that is missing."""
    plain = name.count("/") == 1 and not name.startswith((".", "~", "/")) and "\\" not in name
    return plain and not name.lower().endswith(SUFFIXES)


def locate_weights(source: str | os.PathLike, kind: str, example: str) -> Path:
    """The file with weights: `source` itself, in that folder, or in the hub's cache.

    kind, example: for messages, what is to be loaded and a name of it on the hub. Raises UserError.
    """
    path, name = Path(source).expanduser(), str(source)
    if path.is_file():
        return path
    if path.is_dir():
        if not (path / WEIGHTS).is_file():
            raise UserError(f"no weights in {path}: {WEIGHTS} is missing; download the whole folder again")
        return path / WEIGHTS
    if not hub_name(name):
        raise UserError(f"no {kind} weights {name}; give a .safetensors or .pth file, or a folder with {WEIGHTS}")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        with quiet():
            folder = Path(snapshot_download(name, allow_patterns=["config.json", WEIGHTS]))
    except (OSError, HfHubHTTPError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"can't get {kind} {name!r} from the hub ({reason:.120}) and there is no such file or folder; "
            f"download it on a machine with network (hf download {name} --local-dir FOLDER) and set path: FOLDER"
        ) from error
    if not (folder / WEIGHTS).is_file():
        raise UserError(f"{name!r} on the hub has no {WEIGHTS}; take another one, such as {example}")
    return folder / WEIGHTS


def describe_file(path: Path) -> str:
    """What a file of weights is that cannot be taken, in words: OpenAI's archive, a web page, a pointer of Git LFS."""
    with path.open("rb") as file:
        head = file.read(256)
    if head.startswith(b"version https://git-lfs"):
        return "a pointer of Git LFS, not the file itself: fetch it with `git lfs pull` or `hf download`"
    if head.lstrip()[:1] == b"<":
        return "a web page, not weights: download it again"
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        if any("/code/" in name for name in names) or any(name.endswith("constants.pkl") for name in names):
            return (
                "a TorchScript (JIT) archive, as OpenAI publishes CLIP: convert it, or download the same model in "
                "Hugging Face's format (openai/clip-vit-base-patch16)"
            )
    return ""


def read_state(path: Path, kind: str, wanted: str) -> dict[str, Tensor]:
    """Tensors of a file by name; nothing in the file is executed.

    What the bytes are counts, not the suffix. A dictionary inside of one (`state_dict`) is opened, and a prefix that
    all names share (`module.`) goes. kind, wanted: for messages, what is to be loaded and what to give.

    Raises UserError when the file cannot be read, is something else, or a number in it is not finite.
    """
    with path.open("rb") as file:
        pickled = file.read(4)[:2] in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
    try:
        if pickled:
            with path.open("rb") as file:  # of a path torch looks at the suffix
                state: Any = torch.load(file, map_location="cpu", weights_only=True)
        else:
            from safetensors.torch import load_file

            state = load_file(path)
    except Exception as error:  # each file format fails with exceptions of its own
        reason = describe_file(path) or (str(error).splitlines() or [type(error).__name__])[0][:160]
        raise UserError(f"can't load {kind} from {path} ({reason}); {wanted}") from error
    while isinstance(state, Mapping) and (inner := next((key for key in _WRAPPERS if key in state), None)):
        if not isinstance(state[inner], Mapping):
            break
        state = state[inner]
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()) or not state:
        raise UserError(f"{path} is not a state dict of tensors; {wanted}")
    if odd := next((name for name, value in state.items() if not finite(value)), None):
        raise UserError(f"{path}: {odd} holds numbers that are not finite; download it again")
    return _unprefixed(dict(state))


def _unprefixed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    while prefix := next((one for one in _PREFIXES if all(name.startswith(one) for name in state)), ""):
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def finite(value: Tensor) -> bool:
    """Whether all numbers of a tensor are finite."""
    return not value.is_floating_point() or bool(torch.isfinite(value).all())


def check_finite(model: nn.Module, where: Path) -> None:
    """Raise UserError for a model of which a weight is not finite."""
    if odd := next((name for name, value in model.named_parameters() if not finite(value)), None):
        raise UserError(f"weights in {where}: {odd} holds numbers that are not finite; download it again")


def read_statistics(folder: Path, default: Statistics) -> Statistics:
    """What the files beside weights say that frames are normalised with: `preprocessor_config.json` (image_mean and
    image_std), else `config.json` (pretrained_cfg of timm); without either the default. Raises UserError."""
    for name, keys in (("preprocessor_config.json", ("image_mean", "image_std")), ("config.json", ("mean", "std"))):
        if not (folder / name).is_file():
            continue
        try:
            content = load_json(read_text(folder / name))
            if name == "config.json":
                content = content.get("pretrained_cfg", content)
            found = tuple(content.get(key) for key in keys)
        except (ValueError, AttributeError) as error:
            raise UserError(f"{folder / name} is not a JSON object ({error}); download the folder again") from None
        if all(found):
            return _checked(found, folder / name)
    return default


def _checked(found: tuple[Any, ...], where: Path) -> Statistics:
    def good(values: Any, low: float) -> bool:
        numbers = isinstance(values, list) and len(values) == 3 and all(isinstance(x, int | float) for x in values)
        return numbers and all(math.isfinite(x) and low <= x <= 1 for x in values)

    mean, std = found
    if not (good(mean, 0.0) and good(std, 1e-3)):
        raise UserError(f"{where} says mean {mean} and deviation {std}; each must be three numbers of RGB in [0, 1]")
    return tuple(map(float, mean)), tuple(map(float, std))


def write_statistics(folder: Path, statistics: Statistics) -> None:
    """Write `preprocessor_config.json`, as `read_statistics` reads it."""
    mean, std = map(list, statistics)
    content = {"image_mean": mean, "image_std": std}
    (folder / "preprocessor_config.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


__all__ = [
    "Statistics",
    "check_finite",
    "describe_file",
    "finite",
    "hub_name",
    "locate_weights",
    "read_state",
    "read_statistics",
    "write_statistics",
]
