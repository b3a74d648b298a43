"""The shared Ray cluster: one head and a few warm slots that train and score run after run.

A slot is a Ray Train job that takes work from a queue, so that hundreds of small runs pay the start-up of Ray,
torch and MMAction2 once. The cluster starts when a stage first needs it and ends when it has been idle for a
while. It listens on loopback only and asks every client for its token.

    head (ray start --block) <- server (this module's `serve`): queue <- slots (Ray), clients (`Client`)
"""

from __future__ import annotations

import atexit
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

import psutil

from pipeline.config import Cluster
from pipeline.errors import UserError
from pipeline.work_queue import Connection, QueueServer
from pipeline.workspace import Workspace, write_json

NAMESPACE = "pipeline"
START_SECONDS = 180.0
KEEP_SECONDS = 20.0  # for the checkpoints of the trainings under way; Slurm kills 30 s after its signal
HEAD = "head.json"  # where the head of a job's cluster is, as long as it runs


def environment(token: str, interface: str = "lo") -> dict[str, str]:
    """Variables that the head and everyone who speaks to it must share; Ray reads them when it is imported.

    Args:
        interface: the network interface between the nodes; lo: there is but this machine.
    """
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": token,
        # Ray's switch for "this machine only": without it every port is bound on all interfaces.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": str(int(interface != "lo")),
        "GLOO_SOCKET_IFNAME": interface,
        "NCCL_SOCKET_IFNAME": interface,
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # nobody announces the preemption of this machine
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",  # nothing here drains; half a minute of waiting
        "RAY_worker_niceness": "0",  # a training is no background job
        # A dozen idle processes that each say something every second or more often take a tenth of two cores.
        "RAY_task_events_report_interval_ms": "10000",
        "RAY_raylet_report_resources_period_milliseconds": "1000",
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "5",
        "MALLOC_ARENA_MAX": "2",  # workers stay smaller
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # each trial is one number, kept in the cell
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
        "RAY_AIR_NEW_OUTPUT": "0",
        "RAY_DEDUP_LOGS": "0",
        "PYTHONWARNINGS": "ignore",
    }


# Server


def serve(ws: Workspace, settings: Cluster) -> None:
    """Run the shared cluster until it is idle or told to stop (SIGTERM, SIGINT)."""
    ws.ray.mkdir(parents=True, exist_ok=True)
    _forget_finished(ws)
    stopping = threading.Event()
    _stop_on_signals(stopping)
    record = {"pid": os.getpid(), "host": socket.gethostname(), "slots": settings.slots}
    if "RAY_ADDRESS" in os.environ:  # on the first node of a Slurm job (pipeline.nodes), where the head is another's
        record |= {"job": os.environ["SLURM_JOB_ID"], "host": os.environ["SLURMD_NODENAME"]}
        record |= {"address": os.environ["RAY_ADDRESS"], "dashboard": os.environ["PIPELINE_DASHBOARD"] or None}
        record["interface"] = os.environ["GLOO_SOCKET_IFNAME"]
        _serve(ws, settings, record, lambda: True, stopping)
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
            _serve(ws, settings, record, lambda: head.poll() is None, stopping)
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


def head_options(settings: Cluster, address: str, port: int, dashboard: int) -> list[str]:
    """Options of `ray_start` for a head, whose dashboard listens on `address` alone."""
    return [
        "--head", f"--port={port}", f"--ray-client-server-port={free_port(0, address)}",
        f"--include-dashboard={str(settings.dashboard).lower()}", f"--dashboard-host={address}",
        f"--dashboard-port={dashboard}",
    ]  # fmt: skip


def ray_start(address: str, cpus: int, temporary: str, *options: str) -> list[str]:
    """The command that starts Ray on this machine, as one of its addresses, and blocks."""
    return [
        str(Path(sys.executable).with_name("ray")), "start", "--block", f"--node-ip-address={address}",
        f"--temp-dir={temporary}", f"--num-cpus={cpus}", "--object-store-memory=160000000", "--disable-usage-stats",
        "--include-log-monitor=false",  # it sends what workers print to drivers, which do not listen
        *options,
    ]  # fmt: skip


def end_process(process: subprocess.Popen, seconds: float) -> None:
    """SIGTERM, and SIGKILL if that does not end it in time: of it and of every process below it."""
    below = []
    with suppress(psutil.Error):
        below = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
    process.kill()
    for left in below:
        with suppress(psutil.Error):
            left.kill()


def die_with_parent() -> None:
    """The head ends even if the server is killed with SIGKILL."""
    with suppress(OSError):
        ctypes.CDLL("libc.so.6").prctl(1, signal.SIGTERM)


def _serve(
    ws: Workspace, settings: Cluster, record: dict[str, Any], alive: Callable[[], bool], stopping: threading.Event
) -> None:
    """The queue and the slots, as long as they are used, the head lives and nobody says stop."""
    ray = _attach(address=record["address"])
    _stop_on_signals(stopping)  # Ray has put its own way to end in their place
    token = os.environ["RAY_AUTH_TOKEN"]
    work = QueueServer(record["address"].rsplit(":", 1)[0], token)
    write_token(ws.ray, token)
    from pipeline.training.ray_train import run_slot
    from pipeline.training.stopping import seconds_to_work

    slots = [
        threading.Thread(target=run_slot, args=(i, ws.root.resolve(), settings, work.address), daemon=True)
        for i in range(settings.slots)
    ]
    try:
        for slot in slots:
            slot.start()
        write_json(ws.ray / "cluster.json", record | {"queue": work.address})
        left = seconds_to_work(record.get("job", ""), settings.stop_minutes)
        end = float("inf") if left is None else time.monotonic() + left
        while not stopping.wait(0.5) and time.monotonic() < end:
            if not alive() or not any(slot.is_alive() for slot in slots):
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


def _attach(**options: Any) -> Any:
    """Ray, connected; it reads its environment when it is imported."""
    import ray

    ray.init(namespace=NAMESPACE, log_to_driver=False, logging_level="ERROR", **options)
    return ray


def _keep_checkpoints(ws: Workspace, work: QueueServer) -> None:
    """Have the trainings under way keep a checkpoint: the cluster ends."""
    from pipeline.training.stopping import keep_checkpoints, stop_file

    flags = [stop_file(ws, run) for run in work.call(work.queue.training())]
    keep_checkpoints(flags, KEEP_SECONDS)
    for flag in flags:
        flag.unlink(missing_ok=True)


def connect(ws: Workspace, settings: Cluster) -> None:
    """Connect this process to the Ray cluster at RAY_ADDRESS, or start one for it: on loopback, with a token, ports and
    a temporary folder of its own, so that any number of them run on a machine. Nothing if it is connected.

    Call it before anything imports Ray, which reads its environment then.
    """
    if "ray" in sys.modules and sys.modules["ray"].is_initialized():
        return
    if "RAY_ADDRESS" in os.environ:
        _attach(address=os.environ["RAY_ADDRESS"])
        return
    token = secrets.token_hex(32)
    os.environ.update(environment(token))
    temporary, dashboard = tempfile.mkdtemp(prefix="actions-"), free_port(8265)
    atexit.register(shutil.rmtree, temporary, ignore_errors=True)
    ray = _attach(
        address="local", num_cpus=settings.workers * settings.threads + 1, object_store_memory=160_000_000,
        include_dashboard=settings.dashboard, dashboard_host="127.0.0.1", dashboard_port=dashboard,
        _temp_dir=temporary,
    )  # fmt: skip
    atexit.register(ray.shutdown)  # before its folder goes
    share_targets(temporary, ws)
    if settings.dashboard:
        announce(ws, token, {"dashboard": f"http://127.0.0.1:{dashboard}"})


def announce(ws: Workspace, token: str, record: dict[str, Any]) -> None:
    """Write where a cluster is that lives no longer than this process: `RESULTS/ray/jobs/NAME/head.json`, `token`."""
    job = os.environ.get("SLURM_JOB_ID", "")
    folder = ws.ray / "jobs" / f"{job or socket.gethostname()}-{os.getpid()}"
    folder.mkdir(parents=True, exist_ok=True)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    write_token(folder, token)
    host = os.environ.get("SLURMD_NODENAME", socket.gethostname())
    write_json(folder / HEAD, {"address": None, "host": host, "job": job, "pid": os.getpid()} | record)


def share_targets(temporary: str, ws: Workspace) -> None:
    """Keep a copy of where this cluster's metrics are in `RESULTS/ray/metrics`, for Prometheus' file discovery.

    Ray writes that file into its temporary folder, which other machines do not see; the copy goes with the process.
    """
    source = Path(temporary) / "prom_metrics_service_discovery.json"
    target = ws.ray / "metrics" / f"{socket.gethostname()}-{os.getpid()}.json"
    atexit.register(target.unlink, missing_ok=True)

    def copy() -> None:
        seen = ""
        while True:
            with suppress(OSError, ValueError):
                if (said := source.read_text()) != seen:
                    write_json(target, json.loads(said))
                    seen = said
            time.sleep(5)

    threading.Thread(target=copy, daemon=True).start()


def write_token(folder: Path, token: str) -> None:
    """Keep the token where only its owner reads it."""
    path = folder / "token"
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(token)


def free_port(wanted: int = 0, address: str = "127.0.0.1") -> int:
    """A TCP port of one of this machine's addresses that is free now; `wanted` if it is."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, wanted))
        except OSError:
            probe.bind((address, 0))
        return probe.getsockname()[1]


def wait_for_port(address: str, head: subprocess.Popen, log: Path) -> None:
    """Wait until Ray's head answers. Raises UserError where it ends or does not."""
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
        _attach(address=record["address"])
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
