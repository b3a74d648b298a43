"""The records of a table: each place with its published and its measured value, read from the cell files."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, FiniteFloat

from pipeline.config import parse
from pipeline.errors import UserError, unknown
from pipeline.evaluation.health import Outcome, read_training, verdict
from pipeline.experiment import Cell, Run, slug
from pipeline.metrics import METRICS
from pipeline.plan import Entry, Plan
from pipeline.sheets import table_stem
from pipeline.workspace import Workspace

if TYPE_CHECKING:
    from pandas import DataFrame

DIGITS = 4  # decimals kept in CSV files


class TeacherVideos(BaseModel):
    """What the teacher says of V test videos, in the order in which they were drawn."""

    confidence: list[FiniteFloat]
    deviation: list[FiniteFloat]
    right: list[bool]


class CellFile(BaseModel):
    """What a table reads of a cell file; `value` and `ci95` are in the unit of `metric`."""

    model_config = ConfigDict(extra="ignore")
    cell: str
    run: str
    metric: str
    value: FiniteFloat
    ci95: FiniteFloat | None = None
    n: int
    """Episodes, or timed tasks."""
    alpha: float | None = None
    """Exponent of the video-video score that was used; None where a single score is measured."""
    coverage: float | None = None
    """Share of the test clips that the data set's lists name which were there; None where it is not known."""
    coverage_train: float | None = None
    """The same of the training clips."""
    alpha_curve: dict[str, list[tuple[FiniteFloat, FiniteFloat]]] | None = None
    """Where alpha was chosen: (alpha, accuracy in per cent) on `val` and `test`."""
    teacher: TeacherVideos | None = None
    """What single predictions of the teacher say."""
    confusion: list[list[int]] | None = None
    """Videos of each true class (rows) that are taken for each class."""
    classes: list[str] | None = None
    """Their names."""
    predictions: Outcome | None = None
    """What was predicted, of the metrics that are read off scores; older files have none."""


@dataclass(frozen=True)
class Record:
    """One place of a table; the fields are the columns of the long CSV files, in their order."""

    paper: str
    table: str
    row: str
    column: str
    metric: str
    value: float | None
    """Mean over the seeds."""
    ci95: float | None
    """Half width of its 95 % interval."""
    n: int | None
    """Episodes, of all seeds together."""
    published: float | None
    delta: float | None
    """value - published."""
    scale: str
    selection: str
    seeds: str
    run_id: str
    cell_id: str
    """Several seeds: joined by ";"."""
    status: str
    """measured, published-only or missing."""
    health: str
    """What says that nothing was learnt (`pipeline.evaluation.health.verdict`); empty where all is fine."""
    note: str


COLUMNS = tuple(field.name for field in fields(Record))


def papers_with(plan: Plan, number: str, paper: str | None = None) -> list[str]:
    """The papers that have this table; only `paper`, where it is given.

    Raises:
        UserError: there is no such paper or table; the nearest one is named.
    """
    if paper and paper not in plan.papers:
        raise unknown("paper", paper, plan.papers)
    tables = plan.tables(paper or None)
    found = [name for name, table in tables if table == number]
    if not found:
        where = f"paper {paper}" if paper else ""
        raise unknown("table", table_stem(number), {table_stem(table) for _, table in tables}, where)
    return found


def heading(plan: Plan, paper: str, number: str) -> str:
    """For instance "lga, Table 4: Matching ..."; the title of a figure says itself which one it is."""
    title = plan.papers[paper].tables[number].title
    return f"{paper}, {title}" if number.startswith("fig") else f"{paper}, Table {number}: {title}"


def read_cell(cell: Cell, results_dir: Path | str = "results") -> CellFile:
    """The measured number of `cell`.

    Raises:
        UserError: the file is missing, is no JSON, lacks a key, or is of another cell; the message has the
            command that makes it.
    """
    path = Workspace(results_dir).cell(cell.id)
    make = f"`snakemake --config scale={cell.run.scale} -- {path}`"
    if not path.is_file():
        raise UserError(f"{path}: not measured yet; make it with {make}")
    again = f"delete it and make it again with {make}"
    try:
        found = parse(CellFile, json.loads(path.read_text("utf-8")), str(path))
    except (UserError, ValueError) as error:
        reason = str(error).removeprefix(f"{path}: ")
        raise UserError(f"{path}: damaged cell file ({reason}); {again}") from None
    for key, wanted in (("cell", cell.id), ("run", cell.run.id), ("metric", cell.measure.metric)):
        if getattr(found, key) != wanted:
            raise UserError(f"{path}: {key} is {getattr(found, key)!r} but should be {wanted!r}; {again}")
    if lacking := [key for key in METRICS[found.metric].beside if getattr(found, key) is None]:
        raise UserError(f"{path}: damaged cell file (key {lacking[0]} is missing); {again}")
    return found


def records(
    plan: Plan, paper: str, number: str, results_dir: Path | str = "results", allow_missing: bool = False
) -> list[Record]:
    """Every place of one table, row by row, as the sheet has them.

    Args:
        allow_missing: a place whose cells are not all measured gets the status "missing", not an error.

    Raises:
        UserError: no such paper or table, or a cell file is missing or damaged.
    """
    papers_with(plan, number, paper)
    ws = Workspace(results_dir)
    digests: dict[tuple[str, str], tuple[str, ...]] = {}  # of the predictions of each cell of a place
    out = []
    for entry in plan.table_entries(paper, number):
        found = None
        if entry.cells and (not allow_missing or all(ws.cell(cell.id).is_file() for cell in entry.cells)):
            found = [read_cell(cell, results_dir) for cell in entry.cells]
            if all(cell.predictions for cell in found):
                digests[entry.row, entry.column] = tuple(cell.predictions.digest for cell in found)
        out.append(_record(plan, entry, ws, found))
    return _with_twins(out, digests, ws)


def frame(found: Iterable[Record]) -> DataFrame:
    """Records as a table with their fields as columns; None where there is no number, and no number is converted."""
    from pandas import DataFrame  # here: only what makes tables needs it

    return DataFrame([astuple(record) for record in found], columns=COLUMNS, dtype=object)


def _with_twins(found: list[Record], digests: dict[tuple[str, str], tuple[str, ...]], ws: Workspace) -> list[Record]:
    """Notes which rows of a column have different cells and yet the same predictions for every query, and why."""
    if not digests:
        return found
    table = frame(found).assign(said=[digests.get((record.row, record.column)) for record in found])
    notes = dict.fromkeys(table.index, "")
    for _, group in table.dropna(subset="said").groupby(["column", "metric", "said"], sort=False):
        if group["cell_id"].nunique() > 1:
            why = _why_equal(group["run_id"].unique(), ws)
            text = f"same predictions for all queries ({why}): {' | '.join(group['row'])}"
            notes |= dict.fromkeys(group.index, text)
    return [replace(r, note="; ".join(filter(None, [r.note, notes[i]]))) for i, r in enumerate(found)]


def _why_equal(runs: Sequence[str], ws: Workspace) -> str:
    """Why rows with these trainings predict the same: it is one, or they are equal or nearly so."""
    if len(runs) == 1:
        return "one training, measured in ways that agree"
    records = [read_training(ws.run(run) / "train.json").last_loss for ids in runs for run in ids.split(";")]
    losses = [record.value for record in records if record]
    if losses and len(set(losses)) == 1:
        return "their trainings are equal: what differs between the rows had no effect"
    ends = f" (last losses {', '.join(f'{loss:.3g}' for loss in losses)})" if losses else ""
    return f"their trainings differ too little to change an answer{ends}"


def _record(plan: Plan, entry: Entry, ws: Workspace, found: list[CellFile] | None) -> Record:
    """One place; `found`: its cells, None where they are not all measured."""
    place = {key: getattr(entry, key) for key in ("paper", "table", "row", "column", "metric", "published")}
    empty: dict[str, Any] = dict.fromkeys(("value", "ci95", "n", "delta")) | {"health": "", "note": entry.note}
    if not entry.cells:
        blank = dict.fromkeys(("scale", "selection", "seeds", "run_id", "cell_id"), "")
        return Record(**place, **empty, **blank, status="published-only")
    runs = [cell.run for cell in entry.cells]
    made = {
        "scale": runs[0].scale,
        "selection": "test (paper)" if runs[0].selection == "test" else runs[0].selection,
        "seeds": ";".join(str(run.seed) for run in runs),
        "run_id": ";".join(run.id for run in runs),
        "cell_id": ";".join(cell.id for cell in entry.cells),
    }
    if found is None:
        return Record(**place, **empty, **made, status="missing")
    value, half = _pool(found)
    delta = None if entry.published is None else value - entry.published
    numbers = {"value": _round(value), "ci95": _round(half), "delta": _round(delta)}
    remarks = [*_remarks(entry, found), *_untrained(runs, ws), *_lowered(entry, ws)]
    note = "; ".join(filter(None, [entry.note, *_origin(plan, entry), *remarks]))
    health = "; ".join(_health(entry, ws, found))
    n = sum(cell.n for cell in found)
    return Record(**place, **made, **numbers, n=n, status="measured", health=health, note=note)


def _health(entry: Entry, ws: Workspace, found: list[CellFile]) -> list[str]:
    """The verdicts on the runs of a place; of several seeds each is named."""
    if not METRICS[entry.metric].of_learning:
        return []
    notes = []
    for cell, measured in zip(entry.cells, found, strict=True):
        training = read_training(ws.run(cell.run.id) / "train.json")
        outcomes = [measured.predictions] if measured.predictions else []
        of_seed = f" (seed {cell.run.seed})" if len(found) > 1 else ""
        notes += [f"{text}{of_seed}" for text in verdict(training, outcomes, bool(cell.run.train))]
    return notes


def _lowered(entry: Entry, ws: Workspace) -> list[str]:
    """In what the trainings computed, where it was not float32."""
    used = {read_training(ws.run(cell.run.id) / "train.json").precision for cell in entry.cells if cell.run.train}
    return [f"trained in {name}" for name in sorted(used - {"float32"})]


def _pool(found: list[CellFile]) -> tuple[float, float | None]:
    if len(found) == 1:
        return found[0].value, found[0].ci95
    from pipeline.intervals import pool  # here: NumPy only where there are several seeds

    return pool([cell.value for cell in found], [cell.ci95 or 0.0 for cell in found])


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, DIGITS) + 0.0  # + 0.0 turns -0.0 into 0.0


def _origin(plan: Plan, entry: Entry) -> list[str]:
    """What stands in for the data set and the backbone that the sheet asks for."""
    sheet = plan.papers[entry.paper].tables[entry.table]
    row = next(row.experiment for row in sheet.rows if row.name == entry.row)
    column = next(column.experiment for column in sheet.columns if column.name == entry.column)
    notes = []
    dataset = row.dataset or column.dataset
    if slug(dataset) != entry.dataset:
        notes.append(f"measured on {entry.dataset} in place of {dataset}")
    method = plan.config.entry("methods", row.method or column.method, f"paper {entry.paper}")
    asked = [row.backbone or column.backbone or method.get("backbone")]  # skeletons have none
    if encoder := method.get("encoder", {}) | column.encoder | row.encoder:
        reads = plan.config.entry("methods", encoder["method"], f"paper {entry.paper}")
        asked.append(encoder.get("backbone") or reads.get("backbone"))
    for name in asked:
        if used := plan.config.settings.substitute_backbone.get(name):
            notes.append(f"backbone {used} in place of {name}")
    return notes


def _untrained(runs: Sequence[Run], ws: Workspace) -> list[str]:
    """That the measured model is the untrained one, where it counts as a choice (`train.untrained_counts`)."""
    steps = {run.seed: read_training(ws.trained(run.id)).selected_step for run in runs if run.train}
    seeds = [str(seed) for seed, step in steps.items() if step == 0]
    of_seeds = f" (seed {', '.join(seeds)})" if len(runs) > 1 else ""
    return [f"validation chose the untrained model{of_seeds}"] if seeds else []


def _remarks(entry: Entry, found: list[CellFile]) -> list[str]:
    """The alpha that was used, and an incomplete coverage."""
    notes = []
    measure = entry.cells[0].measure
    alphas = list(dict.fromkeys(cell.alpha for cell in found if cell.alpha is not None))
    if alphas and measure.score == "both" and METRICS[measure.metric].scored:
        chosen = " (chosen on validation)" if measure.alpha == "val" else ""
        notes.append(f"alpha {'/'.join(f'{alpha:g}' for alpha in alphas)}{chosen}")
    if not METRICS[measure.metric].of_clips:
        return notes
    for split, key in (("test", "coverage"), ("training", "coverage_train")):
        coverage = min((share for cell in found if (share := getattr(cell, key)) is not None), default=1.0)
        if coverage < 1:  # rounded down: 99.97 is not all
            notes.append(f"{math.floor(1000 * coverage + 1e-9) / 10:.1f} % of the {split} clips")
    return notes
