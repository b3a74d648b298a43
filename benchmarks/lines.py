"""A line of the table of benchmarks, and how its numbers are measured."""

from __future__ import annotations

import contextlib
import ctypes
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from rich.table import Table

Result = TypeVar("Result")

Target = tuple[str, float]
"""("ratio", x): plain / fast at least x. ("share", x): fast / plain at most x. ("fast", x): at most x in its unit.
("memory", x): at most x MB."""


@dataclass(frozen=True)
class Line:
    """One comparison: `fast` is what the pipeline does, `plain` what one would do otherwise (None: there is none).

    memory: MB that the fast way takes at its peak. equal: whether both ways gave the same, None where there is nothing
    to compare. note: what a reader must know, such as that a time was extrapolated.
    """

    topic: str
    what: str
    plain: float | None
    fast: float
    unit: str = "s"
    targets: tuple[Target, ...] = ()
    memory: float | None = None
    equal: bool | None = None
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """Times that the fast way is faster (smaller)."""
        return None if self.plain is None or not self.fast else self.plain / self.fast

    def missed(self) -> list[str]:
        """The targets that are not met, and by how much: `ratio 31x of 50x`."""
        found = []
        for kind, limit in self.targets:
            value = {
                "ratio": self.ratio or 0.0, "share": 1 / self.ratio if self.ratio else math.inf,
                "fast": self.fast, "memory": math.inf if self.memory is None else self.memory,
            }[kind]  # fmt: skip
            if value < limit if kind == "ratio" else value > limit:
                found.append(f"{kind} {value:.3g}, not {limit:g}")
        return found

    def cells(self) -> list[str]:
        """As the table shows it."""
        forms = {"ratio": ">= {:g}x", "share": "<= {:g}x plain", "fast": "<= {:g} " + self.unit, "memory": "<= {:g} MB"}
        plain = "-" if self.plain is None else f"{self.plain:.3g} {self.unit}"
        ratio = "-" if self.ratio is None else f"{self.ratio:.3g}x"
        size = "-" if self.memory is None else f"{self.memory:.0f}"
        target = ", ".join(forms[kind].format(limit) for kind, limit in self.targets) or "-"
        met = ("NO: " + "; ".join(self.missed()) if self.missed() else "yes") if self.targets else "-"
        equal = {True: "yes", False: "NO", None: "-"}[self.equal]
        return [self.what, plain, f"{self.fast:.3g} {self.unit}", ratio, size, target, met, equal, self.note]

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self) | {"ratio": self.ratio, "missed": self.missed()}


NUMBERS = ("plain", "fast", "ratio", "MB")
HEADINGS = ("what", "plain", "fast", "ratio", "MB", "target", "met", "equal", "note")


def table(lines: Sequence[Line]) -> Table:
    """All lines as one table, a section a topic."""
    made = Table(title="benchmarks: the plain way against the pipeline's")
    for heading in HEADINGS:
        made.add_column(heading, justify="right" if heading in NUMBERS else "left", overflow="fold")
    topic = None
    for line in lines:
        if line.topic != topic:
            made.add_section()
            made.add_row(f"[bold]{line.topic}[/]")
            topic = line.topic
        made.add_row(*line.cells())
    return made


def markdown(lines: Sequence[Line], heading: str) -> str:
    """The table in Markdown."""
    rows = [heading, "", "| topic | " + " | ".join(HEADINGS) + " |", "|---|---|" + "---:|" * 4 + "---|" * 4]
    rows += ["| " + " | ".join([line.topic, *line.cells()]) + " |" for line in lines]
    return "\n".join(rows) + "\n"


# ------------------------------------------------------------------------------------------------- measuring
def timed(work: Callable[[], Result]) -> tuple[float, Result]:
    """Seconds of one call, and what it gave."""
    _wait()
    start = time.perf_counter()
    result = work()
    _wait()
    return time.perf_counter() - start, result


def least(work: Callable[[], object], repeats: int = 3) -> float:
    """The least time of some calls after one that warms up: the least disturbed one."""
    work()
    return min(timed(work)[0] for _ in range(max(repeats, 1)))


def alternating(works: Sequence[Callable[[], object]], repeats: int = 3) -> list[float]:
    """`least` of several works that take turns, so that what disturbs one disturbs all."""
    for work in works:
        work()
    times = [[timed(work)[0] for work in works] for _ in range(max(repeats, 1))]
    return [min(column) for column in zip(*times, strict=True)]


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak(work: Callable[[], Result]) -> tuple[float, Result]:
    """MB by which one call raises the memory of this process (on a GPU: of torch's allocations there).

    The kernel keeps the highest resident size of a process; it is set back before the call.
    """
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = work()
        return (torch.cuda.max_memory_allocated() - before) / 1e6, result
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # what was freed counts as free
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    before = memory("VmRSS")
    result = work()
    return memory("VmHWM") - before, result


def memory(name: str) -> float:
    """MB of an entry of /proc/self/status, such as VmRSS, VmHWM or RssAnon."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) / 1000
    raise KeyError(name)
