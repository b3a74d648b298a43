"""The tables as typed sheets: `config/tables/PAPER.yaml`, one experiment for each row and column.

A row says what is run, a column says on what; where both speak of the same key, the row wins. Nothing here
computes a number, and nothing heavy is imported.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pipeline.config import Config, parse
from pipeline.metrics import MetricName


class Strict(BaseModel):
    """Unknown keys are errors."""

    model_config = ConfigDict(extra="forbid")


class Experiment(Strict):
    """A delta on a method's defaults."""

    method: str | None = Field(None, description="a name in config/methods")
    dataset: str | None = Field(None, description="a name in config/datasets")
    backbone: str | None = Field(None, description="a name in config/backbones.yaml, if not the method's own")
    encoder: dict[str, Any] = Field({}, description="an experiment: the run whose features a method of questions reads")
    selection: str | None = Field(None, description="what chooses the checkpoint: val, last or test")
    model: dict[str, Any] = Field({}, description="keys laid over the method's `model`")
    train: dict[str, Any] = Field({}, description="keys laid over the method's `train`; `{steps: 0}`: no training")
    frames: dict[str, Any] = Field({}, description="keys laid over the method's `frames`")
    measure: dict[str, Any] = Field({}, description="how it is measured")


class Column(Strict):
    """A column as the paper heads it."""

    name: str = Field(description="unique in its table; DATA SET/SHOTS is headed in two lines")
    experiment: Experiment = Field(Experiment(), description="what all rows of the column have in common")
    metric: MetricName = Field("accuracy_pct", description="what is measured, see `metric` of a measurement")


class Row(Strict):
    """A row as the paper names it, with the printed values in the order of the columns (null: none)."""

    name: str = Field(description="unique in its table")
    experiment: Experiment | None = Field(None, description="what is run; it wins over the column's")
    published_only: str = Field("", description="why this row is not measured")
    published: list[float | None] = Field([], description="printed values in the order of the columns; null: none")
    note: str = Field("", description="note on all values of the row")
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
    """Which clip of a data set an inspected run is shown, if not the first of the test."""

    split: Literal["train", "val", "test"] = Field("test", description="the clip's split")
    label: str = Field("", description="its class; empty: the first of the split")
    clip: str = Field("", description="its name, as in index.csv; empty: the first of the class")


class Figure(Strict):
    """How a sheet is drawn."""

    kind: Literal[
        "lines", "bars", "scatter", "spread", "reliability", "confusion", "alpha",
        "tsne", "attention", "phases", "importance", "blocks", "skeletons", "novel",
    ] = Field(
        description="lines: against the numbers in the names; bars: a group per column; scatter: second column on "
        "first; spread, reliability: single predictions of the teacher, from columns of teacher_spread_pct; "
        "confusion: a matrix per row, from the column of opposite_pct; alpha: accuracy against it, a panel per place. "
        "From inspected runs, tsne: features of clips; attention: of frames, and scores by stage; phases: of clips, "
        "with their texts; importance: of joints, beside the text's; blocks, skeletons, novel: spatial attention"
    )  # fmt: skip
    x: str = Field("", description="label of the axis, with its unit; frames and poses have none")
    y: str = Field("", description="label of the axis, with its unit")
    series: Literal["rows", "columns"] = Field("rows", description="for lines: whether a line is a row or a column")
    show: dict[str, Show] = Field({}, description="data set -> the clip that tsne, attention and phases show")


class Table(Strict):
    """One table (or the data of a figure)."""

    title: str = Field(description="the paper's caption, in our words")
    note: str = Field("", description="note on the whole table")
    columns: list[Column] = Field(description="on what is measured")
    rows: list[Row] = Field(description="what is measured")
    sweep: Sweep | None = Field(None, description="lets Ray Tune train the runs that no other table needs")
    figure: Figure | None = Field(None, description="draws it, too")

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

    title: str = Field(description="its name and subject in a line")
    tables: dict[str, Table] = Field(description="number, such as 4 or fig3 -> table")


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
