"""From measured cells to result files: `RESULTS/PAPER/TABLE.csv` (long) and, in the paper's layout, `FORMATS`.

A cell file `RESULTS/cells/CELL.json` holds one measured number (`CellFile`). Nothing here measures one: a
table is a view of cells, of the printed values and of the notes in the sheet.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable
from dataclasses import astuple
from pathlib import Path

from pipeline.plan import Plan
from pipeline.sheets import table_stem
from pipeline.tables.html import html
from pipeline.tables.latex import latex
from pipeline.tables.layout import Layout, layout
from pipeline.tables.markdown import markdown
from pipeline.tables.records import COLUMNS, Record, heading, papers_with, records

FORMATS = ("csv", "md", "tex", "html", "wide.csv")  # of one paper's table
WIDE = ("value", "ci95", "published", "delta")  # of every column of a wide CSV file


def write_table(plan: Plan, paper: str, number: str, results_dir: Path | str = "results") -> tuple[Path, ...]:
    """Writes `RESULTS/PAPER/TABLE.csv` (long) and the other `FORMATS` (the paper's layout) and returns their paths.

    Raises:
        UserError: no such paper or table, or a cell file is missing or damaged.
    """
    found = records(plan, paper, number, results_dir)
    table, title, stem = plan.papers[paper].tables[number], heading(plan, paper, number), table_stem(number)
    page = layout(table, found)
    contents = (
        to_csv(found),
        markdown(title, table, found),
        latex(title, f"{paper}-{stem}", page),
        html(title, f"{paper}-{stem}", page),
        to_wide_csv(page, found),
    )
    return _write(Path(results_dir) / paper / stem, dict(zip(FORMATS, contents, strict=True)))


def write_combined(plan: Plan, number: str, results_dir: Path | str = "results") -> tuple[Path, ...]:
    """Writes `RESULTS/TABLE.csv` and `.md` with that table of every paper that has one.

    Raises:
        UserError: no paper has such a table, or a cell file is missing or damaged.
    """
    everything: list[Record] = []
    pages = []
    for paper in papers_with(plan, number):
        found = records(plan, paper, number, results_dir)
        everything += found
        title, sheet = heading(plan, paper, number), plan.papers[paper].tables[number]
        pages.append(markdown(title, sheet, found, prefix=paper))
    return _write(Path(results_dir) / table_stem(number), {"csv": to_csv(everything), "md": "\n".join(pages)})


def to_csv(found: Iterable[Record]) -> str:
    """The long CSV of some records; an empty field means that there is no such number."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(astuple(record) for record in found)
    return text.getvalue()


def to_wide_csv(page: Layout, found: Iterable[Record]) -> str:
    """The table as it is printed, one line a row: for each column its value, interval, published value, difference."""
    at = {(record.row, record.column): record for record in found}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["row", *(f"{column} {key}" for column in page.columns for key in WIDE)])
    for row, _ in page.rows:
        places = [at.get((row, column)) for column in page.columns]
        writer.writerow([row, *(getattr(place, key, None) for place in places for key in WIDE)])
    return text.getvalue()


def _write(stem: Path, contents: dict[str, str]) -> tuple[Path, ...]:
    """Writes `stem`.ENDING for every ending of `contents`."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    paths = []
    for ending, content in contents.items():
        path = stem.with_name(f"{stem.name}.{ending}")
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        temporary.write_text(content, encoding="utf-8")
        os.replace(temporary, path)
        paths.append(path)
    return tuple(paths)
