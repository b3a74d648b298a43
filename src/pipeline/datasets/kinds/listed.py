"""Data sets given as published few-shot lists (`kind: list`)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from pipeline.datasets.kinds.base import CONTENT, DataSet, VideoDefinition
from pipeline.workspace import Workspace

if TYPE_CHECKING:
    from rich.console import Console


class ListDefinition(VideoDefinition):
    """Keys of published few-shot lists; see `datasets.splits.prepare_list`."""

    lists: Annotated[str | dict[str, str], CONTENT] = Field(
        "", description="folder of the lists, or files: train, val, test, class_names"
    )
    names_from: str | list[str] = Field([], description="more files that name the class of a video")
    probe: bool = Field(False, description="decode a frame of each video with the splits")
    min_clips: int = Field(2, description="clips that every class must have")


class Listed(DataSet):
    """A data set of published few-shot lists."""

    Definition = ListDefinition
    needed = DataSet.needed | {"lists": "lists"}
    countable = True

    def make_splits(self, ws: Workspace, workers: int) -> Path:
        """Look for the videos of the lists."""
        from pipeline.datasets.splits import prepare_list

        return prepare_list(self.given(ws), ws.dataset(self.asset.key))

    def classes(self) -> list[str]:
        """Those that the lists name."""
        from pipeline.datasets.splits import read_lists

        return sorted(set(read_lists(self.definition.model_dump())[1].values()))

    def count(self, console: Console) -> list[str]:
        """Classes and clips of each split."""
        from pipeline.datasets.index import Clip
        from pipeline.datasets.splits import check_counts, read_lists

        listed, names = read_lists(self.definition.model_dump(), numbered=True)
        clips = [Clip(clip.path, clip.path, names[clip.split, clip.label], clip.split) for clip in listed]
        return check_counts(clips, self.definition.expected, console)

    def offsets(self) -> Iterator[str]:
        """Of its lists, where they are files of a folder that is here."""
        from pipeline.datasets.splits import label_offsets

        if isinstance(self.definition.lists, str) and Path(self.definition.lists).is_dir():
            yield from label_offsets(self.definition.model_dump())
