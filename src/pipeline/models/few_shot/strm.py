"""STRM (Thatipelli et al., CVPR 2022): spatio-temporal relation modelling on top of TRX."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.compat import MODELS
from pipeline.errors import unknown
from pipeline.models import matchers
from pipeline.models.few_shot.base import EpisodeBatch, FewShotModel, Scores
from pipeline.models.few_shot.blocks.patch_enrichment import FrameMixer, NearestTuple, PatchEnrichment
from pipeline.models.few_shot.blocks.tuples import TemporalCrossTransformer

MATCHERS = matchers.MATCHERS["STRM"]


@MODELS.register_module()
class STRM(FewShotModel):
    """Patches of a frame see each other and are averaged; frames are mixed and matched by TRX; a second head compares
    tuples of the frames before they are mixed.

    Score: minus the distance of TRX, minus `second_weight` times that of the second head. Loss: the cross-entropy of
    each, weighted likewise.

    Args:
        cardinalities: sizes of the frame tuples; the released runs use pairs.
        out_dim: width of keys and values of TRX.
        frames: T.
        patches: frames are max-pooled to patches x patches before the enrichment.
        dropout: after every position code, and in the second head.
        second_weight: of the second head, in the loss and in the score.
        second_head_trained: false keeps the second head's projection as it was drawn. In the released code it is in no
            list of parameters, so it is never optimised.
        second_head_dropout_in_test: true leaves the second head's dropout on in tests, as in the released code.
    """

    wants_text = False
    episodes_at_once = 50  # a video is 2T tokens, and its classes are not averaged

    def __init__(
        self,
        backbone: dict[str, Any],
        cardinalities: Sequence[int] = (2,),
        out_dim: int = 1152,
        frames: int = 8,
        patches: int = 4,
        dropout: float = 0.1,
        second_weight: float = 0.1,
        second_head_trained: bool = True,
        second_head_dropout_in_test: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(backbone, **kwargs)
        dim = self.backbone.dim
        self.pool = nn.AdaptiveMaxPool2d(patches)
        self.patches = PatchEnrichment(dim, dropout)
        self.mixer = FrameMixer(dim, frames, dropout)
        self.transformers = nn.ModuleList(
            TemporalCrossTransformer(dim, out_dim, size, frames, dropout) for size in cardinalities
        )
        self.second_head = nn.ModuleList(
            NearestTuple(dim, size, frames, dropout, second_head_dropout_in_test) for size in cardinalities
        )
        self.second_weight = second_weight
        self.second_head.requires_grad_(second_head_trained and second_weight > 0)

    def encode(self, clips: Tensor) -> Tensor:
        """(B, T, 3, H, W) -> (B, 2T, D): the T frames with enriched patches, then the same frames mixed."""
        maps = self.backbone.feature_maps(clips)  # (B, T, C, h, w)
        patches = self.pool(maps.flatten(0, 1)).flatten(2).transpose(1, 2)  # (B * T, patches^2, C)
        frames = self.patches(patches).mean(1).unflatten(0, maps.shape[:2])
        return torch.cat((frames, self.mixer(frames)), dim=1)

    def prototypes(self, support: Tensor, texts: Tensor | None = None) -> Tensor:
        """The shots themselves: (E, N, K, 2T, D)."""
        return support

    def match(
        self, query: Tensor, prototypes: Tensor, texts: Tensor | None = None, matcher: str | None = None
    ) -> Scores:
        """Queries (E, Q, 2T, D) -> {"vv", "main", "second"}, each (E, Q, N): both heads together, and each alone.

        Raises UserError for a matcher other than "strm".
        """
        if matcher not in (None, *MATCHERS):
            raise unknown("matcher", matcher, MATCHERS, "method STRM")
        (early, mixed), (asked_early, asked_mixed) = prototypes.chunk(2, dim=-2), query.chunk(2, dim=-2)
        main = -torch.stack([head(mixed, asked_mixed) for head in self.transformers]).mean(0)
        second = -torch.stack([head(early, asked_early) for head in self.second_head]).mean(0)
        return {"vv": main + self.second_weight * second, "main": main, "second": second}

    def training_logits(self, scores: Scores) -> Tensor:
        """TRX's logits alone: the second head has a loss of its own."""
        return scores["main"]

    def auxiliary(self, batch: EpisodeBatch, scores: Scores) -> dict[str, Tensor]:
        """{"loss_tuples"}: weighted cross-entropy of the second head."""
        loss = F.cross_entropy(scores["second"].flatten(0, 1), batch.query_labels.flatten())
        return {"loss_tuples": self.second_weight * loss}

    def trained_state(self) -> dict[str, Tensor]:
        """As always, and the second head even where it is not trained: it was drawn by chance."""
        state = self.state_dict()
        return super().trained_state() | {name: state[name] for name in state if name.startswith("second_head.")}
