"""Ray's processes on a machine: their settings, how the head starts and ends, and where it says that it is."""

from __future__ import annotations

import atexit
import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from pipeline.config import Cluster
from pipeline.errors import UserError
from pipeline.files import write_json
from pipeline.workspace import Workspace

NAMESPACE = "pipeline"
START_SECONDS = 180.0
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


def attach(**options: Any) -> Any:
    """Ray, connected; it reads its environment when it is imported."""
    import ray

    ray.init(namespace=NAMESPACE, log_to_driver=False, logging_level="ERROR", **options)
    return ray


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
