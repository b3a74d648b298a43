"""The stages of a skeleton data set (`kind: skeletons`): its definition, its splits, its store.

`prepare_skeletons` writes `index.csv`, `unreadable.csv` and `protocol.json`; `make_skeleton_store` the store;
`load_split` gives a training what it needs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from pipeline.datasets.coverage import MISSING
from pipeline.datasets.index import COLUMNS, LISTED, Clip, write_index
from pipeline.datasets.skeletons import ntu
from pipeline.datasets.skeletons.definition import (
    OneShotProtocol,
    SkeletonDefinition,
)
from pipeline.datasets.skeletons.protocols import (
    ClassSets,
    Labelled,
    Listing,
    OneShotSplit,
    class_sets,
    one_shot_split,
    split_clips,
)
from pipeline.datasets.skeletons.readers import open_source
from pipeline.datasets.skeletons.source import Item, Source
from pipeline.datasets.skeletons.store import ReportProgress, SkeletonStore, build_skeleton_store
from pipeline.errors import UserError
from pipeline.files import write_csv, write_text
from pipeline.textfiles import read_lines

if TYPE_CHECKING:
    from rich.console import Console


def prepare_skeletons(definition: SkeletonDefinition, folder: str | Path, available: str | Path = "") -> Path:
    """List the clips of a data set and their splits (base train, novel test, validation val).

    Writes into `folder`: `index.csv`; `unreadable.csv`, clips known to be unusable, with the reason; `protocol.json`,
    the protocol and its classes; with `available`, the published names of the samples (NTU RGB+D), `listed.csv`
    holds those that the protocol uses, found or not. Returns the index. Raises UserError when the definition does not
    fit the data.
    """
    from pipeline.datasets.skeletons.graph import get_graph

    folder, source = Path(folder), open_source(definition.source)
    if source.layout not in ("", name := get_graph(definition.graph).name):
        raise UserError(f"the skeletons of {source.root} are {source.layout}, not {name}; set graph: {source.layout}")
    sets = class_sets(definition.protocol, source)
    clips = split_clips(definition.protocol, sets, source)
    lost = _not_found(available, sets, source) if available and Path(available).is_file() else []
    unreadable = [*source.missing, *((clip.path, MISSING) for clip in lost)]
    write_csv(folder / "unreadable.csv", ("path", "reason"), unreadable)
    write_csv(folder / LISTED, COLUMNS, (tuple(asdict(clip).values()) for clip in (*clips, *lost)))
    content = {
        "protocol": definition.protocol.model_dump(mode="json"),
        "classes": list(source.classes),
        "base": sets.base,
        "novel": sets.novel,
        "validation": sets.validation,
        "named": dict(sets.named),
    }
    write_text(folder / "protocol.json", json.dumps(content, indent=1) + "\n")
    return write_index(folder / "index.csv", clips)


def _not_found(available: str | Path, sets: ClassSets, source: Source) -> list[Clip]:
    """Samples of a published list of names that the protocol uses and the source has not."""
    split_of = dict.fromkeys(sets.base, "train") | dict.fromkeys(sets.novel, "test")
    split_of |= dict.fromkeys(sets.validation, "val")
    have = {item.clip for item in source.items} | {PurePosixPath(path).stem for path, _ in source.missing}
    lost = []
    for name in map(str.strip, read_lines(available)):
        parsed = ntu.parse_name(name)
        if parsed is None or name in have or parsed.action > len(source.classes):
            continue
        label = source.classes[parsed.action - 1]
        if label in split_of:
            lost.append(Clip(name, f"{name}{ntu.SUFFIX}", label, split_of[label]))
    return lost


def make_skeleton_store(
    definition: SkeletonDefinition,
    folder: str | Path,
    store: str | Path,
    workers: int = 1,
    progress: ReportProgress | None = None,
    audit: Callable[[list[tuple[Clip, str]]], Mapping[str, Any]] | None = None,
) -> Path:
    """Build the store of the data set that was prepared in `folder`; returns its manifest.

    Beside it `split.csv` (clips of each class, exemplars) and `counts.csv` (clips of each base set and of the
    queries, with the published counts where the definition has them) are written. Raises UserError like
    `build_skeleton_store`, and when an exemplar cannot be used.
    """
    source = open_source(definition.source)
    index = Path(folder) / "index.csv"
    manifest = build_skeleton_store(index, source, store, definition.policy, workers, progress, audit)
    built = SkeletonStore(store)
    load_split(folder, built).write(Path(store) / "split.csv")
    rows = [(name, n, definition.expected.get(name, "")) for name, n in count_clips(folder, built).items()]
    write_csv(Path(store) / "counts.csv", ("set", "clips", "published"), rows)
    return manifest


def read_protocol(folder: str | Path) -> tuple[OneShotProtocol, ClassSets]:
    """What `prepare_skeletons` wrote; raises UserError when it is not there."""
    path = Path(folder) / "protocol.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UserError(f"there is no {path}; prepare the data set first") from None
    named = {name: tuple(classes) for name, classes in content["named"].items()}
    sets = ClassSets(*(tuple(content[key]) for key in ("base", "novel", "validation")), named)
    return OneShotProtocol.model_validate(content["protocol"]), sets


def load_split(folder: str | Path, store: Labelled, base_set: str = "", split: str = "test") -> OneShotSplit:
    """The one-shot split of a prepared data set.

    store: a `SkeletonStore`, or the `Listing` of an index, of which nothing has been skipped yet. base_set: a named
    base set of the protocol, empty for all base classes. split: test, or val for the validation classes. Raises
    UserError like `one_shot_split`.
    """
    protocol, sets = read_protocol(folder)
    novel = sets.novel if split == "test" else sets.validation
    return one_shot_split(store, protocol, sets.base_set(base_set), novel, split)


def count_clips(folder: str | Path, store: Labelled) -> dict[str, int]:
    """Clips of a prepared data set: base, queries, and each named base set."""
    split = load_split(folder, store)
    sizes = {"base": len(split.base), "queries": len(split.queries)}
    return sizes | {name: len(load_split(folder, store, name).base) for name in read_protocol(folder)[1].named}


def count_published(definition: SkeletonDefinition, available: str, console: Console) -> list[str]:
    """Print the counts of a one-shot protocol of NTU RGB+D, from the published names of its samples.

    Returns the differences, one a line. Raises UserError for a name that is no sample's.
    """
    classes = tuple(definition.source.classes)
    items = []
    for name in filter(None, map(str.strip, read_lines(available))):
        parsed = ntu.parse_name(name)
        if parsed is None:
            raise UserError(f"{available}: {name[:60]!r} is not a sample of NTU RGB+D; fetch it again")
        if parsed.action <= len(classes):
            items.append(Item(name, f"{name}{ntu.SUFFIX}", classes[parsed.action - 1]))
    source: Any = SimpleNamespace(items=items, classes=classes, first_class=1, root=available, missing=[])
    sets = class_sets(definition.protocol, source)
    listing = Listing(split_clips(definition.protocol, sets, source))
    rows, mismatches = [], []
    for name in ("", *definition.protocol.bases):
        split = one_shot_split(listing, definition.protocol, sets.base_set(name), sets.novel)
        rows.append((name or "base", len(split.base_classes), len(split.base)))
    rows.insert(1, ("queries", len(split.novel_classes), len(split.queries)))
    for name, count, clips in rows:
        wanted = definition.expected.get(name)
        published = f" (published: {wanted})" if wanted is not None else ""
        console.print(f"{name}: {count} classes, {clips} clips{published}", highlight=False, markup=False)
        if wanted not in (None, clips):
            mismatches.append(f"{name}: {clips} clips, published {wanted}")
    return mismatches
