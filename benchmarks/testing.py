"""The test of a trained model: every video encoded once, or the videos of each episode anew."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from benchmarks.lines import Line, timed
from benchmarks.matching import first, same
from benchmarks.world import World
from pipeline.experiment import Run
from pipeline.models.backbones.nano_clip import nano_config
from pipeline.models.build import build_model
from pipeline.models.few_shot.base import FewShotModel
from pipeline.models.few_shot.task_adapter import TaskAdapter
from pipeline.tasks.few_shot.episodes import EpisodeTable, episode_table
from pipeline.tasks.few_shot.scoring import class_texts, encode_clips, score_episodes, split_clips

TOPIC = "2 test of a trained model"
FASTER, TRUNK = 30.0, 4.0
PAPER_CLIPS = 2400
"""Test videos of Kinetics-100 and of SSv2-Small."""


def measure(
    world: World, episodes: int = 10_000, subset: int = 6, trunk_episodes: int = 200, methods: tuple = ("otam", "lga")
) -> list[Line]:
    """Lines of whole tests at demo width (`subset` episodes of the plain way), and of Task-Adapter's trunk."""
    lines = [line for method in methods for line in _whole_test(world, method, episodes, subset)]
    return lines + [trunk(layers, trunk_episodes) for layers in (2, 6)]


# ------------------------------------------------------------------------------------------- whole tests
def _whole_test(world: World, method: str, episodes: int, subset: int) -> list[Line]:
    run = world.cell(method=method).run
    model = build_model(run, world.ws, world.store).eval()
    clips, names = split_clips(world.store, "test"), world.store.classes("test")
    place = {name: [i for i, clip in enumerate(clips) if world.store.labels[clip] == name] for name in names}
    table = episode_table(place, 5, 1, 1, episodes, 0)
    texts = class_texts(run, model, world.ws, names)
    encode_clips(run, model, world.store, clips[:4])
    encoding, features = timed(lambda: encode_clips(run, model, world.store, clips))
    matching, scores = timed(lambda: score_episodes(model, features, table, texts))
    plain, wanted = timed(lambda: anew(run, model, world, clips, first(table, subset), texts))
    plain *= episodes / subset
    equal = same(scores.log_vv[:subset], wanted)
    what = f"{method}, 5-way 1-shot, {episodes:,} episodes"
    note = f"plain: {subset} episodes, extrapolated"
    return [
        Line(
            TOPIC, f"{what} of {len(clips)} videos", plain, encoding + matching, targets=(("ratio", FASTER),),
            equal=equal, note=f"{note}; of the fast time {encoding:.2f} s encode",
        ),
        Line(
            TOPIC, f"{what} of {PAPER_CLIPS:,} videos, as a paper's test", plain,
            encoding * PAPER_CLIPS / len(clips) + matching, targets=(("ratio", FASTER),), equal=equal,
            note=f"{note}; fast: encoding from the rate of {len(clips)}",
        ),
    ]  # fmt: skip


@torch.inference_mode()
def anew(
    run: Run, model: FewShotModel, world: World, clips: list[int], table: EpisodeTable, texts: Tensor | None
) -> np.ndarray:
    """Scores (E, Q, N) where each episode reads and encodes its videos itself, as released code does."""
    found = []
    for support, query, classes in zip(table.support, table.query, table.classes, strict=True):
        used = [clips[i] for i in (*support.ravel(), *query)]
        features = encode_clips(run, model, world.store, used)
        chosen = None if texts is None else texts[torch.from_numpy(classes)][None]
        supports = features[: support.size].unflatten(0, support.shape)[None]
        prototypes = model.prototypes(model.relate_supports(supports), chosen)
        asked = model.relate_queries(features[support.size :][None])
        found.append(model.match(asked, prototypes, chosen)["vv"][0])
    return torch.stack(found).numpy()


# ------------------------------------------------------------------------------------ Task-Adapter's trunk
def trunk(layers: int, episodes: int, shot: int = 1, classes: int = 8, clips: int = 12, frames: int = 8) -> Line:
    """Task-Adapter with `layers` adapted layers of twelve: the layers below once a video, or in every episode."""
    generator = torch.Generator().manual_seed(0)
    side = nano_config(64).vision_config.image_size
    videos = torch.randn(classes * clips, frames, 3, side, side, generator=generator)
    labels = {f"class {i}": list(range(i * clips, (i + 1) * clips)) for i in range(classes)}
    table = episode_table(labels, 5, shot, 1, episodes, 0)
    model = _task_adapter(layers)
    texts = torch.randn(classes, 1, model.backbone.dim, generator=generator)
    few = first(table, max(episodes // 15, 1))
    _whole(model, videos, first(table, 1), texts)
    plain, wanted = timed(lambda: _whole(model, videos, few, texts))
    fast, scores = timed(lambda: _once(model, videos, table, texts))
    plain *= episodes / len(few.classes)
    what = f"Task-Adapter++, L = {layers} of 12, {episodes} episodes of {len(videos)} videos: trunk once"
    return Line(
        TOPIC, what, plain, fast,
        targets=(("ratio", TRUNK),) if layers == 2 else (), equal=same(scores[: len(wanted)], wanted),
        note=f"plain: {len(wanted)} episodes, extrapolated",
    )  # fmt: skip


def _task_adapter(layers: int) -> TaskAdapter:
    """A Task-Adapter with random weights, adapters included, on a CLIP of nano size."""
    torch.manual_seed(0)
    backbone = {"source": nano_config(64)}
    model = TaskAdapter(backbone, layers=layers, order_layers=0, subactions="single", alignment="none")
    for name, parameter in model.named_parameters():
        if name.startswith("visual."):
            torch.nn.init.normal_(parameter, std=0.05)
    return model.eval()


@torch.inference_mode()
def _whole(model: TaskAdapter, videos: Tensor, table: EpisodeTable, texts: Tensor) -> np.ndarray:
    """Scores (E, Q, N), every episode encoding its own videos from the pixels on."""
    scores = []
    for support, query, classes in zip(table.support, table.query, table.classes, strict=True):
        supports = model.relate_supports(model.encode(videos[support].flatten(0, 1)).unflatten(0, support.shape)[None])
        queries = model.relate_queries(model.encode(videos[query])[None])
        of_class = texts[torch.from_numpy(classes)][None]
        scores.append(model.match(queries, model.prototypes(supports, of_class), of_class)["both"][0])
    return torch.stack(scores).numpy()


@torch.inference_mode()
def _once(model: TaskAdapter, videos: Tensor, table: EpisodeTable, texts: Tensor) -> np.ndarray:
    """The same, as the pipeline tests: the trunk of each video once, then what depends on the episode."""
    features = torch.cat([model.encode(part) for part in videos.split(16)])
    return score_episodes(model, features, table, texts).both
