"""Shards over several nodes: what goes where, without Ray; and on a Ray of this machine, that one process makes the
same."""

from __future__ import annotations

import csv
import errno
import json
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import shard_tasks

from pipeline import shards
from pipeline.datasets.frames import FrameStore
from pipeline.datasets.index import Clip, write_index
from pipeline.datasets.synthetic.writer import write_video
from pipeline.errors import UserError
from pipeline.experiment import Asset
from pipeline.files import write_json
from pipeline.pose.estimator import PoseSettings
from pipeline.pose.extract import extract_poses, find_videos
from pipeline.progress import Bar
from pipeline.shards import PORTIONS, ShardFolder, make_shards
from pipeline.stages import make_frames
from pipeline.workspace import Workspace

POLICY = {"size": [24, 32], "frames": 4, "codec": "jpeg", "quality": 90}


@pytest.fixture
def tasks_here(monkeypatch):
    """Tasks run in this process; the numbers of the shards of each portion."""
    seen = []

    def run(task, portions, nodes, workers, gpus):
        seen.extend(list(pickle.loads(portion)) for portion in portions)
        return (yield from shard_tasks.run_here(task, portions, nodes, workers, gpus))

    monkeypatch.setattr(shards, "_over_nodes", run)
    return seen


@pytest.mark.parametrize("count", [1, 5, 70])
def test_every_shard_is_in_one_portion(tasks_here, tmp_path, count):
    shown = Bar("made", 2 * count, "clips")
    make_shards(partial(shard_tasks.write, folder=tmp_path), shard_tasks.parts(count), shown, 2, 1, [tmp_path])
    assert [number for portion in tasks_here for number in portion] == list(range(count))
    assert len(tasks_here) <= 2 * PORTIONS
    assert max(map(len, tasks_here)) == -(-count // (2 * PORTIONS))
    assert shown.done == 2 * count
    assert all((tmp_path / str(n)).read_text() == f"a{n} b{n}" for n in range(count))


def test_one_node_makes_them_itself_and_counts_clips(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "_over_nodes", lambda *_: pytest.fail("it asked Ray"))
    shown, counts = Bar("made", 4, "clips"), []
    monkeypatch.setattr(Bar, "advance", lambda self, count=1: counts.append(count))
    make_shards(partial(shard_tasks.write, folder=tmp_path), shard_tasks.parts(2), shown)
    assert counts == [1, 1, 1, 1]
    make_shards(partial(shard_tasks.write, folder=tmp_path), {}, shown, 2)


def test_one_node_imports_no_ray(tmp_path, repo):
    code = (
        "import sys, functools, pathlib, shard_tasks\n"
        "import pipeline.datasets.frames, pipeline.pose.extract\n"
        "from pipeline import progress, shards\n"
        "make = functools.partial(shard_tasks.write, folder=pathlib.Path(sys.argv[1]))\n"
        "shards.make_shards(make, shard_tasks.parts(2), progress.Bar('made', 4, 'clips'))\n"
        "print('ray' in sys.modules, 'pandas' in sys.modules)"
    )
    paths = {"PYTHONPATH": os.pathsep.join((str(repo / "src"), str(repo / "tests")))}
    command = [sys.executable, "-c", code, str(tmp_path)]
    said = subprocess.run(command, env={**os.environ, **paths}, stdout=subprocess.PIPE, text=True, check=True).stdout
    assert said.split() == ["False", "False"] and (tmp_path / "1").is_file()


def test_what_goes_wrong_on_a_node_goes_wrong_here(tasks_here, tmp_path):
    shown = Bar("made", 10, "clips")
    with pytest.raises(OSError, match="No space left") as caught:
        make_shards(partial(shard_tasks.full, folder=tmp_path), shard_tasks.parts(5), shown, 2, 1)
    assert caught.value.errno == errno.ENOSPC and "shard_tasks.py" in caught.value.__notes__[0]
    assert shown.done == 4 and not (tmp_path / "3").exists()
    with pytest.raises(UserError) as caught:
        make_shards(partial(shard_tasks.hopeless, folder=tmp_path), shard_tasks.parts(5), shown, 2, 1)
    assert str(caught.value) == "the moon is full; wait"


def test_nodes_must_see_the_same_files(tasks_here, tmp_path, monkeypatch):
    absent, shown = tmp_path / "absent", Bar("made", 4, "clips")
    with pytest.raises(UserError, match=r"absent is not seen on .*; all nodes must share its file system"):
        make_shards(partial(shard_tasks.write, folder=tmp_path), shard_tasks.parts(2), shown, 2, 1, [tmp_path, absent])
    assert not (tmp_path / "log").exists()
    make = partial(shard_tasks.forgetful, folder=tmp_path)
    monkeypatch.setattr(shards, "SEEN_SECONDS", 0.1)
    with pytest.raises(UserError, match=r"absent0, of another node, is not seen here; all nodes must share"):
        make_shards(make, shard_tasks.parts(1), shown, 2, 1)
    monkeypatch.setattr(shards, "SEEN_SECONDS", 30)  # a network file system is late
    late = threading.Timer(0.3, (tmp_path / "absent0").touch)
    late.start()
    make_shards(make, shard_tasks.parts(1), shown, 2, 1)
    late.join()


def test_what_no_node_has_is_an_error_and_no_wait(tmp_path, monkeypatch):
    asked = []

    def lacking(count, need):
        asked.append((count, need))
        raise UserError("no node has that")

    monkeypatch.setattr(shards, "wait_for_tasks", lacking)
    make, shown = partial(shard_tasks.write, folder=tmp_path), Bar("made", 4, "clips")
    with pytest.raises(UserError, match="no node has that"):
        make_shards(make, shard_tasks.parts(2), shown, 4, 64, [tmp_path], gpus=1)
    assert asked == [(2, {"CPU": 64, "GPU": 1})] and not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------------ a Ray on this machine


def _run(ray_here, *command, module=("-m", "pipeline")):
    command = [sys.executable, "-W", "ignore", *module, *map(str, command)]
    done = subprocess.run(command, env=ray_here, capture_output=True, text=True, timeout=300)
    return done.returncode, done.stdout + done.stderr


def _clips(folder, count):
    """Videos of one to three frames."""
    made = []
    for n in range(count):
        rng = np.random.default_rng(n)
        made.append(folder / f"c{n:02}.mp4")
        write_video(made[-1], rng.integers(0, 255, (1 + n % 3, 48, 64, 3), np.uint8), 10)
    return made


def _content(folder):
    """What its files say; of records, and of the manifest, without how long it took."""
    found = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    for name in found:
        if name == "manifest.json" or re.fullmatch(r"shard-\d+\.json", name):
            found[name] = {key: value for key, value in json.loads(found[name]).items() if key != "seconds"}
    return found


@pytest.mark.slow
def test_a_store_is_that_of_one_machine(ray_here, tmp_path):
    ws, plain, videos = Workspace(tmp_path / "two"), Workspace(tmp_path / "one"), tmp_path / "videos"
    videos.mkdir()
    files = _clips(videos, 99)
    (videos / "broken.mp4").write_bytes(b"no video")
    names = [*(file.name for file in files[:50]), "broken.mp4", *(file.name for file in files[50:])]
    asset = Asset(name="own", spec={"kind": "list"}, options={"root": str(videos)})
    write_json(ws.root / "specs" / f"{asset.key}.json", asset.model_dump(mode="json"))
    write_json(ws.root / "specs" / "store.json", POLICY)
    for each in (ws, plain):
        write_index(each.dataset(asset.key) / "index.csv", [Clip(name, name, "x", "train") for name in names])
    one = _content(make_frames(asset, plain, "store", POLICY, 1).parent)

    store = ws.dataset(asset.key) / "store"
    command = ["frames", asset.key, "store", "--results", ws.root, "--nodes", 2]
    status, out = _run(ray_here, *command)
    assert status == 0 and str(store / "manifest.json") in out, out
    said = [line for line in out.splitlines() if not line.startswith("decoding: ")]
    assert len(said) == 1, out  # nothing that Ray Data says of itself
    assert _content(store) == one and "shard-00003.bin" in one
    with (store / "failures.csv").open(newline="") as file:
        (failure,) = csv.DictReader(file)
    assert failure["clip"] == "broken.mp4" and "cannot be decoded" in failure["reason"]
    assert len(FrameStore(store)) == 99 and not list(store.glob(".*"))

    stamps = {path.name: path.stat().st_mtime_ns for path in store.glob("shard-*")}
    (store / "shard-00001.bin").unlink()
    (store / "manifest.json").unlink()
    status, out = _run(ray_here, *command)
    assert status == 0, out
    again = {path.name for path in store.glob("shard-*") if path.stat().st_mtime_ns != stamps[path.name]}
    assert again == {"shard-00001.bin", "shard-00001.json"}
    assert _content(store) == one


@pytest.mark.slow
@pytest.mark.fault
def test_poses_are_those_of_one_machine_also_after_an_interrupt(ray_here, tmp_path, repo, monkeypatch):
    monkeypatch.syspath_prepend(str(repo / "tests/unit/pose"))
    videos = tmp_path / "videos"
    videos.mkdir()
    for n in range(130):  # shards of 32
        frame = np.full((1, 48, 64, 3), 40, np.uint8)
        frame[0, 10:17, n % 40 : n % 40 + 7] = (255, 0, 0)
        write_video(videos / f"c{n:03}.mp4", frame, 10)
    extract_poses(*find_videos(videos), tmp_path / "one", PoseSettings("dots:Dots"))

    out = tmp_path / "two"
    words = ["pose", videos, "--out", out, "--backend", "dots:Dots", "--pictures", 0, "--nodes", 2]
    words += ["--results", tmp_path / "results"]
    command = [sys.executable, "-W", "ignore", "-m", "pipeline", *map(str, words)]
    slow = {**ray_here, "DOTS_SECONDS": "0.2"}  # so that the signal comes before the end
    process = subprocess.Popen(command, env=slow, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        _until(lambda: process.poll() is not None or list(out.glob("shard-*")))
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode not in (0, None), said
    finished = {path: path.stat().st_mtime_ns for path in out.glob("shard-*")}
    assert 1 <= len(finished) < 5 and not (out / "manifest.json").exists(), said

    status, said = _run(ray_here, *words)
    assert status == 0 and "130 clips" in said, said
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in finished.items())
    assert _content(out) == _content(tmp_path / "one")


def _until(found, seconds=300):
    end = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.fault
def test_a_lost_worker_s_portion_is_done_again_but_no_finished_shard(ray_here, tmp_path):
    status, out = _run(ray_here, tmp_path, module=[str(Path(shard_tasks.__file__))])
    assert status == 0 and "\n24\n" in out, out
    assert (tmp_path / "killed").exists()
    made = (tmp_path / "log").read_text().split()
    assert sorted(made, key=int) == [str(n) for n in range(12)]  # each once
    assert all((tmp_path / str(n)).read_text() == f"a{n} b{n}" for n in range(12))


# ------------------------------------------------------------------------------------- folders of shards
def _files(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_store_goes_on_where_it_was_and_starts_anew_for_another_index(tmp_path):
    folder = ShardFolder(tmp_path / "store", {"policy": 1, "index": "a"}, "store")
    assert not folder.complete()
    folder.begin(["shard-*"])
    (folder.path / "shard-0").touch()
    (folder.path / ".shard-1.tmp").touch()
    folder.begin(["shard-*"], keep=lambda before: pytest.fail("it is the same store"))
    assert _files(folder.path) == ["identity.json", "shard-0"]
    write_json(folder.path / "manifest.json", {**folder.identity, "clips": 3})
    assert folder.complete()
    seen, other = [], ShardFolder(folder.path, {"policy": 1, "index": "b"}, "store")
    assert not other.complete()
    other.begin(["shard-*"], keep=lambda before: seen.append((before, _files(folder.path))))
    assert seen == [(folder.identity, ["identity.json", "shard-0"])]
    assert (
        _files(folder.path) == ["identity.json"]
        and json.loads((folder.path / "identity.json").read_text()) == other.identity
    )
    write_json(folder.path / "manifest.json", dict(other.identity))
    with pytest.raises(
        UserError, match="the store .*store was made with the policy 1, not 2; delete it or name another"
    ):
        ShardFolder(folder.path, {"policy": 2, "index": "b"}, "store").complete()


def test_a_folder_of_the_user_is_claimed_and_never_cleared(tmp_path):
    folder = ShardFolder(tmp_path / "out", {"run": "a", "clips": "b"}, "features")
    assert not folder.claim() and not folder.claim()
    write_json(folder.path / "manifest.json", {})
    assert folder.claim()
    for other, said in (
        ({"run": "z", "clips": "b"}, "run"),
        ({"run": "a"}, "clips"),
        ({"run": "a", "clips": "z"}, "clips"),
    ):
        with pytest.raises(
            UserError, match=f"out holds features made with other {said}; name another folder with --out"
        ):
            ShardFolder(folder.path, other, "features").claim()
    assert _files(folder.path) == ["identity.json", "manifest.json"]
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").touch()
    for taken in (tmp_path / "full", tmp_path / "full" / "mine.txt"):
        with pytest.raises(UserError, match="is there and holds no features; name another folder with --out"):
            ShardFolder(taken, {"run": "a"}, "features").claim()
    assert _files(tmp_path / "full") == ["mine.txt"]


def test_a_full_disk_is_said_in_one_line(tmp_path):
    folder = ShardFolder(tmp_path, {}, "store")
    with pytest.raises(UserError, match="no space left on the disk of .*; finished shards are kept"), folder.filling():
        raise OSError(errno.ENOSPC, "full")
    with pytest.raises(PermissionError), folder.filling():
        raise PermissionError
