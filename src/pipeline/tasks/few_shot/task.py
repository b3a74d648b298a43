"""Episodes of videos: training, validation and tests."""

from __future__ import annotations

import math
from functools import cached_property, partial
from typing import Any

import torch

from pipeline.datasets.frames import FrameStore
from pipeline.datasets.transforms import ClipTransform, draw_colours, draw_some_colours
from pipeline.experiment import Measure, Run
from pipeline.models.build import build_model
from pipeline.models.few_shot.base import FewShotModel
from pipeline.scores import EpisodeScores
from pipeline.tasks.base import SELECTION_SEED, Task, TimesTasks
from pipeline.tasks.few_shot.episodes import EpisodeDataset
from pipeline.tasks.few_shot.scoring import score_split, split_features, time_tasks
from pipeline.tasks.few_shot.stored_views import Views, remove_tokens, store_tokens


class FewShotTask(Task, TimesTasks):
    """Episodes of videos."""

    @cached_property
    def store(self) -> FrameStore:
        """The decoded frames."""
        return FrameStore(self.ws.store(self.run))

    def classes(self) -> dict[str, int]:
        return {split: len(self.store.classes(split)) for split in ("train", "val", "test")}

    def schedule(self) -> dict[str, Any]:
        return {**self.run.train, "items": self.run.train["episodes_per_step"]}

    def build(self) -> FewShotModel:
        model = build_model(self.run, self.ws, self.store)
        model.apart = self.run.train.get("bn_apart", False)
        return model

    def items(self, model: FewShotModel) -> EpisodeDataset:
        train = self.run.train
        settings = dict(
            store=self.store, split="train", way=train["way"], shot=train["shot"], query=train["query"],
            episodes=train["steps"] * train["episodes_per_step"], seed=self.run.seed,
            frames=self.run.frames["number"], mode=self.run.frames["sampling"],
            **self._augmentations(),
        )  # fmt: skip
        if train.get("stored_views"):
            return self._stored(Views(**settings, views=train["stored_views"]), model)
        return EpisodeDataset(**settings)

    def _augmentations(self) -> dict[str, Any]:
        """How supports and queries are cut out, and how their colours change."""
        train = self.run.train
        found: dict[str, Any] = {"colours": {}}
        for key, name, side in (("transform", "support", "supports"), ("query_transform", "query", "queries")):
            if train.get(f"jitter_{side}"):
                found[key], found["colours"][name] = augmentation(self.run, flip=0.5), draw_colours
            elif train.get("colour"):
                found["colours"][name] = partial(draw_some_colours, number=1 if train["colour"] == "one" else 4)
        return (
            {"transform": augmentation(self.run)}
            | found
            | (
                {"query_transform": augmentation(self.run)}
                if "transform" in found and "query_transform" not in found
                else {}
            )
        )

    def _stored(self, views: Views, model: FewShotModel) -> Views:
        """`views` as the tokens that the frozen layers of `model` make of them."""
        stored = store_tokens(self.run.id, views, model, self.ws.run(self.run.id), self.run.train["amp"])
        views.take(stored)
        return views

    def clean(self) -> None:
        remove_tokens(self.ws.run(self.run.id))

    def validate(self, model: FewShotModel) -> EpisodeScores:
        training = model.training
        model.eval()
        scores = score_split(
            self.run, model, self.ws, self.store, self.selection_split,
            way=self.run.train["way"], shot=self.run.train["shot"], query=1,
            episodes=self.run.train["validation_episodes"], seed=SELECTION_SEED,
        )  # fmt: skip
        model.train(training)
        return scores

    def chance_loss(self, model: FewShotModel) -> tuple[str, float]:
        return "loss_matching", math.log(self.run.train["way"])

    @cached_property
    def _features(self) -> dict[str, torch.Tensor]:
        return {}

    def scores(self, model: FewShotModel, measure: Measure, split: str, keep: bool = False) -> EpisodeScores:
        if split not in self._features:
            self._features[split] = split_features(self.run, model, self.ws, self.store, split, keep)
        scoring = measure.scoring_on(split)
        return score_split(
            self.run, model, self.ws, self.store, split, way=scoring["way"], shot=scoring["shot"],
            query=scoring["query"], episodes=scoring["episodes"], seed=scoring["episode_seed"],
            matcher=scoring["matcher"], features=self._features[split],
        )  # fmt: skip

    def times(self, model: FewShotModel, measure: Measure) -> list[float]:
        return time_tasks(self.run, measure, model, self.store, self.ws)


def augmentation(run: Run, flip: float | None = None) -> ClipTransform:
    """The training transform, with the recipe's probability of mirroring a clip or another one."""
    flip = run.train["flip"] if flip is None else flip
    return ClipTransform(train=True, crop=run.frames["crop"], per_frame=run.train["crop"] == "frame", flip=flip)
