"""The methods, registered in MMAction2's MODELS when this package is imported."""

from pipeline.models.methods.clip_baselines import ClipFreeze, Otam
from pipeline.models.methods.clip_fsar import ClipFsar
from pipeline.models.methods.hyrsm import HyRSM, HyRSMPlusPlus
from pipeline.models.methods.lga import LGA
from pipeline.models.methods.molo import MoLo
from pipeline.models.methods.strm import STRM
from pipeline.models.methods.task_adapter import TaskAdapter
from pipeline.models.methods.trx import TRX

__all__ = ["LGA", "STRM", "TRX", "ClipFreeze", "ClipFsar", "HyRSM", "HyRSMPlusPlus", "MoLo", "Otam", "TaskAdapter"]
