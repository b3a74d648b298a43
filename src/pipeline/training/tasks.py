"""The kinds of experiment: what each brings to the one training loop and to the one way of measuring.

A task knows the data of a run, builds its model, says what a worker gets in one iteration, and scores the model.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any

import numpy as np
import torch
from mmengine.hooks import Hook
from torch.utils.data import Dataset

from pipeline.compat import MODELS
from pipeline.config import parse
from pipeline.datasets.episodes import EpisodeDataset
from pipeline.datasets.frames import FrameStore
from pipeline.datasets.prepare import skeleton_definition
from pipeline.datasets.skeletons.feeder import SkeletonDataset
from pipeline.datasets.skeletons.prepare import SkeletonDefinition, load_split
from pipeline.datasets.skeletons.protocols import OneShotSplit
from pipeline.datasets.skeletons.store import SkeletonStore
from pipeline.datasets.transforms import ClipTransform
from pipeline.errors import UserError, unknown
from pipeline.evaluation.evaluate import scoring_of
from pipeline.evaluation.few_shot import score_split, split_features
from pipeline.evaluation.one_shot import DATASETS, OneShot, measure_one_shot, sequences
from pipeline.evaluation.scores import EpisodeScores
from pipeline.experiment import Measure, Run
from pipeline.models.build import build_model, build_skeleton_model
from pipeline.models.methods.base import FewShotModel
from pipeline.models.questions import QuestionModel
from pipeline.models.sefar import SeFARModel
from pipeline.models.skeleton.base import SkeletonModel
from pipeline.models.skeleton.baseline import per_class_batches
from pipeline.models.skeleton.losses import contrastive_chance
from pipeline.training.stored_views import Views, remove_tokens, store_tokens
from pipeline.workspace import Workspace

SELECTION_SEED = 1  # of the episodes that select a checkpoint; tests use other ones


class Task:
    """One run, as training and evaluation see it."""

    def __init__(self, run: Run, ws: Workspace) -> None:
        self.run, self.ws = run, ws

    @property
    def selection_split(self) -> str:
        """The split on which a checkpoint is selected."""
        return "test" if self.run.selection == "test" else "val"

    def classes(self) -> dict[str, int]:
        """Number of classes of each split."""
        raise NotImplementedError

    def counts(self) -> dict[str, int]:
        """What else of the data `train.json` tells."""
        return {}

    def schedule(self) -> dict[str, Any]:
        """The recipe with all lengths in optimiser steps, and `items`, the iterations of all workers in one step."""
        raise NotImplementedError

    def build(self) -> torch.nn.Module:
        """The untrained model, initialised from the run's seed."""
        raise NotImplementedError

    def items(self, model: torch.nn.Module) -> Dataset:
        """What training sees, in its order: item i is one worker's iteration, and depends on (seed, i) alone."""
        raise NotImplementedError

    def hooks(self, model: torch.nn.Module, every: int) -> list[Hook]:
        """What the training of this kind does beside the steps; `every` iterations of a worker are a step."""
        return []

    def clean(self) -> None:
        """Delete what nobody needs once the run is trained."""

    def validate(self, model: torch.nn.Module) -> EpisodeScores:
        """Scores by whose accuracy a checkpoint is selected; the model stays as it was."""
        raise NotImplementedError

    def chance_loss(self, model: torch.nn.Module) -> tuple[str, float] | None:
        """Name of a loss of the training, and what guessing gives of it; None where that is not known."""
        return None

    def scores(self, model: torch.nn.Module, measure: Measure, split: str, keep: bool = False) -> EpisodeScores:
        """Scores of the test (or validation) that `measure` names; `keep` what other tests of the run read, too."""
        raise NotImplementedError

    def teacher_shares(self, model: torch.nn.Module) -> list[float]:
        """Share of a teacher's predictions in the time of training; UserError for a method without a teacher."""
        raise self._no_teacher()

    def teacher_predictions(self, model: torch.nn.Module) -> dict[str, list]:
        """What a teacher predicts for test videos; UserError for a method without a teacher."""
        raise self._no_teacher()

    def _no_teacher(self) -> UserError:
        return UserError(f"{self.run.id}: the method sees no unlabelled video, so it has no teacher")


def epochs_as_steps(train: dict[str, Any], steps: int) -> dict[str, Any]:
    """A recipe that counts in epochs, `train["epochs"]` of them in all, as one that counts in optimiser steps.

    `warmup_epochs`, `milestones` and `validate_epochs` are taken along, rounded to whole steps.
    """
    epoch = steps / train["epochs"]
    every = max(round(train["validate_epochs"] * epoch), 1)
    return train | {
        "steps": steps, "warmup_steps": round(train["warmup_epochs"] * epoch),
        "milestones": [round(number * epoch) for number in train["milestones"]],
        "validate_every": every, "checkpoint_every": every,
    }  # fmt: skip


class FewShotTask(Task):
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
            transform=augmentation(self.run, model),
        )  # fmt: skip
        if train.get("stored_views"):
            return self._stored(Views(**settings, views=train["stored_views"]), model)
        jittered = augmentation(self.run, model, jitter=True) if train["jitter_queries"] else None
        return EpisodeDataset(**settings, query_transform=jittered)

    def _stored(self, views: Views, model: FewShotModel) -> Views:
        """`views` as the tokens that the frozen layers of `model` make of them."""
        if self.run.train["jitter_queries"]:
            raise UserError(
                f"{self.run.id}: train.stored_views has one kind of view of a clip, and train.jitter_queries another "
                "for queries; leave one of them out"
            )
        stored = store_tokens(self.run.id, views, model, self.ws.run(self.run.id), self.run.train["amp"])
        views.read = stored.read
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
        scoring = scoring_of(measure, split)
        return score_split(
            self.run, model, self.ws, self.store, split, way=scoring["way"], shot=scoring["shot"],
            query=scoring["query"], episodes=scoring["episodes"], seed=scoring["episode_seed"],
            matcher=scoring["matcher"], features=self._features[split],
        )  # fmt: skip


def augmentation(run: Run, model: FewShotModel, jitter: bool = False) -> ClipTransform:
    """The training transform; with `jitter` that of the queries of a recipe which treats them differently."""
    extra = {"flip": 0.5, "jitter": True} if jitter else {"flip": run.train["flip"]}
    return ClipTransform(
        train=True, crop=run.frames["crop"], per_frame=run.train["crop"] == "frame", mean=model.mean, std=model.std,
        **extra,
    )  # fmt: skip


class Batches(Dataset):
    """Batches of a skeleton set, one an item, epoch after epoch.

    Item i is a dict: x (B, C, T, V, M), labels (B,), episode: the number i. Each epoch has an order of its own and
    leaves out the rest that makes no whole batch. per_class: clips of each class of a batch (MotionBERT); 0 does not
    look at the classes.
    """

    def __init__(self, dataset: SkeletonDataset, batch: int, per_class: int, seed: int, count: int) -> None:
        self.dataset, self.batch, self.per_class, self.seed, self.count = dataset, batch, per_class, seed, count
        self.per_epoch = max(len(dataset) // batch, 1)
        self._epoch, self._order = -1, np.empty((0, 0), dtype=np.int64)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        if not 0 <= i < self.count:
            raise IndexError(i)
        epoch, place = divmod(i, self.per_epoch)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._draw(epoch)
        chosen = [(epoch, int(j)) for j in self._order[place]]
        labels = [int(self.dataset.labels[j]) for _, j in chosen]
        return {"x": sequences(self.dataset, chosen), "labels": torch.tensor(labels), "episode": torch.tensor(i)}

    def _draw(self, epoch: int) -> np.ndarray:
        """(batches, B) places in the dataset."""
        rng = np.random.default_rng(np.random.SeedSequence([self.seed, epoch]))
        if self.per_class:
            return per_class_batches(self.dataset.labels, self.batch, self.per_class, rng)
        order = np.resize(rng.permutation(len(self.dataset)), max(len(self.dataset), self.batch))
        return order[: self.per_epoch * self.batch].reshape(self.per_epoch, self.batch)


class OneShotTask(Task):
    """One exemplar of each novel class, and queries: skeletons."""

    @cached_property
    def definition(self) -> SkeletonDefinition:
        """The data set as the run shows it."""
        return skeleton_definition(self.ws.read_asset(self.run.dataset), self.ws, self.run.frames)

    @cached_property
    def store(self) -> SkeletonStore:
        """The skeletons."""
        return SkeletonStore(self.ws.store(self.run), self.definition.policy)

    def split(self, split: str) -> OneShotSplit:
        """Base clips, exemplars and queries; of the validation classes where `split` is val."""
        return load_split(self.ws.dataset(self.run.dataset), self.store, self.run.train.get("base_set", ""), split)

    def classes(self) -> dict[str, int]:
        test, validation = self.split("test"), self.definition.protocol.validation
        found = {"train": len(test.base_classes), "test": len(test.novel_classes)}
        return found | ({"val": len(self.split("val").novel_classes)} if validation else {})

    def schedule(self) -> dict[str, Any]:
        train = self.run.train
        items = train["batches_per_step"]
        batches = train["epochs"] * max(len(self.split("test").base) // train["batch"], 1)
        return epochs_as_steps(train, train["steps"] or max(batches // items, 1)) | {"items": items}

    def build(self) -> SkeletonModel:
        return build_skeleton_model(self.run, self.ws, self.definition, self.split("test").base_classes)

    def items(self, model: SkeletonModel) -> Batches:
        train, split = self.run.train, self.split("test")
        made = self.definition
        dataset = DATASETS[made.feed.kind](
            self.store, split.base, split.base_labels, made.policy, made.feed, train=True, seed=self.run.seed
        )
        count = self.schedule()["steps"] * train["batches_per_step"]
        return Batches(dataset, train["batch"], train["per_class"], self.run.seed, count)

    def validate(self, model: SkeletonModel) -> EpisodeScores:
        return self._measure(model, self.split(self.selection_split), OneShot(classifier="nearest"), 0)

    def chance_loss(self, model: SkeletonModel) -> tuple[str, float]:
        if model.encoder.classifier is not None:
            return "loss_class", math.log(len(self.split("test").base_classes))
        return "loss_contrast", model.contrastive * contrastive_chance(self.run.train["batch"], model.temperature)

    def scores(self, model: SkeletonModel, measure: Measure, split: str, keep: bool = False) -> EpisodeScores:
        asked = {"classifier": measure.matcher or "calibration", **measure.one_shot}
        settings = parse(OneShot, asked, f"{self.run.id}, measure.one_shot")
        return self._measure(model, self.split(split), settings, measure.episode_seed)

    def _measure(self, model: SkeletonModel, split: OneShotSplit, settings: OneShot, seed: int) -> EpisodeScores:
        made = self.definition
        found = measure_one_shot(model, self.store, split, made.policy, made.feed, settings, seed)
        # A query is an episode of its own: its score is 1 for the class that was predicted.
        scores = np.zeros((len(found.labels), 1, len(split.novel_classes)), dtype=np.float32)
        scores[np.arange(len(scores)), 0, found.predicted] = 1
        return EpisodeScores(scores, None, found.labels[:, None], spread=found.spread)


def task_of(run: Run, ws: Workspace) -> Task:
    """The task of a run, by its model.

    Raises:
        UserError: no such model.
    """
    from pipeline.training.question_task import QuestionTask  # here: they are Tasks themselves
    from pipeline.training.semi_task import SemiTask

    tasks = {FewShotModel: FewShotTask, SkeletonModel: OneShotTask, SeFARModel: SemiTask, QuestionModel: QuestionTask}
    kind = MODELS.get(run.model["type"])
    if isinstance(kind, type):
        for base, task in tasks.items():
            if issubclass(kind, base):
                return task(run, ws)
    kinds = {name: entry for name, entry in MODELS.module_dict.items() if isinstance(entry, type)}
    known = [name for name, entry in kinds.items() if issubclass(entry, tuple(tasks))]
    raise unknown("model type", run.model["type"], known, f"method {run.method}")
