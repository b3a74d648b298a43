"""Kills at random moments of a tiny table, each followed by the same call: is the table the same, byte for byte?

    python -m benchmarks.kills --kills 10 --seed 0

Modes and targets alternate. The moment is a random share of the time that the table takes undisturbed.
"""

from __future__ import annotations

import argparse
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import psutil

from benchmarks.sandbox import MODES, Sandbox, TinyTable, difference, kill, sandbox

TARGETS = ("everything", "snakemake", "worker", "head", "controller")
"""All processes at once; Snakemake and what it has started; the process of a training; Ray's head; the process of Ray
Train that looks after a training."""
RAY_NAMES = {"worker": "TrainWorker", "controller": "TrainController"}
SECONDS = 3000.0  # for a table, and for a call to end whose processes were killed
GRACE = 20.0  # after which nothing is left


@dataclass(frozen=True)
class Kill:
    """share: of the undisturbed time, after which the target is killed."""

    number: int
    mode: str
    target: str
    share: float


def draw(count: int, seed: int) -> list[Kill]:
    """The kills of a seed."""
    chance = random.Random(seed)
    return [
        Kill(i + 1, MODES[i % len(MODES)], TARGETS[i // len(MODES) % len(TARGETS)], chance.uniform(0.05, 0.95))
        for i in range(count)
    ]


def victims(target: str, snakemake: int, processes: Sequence[psutil.Process]) -> list[psutil.Process]:
    """Which of the processes belong to a target, with the process id of the call; none where it is not there now."""
    if target == "everything":
        return list(processes)
    if target == "snakemake":
        below = {snakemake}
        with suppress(psutil.Error):
            below |= {child.pid for child in psutil.Process(snakemake).children(recursive=True)}
        return [process for process in processes if process.pid in below]
    words = [(process, _words(process)) for process in processes]
    if target in RAY_NAMES:
        return [process for process, said in words if said.startswith("ray::") and RAY_NAMES[target] in said][:1]
    return [
        process
        for process, said in words
        if "gcs_server" in said.split(" ")[0] or "ray.scripts.scripts start --block" in said
    ]


def _words(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def strike(one: Kill, box: Sandbox, call: subprocess.Popen) -> str:
    """Kill the target, or everything where there is no such process now; what was killed, in words."""
    found, what = victims(one.target, call.pid, box.processes()), one.target
    if not found:
        found, what = box.processes(), f"everything ({one.target}: none yet, or no more)"
    kill(found)
    return f"{what}, {len(found)} process{'es' if len(found) > 1 else ''}"


def undisturbed(mode: str) -> tuple[float, bytes]:
    """How long the table takes, and its CSV."""
    with sandbox() as box:
        table, began = TinyTable(box, box.folder / "w", mode), time.monotonic()
        if table.start().wait(SECONDS):
            raise SystemExit(f"the tiny table fails without any kill ({mode}):\n{table.last_words()}")
        return time.monotonic() - began, table.csv.read_bytes()


def attempt(one: Kill, seconds: float, wanted: bytes) -> list[str]:
    """Kill, and call again; what is wrong then. Says what happened in a line."""
    moment = one.share * seconds
    with sandbox() as box:
        table = TinyTable(box, box.folder / "w", one.mode)
        call = table.start()
        with suppress(subprocess.TimeoutExpired):
            call.wait(moment)
            print(f"{one.number}: it had ended within {moment:.0f} s, and comes again, earlier", flush=True)
            return attempt(one, 0.7 * seconds, wanted)
        done = strike(one, box, call)
        first = call.wait(SECONDS)
        if table.locked:  # Snakemake was killed
            table.start("--unlock").wait(SECONDS)
            for folder in box.temporary.glob("snakemake*"):  # its own, which nobody else removes
                shutil.rmtree(folder)
        began = time.monotonic()
        status = table.start().wait(SECONDS)
        again = time.monotonic() - began
        faults = [f"the same call ended with status {status}: {table.last_words()}"] if status else []
        faults += [] if status else difference(wanted, table.csv.read_bytes())
        faults += table.left(GRACE)
        said = "; ".join(faults) or "the same table, nothing left"
        print(
            f"{one.number} {one.mode}, after {moment:.0f} s ({one.share:.2f}): {done}; status {first}; the same call: "
            f"{again:.0f} s, {said}",
            flush=True,
        )
        return faults


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    kills = draw(asked.kills, asked.seed)
    found = {mode: undisturbed(mode) for mode in dict.fromkeys(one.mode for one in kills)}
    for mode, (seconds, _) in found.items():
        print(f"{mode}, undisturbed: {seconds:.0f} s", flush=True)
    (_, first), *others = found.values()
    if other := [line for _, table in others for line in difference(first, table)]:
        raise SystemExit(f"the modes make different tables without any kill: {'; '.join(other)}")
    faulty = [one for one in kills if attempt(one, *found[one.mode])]
    print(f"{len(kills)} kills, seed {asked.seed}: {len(kills) - len(faulty)} times the same table, and nothing left")
    sys.exit(bool(faulty))


if __name__ == "__main__":
    main()
