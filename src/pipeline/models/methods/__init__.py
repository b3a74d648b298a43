"""The methods, registered in MMAction2's MODELS when this package is imported."""

from pipeline.models.methods.clip_baselines import ClipFreeze, Otam
from pipeline.models.methods.clip_fsar import ClipFsar
from pipeline.models.methods.lga import LGA

__all__ = ["LGA", "ClipFreeze", "ClipFsar", "Otam"]
