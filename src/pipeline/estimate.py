"""What the tables will cost, before anything runs."""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from pipeline.experiment import Asset, Run, store_key
from pipeline.plan import Plan
from pipeline.progress import span
from pipeline.rates import Rates, rates_for
from pipeline.sheets import table_stem
from pipeline.steps import Step, steps_of
from pipeline.tasks.costs import bases_of, clips_of, frame_size
from pipeline.workspace import Workspace

FRAMES_OF_CLIP = 100  # of a set whose definition says no `expected.frames`, a guess
BYTES_OF_FRAME = 25_400  # of 256 x 256 as JPEG of quality 95, of three films: `python -m benchmarks.store`
MOST_MEMORY = 6  # methods whose memory is printed
GENERATED, STORED, PRETRAINED, FETCHED, WRITTEN = 18.0, 11.0, 91.0, 3.0, 0.6  # a set, its frames, a backbone, a table


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
        run = plan.runs[names["run"]]
        seconds = plan.kind(run).seconds(run)
        return seconds.start + seconds.step
    if step.stage == "evaluate":
        run, cells = plan.measured_together[names["job"]]
        return plan.kind(plan.runs[run]).seconds(plan.runs[run]).tests * len(cells) / len(plan.cells_of[run])
    if step.stage == "table":
        asked = {(entry.paper, table_stem(entry.table)) for entry in plan.entries}
        return WRITTEN if (names["paper"], names["stem"]) in asked else 0.0
    return {"videos": GENERATED, "frames": STORED}.get(step.stage, 0.0)


@dataclass
class Hours:
    """Hours of a run, or of all runs of a method.

    arithmetic: until a GPU has done all operations. decoding: until the processes of a training have read its clips
    beside. bound: the longer of the two, run by run. longest: of a single run.
    """

    runs: int
    computes: str
    arithmetic: float
    decoding: float
    bound: float
    longest: float

    def __add__(self, other: Hours) -> Hours:
        computes = " or ".join(sorted({*self.computes.split(" or "), *other.computes.split(" or ")}))
        return Hours(
            self.runs + other.runs, computes, self.arithmetic + other.arithmetic, self.decoding + other.decoding,
            self.bound + other.bound, max(self.longest, other.longest),
        )  # fmt: skip


def hours_of(plan: Plan, run: Run, rates: Rates) -> Hours:
    """Hours of a run on one GPU, with the processes that read ahead on a training's threads."""
    kind, dataset, cluster = plan.kind(run), plan.datasets[run.dataset], plan.config.settings.cluster
    cost = kind.cost(run, clips_of(dataset) | bases_of(dataset))
    computes = kind.computes(run, cluster.precision.get(run.method, "float32"))
    arithmetic = (cost.training / rates.computed(computes) + cost.testing / rates.computed("float32")) / 3600
    decoding = cost.reading / rates.frames / max(cluster.threads - 1, 1) / 3600
    bound = max(arithmetic, decoding)
    return Hours(1, computes, arithmetic, decoding, bound, bound)


def wall_hours(hours: Iterable[float], gpus: int) -> float:
    """Hours until `gpus` GPUs have done runs of so many hours, each on one of them, the longest first."""
    ends = [0.0] * gpus
    for longest in sorted(hours, reverse=True):
        heapq.heappushpop(ends, ends[0] + longest)
    return max(ends)


def disk_bytes(plan: Plan, ws: Workspace | None = None) -> int:
    """About how much the frame stores of the real videos take; with a workspace those that are not made yet."""
    read = (plan.datasets[key] for key in plan.datasets_read())
    videos = [asset for asset in read if plan.data(asset).decoded and not plan.data(asset).whole]
    if ws is not None:
        videos = [a for a in videos if not ws.manifest(a.key, store_key(plan.frames(a))).is_file()]
    return round(sum(_stored_frames(asset) * frame_size(plan.frames(asset)) * BYTES_OF_FRAME for asset in videos))


def _stored_frames(asset: Asset) -> int:
    """Frames of all clips of a data set; `expected.frames` is about the mean of a clip, stated and not counted."""
    expected = asset.options.get("expected") or {}
    return sum(clips_of(asset).values()) * int(expected.get("frames", FRAMES_OF_CLIP))


def memory_needed(plan: Plan) -> dict[str, float]:
    """{method: GB of GPU memory that the activations of its largest training step take}, the largest first."""
    found: dict[str, float] = {}
    for run in plan.runs.values():
        found[run.method] = max(found.get(run.method, 0.0), plan.kind(run).memory(run))
    return {method: needed for method, needed in sorted(found.items(), key=lambda item: -item[1]) if needed >= 1}


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


def print_plan(plan: Plan, results: Path, gpus: int = 8, rate: str = "") -> None:
    """Print cells, distinct trainings, sweeps, and what paper scale costs, with what is done already.

    rate: as `rates_for` takes it.
    """
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
    _print_paper(plan if plan.config.settings.scale == "paper" else _paper(plan), console, gpus, rates_for(ws, rate))


def _print_small(plan: Plan, ws: Workspace, console: Console) -> None:
    slots = plan.config.settings.cluster.slots
    whole, left = (seconds / slots for seconds in small_work(plan, ws))
    console.print(
        f"at this scale about {span(whole)} on {slots} cores like those where that was measured, {span(left)} to go"
    )


def _print_paper(plan: Plan, console: Console, gpus: int, rates: Rates) -> None:
    each = [(run.method, hours_of(plan, run, rates)) for run in plan.runs.values()]
    _print_methods(each, console)
    bounds, threads = [hours.bound for _, hours in each], plan.config.settings.cluster.threads
    console.print(
        f"at paper scale about {sum(bounds):.0f} GPU hours, {wall_hours(bounds, gpus):.0f} hours on {gpus} GPUs, at "
        f"{rates}, with {max(threads - 1, 1)} processes a training that read {rates.frames:,.0f} frames a second each; "
        f"{disk_bytes(plan) / 1e12:.1f} TB of frames; {language_calls(plan)} questions to language models"
    )
    if needed := memory_needed(plan):
        most = [f"{method} {gigabytes:.0f}" for method, gigabytes in list(needed.items())[:MOST_MEMORY]]
        console.print(
            f"GPU memory for the activations of a step in float32, GB: {', '.join(most)}; less in bf16, and "
            "a seventh with model.activation_checkpointing (CLIP, SeFAR)"
        )


def _print_methods(each: Iterable[tuple[str, Hours]], console: Console) -> None:
    """What bounds the trainings of each method; methods of less than an hour are left out."""
    methods: dict[str, Hours] = {}
    for method, hours in each:
        methods[method] = methods[method] + hours if method in methods else hours
    table = Table(title="GPU hours at paper scale", box=SIMPLE, padding=(0, 1, 0, 0))
    for heading in ("method", "runs", "in", "arithmetic", "decoding", "bound", "longest"):
        words = heading in ("method", "in")
        table.add_column(heading, justify="left" if words else "right", no_wrap=heading != "in")
    for method, hours in sorted(methods.items(), key=lambda item: -item[1].bound):
        if hours.bound >= 1:
            numbers = (hours.arithmetic, hours.decoding, hours.bound, hours.longest)
            table.add_row(method, str(hours.runs), hours.computes, *(f"{number:.1f}" for number in numbers))
    console.print(table)


def _paper(plan: Plan) -> Plan:
    """The same tables at paper scale."""
    numbers = {entry.table for entry in plan.entries}
    return Plan.read(plan.config.folder, {"scale": "paper"}, number=numbers.pop() if len(numbers) == 1 else "")
