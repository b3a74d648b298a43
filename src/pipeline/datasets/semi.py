"""Semi-supervised data: lists of labelled and unlabelled videos, label rates, and the clips of temporal elements."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch

from pipeline.datasets.frames import FrameStore
from pipeline.datasets.splits import _lines
from pipeline.errors import UserError, unknown
from pipeline.models.sefar.elements import ElementSampler

# Published sizes: labelled, unlabelled, test videos, and classes; of SeFAR's lists (UCF101 and HMDB51: SVFormer's too).
PAPER_COUNTS = {
    "gym99_5": (1316, 25004, 8521, 99),
    "gym99_10": (2632, 23688, 8521, 99),
    "gym288_5": (1466, 27868, 9646, 288),
    "gym288_10": (2933, 26401, 9646, 288),
    "gym_new_5": (325, 6183, 1998, 40),
    "gym_new_10": (651, 5857, 1998, 40),
    "ub_10": (959, 8635, 2814, 25),
    "ub_20": (1918, 7676, 2814, 25),
    "ub_s1_10": (496, 4468, 1471, 15),
    "ub_s1_20": (992, 3972, 1471, 15),
    "fx_10": (540, 4868, 2226, 35),
    "fx_20": (1081, 4327, 2226, 35),
    "fx_s1_10": (189, 1703, 777, 11),
    "fx_s1_20": (378, 1514, 777, 11),
    "vt_10": (108, 972, 446, 6),
    "vt_20": (216, 864, 446, 6),
    "ucf101_1": (101, 9436, 3783, 101),
    "ucf101_10": (1010, 8527, 3783, 101),
    "hmdb51_40": (2094, 3142, 1530, 51),
    "hmdb51_50": (2618, 2618, 1530, 51),
    "hmdb51_60": (3141, 2095, 1530, 51),
}
ABSENT = ("one", "error")


# ---------------------------------------------------------------------------------------------------- lists
class ListedVideo(NamedTuple):
    """A line of a list: path of the video, number of its class."""

    path: str
    label: int


@dataclass(frozen=True)
class SemiSplit:
    """Videos of a semi-supervised data set. Of the unlabelled ones training knows the paths alone."""

    labelled: tuple[ListedVideo, ...]
    unlabelled: tuple[str, ...]
    test: tuple[ListedVideo, ...]

    @property
    def classes(self) -> int:
        """Number of classes: labels run from 0 to this."""
        return 1 + max(video.label for video in (*self.labelled, *self.test))

    def absent(self) -> list[int]:
        """Classes that are tested and of which no video is labelled; no method can learn these."""
        return sorted({video.label for video in self.test} - {video.label for video in self.labelled})


def read_video_list(path: str | Path) -> list[ListedVideo]:
    """Read a list of SeFAR's and SVFormer's form, plain or gzipped: lines of a path, a space, the class's number.

    Raises UserError naming the line that is no such thing (SeFAR's 5% list of UCF101 has commas), and for a video
    that is listed twice.
    """
    videos, seen = [], set()
    for number, line in enumerate(_lines(Path(path)), start=1):
        if not line.strip():
            continue
        name, _, label = line.strip().rpartition(" ")
        if not (name.strip() and label.isdecimal()):
            raise UserError(f"{path}, line {number}: {line[:80]!r} is not 'path label'; correct it")
        if name in seen:
            raise UserError(f"{path}, line {number}: {name} is listed twice; keep one line")
        seen.add(name)
        videos.append(ListedVideo(name.strip(), int(label)))
    if not videos:
        raise UserError(f"the list {path} holds no video; fetch it again")
    return videos


def read_semi_lists(folder: str | Path) -> SemiSplit:
    """Read train.csv (labelled), unlabel.csv and test.csv of a folder, or any of them with .gz.

    Raises UserError when one is missing or wrong, or a video is in two of them.
    """
    folder = Path(folder)
    train, unlabelled, test = (read_video_list(_find(folder, name)) for name in ("train", "unlabel", "test"))
    split = SemiSplit(tuple(train), tuple(video.path for video in unlabelled), tuple(test))
    groups = {
        "train": {video.path for video in split.labelled},
        "unlabel": set(split.unlabelled),
        "test": {video.path for video in split.test},
    }
    for one, other in (("train", "unlabel"), ("train", "test"), ("unlabel", "test")):
        if both := groups[one] & groups[other]:
            raise UserError(f"{folder}: {min(both)} is in {one}.csv and {other}.csv ({len(both)} are); keep one")
    return split


def _find(folder: Path, name: str) -> Path:
    plain = folder / f"{name}.csv"
    zipped = folder / f"{name}.csv.gz"
    if zipped.is_file() and not plain.is_file():
        return zipped
    return plain


# --------------------------------------------------------------------------------------------- label rates
def draw_labelled(
    videos: Sequence[ListedVideo], rate: float, seed: int, absent: str = "one"
) -> tuple[list[ListedVideo], list[str]]:
    """Choose which of the training videos keep their labels: (labelled, paths of all others), sorted by path.

    Each class gives its share: rate times its videos, rounded down, and the classes with the largest remainders
    (of equal ones those with the lowest number) one more, until round(rate * all) are found. Where a class would
    have none, `absent` says: "one" labels one video of it, on top of the others, "error" raises. The draw depends
    on the paths and the seed, not on the order of the videos.

    Raises UserError for a rate outside 0..1, an unknown policy, or as above.
    """
    if not 0 < rate < 1:
        raise UserError(f"the label rate {rate:g} is no share between 0 and 1; write 0.05 for 5 %")
    if absent not in ABSENT:
        raise unknown("policy for classes without labels", absent, ABSENT)
    by_class: dict[int, list[ListedVideo]] = {}
    for video in sorted(videos):
        by_class.setdefault(video.label, []).append(video)
    counts = _proportional({label: len(by_class[label]) for label in sorted(by_class)}, rate)
    if empty := [label for label, count in counts.items() if not count]:
        if absent == "error":
            raise UserError(
                f"a label rate of {rate:g} leaves {len(empty)} classes without a label, such as class {empty[0]} with "
                f"{len(by_class[empty[0]])} videos; raise the rate or set absent: one"
            )
        counts |= dict.fromkeys(empty, 1)
    rng = np.random.default_rng(seed)
    chosen: set[ListedVideo] = set()
    for label, count in counts.items():
        chosen.update(by_class[label][i] for i in rng.choice(len(by_class[label]), count, replace=False))
    return sorted(chosen), sorted(video.path for video in videos if video not in chosen)


def _proportional(sizes: dict[int, int], rate: float) -> dict[int, int]:
    """Whole numbers next to rate * size that sum to round(rate * all): largest remainders."""
    counts = {label: int(rate * size) for label, size in sizes.items()}
    missing = round(rate * sum(sizes.values())) - sum(counts.values())
    by_remainder = sorted(sizes, key=lambda label: (counts[label] - rate * sizes[label], label))
    return {label: count + (label in by_remainder[:missing]) for label, count in counts.items()}


# ---------------------------------------------------------------------------------------------------- clips
@dataclass(frozen=True)
class ElementView:
    """Turns uint8 RGB frames (T, H, W, 3) into a float32 tensor (T, 3, crop, crop), normalised.

    In training (with a generator) the frames are scaled so that their short side is `scale` times the crop, drawn
    evenly between the two numbers, one random square is cut out, and the clip is mirrored with probability `flip`;
    224 pixels and 8/7..10/7 are SeFAR's 256..320. Without a generator the largest square in the middle is taken.
    """

    crop: int
    scale: tuple[float, float] = (8 / 7, 10 / 7)
    flip: float = 0.5
    mean: Sequence[float] = (0.45,) * 3
    std: Sequence[float] = (0.225,) * 3

    def __call__(self, frames: np.ndarray, rng: np.random.Generator | None = None) -> torch.Tensor:
        height, width = frames.shape[1:3]
        short = min(height, width)
        # Cut out, then resize: the same as the other way round, and a fraction of the work.
        side = short if rng is None else min(round(short / rng.uniform(*self.scale)), short)
        spare = height - side, width - side
        top, left = (room // 2 for room in spare) if rng is None else (int(rng.integers(room + 1)) for room in spare)
        square = frames[:, top : top + side, left : left + side]
        if rng is not None and rng.random() < self.flip:
            square = square[:, :, ::-1]
        if side != self.crop:
            size = (self.crop, self.crop)
            square = np.stack([cv2.resize(np.ascontiguousarray(frame), size) for frame in square])
        pixels = square.astype(np.float32) / 255
        pixels = (pixels - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)
        return torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))


def read_elements(
    store: FrameStore, clip: int, sampler: ElementSampler, view: ElementView, rng: np.random.Generator | None = None
) -> list[torch.Tensor]:
    """Elements of a stored clip, each (T, 3, h, w); at random with a generator, else the centres of slots and frames.

    Each element has a crop and a mirroring of its own, as in SeFAR's released code. Two views of an unlabelled
    video are two calls. Raises UserError when the clip has too few frames.
    """
    positions = sampler.sample(store.n_frames(clip), rng)
    wanted, where = np.unique(np.concatenate(positions), return_inverse=True)
    frames = store.read(clip, wanted)
    return [view(frames[part], rng) for part in np.split(where, np.cumsum(sampler.lengths)[:-1])]
