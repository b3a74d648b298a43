"""MoLo (Wang et al., CVPR 2023): motion-augmented long-short contrastive learning."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.compat import MODELS
from pipeline.errors import unknown
from pipeline.models import matchers
from pipeline.models.few_shot.auxiliary import all_videos
from pipeline.models.few_shot.base import EpisodeBatch, FewShotModel, Scores
from pipeline.models.few_shot.blocks.motion import MotionDecoder, MotionMaps, frame_differences
from pipeline.models.few_shot.blocks.necks import ContextTransformer
from pipeline.models.few_shot.blocks.positions import PositionCode
from pipeline.models.few_shot.matching import bimhm, episode_distances, merge_shots

MATCHERS = matchers.MATCHERS["MoLo"]


class Stream(nn.Module):
    """A learnt class token before the tokens of a video, position code, one transformer layer, ReLU."""

    def __init__(self, dim: int, heads: int, ffn: int, position_a: float, position_b: float) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(dim))
        self.position = PositionCode(dim, math.sqrt(dim / position_a), position_b, stretched=True)
        self.transformer = ContextTransformer(dim, heads=heads, ffn=ffn)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, n, dim) -> (B, 1 + n, dim)."""
        tokens = torch.cat((self.token.expand(len(tokens), 1, -1), tokens), dim=1)
        return self.transformer(self.position(tokens)).relu()


def streams(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """The appearance and the motion tokens of `MoLo.encode`: (..., 2T + 1, D) -> (..., T + 1, D), (..., T, D)."""
    return tokens.tensor_split([tokens.shape[-2] // 2 + 1], dim=-2)


def long_short_distances(query: Tensor, prototypes: Tensor) -> tuple[Tensor, Tensor]:
    """Distances of the frames of one side to the class token of the other, summed over frames.

    Tokens of one stream, class token first: query (E, Q, 1 + n, D), prototypes (E, N, 1 + n, D) -> two (E, Q, N):
    frames of the class to the query's token, and frames of the query to the class's token.
    """
    of_support = episode_distances(query[..., :1, :], prototypes[..., 1:, :])
    of_query = episode_distances(query[..., 1:, :], prototypes[..., :1, :])
    return of_support.sum((-2, -1)), of_query.sum((-2, -1))


@MODELS.register_module()
class MoLo(FewShotModel):
    """Two streams, appearance and motion, each with a class token; Bi-MHM on the frames of each.

    Score: minus (appearance + `motion_weight` * motion), prototypes averaged over the shots after the transformers.
    The motion stream sees the T - 1 differences of neighbouring feature maps (`MotionMaps`). Training adds three
    losses, each with its weight: long-short contrast (frames against the other side's class token, in both directions
    and both streams), the frames' differences drawn from the motion maps, and a classifier of whole videos over the
    base classes.

    Args:
        base_classes: number of base classes, for the classifier.
        position_a, position_b: sqrt(D / A) x + B sinusoid, as in HyRSM.
        heads, ffn: of the transformers, which are CLIP-FSAR's layer.
        reduction: the motion maps have D / reduction channels.
        motion_weight: of the motion stream in the score.
        contrast_weight: of each of the four contrastive cross-entropies; their scales are learnt and start at 1.
        reconstruction_weight: of the mean squared error of the drawn differences. The released RECONS_COFF is the only
            weight that is not divided by 4, so this is 4 times that.
        class_weight: of the classifier, which sees the mean of all tokens of each stream, class tokens included.
    """

    wants_text = False
    wants_classes = True
    episodes_at_once = 100  # a video is 2T + 1 tokens

    def __init__(
        self,
        backbone: dict[str, Any],
        base_classes: int,
        position_a: float = 10.0,
        position_b: float = 1.0,
        heads: int = 8,
        ffn: int = 2048,
        reduction: int = 8,
        motion_weight: float = 0.3,
        contrast_weight: float = 0.05,
        reconstruction_weight: float = 0.2,
        class_weight: float = 0.15,
        **kwargs: Any,
    ) -> None:
        super().__init__(backbone, **kwargs)
        dim = self.backbone.dim
        self.appearance = Stream(dim, heads, ffn, position_a, position_b)
        self.motion_maps = MotionMaps(dim, reduction)
        self.motion = Stream(dim, heads, ffn, position_a, position_b)
        self.motion_weight = motion_weight
        self.contrast_weight, self.class_weight = contrast_weight, class_weight
        self.reconstruction_weight = reconstruction_weight
        self.scales = nn.Parameter(torch.ones(2)) if contrast_weight else None  # appearance, motion
        self.decoder = MotionDecoder(self.motion_maps.channels) if reconstruction_weight else None
        self.classifier = nn.Linear(dim, base_classes) if class_weight else None

    def encode(self, clips: Tensor) -> Tensor:
        """(B, T, 3, H, W) -> (B, 2T + 1, D): class token and T frames, class token and T - 1 motions."""
        return self.encode_training(clips)[0]

    def encode_training(self, clips: Tensor) -> tuple[Tensor, Tensor]:
        """As `encode`, and the motion maps (B, T - 1, D / reduction, h, w)."""
        maps = self.backbone.feature_maps(clips)
        motion = self.motion_maps(maps)
        appearance, moving = self.appearance(maps.mean((-2, -1))), self.motion(self.motion_maps.tokens(motion))
        return torch.cat((appearance, moving), dim=1), motion

    def prototypes(self, support: Tensor, texts: Tensor | None = None) -> Tensor:
        """Mean of the shots, token by token: (E, N, K, 2T + 1, D) -> (E, N, 2T + 1, D)."""
        return merge_shots(support)

    def match(
        self, query: Tensor, prototypes: Tensor, texts: Tensor | None = None, matcher: str | None = None
    ) -> Scores:
        """Queries (E, Q, 2T + 1, D) -> {"vv": (E, Q, N)}.

        Raises UserError for a matcher other than "bi_mhm".
        """
        if matcher not in (None, *MATCHERS):
            raise unknown("matcher", matcher, MATCHERS, "method MoLo")
        appearance, motion = (
            bimhm(episode_distances(asked[..., 1:, :], held[..., 1:, :]))
            for asked, held in zip(streams(query), streams(prototypes), strict=True)
        )
        return {"vv": -(appearance + self.motion_weight * motion)}

    def auxiliary(self, batch: EpisodeBatch, scores: Scores) -> dict[str, Tensor]:
        """{"loss_contrast", "loss_reconstruction", "loss_class"}, those whose weight is not 0."""
        losses = {}
        if self.scales is not None:
            losses["loss_contrast"] = self.contrast_weight * self._contrast(batch)
        if self.decoder is not None:
            target = frame_differences(batch.clips).flatten(0, 1)
            drawn = self.decoder(batch.extras.flatten(0, 1), target.shape[-2:])
            losses["loss_reconstruction"] = self.reconstruction_weight * F.mse_loss(drawn, target)
        if self.classifier is not None:
            losses["loss_class"] = self.class_weight * self._classification(batch)
        return losses

    def _contrast(self, batch: EpisodeBatch) -> Tensor:
        """Sum of the four cross-entropies: two streams, two directions."""
        labels, total = batch.query_labels.flatten(), 0
        for scale, asked, held in zip(self.scales, streams(batch.query), streams(batch.prototypes), strict=True):
            for distance in long_short_distances(asked, held):
                total = total + F.cross_entropy(-scale * distance.flatten(0, 1), labels)
        return total

    def _classification(self, batch: EpisodeBatch) -> Tensor:
        """Cross-entropy of all videos over the base classes."""
        tokens, classes = all_videos(batch)
        appearance, motion = (stream.mean(-2) for stream in streams(tokens))
        return F.cross_entropy(self.classifier(appearance + motion), classes)
