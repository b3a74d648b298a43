import numpy as np
import pytest

from pipeline.datasets.skeletons.definition import SkeletonPolicy
from pipeline.datasets.skeletons.ntu import Body, Recording, parse_name, read_missing, read_recording
from pipeline.datasets.skeletons.preprocess import (
    RELEASED,
    Pose,
    align,
    assign_actors,
    body_axes,
    denoise,
    motion,
    prepare_clip,
    seen_in,
    show,
)
from pipeline.datasets.synthetic import write_skeleton
from pipeline.errors import UserError
from pipeline.guarded import Unreadable

SAMPLES = ("S001C001P001R001A050", "S001C001P001R001A055", "S001C001P001R001A013")


def write_bodies(path, frames, rows, joints):
    """A .skeleton file with six decimals; rows: (frame, body) of each pose."""
    lines = [str(frames)]
    for frame in range(frames):
        here = np.flatnonzero(rows[:, 0] == frame)
        lines.append(str(len(here)))
        for i in here:
            lines += [f"{rows[i, 1]} 0 1 1 1 1 0 0 0 2", "25"]
            lines += [" ".join(f"{x:.6f}" for x in joint) + " 0 0 0 0 0 0 0 0 2" for joint in joints[i]]
    path.write_text("\r\n".join(lines) + "\r\n")


@pytest.fixture(scope="module")
def recordings(golden, tmp_path_factory):
    data, folder = golden("ntu_preprocess"), tmp_path_factory.mktemp("ntu")
    found = {}
    for i, name in enumerate(SAMPLES):
        source = f"in/synthetic{i}"
        path = folder / f"{name}.skeleton"
        frames = int(data[f"{source}/n_frames_in_file"])
        write_bodies(path, frames, data[f"{source}/frame_and_bodyid"], data[f"{source}/joints"])
        found[name] = read_recording(path)
    return found


# ------------------------------------------------------------------------------- against the released scripts
@pytest.mark.parametrize("name", SAMPLES)
def test_raw_bodies_equal_the_released_scripts(golden, recordings, name):
    data, clip = golden("ntu_preprocess"), recordings[name]
    assert clip.frames == data[f"{name}/raw_num_frames"]
    assert list(clip.dropped) == data[f"{name}/frames_dropped"].tolist()
    for i, body in enumerate(clip.bodies):
        assert int(body.id) == data[f"{name}/raw_body{i}_id"]
        np.testing.assert_array_equal(seen_in(body, "close"), data[f"{name}/raw_body{i}_interval"])
        np.testing.assert_allclose(motion(body.joints), data[f"{name}/raw_body{i}_motion"], rtol=1e-5)
    assert f"{name}/raw_body{len(clip.bodies)}_id" not in data


@pytest.mark.parametrize("name", SAMPLES)
def test_cleaning_equals_the_released_scripts(golden, recordings, name):
    data, clip = golden("ntu_preprocess"), recordings[name]
    where = RELEASED.model_copy(update={"origin": "none"})
    for policy, key in ((where, "denoised_joints"), (RELEASED, "translated")):
        wanted = data[f"{name}/{key}"].reshape(-1, 2, 25, 3).transpose(1, 0, 2, 3)
        np.testing.assert_array_equal(prepare_clip(clip, policy), wanted)
    shown = show(prepare_clip(clip, RELEASED), RELEASED)
    np.testing.assert_allclose(shown.transpose(3, 1, 2, 0), data[f"{name}/aligned_rotated_C_T_V_M"], atol=1e-6)


def test_one_body_is_copied_or_beside_zeros():
    joints = np.random.default_rng(0).standard_normal((1, 9, 25, 3)).astype(np.float32)
    zero, copy = (show(joints, SkeletonPolicy(single=single)) for single in ("zero", "copy"))
    assert zero.shape == copy.shape == (2, 9, 25, 3)
    np.testing.assert_array_equal(zero[0], joints[0])
    assert not zero[1].any() and np.array_equal(copy[1], joints[0])


# ------------------------------------------------------------------------------------------ the right forms
def body(name, frames, seed=0, spread=0.1):
    rng = np.random.default_rng(seed)
    pose = np.stack([np.zeros(25), np.linspace(-1, 1, 25), np.full(25, 2.0)], -1) + rng.normal(0, 0.01, (25, 3))
    frames = np.asarray(frames)
    return Body(name, frames, (pose + rng.normal(0, spread, (len(frames), 1, 3))).astype(np.float32))


def test_a_body_that_returns_stays_in_its_frames():
    away = body("a", [*range(20), *range(30, 50)])
    other = body("b", range(50), 1, spread=0.01)
    clip = Recording(50, (), (away, other))
    kept = prepare_clip(clip, SkeletonPolicy(origin="none"))
    assert kept[0].any((1, 2)).tolist() == [True] * 20 + [False] * 10 + [True] * 20
    closed = prepare_clip(clip, SkeletonPolicy(origin="none", gap="close"))
    assert closed[0].any((1, 2)).tolist() == [True] * 40 + [False] * 10
    np.testing.assert_array_equal(closed[0, :40], kept[0][kept[0].any((1, 2))])


def test_bodies_of_one_person_share_no_frame():
    first, second, third = body("a", range(40)), body("b", range(20, 32), 1), body("c", range(5, 18), 2)
    policy = SkeletonPolicy(denoise="none")
    persons = assign_actors([first, second, third], 40, policy)
    assert persons[1].any((1, 2)).sum() == 12 + 13  # both later bodies are the second person
    hull = assign_actors([first, second, third], 40, policy.model_copy(update={"actors": "hull"}))
    assert hull[1].any((1, 2)).sum() == 12  # which spans from frame 0 to 31 in the released form: the third is lost


def test_short_and_wide_bodies_are_noise():
    good, short = body("good", range(40)), body("short", range(11), 1)
    wide = body("wide", range(40), 2)
    wide = Body("wide", wide.frames, wide.joints[..., [1, 0, 2]])
    policy = SkeletonPolicy()
    assert [b.id for b in denoise([wide, short, good], policy)] == ["good"]
    assert [b.id for b in denoise([short], policy)] == ["short"]
    assert len(denoise([short, body("other", range(5), 3)], policy)) == 2  # nothing else would be left
    assert len(denoise([wide, short, good], SkeletonPolicy(denoise="none"))) == 3


def test_origin_is_the_first_persons_spine():
    pose = np.random.default_rng(0).standard_normal((2, 6, 25, 3)).astype(np.float32)
    pose[0, 0] = pose[1, 3] = 0
    pose[:, 5] = 0  # a frame of nobody
    out = prepare_clip(Pose(pose), SkeletonPolicy())
    assert out.shape == (2, 5, 25, 3)
    np.testing.assert_allclose(out[0, 1, 1], 0, atol=1e-7)
    np.testing.assert_allclose(out[1, 0], pose[1, 0] - pose[0, 1, 1], atol=1e-6)
    assert not out[0, 0].any() and not out[1, 3].any()


def test_confidences_are_no_coordinates():
    pose = np.random.default_rng(0).uniform(0.1, 1, (1, 4, 18, 3)).astype(np.float32)
    pose[0, 2, 7] = 0
    out = prepare_clip(Pose(pose), SkeletonPolicy(), spatial=2)
    np.testing.assert_array_equal(out[..., 2], pose[..., 2])
    assert not out[0, 0, 1, :2].any() and not out[0, 2, 7].any()


def test_alignment_turns_and_does_not_mirror():
    rng = np.random.default_rng(0)
    joints = rng.standard_normal((2, 7, 25, 3)).astype(np.float32)
    joints[1, :3] = 0  # the second person comes later
    axes = (0, 1, 16, 12)
    turned, released = align(joints, axes, "axes"), align(joints, axes, "axes_released")
    assert np.linalg.det(body_axes(joints[0, 0], axes)) == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(turned[0] * [1, -1, 1], released[0], atol=1e-5)
    assert not released[1].any() and turned[1, 3:].any() and not turned[1, :3].any()
    for m, frame in ((0, 0), (1, 3)):
        spine = turned[m, frame, 1] - turned[m, frame, 0]
        hips = turned[m, frame, 12] - turned[m, frame, 16]
        np.testing.assert_allclose(spine[:2], 0, atol=1e-5)
        assert spine[2] > 0 and hips[0] > 0 and hips[1] == pytest.approx(0, abs=1e-5)
        np.testing.assert_allclose(np.linalg.norm(turned[m], axis=-1), np.linalg.norm(joints[m], axis=-1), rtol=1e-4)
    flat = np.ones((1, 4, 25, 3), dtype=np.float32)
    np.testing.assert_array_equal(align(flat, axes, "axes"), flat)


def test_policy_values_are_its_identity():
    policy = SkeletonPolicy()
    assert policy.stored != SkeletonPolicy(gap="close").stored
    assert policy.stored == SkeletonPolicy(single="copy", alignment="axes").stored  # applied on reading
    named = SkeletonPolicy(center="mid", axes=("low", "mid", "r", "l")).numbered(["low", "mid", "r", "l"], "here")
    assert (named.center, named.axes) == (1, (0, 1, 2, 3))
    with pytest.raises(UserError, match=r"unknown joint 'mib' in here; did you mean 'mid'"):
        SkeletonPolicy(center="mib").numbered(["low", "mid"], "here")
    with pytest.raises(UserError, match="no joint 16"):
        SkeletonPolicy(alignment="axes").numbered(["low", "mid"], "here")
    assert SkeletonPolicy().numbered(["low", "mid"], "here").axes == (0, 1, 16, 12)  # not used, not checked
    assert SkeletonPolicy().numbered(["low", "mid"], "here", center=0).center == 0  # another skeleton has its own
    assert SkeletonPolicy(center=1).numbered(["low", "mid"], "here", center=0).center == 1
    with pytest.raises(UserError, match="alignment axes needs axes of this skeleton"):
        SkeletonPolicy(alignment="axes").numbered([str(i) for i in range(20)], "here", center=0)


# --------------------------------------------------------------------------------------------------- files
def test_generated_files_come_back_exactly(tmp_path):
    joints = np.random.default_rng(0).standard_normal((14, 2, 25, 3))
    joints[:4, 1] = 0
    joints[6] = 0
    write_skeleton(tmp_path / "a.skeleton", joints)
    clip = read_recording(tmp_path / "a.skeleton")
    assert clip.frames == 13 and clip.dropped == (6,)
    present = joints.any((1, 2, 3))
    for m, tracked in enumerate(clip.bodies):
        np.testing.assert_array_equal(tracked.joints, joints[joints[:, m].any((1, 2)), m].astype(np.float32))
        np.testing.assert_array_equal(tracked.frames, np.flatnonzero(joints[present, m].any((1, 2))))
    policy = SkeletonPolicy(denoise="none", origin="none")
    persons = prepare_clip(clip, policy)
    order = [0, 1] if np.allclose(persons[0, 0], joints[0, 0]) else [1, 0]
    np.testing.assert_array_equal(persons, joints[present].transpose(1, 0, 2, 3)[order].astype(np.float32))


def test_bad_files_say_why(tmp_path):
    path = tmp_path / "a.skeleton"
    write_skeleton(path, np.random.default_rng(0).standard_normal((3, 1, 25, 3)))
    text = path.read_text()
    for cut in (len(text) // 2, text.rstrip().rfind(" ") - 30, 1):
        path.write_text(text[:cut])
        with pytest.raises(Unreadable, match="truncated or malformed"):
            read_recording(path)
    for wrong, reason in (
        ("2\n0\n0\n", "no body in any of its 2 frames"),
        ("", "truncated or malformed"),
        (text.replace("\n25\n", "\n20\n", 1), "20 joints, the skeleton 25"),
        (text.replace(text.split("\n")[4].split()[1], "nan", 1), "1 poses with numbers that are not finite"),
        (text.replace(text.split("\n")[4].split()[1], "x", 1), "truncated or malformed"),
    ):
        path.write_text(wrong)
        with pytest.raises(Unreadable, match=reason):
            read_recording(path)
    with pytest.raises(Unreadable, match="cannot be read"):
        read_recording(tmp_path / "absent.skeleton")
    with pytest.raises(Unreadable, match="no body"):
        prepare_clip(Pose(np.zeros((1, 3, 25, 3))), SkeletonPolicy())
    with pytest.raises(Unreadable, match="1 frames with non-finite"):
        prepare_clip(Pose(np.where(np.arange(3)[None, :, None, None] == 1, np.nan, np.ones((1, 3, 25, 3)))), RELEASED)


def test_a_body_listed_twice_in_a_frame_counts_once(tmp_path):
    rows = np.array([[0, 7], [0, 7], [1, 7]])
    write_bodies(tmp_path / "a.skeleton", 2, rows, np.arange(3)[:, None, None] + np.ones((3, 25, 3)))
    (tracked,) = read_recording(tmp_path / "a.skeleton").bodies
    assert tracked.frames.tolist() == [0, 1] and tracked.joints[:, 0, 0].tolist() == [1, 3]


def test_names_and_the_list_of_missing_skeletons(tmp_path, reference_data):
    assert parse_name("S018C003P008R001A061") == (18, 3, 8, 1, 61)
    assert parse_name("S18C003P008R001A061") is None and parse_name("S018C003P008R001A061_x") is None
    lists = reference_data / "lists" / "ntu"
    assert len(read_missing(lists / "NTU_RGBD120_samples_with_missing_skeletons.txt")) == 535
    assert len(read_missing(lists / "NTU_RGBD_samples_with_missing_skeletons.txt")) == 302
    (tmp_path / "empty.txt").write_text("nothing")
    with pytest.raises(UserError, match="names no sample"):
        read_missing(tmp_path / "empty.txt")
    with pytest.raises(UserError, match="correct it"):
        read_missing(tmp_path / "absent.txt")
