"""What the runs of a plan are trained on and how, in words, and where that cannot be what the papers say.

`python -m pipeline plan --scale paper --check`: nothing is trained, and no video is looked for. Weights are looked at
from outside: the settings beside them and the shapes in a file's head, no tensor is read.
"""

from __future__ import annotations

import io
import json
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from pipeline.datasets.counts import listed_classes
from pipeline.datasets.kinds.base import DataSet
from pipeline.errors import UserError
from pipeline.estimate import disk_bytes
from pipeline.experiment import Asset, Run
from pipeline.names import match_names
from pipeline.plan import Plan
from pipeline.tasks.semi.kind import frames_shown
from pipeline.workspace import Workspace

ABSENT = "not here"
UNKNOWN = "?"

# Of CLIP in Hugging Face's format: what config.json must say of the vision tower, and what it means where it is silent.
CLIP = {"hidden_size": (768, 768), "num_hidden_layers": (12, 12), "patch_size": (16, 32), "image_size": (224, 224)}
# Of weights in a safetensors file: {end of a tensor's name: its shape}, None for one that must not be there.
SHAPES: dict[str, dict[str, list[int] | None]] = {
    "resnet50": {"layer1.0.conv3.weight": [256, 64, 1, 1], "layer3.5.conv1.weight": [256, 1024, 1, 1],
                 "layer3.6.conv1.weight": None},
    "vit_s16": {"pos_embed": [1, 197, 384], "blocks.11.mlp.fc1.weight": [1536, 384], "blocks.12.mlp.fc1.weight": None},
    "vit_b16": {"pos_embed": [1, 197, 768], "blocks.11.mlp.fc1.weight": [3072, 768], "blocks.12.mlp.fc1.weight": None},
}  # fmt: skip


@dataclass(frozen=True, order=True)
class Line:
    """One or more runs that are alike but for what a table varies."""

    method: str
    dataset: str
    text: str
    frames: str
    selection: str
    length: str
    labels: str
    memory: str
    """Of the GPU, for the activations of a step in float32."""
    names: str


@dataclass
class Checked:
    """lines: how many runs each stands for. faults: one a line."""

    lines: Counter[Line] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)


def check_plan(plan: Plan) -> Checked:
    """Every run of the plan that is trained, and what is wrong with it."""
    found, named = Checked(), {}
    for run in plan.runs.values():
        asset = plan.datasets[run.dataset]
        if asset.key not in named:
            named[asset.key] = names_of(plan.data(asset))
            found.faults += named[asset.key][1]
        if run.train:
            line = Line(
                run.method, asset.name, text_of(run), frames_of(run), run.selection, *length_of(run, asset),
                memory_of(plan.kind(run).memory(run)), named[asset.key][0],
            )  # fmt: skip
            found.lines[line] += 1
        found.faults += [f"{run.id}: {fault}" for fault in faults_of(run, plan.data(asset))]
    return found


# ------------------------------------------------------------------------------------------------ one run
def text_of(run: Run) -> str:
    """Which words of the classes a run reads, and what encodes them."""
    model, corpus = run.model, run.model.get("corpus", "")
    if model["type"] == "GAP":
        encoder = f"trained along: {model['text_tower']}" if model.get("text_tower") else model["text"]
        return f"{corpus or 'joints'}, {encoder}"
    if model["type"] == "CrossGLG":
        return f"joints{f' ({corpus})' if corpus else ''}, {model['text']}"
    if "text" in model:
        template = model.get("template", "{}")
        return f"{model['text']}, {template if isinstance(template, str) else f'{len(template)} templates'}"
    return "names" if model["type"] == "QuestionModel" else "-"


def frames_of(run: Run) -> str:
    """How the frames of a clip are chosen, or its skeletons shown."""
    frames = run.frames
    if "number" not in frames:
        feed = frames.get("feed", {})
        return f"{feed.get('kind', 'graph')}, {feed.get('frames', 64)} frames"
    size = frames["store"]["size"]
    stored = f"short side {size}" if isinstance(size, int) else "x".join(map(str, size))
    chosen = frames.get("elements") or frames["sampling"]
    number = frames_shown(run) if "elements" in run.model else frames["number"]
    return f"{number} of {stored}, {chosen}, test {frames.get('test_view') or frames['test_sampling']}"


def length_of(run: Run, asset: Asset) -> tuple[str, str]:
    """How long a run is trained at the published size of its set, and how many labels it sees."""
    train = run.train
    if "episodes_per_step" in train:
        return (
            f"{train['steps']} x {train['episodes_per_step']} episodes, {train['way']}-way {train['shot']}-shot, "
            f"{train['query']} queries",
            "-",
        )
    clips = clips_of(run, asset)
    items = train["labelled_per_step"] // train["batch"] if "labelled_per_step" in train else train["batches_per_step"]
    shown = f"{train['epochs']} epochs"
    if train.get("steps"):
        shown += f" in {train['steps']} steps"
    elif clips:
        shown += f" in {train['epochs'] * max(clips // train['batch'] // items, 1)} steps"
    if pretraining := train.get("pretraining"):
        shown += f", after {pretraining['epochs']} without labels"
    return shown, str(clips or UNKNOWN) + (f" of {train['label_rate']:g} %" if "label_rate" in train else "")


def memory_of(gigabytes: float) -> str:
    """As the table says it."""
    return f"{gigabytes:.0f} GB" if gigabytes >= 1 else "-"


def clips_of(run: Run, asset: Asset) -> int:
    """Labelled clips that a run trains on, as they are published, or as its rate gives them; 0: not known."""
    expected = {str(key): value for key, value in (asset.options.get("expected") or {}).items()}
    if rate := run.train.get("label_rate"):
        return int(expected.get(f"{rate:g}") or round(rate / 100 * expected.get("train", 0)))
    return int(expected.get(run.train.get("base_set", ""), expected.get("base", 0)))


def faults_of(run: Run, data: DataSet) -> Iterator[str]:
    """Why a run is not what its paper says, or cannot be trained."""
    model, train = run.model, run.train
    if not data.whole:
        if model.get("text") == "lsa":
            yield "its texts are vectors of their own words (lsa); the papers have DeBERTa (CrossGLG) or CLIP (GAP)"
        if (corpus := model.get("corpus")) and corpus not in data.definition.corpora:
            yield f"{data.asset.name} names no corpus {corpus!r} under corpora"
        if model["type"] == "TaskAdapter" and run.frames["sampling"] != "segment_random":
            yield f"its frames are chosen by {run.frames['sampling']}; the released ones are one of each eighth"
        yield from data.faults(run)
    if per_class := train.get("per_class"):
        classes = data.bases.get(train.get("base_set"), 0)
        count = classes if isinstance(classes, int) else len(classes)
        if count and train["batch"] // per_class > count:
            yield f"a batch needs {train['batch'] // per_class} classes and {train['base_set']} are {count}"


# --------------------------------------------------------------------------------------------- class names
def names_of(data: DataSet) -> tuple[str, list[str]]:
    """Classes that the lists name and how many of them have texts, as far as both are here; and what is wrong."""
    if data.whole or "text" not in data.stages:
        return "-", []
    asset, texts = data.asset, data.definition.texts
    lists = asset.options.get("lists")
    if isinstance(lists, str) and not Path(lists).is_dir():
        return f"lists {ABSENT}", []
    try:
        classes = listed_classes(data)
    except UserError as error:
        return UNKNOWN, [f"{asset.name}: {error}"] if lists else []
    if not Path(texts).is_file():
        return f"{len(classes)} classes, texts {ABSENT}", []
    from pipeline.text.corpus import load_corpus

    matched = match_names(classes, load_corpus(texts).classes, texts)
    missing = [name for name, other in matched.items() if other is None]
    apart = sum(other not in (None, name) for name, other in matched.items())
    said = f"{len(classes)} classes, {len(classes) - len(missing)} with texts ({apart} spelt apart)"
    return said, [f"{asset.name}: {texts} has no text for {', '.join(missing)}"] if missing else []


# ------------------------------------------------------------------------------- lists, weights and room
def files_faults(plan: Plan, ws: Workspace) -> Iterator[str]:
    """What is here and cannot be meant, one a line; what is not here yet is `doctor`'s."""
    for key in sorted(plan.datasets_read()):
        yield from list_faults(plan.data(plan.datasets[key]))
    for key in sorted({run.backbone for run in plan.runs.values() if run.backbone}):
        yield from weights_faults(plan.backbones[key])
    place = next(folder for folder in (ws.root, *ws.root.resolve().parents) if folder.is_dir())
    needed, free = disk_bytes(plan, ws), shutil.disk_usage(place).free
    if needed > free:
        yield (
            f"{place}: {free / 1e9:.0f} GB are free, and the frames that are still to be stored take about "
            f"{needed / 1e9:.0f} GB; free some, or call snakemake with --directory"
        )


def list_faults(data: DataSet) -> Iterator[str]:
    """Labels of a set's lists that are counted otherwise than its names, and counts that are not the papers': another
    version of the lists."""
    name, options = data.asset.name, data.asset.options
    lists = next((options[key] for key in ("lists", "labels", "available") if options.get(key)), "")
    if data.whole:
        return
    try:
        yield from (f"{name}: {line}" for line in data.offsets())
        if data.countable and isinstance(lists, str) and Path(lists).exists():
            for line in data.count(Console(file=io.StringIO())):
                yield f"{name}: {lists} is another version of the lists than the paper's: {line}"
    except UserError as error:
        if "text" not in data.stages:  # of others this is said where class names are looked for
            yield f"{name}: {error}"


def weights_faults(asset: Asset) -> Iterator[str]:
    """Weights of another architecture than a backbone's name says."""
    given = Path(asset.options.get("path") or "").expanduser()
    if not asset.options.get("path") or not given.exists():
        return
    name = asset.name
    if name == "clip_vit_b16":
        differ = _clip_differs(given)
    elif name in SHAPES:
        differ = _shapes_differ(given, SHAPES[name])
    else:
        return
    if differ:
        yield f"backbone {name}: {given} holds another architecture ({differ}); put its own weights there"


def _clip_differs(folder: Path) -> str:
    try:
        vision = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("vision_config") or {}
    except (OSError, ValueError, AttributeError):
        return "no config.json of a CLIP"
    found = {key: vision.get(key, silent) for key, (_, silent) in CLIP.items()}
    return ", ".join(
        f"{key} is {found[key]}, not {wanted}" for key, (wanted, _) in CLIP.items() if found[key] != wanted
    )


def _shapes_differ(place: Path, wanted: Mapping[str, list[int] | None]) -> str:
    """Empty too where there is no safetensors file: what else there is would have to be loaded."""
    file = place / "model.safetensors" if place.is_dir() else place
    if file.suffix != ".safetensors" or not file.is_file():
        return ""
    shapes = _head(file)
    for name, shape in wanted.items():
        found = next((value for key, value in shapes.items() if key.endswith(name)), None)
        if found != shape:
            return f"{name} should be {shape or 'absent'} and is {found or 'absent'}"
    return ""


def _head(file: Path) -> dict[str, Any]:
    """{name: shape} of the tensors of a safetensors file."""
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        try:
            content = json.loads(opened.read(length))
        except ValueError:
            return {}
    return {name: entry["shape"] for name, entry in content.items() if name != "__metadata__"}


def print_check(found: Checked) -> None:
    """The lines as a table, then the faults."""
    from rich.table import Table

    console, table = Console(soft_wrap=True), Table(box=None, pad_edge=False)
    for name in (
        "method",
        "data set",
        "text",
        "frames",
        "selection",
        "length",
        "labels",
        "GPU memory",
        "class names",
        "runs",
    ):
        table.add_column(name, overflow="fold")
    for line, count in sorted(found.lines.items()):
        table.add_row(*vars(line).values(), str(count))
    Console(width=max(console.width, 240)).print(table)
    for fault in found.faults:
        console.print(f"fault: {fault}", highlight=False, markup=False)
    console.print(f"{found.lines.total()} trainings, {len(found.faults)} faults", highlight=False)


__all__ = ["Checked", "Line", "check_plan", "files_faults", "list_faults", "print_check", "weights_faults"]
