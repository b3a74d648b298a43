import importlib.util

import cv2
import numpy as np
import pytest

from pipeline.datasets.skeletons.graph import get_graph
from pipeline.datasets.synthetic import grammar
from pipeline.datasets.synthetic.writer import Request, draw_clip
from pipeline.errors import UserError
from pipeline.pose import blazepose
from pipeline.pose.blazepose import JOINTS, anchors, around, crop, find_models, merge, refine, same_body, to_image
from pipeline.pose.estimator import open_estimator
from pipeline.pose.tracking import track

BOTH = [name for name in get_graph("ntu25").names if name in JOINTS and "thumb" not in name]
MINE, TRUE = [JOINTS.index(name) for name in BOTH], [get_graph("ntu25").joint(name) for name in BOTH]


# ------------------------------------------------------------------------------------- without the networks
def test_anchors():
    made = anchors()
    assert made.shape == (2254, 2)
    np.testing.assert_allclose(made[[0, 1, 2]], [(0.5 / 28, 0.5 / 28)] * 2 + [(1.5 / 28, 0.5 / 28)], rtol=1e-6)
    np.testing.assert_allclose(made[2 * 28 * 28], (0.5 / 14, 0.5 / 14), rtol=1e-6)
    np.testing.assert_allclose(made[-1], (6.5 / 7, 6.5 / 7), rtol=1e-6)
    assert len(np.unique(made[-6 * 49 :], axis=0)) == 49


@pytest.mark.parametrize("top", [(50, 10), (90, 50), (50, 90), (10, 50), (70, 25)])
def test_the_square_stands_the_body_upright(top):
    """A line from the centre to the top of a body comes out vertical, upwards, and as long as the margin says."""
    square = around(np.array([50.0, 50.0]), np.array(top, dtype=float))
    frame = np.zeros((100, 100, 3), dtype=np.uint8)
    cv2.line(frame, (50, 50), tuple(np.add((50, 50), np.subtract(top, (50, 50)) // 2).tolist()), (255, 255, 255), 3)
    image = crop(frame, square, 256, cv2.BORDER_REPLICATE)[..., 0]
    rows, columns = np.nonzero(image > 128)
    assert abs(columns - 128).max() < 10 and rows.max() < 140 and rows.min() > 60
    # The top is 1 / (2 * 1.25) of the side above the middle; back in the frame it is where it was.
    np.testing.assert_allclose(to_image(np.array([[0.5, 0.5], [0.5, 0.1]]), square), [(50, 50), top], atol=1e-9)


def test_detections_of_one_face_are_one():
    def detection(x, size=0.2):
        return [(x, 0.5), (size, size), (x, 0.6), (x, 0.2), (0, 0), (0, 0)]

    points = np.array([detection(0.2), detection(0.8), detection(0.24)])
    first, second = merge(points, np.array([0.6, 0.9, 0.8]))
    np.testing.assert_allclose(first, points[1])
    np.testing.assert_allclose(second[0], ((0.2 * 0.6 + 0.24 * 0.8) / 1.4, 0.5))
    assert merge(points[:0], np.zeros(0)) == []


def test_landmarks_follow_the_heat():
    heat = np.zeros((64, 64, 4))
    heat[20, 31, 0] = heat[20, 32, 0] = 0.8  # two columns right of the landmark, in its window
    heat[20, 31, 1] = 0.4  # too cold
    heat[50, 50, 2] = 0.9  # too far
    points = np.array([[30, 20], [30, 20], [30, 20], [-5, 70]]) / 64
    got = refine(points, heat)
    np.testing.assert_allclose(got[0], (31.5 / 64, 20 / 64))
    np.testing.assert_array_equal(got[1:], points[1:])


def test_squares_of_one_body():
    square = np.array([100.0, 100.0, 200.0, 0.0])
    near, far = square + np.array([20, 0, 5, 0.3]), square + np.array([60, 0, 0, 0])
    assert same_body(square, near) and not same_body(square, far)


def test_where_networks_are_looked_for(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="there is no .*pose_detection.tflite"):
        find_models(str(tmp_path))
    for name in blazepose.FILES:
        (tmp_path / name).write_bytes(b"")
    assert [path.name for path in find_models(str(tmp_path))] == ["pose_detection.tflite", "pose_landmark_full.tflite"]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install --no-deps mediapipe==0.10.14.*--models"):
        find_models()


# --------------------------------------------------------------------------------------- with the networks
@pytest.fixture(scope="module")
def real():
    pytest.importorskip("ai_edge_litert", reason="BlazePose needs ai-edge-litert (docs/pose.md)")
    try:
        find_models()
    except UserError as error:
        pytest.skip(str(error))
    return open_estimator("blazepose")


def figure(label, size, seed):
    return draw_clip(Request("scene", 1, (24, 30), size, 15, seed, ("train",), 0.5), label, 0)


def test_joints_of_drawn_figures(real):
    """Within a tenth of the torso's length of the truth, in most frames of a few clips."""
    shown, errors = 0, []
    for label in grammar.classes("scene", "train")[:3]:
        clip = figure(label, 224, 3)
        torso = np.linalg.norm(clip.pixels[:, 20] - clip.pixels[:, 0], axis=-1)
        real.begin()
        for image, true, length in zip(clip.images[::4], clip.pixels[::4], torso[::4], strict=True):
            poses = real.estimate(image)
            assert poses.dtype == np.float32 and poses.shape[1:] == (33, 3)
            assert ((poses[..., 2] >= 0) & (poses[..., 2] <= 1)).all()
            shown += 1
            errors += [np.linalg.norm(poses[0, MINE, :2] - true[TRUE], axis=-1) / length] if len(poses) else []
    assert len(errors) >= 0.6 * shown
    assert np.median(errors) < 0.1


def test_two_persons_are_kept_apart(real):
    left, right = (figure(label, 192, 5) for label in grammar.classes("scene", "train")[:2])
    count = min(len(left.images), len(right.images))
    real.begin()
    frames = [real.estimate(np.hstack([left.images[t], right.images[t]])) for t in range(0, count, 2)]
    persons = track(frames)
    assert len(persons) == 2
    for person in persons:
        x = person[person.any(axis=(1, 2))][:, :, 0].mean(axis=1)
        assert (x < 192).all() or (x > 192).all()
    assert sorted(bool(person[person.any(axis=(1, 2))][:, :, 0].mean() > 192) for person in persons) == [False, True]


def test_nobody_on_a_wall(real):
    real.begin()
    assert real.estimate(np.full((120, 160, 3), 90, dtype=np.uint8)).shape == (0, 33, 3)


def test_settings_that_do_not_work(real, tmp_path):
    with pytest.raises(UserError, match="runs on the CPU, not on cuda"):
        open_estimator("blazepose", "", "cuda")
    for name in blazepose.FILES:
        (tmp_path / name).write_bytes(b"no network")
    with pytest.raises(UserError, match="is not a network that LiteRT can run"):
        open_estimator("blazepose", str(tmp_path))
