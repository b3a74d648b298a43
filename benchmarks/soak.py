"""Starts and stops of Ray clusters, again and again: what they leave behind, how long they take, what they need.

    python -m benchmarks.soak --starts 20 --pairs 20    # leaves no process, no folder, no port, and no failure
    python -m benchmarks.soak --services 3              # time and memory of a head with and without Ray's services

A pair is two starts at once: of shared clusters of two results folders, or, every second time, of two trainings' own
clusters (mode job).
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from unittest import mock

import psutil

from benchmarks.sandbox import Sandbox, sandbox

SECONDS = 400.0  # for a start or a stop: more than either waits itself
IDLE_SECONDS = 10.0  # after a start, until the last of Ray's processes is there
JOB = (
    "import sys; from pathlib import Path; from pipeline.cluster.client import connect; "
    "from pipeline.config import Cluster; from pipeline.workspace import Workspace; "
    "connect(Workspace(sys.argv[1]), Cluster(mode='job')); print('up', flush=True); sys.stdin.readline()"
)


class Soak:
    """Clusters in results folders below one folder, with a folder of their own for temporary files."""

    def __init__(self, box: Sandbox) -> None:
        self.box = box
        self.faults: list[str] = []
        self.seconds: list[float] = []
        self.memory: list[tuple[int, float]] = []

    def shared(self, *names: str) -> None:
        """Start the shared clusters of so many results folders at once, and stop them at once."""
        roots = [self.box.folder / name for name in names]
        began = time.monotonic()
        starts = [self.box.python("-m", "pipeline", "cluster", "start", "--results", str(root)) for root in roots]
        self._ended("start", starts)
        self.seconds.append(time.monotonic() - began)
        records = []
        for root in roots:
            with suppress(OSError, ValueError):
                records.append(json.loads((root / "ray" / "cluster.json").read_text("utf-8")))
        if not self.memory:
            time.sleep(IDLE_SECONDS)
            self.memory.append(_use(self.box.processes()))
        stops = [self.box.python("-m", "pipeline", "cluster", "stop", "--results", str(root)) for root in roots]
        self._ended("stop", stops)
        ports = [record[key] for record in records for key in ("address", "queue", "dashboard") if record[key]]
        self.look(f"shared {' '.join(names)}", roots, ports)

    def jobs(self, *names: str) -> None:
        """The same of clusters that live as long as one process (mode job)."""
        roots = [self.box.folder / name for name in names]
        began = time.monotonic()
        drivers = [self.box.python("-c", JOB, str(root), stdin=subprocess.PIPE) for root in roots]
        for driver in drivers:
            said = ""
            while (line := driver.stdout.readline()) and line != "up\n":
                said += line
            if not line:
                self._fault(f"job: {said.strip()[-300:]}")
        self.seconds.append(time.monotonic() - began)
        ports = []
        for head in [path for root in roots for path in (root / "ray" / "jobs").glob("*/head.json")]:
            ports.append(json.loads(head.read_text("utf-8"))["dashboard"])
        for driver in drivers:
            with suppress(BrokenPipeError):
                driver.stdin.write("\n")
                driver.stdin.flush()
        self._ended("job", drivers)
        self.look(f"jobs {' '.join(names)}", roots, ports)

    def _ended(self, what: str, processes: list[subprocess.Popen]) -> None:
        for process in processes:
            try:
                out, _ = process.communicate(timeout=SECONDS)
            except subprocess.TimeoutExpired:
                self._fault(f"{what}: has not ended after {SECONDS:.0f} s")
                continue
            if process.returncode:
                self._fault(f"{what}: exit status {process.returncode}: {out.strip()[-300:]}")

    def _fault(self, what: str) -> None:
        self.faults.append(what)
        print(f"fault: {what}", flush=True)

    def look(self, what: str, roots: list[Path], ports: list[str]) -> None:
        """Note what is left: processes, folders, files of a cluster, ports."""
        left = self.box.left(*roots)
        for root in roots:
            shutil.rmtree(root, ignore_errors=True)
        listening = self.box.listening()
        left += [f"port {port}" for port in ports if int(port.rsplit(":", 1)[1]) in listening]
        self.faults += [f"{what}: {one}" for one in left]
        print(f"{what}: {self.seconds[-1]:.1f} s, {'; '.join(left) or 'nothing left'}", flush=True)


def _use(processes: list[psutil.Process]) -> tuple[int, float]:
    """(number of processes, MB of memory: what several share counts once)."""
    total = 0.0
    for process in processes:
        with suppress(psutil.Error):
            total += process.memory_full_info().pss / 1e6
    return len(processes), total


@contextmanager
def _head(folder: Path, dashboard: bool) -> Iterator[psutil.Process]:
    """A head of Ray, from the call until it is up."""
    from pipeline.cluster import head
    from pipeline.config import Cluster

    temporary = str(folder / "r")
    process, _ = head.start_head(Cluster(dashboard=dashboard), "127.0.0.1", 3, temporary, folder / "head.log")
    try:
        yield psutil.Process(process.pid)
    finally:
        head.end_process(process, 15)
        shutil.rmtree(temporary, ignore_errors=True)


def services(folder: Path, repeats: int) -> None:
    """What a head costs as Ray starts it, as this project does, and without a dashboard; alternately."""
    from pipeline.cluster import head

    os.environ.update(head.environment(secrets.token_hex(32)))

    def everything(real: Callable, *words: list[str], **options: dict) -> object:
        del options["env"]["RAY_START_HOOK"]
        given = [word for word in words[0] if word != "--include-log-monitor=false"]
        given += [f"--ray-client-server-port={_free_port()}", f"--dashboard-port={_free_port()}"]
        return real(given, **options)

    real, found = subprocess.Popen, {"all services": [], "lean": [], "lean, no dashboard": []}
    for _ in range(repeats):
        for name, kept in found.items():
            plain = mock.patch.object(head.subprocess, "Popen", lambda *w, **o: everything(real, *w, **o))
            began = time.monotonic()
            with plain if name == "all services" else nullcontext(), _head(folder, "no" not in name) as process:
                seconds = time.monotonic() - began
                time.sleep(IDLE_SECONDS)
                below = [process, *process.children(recursive=True)]
                spent = sum(sum(each.cpu_times()[:2]) for each in below)
                kept.append((seconds, spent, *_use(below)))
    for name, kept in found.items():
        seconds, spent, count, memory = (statistics.median(column) for column in zip(*kept, strict=True))
        print(f"{name}: up after {seconds:.1f} s, {spent:.1f} s of CPU, {count:.0f} processes, {memory:.0f} MB")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--starts", type=int, default=0, help="starts and stops, one after the other")
    parser.add_argument("--pairs", type=int, default=0, help="two starts and stops at once")
    parser.add_argument("--services", type=int, default=0, help="measure heads, so many times each")
    asked = parser.parse_args()
    with sandbox() as box:
        if asked.services:
            services(box.folder, asked.services)
        soak = Soak(box)
        for number in range(asked.starts):
            soak.shared(f"one{number}")
        for number in range(asked.pairs):
            (soak.jobs if number % 2 else soak.shared)(f"left{number}", f"right{number}")
    if soak.memory:
        count, memory = soak.memory[0]
        print(f"an idle cluster: {count} processes, {memory:.0f} MB")
    if soak.seconds:
        tried = asked.starts + 2 * asked.pairs
        print(f"{tried} starts, {statistics.median(soak.seconds):.1f} s in the middle, {len(soak.faults)} faults")
    for fault in soak.faults:
        print(f"fault: {fault}")
    sys.exit(bool(soak.faults))


if __name__ == "__main__":
    main()
