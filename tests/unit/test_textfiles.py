"""Text files of any system, and names that are written otherwise than what is there."""

import gzip
import unicodedata

import pytest

from pipeline.errors import UserError
from pipeline.names import near_path
from pipeline.textfiles import load_json, load_yaml, read_lines, read_table, read_text

UMLAUT = "h\u00fcpfen"


@pytest.mark.parametrize(
    "data",
    [
        f"{UMLAUT}\nrun\n".encode(),
        b"\xef\xbb\xbf" + f"{UMLAUT}\r\nrun\r\n".encode(),
        unicodedata.normalize("NFD", f"{UMLAUT}\rrun").encode(),
        f"{UMLAUT}\nrun".encode("utf-16"),
        gzip.compress(f"{UMLAUT}\nrun".encode()),
    ],
    ids=["plain", "mark and CRLF", "decomposed and CR", "UTF-16", "gzip"],
)
def test_one_text_however_it_was_saved(tmp_path, data):
    (tmp_path / "list.txt").write_bytes(data)
    assert read_lines(tmp_path / "list.txt") == [UMLAUT, "run"]


def test_what_is_no_text(tmp_path):
    path = tmp_path / "list.txt"
    with pytest.raises(UserError, match=r"there is no list .*list\.txt; correct its path or fetch it"):
        read_lines(path)
    path.write_bytes("run\ncaf\u00e9\n".encode("latin-1"))
    with pytest.raises(UserError, match="line 2 is not UTF-8: byte 0xe9; save it as UTF-8"):
        read_text(path)
    path.write_bytes(gzip.compress(b"run" * 99)[:20])
    with pytest.raises(UserError, match="cannot be read"):
        read_text(path)


def test_the_nearest_path_is_said(tmp_path):
    (tmp_path / "Data" / "videos").mkdir(parents=True)
    for wrong, near in (("data/videos", "Data"), ("Data/vidoes", "Data/videos"), ("nothing/alike", None)):
        assert near_path(tmp_path / wrong) == (f"; the nearest that is there is {tmp_path / near}" if near else "")
    with pytest.raises(UserError, match=r"correct its path; the nearest that is there is .*/Data/videos$"):
        read_text(tmp_path / "Data" / "video")


def test_tables(tmp_path):
    path = tmp_path / "table.csv"
    for text in ("path,label\na.mp4, run \n", "path;label;note\na.mp4;run;x\n", "path\tlabel\na.mp4\trun\n"):
        path.write_text(text)
        (row,) = read_table(path, "the table", ("path", "label"))
        assert (row["path"], row["label"]) == ("a.mp4", "run")
    path.write_text("path,label\na.mp4,run,fast\n")
    with pytest.raises(UserError, match="row 2 has more cells"):
        read_table(path, "the table", ("path", "label"))
    path.write_text("file,label\n")
    with pytest.raises(UserError, match="lacks the column path; it needs"):
        read_table(path, "the table", ("path", "label"))


def test_a_key_that_is_there_twice():
    for load in (load_json, load_yaml):
        assert load('{"a": {"b": 1}}') == {"a": {"b": 1}}
        with pytest.raises(ValueError, match="'b' is there twice"):
            load('{"a": {"b": 1, "b": 2}}')
    twice = []
    assert load_yaml("a: 1\nb: 2\na: 3\n", twice.append) == {"a": 3, "b": 2} and twice == ["a"]
    with pytest.raises(ValueError, match="line 1"):
        load_yaml("{")
