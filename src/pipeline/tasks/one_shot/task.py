"""One exemplar of each novel class, and queries: skeletons."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch

from pipeline.compat import MODELS
from pipeline.config import parse
from pipeline.datasets.kinds.skeletons import Skeletons
from pipeline.datasets.skeletons.definition import SkeletonDefinition
from pipeline.datasets.skeletons.feeder import SkeletonDataset
from pipeline.datasets.skeletons.prepare import load_split
from pipeline.datasets.skeletons.protocols import OneShotSplit
from pipeline.datasets.skeletons.store import SkeletonStore
from pipeline.errors import UserError
from pipeline.experiment import Measure, Run
from pipeline.models.skeleton.base import SkeletonModel
from pipeline.models.skeleton.baseline import per_class_batches
from pipeline.models.skeleton.losses import contrastive_chance
from pipeline.scores import EpisodeScores
from pipeline.tasks.base import Items, Task, epochs_as_steps
from pipeline.tasks.one_shot.scoring import DATASETS, OneShot, measure_one_shot, sequences
from pipeline.text.corpus import load_corpus
from pipeline.workspace import Workspace


class Batches(Items):
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

    @property
    def item_bytes(self) -> int:
        return self.batch * self.dataset[0, 0][0].nbytes if len(self.dataset) else 0

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
        return Skeletons(self.ws.read_asset(self.run.dataset)).shown(self.ws, self.run.frames)

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

    def parameters(self, model: SkeletonModel, part: str = "") -> int:
        """Number of parameters of the model at test; these models have no parts that are counted."""
        return model.size()

    def _measure(self, model: SkeletonModel, split: OneShotSplit, settings: OneShot, seed: int) -> EpisodeScores:
        made = self.definition
        found = measure_one_shot(model, self.store, split, made.policy, made.feed, settings, seed)
        # A query is an episode of its own: its score is 1 for the class that was predicted.
        scores = np.zeros((len(found.labels), 1, len(split.novel_classes)), dtype=np.float32)
        scores[np.arange(len(scores)), 0, found.predicted] = 1
        return EpisodeScores(scores, None, found.labels[:, None], spread=found.spread)


def build_skeleton_model(
    run: Run, ws: Workspace, definition: SkeletonDefinition, base_classes: Sequence[str]
) -> SkeletonModel:
    """The untrained model of a run on skeletons, initialised from its seed.

    Raises:
        UserError: unknown method type or setting, missing text.
    """
    from pipeline.datasets.skeletons.graph import get_graph

    settings = {key: value for key, value in run.model.items() if key not in ("type", "text", "text_source", "corpus")}
    # MotionBERT's feed makes Human3.6M joints of what is stored.
    graph = get_graph("h36m17" if definition.feed.kind == "motionbert" else definition.graph)
    kind, texts = MODELS.get(run.model["type"]), None
    if kind.wants_text:
        name = f"texts-{run.model['corpus']}.json" if run.model.get("corpus") else "texts.json"
        if not (ws.dataset(run.dataset) / name).is_file() and run.model.get("corpus"):
            raise UserError(
                f"{run.id}: {run.dataset.rsplit('-', 1)[0]} has no corpus {run.model['corpus']!r}; name its file, "
                "folder or language model under corpora: in the data set's definition, and make texts.json again"
            )
        corpus = load_corpus(ws.dataset(run.dataset) / name)
        cache = ws.root / "text"
        texts = kind.read_texts(corpus, base_classes, graph, cache, run.model["text"], run.model.get("text_source"))
    torch.manual_seed(run.seed)
    try:
        return kind(graph, definition.policy.bodies, len(base_classes), texts, **settings)
    except TypeError as error:
        raise UserError(f"method {run.method}: {str(error).removeprefix(kind.__name__ + '.__init__() ')}") from error
