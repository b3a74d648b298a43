"""What the training of a semi-supervised run sees: labelled and unlabelled videos, as clips of temporal elements."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch

from pipeline.datasets.frames import FrameStore
from pipeline.datasets.randaugment import rand_augment
from pipeline.datasets.semi import LABELLED, TRAIN, ListedVideo, draw_labelled
from pipeline.datasets.transforms import mirror
from pipeline.errors import UserError
from pipeline.models.semi import ElementSampler
from pipeline.models.semi.losses import ssl_progress
from pipeline.tasks.base import Items

OF_LABELLED, OF_UNLABELLED, OF_ALL, OF_PRETRAINING = 0, 1, 4, 5  # streams of random numbers


class SemiItems(Items):
    """Batches of labelled videos, each with a batch of unlabelled ones in the semi-supervised epochs.

    Item i is a dict: labelled, a list of the elements (B, T, h, w, 3) uint8; labels (B,); and, after the warm-up, weak
    and strong, two draws of the same unlabelled videos, and progress. episode: the number i. Each epoch has an order of
    its own; the unlabelled videos come in an order that is drawn anew when all have come. Everything depends on
    (seed, i) alone, and no label of an unlabelled video is known here.
    """

    def __init__(
        self, store: FrameStore, videos: SemiVideos, sampler: ElementSampler, side: int, train: dict[str, Any],
        per_epoch: int, seed: int,
    ) -> None:  # fmt: skip
        self.store, self.videos, self.sampler, self.seed = store, videos, sampler, seed
        self.batch, self.per_epoch, self.epochs = train["batch"], per_epoch, train["epochs"]
        self.others = train["unlabelled"] * self.batch if len(videos.unlabelled) else 0
        self.warm = train["warm_epochs"] if self.others else self.epochs
        self.labelled = ElementView(side, tuple(train["scale"]), train["flip"])
        self.strong = ElementView(side, tuple(train["scale"]), train["flip"], train.get("randaugment", 0))
        self.paired = train.get("paired_views", False)
        self.weak = ElementView(side, tuple(train["scale"]), 0.0)

    def __len__(self) -> int:
        return self.epochs * self.per_epoch

    @property
    def item_bytes(self) -> int:
        return (self.batch + 2 * self.others) * sum(self.sampler.lengths) * 3 * self.labelled.crop**2

    def __getitem__(self, i: int) -> dict[str, Any]:
        if not 0 <= i < len(self):
            raise IndexError(i)
        epoch, place = divmod(i, self.per_epoch)
        rng = np.random.default_rng(np.random.SeedSequence([self.seed, 2, i]))
        chosen = self._order(epoch)[place * self.batch : (place + 1) * self.batch]
        item: dict[str, Any] = {
            "labelled": self._read(self.videos.labelled[chosen], self.labelled, rng),
            "labels": torch.from_numpy(self.videos.labels[chosen]),
            "episode": torch.tensor(i),
        }
        if epoch >= self.warm:
            clips = self._unlabelled((i - self.warm * self.per_epoch) * self.others)
            item |= self._views(clips, rng)
            item["progress"] = torch.tensor(ssl_progress(epoch, self.epochs, self.warm), dtype=torch.float64)
        return item

    def _views(self, clips: np.ndarray, rng: np.random.Generator) -> dict[str, list[torch.Tensor]]:
        """A weak and a strong view of each clip: two draws, or one draw of which the second is changed further."""
        if not self.paired:
            return {"weak": self._read(clips, self.weak, rng), "strong": self._read(clips, self.strong, rng)}
        seeds = rng.integers(2**63, size=len(clips))
        views = {"weak": self.labelled, "strong": self.strong}
        return {name: stack([self._one(clip, view, seed) for clip, seed in zip(clips, seeds, strict=True)])
                for name, view in views.items()}  # fmt: skip

    def _one(self, clip: int, view: ElementView, seed: int) -> list[torch.Tensor]:
        return read_elements(self.store, int(clip), self.sampler, view, np.random.default_rng(seed))

    def _order(self, epoch: int) -> np.ndarray:
        """Places of the labelled videos in an epoch; where they fill no step, they come again."""
        count = self.per_epoch * self.batch
        order = np.random.default_rng(np.random.SeedSequence([self.seed, OF_LABELLED, epoch]))
        return np.resize(order.permutation(len(self.videos.labelled)), count)

    def _unlabelled(self, first: int) -> np.ndarray:
        """The unlabelled videos number `first` and on, of endless rounds through all of them."""
        return in_rounds(self.videos.unlabelled, first, self.others, (self.seed, OF_UNLABELLED))

    def _read(self, clips: np.ndarray, view: ElementView, rng: np.random.Generator) -> list[torch.Tensor]:
        return stack([read_elements(self.store, int(clip), self.sampler, view, rng) for clip in clips])


class PretrainingItems(SemiItems):
    """Before the items of `SemiItems` come some of all training videos alike, labelled or not.

    Each of these is a dict: clips, a list of the elements (B, T, h, w, 3) uint8 of one view; and episode, the number.
    """

    def __init__(self, *arguments: Any, first: int) -> None:
        """first: how many there are."""
        super().__init__(*arguments)
        self.first, self.every = first, np.sort(np.concatenate((self.videos.labelled, self.videos.unlabelled)))

    def __len__(self) -> int:
        return self.first + super().__len__()

    def __getitem__(self, i: int) -> dict[str, Any]:
        if i >= self.first:
            return super().__getitem__(i - self.first) | {"episode": torch.tensor(i)}
        if i < 0:
            raise IndexError(i)
        rng = np.random.default_rng(np.random.SeedSequence([self.seed, OF_PRETRAINING, i]))
        clips = in_rounds(self.every, i * self.batch, self.batch, (self.seed, OF_ALL))
        return {"clips": self._read(clips, self.labelled, rng), "episode": torch.tensor(i)}


def in_rounds(videos: np.ndarray, first: int, count: int, seed: tuple[int, int]) -> np.ndarray:
    """`count` of the videos from number `first` on, of endless rounds through all of them, each in an order of its own
    that `seed` and its number draw."""
    total, chosen, places = len(videos), [], np.arange(first, first + count)
    for turn in range(places[0] // total, places[-1] // total + 1):
        rng = np.random.default_rng(np.random.SeedSequence([*seed, turn]))
        chosen.append(rng.permutation(total)[places[places // total == turn] % total])
    return videos[np.concatenate(chosen)]


def stack(videos: list[list[torch.Tensor]]) -> list[torch.Tensor]:
    """Elements of each of B videos -> B videos of each element, (B, T, h, w, 3)."""
    return [torch.stack(parts) for parts in zip(*videos, strict=True)]


class SemiVideos(NamedTuple):
    """Places in a frame store. Of `unlabelled` nothing else is known to training; labels are numbers of `classes`."""

    classes: list[str]
    labelled: np.ndarray
    labels: np.ndarray
    unlabelled: np.ndarray


def semi_videos(store: FrameStore, folder: str | Path, rate: float, seed: int) -> SemiVideos:
    """Which training clips of a store are labelled at a rate in per cent: as published, else drawn with the seed.

    A class of which the draw would label none has one labelled video in place of another class's, if there are so many.
    Raises UserError for a wrong rate, or when no published video is in the store.
    """
    classes = store.classes()
    number = {name: i for i, name in enumerate(classes)}
    train = [i for i, split in enumerate(store.splits) if split == "train"]
    published = json.loads((Path(folder) / LABELLED).read_text("utf-8"))
    if names := published.get(f"{rate:g}"):
        chosen = set(names)
    else:
        videos = [ListedVideo(store.clips[i], number[store.labels[i]]) for i in train]
        chosen = {video.path for video in draw_labelled(videos, rate / 100, seed, total=published.get(TRAIN, 0))[0]}
    labelled = [i for i in train if store.clips[i] in chosen]
    if not labelled:
        raise UserError(f"no video that is labelled at {rate:g} % is in {store.folder}; prepare the data set again")
    labels = np.array([number[store.labels[i]] for i in labelled])
    return SemiVideos(classes, np.array(labelled), labels, np.array([i for i in train if store.clips[i] not in chosen]))


# ---------------------------------------------------------------------------------------------------- clips
@dataclass(frozen=True)
class ElementView:
    """Cuts out of uint8 RGB frames (T, H, W, 3) what a network sees: uint8 (T, crop, crop, 3).

    In training (with a generator) the frames are scaled so that their short side is `scale` times the crop, drawn
    evenly between the two numbers, one random square is cut out, and the clip is mirrored with probability `flip`;
    224 pixels and 8/7..10/7 are SeFAR's 256..320. randaugment: so many operations of `rand_augment` follow. Without a
    generator the largest square in the middle is taken.
    """

    crop: int
    scale: tuple[float, float] = (8 / 7, 10 / 7)
    flip: float = 0.5
    randaugment: int = 0

    def __call__(self, frames: np.ndarray, rng: np.random.Generator | None = None) -> torch.Tensor:
        height, width = frames.shape[1:3]
        short = min(height, width)
        # Cut out, then resize: the same as the other way round, and a fraction of the work.
        side = short if rng is None else min(round(short / rng.uniform(*self.scale)), short)
        spare = height - side, width - side
        top, left = (room // 2 for room in spare) if rng is None else (int(rng.integers(room + 1)) for room in spare)
        square = frames[:, top : top + side, left : left + side]
        if rng is not None and rng.random() < self.flip:
            square = mirror(square)
        if side != self.crop:
            size = (self.crop, self.crop)
            square = np.stack([cv2.resize(np.ascontiguousarray(frame), size) for frame in square])
        if rng is not None:
            square = rand_augment(square, self.randaugment, rng)
        return torch.from_numpy(np.ascontiguousarray(square))


def read_elements(
    store: FrameStore, clip: int, sampler: ElementSampler, view: ElementView, rng: np.random.Generator | None = None
) -> list[torch.Tensor]:
    """Elements of a stored clip, each (T, h, w, 3) uint8; at random with a generator, else the centres of slots and
    frames.

    Each element has a crop and a mirroring of its own, as in SeFAR's released code. Two views of an unlabelled
    video are two calls. Raises UserError when the clip has too few frames.
    """
    positions = sampler.sample(store.n_frames(clip), rng)
    wanted, where = np.unique(np.concatenate(positions), return_inverse=True)
    frames = store.read(clip, wanted)
    return [view(frames[part], rng) for part in np.split(where, np.cumsum(sampler.lengths)[:-1])]
