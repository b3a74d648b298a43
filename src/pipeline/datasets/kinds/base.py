"""What a kind of data set brings: the keys of its definition, and an answer to whatever is asked of a data set.

A new kind is a file with a `Definition` and a `DataSet`, and a line in `registry`. A plan needs this in every job of
Snakemake, so nothing heavy is imported at the top; readers are imported where they are called.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from pipeline.config import merge, parse
from pipeline.errors import UserError
from pipeline.experiment import Asset, Frozen, Run
from pipeline.files import content_of
from pipeline.names import near_path
from pipeline.workspace import Workspace

if TYPE_CHECKING:
    from rich.console import Console

    from pipeline.datasets.coverage import Audit


class Mark(Enum):
    """What a key of a definition is; one without a mark is part of the data set's identity as it stands."""

    HERE = "no part of the identity"
    CONTENT = "of the identity is what the file holds, not where it lies"
    DATASET = "the other data set is part of the identity"

    def __get_pydantic_json_schema__(self, core: Any, handler: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        """The mark is said in the schema."""
        return handler(core) | {"$comment": self.value}


HERE, CONTENT, DATASET = Mark


class MethodFrames(Frozen):
    """What a method may say of the frames of a video; the rest of the policy is the data set's."""

    sampling: str = Field("", description="how frames are chosen in training")
    test_sampling: str = Field("", description="how frames are chosen in tests")


class FrameKeys(MethodFrames):
    """The frame policy of a data set of videos, as far as it differs from the settings'."""

    store: dict[str, Any] = Field({}, description="size, frames, codec, quality, spacing of what is stored")
    number: int = Field(8, ge=1, description="frames shown of a clip (T)")
    crop: int = Field(224, ge=1, description="side of the square that is shown, pixels")


class Definition(Frozen):
    """Keys that every kind has."""

    kind: str = Field(description="folder, list, semi, skeletons or synthetic")
    root: Annotated[str, HERE] = Field("", description="folder that holds the clips")
    texts: Annotated[str, HERE] = Field("", description="JSON file with the texts of the classes")
    corpora: Annotated[dict[str, Any], HERE] = Field(
        {}, description="further texts by name: a file, a folder of GAP's, or settings of a language model"
    )
    describe: Annotated[Any, HERE] = Field(None, description="true, or settings: a language model writes the texts")
    expected: Annotated[dict[str | int, Any], HERE] = Field(
        {}, description="published counts, shown beside those here; frames: mean of a clip"
    )
    min_coverage: Annotated[float, HERE] = Field(
        0.9, ge=0, le=1, strict=True, description="share of each split's listed clips that must be there"
    )
    duplicates: Annotated[Literal["error", "keep"], HERE] = Field(
        "error", description="one file in two splits: an error, or a warning"
    )
    download: Annotated[dict[str, Any], HERE] = Field({}, description="what `download` fetches, or says")
    stands_in: Annotated[str, HERE] = Field(
        "", description="data set that is measured in its place where the settings say `stand_in: true`"
    )
    workers: Annotated[int, HERE] = Field(0, description="not read any more")
    licence: Annotated[str, HERE] = Field("", description="for people")
    homepage: Annotated[str, HERE] = Field("", description="for people")
    note: Annotated[str, HERE] = Field("", description="for people")


class VideoDefinition(Definition):
    """Keys of the kinds whose clips are videos."""

    frames: FrameKeys = Field(FrameKeys(), description="overlay on the frame policy of the settings")
    pattern: str = Field("", description="regular expression; only files whose name it matches count")


class DataSet:
    """A data set, asked by its kind. What is here holds for videos on this machine."""

    Definition: ClassVar[type[Definition]] = VideoDefinition
    method_frames: ClassVar[type[Frozen]] = MethodFrames
    """Keys that `frames` of a method may have on it."""
    stages: tuple[str, ...] = ("splits", "text", "frames")
    """What the workflow makes of it, by the names in `pipeline.steps`."""
    decoded = True
    """Whether frames of its videos are stored."""
    prompts: ClassVar[tuple[str, ...]] = ("lga_atomic", "task_adapter_stages", "crossglg_global")
    """What a language model is asked for each class, where nothing else is said."""
    joints: tuple[str, ...] = ()
    """Names of the joints, for questions about them."""
    validated = True
    """Whether something of it is held out to select a checkpoint."""
    bases: Mapping[str, Any] = {}
    """Named sets of base classes."""
    countable = False
    """Whether published lists say how many clips it has (`count`)."""
    needed: ClassVar[dict[str, str]] = {"root": "its files", "texts": "texts"}
    """Keys that name files of the user, and what these are."""
    form = ""
    """Where the form of its lists is described, if they are of one's own."""

    def __init__(self, asset: Asset) -> None:
        self.asset = asset

    @cached_property
    def definition(self) -> Any:
        """The checked definition, an instance of `Definition`."""
        content = {**self.asset.spec, **self.asset.options}
        content.pop("contents", None)
        return self.read(content, lambda key: self.place)

    @classmethod
    def read(cls, content: Mapping[str, Any], where: Callable[[str], str]) -> Definition:
        """`content` checked; `where` gives the place of a key. A key that is null counts as one that is not given.

        Raises:
            UserError: a key is unknown, or its value wrong.
        """
        known = cls.Definition.model_fields
        return parse(cls.Definition, {k: v for k, v in content.items() if v is not None or k not in known}, where)

    @classmethod
    def divide(
        cls, content: Mapping[str, Any], where: Callable[[str], str], key_of: Callable[[str, str], str]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Identity and options of an `Asset`: the keys of a definition as they are given, by their marks.

        key_of: (name of another data set, where it is named) -> its key. Raises UserError like `read`.
        """
        cls.read(content, where)
        marks = {key: next((m for m in field.metadata if isinstance(m, Mark)), None)
                 for key, field in cls.Definition.model_fields.items()}  # fmt: skip
        options = {key: value for key, value in content.items() if marks[key] in (HERE, CONTENT)}
        spec = {
            key: key_of(value, f"{where(key)}, key {key}") if value and marks[key] is DATASET else value
            for key, value in content.items()
            if key not in options
        }
        files = [key for key in options if marks[key] is CONTENT and isinstance(options[key], str)]
        contents = {key: content_of(options[key]) for key in files}
        return spec | ({"contents": contents} if any(contents.values()) else {}), options

    @property
    def place(self) -> str:
        """Where it is defined, for messages."""
        file = Path(f"config/datasets/{self.asset.name}.yaml")
        if file.is_file():
            return str(file)
        return f"data set {self.asset.name} (given on the command line or in a config file)"

    @property
    def source(self) -> tuple[str, str] | None:
        """Stage and data set's key that make its clips, where the workflow does: here those of a set that it reads."""
        return ("videos", self.asset.spec["reads"]) if self.asset.spec.get("reads") else None

    @property
    def whole(self) -> bool:
        """Whether it is generated, so that nothing of it can be missing."""
        return self.source is not None and self.source[0] == "videos"

    @property
    def pattern(self) -> str:
        """What names of files must match."""
        return self.definition.pattern

    # What the plan asks

    def frames(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """The frame policy of its runs, over that of the settings; `store` is what is stored."""
        return merge(settings, self.asset.spec.get("frames") or {})

    # What the stages ask

    def root(self, ws: Workspace) -> Path:
        """Folder to which the paths in index.csv are relative.

        Raises:
            UserError: the definition says no `root`, or there is no such folder.
        """
        if self.source:
            stage, key = self.source
            return ws.generated(key) if stage == "videos" else ws.poses(key)
        given = self.definition.root
        if not given:
            raise UserError(f"{self.place}: key root is missing (where its files are)")
        path = Path(given).expanduser()
        if not path.exists():
            raise UserError(
                f"data set {self.asset.name}: nothing at {given}; put its files there or set root: to where they "
                f"are{near_path(given)}"
            )
        return path

    def given(self, ws: Workspace) -> dict[str, Any]:
        """The definition as functions that prepare a data set take it: `root` is `self.root`, and what is not given
        is not there."""
        return self.definition.model_dump(exclude_unset=True) | {"root": str(self.root(ws)), "name": self.asset.name}

    def make_videos(self, ws: Workspace, workers: int) -> Path:
        """The stage `videos` of a kind that has it; returns its table of clips."""
        raise NotImplementedError

    def make_splits(self, ws: Workspace, workers: int) -> Path:
        """The stage `splits`: write index.csv, every usable clip with its class and split."""
        raise NotImplementedError

    def made_texts(self, ws: Workspace) -> Path | None:
        """Texts that come with its clips, if they do."""
        return None

    def voices(self, ws: Workspace) -> dict[str, Any]:
        """Further texts that come with its clips, by name."""
        return {}

    def make_store(self, ws: Workspace, store: Path, policy: dict[str, Any], workers: int, nodes: int) -> None:
        """The stage `frames`: decode every clip once.

        Raises:
            UserError: fewer of the clips that its lists name are there than its `min_coverage`.
        """
        from pipeline.datasets.frames import build_frame_store

        audit = self.audit(store)
        index, root = ws.index(self.asset.key), self.root(ws)
        build_frame_store(index, root, store, policy, workers, nodes=nodes, audit=audit, pattern=self.pattern)
        audit.after()

    def audit(self, store: Path, again: Path | None = None, published: Mapping[str, int] | None = None) -> Audit:
        """The check that enough clips are there, called once before anything is read; arguments as of `Audit`."""
        from pipeline.datasets.coverage import Audit

        minimum = float(self.asset.options.get("min_coverage", 0))
        made = Audit(self.asset.name, store.parent, store, minimum, again, published or {})
        made.before()
        return made

    # What commands ask that look

    def classes(self) -> list[str]:
        """Names of its classes as far as its definition and lists tell them; none where only the prepared set does.

        Raises:
            UserError: lists are missing or wrong.
        """
        return []

    def count(self, console: Console) -> list[str]:
        """Print the counts of its published lists beside those of the papers; returns the differences, one a line."""
        raise NotImplementedError

    def offsets(self) -> Iterator[str]:
        """Labels, as far as they are here, that are counted from another number than the names of their classes."""
        yield from ()

    def faults(self, run: Run) -> Iterator[str]:
        """What of a training on it cannot be as its paper says."""
        yield from ()
