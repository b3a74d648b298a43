"""The adapter of rtmlib with two made networks, whose answers are known: a person is a red dot with a blue one."""

import numpy as np
import pytest

from pipeline.errors import UserError
from pipeline.pose import rtmpose

WIDE, HIGH, SIDE = 48, 64, 96  # what the networks see


@pytest.fixture(scope="module")
def onnx():
    for name in ("rtmlib", "onnxruntime"):
        pytest.importorskip(name, reason=f"RTMPose needs {name} (docs/pose.md)")
    return pytest.importorskip("onnx", reason="onnx makes the networks of this test")


def save(onnx, path, nodes, constants, shape, outputs):
    h, t = onnx.helper, onnx.TensorProto.FLOAT
    values = [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = h.make_graph(
        [h.make_node(kind, inputs, [output], **more) for kind, inputs, output, more in nodes], "made",
        [h.make_tensor_value_info("input", t, shape)], [h.make_tensor_value_info(name, t, None) for name in outputs],
        values,
    )  # fmt: skip
    onnx.save(h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=8), str(path))


@pytest.fixture(scope="module")
def models(onnx, tmp_path_factory):
    folder = tmp_path_factory.mktemp("networks")
    channel = {"zero": np.array([0]), "one": np.array([1]), "axis": np.array([1])}
    first = ("Slice", ["input", "zero", "one", "axis"], "first", {})  # blue of BGR, red of RGB
    # A box, whose score is the brightest value of the first channel.
    nodes = [first, ("ReduceMax", ["first"], "top", {"axes": [1, 2, 3], "keepdims": 0}),
             ("Div", ["top", "full"], "share", {}), ("Reshape", ["share", "form"], "score", {}),
             ("Concat", ["box", "score"], "dets", {"axis": 2})]  # fmt: skip
    box = np.array([[[10, 20, 50, 90]]], dtype=np.float32)
    more = {"full": np.float32(255), "form": np.array([1, 1, 1]), "box": box}
    save(onnx, folder / "yolox_made.onnx", nodes, channel | more, [1, 3, SIDE, SIDE], ["dets"])
    # Every joint is where the first channel is brightest, at two places a pixel.
    nodes = [first]
    for name, axis, size in (("simcc_x", 2, WIDE), ("simcc_y", 3, HIGH)):
        nodes += [("ReduceMax", ["first"], f"{name}_line", {"axes": [axis], "keepdims": 0}),
                  ("Reshape", [f"{name}_line", f"{name}_form"], f"{name}_column", {}),
                  ("Tile", [f"{name}_column", "twice"], f"{name}_pairs", {}),
                  ("Reshape", [f"{name}_pairs", f"{name}_row"], f"{name}_one", {}),
                  ("Tile", [f"{name}_one", "joints"], name, {})]  # fmt: skip
        channel |= {f"{name}_form": np.array([1, size, 1]), f"{name}_row": np.array([1, 1, 2 * size])}
    channel |= {"twice": np.array([1, 1, 2]), "joints": np.array([1, 17, 1])}
    save(onnx, folder / "rtmpose_made.onnx", nodes, channel, [1, 3, HIGH, WIDE], ["simcc_x", "simcc_y"])
    return folder


def picture(red=(30, 60), blue=(40, 30)):
    frame = np.zeros((SIDE, SIDE, 3), dtype=np.uint8)
    for channel, at in ((0, red), (2, blue)):
        if at:
            frame[at[1] - 2 : at[1] + 3, at[0] - 2 : at[0] + 3, channel] = 255
    return frame


def test_detector_sees_bgr_and_pose_network_rgb(models):
    made = rtmpose.RtmPose(str(models))
    made.begin()
    poses = made.estimate(picture())
    assert poses.shape == (1, 17, 3) and poses.dtype == np.float32
    # RTMPose's crop is the box times 1.25, at the aspect of its input: 87.5 pixels on 64, so 1.4 pixels a place.
    np.testing.assert_allclose(poses[0, :, :2], np.tile((30, 60), (17, 1)), atol=4)
    assert (poses[..., 2] == 1).all()  # scores above 1 are cut
    np.testing.assert_allclose(made.estimate(picture(red=(45, 75)))[0, 0, :2], (45, 75), atol=4)
    assert made.estimate(picture(blue=None)).shape == (0, 17, 3)  # nobody detected: the pose network is not asked
    assert set(made.about) == {"yolox_made.onnx", "rtmpose_made.onnx"}


def test_networks_that_cannot_be_used(models, tmp_path):
    with pytest.raises(UserError, match=r"holds 0 files yolox\*.onnx"):
        rtmpose.RtmPose(str(tmp_path))
    (tmp_path / "yolox.onnx").write_bytes(b"nothing")
    (tmp_path / "rtmpose.onnx").write_bytes(b"nothing")
    with pytest.raises(UserError, match="yolox.onnx is not a network"):
        rtmpose.RtmPose(str(tmp_path))
    with pytest.raises(UserError, match="onnxruntime-gpu"):
        rtmpose.RtmPose(str(models), "cuda")


def test_networks_that_cannot_be_fetched(onnx, monkeypatch):
    def offline(url):
        raise OSError(f"no route to {url.split('/')[2]}")

    monkeypatch.setattr("rtmlib.tools.file.download_checkpoint", offline)
    with pytest.raises(UserError, match=r"cannot be fetched \(no route to download.openmmlab.com\).*--models"):
        rtmpose.RtmPose()
