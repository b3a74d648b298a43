"""The stages of the workflow, once: what each makes, for which thing, and where it says how it goes.

The rules (workflow/rules/), `status` and `estimate` read this list. A stage has the name of its command, and its log
and its benchmark lie in folders named like its rule.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from typing import Any

from pipeline.experiment import store_key
from pipeline.plan import Plan
from pipeline.sheets import table_stem
from pipeline.workspace import Workspace


@dataclass(frozen=True)
class Stage:
    """One stage.

    rule: of Snakemake. group: what `status` counts it among. thing: what a job of it is called; the names in braces are
    the wildcards of the rule, and what `makes` takes after the workspace.
    """

    name: str
    rule: str
    group: str
    thing: str
    makes: Callable[..., list[Path]]

    def files(self, ws: Workspace, **names: Any) -> list[Path]:
        """What it makes; without names they are the rule's patterns."""
        wildcards = {field: f"{{{field}}}" for _, field, _, _ in Formatter().parse(self.thing) if field}
        return self.makes(ws, **(names or wildcards))

    def log(self, ws: Workspace, **names: Any) -> Path:
        """Its log, likewise."""
        return ws.root / "logs" / self.rule / f"{self.thing.format(**names) if names else self.thing}.log"

    def benchmark(self, ws: Workspace, **names: Any) -> Path:
        """Time and memory of a job, as Snakemake measures them."""
        return ws.root / "benchmarks" / self.rule / self.log(ws, **names).with_suffix(".tsv").name


def _generated(ws: Workspace, dataset: str) -> list[Path]:
    return [ws.generated(dataset) / name for name in ("annotations.csv", "index.csv", "texts.json")]


_STAGES = (
    Stage("videos", "generate_videos", "data sets", "{dataset}", _generated),
    Stage("poses", "extract_poses", "data sets", "{dataset}", lambda ws, dataset: [ws.poses(dataset) / "poses.csv"]),
    Stage("splits", "split_classes", "data sets", "{dataset}", lambda ws, dataset: [ws.index(dataset)]),
    Stage("text", "describe_classes", "data sets", "{dataset}", lambda ws, dataset: [ws.texts(dataset)]),
    Stage("frames", "extract_frames", "data sets", "{dataset}-{store}", lambda ws, **which: [ws.manifest(**which)]),
    Stage("pretrain", "pretrain_backbone", "backbones", "{backbone}", lambda ws, backbone: [ws.pretrained(backbone)]),
    Stage("train", "train", "trainings", "{run}", lambda ws, run: [ws.trained(run)]),
    Stage("sweep", "sweep", "trainings", "{sweep}", lambda ws, sweep, runs: [*map(ws.trained, runs)]),
    Stage("evaluate", "evaluate", "measurements", "{job}", lambda ws, job, cells: [*map(ws.cell, cells)]),
    Stage("inspect", "inspect", "inspections", "{run}", lambda ws, run: [ws.inspection(run)]),
    Stage("table", "tables", "tables", "{paper}-{stem}", lambda ws, **which: [ws.table(**which)]),
    Stage("figure", "figures", "figures", "{paper}-{stem}", lambda ws, **which: [ws.figure(**which)]),
)
STAGES = {stage.name: stage for stage in _STAGES}


@dataclass(frozen=True)
class Step:
    """One job of the workflow: what it makes, and where it says how it goes. names: of the things that it is about."""

    kind: str
    name: str
    stage: str
    outputs: tuple[Path, ...]
    log: Path
    names: Mapping[str, Any]

    @property
    def done(self) -> bool:
        """Whether everything that it makes is there."""
        return all(path.is_file() for path in self.outputs)


def steps_of(plan: Plan, root: Path | str) -> Iterator[Step]:
    """Every job of the tables, in the order in which they come."""
    ws, read = Workspace(root), plan.datasets_read()

    def step(name: str, log: Path | None = None, **names: Any) -> Step:
        stage, thing = STAGES[name], STAGES[name].thing.format(**names)
        return Step(stage.group, thing, name, tuple(stage.files(ws, **names)), log or stage.log(ws, **names), names)

    for key, asset in plan.datasets.items():
        for stage in plan.data(asset).stages:
            if key in read or stage == "videos":  # others may read the videos of a set that no run does
                store = {"store": store_key(plan.frames(asset))} if stage == "frames" else {}
                yield step(stage, dataset=key, **store)
    for key, asset in plan.backbones.items():
        if "sources" in asset.spec:
            yield step("pretrain", backbone=key)
    for run in plan.runs:
        sweep = plan.swept.get(run)
        yield step("train", STAGES["sweep"].log(ws, sweep=sweep) if sweep else None, run=run)
    for job, (_, cells) in plan.measured_together.items():
        yield step("evaluate", job=job, cells=cells)
    for run in plan.inspected:
        yield step("inspect", run=run)
    for paper, number in plan.tables():
        names = {"paper": paper, "stem": table_stem(number)}
        drawn = plan.papers[paper].tables[number].figure  # by a job that writes its numbers, too
        yield step("table", STAGES["figure"].log(ws, **names) if drawn else None, **names)
    for paper in plan.papers:
        for stem in plan.figures(paper):
            yield step("figure", paper=paper, stem=stem)
