"""Questions on videos, answered from the frozen features of another run (SeFAR, Table 5)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.compat import MODELS
from pipeline.errors import UserError, unknown
from pipeline.experiment import Measure, Run
from pipeline.models.build import backbone_source, load_weights
from pipeline.models.matchers import MATCHERS
from pipeline.models.questions import QuestionModel
from pipeline.models.semi import SeFARModel
from pipeline.scores import EpisodeScores
from pipeline.tasks.base import Items, epochs_as_steps
from pipeline.tasks.questions.questions import EVENT, Question, class_names, draw_question
from pipeline.tasks.semi.task import LabelledTask, OneItem, SemiTask
from pipeline.workspace import Workspace

ORDER, DRAWN, ASKED = 4, 5, 6  # streams of random numbers
AT_ONCE = 16  # questions that are answered at a time
SCORINGS = MATCHERS["QuestionModel"]


class QuestionItems(Items):
    """Batches of labelled videos with a question on each.

    Item i is a dict: features (B, n, D) and, of the right answers, ids, seen and answer (`models.questions.Words`);
    episode: the number i. Options are drawn anew each time, so that an answer cannot be learnt from its question.
    Everything depends on (seed, i) alone.
    """

    def __init__(
        self, model: QuestionModel, features: Tensor, answers: list[str], names: list[str], batch: int, count: int,
        seed: int,
    ) -> None:  # fmt: skip
        self.model, self.features, self.answers, self.names = model, features, answers, names
        self.batch, self.count, self.seed = batch, count, seed
        self.per_epoch = max(len(answers) // batch, 1)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        if not 0 <= i < self.count:
            raise IndexError(i)
        epoch, place = divmod(i, self.per_epoch)
        order = np.random.default_rng(np.random.SeedSequence([self.seed, ORDER, epoch])).permutation(len(self.answers))
        chosen = np.resize(order, self.per_epoch * self.batch)[place * self.batch : (place + 1) * self.batch]
        rng = np.random.default_rng(np.random.SeedSequence([self.seed, DRAWN, i]))
        asked = [draw_question(self.answers[j], self.names, rng).text(self.model.question) for j in chosen]
        words = self.model.words(asked, [self.answers[j] for j in chosen])
        return {"features": self.features[chosen], **words._asdict(), "episode": torch.tensor(i)}


class QuestionTask(LabelledTask):
    """Four options to a video: which of them its features make the most likely."""

    @cached_property
    def encoder(self) -> SemiTask:
        """The run whose features are read.

        Raises UserError when it is of another kind.
        """
        run = self.ws.read_run(self.run.model["encoder_run"])
        kind = MODELS.get(run.model["type"])
        if not (isinstance(kind, type) and issubclass(kind, SeFARModel)):
            raise UserError(f"{self.run.id}: the encoder {run.method} is not a video classifier; name one like sefar")
        return SemiTask(run, self.ws)

    @cached_property
    def names(self) -> list[str]:
        """What each class is called in questions."""
        asset = self.ws.read_asset(self.run.dataset)
        found = class_names(self.store.classes(), asset.options.get("names"), asset.name)
        return [EVENT.sub("", name) for name in found]

    def schedule(self) -> dict[str, Any]:
        train = self.run.train
        items = train["batches_per_step"]
        per_epoch = max(len(self.videos.labelled) // train["batch"] // items, 1)
        steps = train["steps"] or train["epochs"] * per_epoch
        return epochs_as_steps(train, steps) | {"items": items}

    @cached_property
    def _encoder_model(self) -> torch.nn.Module:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        return load_weights(self.encoder.build(), self.encoder.run, self.ws).to(device)

    def build(self) -> QuestionModel:
        model = build_question_model(self.run, self.ws, self._encoder_model.network.backbone.dim, self.names)
        model.data_preprocessor = OneItem((0.0,) * 3, (1.0,) * 3)  # the features are no frames
        return model

    def items(self, model: QuestionModel) -> QuestionItems:
        train, videos = self.schedule(), self.videos
        features = self.encoder.features(self._encoder_model, videos.labelled.tolist())
        answers = [self.names[label] for label in videos.labels]
        count = train["steps"] * train["items"]
        return QuestionItems(model, features, answers, self.names, train["batch"], count, self.run.seed)

    def validate(self, model: QuestionModel) -> EpisodeScores:
        return self._answer(model, self.selection_split, 0, True)

    def scores(self, model: QuestionModel, measure: Measure, split: str, keep: bool = False) -> EpisodeScores:
        kind = measure.matcher or "mean"
        if kind not in SCORINGS:
            raise unknown("matcher", kind, SCORINGS, f"{self.run.id}, measure.matcher (of a question's options)")
        return self._answer(model, split, measure.episode_seed, kind == "mean")

    def questions(self, clips: list[int], seed: int) -> list[Question]:
        """A question on each of some videos: the same for every run, for they depend on seed and video alone."""
        right = [self.names[number] for number in self.right(clips)]
        streams = (np.random.default_rng(np.random.SeedSequence([seed, ASKED, clip])) for clip in clips)
        return [draw_question(name, self.names, rng) for name, rng in zip(right, streams, strict=True)]

    @cached_property
    def _features(self) -> dict[str, Tensor]:
        return {}

    @torch.no_grad()
    def _answer(self, model: QuestionModel, split: str, seed: int, normalise: bool) -> EpisodeScores:
        """Log-likelihoods (V, 1, 4) of the options of a question on each video of a split."""
        clips = self.clips(split)
        if split not in self._features:
            self._features[split] = self.encoder.features(self._encoder_model, clips)
        questions, features = self.questions(clips, seed), self._features[split]
        device, training = next(model.parameters()).device, model.training
        model.eval()
        parts = [
            model.weigh(features[first : first + AT_ONCE].to(device), questions[first : first + AT_ONCE], normalise)
            for first in range(0, len(clips), AT_ONCE)
        ]
        model.train(training)
        labels = np.array([question.right for question in questions])
        return EpisodeScores(torch.cat(parts)[:, None].float().cpu().numpy(), None, labels[:, None])


def build_question_model(run: Run, ws: Workspace, width: int, names: Sequence[str]) -> QuestionModel:
    """The untrained model of a run that answers questions, initialised from its seed.

    width: of the visual features. names: the words for the classes.

    Raises:
        UserError: unknown setting, or a language model that can't be read.
    """
    settings = {key: value for key, value in run.model.items() if key not in ("type", "encoder_run")}
    torch.manual_seed(run.seed)
    try:
        return MODELS.get(run.model["type"])(backbone_source(run.backbone, ws), width, names, **settings)
    except TypeError as error:
        raise UserError(f"method {run.method}: {str(error).split('__init__() ')[-1]}") from error
