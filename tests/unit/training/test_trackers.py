"""Curves in TensorBoard, and the trackers that are asked for."""

from __future__ import annotations

import csv
import sys
from types import ModuleType, SimpleNamespace

import pytest

from pipeline.errors import UserError
from pipeline.training import trackers
from pipeline.training.trackers import Tracked, visualizer

RUN = SimpleNamespace(id="lga-scene-s0-00000000")


class Recorder:
    """What a visualiser is told."""

    def __init__(self):
        self.told, self.closed = [], False

    def add_scalars(self, values, step):
        self.told.append((step, values))

    def close(self):
        self.closed = True


def test_each_step_is_told_once_with_its_validation():
    rows, told = [], Recorder()
    hook = Tracked(rows, every=2)
    for iteration in range(4):
        if iteration % 2:
            rows.append({"step": (iteration + 1) // 2, "loss": 0.5 * iteration, "seconds": 9.0})
        if iteration == 3:
            rows[-1]["validation_accuracy"] = 40
        hook.after_train_iter(SimpleNamespace(iter=iteration, visualizer=told), 0)
    hook.after_train(SimpleNamespace(visualizer=told))
    assert told.told == [(1, {"loss": 0.5}), (2, {"loss": 1.5, "validation_accuracy": 40.0})] and told.closed


def test_steps_that_were_read_together_are_told_one_by_one_and_those_of_before_not_again():
    told, rows = Recorder(), [{"step": "3", "loss": "0.25", "learning_rate": "1e-3"}]  # of an interrupted training
    hook = Tracked(rows, every=1)
    hook.after_train_iter(SimpleNamespace(iter=3, visualizer=told), 0)
    assert told.told == []
    rows += [{"step": step, "loss": step / 8} for step in (4, 5)]
    hook.after_train_iter(SimpleNamespace(iter=4, visualizer=told), 0)
    rows.append({"step": 6, "loss": 0.75})
    hook.after_train(SimpleNamespace(visualizer=told))
    assert told.told == [(4, {"loss": 0.5}), (5, {"loss": 0.625}), (6, {"loss": 0.75})]


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_tracker_that_is_not_installed_is_one_line(tmp_path, monkeypatch, name):
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=f"cluster.tracker is {name}, .* pip install {name}$"):
        visualizer(RUN, tmp_path, name)


@pytest.mark.parametrize(("name", "kind"), [("wandb", "WandbVisBackend"), ("mlflow", "MLflowVisBackend")])
def test_a_tracker_gets_the_id_of_the_run(tmp_path, monkeypatch, name, kind):
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda _: ModuleType(name))
    first, second = visualizer(RUN, tmp_path, name)["vis_backends"]
    assert first["type"] == "TensorboardVisBackend" and second["type"] == kind
    assert RUN.id in (second.get("run_name"), second.get("init_kwargs", {}).get("id"))
    pytest.importorskip("mmengine.visualization")
    from mmengine.registry import VISBACKENDS

    assert VISBACKENDS.get(kind)(save_dir=str(tmp_path), **{k: v for k, v in second.items() if k != "type"})
    assert name not in sys.modules  # nothing is sent before a training begins


def test_two_trainings_of_a_run_do_not_share_a_visualiser(tmp_path):
    one, two = (visualizer(RUN, tmp_path / name, "") for name in ("a", "b"))
    assert one["name"] != two["name"] and one["save_dir"] != two["save_dir"]


def read_events(folder):
    """(step, value) of each scalar in the event files of a folder."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder)).Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_the_curve_is_in_tensorboard(world, tmp_path):
    from pipeline.training.train import train_run

    ws, run = world.elsewhere(tmp_path), world.run(method="otam", train={"steps": 3})
    train_run(run, ws)
    with (ws.run(run.id) / "curve.csv").open() as file:
        rows = list(csv.DictReader(file))
    (folder,) = {path.parent for path in (ws.run(run.id) / trackers.FOLDER).rglob("events.*")}
    found = read_events(folder)
    assert found["loss"] == [(int(row["step"]), pytest.approx(float(row["loss"]), rel=1e-6)) for row in rows]
    validated = [(int(r["step"]), float(r["validation_accuracy"])) for r in rows if r["validation_accuracy"]]
    assert validated and found["validation_accuracy"] == [(s, pytest.approx(v, rel=1e-6)) for s, v in validated]
    assert "seconds" not in found and found["learning_rate"]
