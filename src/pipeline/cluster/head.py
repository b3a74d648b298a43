"""Ray's processes on a machine: their settings, how the head starts and ends, and where it says that it is."""

from __future__ import annotations

import ctypes
import functools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from pipeline.cluster.logs import fatal, last_words, ray_logs
from pipeline.config import Cluster
from pipeline.errors import UserError
from pipeline.files import read_json, write_json
from pipeline.progress import lives, this_process
from pipeline.workspace import Workspace

NAMESPACE = "pipeline"
START_SECONDS = 180.0
STOP_SECONDS = 15.0
SLOW = "Timed out waiting for file"  # what a raylet says whose agents do not come up within a minute
ANSWER_SECONDS = 30.0  # for a Ray that RAY_ADDRESS names
HEAD = "head.json"  # where the head of a job's cluster is, as long as it runs
OWNER = "owner.json"  # beside it: the process whose cluster it is
OURS = "PIPELINE_HEAD"  # variable with the path of head.json: RAY_ADDRESS was set by `nodes`, and is to be believed


def environment(token: str, interface: str = "lo") -> dict[str, str]:
    """Variables that the head and everyone who speaks to it must share; Ray reads them when it is imported, and so they
    come too late for a process that has imported it.

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
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1",  # a training ends so much late; asking costs 0.1 % of a core
        # Ray's own limits, of a minute or less, are too short for a busy machine.
        "RAY_gcs_server_port_wait_time_s": f"{START_SECONDS:.0f}",
        "RAY_DASHBOARD_STARTUP_TIMEOUT_S": f"{START_SECONDS:.0f}",
        "RAY_worker_register_timeout_seconds": f"{START_SECONDS:.0f}",
        "RAY_raylet_start_wait_time_s": f"{START_SECONDS:.0f}",
        "RAY_agent_register_timeout_ms": f"{1000 * START_SECONDS:.0f}",
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": f"{START_SECONDS:.0f}",
        "MALLOC_ARENA_MAX": "2",  # workers stay smaller
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # each trial is one number, kept in the cell
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
        "RAY_AIR_NEW_OUTPUT": "0",
        "RAY_DEDUP_LOGS": "0",
        "PYTHONWARNINGS": "ignore",
        # Whatever the user's locale is; and a queue.py in the working folder is not Python's.
        "PYTHONUTF8": "1",
        "PYTHONSAFEPATH": "1",
    }


def start_head(
    settings: Cluster, address: str, cpus: int, temporary: str, log: Path
) -> tuple[subprocess.Popen, str]:  # fmt: skip
    """Start Ray's head on this machine, as one of its addresses, and wait until it is up; its process and address.

    Ray chooses its ports. Its raylet waits a minute, which nothing can change, for those of its agents; on a machine
    that is too busy for that Ray starts once more, with ports for them that are given.

    Raises:
        UserError: it does not start.
    """
    options = ["--head", "--port=0", f"--dashboard-host={address}"]
    options += [] if settings.dashboard else ["--include-dashboard=false"]
    for given in (False, True):
        head = start_ray(address, cpus, temporary, log, *options, given_ports=given)
        try:
            return head, wait_for_head(temporary, head, log)
        except BaseException as error:
            end_process(head, STOP_SECONDS)
            if given or not (isinstance(error, UserError) and SLOW in str(error)):
                raise
        shutil.rmtree(temporary, ignore_errors=True)
    raise AssertionError  # one of the two returns or raises


def start_ray(
    address: str, cpus: int, temporary: str, log: Path, *options: str, given_ports: bool = False
) -> subprocess.Popen:
    """Start Ray on this machine, as one of its addresses; it ends with this process. given_ports: see `start_head`."""
    command = [
        sys.executable, "-P", "-m", "ray.scripts.scripts",  # an environment laid over another one has no bin/ray
        "start", "--block", f"--node-ip-address={address}",
        f"--temp-dir={temporary}", f"--num-cpus={cpus}", "--object-store-memory=160000000", "--disable-usage-stats",
        "--include-log-monitor=false",  # it sends what workers print to drivers, which do not listen
        *options,
    ]  # fmt: skip
    lean = {"RAY_num_prestart_python_workers": "0", "RAY_START_HOOK": "pipeline.cluster.lean.lean"}
    lean |= {"PIPELINE_GIVEN_PORTS": str(int(given_ports))}
    lean |= {"TMPDIR": str(Path(temporary).parent)}  # what its processes leave there goes with it
    with log.open("w", encoding="utf-8") as out:
        return subprocess.Popen(
            command, stdout=out, stderr=out, stdin=subprocess.DEVNULL, preexec_fn=die_with_parent,
            env={**os.environ, **lean},
        )  # fmt: skip


def end_process(process: subprocess.Popen, seconds: float) -> None:
    """SIGTERM, and SIGKILL if that does not end it in time: of it and of every process below it.

    The process may be a child of the one that this one was forked from, which `subprocess` would take to have ended.
    """
    below = []
    with suppress(psutil.Error):
        if process.returncode is None:
            below = [own := psutil.Process(process.pid), *own.children(recursive=True)]
            own.terminate()
            _left([own], seconds)
    end_all(below)
    with suppress(subprocess.TimeoutExpired):
        process.wait(5)


def end_all(processes: list[psutil.Process], seconds: float = 0.0) -> None:
    """Give processes so many seconds to end, then SIGKILL, and wait until they have: none writes any more."""
    for process in _left(processes, seconds):
        with suppress(psutil.Error):
            process.kill()
    _left(processes, 5.0)


def _left(processes: list[psutil.Process], seconds: float) -> list[psutil.Process]:
    """Those that still run after so many seconds at most; a zombie has ended, and in a container may stay for ever."""
    end = time.monotonic() + seconds
    while (left := [process for process in processes if _runs(process)]) and time.monotonic() < end:
        time.sleep(0.05)
    return left


def _runs(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def die_with_parent() -> None:
    """The head ends even if the server is killed with SIGKILL."""
    with suppress(OSError):
        ctypes.CDLL("libc.so.6").prctl(1, signal.SIGTERM)


def attach(address: str, **options: Any) -> tuple[Any, str | None]:
    """Ray, connected, and the address of its dashboard; None where it has none.

    Ray reads its environment when it is imported. A head that takes the connection and says nothing would be waited
    for without end, in C++, where no signal is heard: a thread ends this process then, with a line that says why.

    Raises:
        ConnectionError: nothing listens at the address.
    """
    listens(address)
    watch = threading.Timer(START_SECONDS, _give_up, [address])
    watch.daemon = True
    watch.start()
    try:
        import ray

        context = ray.init(address=address, namespace=NAMESPACE, log_to_driver=False, logging_level="ERROR", **options)
    finally:
        watch.cancel()
    dashboard = f"http://{context.dashboard_url}" if context.dashboard_url else None
    _tell_dashboard(dashboard)
    return ray, dashboard


def _tell_dashboard(dashboard: str | None) -> None:
    """Write where the dashboard of a job's cluster is into its head.json, which knows all but that."""
    path = Path(os.environ.get(OURS, ""))
    if dashboard and (record := read_json(path) if path.is_file() else None):
        write_json(path, record | {"dashboard": dashboard})


def listens(address: str) -> None:
    """Raises ConnectionError where an address is HOST:PORT and nothing listens there."""
    if found := re.fullmatch(r"([\w.:-]+):(\d+)", address):
        try:
            socket.create_connection((found[1], int(found[2])), timeout=5).close()
        except OSError as error:
            raise ConnectionError(f"nothing listens at {address} ({error})") from None


def _give_up(address: str) -> None:
    print(
        f"error: Ray at {address} has not answered for {START_SECONDS:.0f} s; run the same command again",
        file=sys.stderr, flush=True,
    )  # fmt: skip
    os._exit(2)


def given_address() -> str | None:
    """RAY_ADDRESS, if `nodes` has set it or a Ray answers there; else it is left aside, and a line says so."""
    address = os.environ.get("RAY_ADDRESS", "")
    if not address or OURS in os.environ:
        return address or None
    if reason := _unreachable(address):
        del os.environ["RAY_ADDRESS"]
        print(f"RAY_ADDRESS is {address}: {reason}; a Ray of its own is started instead", file=sys.stderr, flush=True)
        return None
    return address


@functools.lru_cache
def _unreachable(address: str) -> str:
    """Why no driver can connect to a Ray; empty where one can. Another process tries, for Ray itself has no limit."""
    try:
        listens(address)
    except ConnectionError as error:
        return str(error)
    if address == "local":
        return "that names no Ray"
    code = "import ray, sys; ray.init(address=sys.argv[1], log_to_driver=False, logging_level='ERROR')"
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-W", "ignore", "-c", code, address],
            capture_output=True, timeout=ANSWER_SECONDS, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"no Ray answers within {ANSWER_SECONDS:.0f} s"
    if not done.returncode:
        return ""
    lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
    return f"no Ray can be used there ({lines[-1][:200] if lines else done.returncode})"


def announce(folder: Path, token: str, address: str, dashboard: str) -> None:
    """Write where a cluster of this process alone is into its `own_folder`: `head.json`, `token`."""
    write_token(folder, token)
    host, job = os.environ.get("SLURMD_NODENAME", socket.gethostname()), os.environ.get("SLURM_JOB_ID", "")
    write_json(folder / HEAD, {"address": address, "host": host, "job": job, "dashboard": dashboard})


def own_folder(ws: Workspace, name: str) -> Path:
    """A new folder of this process in `RESULTS/ray/jobs`; what killed processes have left there goes."""
    forget_dead(ws)
    folder = ws.ray / "jobs" / f"{name}-{os.getpid()}"
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / OWNER, this_process())
    return folder


def forget_dead(ws: Workspace) -> None:
    """Remove what processes of this machine that were killed have left: folders of their clusters, lists of targets."""
    for path in (ws.ray / "jobs").glob(f"*/{OWNER}"):
        owner = read_json(path)
        if owner and not lives(owner):
            shutil.rmtree(path.parent, ignore_errors=True)
    host = this_process()["host"]
    for path in (ws.ray / "metrics").glob("*.json"):
        found = re.fullmatch(rf"{re.escape(host)}-(\d+)-(\d+)", path.stem)
        if found and not lives({"host": host, "pid": int(found[1]), "began": int(found[2])}):
            path.unlink(missing_ok=True)


@contextmanager
def shared_targets(temporary: str, ws: Workspace) -> Iterator[None]:
    """Keep a copy of where this cluster's metrics are in `RESULTS/ray/metrics`, for Prometheus' file discovery.

    Ray writes that file into its temporary folder, which other machines do not see; the copy goes with the block.
    """
    source = Path(temporary) / "prom_metrics_service_discovery.json"
    target = ws.ray / "metrics" / "{host}-{pid}-{began}.json".format(**this_process())
    ended = threading.Event()

    def copy() -> None:
        seen = ""
        while not ended.wait(2):
            with suppress(OSError, ValueError):
                if (said := source.read_text("utf-8")) != seen:
                    write_json(target, json.loads(said))
                    seen = said

    copier = threading.Thread(target=copy, daemon=True)
    copier.start()
    try:
        yield
    finally:
        ended.set()
        copier.join(10)
        target.unlink(missing_ok=True)


def write_token(folder: Path, token: str) -> None:
    """Keep the token where only its owner reads it."""
    path = folder / "token"
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(token)


def wait_for_head(temporary: str, head: subprocess.Popen, log: Path) -> str:
    """Wait until Ray's head has started; its address, which Ray writes into its temporary folder then.

    Raises:
        UserError: it ends, or is not up in time; with the line of its logs that tells why.
    """
    file, end = Path(temporary) / "ray_current_cluster", time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        if head.poll() is not None or fatal(temporary):
            raise UserError(f"Ray's head did not start: {last_words(*ray_logs(temporary), log)} (log: {log})")
        with suppress(OSError):
            if re.search(r":\d+$", address := file.read_text("utf-8")):
                return address
        time.sleep(0.1)
    said = last_words(*ray_logs(temporary), log)
    raise UserError(f"Ray's head did not answer within {START_SECONDS:.0f} s: {said} (log: {log})")
