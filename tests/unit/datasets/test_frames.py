import errno
import json
import os
import pickle
import shutil
import time
import tracemalloc

import av
import cv2
import numpy as np
import pytest
from shard_tasks import run_here

from pipeline import shards
from pipeline.datasets import frames as module
from pipeline.datasets.frames import (
    FramePolicy,
    FrameStore,
    build_frame_store,
    decode_jpeg,
    encode_clip,
    encode_frame,
    probe_clip,
)
from pipeline.datasets.index import Clip, write_index
from pipeline.errors import UserError
from pipeline.guarded import Failure, Unreadable, guarded_map

SIZE = (64, 80)  # height, width of the test videos


def picture(i, shift=0):
    """A smooth frame whose grey tells its number."""
    grey = np.full((*SIZE, 3), 20 + 4 * i, np.uint8)
    grey[:, : SIZE[1] // 2, 0] += 60 + shift
    return grey


def write_video(path, n=20, shift=0, codec="libx264", noise=False, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(shift)
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=25)
        stream.height, stream.width, stream.pix_fmt = *SIZE, "rgb8" if codec == "gif" else "yuv420p"
        for i in range(n):
            frame = rng.integers(0, 255, (*SIZE, 3), np.uint8) if noise else picture(i, shift)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


def write_frames(folder, n=12):
    folder.mkdir(parents=True)
    for i in range(n):
        cv2.imwrite(str(folder / f"img_{i}.png"), picture(i)[..., ::-1])
    return folder


def cut(path, share):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


def data_set(folder, n=70):
    """A data set of n clips that share few videos."""
    for v in range(3):
        write_video(folder / "videos" / f"v{v}.mp4", n=10 + v, shift=v)
    clips = [Clip(f"c{i}", f"v{i % 3}.mp4", f"class{i % 2}", ("train", "test")[i % 2]) for i in range(n)]
    return write_index(folder / "index.csv", clips), folder / "videos"


POLICY = {"size": [32, 40], "frames": 8, "codec": "jpeg", "quality": 95}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    index, root = data_set(folder)
    build_frame_store(index, root, folder / "store", POLICY, workers=2)
    return folder


# ------------------------------------------------------------------------------------------- decoding
@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("a.mp4", "libx264"),
        ("a.mov", "libx264"),
        ("a.mkv", "libx264"),
        ("a.avi", "mpeg4"),
        ("a.webm", "libvpx"),
    ],
)
def test_containers(tmp_path, name, codec):
    path = write_video(tmp_path / name, codec=codec)
    clip = encode_clip(path, FramePolicy.parse({"size": SIZE, "frames": 5, "codec": "raw"}))
    assert clip.source_frames == 20
    assert clip.fps == pytest.approx(25, abs=0.1)
    for data, i in zip(clip.frames, [2, 6, 10, 14, 18], strict=True):
        frame = np.frombuffer(data, np.uint8).reshape(*SIZE, 3).astype(int)
        assert abs(frame[8:-8, 8:32] - picture(i)[8:-8, 8:32]).mean() < 6


def test_gif_and_frame_folder(tmp_path):
    gif = write_video(tmp_path / "a.gif", n=6, codec="gif")
    assert encode_clip(gif, FramePolicy(size=(32, 32), frames=0)).source_frames == 6
    folder = write_frames(tmp_path / "frames")
    clip = encode_clip(folder, FramePolicy(size=SIZE, frames=0, codec="raw"))
    assert clip.source_frames == 12
    frames = [np.frombuffer(data, np.uint8).reshape(*SIZE, 3) for data in clip.frames]
    for i, frame in enumerate(frames):  # natural order: img_2 before img_10
        np.testing.assert_array_equal(frame, picture(i))
    assert probe_clip(folder).frames == 12
    (folder / "img_3.png").write_bytes(b"no picture")
    with pytest.raises(Unreadable, match=r"img_3\.png"):
        encode_clip(folder, FramePolicy(frames=0))


def test_probe(tmp_path):
    probe = probe_clip(write_video(tmp_path / "a.mp4"))
    assert (probe.frames, probe.height, probe.width) == (20, *SIZE)


@pytest.mark.parametrize(
    ("name", "share", "options"),
    [
        ("a.mp4", 0.6, {"movflags": "faststart"}),  # the index is there, frames are missing
        ("a.mp4", 0.6, {}),  # the index, at the end, is missing
        ("a.mkv", 0.5, {}),
    ],
)
def test_a_truncated_video_is_detected(tmp_path, name, share, options):
    path = cut(write_video(tmp_path / name, n=60, noise=True, **options), share)
    for look in (probe_clip, lambda p: encode_clip(p, FramePolicy(size=(32, 32), frames=8))):
        with pytest.raises(Unreadable, match=r"cut short|cannot be decoded"):
            look(path)


def test_other_unreadable_clips(tmp_path):
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("no video at all " * 100)
    (tmp_path / "folder").mkdir()
    reasons = {"empty.mp4": "empty", "text.mp4": "decoded", "none.mp4": "missing", "folder": "no jpg or png"}
    for name, reason in reasons.items():
        with pytest.raises(Unreadable, match=reason):
            probe_clip(tmp_path / name)


# ------------------------------------------------------------------------------------------- workers
def misbehave(job):
    if job == "hang":
        time.sleep(60)
    if job == "crash":
        os._exit(9)
    if job == "bad":
        raise Unreadable("bad clip")
    if job == "bug":
        raise KeyError("bug")
    return job * 2


def test_workers_survive_hanging_and_crashing_decoders():
    jobs = [1, "hang", 2, "crash", 3, "bad", 4]
    results = list(guarded_map(misbehave, jobs, workers=2, timeout=1))
    assert [results[i] for i in (0, 2, 4, 6)] == [2, 4, 6, 8]
    assert "hung" in results[1].reason
    assert "exit code 9" in results[3].reason
    assert results[5] == Failure("bad clip")


def test_a_fault_of_the_program_is_no_bad_clip():
    with pytest.raises(RuntimeError, match="KeyError: 'bug'"):
        list(guarded_map(misbehave, [1, "bug"], workers=1))


# ------------------------------------------------------------------------------------------- the store
def test_store_holds_what_the_index_lists(built):
    store = FrameStore(built / "store", POLICY)
    assert len(store) == 70
    assert store.clips[:2] == ["c0", "c1"]
    assert store.classes() == ["class0", "class1"]
    assert store.classes("test") == ["class1"]
    assert list(store.by_class("train")["class0"][:3]) == [0, 2, 4]
    with pytest.raises(UserError, match="no clip in the split 'val'"):
        store.by_class("val")
    for i in (0, 1, 2, 69):
        assert store.n_frames(i) == 8
        assert store.source_frames(i) == 10 + i % 3
        assert store.fps(i) == pytest.approx(25)
        frames = store.read(i)
        assert frames.shape == (8, 32, 40, 3) and frames.dtype == np.uint8
        n = 10 + i % 3
        for k in range(8):
            wanted = picture((2 * k + 1) * n // 16, i % 3)[0, -1, 0]
            assert abs(int(frames[k, 16, 36, 0]) - int(wanted)) < 8
    np.testing.assert_array_equal(store.read(5, [7, 0, 0]), store.read(5)[[7, 0, 0]])
    with pytest.raises(IndexError, match="has 8 frames"):
        store.read(0, [8])
    assert (built / "store" / "failures.csv").read_text() == "clip,path,reason\n"


def test_store_opens_fast_and_travels(built):
    store = FrameStore(built / "store")
    began = time.process_time()
    again = pickle.loads(pickle.dumps(store))
    assert time.process_time() - began < 0.05
    np.testing.assert_array_equal(again.read(3), store.read(3))
    assert len(pickle.dumps(store)) < 1000


def test_raw_frames_are_exact(tmp_path):
    folder = write_frames(tmp_path / "root" / "clip")
    index = write_index(tmp_path / "index.csv", [Clip("clip", "clip", "x", "train")])
    policy = {"size": list(SIZE), "frames": 0, "codec": "raw"}
    build_frame_store(index, folder.parent, tmp_path / "store", policy)
    frames = FrameStore(tmp_path / "store").read(0, [11, 3])
    np.testing.assert_array_equal(frames, [picture(11), picture(3)])


def test_an_interrupted_build_goes_on(tmp_path, monkeypatch):
    index, root = data_set(tmp_path)
    store = tmp_path / "store"
    build_frame_store(index, root, store, POLICY)
    blobs = sorted(store.glob("shard-*.bin"))
    assert len(blobs) == 3
    wanted = [blob.read_bytes() for blob in blobs]
    decoded = []

    def counting(function, jobs, workers, timeout):
        decoded.extend(jobs)
        return guarded_map(function, jobs, workers, timeout)

    monkeypatch.setattr(module, "guarded_map", counting)
    build_frame_store(index, root, store, POLICY)
    assert decoded == []  # complete: left alone

    (store / "manifest.json").unlink()
    blobs[1].unlink()
    (store / ".shard-00001.bin.7.tmp").write_bytes(b"left by the killed build")
    with pytest.raises(UserError, match="interrupted"):
        FrameStore(store)
    build_frame_store(index, root, store, POLICY)
    assert len(decoded) == 32
    assert [blob.read_bytes() for blob in blobs] == wanted
    assert not list(store.glob(".*"))

    write_index(index, [Clip("c0", "v0.mp4", "class0", "train")])
    build_frame_store(index, root, store, POLICY)  # another index: made anew
    assert FrameStore(store).clips == ["c0"]
    assert len(list(store.glob("shard-*.bin"))) == 1


def copies(tmp_path, n):
    """A folder of `n` videos, three different ones, and their clips."""
    _, videos = data_set(tmp_path)
    root = tmp_path / "copies"
    root.mkdir()
    clips = [Clip(f"c{i}", f"c{i}.mp4", "x", "train") for i in range(n)]
    for i, clip in enumerate(clips):
        shutil.copy(videos / f"v{i % 3}.mp4", root / clip.path)
    return root, clips


def test_a_changed_index_decodes_only_what_is_new(tmp_path, monkeypatch):
    root, clips = copies(tmp_path, 70)
    store, index = tmp_path / "store", tmp_path / "index.csv"
    build_frame_store(write_index(index, clips[5:]), root, store, POLICY)
    decoded, stop = [], [5]

    def counting(function, jobs, workers, timeout):
        for job, result in zip(jobs, guarded_map(function, jobs, workers, timeout), strict=True):
            if len(decoded) == stop[0]:
                raise KeyboardInterrupt
            decoded.append(os.path.basename(job))
            yield result

    monkeypatch.setattr(module, "guarded_map", counting)
    write_video(root / "c40.mp4", n=9, shift=30)  # another video of the same name
    new = [clip for i, clip in enumerate(clips) if i not in (50, 51)]
    write_index(index, new)
    with pytest.raises(KeyboardInterrupt):
        build_frame_store(index, root, store, POLICY)
    assert decoded == ["c0.mp4", "c1.mp4", "c2.mp4", "c3.mp4", "c4.mp4"] and list((store / "kept").iterdir())
    stop[0] = -1
    build_frame_store(index, root, store, POLICY)
    assert decoded[5:] == ["c40.mp4"]
    assert not (store / "kept").exists() and not list(store.glob(".*"))
    monkeypatch.undo()
    build_frame_store(index, root, tmp_path / "fresh", POLICY)
    names = sorted(path.name for path in store.iterdir())
    assert names == sorted(path.name for path in (tmp_path / "fresh").iterdir())
    for name in names:
        if not name.endswith((".json", ".npz")):  # they have times
            assert (store / name).read_bytes() == (tmp_path / "fresh" / name).read_bytes(), name
    ours, fresh = FrameStore(store), FrameStore(tmp_path / "fresh")
    for i in range(len(new)):
        np.testing.assert_array_equal(ours.read(i), fresh.read(i))
        assert (ours.fps(i), ours.source_frames(i)) == (fresh.fps(i), fresh.source_frames(i))


def test_over_nodes_kept_clips_are_copied_here(tmp_path, monkeypatch):
    """Shards with clips that an earlier store had are made by this process, the others by tasks."""
    root, clips = copies(tmp_path, 110)
    store, index = tmp_path / "store", tmp_path / "index.csv"
    build_frame_store(write_index(index, clips[:40]), root, store, POLICY)
    write_index(index, clips)
    sent, decoded = [], []

    def over_nodes(task, portions, nodes, workers, gpus):
        assert not any((store / "kept").iterdir())  # tasks have nothing to copy or to delete
        sent.extend(number for portion in portions for number in pickle.loads(portion))
        decoded.append("tasks")
        return run_here(task, portions, nodes, workers, gpus)

    def counting(function, jobs, workers, timeout):
        decoded.extend(os.path.basename(job) for job in jobs)
        return guarded_map(function, jobs, workers, timeout)

    monkeypatch.setattr(shards, "_over_nodes", over_nodes)
    monkeypatch.setattr(module, "guarded_map", counting)
    build_frame_store(index, root, store, POLICY, nodes=2)
    assert sent == [2, 3] and decoded.index("tasks") == 24  # 64 clips in the first two shards, of which 40 are kept
    assert sorted(decoded) == sorted(["tasks", *(clip.path for clip in clips[40:])])
    monkeypatch.undo()
    build_frame_store(index, root, tmp_path / "fresh", POLICY)
    names = sorted(path.name for path in store.iterdir())
    assert names == sorted(path.name for path in (tmp_path / "fresh").iterdir())
    for name in names:
        if not name.endswith(".json"):  # they have times
            assert (store / name).read_bytes() == (tmp_path / "fresh" / name).read_bytes(), name


def test_another_policy_keeps_nothing(tmp_path):
    index, root = data_set(tmp_path)
    store = tmp_path / "store"
    build_frame_store(index, root, store, POLICY)
    (store / "manifest.json").unlink()
    build_frame_store(index, root, store, {**POLICY, "frames": 4})
    assert not (store / "kept").exists() and FrameStore(store).n_frames(0) == 4


def test_unreadable_clips_are_left_out_and_listed(tmp_path):
    root = tmp_path / "root"
    write_video(root / "good.mp4")
    cut(write_video(root / "short.mp4", n=60, noise=True, movflags="faststart"), 0.5)
    names = ["good", "short", "gone"]
    index = write_index(tmp_path / "index.csv", [Clip(n, f"{n}.mp4", "x", "test") for n in names])
    manifest = json.loads(build_frame_store(index, root, tmp_path / "store", POLICY).read_text())
    assert (manifest["clips"], manifest["failures"], manifest["frames"]) == (1, 2, 8)
    lines = (tmp_path / "store" / "failures.csv").read_text().splitlines()
    assert lines[1].startswith("short,short.mp4,it is cut short")
    assert lines[2] == "gone,gone.mp4,the file is missing"
    store = FrameStore(tmp_path / "store")
    assert store.clips == ["good"]
    assert store.read(0).shape == (8, 32, 40, 3)


def test_stores_that_cannot_be_used(built, tmp_path):
    with pytest.raises(UserError, match="no frame store in"):
        FrameStore(tmp_path)
    other = {**POLICY, "frames": 4}
    with pytest.raises(UserError, match="another folder"):
        FrameStore(built / "store", other)
    with pytest.raises(UserError, match="delete it or name another folder"):
        build_frame_store(built / "index.csv", built / "videos", built / "store", other)
    with pytest.raises(UserError, match="none of the 70 files"):
        build_frame_store(built / "index.csv", tmp_path, tmp_path / "store", POLICY)


def test_a_damaged_blob_is_reported(tmp_path):
    folder = write_frames(tmp_path / "root" / "clip")
    index = write_index(tmp_path / "index.csv", [Clip("clip", "clip", "x", "train")])
    build_frame_store(index, folder.parent, tmp_path / "store", POLICY)
    blob = next((tmp_path / "store").glob("*.bin"))
    cut(blob, 0.5)
    with pytest.raises(UserError, match=f"{blob.name} is damaged"):
        FrameStore(tmp_path / "store").read(0)


def test_a_damaged_frame_is_no_grey_picture(tmp_path):
    """What OpenCV makes of it: the blocks up to the damage, and grey."""
    folder = write_frames(tmp_path / "root" / "clip")
    index = write_index(tmp_path / "index.csv", [Clip("clip", "clip", "x", "train")])
    build_frame_store(index, folder.parent, tmp_path / "store", POLICY)
    blob = next((tmp_path / "store").glob("*.bin"))
    content = bytearray(blob.read_bytes())
    first, end = content.index(b"\xff\xda"), content.index(b"\xff\xd9")  # where its pixels begin and end
    content[(first + end) // 2 : end] = bytes(end - (first + end) // 2)
    assert cv2.imdecode(np.frombuffer(content[: end + 2], np.uint8), cv2.IMREAD_COLOR) is not None
    blob.write_bytes(content)
    with pytest.raises(UserError, match=f"{blob.name} is damaged"):
        FrameStore(tmp_path / "store").read(0)


def test_jpegs_are_read_as_opencv_reads_them():
    picture = cv2.resize(np.random.default_rng(0).integers(0, 256, (9, 12, 3), np.uint8), (61, 47))
    for quality in (30, 75, 95):
        data = encode_frame(FramePolicy((47, 61), quality=quality), picture)
        plain = cv2.cvtColor(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
        assert (decode_jpeg(data) == plain).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": [224]}, "size must be"),
        ({"size": 4}, "size must be"),
        ({"size": 224, "codec": "raw"}, "raw frames have one size"),
        ({"frames": -1}, "frames must be"),
        ({"codec": "jpg"}, "did you mean 'jpeg'"),
        ({"quality": 0}, "quality"),
        ({"qualty": 90}, "did you mean 'quality'"),
    ],
)
def test_wrong_policies(change, message):
    with pytest.raises(UserError, match=message):
        FramePolicy.parse({**POLICY, **change})


@pytest.mark.parametrize("nodes", [1, 2])
def test_a_full_disk_leaves_nothing_half_written(tmp_path, monkeypatch, nodes):
    monkeypatch.setattr(shards, "_over_nodes", run_here)
    index, root = data_set(tmp_path)

    class Full:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def writelines(self, parts):
            self.file.write(parts[0][:10])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(module, "open", lambda *args: Full(open(*args)), raising=False)
    with pytest.raises(UserError, match=r"no space left on the disk of .*store"):
        build_frame_store(index, root, tmp_path / "store", POLICY, nodes=nodes)
    assert [file.name for file in (tmp_path / "store").iterdir()] == ["identity.json"]


def test_memory_does_not_grow_with_the_clips(tmp_path):
    peaks = []
    for n in (8, 60):
        folder = tmp_path / str(n)
        index, root = data_set(folder, n)
        tracemalloc.start()
        policy = {"size": [128, 128], "frames": 8, "codec": "raw"}  # 393 kB a clip
        build_frame_store(index, root, folder / "store", policy)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 2e6  # the 52 more clips hold 20 MB


def test_the_short_side_alone_keeps_the_aspect(tmp_path):
    """A square of the frame is then a square of the video; clips of different aspects stand in one store."""
    for name, (height, width) in {"wide": (48, 96), "high": (90, 40)}.items():
        (tmp_path / "clips" / name).mkdir(parents=True)
        for i in range(3):
            cv2.imwrite(str(tmp_path / "clips" / name / f"{i}.jpg"), np.full((height, width, 3), 40 * i, np.uint8))
    write_index(tmp_path / "index.csv", [Clip(name, name, "a", "train") for name in ("wide", "high")])
    build_frame_store(tmp_path / "index.csv", tmp_path / "clips", tmp_path / "store", {"size": 32, "frames": 0})
    store = FrameStore(tmp_path / "store", {"size": 32, "frames": 0})
    assert [store.read(i).shape for i in (0, 1)] == [(3, 32, 64, 3), (3, 72, 32, 3)]
    assert store.read(1, [2]).shape == (1, 72, 32, 3) and abs(int(store.read(1, [2]).mean()) - 80) < 3
    assert store.manifest["policy"]["size"] == 32
    for wrong, words in (({"size": 4}, "or the short side alone, not 4"), ({"size": True}, "not True"),
                         ({"size": 32, "codec": "raw"}, "raw frames have one size")):  # fmt: skip
        with pytest.raises(UserError, match=words):
            FramePolicy.parse(wrong)
