"""What a skeleton data set is defined as (`kind: skeletons`): its clips, its protocol, how they are cleaned and shown.

Nothing heavy is imported here, so that a plan can check it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from pipeline.config import parse
from pipeline.datasets.kinds.base import CONTENT, DATASET, HERE, Definition
from pipeline.errors import UserError, unknown
from pipeline.experiment import Frozen

Format = Literal["ntu", "files", "generated", "npz", "json", "pyskl", "openpose", "poses", "table"]
JOINTS = {"ntu": 25, "files": 25, "generated": 25, "openpose": 18}
"""Of a body, where a format says it."""
ClassRef = int | str


class SourceSpec(Frozen):
    """Which clips, of which classes: the part of a data set's definition that readers need."""

    format: Format = Field(description="how the files are read")
    root: str = Field(description="folder or file on this machine")
    joints: int = Field(0, ge=0, description="joints of the skeleton; 0: as the format has it")
    classes: list[str] | dict[str, str] = Field(
        [],
        description="class names: in the order of their numbers, or by the name used in the data; "
        "empty: names as in the data",
    )
    first_class: int = Field(0, ge=0, le=1, description="number of the first class of the list (NTU: 1)")
    third: Literal["", "z", "score"] = Field(
        "",
        description="what the third number of a joint is: z or score; asked for where it looks like a score",
    )
    columns: dict[str, str] = Field({}, description="table: names of its columns, see `tables.TableSource`")
    joint_names: list[str] = Field([], description="names of the joints, for a table that names them")
    missing: str = Field("", description="list of samples with missing skeletons (NTU), left out")
    labels: str = Field("", description="CSV file path,label[,split] (formats files, json, poses)")
    pattern: str = Field(
        "", description="regular expression with a group `label`, for the clips' names (files, json, poses)"
    )
    unit: Literal["pixel", "image"] = Field(
        "pixel", description="poses: pixels, or lengths of the image's longer side from its middle, y upwards"
    )
    subsets: list[str] = Field([], description="pyskl: names of split lists; the first that has a clip is its subset")


class OneShotProtocol(Frozen):
    """A one-shot protocol. Classes are named, or given by the number that they have in the data set."""

    novel: list[ClassRef] | int | str = Field(
        description="classes to recognise from one exemplar: a list; how many to draw with `seed`; or the name of a "
        "subset, whose classes they are"
    )
    base: list[ClassRef] | str = Field([], description="classes to train on: a list, or a subset; empty: all others")
    bases: dict[str, list[ClassRef] | int] = Field(
        {}, description="named base sets: a list of base classes, or n for the first n in the order of `base`"
    )
    validation: list[ClassRef] | str = Field([], description="classes to choose a checkpoint on; not trained on")
    exemplars: Literal["first", "seed"] | list[str] = Field(
        "first",
        description="first: the first clip by name of each novel class; seed: drawn; or the names of the clips",
    )
    seed: int = Field(0, ge=0, description="of the draws of classes and exemplars")
    base_subset: str = Field("", description="only clips of this subset of the source are trained on")


class SkeletonPolicy(Frozen):
    """How skeletons are cleaned and shown. Every value is part of a run's identity.

    The first group decides what is stored, the second is applied when a clip is read, so that stores are shared.
    """

    denoise: Literal["ntu", "none"] = Field(
        "ntu",
        description="where a clip has several tracked bodies. ntu: drop those seen in 11 frames or fewer, then those "
        "that are wider than high in most frames (SGN's heuristics; for .skeleton files only); none: keep all",
    )
    gap: Literal["keep", "close"] = Field(
        "keep",
        description="a body that vanishes and returns. keep: it stays in the frames in which it was seen; close: "
        "released scripts, which count on from its first frame and so place it too early",
    )
    actors: Literal["frames", "hull"] = Field(
        "frames",
        description="which bodies are one person. frames: those that share no frame; hull: released scripts, whose "
        "persons span from first to last frame, may overlap by one, and whose second person spans from frame 0",
    )
    bodies: int = Field(2, ge=1, le=8, description="persons of a clip at most (M)")
    origin: Literal["first", "none"] = Field(
        "first",
        description="first: the centre joint of the first person's first frame is the origin of the clip; "
        "none: as the sensor or the pose estimator gave it",
    )
    center: int | str = Field(
        1,
        description="the centre joint, number or name; without it the middle of the spine of NTU's skeleton (joint 1, "
        "from 0), and the center of another graph",
    )
    dtype: Literal["float32", "float16"] = Field("float32", description="numbers in the store")

    single: Literal["zero", "copy"] = Field(
        "zero",
        description="a clip of fewer persons than `bodies`. zero: the others are zeros (NTU-60 scripts of CTR-GCN, "
        "InfoGCN, HD-GCN); copy: a clip of one person shows it in every place (their NTU-120 scripts)",
    )
    alignment: Literal["none", "axes", "axes_released"] = Field(
        "none",
        description="none: as HD-GCN; axes: every person is turned, by a rotation, so that in the first frame in "
        "which it is seen its hips lie along x and its spine along z; axes_released: InfoGCN, whose map is a mirror "
        "(determinant -1), and zeroes a person that is not there in frame 0 for the whole clip",
    )
    axes: tuple[int | str, int | str, int | str, int | str] = Field(
        (0, 1, 16, 12),
        description="joints of the alignment: spine from, to; hips from (right), to (left); NTU's are the default",
    )

    @property
    def stored(self) -> dict[str, Any]:
        """The part that decides what a store holds."""
        return self.model_dump(mode="json", exclude={"single", "alignment", "axes"})

    def numbered(self, names: Sequence[str], where: str, center: int | None = None) -> SkeletonPolicy:
        """The policy with joint numbers for joint names, as far as it uses them.

        center: that of a skeleton which is not NTU's, for which the defaults of center and axes are not meant. Raises
        UserError for a joint that `names` lacks, and for an alignment without axes of such a skeleton.
        """

        def number(joint: int | str) -> int:
            if isinstance(joint, str):
                if joint not in names:
                    raise unknown("joint", joint, names, where)
                return list(names).index(joint)
            if not 0 <= joint < len(names):
                raise UserError(f"{where}: there is no joint {joint}, the skeleton has {len(names)} (0 is the first)")
            return joint

        own: dict[str, Any] = {}
        if self.origin == "first" or isinstance(self.center, str):
            default = center is not None and "center" not in self.model_fields_set
            own["center"] = center if default else number(self.center)
        if self.alignment != "none" or "axes" in self.model_fields_set:
            if center is not None and "axes" not in self.model_fields_set:
                raise UserError(
                    f"{where}: alignment {self.alignment} needs axes of this skeleton, [spine from, to, right hip, "
                    "left hip]; NTU's do not fit it"
                )
            own["axes"] = tuple(map(number, self.axes))
        return self.model_copy(update=own)


class Feed(Frozen):
    """How clips are fed; part of a run's identity. The defaults are those of CTR-GCN, InfoGCN and HD-GCN on NTU."""

    kind: Literal["graph", "motionbert"] = Field("graph", description="graph: cropped, resized; motionbert: resampled")
    frames: int = Field(64, ge=1, description="frames shown (T); MotionBERT: 100")
    crop: tuple[float, float] = Field((0.5, 1.0), description="training: share of the frames that is shown, drawn")
    min_crop: int = Field(64, ge=1, description="training: at least so many frames, where the clip has them")
    test_crop: float = Field(0.95, gt=0, le=1, description="test: share of the frames that is shown, the middle")
    rotation: float = Field(0.3, ge=0, description="training: rotation about each axis up to so many radians")
    scale: tuple[float, float] = Field((1.0, 3.0), description="MotionBERT, training: size of the image square, drawn")
    test_scale: float = Field(2.0, gt=0, description="MotionBERT, test")
    move: bool = Field(True, description="MotionBERT, training: slow random rotation, scaling and shift")
    confidence: Literal["mapped", "released"] = Field(
        "mapped",
        description="MotionBERT's third channel. mapped: the confidence of the joint whose position it stands beside; "
        "released: left in COCO's order while the positions are in Human3.6M's",
    )


class PoseKeys(Frozen):
    """How poses are extracted from videos; part of the data set's identity."""

    backend: str = Field("rtmpose", description="rtmpose, blazepose, or package.module:Class")
    persons: int = Field(2, description="of a clip at most")
    frames: int = Field(0, description="of a clip at most, evenly spaced; 0: all")
    models: str = Field("", description="folder with the networks; empty: where the backend finds them")
    device: str = Field("cpu", description="cpu or cuda")


class SkeletonKeys(Definition, SourceSpec):
    """Keys of a skeleton data set."""

    root: Annotated[str, HERE] = Field("", description="folder or file of its skeletons")
    labels: Annotated[str, CONTENT] = SourceSpec.model_fields["labels"]
    missing: Annotated[str, CONTENT] = SourceSpec.model_fields["missing"]
    expected: Annotated[dict[str, int], HERE] = Field({}, description="published counts: base, queries, base sets")
    graph: str | dict[str, Any] = Field("ntu25", description="the skeleton: a built-in one, or names, parents, center")
    protocol: OneShotProtocol = Field(description="which classes are base, novel and validation")
    policy: SkeletonPolicy = Field(SkeletonPolicy(), description="how skeletons are cleaned and shown")
    feed: Feed = Field(Feed(), description="how clips are fed to a model")
    reads: Annotated[str, DATASET] = Field("", description="a generated data set, whose skeletons these are")
    videos: Annotated[str, HERE] = Field("", description="videos from which its poses are extracted (format poses)")
    pose: PoseKeys = Field(PoseKeys(), description="how the poses of `videos` are extracted")
    available: Annotated[str, HERE] = Field("", description="file with the published names of the samples (NTU)")


class SkeletonDefinition(Frozen):
    """A skeleton data set as readers and protocols take it: joints are numbers."""

    source: SourceSpec
    graph: str | dict[str, Any]
    protocol: OneShotProtocol
    policy: SkeletonPolicy
    feed: Feed
    expected: dict[str, int]

    @classmethod
    def read(cls, spec: Mapping[str, Any], where: str) -> SkeletonDefinition:
        """The definition that has the keys of `SkeletonKeys`; joint names of its policy become numbers.

        Raises UserError naming the key that is wrong.
        """
        from pipeline.datasets.skeletons.graph import get_graph

        given = {key: value for key, value in spec.items() if value is not None and key not in ("contents", "name")}
        keys = parse(SkeletonKeys, given, where)
        source = SourceSpec.model_validate(keys.model_dump(include=set(SourceSpec.model_fields)))
        made = cls(source=source, **{key: getattr(keys, key) for key in cls.model_fields if key != "source"})
        graph = get_graph(made.graph)
        if source.joints or source.format not in JOINTS:
            if source.joints not in (0, len(graph)):
                raise UserError(f"{where}: joints is {source.joints}, and its graph has {len(graph)}; remove joints")
            source = source.model_copy(update={"joints": len(graph)})
        elif JOINTS[source.format] != len(graph):
            raise UserError(
                f"{where}: format {source.format} has {JOINTS[source.format]} joints, its graph {len(graph)}"
            )
        source = source.model_copy(update={"joint_names": list(graph.names)})
        own = graph.names == get_graph("ntu25").names
        policy = made.policy.numbered(graph.names, f"{where}, policy", None if own else graph.center)
        return made.model_copy(update={"source": source, "policy": policy})
