"""A training that is asked to end, with threads in the places of its workers."""

from __future__ import annotations

import os
import signal
import threading
import time
from types import SimpleNamespace

import pytest

from pipeline.cluster.stop_files import stop_file
from pipeline.errors import UserError
from pipeline.training import stopping as module
from pipeline.training.stopping import stoppable
from pipeline.workspace import Workspace

RUN = SimpleNamespace(id="lga-scene-s0-0a")


def _worker(flag):
    """Keeps a checkpoint when it is asked to."""
    while not flag.exists():
        time.sleep(0.01)
    flag.unlink()


@pytest.mark.parametrize("left", [None, 0.1], ids=["signal", "limit"])
@pytest.mark.parametrize("works", [True, False], ids=["kept", "not kept"])
def test_it_ends_after_a_checkpoint_and_says_so(tmp_path, monkeypatch, left, works):
    ws, before = Workspace(tmp_path), signal.getsignal(signal.SIGTERM)
    flag = stop_file(ws, RUN.id)
    monkeypatch.setattr(module, "seconds_to_work", lambda job, minutes: left)
    monkeypatch.setattr(module, "KEEP_SECONDS", 20 if works else 0.2)
    reason = "a signal" if left is None else "the time limit of its Slurm job"
    how = "with a checkpoint; the same command goes on from it" if works else "without a new checkpoint; the same"
    with pytest.raises(UserError, match=f"{RUN.id}: ended by {reason}, {how}"):
        with stoppable(RUN, ws, 2):
            if works:
                threading.Thread(target=_worker, args=(flag,), daemon=True).start()
            if left is None:
                os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(30)
    assert not flag.exists() and signal.getsignal(signal.SIGTERM) == before


def test_a_training_that_nobody_ends_is_left_alone(tmp_path):
    ws = Workspace(tmp_path)
    with stoppable(RUN, ws, 0):
        pass
    with pytest.raises(ZeroDivisionError), stoppable(RUN, ws, 0):
        _ = 1 / 0
    assert not stop_file(ws, RUN.id).exists()
