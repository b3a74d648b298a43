"""The one list of stages: its names are those of the commands, the rules and the documentation."""

from __future__ import annotations

import re

import pytest

from pipeline.__main__ import app
from pipeline.steps import STAGES
from pipeline.workspace import Workspace


def test_a_stage_has_the_name_of_its_command():
    commands = {command.name or command.callback.__name__ for command in app.registered_commands}
    assert set(STAGES) <= commands


@pytest.mark.parametrize(
    ("name", "names", "made", "log"),
    [
        ("frames", {}, "data/{dataset}/{store}/manifest.json", "extract_frames/{dataset}-{store}"),
        ("frames", {"dataset": "a-1", "store": "f-2"}, "data/a-1/f-2/manifest.json", "extract_frames/a-1-f-2"),
        ("train", {"run": "lga-s0"}, "runs/lga-s0/train.json", "train/lga-s0"),
        ("figure", {}, "{paper}/{stem}.svg", "figures/{paper}-{stem}"),
    ],
)
def test_files_are_patterns_without_names(name, names, made, log):
    ws, stage = Workspace("results"), STAGES[name]
    assert [str(path) for path in stage.files(ws, **names)] == [f"results/{made}"]
    assert str(stage.log(ws, **names)) == f"results/logs/{log}.log"
    assert str(stage.benchmark(ws, **names)) == f"results/benchmarks/{log}.tsv"


def test_every_stage_is_a_rule(repo):
    rules = "".join(path.read_text() for path in (repo / "workflow" / "rules").glob("*.smk"))
    for name in STAGES:
        assert f'log_of("{name}"' in rules and f'benchmark_of("{name}"' in rules, name
    assert set(re.findall(r'(?:made|log_of|benchmark_of)\("(\w+)"', rules)) == set(STAGES)
    assert not re.findall(r'"results/(?:data|runs|cells|backbones|inspect)/[^"]*"', rules)


def test_the_quickstart_lists_the_rules_of_the_stages(repo):
    page = (repo / "docs" / "quickstart.md").read_text()
    table = page[page.index("## What runs for a table") :].split("\n## ")[0]
    told = set(re.findall(r"`(\w+)`", "".join(re.findall(r"(?m)^\| (.*?) \|", table))))
    own = {"sweep": "sweep_", "evaluate": "evaluate_", "table": "table_of_paper", "figure": "figure_of_paper",
           "inspect": "inspect_run"}  # fmt: skip
    for name, stage in STAGES.items():
        rule = own.get(name, stage.rule)
        assert any(word.startswith(rule) for word in told) or f"`{rule}" in table, name
