"""What the switches do: a page of what single settings change, from sheets with one row for each switch.

In each table of such a sheet the first row is the default and every other row changes one thing. Numbers are read from
the measured cells. A CSV file beside the page keeps them under the ids of their cells. So the page can be written anew
where the cells are not, and a number is dropped as soon as any setting behind it changes.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import groupby
from pathlib import Path

import numpy as np

from pipeline.config import read_yaml
from pipeline.errors import UserError
from pipeline.evaluation.needed import scores_path
from pipeline.experiment import Cell
from pipeline.files import write_csv, write_text
from pipeline.intervals import ci95, pool
from pipeline.plan import Entry, Plan
from pipeline.scores import EpisodeScores, accuracy, fused
from pipeline.sheets import Paper, table_stem
from pipeline.tables.layout import number
from pipeline.tables.records import Record, read_cell, records
from pipeline.workspace import Workspace

SCALES = ("demo", "quick", "paper")
UNMEASURED = "not measured"
EPISODES = {"way", "shot", "query", "episodes", "episode_seed"}
"""Of a measurement: what says which episodes are tested."""
HEAD = """# What the switches do

`python -m pipeline effects` writes this page from the measured cells of the sheets `docs/examples/switches_*.yaml`.
[Reproduction notes](reproduction-notes.md) say what each switch is about.

Each place has the accuracy in per cent with its 95 % interval and, in brackets, the difference to the default with its
own. Both trainings answer the same questions, so the interval of the difference covers the choice of the questions. It
does not cover the training: another seed also moves the numbers, by how much we have not measured here.
"""


@dataclass(frozen=True)
class Effect:
    """A measured place; the fields are the columns of the CSV file, numbers in per cent."""

    cells: str
    """Ids of its cells, one for each training seed, joined by ";"."""
    default: str
    """Those of the default in the same column."""
    value: float
    ci95: float
    difference: float
    """value - that of the default; 0 for the default itself."""
    difference_ci95: float
    health: str
    """What says that nothing was learnt; empty where all is fine."""


@dataclass(frozen=True)
class Place:
    """A place of a sheet at one scale."""

    paper: str
    table: str
    row: str
    column: str
    metric: str
    scale: str
    note: str
    effect: Effect | None
    """None where it, or its default, is not measured."""


def write_effects(
    sheets: Sequence[Path], page: Path, config: Path | str = "config", results_dir: Path | str = "results"
) -> list[Place]:
    """Writes `page` (Markdown) and the CSV file beside it, and returns every place at every scale.

    Raises:
        UserError: there is no sheet, or a sheet, a cell file or the CSV file is damaged.
    """
    if not sheets:
        raise UserError("there is no sheet of switches here; name one, such as docs/examples/switches_lga.yaml")
    table, texts, places = page.with_suffix(".csv"), [HEAD], []
    kept = {(effect.cells, effect.default): effect for effect in _read(table)}
    for sheet in sheets:
        overlay = read_yaml(sheet)
        if not isinstance(overlay.get("tables"), dict):
            raise UserError(f"{sheet}: key tables is missing; docs/examples/switches_lga.yaml is an example")
        for paper in overlay["tables"]:
            plans = [Plan.read(config, overlay | {"scale": scale}, paper) for scale in SCALES]
            found = [place for plan in plans for place in _places(plan, paper, Path(results_dir), kept)]
            texts += [_section(plans[0].papers[paper], found), _left(sheet, found)]
            places += found
    effects = dict.fromkeys(place.effect for place in places if place.effect)
    columns = [field.name for field in fields(Effect)]
    write_csv(table, columns, [[getattr(effect, key) for key in columns] for effect in effects])
    write_text(page, "\n".join(texts))
    return places


def _read(table: Path) -> list[Effect]:
    """What the CSV file keeps of earlier measurements."""
    if not table.is_file():
        return []
    words = ("cells", "default", "health")
    with table.open(encoding="utf-8", newline="") as file:
        try:
            return [
                Effect(**{k: v if k in words else float(v) for k, v in line.items()}) for line in csv.DictReader(file)
            ]
        except (TypeError, ValueError):
            raise UserError(
                f"{table}: line without its columns; delete the file, it is made again from the cells"
            ) from None


def _places(plan: Plan, paper: str, results: Path, kept: Mapping[tuple[str, str], Effect]) -> Iterator[Place]:
    """The places of a sheet at the scale of `plan`."""
    scale = plan.config.settings.scale
    for key in plan.papers[paper].tables:
        defaults: dict[str, tuple[Entry, Record]] = {}
        found = records(plan, paper, key, results, allow_missing=True)
        for entry, record in zip(plan.table_entries(paper, key), found, strict=True):
            default, beside = defaults.setdefault(entry.column, (entry, record))
            if record.status == beside.status == "measured":
                effect = _effect(entry, record, default, beside, results)
            else:
                effect = kept.get((record.cell_id, beside.cell_id))
            yield Place(paper, key, entry.row, entry.column, entry.metric, scale, entry.note, effect)


def _effect(entry: Entry, record: Record, default: Entry, beside: Record, results: Path) -> Effect:
    """What a measured place says beside its measured default."""
    pairs = [_difference(a, b, results) for a, b in zip(entry.cells, default.cells, strict=True)]
    difference, half = pool(*zip(*pairs, strict=True))
    value, own = record.value, record.ci95 or 0.0
    return Effect(record.cell_id, beside.cell_id, value, own, round(difference, 4), round(half, 4), record.health)


def _difference(cell: Cell, default: Cell, results: Path) -> tuple[float, float]:
    """Value of `cell` less that of `default`, and the half width of its 95 % interval.

    With the scores of both at hand it is that of the differences on the same episodes, otherwise that of two
    independent measurements, which is wider.
    """
    if cell.id == default.id:
        return 0.0, 0.0
    mine, other = read_cell(cell, results), read_cell(default, results)
    half = math.hypot(mine.ci95 or 0.0, other.ci95 or 0.0)
    if cell.measure.model_dump(include=EPISODES) == default.measure.model_dump(include=EPISODES):
        right, base = (_right(*one, results) for one in ((cell, mine.alpha), (default, other.alpha)))
        half = half if right is None or base is None else ci95(right - base)
    return mine.value - other.value, half


def _right(cell: Cell, alpha: float | None, results: Path) -> np.ndarray | None:
    """Accuracies (E,) of the episodes behind a cell with the chosen `alpha`; None where the scores are not there."""
    measure = cell.measure.settled()
    path = scores_path(Workspace(results), cell.run, measure, "test")
    if measure.metric != "accuracy_pct" or not path.is_file():
        return None
    scores = EpisodeScores.load(path)
    return accuracy(fused(scores, measure.score, measure.alpha if alpha is None else alpha), scores.labels)


def _section(sheet: Paper, places: Iterable[Place]) -> str:
    """The tables of a sheet: one line for each row and each scale at which something of it is measured."""
    lines = [f"## {sheet.title}", ""]
    of_row: dict[tuple[str, str], list[Place]] = {}
    for place in places:
        of_row.setdefault((place.table, place.row), []).append(place)
    for key, table in sheet.tables.items():
        columns = [column.name for column in table.columns]
        lines += [f"### {table.title}", "", _line(["switch", "scale", *columns, "note"])]
        lines.append(_line(["---", "---", *["---:"] * len(columns), "---"]))
        for row in table.rows:
            name = row.name if row is table.rows[0] else f"`{row.name}`"
            lines += [_line([name, *texts]) for texts in _row(of_row[key, row.name])]
        lines.append("")
    return "\n".join(lines)


def _row(places: list[Place]) -> list[list[str]]:
    """Scale, numbers and note of a row, for each scale at which it is measured; without the scale if there is none."""
    scales = [list(group) for _, group in groupby(places, lambda place: place.scale)]
    measured = [group for group in scales if any(place.effect for place in group)]
    lines = []
    for group in measured or scales[:1]:
        health = [f"{place.column}: {place.effect.health}" for place in group if place.effect and place.effect.health]
        note = "; ".join(filter(None, [group[0].note, *health]))
        lines.append([group[0].scale if measured else "", *map(_text, group), note])
    return lines


def _text(place: Place) -> str:
    effect = place.effect
    if effect is None:
        return UNMEASURED

    def text(value: float, half: float, sign: str = "") -> str:
        return f"{number(value, place.metric, sign)} ± {number(half, place.metric)}"

    value = text(effect.value, effect.ci95)
    if effect.cells == effect.default:
        return value
    return f"{value} ({text(effect.difference, effect.difference_ci95, '+')})"


def _left(sheet: Path, places: Iterable[Place]) -> str:
    """How many places of a sheet are not measured, and the command that measures them."""
    lines = []
    for scale, group in groupby(places, lambda place: place.scale):
        of_scale = list(group)
        left = [place for place in of_scale if place.effect is None]
        text = f"- {scale}: {len(left)} of {len(of_scale)} places are not measured"
        if left:
            targets = dict.fromkeys(f"results/{place.paper}/{table_stem(place.table)}.csv" for place in left)
            text += f": `snakemake --config scale={scale} --configfile {sheet.as_posix()} -- {' '.join(targets)}`"
        lines.append(text)
    return "\n".join([*lines, ""])


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
