"""Plain matching of CLIP frame features: OTAM, fine-tuned, and CLIP as it is."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pipeline.compat import MODELS
from pipeline.models.few_shot.base import FewShotModel, Scores
from pipeline.models.few_shot.matchers import frame_distance


class FrameMatching(FewShotModel):
    """A class is as far from a query as its shots are on average; no text, no prototype."""

    wants_text = False

    def __init__(self, backbone: dict[str, Any], matcher: str, lam: float = 0.1, **kwargs: Any) -> None:
        super().__init__(backbone, **kwargs)
        self.matcher, self.lam = matcher, lam

    def condense(self, features: Tensor, matcher: str | None = None) -> Tensor:
        """(V, T, D), or the mean frame (V, 1, D) where nothing else is compared."""
        return features.mean(-2, keepdim=True) if (matcher or self.matcher) == "mean" else features

    def prototypes(self, support: Tensor, texts: Tensor | None = None) -> Tensor:
        """The shots themselves: (E, N, K, T, D)."""
        return support

    def match(self, query: Tensor, prototypes: Tensor, texts: Tensor | None, matcher: str | None = None) -> Scores:
        """{"vv": (E, Q, N)}: minus the mean distance to the K shots of a class."""
        way, shots = prototypes.shape[1:3]
        distance = frame_distance(matcher or self.matcher, query, prototypes.flatten(1, 2), self.lam)
        return {"vv": -distance.unflatten(-1, (way, shots)).mean(-1)}


@MODELS.register_module()
class Otam(FrameMatching):
    """OTAM (Cao et al., CVPR 2020) on CLIP frames: ordered alignment in both directions, lambda 0.1."""

    def __init__(self, backbone: dict[str, Any], lam: float = 0.1, **kwargs: Any) -> None:
        super().__init__(backbone, matcher="otam", lam=lam, **kwargs)


@MODELS.register_module()
class ClipFreeze(FrameMatching):
    """CLIP-Freeze: cosine of the mean frames of frozen CLIP (`matcher: mean`), or another matcher on them."""

    def __init__(self, backbone: dict[str, Any], matcher: str = "mean", lam: float = 0.1, **kwargs: Any) -> None:
        super().__init__(backbone, matcher=matcher, lam=lam, **kwargs)
        self.requires_grad_(False)
