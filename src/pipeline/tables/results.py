"""From measured cells to result files: `RESULTS/PAPER/TABLE.csv` (long) and, in the paper's layout, `FORMATS`.

A cell file `RESULTS/cells/CELL.json` holds one measured number (`CellFile`). Nothing here measures one: a
table is a view of cells, of the printed values and of the notes in the sheet.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from pathlib import Path

from pipeline.files import write_text
from pipeline.plan import Plan
from pipeline.sheets import table_stem
from pipeline.tables.html import html
from pipeline.tables.latex import latex
from pipeline.tables.layout import Layout, layout
from pipeline.tables.markdown import markdown
from pipeline.tables.records import Record, frame, heading, papers_with, records

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
    found = {paper: records(plan, paper, number, results_dir) for paper in papers_with(plan, number)}
    pages = [
        markdown(heading(plan, paper, number), plan.papers[paper].tables[number], of_paper, prefix=paper)
        for paper, of_paper in found.items()
    ]
    contents = {"csv": to_csv(chain.from_iterable(found.values())), "md": "\n".join(pages)}
    return _write(Path(results_dir) / table_stem(number), contents)


def to_csv(found: Iterable[Record]) -> str:
    """The long CSV of some records; an empty field means that there is no such number."""
    return frame(found).to_csv(index=False, lineterminator="\n")


def to_wide_csv(page: Layout, found: Iterable[Record]) -> str:
    """The table as it is printed, one line a row: for each column its value, interval, published value, difference."""
    from pandas import MultiIndex

    places = frame(found).set_index(["row", "column"])[list(WIDE)]
    wide = places.unstack("column").swaplevel(axis="columns")
    columns = MultiIndex.from_product([page.columns, WIDE])
    wide = wide.reindex(index=[row for row, _ in page.rows], columns=columns)
    wide.columns = [" ".join(name) for name in columns]
    return wide.to_csv(index_label="row", lineterminator="\n")


def _write(stem: Path, contents: dict[str, str]) -> tuple[Path, ...]:
    """Writes `stem`.ENDING for every ending of `contents`."""
    return tuple(write_text(stem.with_name(f"{stem.name}.{ending}"), text) for ending, text in contents.items())
