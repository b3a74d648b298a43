"""The methods, registered in MMAction2's MODELS when this package is imported."""

from pipeline.models.few_shot.clip_baselines import ClipFreeze, Otam
from pipeline.models.few_shot.clip_fsar import ClipFsar
from pipeline.models.few_shot.emp_net import EMPNet
from pipeline.models.few_shot.hyrsm import HyRSM, HyRSMPlusPlus
from pipeline.models.few_shot.lga import LGA
from pipeline.models.few_shot.molo import MoLo
from pipeline.models.few_shot.strm import STRM
from pipeline.models.few_shot.task_adapter import TaskAdapter
from pipeline.models.few_shot.team import TEAM
from pipeline.models.few_shot.trx import TRX

__all__ = [
    "LGA",
    "STRM",
    "TEAM",
    "TRX",
    "ClipFreeze",
    "ClipFsar",
    "EMPNet",
    "HyRSM",
    "HyRSMPlusPlus",
    "MoLo",
    "Otam",
    "TaskAdapter",
]
