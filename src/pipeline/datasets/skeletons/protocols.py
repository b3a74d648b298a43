"""One-shot protocols: base classes to train on, one exemplar of each novel class, all other clips as queries.

NTU RGB+D 120 has an official protocol (Liu et al., TPAMI 2020): 20 novel classes, every sixth from A1, their
exemplars named, all samples of the other 100 classes for training. Which classes the smaller base sets of the
literature hold is stated nowhere; the customary reading, the first n in ascending order, is `bases: {20: 20}`
here, and any other list can be given.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from pipeline.datasets.index import Clip
from pipeline.datasets.skeletons.definition import ClassRef, OneShotProtocol
from pipeline.datasets.skeletons.source import Item, Source
from pipeline.errors import UserError, unknown
from pipeline.files import write_csv
from pipeline.names import Names, ambiguous, folded, match_name

_CLIP_KEYS = {"case": folded, "its suffix": lambda name: folded(name).removesuffix(".skeleton").removesuffix(".json")}


class Labelled(Protocol):
    """Anything that lists clips: a store, or a `Listing`. skipped: {clip: reason} of those left out."""

    clips: list[str]
    labels: list[str]
    splits: list[str]
    skipped: dict[str, str]


class Listing:
    """Clips of an index, as `Labelled`."""

    def __init__(self, clips: Iterable[Clip]) -> None:
        rows = [(clip.clip, clip.label, clip.split) for clip in clips]
        self.clips, self.labels, self.splits = map(list, zip(*rows, strict=True))
        self.skipped: dict[str, str] = {}


# --------------------------------------------------------------------------------------- classes and splits
@dataclass(frozen=True)
class ClassSets:
    """Class names of a protocol; `base` in the order of the data set, `named` are the named base sets."""

    base: tuple[str, ...]
    novel: tuple[str, ...]
    validation: tuple[str, ...]
    named: Mapping[str, tuple[str, ...]]

    def base_set(self, name: str = "") -> tuple[str, ...]:
        """Classes of a named base set, or all; raises UserError for an unknown one."""
        if not name:
            return self.base
        if name not in self.named:
            raise unknown("base set", name, self.named, "the protocol")
        return self.named[name]


def class_sets(protocol: OneShotProtocol, source: Source) -> ClassSets:
    """The classes of a protocol on a source.

    Raises UserError for a class that the source has not, or that is in two parts, and for a base set of more
    classes than there are.
    """
    present = Counter(item.label for item in source.items)
    classes = [name for name in source.classes if name in present]

    def resolve(refs: Iterable[ClassRef] | str, key: str) -> list[str]:
        if isinstance(refs, str):
            named = {item.label for item in source.items if item.subset == refs}
            if not named:
                known = {item.subset for item in source.items if item.subset}
                raise unknown("subset", refs, known, f"the protocol, key {key}")
            return [name for name in classes if name in named]
        names = [_class_name(ref, source, key) for ref in refs]
        if absent := [name for name in names if name not in present]:
            raise UserError(f"the protocol's {key} class {absent[0]!r} has no clip in {source.root}; correct the root")
        if twice := [name for name, times in Counter(names).items() if times > 1]:
            raise UserError(f"the protocol names the {key} class {twice[0]!r} twice; keep one")
        return names

    base, validation = resolve(protocol.base, "base"), resolve(protocol.validation, "validation")
    if isinstance(protocol.novel, int):
        free = [name for name in classes if name not in {*base, *validation}]
        if not 1 <= protocol.novel <= len(free):
            raise UserError(f"the protocol draws {protocol.novel} novel classes of {len(free)}; lower the number")
        drawn = np.random.default_rng(protocol.seed).permutation(len(free))[: protocol.novel]
        novel = [free[i] for i in sorted(drawn)]
    else:
        novel = resolve(protocol.novel, "novel")
    base = base or [name for name in classes if name not in {*novel, *validation}]
    for name, parts in Counter([*base, *novel, *validation]).items():
        if parts > 1:
            raise UserError(f"the protocol has the class {name!r} in two of base, novel, validation; keep one")
    if len(novel) < 2 or not base:
        raise UserError(f"a one-shot protocol needs base classes and two novel ones, not {len(base)} and {len(novel)}")
    named = {}
    for key, value in protocol.bases.items():
        chosen = base[:value] if isinstance(value, int) else resolve(value, f"base set {key}")
        if isinstance(value, int) and not 1 <= value <= len(base):
            raise UserError(f"the protocol's base set {key} asks for {value} of {len(base)} base classes; correct it")
        if odd := set(chosen) - set(base):
            raise unknown("base class", min(odd), base, f"the protocol's base set {key}")
        named[key] = tuple(chosen)
    return ClassSets(tuple(base), tuple(novel), tuple(validation), named)


def _class_name(ref: ClassRef, source: Source, key: str) -> str:
    if isinstance(ref, str):
        if (name := match_name(ref, source.classes, f"the protocol, key {key}")) is None:
            raise unknown("class", ref, source.classes, f"the protocol, key {key}")
        return name
    place = ref - source.first_class
    if not 0 <= place < len(source.classes):
        raise UserError(
            f"the protocol, key {key}: there is no class {ref}; they are numbered from {source.first_class} "
            f"to {len(source.classes) - 1 + source.first_class}"
        )
    return source.classes[place]


def split_clips(protocol: OneShotProtocol, sets: ClassSets, source: Source) -> list[Clip]:
    """Clips that the protocol uses: base classes are train, novel ones test, validation ones val.

    Raises UserError when a named exemplar is not there, or a base class has no clip in `base_subset`.
    """
    split_of = dict.fromkeys(sets.base, "train") | dict.fromkeys(sets.novel, "test")
    split_of |= dict.fromkeys(sets.validation, "val")

    def used(item: Item) -> bool:
        split = split_of.get(item.label)
        return split is not None and not (split == "train" and protocol.base_subset not in ("", item.subset))

    clips = [Clip(item.clip, item.path, item.label, split_of[item.label]) for item in source.items if used(item)]
    trained = {clip.label for clip in clips if clip.split == "train"}
    if empty := [name for name in sets.base if name not in trained]:
        raise UserError(
            f"the base class {empty[0]!r} has no clip in the subset {protocol.base_subset!r}; correct base_subset"
        )
    reasons = {Path(path).name.split(".")[0]: reason for path, reason in source.missing}
    test = [clip for clip in clips if clip.split == "test"]
    choose_exemplars([c.clip for c in test], [c.label for c in test], sets.novel, protocol, reasons)
    return clips


# ------------------------------------------------------------------------------------------- the split itself
@dataclass(frozen=True)
class OneShotSplit:
    """Which clips (numbers in the store) are trained on, shown as exemplars, and asked for.

    base_labels: place of each base clip's class in base_classes; query_labels: place among novel_classes, whose
    exemplars are in the same order.
    """

    base_classes: tuple[str, ...]
    novel_classes: tuple[str, ...]
    base: np.ndarray
    base_labels: np.ndarray
    exemplars: np.ndarray
    queries: np.ndarray
    query_labels: np.ndarray
    exemplar_names: tuple[str, ...]

    def rows(self) -> list[tuple[str, str, int, str]]:
        """(role, class, clips, exemplar) of each class; a novel class's clips are its queries."""
        base = np.bincount(self.base_labels, minlength=len(self.base_classes))
        queries = np.bincount(self.query_labels, minlength=len(self.novel_classes))
        return [("base", name, int(n), "") for name, n in zip(self.base_classes, base, strict=True)] + [
            ("novel", name, int(n), clip)
            for name, n, clip in zip(self.novel_classes, queries, self.exemplar_names, strict=True)
        ]

    def write(self, path: str | Path) -> Path:
        """Write `rows` as a CSV file."""
        return write_csv(path, ("role", "class", "clips", "exemplar"), self.rows())

    def __str__(self) -> str:
        return "\n".join(
            (
                f"{'':<10}{'classes':>8}{'clips':>10}",
                f"{'base':<10}{len(self.base_classes):>8}{len(self.base):>10}",
                f"{'exemplars':<10}{len(self.novel_classes):>8}{len(self.exemplars):>10}",
                f"{'queries':<10}{len(self.novel_classes):>8}{len(self.queries):>10}",
            )
        )


def one_shot_split(
    store: Labelled,
    protocol: OneShotProtocol,
    base_classes: Sequence[str] = (),
    novel_classes: Sequence[str] = (),
    split: str = "test",
) -> OneShotSplit:
    """The one-shot split of a store's clips.

    base_classes: the base set to train on (`ClassSets.base_set`), by default all classes of the train split.
    novel_classes: in the wanted order, by default those of `split` (test, or val for validation), sorted.
    Raises UserError when a class has no clip, a novel one no query, or an exemplar is missing or was skipped.
    """
    labels, splits = np.asarray(store.labels), np.asarray(store.splits)
    base = tuple(base_classes) or tuple(sorted(set(labels[splits == "train"].tolist())))
    novel = tuple(novel_classes) or tuple(sorted(set(labels[splits == split].tolist())))
    if len(novel) < 2:
        raise UserError(
            f"the split {split} has {len(novel)} classes, one-shot recognition needs two; correct the protocol"
        )
    trained, trained_labels = _clips_of(labels, splits, "train", base)
    asked, asked_labels = _clips_of(labels, splits, split, novel)
    names = [store.clips[i] for i in asked]
    if split != "test" and not isinstance(protocol.exemplars, str):
        protocol = protocol.model_copy(update={"exemplars": "first"})  # the named ones are of the novel classes
    chosen = choose_exemplars(names, [novel[j] for j in asked_labels], novel, protocol, store.skipped)
    is_exemplar = np.zeros(len(asked), dtype=bool)
    is_exemplar[chosen] = True
    queries, query_labels = asked[~is_exemplar], asked_labels[~is_exemplar]
    if alone := set(range(len(novel))) - set(query_labels.tolist()):
        raise UserError(
            f"the novel class {novel[min(alone)]!r} has one clip, its exemplar; it needs another as a query"
        )
    return OneShotSplit(
        base, novel, trained, trained_labels, asked[chosen], queries, query_labels, tuple(names[i] for i in chosen)
    )


def _clips_of(
    labels: np.ndarray, splits: np.ndarray, split: str, classes: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the clips of `classes` in a split, and the place of each one's class."""
    place = {name: i for i, name in enumerate(classes)}
    found = np.array([place.get(name, -1) for name in labels.tolist()], dtype=np.int64)
    found[splits != split] = -1
    counts = np.bincount(found[found >= 0], minlength=len(classes))
    if len(classes) and not counts.all():
        raise UserError(
            f"the class {classes[int(counts.argmin())]!r} has no usable clip in the split {split}; see skipped.csv"
        )
    numbers = np.flatnonzero(found >= 0)
    return numbers, found[numbers]


def choose_exemplars(
    clips: Sequence[str],
    labels: Sequence[str],
    classes: Sequence[str],
    protocol: OneShotProtocol,
    skipped: Mapping[str, str],
) -> np.ndarray:
    """Number of the exemplar among `clips`, for each of `classes`.

    A drawn one depends on the seed, the class's name and its clips only. Raises UserError when a named exemplar is
    missing (skipped: {clip: reason} of those left out), or a class has none or two.
    """
    of_class: dict[str, list[tuple[str, int]]] = {name: [] for name in classes}
    for i, (clip, label) in enumerate(zip(clips, labels, strict=True)):
        if label in of_class:
            of_class[label].append((clip, i))
    if empty := [name for name, found in of_class.items() if not found]:
        raise UserError(f"the novel class {empty[0]!r} has no usable clip; see skipped.csv")
    if isinstance(protocol.exemplars, str):
        return np.array([_pick(sorted(found), name, protocol) for name, found in of_class.items()])
    place = {clip: (label, i) for clip, label, i in zip(clips, labels, range(len(clips)), strict=True)}
    chosen: dict[str, int] = {}
    names = Names(place, _CLIP_KEYS)
    for listed in protocol.exemplars:
        found, _ = names.candidates(listed)
        if len(found) > 1:
            raise ambiguous("exemplar", listed, found, "the protocol")
        if not found:
            reason = f" ({skipped[listed]})" if listed in skipped else ": there is no such clip of a novel class"
            near = f", the nearest is {names.nearest(listed)}" if names.nearest(listed) else ""
            raise UserError(
                f"the exemplar {listed} of the protocol is not usable{reason}{near}; fetch it again or name another "
                "under protocol: exemplars"
            )
        clip = found[0]
        label, i = place[clip]
        if label in chosen:
            raise UserError(f"the protocol names two exemplars of {label!r}, {clip} is the second; keep one")
        chosen[label] = i
    if without := [name for name in classes if name not in chosen]:
        raise UserError(f"the protocol names no exemplar of the novel class {without[0]!r}; add one")
    return np.array([chosen[name] for name in classes])


def _pick(found: Sequence[tuple[str, int]], name: str, protocol: OneShotProtocol) -> int:
    if protocol.exemplars == "first":
        return found[0][1]
    words = np.frombuffer(name.encode(), dtype=np.uint8).tolist()
    rng = np.random.default_rng(np.random.SeedSequence([protocol.seed, *words]))
    return found[int(rng.integers(len(found)))][1]
