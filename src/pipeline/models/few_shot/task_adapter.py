"""Task-Adapter (Cao et al., MM 2024) and Task-Adapter++: adapters in frozen CLIP that see the whole task.

The other rows of its tables are settings of the same class: AIM (no Task-MSA), full fine-tuning, frozen CLIP.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.compat import MODELS
from pipeline.errors import UserError, unknown
from pipeline.models import matchers
from pipeline.models.few_shot.base import FewShotModel, Scores
from pipeline.models.few_shot.blocks.adapters import TextTower, VisionTower
from pipeline.models.few_shot.blocks.alignment import build_alignment, stage_cosines, stage_similarity
from pipeline.models.few_shot.blocks.tuples import TemporalCrossTransformer
from pipeline.models.few_shot.matchers import frame_distance
from pipeline.models.few_shot.matching import merge_shots, unit_similarity

FINETUNES = ("adapters", "full", "none")
SUBACTIONS = ("single", "average", "stages")
COSINES = ("frames", "means", "aligned")
TASK_MATCHERS = matchers.MATCHERS["TaskAdapter"]
RELATED_EPISODES = 4
"""Episodes matched in one call when their videos pass through adapted layers; 5-way 5-shot of CLIP ViT-B/16 is then
half a GB for each kind of intermediate result."""
TRX_TUPLES = (2, 3)
TEMPERATURE = 64.0
"""Of the cross-entropy: logits are 64 times the product of the two scores (released code)."""


@MODELS.register_module()
class TaskAdapter(FewShotModel):
    """Score of a class = video-video score times video-text score (Eq. 18); 64 times that is the training logit.

    Args:
        finetune: what is trained: `adapters` (with the temporal embedding, and what alignment and matcher have);
            `full`, all of CLIP, both towers, without adapters; `none`, nothing at all.
        layers, placement, aim, task, task_position, task_init, task_group, mlp_scale, temporal_adapters, drop_path,
            temporal_embedding, frames: of the frame tower, see `VisionTower` and `VisionAdapters`.
        order_layers, order_placement, order_position: of the text tower, see `TextTower`; 0 layers: plain frozen CLIP.
        subactions: what is done with the sentences of a class: `stages`, each is matched with its third of the video;
            `average`, the mean of their features with the mean frame; `single`, there is only one.
        alignment: of a query's frames before they meet the text: `attention`, `conv` or `none`, see `alignment`.
        alignment_layers, alignment_norm, alignment_over, alignment_window: of the attention, see `CrossAlignment`.
        average_first: a stage is the mean of its frames (Eq. 16-17); False, as released, the mean of their cosines.
        transductive: False: a query is seen alone. True, as released: the queries of an episode see each other in
            Task-MSA, and in an alignment over queries.
        cosine: of a query and a prototype: `frames`, the mean of the cosines of all pairs of their frames (Sec. 3.4);
            `means`, as released, the cosine of their mean frames. Neither knows the order of the frames. `aligned`:
            the mean of the cosines of frame i with frame i, another reading of "frame-to-frame".
        offset: added to both cosines before their product. CLIP's cosines are positive. Where a small CLIP's are not,
            the product of two would put the worst class first.
        matcher: `cosine`, or `otam`, `bi_mhm`, `trx` (Fig. 10; mean of pairs and triples), whose score is the softmax
            of minus the distance to the prototype.
        lam: softness of OTAM.
        transposed: True is a bug of the released code: entry (i, j) is the video score of query i and class j times
            the text score of query j and class i. It needs one query a class, in the order of the classes, so that the
            text in a row is that of the row's true class: it leaks the label, and measures what the paper measured.

    Raises UserError for a setting that is unknown or does not fit CLIP.
    """

    def __init__(
        self,
        backbone: dict[str, Any],
        base_texts: Sequence[Sequence[str]] = (),
        finetune: str = "adapters",
        layers: int = 2,
        placement: str = "top",
        aim: bool = True,
        task: bool = True,
        task_position: str = "after",
        task_init: str = "zero",
        task_group: int = 0,
        mlp_scale: float = 1.0,
        temporal_adapters: int = 1,
        drop_path: float = 0.0,
        temporal_embedding: str = "adapters",
        frames: int = 8,
        order_layers: int = 8,
        order_placement: str = "top",
        order_position: str = "after",
        subactions: str = "stages",
        alignment: str = "attention",
        alignment_layers: int = 1,
        alignment_norm: bool = False,
        alignment_over: str = "frames",
        alignment_window: int = 1,
        average_first: bool = True,
        transductive: bool = False,
        cosine: str = "frames",
        offset: float = 0.0,
        matcher: str = "cosine",
        lam: float = 0.1,
        transposed: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(backbone, base_texts, **kwargs)
        for name, value, known in (
            ("finetune", finetune, FINETUNES),
            ("subactions", subactions, SUBACTIONS),
            ("cosine", cosine, COSINES),
            ("matcher", matcher, TASK_MATCHERS),
        ):
            if value not in known:
                raise unknown(name, value, known)
        if not hasattr(self.backbone, "clip"):
            raise UserError(f"TaskAdapter adapts CLIP, and the backbone is a {type(self.backbone).__name__}")
        if self.video_text_weight:
            raise UserError("TaskAdapter trains on the product of its two scores; set video_text_weight: 0")
        if finetune != "adapters":
            layers, placement, order_layers, order_placement, temporal_embedding = 0, "top", 0, "top", "none"
        if not (aim or task) and layers:
            raise UserError("aim: false and task: false leave no adapter in the frame tower; set layers: 0 instead")
        config = self.backbone.clip.config
        self.visual = VisionTower(
            config.vision_config, frames, layers, placement, temporal_embedding, drop_path, aim=aim, task=task,
            task_position=task_position, task_init=task_init, task_group=task_group, mlp_scale=mlp_scale,
            temporal_adapters=temporal_adapters,
        )  # fmt: skip
        self.text = TextTower(config.text_config, order_layers, order_placement, order_position)
        self.alignment = build_alignment(
            alignment, self.backbone.dim, alignment_layers, alignment_norm, alignment_over, alignment_window
        )
        self.trx = nn.ModuleList(
            TemporalCrossTransformer(self.backbone.dim, self.backbone.dim, cardinality=size, frames=frames)
            for size in (TRX_TUPLES if matcher == "trx" else ())
        )
        self.finetune, self.subactions = finetune, subactions
        self.average_first, self.cosine, self.offset = average_first, cosine, offset
        self.matcher, self.lam = matcher, lam
        self.transductive, self.queries_alone = transductive, not transductive
        self.transposed = self.class_order = transposed
        self.related = task and len(self.visual.places) > 0
        if self.related:
            self.episodes_at_once = RELATED_EPISODES
        self._freeze()
        self._keep_texts(base_texts)

    @property
    def clip(self):
        """The transformers model, which the towers get as an argument."""
        return self.backbone.clip

    def _freeze(self) -> None:
        """Leave the gradient to what `finetune` names."""
        if self.finetune == "none":
            self.requires_grad_(False)
        self.clip.requires_grad_(self.finetune == "full")
        self.clip.logit_scale.requires_grad_(False)  # plays no part here
        self.backbone.freeze_text = self.finetune != "full"

    # Texts: of the base classes, what training does not change is kept

    def register_texts(self, base_texts: Sequence[Sequence[str]]) -> None:
        """Nothing yet: the adapted text tower comes after the backbone, and keeps the texts itself."""

    def _keep_texts(self, base_texts: Sequence[Sequence[str]]) -> None:
        if not base_texts:
            return
        ids = self._tokenize(base_texts)
        if self.finetune == "full":
            self.register_buffer("base_ids", ids, persistent=False)
        else:
            tokens, ends = self.text.trunk(self.clip, ids)
            self.register_buffer("base_tokens", tokens, persistent=False)
            self.register_buffer("base_ends", ends, persistent=False)

    def _tokenize(self, texts: Sequence[Sequence[str]]) -> Tensor:
        """Token ids of C classes with L sentences each: (C, L, l)."""
        counts = {len(sentences) for sentences in texts}
        if counts == {1} and self.subactions != "single":
            raise UserError(f"subactions: {self.subactions} needs several sentences a class; set subactions: single")
        if counts != {1} and self.subactions == "single":
            raise UserError(f"subactions: single with {max(counts)} sentences a class; set stages or average")
        flat = self.backbone.tokenize([sentence for sentences in texts for sentence in sentences])
        return flat.unflatten(0, (len(texts), -1))

    def class_texts(self, class_ids: Tensor) -> Tensor:
        """Text features of base classes, with gradient: (E, N) -> (E, N, L, D). Each class is encoded once."""
        if len(class_ids) == 1:  # they differ, and `unique` would wait for the device
            classes, place = class_ids[0], torch.arange(class_ids.shape[1], device=class_ids.device)[None]
        else:
            classes, place = class_ids.unique(return_inverse=True)
        if self.finetune == "full":  # tokenised together, to the length of the longest
            return self.text(self.clip, self.base_ids[classes], trim=False)[place]
        return self.text.rest(self.clip, self.base_tokens[classes], self.base_ends[classes])[place]

    @torch.no_grad()
    def encode_texts(self, texts: Sequence[Sequence[str]]) -> Tensor:
        """Text features of C classes with L sentences each: (C, L, D)."""
        return self.text(self.clip, self._tokenize(texts)).float()

    # Videos: the trunk once, the rest with those that the task shows

    def encode(self, clips: Tensor) -> Tensor:
        """(B, T, 3, H, W) -> tokens (B, T, P, W) where the first adapted layer begins; if nothing after that depends
        on the task, the features (B, T, D). Of tokens that `trunk` gave it is the rest."""
        tokens = clips if clips.dim() == 4 else self.visual.trunk(self.clip, clips)
        return tokens if self.related else self.visual.rest(self.clip, tokens[:, None]).squeeze(1)

    def trunk(self, clips: Tensor) -> Tensor:
        """Tokens where the first adapted layer begins: (B, T, 3, H, W) -> (B, T, P, W); without one CLS alone, P = 1.

        Raises UserError if they are trained, or no layer is below them.
        """
        if self.visual.trains_trunk(self.clip) or not self.visual.first:
            raise UserError(
                "train.stored_views: no frozen layer lies below the first trained one, so there is nothing to store; "
                "leave it out, or see the keys finetune, layers, placement and temporal_embedding of the model"
            )
        tokens = self.visual.trunk(self.clip, clips)
        return tokens if self.visual.places else tokens[:, :, :1]

    def frame_layers(self) -> list[nn.Module]:
        """Plain layers, and the adapters with the layers that they adapt, which run as one."""
        return [*super().frame_layers(), *self.visual.adapters]

    def relate(self, videos: Tensor) -> Tensor:
        """Videos of a task that see each other in Task-MSA: (E, M, T, P, W) -> (E, M, T, D)."""
        return self.visual.rest(self.clip, videos) if self.related else videos

    def relate_queries(self, queries: Tensor) -> Tensor:
        """The queries of a task, each alone or, `transductive`, all together: (E, Q, T, P, W) -> (E, Q, T, D)."""
        return self.relate(queries) if self.transductive else super().relate_queries(queries)

    # Scores

    def prototypes(self, support: Tensor, texts: Tensor | None) -> Tensor:
        """Mean of the shots, frame by frame (Eq. 10): (E, N, K, T, D) -> (E, N, T, D)."""
        return merge_shots(support)

    def match(self, query: Tensor, prototypes: Tensor, texts: Tensor | None, matcher: str | None = None) -> Scores:
        """{"vv", "vt", "both"}, each (E, Q, N), of queries (E, Q, T, D), prototypes (E, N, T, D), texts (E, N, L, D);
        without texts "vv" alone.

        Raises UserError for an unknown matcher, TRX without its weights, or a transposed score without one query a
        class.
        """
        matcher = matcher or self.matcher
        if matcher not in TASK_MATCHERS:
            raise unknown("matcher", matcher, TASK_MATCHERS)
        query, prototypes = query.float(), prototypes.float()
        with torch.autocast(query.device.type, enabled=False):  # 64 times a cosine in half precision would be coarse
            scores = {} if texts is None else {"vt": self._text_score(query, texts.float())}
            if matcher == "cosine":
                scores["vv"] = self._cosine(query, prototypes)
            else:
                scores["log_vv"] = (-self._distance(matcher, query, prototypes)).log_softmax(-1)
                scores["vv"] = scores["log_vv"].exp()
        if texts is None:
            return scores
        if self.transposed and query.shape[1] != prototypes.shape[1]:
            raise UserError(
                f"transposed: true with {query.shape[1]} queries for {prototypes.shape[1]} classes; "
                "it needs one query a class (query: 1)"
            )
        text = scores["vt"].transpose(-1, -2) if self.transposed else scores["vt"]
        video = scores["vv"] + (self.offset if matcher == "cosine" else 0.0)
        scores["both"] = video * (text + self.offset)
        return scores

    def training_logits(self, scores: Scores) -> Tensor:
        """64 times the product of the two scores."""
        return TEMPERATURE * scores["both"]

    def _cosine(self, query: Tensor, prototypes: Tensor) -> Tensor:
        if self.cosine == "means":
            return unit_similarity(query.mean(-2), prototypes.mean(-2))
        if self.cosine == "aligned":
            one, other = (F.normalize(x, dim=-1).flatten(-2) for x in (query, prototypes))
            return one @ other.transpose(-1, -2) / query.shape[-2]
        mean_query, mean_prototypes = (F.normalize(x, dim=-1).mean(-2) for x in (query, prototypes))
        return mean_query @ mean_prototypes.transpose(-1, -2)

    def _distance(self, matcher: str, query: Tensor, prototypes: Tensor) -> Tensor:
        if matcher != "trx":
            return frame_distance(matcher, query, prototypes, self.lam)
        if not self.trx:
            raise UserError("matcher: trx has weights of its own; name it as the matcher that the model trains with")
        return torch.stack([transformer(prototypes.unsqueeze(2), query) for transformer in self.trx]).mean(0)

    def stage_scores(self, query: Tensor, texts: Tensor) -> Tensor:
        """Cosines of the stages of queries (E, Q, T, D) and the sentences of classes (E, N, L, D): (E, Q, N, S).

        Their mean over the stages is the score "vt".
        """
        return stage_cosines(*self._aligned(query, texts), self.average_first)

    def _text_score(self, query: Tensor, texts: Tensor) -> Tensor:
        return stage_similarity(*self._aligned(query, texts), self.average_first)

    def _aligned(self, query: Tensor, texts: Tensor) -> tuple[Tensor, Tensor]:
        """Aligned frames (E, Q, n, D), and what they meet (E, N, S, D)."""
        texts = texts.mean(-2, keepdim=True) if self.subactions == "average" else texts
        if self.transductive:
            return self.alignment(query), texts
        # each query is an episode of its own
        return self.alignment(query.flatten(0, 1)[:, None]).squeeze(1).unflatten(0, query.shape[:2]), texts
