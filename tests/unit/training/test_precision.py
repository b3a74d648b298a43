"""bfloat16 in the frame tower: which layers, in training alone, and what the record and the tables say of it."""

from __future__ import annotations

import csv
import json
from types import SimpleNamespace

import pytest
import torch

from pipeline.config import Cluster
from pipeline.errors import UserError
from pipeline.evaluation.health import read_training
from pipeline.models.few_shot import precision
from pipeline.models.few_shot.precision import use_precision
from pipeline.plan import Plan
from pipeline.tables.records import _lowered
from pipeline.tasks.kinds import task_of
from pipeline.training.ray_train import FOR_WORKERS
from pipeline.training.train import train_run

TRAIN = {"steps": 2, "validate_every": 2, "optimizer": "sgd", "learning_rate": 0.05}


def _seen(model, clips):
    """Types that the first linear layer of the tower, and whoever takes its frames, compute in."""
    seen = []
    linear = next(module for module in model.frame_layers()[0].modules() if isinstance(module, torch.nn.Linear))
    hook = linear.register_forward_hook(lambda _, given, made: seen.append(made.dtype))
    features = model.encode(clips)
    hook.remove()
    return seen[0], features.dtype


@pytest.mark.parametrize(("method", "settings"), [("otam", {}), ("task_adapter_pp", {"layers": 1})])
def test_the_tower_alone_computes_in_bfloat16_and_in_training_alone(world, method, settings):
    run = world.run(method=method, model=settings, train=TRAIN)
    model, plain = (task_of(run, world.ws).build().train() for _ in range(2))
    clips = torch.randn(2, run.frames["number"], 3, *[model.backbone.clip.config.vision_config.image_size] * 2)
    assert use_precision(model, "bf16", anywhere=True) == "bf16"
    assert _seen(model, clips) == (torch.bfloat16, torch.float32) and _seen(plain, clips)[0] == torch.float32
    lower, exact = model.encode(clips), plain.encode(clips)
    assert 0 < (lower - exact).abs().max() < 0.1 * exact.abs().max()
    assert model.state_dict().keys() == plain.state_dict().keys()
    model.eval(), plain.eval()
    torch.testing.assert_close(model.encode(clips), plain.encode(clips), rtol=0, atol=0)


def test_a_machine_or_a_model_that_cannot_stays_in_float32(world):
    model = task_of(world.run(method="otam", train=TRAIN), world.ws).build()
    assert [use_precision(model, wanted) for wanted in ("bf16", "tf32", "float32")] == ["float32"] * 3  # on a CPU
    assert use_precision(torch.nn.Linear(2, 2), "bf16", anywhere=True) == "float32"


def test_products_of_ten_bits_are_asked_for_by_the_training_that_wants_them(monkeypatch):
    monkeypatch.setattr(precision.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(precision.torch.cuda, "get_device_capability", lambda: (8, 0))
    try:
        assert use_precision(torch.nn.Linear(2, 2), "tf32") == "tf32" and torch.backends.cuda.matmul.allow_tf32
        assert use_precision(torch.nn.Linear(2, 2), "float32") == "float32"
        assert not torch.backends.cuda.matmul.allow_tf32
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False


def test_a_training_says_in_what_it_computed(world, tmp_path):
    cell, losses, said = world.cell(method="otam", train=TRAIN), [], []
    run = cell.run
    for name, wanted in (("exact", "float32"), ("lower", "bf16")):
        ws = world.elsewhere(tmp_path / name)
        record = train_run(run, ws, precision=wanted, anywhere=True)
        assert read_training(record).precision == wanted
        said += _lowered(SimpleNamespace(cells=[cell]), ws)
        with (ws.run(run.id) / "curve.csv").open() as file:
            losses.append([float(row["loss"]) for row in csv.DictReader(file)])
    assert losses[0] != losses[1] and losses[0] == pytest.approx(losses[1], rel=0.05)
    assert json.loads(record.read_text())["run"] == run.id and said == ["trained in bf16"]  # one identity


def test_paper_scale_names_the_methods_and_no_id_depends_on_it(repo):
    paper = Plan.read(repo / "config", {"scale": "paper"}, "lga", "4")
    chosen = paper.config.settings.cluster.precision
    assert chosen["lga"] == "bf16" and "sefar" not in chosen and "motionbert" not in chosen
    off = {"scale": "paper", "cluster": {"precision": dict.fromkeys(chosen, "float32")}}
    assert Plan.read(repo / "config", off, "lga", "4").runs.keys() == paper.runs.keys()
    assert Cluster().precision == {} and "precision" in FOR_WORKERS
    with pytest.raises(UserError, match=r"otm.*cluster.precision.*otam"):
        Plan.read(repo / "config", {"cluster": {"precision": {"otm": "bf16"}}}, "lga", "4")
