"""Skeletons as trees of named joints, and the matrices that the graph encoders derive from them."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from pipeline.errors import UserError, unknown

if TYPE_CHECKING:
    from torch import Tensor

MAX_GROUPS = 7  # HD-GCN's hierarchies have seven groups (six layers); deeper joints join the last
KEYS = ("name", "names", "parents", "parts", "center")
SIDES = ("left", "right")

# Which joints the body parts of everyday language mean. Joints are named without their side; after a "|" stands
# what to take on a skeleton that has none of those before it. Arms are shoulders, elbows and wrists, eyes the
# head (CrossGLG, section 3.4); CrossGLG tabulates no others, so the rest is this project's reading.
_BODY_PARTS = {
    "head, face, hair, forehead, cheek, chin": "head, nose, eye, ear",
    "nose, mouth, lip": "nose | head",
    "eye": "eye | head",
    "ear": "ear | head",
    "neck": "neck | thorax",
    "shoulder": "shoulder",
    "arm": "shoulder, elbow, wrist",
    "upper arm": "shoulder, elbow",
    "elbow": "elbow",
    "forearm": "elbow, wrist",
    "wrist": "wrist",
    "hand, palm, fist": "hand, tip of hand, thumb | wrist",
    "finger, fingertip": "tip of hand, thumb | hand | wrist",
    "thumb": "thumb | hand | wrist",
    "torso, trunk, body, spine, back": "spine, mid of spine, base of spine, thorax, pelvis, torso, trunk, chest, waist "
    "| shoulder, hip",
    "chest": "spine, thorax, chest | torso, trunk | shoulder",
    "waist, abdomen, stomach": "mid of spine, base of spine, pelvis, waist | torso, trunk | hip",
    "pelvis": "base of spine, pelvis, hip",
    "upper body": "head, nose, neck, spine, thorax, shoulder, elbow, wrist, hand",
    "lower body": "base of spine, pelvis, hip, knee, ankle, foot",
    "hip": "hip",
    "leg": "hip, knee, ankle",
    "thigh": "hip, knee",
    "knee": "knee",
    "shin, calf, lower leg": "knee, ankle",
    "ankle": "ankle",
    "foot, heel, toe": "foot | ankle",
}
BODY_PARTS: dict[str, tuple[tuple[str, ...], ...]] = {
    part: tuple(tuple(choice.split(", ")) for choice in joints.split(" | "))
    for parts, joints in _BODY_PARTS.items()
    for part in parts.split(", ")
}


@dataclass(frozen=True)
class SkeletonGraph:
    """A skeleton: joint names, the parent of each joint (-1 for the root) and the body parts it knows.

    `center` is the joint that hierarchies and ST-GCN's partition start from. `hierarchies` holds joint groups
    tabulated for some centres; other centres are worked out. Raises UserError unless the parents form one tree.
    """

    names: tuple[str, ...]
    parents: tuple[int, ...]
    parts: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    center: int = 0
    name: str = "skeleton"
    hierarchies: Mapping[int, tuple[tuple[int, ...], ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        where = f"skeleton {self.name!r}"
        if len(set(self.names)) < len(self.names) or len(self.names) != len(self.parents) or not self.names:
            raise UserError(f"{where}: give every joint once in names, and one parent for each")
        roots = [name for name, parent in zip(self.names, self.parents, strict=True) if parent < 0]
        if len(roots) > 1:
            raise UserError(f"{where} has {len(roots)} roots ({', '.join(roots)}); give all but one a parent")
        for start, name in enumerate(self.names):
            joint, steps = start, 0
            while joint >= 0 and steps <= len(self.names):
                joint, steps = self.parents[joint], steps + 1
            if joint >= 0:
                raise UserError(f"{where}: the parents of {name!r} run in a cycle; one joint must have the parent null")

    def __len__(self) -> int:
        return len(self.names)

    def joint(self, name: str) -> int:
        """Index of a joint. Raises UserError if there is none of that name."""
        if name not in self.names:
            raise unknown("joint", name, self.names, f"skeleton {self.name!r}")
        return self.names.index(name)

    def joints_of(self, part: str) -> tuple[int, ...]:
        """Joints of a joint name or body part, either with a side or for both: "left hand", "elbow", "torso".

        Raises UserError for a part that this skeleton does not know.
        """
        if part in self.names:
            return (self.joint(part),)
        plain, side = unsided(part), side_of(part)
        joints = self.parts.get(plain) or tuple(j for j, name in enumerate(self.names) if unsided(name) == plain)
        joints = tuple(j for j in joints if side is None or side_of(self.names[j]) in (None, side))
        if not joints:
            raise unknown("body part", part, {*self.names, *self.parts}, f"skeleton {self.name!r}")
        return joints

    # ------------------------------------------------------------------------------------------ matrices
    def adjacency(self) -> Tensor:
        """Binary (V, V): row child, column parent."""
        import torch  # takes seconds, and whoever stores skeletons reads their graphs too

        matrix = torch.zeros(len(self), len(self))
        for child, parent in enumerate(self.parents):
            if parent >= 0:
                matrix[child, parent] = 1
        return matrix

    def power_transform(self, k: int) -> Tensor:
        """I - A^k (V, V), InfoGCN's input representation.

        k = 1 gives bones, larger k differences to the k-th ancestor (the joint itself where there is none), and
        a k above the tree's depth the joints: 8 for NTU. k = 0 is the zero matrix.
        """
        import torch

        return torch.eye(len(self)) - torch.linalg.matrix_power(self.adjacency(), k)

    def distances(self, center: int) -> list[int]:
        """Number of bones between each joint and `center`."""
        neighbours: list[set[int]] = [set() for _ in self.names]
        for child, parent in enumerate(self.parents):
            if parent >= 0:
                neighbours[child].add(parent)
                neighbours[parent].add(child)
        found, level, steps = {center: 0}, [center], 0
        while level:
            steps += 1
            level = sorted({n for joint in level for n in neighbours[joint]} - found.keys())
            found.update(dict.fromkeys(level, steps))
        return [found[joint] for joint in range(len(self))]

    def edges_to(self, center: int) -> list[tuple[int, int]]:
        """All bones as (outer, inner), the inner joint being the one nearer to `center`."""
        away = self.distances(center)
        bones = ((child, parent) for child, parent in enumerate(self.parents) if parent >= 0)
        return [(a, b) if away[a] > away[b] else (b, a) for a, b in bones]

    # -------------------------------------------------------------------------------------- hierarchies
    def hierarchy(self, center: int | None = None) -> tuple[tuple[int, ...], ...]:
        """Joint groups from the centre of mass outwards (HD-GCN, ICCV 2023), `center` by default `self.center`.

        Tabulated for the three centres that HD-GCN uses on NTU; else the joints by their distance from the
        centre, all those beyond the seventh group in the seventh.
        """
        center = self.center if center is None else center
        if center in self.hierarchies:
            return self.hierarchies[center]
        groups: dict[int, list[int]] = {}
        for joint, distance in enumerate(self.distances(center)):
            groups.setdefault(min(distance, MAX_GROUPS - 1), []).append(joint)
        return tuple(tuple(groups[level]) for level in sorted(groups))

    def hierarchy_adjacency(self, center: int | None = None) -> Tensor:
        """HD-GCN's graphs (L, 3, V, V), one layer for each two neighbouring groups.

        Per layer: the two groups' self links; every joint of the inner group to every one of the outer group;
        the reverse. Entry [v, u] weighs what v takes from u; each column sums to 1 or is zero.
        """
        import torch

        groups = self.hierarchy(center)
        matrices = torch.zeros(len(groups) - 1, 3, len(self), len(self))
        for layer, (inner, outer) in enumerate(itertools.pairwise(groups)):
            both = torch.tensor((*inner, *outer))
            rows, columns = torch.tensor(outer)[:, None], torch.tensor(inner)
            matrices[layer, 0, both, both] = 1
            matrices[layer, 1, rows, columns] = 1 / len(outer)
            matrices[layer, 2, columns[:, None], rows[:, 0]] = 1 / len(inner)
        return matrices


def side_of(name: str) -> str | None:
    """ "left", "right" or None."""
    return next((word for word in name.split() if word in SIDES), None)


def unsided(name: str) -> str:
    """A joint's or part's name without its side: "tip of left hand" -> "tip of hand"."""
    return " ".join(word for word in name.split() if word not in SIDES)


def body_parts(names: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """The entries of BODY_PARTS that a skeleton with these joints has, as joint indices."""
    plain = [unsided(name) for name in names]
    parts = {}
    for part, choices in BODY_PARTS.items():
        found = (tuple(j for j, name in enumerate(plain) if name in joints) for joints in choices)
        parts[part] = next(filter(None, found), ())
    return {part: joints for part, joints in parts.items() if joints}


# ------------------------------------------------------------------------------------------ from a mapping
def graph_from_mapping(spec: Mapping[str, Any]) -> SkeletonGraph:
    """A skeleton from a YAML mapping.

    Keys: `names` (the joints in the order of the data), `parents` (joint: parent, null for the root), `center`
    (a joint; default the root), `parts` (part: joints, on top of BODY_PARTS), `name`. Raises UserError for
    anything else in it, an unknown joint, a cycle or several roots.
    """
    name = str(spec.get("name", "skeleton"))
    where = f"skeleton {name!r}"
    for key in spec:
        if key not in KEYS:
            raise unknown("key", key, KEYS, where)
    names, parents, extra = spec.get("names"), spec.get("parents"), spec.get("parts") or {}
    if not isinstance(names, Sequence) or isinstance(names, str) or not isinstance(parents, Mapping):
        raise UserError(f"{where}: needs names, a list of joints, and parents, a mapping of each joint to its parent")
    names = tuple(map(str, names))
    index = {joint: i for i, joint in enumerate(names)}
    for joint in (*parents, *(p for p in parents.values() if p is not None)):
        if joint not in index:
            raise unknown("joint", joint, names, f"{where}, parents")
    missing = [joint for joint in names if joint not in parents]
    if missing:
        raise UserError(f"{where}: {missing[0]!r} has no parent; write `{missing[0]}: null` if it is the root")
    order = tuple(-1 if parents[joint] is None else index[parents[joint]] for joint in names)
    graph = SkeletonGraph(names, order, name=name)
    parts = body_parts(names)
    for part, joints in extra.items():
        parts[str(part)] = tuple(graph.joint(str(joint)) for joint in joints)
    center = order.index(-1) if spec.get("center") is None else graph.joint(str(spec["center"]))
    return replace(graph, parts=parts, center=center)


def get_graph(spec: SkeletonGraph | str | Mapping[str, Any]) -> SkeletonGraph:
    """A skeleton by its name ("ntu25", "coco17", "h36m17", "openpose18"), from a mapping, or as it is."""
    if isinstance(spec, SkeletonGraph):
        return spec
    if isinstance(spec, Mapping):
        return graph_from_mapping(spec)
    return _built_in(spec)


@functools.cache
def _built_in(name: str) -> SkeletonGraph:
    if name not in SKELETONS:
        raise unknown("skeleton", name, SKELETONS)
    spec = {**SKELETONS[name], "name": name}
    names = spec.pop("names")
    parents = dict(zip(names, spec.pop("parents"), strict=True))
    graph = graph_from_mapping({"names": names, "parents": parents, **spec})
    return replace(graph, hierarchies=NTU_HIERARCHIES) if name == "ntu25" else graph


# ------------------------------------------------------------------------------------------ the built-in ones
def _sided(*joints: str) -> list[str]:
    return [f"{side} {joint}" for side in SIDES for joint in joints]


def _groups(*groups: str) -> tuple[tuple[int, ...], ...]:
    """Groups of 1-based joints, as the papers print them."""
    return tuple(tuple(int(joint) - 1 for joint in group.split()) for group in groups)


_COCO_FACE = ["nose", "left eye", "right eye", "left ear", "right ear"]
_COCO_BODY = [f"{side} {j}" for j in ("shoulder", "elbow", "wrist", "hip", "knee", "ankle") for side in SIDES]
_OPENPOSE = [f"{side} {j}" for limb in (("shoulder", "elbow", "wrist"), ("hip", "knee", "ankle"))
             for side in ("right", "left") for j in limb]  # fmt: skip

# Parents stand in the order of the names.
SKELETONS: dict[str, dict[str, Any]] = {
    # NTU RGB+D: Kinect v2's order; the tree is InfoGCN's, rooted at the middle of the spine; the centre is the
    # joint between the shoulders (joint 21), as in ST-GCN.
    "ntu25": {
        "names": ["base of spine", "mid of spine", "neck", "head", *_sided("shoulder", "elbow", "wrist", "hand"),
                  *_sided("hip", "knee", "ankle", "foot"), "spine", "tip of left hand", "left thumb",
                  "tip of right hand", "right thumb"],
        "parents": ["mid of spine", None, "spine", "neck",
                    "spine", "left shoulder", "left elbow", "left wrist",
                    "spine", "right shoulder", "right elbow", "right wrist",
                    "base of spine", "left hip", "left knee", "left ankle",
                    "base of spine", "right hip", "right knee", "right ankle",
                    "mid of spine", "left thumb", "left hand", "right thumb", "right hand"],
        "center": "spine",
    },
    # COCO key points; the tree is ST-GCN's in MMAction2.
    "coco17": {
        "names": [*_COCO_FACE, *_COCO_BODY],
        "parents": [None, "nose", "nose", "left eye", "right eye", "nose", "nose", "left shoulder", "right shoulder",
                    "left elbow", "right elbow", "left shoulder", "right shoulder", "left hip", "right hip",
                    "left knee", "right knee"],
        "center": "nose",
    },
    # Human3.6M as MotionBERT fills it from COCO key points: its tenth joint is the nose.
    "h36m17": {
        "names": ["pelvis", "right hip", "right knee", "right ankle", "left hip", "left knee", "left ankle",
                  "mid of spine", "thorax", "nose", "head", "left shoulder", "left elbow", "left wrist",
                  "right shoulder", "right elbow", "right wrist"],
        "parents": [None, "pelvis", "right hip", "right knee", "pelvis", "left hip", "left knee", "pelvis",
                    "mid of spine", "thorax", "nose", "thorax", "left shoulder", "left elbow", "thorax",
                    "right shoulder", "right elbow"],
        "center": "pelvis",
    },
    # OpenPose, 18 joints (Kinetics-skeleton); the tree is ST-GCN's.
    "openpose18": {
        "names": ["nose", "neck", *_OPENPOSE, "right eye", "left eye", "right ear", "left ear"],
        "parents": ["neck", None, "neck", "right shoulder", "right elbow", "neck", "left shoulder", "left elbow",
                    "right shoulder", "right hip", "right knee", "left shoulder", "left hip", "left knee",
                    "nose", "nose", "right eye", "left eye"],
        "center": "neck",
    },
}  # fmt: skip

# HD-GCN's groups for the centres of mass 1, 2 and 21 (1-based) of NTU.
NTU_HIERARCHIES = {
    0: _groups("1", "2 13 17", "14 18 21", "3 5 9 15 19", "4 6 10 16 20", "7 11", "8 12 22 23 24 25"),
    1: _groups("2", "1 21", "13 17 3 5 9", "14 18 4 6 10", "15 19 7 11", "16 20 8 12", "22 23 24 25"),
    20: _groups("21", "2 3 5 9", "4 6 10 1", "7 11 13 17", "8 12 14 18", "22 23 24 25 15 19", "16 20"),
}
