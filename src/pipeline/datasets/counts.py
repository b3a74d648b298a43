"""Classes and clips of the published splits, from their list files alone: no video or skeleton is needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from rich.console import Console

from pipeline.config import Config
from pipeline.datasets.kinds.base import DataSet
from pipeline.datasets.kinds.registry import defined
from pipeline.errors import UserError


@dataclass
class Checked:
    """What `check_splits` found, by data set."""

    differ: dict[str, list[str]] = field(default_factory=dict)
    """Mismatches, one a line."""
    absent: dict[str, str] = field(default_factory=dict)
    """Why a data set could not be counted."""
    equal: list[str] = field(default_factory=list)


def check_splits(config: Config, names: Sequence[str] = (), console: Console | None = None) -> Checked:
    """Print classes and clips of each split of the data sets `names` beside the published counts.

    names: by default all data sets with published lists. Raises UserError for an unknown data set, and one without
    lists.
    """
    console, found = console or Console(soft_wrap=True), Checked()
    sets = {name: defined(config, name, "the command line") for name in names or config.names("datasets")}
    for name, data in sets.items():
        if not data.countable:
            if not names:
                continue
            raise UserError(f"the data set {name} has no published lists to count (data: list, or the key available)")
        console.print(f"{name}:", highlight=False, markup=False)
        try:
            lines = data.count(_indented(console))
        except UserError as error:
            console.print(f"  {error}", highlight=False, markup=False)
            found.absent[name] = str(error)
            continue
        if lines:
            found.differ[name] = lines
        else:
            found.equal.append(name)
    return found


def listed_classes(data: DataSet) -> list[str]:
    """Class names of a data set as far as its definition and lists tell them, sorted.

    Raises UserError where only the prepared data set knows them.
    """
    if classes := data.classes():
        return classes
    raise UserError(
        f"{data.place} does not name the classes; prepare the data set first, or give a file with --classes"
    )


def _indented(console: Console) -> Any:
    """A console that puts two blanks before a line."""
    return SimpleNamespace(print=lambda text, **options: console.print(f"  {text}", **options))
