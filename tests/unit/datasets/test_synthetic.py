"""The synthetic sets: grammar, kinematics, files."""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections import Counter
from itertools import permutations
from pathlib import Path

import av
import decord
import numpy as np
import pytest

from pipeline.datasets import synthetic
from pipeline.datasets.synthetic import grammar, motion, writer
from pipeline.datasets.synthetic.figure import JOINTS, PARENTS, forward_kinematics, make_body
from pipeline.errors import UserError

SMALL = {"frames": (12, 16), "size": 64, "splits": ("val",)}


def _digests(root: Path) -> dict[str, str]:
    files = sorted(p for p in root.rglob("*") if p.is_file())
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("synthetic") / "scene"
    synthetic.generate("scene", root, 1, workers=1, **SMALL)
    return root


# ---------------------------------------------------------------------------------------------------- grammar


@pytest.mark.parametrize("name", synthetic.SETS)
def test_splits_share_no_class(name):
    parts = {split: synthetic.classes(name, split) for split in synthetic.SPLITS}
    labels = [label for part in parts.values() for label in part]
    assert len(labels) == len(set(labels)) == len({grammar.find(name, label).slug for label in labels})
    assert len(parts["train"]) >= 16 and len(parts["val"]) >= 8 and len(parts["test"]) >= 8


def _words(entry: dict) -> set[str]:
    return set(re.findall(r"[a-z]+", json.dumps(entry).lower()))


@pytest.mark.parametrize("name", synthetic.SETS)
def test_words_of_novel_classes_occur_in_base_classes(name):
    entries = synthetic.texts(name)["classes"]
    base = set().union(*(_words(entries[label]) for label in synthetic.classes(name, "train")))
    for split in ("val", "test"):
        for label in synthetic.classes(name, split):
            assert _words(entries[label]) <= base, label
    assert len(base) < 120


@pytest.mark.parametrize("name", synthetic.SETS)
def test_captions_are_known_from_base_classes_or_new_compositions(name):
    """Sentences of `temporal` are all known; the other sets compose new ones, and all differ between
    classes.
    """
    base = {c for label in synthetic.classes(name, "train") for c in synthetic.captions(name, label)}
    novel = {c for label in synthetic.classes(name, "test") for c in synthetic.captions(name, label)}
    assert (novel <= base) == (name == "temporal")
    every = [tuple(synthetic.captions(name, label)) for label in synthetic.actions(name)]
    assert len(every) == len(set(every))


@pytest.mark.parametrize("name", synthetic.SETS)
def test_texts_have_the_form_of_a_corpus(name):
    corpus = synthetic.texts(name)
    assert set(corpus) == {"classes", "provenance"}
    assert list(corpus["classes"]) == list(synthetic.actions(name))
    for label, entry in corpus["classes"].items():
        assert entry["label"] == label
        assert {key: len(value) for key, value in entry["atomic"].items()} == {"1": 1, "2": 2, "3": 3, "4": 4}
        assert entry["atomic"]["3"] == synthetic.captions(name, label)
        assert len(entry["stages"]) == 3 and entry["global"]
        assert list(entry["joints"]) == list(JOINTS)
        thing = synthetic.actions(name)[label].thing
        if thing != "nothing":
            assert all(any(thing in s for s in entry["atomic"][n]) for n in "1234")


def test_joints_move_only_where_the_action_moves_them():
    joints = synthetic.texts("scene")["classes"]["raise red ball with left arm"]["joints"]
    assert joints["left wrist"] == "The left wrist moves up in the middle."
    assert joints["right wrist"] == "The right wrist stays still."
    assert sum("stays still" not in s for s in joints.values()) == 5


@pytest.mark.parametrize("split", synthetic.SPLITS)
def test_temporal_classes_are_all_orders_of_few_triples(split):
    orders = [tuple(label.split(" then ")) for label in synthetic.classes("temporal", split)]
    groups = {frozenset(order) for order in orders}
    assert sorted(orders) == sorted(p for group in groups for p in permutations(group))
    if split != "train":
        assert len(groups) == 2
    others = [label for s in synthetic.SPLITS if s != split for label in synthetic.classes("temporal", s)]
    assert not groups & {frozenset(label.split(" then ")) for label in others}


def test_temporal_order_is_lost_by_averaging_frames():
    mean, ordered = {}, {}
    for label in synthetic.classes("temporal", "test"):
        poses = motion.render_poses(grammar.find("temporal", label).program(), (0, 20, 40, 60))
        mean.setdefault(frozenset(label.split(" then ")), []).append(poses.mean(0))
        ordered.setdefault(frozenset(label.split(" then ")), []).append(poses)
    for group, means in mean.items():
        np.testing.assert_allclose(means, np.broadcast_to(means[0], np.shape(means)), atol=1.5)
        assert min(np.abs(a - b).max() for a, b in zip(ordered[group], ordered[group][1:], strict=False)) > 40


def test_unknown_names_are_explained():
    with pytest.raises(UserError, match="did you mean 'scene'"):
        synthetic.classes("scen", "train")
    with pytest.raises(UserError, match="unknown class"):
        synthetic.captions("scene", "raise red bal with left arm")


# ------------------------------------------------------------------------------------------------- kinematics


@pytest.mark.parametrize("name", synthetic.SETS)
def test_bones_keep_their_length_and_feet_the_floor(name):
    rng = np.random.default_rng(3)
    body = make_body(rng)
    lengths = np.linalg.norm(body.offsets[1:], axis=-1)
    for action in synthetic.actions(name).values():
        poses = motion.render_poses(action.program(), (0, 9, 21, 30), rng)
        joints, turned = forward_kinematics(poses, body)
        bones = np.linalg.norm(joints[:, 1:] - joints[:, PARENTS[1:]], axis=-1)
        np.testing.assert_allclose(bones, np.broadcast_to(lengths, (30, 24)), atol=1e-12)
        np.testing.assert_allclose(
            turned @ np.swapaxes(turned, -1, -2), np.eye(3) * np.ones((30, 25, 1, 1)), atol=1e-12
        )
        jump = poses[:, 1]
        np.testing.assert_allclose(joints[..., 1].min(1), jump, atol=1e-12)


def test_left_and_right_are_those_of_the_figure():
    joints, _ = forward_kinematics(motion.neutral(left_arm_elev=90, right_leg_elev=60)[None], make_body())
    left_hand, right_foot = joints[0, 7], joints[0, 19]
    assert left_hand[0] > 0.7 and right_foot[0] < -0.5  # the figure faces the camera: its left is at the right
    forward, _ = forward_kinematics(motion.neutral(right_arm_elev=90, right_arm_azim=90)[None], make_body())
    assert forward[0, 11, 2] < -0.5


def test_phases_are_uneven_and_never_empty():
    rng = np.random.default_rng(0)
    drawn = np.array([np.diff(motion.draw_boundaries(12, (0.14, 0.72, 0.14), 0.4, rng)) for _ in range(500)])
    assert drawn.min() >= 3 and (drawn.sum(1) == 12).all()
    drawn = np.array([np.diff(motion.draw_boundaries(36, (1, 1, 1), 0.4, rng)) for _ in range(500)])
    assert drawn.std(0).min() > 2


# ------------------------------------------------------------------------------------------------------ files


def test_same_files_for_any_number_of_workers_and_any_splits(small, tmp_path):
    synthetic.generate("scene", tmp_path / "scene", 1, workers=2, **SMALL)
    assert _digests(tmp_path / "scene") == _digests(small)
    request = writer.Request("scene", 5, (12, 16), 64, 12, 0, ("train", "val"), 1.0)
    label = synthetic.classes("scene", "val")[0]
    one = synthetic.read_annotations(small)[0]
    again = writer.draw_clip(request, label, 0)
    np.testing.assert_array_equal(
        synthetic.read_skeleton(small / "skeletons" / f"{one.clip}.skeleton")[:, 0], again.joints
    )
    other = writer.Request("scene", 5, (12, 16), 64, 12, 1, ("val",), 1.0)
    assert writer.plan_clip(other, label, 0).seed != one.seed


def test_tables_agree_with_the_videos(small):
    with (small / "index.csv").open() as file:
        index = list(csv.DictReader(file))
    notes = synthetic.read_annotations(small / "annotations.csv")
    assert list(index[0]) == ["clip", "path", "label", "split"]
    assert [tuple(row.values()) for row in index] == [(n.clip, n.path, n.label, n.split) for n in notes]
    assert Counter(n.label for n in notes) == dict.fromkeys(synthetic.classes("scene", "val"), 1)
    assert json.loads((small / "texts.json").read_text()) == synthetic.texts("scene")
    for note in notes:
        reader = decord.VideoReader(str(small / note.path))
        assert len(reader) == note.frames and reader[note.frames - 1].shape == (64, 64, 3)
        with av.open(str(small / note.path)) as container:
            stream = container.streams.video[0]
            assert stream.codec_context.name == "h264" and stream.codec_context.pix_fmt == "yuv420p"
            assert sum(1 for _ in container.decode(video=0)) == note.frames
        assert synthetic.read_skeleton(small / "skeletons" / f"{note.clip}.skeleton").shape == (
            note.frames,
            1,
            25,
            3,
        )
        assert note.phases.shape == (note.frames,) and set(note.phases) == {0, 1, 2}
        assert (np.diff(note.phases) >= 0).all()


def test_video_shows_what_was_drawn(small):
    note = synthetic.read_annotations(small)[0]
    request = writer.Request("scene", 1, (12, 16), 64, 12, 0, ("val",), 1.0)
    drawn = writer.draw_clip(request, note.label, 0).images.astype(float)
    read = decord.VideoReader(str(small / note.path)).get_batch(range(note.frames)).asnumpy()
    assert np.abs(read - drawn).mean() < 8
    assert np.abs(read[0].astype(float) - read[note.boundaries[1]]).max() > 60


def test_the_same_images_are_the_same_bytes(tmp_path):
    """Of a hundred films, x264 left to itself makes about four others."""
    images = writer.draw_clip(writer.Request("scene", 1, (24, 40), 96, 12, 0, ("train",), 1.0),
                              grammar.classes("scene", "train")[0], 0).images  # fmt: skip
    made = Counter()
    for _ in range(100):
        writer.write_video(tmp_path / "film.mp4", images, 12)
        made[hashlib.sha256((tmp_path / "film.mp4").read_bytes()).hexdigest()] += 1
    assert len(made) == 1


def test_joints_lie_inside_the_image():
    request = writer.Request("fine", 1, (24, 40), 96, 12, 0, ("test",), 1.0)
    for label in synthetic.classes("fine", "test"):
        pixels = writer.draw_clip(request, label, 0).pixels
        assert ((pixels >= 0) & (pixels < 96)).all(-1).mean() > 0.95


def test_nuisance_scales_from_nothing():
    still = writer.Request("temporal", 1, (24, 24), 64, 12, 0, ("test",), 0.0)
    label = synthetic.classes("temporal", "test")[0]
    plans = [writer.plan_clip(still, label, i) for i in range(3)]
    assert len({p.camera for p in plans}) == 1
    with pytest.raises(UserError, match="nuisance"):
        synthetic.generate("temporal", "never", 1, nuisance=-1)


def test_interrupted_call_leaves_no_index_and_is_taken_up(small, tmp_path, monkeypatch):
    root, written = tmp_path / "scene", []
    original = writer.write_video

    def stops(path, images, fps):
        if len(written) == 4:
            raise KeyboardInterrupt
        written.append(path.name)
        original(path, images, fps)

    monkeypatch.setattr(writer, "write_video", stops)
    with pytest.raises(KeyboardInterrupt):
        synthetic.generate("scene", root, 1, workers=1, **SMALL)
    assert not root.exists()
    again = []
    monkeypatch.setattr(writer, "write_video", lambda p, i, f: (again.append(p.name), original(p, i, f)))
    synthetic.generate("scene", root, 1, workers=1, **SMALL)
    assert not set(again) & set(written) and len(again) + len(written) == len(synthetic.classes("scene", "val"))
    assert _digests(root) == _digests(small)
    assert [p.name for p in tmp_path.iterdir()] == ["scene"]
    again.clear()
    (root / "index.csv").unlink()
    synthetic.generate("scene", root, 1, workers=1, **SMALL)
    assert not again and _digests(root) == _digests(small)


def test_other_content_is_never_overwritten(small, tmp_path):
    with pytest.raises(UserError, match="other settings"):
        synthetic.generate("scene", small, 2, workers=1, **SMALL)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="not a synthetic set"):
        synthetic.generate("scene", tmp_path, 1, workers=1, **SMALL)
    assert (tmp_path / "notes.txt").read_text() == "mine"


# -------------------------------------------------------------------------------------------------- skeletons


def test_skeletons_come_back_exactly(tmp_path):
    joints = np.random.default_rng(0).normal(size=(5, 2, 25, 3)) * (1, 1e-7, 1e3)
    joints[2, 1] = 0  # the second body leaves for a frame
    synthetic.write_skeleton(tmp_path / "a.skeleton", joints)
    np.testing.assert_array_equal(synthetic.read_skeleton(tmp_path / "a.skeleton"), joints)
    lines = (tmp_path / "a.skeleton").read_text().splitlines()
    assert lines[0] == "5" and lines[1] == "2" and len(lines[2].split()) == 10 and lines[3] == "25"
    assert all(len(line.split()) == 12 for line in lines[4:29])


def test_bad_skeletons_are_refused(tmp_path):
    path = tmp_path / "a.skeleton"
    synthetic.write_skeleton(path, np.ones((3, 1, 25, 3)))
    text = path.read_text()
    for cut in (0, 5, len(text) // 2, len(text) - 60):
        path.write_text(text[:cut])
        with pytest.raises(UserError, match="truncated or malformed"):
            synthetic.read_skeleton(path)
    path.write_text("2\n0\n0\n")
    with pytest.raises(UserError, match="no frame"):
        synthetic.read_skeleton(path)
    with pytest.raises(UserError, match="cannot read"):
        synthetic.read_skeleton(tmp_path / "absent.skeleton")
    with pytest.raises(UserError, match="shape"):
        synthetic.write_skeleton(path, np.ones((3, 25, 3)))
    with pytest.raises(UserError, match="finite"):
        synthetic.write_skeleton(path, np.full((3, 1, 25, 3), np.nan))
