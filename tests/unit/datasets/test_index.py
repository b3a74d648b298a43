import errno
import os

import pytest

from pipeline.datasets import index as module
from pipeline.datasets.index import Clip, classes_of, read_index, write_index
from pipeline.errors import UserError

CLIPS = [Clip("jump/a", "jump/a.mp4", "jump", "train"), Clip("run/b", "run/b, c.mp4", "run", "test")]


def test_what_is_written_is_read(tmp_path):
    path = write_index(tmp_path / "new" / "index.csv", CLIPS)
    assert path.read_text().splitlines()[0] == "clip,path,label,split"
    assert read_index(path) == CLIPS
    assert [file.name for file in path.parent.iterdir()] == ["index.csv"]
    assert classes_of(CLIPS) == ["jump", "run"]
    assert classes_of(CLIPS, "test") == ["run"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("clip,path,split\na,a.mp4,train\n", "lacks the column label"),
        (
            "clip,path,label,split\na,a.mp4,jump,trian\n",
            "unknown split 'trian'.*line 2.*did you mean 'train'",
        ),
        ("clip,path,label,split\na,a.mp4,jump,train\na,b.mp4,jump,train\n", "'a' 2 times"),
        ("clip,path,label,split\na,,jump,train\n", "line 2: path is empty"),
        ("clip,path,label,split\n", "lists no clip"),
        ("", "lacks the column clip, path"),
    ],
)
def test_a_wrong_index_is_explained(tmp_path, text, message):
    path = tmp_path / "index.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_index(path)


def test_a_missing_index(tmp_path):
    with pytest.raises(UserError, match="prepare the data set first"):
        read_index(tmp_path / "index.csv")


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    path = write_index(tmp_path / "index.csv", CLIPS)

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(module.os, "replace", full)
    with pytest.raises(UserError, match="no space left"):
        write_index(path, CLIPS[:1])
    monkeypatch.undo()
    assert read_index(path) == CLIPS
    assert len(list(tmp_path.iterdir())) == 1
