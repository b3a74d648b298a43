"""What the tables will cost, before anything runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from pipeline.experiment import Run
from pipeline.plan import Plan
from pipeline.workspace import Workspace

# Floating-point operations of CLIP ViT-B/16 on one 224 x 224 frame: 2 * 17.6 G multiply-adds. A training step costs
# three times a forward pass.
FLOP_PER_FRAME = 35.2e9
# Sustained speed of one current data-centre GPU on this model in fp32 with TF32 products, a stated assumption.
GPU_FLOPS = 60e12
TEST_CLIPS = {"hmdb51": 1292, "ucf101": 2745, "kinetics100": 2400, "ssv2_small": 2400, "ssv2_full": 2857}
# Of the semi-supervised sets: training clips (where it is not known how many, a guess), and those of their tests.
SEMI_CLIPS = {
    "gym99": (26320, 8521), "gym288": (29334, 9646), "gym_new": (6508, 1998), "ub": (9594, 2814), "fx": (5408, 2226),
    "ub_s1": (4964, 1471), "fx_s1": (1892, 777), "finediving": (2251, 749), "diving_10m": (600, 200),
    "diving_5253b": (150, 60), "ucf101_semi": (9537, 3783), "hmdb51_semi": (5236, 1530), "ssv2_semi": (168913, 24777),
}  # fmt: skip
SMALL_VIT = 0.26  # of the operations of the base one
LANGUAGE_PARAMETERS, QUESTION_TOKENS = 6.7e9, 150  # Vicuna-7B; about so many of a question with its options


@dataclass(frozen=True)
class Cost:
    """GPU hours of a run at paper scale."""

    training: float
    testing: float


def run_cost(run: Run) -> Cost:
    """GPU hours of `run` on CLIP ViT-B/16, from the number of frames that it shows to the encoder."""
    if "number" not in run.frames:  # skeletons: a thousandth of a video's work
        return Cost(0.0, 0.0)
    frames, train = run.frames["number"], run.train
    if "encoder_run" in run.model:
        return _question_cost(run)
    if "label_rate" in train:
        return _semi_cost(run)
    clips = 0
    if train:
        clips = train["steps"] * train["episodes_per_step"] * train["way"] * (train["shot"] + train["query"])
    dataset = run.dataset.rsplit("-", 1)[0]
    hours = FLOP_PER_FRAME * frames / GPU_FLOPS / 3600
    return Cost(3 * hours * clips, hours * 2 * TEST_CLIPS.get(dataset, 200))


def _semi_cost(run: Run) -> Cost:
    """GPU hours of a semi-supervised run: student on labelled, perturbed and mixed clips, teacher on the weak ones."""
    train, dataset = run.train, run.dataset.rsplit("-", 1)[0]
    clips, test = SEMI_CLIPS.get(dataset, (576, 216))
    hours = FLOP_PER_FRAME * run.frames["number"] / GPU_FLOPS / 3600
    hours *= SMALL_VIT if run.backbone.startswith("vit_s16") else 1.0
    labelled = train["epochs"] * clips * train["label_rate"] / 100
    share = 1 - train["warm_epochs"] / train["epochs"]
    views = (1 + bool(run.model.get("mixing", 10))) * 3 + 1  # forward passes' worth
    return Cost(hours * labelled * (3 + share * train["unlabelled"] * views), hours * test)


def _question_cost(run: Run) -> Cost:
    """GPU hours of questions: gradients go back through the language model, which is frozen; four options at test."""
    dataset, hours = run.dataset.rsplit("-", 1)[0], LANGUAGE_PARAMETERS * QUESTION_TOKENS * 2 / GPU_FLOPS / 3600
    clips, test = SEMI_CLIPS.get(dataset, (576, 216))
    return Cost(2 * hours * run.train.get("epochs", 0) * clips * run.train.get("label_rate", 0) / 100, 4 * hours * test)


def print_plan(plan: Plan, results: Path) -> None:
    """Print cells, distinct trainings, sweeps and GPU hours, with what is done already."""
    ws, console = Workspace(results), Console()
    table = Table(title=f"plan at scale {plan.config.settings.scale}")
    for heading in ("paper", "table", "places", "cells", "measured", "trainings", "published only"):
        table.add_column(heading, justify="left" if heading == "paper" else "right")
    for paper, number in plan.tables():
        entries = plan.table_entries(paper, number)
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
        f"{len(trained)} of them trainings; {sum((ws.run(r.id) / 'train.json').is_file() for r in trained)} trained."
    )
    for sweep in plan.sweeps.values():
        own = [run for run in sweep.runs if plan.swept.get(run) == sweep.name]
        console.print(f"sweep {sweep.name}: {len(sweep.runs)} values of {sweep.axis}, {len(own)} trained by Ray Tune")
    costs = [run_cost(run) for run in (plan if plan.config.settings.scale == "paper" else _paper(plan)).runs.values()]
    hours = sum(c.training for c in costs), sum(c.testing for c in costs)
    console.print(
        f"at paper scale about {sum(hours):.0f} GPU hours ({hours[0]:.0f} training, {hours[1]:.1f} testing) at "
        f"{GPU_FLOPS / 1e12:.0f} TFLOP/s sustained, without reading the videos"
    )


def _paper(plan: Plan) -> Plan:
    return Plan.read(plan.config.folder, {"scale": "paper"})
