"""Ray over the nodes of a Slurm job: one process on each node, started by srun.

The first node has the head and runs the driver; the others join it. Ports are free ones that the nodes find
themselves, the temporary folders and the token are the job's own, and everything ends with the driver: several such
jobs may share a node. (`ray symmetric-run` would end with `ray stop`, which ends every Ray on the node.)

    train, frames --nodes N, cluster start --nodes N -> spread -> srun -> N x `cluster node` -> Ray, and on the first
    node the command
"""

from __future__ import annotations

import json
import math
import os
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from pipeline.cluster.client import running
from pipeline.cluster.folders import ray_folder
from pipeline.cluster.head import (
    HEAD,
    OURS,
    START_SECONDS,
    STOP_SECONDS,
    end_process,
    environment,
    own_folder,
    shared_targets,
    start_head,
    start_ray,
    write_token,
)
from pipeline.cluster.logs import last_words, rotate
from pipeline.cluster.slurm import _ask, address_of, hosts, interface_of, plain_environment, slurm_job
from pipeline.config import Cluster
from pipeline.errors import UserError
from pipeline.files import write_json
from pipeline.workspace import Workspace


def enter(record: dict[str, Any]) -> None:
    """Go on inside the Slurm job that hosts a shared cluster, as this same command; nothing if that is not needed.

    A driver of Ray must run on a node of its cluster. This process becomes the srun that waits for it.
    """
    if record.get("job") in (None, os.environ.get("PIPELINE_ENTERED")):
        return
    options = [f"--jobid={record['job']}", f"--nodelist={record['host']}", "--nodes=1", "--ntasks=1", "--overlap"]
    command = ["srun", *options, "--mem=0", sys.executable, "-P", "-m", "pipeline", *sys.argv[1:]]
    os.execvpe("srun", command, plain_environment() | {"PIPELINE_ENTERED": record["job"]})


def spread(command: list[str], ws: Workspace, settings: Cluster) -> int:
    """Run `command` as the driver of a Ray cluster on `settings.nodes` nodes of this Slurm job; its exit status.

    Raises:
        UserError: this is no Slurm job, or it has fewer nodes.
    """
    job = slurm_job()
    if not job:
        raise UserError(
            f"{settings.nodes} nodes are wanted, and this is no Slurm job; use `snakemake --profile slurm`, sbatch or "
            "salloc, or ask for one (cluster.nodes, --nodes)"
        )
    if len(names := hosts(job)) < settings.nodes:
        raise UserError(f"{settings.nodes} nodes are wanted, and Slurm job {job} has {len(names)}: {' '.join(names)}")
    folder = own_folder(ws, job)
    try:
        write_token(folder, secrets.token_hex(32))
        return _srun(job, command, folder, settings)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _srun(job: str, command: list[str], folder: Path, settings: Cluster) -> int:
    nodes, gpus = settings.nodes, math.ceil(settings.gpus * per_node(settings))
    options = [f"--jobid={job}", f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1", "--overlap"]
    options += ["--kill-on-bad-exit=1", "--mem=0", f"--cpus-per-task={cpus_per_node(settings)}"]
    options += [f"--gres=gpu:{gpus}"] if gpus else []
    inner = [sys.executable, "-P", "-m", "pipeline", "cluster", "node", str(folder.resolve())]
    inner += ["--settings", settings.model_dump_json(), "--", *command]
    step = subprocess.Popen(["srun", *options, *inner], env=plain_environment(), stdin=subprocess.DEVNULL)
    for number in (signal.SIGTERM, signal.SIGINT):  # srun hands it to the nodes, whose driver keeps a checkpoint
        signal.signal(number, lambda number, _: step.send_signal(number))
    return step.wait()


def allocate(ws: Workspace, settings: Cluster, options: list[str]) -> dict[str, Any]:
    """Start a Slurm job that hosts the shared cluster, and wait until it is up; its record.

    Args:
        options: further options of sbatch (partition, GPUs, time).

    Raises:
        UserError: Slurm refuses the job, or it ends before the cluster is up.
    """
    ws.ray.mkdir(parents=True, exist_ok=True)
    log = rotate(ws.ray / "allocation.log")
    command = [sys.executable, "-P", "-m", "pipeline", "cluster", "host", "--results", str(ws.root.resolve())]
    command += ["--settings", settings.model_dump_json()]
    asked = ["--parsable", "--job-name=ray-pipeline", f"--nodes={settings.nodes}", "--ntasks-per-node=1"]
    asked += [f"--cpus-per-task={cpus_per_node(settings)}", f"--output={log}", "--open-mode=truncate", *options]
    job = _ask("sbatch", *asked, f"--wrap=exec {shlex.join(command)}").split(";")[0]
    print(f"Slurm job {job} waits for {settings.nodes} nodes", flush=True)
    while True:
        record = running(ws)
        if record and record.get("job") == job:
            return record
        state = _ask("squeue", "--noheader", "--states=all", f"--jobs={job}", "--format=%T")
        if state not in ("PENDING", "CONFIGURING", "RUNNING"):
            said = f"{last_words(log)} (log: {log})"
            raise UserError(f"Slurm job {job} is {state or 'gone'} before the cluster was up: {said}")
        time.sleep(1.0)


def per_node(settings: Cluster) -> int:
    """Workers, or slots of the shared cluster, on each node."""
    count = settings.slots if settings.mode == "shared" else settings.workers
    return math.ceil(count / max(settings.nodes, 1))


def cpus_per_node(settings: Cluster) -> int:
    """CPUs that Ray uses on each node."""
    return per_node(settings) * settings.threads + 1


# On each node


def run_node(folder: Path, settings: Cluster, command: list[str]) -> int:
    """The part of one node: the head and the driver on the first, a follower on the others; the exit status."""
    number = int(os.environ["SLURM_PROCID"])
    address = address_of(os.environ["SLURMD_NODENAME"])
    interface = settings.interface or interface_of(address)
    if settings.interface:
        address = _address_on(interface)
    os.environ.update(environment((folder / "token").read_text("utf-8"), interface))
    os.environ["PIPELINE_NODE"] = address
    with ray_folder() as temporary:
        if number == 0:
            return _lead(folder, settings, command, address, temporary)
        return _follow(folder, settings, address, temporary)


def _address_on(interface: str) -> str:
    for entry in psutil.net_if_addrs().get(interface, []):
        if entry.family == socket.AF_INET:
            return entry.address
    known = ", ".join(sorted(psutil.net_if_addrs()))
    raise UserError(f"cluster.interface: {socket.gethostname()} has no {interface!r} with an address; it has {known}")


def _log(folder: Path) -> Path:
    return rotate(folder.parent / f"{folder.name}-{os.environ['SLURMD_NODENAME']}.log")


def _lead(folder: Path, settings: Cluster, command: list[str], address: str, temporary: str) -> int:
    with shared_targets(temporary, Workspace(folder.parents[2])):
        return _drive(folder, settings, command, address, temporary)


def _drive(folder: Path, settings: Cluster, command: list[str], address: str, temporary: str) -> int:
    """Start the head, and run the driver as long as it lives; the driver's exit status."""
    driver: subprocess.Popen | None = None
    log = _log(folder)

    def hand_on(number: int, _: Any) -> None:
        driver.send_signal(number) if driver else sys.exit(128 + number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, hand_on)
    head, address = start_head(settings, address, cpus_per_node(settings), temporary, log)
    try:
        os.environ.update({"RAY_ADDRESS": address, OURS: str(folder / HEAD)})
        record = {"address": address, "dashboard": None}  # the driver knows where that is
        write_json(folder / HEAD, record | {"job": slurm_job(), "host": os.environ["SLURMD_NODENAME"]})
        print(f"Ray's head is at {address}", flush=True)
        driver = subprocess.Popen(command)
        while (status := driver.poll()) is None:
            if head.poll() is not None:
                raise UserError(
                    f"Ray's head at {address} has ended ({last_words(log)}); the next call continues from the last "
                    "checkpoint"
                )
            time.sleep(0.2)
        return status if status >= 0 else 128 - status
    finally:
        (folder / HEAD).unlink(missing_ok=True)
        if driver and driver.poll() is None:
            end_process(driver, STOP_SECONDS)
        end_process(head, STOP_SECONDS)


def _follow(folder: Path, settings: Cluster, address: str, temporary: str) -> int:
    stopped: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):  # the driver may want to keep a checkpoint first
        signal.signal(number, lambda number, _: stopped.append(number))
    end = time.monotonic() + START_SECONDS
    while not (folder / HEAD).is_file():
        if time.monotonic() > end or stopped or not folder.is_dir():
            raise UserError(f"the head of Ray did not come up; see {folder.parent}")
        time.sleep(0.2)
    head = json.loads((folder / HEAD).read_text("utf-8"))["address"]
    print(f"the node at {address} joins", flush=True)
    log = _log(folder)
    child = start_ray(address, cpus_per_node(settings), temporary, log, f"--address={head}")
    try:
        while (folder / HEAD).is_file():
            if child.poll() is not None:
                raise UserError(f"Ray's node on {address} has ended: {last_words(log)} (log: {log})")
            time.sleep(0.5)
        return 0
    finally:
        with suppress(ProcessLookupError):
            end_process(child, STOP_SECONDS)
