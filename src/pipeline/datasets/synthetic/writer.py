"""Writing a synthetic set: videos, skeletons, index, annotations and texts.

A clip depends on (seed, set, class, number of the clip) and on nothing else, so the number of workers and the
chosen splits never change it. A set is built in a folder beside its own and moved in place when it is
complete.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
import shutil
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import av
import cv2
import numpy as np
from scipy.spatial.transform import Rotation

from pipeline.datasets.synthetic import grammar, motion, render
from pipeline.datasets.synthetic.figure import Body, Camera, forward_kinematics, make_body
from pipeline.datasets.synthetic.skeleton_file import write_skeleton
from pipeline.errors import UserError, unknown
from pipeline.progress import bar

VERSION = 1  # raise it when the same request gives other files
SUBJECTS = 24
_REQUEST = "generation.json"
_ANNOTATION_FIELDS = (
    "clip",
    "path",
    "label",
    "split",
    "subject",
    "view",
    "frames",
    "phase_boundaries",
    "seed",
)


@dataclass(frozen=True)
class Request:
    """All that decides the content of a set."""

    name: str
    clips_per_class: int
    frames: tuple[int, int]
    size: int
    fps: int
    seed: int
    splits: tuple[str, ...]
    nuisance: float
    version: int = VERSION

    def check(self) -> None:
        """Raise UserError for values that make no set."""
        grammar.actions(self.name)
        for split in self.splits:
            if split not in grammar.SPLITS:
                raise unknown("split", split, grammar.SPLITS, where=f"synthetic set {self.name}")
        low, high = self.frames
        for wrong, line in (
            (self.clips_per_class < 1, f"clips_per_class is {self.clips_per_class}; give 1 or more"),
            (not 12 <= low <= high, f"frames is {self.frames}; give (low, high) with 12 <= low <= high"),
            (
                self.size < 32 or self.size % 2,
                f"size is {self.size}; give an even number of pixels, 32 or more",
            ),
            (self.fps < 1, f"fps is {self.fps}; give 1 or more"),
            (self.seed < 0, f"seed is {self.seed}; give 0 or more"),
            (not 0 <= self.nuisance <= 2, f"nuisance is {self.nuisance}; give a number from 0 to 2"),
            (not self.splits, "no splits; name at least one of train, val, test"),
        ):
            if wrong:
                raise UserError(f"synthetic set {self.name}: {line}")


@dataclass(frozen=True)
class Plan:
    """One clip before it is drawn; `boundaries` = first frames of the phases, then the number of frames."""

    clip: str
    path: str
    action: grammar.Action
    subject: int
    view: int
    boundaries: tuple[int, int, int, int]
    camera: Camera
    seed: int

    @property
    def phases(self) -> np.ndarray:
        """True phase (T,) of every frame: 0, 1 or 2."""
        return np.repeat(np.arange(3), np.diff(self.boundaries))


def _generators(request: Request, label: str, number: int) -> tuple[int, list[np.random.Generator]]:
    words = [request.seed, zlib.crc32(request.name.encode()), zlib.crc32(label.encode()), number]
    sequence = np.random.SeedSequence(words)
    return int(sequence.generate_state(1)[0]), [np.random.default_rng(s) for s in sequence.spawn(3)]


def plan_clip(request: Request, label: str, number: int) -> Plan:
    """Draw what the annotations tell about clip `number` of class `label`."""
    action = grammar.find(request.name, label)
    clip_seed, (rng, _, _) = _generators(request, label, number)
    frames = int(rng.integers(request.frames[0], request.frames[1] + 1))
    boundaries = motion.draw_boundaries(frames, action.shares, 0.5, rng)
    yaw = 30.0 * request.nuisance * rng.uniform(-1, 1)
    camera = Camera(
        yaw=yaw,
        pitch=6.0 + 6.0 * request.nuisance * rng.uniform(-1, 1),
        zoom=1.0 + 0.07 * request.nuisance * rng.uniform(-1, 1),
        shift=tuple(0.035 * request.nuisance * rng.uniform(-1, 1, 2)),
    )
    clip = f"{action.slug}_{number:04d}"
    return Plan(
        clip=clip,
        path=f"videos/{action.slug}/{clip}.mp4",
        action=action,
        subject=int(rng.integers(SUBJECTS)),
        view=0 if yaw < -10 else 2 if yaw > 10 else 1,
        boundaries=boundaries,
        camera=camera,
        seed=clip_seed,
    )


def _subject(request: Request, number: int) -> tuple[Body, dict[str, tuple[int, int, int]]]:
    rng = np.random.default_rng([request.seed, 7, number])
    return make_body(rng, request.nuisance), render.make_clothes(rng)


def _hold_point(action: grammar.Action, joints: np.ndarray) -> np.ndarray:
    """Where the thing is held (T, 3): in the hand, between both hands, or at the foot."""
    side, part = action.limb.split()
    left, right = (21, 23) if part.startswith("arm") else (15, 19)
    if side == "both":
        return (joints[:, left] + joints[:, right]) / 2
    return joints[:, left if side == "left" else right]


def _thing_track(action: grammar.Action, joints: np.ndarray, boundaries: tuple[int, ...]) -> np.ndarray:
    """Positions (T, 3) of the thing. A kicked one lies before the foot until it is hit, then flies off in a
    flat arc.
    """
    track = _hold_point(action, joints).copy()
    if not action.kicked:
        return track
    side = 1.0 if action.limb.startswith("left") else -1.0
    # The foot is back at one half of the phase and out at its end: it passes the thing in between.
    hit = boundaries[1] + 0.72 * (boundaries[2] - boundaries[1])
    rest = track[0] + (0.10 * side, 0.06, -0.10)
    away = np.clip((np.arange(len(track)) - hit) / max(boundaries[3] - hit, 1), 0, None)
    flight = np.stack([0.62 * side * np.sqrt(away), 0.45 * np.sin(np.pi * np.minimum(away, 1)), -0.2 * away], axis=-1)
    return rest + flight


def _forearm(action: grammar.Action, pixels: np.ndarray) -> np.ndarray:
    """Unit directions (T, 2) in the image in which the thing points: along the forearm, or up at the foot."""
    if action.limb.endswith("leg") or action.limb.startswith("both"):
        return np.tile((0.0, -1.0), (len(pixels), 1))
    elbow, hand = (5, 7) if action.limb.startswith("left") else (9, 11)
    along = pixels[:, hand] - pixels[:, elbow]
    return along / np.maximum(np.linalg.norm(along, axis=1, keepdims=True), 1e-6)


@dataclass(frozen=True)
class Clip:
    """A drawn clip: images (T, size, size, 3) uint8 RGB, joints (T, 25, 3) seen by the camera in metres,
    their pixels (T, 25, 2) and orientations (T, 25, 4) as w x y z.
    """

    images: np.ndarray
    joints: np.ndarray
    pixels: np.ndarray
    orientations: np.ndarray


def draw_clip(request: Request, label: str, number: int) -> Clip:
    """Draw clip `number` of class `label`."""
    plan = plan_clip(request, label, number)
    action, camera, size = plan.action, plan.camera, request.size
    _, (_, motion_rng, look_rng) = _generators(request, label, number)
    body, clothes = _subject(request, plan.subject)
    poses = motion.render_poses(action.program(), plan.boundaries, motion_rng, request.nuisance)
    world, turned = forward_kinematics(poses, body)
    joints = np.round(camera.view(world), 5)
    pixels = camera.project(joints, size)
    turned = camera.rotation() @ turned
    facing = -np.stack([turned[:, 20, :, 2], turned[:, 3, :, 2]], axis=1)
    look = render.make_look(look_rng, clothes, size, request.nuisance)
    things = _things(action, camera, world, pixels, plan.boundaries, size)
    images = np.empty((len(poses), size, size, 3), dtype=np.uint8)
    for t in range(len(poses)):
        image = look.background.copy()
        render.draw_frame(
            image, joints[t], pixels[t], facing[t], camera.focal(size), look.colours, body.girth, things[t]
        )
        images[t] = render.finish_frame(image, look, look_rng)
    quaternions = Rotation.from_matrix(turned.reshape(-1, 3, 3)).as_quat(scalar_first=True).reshape(-1, 25, 4)
    return Clip(images, joints, pixels, quaternions)


def _things(
    action: grammar.Action,
    camera: Camera,
    world: np.ndarray,
    pixels: np.ndarray,
    boundaries: tuple[int, ...],
    size: int,
) -> list[tuple | None]:
    """What `render.draw_frame` needs to know of the thing in each frame."""
    if action.thing == "nothing":
        return [None] * len(world)
    seen = camera.view(_thing_track(action, world, boundaries))
    at = camera.project(seen, size)
    axis = _forearm(action, pixels)
    grow = 1.2 if action.limb.startswith("both") else 1.0
    return [(action.thing, at[t], float(seen[t, 2]), axis[t], grow) for t in range(len(world))]


def write_video(path: Path, images: np.ndarray, fps: int) -> None:
    """Write images (T, H, W, 3) uint8 RGB as H.264 (yuv420p), the same bytes for the same images."""
    partial = path.with_name(f"{path.name}.tmp")
    with av.open(str(partial), "w", format="mp4", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.height, stream.width = images.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        # What x264 picks by the CPU differs between CPUs and, in 4 films of 100, from one call to the next.
        same = {"x264-params": "cpu-independent=1"}
        stream.options = {"preset": "veryfast", "crf": "21", "bf": "0", "g": "12", "threads": "1"} | same
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    os.replace(partial, path)


def _write_clip(folder: Path, request: Request, label: str, number: int) -> None:
    plan = plan_clip(request, label, number)
    video, skeleton = folder / plan.path, folder / "skeletons" / f"{plan.clip}.skeleton"
    if video.exists() and skeleton.exists():
        return
    clip = draw_clip(request, label, number)
    write_video(video, clip.images, request.fps)
    write_skeleton(
        skeleton,
        clip.joints[:, None],
        pixels=np.round(clip.pixels, 2)[:, None],
        orientation=np.round(clip.orientations, 3)[:, None],
    )


def _write_clips(job: tuple[str, dict, list[tuple[str, int]]]) -> int:
    """Write a share of the clips; runs in a worker process."""
    folder, request, clips = job
    cv2.setNumThreads(1)
    for label, number in clips:
        _write_clip(Path(folder), Request(**request), label, number)
    return len(clips)


def _clips_of(request: Request) -> Iterator[tuple[str, int]]:
    for split in request.splits:
        for label in grammar.classes(request.name, split):
            for number in range(request.clips_per_class):
                yield label, number


def _csv(fields: Sequence[str], rows: list[dict]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, fields, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def _write_tables(folder: Path, request: Request) -> None:
    rows = []
    for label, number in _clips_of(request):
        plan = plan_clip(request, label, number)
        _, second, third, frames = plan.boundaries
        rows.append(
            {
                "clip": plan.clip,
                "path": plan.path,
                "label": label,
                "split": plan.action.split,
                "subject": f"s{plan.subject + 1:02d}",
                "view": f"v{plan.view + 1}",
                "frames": frames,
                "phase_boundaries": f"{second}|{third}",
                "seed": plan.seed,
            }
        )
    _write_text(folder / "texts.json", json.dumps(grammar.texts(request.name), indent=1) + "\n")
    _write_text(folder / "annotations.csv", _csv(_ANNOTATION_FIELDS, rows))
    _write_text(folder / "index.csv", _csv(_ANNOTATION_FIELDS[:4], rows))


def _write_text(path: Path, text: str) -> None:
    partial = path.with_name(f"{path.name}.tmp")
    partial.write_text(text, "utf-8")
    os.replace(partial, path)


def _recorded(folder: Path) -> dict | None:
    path = folder / _REQUEST
    return json.loads(path.read_text("utf-8")) if path.is_file() else None


def _open_workspace(root: Path, request: dict) -> Path | None:
    """The folder to build in, with what an earlier call left of `request`; None if `root` is complete."""
    building = root.with_name(f".{root.name}.building")
    if root.is_dir() and any(root.iterdir()):
        recorded = _recorded(root)
        if recorded is None:
            raise UserError(f"{root}: not empty and not a synthetic set; choose another folder or empty this one")
        if (root / "index.csv").is_file():
            if recorded == request:
                return None
            raise UserError(
                f"{root}: holds a synthetic set made with other settings; remove it or choose another folder"
            )
        # A set that lost its index (workflows remove outputs before they run a step again).
        if recorded == request and not building.exists():
            os.replace(root, building)
        else:
            shutil.rmtree(root)
    if building.exists() and _recorded(building) != request:
        shutil.rmtree(building)
    return building


def generate(
    name: str,
    root: str | Path,
    clips_per_class: int,
    *,
    frames: tuple[int, int] = (24, 40),
    size: int = 96,
    fps: int = 12,
    seed: int = 0,
    workers: int = 2,
    splits: Sequence[str] = grammar.SPLITS,
    nuisance: float = 1.0,
) -> Path:
    """Write synthetic set `name` ("scene", "temporal", "fine") into `root`; return the path of its index.csv.

    `frames`: least and greatest length of a clip; `size`: pixels of the square frames; `nuisance`, 0 to 2,
    scales all variation that is no part of the class (viewpoint, body, tempo, posture, background, noise,
    occlusion). A complete set made with the same settings is left alone; an interrupted call is taken up
    where it stopped. With `workers` > 1 processes are spawned: scripts need `if __name__ == "__main__":`.
    Raises UserError for bad values and for a `root` that holds something else.
    """
    root = Path(root).absolute()
    request = Request(
        name,
        int(clips_per_class),
        tuple(frames),
        int(size),
        int(fps),
        int(seed),
        tuple(splits),
        float(nuisance),
    )
    request.check()
    record = json.loads(json.dumps(dataclasses.asdict(request)))
    building = _open_workspace(root, record)
    if building is None:
        return root / "index.csv"
    (building / "skeletons").mkdir(parents=True, exist_ok=True)
    _write_text(building / _REQUEST, json.dumps(record, indent=1) + "\n")
    clips = list(_clips_of(request))
    for label in dict.fromkeys(label for label, _ in clips):
        (building / "videos" / grammar.find(name, label).slug).mkdir(parents=True, exist_ok=True)
    _run(building, request, clips, workers)
    _write_tables(building, request)
    os.replace(building, root)
    return root / "index.csv"


def _run(building: Path, request: Request, clips: list[tuple[str, int]], workers: int) -> None:
    arguments = dataclasses.asdict(request)
    share = max(1, min(32, -(-len(clips) // (4 * max(1, workers)))))
    jobs = [(str(building), arguments, clips[i : i + share]) for i in range(0, len(clips), share)]
    with ExitStack() as stack:
        generating = stack.enter_context(bar("generating", len(clips), "videos"))
        run = map
        if workers > 1:
            run = stack.enter_context(ProcessPoolExecutor(workers, mp_context=get_context("spawn"))).map
        for count in run(_write_clips, jobs):
            generating.advance(count)


@dataclass(frozen=True)
class Annotation:
    """Ground truth of a clip; `boundaries` are the first frames of the second and of the third phase."""

    clip: str
    path: str
    label: str
    split: str
    subject: str
    view: str
    frames: int
    boundaries: tuple[int, int]
    seed: int

    @property
    def phases(self) -> np.ndarray:
        """True phase (T,) of every frame: 0, 1 or 2."""
        return np.searchsorted(np.array(self.boundaries), np.arange(self.frames), side="right")


def read_annotations(path: str | Path) -> list[Annotation]:
    """Ground truth of a set, from its annotations.csv or the folder that holds it. Raises UserError."""
    path = Path(path)
    path = path / "annotations.csv" if path.is_dir() else path
    if not path.is_file():
        raise UserError(f"{path}: no such file; generate the synthetic set first")
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    try:
        return [
            Annotation(
                **{key: row[key] for key in ("clip", "path", "label", "split", "subject", "view")},
                frames=int(row["frames"]),
                boundaries=tuple(map(int, row["phase_boundaries"].split("|"))),
                seed=int(row["seed"]),
            )
            for row in rows
        ]
    except (KeyError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: not the annotations of a synthetic set ({error}); generate the set again") from error
