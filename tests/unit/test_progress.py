"""Bars, the files that they leave, and how other processes' work is shown."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import threading
import time
from itertools import pairwise

import pytest

from pipeline import progress
from pipeline.progress import bar, follow, job, line, read_job, span
from pipeline.workspace import Workspace


@pytest.fixture
def ws(tmp_path, monkeypatch):
    monkeypatch.setattr(progress, "WRITE_SECONDS", 0.0)
    return Workspace(tmp_path)


def test_a_bar_writes_how_far_it_is_and_its_job_cleans_up(ws):
    path = ws.progress("train", "a-run")
    with job(ws, "train", "a-run"):
        assert read_job(path)["bars"] == []
        with bar("training", 10, "steps", done=4) as shown:
            time.sleep(0.02)
            shown.advance(3, "loss 0.5")
            with bar("encoding", 2, "clips"):
                first, second = read_job(path)["bars"]
        assert read_job(path)["bars"] == []
    assert (first["done"], first["total"], first["note"], second["words"]) == (7, 10, "loss 0.5", "encoding")
    # Only what was done here counts for the rate: 3 steps in at least 20 ms, and as many remain.
    assert 0 < first["rate"] <= 150 and first["left"] == pytest.approx(3 / first["rate"])
    assert not path.exists()


def test_the_file_is_written_once_a_second_at_most(ws, monkeypatch):
    monkeypatch.setattr(progress, "WRITE_SECONDS", 1.0)
    clock, written = [100.0], []
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(progress, "write_json", lambda path, record: written.append((clock[0], record["bars"])))
    with job(ws, "train", "a-run"), bar("training", 500, "steps") as outer:
        for _ in range(500):
            with bar("encoding", 2, "clips") as inner:
                inner.advance(2)
            clock[0] += 0.01
            outer.advance()
    times = [moment for moment, _ in written]
    assert len(written) == 6 and min(b - a for a, b in pairwise(times)) >= 1
    assert written[-1][1][0]["done"] == 500


def test_a_failure_keeps_its_reason_and_an_interruption_nothing(ws):
    with pytest.raises(ValueError), job(ws, "train", "bad"), bar("training", 2):
        raise ValueError("one\n\ntwo")
    record = read_job(ws.progress("train", "bad"))
    assert record["state"] == "failed" and record["reason"] == ["ValueError: one", "two"]
    with pytest.raises(KeyboardInterrupt), job(ws, "train", "stopped"):
        raise KeyboardInterrupt
    assert not ws.progress("train", "stopped").exists()


def test_a_killed_process_is_seen(ws, tmp_path):
    code = (
        "import os, sys; from pipeline.progress import job; from pipeline.workspace import Workspace\n"
        "with job(Workspace(sys.argv[1]), 'train', 'killed'): os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)]).returncode == -9
    assert read_job(ws.progress("train", "killed"))["state"] == "lost"
    ws.progress("train", "killed").write_text("{")
    assert read_job(ws.progress("train", "killed")) is None


def test_no_terminal_gets_a_line_now_and_then_and_no_bar(monkeypatch):
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    monkeypatch.setattr(sys, "stderr", stream := io.StringIO())
    with bar("training", 3, "steps") as shown:
        shown.advance(note="loss 1.0")
    monkeypatch.setattr(progress, "LINE_SECONDS", 60.0)
    with bar("training", 3, "steps") as shown:
        shown.advance(3)
    assert len(stream.getvalue().splitlines()) == 1
    assert stream.getvalue().startswith("training: 1 of 3 steps, ") and stream.getvalue().endswith("left (loss 1.0)\n")


def test_a_terminal_gets_bars_one_within_another(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stderr", stream := Terminal())
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm")
    with bar("training", 3, "steps") as outer:
        outer.advance(2, "loss 0.25")
        with bar("encoding", 5, "clips") as inner:
            inner.advance(5)
        outer.advance()
    shown = stream.getvalue()
    assert "training" in shown and "3/3" in shown and "steps" in shown and "loss 0.25" in shown
    assert progress._here.display is None and progress._here.bars == []


def test_following_shows_another_process_and_keeps_why_it_failed(ws, monkeypatch):
    shown, done = [], threading.Event()
    monkeypatch.setattr(progress, "_show", lambda made: (shown.append((made.words, made.done)), done.set()))
    monkeypatch.setattr(progress, "WRITE_SECONDS", 0.01)
    with pytest.raises(RuntimeError), follow(ws, "train", "far"):
        path = ws.progress("train", "far")
        record = json.loads(path.read_text())
        for count in (1, 2):
            state = {**progress.Bar("training", 9, "steps", count).state()}
            progress.write_json(path, record | {"bars": [state]})
            done.wait(5 if count > 1 else 0.1)
        raise RuntimeError("a worker died")
    assert shown[-1] == ("training", 2)
    assert read_job(path)["reason"] == ["RuntimeError: a worker died"]
    with follow(ws, "train", "far"):
        pass
    assert not path.exists()


def test_words():
    assert [span(seconds) for seconds in (3.2, 300, 3 * 3600 + 300)] == ["3 s", "5 min", "3 h 05 min"]
    state = {"words": "testing", "done": 2, "total": 1000, "unit": "clips", "note": "", "rate": 0.05, "left": 19960.0}
    assert line(state) == "testing: 2 of 1,000 clips, 20 s each, 5 h 33 min left"


def test_a_process_is_told_from_another_one_with_its_number():
    mine = progress.this_process()
    assert progress.lives(mine)
    assert not progress.lives(mine | {"began": mine["began"] - 1})  # the number was used again
    assert progress.lives(mine | {"host": "elsewhere", "pid": 2**22 - 3})  # nobody can tell
    assert not progress.lives(mine | {"pid": 2**22 - 3})
    ended = subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE)
    record = mine | {"pid": ended.pid, "began": None}
    ended.stdout.read()
    end = time.monotonic() + 5
    while progress.lives(record) and time.monotonic() < end:  # it has ended, and nobody has waited for it
        time.sleep(0.01)
    assert not progress.lives(record)
    ended.wait()
