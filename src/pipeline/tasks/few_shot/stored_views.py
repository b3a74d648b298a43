"""Training on a few augmented views of each clip, whose frozen layers are run once.

With `train.stored_views: V` a clip has V views in place of a new one in each step. That changes what training sees, so
it is part of a run's identity. What the frozen layers make of the views that the episodes take is worked out before the
first step and read from files afterwards. It is kept in float32: losses are then those of the whole network on the
same views, and the number of views is all that differs from a plain training.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from mmengine.device import get_device
from mmengine.dist import barrier, get_rank, get_world_size
from torch import Tensor

from pipeline.errors import UserError
from pipeline.models.few_shot.base import FewShotModel
from pipeline.progress import bar
from pipeline.tasks.few_shot.episodes import EpisodeDataset

VIEWS_AT_ONCE = 16  # that pass through the frozen layers, and are in memory
FILES = "tokens-*.bin*"


class Views(EpisodeDataset):
    """Episodes whose clips are views: a clip has `views` of them, and an episode takes one by chance.

    View v of a clip depends on (seed, clip, v) alone, and which views episode i takes on (seed, i). `read` gives a
    view: (T, h, w, 3) uint8, or its tokens where it is that of `Tokens`.
    """

    def __init__(self, *args, views: int, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.views = views
        self.read: Callable[[int, int], Tensor] = self.view
        self.tokens: Tokens | None = None

    def take(self, tokens: Tokens) -> None:
        """Give tokens in place of frames from now on."""
        self.tokens, self.read = tokens, tokens.read

    @property
    def clip_bytes(self) -> int:
        return self.tokens.size if self.tokens else super().clip_bytes

    def view(self, clip: int, number: int) -> Tensor:
        """The frames (T, h, w, 3) of one view."""
        rng = np.random.default_rng(np.random.SeedSequence([self.seed, clip, 1 + number]))
        return self.transform(self.read_clip(clip, rng), rng)

    def asked(self) -> list[tuple[int, int]]:
        """The views that the episodes take, each once, as (clip, number) in ascending order."""
        found: set[tuple[int, int]] = set()
        reader = copy(self)
        reader.read = lambda clip, number: found.add((clip, number)) or torch.empty(0)
        for i in range(len(reader)):
            reader[i]
        return sorted(found)

    def _read(self, clips: np.ndarray, transform: Callable, rng: np.random.Generator, colours: None = None) -> Tensor:
        numbers = rng.integers(self.views, size=len(clips))
        return torch.stack([self.read(int(clip), int(number)) for clip, number in zip(clips, numbers, strict=True)])


@dataclass(frozen=True)
class Tokens:
    """Tokens of views in files of `folder`, one of each worker: its views lie one after the other in float32.

    shape: of the tokens of a view, (T, P, W). places: of each view (clip, number); view p is in file p % files.
    """

    folder: Path
    files: int
    shape: tuple[int, ...]
    places: dict[tuple[int, int], int]

    def path(self, file: int) -> Path:
        """A file; one of another number of workers has another name."""
        return self.folder / f"tokens-{file}-of-{self.files}.bin"

    @property
    def size(self) -> int:
        """Bytes of a view."""
        return 4 * math.prod(self.shape)

    def read(self, clip: int, number: int) -> Tensor:
        """The tokens of a view. Only they are mapped, and not for longer than it takes to copy them."""
        row, file = divmod(self.places[clip, number], self.files)
        return torch.from_numpy(np.array(np.memmap(self.path(file), np.float32, "r", row * self.size, self.shape)))


@torch.inference_mode()
def store_tokens(run_id: str, views: Views, model: FewShotModel, folder: Path, amp: bool = False) -> Tokens:
    """What the frozen layers of `model` make of the views that the episodes take, worked out and written to `folder`.

    Each worker does its share. A file that an interrupted training left is taken again if its first view is that of
    these layers. amp: the layers run in bfloat16, as in a training of the whole network.

    Raises:
        UserError: the method has no such layers, or the disk is too small.
    """
    device, training = torch.device(get_device()), model.training
    model.to(device).eval()

    def tokens(pairs: list[tuple[int, int]]) -> np.ndarray:
        frames = model.pixels(torch.stack([views.view(*pair) for pair in pairs]))
        with torch.autocast(device.type, torch.bfloat16, enabled=amp):
            return model.trunk(frames).float().cpu().numpy()

    asked, rank, workers = views.asked(), get_rank(), get_world_size()
    mine = asked[rank::workers]
    first = tokens(mine[:1])[0]
    stored = Tokens(folder, workers, first.shape, {pair: place for place, pair in enumerate(asked)})
    missing = not _holds(stored.path(rank), first, len(mine))
    if missing:
        _check_space(run_id, stored)
    barrier()  # nobody writes before all have looked at the space
    if missing:
        _write(stored.path(rank), tokens, mine)
    barrier()
    model.train(training)
    return stored


def remove_tokens(folder: Path) -> None:
    """Delete the files of `Tokens`."""
    for path in folder.glob(FILES):
        path.unlink(missing_ok=True)


def _write(path: Path, tokens: Callable[[list[tuple[int, int]]], np.ndarray], pairs: list[tuple[int, int]]) -> None:
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        with temporary.open("wb") as file, bar("storing tokens", len(pairs), "views") as shown:
            for start in range(0, len(pairs), VIEWS_AT_ONCE):
                part = pairs[start : start + VIEWS_AT_ONCE]
                tokens(part).tofile(file)
                shown.advance(len(part))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _holds(path: Path, first: np.ndarray, views: int) -> bool:
    """Whether a file has the tokens of so many views, of which this is the first."""
    if not path.is_file() or path.stat().st_size != views * first.nbytes:
        return False
    return np.allclose(np.memmap(path, np.float32, "r", shape=first.shape), first, rtol=1e-3, atol=1e-3)


def _check_space(run_id: str, stored: Tokens) -> None:
    needed, free = len(stored.places) * stored.size, shutil.disk_usage(stored.folder).free
    if needed > free:
        raise UserError(
            f"{run_id}: the tokens of {len(stored.places):,} views take {needed / 1e9:.3g} GB, and {free / 1e9:.3g} GB "
            f"are free in {stored.folder}; lower train.stored_views, or leave it out"
        )
