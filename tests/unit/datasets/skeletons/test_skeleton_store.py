import csv
import os
import pickle

import numpy as np
import pytest

from pipeline.datasets.index import Clip, write_index
from pipeline.datasets.skeletons import bench, store
from pipeline.datasets.skeletons.definition import SkeletonPolicy, SourceSpec
from pipeline.datasets.skeletons.readers import SkeletonFiles, open_source
from pipeline.datasets.skeletons.store import SkeletonStore, build_skeleton_store
from pipeline.datasets.synthetic import write_skeleton
from pipeline.errors import UserError

POLICY = SkeletonPolicy(origin="none")


@pytest.fixture
def files(tmp_path):
    """Eleven good files in three class folders and four that cannot be used."""
    rng = np.random.default_rng(0)
    joints = {}
    for i in range(11):
        path = tmp_path / "raw" / "abc"[i % 3] / f"{i:02d}.skeleton"
        path.parent.mkdir(parents=True, exist_ok=True)
        joints[f"{path.parent.name}/{path.stem}"] = made = rng.standard_normal((12 + i, 1, 25, 3))
        write_skeleton(path, made)
    good = (tmp_path / "raw" / "a" / "00.skeleton").read_text()
    (tmp_path / "raw" / "a" / "empty.skeleton").write_text("2\n0\n0\n")
    (tmp_path / "raw" / "b" / "cut.skeleton").write_text(good[: len(good) // 2])
    (tmp_path / "raw" / "b" / "kinect1.skeleton").write_text(good.replace("\n25\n", "\n20\n"))
    (tmp_path / "raw" / "c" / "nan.skeleton").write_text(good.replace(good.split("\n")[4].split()[0], "nan", 1))
    return tmp_path / "raw", joints


@pytest.fixture
def ready(files, tmp_path):
    """(index, source) of the files."""
    source = open_source(SourceSpec(format="files", root=str(files[0])))
    clips = [Clip(item.clip, item.path, item.label, "train") for item in source.items]
    return write_index(tmp_path / "index.csv", clips), source


class Counting:
    """A source that counts its readings and stops at one of them."""

    def __init__(self, source, stop=None):
        self.source, self.stop, self.reads, self.parallel = source, stop, [], False

    def __getattr__(self, name):
        return getattr(self.source, name)

    def read(self, path):
        if len(self.reads) == self.stop:
            raise KeyboardInterrupt
        self.reads.append(path)
        return self.source.read(path)


class Dying(SkeletonFiles):
    """Ends its process, as the system does when memory runs out."""

    def read(self, path):
        os._exit(9)


def test_clips_come_back_exactly(files, ready, tmp_path):
    done = []
    build_skeleton_store(*ready, tmp_path / "store", POLICY, progress=lambda *report: done.append(report))
    made = SkeletonStore(tmp_path / "store", POLICY)
    assert len(made) == 11 and done[-1] == (15, 15) and made.classes() == made.classes("train") == ["a", "b", "c"]
    for i, clip in enumerate(made.clips):
        read = made.read(i)
        np.testing.assert_array_equal(read, files[1][clip].transpose(1, 0, 2, 3).astype(np.float32))
        assert (made.persons(i), made.frames(i)) == read.shape[:2] and made.labels[i] == clip[0]
        read[:] = 0  # an array of its own
    assert made.read(0).any()
    assert made.skipped == {
        "a/empty": "no body in any of its 2 frames",
        "b/cut": "truncated or malformed",
        "b/kinect1": "a body has 20 joints, the skeleton 25",
        "c/nan": "1 poses with numbers that are not finite",
    }
    assert sorted(p.name for p in (tmp_path / "store").iterdir()) == sorted(
        ["joints.bin", "table.npz", "index.csv", "skipped.csv", "manifest.json", "identity.json"]
    )
    again = pickle.loads(pickle.dumps(made))
    np.testing.assert_array_equal(again.read(3), made.read(3))


def test_processes_and_shards_change_nothing(ready, tmp_path, monkeypatch):
    build_skeleton_store(*ready, tmp_path / "one", POLICY)
    for folder, shard, workers in (("two", 4, 2), ("three", 1, 1)):
        monkeypatch.setattr(store, "SHARD", shard)
        build_skeleton_store(*ready, tmp_path / folder, POLICY, workers=workers)
        for name in ("joints.bin", "index.csv", "skipped.csv"):
            assert (tmp_path / "one" / name).read_bytes() == (tmp_path / folder / name).read_bytes()
        assert not list((tmp_path / folder).glob("shard-*"))


def test_a_worker_that_dies_is_reported(ready, tmp_path, monkeypatch):
    index, source = ready
    monkeypatch.setattr(store, "SHARD", 8)
    with pytest.raises(UserError, match="was ended .*run again with fewer workers"):
        build_skeleton_store(index, Dying(source.spec), tmp_path / "store", POLICY, workers=2)
    build_skeleton_store(index, source, tmp_path / "store", POLICY)
    assert len(SkeletonStore(tmp_path / "store")) == 11


def test_half_precision(ready, tmp_path):
    build_skeleton_store(*ready, tmp_path / "one", POLICY)
    half = POLICY.model_copy(update={"dtype": "float16"})
    build_skeleton_store(*ready, tmp_path / "half", half)
    one, two = SkeletonStore(tmp_path / "one"), SkeletonStore(tmp_path / "half")
    assert two.manifest["bytes"] * 2 == one.manifest["bytes"] and two.read(2).dtype == np.float32
    np.testing.assert_allclose(two.read(2), one.read(2), atol=2e-3)


@pytest.mark.parametrize("stop", [0, 5, 9])
def test_an_interrupted_build_goes_on(ready, tmp_path, monkeypatch, stop):
    index, source = ready
    monkeypatch.setattr(store, "SHARD", 3)
    build_skeleton_store(index, source, tmp_path / "whole", POLICY)
    folder = tmp_path / "store"
    with pytest.raises(KeyboardInterrupt):
        build_skeleton_store(index, Counting(source, stop), folder, POLICY)
    with pytest.raises(UserError, match="incomplete: its build was interrupted; run the build again"):
        SkeletonStore(folder)
    if stop:
        with open(folder / "joints.part", "ab") as part:
            part.write(b"half a shard")  # killed while appending
    (folder / ".shard-00004.bin.1.tmp").write_bytes(b"left over")
    counting = Counting(source)
    build_skeleton_store(index, counting, folder, POLICY)
    assert len(counting.reads) == 15 - stop // 3 * 3
    for name in ("joints.bin", "index.csv", "skipped.csv"):
        assert (folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    counting.reads.clear()
    build_skeleton_store(index, counting, folder, POLICY)  # complete: left alone
    assert not counting.reads


def test_interrupted_at_the_very_end(ready, tmp_path, monkeypatch):
    index, source = ready
    written = store.write_text

    def stop(path, text):
        if path.name == "manifest.json":
            raise KeyboardInterrupt
        return written(path, text)

    monkeypatch.setattr(store, "write_text", stop)
    with pytest.raises(KeyboardInterrupt):
        build_skeleton_store(index, source, tmp_path / "store", POLICY)
    monkeypatch.setattr(store, "write_text", written)
    counting = Counting(source)
    build_skeleton_store(index, counting, tmp_path / "store", POLICY)
    assert not counting.reads and len(SkeletonStore(tmp_path / "store")) == 11


def test_shards_out_of_order_are_kept(ready, tmp_path, monkeypatch):
    """What another process finished early is used, though it could not be appended yet."""
    index, source = ready
    monkeypatch.setattr(store, "SHARD", 3)
    build_skeleton_store(index, source, tmp_path / "whole", POLICY)
    with pytest.raises(KeyboardInterrupt):
        build_skeleton_store(index, Counting(source, 3), tmp_path / "store", POLICY)
    paths = [item.path for item in source.items]
    store._write_shard(source, tmp_path / "store", POLICY, 2, paths[6:9])
    counting = Counting(source)
    build_skeleton_store(index, counting, tmp_path / "store", POLICY)
    assert not set(paths[6:9]) & set(counting.reads) and len(counting.reads) == 9
    assert (tmp_path / "store" / "joints.bin").read_bytes() == (tmp_path / "whole" / "joints.bin").read_bytes()


def test_errors_of_a_store(ready, tmp_path):
    index, source = ready
    folder = tmp_path / "store"
    with pytest.raises(UserError, match="no skeleton store in"):
        SkeletonStore(folder)
    build_skeleton_store(index, source, folder, POLICY)
    with pytest.raises(UserError, match="delete it or name another folder"):
        build_skeleton_store(index, source, folder, SkeletonPolicy(gap="close"))
    with pytest.raises(UserError, match="was made with the policy"):
        SkeletonStore(folder, SkeletonPolicy(gap="close"))
    SkeletonStore(folder, POLICY.model_copy(update={"single": "copy"}))  # applied on reading
    with open(folder / "joints.bin", "ab") as file:
        file.write(b"1")
    with pytest.raises(UserError, match=r"joints\.bin is damaged"):
        SkeletonStore(folder)
    bad = [
        Clip(row.stem, f"{row.parent.name}/{row.name}", "x", "train") for row in source.root.glob("*/empty.skeleton")
    ]
    write_index(tmp_path / "bad.csv", bad)
    with pytest.raises(
        UserError, match=r"none of the 1 skeleton clips can be used; the first, a/empty.skeleton: no body"
    ):
        build_skeleton_store(tmp_path / "bad.csv", source, tmp_path / "none", POLICY)
    with open(tmp_path / "none" / "skipped.csv") as file:
        assert next(csv.DictReader(file))["reason"] == "no body in any of its 2 frames"


def test_benchmark(tmp_path):
    bench.write_samples(tmp_path / "files", 6)
    speed = bench.measure(tmp_path / "files")
    assert speed.files == 6 and speed.build_rate > 0
    assert "114,480 files" in str(speed) and "files/s" in str(speed)
