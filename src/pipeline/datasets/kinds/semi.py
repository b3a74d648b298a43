"""Videos of which few are labelled: every class is in training and test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from pipeline.datasets.kinds.base import CONTENT, DATASET, HERE, DataSet, VideoDefinition
from pipeline.experiment import Frozen, Run
from pipeline.workspace import Workspace

if TYPE_CHECKING:
    from rich.console import Console


class Shares(Frozen):
    """Clips of each class of a generated set."""

    train: int = Field(0, ge=0, description="for training, labelled or not")
    val: int = Field(0, ge=0, description="to select a checkpoint")
    test: int = Field(0, ge=0, description="for the test")


class SemiDefinition(VideoDefinition):
    """Keys of a data set with few labels; see `datasets.semi.prepare_semi`."""

    lists: Annotated[str, CONTENT] = Field("", description="folder with a folder of lists for each label rate")
    labels: Annotated[str, CONTENT] = Field("", description="in their place a CSV file path,label,split")
    reads: Annotated[str, DATASET] = Field("", description="in their place a generated data set, whose videos it has")
    names: Annotated[str | list[str], HERE] = Field("", description="names of the classes, for questions")
    clips: Shares = Field(Shares(), description="of each class of the set that it reads")
    strip: str = Field("", description="regular expression; what it finds in a class's name is left out")
    validation: float = Field(0, ge=0, lt=1, description="share of the training videos to select a checkpoint")


class SemiFrames(Frozen):
    """What a method may say of the frames of such a video."""

    elements: Literal["spread", "step", "pairs", "stride"] = Field(
        "spread", description="which time slots an element has"
    )
    test_view: str = Field("", description="how frames are shown in tests")


class Semi(DataSet):
    """A data set with few labels."""

    Definition = SemiDefinition
    method_frames = SemiFrames
    stages = ("splits", "frames")
    needed: ClassVar[dict[str, str]] = {"root": "its files", "lists": "lists", "labels": "table of labels"}
    form = 'docs/add-a-dataset.md ("kind: semi")'

    @property
    def validated(self) -> bool:
        """Where videos are held out, or clips of a generated set are."""
        return bool(self.definition.validation or self.definition.clips.val)

    @property
    def countable(self) -> bool:
        """Where lists or a table say which video has which label."""
        return bool(self.definition.lists or self.definition.labels)

    def count(self, console: Console) -> list[str]:
        """Classes, videos of training and test, and labels of each rate."""
        from pipeline.datasets.semi import count_listed

        return count_listed(self.definition.model_dump(), console)

    def offsets(self) -> Iterator[str]:
        """Of its lists, where they are here."""
        from pipeline.datasets.semi import label_offsets

        if self.definition.lists and Path(self.definition.lists).is_dir():
            yield from label_offsets(Path(self.definition.lists), int(self.definition.expected.get("classes", 0)))

    def make_splits(self, ws: Workspace, workers: int) -> Path:
        """Find the videos, and note which are labelled at which rate."""
        from pipeline.datasets.semi import prepare_semi

        return prepare_semi(self.given(ws), ws.dataset(self.asset.key))

    def faults(self, run: Run) -> Iterator[str]:
        """Labels and shapes that the paper does not have."""
        if not run.train:
            return
        if run.selection == "val":
            yield "a checkpoint is selected with labels of more videos than the rate has"
        if not isinstance(run.frames["store"]["size"], int):
            yield "its frames are squashed to a square; the paper keeps their aspect"
