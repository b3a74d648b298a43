"""Semi-supervised data: lists of labelled and unlabelled videos, label rates, and the clips of temporal elements."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console

from pipeline.datasets.duplicates import check_duplicates
from pipeline.datasets.index import SPLITS, Clip, read_index, write_index, write_prepared
from pipeline.datasets.splits import find_listed, required, video_stem
from pipeline.errors import UserError, unknown
from pipeline.files import write_text
from pipeline.textfiles import read_lines, read_table, slashed

ABSENT = ("one", "error")
_LINE = re.compile(r"(.*[^\s,])(?:\s+|\s*,\s*)(\d+)")


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

    In place of the space may be a comma, as in SeFAR's 5 % list of UCF101. Raises UserError naming the line that is no
    such thing, and for a video that is listed twice.
    """
    videos, seen = [], set()
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip():
            continue
        if (match := _LINE.fullmatch(line.strip())) is None:
            raise UserError(f"{path}, line {number}: {line[:80]!r} is not 'path label'; correct it")
        name, label = slashed(match[1]), int(match[2])
        if name in seen:
            raise UserError(f"{path}, line {number}: {name} is listed twice; keep one line")
        seen.add(name)
        videos.append(ListedVideo(name, label))
    if not videos:
        raise UserError(f"the list {path} holds no video; fetch it again")
    return videos


def read_semi_lists(folder: str | Path) -> SemiSplit:
    """Read train.csv (labelled), unlabel.csv (or unlabe.csv, a name of SeFAR's) and test.csv of a folder, or any of
    them with .gz.

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
    names = (name, "unlabe") if name == "unlabel" else (name,)
    files = [folder / f"{stem}{suffix}" for stem in names for suffix in (".csv", ".csv.gz")]
    return next((file for file in files if file.is_file()), files[0])


# --------------------------------------------------------------------------------------------- label rates
def draw_labelled(
    videos: Sequence[ListedVideo], rate: float, seed: int, absent: str = "one", total: int = 0
) -> tuple[list[ListedVideo], list[str]]:
    """Choose which of the training videos keep their labels: (labelled, paths of all others), sorted by path.

    Each class gives its share: rate times its videos, rounded down, and the classes with the largest remainders
    (of equal ones those with the lowest number) one more, until round(rate * all) are found. Where a class would
    have none, `absent` says: "one" labels one video of it in place of one of the class with the most labels, as far
    as there are as many labels as classes; "error" raises. total: number of training videos of which `rate` is the
    share, where some of them are no candidates (held out for validation). The draw depends on the paths and the seed,
    not on the order of the videos.

    Raises UserError for a rate outside 0..1, an unknown policy, or as above.
    """
    if not 0 < rate < 1:
        raise UserError(f"the label rate {rate:g} is not a share between 0 and 1; write 0.05 for 5 %")
    if absent not in ABSENT:
        raise unknown("policy for classes without labels", absent, ABSENT)
    by_class: dict[int, list[ListedVideo]] = {}
    for video in sorted(videos):
        by_class.setdefault(video.label, []).append(video)
    sizes = {label: len(by_class[label]) for label in sorted(by_class)}
    counts = _proportional(sizes, rate * (total or len(videos)) / max(len(videos), 1))
    if (empty := [label for label, count in counts.items() if not count]) and absent == "error":
        raise UserError(
            f"a label rate of {rate:g} leaves {len(empty)} classes without a label, such as class {empty[0]} with "
            f"{len(by_class[empty[0]])} videos; raise the rate or set absent: one"
        )
    counts = _one_each(counts)
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


def _one_each(counts: Mapping[int, int]) -> dict[int, int]:
    """The same sum, with one at least for each as far as it reaches, taken from the largest (the first of equals)."""
    counts = dict(counts)
    for label in [label for label, count in counts.items() if not count]:
        largest = max(counts, key=lambda other: counts[other])
        if counts[largest] < 2:
            break
        counts[largest] -= 1
        counts[label] = 1
    return counts


# --------------------------------------------------------------------------------------- prepared data sets
LABELLED = "labelled.json"
TRAIN = "train"  # in that file: number of training videos, those for validation among them, of which a rate is a share
VALIDATION_SEED = 3  # of the videos that are held out to select a checkpoint


def prepare_semi(spec: Mapping[str, Any], out_folder: str | Path) -> Path:
    """Prepare a data set with all its classes in training and test; returns its `index.csv`.

    The split "train" holds labelled and unlabelled videos alike. spec: the keys of `kinds.semi.SemiDefinition`, of
    which lists, labels or reads are given. The lists' folder has a folder for each published label rate in per cent
    (`5`, `10`), with train.csv, unlabel.csv and test.csv (`read_semi_lists`); which videos are labelled at which rate
    goes to `labelled.json`, for other rates `draw_labelled` draws them. A generated set that is read gives the first
    `clips` of each class. Videos held out (`validation`) are drawn among those that no published list labels. Missing
    videos are listed in `unreadable.csv` and left out.

    Raises UserError when a list, a column or all videos are missing, or an entry is unknown.
    """
    folder, root, strip = Path(out_folder), Path(required(spec, "root")), spec.get("strip", "")
    if "reads" in spec:
        clips = [replace(clip, label=_stripped(clip.label, strip)) for clip in _shares(root, spec["clips"])]
        write_text(folder / LABELLED, "{}\n")
        return write_index(folder / "index.csv", clips)
    clips, rates = _listed(spec)
    clips = _held_out(clips, float(spec.get("validation", 0)), {name for names in rates.values() for name in names})
    both = list(zip(clips, find_listed(root, [clip.path for clip in clips], folder), strict=True))
    placed = [replace(clip, path=place.path or clip.path) for clip, place in both]
    check_duplicates(root, placed, spec.get("duplicates", "error"))
    missing = [(clip.path, place.reason) for clip, place in both if not place.path]
    content: dict[str, Any] = {rate: sorted(names) for rate, names in rates.items()}
    if any(clip.split == "val" for clip in clips):
        content[TRAIN] = sum(clip.split != "test" for clip in clips)
    write_text(folder / LABELLED, json.dumps(content, indent=1) + "\n")
    index = write_prepared(folder, root, placed, missing, 1)
    _report(placed, rates, spec.get("expected", {}))
    return index


def _listed(spec: Mapping[str, Any]) -> tuple[list[Clip], dict[str, set[str]]]:
    """Videos of the lists or of the table, and names of the labelled ones by rate."""
    clips, rates = _published(Path(spec["lists"])) if spec.get("lists") else (_table(required(spec, "labels")), {})
    return [replace(clip, label=_stripped(clip.label, spec.get("strip", ""))) for clip in clips], rates


def count_listed(spec: Mapping[str, Any], console: Console) -> list[str]:
    """Print the counts of lists beside the published ones (`expected`), with no video looked for; returns what differs.

    spec: as of `prepare_semi`. Raises UserError when a list is missing or wrong.
    """
    return _report(*_listed(spec), spec.get("expected", {}), console)


def label_offsets(folder: Path, classes: int) -> Iterator[str]:
    """Lists of label rates below `folder` whose labels are not those of `classes` classes counted from 0; one a line.

    classes: 0 where it is not known how many there are. Raises UserError when a list is missing or wrong.
    """
    for file in (_find(rate, part) for rate in _rates(folder) for part in ("train", "unlabel", "test")):
        labels = {video.label for video in read_video_list(file)}
        low, high = min(labels), max(labels)
        if (classes and high >= classes) or (low and _part(file) == "test"):  # few labels need not show every class
            wanted = f"those of {classes} classes from 0 to {classes - 1}" if classes else "those of the lists from 0"
            yield f"{file}: its labels run from {low} to {high}, {wanted}" + (low == 1) * "; take 1 from each"


def _part(file: Path) -> str:
    return file.name.partition(".")[0]


def _stripped(label: str, pattern: str) -> str:
    return re.sub(pattern, "", label).strip() if pattern else label


def _shares(root: Path, counts: Mapping[str, int]) -> list[Clip]:
    """The first clips of every class of a generated set for the splits in turn."""
    order = [split for split in SPLITS for _ in range(counts.get(split, 0))]
    place: Counter[str] = Counter()
    chosen = []
    for clip in sorted(read_index(root / "index.csv"), key=lambda clip: clip.clip):
        if place[clip.label] < len(order):
            chosen.append(replace(clip, split=order[place[clip.label]]))
        place[clip.label] += 1
    if few := [label for label, count in place.items() if count < len(order)]:
        raise UserError(
            f"clips asks for {len(order)} clips a class and {few[0]!r} has {place[few[0]]}; lower the counts"
        )
    return chosen


def _name(path: str) -> str:
    """Name of a listed video: its folder and its file name without the suffix (roots differ from list to list)."""
    return f"{Path(path).parent.name}/{video_stem(path)}"


def _rates(folder: Path) -> list[Path]:
    """Folders of lists, one a label rate."""
    rates = sorted(entry for entry in folder.iterdir() if entry.is_dir()) if folder.is_dir() else []
    if not rates:
        raise UserError(f"{folder} has no folder of lists named by a label rate, such as 5; fetch the lists")
    return rates


def _published(folder: Path) -> tuple[list[Clip], dict[str, set[str]]]:
    """All videos of the published lists, and the names of the labelled ones by rate."""
    clips: dict[str, Clip] = {}
    labelled: dict[str, set[str]] = {}
    for rate in _rates(folder):
        split = read_semi_lists(rate)
        unlabelled = read_video_list(_find(rate, "unlabel"))
        labelled[rate.name] = {_name(video.path) for video in split.labelled}
        for part, videos in (("train", (*split.labelled, *unlabelled)), ("test", split.test)):
            for video in videos:
                clip = Clip(_name(video.path), video.path, f"class {video.label:03d}", part)
                if (known := clips.setdefault(clip.clip, clip)) and (known.label, known.split) != (clip.label, part):
                    raise UserError(
                        f"{folder}: {clip.clip} is {known.label} in {known.split} and {clip.label} in {part}"
                    )
    return list(clips.values()), labelled


def _table(path: str | Path) -> list[Clip]:
    """Videos of a CSV file with the columns path, label and split."""
    rows = read_table(path, "the table", ("path", "label", "split"))
    if not rows:
        raise UserError(f"the table {path} lists no video")
    for row in rows:
        row["path"] = slashed(row["path"])
    if odd := {row["split"] for row in rows} - set(SPLITS):
        raise unknown("split", min(odd), SPLITS, str(path))
    return [Clip(_name(row["path"]), row["path"], row["label"], row["split"]) for row in rows]


def _held_out(clips: Sequence[Clip], share: float, labelled: set[str]) -> list[Clip]:
    """The clips, of which a share of the training ones now is in the split "val"; none of the labelled ones."""
    free = sorted(clip.clip for clip in clips if clip.split == "train" and clip.clip not in labelled)
    count = min(round(share * sum(clip.split == "train" for clip in clips)), len(free))
    held = {free[i] for i in np.random.default_rng(VALIDATION_SEED).permutation(len(free))[:count]}
    return [replace(clip, split="val") if clip.clip in held else clip for clip in clips]


def _report(
    clips: Sequence[Clip], rates: Mapping[str, Iterable[str]], expected: Mapping[str | int, int],
    console: Console | None = None,
) -> list[str]:  # fmt: skip
    """Print what was found beside the published counts, and the rates whose labels leave classes out.

    Returns the counts that differ, one a line.
    """
    console, label_of = console or Console(), {clip.clip: clip.label for clip in clips}
    tested = {clip.label for clip in clips if clip.split == "test"}
    found = {
        "classes": len(set(label_of.values())),
        "train": sum(clip.split != "test" for clip in clips),
        "test": sum(clip.split == "test" for clip in clips),
        **{str(rate): len(set(names)) for rate, names in rates.items()},
    }
    published, differ = {str(key): value for key, value in expected.items()}, []
    for what, count in found.items():
        wanted = published.get(what)
        name = f"labelled at {what} %" if what in rates else what
        console.print(f"{name}: {count}" + (f" (published: {wanted})" if wanted is not None else ""), highlight=False)
        if wanted not in (None, count):
            differ.append(f"{name}: {count}, published {wanted}")
    for rate, names in rates.items():
        if absent := tested - {label_of[name] for name in names}:
            console.print(f"the published labels at {rate} % leave {len(absent)} tested classes without any")
    return differ
