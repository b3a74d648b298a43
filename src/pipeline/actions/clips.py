"""Clips of one's own: which there are, and the frames of each that a model sees. Worker processes import only this."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.datasets.folder import checked_pattern, class_folders, clips_below, normalise_label
from pipeline.datasets.frames import FramePolicy, decode_jpeg, encode_clip
from pipeline.datasets.sampling import sample_positions
from pipeline.errors import UserError
from pipeline.guarded import Failure, guarded_map
from pipeline.names import near_path


@dataclass(frozen=True, slots=True)
class OwnClip:
    """A clip: its name in answers, its file or folder of frames, its class where that is known, and a regular
    expression for the names of its frames (see `read_clip`)."""

    name: str
    path: str
    label: str = ""
    pattern: str = ""


@dataclass(frozen=True, slots=True)
class Sampled:
    """What a model sees of a clip: pixels uint8 RGB (T, H, W, 3), the numbers (T,) of these frames in the video and
    when they are shown there, in seconds (T,; empty for folders of frames), and the video's count of frames."""

    pixels: np.ndarray
    positions: np.ndarray
    seconds: np.ndarray
    source_frames: int


def labelled_clips(folder: str | Path, strip_prefix: bool = False, pattern: str = "") -> list[OwnClip]:
    """Clips of a folder with one folder a class; `strip_prefix` takes leading numbers off the folders' names, and only
    files of names that `pattern` matches count.

    Raises:
        UserError: there is no such folder, it has no class folders, one of them has no clip, or two are one class.
    """
    if not Path(folder).is_dir():
        raise UserError(
            f"there is no folder {folder}; give one with a folder of clips for each class{near_path(folder)}"
        )
    found, folder_of = [], {}
    for name, paths in class_folders(folder, checked_pattern(pattern)).items():
        label = normalise_label(name, strip_prefix)
        if folder_of.setdefault(label, name) != name:
            raise UserError(f"{folder}: {folder_of[label]!r} and {name!r} are both the class {label!r}; rename one")
        if not paths:
            raise UserError(f"{Path(folder) / name} holds no clip; add some or remove the folder")
        found += [OwnClip(path, str(Path(folder) / path), label, pattern) for path in paths]
    return found


def loose_clips(path: str | Path, pattern: str = "") -> list[OwnClip]:
    """The clip at `path`, or all clips below it, whose classes are not known; pattern as in `labelled_clips`.

    Raises:
        UserError: there is nothing, or a folder without a clip.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"there is no {path}; give a video, a folder of frames, or a folder of clips{near_path(path)}")
    inside = clips_below(path, checked_pattern(pattern)) if path.is_dir() else [""]
    if not inside:
        raise UserError(f"{path} holds no video and no folder of frames")
    named = [(name, path / name) if name else (path.name, path) for name in inside]
    return [OwnClip(name, str(place), pattern=pattern) for name, place in named]


def read_sampled(clip: OwnClip, frames: Mapping[str, Any], seed: int = 0) -> Sampled:
    """The frames of a clip that a test of a run with the frame policy `frames` would show its model.

    They are stored and read again as in a frame store, so that the model gets the same pixels. Raises Unreadable.
    """
    policy = FramePolicy.parse(frames["store"])
    read = encode_clip(clip.path, policy, clip.pattern)
    mode = frames["test_sampling"]
    chosen = sample_positions(
        len(read.frames), frames["number"], mode, np.random.default_rng(seed) if mode == "segment_random" else None,
        fps=read.fps, source_frames=read.source_frames,
    )  # fmt: skip
    pixels = np.stack([_decode(read.frames[i], policy) for i in chosen])
    seconds = np.array(read.times)[chosen] if read.times else np.zeros(0)
    return Sampled(pixels, np.array(read.places)[chosen], seconds, read.source_frames)


def _decode(data: bytes, policy: FramePolicy) -> np.ndarray:
    """A stored frame as RGB (H, W, 3)."""
    if policy.codec == "raw":
        return np.frombuffer(data, dtype=np.uint8).reshape(*policy.size, 3)
    return decode_jpeg(data)


def read_all(
    clips: Sequence[OwnClip], frames: Mapping[str, Any], seed: int = 0, workers: int = 1
) -> Iterator[tuple[OwnClip, Sampled | Failure]]:
    """Each clip with its frames, or why it cannot be read, in their order; a few are held at a time."""
    read = guarded_map(partial(read_sampled, frames=dict(frames), seed=seed), clips, workers)
    return zip(clips, read, strict=True)
