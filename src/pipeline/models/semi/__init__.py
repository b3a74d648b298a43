"""SeFAR (Huang et al., AAAI 2025), semi-supervised fine-grained recognition, and the methods beside it."""

from pipeline.datasets.elements import ElementSampler
from pipeline.models.semi.frozen import FrozenFrames
from pipeline.models.semi.ltg import LTG
from pipeline.models.semi.memdpc import MemDPC
from pipeline.models.semi.model import SeFARModel
from pipeline.models.semi.timesformer import ElementTimeSformer

__all__ = ["LTG", "ElementSampler", "ElementTimeSformer", "FrozenFrames", "MemDPC", "SeFARModel"]
