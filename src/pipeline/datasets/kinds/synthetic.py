"""Generated videos of an articulated figure, with skeletons and texts."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from pipeline.datasets.kinds.base import DataSet, Definition, FrameKeys
from pipeline.files import copy_file
from pipeline.workspace import Workspace


class SyntheticDefinition(Definition):
    """Keys of a generated data set."""

    set: str = Field(description="the grammar: scene, temporal or fine")
    clips_per_class: int = Field(ge=1, description="videos of each class")
    size: int = Field(96, description="side of the square frames, pixels")
    fps: int = Field(12, description="frames per second")
    seed: int = Field(0, description="of everything that is drawn")
    splits: list[str] = Field([], description="only classes of these splits")
    nuisance: float = Field(1.0, ge=0, le=2, description="scale of all variation that is no part of a class")
    frames: FrameKeys = Field(FrameKeys(), description="overlay on the frame policy of the settings")


class Synthetic(DataSet):
    """A data set that the workflow generates."""

    Definition = SyntheticDefinition
    stages = ("videos", "splits", "text", "frames")
    pattern = ""

    @property
    def source(self) -> tuple[str, str]:
        """Its own videos."""
        return "videos", self.asset.key

    def make_videos(self, ws: Workspace, workers: int) -> Path:
        """Generate them; returns their annotations."""
        from pipeline.datasets.synthetic import generate

        keys = {"clips_per_class", "size", "fps", "seed", "splits", "nuisance"}
        asked = self.definition.model_dump(include=keys, exclude_unset=True)
        generate(self.definition.set, self.root(ws), workers=workers, **asked)
        return self.root(ws) / "annotations.csv"

    def make_splits(self, ws: Workspace, workers: int) -> Path:
        """The index that was generated with the videos."""
        return copy_file(self.root(ws) / "index.csv", ws.index(self.asset.key))

    def made_texts(self, ws: Workspace) -> Path:
        """The grammar's own."""
        return self.root(ws) / "texts.json"
