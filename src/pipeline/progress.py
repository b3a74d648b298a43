"""How far a long step is: a bar in a terminal, a line now and then in a log, and a small file that `status` reads.

A stage says what it is (`job`); what takes long in it says how much there is and how much is done (`bar`), and knows
nothing of stages, files and terminals. Where another process does the work, `follow` shows what that one writes.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.files import write_json
from pipeline.workspace import Workspace

WRITE_SECONDS = 1.0  # between two writes of a file
LINE_SECONDS = 60.0  # between two lines in a log
REASON_LINES = 6  # of an error, kept for `status`


def span(seconds: float) -> str:
    """A time in words: `40 s`, `12 min`, `3 h 05 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def this_process() -> dict[str, Any]:
    """What tells this process from every other one: its number, its machine, and when it began there."""
    return {"pid": os.getpid(), "host": socket.gethostname(), "began": _began(os.getpid())}


def lives(record: dict[str, Any]) -> bool:
    """Whether the process of a record (see `this_process`) runs. One on another machine is taken to run.

    The number alone would not do: another process gets it once the first has ended.
    """
    if record["host"] != socket.gethostname():
        return True
    began = _began(record["pid"])
    return began is not None and record.get("began") in (None, began)


def _began(pid: int) -> int | None:
    """When a process began, in the kernel's ticks since it booted; None where there is none, or it only waits for its
    parent to notice its end."""
    try:
        # "PID (NAME) STATE ..."; the name may have brackets and blanks in it.
        state, *fields = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in "ZX" else int(fields[18])


class Bar:
    """Work of `total` units of which `done` are done; `words` says what it is and `note` how it goes."""

    def __init__(self, words: str, total: int, unit: str, done: int = 0) -> None:
        self.words, self.total, self.unit, self.done, self.note = words, max(total, 1), unit, done, ""
        self._first, self._began = done, time.monotonic()
        self._said = self._began
        self._shown: Any = None

    def advance(self, count: int = 1, note: str = "") -> None:
        """`count` more units are done."""
        self.to(self.done + count, note)

    def to(self, done: int, note: str = "") -> None:
        """`done` units are done by now."""
        self.done, self.note = done, note or self.note
        _show(self)

    def state(self) -> dict[str, Any]:
        """What `status` reads; the rate is in units a second, `left` in seconds, both null while nothing is known."""
        spent, made = time.monotonic() - self._began, self.done - self._first
        rate = made / spent if made and spent > 0 else None
        left = max(0, self.total - self.done) / rate if rate else None
        return {
            "words": self.words, "done": self.done, "total": self.total, "unit": self.unit, "note": self.note,
            "rate": rate, "left": left,
        }  # fmt: skip


def line(state: dict[str, Any]) -> str:
    """`training: 120 of 500 steps, 3.2 a second, 2 min left (loss 0.52)`."""
    parts = [f"{state['done']:,} of {state['total']:,} {state['unit']}"]
    if state["rate"]:
        each = f"{state['rate']:.3g} a second" if state["rate"] >= 0.1 else f"{span(1 / state['rate'])} each"
        parts += [each, f"{span(state['left'])} left"]
    return f"{state['words']}: {', '.join(parts)}{' (' + state['note'] + ')' if state['note'] else ''}"


# What is under way in this process


class _Here:
    """The job of this process, and its bars, the outermost first."""

    def __init__(self) -> None:
        self.path: Path | None = None
        self.record: dict[str, Any] = {}
        self.bars: list[Bar] = []
        self.written = 0.0
        self.display: Any = None
        self.quiet = False
        self.lock = threading.RLock()


_here = _Here()


@contextmanager
def job(ws: Workspace, stage: str, name: str, quiet: bool = False) -> Iterator[None]:
    """This process does `stage` of `name`. Its file is there while it runs, and stays, with the reason, if it fails.

    quiet: show nothing here, for another process does (`follow`).
    """
    before = _here.path, _here.record, _here.quiet
    _here.path, _here.quiet = ws.progress(stage, name), quiet
    _here.record = {
        "stage": stage, "name": name, "state": "running", "started": time.time(), "bars": [], **this_process(),
    }  # fmt: skip
    _write()
    try:
        yield
    except Exception as error:
        _fail(_here.path, _here.record, error)
        raise
    except BaseException:  # interrupted by the user: no failure
        _here.path.unlink(missing_ok=True)
        raise
    else:
        _here.path.unlink(missing_ok=True)
    finally:
        _here.path, _here.record, _here.quiet = before


@contextmanager
def bar(words: str, total: int, unit: str = "", done: int = 0) -> Iterator[Bar]:
    """A bar for what the block does; the block calls `advance` or `to`. Bars may stand within bars."""
    made = Bar(words, total, unit, done)
    with _here.lock:
        _here.bars.append(made)
        _start(made)
    _write_if_due()
    try:
        yield made
    finally:
        with _here.lock:
            _here.bars.remove(made)
            _stop(made)
        _write_if_due()


def _show(made: Bar) -> None:
    now = time.monotonic()
    with _here.lock:
        if _here.display is not None and made._shown is not None:
            _here.display.update(made._shown, completed=made.done, note=made.note)
        elif not _here.quiet and now - made._said >= LINE_SECONDS:
            made._said = now
            print(line(made.state()), file=sys.stderr, flush=True)
    _write_if_due()


def _write_if_due() -> None:
    if time.monotonic() - _here.written >= WRITE_SECONDS:
        _write()


def _write() -> None:
    """The file of the job; nothing where there is none, or no place for it."""
    with _here.lock:
        if _here.path is None:
            return
        _here.written = time.monotonic()
        _here.record |= {"updated": time.time(), "bars": [made.state() for made in _here.bars]}
        with contextlib.suppress(OSError):  # work goes on without a progress file
            write_json(_here.path, _here.record)


def _fail(path: Path, record: dict[str, Any], error: BaseException) -> None:
    reason = [text for text in f"{type(error).__name__}: {error}".splitlines() if text.strip()][-REASON_LINES:]
    with contextlib.suppress(OSError):
        write_json(path, record | {"state": "failed", "updated": time.time(), "reason": reason})


def _start(made: Bar) -> None:
    """Begin to show a bar, where somebody looks."""
    if _here.quiet or not sys.stderr.isatty():
        return
    if _here.display is None:
        _here.display = _display()
        _here.display.start()
    made._shown = _here.display.add_task(
        made.words, total=made.total, completed=made.done, unit=made.unit, note=made.note
    )


def _stop(made: Bar) -> None:
    if _here.display is None or made._shown is None:
        return
    if _here.bars:  # one within another
        _here.display.remove_task(made._shown)
    else:
        _here.display.stop()
        _here.display = None


def _display() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Any) -> Text:
            speed = task.finished_speed or task.speed
            return Text(f"{speed:.3g}/s" if speed else "", style="progress.data.speed")

    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[unit]}"), Rate(),
        TimeRemainingColumn(compact=True), TextColumn("{task.fields[note]}"),
    )  # fmt: skip
    return Progress(*columns, console=Console(stderr=True))


# What other processes do


def read_job(path: Path) -> dict[str, Any] | None:
    """The record of a job, or None where it has ended well (or its file is damaged).

    One that no longer runs has the state "lost": its process was killed.
    """
    try:
        record = json.loads(path.read_text("utf-8"))
        if record["state"] == "running" and not lives(record):
            record["state"] = "lost"
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return record


@contextmanager
def follow(ws: Workspace, stage: str, name: str) -> Iterator[None]:
    """Another process does `stage` of `name`, as this block waits: show what it says, and keep why it failed."""
    path, ended = ws.progress(stage, name), threading.Event()
    record = {
        "stage": stage, "name": name, "state": "running", "started": time.time(), "updated": time.time(), "bars": [],
        **this_process(),
    }  # fmt: skip
    with contextlib.suppress(OSError):
        write_json(path, record)
    watcher = threading.Thread(target=_watch, args=(path, ended), daemon=True)
    watcher.start()
    try:
        yield
    except Exception as error:
        _end(ended, watcher)
        _fail(path, record, error)
        raise
    except BaseException:
        _end(ended, watcher)
        path.unlink(missing_ok=True)
        raise
    else:
        _end(ended, watcher)
        path.unlink(missing_ok=True)


def _end(ended: threading.Event, watcher: threading.Thread) -> None:
    ended.set()
    watcher.join(5)


def _watch(path: Path, ended: threading.Event) -> None:
    """Show the outermost bar of another process's job until it has `ended`."""
    shown: Bar | None = None
    with contextlib.ExitStack() as stack:
        while not ended.wait(WRITE_SECONDS):
            bars = (read_job(path) or {}).get("bars") or []
            if not bars:
                continue
            first = bars[0]
            same = shown is not None and (shown.words, shown.total) == (first["words"], first["total"])
            if not same or first["done"] < shown.done:
                stack.close()
                shown = stack.enter_context(bar(first["words"], first["total"], first["unit"], first["done"]))
            if first["done"] != shown.done:
                shown.to(first["done"], first["note"])
