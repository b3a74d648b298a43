"""The matchers that a model can be tested with, by its type: known without building one, so that a plan can check."""

from __future__ import annotations

FRAME_MATCHERS = ("otam", "bi_mhm", "mean")
MATCHERS: dict[str, tuple[str, ...]] = {
    "LGA": ("ab_mhm", "bi_mhm", "otam"),
    "ClipFsar": FRAME_MATCHERS,
    "Otam": FRAME_MATCHERS,
    "ClipFreeze": FRAME_MATCHERS,
    **dict.fromkeys(("Frozen", "Tuned"), ("otam", "ab_mhm", "bi_mhm", "mean")),
    "TaskAdapter": ("cosine", "otam", "bi_mhm", "trx"),
    "EMPNet": FRAME_MATCHERS,
    "TEAM": ("tokens",),
    "TRX": ("trx",),
    "STRM": ("strm",),
    "HyRSM": ("bi_mhm",),
    "HyRSMPlusPlus": ("bi_mhm",),
    "MoLo": ("bi_mhm",),
    **dict.fromkeys(("SkeletonBaseline", "GAP", "CrossGLG", "SkeletonDML"), ("nearest", "calibration")),
    **dict.fromkeys(("QuestionModel", "VisionLanguage"), ("mean", "sum")),
    **dict.fromkeys(("SeFARModel", "LTG", "MemDPC", "FrozenFrames"), ()),
}
"""A model that is not here says nothing before it runs."""
