"""Features of many clips: a folder of shards, made by this process or over the nodes of a Ray cluster.

The folder holds `shard-00000.npz` and so on (arrays `features` (V, ...) float32, `clips`, and `failed` with `reasons`
for those that cannot be read), `clips.csv` (each clip with its class and its place), `failures.csv`, and
`manifest.json`, written last. What an interrupted run has finished is not done again.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.actions.clips import OwnClip
from pipeline.actions.frozen import frozen_model
from pipeline.actions.model import ActionModel, Encoded, find_model
from pipeline.errors import UserError
from pipeline.files import write_bytes, write_csv, write_text
from pipeline.progress import bar
from pipeline.shards import Parts, ShardFolder, make_shards, read_arrays, shard_file

FORMAT = 2  # of the folder's files and of the frames that were encoded; 1 had another decoder's
SHARD = 256  # clips: with 8 x 512 float32 of each, 4 MB


@dataclass(frozen=True)
class ModelName:
    """What a model is found by; unlike a model it can be sent to other processes. Without folder, run and method it is
    a frozen backbone."""

    folder: str = ""
    run: str = ""
    method: str = ""
    results: str = "results"
    backbone: str = ""

    def load(self) -> ActionModel:
        """The model.

        Raises:
            UserError: none or several fit, or a backbone is named beside a trained model.
        """
        if not (self.folder or self.run or self.method):
            return frozen_model(self.backbone)
        if self.backbone:
            raise UserError("--backbone goes without a run; leave it out, or --run, --method and --model")
        return find_model(self.folder, self.run, self.method, self.results)

    def absolute(self) -> ModelName:
        """The same from any working directory."""
        folder, backbone = (
            str(Path(path).absolute()) if path and Path(path).exists() else path
            for path in (self.folder, self.backbone)
        )
        return ModelName(folder, self.run, self.method, str(Path(self.results).absolute()), backbone)


def embed_folder(
    name: ModelName, root: Path, clips: Sequence[OwnClip], out: Path, workers: int = 1, nodes: int = 1
) -> dict[str, Any]:
    """Write the features of `clips` (below `root`) into the folder `out`; returns its manifest.

    A folder that is complete is left alone, one that was interrupted is continued. The memory needed is that of the
    list of clips and of one shard. With several `nodes` the shards are made over those of the Ray cluster that this
    process is connected to, by a GPU each where there is one, else by `workers` processes that decode and one that
    encodes.

    Raises:
        UserError: the folder holds something else, no clip can be read, the disk is full, no model or several fit, or
            see `pipeline.shards.make_shards`.
    """
    model = name.load()
    listed = hashlib.sha256(json.dumps([[clip.name, clip.label] for clip in clips]).encode()).hexdigest()
    identity = {"format": FORMAT, "run": model.about.run, "shard": SHARD, "clips": listed}
    identity |= {"pattern": clips[0].pattern} if clips[0].pattern else {}
    gpus = int(model.device == "cuda")
    del model  # a worker loads its own
    folder = ShardFolder(out, identity, "features")
    with folder.filling():
        if not folder.claim():
            _write_shards(name.absolute(), root.absolute(), clips, out.absolute(), workers, nodes, gpus)
            _finish(clips, out, identity)
    return json.loads((out / "manifest.json").read_text(encoding="utf-8"))


def read_features(path: str | Path) -> dict[str, np.ndarray] | None:
    """The arrays of a shard; None where it is missing or damaged."""
    return read_arrays(path, ("features", "clips", "failed", "reasons"))


def _write_shards(
    name: ModelName, root: Path, clips: Sequence[OwnClip], out: Path, workers: int, nodes: int, gpus: int
) -> None:
    """Encode what is not there yet, shard by shard."""
    names = [clip.name for clip in clips]
    parts = {number: names[start : start + SHARD] for number, start in enumerate(range(0, len(names), SHARD))}
    missing = {number: part for number, part in parts.items() if read_features(shard_file(out, number)) is None}
    for number in missing:  # nobody is to take a damaged one for the new one
        shard_file(out, number).unlink(missing_ok=True)
    if Path(clips[0].path).absolute() == root:  # a clip by itself
        root = root.parent
    make = partial(_make_shards, name=name, root=root, out=out, workers=workers, pattern=clips[0].pattern)
    with bar("features", len(names), "clips", len(names) - sum(map(len, missing.values()))) as shown:
        make_shards(make, missing, shown, nodes, workers, (root, out), gpus)


def _make_shards(
    parts: Parts, advance: Callable[[], None], *, name: ModelName, root: Path, out: Path, workers: int, pattern: str
) -> Iterator[Path]:
    """Make shards of the clips at `parts`, as `pipeline.shards.Make` says."""
    model = None
    for number, part in parts.items():
        if not shard_file(out, number).exists():
            model = model or name.load()
            clips = [OwnClip(clip, str(root / clip), pattern=pattern) for clip in part]
            write_bytes(shard_file(out, number), _pack(model, clips, workers, advance))
        yield shard_file(out, number)


def _pack(model: ActionModel, clips: Sequence[OwnClip], workers: int, advance: Callable[[], None]) -> bytes:
    """A shard of `clips`."""
    good, failed = [], []
    for item in model.encode(clips, workers):
        if isinstance(item, Encoded):
            good.append((item.clip.name, item.features.float().cpu().numpy()))
        else:
            failed.append((item[0].name, item[1].reason))
        advance()
    buffer = io.BytesIO()
    np.savez(
        buffer,
        features=np.stack([features for _, features in good]) if good else np.zeros(0, np.float32),
        clips=np.array([clip for clip, _ in good], dtype=np.str_),
        failed=np.array([clip for clip, _ in failed], dtype=np.str_),
        reasons=np.array([reason for _, reason in failed], dtype=np.str_),
    )
    return buffer.getvalue()


def _finish(clips: Sequence[OwnClip], out: Path, identity: dict[str, Any]) -> None:
    """Write the tables and, last, the manifest."""
    labels = {clip.name: clip.label for clip in clips}
    good, failed, shape = [], [], None
    for number in range(-(-len(clips) // SHARD)):
        shard = read_features(shard_file(out, number))
        if shard is None:
            raise UserError(f"{shard_file(out, number)} is missing or damaged; run the same command again")
        names = shard["clips"].tolist()
        good += [(clip, labels[clip], shard_file(out, number).name, place) for place, clip in enumerate(names)]
        failed += zip(shard["failed"].tolist(), shard["reasons"].tolist(), strict=True)
        shape = list(shard["features"].shape[1:]) if names else shape
    write_csv(out / "failures.csv", ("clip", "reason"), failed)
    if not good:
        raise UserError(f"none of the {len(clips)} clips can be read; the first, {failed[0][0]}: {failed[0][1]}")
    write_csv(out / "clips.csv", ("clip", "label", "shard", "place"), good)
    manifest = {**identity, "shape": shape, "features": len(good), "failures": len(failed)}
    write_text(out / "manifest.json", json.dumps(manifest, indent=1) + "\n")
