import csv
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from dots import OFFSETS
from typer.testing import CliRunner

from pipeline.cli.options import app
from pipeline.datasets.index import read_index
from pipeline.datasets.skeletons.definition import SkeletonDefinition
from pipeline.datasets.skeletons.pose_folder import clip_of, read_shard, read_table
from pipeline.datasets.skeletons.prepare import make_skeleton_store, prepare_skeletons
from pipeline.datasets.skeletons.readers import open_source
from pipeline.datasets.skeletons.store import SkeletonStore
from pipeline.datasets.synthetic.writer import write_video
from pipeline.errors import UserError
from pipeline.experiment import Asset
from pipeline.pose import extract
from pipeline.pose.estimator import PoseSettings, open_estimator
from pipeline.pose.extract import extract_poses, find_videos
from pipeline.pose.picture import write_picture
from pipeline.stages import make_frames, make_poses, make_splits
from pipeline.workspace import Workspace

SETTINGS = PoseSettings("dots:Dots")
FRAMES = 6


def dot(at, size=(64, 96)):
    """A frame with a red dot whose middle is at (x, y), or without one."""
    image = np.full((*size, 3), 40, dtype=np.uint8)
    if at is not None:
        image[at[1] - 3 : at[1] + 4, at[0] - 3 : at[0] + 4] = (255, 0, 0)
    return image


def film(path, places):
    path.parent.mkdir(parents=True, exist_ok=True)
    write_video(path, np.stack([dot(at) for at in places]), 10)


@pytest.fixture
def videos(tmp_path):
    """Three classes of three clips (a dot at x = 20, 30, 40 that moves down), a broken file and an empty scene."""
    root = tmp_path / "videos"
    for label in ("wave", "jump", "sit"):
        for i in range(3):
            film(root / label / f"c{i}.mp4", [(20 + 10 * i, 20 + 2 * t) for t in range(FRAMES)])
    (root / "jump" / "broken.mp4").write_bytes(b"no video")
    film(root / "wave" / "empty.mp4", [None] * FRAMES)
    return root


def run(root, out, settings=SETTINGS, **more):
    return json.loads(extract_poses(*find_videos(root), out, settings, **more).read_text())


def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_poses_of_a_folder(videos, tmp_path):
    out = tmp_path / "poses"
    made = run(videos, out, workers=2)
    assert (made["clips"], made["failures"], made["all_frames"], made["frames_with_person"]) == (9, 2, 54, 54)
    assert made["joints"] == 17 and made["models"] == {"dots": "1"} and "device" not in made
    reasons = {row["clip"]: row["reason"] for row in rows(out / "failures.csv")}
    assert reasons["wave/empty"] == "nobody is found in any of its 6 frames"
    assert "cannot be decoded" in reasons["jump/broken"]
    _, table = read_table(out)
    assert [row["clip"] for row in table] == [f"{label}/c{i}" for label in ("jump", "sit", "wave") for i in range(3)]
    row = table[7]
    assert (row["persons"], row["frames"], row["seen"], row["height"], row["width"], row["fps"]) == (
        "1", "6", "6", "64", "96", "10.0",
    )  # fmt: skip
    clip = clip_of(read_shard(out / row["shard"]), int(row["place"]))
    assert clip.joints.shape == (1, FRAMES, 17, 3) and clip.size == (64, 96)
    truth = np.array([(30, 20 + 2 * t) for t in range(FRAMES)])[:, None] + OFFSETS
    np.testing.assert_allclose(clip.joints[0, ..., :2], truth, atol=1)  # the video is compressed
    assert (clip.joints[..., 2] == 0.5).all()


def test_frames_without_a_person_and_fewer_frames(tmp_path):
    film(tmp_path / "v" / "a.mp4", [(20, 20), None, None, (20, 20)] * 4)
    run(tmp_path / "v", tmp_path / "all")
    clip = clip_of(read_shard(tmp_path / "all" / "shard-00000.npz"), 0)
    assert clip.joints.any(axis=(0, 2, 3)).tolist() == [True, False, False, True] * 4
    made = run(tmp_path / "v", tmp_path / "some", PoseSettings("dots:Dots", frames=8))  # 1, 3, 5, ...
    assert (made["all_frames"], made["frames_with_person"]) == (8, 4)


def test_an_interrupted_extraction_is_continued(videos, tmp_path, monkeypatch):
    monkeypatch.setattr(extract, "SHARD", 3)
    whole, out = tmp_path / "whole", tmp_path / "poses"
    run(videos, whole)
    real, written = extract.write_bytes, []

    def stopping(path, data):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(path)
        return real(path, data)

    monkeypatch.setattr(extract, "write_bytes", stopping)
    with pytest.raises(KeyboardInterrupt):
        run(videos, out)
    with pytest.raises(UserError, match="holds no finished poses"):
        read_table(out)
    assert sorted(path.name for path in out.iterdir()) == ["identity.json", "shard-00000.npz", "shard-00001.npz"]
    stamps = {path: path.stat().st_mtime_ns for path in written}
    (out / "shard-00001.npz").write_bytes(b"damaged")
    monkeypatch.setattr(extract, "write_bytes", real)
    run(videos, out, workers=2)
    assert written[0].stat().st_mtime_ns == stamps[written[0]]
    for name in ("poses.csv", "failures.csv", "manifest.json"):
        assert (out / name).read_text() == (whole / name).read_text()
    for shard in sorted(whole.glob("shard-*")):
        one, other = read_shard(shard), read_shard(out / shard.name)
        assert all(np.array_equal(one[key], other[key]) for key in one)


def test_a_finished_folder_is_left_alone(videos, tmp_path, monkeypatch):
    out = tmp_path / "poses"
    before = run(videos, out)
    monkeypatch.setattr(extract, "guarded_map", lambda *args: pytest.fail("extracted again"))
    assert run(videos, out) == before
    for settings, what in (
        (PoseSettings("dots:Dots", layout="openpose18"), "layout"),
        (PoseSettings("dots:Dots", models="2"), "models"),
    ):
        with pytest.raises(UserError, match=f"made with other {what}; name another folder"):
            run(videos, out, settings)
    film(videos / "wave" / "new.mp4", [(20, 20)] * FRAMES)
    with pytest.raises(UserError, match="made with other videos"):
        run(videos, out)
    with pytest.raises(UserError, match="is there and holds no poses"):
        run(videos, videos)


def test_what_makes_no_poses(videos, tmp_path):
    with pytest.raises(UserError, match="unknown pose backend 'rtmpos'; did you mean 'rtmpose'"):
        open_estimator("rtmpos")
    with pytest.raises(UserError, match="cannot be imported.*package.module:Class"):
        open_estimator("dots:Absent")
    with pytest.raises(UserError, match="layout coco17 needs nose"):
        run(videos, tmp_path / "a", PoseSettings("dots:Headless"))
    film(tmp_path / "empty" / "a.mp4", [None] * 3)
    with pytest.raises(UserError, match="none of the 1 videos has poses; the first, a.mp4: nobody is found"):
        run(tmp_path / "empty", tmp_path / "b")


def test_a_fault_of_the_estimator_is_no_fault_of_the_video(tmp_path):
    (tmp_path / "v").mkdir()
    write_video(tmp_path / "v" / "white.mp4", np.full((3, 64, 64, 3), 255, dtype=np.uint8), 10)
    with pytest.raises(RuntimeError, match="ValueError: a white frame"):
        run(tmp_path / "v", tmp_path / "out")
    assert not list((tmp_path / "out").glob("shard-*"))


def test_lists_of_videos(videos, tmp_path):
    table = videos / "list.csv"
    table.write_text("path,label,split\nwave/c0.mp4,Waving,train\njump/c1.mp4,,\n")
    root, found = find_videos(table)
    assert root == videos
    assert [(v.clip, v.label, v.split) for v in found] == [("wave/c0", "Waving", "train"), ("jump/c1", "", "")]
    other = tmp_path / "index.csv"
    other.write_text("clip,path,label,split\none,c0.mp4,wave,train\n")
    root, (video,) = find_videos(other, videos / "wave")
    assert root == videos / "wave" and video.clip == "one"
    assert find_videos(videos / "wave")[1][0].path == "c0.mp4"
    for text, message in (
        ("file\na.mp4\n", "needs rows with the column path"),
        ("path\n", "needs rows"),
        ("clip,path\na,b.mp4\na,c.mp4\n", "lists a clip twice"),
    ):
        table.write_text(text)
        with pytest.raises(UserError, match=message):
            find_videos(table)
    with pytest.raises(UserError, match="there is no .*absent"):
        find_videos(tmp_path / "absent")
    (tmp_path / "nothing").mkdir()
    with pytest.raises(UserError, match="holds no video"):
        find_videos(tmp_path / "nothing")


def test_clips_that_differ_in_their_suffix_alone(tmp_path):
    for name in ("a.mp4", "a.avi"):
        film(tmp_path / "v" / f"{name}.mp4", [(20, 20)])
        os.replace(tmp_path / "v" / f"{name}.mp4", tmp_path / "v" / name)
    assert [video.clip for video in find_videos(tmp_path / "v")[1]] == ["a.avi", "a.mp4"]


# -------------------------------------------------------------------------------------- as a skeleton data set
def test_a_skeleton_data_set_of_poses(videos, tmp_path):
    run(videos, tmp_path / "poses")
    spec = {
        "kind": "skeletons", "format": "poses", "root": str(tmp_path / "poses"), "graph": "coco17",
        "protocol": {"novel": ["jump", "sit"], "exemplars": "first"}, "policy": {"origin": "none"},
    }  # fmt: skip
    definition = SkeletonDefinition.read(spec, "here")
    folder = tmp_path / "set"
    prepare_skeletons(definition, folder)
    assert {row["path"] for row in rows(folder / "unreadable.csv")} == {"jump/broken.mp4", "wave/empty.mp4"}
    make_skeleton_store(definition, folder, folder / "store")
    store = SkeletonStore(folder / "store")
    assert sorted(zip(store.labels, store.clips, strict=True)) == [
        (label, f"{label}/c{i}") for label in ("jump", "sit", "wave") for i in range(3)
    ]
    assert (store.joints, store.channels, store.spatial) == (17, 3, 2)
    number = store.clips.index("wave/c2")
    assert store.size(number) == (64, 96) and store.read(number).shape == (1, FRAMES, 17, 3)
    np.testing.assert_allclose(store.read(number)[0, 0, :, :2], OFFSETS + np.array((40, 20)), atol=1)
    for graph, message in (("h36m17", "are coco17, not h36m17; set graph: coco17"), ("ntu25", r"17 joints \(coco17\)")):
        with pytest.raises(UserError, match=message):
            prepare_skeletons(SkeletonDefinition.read(spec | {"graph": graph}, "here"), folder)


def test_classes_of_poses(videos, tmp_path):
    table = videos / "list.csv"
    table.write_text("path,label,split\nwave/c0.mp4,Waving,train\njump/c1.mp4,,\nwave/empty.mp4,Waving,\n")
    run(table, tmp_path / "poses")
    spec = {"format": "poses", "root": str(tmp_path / "poses"), "joints": 17}
    source = open_source(spec)
    assert [(item.clip, item.label, item.subset) for item in source.items] == [("wave/c0", "Waving", "train")]
    assert source.missing == [("wave/empty.mp4", "nobody is found in any of its 6 frames"), ("jump/c1.mp4", "no label")]
    found = open_source(spec | {"pattern": r"c(?P<label>\d)"})
    assert [(item.clip, item.label) for item in found.items] == [("c0", "0"), ("c1", "1")]
    with pytest.raises(UserError, match="holds no finished poses"):
        open_source(spec | {"root": str(videos)})


def test_poses_in_lengths_of_the_image(videos, tmp_path):
    """The middle is the origin, up is positive, and proportions stay; what is not seen stays at the origin."""
    run(videos, tmp_path / "poses")
    spec = {"format": "poses", "root": str(tmp_path / "poses"), "joints": 17}
    source, plain = open_source(spec | {"unit": "image"}), open_source(spec)
    (item,) = (item for item in source.items if item.clip == "wave/c2")
    there, pixels = source.read(item.path), plain.read(item.path)
    assert there.size == (64, 96)
    seen = pixels.joints[..., 2] > 0
    x, y = ((pixels.joints[..., 0] - 48) / 96)[seen], ((32 - pixels.joints[..., 1]) / 96)[seen]
    np.testing.assert_allclose(there.joints[seen][:, :2], np.stack((x, y), -1), atol=1e-6)
    assert not there.joints[~seen].any() and np.array_equal(there.joints[..., 2], pixels.joints[..., 2])


def test_poses_as_a_stage_of_the_workflow(videos, tmp_path):
    """From `videos:` of a definition to the store, by the functions that the workflow calls."""
    ws = Workspace(tmp_path / "results")
    spec = {
        "kind": "skeletons", "format": "poses", "graph": "openpose18", "pose": {"backend": "dots:Dots", "frames": 4},
        "protocol": {"novel": ["jump", "sit"], "exemplars": "first"},
        "policy": {"center": "neck"},
    }  # fmt: skip
    asset = Asset(name="own", spec=spec, options={"videos": str(videos)})
    ws.dataset(asset.key).mkdir(parents=True)
    table = make_poses(asset, ws, 1)
    assert table == ws.dataset(asset.key) / "poses" / "poses.csv" and (table.parent / "preview.png").is_file()
    table.unlink()  # as Snakemake does before it makes a file again
    shard = table.with_name("shard-00000.npz").stat().st_mtime_ns
    assert make_poses(asset, ws, 1).is_file() and table.with_name("shard-00000.npz").stat().st_mtime_ns == shard
    assert {clip.label for clip in read_index(make_splits(asset, ws, 1))} == {"wave", "jump", "sit"}
    store = SkeletonStore(make_frames(asset, ws, "store", {}, 1).parent)
    assert len(store) == 9 and (store.joints, store.frames(0)) == (18, 4)
    assert not store.read(0)[0, 0, 1, :2].any()  # the neck of the first frame is the origin
    for change, message in (
        (
            {"pose": {"backned": "rtmpose"}},
            "unknown key 'backned' in data set own .given on.* .pose.backned.; did you mean 'backend'",
        ),
        ({"graph": {"names": ["a"], "parents": {"a": None}}}, "poses need a built-in graph"),
        ({"format": "ntu"}, "format poses, with the key videos"),
    ):
        with pytest.raises(UserError, match=message):
            make_poses(asset.model_copy(update={"spec": spec | change}), ws, 1)


def test_the_documented_data_set(videos, tmp_path, repo):
    text = (repo / "docs" / "pose.md").read_text()
    for block in re.findall(r"^```yaml\n(.*?)^```$", text, re.M | re.S):
        ((_, spec),) = yaml.safe_load(block)["datasets"].items()
        run(videos, tmp_path / "poses", PoseSettings("dots:Dots", layout=spec["graph"]))
        definition = SkeletonDefinition.read(spec | {"root": str(tmp_path / "poses")}, "docs/pose.md")
        index = prepare_skeletons(
            definition.model_copy(
                update={"protocol": definition.protocol.model_copy(update={"novel": ["jump", "sit"]})}
            ), tmp_path / "set",
        )  # fmt: skip
        assert len(read_index(index)) == 9


# ------------------------------------------------------------------------------------------------ the command
def test_command(videos, tmp_path):
    out = tmp_path / "poses"
    arguments = ["pose", str(videos), "--out", str(out), "--backend", "dots:Dots", "--layout", "ntu25"]
    said = CliRunner().invoke(app, arguments, catch_exceptions=False).output
    assert "9 clips, 2 left out (failures.csv); somebody is found in 100.0 % of their 54 frames" in said
    assert (out / "preview.png").read_bytes().startswith(b"\x89PNG")
    assert clip_of(read_shard(out / "shard-00000.npz"), 1).joints.shape == (1, FRAMES, 25, 3)


@pytest.mark.parametrize("frames", [0, 4])
def test_the_picture_shows_the_frames_of_its_poses(tmp_path, monkeypatch, frames):
    film(tmp_path / "v" / "a.mp4", [(20 + 4 * t, 30) for t in range(12)])
    run(tmp_path / "v", tmp_path / "poses", PoseSettings("dots:Dots", frames=frames))
    shown = []

    def see(axis, frame, poses, place, parents):
        red = np.argwhere((frame[..., 0] > 150) & (frame[..., 1] < 100)).mean(axis=0)
        shown.append((red[1], (poses.joints[0, place, :, 0] - OFFSETS[:, 0]).mean()))

    monkeypatch.setattr("pipeline.pose.picture._draw", see)
    assert write_picture(tmp_path / "poses", tmp_path / "v").is_file()
    assert len(shown) == (frames or 8)
    np.testing.assert_allclose(*np.transpose(shown), atol=0.1)


def test_packages_that_are_missing_are_named(monkeypatch):
    import builtins

    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.split(".")[0] in ("ai_edge_litert", "rtmlib", "onnxruntime"):
            raise ImportError(f"No module named {name!r}")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    for backend in ("blazepose", "rtmpose"):
        with pytest.raises(UserError, match=r"is not installed.*requirements-pose.txt"):
            open_estimator.__wrapped__(backend)
    assert Path(__file__).parents[3].joinpath("requirements-pose.txt").is_file()
