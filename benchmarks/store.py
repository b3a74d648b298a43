"""What the frames of a clip cost in the store, in several forms: bytes, core time of a training's view, likeness.

    python -m benchmarks.store FILE ...                 videos, of which each form is made
    python -m benchmarks.store --accuracy RESULTS       a demo run trained and tested on stores of several qualities

Forms are JPEGs of several qualities, and videos of key frames alone (H.264, AV1), from which the frames of a view are
sought one by one. Seconds are the processor's, of one core.
"""

from __future__ import annotations

import argparse
import io
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import av
import cv2
import numpy as np

from pipeline.datasets.frames import FramePolicy, decode_jpeg, encode_frame, map_frames
from pipeline.datasets.sampling import sample_positions

SIDE, VIEW, RATE, DRAWS = 256, 8, 30, 5
QUALITIES = (95, 90, 85, 75)

Read = Callable[[np.ndarray], list[np.ndarray]]
"""Places of frames, ascending -> these frames, uint8 RGB (H, W, 3)."""


def jpegs(frames: Sequence[np.ndarray], quality: int) -> tuple[int, Read]:
    """Bytes of JPEGs of the frames, and how they are read."""
    policy = FramePolicy(quality=quality)
    made = [encode_frame(policy, frame) for frame in frames]

    def read(places: np.ndarray) -> list[np.ndarray]:
        return [decode_jpeg(made[i]) for i in places]

    return sum(map(len, made)), read


def video(frames: Sequence[np.ndarray], codec: str, options: dict[str, str]) -> tuple[int, Read]:
    """Bytes of a video whose frames are all key frames, and how they are read: each sought and decoded."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as out:
        stream = out.add_stream(codec, rate=RATE, options=options)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = SIDE, SIDE, "yuv420p", 1
        for frame in frames:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        out.mux(stream.encode(None))
    content = buffer.getvalue()

    def read(places: np.ndarray) -> list[np.ndarray]:
        with av.open(io.BytesIO(content)) as opened:
            stream = opened.streams.video[0]
            stream.codec_context.thread_count = 1
            found = []
            for place in places:
                wanted = round(int(place) / RATE / stream.time_base)
                opened.seek(wanted, stream=stream)
                found.append(next(frame for frame in opened.decode(stream) if frame.pts >= wanted))
            return [frame.to_ndarray(format="rgb24") for frame in found]

    return len(content), read


FORMS: dict[str, Callable[[Sequence[np.ndarray]], tuple[int, Read]]] = {
    **{f"JPEG, quality {q}": lambda frames, q=q: jpegs(frames, q) for q in QUALITIES},
    "H.264, key frames, crf 18": lambda frames: video(frames, "libx264", {"crf": "18", "preset": "medium"}),
    "H.264, key frames, crf 23": lambda frames: video(frames, "libx264", {"crf": "23", "preset": "medium"}),
    "AV1, key frames, crf 30": lambda frames: video(frames, "libsvtav1", {"crf": "30", "preset": "8"}),
}


def stored(path: Path) -> list[np.ndarray]:
    """All frames of a video at the size of the store, uint8 RGB."""
    return map_frames(path, lambda frame: cv2.resize(frame, (SIDE, SIDE), interpolation=cv2.INTER_LINEAR)).frames


def compare(films: Sequence[Sequence[np.ndarray]], draws: int = DRAWS) -> Iterator[list[str]]:
    """A row for each form: kB a frame, MB of a clip, core milliseconds to read a view and to make a frame, PSNR."""
    count = sum(map(len, films))
    for name, make in FORMS.items():
        size, making, reading, error = 0, 0.0, 0.0, 0.0
        rng = np.random.default_rng(0)
        for frames in films:
            began = time.process_time()
            bytes_, read = make(frames)
            making += time.process_time() - began
            size += bytes_
            for _ in range(draws):
                places = sample_positions(len(frames), VIEW, "segment_random", rng)
                began = time.process_time()
                found = read(places)
                reading += time.process_time() - began
                error += np.mean([(frames[i] - one.astype(float)) ** 2 for i, one in zip(places, found, strict=True)])
        mean = error / draws / len(films)
        yield [name, f"{size / count / 1e3:.1f}", f"{size / len(films) / 1e6:.2f}",
               f"{1e3 * reading / draws / len(films):.1f}", f"{1e3 * making / count:.2f}",
               f"{10 * np.log10(255**2 / max(mean, 1e-9)):.1f}"]  # fmt: skip


def accuracy(results: Path, folder: Path, method: str = "lga") -> Iterator[list[str]]:
    """A row for each quality of JPEGs: MB of the store, accuracy of a demo run trained and tested on it, and the share
    of its decisions that are those at the first quality."""
    from benchmarks.precision import decisions
    from pipeline.experiment import store_key
    from pipeline.intervals import ci95
    from pipeline.plan import Plan
    from pipeline.stages import make_frames
    from pipeline.workspace import Workspace

    first = None
    for quality in QUALITIES:
        plan = Plan.read("config", {"scale": "demo", "frames": {"store": {"quality": quality}}}, number="4")
        cell = next(cell for cell in plan.cells.values() if cell.run.method == method and cell.run.train)
        ws, asset = Workspace(folder / str(quality)), plan.datasets[cell.run.dataset]
        place, given = ws.dataset(asset.key), Workspace(results).dataset(asset.key)
        place.mkdir(parents=True)
        for part in ("generated", "index.csv", "texts.json"):
            (place / part).symlink_to((given / part).resolve())
        for backbone in {cell.run.backbone}:
            ws.backbone(backbone).parent.mkdir(exist_ok=True)
            same = next((results / "backbones").glob(f"{backbone.rsplit('-', 1)[0]}-*")).resolve()
            ws.backbone(backbone).symlink_to(same)
        plan.write_specs(ws.root / "specs")
        name = store_key(cell.run.frames)
        make_frames(asset, ws, name, plan.stores[name], 1)
        size = sum(blob.stat().st_size for blob in (place / name).glob("shard-*.bin"))
        said, right = decisions(cell.run, cell.measure, ws, "float32")
        first = said if first is None else first
        yield [f"JPEG, quality {quality}", f"{size / 1e6:.1f}", f"{100 * right.mean():.1f}",
               f"{ci95(100.0 * right.mean(-1)):.1f}", f"{100 * (said == first).mean():.1f}"]  # fmt: skip


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.store", description=__doc__.splitlines()[0])
    parser.add_argument("films", nargs="*", type=Path, help="videos")
    parser.add_argument("--accuracy", type=Path, metavar="RESULTS", help="folder of a demo that is done")
    given = parser.parse_args()
    cv2.setNumThreads(1)
    os.environ.setdefault("SVT_LOG", "1")  # AV1's encoder tells its settings otherwise
    if given.films:
        films = [stored(path) for path in given.films]
        print(f"{len(films)} clips of {np.mean([len(film) for film in films]):.0f} frames")
        print("| form | kB a frame | MB a clip | ms to read 8 frames | ms to make a frame | PSNR, dB |")
        print("|---|" + "---:|" * 5)
        for row in compare(films):
            print("| " + " | ".join(row) + " |", flush=True)
    if given.accuracy:
        print("| form | MB | accuracy | ± | decisions as at the first |")
        print("|---|" + "---:|" * 4)
        with tempfile.TemporaryDirectory() as folder:
            for row in accuracy(given.accuracy, Path(folder)):
                print("| " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    main()
