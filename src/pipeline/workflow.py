"""Snakemake as a process of a command that follows it: `demo`, `adapt` and `rehearse`."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from pipeline.errors import UserError

LINE_SECONDS = 20.0  # between two lines that say how far it is


def call_workflow(
    arguments: Sequence[str], log: Path, watch: Callable[[subprocess.Popen], None],
    variables: Mapping[str, str] | None = None,
) -> int:  # fmt: skip
    """Run Snakemake with `arguments` (targets after `--`), its output in `log`; returns its exit status.

    `watch` gets the process and returns when it has ended; variables: more of the environment.

    Raises:
        UserError: the user interrupted it.
    """
    command = [sys.executable, "-m", "snakemake", "--quiet", "rules", *arguments]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w", encoding="utf-8") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env={**os.environ, **(variables or {})})
        try:
            watch(process)
        except KeyboardInterrupt:  # Snakemake was told too, and ends its jobs
            process.wait()
            raise UserError("interrupted; the same command goes on from here") from None
    return process.returncode


def last_words(log: Path) -> str:
    """The end of the log in a line, for a failure of which nothing else is known."""
    lines = [line for line in log.read_text("utf-8", "replace").splitlines() if line.strip()]
    if any("cannot be locked" in line for line in lines):
        return "Snakemake works in this folder already, or was killed there; wait for it, or call `snakemake --unlock`"
    return f"{' / '.join(lines[-3:])[:300]}; see {log} and `python -m pipeline status`"
