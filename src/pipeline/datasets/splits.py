"""Which class is in which split, and data sets given as published few-shot lists (`kind: list`)."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from pipeline.datasets.duplicates import check_duplicates
from pipeline.datasets.frames import probe_clips
from pipeline.datasets.index import SPLITS, Clip, read_index, write_prepared
from pipeline.datasets.located import Placed, locate, report_map, video_stem, without_suffix
from pipeline.errors import UserError, unknown
from pipeline.guarded import Failure
from pipeline.names import match_names, normal, told
from pipeline.textfiles import load_json, load_yaml, read_lines, read_text, slashed

NAMING = ("*.list", "*.list.gz", "*train.json*", "*validation.json*")  # files that name the class of a video
MIN_CLIPS = 2  # one to support a class and one to ask for it
_LINE = re.compile(r"(train|val|test)(\d+)[/\\]+(.+)")


# ----------------------------------------------------------------------------------------- class lists
def read_class_list(path: str | Path) -> list[str]:
    """Class names, one a line; empty lines and those that begin with # do not count.

    Raises UserError when the file is missing, holds no class, or a class twice.
    """
    names = [line for line in map(str.strip, read_lines(path)) if line and not line.startswith("#")]
    if not names:
        raise UserError(f"the class list {path} names no class; write one a line")
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise UserError(f"the class list {path} names {twice[0]!r} twice; keep one")
    return names


def draw_class_split(classes: Iterable[str], counts: Mapping[str, int], seed: int) -> dict[str, list[str]]:
    """Draw `counts[split]` classes for each split, without overlap; classes left over are in none.

    The draw depends on the names and the seed, not on their order. Raises UserError when there are too few
    classes.
    """
    classes = sorted(set(classes))
    for split in counts:
        if split not in SPLITS:
            raise unknown("split", split, SPLITS, "the class counts")
    needed = sum(counts.values())
    if needed > len(classes) or min(counts.values(), default=0) < 0:
        raise UserError(f"the splits ask for {needed} classes and there are {len(classes)}; lower the counts")
    order = [classes[i] for i in np.random.default_rng(seed).permutation(len(classes))]
    drawn, start = {}, 0
    for split in SPLITS:
        drawn[split] = sorted(order[start : start + counts.get(split, 0)])
        start += counts.get(split, 0)
    return drawn


def assign_splits(classes: Sequence[str], spec: Mapping[str, Any], where: str) -> dict[str, str]:
    """{class: split} from a configuration; classes in no split are left out.

    `spec` is {train: [classes] or a class list's path, val: ..., test: ...}, or {train: count, ..., seed:
    int} to draw them. Raises UserError on an unknown split or class, and on a class in two splits. `where`
    names the data set.
    """
    for key in spec:
        if key not in (*SPLITS, "seed"):
            raise unknown("split", key, (*SPLITS, "seed"), where)
    given = {split: spec[split] for split in SPLITS if spec.get(split)}
    if not given:
        raise UserError(f"{where}: the splits name no class; give train, val and test classes or their counts")
    if all(isinstance(value, int) for value in given.values()):
        lists = draw_class_split(classes, given, int(spec.get("seed", 0)))
    else:
        lists = {split: class_list(value, split) for split, value in given.items()}
    assigned: dict[str, str] = {}
    for split, names in lists.items():
        found = match_names(names, classes, f"the {split} split of {where}")
        for line in told(found, "is the class"):
            print(f"{where}: {line}")
        for wanted, name in found.items():
            if name is None:
                raise unknown("class", wanted, classes, f"the {split} split of {where}")
            if name in assigned:
                raise UserError(f"{where}: the class {name!r} is in {assigned[name]} and {split}; keep one of them")
            assigned[name] = split
    return assigned


def class_list(value: Any, split: str) -> list[str]:
    """Classes of one split, given as a list or as the path of a class list; raises UserError on others."""
    if isinstance(value, (str, os.PathLike)):
        return read_class_list(value)
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return [str(name) for name in value]
    raise UserError(f"the {split} split must be a list of classes or a file (or counts, for all splits)")


# ------------------------------------------------------------------------------------- few-shot lists
@dataclass(frozen=True, slots=True)
class ListedClip:
    """One line of a few-shot list: split, number of the class within the split, path or id of the video."""

    split: str
    label: int
    path: str


def read_few_shot_list(path: str | Path) -> list[ListedClip]:
    """Read a list of CLIP-FSAR's form, plain or gzipped.

    A line is `<split><label>//<path>` (HMDB51, UCF101, Kinetics-100) or `<split><label>/<id>`
    (Something-Something). Raises UserError naming the line that is neither.
    """
    path = Path(path)
    clips: dict[ListedClip, int] = {}
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip():
            continue
        match = _LINE.fullmatch(line.strip())
        if match is None:
            raise UserError(f"{path}, line {number}: {line[:60]!r} is not <split><label>/<path>; correct it")
        clip = ListedClip(match[1], int(match[2]), slashed(match[3]))
        if first := clips.get(clip):
            raise UserError(f"{path}, line {number}: {clip.path!r} is in line {first} already; keep one")
        clips[clip] = number
    if not clips:
        raise UserError(f"the list {path} holds no clip; fetch it again")
    return list(clips)


def class_names(
    clips: Sequence[ListedClip],
    given: Mapping[str, Sequence[str]],
    named: Mapping[str, str],
    numbered: bool = False,
) -> dict[tuple[str, int], str]:
    """{(split, label): class name} of a few-shot list.

    given: names by split, in the order of the labels; CLIP-FSAR publishes them for train and test. A split
    that it lacks takes its names from `named` ({id of a video: class}: `read_named_list`), else from the folders
    that the videos lie in, else, with `numbered`, they are "val class 0", ... Raises UserError when a split has more
    labels than names, two classes have one name, one class has two, or a class has none.
    """
    names: dict[tuple[str, int], str] = {}
    for clip in clips:
        key, name = (clip.split, clip.label), ""
        if clip.split not in given:
            name = _name_of(clip, named)
        elif clip.label < len(given[clip.split]):
            name = given[clip.split][clip.label]
        else:
            raise UserError(
                f"the {clip.split} list has the label {clip.label}, beyond its "
                f"{len(given[clip.split])} names; list and names are not of one data set: fetch both again"
            )
        if name and names.setdefault(key, name) != name:
            raise UserError(
                f"the {clip.split} class {clip.label} of the lists is both {names[key]!r} and {name!r} ({clip.path}); "
                "lists and names are not of one data set: fetch both again"
            )
    keys = list(dict.fromkeys((clip.split, clip.label) for clip in clips))
    if (unnamed := [key for key in keys if key not in names]) and not numbered:
        split, label = unnamed[0]
        raise UserError(
            f"the lists do not say what {len(unnamed)} classes are called, such as class {label} of {split}; put files "
            "that name their videos beside the lists (of Something-Something v2 its own label files, "
            f"something-something-v2-train.json and -validation.json), or {split}: [names] into class_names.json"
        )
    seen: dict[str, tuple[str, int]] = {}
    names = {key: names.get(key, f"{key[0]} class {key[1]}") for key in keys}
    for key, name in names.items():
        if name in seen:
            raise UserError(f"the class {name!r} is both {seen[name]} and {key} in the lists; correct the names")
        seen[name] = key
    return names


def _name_of(clip: ListedClip, named: Mapping[str, str]) -> str:
    """Empty where nothing says it."""
    stem = video_stem(clip.path)
    if stem in named:
        return named[stem]
    return display_label(os.path.basename(os.path.dirname(clip.path)))


def display_label(label: str) -> str:
    """A class name as words: draw_sword becomes draw sword, and PlayingDhol becomes Playing Dhol."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", label.replace("_", " "))
    return " ".join(words.split())


def read_named_list(path: str | Path) -> dict[str, str]:
    """{id of a video: class name} from lines `<class name>/<id>` (CMN's and TRX's lists), or from Something-Something
    v2's own label files (JSON: a list of {id, template}).

    Raises UserError for a JSON file of another form.
    """
    path = Path(path)
    if ".json" not in path.suffixes:
        rows = (line.strip().rpartition("/") for line in read_lines(path))
        return {video_stem(clip): name for name, slash, clip in rows if slash}
    try:
        return {str(video["id"]): str(video["template"]) for video in load_json(read_text(path))}
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"{path} is not a list of {{id, template}}, as Something-Something v2 has it ({error}); fetch it again, or "
            "take it out of the folder of the lists"
        ) from None


def prepare_list(spec: Mapping[str, Any], out_folder: str | Path, workers: int = 1) -> Path:
    """Prepare a data set given by few-shot lists; returns its `index.csv`.

    spec: the keys of `kinds.listed.ListDefinition`. A video is looked for at the list's path, then anywhere below the
    root by its file name, whatever its suffix. A folder of lists has `train_few_shot.txt` and so on (a prefix, `.gz`
    and missing splits are allowed) and `class_names.json`. names_from are files of `read_named_list`, by default every
    `*.list`, `*train.json` and `*validation.json` of the folder, for splits that class_names.json lacks. Without
    `probe` the frame store finds the videos that cannot be read.

    Videos that are missing are listed in `unreadable.csv` and left out. Raises UserError when lists or all
    videos are missing, or a class is left with too few.
    """
    root = Path(required(spec, "root"))
    listed, names = read_lists(spec)
    places = find_listed(root, [clip.path for clip in listed], Path(out_folder))
    both = list(zip(listed, places, strict=True))
    clips = [
        Clip(without_suffix(clip.path), place.path or clip.path, names[clip.split, clip.label], clip.split)
        for clip, place in both
    ]
    found = [clip for clip, place in zip(clips, places, strict=True) if place.path]
    check_duplicates(root, found, spec.get("duplicates", "error"))
    unreadable = [(clip.path, place.reason) for clip, place in both if not place.path]
    if spec.get("probe", False):
        probes = zip(found, probe_clips(root, found, workers, spec.get("pattern", "")), strict=True)
        unreadable += [(clip.path, probe.reason) for clip, probe in probes if isinstance(probe, Failure)]
    return write_prepared(out_folder, root, clips, unreadable, int(spec.get("min_clips", MIN_CLIPS)))


def find_listed(root: Path, paths: Sequence[str], folder: Path) -> list[Placed]:
    """`locate` of all paths of a data set's lists, with the map of those that lie under another name in `folder`.

    Raises UserError when none is found, or several files fit one.
    """
    places = locate(root, paths)
    if not any(place.path for place in places):
        raise UserError(
            f"none of the {len(paths)} videos of the lists is found in {root}; the first, {paths[0]}: "
            f"{places[0].reason}; correct the root"
        )
    report_map(folder, paths, places)
    return places


def read_lists(spec: Mapping[str, Any], numbered: bool = False) -> tuple[list[ListedClip], dict[tuple[str, int], str]]:
    """The lines of a data set's few-shot lists, and its class names; no video is looked for.

    spec: `lists` and `names_from` as in `prepare_list`. numbered: classes that nothing names are called by their
    numbers, which is enough to count. Raises UserError when lists are missing or wrong.
    """
    listed, given, named = _read_files(spec)
    return listed, class_names(listed, given, named, numbered)


def _read_files(spec: Mapping[str, Any]) -> tuple[list[ListedClip], dict[str, list[str]], dict[str, str]]:
    """The lines of few-shot lists, names by split and, by videos, names of classes."""
    files, named_files = _list_files(required(spec, "lists"), spec.get("names_from"))
    listed = [clip for split in SPLITS if split in files for clip in read_few_shot_list(files[split])]
    given = _read_names(files["class_names"]) if "class_names" in files else {}
    named = {clip: name for file in named_files for clip, name in read_named_list(file).items()}
    return listed, given, named


def label_offsets(spec: Mapping[str, Any]) -> Iterator[str]:
    """Splits of few-shot lists whose classes are not counted from 0, or whose names stand a place off; one a line.

    spec: as of `read_lists`. A name stands off where the videos of a class say, by their folder or by a list of names,
    what the class next to it is called. Raises UserError when lists are missing or wrong.
    """
    listed, given, named = _read_files(spec)
    for split in SPLITS:
        said = {clip.label: normal(_name_of(clip, named)) for clip in listed if clip.split == split}
        if not said:
            continue
        if first := min(said):
            yield f"the {split} list counts its classes from {first} to {max(said)}; they are to be counted from 0"
            continue
        names = dict(enumerate(map(normal, given.get(split, ()))))
        fits = {by: sum(names.get(label + by) == name for label, name in said.items()) for by in (0, -1, 1)}
        by = max(fits, key=lambda by: fits[by])
        if by:
            yield (
                f"the names of the {split} classes stand one place {'later' if by > 0 else 'earlier'} than the labels "
                f"of the list say: by their videos, {fits[by]} of {len(said)} classes are called so"
            )


def required(spec: Mapping[str, Any], key: str) -> Any:
    """An entry of a data set's configuration; raises UserError when it is missing or empty."""
    if not spec.get(key):
        raise UserError(f"the data set's configuration lacks {key}; add it")
    return spec[key]


def _list_files(lists: Any, names_from: Any) -> tuple[dict[str, Path], list[Path]]:
    """Files of the splits and of the class names, and the lists that name classes."""
    extra = [Path(file) for file in ([names_from] if isinstance(names_from, str) else names_from or ())]
    if isinstance(lists, Mapping):
        return {key: Path(file) for key, file in lists.items()}, extra
    folder = Path(lists)
    files = {}
    for key, pattern in [(split, f"*{split}_few_shot.txt*") for split in SPLITS] + [("class_names", "*class_names.*")]:
        found = sorted(folder.glob(pattern))
        if len(found) > 1:
            raise UserError(f"{folder} has {len(found)} files {pattern}; name the right one in lists")
        if found:
            files[key] = found[0]
    if not any(split in files for split in SPLITS):
        raise UserError(f"there is no *_few_shot.txt in {folder}; fetch the lists or correct the folder")
    return files, extra or sorted(path for pattern in NAMING for path in folder.glob(pattern))


def _read_names(path: Path) -> dict[str, list[str]]:
    """Names by split from {split: [names]}, or from a recipe of CLIP-FSAR, {TRAIN: {CLASS_NAME: [names]}}.

    JSON or YAML; other entries are passed over.
    """
    try:
        content = load_yaml(read_text(path, "the file of class names", "correct its path or fetch it"))
        recipes = {split: content[split.upper()]["CLASS_NAME"] for split in SPLITS if split.upper() in content}
        return {split: [str(name) for name in names] for split, names in {**recipes, **_by_split(content)}.items()}
    except (ValueError, TypeError, KeyError) as error:
        said = " ".join(str(error).split())
        raise UserError(f"{path} is not {{split: [class names]}} in JSON or YAML ({said}); fetch it again") from None


def _by_split(content: Mapping[str, Any]) -> dict[str, Sequence[str]]:
    return {split: content[split] for split in SPLITS if split in content}


# ------------------------------------------------------------------------------------------ counts
def check_counts(
    index: str | Path | Iterable[Clip], expected: Mapping[str, Any], console: Console | None = None
) -> list[str]:
    """Print classes and clips of each split beside the published counts; returns the mismatches, one a
    line.

    index: `index.csv` or its clips. expected: {classes: {split: n}, clips: {split: n}}; what is not named is not
    compared.
    """
    clips = read_index(index) if isinstance(index, (str, Path)) else list(index)
    console = console or Console()
    mismatches = []
    for split in SPLITS:
        here = [clip for clip in clips if clip.split == split]
        found = {"classes": len({clip.label for clip in here}), "clips": len(here)}
        words = []
        for what, n in found.items():
            wanted = expected.get(what, {}).get(split)
            words.append(f"{n} {what}" + (f" (published: {wanted})" if wanted is not None else ""))
            if wanted not in (None, n):
                mismatches.append(f"{split}: {n} {what}, published {wanted}")
        console.print(f"{split}: {', '.join(words)}", highlight=False, markup=False)
    return mismatches
