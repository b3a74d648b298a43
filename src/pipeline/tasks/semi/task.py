"""Semi-supervised runs: few labelled videos, and many unlabelled ones for a teacher or for pretraining."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import numpy as np
import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner

from pipeline.compat import MODELS
from pipeline.datasets.frames import FrameStore
from pipeline.datasets.loading import read_ahead
from pipeline.errors import UserError, unknown
from pipeline.experiment import Measure, Run
from pipeline.models.build import backbone_source
from pipeline.models.pixels import Pixels
from pipeline.models.semi import ElementSampler, SeFARModel
from pipeline.models.semi.regulation import pseudo_labels
from pipeline.progress import bar
from pipeline.scores import EpisodeScores
from pipeline.tasks.base import HasTeacher, Task, epochs_as_steps
from pipeline.tasks.semi.items import (
    ElementView,
    PretrainingItems,
    SemiItems,
    SemiVideos,
    read_elements,
    semi_videos,
)
from pipeline.workspace import Workspace

TEST_CLIPS = 32  # videos that are tested at a time
TIMED = 6  # iterations whose time is taken
TEACHER_VIDEOS, TEACHER_SEED = 1000, 4  # test videos that the teacher is asked about (SeFAR, Figure 5), their draw
VIEWS = ("centre", "random")


class OneItem(Pixels):
    """Takes items as the loader gives them, one in a batch, to what the model's loss takes."""

    def forward(self, data: dict[str, Any], training: bool = False) -> dict[str, Any]:
        on_host = {"progress": float(data["progress"])} if "progress" in data else {}  # nothing waits for the device
        moved = super().forward({key: data[key] for key in data if key not in ("episode", "progress")}, training)
        return on_host | {
            key: [element[0] for element in value] if isinstance(value, list | tuple) else value[0]
            for key, value in moved.items()
        }


class Teacher(Hook):
    """Starts the teacher when the supervised epochs are over, and moves it after each step.

    The released code moves it after each iteration, of which several may make a step; that is the same decay, here
    for all of them at once, so that the number of workers does not matter.
    """

    def __init__(self, model: SeFARModel, items: int, every: int) -> None:
        self.model, self.items, self.every = model, items, every

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        if "weak" in data_batch and self.model.teacher is None:
            self.model.start_teacher()

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict | None = None
    ) -> None:
        if self.model.teacher is not None and (runner.iter + 1) % self.every == 0:
            self.model.update_teacher(self.items)


class Phases(Hook):
    """Pretraining has a weight decay of its own; then the optimiser starts anew, with the recipe's.

    The backbone may learn at another rate from there on. What a checkpoint has of the optimiser tells all of this, so
    an interrupted training goes on as it was. first: iterations of a worker before the labelled videos come.
    """

    def __init__(self, model: SeFARModel, train: dict[str, Any], first: int) -> None:
        self.train, self.first = train, first
        self.backbone = {id(parameter) for parameter in model.network.backbone.parameters()}

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        optimizer, pretraining = runner.optim_wrapper.optimizer, self.train["pretraining"]
        if runner.iter not in (0, self.first):
            return
        for group in optimizer.param_groups:
            group["weight_decay"] = (self.train if runner.iter else pretraining)["weight_decay"]
            if runner.iter and all(id(parameter) in self.backbone for parameter in group["params"]):
                group["lr"] *= pretraining["backbone_rate"]
        if runner.iter:
            optimizer.state.clear()


def after_pretraining(train: dict[str, Any], videos: int) -> dict[str, Any]:
    """A schedule in steps with its pretraining on so many videos before it.

    In either phase the rate falls at milestones of its own, and it starts anew in the second.
    """
    pretraining = train["pretraining"]
    epochs = pretraining["epochs"]
    first = pretraining["steps"] or epochs * max(videos // train["labelled_per_step"], 1)
    falls = [round(number * first / epochs) for number in pretraining["milestones"]]
    milestones = [[step, 0.1**i] for i, step in enumerate(falls, start=1)] + [[first, 1.0]]
    milestones += [[first + step, 0.1**i] for i, step in enumerate(train["milestones"], start=1)]
    steps = first + train["steps"]
    checkpoint_every = max(round(train["checkpoint_every"] / train["steps"] * steps), 1)
    return train | {
        "pretraining_steps": first, "steps": steps, "milestones": milestones, "checkpoint_every": checkpoint_every,
    }  # fmt: skip


class LabelledTask(Task):
    """Videos of a data set of which a share is labelled for training."""

    @cached_property
    def store(self) -> FrameStore:
        """The decoded frames."""
        return FrameStore(self.ws.store(self.run))

    @cached_property
    def videos(self) -> SemiVideos:
        """Which training videos are labelled."""
        return semi_videos(self.store, self.ws.dataset(self.run.dataset), self.run.train["label_rate"], self.run.seed)

    def classes(self) -> dict[str, int]:
        found = {split: len(self.store.classes(split)) for split in ("train", "val", "test")}
        return found | ({"labelled": len(np.unique(self.videos.labels))} if self.run.train else {})

    def counts(self) -> dict[str, int]:
        if not self.run.train:
            return {}
        return {"labelled_videos": len(self.videos.labelled), "unlabelled_videos": len(self.videos.unlabelled)}

    def clips(self, split: str) -> list[int]:
        """The videos of a split. Raises UserError where it has none."""
        clips = [i for i, of in enumerate(self.store.splits) if of == split]
        if not clips:
            raise UserError(f"{self.run.dataset} has no video in the split {split}; set selection: last")
        return clips

    def right(self, clips: list[int]) -> np.ndarray:
        """(V,) number of the class of each of some videos, among all classes of the data set."""
        number = {name: i for i, name in enumerate(self.store.classes())}
        return np.array([number[self.store.labels[clip]] for clip in clips])


class SemiTask(LabelledTask, HasTeacher):
    """A classifier of all classes, from a share of labelled videos."""

    @cached_property
    def sampler(self) -> ElementSampler:
        """Which frames of a video each element shows."""
        return ElementSampler(self.run.model["elements"], self.run.frames["elements"])

    def schedule(self) -> dict[str, Any]:
        train = self.run.train
        if train["labelled_per_step"] % train["batch"]:
            raise UserError(
                f"{self.run.id}: train.labelled_per_step is {train['labelled_per_step']}, no multiple of train.batch "
                f"{train['batch']}; change one of them"
            )
        items = train["labelled_per_step"] // train["batch"]
        # As released: what is left of an epoch after its last whole step is dropped.
        whole = max(len(self.videos.labelled) // train["batch"] // items, 1)
        per_epoch = max(train["steps"] // train["epochs"], 1) if train["steps"] else whole
        made = epochs_as_steps(train, train["epochs"] * per_epoch) | {"items": items}
        return after_pretraining(made, sum(self.counts().values())) if train.get("pretraining") else made

    def build(self) -> SeFARModel:
        model = build_video_classifier(self.run, self.ws, len(self.store.classes()))
        model.data_preprocessor = OneItem(model.mean, model.std)
        train, kind = self.run.train, self.run.model["type"]
        if train.get("pretraining") and not model.phases:
            raise UserError(f"{self.run.id}: {kind} cannot be pretrained without labels; leave out train.pretraining")
        if model.phases and train.get("unlabelled"):
            raise UserError(f"{self.run.id}: {kind} takes no unlabelled videos beside labelled ones; set "
                            "train.unlabelled: 0")  # fmt: skip
        return model

    def items(self, model: SeFARModel) -> SemiItems:
        train = self.schedule()
        first = train.get("pretraining_steps", 0)
        per_epoch = (train["steps"] - first) * train["items"] // train["epochs"]
        given = self.store, self.videos, self.sampler, model.image_size, train, per_epoch, self.run.seed
        return PretrainingItems(*given, first=first * train["items"]) if first else SemiItems(*given)

    def hooks(self, model: SeFARModel, every: int) -> list[Hook]:
        train = self.schedule()
        if first := train.get("pretraining_steps"):
            return [Phases(model, train, first * every)]
        return [Teacher(model, train["items"], every)]

    def validate(self, model: SeFARModel) -> EpisodeScores:
        return self._predict(model, self.selection_split)

    def chance_loss(self, model: SeFARModel) -> tuple[str, float]:
        return "loss_labelled", math.log(len(np.unique(self.videos.labels)))

    def scores(self, model: SeFARModel, measure: Measure, split: str, keep: bool = False) -> EpisodeScores:
        return self._predict(model, split)

    @torch.inference_mode()
    def _predict(self, model: SeFARModel, split: str) -> EpisodeScores:
        """Log-probabilities of the videos of a split, each of them an episode of its own."""
        clips = self.clips(split)
        scores = self._over(model, clips, lambda elements: model.predict(elements).float().log_softmax(-1))
        return EpisodeScores(scores[:, None].numpy(), None, self.right(clips)[:, None])

    @torch.no_grad()
    def features(self, model: SeFARModel, clips: list[int]) -> torch.Tensor:
        """What the student sees in V videos, as in a test: the feature of each of n elements, (V, n, D)."""
        return self._over(model, clips, model.features)

    def _over(
        self, model: SeFARModel, clips: list[int], see: Callable[[list[torch.Tensor]], torch.Tensor]
    ) -> torch.Tensor:
        """`see` of the elements of some videos, a few videos at a time, in evaluation mode; (V, ...) on the CPU."""
        training, size = model.training, sum(self.sampler.lengths) * 3 * model.image_size**2
        model.eval()
        parts = []
        with bar("looking at", len(clips), "videos") as looking:
            for elements in read_ahead(lambda clip: self._seen(clip, model.image_size), clips, TEST_CLIPS, size):
                parts.append(see([model.data_preprocessor.pixels(x) for x in elements]).cpu())
                looking.advance(len(elements[0]))
        model.train(training)
        return torch.cat(parts)

    def _seen(self, clip: int, side: int) -> list[torch.Tensor]:
        """Elements of a video as a test shows them: without chance, or as released with a random crop and mirroring."""
        kind = self.run.frames["test_view"]
        if kind not in VIEWS:
            raise unknown("view", kind, VIEWS, "frames.test_view")
        if kind == "centre":
            return read_elements(self.store, clip, self.sampler, ElementView(side))
        rng = np.random.default_rng(np.random.SeedSequence([self.run.seed, 3, clip]))
        return read_elements(self.store, clip, self.sampler, ElementView(side, (1.0, 1.0)), rng)

    @contextmanager
    def _with_teacher(self, model: SeFARModel) -> Iterator[SemiItems]:
        """What training sees, with a model that has a teacher: its own, or in a checkpoint of the supervised epochs
        the copy of the student that it starts as, which is gone afterwards.

        Raises UserError for a method without unlabelled videos.
        """
        if not self.run.train or (items := self.items(model)).warm >= items.epochs:
            raise UserError(
                f"{self.run.id}: the method sees no unlabelled video beside labelled ones, so it has no teacher"
            )
        without = model.teacher is None
        if without:
            model.start_teacher()
        try:
            yield items
        finally:
            if without:
                model.teacher = None

    def teacher_predictions(self, model: SeFARModel) -> dict[str, list]:
        """What the teacher's passes say of up to `TEACHER_VIDEOS` test videos, drawn once for all runs on their set.

        Of each video, in the order of the draw: confidence (the largest mean probability), deviation (the standard
        deviation of that probability over the passes), right (whether its class is the true one).

        Raises UserError for a method without unlabelled videos, or whose teacher predicts only once.
        """
        if model.threshold is not None:
            raise UserError(f"{self.run.id}: with model.threshold the teacher predicts once, so nothing deviates")
        clips = np.random.default_rng(TEACHER_SEED).permutation(self.clips("test"))[:TEACHER_VIDEOS].tolist()

        def see(weak: list[torch.Tensor]) -> torch.Tensor:
            pseudo = pseudo_labels(model.teacher_logits(weak))
            return torch.stack((pseudo.labels.double(), pseudo.confidence.double(), pseudo.deviation.double()), 1)

        device = next(model.parameters()).device
        with self._with_teacher(model), torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(TEACHER_SEED)  # of the dropout
            labels, confidence, deviation = self._over(model, clips, see).T.tolist()
        right = (self.right(clips) == labels).tolist()
        return {"confidence": confidence, "deviation": deviation, "right": right}

    def teacher_shares(self, model: SeFARModel) -> list[float]:
        """Share in per cent of the teacher's predictions in the time of each of some iterations: data, losses,
        gradients, and the student's and the teacher's update. The weights stay as they are.

        Raises UserError for a method without unlabelled videos.
        """
        with self._with_teacher(model) as items:
            return self._shares(model, items)

    def _shares(self, model: SeFARModel, items: SemiItems) -> list[float]:
        optimizer = torch.optim.SGD(model.network.parameters(), lr=0.0)
        spent = [0.0]
        predict = model.teacher_logits

        def timed(weak: list[torch.Tensor]) -> torch.Tensor:
            start = _now()
            logits = predict(weak)
            spent[0] += _now() - start
            return logits

        model.teacher_logits = timed
        shares, first = [], items.warm * items.per_epoch
        device = next(model.parameters()).device
        model.to(device).train()
        for i in range(TIMED + 2):
            start, spent[0] = _now(), 0.0
            item = items[first + i % (len(items) - first)]
            batch = model.data_preprocessor({key: _batched(value) for key, value in item.items()}, True)
            losses = model(mode="loss", **batch)
            sum(value for name, value in losses.items() if name.startswith("loss_")).backward()
            optimizer.step()
            optimizer.zero_grad()
            model.update_teacher(0)
            shares.append(100 * spent[0] / (_now() - start))
        del model.teacher_logits
        model.eval()
        return shares[2:]  # the first ones warm up


def _now() -> float:
    """Seconds, when all that was asked of the device is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def _batched(value: Any) -> Any:
    """As a loader of one item gives it."""
    return [part[None] for part in value] if isinstance(value, list) else value[None]


BACKBONE_SETTINGS = ("drop_path", "activation_checkpointing", "time_init")  # among the settings of a video classifier


def build_video_classifier(run: Run, ws: Workspace, classes: int) -> SeFARModel:
    """The untrained classifier of a semi-supervised run, initialised from its seed.

    Raises:
        UserError: unknown setting, or weights of the backbone that can't be read.
    """
    settings = {key: value for key, value in run.model.items() if key != "type"}
    backbone = {key: settings.pop(key) for key in BACKBONE_SETTINGS if key in settings}
    backbone["source"] = backbone_source(run.backbone, ws)
    torch.manual_seed(run.seed)
    try:
        return MODELS.get(run.model["type"])(backbone=backbone, classes=classes, **settings)
    except TypeError as error:
        raise UserError(f"method {run.method}: {str(error).split('__init__() ')[-1]}") from error
