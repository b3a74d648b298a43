"""Work in processes of its own, of which one may hang or crash: decoders are C code, and files are damaged."""

from __future__ import annotations

import multiprocessing
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

import cv2


class Unreadable(Exception):
    """A clip that cannot be read or used; the message is the reason, one line."""


CLIP_TIMEOUT = 120.0  # seconds after which a decoder counts as hung


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a job gave no result."""

    reason: str


@dataclass(frozen=True, slots=True)
class _Crash:
    """A fault of the program in a worker, with its traceback."""

    text: str


def guarded_map(
    function: Callable[[Any], Any], jobs: Sequence[Any], workers: int, timeout: float = CLIP_TIMEOUT
) -> Iterator[Any]:
    """Results of `function(job)`, in the order of `jobs`, computed by `workers` processes of their own.

    Decoders are C code that damaged files make hang or crash: a job that takes longer than `timeout`
    seconds, ends its process, or raises Unreadable gives a Failure, and the others go on. Other exceptions
    stop the whole map. At most 4 results a worker wait for an earlier one. `function` must be picklable.
    """
    context = multiprocessing.get_context("spawn")  # forking a process that has threads can deadlock
    pool = [_Worker(context, function) for _ in range(max(1, min(workers, len(jobs))))]
    waiting: dict[int, Any] = {}
    given = taken = 0
    try:
        while taken < len(jobs):
            for worker in pool:
                if worker.idle and given < min(len(jobs), taken + 4 * len(pool)):
                    worker.give(given, jobs[given])
                    given += 1
            wait([worker.connection for worker in pool if not worker.idle], timeout=0.5)
            for worker in pool:
                if (answer := worker.poll(timeout)) is not None:
                    waiting[answer[0]] = answer[1]
            while taken in waiting:
                result = waiting.pop(taken)
                if isinstance(result, _Crash):
                    raise RuntimeError(f"a worker failed on {jobs[taken]!r}:\n{result.text}")
                taken += 1
                yield result
    finally:
        for worker in pool:
            worker.stop()


class _Worker:
    """One process that does one job at a time and is replaced when it hangs or dies."""

    def __init__(self, context: Any, function: Callable[[Any], Any]) -> None:
        self._context, self._function = context, function
        self._start()

    def _start(self) -> None:
        self.connection, other = self._context.Pipe()
        self._process = self._context.Process(target=_serve, args=(other, self._function), daemon=True)
        self._process.start()
        other.close()  # ours to keep open would hide the end of the process
        self.idle, self._job, self._since = False, None, 0.0

    def give(self, number: int, job: Any) -> None:
        self.idle, self._job, self._since = False, number, time.monotonic()
        try:
            self.connection.send(job)
        except OSError:
            pass  # the process has just died: `poll` sees the end of the connection

    def poll(self, timeout: float) -> tuple[int, Any] | None:
        """(job's number, result) when there is one."""
        if self.idle:
            return None
        number = self._job
        try:
            if self.connection.poll():
                message = self.connection.recv()
                self.idle, self._job = True, None
                return None if number is None else (number, message)
        except (EOFError, OSError):
            return self._replace(Failure(f"the decoder crashed on it (exit code {self._exit_code()})"))
        if number is not None and time.monotonic() - self._since > timeout:
            return self._replace(Failure(f"the decoder hung: no result after {timeout:g} s"))
        return None

    def _exit_code(self) -> int | None:
        self._process.join(5)
        return self._process.exitcode

    def _replace(self, failure: Failure) -> tuple[int, Any]:
        number = self._job
        self.stop()
        if number is None:
            raise RuntimeError("a worker process ended while starting; the calling script needs a __main__ guard")
        self._start()
        return number, failure

    def stop(self) -> None:
        self.connection.close()
        self._process.kill()
        self._process.join()


def _serve(connection: Connection, function: Callable[[Any], Any]) -> None:
    """Main function of a worker process."""
    cv2.setNumThreads(1)
    try:
        connection.send(None)  # ready
        while True:
            job = connection.recv()
            try:
                result = function(job)
            except Unreadable as error:
                result = Failure(str(error))
            except Exception:
                result = _Crash(traceback.format_exc())
            connection.send(result)
    except (EOFError, OSError, KeyboardInterrupt):
        return  # the parent has ended
