"""Classes and clips of the published splits, from their list files alone: no video or skeleton is needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from rich.console import Console

from pipeline.config import Config
from pipeline.datasets.index import Clip
from pipeline.datasets.splits import check_counts, class_list, read_lists
from pipeline.errors import UserError


@dataclass
class Checked:
    """What `check_splits` found, by data set."""

    differ: dict[str, list[str]] = field(default_factory=dict)
    """Mismatches, one a line."""
    absent: dict[str, str] = field(default_factory=dict)
    """Why a data set could not be counted."""
    equal: list[str] = field(default_factory=list)


def countable(definition: Mapping[str, Any]) -> bool:
    """Whether a data set is defined by published lists that can be counted."""
    return definition.get("kind") == "list" or bool(definition.get("available"))


def check_splits(config: Config, names: Sequence[str] = (), console: Console | None = None) -> Checked:
    """Print classes and clips of each split of the data sets `names` beside the published counts.

    names: by default all data sets with published lists. Raises UserError for an unknown data set, and one without
    lists.
    """
    console, found = console or Console(soft_wrap=True), Checked()
    definitions = {name: config.entry("datasets", name, "the command line") for name in names}
    if not names:
        every = {name: config.entry("datasets", name, "") for name in config.names("datasets")}
        definitions = {name: definition for name, definition in every.items() if countable(definition)}
    for name, definition in definitions.items():
        if not countable(definition):
            raise UserError(f"the data set {name} has no published lists to count (kind: list, or the key available)")
        console.print(f"{name}:", highlight=False, markup=False)
        try:
            count = _count_list if definition["kind"] == "list" else _count_one_shot
            lines = count(definition, config.place("datasets", name), console)
        except UserError as error:
            console.print(f"  {error}", highlight=False, markup=False)
            found.absent[name] = str(error)
            continue
        if lines:
            found.differ[name] = lines
        else:
            found.equal.append(name)
    return found


def listed_classes(definition: Mapping[str, Any], where: str) -> list[str]:
    """Class names of a data set as far as its definition and lists tell them, sorted.

    Raises UserError where only the prepared data set knows them.
    """
    if definition.get("kind") == "list":
        return sorted(set(read_lists(definition)[1].values()))
    classes = definition.get("classes")
    if isinstance(classes, Mapping) and classes:
        return sorted(map(str, classes.values()))
    if isinstance(classes, list) and classes:
        return sorted(map(str, classes))
    splits = definition.get("splits", {})
    if splits and not any(isinstance(value, int) for value in splits.values()):
        return sorted({name for split, value in splits.items() for name in class_list(value, split)})
    raise UserError(f"{where} does not name the classes; prepare the data set first, or give a file with --classes")


def _count_list(definition: Mapping[str, Any], where: str, console: Console) -> list[str]:
    listed, names = read_lists(definition, numbered=True)
    clips = [Clip(clip.path, clip.path, names[clip.split, clip.label], clip.split) for clip in listed]
    return check_counts(clips, definition.get("expected", {}), _indented(console))


def _count_one_shot(definition: Mapping[str, Any], where: str, console: Console) -> list[str]:
    """Counts of a one-shot protocol of NTU RGB+D, from the published names of the samples."""
    from pipeline.datasets.skeletons import ntu
    from pipeline.datasets.skeletons.prepare import SkeletonDefinition
    from pipeline.datasets.skeletons.protocols import Listing, class_sets, one_shot_split, split_clips
    from pipeline.datasets.skeletons.source import Item

    made = SkeletonDefinition.read(definition, where)
    classes = tuple(made.source.classes)
    items = []
    for name in _read_available(Path(definition["available"])):
        parsed = ntu.parse_name(name)
        if parsed is None:
            raise UserError(f"{definition['available']}: {name[:60]!r} is not a sample of NTU RGB+D; fetch it again")
        if parsed.action <= len(classes):
            items.append(Item(name, f"{name}{ntu.SUFFIX}", classes[parsed.action - 1]))
    source: Any = SimpleNamespace(items=items, classes=classes, first_class=1, root=definition["available"], missing=[])
    sets = class_sets(made.protocol, source)
    listing = Listing(split_clips(made.protocol, sets, source))
    rows, mismatches = [], []
    for name in ("", *made.protocol.bases):
        split = one_shot_split(listing, made.protocol, sets.base_set(name), sets.novel)
        rows.append((name or "base", len(split.base_classes), len(split.base)))
    rows.insert(1, ("queries", len(split.novel_classes), len(split.queries)))
    console = _indented(console)
    for name, count, clips in rows:
        wanted = made.expected.get(name)
        published = f" (published: {wanted})" if wanted is not None else ""
        console.print(f"{name}: {count} classes, {clips} clips{published}", highlight=False, markup=False)
        if wanted not in (None, clips):
            mismatches.append(f"{name}: {clips} clips, published {wanted}")
    return mismatches


def _read_available(path: Path) -> list[str]:
    from pipeline.textfiles import read_lines

    return [line for line in map(str.strip, read_lines(path)) if line]


def _indented(console: Console) -> Any:
    """A console that puts two blanks before a line."""
    return SimpleNamespace(print=lambda text, **options: console.print(f"  {text}", **options))
