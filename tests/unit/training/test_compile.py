"""Compiled layers of the frame tower: the same training, the same names, and an error where nothing can compile."""

from __future__ import annotations

import csv
import shutil

import pytest
import torch
from safetensors.torch import load_file

from pipeline.errors import UserError
from pipeline.models.build import WEIGHTS, load_weights
from pipeline.models.few_shot.compiled import compile_layers
from pipeline.tasks.kinds import task_of
from pipeline.training.train import train_run

TRAIN = {"steps": 3, "validate_every": 3, "optimizer": "sgd", "learning_rate": 0.05}
compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler (g++) on this machine")


def _trained(world, ws, method, model, on):
    """The run, losses of its steps, and its weights."""
    run = world.run(method=method, model=model, train=TRAIN)
    train_run(run, ws, compiled=on)
    with (ws.run(run.id) / "curve.csv").open() as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file)]
    return run, losses, load_file(ws.run(run.id) / WEIGHTS)


@compiler
@pytest.mark.slow
@pytest.mark.parametrize(("method", "model"), [("otam", {}), ("task_adapter_pp", {"drop_path": 0.5, "layers": 1})])
def test_a_compiled_training_is_a_plain_one(world, tmp_path, method, model):
    """With stochastic depth, and a validation in the midst; in each the layers run compiled."""
    ws = world.elsewhere(tmp_path / "compiled")
    plain, losses, weights = _trained(world, world.elsewhere(tmp_path / "plain"), method, model, False)
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        compiled, found, others = _trained(world, ws, method, model, True)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    assert compiled.id == plain.id and len(found) == 3 and found == pytest.approx(losses, abs=1e-4)
    assert weights.keys() == others.keys()  # so each loads into the model of the other
    for name in weights:
        torch.testing.assert_close(weights[name], others[name], atol=1e-4, rtol=1e-3, msg=name)
    load_weights(task_of(compiled, ws).build(), compiled, ws)
    before = task_of(plain, ws).build().trained_state()
    assert max(float((weights[name] - before[name]).abs().max()) for name in weights) > 1e-3


@compiler
def test_a_machine_without_a_compiler(world, tmp_path, monkeypatch):
    from torch._inductor import config
    from torch._inductor.utils import fresh_cache

    monkeypatch.setattr(config.cpp, "cxx", ("/no/such/compiler",))
    run, ws = world.run(method="otam"), world.elsewhere(tmp_path)
    with fresh_cache(), pytest.raises(UserError, match="cluster.compile: torch.compile does not work on thi") as caught:
        train_run(run, ws, compiled=True)
    assert "\n" not in str(caught.value) and "C++ compiler" in str(caught.value)
    assert not (ws.run(run.id) / "curve.csv").exists()


def test_a_tower_without_layers_is_left_alone(world, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda *_, **__: pytest.fail("there is nothing to compile"))
    compile_layers(task_of(world.run(method="trx", backbone="resnet50"), world.ws).build())
    compile_layers(torch.nn.Linear(2, 2))
