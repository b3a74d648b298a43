"""Reaching a cluster: the shared one, which is started where there is none, or one of this process alone."""

from __future__ import annotations

import atexit
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
import time
from contextlib import suppress
from typing import Any

from pipeline.cluster.head import HEAD, START_SECONDS, announce, attach, environment, free_port, share_targets
from pipeline.cluster.queue import Connection
from pipeline.config import Cluster
from pipeline.errors import UserError
from pipeline.workspace import Workspace


def connect(ws: Workspace, settings: Cluster) -> None:
    """Connect this process to the Ray cluster at RAY_ADDRESS, or start one for it: on loopback, with a token, ports and
    a temporary folder of its own, so that any number of them run on a machine. Nothing if it is connected.

    Call it before anything imports Ray, which reads its environment then.
    """
    if "ray" in sys.modules and sys.modules["ray"].is_initialized():
        return
    if "RAY_ADDRESS" in os.environ:
        attach(address=os.environ["RAY_ADDRESS"])
        return
    token = secrets.token_hex(32)
    os.environ.update(environment(token))
    temporary, dashboard = tempfile.mkdtemp(prefix="actions-"), free_port(8265)
    atexit.register(shutil.rmtree, temporary, ignore_errors=True)
    ray = attach(
        address="local", num_cpus=settings.workers * settings.threads + 1, object_store_memory=160_000_000,
        include_dashboard=settings.dashboard, dashboard_host="127.0.0.1", dashboard_port=dashboard,
        _temp_dir=temporary,
    )  # fmt: skip
    atexit.register(ray.shutdown)  # before its folder goes
    share_targets(temporary, ws)
    if settings.dashboard:
        announce(ws, token, {"dashboard": f"http://127.0.0.1:{dashboard}"})


class Client:
    """A connection to the queue of the shared cluster, which is started if there is none."""

    def __init__(self, ws: Workspace, settings: Cluster) -> None:
        """Connect.

        Raises:
            UserError: the cluster cannot be started, or refuses the token.
        """
        self.queue = ask(ensure(ws, settings), ws)

    def run(self, key: str, kind: str, arguments: dict[str, Any]) -> None:
        """Let a slot do a piece of work, and wait for it.

        Raises:
            UserError: the work failed, with its message, or the cluster went away.
        """
        try:
            self.queue.submit(key, kind, arguments)
            while (item := self.queue.wait(key, 10.0))["state"] in ("waiting", "running"):
                pass
        except OSError as error:
            raise UserError(
                f"{key}: the shared cluster stopped ({type(error).__name__}); run the same command again, it resumes"
            ) from error
        if item["state"] == "failed":
            raise UserError(f"{key}: {item['message']}")


def ask(record: dict[str, Any], ws: Workspace) -> Connection:
    """A connection to the queue of a running cluster.

    Raises:
        UserError: it does not answer, or refuses the token of this results folder.
    """
    try:
        return Connection(record["queue"], (ws.ray / "token").read_text())
    except OSError as error:
        raise UserError(
            f"no shared cluster at {record['queue']} ({error}); "
            "stop it with `python -m pipeline cluster stop` and run the command again"
        ) from error


def join(ws: Workspace, settings: Cluster) -> None:
    """Make this process a driver of the shared cluster's Ray; it must run on one of its nodes.

    Raises:
        UserError: the cluster cannot be started, or refuses the token.
    """
    record = ensure(ws, settings)
    os.environ.update(environment((ws.ray / "token").read_text(), record.get("interface", "lo")))
    try:
        attach(address=record["address"])
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UserError(
            f"no shared cluster at {record['address']} ({str(error).splitlines()[0]:.100}); "
            "stop it with `python -m pipeline cluster stop` and run the command again"
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
    with suppress(OSError, ValueError, KeyError):
        record = json.loads(path.read_text())
        if "job" not in record:
            os.kill(record["pid"], 0)
        host, port = record["queue"].rsplit(":", 1)
        with socket.create_connection((host, int(port)), timeout=2):
            return record
    return None


def live(ws: Workspace) -> list[dict[str, Any]]:
    """The Ray clusters of a results folder that run now: the shared one, and those of jobs, with `token`, its file.

    What a killed job has left of its cluster is removed.
    """
    found = []
    if record := running(ws):
        found.append(record | {"name": "shared", "token": str(ws.ray / "token")})
    for path in sorted((ws.ray / "jobs").glob(f"*/{HEAD}")):
        with suppress(OSError, ValueError):
            record = json.loads(path.read_text())
            if record["host"] == socket.gethostname() and not _alive(record.get("pid") or os.getpid()):
                shutil.rmtree(path.parent)
                continue
            found.append(record | {"name": path.parent.name, "token": str(path.with_name("token"))})
    return found


def tunnel(url: str, host: str) -> str:
    """The `ssh` command that brings a dashboard to http://127.0.0.1:8265 of the machine on which it is typed.

    A dashboard on loopback is reached on its own node; one on the nodes' network from here too.
    """
    address, port = url.removeprefix("http://").rsplit(":", 1)
    through = host if address == "127.0.0.1" else socket.gethostname()
    return f"ssh -L 8265:{address}:{port} {through}"


def stop(ws: Workspace) -> bool:
    """Stop the running cluster; says whether there was one."""
    record = running(ws)
    if not record:
        return False
    end = time.monotonic() + 30
    if "job" in record:
        subprocess.run(["scancel", record["job"]], check=False)
        while time.monotonic() < end and running(ws):
            time.sleep(0.5)
        (ws.ray / "cluster.json").unlink(missing_ok=True)
        return True
    os.kill(record["pid"], signal.SIGTERM)
    while time.monotonic() < end and _alive(record["pid"]):
        time.sleep(0.1)
    return True


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True
