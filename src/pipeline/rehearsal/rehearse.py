"""`make rehearse`: one row of every family of `config/rehearsal.yaml` by the workflow of paper scale, and what it took.

Everything lies in one folder: data sets in their publishers' layout (`layout`), networks (`weights`), and results.
"""

from __future__ import annotations

import contextlib
import csv
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml

from pipeline.config import merge, read_yaml
from pipeline.errors import UserError, unknown
from pipeline.experiment import Run
from pipeline.files import read_json, write_json, write_text
from pipeline.plan import Plan
from pipeline.progress import bar, span
from pipeline.status import read_status
from pipeline.steps import STAGES
from pipeline.workflow import LINE_SECONDS, call_workflow
from pipeline.workspace import Workspace

OVERLAY = "rehearsal.yaml"  # in config/, and in the folder of a rehearsal as it is given to Snakemake
RECORD = "rehearsal.json"  # in that folder: size of its networks, and memory of its jobs
LOG = Path("results/logs/rehearsal.log")  # of Snakemake, in that folder
PAPER, TABLE = "rehearsal", "1"  # its sheet, and the table with a row for each family
DISK = 10e9  # bytes: networks, and two checkpoints of each training while it runs
SAMPLE_SECONDS = 2.0  # between two looks at the memory of what runs
MEASURED = ("train", "evaluate")  # the stages of a run that are counted


@dataclass
class Rehearsal:
    """One rehearsal: its settings, and what is known of the memory of its jobs.

    peaks: {stage and run: MB, the largest sum of proportional set sizes over all processes of the job}.
    """

    config: Path
    folder: Path
    overlay: dict[str, Any]
    small: bool
    peaks: dict[str, float] = field(default_factory=dict)

    @property
    def ws(self) -> Workspace:
        """Results, seen from the folder."""
        return Workspace("results")

    def plan(self, paper: str = "") -> Plan:
        """The plan of its tables among those of all papers, as Snakemake reads it: they may share runs. Keys of data
        sets hold what lies in the current folder."""
        return Plan.read(self.config, self.overlay, paper)


def rehearse(
    config: Path, folder: Path, methods: Sequence[str] = (), cores: str = "2", gpu: bool = False, profile: str = "",
    small: bool = False,
) -> bool:  # fmt: skip
    """Rehearse the families of `methods` (default: all) in `folder`; what is there already stays. True: all measured.

    gpu: trainings have what they have at paper scale, and not one thread each. profile: of Snakemake, in place of this
    machine's `cores`. small: a CLIP of narrow layers, and only the table.

    Raises:
        UserError: an unknown method, no room, a folder with a rehearsal of the other size, or interrupted.
    """
    began, config = time.time(), config.resolve()
    profile = str(Path(profile).resolve()) if profile and Path(profile).is_dir() else profile
    overlay = _overlay(config, methods, gpu, small)
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.chdir(folder):
        known = read_json(RECORD) or {}
        if known.get("small", small) != small:
            raise UserError(f"{folder} holds a rehearsal of another size of networks; name another --folder")
        made = Rehearsal(config, Path.cwd(), overlay, small, known.get("peaks", {}))
        prepare(made)
        plan = run(made, cores, profile)
        return report(made, plan, time.time() - began)


def _overlay(config: Path, methods: Sequence[str], gpu: bool, small: bool) -> dict[str, Any]:
    """The settings of a rehearsal: those of its file with the rows of some methods."""
    overlay = read_yaml(config / OVERLAY)
    tables = overlay["tables"][PAPER]["tables"]
    known = [row["experiment"]["method"] for row in tables[TABLE]["rows"]]
    if odd := [method for method in methods if method not in known]:
        raise unknown("family", odd[0], known, str(config / OVERLAY))
    kept = {}
    for number, table in tables.items():
        rows = [row for row in table["rows"] if not methods or row["experiment"]["method"] in methods]
        if rows and not (small and number != TABLE):
            kept[number] = table | {"rows": rows}
    sheet = overlay["tables"][PAPER] | {"tables": kept}
    places = {"cluster": {"dashboard": False}, "resources": {}} if gpu else {}
    return overlay | places | {"tables": {PAPER: sheet}}


# ------------------------------------------------------------------------------------------------ before it runs
def prepare(rehearsal: Rehearsal) -> None:
    """Make the data sets and networks that the rows need.

    Raises:
        UserError: the disk has too little room.
    """
    from pipeline.rehearsal.layout import SETS, make_data
    from pipeline.rehearsal.weights import HUB, NETWORKS, make_weights

    plan = rehearsal.plan(PAPER)
    places = [value for asset in plan.datasets.values() for value in asset.options.values() if isinstance(value, str)]
    data = {Path(place).parts[1] for place in places if place.startswith("data/")} & set(SETS)
    networks = {asset.options["path"] for asset in plan.backbones.values()}
    networks |= {HUB for run in plan.runs.values() if run.model.get("text") == "deberta"}
    missing = [("data", name) for name in sorted(data) if not Path("data", name).exists()]
    missing += [("network", name) for name in sorted(networks & set(NETWORKS)) if not Path(name).exists()]
    if missing and not rehearsal.small and (free := shutil.disk_usage(".").free) < DISK:
        raise UserError(
            f"{rehearsal.folder}: {free / 1e9:.0f} GB are free, and a rehearsal takes up to {DISK / 1e9:.0f}; free "
            "some, or name a --folder on another disk"
        )
    with bar("making data sets and networks", len(missing), "of them") as making:
        for kind, name in missing:
            if kind == "data":
                make_data(name, Path("data"))
            else:
                make_weights(name, Path(), rehearsal.small)
            making.advance(note=name)


# ------------------------------------------------------------------------------------------------------ it runs
def run(rehearsal: Rehearsal, cores: str, profile: str) -> Plan:
    """Have Snakemake make the tables, and say now and then how far it is; the plan as it was run.

    A language model is here while it runs. It listens on loopback, so with a `profile`, whose jobs may run elsewhere,
    texts are made on this machine first.
    """
    from pipeline.rehearsal.server import language_model

    with language_model() as address:
        rehearsal.overlay = merge(rehearsal.overlay, {"llm": {"base_url": address}})
        write_text(OVERLAY, yaml.safe_dump(rehearsal.overlay, sort_keys=False))
        plan, ws = rehearsal.plan(), rehearsal.ws
        here = ["--cores", cores]
        if profile:
            texts = [str(ws.texts(key)) for key, asset in plan.datasets.items() if asset.options.get("describe")]
            if texts:
                _snakemake(rehearsal, plan, here, texts)
        targets = [str(ws.table(PAPER, f"table{TABLE}"))] if rehearsal.small else [f"{PAPER}_tables"]
        _snakemake(rehearsal, plan, ["--profile", profile] if profile else here, targets)
    return plan


def _snakemake(rehearsal: Rehearsal, plan: Plan, where: list[str], targets: list[str]) -> None:
    """Call Snakemake in the current folder, and wait for it; what failed shows in what is not there."""
    words = ["-s", str(rehearsal.config.parent / "Snakefile"), *where, "--configfile", OVERLAY]
    # Nothing is downloaded, and the hub's cache is the one here.
    variables = {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(Path("hub").resolve())}

    def watch(process: subprocess.Popen) -> None:
        said = time.monotonic()
        while process.poll() is None:
            for name, megabytes in memory_of_jobs(process.pid):
                rehearsal.peaks[name] = max(rehearsal.peaks.get(name, 0.0), megabytes)
            if time.monotonic() - said >= LINE_SECONDS:
                said = time.monotonic()
                _say(rehearsal, plan)
            time.sleep(SAMPLE_SECONDS)

    call_workflow([*words, "--", *targets], LOG, watch, variables)
    _keep(rehearsal)


def _say(rehearsal: Rehearsal, plan: Plan) -> None:
    entries = plan.table_entries(PAPER, TABLE)
    done = sum(rehearsal.ws.cell(cell.id).is_file() for entry in entries for cell in entry.cells)
    running = [
        f"{found['stage']} {found['name']}" + ("" if found["fraction"] is None else f" {100 * found['fraction']:.0f} %")
        for found in read_status(plan, rehearsal.ws.root)["running"]
    ]
    print(
        f"{done} of {len(entries)} families measured; {', '.join(running) or 'starting'}", file=sys.stderr, flush=True
    )
    _keep(rehearsal)


def _keep(rehearsal: Rehearsal) -> None:
    write_json(Path(RECORD), {"small": rehearsal.small, "peaks": rehearsal.peaks})


def memory_of_jobs(pid: int) -> Iterator[tuple[str, float]]:
    """Stage and run of each job below a process, and MB of all processes of it (what two share is counted once)."""
    with contextlib.suppress(psutil.Error):
        for process in psutil.Process(pid).children(recursive=True):
            words = process.cmdline()
            place = words.index("pipeline") if "pipeline" in words else len(words)
            if words[place + 1 : place + 2] and words[place + 1] in MEASURED:
                job = [process, *process.children(recursive=True)]
                yield f"{words[place + 1]}-{words[place + 2]}", sum(map(_proportional, job))


def _proportional(process: psutil.Process) -> float:
    try:
        return process.memory_full_info().pss / 1e6
    except psutil.Error:
        return 0.0


# ------------------------------------------------------------------------------------------------- what it took
def report(rehearsal: Rehearsal, plan: Plan, seconds: float) -> bool:
    """Print a line for each family, and where the table is; whether all is there."""
    ws, failed = rehearsal.ws, {entry["name"]: entry for entry in read_status(plan, "results")["failed"]}
    entries, done = plan.table_entries(PAPER, TABLE), 0
    print(f"\n{'family':16} {'run':42} {'seconds':>7} {'memory':>7}  cell")
    for entry in entries:
        (cell,) = entry.cells
        spent, peak = cost_of(cell.run, rehearsal)
        record = read_json(ws.cell(cell.id))
        done += record is not None
        said = (
            f"{record['value']:.1f} ± {record['ci95']:.1f}" if record else f"not measured: {_reason(cell.run, failed)}"
        )
        print(f"{entry.row:16} {cell.run.id:42} {spent:7.0f} {peak:4.1f} GB  {said}")
    table = ws.table(PAPER, f"table{TABLE}")
    whole = done == len(entries) and table.is_file()
    place = f"table: {table.with_suffix('.md')}" if whole else f"what Snakemake said: {LOG}"
    print(f"{done} of {len(entries)} families in {span(seconds)}; in {rehearsal.folder}, {place}", flush=True)
    return whole


def cost_of(run: Run, rehearsal: Rehearsal) -> tuple[float, float]:
    """Seconds of a run's training and measurements, and GB of memory that the largest of these jobs had at most.

    Memory is looked at every `SAMPLE_SECONDS`, or by Snakemake, half a minute apart, where the job ran elsewhere.
    """
    seconds, peak = 0.0, 0.0
    for stage in MEASURED:
        peak = max(peak, rehearsal.peaks.get(f"{stage}-{run.id}", 0.0))
        for path in STAGES[stage].benchmark(rehearsal.ws).parent.glob(f"{run.id}*.tsv"):
            line = _benchmark(path)
            seconds, peak = seconds + line.get("s", 0.0), max(peak, line.get("max_pss", 0.0))
    return seconds, peak / 1000


def _benchmark(path: Path) -> dict[str, float]:
    """The numbers of a file of Snakemake's."""
    with path.open(newline="", encoding="utf-8") as file:
        (line,) = csv.DictReader(file, delimiter="\t")
    return {key: float(value) for key, value in line.items() if value.replace(".", "").isdecimal()}


def _reason(run: Run, failed: Mapping[str, Mapping[str, Any]]) -> str:
    """Why a run is not measured: what is said of it, of the run whose features it reads, or of its data set."""
    for name in (run.id, run.model.get("encoder_run", ""), run.dataset):
        for other, entry in failed.items():
            if name and other.startswith(name):
                return f"{entry['stage']}: {' '.join(entry['reason'][-1].split())[:160]}"
    return "it was not reached"


__all__ = ["Rehearsal", "cost_of", "memory_of_jobs", "prepare", "rehearse", "report", "run"]
