"""Which file a list means, and clips that are one file under two names."""

import os
import unicodedata

import pytest

from pipeline.datasets.duplicates import check_duplicates, same_files
from pipeline.datasets.index import Clip
from pipeline.datasets.located import locate, report_map
from pipeline.datasets.splits import prepare_list
from pipeline.errors import UserError


@pytest.fixture
def root(tmp_path):
    files = [
        "wave/a.avi", "wave/3.mp4", "run/3.mp4", "run/B & (c) #1.avi", "kin/jf7RDuUTrsQ_000327_000337.mp4",
        unicodedata.normalize("NFD", "caf\u00e9/d.mp4"), "kick/high kick-1.mp4", "two/x.mp4", "too/x.mp4",
        "same/y.mp4", "copy/y.mp4", "frames/clip/1.jpg",
    ]  # fmt: skip
    for i, file in enumerate(files):
        path = tmp_path / "root" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes([0 if "y.mp4" in file else i + 1]) * 999)
    return tmp_path / "root"


@pytest.mark.parametrize(
    ("listed", "found"),
    [
        ("wave/a.avi", "wave/a.avi"),
        ("wave/a.mp4", "wave/a.avi"),
        ("Wave\\A.avi", "wave/a.avi"),
        ("./run/b & (c) #1.avi", "run/B & (c) #1.avi"),
        ("videos/wave/3.mp4", "wave/3.mp4"),
        ("a", "wave/a.avi"),
        ("jf7RDuUTrsQ", "kin/jf7RDuUTrsQ_000327_000337.mp4"),
        ("x/jf7RDuUTrsQ_000001_000011.mp4", "kin/jf7RDuUTrsQ_000327_000337.mp4"),
        ("caf\u00e9/d.mp4", unicodedata.normalize("NFD", "caf\u00e9/d.mp4")),
        ("kick/high_kick_1.avi", "kick/high kick-1.mp4"),
        ("elsewhere/y.mp4", "copy/y.mp4"),
        ("CLIP", "frames/clip"),
        ("wave/none.mp4", None),
        ("zzz", None),
    ],
)
def test_a_listed_clip(root, listed, found):
    (placed,) = locate(root, [listed])
    assert placed.path == found
    assert bool(placed.how) == (found not in (None, listed)) and bool(placed.reason) == (found is None)


def test_several_files_fit(root):
    with pytest.raises(UserError, match="the listed clip '3.avi' may be 'run/3.mp4' or 'wave/3.mp4'; write which one"):
        locate(root, ["3.avi"])
    with pytest.raises(UserError, match="may be 'too/x.mp4' or 'two/x.mp4'"):
        locate(root, ["x"])


def test_a_file_that_is_listed_itself_is_not_meant_by_another_folder(root):
    (root / "run" / "3.mp4").unlink()
    placed = locate(root, ["wave/3.mp4", "run/3.mp4"])
    assert placed[0].path == "wave/3.mp4" and placed[1].path is None


def test_the_nearest_name_is_said(root, tmp_path, capsys):
    paths = ["wave/ab.avi", "WAVE/A.avi"]
    placed = locate(root, paths)
    assert placed[0].reason == "the file is missing; the nearest that is there is wave/a.avi"
    report_map(tmp_path, paths, placed)
    assert "1 of 2 listed clips lie under another name, such as WAVE/A.avi: wave/a.avi" in capsys.readouterr().out
    assert "WAVE/A.avi,wave/a.avi" in (tmp_path / "located.csv").read_text()
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "train_few_shot.txt").write_text("train0//wvae/1.avi\n")
    with pytest.raises(UserError, match=r"none of the 1 videos .* the first, wvae/1\.avi: the file is missing"):
        prepare_list({"root": root, "lists": tmp_path / "lists"}, tmp_path / "out")


def test_lists_of_any_editor_and_lines_that_are_there_twice(root, tmp_path):
    (tmp_path / "lists").mkdir()
    train = tmp_path / "lists" / "train_few_shot.txt"
    train.write_bytes(b"\xef\xbb\xbf" + rb"train0\\wave\a.avi" + b"\r\n" + rb"train0//wave\3.avi" + b"\r\n")
    prepare_list({"root": root, "lists": tmp_path / "lists"}, tmp_path / "out")
    rows = (tmp_path / "out" / "index.csv").read_text().splitlines()[1:]
    assert rows == ["wave/a,wave/a.avi,wave,train", "wave/3,wave/3.mp4,wave,train"]
    train.write_text("train0//wave/a.avi\n\ntrain0//wave/a.avi\n")
    with pytest.raises(UserError, match=r"line 3: 'wave/a\.avi' is in line 1 already"):
        prepare_list({"root": root, "lists": tmp_path / "lists"}, tmp_path / "out")


def clip(path, split):
    return Clip(f"{split} {path}", path, "x", split)


def test_one_file_under_several_names(root, capsys):
    os.symlink(root / "wave" / "a.avi", root / "run" / "link.avi")
    (root / "frames" / "other").mkdir()
    (root / "frames" / "other" / "9.jpg").write_bytes((root / "frames" / "clip" / "1.jpg").read_bytes())
    clips = [clip(path, "train") for path in ("wave/a.avi", "run/link.avi", "wave/3.mp4", "same/y.mp4", "none.mp4")]
    clips += [clip(path, "test") for path in ("copy/y.mp4", "frames/clip", "frames/other", "run/3.mp4", "none2.mp4")]
    groups = [[one.path for one in group] for group in same_files(root, clips)]
    assert groups == [["wave/a.avi", "run/link.avi"], ["same/y.mp4", "copy/y.mp4"], ["frames/clip", "frames/other"]]
    with pytest.raises(
        UserError, match=r"same/y\.mp4 is in train .* and in test .*, the same file as copy/y\.mp4; what"
    ):
        check_duplicates(root, clips)
    check_duplicates(root, clips, "keep")
    assert capsys.readouterr().err.count("warning: ") == 2
    with pytest.raises(UserError, match="did you mean 'keep'"):
        check_duplicates(root, clips, "kep")
