"""The frame store: every video decoded once, its frames kept where training and tests read them fast.

A store is a folder: shards (one blob of frames each, mapped into memory when read), a table of where each
frame lies, `index.csv` of the clips it holds, `failures.csv` of those it does not, and `manifest.json`,
written last.
"""

from __future__ import annotations

import hashlib
import io
import json
import mmap
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import simplejpeg

from pipeline.datasets.index import Clip, read_index, write_index
from pipeline.datasets.kept import FOLDER as KEPT
from pipeline.datasets.kept import Kept, keep_shards, stamp
from pipeline.datasets.sampling import sample_positions
from pipeline.datasets.videos import ReadClip, read_clip
from pipeline.errors import UserError, unknown
from pipeline.files import read_json, write_bytes, write_csv, write_text
from pipeline.guarded import CLIP_TIMEOUT, Failure, guarded_map
from pipeline.progress import bar
from pipeline.shards import Parts, ShardFolder, make_shards

CODECS = ("jpeg", "raw")
SPACINGS = ("number", "time")
FORMAT = 2  # of the store's files and of the frames in them; 1 had decord's
_MAX_SHARDS = 128  # an open store holds one file descriptor a shard
_MIN_CLIPS_PER_SHARD = 32


# ---------------------------------------------------------------------------------------------- policy
@dataclass(frozen=True, slots=True)
class FramePolicy:
    """How frames are stored.

    size: (height, width) in pixels; the whole frame is resized to it, its aspect not kept, bilinear
    (CLIP-FSAR: 256x256). One number is the short side, and the aspect is kept (SeFAR, TRX). frames: frames kept of a
    clip at most, evenly spaced (the middles of equal segments); 0 keeps all. codec: jpeg or raw (uint8 RGB).
    quality: of the JPEGs, 1 to 100. spacing: what is even, the numbers of the frames (number, as in the released code)
    or their times (time), which differ where the frame rate of a video changes.
    """

    size: tuple[int, int] | int = (256, 256)
    frames: int = 32
    codec: str = "jpeg"
    quality: int = 95
    spacing: str = "number"

    @classmethod
    def parse(cls, policy: Mapping[str, Any] | FramePolicy) -> FramePolicy:
        """Policy from a configuration; raises UserError naming the entry that is wrong."""
        if isinstance(policy, FramePolicy):
            return policy
        names = [field.name for field in fields(cls)]
        for name in policy:
            if name not in names:
                raise unknown("entry", name, names, "the frame policy")
        size, frames = policy.get("size", cls().size), policy.get("frames", cls().frames)
        sides = size if isinstance(size, Sequence) and len(size) == 2 else (size,)
        if not all(isinstance(side, int) for side in sides) or isinstance(size, bool) or min(sides) < 8:
            raise UserError(
                f"frame policy: size must be [height, width] of 8 or more, or the short side alone, not {size}"
            )
        if not isinstance(frames, int) or frames < 0:
            raise UserError(f"frame policy: frames must be 0 (all) or more, not {frames}")
        made = cls(**{**policy, "size": tuple(sides) if len(sides) == 2 else size})
        if made.codec == "raw" and len(sides) == 1:
            raise UserError("frame policy: raw frames have one size; give size as [height, width], or codec: jpeg")
        if made.codec not in CODECS:
            raise unknown("codec", made.codec, CODECS, "the frame policy")
        if not isinstance(made.quality, int) or not 1 <= made.quality <= 100:
            raise UserError(f"frame policy: quality must be between 1 and 100, not {made.quality}")
        if made.spacing not in SPACINGS:
            raise unknown("spacing", made.spacing, SPACINGS, "the frame policy")
        return made

    def as_dict(self) -> dict[str, Any]:
        """As JSON, one form for policies that store the same; raw frames have no quality."""
        made = {**asdict(self), "size": self.size if isinstance(self.size, int) else list(self.size)}
        if self.codec == "raw":
            del made["quality"]
        if self.spacing == "number":
            del made["spacing"]
        return made

    def places(self, times: np.ndarray) -> np.ndarray:
        """Which of a clip's frames, shown at `times` (n,) seconds, are kept: ascending, int64."""
        wanted = min(len(times), self.frames) if self.frames else len(times)
        even = sample_positions(len(times), wanted, "segment_centre")
        if self.spacing == "number" or wanted == len(times):
            return even
        frame = times[-1] / max(len(times) - 1, 1)  # the last one is shown for about as long as the others
        middles = (np.arange(wanted) + 0.5) * (times[-1] + frame) / wanted
        return np.unique(np.searchsorted(times, middles, side="right") - 1)


# -------------------------------------------------------------------------------------------- decoding
@dataclass(frozen=True, slots=True)
class ClipProbe:
    """What a look into a video says: count of frames, frames a second (0: unknown), size in pixels."""

    frames: int
    fps: float
    height: int
    width: int


def encode_clip(path: str | Path, policy: FramePolicy, pattern: str = "") -> ReadClip:
    """Decode a video, or a folder of jpg/png frames, and encode the frames that `policy` keeps; see `read_clip`."""
    return read_clip(path, partial(encode_frame, policy), policy.places, pattern)


def map_frames(path: str | Path, function: Callable[[np.ndarray], Any], frames: int = 0) -> ReadClip:
    """Decode a clip like `encode_clip` and keep what `function` makes of each frame, uint8 RGB (H, W, 3), in order.

    frames: at most so many, evenly spaced; 0 takes all. Raises Unreadable.
    """
    return read_clip(path, function, FramePolicy(frames=frames).places)


def probe_clip(path: str | Path, pattern: str = "") -> ClipProbe:
    """Open a clip and decode its first frame and one near its end; raises Unreadable like `encode_clip`."""
    found = read_clip(path, np.shape, lambda times: np.unique([0, (len(times) - 1) * 9 // 10]), pattern)
    return ClipProbe(found.source_frames, found.fps, *found.frames[0][:2])


def probe_clips(
    root: str | Path, clips: Sequence[Clip], workers: int = 1, pattern: str = ""
) -> list[ClipProbe | Failure]:
    """`probe_clip` of every clip, in `workers` processes; a Failure says why one cannot be read."""
    jobs = [str(Path(root) / clip.path) for clip in clips]
    return list(guarded_map(partial(probe_clip, pattern=pattern), jobs, workers))


def _stored_size(size: tuple[int, int] | int, height: int, width: int) -> tuple[int, int]:
    """Height and width at which a frame is stored."""
    if not isinstance(size, int):
        return size
    factor = size / min(height, width)
    return max(round(height * factor), size), max(round(width * factor), size)


def encode_frame(policy: FramePolicy, frame: np.ndarray) -> bytes:
    """One RGB frame (H, W, 3), resized and in the store's codec."""
    height, width = _stored_size(policy.size, *frame.shape[:2])
    frame = cv2.resize(frame, (width, height), interpolation=cv2.INTER_LINEAR)
    if policy.codec == "raw":
        return frame.tobytes()
    good, data = cv2.imencode(
        ".jpg", cv2.cvtColor(frame, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, policy.quality]
    )
    if not good:
        raise RuntimeError("OpenCV could not encode a JPEG")
    return data.tobytes()


def decode_jpeg(data: np.ndarray | bytes, out: np.ndarray | None = None) -> np.ndarray:
    """A JPEG as RGB (H, W, 3), in `out` if that is given. The pixels are those of OpenCV, which takes longer.

    Raises ValueError for a damaged one, and for one that `out` is too small for.
    """
    return simplejpeg.decode_jpeg(data, "RGB", buffer=out)


# -------------------------------------------------------------------------------------------- building
def build_frame_store(
    index_csv: str | Path,
    root: str | Path,
    folder: str | Path,
    policy: Mapping[str, Any] | FramePolicy,
    workers: int = 1,
    *,
    clip_timeout: float = CLIP_TIMEOUT,
    nodes: int = 1,
    audit: Callable[[list[tuple[Clip, str]]], Mapping[str, Any]] | None = None,
    pattern: str = "",
) -> Path:
    """Decode the clips of `index_csv` (paths below `root`) into the frame store `folder`; returns its
    manifest.

    A store that is complete is left alone; after a change of the index it is made again, and clips that are
    the same are not decoded again. A build that was interrupted goes on after its last finished shard, and
    reads a clip that failed again where its file was put in place since. Clips that cannot be decoded are
    left out and listed in `failures.csv` with the reason. `audit` is given them before the store is
    finished: what it raises leaves the shards as they are, what it returns goes into the manifest. Needs
    memory for a few encoded clips a worker, whatever their number. With several `nodes` the shards are made
    over those of the Ray cluster that this process is connected to, by `workers` processes on each.

    pattern: see `read_clip`.

    Raises UserError when the folder holds a complete store of another policy, no file is found, no clip
    can be decoded, the disk is full, or see `pipeline.shards.make_shards`.
    """
    policy, folder, root = FramePolicy.parse(policy), Path(folder), Path(root)
    clips = read_index(index_csv)
    sha = hashlib.sha256(Path(index_csv).read_bytes()).hexdigest()
    identity = {"format": FORMAT, "policy": policy.as_dict(), "index": sha, "shard": _shard_size(len(clips))}
    store = ShardFolder(folder, identity, "frame store")
    if store.complete():
        return folder / "manifest.json"
    if not any((root / clip.path).exists() for clip in clips):
        raise UserError(f"none of the {len(clips)} files of {index_csv} is found in {root}; correct the root")
    with store.filling():
        left = ("shard-*", "table.npz", "index.csv", "failures.csv")
        store.begin(left, keep=lambda before: keep_shards(folder, before, identity))
        decode = Decode(policy, pattern, workers, clip_timeout)
        _write_shards(clips, root, folder, decode, identity["shard"], nodes)
        return _finish(clips, folder, identity, audit or (lambda _: {}))


def _shard_size(n: int) -> int:
    """Clips a shard: few enough that a killed build loses little, enough that shards stay few."""
    return max(_MIN_CLIPS_PER_SHARD, -(-n // _MAX_SHARDS))


def _blob(folder: Path, shard: int) -> Path:
    return folder / f"shard-{shard:05d}.bin"


def _record(folder: Path, shard: int) -> dict[str, Any] | None:
    """What a finished shard says of itself, or None."""
    record = read_json(_blob(folder, shard).with_suffix(".json"))
    try:
        good = record is not None and _blob(folder, shard).stat().st_size == record["bytes"]
    except FileNotFoundError:
        good = False
    return record if good else None


def _usable(folder: Path, shard: int, files: Sequence[Path]) -> bool:
    """Whether a shard is finished, and no clip that failed in it has another file since."""
    record = _record(folder, shard)
    if record is None:
        return False
    made = _blob(folder, shard).with_suffix(".json").stat().st_mtime
    failed = [file for file, row in zip(files, record["clips"], strict=True) if "failure" in row and file.exists()]
    return all(file.stat().st_ctime <= made for file in failed)  # ctime: copies may keep an older mtime


def _missing(parts: Parts, root: Path, folder: Path) -> Parts:
    """Those of `parts` that are not finished."""
    return {shard: part for shard, part in parts.items() if not _usable(folder, shard, [root / path for path in part])}


@dataclass(frozen=True)
class Decode:
    """How the clips of a store are decoded: by so many processes, each clip in `timeout` seconds at most."""

    policy: FramePolicy
    pattern: str
    workers: int
    timeout: float

    def __call__(self, paths: Sequence[str]) -> Iterator[ReadClip | Failure]:
        """The clips at `paths`, in their order."""
        return guarded_map(
            partial(encode_clip, policy=self.policy, pattern=self.pattern), paths, self.workers, self.timeout
        )


def _write_shards(clips: list[Clip], root: Path, folder: Path, decode: Decode, size: int, nodes: int) -> None:
    paths, root, folder = [clip.path for clip in clips], root.absolute(), folder.absolute()
    parts = {shard: paths[start : start + size] for shard, start in enumerate(range(0, len(paths), size))}
    parts = _missing(parts, root, folder)
    if not parts:
        return
    for blob in (_blob(folder, shard) for shard in parts):  # nobody is to take them for the new ones
        blob.with_suffix(".json").unlink(missing_ok=True)
        blob.unlink(missing_ok=True)
    kept = Kept(folder, root)
    copied = {shard: part for shard, part in parts.items() if any(map(kept.holds, part))}
    fresh = {shard: part for shard, part in parts.items() if shard not in copied}
    make = partial(_make_shards, root=root, folder=folder, decode=decode)
    with bar("decoding", len(clips), "clips", len(clips) - sum(map(len, parts.values()))) as decoding:
        make_shards(make, copied, decoding)  # here, one after the other: what is copied is deleted
        kept.keep_only([])
        make_shards(make, fresh, decoding, nodes, decode.workers, (root, folder))


def _make_shards(
    parts: Parts, advance: Callable[[], None], *, root: Path, folder: Path, decode: Decode
) -> Iterator[Path]:
    """Make shards of the clips at `parts`, as `pipeline.shards.Make` says."""
    todo, kept = _missing(parts, root, folder), Kept(folder, root)
    again = {path: shard for shard, part in todo.items() for path in part if kept.holds(path)}  # and its last use
    paths = [path for part in todo.values() for path in part]
    decoded = decode([str(root / path) for path in paths if path not in again])
    results = (kept.read(path) if path in again else next(decoded) for path in paths)
    try:
        for shard, part in parts.items():
            if shard in todo:
                kept.keep_only([path for path, last in again.items() if last >= shard])
                _write_shard(folder, shard, results, part, root, advance)
            yield _blob(folder, shard).with_suffix(".json")
    finally:
        decoded.close()  # ends the workers


def _write_shard(
    folder: Path, shard: int, results: Iterator[Any], paths: Sequence[str], root: Path, advance: Callable[[], None]
) -> None:
    """Append the results of the clips at `paths` to a blob, then put blob and record in place."""
    began = time.monotonic()
    blob = _blob(folder, shard)
    temporary = folder / f".{blob.name}.{os.getpid()}.tmp"
    rows = []
    try:
        with open(temporary, "wb") as file:
            for path in paths:
                result = next(results)
                if isinstance(result, Failure):
                    rows.append({"failure": result.reason})
                else:
                    file.writelines(result.frames)
                    sizes = [len(frame) for frame in result.frames]
                    about = {key: value for key, value in asdict(result).items() if key != "frames"}
                    rows.append({"sizes": sizes, **about, "path": path, "stamp": stamp(root / path)})
                advance()
        total = temporary.stat().st_size
        os.replace(temporary, blob)
    finally:
        temporary.unlink(missing_ok=True)
    record = {"bytes": total, "seconds": round(time.monotonic() - began, 3), "clips": rows}
    write_text(blob.with_suffix(".json"), json.dumps(record))


def _finish(
    clips: list[Clip],
    folder: Path,
    identity: Mapping[str, Any],
    audit: Callable[[list[tuple[Clip, str]]], Mapping[str, Any]],
) -> Path:
    """Write table, index, failures and, last, the manifest."""
    records = [_record(folder, shard) for shard in range(-(-len(clips) // identity["shard"]))]
    rows = [(shard, row) for shard, record in enumerate(records) for row in record["clips"]]
    failed = [(clip, row["failure"]) for clip, (_, row) in zip(clips, rows, strict=True) if "failure" in row]
    failures = [(clip.clip, clip.path, reason) for clip, reason in failed]
    stored = [clip for clip, (_, row) in zip(clips, rows, strict=True) if "failure" not in row]
    write_csv(folder / "failures.csv", ("clip", "path", "reason"), failures)
    if not stored:
        raise UserError(f"no clip could be decoded; the first, {failures[0][1]}: {failures[0][2]}")
    audited = audit(failed)
    buffer = io.BytesIO()
    np.savez(buffer, **_table([(shard, row) for shard, row in rows if "failure" not in row]))
    write_bytes(folder / "table.npz", buffer.getvalue())
    write_index(folder / "index.csv", stored)
    manifest = {
        **identity,
        "clips": len(stored),
        "frames": sum(len(row.get("sizes", ())) for _, row in rows),
        "bytes": sum(record["bytes"] for record in records),
        "seconds": round(sum(record["seconds"] for record in records), 3),
        "failures": len(failures),
        **audited,
    }
    path = write_text(folder / "manifest.json", json.dumps(manifest, indent=1) + "\n")
    shutil.rmtree(folder / KEPT, ignore_errors=True)
    return path


def _table(rows: Sequence[tuple[int, Mapping[str, Any]]]) -> dict[str, np.ndarray]:
    """Where the frames lie: frame f of clip i is row first[i] + f of start and size, in the blob shard[i]."""
    counts = [len(row["sizes"]) for _, row in rows]
    size = np.concatenate([np.asarray(row["sizes"], dtype=np.int64) for _, row in rows])
    shard = np.array([shard for shard, _ in rows], dtype=np.int32)
    of_frame = np.repeat(shard, counts)
    start = np.cumsum(size) - size
    first_of_shard = np.searchsorted(of_frame, of_frame, side="left")
    return {
        "shard": shard,
        "first": np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        "fps": np.array([row["fps"] for _, row in rows], dtype=np.float64),
        "source_frames": np.array([row["source_frames"] for _, row in rows], dtype=np.int64),
        "time": np.concatenate([row["times"] or [np.nan] * len(row["sizes"]) for _, row in rows]).astype(np.float64),
        "start": start - start[first_of_shard],
        "size": size,
    }


# --------------------------------------------------------------------------------------------- reading
class FrameStore:
    """Reads a frame store.

    Safe to hand to worker processes: pickled it is its folder's name, and blobs are mapped read-only on
    first use. Raises UserError when the folder holds no store, an unfinished or damaged one, or (when
    `policy` is given) one of another policy.
    """

    def __init__(self, folder: str | Path, policy: Mapping[str, Any] | FramePolicy | None = None) -> None:
        self.folder = Path(folder)
        self.manifest = read_json(self.folder / "manifest.json")
        if self.manifest is None:
            raise UserError(self._why_missing())
        if self.manifest["format"] != FORMAT:
            raise UserError(f"the frame store {folder} has another version's format; delete it and build it again")
        if policy is not None:
            ShardFolder(self.folder, {"policy": FramePolicy.parse(policy).as_dict()}, "frame store").complete()
        index = read_index(self.folder / "index.csv")
        self.clips = [clip.clip for clip in index]
        self.labels = [clip.label for clip in index]
        self.splits = [clip.split for clip in index]
        try:
            with np.load(self.folder / "table.npz", allow_pickle=False) as table:
                self._table = {name: table[name] for name in table.files}
        except (OSError, ValueError) as error:
            raise self._damaged("table.npz") from error
        self._size = self.manifest["policy"]["size"]
        self._maps: dict[int, mmap.mmap] = {}

    def _why_missing(self) -> str:
        if (self.folder / "identity.json").exists():
            return f"the frame store {self.folder} is incomplete: its build was interrupted; run the build again"
        return f"there is no frame store in {self.folder}; build it first"

    def _damaged(self, name: str) -> UserError:
        return UserError(f"{self.folder / name} is damaged; delete the frame store {self.folder} and build it again")

    def __reduce__(self) -> tuple[type[FrameStore], tuple[Path]]:
        return FrameStore, (self.folder,)

    def __len__(self) -> int:
        return len(self.clips)

    def classes(self, split: str | None = None) -> list[str]:
        """Sorted class names of one split, or of all."""
        return sorted({label for label, of in zip(self.labels, self.splits, strict=True) if split in (None, of)})

    def by_class(self, split: str | None = None) -> dict[str, np.ndarray]:
        """{class name: numbers of its clips} of one split, or of all; classes sorted.

        Raises UserError when the split has no clip.
        """
        groups: dict[str, list[int]] = {name: [] for name in self.classes(split)}
        for i, (label, of) in enumerate(zip(self.labels, self.splits, strict=True)):
            if split in (None, of):
                groups[label].append(i)
        if not groups:
            raise UserError(f"the frame store {self.folder} has no clip in the split {split!r}; give it classes")
        return {name: np.array(clips) for name, clips in groups.items()}

    def n_frames(self, i: int) -> int:
        """Stored frames of clip `i`."""
        return int(self._table["first"][i + 1] - self._table["first"][i])

    def source_frames(self, i: int) -> int:
        """Frames of clip `i`'s video."""
        return int(self._table["source_frames"][i])

    def fps(self, i: int) -> float:
        """Frames a second of clip `i`'s video; 0 when unknown (folders of frames)."""
        return float(self._table["fps"][i])

    def times(self, i: int) -> np.ndarray:
        """When the stored frames of clip `i` are shown: seconds (n_frames,) from the video's first frame on; NaN for
        folders of frames."""
        return self._table["time"][self._table["first"][i] : self._table["first"][i + 1]]

    def read(self, i: int, positions: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
        """Frames `positions` (all when None) of clip `i`: uint8 RGB (T, H, W, 3), a copy of its own.

        Raises IndexError on a position that is not in 0..n_frames-1, UserError when the store is damaged.
        """
        n = self.n_frames(i)
        positions = np.arange(n) if positions is None else np.asarray(positions)
        if len(positions) and not (positions.min() >= 0 and positions.max() < n):
            raise IndexError(f"clip {self.clips[i]} has {n} frames, asked for {positions.tolist()}")
        shard = int(self._table["shard"][i])
        blob = memoryview(self._map(shard))
        parts = []
        for row in self._table["first"][i] + positions:
            start, size = self._table["start"][row], self._table["size"][row]
            parts.append(np.frombuffer(blob[start : start + size], dtype=np.uint8))
        out = np.empty((len(parts), *self._shape(parts, shard), 3), dtype=np.uint8)
        for frame, data in zip(out, parts, strict=True):
            self._decode(data, frame, shard)
        return out

    def _shape(self, parts: Sequence[np.ndarray], shard: int) -> tuple[int, int]:
        """Height and width of stored frames of a clip; where only the short side is set, as the first of them is."""
        if not isinstance(self._size, int):
            return tuple(self._size)
        if not len(parts):
            return self._size, self._size
        try:
            return simplejpeg.decode_jpeg_header(parts[0])[:2]
        except ValueError as error:
            raise self._damaged(_blob(self.folder, shard).name) from error

    def _decode(self, data: np.ndarray, frame: np.ndarray, shard: int) -> None:
        if self.manifest["policy"]["codec"] == "raw":
            if data.size != frame.size:
                raise self._damaged(_blob(self.folder, shard).name)
            frame[:] = data.reshape(frame.shape)
            return
        try:
            same = decode_jpeg(data, frame).shape == frame.shape
        except ValueError as error:
            raise self._damaged(_blob(self.folder, shard).name) from error
        if not same:
            raise self._damaged(_blob(self.folder, shard).name)

    def _map(self, shard: int) -> mmap.mmap:
        if shard not in self._maps:
            path = _blob(self.folder, shard)
            try:
                with open(path, "rb") as file:
                    self._maps[shard] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except (OSError, ValueError) as error:
                raise self._damaged(path.name) from error
        return self._maps[shard]
