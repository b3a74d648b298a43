"""What Slurm says of a job: its nodes, their addresses, the time that is left."""

from __future__ import annotations

import os
import socket
import subprocess

import psutil

from pipeline.errors import UserError


def seconds_to_work(job: str, minutes: float) -> float | None:
    """Time until work in a Slurm job ends, `minutes` before its limit; None where it has no limit, or minutes is 0.

    Where Slurm cannot be asked (in a container, say) work goes on without a limit, and a line says so.
    """
    try:
        left = seconds_left(job) if job and minutes else None
    except UserError as error:
        print(f"the time limit of Slurm job {job} is not known, and nothing is kept before it ({error})", flush=True)
        return None
    return None if left is None else max(left - 60 * minutes, 1.0)


def slurm_job() -> str:
    """The Slurm job that this process is in; empty if it is in none."""
    return os.environ.get("SLURM_JOB_ID", "")


def hosts(job: str) -> list[str]:
    """Names of the nodes of a Slurm job.

    They are asked of Slurm: a job step that Snakemake starts knows nothing but the job's id.
    """
    nodes = _ask("squeue", "--noheader", f"--jobs={job}", "--format=%N")
    return _ask("scontrol", "show", "hostnames", nodes).split()


def address_of(host: str) -> str:
    """The address under which other nodes reach a node of the cluster: what Slurm uses."""
    words = dict(word.split("=", 1) for word in _ask("scontrol", "show", "node", host).split() if "=" in word)
    return socket.gethostbyname(words.get("NodeAddr", host))


def interface_of(address: str) -> str:
    """Name of this machine's network interface that has an address.

    Raises:
        UserError: none has it.
    """
    for name, found in psutil.net_if_addrs().items():
        if any(entry.address == address for entry in found):
            return name
    raise UserError(
        f"no network interface of {socket.gethostname()} has the address {address} that Slurm knows for it; name the "
        "interface between the nodes: cluster.interface"
    )


def _ask(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(f"{command[0]} does not answer ({error}); is this a node of a Slurm cluster?") from None
    if done.returncode:
        raise UserError(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout.strip()


def seconds_left(job: str) -> float | None:
    """Time until the limit of a Slurm job; None where it has none."""
    said = _ask("squeue", "--noheader", f"--jobs={job}", "--format=%L")  # [days-][hours:]minutes:seconds
    days, _, clock = said.rpartition("-")
    parts = clock.split(":")
    if not all(part.isdigit() for part in parts) or len(parts) < 2:
        return None
    seconds = 86400.0 * int(days or 0)
    return seconds + sum(int(part) * 60**i for i, part in enumerate(reversed(parts)))


def plain_environment() -> dict[str, str]:
    """The environment without what Slurm says of the step that this process is in: a further srun would obey it."""
    kept = ("SLURM_CONF", "SLURM_JOB_ID", "SLURM_JWT")
    return {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "SBATCH_")) or key in kept}
