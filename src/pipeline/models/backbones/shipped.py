"""Backbones that come with the repository: `config/pretrained/KEY`, what `pretrain` once wrote, in half precision.

A folder has the files of a backbone and SHA256SUMS, as `sha256sum -c` reads it. Pretraining rounds its weights to half
precision, so a backbone that was fetched and one that was just made are the same up to the machine's arithmetic.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from safetensors.numpy import load_file, save_file

from pipeline.errors import UserError
from pipeline.files import new_folder

if TYPE_CHECKING:
    from torch import nn

SUMS = "SHA256SUMS"
WEIGHTS = "model.safetensors"


def round_to_half(network: nn.Module) -> None:
    """Round every weight to what half precision holds, in place."""
    for value in network.state_dict().values():  # which are detached
        if value.is_floating_point():
            value.copy_(value.half())


def pack(folder: Path, out: Path) -> Path:
    """Write the backbone in `folder` to `out`, its weights in half precision; returns `out`."""
    with new_folder(out) as new:
        _copy(folder, new, np.float16)
        names = sorted(path.name for path in new.iterdir())
        (new / SUMS).write_text("".join(f"{_sha256(new / name)}  {name}\n" for name in names), "utf-8")
    return out


def unpack(packed: Path, out: Path) -> Path:
    """Write the backbone that `pack` put into `packed` to `out`, its weights in single precision; returns `out`.

    Raises:
        UserError: a file is missing, or is not the one that was packed.
    """
    for line in (packed / SUMS).read_text("utf-8").splitlines():
        wanted, name = line.split("  ", 1)
        if not (packed / name).is_file() or _sha256(packed / name) != wanted:
            raise UserError(
                f"{packed / name} is not the file that came with the repository; restore it (git checkout -- "
                f"{packed}), or delete the folder to have the backbone pretrained here"
            )
    with new_folder(out) as new:
        _copy(packed, new, np.float32)
    return out


def _copy(source: Path, target: Path, dtype: type[np.floating]) -> None:
    for path in source.iterdir():
        if path.name == WEIGHTS:
            tensors = load_file(path)
            save_file({name: _as(value, dtype) for name, value in tensors.items()}, target / WEIGHTS, {"format": "pt"})
        elif path.name != SUMS:
            shutil.copyfile(path, target / path.name)


def _as(value: np.ndarray, dtype: type[np.floating]) -> np.ndarray:
    return value.astype(dtype) if np.issubdtype(value.dtype, np.floating) else value


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
