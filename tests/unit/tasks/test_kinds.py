"""A kind of task is a folder and a line: everything that asks which kind a run is of asks the kind itself."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from pydantic import Field

from pipeline.compat import MODELS
from pipeline.errors import UserError
from pipeline.estimate import small_work
from pipeline.plan import Plan
from pipeline.reference import schemas
from pipeline.tasks.base import Task
from pipeline.tasks.costs import Cost, Seconds
from pipeline.tasks.kind import Kind
from pipeline.tasks.kinds import KINDS, kind_of_model, task_of
from pipeline.tasks.recipe import OFF, Count, Recipe, Train
from pipeline.workspace import Workspace


class CountingTrain(Train):
    steps: Count = Field(description="optimiser steps")
    milestones: list[Count] = Field(description="steps")
    extra: int = Field(0, description="more of it", json_schema_extra=OFF)


class CountingRecipe(Recipe):
    task: Literal["counting"]
    train: CountingTrain


class CountingModel(torch.nn.Module):
    """Of a kind of its own."""


class CountingTask(Task):
    """Of a kind of its own."""


class Counting(Kind):
    """What `tasks/counting/kind.py` would have."""

    name, words = "counting", "methods that count"
    recipe, train = CountingRecipe, CountingTrain
    model, task = f"{__name__}:CountingModel", f"{__name__}:CountingTask"

    def cost(self, run, clips):
        return Cost(1.0, 2.0)

    def seconds(self, run):
        return Seconds(1.0, 10.0 * run.train["steps"], 0.0)


METHOD = {
    "task": "counting", "model": {"type": "CountingModel", "width": 2},
    "train": {"steps": 5, "optimizer": "adam", "learning_rate": "1e-3", "weight_decay": 0, "warmup_start": 0,
              "milestones": [], "amp": False, "extra": 0},
}  # fmt: skip


@pytest.fixture
def counting(monkeypatch):
    monkeypatch.setitem(KINDS, "counting", Counting())
    monkeypatch.setitem(MODELS.module_dict, "CountingModel", CountingModel)


def _sheet(**experiment):
    column = {"name": "c", "experiment": {"dataset": "hmdb51", "measure": {"score": "vv"}}}
    rows = [{"name": "r", "experiment": {"method": "counting", **experiment}}]
    return {"mine": {"title": "mine", "tables": {"9": {"title": "nine", "columns": [column], "rows": rows}}}}


def test_a_new_kind_is_planned_estimated_and_built(repo, counting, tmp_path):
    plan = Plan.read(repo / "config", {"methods": {"counting": METHOD}, "tables": _sheet()}, "mine")
    (run,) = plan.runs.values()
    assert run.train["learning_rate"] == 1e-3 and "extra" not in run.train  # off is as not there
    assert plan.kind(run).name == "counting" and plan.kind(run).cost(run, {}) == Cost(1.0, 2.0)
    ws = Workspace(tmp_path)
    before = small_work(plan, ws)[1]
    (ws.run(run.id)).mkdir(parents=True)
    (ws.run(run.id) / "train.json").touch()
    assert before - small_work(plan, ws)[1] == pytest.approx(1.0 + 50.0)
    assert kind_of_model(run).name == "counting" and type(task_of(run, ws)).__name__ == "CountingTask"
    assert "CountingTrain" in schemas()["method.json"]["$defs"]


@pytest.mark.parametrize(("change", "message"), [
    ({"task": "countin"}, r"unknown task 'countin' in the settings .*key task; did you mean 'counting'"),
    ({"task": None}, "key methods.counting: key task is missing"),
    ({"train": {"stpes": 1}}, r"unknown key 'stpes' in .*train\.stpes\); did you mean 'steps'"),
    ({"train": {"steps": 0}}, r"key train\.steps: Input should be greater than or equal to 1 \(got 0\)"),
    ({"train": {"steps": None}}, r"key train\.steps: Input should be a valid integer"),
    ({"schedules": {"hmdb51": {"stpes": 1}}}, "unknown train key 'stpes' in .*schedules.hmdb51; did you mean 'steps'"),
    ({"schedules": {"hmdb51": {"steps": -1}}}, "schedules.hmdb51: key steps: Input should be greater"),
])  # fmt: skip
def test_mistakes_name_file_key_and_nearest_name(repo, counting, change, message):
    from pipeline.config import merge

    method = {key: value for key, value in merge(METHOD, change).items() if value is not None}
    with pytest.raises(UserError, match=message) as caught:
        Plan.read(repo / "config", {"methods": {"counting": method}, "tables": _sheet()}, "mine")
    assert "\n" not in str(caught.value)


# A recipe over another


def _recipe(repo, **overlay):
    return Plan.read(repo / "config", {"methods": overlay}, "none").method(next(iter(overlay)), "the test")[0]


def test_a_recipe_is_laid_over_the_one_that_it_extends(repo):
    parent = Plan.read(repo / "config", None, "none").method("clip_fsar", "the test")[0]
    same_model = _recipe(repo, mine={"extends": "clip_fsar", "model": {"lam": 0.1}, "train": {"flip": 0.5}})
    assert same_model["model"] == parent["model"] | {"lam": 0.1}
    assert same_model["train"] == parent["train"] | {"flip": 0.5} and same_model["schedules"] == parent["schedules"]
    own = _recipe(repo, mine={"extends": "lga", "model": {"type": "Otam", "lam": 0.2}})
    assert own["model"] == {"type": "Otam", "lam": 0.2} and "options" not in own and own["train"] == parent["train"]


def test_an_overlay_on_a_recipe_does_not_reach_those_that_extend_it(repo):
    plan = Plan.read(repo / "config", {"methods": {"clip_fsar": {"train": {"flip": 0.5}}}}, "none")
    assert plan.method("clip_fsar", "the test")[0]["train"]["flip"] == 0.5
    assert plan.method("lga", "the test")[0]["train"]["flip"] == 0.0


@pytest.mark.parametrize(("overlay", "message"), [
    ({"mine": {"extends": "clip_fsr"}}, "unknown method 'clip_fsr' in .*key extends; did you mean 'clip_fsar'"),
    ({"mine": {"extends": "yours"}, "yours": {"extends": "mine"}}, "extends mine; end the circle"),
    ({"otam": {"train": {"flip": 2}}}, r"key methods\.otam: key train\.flip: Input should be less than"),
])  # fmt: skip
def test_mistakes_in_what_is_extended(repo, overlay, message):
    with pytest.raises(UserError, match=message):
        Plan.read(repo / "config", {"methods": overlay}, "none")


# A paper


def test_a_paper_is_its_sheet(repo, tmp_path):
    import shutil

    import yaml

    shutil.copytree(repo / "config", tmp_path / "config")
    sheet = _sheet(method="otam")["mine"]
    (tmp_path / "config" / "tables" / "fifth.yaml").write_text(yaml.safe_dump(sheet))
    plan = Plan.read(tmp_path / "config")
    assert "fifth" in plan.papers and len(plan.table_entries("fifth", "9")) == 1
