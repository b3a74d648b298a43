"""The shared cluster's server, with a fake Ray and slots that are functions."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
import types

import pytest

from pipeline.cluster import client
from pipeline.cluster import server as module
from pipeline.cluster.client import Client, running
from pipeline.cluster.queue import Connection
from pipeline.config import Cluster
from pipeline.errors import UserError
from pipeline.progress import lives, this_process
from pipeline.workspace import Workspace


@pytest.fixture
def ray(monkeypatch):
    """A Ray that does nothing but note when it is shut down."""
    made = types.SimpleNamespace(ended=[], room=2)
    made.shutdown = lambda: made.ended.append(threading.active_count())
    monkeypatch.setattr(client.subprocess, "Popen", lambda *_, **__: pytest.fail("a real cluster"))
    monkeypatch.setattr(module, "attach", lambda address: (made, "http://127.0.0.1:8265"))
    monkeypatch.setattr(module, "wait_for_room", lambda count, *_, **__: min(count, made.room))
    monkeypatch.setattr(module, "_stop_on_signals", lambda _: None)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "s3cret")
    return made


@pytest.fixture
def served(tmp_path, ray):
    """`served(slot)` runs a server with that slot in a thread; gives its workspace, and how to end it."""
    stopping, threads = threading.Event(), []

    def start(slot, **settings):
        ws = Workspace(tmp_path)
        ws.ray.mkdir(exist_ok=True)
        record = this_process() | {"address": "127.0.0.1:1"}
        arguments = (ws, Cluster(**settings), slot, record, lambda: True, stopping)
        threads.append(threading.Thread(target=module._serve, args=arguments))
        threads[0].start()
        end = time.monotonic() + 10
        while not running(ws) and threads[0].is_alive():
            assert time.monotonic() < end
            time.sleep(0.01)
        return ws, lambda: (stopping.set(), threads[0].join(20))

    yield start
    stopping.set()
    for thread in threads:
        thread.join(20)


def test_a_worker_that_never_starts_is_an_error_and_no_wait(served):
    starts = []

    def slot(number, *_):
        starts.append(number)
        raise RuntimeError("a traceback\nModuleNotFoundError: No module named 'torch'")

    gate = threading.Event()
    ws, _ = served(lambda *a: gate.wait(20) and slot(*a))
    client = Client(ws, Cluster())
    threading.Timer(0.2, gate.set).start()
    with pytest.raises(UserError, match=r"^a: no worker .* died 3 times before it took any work: .*named 'torch'$"):
        client.run("a", "train", {})
    assert sorted(starts) == [0] * module.STARTS + [1] * module.STARTS


def test_a_worker_that_has_worked_gets_a_new_one_each_time(served):
    """It may die of each of its items; the next ones are done all the same."""
    died = []

    def slot(number, root, settings, queue):
        mine = Connection(queue, "s3cret")
        while (item := mine.take(number)) is not None:
            if item["key"].startswith("bad"):
                died.append(item["key"])
                raise RuntimeError("Worker exit type: NODE_OUT_OF_MEMORY")
            mine.finish(item["key"], "")

    ws, end = served(slot, slots=1)
    client = Client(ws, Cluster())
    for number in range(module.STARTS):
        with pytest.raises(UserError, match=r"died 2 times \(memory pressure: .*slots: 1"):
            client.run(f"bad{number}", "train", {})
    client.run("good", "train", {})
    assert len(died) == 2 * module.STARTS
    end()


def test_slots_end_before_ray_does(served, ray):
    ended = []

    def slot(number, root, settings, queue):
        mine = Connection(queue, "s3cret")
        assert mine.take(number) is None
        time.sleep(0.3)  # it tidies up
        ended.append(number)
        assert not ray.ended

    ws, end = served(slot)
    end()
    assert sorted(ended) == [0, 1] and len(ray.ended) == 1 and not (ws.ray / "cluster.json").exists()


def test_ray_is_not_shut_down_under_a_slot_that_still_uses_it(served, ray, monkeypatch):
    """That aborts the process before it has tidied up."""
    monkeypatch.setattr(module, "JOIN_SECONDS", 0.2)
    gate, left = threading.Event(), []

    def slot(number, root, settings, queue):
        Connection(queue, "s3cret").take(number)
        gate.wait(20)

    _, end = served(slot)
    end()
    assert not ray.ended
    gate.set()
    monkeypatch.setattr(module.os, "_exit", left.append)
    module._leave(True)
    assert not left
    module._leave(False)
    assert left == [0]


def test_only_so_many_slots_as_there_is_room_for(served, ray):
    ray.room, seen = 1, []

    def slot(number, root, settings, queue):
        seen.append(number)
        Connection(queue, "s3cret").take(number)

    ws, end = served(slot, slots=3)
    assert running(ws)["slots"] == 1
    end()
    assert seen == [0]


def test_a_leftover_address_of_another_ray_is_left_aside(tmp_path, monkeypatch):
    """Only a head that this program has started for the job is served; its variable says so."""
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.delenv(module.OURS, raising=False)
    monkeypatch.setattr(module, "environment", lambda token: {})
    monkeypatch.setattr(module.signal, "signal", lambda *_: None)
    started = types.SimpleNamespace(poll=lambda: None)
    monkeypatch.setattr(module, "start_head", lambda *_: (started, "127.0.0.1:1"))
    monkeypatch.setattr(module, "end_process", lambda *_: None)
    seen = []
    monkeypatch.setattr(module, "_serve", lambda ws, settings, slot, record, *_: not seen.append(record))
    module.serve(Workspace(tmp_path), Cluster(), lambda *_: None)
    assert seen[0]["address"] == "127.0.0.1:1" and "job" not in seen[0] and "RAY_ADDRESS" not in module.os.environ


UNDER_RAY = """
import json, os, subprocess, sys, threading, time
from pathlib import Path
from pipeline.cluster import server
from pipeline.config import Cluster
from pipeline.workspace import Workspace

head = subprocess.Popen(["sleep", "60"])

def start(settings, address, cpus, temporary, log):
    (Path(sys.argv[1]) / "started.json").write_text(json.dumps({"head": head.pid, "folder": temporary}))
    return head, "127.0.0.1:1"

def like_ray():
    head.wait()
    os._exit(7)

def serve(*_):
    threading.Thread(target=like_ray).start()
    return False

def slow(process, seconds):
    ended(process, seconds)
    time.sleep(0.5)  # while this process would have been killed

ended, server.end_process = server.end_process, slow
server.start_head, server._serve = start, serve
server.serve(Workspace(sys.argv[1]), Cluster(), lambda *_: None)
"""


def test_a_server_that_ray_takes_along_with_its_head_tidies_up_all_the_same(tmp_path):
    """Slots that still use Ray forbid its shutdown; then Ray ends its driver, this process, when the head ends."""
    command = [sys.executable, "-c", UNDER_RAY, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr  # it ends when all is tidied up, and not with the head
    started = json.loads((tmp_path / "started.json").read_text())
    assert not lives(this_process() | {"pid": started["head"], "began": None})
    assert not os.path.exists(started["folder"]) and not os.path.exists(os.path.dirname(started["folder"]))
