"""Files that ask a training for a checkpoint: its workers see one after a step, and remove it when it is kept."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from pipeline.workspace import Workspace


def stop_file(ws: Workspace, run_id: str) -> Path:
    """The file that asks a training to keep a checkpoint."""
    return ws.run(run_id) / "stop"


def keep_checkpoints(flags: Sequence[Path], seconds: float, over: Callable[[], bool] = lambda: False) -> None:
    """Ask trainings by their stop files for a checkpoint, and wait until they have kept it, or it is `over`."""
    for flag in flags:
        flag.parent.mkdir(parents=True, exist_ok=True)
        flag.touch()
    end = time.monotonic() + seconds
    while any(flag.exists() for flag in flags) and time.monotonic() < end and not over():  # a worker removes it
        time.sleep(0.1)
