"""A frozen backbone and a matcher that knows the order of frames: nothing is trained, so it works on day one."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.compat import MODELS
from pipeline.errors import unknown
from pipeline.models.few_shot.base import Scores
from pipeline.models.few_shot.blocks.segmentation import segment
from pipeline.models.few_shot.clip_baselines import FrameMatching
from pipeline.models.few_shot.matching import abmhm, episode_distances
from pipeline.models.matchers import MATCHERS

PHASES = 3


def with_changes(frames: Tensor) -> Tensor:
    """Frames (B, T, D) and how each differs from the mean frame of its clip, side by side: (B, T, 2D).

    The first half of a feature is what is there, the second what moves; each has length one, so they count alike.
    """
    changes = frames - frames.mean(-2, keepdim=True)
    return torch.cat((F.normalize(frames, dim=-1), F.normalize(changes, dim=-1)), dim=-1)


@MODELS.register_module()
class Frozen(FrameMatching):
    """Frames as a frozen backbone sees them, and how each differs from the mean frame of its clip, side by side.

    The mean frame says who is filmed and where, which examples of one person share whatever the action: without the
    second half of a feature (`with_changes`) OTAM is right about clips of other persons far less often
    (docs/own-actions.md).

    Args:
        changes: False: the first half alone.
        matcher: otam, ab_mhm (LGA's Eq. 2 on phases found by clustering), bi_mhm, or mean, which knows no order.
    """

    def __init__(
        self, backbone: dict[str, Any], matcher: str = "otam", lam: float = 0.1, changes: bool = True, **kwargs: Any
    ) -> None:
        super().__init__(backbone, matcher=matcher, lam=lam, **kwargs)
        self.changes = changes
        if matcher not in MATCHERS[type(self).__name__]:
            raise unknown("matcher", matcher, MATCHERS[type(self).__name__])
        self.requires_grad_(False)

    def encode(self, clips: Tensor) -> Tensor:
        """(B, T, 3, H, W) -> (B, T, 2D), or (B, T, D) without changes."""
        frames = self.seen(clips).float()
        return with_changes(frames) if self.changes else F.normalize(frames, dim=-1)

    def match(self, query: Tensor, prototypes: Tensor, texts: Tensor | None, matcher: str | None = None) -> Scores:
        """{"vv": (E, Q, N)}: minus the mean distance to the K shots of a class."""
        if (matcher or self.matcher) != "ab_mhm":
            return super().match(query, prototypes, texts, matcher)
        phases = min(PHASES, query.shape[-2])
        support = prototypes.flatten(1, 2)
        of_query, of_support = segment(query, phases)[:, :, None], segment(support, phases)[:, None]
        distance = abmhm(episode_distances(query, support), of_query, of_support)
        return {"vv": -distance.unflatten(-1, prototypes.shape[1:3]).mean(-1)}


@MODELS.register_module()
class Tuned(Frozen):
    """`Frozen` with one trained layer between backbone and matcher: x + W x for each frame, W zero at the start.

    So it begins where `Frozen` is, and the few clips that there are move one matrix and no backbone.
    """

    def __init__(self, backbone: dict[str, Any], matcher: str = "otam", lam: float = 0.1, **kwargs: Any) -> None:
        super().__init__(backbone, matcher=matcher, lam=lam, **kwargs)
        self.change = nn.Linear(self.backbone.dim, self.backbone.dim, bias=False)
        nn.init.zeros_(self.change.weight)

    def train(self, mode: bool = True) -> Tuned:
        """The backbone stays as it is tested: its norms learn nothing of the clips."""
        super().train(mode)
        self.backbone.eval()
        return self

    def encode(self, clips: Tensor) -> Tensor:
        """(B, T, 3, H, W), or what `trunk` made of it -> (B, T, 2D)."""
        frames = self.seen(clips).float()
        return with_changes(frames + self.change(frames))
