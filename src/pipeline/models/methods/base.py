"""What every few-shot video method is: `encode`, `prototypes`, `match`, and the loss of an episode.

Training and evaluation know nothing more of a method than this class.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.model import BaseModel
from torch import Tensor, nn

from pipeline.models.backbones.clip import CLIPBackbone

Scores = dict[str, Tensor]
"""Logits of each kind of matching, (E, Q, N): "vv" video-video and, where the method has texts, "vt" video-text."""


class FewShotModel(BaseModel):
    """Frames through CLIP, then whatever the method adds.

    Shapes: E episodes, N way, K shots, Q queries, T frames, L texts a class, C classes, D feature width.

    Args:
        backbone: arguments of `CLIPBackbone`.
        base_texts: sentences of each base class in the order of the data set's class ids, C lists of L; empty for
            a method that reads no text.
        video_text_weight: weight v of the video-text loss.
    """

    wants_text: bool = True

    def __init__(
        self,
        backbone: dict[str, Any],
        base_texts: Sequence[Sequence[str]] = (),
        video_text_weight: float = 0.0,
    ) -> None:
        super().__init__()
        self.backbone = CLIPBackbone(**backbone)
        self.backbone.clip.logit_scale.requires_grad_(False)  # CLIP's own temperature plays no part here
        self.video_text_weight = video_text_weight
        if self.wants_text:
            # Of the video-text cosine; CLIP-FSAR starts it at 1. Without that loss nothing moves it.
            self.scale = nn.Parameter(torch.ones(()), requires_grad=video_text_weight > 0)
            self.register_buffer("base_texts", self.encode_texts(base_texts), persistent=False)

    # The contract

    def encode(self, clips: Tensor) -> Tensor:
        """Frame features of each video, seen on its own: (B, T, 3, H, W) -> (B, T, D)."""
        return self.backbone.encode_frames(clips)

    def prototypes(self, support: Tensor, texts: Tensor | None) -> Any:
        """Prototypes of the classes of E episodes from support (E, N, K, T, D) and texts (E, N, L, D)."""
        raise NotImplementedError

    def match(self, query: Tensor, prototypes: Any, texts: Tensor | None, matcher: str | None = None) -> Scores:
        """Scores of queries (E, Q, T, D); `matcher` replaces the method's own."""
        raise NotImplementedError

    # What they share

    @torch.no_grad()
    def encode_texts(self, texts: Sequence[Sequence[str]]) -> Tensor:
        """Features of C classes with L sentences each: (C, L, D). The text tower is frozen."""
        flat = self.backbone.encode_text([sentence for sentences in texts for sentence in sentences])
        return flat.unflatten(0, (len(texts), -1)).float()

    def video_text(self, features: Tensor, texts: Tensor) -> Tensor:
        """Video-text logits of videos (B, T, D) and classes (C, L, D) or, per video, (B, C, L, D) -> (B, C)."""
        raise NotImplementedError

    def forward(self, mode: str = "loss", **episode: Tensor) -> dict[str, Tensor]:
        """The losses of a batch of episodes (`pipeline.datasets.episodes.EpisodeDataset`).

        Raises:
            FloatingPointError: a loss is not finite.
        """
        if mode != "loss":
            raise ValueError(f"mode {mode!r}: only 'loss' is a forward pass of training; use encode and match")
        return self.loss(**episode)

    def loss(
        self,
        support: Tensor,
        query: Tensor,
        support_labels: Tensor,
        query_labels: Tensor,
        class_ids: Tensor,
        episode: Tensor,
    ) -> dict[str, Tensor]:
        """Cross-entropy of the video-video logits, plus the video-text loss over all base classes.

        support (E, N*K, T, 3, h, w), query (E, Q, T, 3, h, w), labels (E, ...) in 0..N-1, class_ids (E, N).
        """
        way = class_ids.shape[1]
        clips = torch.cat((support.flatten(0, 1), query.flatten(0, 1)))
        features = self.encode(clips)
        of_support, of_query = features.split((support.shape[:2].numel(), query.shape[:2].numel()))
        of_support = of_support.unflatten(0, support.shape[:2])
        order = support_labels.argsort(dim=1, stable=True)  # class by class
        index = order[..., None, None].expand_as(of_support)
        sorted_support = of_support.gather(1, index).unflatten(1, (way, -1))
        texts = self.base_texts[class_ids] if self.wants_text else None
        scores = self.match(of_query.unflatten(0, query.shape[:2]), self.prototypes(sorted_support, texts), texts)
        losses = {"loss_matching": F.cross_entropy(scores["vv"].flatten(0, 1), query_labels.flatten())}
        if self.wants_text and self.video_text_weight:
            labels = torch.cat(
                (class_ids.gather(1, support_labels).flatten(), class_ids.gather(1, query_labels).flatten())
            )
            logits = self.video_text(features, self.base_texts)
            losses["loss_video_text"] = self.video_text_weight * F.cross_entropy(logits, labels)
        with torch.no_grad():
            losses["accuracy"] = (scores["vv"].argmax(-1) == query_labels).float().mean()
        return losses

    def trained_state(self) -> dict[str, Tensor]:
        """The tensors that training changes, by name; the frozen rest comes from the backbone's own folder."""
        trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        return {name: value for name, value in self.state_dict().items() if name in trained}

    def load_trained_state(self, state: dict[str, Tensor]) -> None:
        """Load what `trained_state` gave.

        Raises:
            KeyError: a tensor is missing, or is not one of this model's.
        """
        expected = set(self.trained_state())
        if odd := expected.symmetric_difference(state):
            raise KeyError(f"checkpoint and model differ in {sorted(odd)[0]} ({len(odd)} tensors)")
        self.load_state_dict(state, strict=False)
