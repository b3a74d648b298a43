"""The entries of the metrics fit what reads them, and a mistyped metric is found where it stands."""

from __future__ import annotations

import string

import pytest

from pipeline.config import parse
from pipeline.errors import UserError
from pipeline.experiment import Measure
from pipeline.metrics import METRICS, TEST, Metric
from pipeline.sheets import Column
from pipeline.tables.records import CellFile
from pipeline.tasks.kinds import KINDS


@pytest.mark.parametrize("name", METRICS)
def test_an_entry_names_what_there_is(name, repo):
    metric = METRICS[name]
    assert set(metric.settings) <= set(Measure.model_fields) - {"metric"}
    assert set(metric.beside) <= set(CellFile.model_fields)
    written = {key for _, key, _, _ in string.Formatter().parse(metric.file) if key}
    assert written <= {*metric.settings, "task"}
    assert metric.scored == (not metric.file) == (metric.settings == TEST)
    for page in ("README.md", "docs/add-a-table-row.md"):
        assert name == "accuracy_pct" or f"`{name}`" in (repo / page).read_text().replace("metric: ", "")


def test_kinds_of_task_have_metrics_that_there_are():
    assert {name for kind in KINDS.values() for name in kind.metrics} <= set(METRICS)


def test_no_two_metrics_share_a_file():
    files = [metric.file for metric in METRICS.values() if metric.file]
    assert len(files) == len(set(files)) == sum(not metric.scored for metric in METRICS.values())


def test_a_metric_is_read_in_one_way():
    for wrong in (
        {},
        {"model": print},
        {"model": print, "answers": print, "file": "a"},
        {"answers": print, "file": "a"},
    ):
        with pytest.raises(ValueError, match="a metric is read off answers, or off a model"):
            Metric("%", "nothing", (), float, **wrong)


@pytest.mark.parametrize("model", [Measure, Column])
def test_a_mistyped_metric_is_named(model):
    with pytest.raises(UserError, match="a sheet: key metric: .*unknown metric 'tme_ms'; did you mean 'time_ms'"):
        parse(model, {"name": "a", "metric": "tme_ms"} if model is Column else {"metric": "tme_ms"}, "a sheet")
