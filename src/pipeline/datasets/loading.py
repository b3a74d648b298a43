"""Clips read ahead: processes that decode beside the model, as many as the threads of a training allow.

How many there are and how far they read ahead changes no number, so it is part of no run's identity.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import torch
from torch.utils._pytree import tree_map
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from pipeline.errors import UserError

AHEAD = 2 * 2**30  # bytes of the items that wait for the model, at most
MOST_AHEAD = 4  # items that a process reads ahead, at most
SHARED = Path("/dev/shm")  # where items wait; containers often have little of it
_asked = [-1]


def use_loaders(processes: int) -> None:
    """Have so many processes read ahead from now on, in this process; -1: as many as its threads allow."""
    _asked[0] = processes


def loaders(item_bytes: int, items: int) -> tuple[int, int]:
    """How many processes read `items` items of `item_bytes` bytes each, and how many each of them reads ahead.

    By default a process a thread, but for the thread that drives the GPU; one where the model itself runs on the
    threads, and none where there is a single one. No more than have work, or room for what they have read.
    """
    if item_bytes < 1:
        return 0, 0
    wanted = _by_threads() if _asked[0] < 0 else _asked[0]
    room = min(AHEAD, shutil.disk_usage(SHARED).free // 2) // item_bytes if SHARED.is_dir() else AHEAD // item_bytes
    processes = max(min(wanted, room, items // 2), 0)
    return processes, min(room // processes, MOST_AHEAD) if processes else 0


def _by_threads() -> int:
    threads = min(torch.get_num_threads(), available_cores())
    return max(threads - 1, 1) if torch.cuda.is_available() else min(threads - 1, 1)


def available_cores() -> int:
    """Processors that this process may use: of its affinity (as Slurm sets it), and of its cgroup's share of time."""
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text("utf-8").split()
    except (OSError, ValueError):
        return cores
    return cores if quota == "max" else max(min(cores, int(quota) // int(period)), 1)


def loader(dataset: Dataset, item_bytes: int, batch: int = 0, sampler: Sampler | None = None) -> DataLoader:
    """Items of a dataset in order: stacked, `batch` at a time, or one by one with a leading dimension of 1.

    item_bytes: of an item of the dataset. Nothing is drawn from the global generator.
    """
    number = len(dataset) if sampler is None else len(sampler)
    processes, ahead = loaders(item_bytes * max(batch, 1), -(-number // max(batch, 1)))
    there = {}
    if processes:  # forked: the dataset, and the modules that are loaded, are shared with this process
        there = {"prefetch_factor": ahead, "worker_init_fn": _alone, "multiprocessing_context": "fork"}
    return _Loader(
        _Told(dataset),
        max(batch, 1),
        sampler=sampler,
        num_workers=processes,
        collate_fn=partial(_collate, default_collate if batch else _single),
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),
        **there,
    )


class _Loader(DataLoader):
    """What another process says is wrong is said in its own words, not below that process's traceback."""

    def __iter__(self) -> Iterator[Any]:
        return map(_said, super().__iter__())  # which, unlike a loop, holds no item while the model is at work on it


def _said(item: Any) -> Any:
    if isinstance(item, UserError):
        raise item
    return item


class _Told(Dataset):
    """A dataset whose items are UserErrors where it raises these."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, i: int) -> Any:
        try:
            return self.dataset[i]
        except UserError as error:
            return error


def _collate(collate: Callable[[list[Any]], Any], items: list[Any]) -> Any:
    return next((item for item in items if isinstance(item, UserError)), None) or collate(items)


def read_ahead(read: Callable[[Any], Any], places: Sequence[Any], batch: int, item_bytes: int) -> Iterator[Any]:
    """What `read` gives of each place, a tensor or a list of tensors: stacked, `batch` at a time, in order.

    item_bytes: of what `read` gives.
    """
    return iter(loader(_Read(read, places), item_bytes, batch))


class _Read(Dataset):
    def __init__(self, read: Callable[[Any], Any], places: Sequence[Any]) -> None:
        self.read, self.places = read, places

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, i: int) -> Any:
        return self.read(self.places[i])


def _single(items: list[Any]) -> Any:
    return tree_map(lambda tensor: tensor[None], items[0])


def _alone(worker: int) -> None:
    cv2.setNumThreads(0)  # the threads of a forked process's pool are not there any more
