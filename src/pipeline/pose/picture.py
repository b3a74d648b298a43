"""Extracted poses drawn over the frames that they were found in, to see whether they are right."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from pipeline.datasets.frames import map_frames
from pipeline.datasets.sampling import sample_positions
from pipeline.datasets.skeletons.pose_folder import ClipPoses, clip_of, read_shard, read_table
from pipeline.figures.style import COLOURS, STYLE, content
from pipeline.files import write_bytes

ACROSS = 8  # frames of a clip
HIGH = 360  # pixels at most
SURE = 0.3  # bones between joints of less confidence are dashed


def write_picture(out: str | Path, root: str | Path, clips: int = 3) -> Path:
    """Draw frames of a few clips, evenly chosen among all, with their skeletons: OUT/preview.png.

    out: a folder of finished poses. root: where the paths of its clips start. Raises Unreadable when a video has gone.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from pipeline.datasets.skeletons.graph import get_graph

    manifest, table = read_table(out)
    parents = get_graph(manifest["layout"]).parents
    chosen = [table[i] for i in sample_positions(len(table), min(clips, len(table)), "segment_centre")]
    with matplotlib.rc_context(STYLE | {"savefig.dpi": 130}):
        figure = Figure(figsize=(ACROSS * 1.7, len(chosen) * 1.75), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(len(chosen), ACROSS, squeeze=False)
        for row, clip in zip(axes, chosen, strict=True):
            poses = clip_of(read_shard(Path(out) / clip["shard"]) or {}, int(clip["place"]))
            frames, places = _frames(Path(root) / clip["path"], poses, manifest["frames"])
            for number, axis in enumerate(row):
                axis.axis("off")
                if number < len(frames):
                    _draw(axis, frames[number], poses, places[number], parents)
            row[0].set_title(f"{clip['clip']}, {clip['seen']} of {clip['frames']} frames", loc="left", fontsize=8)
        return write_bytes(Path(out) / "preview.png", content(figure, "png"))


def _frames(path: Path, poses: ClipPoses, asked: int) -> tuple[list[np.ndarray], np.ndarray]:
    """A few frames of a clip, not too large, and which of its poses belong to them."""
    scale = min(1.0, HIGH / poses.size[0])

    def small(frame: np.ndarray) -> np.ndarray:
        return cv2.resize(frame, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) if scale < 1 else frame.copy()

    total = poses.joints.shape[1]
    places = sample_positions(total, min(ACROSS, total), "segment_centre")
    if asked and total == asked:  # poses of some frames: read the same ones again
        kept = map_frames(path, small, asked).frames
        return [kept[i] for i in places], places
    return map_frames(path, small, ACROSS).frames, places


def _draw(axis, frame: np.ndarray, poses: ClipPoses, place: int, parents: Sequence[int]) -> None:
    height, width = poses.size
    axis.imshow(frame, extent=(0, width, height, 0))
    for person, colour in zip(poses.joints[:, place], COLOURS[1:], strict=False):
        if not person.any():
            continue
        for child, parent in enumerate(parents):
            if parent >= 0:
                ends = person[[child, parent]]
                axis.plot(*ends[:, :2].T, "-" if ends[:, 2].min() >= SURE else ":", color=colour, linewidth=1.3)
        axis.scatter(*person[:, :2].T, s=5, color=colour, edgecolors="white", linewidths=0.3, zorder=3)
    axis.set_xlim(0, width)
    axis.set_ylim(height, 0)
