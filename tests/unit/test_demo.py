"""`make demo` without Snakemake: tables are printed as they come, and a failure is one line."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import pytest

from pipeline import demo
from pipeline.datasets.index import Clip, write_index
from pipeline.errors import UserError
from pipeline.plan import Plan
from pipeline.workspace import Workspace


class Snakemake:
    """Stands for the process: at its n-th look it has written the n-th file, then it ends."""

    def __init__(self, files, status=0, says=""):
        self.files, self.status, self.says, self.returncode, self.commands = list(files), status, says, None, []

    def __call__(self, command, stdout, stderr, env):
        self.commands.append((command[command.index("--") + 1 :], "PIPELINE_KEEP_CLUSTER" in env))
        self.returncode = None
        stdout.write(self.says)
        return self

    def poll(self):
        if self.files and (path := self.files[0]).parent.name in str(self.commands[-1][0]):
            del self.files[0]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("made")
        else:
            self.returncode = self.status
        return self.returncode

    def wait(self):
        self.returncode = self.status


@pytest.fixture
def shown(monkeypatch):
    """Papers whose tables were printed, in order."""
    out = []
    monkeypatch.setattr(demo, "print_table", lambda plan, paper, number, results: out.append(paper))
    monkeypatch.setattr(demo.time, "sleep", lambda seconds: None)
    return out


@pytest.fixture(scope="module")
def plan(repo):
    return Plan.read(repo / "config", {"scale": "demo"}, number="4")


def _run(monkeypatch, plan, results, process):
    monkeypatch.setattr(demo.subprocess, "Popen", process)
    demo.run_demo(plan, "4", results, "2")


def test_tables_are_printed_as_they_come_the_first_one_first(monkeypatch, plan, shown, tmp_path, capsys):
    order = ["lga", "sefar", "crossglg", "task_adapter"]
    process = Snakemake([tmp_path / paper / "table4.csv" for paper in order])
    _run(monkeypatch, plan, tmp_path, process)
    assert shown == order
    (first, kept), (rest, kept_then) = process.commands
    assert first == [str(tmp_path / "lga" / "table4.csv")] and kept and not kept_then
    assert rest[-1] == str(tmp_path / "table4.csv") and len(rest) == 4
    out, err = capsys.readouterr()
    assert out.count("after ") == 4 and "0 of 51 trainings, 0 of 75 numbers: about " in err


def test_tables_that_are_there_are_printed_too(monkeypatch, plan, shown, tmp_path):
    for paper in ("lga", "task_adapter", "crossglg", "sefar"):
        path = tmp_path / paper / "table4.csv"
        path.parent.mkdir()
        path.write_text("of yesterday")
        os.utime(path, (1, 1))
    _run(monkeypatch, plan, tmp_path, Snakemake([]))
    assert sorted(shown) == ["crossglg", "lga", "sefar", "task_adapter"] and shown[0] == "lga"


def test_a_failure_is_one_line_with_the_log(monkeypatch, plan, shown, tmp_path):
    process = Snakemake([tmp_path / "lga" / "table4.csv"], status=1, says="Building DAG\nerror: no space left\n\n")
    with pytest.raises(UserError, match=r"error: no space left; see .*logs/demo\.log and `python -m pipeline status`"):
        _run(monkeypatch, plan, tmp_path, process)
    assert shown == ["lga"]


def test_an_interrupt_waits_for_snakemake(monkeypatch, plan, shown, tmp_path):
    process = Snakemake([])

    def interrupted():
        raise KeyboardInterrupt

    process.poll = interrupted
    with pytest.raises(UserError, match="interrupted; the same command goes on from here"):
        _run(monkeypatch, plan, tmp_path, process)
    assert process.returncode == 0 and Path(tmp_path / "logs" / "demo.log").is_file()


def test_the_last_line_is_a_command_on_clips_that_it_laid_out(plan, tmp_path):
    assert demo.try_next(plan, tmp_path) == ""  # nothing is made yet
    ws = Workspace(tmp_path)
    key = min(run.dataset for run in plan.runs.values() if run.method == "lga")
    clips = []
    for label in "abcdefg":
        for number in range(5):
            path = ws.dataset(key) / "generated" / label / f"{number}.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"film")
            clips.append(Clip(f"{label}/{number}", f"{label}/{number}.mp4", label, "train" if label == "a" else "test"))
    write_index(ws.dataset(key) / "index.csv", clips)
    words = shlex.split(demo.try_next(plan, tmp_path))
    assert Path(words[0]).exists() and words[1:6] == ["-m", "pipeline", "predict", "--method", "lga"]
    given = {part: words[words.index(part) + 1] for part in ("--support", "--query")}
    for part, numbers in (("--support", {"0.mp4", "1.mp4"}), ("--query", {"2.mp4", "3.mp4"})):
        folders = {path.name: {clip.name for clip in path.iterdir()} for path in Path(given[part]).iterdir()}
        assert folders == dict.fromkeys("bcdef", numbers)
