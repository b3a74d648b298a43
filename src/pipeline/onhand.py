"""Whether the files that a plan names are those that its papers mean: lists, weights, and room on the disk.

Weights are looked at from outside: the settings beside them and the shapes in a file's head, no tensor is read.
"""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from pipeline.datasets.kinds.base import DataSet
from pipeline.errors import UserError
from pipeline.estimate import disk_bytes
from pipeline.experiment import Asset
from pipeline.plan import Plan
from pipeline.workspace import Workspace

# Of CLIP in Hugging Face's format: what config.json must say of the vision tower, and what it means where it is silent.
CLIP = {"hidden_size": (768, 768), "num_hidden_layers": (12, 12), "patch_size": (16, 32), "image_size": (224, 224)}
# Of weights in a safetensors file: {end of a tensor's name: its shape}, None for one that must not be there.
SHAPES: dict[str, dict[str, list[int] | None]] = {
    "resnet50": {"layer1.0.conv3.weight": [256, 64, 1, 1], "layer3.5.conv1.weight": [256, 1024, 1, 1],
                 "layer3.6.conv1.weight": None},
    "vit_s16": {"pos_embed": [1, 197, 384], "blocks.11.mlp.fc1.weight": [1536, 384], "blocks.12.mlp.fc1.weight": None},
    "vit_b16": {"pos_embed": [1, 197, 768], "blocks.11.mlp.fc1.weight": [3072, 768], "blocks.12.mlp.fc1.weight": None},
}  # fmt: skip


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
    """Counts of a set's lists that are not the papers': another version of the lists."""
    lists = data.asset.options.get("lists") or data.asset.options.get("available")
    if data.whole or not data.countable or not (isinstance(lists, str) and Path(lists).exists()):
        return
    try:
        differ = data.count(Console(file=io.StringIO()))
    except UserError:
        return  # what of them cannot be read is said where class names are looked for
    for line in differ:
        yield f"{data.asset.name}: {lists} is another version of the lists than the paper's: {line}"


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


__all__ = ["files_faults", "list_faults", "weights_faults"]
