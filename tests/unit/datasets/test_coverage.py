"""What is there of a data set: counted from its lists, kept beside its store, and too little of it is an error."""

from __future__ import annotations

import csv
import json
import os

import cv2
import numpy as np
import pytest
from skeleton_set import make_skeleton_set

from pipeline.datasets import frames
from pipeline.datasets.coverage import Audit, present_clips, read_coverage
from pipeline.datasets.frames import FrameStore
from pipeline.datasets.index import Clip, write_index
from pipeline.datasets.skeletons.definition import SkeletonPolicy
from pipeline.datasets.skeletons.readers import open_source
from pipeline.datasets.skeletons.store import SkeletonStore, build_skeleton_store
from pipeline.errors import UserError
from pipeline.experiment import Asset
from pipeline.plan import Plan
from pipeline.stages import make_frames, make_splits
from pipeline.workspace import Workspace

POLICY = {"size": [16, 16], "frames": 2}
SIZES = {"train": 5, "test": 10}  # clips of each of two classes


def write_clip(folder):
    folder.mkdir(parents=True)
    noise = np.random.default_rng(list(str(folder).encode()))  # no two are the same file
    cv2.imwrite(str(folder / "0.png"), noise.integers(0, 255, (20, 24, 3), np.uint8))


def paths(split):
    return [f"{split}_{label}/{n}" for label in (0, 1) for n in range(SIZES[split])]


@pytest.fixture
def listed(tmp_path):
    """`listed(minimum)` is a data set of 10 training and 20 test clips, with all of its files."""
    (tmp_path / "lists").mkdir()
    for split in SIZES:
        lines = [f"{split}{path.split('/')[0][-1]}//{path}" for path in paths(split)]
        (tmp_path / "lists" / f"{split}_few_shot.txt").write_text("\n".join(lines))
        for path in paths(split):
            write_clip(tmp_path / "videos" / path)
    options = {"root": str(tmp_path / "videos"), "lists": str(tmp_path / "lists")}
    return lambda minimum: Asset(name="tube", spec={"kind": "list"}, options=options | {"min_coverage": minimum})


def lose(tmp_path, path):
    (tmp_path / "videos" / path / "0.png").unlink()
    (tmp_path / "videos" / path).rmdir()


def damage(tmp_path, path):
    (tmp_path / "videos" / path / "0.png").write_bytes(b"no picture")


def prepare(asset, tmp_path):
    ws = Workspace(tmp_path / "results")
    make_splits(asset, ws, 1)
    return make_frames(asset, ws, "store", POLICY, 1).parent


def rows(store):
    with (store / "coverage.csv").open(newline="") as file:
        return {row["clip"]: row for row in csv.DictReader(file)}


def test_a_whole_set(listed, tmp_path):
    store = prepare(listed(1.0), tmp_path)
    assert read_coverage(store) == {"train": 1.0, "test": 1.0} and present_clips(store) == ""
    assert {row["present"] for row in rows(store).values()} == {"yes"} and len(rows(store)) == 30


def test_missing_and_damaged_clips_are_counted_with_their_reasons(listed, tmp_path):
    lose(tmp_path, "test_0/3")
    damage(tmp_path, "test_1/0")
    damage(tmp_path, "train_0/4")
    store = prepare(listed(0.9), tmp_path)
    assert read_coverage(store) == {"train": 0.9, "test": 0.9}
    counts = json.loads((store / "manifest.json").read_text())["coverage"]
    assert counts == {"train": {"listed": 10, "present": 9}, "test": {"listed": 20, "present": 18}}
    absent = {clip: row for clip, row in rows(store).items() if row["present"] == "no"}
    assert {clip: row["reason"] for clip, row in absent.items()} == {
        "test_0/3": "the file is missing",
        "test_1/0": "frame 0.png cannot be decoded",
        "train_0/4": "frame 0.png cannot be decoded",
    }
    assert (absent["test_0/3"]["split"], absent["test_0/3"]["label"]) == ("test", "test 0")
    assert set(FrameStore(store).clips) == set(rows(store)) - set(absent)
    first = present_clips(store)
    write_clip(tmp_path / "videos" / "test_0" / "3")
    lose(tmp_path, "test_0/4")
    again = prepare(listed(0.9), tmp_path)
    assert read_coverage(again) == {"train": 0.9, "test": 0.9} and first != present_clips(again) != ""


def test_files_that_are_missing_stop_before_anything_is_decoded(listed, tmp_path, monkeypatch):
    for n in range(3):
        lose(tmp_path, f"test_0/{n}")
    monkeypatch.setattr(frames, "guarded_map", lambda *_: pytest.fail("decoded in vain"))
    with pytest.raises(UserError) as caught:
        prepare(listed(0.9), tmp_path)
    monkeypatch.undo()
    (folder,) = (tmp_path / "results" / "data").iterdir()
    assert str(caught.value) == (
        "data set tube: 3 of 20 test clips are missing or unreadable, and min_coverage is 0.9; the list with reasons "
        f"is {folder}/store/coverage.csv. Add or mend files, delete {folder}/index.csv and run again; or set "
        "min_coverage: 0.85 in config/datasets/tube.yaml to go on with what is there"
    )
    assert [path.name for path in (folder / "store").iterdir()] == ["coverage.csv"]
    assert sum(row["present"] == "no" for row in rows(folder / "store").values()) == 3
    assert read_coverage(prepare(listed(0.85), tmp_path)) == {"train": 1.0, "test": 0.85}


def test_what_was_decoded_is_kept_and_mended_files_are_read(listed, tmp_path, monkeypatch):
    monkeypatch.setattr(frames, "_MIN_CLIPS_PER_SHARD", 5)
    for n in (0, 1):
        damage(tmp_path, f"train_1/{n}")  # the second shard of six
    with pytest.raises(UserError, match=r"2 of 10 train clips .*\. Add or mend files, run again; or set .*: 0\.8 in"):
        prepare(listed(0.9), tmp_path)
    (folder,) = (tmp_path / "results" / "data").iterdir()
    store = folder / "store"
    assert not (store / "manifest.json").exists() and len(list(store.glob("shard-*.bin"))) == 6
    decoded, ours = [], frames.guarded_map

    def counting(function, jobs, *rest):
        decoded.extend(jobs)
        return ours(function, jobs, *rest)

    monkeypatch.setattr(frames, "guarded_map", counting)
    with pytest.raises(UserError, match="2 of 10 train clips"):
        make_frames(listed(0.9), Workspace(tmp_path / "results"), "store", POLICY, 1)
    assert decoded == []  # nothing has changed
    record = store / "shard-00001.json"
    for n in (0, 1):
        source = tmp_path / "videos" / "train_0" / "0" / "0.png"
        target = tmp_path / "videos" / "train_1" / str(n)
        lose(tmp_path, f"train_1/{n}")
        write_clip(target)
        os.utime(target, (1, 1))  # as an unpacked archive leaves it
        assert source.exists() and target.stat().st_ctime > record.stat().st_mtime
    prepare_again = make_frames(listed(0.9), Workspace(tmp_path / "results"), "store", POLICY, 1)
    assert [os.path.relpath(path, tmp_path / "videos") for path in decoded] == [f"train_1/{n}" for n in range(5)]
    assert read_coverage(prepare_again.parent) == {"train": 1.0, "test": 1.0}
    assert len(FrameStore(store)) == 30


def test_going_on_with_less_decodes_nothing_again(listed, tmp_path, monkeypatch):
    damage(tmp_path, "test_0/0")
    with pytest.raises(UserError, match="1 of 20 test clips"):
        prepare(listed(1.0), tmp_path)
    monkeypatch.setattr(frames, "guarded_map", lambda *_: pytest.fail("decoded again"))
    store = make_frames(listed(0.95), Workspace(tmp_path / "results"), "store", POLICY, 1).parent
    assert read_coverage(store)["test"] == 0.95
    with pytest.raises(UserError, match=r"1 of 20 test clips .* min_coverage is 1; .*Set min_coverage: 0\.95 in"):
        make_frames(listed(1.0), Workspace(tmp_path / "results"), "store", POLICY, 1)
    assert len(FrameStore(store)) == 29  # a finished store stays


def test_skeletons_that_cannot_be_read(tmp_path):
    made = make_skeleton_set(tmp_path)
    source = open_source(made.definition.source)
    bad = source.root / read_first(tmp_path / "data" / "index.csv")
    bad.write_text("no skeleton")
    store = tmp_path / "other"
    strict, lax = (Audit("set", tmp_path / "data", store, minimum, store) for minimum in (1.0, 0.9))
    with pytest.raises(UserError, match=rf"1 of 30 train clips .*Add or mend files, delete {store} and run again; or"):
        build_skeleton_store(tmp_path / "data" / "index.csv", source, store, SkeletonPolicy(), audit=strict)
    assert not (store / "manifest.json").exists() and (store / "joints.part").exists()
    made_again = source.__class__.read
    source.__class__.read = lambda *_: pytest.fail("read again")
    try:
        build_skeleton_store(tmp_path / "data" / "index.csv", source, store, SkeletonPolicy(), audit=lax)
    finally:
        source.__class__.read = made_again
    assert read_coverage(store) == {"train": 29 / 30, "test": 1.0}
    assert len(SkeletonStore(store)) == 47


def read_first(index):
    with index.open(newline="") as file:
        return next(csv.DictReader(file))["path"]


def test_stores_of_an_earlier_version(listed, tmp_path):
    store = prepare(listed(0), tmp_path)
    manifest = json.loads((store / "manifest.json").read_text())
    del manifest["coverage"]
    (store / "manifest.json").write_text(json.dumps(manifest))
    assert read_coverage(store) == {"train": 1.0, "val": 1.0, "test": 1.0}
    (store / "manifest.json").write_text(json.dumps(manifest | {"failures": 1}))
    assert read_coverage(store) == {}  # of which split is not known
    assert read_coverage(tmp_path / "nothing") == {}


def test_generated_sets_are_whole(world):
    assert set(read_coverage(world.store.folder).values()) == {1.0}
    (asset,) = [asset for asset in world.plan.datasets.values() if asset.name == "synthetic_scene"]
    assert "min_coverage" not in asset.options


def test_the_share_is_a_setting_and_no_part_of_the_identity(repo):
    def planned(overlay):
        plan = Plan.read(repo / "config", {"scale": "paper"} | overlay)
        return plan, {asset.name: asset for asset in plan.datasets.values()}

    plain, assets = planned({})
    other, changed = planned({"min_coverage": 0.5, "datasets": {"gym99": {"min_coverage": 0.7}}})
    assert assets["gym99"].options["min_coverage"] == assets["kinetics100"].options["min_coverage"] == 0.9
    assert changed["gym99"].options["min_coverage"] == 0.7 and changed["kinetics100"].options["min_coverage"] == 0.5
    assert set(plain.cells) == set(other.cells) and set(plain.datasets) == set(other.datasets)
    with pytest.raises(UserError, match="key min_coverage"):
        planned({"min_coverage": 1.5})


def test_a_pickle_that_holds_few_of_the_published_clips(tmp_path):
    """Nothing but the definition says how many clips there should be."""
    write_index(tmp_path / "data" / "index.csv", [Clip(f"c{i}", f"c{i}", "run", "train") for i in range(8)])
    audit = Audit("poses", tmp_path / "data", tmp_path / "store", 0.9, None, {"train": 10, "test": 5})
    with pytest.raises(UserError, match="2 of 10 train clips and 5 of 5 test clips are missing or unreadable"):
        audit.before()
    made = Audit("poses", tmp_path / "data", tmp_path / "store", 0.0, None, {"train": 10})([])
    assert made["coverage"]["train"] == {"listed": 10, "present": 8} and made["present"]
    whole = Audit("poses", tmp_path / "data", tmp_path / "store", 0.9, None, {"train": 8})([])
    assert whole == {"coverage": {"train": {"listed": 8, "present": 8}}}
