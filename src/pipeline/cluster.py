"""The shared Ray cluster: one head and a few warm slots that train and score run after run.

A slot is a Ray Train job that takes work from a queue, so that hundreds of small runs pay the start-up of Ray,
torch and MMAction2 once. The cluster starts when a stage first needs it and ends when it has been idle for a
while. It listens on loopback only and asks every client for its token.

    head (ray start --block) <- server (this module's `serve`): Queue actor, slots <- clients (`Client`)
"""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipeline.config import Cluster
from pipeline.errors import UserError
from pipeline.workspace import Workspace, write_json

NAMESPACE = "pipeline"
START_SECONDS = 180.0
ATTEMPTS = 2  # of an item whose worker died


def environment(token: str) -> dict[str, str]:
    """Variables that the head and everyone who speaks to it must share; Ray reads them when it is imported."""
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": token,
        # Ray's switch for "this machine only": without it every port is bound on all interfaces.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "GLOO_SOCKET_IFNAME": "lo",
        "NCCL_SOCKET_IFNAME": "lo",
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # nobody announces the preemption of this machine
        "RAY_worker_niceness": "0",  # a training is no background job
        "MALLOC_ARENA_MAX": "2",  # workers stay smaller
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # each trial is one number, kept in the cell
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
        "RAY_AIR_NEW_OUTPUT": "0",
        "RAY_DEDUP_LOGS": "0",
        "PYTHONWARNINGS": "ignore",
    }


class Queue:
    """Work of the slots; an asynchronous Ray actor, so that waiting blocks nobody."""

    def __init__(self) -> None:
        self.items: dict[str, dict[str, Any]] = {}
        self.waiting: list[str] = []
        self.closed = False
        self.touched = time.monotonic()

    async def submit(self, key: str, kind: str, arguments: dict[str, Any]) -> None:
        """Add an item, unless the same one is waiting or under way."""
        self.touched = time.monotonic()
        if self.items.get(key, {}).get("state") in ("waiting", "running"):
            return
        self.items[key] = {
            "key": key,
            "kind": kind,
            "arguments": arguments,
            "state": "waiting",
            "attempts": 0,
        }
        self.waiting.append(key)

    async def take(self, slot: int) -> dict[str, Any] | None:
        """The next item for a slot; None when the cluster closes. A slot that asks while it still holds an item
        has died over it: it gets it once more, then the item has failed."""
        for item in self.items.values():
            if item["state"] == "running" and item["slot"] == slot:
                if item["attempts"] < ATTEMPTS:
                    item["attempts"] += 1
                    return item
                item |= {"state": "failed", "message": f"its worker died {ATTEMPTS} times (out of memory?)"}
        while not self.closed:
            if self.waiting:
                item = self.items[self.waiting.pop(0)]
                item |= {"state": "running", "slot": slot, "attempts": item["attempts"] + 1}
                return item
            await asyncio.sleep(0.02)
        return None

    async def progress(self, key: str, metrics: dict[str, Any]) -> None:
        """News of an item."""
        self.touched = time.monotonic()
        self.items[key]["metrics"] = metrics

    async def finish(self, key: str, message: str = "") -> None:
        """An item is done, or has failed with a message."""
        self.touched = time.monotonic()
        self.items[key] |= {"state": "failed" if message else "done", "message": message}

    async def wait(self, key: str, seconds: float) -> dict[str, Any]:
        """The item when it has ended, or as it is after `seconds`."""
        self.touched = time.monotonic()
        end = time.monotonic() + seconds
        while self.items[key]["state"] in ("waiting", "running") and time.monotonic() < end:
            await asyncio.sleep(0.02)
        return self.items[key]

    async def idle(self) -> float:
        """Seconds since anybody asked for anything; 0 while an item is waiting or under way."""
        busy = any(item["state"] in ("waiting", "running") for item in self.items.values())
        return 0.0 if busy else time.monotonic() - self.touched

    async def close(self) -> None:
        """Let the slots end after their item."""
        self.closed = True


# Server


def serve(ws: Workspace, settings: Cluster) -> None:
    """Run the shared cluster until it is idle or told to stop (SIGTERM, SIGINT)."""
    ws.ray.mkdir(parents=True, exist_ok=True)
    _forget_finished(ws)
    token = secrets.token_hex(32)
    os.environ.update(environment(token))
    port, dashboard = free_port(), free_port(8265)
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    with tempfile.TemporaryDirectory(prefix="actions-", ignore_cleanup_errors=True) as temporary:
        head = _start_head(settings, port, dashboard, temporary, ws.ray / "head.log")
        try:
            _serve(ws, settings, token, port, dashboard, head, stopping)
        finally:
            (ws.ray / "cluster.json").unlink(missing_ok=True)
            head.terminate()
            with suppress(subprocess.TimeoutExpired):
                head.wait(15)
            head.kill()


def _forget_finished(ws: Workspace) -> None:
    """Delete what earlier clusters kept of runs that are trained now; checkpoints of unfinished runs stay."""
    for slot in (ws.ray / "train").glob("slot-*"):
        kept = [folder for folder in slot.glob("*-????????") if (folder / "state.pt").is_file()]
        unfinished = [f for f in kept if not (ws.run(f.name.rsplit("-", 1)[0]) / "train.json").is_file()]
        if not unfinished:
            shutil.rmtree(slot, ignore_errors=True)


def _start_head(settings: Cluster, port: int, dashboard: int, temporary: str, log: Path) -> subprocess.Popen:
    slots = settings.slots * settings.workers
    command = [
        str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--node-ip-address=127.0.0.1",
        f"--port={port}", f"--ray-client-server-port={free_port()}", f"--temp-dir={temporary}",
        f"--num-cpus={slots * settings.threads + 1}", "--object-store-memory=160000000", "--disable-usage-stats",
        f"--include-dashboard={str(settings.dashboard).lower()}", "--dashboard-host=127.0.0.1",
        f"--dashboard-port={dashboard}",
    ]  # fmt: skip
    with log.open("w") as out:
        return subprocess.Popen(
            command, stdout=out, stderr=out, stdin=subprocess.DEVNULL, preexec_fn=_die_with_parent,
            env={**os.environ, "RAY_num_prestart_python_workers": "0"},
        )  # fmt: skip


def _die_with_parent() -> None:
    """The head ends even if the server is killed with SIGKILL."""
    with suppress(OSError):
        ctypes.CDLL("libc.so.6").prctl(1, signal.SIGTERM)


def _serve(
    ws: Workspace,
    settings: Cluster,
    token: str,
    port: int,
    dashboard: int,
    head: subprocess.Popen,
    stopping: threading.Event,
) -> None:
    import ray  # reads its environment when it is imported

    address = f"127.0.0.1:{port}"
    _wait_for_port(address, head, ws.ray / "head.log")
    ray.init(address=address, namespace=NAMESPACE, log_to_driver=False, logging_level="ERROR")
    queue = ray.remote(Queue).options(name="queue", num_cpus=0, max_concurrency=1000).remote()
    ray.get(queue.idle.remote())
    write_token(ws, token)
    url = f"http://127.0.0.1:{dashboard}" if settings.dashboard else None
    record = {"address": address, "dashboard": url, "pid": os.getpid(), "slots": settings.slots}
    write_json(ws.ray / "cluster.json", record)
    from pipeline.training.ray_train import run_slot

    slots = [
        threading.Thread(target=run_slot, args=(i, ws.root.resolve(), settings), daemon=True)
        for i in range(settings.slots)
    ]
    for slot in slots:
        slot.start()
    while not stopping.wait(0.5):
        if head.poll() is not None or not any(slot.is_alive() for slot in slots):
            break
        if ray.get(queue.idle.remote()) > 60 * settings.idle_minutes:
            break
    (ws.ray / "cluster.json").unlink(missing_ok=True)
    with suppress(Exception):
        ray.get(queue.close.remote(), timeout=5)
        ray.shutdown()


def write_token(ws: Workspace, token: str) -> None:
    """Keep the token where only its owner reads it."""
    path = ws.ray / "token"
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(token)


def free_port(wanted: int = 0) -> int:
    """A TCP port of the loopback interface that is free now; `wanted` if it is."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", wanted))
        except OSError:
            probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait_for_port(address: str, head: subprocess.Popen, log: Path) -> None:
    host, port = address.rsplit(":", 1)
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        if head.poll() is not None:
            raise UserError(f"Ray's head did not start; its last words are in {log}")
        with suppress(OSError), socket.create_connection((host, int(port)), timeout=1):
            return
        time.sleep(0.1)
    raise UserError(f"Ray's head did not answer within {START_SECONDS:.0f} s; see {log}")


# Client


class Client:
    """A connection to the shared cluster, which is started if there is none."""

    def __init__(self, ws: Workspace, settings: Cluster) -> None:
        """Connect.

        Raises:
            UserError: the cluster cannot be started, or refuses the token.
        """
        record = ensure(ws, settings)
        os.environ.update(environment((ws.ray / "token").read_text()))
        import ray  # reads its environment when it is imported

        try:
            ray.init(address=record["address"], namespace=NAMESPACE, log_to_driver=False, logging_level="ERROR")
            self.queue = ray.get_actor("queue")
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise UserError(
                f"no shared cluster at {record['address']} ({str(error).splitlines()[0]:.100}); "
                "stop it with `python -m pipeline cluster stop` and run the command again"
            ) from error
        self.ray = ray

    def run(
        self,
        key: str,
        kind: str,
        arguments: dict[str, Any],
        progress: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        """Let a slot do a piece of work, and wait for it.

        Raises:
            UserError: the work failed, with its message, or the cluster went away.
        """
        try:
            self.ray.get(self.queue.submit.remote(key, kind, arguments))
            while True:
                item = self.ray.get(self.queue.wait.remote(key, 1.0))
                if progress and item.get("metrics"):
                    progress(item["metrics"])
                if item["state"] == "done":
                    return
                if item["state"] == "failed":
                    raise UserError(f"{key}: {item['message']}")
        except self.ray.exceptions.RayError as error:
            raise UserError(
                f"{key}: the shared cluster stopped ({type(error).__name__}); run the same command again, it resumes"
            ) from error


def ensure(ws: Workspace, settings: Cluster) -> dict[str, Any]:
    """The record of a live cluster: the running one, or a new one in the background.

    Raises:
        UserError: it does not come up.
    """
    ws.ray.mkdir(parents=True, exist_ok=True)
    with (ws.ray / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if record := running(ws):
            return record
        command = [sys.executable, "-m", "pipeline", "cluster", "serve", "--results", str(ws.root)]
        command += ["--settings", settings.model_dump_json()]
        with (ws.ray / "server.log").open("w") as log:
            server = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                close_fds=True,
            )
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            if record := running(ws):
                return record
            if server.poll() is not None:
                break
            time.sleep(0.1)
        raise UserError(f"the shared Ray cluster did not start; see {ws.ray / 'server.log'}")


def running(ws: Workspace) -> dict[str, Any] | None:
    """The record of the running cluster, or None."""
    path = ws.ray / "cluster.json"
    with suppress(OSError, ValueError):
        record = json.loads(path.read_text())
        os.kill(record["pid"], 0)
        host, port = record["address"].rsplit(":", 1)
        with socket.create_connection((host, int(port)), timeout=2):
            return record
    return None


def stop(ws: Workspace) -> bool:
    """Stop the running cluster; says whether there was one."""
    record = running(ws)
    if not record:
        return False
    os.kill(record["pid"], signal.SIGTERM)
    end = time.monotonic() + 30
    while time.monotonic() < end and _alive(record["pid"]):
        time.sleep(0.1)
    return True


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True
