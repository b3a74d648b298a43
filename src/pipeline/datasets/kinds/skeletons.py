"""Skeletons: of sensors, pose estimators, tables, one's own videos or a generated set."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.datasets.kinds.base import DataSet
from pipeline.datasets.skeletons.definition import Feed, SkeletonDefinition, SkeletonKeys, SkeletonPolicy
from pipeline.experiment import Frozen
from pipeline.workspace import Workspace

if TYPE_CHECKING:
    from rich.console import Console

READ_POLICY = ("single", "alignment", "axes")  # of a policy: what is done when a stored clip is read


class SkeletonFrames(Frozen):
    """What a method may say of how skeletons are shown, over the definition."""

    policy: SkeletonPolicy = SkeletonPolicy()
    feed: Feed = Feed()


class Skeletons(DataSet):
    """A data set of skeletons."""

    Definition = SkeletonKeys
    method_frames = SkeletonFrames
    decoded = False
    prompts = ("crossglg_global", "crossglg_joints")

    @property
    def stages(self) -> tuple[str, ...]:
        """With the poses of videos, where it has videos."""
        return ("poses", *DataSet.stages) if "videos" in self.asset.options else DataSet.stages

    @property
    def needed(self) -> dict[str, str]:
        """The videos of its poses, where it has videos."""
        files = {"videos": "its videos"} if "poses" in self.stages else {"root": "its files"}
        return files | {"labels": "table of labels", "missing": "list of missing samples", "texts": "texts"}

    @property
    def source(self) -> tuple[str, str] | None:
        """Also its own poses."""
        return super().source or (("poses", self.asset.key) if "poses" in self.stages else None)

    @property
    def joints(self) -> tuple[str, ...]:
        """Those of its graph."""
        from pipeline.datasets.skeletons.graph import get_graph

        return get_graph(self.definition.graph).names

    @property
    def validated(self) -> bool:
        """Where its protocol has validation classes."""
        return bool(self.definition.protocol.validation)

    @property
    def bases(self) -> Mapping[str, Any]:
        """Those of its protocol."""
        return self.definition.protocol.bases

    @property
    def countable(self) -> bool:
        """Where the names of its samples are published."""
        return bool(self.definition.available)

    def frames(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """How its skeletons are stored and shown."""
        policy = self.asset.spec.get("policy", {})
        stored = {key: value for key, value in policy.items() if key not in READ_POLICY}
        return {"store": {"skeletons": stored}, "policy": policy, "feed": self.asset.spec.get("feed", {})}

    def shown(self, ws: Workspace, frames: Mapping[str, Any] | None = None) -> SkeletonDefinition:
        """The definition with its files in place; `frames` of a run say how it is shown.

        Raises:
            UserError: the parts of it do not fit one another.
        """
        keys = {**self.asset.spec, **self.asset.options, "root": str(self.root(ws))}
        return SkeletonDefinition.read(
            keys | ({key: frames[key] for key in ("policy", "feed")} if frames else {}), self.place
        )

    def make_splits(self, ws: Workspace, workers: int) -> Path:
        """List the clips, and split the classes by the protocol."""
        from pipeline.datasets.skeletons.prepare import prepare_skeletons

        available = self.definition.available if self.definition.format == "ntu" else ""
        return prepare_skeletons(self.shown(ws), ws.dataset(self.asset.key), available)

    def made_texts(self, ws: Workspace) -> Path | None:
        """Those of the set that it reads."""
        return self.root(ws) / "texts.json" if self.whole else None

    def voices(self, ws: Workspace) -> dict[str, Any]:
        """Other voices of the grammar of the set that it reads."""
        if not self.whole:
            return {}
        from pipeline.datasets.synthetic.grammar import corpora

        return corpora(ws.read_asset(self.asset.spec["reads"]).spec["set"])

    def make_store(self, ws: Workspace, store: Path, policy: dict[str, Any], workers: int, nodes: int) -> None:
        """Read every clip, clean it, and store it."""
        from pipeline.datasets.skeletons.prepare import make_skeleton_store

        expected = self.asset.options.get("expected") or {}
        published = {"train": expected.get("base", 0), "test": expected.get("queries", 0)}
        audit = self.audit(store, again=store, published=published)  # frames look themselves for mended files
        make_skeleton_store(self.shown(ws), store.parent, store, workers, audit=audit)
        audit.after()

    def classes(self) -> list[str]:
        """Those that its definition names."""
        classes = self.definition.classes
        return sorted(classes.values() if isinstance(classes, dict) else classes)

    def count(self, console: Console) -> list[str]:
        """Classes and clips of its protocol, from the published names of the samples."""
        from pipeline.datasets.skeletons.prepare import count_published

        made = SkeletonDefinition.read({**self.asset.spec, **self.asset.options}, self.place)
        return count_published(made, self.definition.available, console)

    def offsets(self) -> Iterator[str]:
        """Of its protocol and of its pickle, beside what names of NTU RGB+D say: A007 is class 7, counted from 1."""
        from pipeline.datasets.skeletons.ntu import parse_name
        from pipeline.datasets.skeletons.readers import first_annotations, named_otherwise

        given, protocol = self.definition, self.definition.protocol
        first = 1 if given.format == "ntu" else given.first_class
        exemplars = protocol.exemplars if isinstance(protocol.exemplars, list) else []
        named = {found.action for name in exemplars if (found := parse_name(name))}
        novel = protocol.novel if isinstance(protocol.novel, list) else []
        numbers = {n - first + 1 for n in novel if isinstance(n, int)}
        if named and numbers and named != numbers:
            yield (
                f"first_class {first} makes the protocol's novel classes A{min(numbers):03d} to A{max(numbers):03d}, "
                f"and the exemplars are A{min(named):03d} to A{max(named):03d}; NTU's are counted from 1: set "
                "first_class: 1"
            )
        root = Path(given.root).expanduser()
        if given.format == "pyskl" and isinstance(given.classes, list) and given.classes and root.is_file():
            labels = ((str(note["frame_dir"]), note.get("label")) for note in first_annotations(root))
            wrong = (named_otherwise(name, label + first) for name, label in labels if isinstance(label, int))
            yield from (f"{root}: {line}" for line in islice(filter(None, wrong), 1))
