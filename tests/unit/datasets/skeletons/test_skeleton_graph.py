"""Skeleton trees, their matrices and hierarchies, and skeletons read from a mapping."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import yaml

from pipeline.datasets.skeletons.graph import BODY_PARTS, SKELETONS
from pipeline.errors import UserError
from pipeline.models.skeleton import get_graph
from pipeline.models.skeleton.stgcn import LAYOUTS, mmaction_layout

STICK = """
name: stick
names: [hip, chest, head, left hand, right hand]
parents: {hip: null, chest: hip, head: chest, left hand: chest, right hand: chest}
parts: {belly: [hip, chest]}
center: chest
"""


def _stick(**changes):
    return {**yaml.safe_load(STICK), **changes}


@pytest.mark.parametrize(("name", "joints"), [("ntu25", 25), ("coco17", 17), ("h36m17", 17), ("openpose18", 18)])
def test_built_in_trees(name, joints):
    graph = get_graph(name)
    assert len(graph) == joints == len(set(graph.names))
    assert sorted(graph.parents)[:2] == [-1, min(p for p in graph.parents if p >= 0)]
    sides = [n for n in graph.names if "left" in n.split()]
    assert all(n.replace("left", "right") in graph.names for n in sides)
    for child, parent in enumerate(graph.parents):  # a left joint hangs on the trunk or on a left joint
        assert parent < 0 or not ("left" in graph.names[child] and "right" in graph.names[parent])
    for part in BODY_PARTS:
        assert part not in graph.parts or graph.parts[part]


def test_joint_powers_of_ntu():
    graph = get_graph("ntu25")
    powers = [torch.linalg.matrix_power(graph.adjacency(), k) for k in range(9)]
    assert [int(p.sum()) for p in powers] == [25, 24, 22, 17, 12, 8, 4, 2, 0]
    bones = graph.power_transform(1)
    joints = torch.randn(25, 3)
    thumb, hand = graph.joint("left thumb"), graph.joint("left hand")
    torch.testing.assert_close((bones @ joints)[thumb], joints[thumb] - joints[hand])
    torch.testing.assert_close((bones @ joints)[1], joints[1])  # the root stays
    assert torch.equal(graph.power_transform(8), torch.eye(25))
    assert not graph.power_transform(0).any()


@pytest.mark.parametrize(
    ("center", "sizes"), [(0, [1, 3, 3, 5, 5, 2, 6]), (1, [1, 2, 5, 5, 4, 4, 4]), (20, [1, 4, 4, 4, 4, 6, 2])]
)
def test_hierarchies_of_ntu(center, sizes):
    graph = get_graph("ntu25")
    groups = graph.hierarchy(center)
    assert groups[0] == (center,) and list(map(len, groups)) == sizes
    assert sorted(j for group in groups for j in group) == list(range(25))
    # The tabulated groups are those by distance, but for the tips of the hands, which stand with the thumbs.
    away = graph.distances(center)
    for level, group in enumerate(groups[:-1]):
        assert all(away[j] == level for j in group if not graph.names[j].startswith("tip"))


def test_hierarchy_by_distance_merges_what_is_far():
    assert get_graph("openpose18").hierarchy()[0] == (1,)
    assert [len(g) for g in get_graph("openpose18").hierarchy()] == [1, 3, 6, 6, 2]
    names = [f"j{i}" for i in range(10)]
    chain = get_graph({"names": names, "parents": {n: names[i - 1] if i else None for i, n in enumerate(names)}})
    assert chain.hierarchy() == ((0,), (1,), (2,), (3,), (4,), (5,), (6, 7, 8, 9))
    assert chain.hierarchy(9)[1] == (8,)


def test_hierarchy_adjacency_entry_by_entry():
    graph = get_graph(_stick())
    groups = graph.hierarchy()
    assert groups == ((1,), (0, 2, 3, 4))
    got = graph.hierarchy_adjacency()
    want = np.zeros((1, 3, 5, 5))
    for v in range(5):
        for u in range(5):
            want[0, 0, v, u] = v == u
            want[0, 1, v, u] = (u in groups[0] and v in groups[1]) / len(groups[1])
            want[0, 2, v, u] = (u in groups[1] and v in groups[0]) / len(groups[0])
    np.testing.assert_allclose(got.numpy(), want)
    for name in SKELETONS:
        columns = get_graph(name).hierarchy_adjacency().sum(-2)
        assert ((columns == 0) | ((columns - 1).abs() < 1e-6)).all()


@pytest.mark.parametrize("name", LAYOUTS)
def test_bones_towards_the_centre_are_those_of_mmaction2(name):
    from mmaction.models.utils import Graph  # which cannot be imported before pipeline.compat

    graph, theirs = get_graph(name), Graph(LAYOUTS[name])
    ours = set(graph.edges_to(graph.center))
    assert graph.center == theirs.center
    if name == "ntu25":  # the tips of the hands hang on the thumbs in InfoGCN's tree, on the hands in MMAction2's
        tips = {graph.joint(n) for n in graph.names if n.startswith("tip")}
        assert {e for e in ours if e[0] not in tips} == {e for e in theirs.inward if e[0] not in tips}
    else:
        assert ours == set(theirs.inward)


def test_layout_of_another_skeleton():
    graph = get_graph(_stick())
    assert mmaction_layout(graph) == {"num_node": 5, "inward": [(0, 1), (2, 1), (3, 1), (4, 1)], "center": 1}


def test_body_parts_and_their_sides():
    ntu, coco = get_graph("ntu25"), get_graph("coco17")

    def names(graph, part):
        return {graph.names[j] for j in graph.joints_of(part)}

    assert names(ntu, "left arm") == {"left shoulder", "left elbow", "left wrist"}
    assert names(ntu, "eye") == names(ntu, "head") == {"head"}
    assert names(ntu, "right hand") == {"right hand"}  # a joint's own name comes first
    assert names(ntu, "hand") == {"left hand", "tip of left hand", "left thumb",
                                  "right hand", "tip of right hand", "right thumb"}  # fmt: skip
    assert names(ntu, "right finger") == {"tip of right hand", "right thumb"}
    assert names(ntu, "torso") == {"base of spine", "mid of spine", "spine"}
    assert names(coco, "left hand") == {"left wrist"}
    assert names(coco, "torso") == {"left shoulder", "right shoulder", "left hip", "right hip"}
    assert names(coco, "ankle") == {"left ankle", "right ankle"}
    with pytest.raises(UserError, match="unknown body part 'tail'"):
        ntu.joints_of("tail")


def test_a_skeleton_from_yaml():
    graph = get_graph(_stick())
    assert graph.parents == (-1, 0, 1, 1, 1) and graph.center == 1 and graph.name == "stick"
    assert graph.parts["belly"] == (0, 1) and graph.joints_of("left palm") == (3,)
    assert get_graph(graph) is graph
    assert get_graph(_stick(center=None)).center == 0
    assert graph.distances(3) == [2, 1, 2, 0, 2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parents": {**_stick()["parents"], "hip": "head"}}, "skeleton 'stick': the parents of 'hip' run in a cycle"),
        ({"parents": {**_stick()["parents"], "head": "head"}}, "'head' run in a cycle"),
        ({"parents": {**_stick()["parents"], "head": "chset"}}, "unknown joint 'chset' in .*; did you mean 'chest'"),
        ({"parents": {**_stick()["parents"], "tail": "hip"}}, "unknown joint 'tail'"),
        ({"parents": {**_stick()["parents"], "head": None}}, "2 roots \\(hip, head\\)"),
        ({"parents": {"hip": None, "chest": "hip"}}, "'head' has no parent"),
        ({"parents": ["hip"]}, "needs names"),
        ({"names": ["hip", "hip", "chest", "head", "left hand", "right hand"]}, "every joint once"),
        ({"parts": {"belly": ["hipp"]}}, "unknown joint 'hipp'"),
        ({"center": "middle"}, "unknown joint 'middle'"),
        ({"joints": 5}, "unknown key 'joints'"),
    ],
)
def test_skeletons_that_are_none(changes, message):
    with pytest.raises(UserError, match=message):
        get_graph(_stick(**changes))


def test_unknown_skeleton():
    with pytest.raises(UserError, match="unknown skeleton 'ntu'; did you mean 'ntu25'"):
        get_graph("ntu")
