"""Figures of single videos, from made-up cells, against the cells themselves."""

from __future__ import annotations

import json

import numpy as np
import pytest
from made_up import MOVES

from pipeline.errors import UserError
from pipeline.figures.draw import draw, write_figure
from pipeline.figures.single import BINS, bins, drawn, normalised
from pipeline.figures.style import FORMATS
from pipeline.tables.records import TeacherVideos, records

PLACES = ("fig4a", "fig4b", "fig4c", "fig5", "fig8")


def contents(plan, results, number, metric):
    """What the cells of one metric hold, in the order of the sheet."""
    entries = [entry for entry in plan.table_entries("sefar", number) if entry.metric == metric]
    return [json.loads((results / "cells" / f"{entry.cells[0].id}.json").read_text()) for entry in entries]


@pytest.mark.parametrize("number", PLACES)
def test_figures_are_written(plan, results, number):
    paths = write_figure(plan, "sefar", number, results)
    assert [path.name for path in paths] == [f"{number}.{kind}" for kind in FORMATS]
    assert paths[0].read_bytes().startswith(b"\x89PNG") and paths[0].stat().st_size > 10_000
    assert b"Scale demo" in paths[1].read_bytes() and b"<image" not in paths[1].read_bytes()


def test_a_spread_shows_the_first_videos_of_the_draw_with_their_deviation(plan, results):
    found = contents(plan, results, "fig4c", "teacher_spread_pct")
    figure = draw(plan, "sefar", "fig4c", results)
    assert len(figure.axes) == len(found) == 3
    for axis, cell in zip(figure.axes, found, strict=True):
        videos = sorted(zip(*(cell["teacher"][key][:30] for key in ("confidence", "deviation", "right")), strict=True))
        (bar,) = axis.containers
        ends = [segment[:, 1] for segment in bar.lines[2][0].get_segments()]
        assert np.allclose(ends, [[100 * (c - d), 100 * (c + d)] for c, d, _ in videos])
        shown = {
            line.get_label(): line.get_ydata().tolist() for line in axis.lines if line.get_label() in ("right", "wrong")
        }
        assert shown["right"] == pytest.approx([100 * c for c, _, right in videos if right])
        assert shown["wrong"] == pytest.approx([100 * c for c, _, right in videos if not right])
        assert f"mean deviation {cell['value']:.1f} %" in axis.get_title()


def test_fewer_videos_than_are_drawn_are_all_of_them():
    confidence, deviation, right = drawn(TeacherVideos(confidence=[0.9, 0.5], deviation=[0, 0.25], right=[True, False]))
    assert (confidence.tolist(), deviation.tolist(), right.tolist()) == ([50, 90], [25, 0], [False, True])


def test_bins_hold_equally_many_videos_and_every_one():
    rng = np.random.default_rng(0)
    values = rng.random(1000)
    right = rng.random(1000) < values
    mean, share, low, high = bins(values.tolist(), right.tolist())
    assert len(mean) == BINS
    videos = sorted(zip(values, right, strict=True))
    for index in range(BINS):
        part = videos[100 * index : 100 * (index + 1)]
        assert mean[index] == pytest.approx(np.mean([100 * value for value, _ in part]))
        assert share[index] == pytest.approx(np.mean([100 * hit for _, hit in part]))
    assert (low < share).all() and (share < high).all() and (high - low < 21).all()
    assert share[0] < 15 and share[-1] > 85  # the values are how probable it is to be right


@pytest.mark.parametrize(("videos", "count"), [(1, 1), (39, 1), (40, 2), (216, 10), (1000, 10)])
def test_few_videos_have_few_bins(videos, count):
    assert len(bins([0.5] * videos, [True] * videos)[0]) == count


def test_reliability_has_a_panel_for_each_of_both_and_a_line_for_each_column(plan, results):
    found = contents(plan, results, "fig5", "teacher_spread_pct")
    figure = draw(plan, "sefar", "fig5", results)
    assert [axis.get_title() for axis in figure.axes] == ["by confidence", "by standard deviation"]
    columns = [column.name for column in plan.papers["sefar"].tables["fig5"].columns]
    for axis, key in zip(figure.axes, ("confidence", "deviation"), strict=True):
        assert [bar.get_label() for bar in axis.containers] == columns
        for bar, cell in zip(axis.containers, found, strict=True):
            mean, share, low, high = bins(cell["teacher"][key], cell["teacher"]["right"])
            assert np.allclose(bar.lines[0].get_xydata(), np.stack((mean, share), 1))
            ends = [segment[:, 1] for segment in bar.lines[2][0].get_segments()]
            assert np.allclose(ends, np.stack((low, high), 1))


def test_confusions_are_shares_of_the_true_class_with_opposites_framed(plan, results):
    found = contents(plan, results, "fig8", "opposite_pct")
    figure = draw(plan, "sefar", "fig8", results)
    *panels, _ = figure.axes  # the last one is the colour bar
    assert [axis.get_title().split(":")[0] for axis in panels] == ["SVFormer", "SeFAR"]
    for axis, cell in zip(panels, found, strict=True):
        counts = np.array(cell["confusion"])
        shown = np.asarray(axis.collections[0].get_array())
        assert np.allclose(shown, 100 * counts / counts.sum(1, keepdims=True)) and np.allclose(shown.sum(1), 100)
        framed = {tuple(round(x + 0.5) for x in patch.get_xy()) for patch in axis.patches}  # (column, row)
        assert framed == {(0, 1), (1, 0), (2, 3), (3, 2), (4, 5), (5, 4)}
        assert sum(counts[row, column] for column, row in framed) / counts.sum() == pytest.approx(cell["value"] / 100)
        assert f"{cell['value']:.1f} % opposite" in axis.get_title()
        assert [label.get_text() for label in axis.get_xticklabels()] == MOVES


def test_confusions_of_several_seeds_are_added():
    one, other = [[8, 2], [0, 0]], [[1, 9], [0, 0]]
    assert normalised([one, other]).tolist() == [[0.45, 0.55], [0, 0]]


def test_a_figure_without_its_metric_is_one_line(plan, results):
    table = plan.papers["sefar"].tables["4"]
    changed = table.model_copy(update={"figure": plan.papers["sefar"].tables["fig8"].figure})
    plan.papers["sefar"].tables["4"] = changed
    try:
        with pytest.raises(UserError, match="kind confusion needs a column with metric: opposite_pct"):
            draw(plan, "sefar", "4", results)
    finally:
        plan.papers["sefar"].tables["4"] = table


@pytest.mark.parametrize(
    ("number", "metric", "key"),
    [
        ("fig4c", "teacher_spread_pct", "teacher"),
        ("fig8", "opposite_pct", "confusion"),
        ("fig8", "opposite_pct", "classes"),
    ],
)
def test_a_cell_without_what_is_drawn_is_damaged(plan, results, number, metric, key):
    (entry, *_) = (entry for entry in plan.table_entries("sefar", number) if entry.metric == metric)
    path = results / "cells" / f"{entry.cells[0].id}.json"
    kept = path.read_text()
    path.write_text(json.dumps({name: value for name, value in json.loads(kept).items() if name != key}))
    try:
        with pytest.raises(UserError, match=f"damaged cell file .key {key} is missing.; delete it"):
            records(plan, "sefar", number, results)
    finally:
        path.write_text(kept)
