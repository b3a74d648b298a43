"""Few-shot matching as pure functions: no parameters, batched over leading dimensions, differentiable."""

from pipeline.models.matching.distances import (
    cosine_distance,
    cosine_similarity,
    episode_distances,
    norm_distances,
    unit_similarity,
)
from pipeline.models.matching.fusion import (
    clipfsar_combine,
    clipfsar_visual_log_probability,
    clipfsar_visual_probability,
    fuse,
)
from pipeline.models.matching.mhm import abmhm, abmhm_phases, bimhm, prototype_cosine
from pipeline.models.matching.otam import otam, otam_bidirectional
from pipeline.models.matching.prototypes import merge_shots, phase_text_similarity, pool_phases

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
