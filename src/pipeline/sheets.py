"""The tables as typed sheets: `config/tables/PAPER.yaml`, one experiment for each row and column.

A row says what is run, a column says on what; where both speak of the same key, the row wins. Nothing here
computes a number, and nothing heavy is imported.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pipeline.config import Config, parse


class Strict(BaseModel):
    """Unknown keys are errors."""

    model_config = ConfigDict(extra="forbid")


class Experiment(Strict):
    """A delta on a method's defaults."""

    method: str | None = None
    dataset: str | None = None
    backbone: str | None = None
    encoder: dict[str, Any] = Field({}, description="an experiment: the run whose features a method of questions reads")
    selection: str | None = None
    model: dict[str, Any] = {}
    train: dict[str, Any] = {}
    frames: dict[str, Any] = Field({}, description="the choice of frames, or how skeletons are shown, as in a recipe")
    measure: dict[str, Any] = {}


class Column(Strict):
    """A column as the paper heads it."""

    name: str
    experiment: Experiment = Experiment()
    metric: str = "accuracy_pct"


class Row(Strict):
    """A row as the paper names it, with the printed values in the order of the columns (null: none)."""

    name: str
    experiment: Experiment | None = None
    published_only: str = Field("", description="why this row is not measured")
    published: list[float | None] = []
    note: str = ""
    notes: dict[str, str] = Field({}, description="column name -> note on that one value")

    @model_validator(mode="after")
    def _one_source(self) -> Row:
        if (self.experiment is None) == (not self.published_only):
            raise ValueError("give either `experiment:` or `published_only: REASON`")
        return self


class Sweep(Strict):
    """An axis of the table that Ray Tune walks: its runs are trials of one sweep per data set."""

    axis: str = Field(description="the swept key, for instance model.atoms")


INSIDE = ("tsne", "attention", "phases", "importance", "blocks", "skeletons", "novel")
"""Kinds of figures that show what trained models see: drawn from an inspection of each run beside its cells."""


class Show(Strict):
    """Which clip of a data set an inspected run is shown, where it is another than the first of the test."""

    split: Literal["train", "val", "test"] = "test"
    label: str = Field("", description="its class; empty: the first of the split")
    clip: str = Field("", description="its name, as in index.csv; empty: the first of the class")


class Figure(Strict):
    """How a sheet is drawn."""

    kind: Literal[
        "lines", "bars", "scatter", "spread", "reliability", "confusion", "alpha",
        "tsne", "attention", "phases", "importance", "blocks", "skeletons", "novel",
    ] = Field(
        description="lines: against the numbers in the names; bars: a group a column; scatter: second column on first; "
        "spread, reliability: single predictions of the teacher, from columns of teacher_spread_pct; confusion: a "
        "matrix a row, from the column of opposite_pct; alpha: accuracy against it, a panel a place; of inspected "
        "runs, tsne: features of clips; attention: of frames, and scores by stage; phases: of clips, with their "
        "texts; importance: of joints, beside the text's; blocks, skeletons, novel: spatial attention"
    )  # fmt: skip
    x: str = Field("", description="label of the axis, with its unit; frames and poses have none")
    y: str = Field("", description="label of the axis, with its unit")
    series: Literal["rows", "columns"] = Field("rows", description="of lines: what one line is")
    show: dict[str, Show] = Field({}, description="data set -> the clip that is shown, of tsne, attention and phases")


class Table(Strict):
    """One table (or the data of a figure)."""

    title: str
    note: str = ""
    columns: list[Column]
    rows: list[Row]
    sweep: Sweep | None = None
    figure: Figure | None = None

    @model_validator(mode="after")
    def _values_fit(self) -> Table:
        for kind, names in (("column", [c.name for c in self.columns]), ("row", [r.name for r in self.rows])):
            twice = {name for name in names if names.count(name) > 1}
            if twice:
                raise ValueError(f"{kind} named twice: {sorted(twice)[0]!r}")
        columns = {column.name for column in self.columns}
        for row in self.rows:
            if row.published and len(row.published) != len(self.columns):
                raise ValueError(
                    f"row {row.name!r} has {len(row.published)} published values for {len(self.columns)} columns"
                )
            if odd := set(row.notes) - columns:
                raise ValueError(f"row {row.name!r} has a note for an unknown column {sorted(odd)[0]!r}")
        return self


class Paper(Strict):
    """All tables of one paper."""

    title: str
    tables: dict[str, Table]


def read_papers(config: Config) -> dict[str, Paper]:
    """Every paper that `config/tables` (and the overlay) defines, by name.

    Raises:
        UserError: a sheet is malformed; the message names file and key.
    """
    papers = {}
    for name in config.names("tables"):
        where = f"{config.folder}/tables/{name}.yaml"
        papers[name] = parse(Paper, config.entry("tables", name, where), where)
    return papers


def table_stem(number: str) -> str:
    """File name, without its ending, of a table: "4" -> "table4", "1a" -> "table1a", "fig3" -> "fig3"."""
    return number if number.startswith("fig") else f"table{number}"


def table_number(stem: str) -> str:
    """Key in the sheet of a file name or of what a user types: "table4" -> "4" (undoes `table_stem`)."""
    return stem.removeprefix("table")
