"""Which measurements a kind of model has, known without building one: mistakes are found when a plan is read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.errors import UserError, unknown
from pipeline.experiment import Measure
from pipeline.models.matchers import FRAME_MATCHERS, MATCHERS

EPISODES = ("LGA", "ClipFsar", "Otam", "ClipFreeze", "TaskAdapter", "TRX", "STRM", "HyRSM", "HyRSMPlusPlus", "MoLo",
            "EMPNet", "TEAM")  # fmt: skip
SKELETONS = ("SkeletonBaseline", "GAP", "CrossGLG")
ONE_SHOT = ("feature", "calibration")
METRICS = {"time_ms": EPISODES, "opposite_pct": ("SeFARModel",), "teacher_time_share_pct": ("SeFARModel",),
           "teacher_spread_pct": ("SeFARModel",)}  # fmt: skip
"""Metrics that not every kind of model has."""


def check_measure(measure: Measure, model: Mapping[str, Any], where: str) -> None:
    """Raise UserError for a metric, matcher or setting of a test that the model has not; `where` names the place."""
    kind = model.get("type", "")
    if kind not in MATCHERS:
        return
    if kind not in METRICS.get(measure.metric, (kind,)):
        raise UserError(f"{where}: metric {measure.metric} is of {', '.join(METRICS[measure.metric])}, not of {kind}")
    if measure.matcher is not None and measure.matcher not in MATCHERS[kind]:
        if not MATCHERS[kind]:
            raise UserError(f"{where}: measure.matcher is {measure.matcher!r}, and {kind} has none; leave it out")
        raise unknown("matcher", measure.matcher, MATCHERS[kind], f"{where}, measure.matcher ({kind})")
    if (kind, measure.matcher) == ("TaskAdapter", "trx") and model.get("matcher") != "trx":
        raise UserError(f"{where}: measure.matcher trx has weights of its own; set model.matcher: trx, to train them")
    if measure.one_shot:
        if kind not in SKELETONS:
            raise UserError(f"{where}: measure.one_shot is of tests of skeletons; {kind} has none, leave it out")
        _check_one_shot(measure.one_shot, f"{where}, measure.one_shot")


def _check_one_shot(asked: Mapping[str, Any], where: str) -> None:
    from pipeline.config import parse
    from pipeline.tasks.one_shot.calibration import Calibration

    if odd := set(asked) - set(ONE_SHOT):
        raise unknown("key", min(odd), ONE_SHOT, where)
    parse(Calibration, asked.get("calibration", {}), f"{where}.calibration")


__all__ = ["FRAME_MATCHERS", "MATCHERS", "check_measure"]
