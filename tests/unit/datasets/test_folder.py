import csv
import os
import shutil
import struct
import unicodedata

import av
import cv2
import numpy as np
import pytest

from pipeline.datasets.folder import display_label, normalise_label, prepare_folder
from pipeline.datasets.index import read_index
from pipeline.errors import UserError


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    path = tmp_path_factory.mktemp("video") / "clip.mp4"
    rng = np.random.default_rng(0)
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for _ in range(40):
            frame = rng.integers(0, 255, (48, 64, 3), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.fixture
def root(tmp_path, video):
    """Four classes of three clips each."""
    for name in ("01_jump", "02_run", "03_SitDown", "10_wave"):
        (tmp_path / "root" / name).mkdir(parents=True)
        for clip in (1, 2, 10):
            own = struct.pack(">I4s8s", 16, b"free", f"{name[:5]}{clip:3}".encode())  # no two are the same file
            (tmp_path / "root" / name / f"{clip}.mp4").write_bytes(video.read_bytes() + own)
    return tmp_path / "root"


SPLITS = {"train": ["01_jump", "02_run"], "test": ["03_SitDown"]}


def test_class_folders(root, tmp_path):
    path = prepare_folder({"kind": "folder", "root": root, "splits": SPLITS}, tmp_path / "out", workers=2)
    clips = read_index(path)
    assert [clip.clip for clip in clips[:4]] == ["01_jump/1", "01_jump/2", "01_jump/10", "02_run/1"]
    assert clips[0].path == "01_jump/1.mp4"
    assert {(clip.label, clip.split) for clip in clips} == {
        ("01_jump", "train"),
        ("02_run", "train"),
        ("03_SitDown", "test"),
    }
    rows = list(csv.DictReader((tmp_path / "out" / "clips.csv").open()))
    assert rows[0] == {"clip": "01_jump/1", "frames": "40", "fps": "25.0", "height": "48", "width": "64"}
    assert (tmp_path / "out" / "unreadable.csv").read_text() == "path,reason\n"


def test_drawn_splits_and_short_names(root, tmp_path):
    spec = {"root": root, "strip_prefix": True, "map": {"03_SitDown": "sit down"}}
    counts = {"train": 2, "val": 1, "test": 1, "seed": 3}
    clips = read_index(prepare_folder({**spec, "splits": counts}, tmp_path / "a", 2))
    assert {clip.label for clip in clips} == {"jump", "run", "sit down", "wave"}
    sizes = [len({clip.label for clip in clips if clip.split == split}) for split in ("train", "val", "test")]
    assert sizes == [2, 1, 1]
    again = read_index(prepare_folder({**spec, "splits": counts}, tmp_path / "b", 2))
    assert again == clips


def test_class_lists_may_use_the_names_as_given(root, tmp_path):
    (tmp_path / "train.txt").write_text("# for training\n01_jump\nrun\n")
    splits = {"train": str(tmp_path / "train.txt"), "test": ["wave"]}
    spec = {"root": root, "strip_prefix": True, "splits": splits}
    clips = read_index(prepare_folder(spec, tmp_path / "out"))
    assert {(clip.label, clip.split) for clip in clips} == {
        ("jump", "train"),
        ("run", "train"),
        ("wave", "test"),
    }


def test_unreadable_clips_are_listed(root, tmp_path, video):
    data = video.read_bytes()
    (root / "01_jump" / "2.mp4").write_bytes(data[: len(data) // 2])
    os.symlink(tmp_path / "nowhere.mp4", root / "02_run" / "3.mp4")
    clips = read_index(prepare_folder({"root": root, "splits": SPLITS}, tmp_path / "out", 2))
    assert "01_jump/2" not in {clip.clip for clip in clips}
    rows = list(csv.reader((tmp_path / "out" / "unreadable.csv").open()))[1:]
    assert [row[0] for row in rows] == ["01_jump/2.mp4", "02_run/3.mp4"]
    assert "cut short" in rows[0][1] and "missing" in rows[1][1]


def test_a_class_with_too_few_clips(root, tmp_path):
    (root / "01_jump" / "1.mp4").write_bytes(b"broken")
    spec = {"root": root, "splits": SPLITS, "min_clips": 3}
    with pytest.raises(UserError, match=r"'01_jump' has 2 readable clip\(s\) in .*01_jump, and min_clips is 3"):
        prepare_folder(spec, tmp_path / "out")
    assert "1.mp4" in (tmp_path / "out" / "unreadable.csv").read_text()
    assert not (tmp_path / "out" / "index.csv").exists()


def test_an_empty_class_folder(root, tmp_path):
    (root / "05_nap").mkdir()
    (root / "05_nap" / "notes.txt").write_text("no video")
    with pytest.raises(UserError, match=r"'05_nap' has 0 clips: .*05_nap holds no video"):
        prepare_folder({"root": root, "splits": {**SPLITS, "val": ["05_nap"]}}, tmp_path / "out")
    prepare_folder({"root": root, "splits": SPLITS}, tmp_path / "out")  # not asked for


def test_frame_folders_links_and_subfolders(root, tmp_path):
    frames = root / "04_nod" / "person1" / "take1"
    frames.mkdir(parents=True)
    for i in range(3):
        cv2.imwrite(str(frames / f"{i}.jpg"), np.full((32, 32, 3), 50 * i, np.uint8))
    os.symlink(root / "04_nod", root / "04_nod" / "person1" / "circle")
    os.symlink(root / "02_run" / "1.mp4", root / "04_nod" / "linked.mp4")
    splits = {"train": ["04_nod"]}
    clips = read_index(prepare_folder({"root": root, "splits": splits}, tmp_path / "out"))
    assert [clip.clip for clip in clips] == ["04_nod/linked", "04_nod/person1/take1"]
    cv2.imwrite(str(root / "01_jump" / "0.png"), np.zeros((32, 32, 3), np.uint8))
    with pytest.raises(
        UserError, match=r"01_jump holds pictures \(0.png\) beside videos \(1.mp4 and 2 more\).*`pattern:`"
    ):
        prepare_folder({"root": root, "splits": splits}, tmp_path / "out")
    prepare_folder({"root": root, "splits": SPLITS, "pattern": r"mp4$"}, tmp_path / "out")
    with pytest.raises(UserError, match="01_jump holds frames directly"):
        prepare_folder({"root": root, "splits": SPLITS, "pattern": r"png$"}, tmp_path / "out")
    with pytest.raises(UserError, match="pattern '\\(' is not a regular expression"):
        prepare_folder({"root": root, "splits": SPLITS, "pattern": "("}, tmp_path / "out")


def test_a_file_in_two_splits(root, tmp_path, capsys):
    os.link(root / "01_jump" / "1.mp4", root / "03_SitDown" / "a.mp4")
    spec = {"root": root, "splits": SPLITS}
    with pytest.raises(UserError, match="01_jump/1.mp4 is in train as '01_jump/1' and in test as '03_SitDown/a'"):
        prepare_folder(spec, tmp_path / "out")
    prepare_folder(spec | {"duplicates": "keep"}, tmp_path / "out")
    assert "warning: 01_jump/1.mp4 is in train" in capsys.readouterr().err
    (root / "03_SitDown" / "a.mp4").rename(root / "02_run" / "a.mp4")
    prepare_folder(spec, tmp_path / "out")  # within one split it is said
    assert "and in train as '02_run/a', the same file as 02_run/a.mp4" in capsys.readouterr().err


def test_classes_and_files_that_are_written_otherwise(root, tmp_path, capsys):
    (root / "02_run").rename(root / unicodedata.normalize("NFD", "02_h\u00fcpfen"))
    (tmp_path / "train.txt").write_bytes(b"\xef\xbb\xbf" + "01 Jump\r\n02_h\u00fcpfen\r\n".encode())
    splits = {"train": str(tmp_path / "train.txt"), "test": ["03_SitDown"]}
    clips = read_index(prepare_folder({"root": root, "splits": splits}, tmp_path / "out"))
    assert {clip.label for clip in clips if clip.split == "train"} == {"01_jump", "02_h\u00fcpfen"} and len(clips) == 9
    assert "'01 Jump' is the class '01_jump'" in capsys.readouterr().out
    table = tmp_path / "labels.csv"
    rows = ["path;label;split", "01_Jump\\1.avi;hop;train", "02_h\u00fcpfen/2.mp4;run;train", "10_wave/7.mp4;wave;test"]
    table.write_bytes("\r\n".join(rows).encode("utf-16"))
    with pytest.raises(UserError, match="10_wave/7.mp4: the file is missing"):
        prepare_folder({"root": root, "labels": table, "min_clips": 1}, tmp_path / "out")
    assert "01_jump/1.mp4,its suffix" in (tmp_path / "out" / "located.csv").read_text()


def test_a_name_that_is_not_utf8_is_named(root, tmp_path, capsys):
    try:
        (root / "01_jump" / "2.mp4").rename(root / "01_jump" / os.fsdecode(b"caf\xe9.mp4"))
    except OSError:
        pytest.skip("this file system takes names in UTF-8 alone")
    assert len(read_index(prepare_folder({"root": root, "splits": SPLITS}, tmp_path / "out"))) == 8
    assert r"caf\xe9.mp4: its name is not UTF-8" in capsys.readouterr().err


def test_clips_of_one_name_and_two_suffixes(root, tmp_path):
    shutil.copy(root / "01_jump" / "1.mp4", root / "01_jump" / "1.mov")
    clips = read_index(prepare_folder({"root": root, "splits": SPLITS}, tmp_path / "out", 2))
    assert {"01_jump/1.mp4", "01_jump/1.mov", "01_jump/2"} <= {clip.clip for clip in clips}


def test_a_table_of_labels(root, tmp_path):
    table = tmp_path / "labels.csv"
    rows = ["path,label,split", "01_jump/1.mp4,hop,train", f"{root}/01_jump/2.mp4,hop,train"]
    rows += ["10_wave/1.mp4,greet,test", "10_wave/2.mp4,greet,test"]
    table.write_text("\n".join(rows))
    clips = read_index(prepare_folder({"root": root, "labels": table}, tmp_path / "out"))
    assert [(clip.clip, clip.label, clip.split) for clip in clips] == [
        ("01_jump/1", "hop", "train"),
        ("01_jump/2", "hop", "train"),
        ("10_wave/1", "greet", "test"),
        ("10_wave/2", "greet", "test"),
    ]
    table.write_text("\n".join([*rows, "02_run/1.mp4,hop,test"]))
    with pytest.raises(UserError, match="'hop' is in train and test"):
        prepare_folder({"root": root, "labels": table}, tmp_path / "out")
    table.write_text("file,label\na,b\n")
    with pytest.raises(UserError, match="lacks the column path"):
        prepare_folder({"root": root, "labels": table}, tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"splits": {"train": ["01_jmp"]}},
            "unknown class '01_jmp' in the train split.*did you mean '01_jump'",
        ),
        ({"splits": {"train": ["01_jump"], "test": ["01_jump"]}}, "in train and test"),
        ({"splits": {"train": 3, "test": 3}}, "ask for 6 classes and there are 4"),
        ({"splits": {"training": ["01_jump"]}}, "did you mean 'train'"),
        ({"splits": None}, "no splits are given"),
        ({"splits": {}}, "no splits are given"),
        ({"splits": {"train": "none.txt"}}, "there is no list none.txt"),
        ({"root": "/nowhere"}, "there is no folder /nowhere"),
        ({"root": None}, "lacks root"),
        ({"map": {"01_jum": "jump"}}, "did you mean '01_jump'"),
        ({"map": {"01_jump": "02_run"}}, "both become '02_run'"),
        ({"strip_prefix": r".*"}, "leaves nothing"),
        ({"strip_prefix": r"("}, "not a regular expression"),
    ],
)
def test_wrong_configurations(root, tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        prepare_folder({"root": root, "splits": SPLITS, **change}, tmp_path / "out")


def test_names():
    assert normalise_label(" 01_swipe_left ") == "01_swipe_left"
    assert normalise_label("01_swipe_left", strip_prefix=True) == "swipe_left"
    assert normalise_label("class-jump", strip_prefix="class-") == "jump"
    assert normalise_label("jump", mapping={"jump": "hop"}, strip_prefix=True) == "hop"
    assert normalise_label("cafe\u0301") == normalise_label("caf\u00e9")
    assert display_label("draw_sword") == "draw sword"
    assert display_label("PlayingDhol") == "Playing Dhol"
    assert display_label("TVShowHost") == "TV Show Host"
