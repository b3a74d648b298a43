"""Videos of one's own: a folder for each class, or a table of paths and labels."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from pipeline.datasets.kinds.base import CONTENT, DataSet, VideoDefinition
from pipeline.experiment import Frozen
from pipeline.workspace import Workspace


class Splits(Frozen):
    """Classes of each split: names, a file with one a line, or, for all of them, how many to draw."""

    train: Any = Field(None, description="base classes")
    val: Any = Field(None, description="classes that choose the checkpoint and alpha")
    test: Any = Field(None, description="novel classes")
    seed: int = Field(0, description="of the draw")


class FolderDefinition(VideoDefinition):
    """Keys of a folder of videos; see `datasets.folder.prepare_folder`."""

    labels: Annotated[str, CONTENT] = Field("", description="CSV file path,label[,split] in place of class folders")
    splits: Splits = Field(Splits(), description="not needed where the CSV file has them")
    min_clips: int = Field(2, description="readable clips that every class must have")
    strip_prefix: bool | str = Field(False, description="true: a leading number; or a regular expression")
    map: dict[str, Any] = Field({}, description="name of a folder: name of the class")


class Folder(DataSet):
    """A data set of one's own videos."""

    Definition = FolderDefinition
    needed = DataSet.needed | {"labels": "table of labels"}

    def make_splits(self, ws: Workspace, workers: int) -> Path:
        """Find the clips, open each, and split the classes."""
        from pipeline.datasets.folder import prepare_folder

        return prepare_folder(self.given(ws), ws.dataset(self.asset.key), workers)

    def classes(self) -> list[str]:
        """Those that its splits name."""
        from pipeline.datasets.splits import class_list

        splits = self.definition.splits.model_dump(exclude={"seed"}, exclude_none=True)
        if any(isinstance(value, int) for value in splits.values()):
            return []
        return sorted({name for split, value in splits.items() for name in class_list(value, split)})
