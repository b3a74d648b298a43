"""A table in the terminal, readable at any width."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline.plan import Plan
from pipeline.sheets import table_number
from pipeline.tables.layout import LEGEND, Layout, Place, layout
from pipeline.tables.records import heading, papers_with, records

NAME_WIDTH = 24  # characters to which the names of rows are wrapped before a table is split


def print_table(
    plan: Plan,
    paper: str | None,
    number: str,
    results_dir: Path | str = "results",
    console: Console | None = None,
) -> None:
    """Prints a table, as far as it is measured: our value above the published one, the best in bold.

    Args:
        paper: whose table; None: that of every paper that has one of this number.
        number: "4", "table4" or "fig3".
        console: by default one on standard output.

    Raises:
        UserError: no such paper or table, or a cell file is damaged.
    """
    console, key = console or Console(), table_number(number)
    for name in papers_with(plan, key, paper):
        table = plan.papers[name].tables[key]
        page = layout(table, records(plan, name, key, results_dir, allow_missing=True))
        console.print(Text(heading(plan, name, key), style="italic"))
        for block in blocks(page, console.width):
            console.print(block)
        for line in filter(None, [page.measured, table.note, LEGEND]):
            console.print(Text(line))
        for i, text in enumerate(page.footnotes, 1):
            console.print(Text(f"[{i}] {text}", style="dim"))


def blocks(page: Layout, width: int) -> Iterator[Table]:
    """The table for a console of `width` characters: whole or, where it is too wide, columns after columns, each
    block with the names of the rows.

    Names wrap at words and the marks of notes between each other, numbers do not. Only a console that cannot hold one
    column has its words folded; nothing is cut.
    """
    names = [_named(name.replace(",", ", "), page.row_notes.get(name, [])) for name, _ in page.rows]
    heads = [_named(name.replace("/", "/\n"), page.column_notes.get(name, [])) for name in page.columns]
    places = [[_written(row[i]) for _, row in page.rows] for i in range(len(heads))]
    columns = list(zip(heads, places, strict=True))

    widest = _longest(line for name in names for line in _lines(name))
    least = max(_longest(word for name in names for word in name.plain.split()), min(widest, NAME_WIDTH))
    widths = [_longest(line for text in [head, *below] for line in _lines(text)) for head, below in columns]
    if _total(least, widths) > width:  # heads wrap at words, and marks go onto lines of their own
        widths = [_longest([*head.plain.split(), *(x for y in below for x in _parts(y))]) for head, below in columns]

    found: list[list[int]] = []
    for i, wide in enumerate(widths):
        if found and _total(least, [*(widths[j] for j in found[-1]), wide]) <= width:
            found[-1].append(i)
        else:
            found.append([i])
    spare = min((width - _total(least, [widths[i] for i in block]) for block in found), default=0)
    for block in found:
        yield _table(names, min(widest, least + max(spare, 0)), [(*columns[i], widths[i]) for i in block])


def _named(name: str, notes: list[int]) -> Text:
    return Text(name) + _marks(notes)


def _written(place: Place) -> Text:
    """Ours above the paper's, and the marks of the notes."""
    below = "\n" if place.ours and place.printed else ""
    printed = Text(below + place.printed.replace("published ", ""), style="dim")
    return Text(place.ours, style=("", "bold", "underline")[place.rank]) + printed + _marks(place.notes)


def _marks(notes: list[int]) -> Text:
    return Text("".join(f" [{note}]" for note in notes), style="dim")


def _lines(text: Text) -> list[str]:
    return text.plain.split("\n")


def _parts(text: Text) -> list[str]:
    """What must not be broken of a place: its numbers, and each mark."""
    return re.split(r"\n| (?=\[)", text.plain)


def _longest(texts: Iterable[str]) -> int:
    return max(map(cell_len, texts), default=0)


def _total(names: int, widths: list[int]) -> int:
    """Characters of a table with its lines and the blanks beside them."""
    return names + sum(widths) + 3 * (len(widths) + 1) + 1


def _table(names: list[Text], width: int, columns: list[tuple[Text, list[Text], int]]) -> Table:
    """Row names in `width` characters, and columns: head, places, width."""
    out = Table(show_lines=True)
    out.add_column("", width=width, overflow="fold")
    for head, _, wide in columns:
        out.add_column(head, width=wide, justify="right", overflow="fold")
    for i, name in enumerate(names):
        out.add_row(name, *(places[i] for _, places, _ in columns))
    return out
