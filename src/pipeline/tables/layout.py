"""A table as it is shown: rows, columns, the printed and the measured value of each place, footnotes."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pipeline.metrics import METRICS

if TYPE_CHECKING:
    from pipeline.sheets import Table
    from pipeline.tables.records import Record


MISSING = "–"
LEGEND = (
    "Entries: ours ± 95 % interval (published, difference); only in brackets: not measured here. "
    "Bold: the best measured value of its column; underlined: the second best."
)


@dataclass
class Place:
    """What is written in one place of a table; numbers are text with as many decimals as are shown."""

    status: str = ""
    """measured, published-only, missing, or empty where the paper has no such place."""
    value: str = ""
    half: str = ""
    """Half width of the 95 % interval."""
    published: str = ""
    delta: str = ""
    """value - published, with its sign."""
    rank: int = 0
    """1: best measured value of the column, 2: second best, 0: neither."""
    notes: list[int] = field(default_factory=list)
    order: float | None = None
    """What the place is sorted by: the measured value, or else the printed one."""
    cells: str = ""
    """Ids of the cells behind the value, joined by ";"."""

    @property
    def ours(self) -> str:
        """Measured value and interval, or the mark of a missing one."""
        if self.status == "missing":
            return MISSING
        return f"{self.value} ± {self.half}" if self.half else self.value

    @property
    def printed(self) -> str:
        """The paper's value and the difference to it, in brackets."""
        if not self.published:
            return ""
        if self.status == "published-only":
            return f"({self.published})"
        return f"(published {', '.join(filter(None, [self.published, self.delta]))})"


@dataclass
class Layout:
    """A table in the paper's layout: one list of places per row, and footnotes with their numbers from 1."""

    columns: list[str]
    rows: list[tuple[str, list[Place]]]
    column_notes: dict[str, list[int]]
    row_notes: dict[str, list[int]]
    footnotes: list[str]
    measured: str
    """How it was measured: scale, selection, seeds."""
    note: str = ""
    """Of the sheet, on the whole table."""

    @property
    def groups(self) -> list[tuple[str, list[str]]]:
        """The two lines of the head: "Set/1-shot", "Set/5-shot" -> ("Set", ["1-shot", "5-shot"]).

        A column without a "/" is a group of its own, without a second line: (name, [""]).
        """
        out: list[tuple[str, list[str]]] = []
        for name in self.columns:
            group, _, leaf = name.partition("/")
            if leaf and out and out[-1][0] == group and out[-1][1] != [""]:
                out[-1][1].append(leaf)
            else:
                out.append((group, [leaf]))
        return out


def layout(table: Table, records: list[Record]) -> Layout:
    """Arranges the long `records` of a `table` as the paper does.

    The best measured value of a column is marked where at least two rows are measured, the second best where there
    are three; what looks equal is equally good. A note that holds for a whole row or column stands at its name, so
    that it is not repeated.
    """
    at = {(record.row, record.column): record for record in records}
    best, notes = _best(records), _Footnotes(records)
    columns = [column.name for column in table.columns]
    rows = []
    for row in table.rows:
        places = []
        for column in columns:
            record = at.get((row.name, column))
            place = _place(record) if record else Place()
            if record and record.status == "measured":
                place.rank = best.get(column, {}).get(_shown(record), 0)
            place.notes = notes.of(row.name, column)
            places.append(place)
        rows.append((row.name, places))
    return Layout(columns, rows, notes.columns, notes.rows, notes.texts, _measured(records), table.note)


def number(value: float, metric: str, sign: str = "") -> str:
    """`value` with the decimals of its metric; `sign` is "+" for a difference."""
    return f"{value:{sign}.{METRICS[metric].decimals}f}".replace("-", "−")


def _place(record: Record) -> Place:
    def text(value: float | None, sign: str = "") -> str:
        return "" if value is None else number(value, record.metric, sign)

    return Place(
        record.status,
        text(record.value),
        text(record.ci95),
        text(record.published),
        text(record.delta, "+"),
        order=record.published if record.value is None else record.value,
        cells=record.cell_id,
    )


def _shown(record: Record) -> float:
    """The measured value with as many decimals as are shown."""
    return round(record.value, METRICS[record.metric].decimals)


def _best(records: list[Record]) -> dict[str, dict[float, int]]:
    """Column -> its best shown value (1) and its second best (2)."""
    values = defaultdict(list)
    for record in records:
        if record.status == "measured":
            values[record.column, record.metric].append(_shown(record))
    ranks = {}
    for (column, metric), found in values.items():
        order = sorted(set(found), reverse=not METRICS[metric].lower_is_better)
        ranks[column] = dict(zip(order[: max(0, min(len(found) - 1, 2))], (1, 2), strict=False))
    return ranks


def _measured(records: list[Record]) -> str:
    """How the table was measured, with a warning where the numbers cannot be the paper's."""
    made = [record for record in records if record.status != "published-only"]
    if not made:
        return "Printed values only."
    seeds = sorted({int(seed) for record in made for seed in record.seeds.split(";") if seed})  # frozen rows have one
    selections = " or ".join(dict.fromkeys(record.selection for record in made))
    text = f"Scale {made[0].scale}, checkpoint selection {selections}, "
    text += f"training seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}."
    if missing := sum(record.status == "missing" for record in made):
        text += f" {missing} of {len(made)} places are not measured yet ({MISSING})."
    if made[0].scale != "paper":
        text += " Smaller than the paper's experiments: not comparable with the published numbers."
    return text


class _Footnotes:
    """Numbers the notes of `records`: those of whole columns, of whole rows, then of single places."""

    def __init__(self, records: list[Record]) -> None:
        self.texts: list[str] = []
        parts = {(r.row, r.column): [*_split(r.health), *_split(r.note)] for r in records}
        self.columns = self._whole(parts, [r for r in records if r.status == "measured"], "column")
        self.rows = self._whole(parts, records, "row")
        self._places = {place: self._marks(texts) for place, texts in parts.items()}

    def of(self, row: str, column: str) -> list[int]:
        """Footnotes of one place."""
        return self._places.get((row, column), [])

    def _whole(self, parts: dict[tuple[str, str], list[str]], records: list[Record], kind: str) -> dict[str, list[int]]:
        """Takes the notes out of `parts` that all places (two at least) of a row or column share."""
        groups, marks = defaultdict(list), {}
        for record in records:
            groups[getattr(record, kind)].append((record.row, record.column))
        for name, places in groups.items():
            if len(places) < 2:
                continue
            shared = [text for text in parts[places[0]] if all(text in parts[place] for place in places)]
            marks[name] = self._marks(shared)
            for place in places:
                parts[place] = [text for text in parts[place] if text not in shared]
        return marks

    def _marks(self, texts: list[str]) -> list[int]:
        self.texts += [text for text in dict.fromkeys(texts) if text not in self.texts]
        return sorted(self.texts.index(text) + 1 for text in texts)


def _split(notes: str) -> list[str]:
    return notes.split("; ") if notes else []
