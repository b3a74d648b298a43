"""The papers' figures and the training curves, from made-up cells."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

import pytest

from pipeline.errors import UserError
from pipeline.figures.draw import draw, figures_of, write_figure
from pipeline.figures.style import FORMATS, content
from pipeline.figures.training import draw_training, read_curve, runs_of, write_training
from pipeline.sheets import table_stem
from pipeline.tables.records import records

MAGIC = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}


def texts(figure) -> set[str]:
    """Everything that is written on a figure."""
    root = ElementTree.fromstring(content(figure, "svg"))
    return {"".join(node.itertext()).strip() for node in root.iter("{http://www.w3.org/2000/svg}text")}


def test_every_figure_of_a_paper_that_is_a_sheet_is_drawn(plan):
    sheets = [(paper, number) for paper, number in plan.tables() if number.startswith("fig")]
    assert figures_of(plan) == sheets and len(sheets) == 19
    assert figures_of(plan, "lga") == [("lga", name) for name in ("fig3", "fig4", "figphases", "figalpha")]


@pytest.mark.parametrize(
    "place",
    [
        ("lga", "fig3"),
        ("crossglg", "fig1b"),
        *(("task_adapter", name) for name in ("fig8a", "fig8b", "fig9", "fig10")),
        *(("sefar", name) for name in ("fig4a", "fig4b", "fig4c", "fig5", "fig8")),
    ],
)
def test_a_figure_has_labels_legend_and_how_it_was_measured(plan, results, place):
    sheet = plan.papers[place[0]].tables[place[1]]
    written = texts(draw(plan, *place, results))
    assert {sheet.figure.x, sheet.figure.y} <= written
    assert re.search(r"\((ms|%)\)", sheet.figure.y) or sheet.figure.kind == "confusion"
    everything = " ".join(written)
    measured = [row.name for row in sheet.rows if row.experiment]
    by_column = sheet.figure.series == "columns" or sheet.figure.kind in ("spread", "reliability")
    for name in [c.name for c in sheet.columns] if by_column else measured:
        assert name in everything
    assert "Scale demo" in everything and "in place of" in everything
    beside = {"spread": "standard deviation", "reliability": "Wilson intervals", "confusion": "Framed"}
    assert beside.get(sheet.figure.kind, "95 % intervals") in everything


def test_lines_are_the_records(plan, results):
    figure = draw(plan, "task_adapter", "fig8a", results)
    found = records(plan, "task_adapter", "fig8a", results)
    (axes,) = figure.axes
    for container, column in zip(axes.containers, dict.fromkeys(r.column for r in found), strict=True):
        here = [record for record in found if record.column == column]
        assert list(container.lines[0].get_ydata()) == [record.value for record in here]
        assert [round(x) for x in container.lines[0].get_xdata()] == list(range(1, 13))
        (segments,) = (lines.get_segments() for lines in container.lines[2])
        halves = [(segment[1][1] - segment[0][1]) / 2 for segment in segments]
        assert halves == pytest.approx([record.ci95 for record in here])


def test_ways_have_a_panel_for_each_data_set(plan, results):
    figure = draw(plan, "task_adapter", "fig9", results)
    assert [axes.get_title() for axes in figure.axes] == ["SSv2-Small", "Kinetics"]
    assert all(list(axes.get_xticks()) == [5, 6, 7, 8, 9, 10] for axes in figure.axes)


def test_printed_times_are_lines_and_no_points(plan, results):
    (axes,) = draw(plan, "lga", "fig3", results).axes
    assert axes.get_xscale() == "log"
    assert len([line for line in axes.lines if line.get_linestyle() == ":"]) == 4
    assert len([line for line in axes.lines if line.get_marker() in "os^" and len(line.get_xdata()) == 1]) == 3


def test_files_are_written_whole_and_equal_ones_are_equal(plan, results, tmp_path):
    paths = write_figure(plan, "task_adapter", "fig10", results)
    assert [path.name for path in paths] == [f"fig10.{kind}" for kind in FORMATS]
    for path in paths:
        assert path.read_bytes().startswith(MAGIC[path.suffix[1:]])
    before = [path.read_bytes() for path in paths]
    assert [path.read_bytes() for path in write_figure(plan, "task_adapter", "fig10", results)] == before
    assert not list(results.rglob("*.tmp"))


def test_a_missing_cell_is_an_error_and_no_gap(plan, results):
    for paper, number in figures_of(plan):
        path = results / "cells" / f"{plan.table_cells(paper, number)[-1]}.json"
        kept = path.read_text()
        path.unlink()
        with pytest.raises(UserError, match="not measured yet; make it with `snakemake"):
            write_figure(plan, paper, number, results)
        path.write_text(kept)
        assert not (results / paper / f"{table_stem(number)}.png").exists() or number == "fig10"


def test_what_is_no_figure_is_one_line(plan, results):
    with pytest.raises(UserError, match="unknown figure '4' in paper lga .its sheet has no `figure:`"):
        draw(plan, "lga", "4", results)
    with pytest.raises(UserError, match="unknown table 'fig5'; did you mean|unknown table 'fig5' in paper"):
        draw(plan, "lga", "fig5", results)


# Training curves


def test_training_curves_have_a_panel_for_each_method(plan, results):
    figure = draw_training(plan, "lga", results)
    methods = list(dict.fromkeys(run.method for run in runs_of(plan, "lga")))
    assert [axes.get_title() for axes in figure.axes if axes.get_title()] == [m.replace("_", " ") for m in methods]
    assert {"step", "training loss"} <= texts(figure)
    assert all(run.train for run in runs_of(plan, "lga"))


def test_training_curves_need_every_training(plan, results):
    assert [path.name for path in write_training(plan, "lga", results)] == [f"training.{kind}" for kind in FORMATS]
    path = results / "runs" / runs_of(plan, "lga")[0].id / "curve.csv"
    kept = path.read_text()
    path.unlink()
    with pytest.raises(UserError, match=r"curve.csv: not trained yet; make it with `snakemake"):
        draw_training(plan, "lga", results)
    path.write_text(kept)
    with pytest.raises(UserError, match="unknown paper 'lgb'; did you mean 'lga'"):
        draw_training(plan, "lgb", results)


def test_a_long_curve_is_thinned_and_keeps_what_was_validated(tmp_path):
    lines = [f"{step},{1 / step},{step if step % 300 == 0 else ''}" for step in range(1, 1001)]
    (tmp_path / "curve.csv").write_text("\n".join(["step,loss,validation_accuracy", *lines]) + "\n")
    assert len(read_curve(tmp_path / "curve.csv")["step"]) == 1000
    curve = read_curve(tmp_path / "curve.csv", 100)
    assert 100 <= len(curve["step"]) <= 110 and curve["step"][-1] == 1000
    assert [value for value in curve["validation_accuracy"] if value is not None] == [300, 600, 900]
