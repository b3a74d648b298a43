import io
import json
import os
import pickle
import tarfile

import numpy as np
import pytest

from pipeline.datasets.skeletons.definition import SkeletonPolicy, SourceSpec
from pipeline.datasets.skeletons.preprocess import prepare_clip
from pipeline.datasets.skeletons.readers import load_pickle, open_source
from pipeline.datasets.synthetic import generate, write_skeleton
from pipeline.errors import UserError
from pipeline.guarded import Unreadable


def source(**spec):
    return open_source({**spec, "root": str(spec["root"])})


# ------------------------------------------------------------------------------------------ .skeleton files
@pytest.fixture
def ntu_folder(tmp_path):
    for place, name in (("nturgb+d_skeletons", "S001C001P001R001A001"), ("nturgb+d_skeletons", "S001C002P001R001A002"),
                        ("nturgb+d_skeletons120", "S018C001P001R001A061"), ("", "notes")):  # fmt: skip
        (tmp_path / "ntu" / place).mkdir(parents=True, exist_ok=True)
        write_skeleton(tmp_path / "ntu" / place / f"{name}.skeleton", np.ones((2, 1, 25, 3)))
    return tmp_path / "ntu"


def test_ntu(ntu_folder, tmp_path):
    found = source(format="ntu", root=ntu_folder)
    assert [(item.clip, item.label) for item in found.items] == [
        ("S001C001P001R001A001", "A001"), ("S001C002P001R001A002", "A002"), ("S018C001P001R001A061", "A061"),
    ]  # fmt: skip
    assert found.missing == [("notes.skeleton", "not named like S001C002P003R002A013")]
    assert found.read(found.items[2].path).frames == 2
    (tmp_path / "missing.txt").write_text("One sample is bad.\n\nS001C001P001R001A001\n")
    found = source(format="ntu", root=ntu_folder, classes=["drink", "eat"], missing=str(tmp_path / "missing.txt"))
    assert [(item.label, found.first_class) for item in found.items] == [("eat", 1)]  # A061 is of NTU-120
    assert ("nturgb+d_skeletons/S001C001P001R001A001.skeleton", "in the list of samples with missing skeletons") in (
        found.missing
    )
    assert pickle.loads(pickle.dumps(found)).items == []  # other processes only read


def test_links_to_folders_are_followed_and_circles_are_not(ntu_folder, tmp_path):
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "part").symlink_to(ntu_folder, target_is_directory=True)
    (ntu_folder / "again").symlink_to(tmp_path / "linked", target_is_directory=True)
    found = source(format="ntu", root=tmp_path / "linked")
    assert [item.clip for item in found.items] == [item.clip for item in source(format="ntu", root=ntu_folder).items]


def test_classes_of_files(ntu_folder, tmp_path):
    found = source(format="files", root=ntu_folder, pattern=r"A(?P<label>\d+)", classes={"001": "drink", "002": "eat",
                   "061": "aim"})  # fmt: skip
    assert [item.label for item in found.items] == ["drink", "eat", "aim"] and len(found.missing) == 1
    table = tmp_path / "labels.csv"
    table.write_text("path,label,split\nnotes.skeleton,writing,test\n")
    (item,) = source(format="files", root=ntu_folder, labels=str(table)).items
    assert (item.clip, item.label, item.subset) == ("notes", "writing", "test")
    for wrong, message in (
        ({}, "lies in no class folder"),
        ({"pattern": "A.*"}, r"has no group \(\?P<label>...\)"),
        ({"pattern": "("}, "is not a regular expression"),
        ({"pattern": r"A(?P<label>\d+)", "classes": {"001": "drink"}}, "unknown class '002'"),
        ({"labels": str(tmp_path / "absent.csv")}, "there is no table of labels"),
        ({"clases": {}}, "unknown key 'clases'.*did you mean 'classes'"),
        ({"format": "bvh"}, "key format"),
    ):
        with pytest.raises(UserError, match=message):
            source(**{"format": "files", "root": ntu_folder, **wrong})
    with pytest.raises(UserError, match="there is no .*; put the skeletons there"):
        source(format="ntu", root=tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no skeleton clip of format ntu is found"):
        source(format="ntu", root=tmp_path / "empty")


def test_generated_sets(tmp_path):
    generate(
        "temporal", tmp_path / "set", clips_per_class=1, frames=(12, 14), size=32, splits=("train", "test"), workers=1
    )
    found = source(format="generated", root=tmp_path / "set")
    assert {item.subset for item in found.items} == {"train", "test"}
    assert prepare_clip(found.read(found.items[0].path), SkeletonPolicy()).shape[2:] == (25, 3)


# ----------------------------------------------------------------------------------------------------- npz
def test_npz(tmp_path):
    positions = np.arange(5 * 4 * 3).reshape(5, 4, 3)
    arrays = {"positions_mm": positions, "lengths": [2, 3], "label": [1, 0], "class_names": ["bow", "jump"]}
    path = tmp_path / "a.npz"
    np.savez(path, **arrays)
    found = source(format="npz", root=path, joints=4)
    assert [(item.clip, item.label) for item in found.items] == [("00000", "jump"), ("00001", "bow")]
    assert found.classes == ("bow", "jump")
    np.testing.assert_allclose(found.read("1").joints, positions[None, 2:] / 1000)
    two = np.ones((5, 2, 4, 3))
    np.savez(path, positions=two, lengths=[2, 3], label=["x", "y"], clip=["one", "two"], split=["train", "test"])
    found = source(format="npz", root=path, joints=4)
    assert [(item.clip, item.label, item.subset) for item in found.items] == [
        ("one", "x", "train"),
        ("two", "y", "test"),
    ]
    assert found.read("0").joints.shape == (2, 2, 4, 3)
    for wrong, message in (
        ({"lengths": [2, 2]}, "do not fit together"),
        ({"label": [1, 2]}, "label 2, and class_names has 2"),
        ({"positions_mm": np.ones((5, 3, 3))}, "has 3 joints, the declared skeleton 4"),
    ):
        np.savez(path, **(arrays | wrong))
        with pytest.raises(UserError, match=message):
            source(format="npz", root=path, joints=4)
    np.savez(path, lengths=[1], label=[0])
    with pytest.raises(UserError, match="lacks the array positions"):
        source(format="npz", root=path, joints=4)
    np.savez(path, **arrays, extra=np.array([{}], dtype=object))
    with pytest.raises(UserError, match="plain arrays"):
        source(format="npz", root=path, joints=4)
    path.write_bytes(b"PK\x03\x04 no archive")
    with pytest.raises(UserError, match="damaged|plain arrays"):
        source(format="npz", root=path, joints=4)
    with pytest.raises(UserError, match="key joints is missing"):
        source(format="npz", root=path)


def test_kinder_gator(reference_data):
    found = source(format="npz", root=reference_data / "skeletons" / "kinder_gator.npz", joints=20)
    assert len(found.items) == 1159 and len(found.classes) == 58
    joints = prepare_clip(found.read("3"), SkeletonPolicy(bodies=1))
    assert joints.shape == (1, 192, 20, 3) and np.abs(joints).max() < 3  # metres


# ---------------------------------------------------------------------------------------------------- JSON
UCLA = {"format": "json", "joints": 20, "pattern": r"^a(?P<label>\d\d)_"}


def test_json_in_archive_and_folder(tmp_path):
    clips = {"a01_s01": np.ones((3, 20, 3)), "a02_s01": np.ones((3, 2, 20, 3)), "a02_s02": np.ones((3, 19, 3))}
    (tmp_path / "folder").mkdir()
    for name, joints in clips.items():
        (tmp_path / "folder" / f"{name}.json").write_text(json.dumps({"skeletons": joints.tolist()}))
    (tmp_path / "folder" / "a02_s03.json").write_text('{"skeletons": [[[1, 2')
    (tmp_path / "folder" / "other.json").write_text("{}")
    before = set(tmp_path.rglob("*"))
    with tarfile.open(tmp_path / "all.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "folder", "all")
        link = tarfile.TarInfo("all/a01_s99.json")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
        outside = tarfile.TarInfo("../../a03_s01.json")
        content = json.dumps({"skeletons": clips["a01_s01"].tolist()}).encode()
        outside.size = len(content)
        archive.addfile(outside, io.BytesIO(content))
    read = {}
    for root in (tmp_path / "folder", tmp_path / "all.tar.gz"):
        found = source(**UCLA, root=root)
        shapes = {}
        for item in found.items:
            try:
                shapes[item.clip] = found.read(item.path).joints.shape
            except Unreadable as error:
                shapes[item.clip] = str(error)
        assert len(found.missing) == 1 and "does not fit the pattern" in found.missing[0][1]
        read[root.name] = shapes
    assert read["all.tar.gz"].pop("a03_s01") == (1, 3, 20, 3)  # read, not written
    assert (
        read["all.tar.gz"]
        == read["folder"]
        == {
            "a01_s01": (1, 3, 20, 3),
            "a02_s01": (2, 3, 20, 3),
            "a02_s02": "19 joints, the skeleton has 20",
            "a02_s03": "no JSON file with `skeletons` of frames of joints",
        }
    )
    assert set(tmp_path.rglob("*")) - before == {tmp_path / "all.tar.gz"}
    (tmp_path / "bad.tar.gz").write_bytes((tmp_path / "all.tar.gz").read_bytes()[:300])
    with pytest.raises(UserError, match="not a tar archive, or is damaged"):
        source(**UCLA, root=tmp_path / "bad.tar.gz")


def test_nw_ucla(reference_data):
    found = source(**UCLA, root=reference_data / "skeletons" / "nw_ucla_all_sqe.tar.gz")
    assert len(found.items) == 1484 and len(found.classes) == 10
    assert found.read(found.items[0].path).joints.shape == (1, 16, 20, 3)


def test_kinetics_openpose(tmp_path):
    for subset, videos in (("train", ("v1", "v2")), ("val", ("v3",))):
        (tmp_path / f"kinetics_{subset}").mkdir()
        about = {v: {"has_skeleton": v != "v2", "label": "run" if v == "v1" else "jump",
                     "label_index": int(v != "v1")} for v in videos}  # fmt: skip
        (tmp_path / f"kinetics_{subset}_label.json").write_text(json.dumps(about))
        for v in videos:
            pose = [0.25, 0.75] * 17 + [0.0, 0.0]
            person = {"pose": pose, "score": [0.5] * 17 + [0.0]}
            better = {"pose": [0.5, 0.5] * 18, "score": [0.9] * 18}
            frames = [{"frame_index": 1, "skeleton": [person]}, {"frame_index": 2, "skeleton": []},
                      {"frame_index": 3, "skeleton": [person, better]}]  # fmt: skip
            (tmp_path / f"kinetics_{subset}" / f"{v}.json").write_text(json.dumps({"data": frames}))
    found = source(format="openpose", root=tmp_path)
    assert [(item.clip, item.label, item.subset) for item in found.items] == [
        ("v1", "run", "train"),
        ("v3", "jump", "val"),
    ]
    assert found.classes == ("run", "jump") and found.missing == [
        ("kinetics_train/v2.json", "no skeleton was found in the video")
    ]
    joints = found.read("kinetics_train/v1.json").joints
    assert joints.shape == (2, 3, 18, 3)
    np.testing.assert_allclose(joints[0, 0, 0], [-0.25, -0.25, 0.5])  # y upwards
    np.testing.assert_allclose(joints[0, 0, 17], 0)
    np.testing.assert_allclose(joints[0, 2, 0], [0, 0, 0.9])  # the more certain person first
    clean = prepare_clip(found.read("kinetics_train/v1.json"), SkeletonPolicy(origin="none"), spatial=2)
    assert clean.shape == (2, 2, 18, 3)
    (tmp_path / "kinetics_train" / "v1.json").write_text('{"data": [{"skeleton": [{"pose": [1], "score": [1]}]}]}')
    for path, reason in (("kinetics_train/v1.json", "18 joints"), ("kinetics_train/v9.json", "cannot be read")):
        with pytest.raises(Unreadable, match=reason):
            found.read(path)


# ------------------------------------------------------------------------------------------------- pickles
def annotation(name, label, persons=1, joints=17, dims=2):
    note = {"frame_dir": name, "label": label, "total_frames": 5, "img_shape": (480, 640),
            "keypoint": np.full((persons, 5, joints, dims), 100, dtype=np.float16)}  # fmt: skip
    if dims == 2:
        note["keypoint_score"] = np.full((persons, 5, joints), 0.5, dtype=np.float16)
    return note


@pytest.mark.parametrize("protocol", range(6))
def test_pyskl(tmp_path, protocol):
    notes = [annotation("c1", 0), annotation("c2", 1, persons=2), annotation("c3", 1, joints=16)]
    content = {"split": {"xsub_train": ["c1"], "xsub_val": ["c2", "c3"]}, "annotations": notes}
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps(content, protocol))
    found = source(format="pyskl", root=path, joints=17, subsets=["xsub_train", "xsub_val"], classes=["run", "jump"])
    assert [(i.label, i.subset) for i in found.items] == [
        ("run", "xsub_train"),
        ("jump", "xsub_val"),
        ("jump", "xsub_val"),
    ]
    pose = found.read("c2")
    assert pose.joints.shape == (2, 5, 17, 3) and pose.size == (480, 640) and found.spatial == 2
    assert pose.joints[0, 0, 0].tolist() == [100, 100, 0.5]
    with pytest.raises(Unreadable, match="16 joints"):
        found.read("c3")
    with pytest.raises(UserError, match="unknown split 'xsub_tran'.*did you mean 'xsub_train'"):
        source(format="pyskl", root=path, joints=17, subsets=["xsub_tran"])


def test_3d_pickles(tmp_path):
    path = tmp_path / "a.pkl"
    path.write_bytes(
        pickle.dumps({"annotations": [annotation("c1", 0, joints=25, dims=3), annotation("c2", 1, dims=3)]})
    )
    found = source(format="pyskl", root=path, joints=25)
    assert found.spatial == 3 and found.classes == ("class 0", "class 1")
    assert found.read("c1").joints.shape == (1, 5, 25, 3)


def test_a_pickle_of_ntu_numbers_its_classes_from_0_and_names_them_from_1(tmp_path):
    """pyskl's labels are 0 to 59 (119); its names, and the protocol, say A001 to A060 (A120)."""
    path, names = tmp_path / "a.pkl", [f"S001C003P008R001A{number:03d}" for number in (1, 2, 60)]
    path.write_bytes(pickle.dumps({"annotations": [annotation(name, int(name[-3:]) - 1) for name in names]}))
    classes = [f"action {number}" for number in range(1, 61)]
    found = source(format="pyskl", root=path, joints=17, first_class=1, classes=classes)
    assert [item.label for item in found.items] == ["action 1", "action 2", "action 60"]
    with pytest.raises(UserError, match="A001 is class 0 by its label and 1 by its name.*set first_class: 1"):
        source(format="pyskl", root=path, joints=17, classes=classes)
    path.write_bytes(pickle.dumps({"annotations": [annotation(names[2], 0)]}))  # labels of one's own
    assert source(format="pyskl", root=path, joints=17, classes={"0": "falling"}).items[0].label == "falling"


class Evil:
    """What unpickling it would run."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def test_unsafe_pickles_are_refused(tmp_path):
    path, mark = tmp_path / "a.pkl", tmp_path / "ran"
    for evil in (
        Evil(os.system, f"touch {mark}"),
        Evil(open, str(mark), "w"),
        Evil(eval, "1"),
        Evil(getattr, "", "join"),
        Evil(np.load, str(mark)),
        SourceSpec(format="ntu", root="x"),
    ):
        for protocol in (0, 2, 5):
            path.write_bytes(pickle.dumps({"annotations": [{"label": evil}]}, protocol))
            with pytest.raises(UserError, match="refused or damaged: it names .*plain values and arrays only"):
                load_pickle(path)
    assert not mark.exists()
    path.write_bytes(b"c_codecs\nencode\n(Vabc\nVhex\ntR.")
    with pytest.raises(UserError, match="text in the encoding hex"):
        load_pickle(path)
    path.write_bytes(b"Pthing\n.")
    with pytest.raises(UserError, match="refers to things outside"):
        load_pickle(path)
    for damaged in (b"", b"no pickle", pickle.dumps({"annotations": [annotation("c", 0)]})[:-30]):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="damaged"):
            load_pickle(path)
    path.write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(UserError, match="no list of annotations"):
        source(format="pyskl", root=path, joints=17)
    plain = {"a": np.float32(1.5), "b": {1, 2}, "c": [np.int64(3), "x", b"y", None, 1j], "d": np.array(["s"])}
    path.write_bytes(pickle.dumps(plain))
    assert load_pickle(path) == plain


# ------------------------------------------------------------------------------- what is easily read wrongly
def poses(path, names, labels=None, dims=2, **more):
    notes = [annotation(name, i if labels is None else labels[i], dims=dims) | more for i, name in enumerate(names)]
    path.write_bytes(pickle.dumps({"annotations": notes}))
    return path


def test_no_clip_of_a_pickle_is_dropped(tmp_path):
    path = poses(tmp_path / "a.pkl", ["c1", "c2", "c1"])
    with pytest.raises(UserError, match="frame_dir c1 twice, as number 0 and 2 of its clips"):
        source(format="pyskl", root=path, joints=17)
    np.savez(tmp_path / "a.npz", positions=np.ones((4, 5, 3)), lengths=[2, 2], label=["x", "y"], clip=["c", "c"])
    with pytest.raises(UserError, match="has the clip c twice"):
        source(format="npz", root=tmp_path / "a.npz", joints=5)


def test_a_sample_that_is_there_twice_is_listed(ntu_folder):
    (ntu_folder / "again").mkdir()
    write_skeleton(ntu_folder / "again" / "S001C001P001R001A001.skeleton", np.ones((2, 1, 25, 3)))
    found = source(format="ntu", root=ntu_folder)
    assert len(found.items) == 3 and found.items[0].path.startswith("again/")
    assert any("is there already, as again/S001" in reason for _, reason in found.missing)


def test_labels_that_are_names_and_labels_that_are_nothing(tmp_path):
    path = poses(tmp_path / "a.pkl", ["c1", "c2", "c3"], ["run", np.str_("jump"), 1.0])
    found = source(format="pyskl", root=path, joints=17, classes=["run", "jump"])
    assert [item.label for item in found.items] == ["run", "jump", "jump"]
    with pytest.raises(UserError, match="the label of c1 is None, neither a number nor a name"):
        source(format="pyskl", root=poses(path, ["c1"], [None]), joints=17)
    with pytest.raises(UserError, match="class fly is not among"):
        source(format="pyskl", root=poses(path, ["c1"], ["fly"]), joints=17, classes=["run"])
    ragged = poses(path, ["c1", "c2"], None, keypoint=[[1.0], [1.0, 2.0]])
    with pytest.raises(UserError, match="holds no keypoints"):
        source(format="pyskl", root=ragged, joints=17)


@pytest.mark.parametrize("kind", ["npz", "json", "pyskl"])
def test_a_third_number_that_looks_like_a_score(tmp_path, kind):
    rng = np.random.default_rng(0)
    joints = np.concatenate([rng.random((4, 1, 5, 2)) * 900, rng.random((4, 1, 5, 1))], axis=-1)
    for name, values in (("scores", joints), ("metres", rng.normal(size=(4, 1, 5, 3)))):
        root = tmp_path / f"{name}.{kind}"
        if kind == "npz":
            np.savez(root, positions=values, lengths=[4], label=["x"])
        elif kind == "json":
            (root / "x").mkdir(parents=True)
            (root / "x" / "c.json").write_text(json.dumps({"skeletons": values.tolist()}))
        else:
            note = {"frame_dir": "c", "label": 0, "keypoint": np.moveaxis(values, 1, 0)}
            root.write_bytes(pickle.dumps([note]))
    asked = {"format": kind, "root": tmp_path / f"scores.{kind}", "joints": 5}
    with pytest.raises(UserError, match="looks like a score .*set third: score, or third: z"):
        source(**asked)
    assert source(**asked, third="score").spatial == 2 and source(**asked, third="z").spatial == 3
    found = source(**asked, third="score")
    assert found.read(found.items[0].path).joints.shape == (1, 4, 5, 3)
    assert source(**asked | {"root": tmp_path / f"metres.{kind}"}).spatial == 3


def test_byte_order_marks_and_other_line_ends(ntu_folder, tmp_path):
    path = ntu_folder / "nturgb+d_skeletons" / "S001C001P001R001A001.skeleton"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    (tmp_path / "missing.txt").write_bytes(b"\xef\xbb\xbfS001C002P001R001A002\r\n")
    found = source(format="ntu", root=ntu_folder, missing=str(tmp_path / "missing.txt"))
    assert [item.label for item in found.items] == ["A001", "A061"]
    assert found.read(found.items[0].path).frames == 2


def test_a_table_of_labels_in_other_words(ntu_folder, tmp_path):
    rows = ["path;label", "NTURGB+D_skeletons\\s001c001p001r001a001;drink", "none.skeleton;eat"]
    (tmp_path / "labels.csv").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(rows).encode())
    found = source(format="files", root=ntu_folder, labels=str(tmp_path / "labels.csv"))
    assert [item.label for item in found.items] == ["drink"]
    near = "the file is missing; the nearest that is there is notes.skeleton"
    assert ("none.skeleton", near) in found.missing


def table(rows, header="clip,frame,joint,x,y,z,label"):
    return "\n".join([header, *rows]) + "\n"


def test_plain_tables(tmp_path):
    rows = [f"{clip},{t},{j + 1},{j},{t},{-j},{label}" for clip, label in (("a", "run"), ("b", "sit"))
            for t in (5, 7) for j in range(3)]  # fmt: skip
    (tmp_path / "all.csv").write_text(table(rows))
    found = source(format="table", root=tmp_path / "all.csv", joints=3)
    assert [(item.clip, item.label) for item in found.items] == [("a", "run"), ("b", "sit")] and found.spatial == 3
    joints = found.read(found.items[1].path).joints
    assert joints.shape == (1, 2, 3, 3) and joints[0, 1].tolist() == [[0, 7, 0], [1, 7, -1], [2, 7, -2]]
    lines = [f"{t} {j} {x} {x}" for t in range(2) for j, x in (("Left_Hip", "0,5"), ("head", "1,5"))]
    (tmp_path / "folder" / "run").mkdir(parents=True)
    (tmp_path / "folder" / "run" / "c.txt").write_text("\n".join(["time part u v", *lines]))
    columns = {"frame": "time", "joint": "part", "x": "u", "y": "v"}
    spec = {"format": "table", "root": tmp_path / "folder", "joints": 2, "joint_names": ["head", "left hip"]}
    found = source(**spec, columns=columns)
    assert [(item.clip, item.label) for item in found.items] == [("run/c", "run")] and found.spatial == 2
    assert found.read(found.items[0].path).joints[0, 0].tolist() == [[1.5, 1.5, 1], [0.5, 0.5, 1]]
    with pytest.raises(UserError, match=r"no column 'frame', but time, part, u, v; say in `columns:`"):
        source(**spec)
    with pytest.raises(UserError, match="did you mean 'joint'"):
        source(**spec, columns={"joints": "part"})


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        (["a,0,0,1,1,1,run", "a,0,1,1,1,1,run", "a,0,1,1,1,1,run"], "joint 1 of a person twice"),
        (["a,0,0,1,1,-1,run", "a,1,0,1,1,1,run", "a,1,1,1,1,1,run"], "frame 0 lacks joint 1 of 2"),
        (["a,0,0,1,1,-1,run", "a,0,9,1,1,1,run"], "numbered to 9, the skeleton has 2"),
        (["a,0,0,1,1,-1,run", "a,0,1,,1,1,run"], "not finite|non-finite"),
    ],
)
def test_tables_that_cannot_be_used(tmp_path, rows, reason):
    (tmp_path / "all.csv").write_text(table(rows))
    found = source(format="table", root=tmp_path / "all.csv", joints=2)
    with pytest.raises(Unreadable, match=reason):
        prepare_clip(found.read(found.items[0].path), SkeletonPolicy(center=0))
