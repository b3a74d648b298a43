"""Few-shot matching as pure functions: no parameters, batched over leading dimensions, differentiable."""

from pipeline.models.few_shot.matching.distances import (
    cosine_distance,
    cosine_similarity,
    episode_distances,
    norm_distances,
    unit_similarity,
)
from pipeline.models.few_shot.matching.fusion import (
    clipfsar_combine,
    clipfsar_visual_log_probability,
    clipfsar_visual_probability,
    fuse,
)
from pipeline.models.few_shot.matching.mhm import abmhm, abmhm_phases, bimhm, prototype_cosine
from pipeline.models.few_shot.matching.otam import otam, otam_bidirectional
from pipeline.models.few_shot.matching.prototypes import merge_shots, phase_text_similarity, pool_phases

__all__ = [
    "abmhm",
    "abmhm_phases",
    "bimhm",
    "clipfsar_combine",
    "clipfsar_visual_log_probability",
    "clipfsar_visual_probability",
    "cosine_distance",
    "cosine_similarity",
    "episode_distances",
    "fuse",
    "merge_shots",
    "norm_distances",
    "otam",
    "otam_bidirectional",
    "phase_text_similarity",
    "pool_phases",
    "prototype_cosine",
    "unit_similarity",
]
