import numpy as np
import pytest

from pipeline.datasets.skeletons.graph import get_graph
from pipeline.datasets.skeletons.layouts import LAYOUTS, coco_to_h36m, layout_weights, to_layout
from pipeline.errors import UserError
from pipeline.pose import blazepose, rtmpose

BACKENDS = {"blazepose": blazepose.JOINTS, "rtmpose": rtmpose.JOINTS}
RNG = np.random.default_rng(0)


def made(source, layout, poses):
    return dict(zip(get_graph(layout).names, to_layout(poses, layout_weights(source, layout)), strict=True))


def test_joints_of_backends():
    assert rtmpose.JOINTS == get_graph("coco17").names
    assert len(blazepose.JOINTS) == len(set(blazepose.JOINTS)) == 33
    # Numbers as MediaPipe documents them.
    documented = {
        0: "nose", 2: "left eye", 5: "right eye", 8: "right ear", 11: "left shoulder", 16: "right wrist",
        17: "left pinky", 20: "right index", 21: "left thumb", 24: "right hip", 28: "right ankle", 29: "left heel",
        32: "right foot index",
    }  # fmt: skip
    assert {number: blazepose.JOINTS[number] for number in documented} == documented


@pytest.mark.parametrize("source", BACKENDS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_moves_with_the_body(source, layout):
    weights = layout_weights(BACKENDS[source], layout)
    assert weights.shape == (len(get_graph(layout)), len(BACKENDS[source]))
    poses = np.concatenate([RNG.normal(size=(4, 2, weights.shape[1], 2)), RNG.random((4, 2, weights.shape[1], 1))], -1)
    turn = np.array([[0.6, -0.8], [0.8, 0.6]])
    moved = poses.copy()
    moved[..., :2] = 2 * poses[..., :2] @ turn + (5, -7)
    one, other = to_layout(poses, weights), to_layout(moved, weights)
    np.testing.assert_allclose(other[..., :2], 2 * one[..., :2] @ turn + (5, -7), atol=1e-5)
    assert one.dtype == np.float32 and (one[..., 2] == other[..., 2]).all()


def test_h36m_is_that_of_motionbert():
    pose = np.concatenate([RNG.normal(size=(17, 2)), RNG.random((17, 1))], axis=1)
    got = to_layout(pose, layout_weights(rtmpose.JOINTS, "h36m17"))
    np.testing.assert_allclose(got[:, :2], coco_to_h36m(pose)[:, :2], atol=1e-6)
    names = get_graph("h36m17").names
    assert got[names.index("head"), 2] == np.float32(pose[1:3, 2].min())  # between the eyes
    assert got[names.index("mid of spine"), 2] == np.float32(pose[[5, 6, 11, 12], 2].min())


def test_the_same_pose_by_both_backends():
    """Joints that both have come out alike, whatever the numbers of the others."""
    pose = np.concatenate([RNG.normal(size=(33, 2)), RNG.random((33, 1))], axis=1)
    coco = pose[[blazepose.JOINTS.index(name) for name in rtmpose.JOINTS]]
    for layout in ("coco17", "h36m17", "openpose18"):
        one, other = made(blazepose.JOINTS, layout, pose), made(rtmpose.JOINTS, layout, coco)
        for name in one:
            np.testing.assert_allclose(one[name], other[name], atol=1e-6)


def test_neck_of_openpose():
    pose = RNG.random((17, 3))
    neck = made(rtmpose.JOINTS, "openpose18", pose)["neck"]
    np.testing.assert_allclose(neck[:2], pose[5:7, :2].mean(axis=0), rtol=1e-6)
    assert neck[2] == np.float32(pose[5:7, 2].min())


def test_ntu_of_coco():
    pose = dict.fromkeys(rtmpose.JOINTS, (0.0, 0.0, 0.9))
    pose |= {"left elbow": (10, 0, 0.8), "left wrist": (20, 0, 0.3), "left ankle": (3, 90, 0.7)}
    pose |= {
        "left shoulder": (8, 10, 1),
        "right shoulder": (-8, 10, 1),
        "left hip": (4, 50, 1),
        "right hip": (-4, 50, 1),
    }
    got = made(rtmpose.JOINTS, "ntu25", np.array([pose[name] for name in rtmpose.JOINTS]))
    for name, x, y, confidence in (
        ("left hand", 23, 0, 0.3), ("left thumb", 24, 0, 0.3), ("tip of left hand", 26, 0, 0.3),
        ("left foot", 3, 90, 0.7), ("base of spine", 0, 50, 1), ("mid of spine", 0, 30, 1), ("spine", 0, 10, 1),
        ("neck", 0, 7, 0.9), ("head", 0, 0, 0.9),
    ):  # fmt: skip
        np.testing.assert_allclose(got[name], (x, y, confidence), atol=1e-5, err_msg=name)


def test_ntu_of_blazepose_uses_hands_and_feet():
    pose = dict.fromkeys(blazepose.JOINTS, (0.0, 0.0, 1.0))
    pose |= {"right wrist": (1, 1, 0.9), "right index": (4, 7, 0.5), "right pinky": (7, 1, 0.6)}
    pose |= {"right thumb": (2, 3, 0.4), "right foot index": (9, 8, 0.2)}
    got = made(blazepose.JOINTS, "ntu25", np.array([pose[name] for name in blazepose.JOINTS]))
    np.testing.assert_allclose(got["right hand"], (4, 3, 0.5), atol=1e-6)
    np.testing.assert_allclose(got["tip of right hand"], (10, 7, 0.5), atol=1e-6)
    np.testing.assert_allclose(got["right thumb"], (2, 3, 0.4), atol=1e-6)
    np.testing.assert_allclose(got["right foot"], (9, 8, 0.2), atol=1e-6)


def test_what_cannot_be_made():
    with pytest.raises(UserError, match="unknown layout 'coco'.*coco17"):
        layout_weights(rtmpose.JOINTS, "coco")
    with pytest.raises(UserError, match="openpose18 needs neck"):
        layout_weights([name for name in rtmpose.JOINTS if name != "left shoulder"], "openpose18")
