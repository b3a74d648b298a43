"""TEAM (Lee et al., CVPR 2025): a video as learnt pattern tokens that gather its frames, compared one by one."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.compat import MODELS
from pipeline.errors import unknown
from pipeline.models import matchers
from pipeline.models.few_shot.base import EpisodeBatch, FewShotModel, Scores
from pipeline.models.few_shot.blocks.positions import PositionCode
from pipeline.models.few_shot.matching import merge_shots

MATCHERS = matchers.MATCHERS["TEAM"]
ADAPTATIONS = ("similar", "plain", "none")
NEGATIVES = ("farthest", "nearest", "none")
HEADS = 8  # they only set the scale of the attention, whose one head has all dimensions
DROPOUT = 0.1


class Tokens(NamedTuple):
    """What the patterns gather of a video, and its instance and exclusive tokens, each (..., M, D)."""

    gathered: Tensor
    instance: Tensor
    exclusive: Tensor


class PatternTokens(nn.Module):
    """M learnt patterns attend over the frames of a video, by one head and without projections.

    Keys and values are the normalised frames with their position code, the scale is the root of an eighth of the width.
    """

    def __init__(self, count: int, dim: int) -> None:
        super().__init__()
        self.patterns = nn.Parameter(torch.randn(count, dim))
        self.position = PositionCode(dim, dropout=DROPOUT)
        self.norm = nn.LayerNorm(dim)
        self.inside, self.outside = nn.Linear(dim, dim), nn.Linear(dim, dim)

    def forward(self, frames: Tensor) -> Tokens:
        """(..., T, D) -> tokens (..., M, D)."""
        seen, asks = self.norm(self.position(frames)), self.norm(self.patterns)
        weights = (asks @ seen.transpose(-1, -2) / math.sqrt(frames.shape[-1] // HEADS)).softmax(-1)
        gathered = self._dropped(self._dropped(weights) @ seen)
        return Tokens(gathered, self.mix(gathered).relu(), self.mix(-gathered).relu())

    def mix(self, change: Tensor) -> Tensor:
        """The patterns with a change (..., M, D) through the network that all tokens share: (..., M, D)."""
        tokens = self.patterns + change
        return tokens + self.outside(self.inside(tokens).relu())

    def _dropped(self, x: Tensor) -> Tensor:
        return F.dropout(x, DROPOUT, self.training)


@MODELS.register_module()
class TEAM(FewShotModel):
    """Instance tokens say what a video has of each pattern, exclusive ones what it has not. The tokens of a class are
    adapted to the other classes of its episode: what they share with them is made smaller.

    Score: minus the sum over the tokens of 1 - cosine of a query's and a class's instance tokens, minus a term of the
    other classes' tokens. Loss: cross-entropy of each of the two.

    Args:
        tokens: M.
        adaptation: `similar`, by the cosine of the two classes' tokens; `plain`, by 1; `none`.
        negative: the other class that counts: `farthest`, as released, whose distance is the same for all classes but
            one; `nearest`; `none`, instance tokens alone.
    """

    wants_text = False
    episodes_at_once = 8  # every pair of classes has tokens of its own

    def __init__(
        self,
        backbone: dict[str, Any],
        tokens: int = 60,
        adaptation: str = "similar",
        negative: str = "farthest",
        **kwargs: Any,
    ) -> None:
        super().__init__(backbone, **kwargs)
        for name, value, known in (("adaptation", adaptation, ADAPTATIONS), ("negative", negative, NEGATIVES)):
            if value not in known:
                raise unknown(name, value, known)
        self.patterns = PatternTokens(tokens, self.backbone.dim)
        self.adaptation, self.negative = adaptation, negative

    def prototypes(self, support: Tensor, texts: Tensor | None = None) -> Tokens:
        """Tokens of each class's mean video, (E, N, K, T, D) -> (E, N, M, D), which know no other class."""
        return self.patterns(merge_shots(support))

    def relate_queries(self, queries: Tensor) -> Tokens:
        """(E, Q, T, D) -> tokens (E, Q, M, D)."""
        return self.patterns(queries)

    def match(
        self, query: Tokens, prototypes: Tokens, texts: Tensor | None = None, matcher: str | None = None
    ) -> Scores:
        """Each (E, Q, N): "positive" and, where there is one, "negative", and "vv", their sum.

        Raises UserError for a matcher other than "tokens".
        """
        if matcher not in (None, *MATCHERS):
            raise unknown("matcher", matcher, MATCHERS, "method TEAM")
        instance, exclusive = self.adapted(prototypes)
        positive = -token_distance(query.instance, instance)
        if self.negative == "none":
            return {"vv": positive, "positive": positive}
        crossed = (token_distance(query.exclusive, instance), token_distance(query.instance, exclusive))
        negative = -sum(self._of_others(distance) for distance in crossed) / 2
        return {"vv": positive + negative, "positive": positive, "negative": negative}

    def adapted(self, classes: Tokens) -> tuple[Tensor, Tensor]:
        """Instance and exclusive tokens (E, N, M, D) of each class beside the others: means over these."""
        way = classes.instance.shape[-3]
        if self.adaptation == "none" or way == 1:
            return classes.instance, classes.exclusive
        others = other_classes(way, classes.instance.device)
        pairs = []
        for tokens, sign in ((classes.instance, 1), (classes.exclusive, -1)):
            shared = 1.0
            if self.adaptation == "similar":
                shared = F.cosine_similarity(tokens.unsqueeze(-3), tokens[..., others, :, :], dim=-1).unsqueeze(-1)
            own, of_others = classes.gathered.unsqueeze(-3), classes.gathered[..., others, :, :]
            changed = (1 + shared) * own - shared * of_others
            pairs.append(self.patterns.mix(sign * changed).relu().mean(-3))
        return pairs[0], pairs[1]

    def _of_others(self, distance: Tensor) -> Tensor:
        """(E, Q, N) to all classes -> of each class that to the farthest or nearest of the others."""
        of_others = distance[..., other_classes(distance.shape[-1], distance.device)]
        return of_others.amax(-1) if self.negative == "farthest" else of_others.amin(-1)

    def training_logits(self, scores: Scores) -> Tensor:
        """Those of the instance tokens; the other term has a loss of its own."""
        return scores["positive"]

    def auxiliary(self, batch: EpisodeBatch, scores: Scores) -> dict[str, Tensor]:
        """{"loss_negative"}: cross-entropy of the term of the other classes."""
        if "negative" not in scores:
            return {}
        return {"loss_negative": F.cross_entropy(scores["negative"].flatten(0, 1), batch.query_labels.flatten())}


def other_classes(way: int, device: torch.device) -> Tensor:
    """(N, N - 1): the numbers of the other classes of each class, ascending."""
    every = torch.arange(way, device=device)
    return every.expand(way, -1)[every[:, None] != every].unflatten(0, (way, way - 1))


def token_distance(query: Tensor, classes: Tensor) -> Tensor:
    """Sum over the tokens of 1 - cosine: (E, Q, M, D), (E, N, M, D) -> (E, Q, N)."""
    one, other = (F.normalize(tokens, dim=-1, eps=1e-8).flatten(-2) for tokens in (query, classes))
    return query.shape[-2] - one @ other.transpose(-1, -2)
