"""The shared Ray cluster: one head and a few warm slots that train and score run after run.

A slot is a Ray Train job that takes work from a queue, so that hundreds of small runs pay the start-up of Ray,
torch and MMAction2 once. The cluster starts when a stage first needs it and ends when it has been idle for a
while. It listens on loopback only and asks every client for its token.

    head (ray start --block) <- server (this module's `serve`): queue <- slots (Ray), clients (`Client`)
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipeline.cluster.folders import ray_folder
from pipeline.cluster.head import (
    OURS,
    STOP_SECONDS,
    attach,
    end_process,
    environment,
    forget_dead,
    shared_targets,
    start_head,
    write_token,
)
from pipeline.cluster.logs import reason_of, rotate
from pipeline.cluster.queue import QueueServer
from pipeline.cluster.resources import wait_for_room
from pipeline.cluster.slurm import seconds_to_work
from pipeline.cluster.stop_files import keep_checkpoints, stop_file
from pipeline.config import Cluster
from pipeline.files import write_json
from pipeline.progress import this_process
from pipeline.workspace import Workspace

KEEP_SECONDS = 20.0  # for the checkpoints of the trainings under way; Slurm kills 30 s after its signal
STARTS = 3  # of a slot's worker that dies before it has taken any work
JOIN_SECONDS = 60.0  # for the slots that are free when the queue closes; in a Slurm job that is to end, what is left


Slot = Callable[[int, Path, Cluster, str], None]
"""(number, results folder, settings, address of the queue): takes work from the queue until that closes."""


def serve(ws: Workspace, settings: Cluster, slot: Slot) -> None:
    """Run the shared cluster, a thread in `slot` for each slot, until it is idle or gets SIGTERM or SIGINT."""
    ws.ray.mkdir(parents=True, exist_ok=True)
    _forget_finished(ws)
    forget_dead(ws)
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):  # until it is up: tidy up and end
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    record = this_process()
    if OURS in os.environ:  # on the first node of a Slurm job, where `nodes` has started the head
        record |= {"job": os.environ["SLURM_JOB_ID"], "host": os.environ["SLURMD_NODENAME"]}
        record |= {"address": os.environ["RAY_ADDRESS"], "interface": os.environ["GLOO_SOCKET_IFNAME"]}
        _leave(_serve(ws, settings, slot, record, lambda: True, stopping))
        return
    os.environ.pop("RAY_ADDRESS", None)
    os.environ.update(environment(secrets.token_hex(32)))
    log = rotate(ws.ray / "head.log")
    with ray_folder() as temporary, shared_targets(temporary, ws):
        cpus = settings.slots * settings.workers * settings.threads + 1
        head, record["address"] = start_head(settings, "127.0.0.1", cpus, temporary, log)
        try:
            ended = _serve(ws, settings, slot, record, lambda: head.poll() is None, stopping)
            if not ended and (child := os.fork()):  # Ray ends its driver with the head: another process tidies up
                _become(f"import os; os.waitpid({child}, 0)")
        finally:
            end_process(head, STOP_SECONDS)
    _leave(ended)


def _leave(ended: bool) -> None:
    """End this process at once where Ray has not: all is tidied up, and at its exit Ray would look for its head."""
    if not ended:
        os._exit(0)


def _become(code: str) -> None:
    """Be a Python that runs `code`, without Ray's threads: whoever waits for this process waits for its end."""
    os.execv(sys.executable, [sys.executable, "-I", "-S", "-c", code])


def _stop_on_signals(stopping: threading.Event) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())


def _forget_finished(ws: Workspace) -> None:
    """Delete what earlier clusters kept of runs that are trained now; checkpoints of unfinished runs stay."""
    for slot in (ws.ray / "train").glob("slot-*"):
        kept = [folder for folder in slot.glob("*-????????") if (folder / "state.pt").is_file()]
        unfinished = [f for f in kept if not (ws.run(f.name.rsplit("-", 1)[0]) / "train.json").is_file()]
        if not unfinished:
            shutil.rmtree(slot, ignore_errors=True)


def _serve(
    ws: Workspace, settings: Cluster, slot: Slot, record: dict[str, Any], alive: Callable[[], bool],
    stopping: threading.Event,
) -> bool:  # fmt: skip
    """The queue and the slots, as long as they are used, the head lives and nobody says stop; whether Ray has ended."""
    ray, dashboard = attach(record["address"])
    _stop_on_signals(stopping)  # Ray has put its own way to end in their place
    if settings.dashboard and not dashboard:
        print("Ray's dashboard did not start; the cluster runs without one", flush=True)
    if (count := wait_for_room(settings.slots, settings, least=1)) < settings.slots:
        print(f"there is room for {count} of {settings.slots} slots", flush=True)
    token = os.environ["RAY_AUTH_TOKEN"]
    work = QueueServer(record["address"].rsplit(":", 1)[0], token)
    work.queue.slots = set(range(count))
    write_token(ws.ray, token)
    slots = [
        threading.Thread(target=_keep_slot, args=(slot, i, ws.root.resolve(), settings, work), daemon=True)
        for i in range(count)
    ]
    try:
        for thread in slots:
            thread.start()
        write_json(ws.ray / "cluster.json", record | {"queue": work.address, "dashboard": dashboard, "slots": count})
        left = seconds_to_work(record.get("job", ""), settings.stop_minutes)
        end = float("inf") if left is None else time.monotonic() + left
        while not stopping.wait(0.5) and time.monotonic() < end:
            if not alive() or not any(thread.is_alive() for thread in slots):
                break
            if work.call(work.queue.idle()) > 60 * settings.idle_minutes:
                break
    finally:
        (ws.ray / "cluster.json").unlink(missing_ok=True)
    work.call(work.queue.close())
    if alive():
        _keep_checkpoints(ws, work)
        held = {item["slot"] for item in work.queue.items.values() if item["state"] == "running"}
        end = time.monotonic() + (JOIN_SECONDS if "job" not in record else 8.0)
        for number in set(range(count)) - held:  # before Ray goes: they tidy up with its help
            slots[number].join(max(0.0, end - time.monotonic()))
    if any(thread.is_alive() for thread in slots):
        return False  # Ray's shutdown aborts a process of which another thread asks it for something
    with suppress(Exception):
        ray.shutdown()
    return True


def _keep_slot(slot: Slot, number: int, root: Path, settings: Cluster, work: QueueServer) -> None:
    """Run a slot until the queue closes; a dead one gets a new worker, unless it dies again before it takes work."""
    idle, why = 0, ""
    while idle < STARTS and not work.queue.closed:
        taken = work.queue.taken[number]
        try:
            slot(number, root, settings, work.address)
            return
        except Exception as error:
            why = reason_of(error, settings.slots)
        idle = idle + 1 if work.queue.taken[number] == taken else 0
        if not work.queue.closed:
            print(f"error: the worker of slot {number} died: {why}", flush=True)
            work.call(work.queue.died(number, why))
    if not work.queue.closed:
        work.call(work.queue.lose(number, f"it died {STARTS} times before it took any work: {why}"))


def _keep_checkpoints(ws: Workspace, work: QueueServer) -> None:
    """Have the trainings under way keep a checkpoint: the cluster ends."""
    flags = [stop_file(ws, run) for run in work.call(work.queue.training())]
    keep_checkpoints(flags, KEEP_SECONDS)
    for flag in flags:
        flag.unlink(missing_ok=True)
