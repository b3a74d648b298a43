"""Skeletons in plain text tables: a row for each joint of each frame."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.datasets.skeletons.definition import SourceSpec
from pipeline.datasets.skeletons.preprocess import Pose
from pipeline.datasets.skeletons.source import Item, Source, files_below, labelled_items
from pipeline.errors import UserError, unknown
from pipeline.guarded import Unreadable
from pipeline.textfiles import read_text

if TYPE_CHECKING:
    import pandas as pd

ROLES = ("clip", "frame", "joint", "x", "y", "z", "score", "person", "label", "split")
SUFFIXES = (".csv", ".tsv", ".txt")


class TableSource(Source):
    """Tables (.csv, .tsv, .txt) with a header line; cells are apart by commas, semicolons, tabs or blanks.

    `columns` says what each column is called, of clip, frame, joint, x, y, z, score, person, label, split; one that is
    called as here needs no entry. frame, joint, x and y are needed. Without `clip` each file below the root is a clip.
    A joint is a name, or a number that counts from 0 or from 1. Without `label`, classes are as in
    `labelled_items`. A joint has (x, y, z), (x, y, score) or (x, y); of (x, y) the score is 1.
    """

    parallel = False

    def __init__(self, spec: SourceSpec) -> None:
        super().__init__(spec)
        if odd := set(spec.columns) - set(ROLES):
            raise unknown("column", min(odd), ROLES, f"{self.root}, key columns")
        files = (
            [self.root.name] if self.root.is_file() else [f for end in SUFFIXES for f in files_below(self.root, end)]
        )
        self._folder = self.root.parent if self.root.is_file() else self.root
        if not files:
            raise UserError(f"{self.root} holds no table ({', '.join(SUFFIXES)}); correct the root")
        first = _load(str(self._folder / files[0]), self.columns)
        self.channels, self.spatial = 3, 3 if "z" in first else 2
        self._done(self._items(sorted(files), "clip" in first, "label" in first))
        if self.spatial == 3:
            self._ask_third([first[["x", "y", "z"]].to_numpy(np.float64)])

    @property
    def columns(self) -> tuple[tuple[str, str], ...]:
        """(what a column is, what it is called) of all."""
        return tuple((role, self.spec.columns.get(role, role)) for role in ROLES)

    def _items(self, files: Sequence[str], named: bool, labelled: bool) -> Iterator[Item]:
        if not named and not labelled:
            yield from (replace(item, path=f"{item.path}\n") for item in labelled_items(self, files))
            return
        clips: dict[str, tuple[str, str, str]] = {}
        for file in files:
            for clip, rows in _clips(_load(str(self._folder / file), self.columns), file):
                about = [self._one(rows, role, clip) if role in rows else "" for role in ("label", "split")]
                if clip in clips:
                    raise UserError(f"the clip {clip} is in {clips[clip][0]} and in {file} of {self.root}; rename one")
                clips[clip] = file, *about  # type: ignore[assignment]
        if labelled:
            for clip, (file, label, split) in clips.items():
                yield Item(clip, f"{file}\n{clip}", self._label(label, f"{self.root}, {clip}"), split)
        else:
            for item in labelled_items(self, clips):
                yield replace(item, path=f"{clips[item.path][0]}\n{item.path}")

    def _one(self, rows: pd.DataFrame, role: str, clip: str) -> str:
        values = rows[role].astype(str).unique()
        if len(values) != 1:
            raise UserError(f"{self.root}: the clip {clip} has {len(values)} values of {role}: {', '.join(values[:3])}")
        return str(values[0])

    def read(self, path: str) -> Pose:
        file, _, clip = path.partition("\n")
        try:
            table = _load(str(self._folder / file), self.columns)
        except UserError as error:
            raise Unreadable(str(error)) from None
        rows = dict(_clips(table, file))[clip] if clip else table
        return Pose(self._check(self._persons(rows)))

    def _persons(self, rows: pd.DataFrame) -> np.ndarray:
        """(M, T, V, C) of a clip's rows; raises Unreadable when a joint is missing or there twice."""
        frames, t = np.unique(rows["frame"].to_numpy(), return_inverse=True)
        people, m = np.unique(
            rows["person"].astype(str) if "person" in rows else ["0"] * len(rows), return_inverse=True
        )
        joint = self._numbers(rows["joint"])
        third = "z" if self.spatial == 3 or "z" in rows else "score"
        values = [rows["x"], rows["y"], rows[third] if third in rows else np.ones(len(rows))]
        seen = np.zeros((len(people), len(frames), self.joints), dtype=np.int64)
        np.add.at(seen, (m, t, joint), 1)
        if (seen > 1).any():
            where = tuple(np.argwhere(seen > 1)[0])
            raise Unreadable(f"frame {frames[where[1]]} has joint {where[2]} of a person twice")
        if not np.isin(seen.sum(-1), (0, self.joints)).all():
            where = tuple(np.argwhere((seen == 0) & (seen.sum(-1, keepdims=True) > 0))[0])
            raise Unreadable(f"frame {frames[where[1]]} lacks joint {where[2]} of {self.joints} (counted from 0)")
        made = np.zeros((*seen.shape, 3), dtype=np.float32)
        made[m, t, joint] = np.stack([np.asarray(value, dtype=np.float32) for value in values], axis=-1)
        return made

    def _numbers(self, given: pd.Series) -> np.ndarray:
        """Numbers of joints from 0 on; raises Unreadable for one that the skeleton has not."""
        names = {name: i for i, name in enumerate(self.spec.joint_names)}
        if given.dtype.kind in "iuf":
            numbers = given.to_numpy()
            numbers = numbers - (numbers.min() == 1 and numbers.max() == self.joints)
        else:
            words = given.astype(str).str.strip().str.lower().str.replace("_", " ")
            if odd := sorted(set(words) - set(names)):
                raise Unreadable(f"the skeleton has no joint {odd[0]!r}")
            numbers = words.map(names).to_numpy()
        if len(numbers) == 0 or numbers.min() < 0 or numbers.max() >= self.joints or (numbers % 1).any():
            raise Unreadable(f"joints are numbered to {numbers.max(initial=0):g}, the skeleton has {self.joints}")
        return numbers.astype(np.int64)


def _clips(table: pd.DataFrame, file: str) -> Iterator[tuple[str, pd.DataFrame]]:
    """(name, rows) of each clip of a table; without a column for it, the file is one."""
    if "clip" not in table:
        yield str(PurePosixPath(file).with_suffix("")), table
        return
    for name, rows in table.groupby(table["clip"].astype(str), sort=False):
        yield str(name), rows


@lru_cache(maxsize=4)
def _load(path: str, columns: tuple[tuple[str, str], ...]) -> pd.DataFrame:
    """A table with its columns called by what they are; raises UserError."""
    import pandas as pd

    text = read_text(Path(path), "the table of skeletons")
    header = text.partition("\n")[0]
    mark = next((mark for mark in ";\t," if mark in header), r"\s+")
    try:
        table = pd.read_csv(io.StringIO(text), sep=mark, skipinitialspace=True)
    except (ValueError, pd.errors.ParserError) as error:
        raise UserError(f"{path} is not a table ({' '.join(str(error).split())})") from None
    table.columns = [str(name).strip() for name in table.columns]
    table = table.rename(columns={name: role for role, name in columns if name in table.columns})
    if absent := [dict(columns)[role] for role in ("frame", "joint", "x", "y") if role not in table]:
        raise UserError(
            f"{path} has no column {absent[0]!r}, but {', '.join(table.columns)}; say in `columns:` what is called how"
        )
    for role in ("frame", "x", "y", "z", "score"):
        if role in table and table[role].dtype.kind not in "iuf":
            table[role] = _as_numbers(table[role], f"{path}, column {dict(columns)[role]}")
    return table


def _as_numbers(column: Any, where: str) -> Any:
    import pandas as pd

    numbers = pd.to_numeric(column.astype(str).str.replace(",", "."), errors="coerce")
    if (odd := column[numbers.isna() & column.notna()]).size:
        raise UserError(f"{where}, row {odd.index[0] + 2}: {odd.iloc[0]!r} is not a number")
    return numbers


__all__ = ["ROLES", "TableSource"]
