"""Wrong measurements are found when the plan is read, before anything is trained."""

from __future__ import annotations

from pkgutil import resolve_name

import pytest

from pipeline.errors import UserError
from pipeline.experiment import Measure
from pipeline.models.matchers import MATCHERS
from pipeline.plan import Plan
from pipeline.tasks.kinds import KINDS


@pytest.fixture(scope="module")
def plan(repo):
    return Plan.read(repo / "config")


def _cell(plan, method, dataset, **experiment):
    return plan.cell({"method": method, "dataset": dataset, **experiment}, 0, "the row")


@pytest.mark.parametrize(("method", "dataset", "measure", "message"), [
    ("lga", "hmdb51", {"matcher": "otan"}, r"unknown matcher 'otan' .*measure.matcher \(LGA\); did you mean 'otam'"),
    ("hyrsm", "hmdb51", {"matcher": "otam"}, "unknown matcher 'otam' .*known: bi_mhm"),
    ("task_adapter", "ssv2_small", {"matcher": "trx"}, "trx has weights of its own; set model.matcher: trx"),
    ("infogcn", "ntu120_oneshot", {"matcher": "neerest"}, "did you mean 'nearest'"),
    ("sefar", "gym99", {"matcher": "otam"}, "measure.matcher is 'otam', and SeFARModel has none"),
    ("infogcn", "ntu120_oneshot", {"metric": "time_ms"}, "time_ms is of few-shot methods, not of methods on skeletons"),
    ("sefar", "gym99", {"metric": "time_ms"}, "metric time_ms is of .*not of semi-supervised methods"),
    ("lga", "hmdb51", {"metric": "teacher_spread_pct"}, "is of semi-supervised methods, not of few-shot methods"),
    ("lga", "hmdb51", {"one_shot": {"feature": "hidden"}}, "measure.one_shot is of tests of skeletons; LGA has none"),
    ("infogcn", "ntu120_oneshot", {"one_shot": {"featur": "hidden"}}, "unknown key 'featur' in .*one_shot"),
    ("infogcn", "ntu120_oneshot", {"one_shot": {"calibration": {"nearst": 3}}},
     r"unknown key 'nearst' in the row, measure.one_shot.calibration .*did you mean 'nearest'"),
    ("infogcn", "ntu120_oneshot", {"one_shot": {"calibration": {"nearest": 0}}}, "calibration: key nearest: .*greater"),
])  # fmt: skip
def test_mistakes(plan, method, dataset, measure, message):
    with pytest.raises(UserError, match=message):
        _cell(plan, method, dataset, measure=measure)


def test_what_is_right_passes(plan):
    assert _cell(plan, "lga", "hmdb51", measure={"matcher": "bi_mhm"}).measure.matcher == "bi_mhm"
    assert _cell(plan, "lga", "hmdb51", measure={"metric": "time_ms"}).measure.metric == "time_ms"
    _cell(plan, "task_adapter", "ssv2_small", model={"matcher": "trx"}, measure={"matcher": "trx"})


def test_the_settings_of_a_one_shot_test_are_reachable_and_change_no_other_identity(plan):
    plain = _cell(plan, "infogcn", "ntu120_oneshot")
    assert "one_shot" not in plain.measure.model_dump() and "one_shot" not in plain.measure.scoring
    asked = {"feature": "embedding", "calibration": {"nearest": 4, "spread": "diagonal"}}
    cell = _cell(plan, "infogcn", "ntu120_oneshot", measure={"one_shot": asked})
    assert cell.run.id == plain.run.id and cell.id != plain.id and cell.measure.scoring["one_shot"] == asked
    assert Measure.model_validate(cell.measure.model_dump()) == cell.measure


def test_every_registered_model_is_known():
    from pipeline.compat import MODELS

    bases = tuple(resolve_name(kind.model) for kind in KINDS.values() if resolve_name(kind.task))
    own = [kind for kind in MODELS.module_dict.values() if getattr(kind, "__module__", "").startswith("pipeline")]
    assert {kind.__name__ for kind in own if isinstance(kind, type) and issubclass(kind, bases)} == set(MATCHERS)
