"""`make demo`: Snakemake for one table of every paper, each of them on the screen as soon as it is there."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

from pipeline.datasets.index import read_index
from pipeline.errors import UserError
from pipeline.estimate import small_work
from pipeline.plan import Plan
from pipeline.progress import span
from pipeline.sheets import table_stem
from pipeline.tables.console import print_table
from pipeline.workflow import LINE_SECONDS, call_workflow, last_words
from pipeline.workspace import Workspace

FIRST = "lga"
KEEP = {"PIPELINE_KEEP_CLUSTER": "1"}  # the shared cluster goes on for the tables to come
CLASSES, EXAMPLES, QUERIES = 5, 2, 2  # of the clips that a reader can try `predict` with


def run_demo(plan: Plan, number: str, results: Path, cores: str) -> None:
    """Measure table `number` of every paper of `plan`, which holds that table alone; that of `FIRST` comes first.

    Raises:
        UserError: Snakemake failed; its last words and its log are named.
    """
    papers = sorted((paper for paper, key in plan.tables() if key == number), key=lambda paper: paper != FIRST)
    files = {paper: results / paper / f"{table_stem(number)}.csv" for paper in papers}
    began = time.time()
    _make(plan, number, {FIRST: files.pop(FIRST)}, results, cores, began, KEEP)
    _make(plan, number, files, results, cores, began, {})
    print(f"\ntables: {results / FIRST / table_stem(number)}.md, {results / table_stem(number)}.csv and others beside")
    if command := try_next(plan, results):
        print(f"next, clips that it has not seen, of classes that it has not learnt:\n  {command}", flush=True)


def try_next(plan: Plan, results: Path) -> str:
    """The command that labels some test clips of the demo by a few others; they are laid out in `results`/try.

    Empty where no run of `FIRST` has a generated data set with clips enough.
    """
    ws = Workspace(results)
    for key in sorted({run.dataset for run in plan.runs.values() if run.method == FIRST}):
        folder = ws.dataset(key)
        if not (folder / "index.csv").is_file():
            continue
        of_class: dict[str, list[str]] = {}
        for clip in read_index(folder / "index.csv"):
            if clip.split == "test" and (folder / "generated" / clip.path).is_file():
                of_class.setdefault(clip.label, []).append(clip.path)
        whole = {label: paths for label, paths in of_class.items() if len(paths) >= EXAMPLES + QUERIES}
        if len(whole) < 2:
            continue
        for label in sorted(whole)[:CLASSES]:
            for place, path in enumerate(whole[label][: EXAMPLES + QUERIES]):
                target = results / "try" / ("support" if place < EXAMPLES else "query") / label / Path(path).name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(folder / "generated" / path, target)
        words = [
            os.path.relpath(sys.executable), "-m", "pipeline", "predict", "--method", FIRST,
            "--support", str(results / "try" / "support"), "--query", str(results / "try" / "query"), "--truth",
            "--texts", str(folder / "texts.json"), "--results", str(results), "--out", str(results / "try" / "answers"),
        ]  # fmt: skip
        return shlex.join(words)
    return ""


def _make(
    plan: Plan, number: str, files: dict[str, Path], results: Path, cores: str, began: float, variables: dict[str, str]
) -> None:
    """Have Snakemake make the tables `files` of some papers, and with the last of them the combined one."""
    targets = [*map(str, files.values()), *([] if variables else [str(results / f"{table_stem(number)}.csv")])]
    log = results / "logs" / "demo.log"

    def watch(process: subprocess.Popen) -> None:
        _follow(process, plan, number, files, results, began)

    if call_workflow(["--cores", cores, "--", *targets], log, watch, variables):
        raise UserError(last_words(log))


def _follow(
    process: subprocess.Popen, plan: Plan, number: str, files: dict[str, Path], results: Path, began: float
) -> None:
    """Say how far it is, and print each table once it is written, until `process` ends."""
    ws, slots = Workspace(results), plan.config.settings.cluster.slots
    at_start, before = small_work(plan, ws)[1], time.time()
    _say(plan, ws, f"about {span(at_start / slots)} to go on two cores" if at_start else "everything is there")
    waiting, said = dict(files), time.monotonic()
    while waiting:
        ended = process.poll() is not None
        for paper, path in list(waiting.items()):
            if path.is_file() and (path.stat().st_mtime >= began or (ended and not process.returncode)):
                print(f"\nafter {span(time.time() - began)}:", flush=True)
                print_table(plan, paper, number, results)
                del waiting[paper]
        if ended:
            break
        if time.monotonic() - said >= LINE_SECONDS:
            said, left = time.monotonic(), small_work(plan, ws)[1]
            done = 1 - left / at_start if at_start else 1.0
            spent = time.time() - before
            _say(plan, ws, f"{100 * done:.0f} %" + (f", {span(spent * (1 - done) / done)} left" if done > 0.1 else ""))
        time.sleep(0.5)
    process.wait()


def _say(plan: Plan, ws: Workspace, words: str) -> None:
    trained = sum((ws.run(run) / "train.json").is_file() for run in plan.runs)
    measured = sum(ws.cell(cell).is_file() for cell in plan.cells)
    print(
        f"{trained} of {len(plan.runs)} trainings, {measured} of {len(plan.cells)} numbers: {words}",
        file=sys.stderr, flush=True,
    )  # fmt: skip
