"""SeFAR (Huang et al., AAAI 2025), semi-supervised fine-grained recognition, with SVFormer and FixMatch."""

from pipeline.models.sefar.elements import ElementSampler
from pipeline.models.sefar.model import SeFARModel
from pipeline.models.sefar.timesformer import ElementTimeSformer

__all__ = ["ElementSampler", "ElementTimeSformer", "SeFARModel"]
