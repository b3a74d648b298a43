"""Paths, specs by name or by the beginning of it, and files that are whole or absent."""

from __future__ import annotations

import json
import math
import os
import threading

import pytest

from pipeline.errors import UserError
from pipeline.experiment import Cell, Measure, Run, store_key
from pipeline.files import exclusive, new_folder, write_json
from pipeline.workspace import Workspace

RUN = Run(
    method="lga", model={}, train={}, dataset="scene-00000000", frames={"store": {"size": [8, 8]}, "crop": 8},
    backbone="nano-00000000", scale="demo",
)  # fmt: skip


def test_paths(tmp_path):
    ws = Workspace(tmp_path)
    assert ws.store(RUN) == tmp_path / "data" / "scene-00000000" / store_key(RUN.frames)
    assert ws.run(RUN.id) == tmp_path / "runs" / RUN.id and ws.scores(RUN.id) == tmp_path / "scores" / RUN.id
    cell = Cell(run=RUN, measure=Measure())
    assert ws.cell(cell.id) == tmp_path / "cells" / f"{cell.id}.json"
    assert Workspace().root.name == "results"


def test_crop_and_sampling_share_the_stored_frames():
    """What is done to frames after they are stored makes no second store."""
    assert store_key({"store": {"size": [8, 8]}, "crop": 4}) == store_key({"store": {"size": [8, 8]}, "number": 2})
    assert store_key({"store": {"size": [8, 9]}}) != store_key({"store": {"size": [8, 8]}})


def _spec(ws, name, content):
    write_json(ws.root / "specs" / f"{name}.json", content)


def test_specs_by_a_beginning_of_their_name(tmp_path):
    ws = Workspace(tmp_path)
    runs = [RUN, RUN.model_copy(update={"seed": 1}), RUN.model_copy(update={"method": "otam"})]
    runs = [Run.model_validate(run.model_dump()) for run in runs]
    for run in runs:
        _spec(ws, run.id, run.model_dump(mode="json"))
    assert ws.read_run("otam") == runs[2] and ws.read_run(runs[0].id) == runs[0]
    assert ws.read_run("lga-scene-s1") == runs[1]
    with pytest.raises(UserError) as caught:
        ws.read_run("lga-scene")
    assert all(run.id in str(caught.value) for run in runs[:2]) and "otam" not in str(caught.value)
    with pytest.raises(UserError, match=r"no experiment 'lgaa' in .*specs; `python -m pipeline plan --write` lists"):
        ws.read_run("lgaa")


def test_a_name_of_something_else_is_said_to_be_no_run(tmp_path):
    ws = Workspace(tmp_path)
    _spec(ws, "clip_nano-01234567", {"name": "clip_nano", "spec": {}, "options": {}})
    with pytest.raises(UserError, match="'clip_nano' is not a run"):
        ws.read_run("clip_nano")


def test_a_workspace_without_specs(tmp_path):
    for read in (Workspace(tmp_path).read_run, Workspace(tmp_path).read_cells, Workspace(tmp_path).read_sweep):
        with pytest.raises(UserError, match="plan --write"):
            read("anything")


def test_json_is_whole_or_absent(tmp_path):
    path = tmp_path / "deep" / "x.json"
    write_json(path, {"b": 1, "a": [1.5]})
    assert json.loads(path.read_text()) == {"b": 1, "a": [1.5]}
    before = path.read_text()
    for content in ({"x": math.nan}, {"x": object()}):
        with pytest.raises((ValueError, TypeError)):
            write_json(path, content)
    assert path.read_text() == before
    assert [item.name for item in path.parent.iterdir()] == ["x.json"]


def test_a_new_folder_takes_its_place_only_when_it_is_complete(tmp_path):
    path = tmp_path / "deep" / "data"
    with pytest.raises(RuntimeError), new_folder(path) as folder:
        (folder / "half").write_text("x")
        raise RuntimeError
    assert not path.exists() and list(path.parent.iterdir()) == []
    with new_folder(path) as folder:
        (folder / "one").write_text("1")
        assert not path.exists()
    with pytest.raises(KeyboardInterrupt), new_folder(path) as folder:
        raise KeyboardInterrupt
    assert (path / "one").read_text() == "1"
    with new_folder(path) as folder:
        (folder / "two").write_text("2")
    assert [item.name for item in path.iterdir()] == ["two"]
    assert [item.name for item in path.parent.iterdir()] == ["data"]


def test_a_cell_is_measured_again_when_it_is_older_than_its_training_or_its_data(tmp_path):
    ws, cells = Workspace(tmp_path), [Cell(run=RUN, measure=Measure(shot=shot)) for shot in (1, 5)]
    assert ws.unmeasured(cells) == cells
    sources = ws.run(RUN.id) / "train.json", ws.store(RUN) / "manifest.json"
    for time, path in enumerate((*sources, ws.cell(cells[0].id), ws.cell(cells[1].id)), 1000):
        write_json(path, {})
        os.utime(path, (time, time))
    assert ws.unmeasured(cells) == []
    for source in sources:
        os.utime(source, (1002.5, 1002.5))
        assert ws.unmeasured(cells) == cells[:1]
        os.utime(source, (1000, 1000))


def test_one_at_a_time(tmp_path):
    order, inside = [], threading.Event()

    def second():
        inside.wait(10)
        with exclusive(tmp_path / "deep" / ".lock"):
            order.append("second")

    thread = threading.Thread(target=second)
    thread.start()
    with exclusive(tmp_path / "deep" / ".lock"), exclusive(tmp_path / "another"):
        inside.set()
        thread.join(0.2)
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"]


def test_wanted_cells_of_a_run(tmp_path):
    ws, cells = Workspace(tmp_path), [Cell(run=RUN, measure=Measure(shot=shot)) for shot in (1, 5)]
    _spec(ws, f"cells-{RUN.id}", {"cells": {cell.id: cell.model_dump(mode="json") for cell in cells}})
    ids = [cell.id for cell in cells]
    assert sorted(cell.id for cell in ws.read_cells(RUN.id)) == sorted(ids)
    assert [cell.id for cell in ws.read_cells(RUN.id, ids[1:])] == ids[1:]
    with pytest.raises(UserError, match=f"unknown cell '{cells[0].id[:-1]}' in run {RUN.id}; did you mean"):
        ws.read_cells(RUN.id, [cells[0].id[:-1]])
