"""Shards that are small text files, for tests of `pipeline.shards`; and tasks in this process in place of Ray's.

python shard_tasks.py FOLDER   # makes twelve of them over a Ray cluster, one of whose workers dies
"""

from __future__ import annotations

import errno
import os
import pickle
import signal
import sys
from functools import partial
from pathlib import Path

from pipeline import shards
from pipeline.errors import UserError
from pipeline.progress import Bar


def run_here(task, portions, nodes, workers, gpus):
    """In place of `shards._over_nodes`; task and rows go through pickles, as they do to another node."""
    task = pickle.loads(pickle.dumps(task))
    for portion in portions:
        yield from task({"portion": portion})


def write(parts, advance, folder):
    """The shard of a number is the file of that name, and says which clips it has."""
    for number, part in parts.items():
        file = folder / str(number)
        if not file.exists():
            with open(folder / "log", "a") as log:
                log.write(f"{number}\n")
            file.write_text(" ".join(part))
            for _ in part:
                advance()
        yield file


def full(parts, advance, folder):
    """There is room for two shards."""
    for file in write(parts, advance, folder):
        if file.name == "2":
            raise OSError(errno.ENOSPC, "No space left on device", str(file))
        yield file


def hopeless(parts, advance, folder):
    """Something that the user can mend is wrong."""
    raise UserError("the moon is full; wait")
    yield


def forgetful(parts, advance, folder):
    """Says that it has made what is not there."""
    return (folder / f"absent{number}" for number in parts)


def mortal(parts, advance, folder):
    """Its process is killed before the third shard, once."""
    for file in write(parts, advance, folder):
        if file.name == "1" and not (folder / "killed").exists():
            (folder / "killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        yield file


def parts(count):
    """So many shards of two clips each."""
    return {number: [f"a{number}", f"b{number}"] for number in range(count)}


if __name__ == "__main__":
    import ray
    import shard_tasks  # by this name the workers find it

    folder, shown = Path(sys.argv[1]), Bar("made", 24, "clips")
    ray.init(address=os.environ["RAY_ADDRESS"], log_to_driver=False)
    shards.PORTIONS = 2
    shards.make_shards(partial(shard_tasks.mortal, folder=folder), parts(12), shown, 2, 1, [folder])
    print(shown.done)
