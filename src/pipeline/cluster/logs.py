"""Logs of a cluster's processes: one of each start is kept, and the line that says what went wrong is found in them."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path

KEPT = 5  # logs of earlier starts
TAIL = 65_536  # bytes of a log that are read
RAYS = ("raylet.err", "gcs_server.err", "raylet.out", "gcs_server.out", "dashboard.err", "dashboard.log")
TELLING = re.compile(
    r"^error: |^[\w.]*(Error|Exception|Timeout|Exit)\b|Check failed|[Nn]o space left|[Cc]annot allocate memory"
    r"|Permission denied|Read-only file system|[Tt]oo many open files|quota exceeded"
)
# What a line of Ray's own logs begins with: [time level pid thread] (program) file.cc:12:
STAMP = re.compile(
    r"^\[[^\]]*\] (\([\w ]+\) )?(\S+\.(cc|h|py):\d+: )?(-- )?"
    r"( *An unexpected system state has occurred\..*(?=Check failed))?"
)
# Ray's memory monitor, and not CUDA's memory, in what Ray says of a dead worker.
MEMORY = re.compile(r"NODE_OUT_OF_MEMORY|ray\.exceptions\.OutOfMemoryError|running low on memory|memory usage thresh")


def rotate(log: Path) -> Path:
    """Make way for a new log: `server.log` becomes `server.1.log`, and so on; the oldest one goes."""
    with suppress(OSError):
        for number in range(KEPT - 1, 0, -1):
            if (older := _numbered(log, number)).exists():
                os.replace(older, _numbered(log, number + 1))
        if log.exists():
            os.replace(log, _numbered(log, 1))
    return log


def _numbered(log: Path, number: int) -> Path:
    return log.with_name(f"{log.stem}.{number}{log.suffix}")


def ray_logs(folder: str | Path) -> list[Path]:
    """Where Ray's own processes write, of the session in its temporary folder."""
    return [Path(folder) / "session_latest" / "logs" / name for name in RAYS]


def fatal(folder: str | Path) -> bool:
    """Whether one of Ray's own processes has ended because of a fault of its own."""
    return any("Check failed" in line for log in ray_logs(folder)[:2] for line in _tail(log))


def last_words(*logs: Path) -> str:
    """The last line that tells what went wrong, of the first log that has one; else the last line of the last log."""
    lines: list[str] = []
    for log in logs:
        if not (lines := _tail(log)):
            continue
        if told := [line for line in lines if TELLING.search(line)]:
            return told[-1].removeprefix("error: ")[:300]
    return lines[-1][:300] if lines else "it said nothing"


def _tail(log: Path) -> list[str]:
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - TAIL))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return []
    return [stripped for line in text.splitlines() if (stripped := STAMP.sub("", line.strip()))]


def reason_of(error: BaseException, workers: int) -> str:
    """Why a job of Ray's with so many workers on its machine has failed: one line out of an error full of traceback."""
    text = str(error)
    if MEMORY.search(text):
        return (
            f"memory pressure: Ray's memory monitor ended a worker, with {workers} of them on this machine; "
            "use fewer, with --config 'cluster={slots: 1}' (mode job: workers, or jobs at a time)"
        )
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__
