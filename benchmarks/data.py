"""Frames from the store, or from the videos each time; and how long training waits for them."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import av
import cv2
import numpy as np
import torch

from benchmarks import feeding
from benchmarks.lines import Line, least, timed
from benchmarks.world import World
from pipeline.datasets.frames import FramePolicy, FrameStore, build_frame_store, encode_clip, encode_frame
from pipeline.datasets.index import read_index
from pipeline.datasets.loading import loader, use_loaders
from pipeline.datasets.synthetic import generate
from pipeline.tasks.few_shot.task import FewShotTask

TOPIC = "4 data"
FASTER, WAIT, SLOWER = 10.0, 5.0, 1.1
FRAMES = 8
SIDE = 256
"""Pixels of the stored frames at paper scale."""


def measure(
    world: World, folder: Path, clips_per_class: int = 2, length: tuple[int, int] = (70, 90), side: int = 320,
    steps: int = 12, repeats: int = 3, loader_workers: int = 1, **short: int,
) -> list[Line]:  # fmt: skip
    """Lines of generated videos of `side` pixels and `length` frames, about HMDB51's, and of the demo's training.

    short: how much of `feeding.measure` is done.
    """
    index = generate("scene", folder / "videos", clips_per_class, frames=length, size=side, workers=1, splits=("test",))
    root, lines = index.parent, []
    paths = [root / clip.path for clip in read_index(index)]
    decode = FramePolicy((SIDE, SIDE), FRAMES, "raw")
    plain = least(lambda: [encode_clip(path, decode) for path in paths], max(repeats // 2, 1))
    for codec in ("raw", "jpeg"):
        policy = FramePolicy((SIDE, SIDE), 0, codec)
        built, _ = timed(partial(build_frame_store, index, root, folder / codec, policy, 1))
        store = FrameStore(folder / codec)
        epoch = partial(_epoch, store)
        rate = store.manifest["clips"] / max(store.manifest["seconds"], 1e-9)
        size = store.manifest["bytes"] / store.manifest["clips"] / 1e3
        note = f"{size:.0f} KB a clip ({store.manifest['frames'] / len(store):.0f} frames of {SIDE} pixels)"
        lines += [
            Line(
                TOPIC, f"epoch of {len(paths)} clips, {FRAMES} frames each: store ({codec}), or decode", plain,
                least(epoch, repeats), targets=(("ratio", FASTER),), equal=_equal(store, paths, codec), note=note,
            ),
            Line(TOPIC, f"build of the store ({codec}), a clip", None, 1 / rate, note=f"with its start {built:.1f} s"),
        ]  # fmt: skip
    fed = feeding.measure(folder / "jpeg", items=repeats, crop=SIDE * 7 // 8, **short)
    return lines + fed + decoding(folder / "films", repeats=2 * repeats) + waiting(world, steps, loader_workers)


def feed(folder: Path, clips_per_class: int = 2, length: tuple[int, int] = (70, 90), side: int = 320) -> list[Line]:
    """Lines of a training's items and of the time that a step waits for them, of generated videos as in `measure`."""
    index = generate("scene", folder / "videos", clips_per_class, frames=length, size=side, workers=1, splits=("test",))
    build_frame_store(index, index.parent, folder / "jpeg", FramePolicy((SIDE, SIDE), 0), 1)
    return feeding.measure(folder / "jpeg")


def decoding(folder: Path, count: int = 150, size: tuple[int, int] = (320, 240), repeats: int = 5) -> list[Line]:
    """What a frame of a film costs when a store of 32 JPEGs a clip is built, beside decord, which seeks to each.

    Seconds are the processor's: of one core. In AVIs with B frames decord gives other frames than asked for.
    """
    policy = FramePolicy((SIDE, SIDE), 32, "jpeg")
    lines = []
    for name, codec, between in (("H.264 mp4", "libx264", 3), ("XviD avi", "mpeg4", 2)):
        path = _film(folder / name.replace(" ", "."), codec, between, count, size)
        plain, fast = (_least_cpu(partial(way, path, policy), repeats) / count for way in (_by_decord, encode_clip))
        lines.append(
            Line(
                TOPIC, f"build of a store from {name}, a frame: decord, or as here", 1e3 * plain, 1e3 * fast, unit="ms",
                targets=(("share", SLOWER),), note=f"{1 / plain:.0f} and {1 / fast:.0f} frames a second and core",
            )
        )  # fmt: skip
    return lines


def _film(path: Path, codec: str, between: int, count: int, size: tuple[int, int]) -> Path:
    """A patterned square that moves over a patterned ground."""
    path.parent.mkdir(parents=True, exist_ok=True)
    width, height = size
    rng = np.random.default_rng(0)
    ground = cv2.resize(rng.integers(0, 255, (height // 8, width // 8, 3), np.uint8), size)
    patch = cv2.resize(rng.integers(0, 255, (8, 8, 3), np.uint8), (height // 3, height // 3))
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=30)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.max_b_frames = between
        if path.suffix == ".avi":
            stream.codec_context.codec_tag, stream.codec_context.bit_rate = "XVID", 1_000_000
        for i in range(count):
            picture = ground.copy()
            left, top = 2 * i % (width - height // 3), i % (height - height // 3)
            picture[top : top + height // 3, left : left + height // 3] = patch
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(stream.encode(None))
    return path


def _by_decord(path: Path, policy: FramePolicy) -> None:
    """The wanted frames by decord, stored as `encode_clip` stores them."""
    import decord

    reader = decord.VideoReader(str(path), num_threads=1)
    wanted = policy.places(np.arange(len(reader), dtype=float)).tolist()
    for start in range(0, len(wanted), 16):  # a few at full size at a time
        for frame in reader.get_batch(wanted[start : start + 16]).asnumpy():
            encode_frame(policy, frame)


def _least_cpu(work: Callable[[], object], repeats: int) -> float:
    """The least processor time of some calls, after one that warms up."""
    work()
    times = []
    for _ in range(repeats):
        began = time.process_time()
        work()
        times.append(time.process_time() - began)
    return min(times)


def _epoch(store: FrameStore) -> None:
    rng = np.random.default_rng(0)
    for i in range(len(store)):
        edges = np.linspace(0, store.n_frames(i), FRAMES + 1)
        store.read(i, np.floor(rng.uniform(edges[:-1], edges[1:])).astype(int))


def _equal(store: FrameStore, paths: list[Path], codec: str) -> bool:
    """Whether the store holds what the decoder gives: bit for bit, or to what JPEG leaves (a few of 255)."""
    worst = 0.0
    for i, path in enumerate(paths[:3]):
        made = encode_clip(path, FramePolicy((SIDE, SIDE), 0, "raw")).frames
        wanted = np.stack([np.frombuffer(frame, np.uint8) for frame in made]).reshape(-1, SIDE, SIDE, 3)
        worst = max(worst, float(abs(store.read(i).astype(np.int16) - wanted).mean()))
    return worst == 0 if codec == "raw" else worst < 6


def waiting(world: World, steps: int, workers: int) -> list[Line]:
    """The share of the demo's training (LGA) that waits for episodes, read in its process or by `workers` others."""
    run = world.cell(method="lga").run
    task = FewShotTask(run, world.ws)
    model = task.build().train()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-5)

    def step(batch: dict[str, torch.Tensor]) -> None:
        losses = model(mode="loss", **model.data_preprocessor(batch, True))
        sum(value for name, value in losses.items() if name.startswith("loss")).backward()
        optimizer.step()
        optimizer.zero_grad()

    shares = [_wait_share(task, model, step, steps, count) for count in (0, workers)]
    use_loaders(-1)
    return [
        Line(
            TOPIC, "demo training (LGA): time that it waits for data, in its process", None, shares[0], unit="%",
            targets=(("fast", WAIT),),
        ),
        Line(
            TOPIC, f"demo training (LGA): the same, loaders: {workers}", shares[0], shares[1], unit="%",
            targets=(("fast", WAIT),),
        ),
    ]  # fmt: skip


def _wait_share(
    task: FewShotTask, model: torch.nn.Module, step: Callable[[dict[str, torch.Tensor]], None], steps: int, workers: int
) -> float:
    use_loaders(workers)
    items = task.items(model)
    feed = iter(loader(items, items.item_bytes))
    step(next(feed))  # starts the workers, and warms up
    waited, began = 0.0, time.perf_counter()
    for _ in range(steps):
        seconds, batch = timed(lambda: next(feed))
        waited += seconds
        step(batch)
    return 100 * waited / (time.perf_counter() - began)
