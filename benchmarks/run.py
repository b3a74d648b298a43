"""All benchmarks in one run, as a table, `bench.json` and `bench.md`."""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from rich.console import Console

from benchmarks import data, floor, matching, scaling, skeletons, teacher, testing, training, workflow
from benchmarks.lines import Line, markdown, table
from benchmarks.world import World, make_world
from pipeline.files import write_json

TOPICS = ("matching", "testing", "training", "data", "teacher", "skeletons", "workflow", "scaling", "floor")
ALONE = ("feeding",)  # parts of a topic, which are measured with it, on their own
NEEDS_WORLD = {"testing", "data", "workflow", "scaling"}


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "topics", nargs="*", metavar="TOPIC", help=f"of {', '.join(TOPICS)}, all without; or {', '.join(ALONE)}"
    )
    parser.add_argument("--threads", type=int, default=min(os.cpu_count() or 1, 2))
    parser.add_argument("--out", type=Path, default=Path("results"), help="folder of bench.json, bench.md and bench/")
    given = parser.parse_args(arguments)
    if odd := sorted(set(given.topics) - {*TOPICS, *ALONE}):
        parser.error(f"unknown topic {odd[0]!r}; known: {', '.join((*TOPICS, *ALONE))}")
    torch.set_num_threads(given.threads)
    console, began = Console(), time.monotonic()
    wanted = [name for name in (*TOPICS, *ALONE) if name in (given.topics or TOPICS)]
    lines: list[Line] = []
    given.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=given.out) as folder:
        works = _works(wanted, Path(folder), given.out / "bench")
        for name in wanted:
            start = time.monotonic()
            lines += works[name]()
            _write(given.out, lines, given.threads, time.monotonic() - began)  # what is measured stays
            console.print(f"[dim]{name}: {time.monotonic() - start:.0f} s[/]", highlight=False)
    wide = console if console.is_terminal else Console(width=220)
    wide.print(table(lines))
    wide.print(_write(given.out, lines, given.threads, time.monotonic() - began), highlight=False)


def _write(out: Path, lines: list[Line], threads: int, seconds: float) -> str:
    """Write all lines so far; returns where and how they were measured."""
    machine = (
        f"{platform.machine()}, {threads} threads of {os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}, "
        f"torch {torch.__version__}, {seconds:.0f} s in all"
    )
    write_json(out / "bench.json", {"machine": machine, "lines": [line.record() for line in lines]})
    (out / "bench.md").write_text(markdown(lines, f"# Benchmarks\n\n{machine}"))
    return machine


def _works(wanted: list[str], folder: Path, plots: Path) -> dict[str, Callable[[], list[Line]]]:
    """What measures each topic; the generated world is made when one of them needs it."""
    world: World | None = make_world(folder / "world") if NEEDS_WORLD & set(wanted) else None
    return {
        "matching": matching.measure,
        "testing": lambda: testing.measure(world),
        "training": training.measure,
        "data": lambda: data.measure(world, folder / "data"),
        "feeding": lambda: data.feed(folder / "feeding"),
        "teacher": teacher.measure,
        "skeletons": lambda: skeletons.measure(folder / "skeletons"),
        "workflow": lambda: workflow.measure(world),
        "scaling": lambda: scaling.measure(world, folder / "scaling", plots),
        "floor": floor.measure,
    }
