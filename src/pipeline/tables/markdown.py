"""A table as people read it: one `Layout`, rows by columns as in the paper, and thin writers of it.

Here are the layout itself and Markdown for the result files; `latex`, `html` and `console` are the other writers. Only
the marks differ.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.tables.layout import LEGEND, Place, layout

if TYPE_CHECKING:
    from pipeline.sheets import Table
    from pipeline.tables.records import Record


def markdown(heading: str, table: Table, records: list[Record], prefix: str = "") -> str:
    """The table as a section of a page: heading, how it was measured, rows by columns, footnotes.

    Args:
        prefix: goes into the names of the footnotes, so that several tables fit on one page.
    """
    page = layout(table, records)

    def marks(notes: list[int]) -> str:
        return "".join(f" [^{prefix}{note}]" for note in notes)

    def cell(place: Place) -> str:
        ours = {0: "{}", 1: "**{}**", 2: "<ins>{}</ins>"}[place.rank].format(place.ours)
        return " ".join(filter(None, [ours, place.printed])) + marks(place.notes)

    head = [_escape(name) + marks(page.column_notes.get(name, [])) for name in page.columns]
    lines = [["", *head], ["---", *["---:"] * len(head)]]
    for name, places in page.rows:
        lines.append([_escape(name) + marks(page.row_notes.get(name, [])), *map(cell, places)])
    body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    notes = "\n".join(f"[^{prefix}{i}]: {_escape(text)}" for i, text in enumerate(page.footnotes, 1))
    parts = [f"## {_escape(heading)}", page.measured, _escape(table.note), body, LEGEND, notes]
    return "\n\n".join(part for part in parts if part) + "\n"


def _escape(text: str) -> str:
    """`text` where no character ends a table cell or starts a link, a tag or emphasis."""
    for mark in "\\|[]*_<":
        text = text.replace(mark, f"\\{mark}")
    return text
