"""What the tables will cost, before anything runs."""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from pipeline.experiment import Asset, Run
from pipeline.plan import Plan
from pipeline.progress import span
from pipeline.sheets import table_stem
from pipeline.steps import Step, steps_of
from pipeline.workspace import Workspace

# Floating-point operations of CLIP ViT-B/16 on one 224 x 224 frame: 2 * 17.6 G multiply-adds. A training step costs
# three times a forward pass.
FLOP_PER_FRAME = 35.2e9
# Sustained speed of one current data-centre GPU on this model in fp32 with TF32 products, a stated assumption.
GPU_FLOPS = 60e12
SET_CLIPS = {"train": 600, "test": 200}  # of a set whose definition does not say how many it has (`expected`), a guess
FRAMES_OF_CLIP, BYTES_OF_FRAME = 100, 30_000  # of a real clip, and of a frame of 256 x 256 as JPEG; assumptions
SMALL_VIT = 0.26  # of the operations of the base one
LANGUAGE_PARAMETERS, QUESTION_TOKENS = 6.7e9, 150  # Vicuna-7B; about so many of a question with its options


class Seconds(NamedTuple):
    """Of one core, for a run with the demo's networks: of a training's start, of one of its steps, of its tests."""

    start: float
    step: float
    tests: float


# About the means over the demo's runs of each kind, two at a time on two cores: the benchmarks of `all_tables`.
SMALL = {
    "episodes": Seconds(3.0, 0.15, 10.0),  # a step: one episode of 80 frames
    "skeletons": Seconds(2.0, 0.13, 3.5),
    "labels": Seconds(5.0, 0.07, 3.0),
    "questions": Seconds(3.0, 0.07, 4.0),
}
UNLABELLED = 0.035  # seconds of a step for each unlabelled clip beside a labelled one
GENERATED, STORED, PRETRAINED, FETCHED, WRITTEN = 18.0, 11.0, 91.0, 3.0, 0.6  # a set, its frames, a backbone, a table


@dataclass(frozen=True)
class Cost:
    """GPU hours of a run at paper scale."""

    training: float
    testing: float


def clips_of(dataset: Asset) -> dict[str, int]:
    """Clips of each split of a data set, as its definition expects them; a guess where it does not."""
    expected = dataset.options.get("expected") or {}
    found = {name: int(expected.get("clips", expected).get(name, 0)) for name in ("train", "val", "test")}
    found["train"] += int(expected.get("base", 0))
    found["test"] += int(expected.get("queries", 0))
    return found if any(found.values()) else {"train": SET_CLIPS["train"], "val": 0, "test": SET_CLIPS["test"]}


def run_cost(run: Run, dataset: Asset) -> Cost:
    """GPU hours of `run` on CLIP ViT-B/16, from the number of frames that it shows to the encoder."""
    if "number" not in run.frames:  # skeletons: a thousandth of a video's work
        return Cost(0.0, 0.0)
    frames, train = run.frames["number"], run.train
    if "encoder_run" in run.model:
        return _question_cost(run, clips_of(dataset))
    if "label_rate" in train:
        return _semi_cost(run, clips_of(dataset))
    clips = 0
    if train:
        clips = train["steps"] * train["episodes_per_step"] * train["way"] * (train["shot"] + train["query"])
    hours = FLOP_PER_FRAME * frames / GPU_FLOPS / 3600
    return Cost(3 * hours * clips, hours * 2 * clips_of(dataset)["test"])


def _semi_cost(run: Run, clips: dict[str, int]) -> Cost:
    """GPU hours of a semi-supervised run: student on labelled, perturbed and mixed clips, teacher on the weak ones."""
    train = run.train
    hours = FLOP_PER_FRAME * run.frames["number"] / GPU_FLOPS / 3600
    hours *= SMALL_VIT if run.backbone.startswith("vit_s16") else 1.0
    labelled = train["epochs"] * clips["train"] * train["label_rate"] / 100
    share = 1 - train["warm_epochs"] / train["epochs"]
    views = (1 + bool(run.model.get("mixing", 10))) * 3 + 1  # forward passes' worth
    return Cost(hours * labelled * (3 + share * train["unlabelled"] * views), hours * clips["test"])


def _question_cost(run: Run, clips: dict[str, int]) -> Cost:
    """GPU hours of questions: gradients go back through the language model, which is frozen; four options at test."""
    hours, train = LANGUAGE_PARAMETERS * QUESTION_TOKENS * 2 / GPU_FLOPS / 3600, run.train
    shown = train.get("epochs", 0) * clips["train"] * train.get("label_rate", 0) / 100
    return Cost(2 * hours * shown, 4 * hours * clips["test"])


def small_seconds(run: Run) -> Seconds:
    """Core seconds of a run at a scale of generated videos; `step` is that of all its steps."""
    train = run.train
    if "encoder_run" in run.model:
        kind, steps, each = SMALL["questions"], train.get("steps", 0), 1.0
    elif "number" not in run.frames:
        kind, steps, each = SMALL["skeletons"], train.get("steps", 0), 1.0
    elif "label_rate" in train:
        kind, steps = SMALL["labels"], train["steps"]
        each = 1 + train["unlabelled"] * UNLABELLED / kind.step
    else:
        kind, steps = SMALL["episodes"], train.get("steps", 0) * train.get("episodes_per_step", 0)
        each = train.get("way", 0) * (train.get("shot", 0) + train.get("query", 0)) * run.frames["number"] / 80
    return Seconds(kind.start if train else 0.0, steps * each * kind.step, kind.tests)


def small_work(plan: Plan, ws: Workspace) -> tuple[float, float]:
    """Core seconds of everything at a scale of generated videos, and of what is not done yet."""
    work = [(_seconds(plan, step), step.done) for step in steps_of(plan, ws.root)]
    return sum(seconds for seconds, _ in work), sum(seconds for seconds, done in work if not done)


def _seconds(plan: Plan, step: Step) -> float:
    """Core seconds of one step at a scale of generated videos; 0 of those that take next to none."""
    names = step.names
    if step.stage == "pretrain":
        return FETCHED if "packed" in plan.backbones[names["backbone"]].options else PRETRAINED
    if step.stage == "train":
        seconds = small_seconds(plan.runs[names["run"]])
        return seconds.start + seconds.step
    if step.stage == "evaluate":
        run, cells = plan.measured_together[names["job"]]
        return small_seconds(plan.runs[run]).tests * len(cells) / len(plan.cells_of[run])
    if step.stage == "table":
        asked = {(entry.paper, table_stem(entry.table)) for entry in plan.entries}
        return WRITTEN if (names["paper"], names["stem"]) in asked else 0.0
    return {"videos": GENERATED, "frames": STORED}.get(step.stage, 0.0)


def wall_hours(costs: Iterable[Cost], gpus: int) -> float:
    """Hours until `gpus` GPUs have done all runs, each on one of them, the longest first."""
    ends = [0.0] * gpus
    for hours in sorted((cost.training + cost.testing for cost in costs), reverse=True):
        heapq.heappushpop(ends, ends[0] + hours)
    return max(ends)


def disk_bytes(plan: Plan) -> int:
    """About how much the frame stores of the real videos take."""
    read = (plan.datasets[key] for key in plan.datasets_read())
    videos = (asset for asset in read if plan.kind(asset).decoded and not plan.kind(asset).whole)
    return sum(sum(clips_of(asset).values()) * FRAMES_OF_CLIP * BYTES_OF_FRAME for asset in videos)


def language_calls(plan: Plan) -> int:
    """Questions to language models: those of the sets whose texts are not given, before any answer is kept."""
    total = 0
    for asset in plan.datasets.values():
        expected, corpora = asset.options.get("expected") or {}, asset.options.get("corpora", {}).values()
        asked = [*corpora, *([] if asset.options.get("texts") else [asset.options.get("describe")])]
        classes = expected.get("classes", 0)
        classes = (
            sum(classes.values()) if isinstance(classes, dict) else int(classes or len(asset.options.get("names", [])))
        )
        for settings in asked:
            if isinstance(settings, dict) and "prompts" in settings:
                prompts = settings["prompts"].values()
                total += classes * sum(max(len(prompt.get("counts", ())), 1) for prompt in prompts)
    return total


def print_plan(plan: Plan, results: Path, gpus: int = 8) -> None:
    """Print cells, distinct trainings, sweeps, and what paper scale costs, with what is done already."""
    ws, console = Workspace(results), Console()
    table = Table(title=f"plan at scale {plan.config.settings.scale}")
    for heading in ("paper", "table", "places", "cells", "measured", "trainings", "published only"):
        table.add_column(heading, justify="left" if heading == "paper" else "right")
    for paper, number in plan.tables():
        if not (entries := plan.table_entries(paper, number)):
            continue  # another table was asked for
        cells = set(plan.table_cells(paper, number))
        done = sum(ws.cell(cell).is_file() for cell in cells)
        trained = {c.run.id for e in entries for c in e.cells if c.run.train}
        quoted = sum(not entry.cells for entry in entries)
        table.add_row(paper, number, *map(str, (len(entries), len(cells), done, len(trained), quoted)))
    console.print(table)
    trained = [run for run in plan.runs.values() if run.train]
    places = sum(len(entry.cells) for entry in plan.entries)
    console.print(
        f"{places} measured places are {len(plan.cells)} distinct cells of {len(plan.runs)} runs, "
        f"{len(trained)} of them trainings; {sum(ws.trained(r.id).is_file() for r in trained)} trained."
    )
    for sweep in plan.sweeps.values():
        own = [run for run in sweep.runs if plan.swept.get(run) == sweep.name]
        console.print(f"sweep {sweep.name}: {len(sweep.runs)} values of {sweep.axis}, {len(own)} trained by Ray Tune")
    if plan.config.settings.scale != "paper":
        _print_small(plan, ws, console)
    _print_paper(plan if plan.config.settings.scale == "paper" else _paper(plan), console, gpus)


def _print_small(plan: Plan, ws: Workspace, console: Console) -> None:
    slots = plan.config.settings.cluster.slots
    whole, left = (seconds / slots for seconds in small_work(plan, ws))
    console.print(
        f"at this scale about {span(whole)} on {slots} cores like those where that was measured, {span(left)} to go"
    )


def _print_paper(plan: Plan, console: Console, gpus: int) -> None:
    costs = [run_cost(run, plan.datasets[run.dataset]) for run in plan.runs.values()]
    hours = sum(c.training for c in costs), sum(c.testing for c in costs)
    console.print(
        f"at paper scale about {sum(hours):.0f} GPU hours ({hours[0]:.0f} training, {hours[1]:.1f} testing) at "
        f"{GPU_FLOPS / 1e12:.0f} TFLOP/s sustained, without reading the videos: {wall_hours(costs, gpus):.0f} hours on "
        f"{gpus} GPUs; {disk_bytes(plan) / 1e12:.1f} TB of frames; {language_calls(plan)} questions to language models"
    )


def _paper(plan: Plan) -> Plan:
    """The same tables at paper scale."""
    numbers = {entry.table for entry in plan.entries}
    return Plan.read(plan.config.folder, {"scale": "paper"}, number=numbers.pop() if len(numbers) == 1 else "")
