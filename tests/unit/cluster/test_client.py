"""A cluster of one process alone, without Ray."""

from __future__ import annotations

import json
import sys
import types

import pytest

from pipeline.cluster import client as module
from pipeline.config import Cluster
from pipeline.errors import UserError
from pipeline.workspace import Workspace


@pytest.fixture
def fake(monkeypatch, tmp_path):
    """What was done, in order; nothing of it for real."""
    done = []
    monkeypatch.setattr(module, "given_address", lambda: None)
    monkeypatch.setattr(module, "environment", lambda token: {})
    monkeypatch.setattr(module.atexit, "register", lambda function: done.append(function))
    monkeypatch.setattr(module, "end_process", lambda *_: done.append("head ended"))

    def start_head(settings, address, cpus, temporary, log):
        assert cpus == settings.workers * settings.threads + 1
        log.write_text("ValueError: no room")
        done.append(temporary)
        return "head", "127.0.0.1:7"

    monkeypatch.setattr(module, "start_head", start_head)
    ray = types.SimpleNamespace(shutdown=lambda: done.append("ray ended"))
    monkeypatch.setattr(module, "attach", lambda address: (ray, "http://127.0.0.1:8265"))
    monkeypatch.delitem(sys.modules, "ray", raising=False)
    return done


def test_what_belongs_to_it_goes_with_it_in_the_right_order(fake, tmp_path):
    ws = Workspace(tmp_path)
    module.connect(ws, Cluster(workers=2))
    (record,) = (ws.ray / "jobs").glob("*/head.json")
    assert json.loads(record.read_text())["dashboard"] == "http://127.0.0.1:8265"
    temporary, close = fake
    assert not fake[2:]
    close()
    assert fake[2:] == ["ray ended", "head ended"] and not list((ws.ray / "jobs").iterdir())
    assert not module.os.path.exists(module.os.path.dirname(temporary))


def test_a_start_that_fails_leaves_nothing_but_its_log(fake, tmp_path, monkeypatch):
    def fails(address):
        raise ConnectionError("nothing listens at 127.0.0.1:7\nand so on")

    monkeypatch.setattr(module, "attach", fails)
    ws = Workspace(tmp_path)
    with pytest.raises(UserError, match=r"^Ray did not start \(nothing listens at 127\.0\.0\.1:7\); the same"):
        module.connect(ws, Cluster(mode="job"))
    assert fake[1:] == ["head ended"]
    (log,) = (ws.ray / "jobs").iterdir()
    assert log.suffix == ".log" and "no room" in log.read_text()


def test_going_on_without_a_dashboard_is_said(fake, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(module, "attach", lambda address: (types.SimpleNamespace(shutdown=print), None))
    module.connect(Workspace(tmp_path), Cluster(mode="job"))
    assert "dashboard did not start; the training goes on without one" in capsys.readouterr().err
    module.connect(Workspace(tmp_path), Cluster(mode="job", dashboard=False))
    assert not capsys.readouterr().err
    fake[-1]()
    fake[1]()
