"""Skeleton encoders behind one interface: InfoGCN, HD-GCN, DSTformer (MotionBERT), MMAction2's ST-GCN and AAGCN."""

from __future__ import annotations

from typing import Any

from pipeline.compat import MODELS
from pipeline.datasets.skeletons.graph import SkeletonGraph, get_graph
from pipeline.errors import UserError, unknown
from pipeline.models.skeleton.dstformer import DSTformer
from pipeline.models.skeleton.encoder import SkeletonEncoder
from pipeline.models.skeleton.hdgcn import HDGCN
from pipeline.models.skeleton.image import ImageEncoder
from pipeline.models.skeleton.infogcn import InfoGCN
from pipeline.models.skeleton.stgcn import AAGCNEncoder, STGCNEncoder

ENCODERS = ("AAGCNEncoder", "DSTformer", "HDGCN", "ImageEncoder", "InfoGCN", "STGCNEncoder")

__all__ = [
    "ENCODERS",
    "HDGCN",
    "AAGCNEncoder",
    "DSTformer",
    "ImageEncoder",
    "InfoGCN",
    "STGCNEncoder",
    "SkeletonEncoder",
    "SkeletonGraph",
    "build_encoder",
    "get_graph",
]


def build_encoder(settings: dict[str, Any], **more: Any) -> SkeletonEncoder:
    """The encoder `settings["type"]` with the other settings and `more`.

    Its weights come from torch's global generator. Raises UserError for an unknown type or setting.
    """
    settings = {**settings, **more}
    kind = settings.pop("type", None)
    if kind not in ENCODERS:
        raise unknown("skeleton encoder", str(kind), ENCODERS)
    try:
        return MODELS.get(kind)(**settings)
    except TypeError as error:
        raise UserError(f"skeleton encoder {kind}: {error}") from error
