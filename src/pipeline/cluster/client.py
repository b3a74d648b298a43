"""Reaching a cluster: the shared one, which is started where there is none, or one of this process alone."""

from __future__ import annotations

import atexit
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from typing import Any

from pipeline.cluster.folders import ray_folder, sweep
from pipeline.cluster.head import (
    HEAD,
    START_SECONDS,
    STOP_SECONDS,
    announce,
    attach,
    end_process,
    environment,
    forget_dead,
    given_address,
    own_folder,
    shared_targets,
    start_head,
)
from pipeline.cluster.logs import last_words, rotate
from pipeline.cluster.queue import Connection
from pipeline.cluster.slurm import slurm_job
from pipeline.config import Cluster
from pipeline.errors import UserError
from pipeline.files import exclusive, read_json
from pipeline.progress import lives
from pipeline.workspace import Workspace

SAYING_SECONDS = 120.0  # more than its head, which may start twice, so that the server says itself what is not up
END_SECONDS = 120.0  # for checkpoints, slots and Ray's processes
ANSWER_SECONDS = 60.0  # for the queue, which answers every ten seconds at least


def connect(ws: Workspace, settings: Cluster) -> None:
    """Connect this process to the Ray cluster at RAY_ADDRESS, or start one for it: on loopback, with a token, ports and
    a temporary folder of its own, so that any number of them run on a machine. Nothing if it is connected.

    Call it before anything imports Ray, which reads its environment then.

    Raises:
        UserError: Ray does not start, or the cluster has gone.
    """
    if "ray" in sys.modules and sys.modules["ray"].is_initialized():
        return
    if address := given_address():
        try:
            attach(address)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise UserError(f"no Ray at {address} ({_first_line(error)}); the same command goes on") from error
        return
    token = secrets.token_hex(32)
    os.environ.update(environment(token))
    ending = ExitStack()
    try:
        temporary = ending.enter_context(ray_folder())
        ending.enter_context(shared_targets(temporary, ws))
        folder = own_folder(ws, slurm_job() or socket.gethostname())
        ending.callback(shutil.rmtree, folder, ignore_errors=True)
        log = folder.with_name(f"{folder.name}.log")
        cpus = settings.workers * settings.threads + 1
        head, address = start_head(settings, "127.0.0.1", cpus, temporary, log)
        ending.callback(end_process, head, STOP_SECONDS)
        ray, dashboard = attach(address)
    except BaseException as error:
        ending.close()
        if isinstance(error, ConnectionError | ValueError | RuntimeError):
            raise UserError(f"Ray did not start ({_first_line(error)}); the same command goes on") from error
        raise
    ending.callback(log.unlink, missing_ok=True)  # it has said nothing that matters
    ending.callback(ray.shutdown)
    atexit.register(ending.close)  # after Ray's own, so that it comes before that
    if dashboard:
        announce(folder, token, address, dashboard)
    elif settings.dashboard:
        print("Ray's dashboard did not start; the training goes on without one", file=sys.stderr, flush=True)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


class Client:
    """A connection to the queue of the shared cluster, which is started if there is none."""

    def __init__(self, ws: Workspace, settings: Cluster) -> None:
        """Connect.

        Raises:
            UserError: the cluster cannot be started, or refuses the token.
        """
        self.queue = ask(ensure(ws, settings), ws, ANSWER_SECONDS)

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


def ask(record: dict[str, Any], ws: Workspace, seconds: float | None = None) -> Connection:
    """A connection to the queue of a running cluster; see `Connection` for `seconds`.

    Raises:
        UserError: it does not answer, or refuses the token of this results folder.
    """
    try:
        return Connection(record["queue"], (ws.ray / "token").read_text("utf-8"), seconds)
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
    folder = ExitStack()
    folder.enter_context(ray_folder())
    atexit.register(folder.close)
    os.environ.update(environment((ws.ray / "token").read_text("utf-8"), record.get("interface", "lo")))
    try:
        attach(record["address"])
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UserError(
            f"no shared cluster at {record['address']} ({_first_line(error)}); "
            "stop it with `python -m pipeline cluster stop` and run the command again"
        ) from error


def ensure(ws: Workspace, settings: Cluster) -> dict[str, Any]:
    """The record of a live cluster: the running one, or a new one in the background.

    Raises:
        UserError: it does not come up, or runs on another machine, where nobody here reaches it.
    """
    with exclusive(ws.ray / "lock", needed=True):
        if record := running(ws):
            return record
        if host := elsewhere(ws):
            raise UserError(
                f"the shared cluster of {ws.root} runs on {host}; stop it there with `python -m pipeline cluster "
                f"stop`, or, if that machine is gone, delete {ws.ray / 'cluster.json'}"
            )
        return _start(ws, settings)


def _start(ws: Workspace, settings: Cluster) -> dict[str, Any]:
    """The record of a new cluster in the background. One that does not come up in time is ended."""
    if address := os.environ.get("RAY_ADDRESS"):
        print(f"RAY_ADDRESS is {address}, which mode shared leaves aside: it starts a Ray of its own", file=sys.stderr)
    command = [sys.executable, "-P", "-m", "pipeline", "cluster", "serve", "--results", str(ws.root)]
    command += ["--settings", settings.model_dump_json()]
    log = rotate(ws.ray / "server.log")
    with log.open("w", encoding="utf-8") as out:
        server = subprocess.Popen(
            command,
            stdout=out,
            stderr=out,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            close_fds=True,
        )
    end = time.monotonic() + START_SECONDS + SAYING_SECONDS
    while time.monotonic() < end:
        if record := running(ws):
            return record
        if server.poll() is not None:
            raise UserError(f"the shared Ray cluster did not start: {last_words(log)} (log: {log})")
        time.sleep(0.1)
    end_process(server, 20)
    sweep()  # it may have been too busy to tidy up
    said = f"{last_words(log)} (log: {log})"
    raise UserError(f"the shared Ray cluster was not up after {START_SECONDS + SAYING_SECONDS:.0f} s: {said}")


def elsewhere(ws: Workspace) -> str:
    """The other machine on which the shared cluster of a results folder runs, as far as is known from here."""
    record = read_json(ws.ray / "cluster.json") or {}
    host = record.get("host", "")
    return host if "job" not in record and host != socket.gethostname() else ""


def running(ws: Workspace) -> dict[str, Any] | None:
    """The record of the running cluster that can be reached from this machine, or None."""
    with suppress(OSError, KeyError):
        record = read_json(ws.ray / "cluster.json")
        if not record or ("job" not in record and (elsewhere(ws) or not lives(record))):
            return None
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
    forget_dead(ws)
    for path in sorted((ws.ray / "jobs").glob(f"*/{HEAD}")):
        if record := read_json(path):
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
    """Stop the running cluster; says whether there was one.

    Raises:
        UserError: it runs on another machine, or does not end.
    """
    record = running(ws)
    if not record:
        if host := elsewhere(ws):
            raise UserError(f"the shared cluster of {ws.root} runs on {host}; give this command there")
        return False
    end = time.monotonic() + END_SECONDS
    if "job" in record:
        subprocess.run(["scancel", record["job"]], check=False)
        while time.monotonic() < end and running(ws):
            time.sleep(0.5)
        (ws.ray / "cluster.json").unlink(missing_ok=True)
        return True
    os.kill(record["pid"], signal.SIGTERM)
    while lives(record):
        if time.monotonic() > end:
            raise UserError(f"the cluster's server (process {record['pid']}) has not ended after {END_SECONDS:.0f} s")
        time.sleep(0.1)
    return True
