"""What every reader of skeletons is: the clips that it lists, with their classes, read one at a time."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from pipeline.datasets.coverage import MISSING
from pipeline.datasets.located import FILE_KEYS
from pipeline.datasets.skeletons import ntu
from pipeline.datasets.skeletons.definition import JOINTS, SourceSpec
from pipeline.datasets.skeletons.ntu import Recording
from pipeline.datasets.skeletons.preprocess import Pose
from pipeline.errors import UserError, unknown
from pipeline.guarded import Unreadable
from pipeline.names import Names, ambiguous, folded
from pipeline.textfiles import read_table, slashed


@dataclass(frozen=True, slots=True)
class Item:
    """A clip as its source lists it. subset: the part of the source that it belongs to (train, val), if any."""

    clip: str
    path: str
    label: str
    subset: str = ""


class Source:
    """Clips of one format.

    items: in a fixed order. classes: names in the order of their numbers, which start at `first_class`. missing:
    (path, reason) of clips that are known to be unusable. joints: V; channels: C, of which the first `spatial`
    are coordinates. parallel: whether other processes may read; they get a copy without the items. layout: name of
    the skeleton, where the data say which it is.
    """

    joints = ntu.JOINTS
    channels = 3
    spatial = 3
    parallel = True
    layout = ""

    def __init__(self, spec: SourceSpec) -> None:
        self.spec, self.root = spec, Path(spec.root).expanduser()
        self.joints = spec.joints or JOINTS.get(spec.format, 0)
        if not self.joints:
            raise UserError(
                f"skeletons of format {spec.format} ({spec.root}): key joints is missing (how many a body has)"
            )
        self.first_class = spec.first_class
        self.missing: list[tuple[str, str]] = []
        self.classes: tuple[str, ...] = tuple(spec.classes.values() if isinstance(spec.classes, dict) else spec.classes)
        self.items: list[Item] = []

    def read(self, path: str) -> Recording | Pose:
        """The clip at `path` of an item. Raises Unreadable with the reason when it cannot be used."""
        raise NotImplementedError

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"items": [], "missing": []}

    def _done(self, items: Iterable[Item]) -> None:
        """Keep `items`, one for each name; the others of a name are listed as missing."""
        named: dict[str, Item] = {}
        for item in items:
            first = named.setdefault(item.clip, item)
            if first is not item:
                self.missing.append((item.path, f"the clip {item.clip} is there already, as {first.path}"))
        self.items = list(named.values())
        if not self.items:
            raise UserError(f"no skeleton clip of format {self.spec.format} is found in {self.root}; correct the root")
        if not self.classes:
            self.classes = tuple(sorted({item.label for item in self.items}))

    def _ask_third(self, poses: Iterable[np.ndarray]) -> None:
        """Settle what the third number of a joint is: of the definition, else of some clips' joints (..., V, 3).

        Raises UserError where the definition does not say, and the numbers look like scores.
        """
        if self.channels != 3:
            return
        if not self.spec.third and any(looks_like_score(joints) for joints in poses):
            raise UserError(
                f"the third number of each joint in {self.root} looks like a score (from 0 to 1): set third: score, or "
                "third: z if it is a coordinate"
            )
        if self.spec.third == "score":
            self.spatial = 2

    def _label(self, raw: str | int, where: str) -> str:
        """Class name for a label as the data give it."""
        classes, text = self.spec.classes, plain_text(raw)
        if isinstance(classes, dict):
            if text not in classes:
                raise unknown("class", text, classes, where)
            return classes[text]
        if not classes:
            return text
        place = int(text) - self.first_class if text.lstrip("-").isdecimal() else -1
        if place < 0 and text in classes:
            return text
        if not 0 <= place < len(classes):
            raise UserError(f"{where}: class {raw} is not among the {len(classes)} `classes`; correct the list")
        return classes[place]

    def _check(self, joints: np.ndarray) -> np.ndarray:
        """(..., V, C) float32, or Unreadable when V or C are others."""
        if joints.ndim < 3 or not joints.size:
            raise Unreadable("no frame")
        if joints.shape[-2] != self.joints:
            raise Unreadable(f"{joints.shape[-2]} joints, the skeleton has {self.joints}")
        if joints.shape[-1] != self.channels:
            raise Unreadable(f"{joints.shape[-1]} numbers a joint, expected {self.channels}")
        return joints.astype(np.float32)


def looks_like_score(joints: np.ndarray) -> bool:
    """Whether the third of the numbers (..., V, 3) changes from joint to joint and is from 0 to 1 in every one, and the
    first two are no such small lengths around an origin as those of 3D skeletons."""
    if joints.shape[-1] != 3 or not joints.size or joints.dtype.kind not in "fiu":
        return False
    third, plane = joints[..., 2], joints[..., :2]
    inside = bool(np.nanmin(third) >= 0 and np.nanmax(third) <= 1 and np.nanmax(third) > np.nanmin(third))
    return inside and bool(np.nanmin(plane) >= 0 or np.nanmax(np.abs(plane)) > 2)


def plain_text(value: Any) -> str:
    """A name of an array or pickle as text, composed; bytes are UTF-8."""
    return unicodedata.normalize("NFC", value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value))


def files_below(root: Path, suffix: str) -> list[str]:
    """Paths, relative to `root`, of the files with a suffix, sorted; also of folders that links lead to."""
    if not root.is_dir():
        raise UserError(f"{root} is not a folder; set root: to the folder with the {suffix} files")
    found, seen = [], set()  # real folders, against links that lead in a circle
    for folder, folders, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        inside = os.path.relpath(folder, root)
        prefix = "" if inside == "." else PurePosixPath(Path(inside)).as_posix() + "/"
        found += [prefix + name for name in names if name.endswith(suffix) and name[0] != "."]
    return sorted(found)


def labelled_items(source: Source, paths: Iterable[str]) -> Iterator[Item]:
    """Items of files: their classes from the table `labels`, from `pattern`, or from the folder they lie in."""
    spec = source.spec
    paths = list(paths)
    table = _read_labels(source, Path(spec.labels), paths) if spec.labels else None
    try:
        pattern = re.compile(spec.pattern) if spec.pattern else None
    except re.error as error:
        raise UserError(f"pattern {spec.pattern!r} is not a regular expression ({error}); correct it") from None
    if pattern and "label" not in pattern.groupindex:
        raise UserError(f"pattern {spec.pattern!r} has no group (?P<label>...); add it")
    stems: set[str] = set()
    for path in paths:
        place = PurePosixPath(path)
        clip, subset = str(place.with_suffix("")), ""
        if table is not None:
            if path not in table:
                continue
            raw, subset = table[path]
        elif pattern:
            found = pattern.search(place.name)
            if not found:
                source.missing.append((path, f"its name does not fit the pattern {spec.pattern!r}"))
                continue
            raw, clip = found["label"], clip if place.stem in stems else place.stem
            stems.add(place.stem)
        elif len(place.parts) > 1:
            raw = place.parts[0]
        else:
            raise UserError(f"{source.root / path} lies in no class folder; make folders, or give pattern or labels")
        yield Item(clip, path, source._label(raw, path), subset)


def _read_labels(source: Source, table: Path, paths: list[str]) -> dict[str, tuple[str, str]]:
    """{path of a clip: (label, split or "")} of a table; a row whose clip is not among `paths` is listed as missing."""
    names = Names(paths, FILE_KEYS | {"any suffix": lambda path: folded(str(PurePosixPath(path).with_suffix("")))})
    labels: dict[str, tuple[str, str]] = {}
    for line, row in enumerate(read_table(table, "the table of labels", ("path", "label")), start=2):
        listed = slashed(row["path"])
        found, _ = names.candidates(listed)
        if len(found) > 1:
            raise ambiguous("clip", listed, found, f"{table}, line {line}")
        if not found:
            near = names.nearest(listed)
            source.missing.append((listed, MISSING + (f"; the nearest that is there is {near}" if near else "")))
        elif found[0] in labels:
            raise UserError(f"{table}, line {line}: {listed} is listed twice; keep one")
        else:
            labels[found[0]] = row["label"], row.get("split", "")
    return labels
