"""EMP-Net (Wu et al., ECCV 2024): reasoning on the tokens of a frozen CLIP, at three levels of a video."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.compat import MODELS
from pipeline.errors import unknown
from pipeline.models.few_shot.base import EpisodeBatch, FewShotModel, Scores
from pipeline.models.few_shot.blocks.post_reasoning import SpaceTimeBlock, cross_block
from pipeline.models.few_shot.matchers import frame_distance
from pipeline.models.few_shot.matching import cosine_similarity

LEVELS = ("token", "frame", "patch")
STAGES = 3
LOSSES = ("logits", "probabilities")
COLUMNS = ("class", "first_supports")
TOP_FRAMES = 2


class Prototypes(NamedTuple):
    """Fused frames of a class at each level, (E, N, T, D), and the text it is compared with, (E, N, D)."""

    token: Tensor
    frame: Tensor
    patch: Tensor
    text: Tensor | None


class Query(NamedTuple):
    """Fused frames of a query at each level, (E, Q, T, D), and what `encode` gave, (E, Q, T, 2 + P, D)."""

    token: Tensor
    frame: Tensor
    patch: Tensor
    video: Tensor


@MODELS.register_module()
class EMPNet(FewShotModel):
    """Tokens of three depths of frozen CLIP are merged, then a video is seen at three levels: its CLS tokens, its
    frames (the mean patch) and its patches. At each level a query meets the classes and their texts.

    A class has a text for each template. Training draws one of them for an episode; a test takes their mean feature.

    Score: mean over the levels of softmax(-distance) over the classes and of the softmax of the cosines with their
    texts, which has no temperature. Loss: the sum of the cross-entropies of all six, of the texts on supports, too.

    Args:
        matcher: of the frames of each level; `otam` as released.
        lam: softness of OTAM.
        top_patches: of a video's patch positions, the most similar ones whose mean cosine with a text counts.
        loss: `logits`; `probabilities`, as released, takes the softmax of the softmax.
        text_columns: `class`, a column has the text of its class; `first_supports`, as released: with several shots
            only the first N supports of the shuffled episode are asked which text is theirs, and a class that is not
            among them gets the text of the split's first class.
    """

    norms_undecayed = True
    episodes_at_once = 8  # every patch of a query meets the texts

    def __init__(
        self,
        backbone: dict[str, Any],
        base_texts: Sequence[Sequence[str]] = (),
        matcher: str = "otam",
        lam: float = 0.5,
        top_patches: int = 49,
        loss: str = "logits",
        text_columns: str = "class",
        **kwargs: Any,
    ) -> None:
        super().__init__(backbone, base_texts, **kwargs)
        for name, value, known in (("loss", loss, LOSSES), ("text_columns", text_columns, COLUMNS)):
            if value not in known:
                raise unknown(name, value, known)
        self.backbone.requires_grad_(False)
        dim = self.backbone.dim
        self.skip = nn.ModuleList(SpaceTimeBlock(dim) for _ in range(STAGES))
        self.reason = nn.ModuleDict({level: cross_block(dim) for level in LEVELS})
        self.fuse = nn.ModuleDict({level: cross_block(dim) for level in LEVELS})
        self.matcher, self.lam, self.top_patches = matcher, lam, top_patches
        self.loss_of, self.text_columns = loss, text_columns

    # Texts

    def encode_texts(self, texts: Sequence[Sequence[str]]) -> Tensor:
        """Text features of C classes, one a template: (C, L, D)."""
        features = super().encode_texts(texts)
        self.first_text = features[0].mean(0) if len(features) else None  # of the split, for `first_supports`
        return features

    def class_texts(self, class_ids: Tensor) -> Tensor:
        """(E, N) -> (E, N, L, D); in training (E, N, 1, D), of a template that is drawn for each episode."""
        texts = self.base_texts[class_ids]
        if not self.training:
            return texts
        drawn = torch.randint(texts.shape[2], (len(texts),), device=texts.device)
        return texts[torch.arange(len(texts), device=texts.device), :, drawn].unsqueeze(2)

    def _columns(self, texts: Tensor, shots: int) -> Tensor:
        """The texts (E, N, D) that the columns of the text scores have."""
        if self.text_columns == "class":
            return texts
        order = torch.rand(len(texts), texts.shape[1] * shots, device=texts.device).argsort(1) // shots
        first = self.base_texts[0].mean(0) if self.training else self.first_text
        return first_supports(order, texts, first.to(texts))

    # Videos, each alone

    def trunk(self, clips: Tensor) -> Tensor:
        """Projected tokens of three depths of CLIP, CLS first: (B, T, 3, H, W) -> (B, T, 3 (1 + P), D)."""
        clip = self.backbone.clip
        depth = clip.config.vision_config.num_hidden_layers
        with torch.no_grad():
            seen = clip.vision_model(pixel_values=clips.flatten(0, 1), output_hidden_states=True).hidden_states
            stages = [seen[math.ceil(depth * (i + 1) / STAGES)] for i in range(STAGES)]  # 4, 8 and 12 of 12
            tokens = clip.visual_projection(clip.vision_model.post_layernorm(torch.cat(stages, dim=1)))
        return tokens.unflatten(0, clips.shape[:2])

    def encode(self, clips: Tensor) -> Tensor:
        """(B, T, 3, H, W), or what `trunk` made of it -> (B, T, 2 + P, D): CLS token, mean patch, P patches."""
        tokens = clips if clips.dim() == 4 else self.trunk(clips)
        return self._reason(self._merge(tokens))

    def _merge(self, tokens: Tensor) -> Tensor:
        stages = tokens.chunk(STAGES, dim=2)
        merged = torch.zeros_like(stages[0])
        for block, stage in zip(self.skip, stages, strict=True):
            merged = block(merged + stage)
        return merged

    def _reason(self, tokens: Tensor) -> Tensor:
        """Merged tokens (B, T, 1 + P, D) -> (B, T, 2 + P, D)."""

        def alone(level: str, x: Tensor) -> Tensor:
            return self.reason[level](x, x, x)

        cls = alone("token", tokens[:, :, 0])
        mixed = torch.cat((cls.unsqueeze(2), tokens[:, :, 1:]), dim=2).flatten(0, 1)
        patches = alone("patch", mixed)[:, 1:].unflatten(0, tokens.shape[:2])
        frames = alone("frame", (tokens[:, :, 1:] + patches).mean(2))
        return torch.cat((cls.unsqueeze(2), frames.unsqueeze(2), patches), dim=2)

    # Fusion

    def prototypes(self, support: Tensor, texts: Tensor | None) -> Prototypes:
        """(E, N, K, T, 2 + P, D) and (E, N, L, D): the mean video of a class, fused with its text."""
        video = support.mean(2)
        text = None if texts is None else texts.mean(-2)
        columns = None if text is None else self._columns(text, support.shape[2])
        return Prototypes(*self._fuse(video, text), columns)

    def relate_queries(self, queries: Tensor) -> Query:
        """(E, Q, T, 2 + P, D), fused as a class is, without a text."""
        return Query(*self._fuse(queries, None), queries)

    def _fuse(self, videos: Tensor, texts: Tensor | None) -> list[Tensor]:
        """Frames of each level, (E, M, T, D), from videos (E, M, T, 2 + P, D) and texts (E, M, D)."""
        cls, frames, patches = split_levels(videos)
        over_time = patches.transpose(-3, -2)  # each position on its own
        fused = {"token": self._attend("token", cls, texts), "frame": self._attend("frame", frames, texts)}
        at_positions = None if texts is None else texts.unsqueeze(2).expand(*over_time.shape[:3], -1)
        fused["patch"] = self._attend("patch", over_time, at_positions).mean(2)
        return [fused[level] for level in LEVELS]

    def _attend(self, level: str, frames: Tensor, texts: Tensor | None) -> Tensor:
        """frames (..., T, D), with a text (..., D) added to what asks and as one more token that is asked."""
        asks = frames.flatten(0, -3)
        asked = asks
        if texts is not None:
            text = texts.flatten(0, -2).unsqueeze(1)
            asks, asked = asks + text, torch.cat((asks, text), dim=1)
        return self.fuse[level](asks, asked, asked).reshape(frames.shape)

    # Scores

    def match(self, query: Query, prototypes: Prototypes, texts: Tensor | None, matcher: str | None = None) -> Scores:
        """Each (E, Q, N): of every level minus the distance, "token", ..., and the cosine with the texts, "token_text",
        ...; "vv" and "vt", the logarithms of the mean probability of either kind; "both", the mean of the six."""
        scores = {
            level: -frame_distance(matcher or self.matcher, getattr(query, level), getattr(prototypes, level), self.lam)
            for level in LEVELS
        }
        matched = mean_probability([scores[level] for level in LEVELS])
        scores["vv"] = matched.log()
        if prototypes.text is None:
            return scores
        scores |= self.text_scores(query.video, prototypes.text)
        told = mean_probability([scores[f"{level}_text"] for level in LEVELS])
        return scores | {"vt": told.log(), "both": (matched + told) / 2}

    def text_scores(self, videos: Tensor, texts: Tensor) -> Scores:
        """Cosines of videos (E, M, T, 2 + P, D) and the texts of classes (E, N, D), by level, each (E, M, N): the mean
        over frames of a CLS token, of the two best frames, of the best patch positions."""
        cosine = cosine_similarity(videos.flatten(1, 3), texts).unflatten(1, videos.shape[1:4])  # (E, M, T, 2 + P, N)
        cls, frames, patches = cosine[..., 0, :], cosine[..., 1, :], cosine[..., 2:, :].mean(2)
        best = min(self.top_patches, patches.shape[2])
        return {
            "token_text": cls.mean(2),
            "frame_text": frames.topk(min(TOP_FRAMES, frames.shape[2]), dim=2).values.mean(2),
            "patch_text": patches.topk(best, dim=2).values.mean(2),
        }

    def frame_features(self, queries: Query) -> Tensor:
        """The fused frames (E, Q, T, D) of the frame level."""
        return queries.frame

    # Losses

    def training_logits(self, scores: Scores) -> Tensor:
        """Those of the CLS tokens; the other levels have losses of their own."""
        return self._logits(scores["token"])

    def auxiliary(self, batch: EpisodeBatch, scores: Scores) -> dict[str, Tensor]:
        """{"loss_frame", "loss_patch", "loss_text"}; the last is the sum over the levels, of supports and queries."""
        labels = batch.query_labels
        losses = {f"loss_{level}": self._cross_entropy(scores[level], labels) for level in LEVELS[1:]}
        way, shots = batch.support.shape[1:3]
        of_supports = torch.arange(way, device=labels.device).repeat_interleave(shots).expand(len(labels), -1)
        on_supports = self.text_scores(batch.support.flatten(1, 2), batch.prototypes.text)
        every = torch.cat((of_supports, labels), dim=1)
        losses["loss_text"] = sum(
            self._cross_entropy(torch.cat((cosines, scores[name]), dim=1), every)
            for name, cosines in on_supports.items()
        )
        return losses

    def _logits(self, scores: Tensor) -> Tensor:
        return scores if self.loss_of == "logits" else scores.softmax(-1)

    def _cross_entropy(self, scores: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(self._logits(scores).flatten(0, 1), labels.flatten())


def split_levels(videos: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(..., T, 2 + P, D) -> CLS tokens (..., T, D), mean patches (..., T, D), patches (..., T, P, D)."""
    return videos[..., 0, :], videos[..., 1, :], videos[..., 2:, :]


def mean_probability(scores: Sequence[Tensor]) -> Tensor:
    """Mean of the softmaxes over the last axis."""
    return torch.stack([each.softmax(-1) for each in scores]).mean(0)


def first_supports(order: Tensor, texts: Tensor, otherwise: Tensor) -> Tensor:
    """Text of each class (E, N, D) if it is among the classes `order` (E, N * K) of the first N supports, else
    `otherwise` (D,)."""
    way = texts.shape[1]
    found = F.one_hot(order[:, :way], way).any(1)
    return torch.where(found.unsqueeze(-1), texts, otherwise)
