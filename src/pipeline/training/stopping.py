"""A training that is asked to end keeps a checkpoint first.

The driver puts a file into the run's folder; the workers see it after a step, hand a checkpoint to `report` and
remove it; the driver ends.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.cluster.slurm import seconds_to_work, slurm_job
from pipeline.cluster.stop_files import keep_checkpoints, stop_file
from pipeline.errors import UserError
from pipeline.experiment import Run
from pipeline.workspace import Workspace

KEEP_SECONDS = 60.0  # for the checkpoint


@contextmanager
def stoppable(run: Run, ws: Workspace, minutes: float) -> Iterator[None]:
    """SIGTERM, or the end of this Slurm job `minutes` ahead, has the training in this block keep a checkpoint and end.

    Only the main thread can take signals; elsewhere (a trial of a sweep) the block is as it is.

    Raises:
        UserError: it was ended so; the same command goes on.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    flag, wanted, over = stop_file(ws, run.id), threading.Event(), threading.Event()
    flag.unlink(missing_ok=True)
    reason, kept = ["a signal"], threading.Event()
    left = seconds_to_work(slurm_job(), minutes)
    before = signal.signal(signal.SIGTERM, lambda *_: wanted.set())

    def watch() -> None:
        if not wanted.wait(left):
            reason[0] = "the time limit of its Slurm job"
        if over.is_set():
            return
        keep_checkpoints([flag], KEEP_SECONDS, over.is_set)
        if not over.is_set():
            if not flag.exists():
                kept.set()
            wanted.set()
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    except BaseException:  # Ray Train makes of a SIGINT what it likes: an exit, an error of a dead actor
        if not wanted.is_set():
            raise
        how = "with a checkpoint; the same command goes on from it"
        if not kept.is_set():
            how = "without a new checkpoint; the same command goes on from the one before, or begins again"
        raise UserError(f"{run.id}: ended by {reason[0]}, {how}") from None
    finally:
        over.set()
        wanted.set()
        signal.signal(signal.SIGTERM, before)
        flag.unlink(missing_ok=True)
