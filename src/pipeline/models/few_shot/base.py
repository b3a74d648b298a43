"""What every few-shot video method is: `encode`, `relate`, `prototypes`, `match`, and the loss of an episode.

Training and evaluation know nothing more of a method than this class.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from mmengine.model import BaseModel
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from pipeline.compat import MODELS
from pipeline.errors import UserError, unknown
from pipeline.models.backbones import clip, efficientnet, locked_clip, resnet  # noqa: F401  (registers them)
from pipeline.models.pixels import Pixels

Scores = dict[str, Tensor]
"""Logits of each kind of matching, (E, Q, N): "vv" video-video; where the method has texts "vt" video-text; "both"
where it fuses the two itself; "log_vv", log-probabilities, where they are not the softmax of "vv"."""

STATISTICS = {"none": ((0.0,) * 3, (1.0,) * 3), "half": ((0.45,) * 3, (0.225,) * 3)}
"""Mean and deviation of RGB in [0, 1] that a recipe may ask for in place of its backbone's."""


class EpisodeBatch(NamedTuple):
    """E episodes of a training step, as `FewShotModel.auxiliary` gets them.

    support (E, N, K, ...) and query (E, Q, ...): what `encode` gives. support_classes (E, N) and query_classes
    (E, Q): base class ids. query_labels (E, Q) in 0..N-1. texts (E, N, L, D) or None. extras: of `encode_training`.
    clips (B, T, 3, h, w): the frames, supports first, in the order in which `extras` lie.
    """

    support: Tensor
    query: Tensor
    support_classes: Tensor
    query_classes: Tensor
    query_labels: Tensor
    texts: Tensor | None
    prototypes: Any
    extras: Any
    clips: Tensor


class FewShotModel(BaseModel):
    """Frames through a backbone, then whatever the method adds.

    Shapes: E episodes, N way, K shots, Q queries, T frames, L texts a class, C classes, D feature width.

    Args:
        backbone: arguments of the backbone, its `type` among them (default CLIPBackbone).
        base_texts: sentences of each base class in the order of the data set's class ids, C lists of L; empty for
            a method that reads no text.
        video_text_weight: weight v of the video-text loss.
        normalise: a key of STATISTICS; without it the backbone's own mean and deviation hold.
    """

    wants_text: bool = True
    wants_classes: bool = False
    """The constructor takes `base_classes`, the number of base classes."""
    queries_alone: bool = True
    """A query's features do not depend on the other queries of its episode."""
    class_order: bool = False
    """Queries come one a class, in the order of the classes: a bug that some released code rests on."""
    condensed: bool = False
    """What `condense` gives of a video is what `match` takes of it, as a query and as a shot."""
    apart: bool = False
    """In training supports and queries pass `encode_training` one after the other, so that BatchNorm has statistics
    of each (`train.bn_apart`)."""
    norms_undecayed: bool = False
    """The LayerNorms outside its backbone take no weight decay."""
    episodes_at_once: int = 200
    """Episodes that are matched in one call."""

    def __init__(
        self,
        backbone: dict[str, Any],
        base_texts: Sequence[Sequence[str]] = (),
        video_text_weight: float = 0.0,
        normalise: str | None = None,
    ) -> None:
        super().__init__()
        self.backbone = MODELS.build({"type": "CLIPBackbone", **backbone})
        if normalise not in (None, *STATISTICS):
            raise unknown("normalise", normalise, STATISTICS)
        self.mean, self.std = STATISTICS.get(normalise, (self.backbone.mean, self.backbone.std))
        self.data_preprocessor = Pixels(self.mean, self.std)
        self.video_text_weight = video_text_weight
        if self.wants_text:
            self.register_texts(base_texts)

    def register_texts(self, base_texts: Sequence[Sequence[str]]) -> None:
        """Keep the texts of the base classes: their features, for the text tower is frozen."""
        # Of the video-text cosine; CLIP-FSAR starts it at 1. Without that loss nothing moves it.
        self.scale = nn.Parameter(torch.ones(()), requires_grad=self.video_text_weight > 0)
        self.register_buffer("base_texts", self.encode_texts(base_texts), persistent=False)

    # The contract

    def pixels(self, frames: Tensor) -> Tensor:
        """Stored frames uint8 (..., H, W, 3) as `encode` takes them: (..., 3, H, W), normalised, on the device."""
        return self.data_preprocessor.pixels(frames)

    def encode(self, clips: Tensor) -> Tensor:
        """What is worked out once for each video, seen on its own: (B, T, 3, H, W) -> (B, ...), here (B, T, D)."""
        return self.seen(clips)

    def seen(self, clips: Tensor) -> Tensor:
        """The backbone's features (B, T, D) of videos (B, T, 3, H, W), or of the tokens that `trunk` made of them."""
        return clips.squeeze(2) if clips.dim() == 4 else self.backbone.encode_frames(clips)

    def trunk(self, clips: Tensor) -> Tensor:
        """What frozen layers make of each video, (B, T, 3, H, W) -> tokens (B, T, P, W); `encode` takes these too.

        Here a backbone that is frozen as a whole, one token a frame.

        Raises:
            UserError: the method has no such layers.
        """
        if any(parameter.requires_grad for parameter in self.backbone.parameters()):
            raise UserError(
                f"train.stored_views: {type(self).__name__} trains the layers that see the frames, so there is nothing "
                "to store; leave it out, or give it a frozen backbone (clip_lite0)"
            )
        return self.backbone.encode_frames(clips).unsqueeze(2)

    def frame_layers(self) -> list[nn.Module]:
        """The layers of the frame tower, which `cluster.compile` compiles; none where the backbone is no CLIP."""
        return list(self.backbone.clip.vision_model.encoder.layers) if hasattr(self.backbone, "clip") else []

    def encode_training(self, clips: Tensor) -> tuple[Tensor, Any]:
        """`encode`, and what else `auxiliary` needs of the videos."""
        return self.encode(clips), None

    def condense(self, features: Tensor, matcher: str | None = None) -> Any:
        """What a test with `matcher` reads of what `encode` gave: (V, ...) -> (V, ...), once for all its episodes.

        A tensor or, where the class is `condensed`, a tree of such.
        """
        return features

    def relate(self, videos: Tensor) -> Tensor:
        """Features of videos that see each other, the supports of a task: (E, M, ...) -> (E, M, ...)."""
        return videos

    def relate_queries(self, queries: Tensor) -> Any:
        """What `match` takes of the queries of a task, (E, Q, ...) or a tuple of such: each seen alone."""
        return self.relate(queries.flatten(0, 1)[:, None]).squeeze(1).unflatten(0, queries.shape[:2])

    def frame_features(self, queries: Any) -> Tensor:
        """One feature a frame (E, Q, T, D) of what `relate_queries` gave, for figures: here as it is.

        Raises:
            UserError: the method compares something else.
        """
        if isinstance(queries, Tensor) and queries.dim() == 4:
            return queries
        raise UserError(f"{type(self).__name__} has no feature of each frame to show; leave it out of the figure")

    def prototypes(self, support: Tensor, texts: Tensor | None) -> Any:
        """Prototypes of the classes of E episodes from support (E, N, K, T, D) and texts (E, N, L, D).

        (E, N, ...) or a tuple of such; that of a class depends on its own supports and texts alone.
        """
        raise NotImplementedError

    def match(self, query: Any, prototypes: Any, texts: Tensor | None, matcher: str | None = None) -> Scores:
        """Scores of the queries that `relate_queries` gave; `matcher` replaces the method's own."""
        raise NotImplementedError

    def training_logits(self, scores: Scores) -> Tensor:
        """The logits (E, Q, N) that the cross-entropy of the matching sees."""
        return scores["vv"]

    def auxiliary(self, batch: EpisodeBatch, scores: Scores) -> dict[str, Tensor]:
        """Further losses, named loss_*: here the video-text loss of CLIP-FSAR over all base classes."""
        if not (self.wants_text and self.video_text_weight):
            return {}
        support, shots = batch.support.flatten(0, 2), batch.support.shape[2]
        labels = torch.cat((batch.support_classes.repeat_interleave(shots, 1).flatten(), batch.query_classes.flatten()))
        logits = self.video_text(torch.cat((support, batch.query.flatten(0, 1))), self.base_texts)
        return {"loss_video_text": self.video_text_weight * F.cross_entropy(logits, labels)}

    def class_texts(self, class_ids: Tensor) -> Tensor:
        """Text features of base classes: (E, N) -> (E, N, L, D)."""
        return self.base_texts[class_ids]

    def encode_texts(self, texts: Sequence[Sequence[str]]) -> Tensor:
        """Text features of C classes with L sentences each: (C, L, D). The text tower is frozen.

        Raises:
            UserError: the backbone is no CLIP.
        """
        if not hasattr(self.backbone, "encode_text"):
            kind = type(self.backbone).__name__
            raise UserError(f"{type(self).__name__} reads texts, and its backbone is a {kind}; give it a CLIP")
        with torch.no_grad():
            flat = self.backbone.encode_text([sentence for sentences in texts for sentence in sentences])
            return flat.unflatten(0, (len(texts), -1)).float()

    def video_text(self, features: Tensor, texts: Tensor) -> Tensor:
        """Video-text logits of videos (B, T, D) and classes (C, L, D) or, per video, (B, C, L, D) -> (B, C)."""
        raise NotImplementedError

    # What they share

    def forward(self, mode: str = "loss", **episode: Tensor) -> dict[str, Tensor]:
        """The losses of a batch of episodes that passed `data_preprocessor` (`tasks.few_shot.episodes.EpisodeDataset`).

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
        """Cross-entropy of the matching, and what `auxiliary` adds.

        support (E, N*K, T, 3, h, w), query (E, Q, T, 3, h, w), labels (E, ...) in 0..N-1, class_ids (E, N).
        """
        if self.class_order:
            query, query_labels = by_class(query, query_labels)
        clips = torch.cat((support.flatten(0, 1), query.flatten(0, 1)))
        sizes = (support.shape[:2].numel(), query.shape[:2].numel())
        if self.apart:
            (of_support, one), (of_query, other) = map(self.encode_training, clips.split(sizes))
            extras = None if one is None else tree_map(lambda *both: torch.cat(both), one, other)
        else:
            features, extras = self.encode_training(clips)
            of_support, of_query = features.split(sizes)
        of_support = by_class(of_support.unflatten(0, support.shape[:2]), support_labels)[0]
        of_support = of_support.unflatten(1, (class_ids.shape[1], -1))
        of_query = of_query.unflatten(0, query.shape[:2])
        texts = self.class_texts(class_ids) if self.wants_text else None
        prototypes = self.prototypes(self.relate_supports(of_support), texts)
        scores = self.match(self.relate_queries(of_query), prototypes, texts)
        logits = self.training_logits(scores)
        losses = {"loss_matching": F.cross_entropy(logits.flatten(0, 1), query_labels.flatten())}
        losses |= self.auxiliary(
            EpisodeBatch(
                support=of_support, query=of_query, support_classes=class_ids,
                query_classes=class_ids.gather(1, query_labels), query_labels=query_labels,
                texts=texts, prototypes=prototypes, extras=extras, clips=clips,
            ),
            scores,
        )  # fmt: skip
        with torch.no_grad():
            losses["accuracy"] = (logits.argmax(-1) == query_labels).float().mean()
        return losses

    def relate_supports(self, support: Tensor) -> Tensor:
        """All supports of a task, which see each other: (E, N, K, ...) -> (E, N, K, ...)."""
        return self.relate(support.flatten(1, 2)).unflatten(1, support.shape[1:3])

    def trained_state(self) -> dict[str, Tensor]:
        """The tensors that training changes, by name; the frozen rest comes from the backbone's own folder."""
        names = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        for prefix, module in self.named_modules():  # running statistics move where a norm is trained
            if isinstance(module, nn.modules.batchnorm._NormBase) and any(p.requires_grad for p in module.parameters()):
                names |= {f"{prefix}.{name}" for name, _ in module.named_buffers()}
        return {name: value for name, value in self.state_dict().items() if name in names}

    def load_trained_state(self, state: dict[str, Tensor]) -> None:
        """Load what `trained_state` gave.

        Raises:
            KeyError: a tensor is missing, or is not one of this model's.
        """
        expected = set(self.trained_state())
        if odd := expected.symmetric_difference(state):
            raise KeyError(f"checkpoint and model differ in {sorted(odd)[0]} ({len(odd)} tensors)")
        self.load_state_dict(state, strict=False)


def in_parts(function: Callable[[Tensor], Any], features: Tensor, size: int = 32) -> Any:
    """The tree of tensors (V, ...) that `function` gives of V videos, worked out for `size` of them at a time."""
    whole = None
    for first in range(0, len(features), size):
        part = function(features[first : first + size])
        if whole is None:
            whole = tree_map(lambda tensor: tensor.new_empty((len(features), *tensor.shape[1:])), part)
        for target, source in zip(tree_leaves(whole), tree_leaves(part), strict=True):
            target[first : first + size] = source
    return whole


def by_class(videos: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Videos (E, M, ...) with labels (E, M) put in the order of their labels, and the labels likewise."""
    order = labels.argsort(dim=1, stable=True)
    index = order.reshape(*order.shape, *[1] * (videos.dim() - 2)).expand_as(videos)
    return videos.gather(1, index), labels.gather(1, order)
