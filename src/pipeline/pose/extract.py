"""Poses of many videos: a folder that skeleton data sets read with `format: poses`.

The folder holds `shard-00000.npz` and so on (the clips of a shard, whole or not there), `poses.csv` (each clip with its
place), `failures.csv` (clips without poses, with the reason) and `manifest.json`, written last. What an interrupted
extraction has finished is not done again.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.datasets.folder import clips_below
from pipeline.datasets.frames import map_frames
from pipeline.datasets.skeletons.layouts import layout_weights, to_layout
from pipeline.datasets.skeletons.pose_folder import ClipPoses, read_shard
from pipeline.errors import UserError
from pipeline.files import write_bytes, write_csv, write_text
from pipeline.guarded import Failure, Unreadable, guarded_map
from pipeline.pose.estimator import PoseSettings, open_estimator
from pipeline.pose.tracking import track
from pipeline.progress import bar
from pipeline.shards import Parts, ShardFolder, make_shards, shard_file

FORMAT = 1  # of the folder's files
SHARD = 32  # clips: minutes of work
CLIP_TIMEOUT = 3600.0  # seconds after which a clip counts as hung
COLUMNS = ("clip", "path", "label", "split", "shard", "place", "persons", "frames", "seen", "height", "width", "fps")


@dataclass(frozen=True, slots=True)
class Video:
    """A video, or folder of frames: its name, its path below the root, and class and split where they are known."""

    clip: str
    path: str
    label: str = ""
    split: str = ""


# --------------------------------------------------------------------------------------------- which videos
def find_videos(where: str | Path, root: str | Path = "") -> tuple[Path, list[Video]]:
    """The videos of a folder, at any depth, or of a CSV file, and the folder to which their paths are relative.

    The CSV file has the column path and may have clip, label and split (an index.csv has all four); its paths are
    relative to `root`, by default its own folder.

    Raises:
        UserError: there is no such folder or file, it names no video, or two of the same name.
    """
    where = Path(where).expanduser()
    if where.is_dir():
        rows: list[Mapping[str, str]] = [{"path": path} for path in clips_below(where)]
        base = where
        if rows == [{"path": ""}]:  # the folder is itself a clip
            base, rows = where.parent, [{"path": where.name}]
    elif where.is_file():
        rows, base = _read_list(where), Path(root).expanduser() if root else where.parent
    else:
        raise UserError(f"there is no {where}; give a folder of videos, or a CSV file with the column path")
    stems = [str(Path(row["path"]).with_suffix("")) for row in rows]
    alike = len(set(stems)) < len(stems)
    videos = [
        Video(row.get("clip") or (row["path"] if alike else stem), *((row.get(key) or "") for key in COLUMNS[1:4]))
        for row, stem in zip(rows, stems, strict=True)
    ]
    if not videos:
        raise UserError(f"{where} holds no video and no folder of frames")
    if len({video.clip for video in videos}) < len(videos):
        raise UserError(f"{where} lists a clip twice; give each a name of its own in the column clip")
    return base, videos


def _read_list(path: Path) -> list[Mapping[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = [{key: (text or "").strip() for key, text in row.items() if key} for row in csv.DictReader(file)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"the list of videos {path} cannot be read ({error}); correct it") from None
    if not rows or not all(row.get("path") for row in rows):
        raise UserError(f"the list of videos {path} needs rows with the column path (and perhaps clip, label, split)")
    return rows


# ------------------------------------------------------------------------------------------------- one clip
class _Fault(Exception):
    """An error of the estimator, which is no fault of the video."""


def estimate_clip(path: str, settings: PoseSettings, weights: np.ndarray) -> ClipPoses:
    """Decode a clip and find its persons; weights are those of `layouts.layout_weights`.

    Raises Unreadable when it cannot be decoded, or nobody is found in it.
    """
    estimator = open_estimator(settings.backend, settings.models, settings.device)
    size = [(0, 0)]

    def look(frame: np.ndarray) -> np.ndarray:
        size[0] = frame.shape[:2]
        try:
            return estimator.estimate(frame)
        except Exception as error:
            raise _Fault from error

    estimator.begin()
    try:
        clip = map_frames(path, look, settings.frames)
    except _Fault as fault:
        raise fault.__cause__ from None  # type: ignore[misc]
    persons = track(clip.frames, settings.persons)
    if not len(persons):
        raise Unreadable(f"nobody is found in any of its {len(clip.frames)} frames")
    seen = persons.any(axis=(2, 3))
    return ClipPoses(to_layout(persons, weights) * seen[..., None, None], size[0], clip.fps)


# --------------------------------------------------------------------------------------------------- shards
def extract_poses(
    root: str | Path,
    videos: Sequence[Video],
    out: str | Path,
    settings: PoseSettings,
    workers: int = 1,
    clip_timeout: float = CLIP_TIMEOUT,
    nodes: int = 1,
) -> Path:
    """Extract the poses of `videos` (paths below `root`) into the folder `out`; returns its manifest.

    A folder that is complete is left alone, one that was interrupted is continued. Videos that cannot be used are
    listed in `failures.csv`. The memory needed does not grow with the number of videos. With several `nodes` the
    shards are made over those of the Ray cluster that this process is connected to, by `workers` processes on each.

    Raises:
        UserError: the folder holds poses of other videos or settings, the backend lacks something, no video has a
            person, the disk is full, or see `pipeline.shards.make_shards`.
    """
    out = Path(out)
    estimator = open_estimator(settings.backend, settings.models, settings.device)
    weights = layout_weights(estimator.joints, settings.layout)
    identity = {
        "format": FORMAT, **asdict(settings), "models": estimator.about, "shard": SHARD,
        "videos": hashlib.sha256(json.dumps([asdict(video) for video in videos]).encode()).hexdigest(),
    }  # fmt: skip
    del identity["device"]
    folder = ShardFolder(out, identity, "poses")
    with folder.filling():
        if not (folder.claim() and (out / "poses.csv").exists()):
            function = partial(estimate_clip, settings=settings, weights=weights)
            _write_shards(Path(root), videos, out, function, workers, clip_timeout, nodes)
            _finish(videos, out, identity, len(weights))
    return out / "manifest.json"


def _missing(parts: Parts, out: Path) -> Parts:
    """Those of `parts` that are not there whole."""
    return {number: part for number, part in parts.items() if read_shard(shard_file(out, number)) is None}


def _write_shards(
    root: Path, videos: Sequence[Video], out: Path, function: Any, workers: int, timeout: float, nodes: int
) -> None:
    """Extract what is not there yet, shard by shard."""
    paths, root, out = [video.path for video in videos], root.absolute(), out.absolute()
    parts = {number: paths[start : start + SHARD] for number, start in enumerate(range(0, len(paths), SHARD))}
    parts = _missing(parts, out)
    if not parts:
        return
    for number in parts:  # nobody is to take a damaged one for the new one
        shard_file(out, number).unlink(missing_ok=True)
    make = partial(_make_shards, root=root, out=out, function=function, workers=workers, timeout=timeout)
    with bar("poses", len(videos), "clips", len(videos) - sum(map(len, parts.values()))) as finding:
        make_shards(make, parts, finding, nodes, workers, (root, out))


def _make_shards(
    parts: Parts, advance: Callable[[], None], *, root: Path, out: Path, function: Any, workers: int, timeout: float
) -> Iterator[Path]:
    """Make shards of the clips at `parts`, as `pipeline.shards.Make` says."""
    todo = _missing(parts, out)
    results = guarded_map(function, [str(root / path) for part in todo.values() for path in part], workers, timeout)
    try:
        for number, part in parts.items():
            if number in todo:
                made = []
                for _ in part:
                    made.append(next(results))
                    advance()
                write_bytes(shard_file(out, number), _pack(made))
            yield shard_file(out, number)
    finally:
        results.close()  # ends the workers


def _pack(results: Sequence[ClipPoses | Failure]) -> bytes:
    """A shard: for each clip persons, frames, size, fps and why it has none; the joints one after the other."""
    good = [result if isinstance(result, ClipPoses) else None for result in results]
    buffer = io.BytesIO()
    np.savez(
        buffer,
        joints=np.concatenate([made.joints.ravel() for made in good if made] or [np.zeros(0, np.float32)]),
        shape=np.array([made.joints.shape if made else (0, 0, 0, 0) for made in good], dtype=np.int64),
        seen=np.array([made.joints.any(axis=(0, 2, 3)).sum() if made else 0 for made in good], dtype=np.int64),
        size=np.array([made.size if made else (0, 0) for made in good], dtype=np.int64),
        fps=np.array([made.fps if made else 0 for made in good], dtype=np.float64),
        failure=np.array([result.reason if isinstance(result, Failure) else "" for result in results], dtype=np.str_),
    )
    return buffer.getvalue()


def _rows(videos: Sequence[Video], out: Path) -> Iterator[tuple[Video, tuple[Any, ...], str]]:
    """(video, its place and numbers for poses.csv, why it has no poses)."""
    for number in range(-(-len(videos) // SHARD)):
        shard = read_shard(shard_file(out, number)) or {}
        for place, video in enumerate(videos[number * SHARD : (number + 1) * SHARD]):
            persons, frames = shard["shape"][place, :2].tolist()
            height, width = shard["size"][place].tolist()
            numbers = (persons, frames, int(shard["seen"][place]), height, width, float(shard["fps"][place]))
            yield video, (shard_file(out, number).name, place, *numbers), str(shard["failure"][place])


def _finish(videos: Sequence[Video], out: Path, identity: Mapping[str, Any], joints: int) -> None:
    """Write the tables and, last, the manifest."""
    rows = list(_rows(videos, out))
    failures = [(video.clip, video.path, reason) for video, _, reason in rows if reason]
    write_csv(out / "failures.csv", ("clip", "path", "reason"), failures)
    good = [(video.clip, video.path, video.label, video.split, *place) for video, place, reason in rows if not reason]
    if not good:
        raise UserError(f"none of the {len(videos)} videos has poses; the first, {failures[0][1]}: {failures[0][2]}")
    write_csv(out / "poses.csv", COLUMNS, good)
    frames, seen = (sum(row[COLUMNS.index(key)] for row in good) for key in ("frames", "seen"))
    manifest = {
        **identity, "joints": joints, "clips": len(good), "failures": len(failures), "all_frames": frames,
        "frames_with_person": seen,
    }  # fmt: skip
    write_text(out / "manifest.json", json.dumps(manifest, indent=1) + "\n")
