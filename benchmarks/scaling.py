"""How the cost grows: with clips, classes, way, shots, frames and episodes, and with a second worker."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks.lines import Line, least, timed
from benchmarks.matching import FRAMES, build, make_features
from benchmarks.world import World
from pipeline.datasets.frames import build_frame_store
from pipeline.datasets.kinds.registry import data_of
from pipeline.models.build import build_model
from pipeline.tasks.few_shot.episodes import EpisodeSampler, episode_table
from pipeline.tasks.few_shot.scoring import encode_clips, score_episodes, split_clips

TOPIC = "7 scaling"


def measure(world: World, folder: Path, plots: Path, episodes: int = 1000, repeats: int = 2) -> list[Line]:
    """A line of each axis, with the slope on logarithmic axes (1: proportional), and a plot of all in `plots`."""
    found = {
        "clips": ([16, 32, 64, 128], _encoding(world, [16, 32, 64, 128], repeats)),
        "classes": ([24, 48, 96, 192], [_episodes(24 * n, 50 * episodes, repeats) for n in (1, 2, 4, 8)]),
        "episodes": ([1000, 2000, 4000, 8000], [_matching(repeats, episodes=e) for e in (1000, 2000, 4000, 8000)]),
        "way": ([5, 10, 20], [_matching(repeats, episodes // 4, way=n) for n in (5, 10, 20)]),
        "shots": ([5, 10, 20], [_matching(repeats, episodes // 2, shot=n) for n in (5, 10, 20)]),
        "frames": ([4, 8, 16, 32], [_matching(repeats, episodes, frames=n) for n in (4, 8, 16, 32)]),
    }  # fmt: skip
    what = {
        "clips": "encoding of test clips (demo CLIP)", "classes": f"drawing {50 * episodes:,} episodes",
        "episodes": "OTAM, 5-way 1-shot", "way": "OTAM, N-way 1-shot, N queries", "shots": "OTAM, 5-way K-shot",
        "frames": "OTAM, 5-way 1-shot, T frames",
    }  # fmt: skip
    expected = {"way": " (pairs: N^2)", "frames": " (cells: T^2)"}
    lines = []
    for axis, (sizes, seconds) in found.items():
        note = f"slope {slope(sizes, seconds):.2f} over {axis} {sizes[0]} to {sizes[-1]}{expected.get(axis, '')}"
        lines.append(Line(TOPIC, f"{what[axis]}: {sizes[0]} to {sizes[-1]} {axis}", None, seconds[-1], note=note))
    plot(found, what, plots / "scaling.png")
    return [*lines, workers(world, folder)]


def slope(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """Exponent of the power of size that fits the times best."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def _encoding(world: World, sizes: Sequence[int], repeats: int) -> list[float]:
    run = world.cell(method="otam").run
    model = build_model(run, world.ws, world.store).eval()
    clips = split_clips(world.store, "test")
    return [least(partial(encode_clips, run, model, world.store, np.resize(clips, n).tolist()), repeats) for n in sizes]


def _episodes(classes: int, episodes: int, repeats: int) -> float:
    labels = {f"class {c}": list(range(c * 20, c * 20 + 20)) for c in range(classes)}
    sampler = EpisodeSampler(labels, 5, 1, 1, 0)
    return least(lambda: sampler.table(episodes), repeats)


@torch.inference_mode()
def _matching(repeats: int, episodes: int = 1000, way: int = 5, shot: int = 1, frames: int = FRAMES) -> float:
    features, labels = make_features(24, 40)
    features = features.repeat(1, -(-frames // FRAMES), 1)[:, :frames].contiguous()
    table = episode_table(labels, way, shot, 1, episodes, 0)
    return least(partial(score_episodes, build("otam"), features, table, None), repeats)


def workers(world: World, folder: Path) -> Line:
    """A frame store built by two processes, or by one."""
    index = world.ws.dataset(world.dataset.key) / "index.csv"
    root, policy = data_of(world.dataset).root(world.ws), world.store.manifest["policy"]
    build_store: Callable[[int], object] = lambda n: build_frame_store(index, root, folder / f"by{n}", policy, n)  # noqa: E731
    (one, first), (two, second) = timed(lambda: build_store(1)), timed(lambda: build_store(2))
    blobs = [sorted((path.name, path.read_bytes()) for path in Path(made).parent.glob("shard-*.bin"))
             for made in (first, second)]  # fmt: skip
    what = f"frame store of {len(world.store)} clips: two workers, or one"
    return Line(TOPIC, what, one, two, equal=blobs[0] == blobs[1], note="with the start of the workers")


def plot(found: dict[str, tuple[list[int], list[float]]], what: dict[str, str], path: Path) -> None:
    """A small plot of each axis, both axes logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 3, figsize=(11, 6.5), constrained_layout=True)
    for place, (axis, (sizes, seconds)) in zip(axes.flat, found.items(), strict=True):
        place.loglog(sizes, seconds, "o-")
        place.set_title(f"{what[axis]}\nslope {slope(sizes, seconds):.2f}", fontsize=9)
        place.set_xlabel(axis)
        place.set_ylabel("seconds")
        place.set_xticks(sizes, [f"{size:,}" for size in sizes])
        place.minorticks_off()
        place.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
