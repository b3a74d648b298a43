"""The kinds of data set by the names that definitions give them; a new one is a line here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pipeline.config import Config
from pipeline.datasets.kinds.base import DataSet
from pipeline.datasets.kinds.folder import Folder
from pipeline.datasets.kinds.listed import Listed
from pipeline.datasets.kinds.semi import Semi
from pipeline.datasets.kinds.skeletons import Skeletons
from pipeline.datasets.kinds.synthetic import Synthetic
from pipeline.errors import UserError, unknown
from pipeline.experiment import Asset

KINDS: dict[str, type[DataSet]] = {
    "folder": Folder,
    "list": Listed,
    "semi": Semi,
    "skeletons": Skeletons,
    "synthetic": Synthetic,
}


def data_of(asset: Asset) -> DataSet:
    """What is asked of a data set."""
    return kind_named(asset.spec, lambda key: f"data set {asset.name}")(asset)


def kind_named(definition: Mapping[str, Any], where: Callable[[str], str]) -> type[DataSet]:
    """The kind of a definition; `where` gives the place of a key.

    Raises:
        UserError: it says no kind, or an unknown one.
    """
    kind = definition.get("kind")
    if kind is None:
        raise UserError(f"{where('kind')}: key kind is missing ({', '.join(KINDS)})")
    if str(kind) not in KINDS:
        raise unknown("kind of data set", kind, KINDS, where("kind"))
    return KINDS[kind]


def defined(config: Config, name: str, where: str) -> DataSet:
    """What is asked of the data set `name` as it is defined, without a plan; `where` says who asks.

    Raises:
        UserError: there is none of this name, or its definition is wrong.
    """
    definition = config.entry("datasets", name, where)
    kind = kind_named(definition, lambda key: config.place("datasets", name, key))
    kind.read(definition, lambda key: config.place("datasets", name, key))
    return kind(Asset(name=name, spec=definition))
