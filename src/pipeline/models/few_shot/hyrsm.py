"""HyRSM (Wang et al., CVPR 2022): hybrid relation guided set matching; HyRSM++ (Wang et al., Pattern Recognition
2024): the same with temporal coherence."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.compat import MODELS
from pipeline.errors import UserError, unknown
from pipeline.models import matchers
from pipeline.models.few_shot.auxiliary import all_videos
from pipeline.models.few_shot.base import EpisodeBatch, FewShotModel, Scores
from pipeline.models.few_shot.blocks.positions import PositionCode
from pipeline.models.few_shot.matching import bimhm, merge_shots, unit_similarity

MATCHERS = matchers.MATCHERS["HyRSM"]
SHOTS = ("prototype", "distance")


class FrameRelation(nn.Module):
    """Relation within a video: position code, self-attention over the frames with LayerNorm before it and a residual,
    then ReLU.

    `position_a` and `position_b` are the released A and B of sqrt(dim / A) x + B sinusoid. Projections without bias,
    output projection unless there is one head. Raises UserError if `heads` does not divide `dim`.
    """

    def __init__(
        self, dim: int, heads: int = 8, position_a: float = 10.0, position_b: float = 1.0, dropout: float = 0.2
    ) -> None:
        super().__init__()
        self.heads = check_heads(dim, heads)
        self.position = PositionCode(dim, math.sqrt(dim / position_a), position_b, dropout=0.1, stretched=True)
        self.norm = nn.LayerNorm(dim)
        self.project = nn.Linear(dim, 3 * dim, bias=False)
        self.out = nn.Sequential(nn.Linear(dim, dim), nn.Dropout(dropout)) if heads > 1 else nn.Identity()

    def forward(self, frames: Tensor) -> Tensor:
        """(B, T, dim) -> (B, T, dim)."""
        frames = self.position(frames)
        q, k, v = (split_heads(x, self.heads) for x in self.project(self.norm(frames)).chunk(3, dim=-1))
        attended = F.scaled_dot_product_attention(q, k, v).transpose(-3, -2).flatten(-2)
        return (frames + self.out(attended)).relu()


class VideoRelation(nn.Module):
    """Relation between the videos of a task: self-attention over one token a video, residual and LayerNorm after it,
    then ReLU.

    Dropout 0.1 on the attention weights and `dropout` after the output projection. Raises UserError if `heads` does
    not divide `dim`.
    """

    def __init__(self, dim: int, heads: int = 8, dropout: float = 0.05) -> None:
        super().__init__()
        self.heads = check_heads(dim, heads)
        self.query, self.key, self.value = (nn.Linear(dim, dim, bias=False) for _ in range(3))
        for layer in (self.query, self.key, self.value):
            nn.init.normal_(layer.weight, std=math.sqrt(2 / (dim + dim // heads)))
        self.out = nn.Linear(dim, dim)
        nn.init.xavier_normal_(self.out.weight)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(dim)

    def forward(self, videos: Tensor) -> Tensor:
        """(..., n, dim) -> (..., n, dim)."""
        q, k, v = (split_heads(layer(videos), self.heads) for layer in (self.query, self.key, self.value))
        attended = F.scaled_dot_product_attention(q, k, v, dropout_p=0.1 if self.training else 0.0)
        attended = self.dropout(self.out(attended.transpose(-3, -2).flatten(-2)))
        return self.norm(attended + videos).relu()


def check_heads(dim: int, heads: int) -> int:
    """`heads`, or UserError if it does not divide `dim`."""
    if heads < 1 or dim % heads:
        raise UserError(f"feature width {dim} is not a multiple of the {heads} attention heads; change heads")
    return heads


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(..., n, D) -> (..., heads, n, D / heads)."""
    return x.unflatten(-1, (heads, -1)).transpose(-3, -2)


@MODELS.register_module()
class HyRSM(FewShotModel):
    """Relations within a video, then between the videos of a task, then Bi-MHM.

    The task of a query is its classes and the query itself: one token each (the mean frame). What a video learns of
    its task joins each of its frames, and a linear map brings the two back to the width of one. So a support has
    other features for every query. Distance: Bi-MHM of 1 - cosine, a sum over frames.

    Args:
        base_classes: number of base classes, for the frame classifier.
        position_a, position_b: of `FrameRelation`.
        heads: of both attentions.
        shots: with several shots of a class, "prototype" averages them frame by frame after the first relation (the
            released class for 5 shots, the default); "distance" relates every shot and averages their distances (the
            released class for 1 shot).
        class_weight: of the cross-entropy of every frame over the base classes.
    """

    wants_text = False
    wants_classes = True
    episodes_at_once = 50  # every shot is a token of every query when distances are averaged

    def __init__(
        self,
        backbone: dict[str, Any],
        base_classes: int,
        position_a: float = 10.0,
        position_b: float = 1.0,
        heads: int = 8,
        shots: str = "prototype",
        class_weight: float = 0.15,
        **kwargs: Any,
    ) -> None:
        super().__init__(backbone, **kwargs)
        if shots not in SHOTS:
            raise unknown("shots", shots, SHOTS, f"method {type(self).__name__}")
        dim = self.backbone.dim
        self.frames = FrameRelation(dim, heads, position_a, position_b)
        self.videos = VideoRelation(dim, heads)
        self.join = nn.Linear(2 * dim, dim)
        self.classifier = nn.Linear(dim, base_classes) if class_weight else None
        self.shots, self.class_weight = shots, class_weight

    def encode(self, clips: Tensor) -> Tensor:
        """(B, T, 3, H, W) -> (B, T, D), the frames related within their video."""
        return self.frames(self.seen(clips))

    def prototypes(self, support: Tensor, texts: Tensor | None = None) -> Tensor:
        """(E, N, K, T, D) -> (E, N, K or 1, T, D)."""
        return merge_shots(support)[:, :, None] if self.shots == "prototype" else support

    def match(
        self, query: Tensor, prototypes: Tensor, texts: Tensor | None = None, matcher: str | None = None
    ) -> Scores:
        """Queries (E, Q, T, D) -> {"vv": (E, Q, N)}.

        Raises UserError for a matcher other than "bi_mhm".
        """
        if matcher not in (None, *MATCHERS):
            raise unknown("matcher", matcher, MATCHERS, f"method {type(self).__name__}")
        asked, supports = self.related(query, prototypes.flatten(1, 2))
        return self.related_scores(asked, supports, prototypes.shape[2])

    def related_scores(self, asked: Tensor, supports: Iterator[Tensor], shots: int) -> Scores:
        """Scores from related features, see `related`; the supports of a class, `shots` of them, are neighbours."""
        distances = [bimhm(1 - unit_similarity(asked, support)) for support in supports]
        return {"vv": -torch.stack(distances, dim=-1).unflatten(-1, (-1, shots)).mean(-1)}

    def related(self, query: Tensor, supports: Tensor) -> tuple[Tensor, Iterator[Tensor]]:
        """Frames of a query and of each support, given what each learns of the task of that query.

        query (E, Q, T, D), supports (E, M, T, D) -> query (E, Q, T, D) and M times (E, Q, T, D), worked out one
        after the other.
        """
        tokens = supports.mean(-2)[:, None].expand(-1, query.shape[1], -1, -1)
        learnt = self.videos(torch.cat((tokens, query.mean(-2)[:, :, None]), dim=2))  # (E, Q, M + 1, D)
        own, other = self.join.weight.chunk(2, dim=1)
        task = F.linear(learnt, other, self.join.bias)  # as if it stood beside every frame
        held = F.linear(supports, own)
        asked = F.linear(query, own) + task[:, :, -1, None]
        return asked, (held[:, None, m] + task[:, :, m, None] for m in range(supports.shape[1]))

    def auxiliary(self, batch: EpisodeBatch, scores: Scores) -> dict[str, Tensor]:
        """{"loss_class"}: weighted cross-entropy of all frames (within-video features) over the base classes."""
        if self.classifier is None:
            return {}
        videos, classes = all_videos(batch)
        logits = self.classifier(videos).transpose(1, 2)  # (B, C, T)
        loss = F.cross_entropy(logits, classes[:, None].expand(-1, videos.shape[1]))
        return {"loss_class": self.class_weight * loss}


def coherence_loss(frames: Tensor, window: int, balance: float, push_weight: float) -> Tensor:
    """Temporal coherence of videos (..., T, D), a mean over videos and pairs of frames (i, j).

    d = 1 - cosine of the frames. At |i - j| <= window it is drawn together by d / ((i - j)^2 + 1). Beyond, frames
    nearer than the margin 1 - exp(-(|i - j| - window)^2 / balance) are pushed apart: push_weight * (margin - d).
    """
    place = torch.arange(frames.shape[-2], device=frames.device)
    gap = (place[:, None] - place).abs().float()
    near = gap <= window
    margin = 1 - torch.exp(-((gap - window).square()) / balance)
    distance = 1 - unit_similarity(frames, frames)
    drawn, pushed = distance / (gap.square() + 1), push_weight * (margin - distance).relu()
    return torch.where(near, drawn, pushed).mean()


@MODELS.register_module()
class HyRSMPlusPlus(HyRSM):
    """HyRSM with the temporal coherence of the related features as a further loss; its scores are HyRSM's.

    Args:
        coherence_weight: of `coherence_loss`, once over the supports (for every query) and once over the queries.
        window, balance, push_weight: of `coherence_loss`.
    """

    def __init__(
        self,
        backbone: dict[str, Any],
        base_classes: int,
        coherence_weight: float = 0.2,
        window: int = 1,
        balance: float = 51.0,
        push_weight: float = 20.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(backbone, base_classes, **kwargs)
        self.coherence_weight = coherence_weight
        self.window, self.balance, self.push_weight = window, balance, push_weight

    def related_scores(self, asked: Tensor, supports: Iterator[Tensor], shots: int) -> Scores:
        """As HyRSM; in training also {"coherence": ()}, because only here are the related features at hand."""
        if not self.training:
            return super().related_scores(asked, supports, shots)
        held = list(supports)
        coherence = self._coherence(asked) + self._coherence(torch.stack(held))
        return super().related_scores(asked, iter(held), shots) | {"coherence": coherence}

    def _coherence(self, frames: Tensor) -> Tensor:
        return coherence_loss(frames, self.window, self.balance, self.push_weight)

    def auxiliary(self, batch: EpisodeBatch, scores: Scores) -> dict[str, Tensor]:
        """{"loss_class"}, and in training "loss_coherence"."""
        losses = super().auxiliary(batch, scores)
        if "coherence" in scores:
            losses["loss_coherence"] = self.coherence_weight * scores["coherence"]
        return losses
