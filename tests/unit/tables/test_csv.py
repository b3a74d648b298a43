"""CSV files of tables, byte by byte: `long.csv` and `wide.csv` were written with Python's csv module."""

from __future__ import annotations

import csv
import io
import os
import re
import subprocess
import sys
from pathlib import Path

from pipeline.sheets import Table
from pipeline.tables.layout import layout
from pipeline.tables.records import COLUMNS, Record, frame
from pipeline.tables.results import WIDE, to_csv, to_wide_csv

HERE = Path(__file__).parent
COLUMN, ROW = ("Set, small/1-shot", "Time", 'The "whole"'), ("Ours", "Plain, é", "Other\nmethod", "Gone")
TABLE = Table(
    title="Everything that a field may hold",
    columns=[{"name": name, "metric": "time_ms" if name == "Time" else "accuracy_pct"} for name in COLUMN],
    rows=[{"name": name, "published_only": "not measured"} for name in ROW],
)


def _record(row, column, value=None, ci95=None, n=None, published=None, delta=None, **words):
    status = words.pop("status", "measured" if value is not None else "published-only")
    empty = dict.fromkeys(("scale", "selection", "seeds", "run_id", "cell_id", "health", "note"), "")
    metric = "time_ms" if COLUMN[column] == "Time" else "accuracy_pct"
    places = {"paper": "one", "table": "1a", "row": ROW[row], "column": COLUMN[column], "metric": metric}
    numbers = {"value": value, "ci95": ci95, "n": n, "published": published, "delta": delta}
    return Record(**places, **numbers, **(empty | words), status=status)


RECORDS = [
    _record(0, 0, 86.8, 0.4113, 10_000, 86.8, 0.0, scale="paper", seeds="0", note='he said "yes"; then no'),
    _record(0, 1, 1e-05, None, 20, 3590.0, -3589.99999, scale="paper", selection="test (paper)", seeds="0;1"),
    _record(0, 2, 100.0, 0.0, 1, health="did not learn: test 20.1 ± 0.4 (chance 20.0)"),
    _record(1, 0, 0.1 + 0.2, 12.3457, 123456789, run_id="net-real-s0-01234567;net-real-s1-89abcdef", cell_id="x.1;x.2"),
    _record(1, 1, published=54.5),
    _record(1, 2, scale="demo", seeds="0", status="missing", note="two\nlines, and a comma"),
    _record(2, 0, 1e22, 3e-07, 7, 12.0, -0.0, selection="val", note="NA"),
    _record(2, 2, published=0.0, note="nan"),
]


def test_the_long_file_is_as_it_was():
    assert to_csv(RECORDS).encode() == (HERE / "long.csv").read_bytes()


def test_the_wide_file_is_as_it_was():
    """With a place that no record has, and a row without any."""
    assert to_wide_csv(layout(TABLE, RECORDS), RECORDS).encode() == (HERE / "wide.csv").read_bytes()


def test_numbers_are_kept_as_they_are():
    table = frame(RECORDS)
    assert tuple(table.columns) == COLUMNS and len(table) == len(RECORDS)
    assert table["n"].tolist() == [record.n for record in RECORDS]
    assert table["value"].tolist() == [record.value for record in RECORDS]


def test_files_without_records_have_their_heads():
    assert to_csv([]) == ",".join(COLUMNS) + "\n"
    head, *rows = csv.reader(io.StringIO(to_wide_csv(layout(TABLE, []), [])))
    assert len(head) == 1 + len(COLUMN) * len(WIDE) and [row[0] for row in rows] == list(ROW)
    assert not any("".join(row[1:]) for row in rows)


def test_pandas_is_imported_where_a_table_is_made(repo):
    """Neither by what Snakemake reads at the start of every job nor by plan and status: it takes half a second."""
    text = "".join(path.read_text() for path in [repo / "Snakefile", *(repo / "workflow" / "rules").glob("*.smk")])
    read = re.findall(r"^\s*from (pipeline[\w.]*) import", text, re.M)
    modules = sorted({*read, *(f"pipeline.tables.{name}" for name in ("results", "records", "layout", "console"))})
    assert "pipeline.plan" in modules and "pipeline.status" in modules
    code = (
        f"import sys, {', '.join(modules)}\n"
        "pipeline.status.read_status(pipeline.plan.Plan.read('config'), sys.argv[1])\n"
        "before = 'pandas' in sys.modules\n"
        "pipeline.tables.results.to_csv([])\n"
        "print(before, 'pandas' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "no_such_folder"], cwd=repo, text=True, capture_output=True,
        env={**os.environ, "PYTHONPATH": str(repo / "src")},
    )  # fmt: skip
    assert done.stdout.strip() == "False True", done.stderr


def test_the_line_above_a_table_speaks_of_all_its_rows():
    """A frozen row has one seed and no checkpoint to choose, whatever the others have."""
    rows = [
        _record(0, 0, 50.0, 1.0, 10, scale="demo", selection="last", seeds="0;0;0"),
        _record(1, 0, 60.0, 1.0, 30, scale="demo", selection="val", seeds="0;1;2"),
    ]
    said = layout(TABLE, rows).measured
    assert said.startswith("Scale demo, checkpoint selection last or val, training seeds 0, 1, 2. ")
