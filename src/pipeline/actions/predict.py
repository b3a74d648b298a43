"""Labels for clips from a few examples of each class, by a trained few-shot model or a frozen backbone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.actions.calibration import Calibration, from_support, nearest
from pipeline.actions.clips import OwnClip, Sampled
from pipeline.actions.model import FROZEN, ActionModel, Encoded
from pipeline.actions.neighbours import Neighbour, nearest_clip
from pipeline.errors import UserError
from pipeline.guarded import Failure
from pipeline.models.few_shot.phases import PHASES, phases_of
from pipeline.text.corpus import Corpus

TOP = 5
ALPHA = 0.5  # where no validation chose one
AT_ONCE = 16  # examples that are compared with all others in one call


@dataclass(frozen=True, slots=True)
class Guess:
    """A class with its probability, and that of each branch by itself (None without texts)."""

    label: str
    score: float
    video_video: float | None
    video_text: float | None


@dataclass(frozen=True)
class Prediction:
    """What a model says of a clip.

    top: the best classes, best first. frames, seconds: of the T frames that it saw, in the video (seconds empty where
    the rate is unknown). phase: which of the phases each of them belongs to, from 1.
    """

    clip: OwnClip
    top: list[Guess]
    frames: list[int]
    seconds: list[float]
    phase: list[int]
    texts: list[str] = field(default_factory=list)
    """What the best class does in each phase, where the method reads atomic descriptions."""
    unsure: bool = False
    """The best two classes are closer than the calibration error."""
    rejected: bool = False
    """The best class is less probable than was asked for: perhaps none of the classes."""
    neighbour: Neighbour | None = None
    """The example that is most like it, of a model that compares frames."""

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        made = {"clip": self.clip.name, "top": [asdict(guess) for guess in self.top], "frames": self.frames}
        made |= {"unsure": self.unsure, "rejected": self.rejected}
        made |= {"nearest": asdict(self.neighbour)} if self.neighbour else {}
        made |= {"seconds": self.seconds, "phase": self.phase}
        return made | ({"texts": self.texts} if self.texts else {}) | ({"truth": self.clip.label} if self.truth else {})

    @property
    def truth(self) -> str:
        """The clip's class, where it is known."""
        return self.clip.label

    @property
    def right(self) -> bool:
        """Whether the best class is the clip's own."""
        return self.top[0].label == self.clip.label


class Labeller:
    """A model that has seen a few clips of each class.

    Args:
        model: the trained model.
        support: clips of every class, encoded.
        corpus: texts of the classes; None: the videos alone decide.
        alpha: weight of the video-video score; None: the one that validation chose for this number of shots, the
            method's own fusion if it has one, else 0.5.
        reject: probability (0 to 1) below which the best class of a clip is not taken for an answer.

    Raises:
        UserError: fewer than two classes, a method that is not made for single queries, a missing text, or an alpha
            or a reject out of range, or an alpha without texts.
    """

    def __init__(
        self, model: ActionModel, support: Sequence[Encoded], corpus: Corpus | None = None, alpha: float | None = None,
        reject: float = 0.0,
    ) -> None:  # fmt: skip
        if model.model.class_order:
            raise UserError(f"{model.about.run} needs one query of each class (transposed: true); take another run")
        if alpha is not None and not 0 <= alpha <= 1:
            raise UserError(f"alpha is {alpha}; give a number from 0 (texts alone) to 1 (videos alone)")
        if not 0 <= reject < 1:
            raise UserError(f"reject is {reject}; give a probability from 0 (reject nothing) to less than 1")
        self.model, self.reject = model, reject
        self.classes = sorted({clip.clip.label for clip in support})
        if len(self.classes) < 2:
            raise UserError(f"the support has {len(self.classes)} class with readable clips; give at least two")
        of_class = {name: [item.features for item in support if item.clip.label == name] for name in self.classes}
        self.shots = {name: len(clips) for name, clips in of_class.items()}
        self.alpha = model.alpha(max(self.shots.values())) if alpha is None else alpha
        self.corpus = corpus.named(self.classes)[0] if corpus and model.model.wants_text else None
        if alpha is not None and self.corpus is None:
            raise UserError("alpha weighs videos against texts; give texts, to a method that reads them, or no alpha")
        self._texts = None if self.corpus is None else model.class_texts(self.corpus, self.classes)[None]
        self._prototypes = self._prototypes_of(list(of_class.values()))
        self._support = list(support)
        self.calibration = self._calibrated()

    def _calibrated(self) -> Calibration:
        """How its scores become probabilities."""
        about = self.model.about
        if about.method != FROZEN:
            return nearest(about.calibrations, max(self.shots.values()), self.corpus is not None)
        labels = [self.classes.index(item.clip.label) for item in self._support]
        return from_support(self._example_scores(), labels, about.arguments["matcher"])

    @torch.inference_mode()
    def _example_scores(self) -> np.ndarray:
        """Scores (V, V) of each example as a query against each as the only one of a class."""
        clips = torch.stack([item.features for item in self._support])
        model = self.model.model
        prototypes = model.prototypes(clips[None, :, None], None)
        rows = [model.match(part[None], prototypes, None)["vv"][0] for part in clips.split(AT_ONCE)]
        return torch.cat(rows).double().cpu().numpy()

    @torch.inference_mode()
    def _prototypes_of(self, clips: list[list[Tensor]]) -> Any:
        """Prototypes of one episode. Every class needs as many shots: one with fewer shows some of them again."""
        most = max(map(len, clips))
        rows = [torch.stack([shots[i % len(shots)] for i in range(most)]) for shots in clips]
        related = self.model.model.relate_supports(torch.stack(rows)[None])
        return self.model.model.prototypes(related, self._texts)

    def label(
        self, clips: Sequence[OwnClip], workers: int = 1
    ) -> Iterator[tuple[OwnClip, Sampled, Prediction] | tuple[OwnClip, Failure]]:
        """What each clip shows, with the frames that the model saw, or why it cannot be read; in their order."""
        for item in self.model.encode(clips, workers):
            yield (item.clip, item.seen, self.predict(item)) if isinstance(item, Encoded) else item

    @torch.inference_mode()
    def predict(self, query: Encoded) -> Prediction:
        """What an encoded clip shows; every clip is a query of its own."""
        model = self.model.model
        scores = model.match(model.relate_queries(query.features[None, None]), self._prototypes, self._texts)
        video = scores.get("log_vv", scores["vv"].log_softmax(-1))
        text = scores["vt"].log_softmax(-1) if "vt" in scores else None
        fused = self._fused(video, text, scores.get("both"))
        heat = self.calibration.temperature
        columns = [_probabilities(fused, heat), _probabilities(video, heat if text is None else 1.0)]
        columns.append(None if text is None else _probabilities(text))
        order = np.argsort(-columns[0], kind="stable")[:TOP]
        top = [
            Guess(self.classes[i], *(None if column is None else round(float(column[i]), 6) for column in columns))
            for i in order
        ]
        seen = query.seen
        return Prediction(
            query.clip,
            top,
            seen.positions.tolist(),
            seen.seconds.round(3).tolist(),
            phases_of(model, query.features),
            self._atoms(top[0].label),
            unsure=top[0].score - top[1].score < self.calibration.error,
            rejected=top[0].score < self.reject,
            neighbour=nearest_clip(query, [item for item in self._support if item.clip.label == top[0].label]),
        )

    def _fused(self, video: Tensor, text: Tensor | None, own: Tensor | None) -> Tensor:
        """Log-probabilities of both branches together (LGA, Eq. 5), or the method's own fusion."""
        if own is not None and self.alpha is None:
            return own
        if text is None:
            return video
        alpha = ALPHA if self.alpha is None else self.alpha
        return alpha * video + (1 - alpha) * text

    def _atoms(self, label: str) -> list[str]:
        """The atomic descriptions of a class, one a phase, of a method that reads them."""
        if self.corpus is None or self.model.about.texts.get("text") != "atomic":
            return []
        return self.corpus.atomic(label, self.model.about.texts.get("atoms", PHASES))


def _probabilities(logits: Tensor, temperature: float = 1.0) -> np.ndarray:
    """(1, 1, N) -> (N,), which sum to 1."""
    return (logits[0, 0].double() / temperature).softmax(-1).cpu().numpy()


def proportion(right: int, count: int) -> tuple[float, float, float]:
    """Accuracy in per cent with the ends of its 95 % interval (Wilson), over `count` queries of one support set."""
    from scipy.stats import binomtest

    found = binomtest(right, count).proportion_ci(0.95, method="wilson")
    return 100 * right / count, 100 * found.low, 100 * found.high
