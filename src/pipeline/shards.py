"""Shards of frames, poses or features, made by this process or, by Ray Data, over the nodes of a Ray cluster.

A shard needs no other one, and has its name when it is whole: whoever makes it may be lost, and the rest stays.

    make_shards -> portions of shards -> Ray Data, one task on a node at a time -> `make`, whose processes decode
"""

from __future__ import annotations

import json
import logging
import math
import os
import pickle
import socket
import time
import traceback
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.cluster.resources import wait_for_tasks
from pipeline.errors import UserError
from pipeline.files import disk_full, read_json, write_text
from pipeline.progress import Bar

Parts = dict[int, list[str]]
"""Number of a shard -> what its clips are called below the root."""
Make = Callable[[Parts, Callable[[], None]], Iterator[Path]]
"""Makes shards one after the other, calls its second argument after each clip, and yields each shard's last file once
that is there. Shards that are there already it yields and leaves alone. Picklable."""

PORTIONS = 16  # for each node: few starts of decoders, and yet all nodes end at about the same time
RETRIES = 3  # lost workers that a portion survives
SEEN_SECONDS = 120.0  # in which files of other nodes are seen on a shared file system


@dataclass(frozen=True)
class ShardFolder:
    """A folder that is made shard by shard. `identity.json` says from the start what it is for; `manifest.json` is
    written last. So a build that was interrupted goes on after its finished shards, and none is taken for another's.

    what: name of what it holds, for messages.
    """

    path: Path
    identity: Mapping[str, Any]
    what: str

    def complete(self) -> bool:
        """Whether it is whole; raises UserError when it is whole with another `policy`."""
        manifest = read_json(self.path / "manifest.json")
        if manifest is None:
            return False
        if manifest.get("policy") != self.identity["policy"]:
            raise UserError(
                f"the {self.what} {self.path} was made with the policy {manifest.get('policy')}, "
                f"not {self.identity['policy']}; delete it or name another folder"
            )
        return all(manifest.get(key) == value for key, value in self.identity.items())

    def begin(self, files: Iterable[str], keep: Callable[[Mapping[str, Any]], None] = lambda before: None) -> None:
        """Clear what another build left: the `files` (patterns) of another identity, which `keep` is given before."""
        self.path.mkdir(parents=True, exist_ok=True)
        (self.path / "manifest.json").unlink(missing_ok=True)
        self._clear(".*.tmp")
        before = read_json(self.path / "identity.json")
        if before != self.identity:
            keep(before or {})
            self._clear(*files)
            write_text(self.path / "identity.json", json.dumps(self.identity, indent=1) + "\n")

    def claim(self) -> bool:
        """Whether a folder that the user names is whole; writes down what an empty one is for.

        Raises:
            UserError: it is for something else, which stays.
        """
        file = self.path / "identity.json"
        if not file.exists():
            if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
                raise UserError(f"{self.path} is there and holds no {self.what}; name another folder with --out")
            write_text(file, json.dumps(self.identity, indent=1) + "\n")
        before = read_json(file) or {}
        if other := [key for key in {**before, **self.identity} if before.get(key) != self.identity.get(key)]:
            raise UserError(
                f"{self.path} holds {self.what} made with other {', '.join(other)}; name another folder with --out, "
                "or delete it"
            )
        self._clear(".*.tmp")
        return (self.path / "manifest.json").is_file()

    def _clear(self, *patterns: str) -> None:
        for pattern in patterns:
            for left in self.path.glob(pattern):
                left.unlink()

    @contextmanager
    def filling(self) -> Iterator[None]:
        """Around the work: a full disk is a UserError."""
        try:
            yield
        except OSError as error:
            if disk_full(error):
                raise UserError(
                    f"no space left on the disk of {self.path}; finished shards are kept: free some and run again"
                ) from error
            raise


def shard_file(folder: Path, number: int) -> Path:
    """The file of a shard of arrays."""
    return folder / f"shard-{number:05d}.npz"


def read_arrays(path: str | Path, keys: Iterable[str]) -> dict[str, np.ndarray] | None:
    """The arrays `keys` of a shard; None where it is missing or damaged."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {key: archive[key] for key in keys}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):
        return None


def make_shards(
    make: Make,
    parts: Parts,
    shown: Bar,
    nodes: int = 1,
    workers: int = 1,
    shared: Sequence[Path] = (),
    gpus: int = 0,
) -> None:
    """Make the shards `parts`: with one node in this process, else in tasks on `nodes` nodes of the Ray cluster that it
    is connected to, with `workers` CPUs and `gpus` GPUs each.

    shared: folders that all nodes must see.

    Raises:
        UserError: no node has so many CPUs and GPUs, one does not see the folders, workers were lost too often; and
            what `make` raises, wherever it is.
    """
    if nodes == 1 or not parts:
        for _ in make(parts, shown.advance):
            pass
        return
    each, some, files = math.ceil(len(parts) / (nodes * PORTIONS)), list(parts.items()), []
    portions = [pickle.dumps(dict(some[start : start + each])) for start in range(0, len(some), each)]
    with closing(_over_nodes(partial(_portion, make, shared), portions, nodes, workers, gpus)) as rows:
        for row in rows:
            if row["error"]:
                raise pickle.loads(row["error"])
            files.append(Path(row["file"]))
            shown.advance(row["clips"])
    _wait_for(files)


def _portion(make: Make, shared: Sequence[Path], row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The task: a row for each shard of a portion, or with what went wrong.

    Done again, after a loss, it gives the same rows: Ray relies on that.
    """
    parts: Parts = pickle.loads(row["portion"])
    try:
        for folder in shared:
            if not folder.is_dir():
                raise UserError(f"{folder} is not seen on {socket.gethostname()}; all nodes must share its file system")
        for part, file in zip(parts.values(), make(parts, lambda: None), strict=True):
            yield {"file": str(file), "clips": len(part), "error": b""}
    except Exception as error:  # as it is: Ray would wrap it
        error.add_note(f"on {socket.gethostname()}:\n{traceback.format_exc()}")
        yield {"file": "", "clips": 0, "error": pickle.dumps(error)}


def _over_nodes(
    task: Callable[[dict[str, Any]], Iterable[dict[str, Any]]],
    portions: Sequence[bytes],
    nodes: int,
    workers: int,
    gpus: int,
) -> Iterator[dict[str, Any]]:
    """The rows that `task` makes of all portions, each as soon as it is made."""
    size = wait_for_tasks(min(nodes, len(portions)), {"CPU": workers, "GPU": gpus})  # Ray Data would wait without end
    import ray.data
    from ray.exceptions import RayError

    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what goes wrong is raised
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.target_max_block_size = 1  # a row is a block: it does not wait for others
    context.execution_no_progress_timeout_s = -1  # a shard takes as long as it takes
    items = ray.data.from_items([{"portion": portion} for portion in portions], override_num_blocks=len(portions))
    tasks = ray.data.TaskPoolStrategy(size=size)
    rows = items.flat_map(task, compute=tasks, num_cpus=workers, num_gpus=gpus or None, max_retries=RETRIES)
    try:
        for block in rows.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            yield from block.to_pylist()
    except RayError as error:
        reason = str(error).strip().splitlines()[-1][:200]
        raise UserError(f"tasks on the nodes failed or were lost ({reason}); run the same command again") from error


def _wait_for(files: Iterable[Path]) -> None:
    """Wait until this node sees what others have written."""
    end = time.monotonic() + SEEN_SECONDS
    for file in files:
        while not file.exists():
            if time.monotonic() > end:
                raise UserError(f"{file}, of another node, is not seen here; all nodes must share its file system")
            os.listdir(file.parent)  # has a network file system look again
            time.sleep(0.5)
