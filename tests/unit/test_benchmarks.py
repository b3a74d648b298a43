"""The benchmarks at sizes of seconds: both ways of each line must give the same, and a line must say when it fails."""

from __future__ import annotations

import json
import os
import socket
import threading
import types

import numpy as np
import pytest
import torch

from benchmarks import (
    data,
    environments,
    floor,
    kills,
    matching,
    precision,
    reference,
    run,
    sandbox,
    scaling,
    skeletons,
    store,
    teacher,
    testing,
    training,
    workflow,
)
from benchmarks.lines import Line, least, markdown, peak, timed
from benchmarks.world import World
from pipeline.cluster.queue import QueueServer
from pipeline.datasets import frames as decoding
from pipeline.evaluation.health import read_training
from pipeline.models.backbones.nano_clip import nano_config
from pipeline.plan import Plan
from pipeline.progress import lives, this_process

CLIP = nano_config(64, image_size=32, width=32, mlp_width=32, layers=10, heads=2, projection_dim=16)
SMALL = training.Width("nano", CLIP, 32, 3, 3, 4, 1)


@pytest.fixture(scope="module")
def small(world):
    """The tests' world as the benchmarks see one."""
    dataset = world.plan.datasets[world.run(method="otam").dataset]
    return World(world.ws, world.plan, dataset, world.store)


# ------------------------------------------------------------------------------------------------- lines
def test_a_line_says_what_it_misses():
    targets = (("ratio", 50.0), ("fast", 2.0), ("memory", 1000.0))
    good = Line("t", "w", 100.0, 2.0, targets=targets, memory=10.0, equal=True)
    assert good.ratio == 50 and good.missed() == [] and good.cells()[6:8] == ["yes", "yes"]
    slow = Line("t", "w", 100.0, 4.0, targets=targets, memory=1001.0, equal=False)
    assert slow.missed() == ["ratio 25, not 50", "fast 4, not 2", "memory 1e+03, not 1000"]
    assert slow.cells()[6].startswith("NO: ratio 25") and slow.cells()[7] == "NO"
    assert Line("t", "w", 1.0, 1.1, targets=(("share", 1.2),)).missed() == []
    assert Line("t", "w", 1.0, 1.3, targets=(("share", 1.2),)).missed() == ["share 1.3, not 1.2"]
    alone = Line("t", "w", None, 3.0, unit="MB")
    assert alone.ratio is None and alone.cells() == ["w", "-", "3 MB", "-", "-", "-", "-", "-", ""]
    assert "| t | w | - | 3 MB |" in markdown([alone], "# B") and slow.record()["missed"] == slow.missed()


def test_times_and_memory_are_those_of_the_call():
    seconds, result = timed(lambda: 7)
    assert result == 7 and 0 <= seconds < 1 and least(lambda: None, 2) < 1
    size, block = peak(lambda: torch.ones(25_000_000))
    assert block.numel() == 25_000_000 and 80 < size < 150
    size, _ = peak(lambda: torch.ones(25_000_000).sum())  # freed again before the end
    assert 80 < size < 150


# ---------------------------------------------------------------------------------- the same either way
def test_matching_is_that_of_the_reference(monkeypatch):
    settings = dict(episodes=12, classes=6, clips=8, subset=4, trx_episodes=6)
    lines = matching.measure(**settings)
    assert len(lines) == 2 * 2 * 5 and all(line.equal for line in lines)
    assert all(bool(line.targets) == ("pair by pair" in line.what) for line in lines)
    monkeypatch.setattr(reference, "episode", lambda *_: np.eye(5)[::-1])
    lines = matching.measure(**settings, matchers=("mean",))
    assert [line.equal for line in lines] == [False, True, False, True]


@pytest.mark.parametrize("matcher", list(matching.TITLES))
def test_distances_of_the_reference(matcher):
    """Not the classes alone: the numbers themselves."""
    features, labels = matching.make_features(5, 4)
    model = matching.build(matcher)
    table = matching.episode_table(labels, 5, 2, 1, 3, 0)
    alone = matching.one_at_a_time(model, features, table)
    np.testing.assert_allclose(matching.pairwise(matcher, model, features, table), alone, rtol=2e-4, atol=2e-4)
    assert np.ptp(alone) > 0.01


def test_whole_tests_and_the_trunk(small):
    lines = testing.measure(small, episodes=20, subset=3, trunk_episodes=2)
    assert len(lines) == 6 and all(line.equal for line in lines)
    assert [line.targets for line in lines[-2:]] == [(("ratio", 4.0),), ()]


def test_steps_of_training():
    lines = training.measure((SMALL,), compiled=False)
    assert len(lines) == 12 and all(line.equal for line in lines if line.unit == "s")
    names = [line.what.split(",")[0] for line in lines[::2]]
    assert len(set(names)) == 6
    other = training.Step(training._otam(SMALL), training.episode(SMALL))
    with torch.no_grad():
        other.model.backbone.clip.visual_projection.weight[:8] = 0
    (time, _) = training._compare("w", SMALL, training.Step(training._otam(SMALL), training.episode(SMALL)), other)
    assert time.equal is False


def test_data(small, tmp_path, monkeypatch):
    monkeypatch.setattr(decoding, "guarded_map", lambda function, jobs, *_: (function(job) for job in jobs))
    monkeypatch.setattr(data, "SIDE", 32)
    lines = data.measure(small, tmp_path, 1, (12, 14), 64, steps=2, repeats=1, loader_workers=0, videos=70)
    assert [line.equal for line in lines] == [True, None, True, None, True, True, *[None] * 11]
    assert lines[6].ratio == 4 and "goes to the device" in lines[6].what
    assert "KB a clip (13 frames of 32 pixels)" in lines[0].note and all(
        line.fast > 0 or "computed" in line.what for line in lines
    )


def test_forms_of_the_store(monkeypatch):
    """Fewer bytes at lower quality, and the frames that are sought in a video are those that were asked for."""
    forms = ("JPEG, quality 95", "JPEG, quality 75", "H.264, key frames, crf 18")
    monkeypatch.setattr(store, "FORMS", {name: store.FORMS[name] for name in forms})
    shades = np.linspace(20, 230, 12).astype(np.uint8)
    rng = np.random.default_rng(0)
    ground = np.kron(rng.integers(0, 20, (32, 32, 1), np.uint8), np.ones((8, 8, 3), np.uint8))
    rows = list(store.compare([[ground + shade for shade in shades]], draws=2))
    size, likeness = ([float(row[i]) for row in rows] for i in (1, 5))
    assert [row[0] for row in rows] == list(forms) and size[1] < size[0] and all(value > 30 for value in likeness)


def test_decisions_in_both_precisions(world, tmp_path):
    cell = world.cell(method="otam", train={"steps": 1, "validate_every": 1})
    said = []
    for name, numbers in (("one", "float32"), ("two", "bf16")):
        ws = world.elsewhere(tmp_path / name)
        classes, right = precision.decisions(cell.run, cell.measure, ws, numbers)
        said.append(classes)
        assert classes.shape == right.shape and read_training(ws.trained(cell.run.id)).precision == numbers
    assert (said[0] == said[1]).mean() > 0.8


def test_the_teacher():
    one, apart = teacher.measure(3, 2, repeats=1)
    assert one.equal and apart.equal and one.targets == (("share", 1.2),)


def test_skeletons(tmp_path):
    epoch, built = skeletons.measure(tmp_path, clips=2500, files=2)
    assert epoch.equal and epoch.memory is not None and "2,500 skeletons" in epoch.what and built.fast > 0
    assert not (tmp_path / "ntu" / "joints.bin").exists()


def test_the_plan_and_the_start(small, world, tmp_path):
    elsewhere = World(world.elsewhere(tmp_path), small.plan, small.dataset, small.store)
    start, shared, places = workflow.measure(elsewhere, "demo", dry_runs=False)
    assert start.fast > 0 and len(list((tmp_path / "runs").glob("*/train.json"))) == 2
    assert shared.plain > shared.fast > 100 and places.plain > places.fast


# ------------------------------------------------------------------------------------- slopes and floors
def test_slopes_and_their_plot(tmp_path):
    assert scaling.slope([1, 2, 4], [3, 12, 48]) == pytest.approx(2)
    axes = ("clips", "classes", "episodes", "way", "shots", "frames")
    found = {axis: ([1, 2, 4], [1.0, 2.0, 4.0]) for axis in axes}
    scaling.plot(found, dict.fromkeys(axes, "work"), tmp_path / "bench" / "scaling.png")
    assert (tmp_path / "bench" / "scaling.png").stat().st_size > 10_000


def test_operations_and_bytes_are_counted():
    one, two = torch.ones(20, 30), torch.ones(30, 40)
    flops, moved = floor.count(lambda: (one @ two).t().add(1))
    assert flops == 2 * 20 * 30 * 40
    assert moved == 4 * (20 * 30 + 30 * 40 + 20 * 40 + 2 * 20 * 40)  # the transposition moves nothing
    lines = floor.measure(SMALL, 64, 2**12)
    assert [line.ratio > 0 for line in lines] == [True, True] and "GFLOP" in lines[0].note


# ----------------------------------------------------------------- what is tried out in folders of its own
def test_what_is_left_in_a_sandbox_is_found_and_goes(tmp_path):
    """Also a process whose parent has gone."""
    with sandbox.sandbox() as box:
        code = "import os, time; os.fork() and os._exit(0); os.setsid(); time.sleep(60)"
        assert box.python("-c", code).wait(20) == 0
        (orphan,) = box.processes()
        (box.temporary / "actions-x").mkdir()
        (tmp_path / "ray" / "metrics").mkdir(parents=True)
        (tmp_path / "ray" / "metrics" / "a.json").touch()
        left = box.left(tmp_path)
        assert [each.split(" ")[0] for each in left] == ["process", "folder", "file"] and str(orphan.pid) in left[0]
    assert not lives(this_process() | {"pid": orphan.pid, "began": None}) and not box.folder.exists()


def test_the_tiny_table_is_planned(repo):
    plan = Plan.read(repo / "config", sandbox.CONFIG, number="0")
    assert len({cell.run.id for entry in plan.table_entries("tiny", "0") for cell in entry.cells}) == 2


def test_tables_differ_by_their_lines():
    assert sandbox.difference(b"a\nb\n", b"a\nb\n") == []
    assert sandbox.difference(b"a\nb\n", b"a\nc\n") == ["another table: b / c"]


def test_kills_are_those_of_the_seed_and_of_every_kind():
    drawn = kills.draw(16, 3)
    assert drawn == kills.draw(16, 3) != kills.draw(16, 4)
    assert len({(one.mode, one.target) for one in drawn}) == len(sandbox.MODES) * len(kills.TARGETS)
    assert all(0 < one.share < 1 for one in drawn) and len({one.share for one in drawn}) == 16


def test_victims_are_told_by_their_commands():
    said = {
        1: "python -m snakemake", 2: "python -P -m ray.scripts.scripts start --block --head",
        3: "/x/gcs/gcs_server --log_dir=/t",
        4: "ray::TrainController", 5: "ray::RayTrainWorker", os.getpid(): "python -m pipeline train",
    }  # fmt: skip
    processes = [types.SimpleNamespace(pid=pid, cmdline=words.split) for pid, words in said.items()]

    def pids(target):
        return [each.pid for each in kills.victims(target, os.getpid(), processes)]

    assert pids("everything") == list(said) and pids("snakemake") == [os.getpid()]
    assert pids("worker") == [5] and pids("head") == [2, 3] and pids("controller") == [4]
    del processes[4]
    assert pids("worker") == []


def test_a_queue_refuses_strangers_and_one_that_does_not_is_found_out(tmp_path):
    assert environments.knock(QueueServer("127.0.0.1", "s3cret").address, tmp_path / "made") == ""

    def talk(answer):
        with socket.create_server(("127.0.0.1", 0)) as server:

            def serve():
                with server.accept()[0] as caller:
                    caller.sendall(b'"nonce"\n')
                    caller.recv(4096)
                    caller.sendall(answer)

            thread = threading.Thread(target=serve)
            thread.start()
            found = environments.knock("{}:{}".format(*server.getsockname()), tmp_path / "made")
            thread.join(10)
        return found

    assert talk(b'{"answer": null}\n').startswith("the queue answers a stranger: ['nonce', {'answer': None}]")
    assert talk(b"\x80\x04\n").startswith("the queue says what is no JSON")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        assert environments.knock("{}:{}".format(*closed.getsockname()), tmp_path / "made") is None


# ----------------------------------------------------------------------------------------------- command
def test_the_command_writes_its_table(tmp_path, monkeypatch, capsys):
    lines = [Line("6 workflow", "something", 2.0, 1.0, targets=(("ratio", 1.5),))]
    monkeypatch.setattr(run.teacher, "measure", lambda: lines)
    run.main(["teacher", "--threads", "1", "--out", str(tmp_path)])
    assert "something" in capsys.readouterr().out
    record = json.loads((tmp_path / "bench.json").read_text())
    assert record["lines"][0]["ratio"] == 2 and record["lines"][0]["missed"] == []
    assert "something" in (tmp_path / "bench.md").read_text()
    assert {path.name for path in tmp_path.iterdir()} == {"bench.json", "bench.md"}
    with pytest.raises(SystemExit):
        run.main(["teachre"])
    assert "unknown topic 'teachre'" in capsys.readouterr().err
