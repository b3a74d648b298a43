"""`python -m pipeline` as a user meets it."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipeline import __main__ as cli
from pipeline.cluster import nodes
from pipeline.errors import UserError
from pipeline.plan import Plan
from pipeline.workspace import Workspace


def _call(monkeypatch, capsys, *arguments) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of the entry point, in this process."""
    monkeypatch.setattr(sys, "argv", ["pipeline", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    out, err = capsys.readouterr()
    return caught.value.code or 0, out, err


def test_plan_in_a_process_of_its_own(repo, tmp_path):
    """Also that nothing heavy is imported to plan."""
    code = (
        "import sys, runpy; sys.argv = ['pipeline', 'plan', '--write', '--results', sys.argv[1]]\n"
        "try:\n    runpy.run_module('pipeline', run_name='__main__')\n"
        "except SystemExit as end:\n    assert not end.code\n"
        "print(sorted({'torch', 'mmaction', 'ray', 'transformers'} & set(sys.modules)))"
    )
    environment = {**os.environ, "PYTHONPATH": str(repo / "src"), "COLUMNS": "200"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=repo, env=environment, text=True, capture_output=True
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
    plan = Plan.read(repo / "config")
    trained = sum(bool(run.train) for run in plan.runs.values())
    words = " ".join(done.stdout.split())
    assert f"{len(plan.cells)} distinct cells of {len(plan.runs)} runs, {trained} of them trainings" in words
    assert "GPU hours" in words and "0 trained" in words and "sweep lga_table6-synthetic_scene" in words
    run = next(iter(plan.runs.values()))
    assert Workspace(tmp_path).read_run(run.id) == run


@pytest.mark.parametrize("scale", ["quick", "paper"])
def test_plan_at_other_scales(monkeypatch, capsys, repo, tmp_path, scale):
    status, out, _ = _call(
        monkeypatch, capsys, "plan", "--config", repo / "config", "--scale", scale, "--results", tmp_path
    )
    assert status == 0 and f"plan at scale {scale}" in out and not list(tmp_path.iterdir())


def test_plan_takes_settings_as_json_and_as_a_file(monkeypatch, capsys, repo, tmp_path):
    settings = tmp_path / "mine.yaml"
    settings.write_text("seeds: [0, 1]\n")
    count = len(Plan.read(repo / "config", {"seeds": [0, 1]}).runs)
    for overlay in ('{"seeds": [0, 1]}', settings):
        status, out, _ = _call(
            monkeypatch, capsys, "plan", "--config", repo / "config", "--overlay", overlay, "--results", tmp_path
        )
        assert status == 0 and f"of {count} runs" in " ".join(out.split())


def test_plan_of_one_number_counts_its_tables_alone(monkeypatch, capsys, repo, tmp_path):
    runs = len(Plan.read(repo / "config", number="4").runs)
    status, out, _ = _call(
        monkeypatch, capsys, "plan", "--config", repo / "config", "--table", "4", "--results", tmp_path
    )
    assert status == 0 and f"of {runs} runs" in " ".join(out.split()) and "fig" not in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plan", "--table", "44"], "unknown table '44'; did you mean '4'?"),
        (["plan", "--scale", "demos"], "unknown scale 'demos'"),
        (["plan", "--overlay", '{"trian": {}}'], "did you mean 'train'?"),
        (["plan", "--overlay", "no-such.yaml"], "no-such.yaml: no such file"),
        (["plan", "--config", "nowhere"], "nowhere/config.yaml: no such file"),
        (["table", "44", "--paper", "lga"], "unknown table 'table44' in paper lga; did you mean 'table4'?"),
        (["table", "4", "--paper", "lgaa"], "unknown paper 'lgaa'; did you mean 'lga'?"),
        (["train", "no-such-run"], "no experiment 'no-such-run'"),
        (["evaluate", "no-such-run"], "no experiment 'no-such-run'"),
        (["frames", "nothing-00000000", "frames-00000000"], "no experiment 'nothing-00000000'"),
        (["frames", "a-00000000", "frames-00000000", "--nodes", "2"], "2 nodes are wanted, and this is no Slurm job"),
        (["sweep", "nothing", "--settings", '{"mode": "job"}'], "no experiment 'sweep-nothing'"),
    ],
)
def test_mistakes_are_one_line_and_status_2(monkeypatch, capsys, repo, tmp_path, arguments, message):
    monkeypatch.chdir(tmp_path)
    if "--config" not in arguments:
        (tmp_path / "config").symlink_to(repo / "config")
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "environ", os.environ.copy())
    status, out, err = _call(monkeypatch, capsys, *arguments)
    lines = [line for line in err.splitlines() if line]
    assert status == 2 and len(lines) == 1 and lines[0].startswith("error: ") and message in lines[0]
    assert out == "" and not (tmp_path / "results" / "cells").exists()


@pytest.mark.parametrize(
    "stage",
    [
        ["frames", "a", "b"],
        ["poses", "a"],
        ["pose", "videos", "--out", "poses"],
        ["embed", "videos", "--out", "features"],
    ],
)
def test_a_stage_over_nodes_takes_the_cpus_that_its_job_has(monkeypatch, capsys, tmp_path, stage):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    asked = []
    monkeypatch.setattr(nodes, "spread", lambda command, ws, settings: asked.append((command, ws, settings)) or 3)
    options = ["--workers", "16", "--nodes", "4", "--interface", "ib0", "--results", str(tmp_path)]
    status, _, _ = _call(monkeypatch, capsys, *stage, *options)
    ((command, ws, settings),) = asked
    assert status == 3 and command[1:] == ["-P", "-m", "pipeline", *stage, *options] and ws.root == tmp_path
    assert (settings.nodes, settings.interface, nodes.cpus_per_node(settings)) == (4, "ib0", 16)


def test_a_full_disk_is_one_line(monkeypatch, capsys, repo, tmp_path):
    def full(*_):
        raise OSError(28, "No space left on device", str(tmp_path / "specs" / "x.json"))

    monkeypatch.setattr(Plan, "write_specs", full)
    arguments = ("plan", "--write", "--config", repo / "config", "--results", tmp_path)
    status, _, err = _call(monkeypatch, capsys, *arguments)
    assert status == 2 and "no space left on the disk" in err and "Traceback" not in err

    def other(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Plan, "write_specs", other)
    monkeypatch.setattr(sys, "argv", ["pipeline", *map(str, arguments)])
    with pytest.raises(OSError, match="Input/output"):
        cli.main()


@pytest.mark.parametrize(
    ("number", "line"),
    [
        (errno.EROFS, "the file system is read-only"), (errno.EACCES, "no permission for"),
        (errno.EDQUOT, "your quota is used up"), (errno.ENOLCK, "has no locks"),
    ],
)  # fmt: skip
def test_what_the_system_refuses_is_one_line_with_the_path(monkeypatch, capsys, repo, tmp_path, number, line):
    def refused(*_):
        raise OSError(number, os.strerror(number), str(tmp_path / "specs" / "x.json"))

    monkeypatch.setattr(Plan, "write_specs", refused)
    status, _, err = _call(monkeypatch, capsys, "plan", "--write", "--config", repo / "config", "--results", tmp_path)
    assert status == 2 and line in err and f"{tmp_path}/specs/x.json; " in err and len(err.splitlines()) == 1


def test_a_write_that_is_refused_names_the_folder(monkeypatch, tmp_path):
    from pipeline import files

    def refused(*_):
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(Path, "write_bytes", refused)
    with pytest.raises(UserError, match=f"your quota is used up on the disk of {tmp_path}; free some"):
        files.write_text(tmp_path / "x", "y")
    monkeypatch.setattr(Path, "mkdir", lambda *_, **__: refused())
    with pytest.raises(UserError, match="your quota"):
        files.write_text(tmp_path / "new" / "x", "y")


def test_a_file_in_the_working_folder_is_no_module_of_python(tmp_path):
    for name in ("queue", "locale", "json"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('mine')\n")
    environment = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[1])}
    environment.pop("PYTHONSAFEPATH", None)
    command = [sys.executable, "-m", "pipeline", "cluster", "status"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout == "no cluster is running\n", done.stderr


def test_text_is_utf_8_in_every_locale(monkeypatch):
    begun = []
    flags = type("Flags", (), {"utf8_mode": 0})
    monkeypatch.setattr(cli.os, "execv", lambda *words: begun.append(words))
    monkeypatch.setattr(cli.sys, "flags", flags)
    monkeypatch.setattr(cli.sys, "orig_argv", ["python", "-m", "pipeline", "status"])
    monkeypatch.delenv("PYTHONUTF8", raising=False)
    monkeypatch.setattr(cli.locale, "getencoding", lambda: "UTF-8")
    cli.use_utf8()
    assert not begun and os.environ["PYTHONUTF8"] == "1"
    monkeypatch.setattr(cli.locale, "getencoding", lambda: "ISO-8859-1")
    cli.use_utf8()
    assert begun == [(sys.executable, [sys.executable, "-m", "pipeline", "status"])]
    flags.utf8_mode = 1
    cli.use_utf8()
    assert len(begun) == 1


STAGES = (
    "videos", "splits", "text", "frames", "pretrain", "train", "sweep", "evaluate", "inspect", "table", "figure",
    "curves", "report", "show", "plan", "status", "cluster", "describe", "split", "download", "predict", "adapt",
    "runs", "embed", "export", "doctor", "pose", "poses", "dashboard", "demo", "rehearse", "schema", "effects",
    "bench-gpu",
)  # fmt: skip


def test_help_of_every_stage():
    runner = CliRunner()
    top = runner.invoke(cli.app, ["--help"])
    assert top.exit_code == 0 and all(stage in top.output for stage in STAGES)
    names = {command.name or command.callback.__name__ for command in cli.app.registered_commands} | {"cluster"}
    assert names == set(STAGES)
    for stage in STAGES:
        shown = runner.invoke(cli.app, [stage, "--help"])
        assert shown.exit_code == 0 and len(shown.output.splitlines()) > 5
    hidden = runner.invoke(cli.app, ["cluster", "--help"]).output
    assert "start" in hidden and "stop" in hidden and "serve" not in hidden


def test_status_and_stop_without_a_cluster(monkeypatch, capsys, tmp_path):
    for command in ("status", "stop"):
        status, out, _ = _call(monkeypatch, capsys, "cluster", command, "--results", tmp_path)
        assert status == 0 and out.strip() == "no cluster is running"


def test_status_of_a_dead_cluster(monkeypatch, capsys, tmp_path):
    """A record whose process or port is gone, after a power cut say, is no cluster."""
    from ports import free_port

    from pipeline.progress import this_process

    ws = Workspace(tmp_path)
    ws.ray.mkdir(parents=True)
    record = {"address": "127.0.0.1:1", "queue": f"127.0.0.1:{free_port()}", "dashboard": None} | this_process()
    for content in (json.dumps(record), json.dumps(record | {"pid": 2**22 - 3}), "{half"):
        (ws.ray / "cluster.json").write_text(content)
        status, out, _ = _call(monkeypatch, capsys, "cluster", "status", "--results", tmp_path)
        assert status == 0 and out.strip() == "no cluster is running"


def test_evaluate_prints_numbers_with_and_without_an_interval(monkeypatch, capsys, repo, tmp_path):
    """A count of parameters has none. Everything is measured already, so no cluster is asked."""
    from pipeline.evaluation.needed import value_path
    from pipeline.files import write_json

    plan, ws = Plan.read(repo / "config"), Workspace(tmp_path)
    plan.write_specs(tmp_path / "specs")
    cell = next(cell for cell in plan.cells.values() if cell.measure.metric == "params_m")
    monkeypatch.setattr(Workspace, "read_cells", lambda self, run, wanted: [cell])
    write_json(value_path(ws, cell.run, cell.measure), {"parameters": 1_183_488})
    status, out, err = _call(monkeypatch, capsys, "evaluate", cell.run.id, "--results", tmp_path)
    assert status == 0, err
    assert out.strip() == f"{ws.cell(cell.id)}: 1.18"
