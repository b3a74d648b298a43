import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from pipeline.datasets.index import Clip, write_index
from pipeline.datasets.skeletons import feeder
from pipeline.datasets.skeletons.definition import Feed, SkeletonPolicy
from pipeline.datasets.skeletons.feeder import MotionBertDataset, SkeletonDataset
from pipeline.datasets.skeletons.preprocess import Pose
from pipeline.datasets.skeletons.store import SkeletonStore, build_skeleton_store
from pipeline.errors import UserError

SAMPLE = "S001C001P001R001A050"


class Poses:
    """A source of poses in memory."""

    parallel = False

    def __init__(self, poses, spatial):
        self.poses, self.spatial = poses, spatial
        self.joints, self.channels = poses[0].joints.shape[2:]

    def read(self, path):
        return self.poses[int(path)]


def make_store(folder, poses, policy, spatial=3):
    clips = [Clip(str(i), str(i), "ab"[i % 2], "train") for i in range(len(poses))]
    write_index(folder / "index.csv", clips)
    build_skeleton_store(folder / "index.csv", Poses(poses, spatial), folder / "store", policy)
    return SkeletonStore(folder / "store")


@pytest.fixture(scope="module")
def store3d(tmp_path_factory):
    rng = np.random.default_rng(0)
    poses = [Pose(rng.standard_normal((1 + i % 2, 40 + 50 * i, 25, 3)).astype(np.float32)) for i in range(4)]
    return make_store(tmp_path_factory.mktemp("store"), poses, SkeletonPolicy())


@pytest.fixture(scope="module")
def store2d(tmp_path_factory):
    rng = np.random.default_rng(0)
    poses = [Pose(np.concatenate([rng.uniform(0, 400, (m, 70, 17, 2)), rng.uniform(0.1, 1, (m, 70, 17, 1))], -1,
                                 dtype=np.float32), (480, 640)) for m in (1, 2)]  # fmt: skip
    return make_store(tmp_path_factory.mktemp("store"), poses, SkeletonPolicy(origin="none"), spatial=2)


# ------------------------------------------------------------------------------- against the released feeders
def persons(array):
    """(T, 150) or (C, T, V, M) of the reference data as (M, T, V, C)."""
    return array.reshape(-1, 2, 25, 3).transpose(1, 0, 2, 3) if array.ndim == 2 else array.transpose(3, 1, 2, 0)


def test_crops_and_rotations_equal_the_released_feeder(golden):
    data = golden("ntu_preprocess")
    joints, of = persons(data[f"{SAMPLE}/translated"]), f"feeder/{SAMPLE}"
    valid = feeder.valid_frames(joints)
    assert valid == data[f"{of}/valid_frames"]
    begin, end = feeder.centre_crop(valid, 0.95)
    test = feeder.resize_time(joints[:, begin:end], 64)
    np.testing.assert_allclose(test, persons(data[f"{of}/test_crop0.95_resize64"]), atol=1e-6)
    short = feeder.resize_time(joints[:, begin:end], 20)
    np.testing.assert_allclose(short, persons(data[f"{of}/resize20_of_test_crop"]), atol=1e-6)
    length, begin = feeder.crop_length(valid, float(data[f"{of}/train_p"])), int(data[f"{of}/train_begin"])
    assert length == data[f"{of}/train_len"]
    train = feeder.resize_time(joints[:, begin : begin + length], 64)
    np.testing.assert_allclose(train, persons(data[f"{of}/train_crop_resize64"]), atol=1e-6)
    for angles, matrix in zip(data["feeder/rot_angles"], data["feeder/rot_matrices"], strict=True):
        np.testing.assert_allclose(feeder.rotation_matrix(angles), matrix, atol=1e-6)
    turned = feeder.rotate(test, data[f"{of}/random_rot_angles"])
    np.testing.assert_allclose(turned, persons(data[f"{of}/random_rot_of_test"]), atol=1e-6)


def test_motionbert_preparation_equals_the_released_code(golden):
    data = golden("motionbert")
    points = data["in/coco_keypoints"]
    camera = feeder.image_to_camera(points, tuple(data["in/img_shape_hw"]))
    np.testing.assert_allclose(camera, data["pre/make_cam"], atol=1e-6)
    np.testing.assert_allclose(feeder.coco_to_h36m(points), data["pre/coco2h36m"], rtol=1e-6)
    indices = feeder.coco_to_h36m(np.arange(17.0)[:, None])[:, 0]
    np.testing.assert_array_equal(indices, data["pre/coco2h36m_of_index"])
    np.testing.assert_allclose(feeder.track_persons(data["in/track"]), data["pre/human_tracking"], atol=1e-6)
    motion = data["in/motion_for_crop"]
    for ratio in (1, 2, 3):
        np.testing.assert_allclose(feeder.crop_scale(motion, ratio), data[f"pre/crop_scale_ratio{ratio}"], atol=1e-6)
    few = motion.copy()
    few[..., 2].flat[3:] = 0
    np.testing.assert_array_equal(feeder.crop_scale(few, 1), data["pre/crop_scale_lt4_valid"])
    moved = feeder.random_move(motion, data["pre/random_move_draws"])
    np.testing.assert_allclose(moved, data["pre/random_move_seed7"], atol=2e-6)
    for n in (37, 100, 260):
        np.testing.assert_array_equal(feeder.resample_positions(n, 100), data[f"pre/resample_test_{n}_to_100"])
    for n in (37, 260):
        draws, wanted = data[f"pre/resample_train_{n}_draws"], data[f"pre/resample_train_{n}_to_100_seed9"]
        np.testing.assert_array_equal(feeder.resample_positions(n, 100, draws), wanted)


# -------------------------------------------------------------------------------------------- graph encoders
def test_resizing_is_linear():
    ramp = np.arange(10, dtype=np.float32)[None, :, None, None]
    np.testing.assert_array_equal(feeder.resize_time(ramp, 10), ramp)
    np.testing.assert_allclose(feeder.resize_time(ramp, 5)[0, :, 0, 0], [0.5, 2.5, 4.5, 6.5, 8.5])
    np.testing.assert_allclose(feeder.resize_time(ramp, 20)[0, :3, 0, 0], [0, 0.25, 0.75])
    assert feeder.resize_time(ramp[:, :1], 4).tolist() == [[[[0.0]]] * 4]


def test_planar_rotation_leaves_the_confidence():
    x = np.random.default_rng(0).standard_normal((2, 3, 18, 3)).astype(np.float32)
    turned = feeder.rotate(x, (0.2, 0.1, 0.3), spatial=2)
    np.testing.assert_array_equal(turned[..., 2], x[..., 2])
    np.testing.assert_allclose(np.linalg.norm(turned[..., :2], axis=-1), np.linalg.norm(x[..., :2], axis=-1), rtol=1e-5)


def test_items(store3d):
    policy = SkeletonPolicy(single="copy", alignment="axes")
    test = SkeletonDataset(store3d, [2, 0, 1], [5, 6, 7], policy)
    x, label, number = test[1]
    assert x.shape == (3, 64, 25, 2) and x.dtype == torch.float32 and x.is_contiguous()
    assert (label, number, len(test)) == (6, 1, 3)
    torch.testing.assert_close(x[..., 0], x[..., 1])  # clip 0 has one person, shown twice
    assert torch.equal(x, test[1][0])
    zero = SkeletonDataset(store3d, [0], [0], SkeletonPolicy())[0][0]
    assert not zero[..., 1].any() and zero[..., 0].any()
    whole = SkeletonDataset(store3d, [0], [0], SkeletonPolicy(), Feed(frames=40, test_crop=1.0))[0][0]
    np.testing.assert_allclose(whole.numpy().transpose(3, 1, 2, 0)[:1], store3d.read(0), atol=1e-6)


def test_training_items_depend_on_seed_epoch_and_number_alone(store3d):
    def make(seed=3):
        return SkeletonDataset(store3d, range(4), [0] * 4, SkeletonPolicy(), train=True, seed=seed)

    first, again = make(), make()
    items = [first[i][0] for i in range(4)]
    for i in (3, 1, 0, 2):
        assert torch.equal(again[i][0], items[i])
    assert not torch.equal(make(seed=4)[3][0], items[3])
    again.set_epoch(1)
    assert not torch.equal(again[3][0], items[3]) and torch.equal(again[1, 3][0], again[3][0])
    loader = DataLoader(make(), batch_size=4, num_workers=1)
    x, labels, numbers = next(iter(loader))
    assert torch.equal(x, torch.stack(items)) and numbers.tolist() == [0, 1, 2, 3] and not labels.any()


def test_training_crops_are_as_long_as_asked(store3d, monkeypatch):
    lengths = []
    monkeypatch.setattr(feeder, "resize_time", lambda x, n: lengths.append(x.shape[1]) or x[:, :n])
    data = SkeletonDataset(store3d, [0, 3], [0, 0], SkeletonPolicy(), train=True)
    for epoch in range(60):
        data[epoch, 0], data[epoch, 1]
    assert set(lengths[0::2]) == {40} and 95 <= min(lengths[1::2]) < 105 and 175 < max(lengths[1::2]) <= 190


def test_a_clip_that_the_released_alignment_empties_can_be_fed(tmp_path):
    joints = np.random.default_rng(0).standard_normal((1, 30, 25, 3)).astype(np.float32)
    joints[0, 0, 1] = joints[0, 0, 0]  # no spine in frame 0
    store = make_store(tmp_path, [Pose(joints)], SkeletonPolicy())
    x = SkeletonDataset(store, [0], [0], SkeletonPolicy(alignment="axes_released"), train=True)[0][0]
    assert x.shape == (3, 64, 25, 2) and not x.any()


def test_alignment_needs_3d(store2d):
    with pytest.raises(UserError, match="2D poses; set policy: alignment: none"):
        SkeletonDataset(store2d, [0], [0], SkeletonPolicy(alignment="axes"))
    x = SkeletonDataset(store2d, [1], [0], SkeletonPolicy(), train=True)[0][0]
    assert x.shape == (3, 64, 17, 2) and x[2].min() >= 0.1 - 1e-6


# ------------------------------------------------------------------------------------------------ MotionBERT
def test_motionbert_items(store2d, store3d):
    feed = Feed(kind="motionbert", frames=100)
    test = MotionBertDataset(store2d, [0, 1], [0, 1], SkeletonPolicy(), feed)
    x, label, _ = test[1]
    assert x.shape == (2, 100, 17, 3) and x.dtype == torch.float32 and label == 1
    assert x[..., :2].abs().max() <= 0.5 + 1e-6  # half of the square in tests
    assert not test[0][0][1, ..., 2].any()  # one person: the second has no confidence
    train = MotionBertDataset(store2d, [0, 1], [0, 1], SkeletonPolicy(), feed, train=True, seed=1)
    assert torch.equal(train[1][0], train[0, 1][0]) and not torch.equal(train[1][0], train[1, 1][0])
    assert train[1][0].abs().max() <= 1
    released = MotionBertDataset(
        store2d, [0], [0], SkeletonPolicy(), feed.model_copy(update={"confidence": "released"})
    )
    raw, shown = store2d.read(0)[0, ..., 2], released[0][0][0, ..., 2].numpy()
    np.testing.assert_array_equal(shown[0], raw[0])
    np.testing.assert_allclose(test[0][0][0, 0, 9, 2], raw[0, 0])  # the nose
    np.testing.assert_allclose(test[0][0][0, 0, 0, 2], (raw[0, 11] + raw[0, 12]) / 2)  # between the hips
    with pytest.raises(UserError, match="takes COCO poses"):
        MotionBertDataset(store3d, [0], [0], SkeletonPolicy(), feed)


def test_motionbert_needs_pixels_and_sizes(tmp_path):
    joints = np.random.default_rng(0).uniform(1, 9, (1, 20, 17, 3)).astype(np.float32)
    (tmp_path / "a").mkdir()
    store = make_store(tmp_path / "a", [Pose(joints)], SkeletonPolicy(origin="none"), spatial=2)
    with pytest.raises(UserError, match="has no image size"):
        MotionBertDataset(store, [0], [0], SkeletonPolicy())[0]
    (tmp_path / "b").mkdir()
    store = make_store(tmp_path / "b", [Pose(joints, (9, 9))], SkeletonPolicy(), spatial=2)
    with pytest.raises(UserError, match="poses in pixels; set policy: origin: none"):
        MotionBertDataset(store, [0], [0], SkeletonPolicy())
