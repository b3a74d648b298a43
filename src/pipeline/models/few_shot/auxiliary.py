"""What the auxiliary losses of several methods share."""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.models.few_shot.base import EpisodeBatch


def all_videos(batch: EpisodeBatch) -> tuple[Tensor, Tensor]:
    """Every video of a batch of episodes and its base class, supports first: (B, ...) and (B,)."""
    videos = torch.cat((batch.support.flatten(0, 2), batch.query.flatten(0, 1)))
    of_support = batch.support_classes.repeat_interleave(batch.support.shape[2], dim=1)
    return videos, torch.cat((of_support.flatten(), batch.query_classes.flatten()))
