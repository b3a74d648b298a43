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
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipeline.cluster.head import (
    attach,
    die_with_parent,
    end_process,
    environment,
    free_port,
    head_options,
    ray_start,
    share_targets,
    wait_for_port,
    write_token,
)
from pipeline.cluster.queue import QueueServer
from pipeline.cluster.slurm import seconds_to_work
from pipeline.cluster.stop_files import keep_checkpoints, stop_file
from pipeline.config import Cluster
from pipeline.files import write_json
from pipeline.workspace import Workspace

KEEP_SECONDS = 20.0  # for the checkpoints of the trainings under way; Slurm kills 30 s after its signal


Slot = Callable[[int, Path, Cluster, str], None]
"""(number, results folder, settings, address of the queue): takes work from the queue until that closes."""


def serve(ws: Workspace, settings: Cluster, slot: Slot) -> None:
    """Run the shared cluster, a thread in `slot` for each slot, until it is idle or gets SIGTERM or SIGINT."""
    ws.ray.mkdir(parents=True, exist_ok=True)
    _forget_finished(ws)
    stopping = threading.Event()
    _stop_on_signals(stopping)
    record = {"pid": os.getpid(), "host": socket.gethostname(), "slots": settings.slots}
    if "RAY_ADDRESS" in os.environ:  # on the first node of a Slurm job, where `nodes` has started the head
        record |= {"job": os.environ["SLURM_JOB_ID"], "host": os.environ["SLURMD_NODENAME"]}
        record |= {"address": os.environ["RAY_ADDRESS"], "dashboard": os.environ["PIPELINE_DASHBOARD"] or None}
        record["interface"] = os.environ["GLOO_SOCKET_IFNAME"]
        _serve(ws, settings, slot, record, lambda: True, stopping)
        return
    os.environ.update(environment(secrets.token_hex(32)))
    port, dashboard = free_port(), free_port(8265)
    record["address"] = f"127.0.0.1:{port}"
    record["dashboard"] = f"http://127.0.0.1:{dashboard}" if settings.dashboard else None
    with tempfile.TemporaryDirectory(prefix="actions-", ignore_cleanup_errors=True) as temporary:
        share_targets(temporary, ws)
        head = _start_head(settings, port, dashboard, temporary, ws.ray / "head.log")
        try:
            wait_for_port(record["address"], head, ws.ray / "head.log")
            _serve(ws, settings, slot, record, lambda: head.poll() is None, stopping)
        finally:
            end_process(head, 15)


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


def _start_head(settings: Cluster, port: int, dashboard: int, temporary: str, log: Path) -> subprocess.Popen:
    options = head_options(settings, "127.0.0.1", port, dashboard)
    with log.open("w") as out:
        return subprocess.Popen(
            ray_start("127.0.0.1", settings.slots * settings.workers * settings.threads + 1, temporary, *options),
            stdout=out, stderr=out, stdin=subprocess.DEVNULL, preexec_fn=die_with_parent,
            env={**os.environ, "RAY_num_prestart_python_workers": "0"},
        )  # fmt: skip


def _serve(
    ws: Workspace, settings: Cluster, slot: Slot, record: dict[str, Any], alive: Callable[[], bool],
    stopping: threading.Event,
) -> None:  # fmt: skip
    """The queue and the slots, as long as they are used, the head lives and nobody says stop."""
    ray = attach(address=record["address"])
    _stop_on_signals(stopping)  # Ray has put its own way to end in their place
    token = os.environ["RAY_AUTH_TOKEN"]
    work = QueueServer(record["address"].rsplit(":", 1)[0], token)
    write_token(ws.ray, token)
    slots = [
        threading.Thread(target=slot, args=(i, ws.root.resolve(), settings, work.address), daemon=True)
        for i in range(settings.slots)
    ]
    try:
        for thread in slots:
            thread.start()
        write_json(ws.ray / "cluster.json", record | {"queue": work.address})
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
    with suppress(Exception):
        ray.shutdown()


def _keep_checkpoints(ws: Workspace, work: QueueServer) -> None:
    """Have the trainings under way keep a checkpoint: the cluster ends."""
    flags = [stop_file(ws, run) for run in work.call(work.queue.training())]
    keep_checkpoints(flags, KEEP_SECONDS)
    for flag in flags:
        flag.unlink(missing_ok=True)
