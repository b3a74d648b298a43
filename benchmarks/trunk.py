"""Task-Adapter's test with the trunk once for each video against the whole encoder in every episode.

    python benchmarks/trunk.py

Both give the same scores; printed are the times and their ratio for L adapted layers of a small CLIP of twelve.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch

from pipeline.datasets.episodes import episode_table
from pipeline.evaluation.few_shot import score_episodes
from pipeline.models.backbones.nano_clip import nano_config
from pipeline.models.methods import TaskAdapter

CLASSES, CLIPS, FRAMES = 8, 12, 8


def build(layers: int) -> TaskAdapter:
    """A Task-Adapter with random weights, adapters included, on a CLIP of nano size."""
    torch.manual_seed(0)
    backbone = {"source": nano_config(64)}
    model = TaskAdapter(backbone, layers=layers, order_layers=0, subactions="single", alignment="none")
    for name, parameter in model.named_parameters():
        if name.startswith("visual."):
            torch.nn.init.normal_(parameter, std=0.05)
    return model.eval()


@torch.inference_mode()
def whole(model: TaskAdapter, videos: torch.Tensor, table, texts: torch.Tensor) -> np.ndarray:
    """Scores (E, Q, N), every episode encoding its own videos from the pixels on."""
    scores = []
    for support, query, classes in zip(table.support, table.query, table.classes, strict=True):
        supports = model.relate_supports(model.encode(videos[support].flatten(0, 1)).unflatten(0, support.shape)[None])
        queries = model.relate_queries(model.encode(videos[query])[None])
        of_class = texts[torch.from_numpy(classes)][None]
        scores.append(model.match(queries, model.prototypes(supports, of_class), of_class)["both"][0])
    return torch.stack(scores).numpy()


@torch.inference_mode()
def once(model: TaskAdapter, videos: torch.Tensor, table, texts: torch.Tensor) -> np.ndarray:
    """The same, as the pipeline tests: the trunk of each video once, then what depends on the episode."""
    features = torch.cat([model.encode(part) for part in videos.split(16)])
    return score_episodes(model, features, table, texts).both


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--shot", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    side = nano_config(64).vision_config.image_size
    videos = torch.randn(CLASSES * CLIPS, FRAMES, 3, side, side, generator=generator)
    labels = {f"class {i}": list(range(i * CLIPS, (i + 1) * CLIPS)) for i in range(CLASSES)}
    table = episode_table(labels, 5, arguments.shot, 1, arguments.episodes, 0)
    for layers in (2, 6):
        model = build(layers)
        texts = torch.randn(CLASSES, 1, model.backbone.dim, generator=generator)
        times, scores = [], []
        for way in (whole, once):
            start = time.perf_counter()
            scores.append(way(model, videos, table, texts))
            times.append(time.perf_counter() - start)
        same = bool((scores[0].argmax(-1) == scores[1].argmax(-1)).all())
        print(
            f"L = {layers}: {arguments.episodes} episodes in {times[0]:.1f} s whole, {times[1]:.1f} s with the trunk "
            f"once, ratio {times[0] / times[1]:.1f}; predictions equal: {same}, largest difference "
            f"{abs(scores[0] - scores[1]).max():.1e} of scores that spread by {scores[0].std():.1e}"
        )


if __name__ == "__main__":
    main()
