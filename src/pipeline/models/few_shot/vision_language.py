"""Vision-language models as they are: no training, no supports; a query is named by its frames (LGA, Figure 3)."""

from __future__ import annotations

import math
import string
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.compat import MODELS
from pipeline.errors import UserError, unknown
from pipeline.models import matchers
from pipeline.models.backbones import vision_language  # noqa: F401  (registers them)
from pipeline.models.backbones.vision_language import Asked
from pipeline.models.few_shot.base import FewShotModel, Scores

SHOWN = ("images", "single", "grid")
MATCHERS = matchers.MATCHERS["VisionLanguage"]
AT_ONCE = 16  # questions


@MODELS.register_module()
class VisionLanguage(FewShotModel):
    """What a model of images and words says of a query's frames, without any training. The paper gives neither prompt
    nor options, so both are this project's.

    Without the labels in the prompt the score of a class is the log-likelihood of its name after the question, over its
    number of tokens (`matcher: sum` does not divide); it is worked out once a test. With them the names are listed as
    A, B, ..., in the order of the episode's classes, and the score is that of the letter. A server names one of the
    options, which gets the highest score.

    Args:
        question: the words of every question.
        labels: whether the names of the classes follow it.
        show: `images`, the frames as images of one prompt; `single`, a prompt for each frame, whose scores are
            averaged; `grid`, the frames as one image.
    """

    condensed = True

    def __init__(
        self,
        backbone: dict[str, Any],
        base_texts: Sequence[Sequence[str]] = (),
        question: str = "What action is the person performing?",
        labels: bool = False,
        show: str = "images",
        **kwargs: Any,
    ) -> None:
        super().__init__(backbone, base_texts, **kwargs)
        if show not in SHOWN:
            raise unknown("show", show, SHOWN)
        if not hasattr(self.backbone, "weigh"):
            kind = type(self.backbone).__name__
            raise UserError(f"VisionLanguage asks a model of images and words, and its backbone is a {kind}")
        self.question, self.labels, self.show = question, labels, show
        self.videos: Tensor | None = None

    # Names in the place of features

    def register_texts(self, base_texts: Sequence[Sequence[str]]) -> None:
        """Keep the names of the base classes."""
        self.names: dict[str, int] = {}
        super().register_texts(base_texts)

    def encode_texts(self, texts: Sequence[Sequence[str]]) -> Tensor:
        """The numbers of the names of C classes: (C, 1, 1). Raises UserError for several sentences a class."""
        if any(len(sentences) != 1 for sentences in texts):
            raise UserError("VisionLanguage reads one name a class; set text: label and one template")
        numbers = [self.names.setdefault(name, len(self.names)) for (name,) in texts]
        self.wanted = numbers
        return torch.tensor(numbers, dtype=torch.float).reshape(-1, 1, 1)

    # Videos

    def encode(self, clips: Tensor) -> Tensor:
        """The frames as they are: (B, T, 3, H, W), in [0, 1]."""
        return clips

    @property
    def _once(self) -> bool:
        """A video can be weighed against all names, whatever episode it comes in."""
        return self.backbone.likelihoods and not self.labels

    def condense(self, features: Tensor, matcher: str | None = None) -> Tensor:
        """Frames (V, T, 3, H, W) -> scores of all names (V, C); the number of each video (V, 1) where they depend on
        its episode."""
        if not self._once:
            self.videos = features
            return torch.arange(len(features), dtype=torch.float)[:, None]
        names = list(self.names)
        wanted = [names[number] for number in self.wanted]
        scores = torch.zeros(len(features), len(names))
        scores[:, self.wanted] = self._weigh(((video, wanted) for video in features), matcher)
        return scores.to(features.device)

    def prototypes(self, support: Tensor, texts: Tensor | None = None) -> Tensor:
        """The supports, which nobody looks at."""
        return support

    def match(self, query: Tensor, prototypes: Tensor, texts: Tensor | None, matcher: str | None = None) -> Scores:
        """{"vv": (E, Q, N)}: how likely each name is, of frames (E, Q, T, 3, H, W), or of what `condense` gave.

        Raises UserError for a matcher other than "mean" and "sum".
        """
        if matcher not in (None, *MATCHERS):
            raise unknown("matcher", matcher, MATCHERS, "method VisionLanguage")
        numbers = texts[..., 0, 0].long().to(query.device)  # (E, N)
        if query.dim() == 3 and self._once:
            return {"vv": query.gather(-1, numbers[:, None].expand(-1, query.shape[1], -1))}
        videos = self.videos[query[..., 0].long().cpu()] if query.dim() == 3 else query
        names = list(self.names)
        asked = (
            (video, [names[number] for number in row])
            for of_episode, row in zip(videos, numbers.tolist(), strict=True)
            for video in of_episode
        )
        return {"vv": self._weigh(asked, matcher).unflatten(0, query.shape[:2]).to(query.device)}

    # Questions

    def _weigh(self, asked: Iterable[tuple[Tensor, list[str]]], matcher: str | None) -> Tensor:
        """Scores (n, O) of pairs of a video (T, 3, H, W) and O names."""
        found, waiting = [], []

        def ask() -> None:
            scores = self.backbone.weigh([one for several in waiting for one in several], matcher != "sum")
            found.append(scores.unflatten(0, (len(waiting), -1)).mean(1))
            waiting.clear()

        for video, names in asked:
            waiting.append(self._questions(video, names))
            if len(waiting) == AT_ONCE:
                ask()
        if waiting:
            ask()
        return torch.cat(found)

    def _questions(self, video: Tensor, names: Sequence[str]) -> list[Asked]:
        """A question for each prompt of a video."""
        question, options = self.question, tuple(names)
        if self.labels:
            options = tuple(string.ascii_uppercase[: len(names)])
            listed = "\n".join(f"{letter}. {name}" for letter, name in zip(options, names, strict=True))
            question = f"{question}\n{listed}\nAnswer with the letter."
        elif self.backbone.likelihoods:
            question = f"{question} Answer with a short phrase."
        return [Asked(pictures, question, options) for pictures in self._pictures(video)]

    def _pictures(self, video: Tensor) -> list[tuple[np.ndarray, ...]]:
        """What each prompt shows of a video (T, 3, H, W)."""
        frames = (video.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
        if self.show == "single":
            return [(frame,) for frame in frames]
        if self.show == "images":
            return [tuple(frames)]
        return [(grid(frames),)]


def grid(frames: np.ndarray) -> np.ndarray:
    """Frames (T, H, W, 3) row by row in one square picture, black where there is none."""
    side = math.ceil(math.sqrt(len(frames)))
    places = np.zeros((side * side, *frames.shape[1:]), np.uint8)
    places[: len(frames)] = frames
    rows = places.reshape(side, side, *frames.shape[1:]).swapaxes(1, 2)
    return rows.reshape(side * frames.shape[1], side * frames.shape[2], 3)
