"""MMAction2's ST-GCN and AAGCN behind the encoders' interface."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from mmengine.logging import MMLogger
from mmengine.model import BaseModule
from mmengine.registry import DefaultScope
from torch import Tensor, nn

from pipeline.compat import MODELS
from pipeline.datasets.skeletons.graph import SkeletonGraph
from pipeline.errors import UserError
from pipeline.models.skeleton.blocks import SpatioTemporalBlock
from pipeline.models.skeleton.encoder import SkeletonEncoder, normalise_input

LAYOUTS = {"ntu25": "nturgb+d", "coco17": "coco", "openpose18": "openpose"}  # MMAction2's own name of a skeleton


class _MMActionGCN(SkeletonEncoder):
    """Blocks of an MMAction2 graph backbone; the embedding is the pooled feature.

    `width` is the first block's, `mode` how the skeleton is split into subsets; other settings go to MMAction2's
    class as they are. Raises UserError if `width` equals `in_channels`, where MMAction2 leaves out the first block.
    """

    backbone: str

    def __init__(
        self,
        graph: SkeletonGraph | str | Mapping[str, Any] = "ntu25",
        in_channels: int = 3,
        persons: int = 2,
        classes: int | None = None,
        width: int = 64,
        mode: str = "spatial",
        **settings: Any,
    ) -> None:
        super().__init__(graph, persons)
        if width == in_channels:
            raise UserError(f"{type(self).__name__}'s width equals its {in_channels} input channels; make it wider")
        model = MODELS.build(
            {
                "type": self.backbone,
                "graph_cfg": {"layout": mmaction_layout(self.graph), "mode": mode},
                "in_channels": in_channels,
                "base_channels": width,
                "num_person": persons,
                **settings,
            }
        )
        _initialise(model)
        self.norm = model.data_bn
        # Its shortcuts that are no module are "nothing" in the first block and "the input itself" elsewhere.
        self.blocks = nn.ModuleList(
            SpatioTemporalBlock(
                block.gcn,
                block.tcn,
                block.residual if isinstance(block.residual, nn.Module) else nn.Identity() if index else None,
            )
            for index, block in enumerate(model.gcn)
        )
        channels = [block.spatial.bn.num_features for block in self.blocks]
        self._set_widths(channels, channels[-1], classes)

    def _embed(self, x: Tensor) -> Tensor:
        return normalise_input(self.norm, x.permute(0, 4, 3, 1, 2))


@MODELS.register_module()
class STGCNEncoder(_MMActionGCN):
    """ST-GCN (Yan et al., AAAI 2018). `mode` "stgcn_spatial" is the paper's partition."""

    backbone = "STGCN"

    def __init__(self, *args: Any, mode: str = "stgcn_spatial", **settings: Any) -> None:
        super().__init__(*args, mode=mode, **settings)


@MODELS.register_module()
class AAGCNEncoder(_MMActionGCN):
    """AAGCN, attention-enhanced 2s-AGCN (Shi et al., TIP 2020)."""

    backbone = "AAGCN"


def _initialise(model: BaseModule) -> None:
    """Weights as MMAction2 sets them, without MMEngine's report of every parameter."""
    import mmaction.engine.model  # noqa: F401  (registers AAGCN's initialiser; after pipeline.compat)

    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with DefaultScope.overwrite_default_scope("mmaction"):
            model.init_weights()
    finally:
        logger.setLevel(level)


def mmaction_layout(graph: SkeletonGraph) -> str | dict[str, Any]:
    """The skeleton for MMAction2's `Graph`: its own name, or joints, bones towards the centre and the centre."""
    if graph.name in LAYOUTS:
        return LAYOUTS[graph.name]
    return {"num_node": len(graph), "inward": graph.edges_to(graph.center), "center": graph.center}
