"""Thousands of episodes from features that are there: matched together, and one pair of videos after the other."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks import reference
from benchmarks.lines import Line, least, peak, timed
from pipeline.models.backbones.nano_clip import nano_config
from pipeline.models.few_shot.base import FewShotModel
from pipeline.models.few_shot.clip_baselines import ClipFreeze
from pipeline.models.few_shot.lga import LGA
from pipeline.models.few_shot.trx import TRX
from pipeline.tasks.few_shot.episodes import EpisodeTable, episode_table
from pipeline.tasks.few_shot.scoring import score_episodes

TOPIC = "1 matching"
FRAMES, WIDTH = 8, 512
SECONDS = {1: 2.0, 5: 5.0}
"""Targets, by the number of shots."""
MEMORY, FASTER = 1000.0, 50.0
TITLES = {"otam": "OTAM", "bi_mhm": "Bi-MHM", "ab_mhm": "AB-MHM", "mean": "ProtoNet (cosine)", "trx": "TRX"}


class SameInEveryPhase(nn.Module):
    """A fusion without weights: a frame is the same in each phase, (..., T, D) -> (..., L, T, D)."""

    def forward(self, frames: Tensor, mask: Tensor, texts: Tensor | None) -> Tensor:
        return frames.unsqueeze(-3).expand(*mask.shape, frames.shape[-1])


class Anatomy(LGA):
    """LGA's matching alone: no text and no fusion."""

    wants_text = False


def build(matcher: str) -> FewShotModel:
    """The method whose matching is measured; the encoder is not used."""
    torch.manual_seed(0)
    backbone = {"source": nano_config(64, layers=1, projection_dim=WIDTH)}
    if matcher == "trx":
        return TRX(backbone, frames=FRAMES).eval()
    if matcher == "ab_mhm":
        model = Anatomy(backbone, ())
        model.neck = SameInEveryPhase()
        return model.eval()
    return ClipFreeze(backbone, matcher=matcher).eval()


def make_features(classes: int, clips: int, seed: int = 0) -> tuple[Tensor, dict[str, list[int]]]:
    """Features (V, T, D) of videos that resemble those of their class in each frame, and the videos of each class."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, 1, FRAMES, WIDTH, generator=generator)
    own = torch.randn(classes, clips, FRAMES, WIDTH, generator=generator)
    labels = {f"class {c}": list(range(c * clips, (c + 1) * clips)) for c in range(classes)}
    return (0.15 * centres + 0.3 * own).flatten(0, 1), labels


def first(episodes: EpisodeTable, count: int) -> EpisodeTable:
    """The first `count` episodes."""
    return EpisodeTable(*(array[:count] for array in episodes))


def pairwise(matcher: str, model: FewShotModel, features: Tensor, episodes: EpisodeTable) -> np.ndarray:
    """Scores (E, Q, N), pair of videos by pair of videos."""
    return np.stack(
        [
            -reference.episode(matcher, model, features[torch.from_numpy(s)], features[torch.from_numpy(q)])
            for s, q in zip(episodes.support, episodes.query, strict=True)
        ]
    )


@torch.inference_mode()
def one_at_a_time(model: FewShotModel, features: Tensor, episodes: EpisodeTable) -> np.ndarray:
    """Scores (E, Q, N) with the model's own functions, one episode in a call."""
    found = []
    for s, q in zip(episodes.support, episodes.query, strict=True):
        prototypes = model.prototypes(model.relate_supports(features[torch.from_numpy(s)][None]), None)
        found.append(model.match(model.relate_queries(features[torch.from_numpy(q)][None]), prototypes, None)["vv"][0])
    return torch.stack(found).numpy()


def same(one: np.ndarray, two: np.ndarray) -> bool:
    """Whether two arrays of scores (E, Q, N) take every query for the same class."""
    return bool((one.argmax(-1) == two.argmax(-1)).all())


def measure(
    episodes: int = 10_000, classes: int = 24, clips: int = 100, subset: int = 20, trx_episodes: int = 1000,
    matchers: tuple[str, ...] = ("otam", "bi_mhm", "ab_mhm", "mean", "trx"),
) -> list[Line]:  # fmt: skip
    """Lines of each matcher with one shot and with five; 24 classes of 100 clips are the test of SSv2-Small.

    The loops run on `subset` episodes (TRX's on a tenth of them), TRX on `trx_episodes`, and are extrapolated.
    """
    features, labels = make_features(classes, clips)
    lines = []
    for matcher in matchers:
        model = build(matcher)
        for shot in SECONDS:
            table = episode_table(labels, 5, shot, 1, episodes, 0)
            lines += _lines(matcher, shot, model, features, table, subset, trx_episodes)
    return lines


def _lines(
    matcher: str, shot: int, model: FewShotModel, features: Tensor, table: EpisodeTable, subset: int, trx_episodes: int
) -> list[Line]:
    episodes = len(table.classes)
    few, done = first(table, subset), table
    if matcher == "trx":
        few, done = first(table, max(subset // 10, 2)), first(table, min(trx_episodes, episodes))
    score = partial(score_episodes, model, features, done, None)
    fixed = least(partial(score_episodes, model, features, few, None), 1)  # what is done once for each video
    memory, (fast, scores) = peak(partial(timed, score))
    if matcher != "trx":
        fast = min(fast, timed(score)[0])
    plain, wanted = timed(partial(pairwise, matcher, model, features, few))
    single, alone = timed(partial(one_at_a_time, model, features, few))
    counted, more = len(few.classes), episodes - len(done.classes)
    note = f"plain: {counted} episodes, extrapolated"
    if more:
        fast += more * max(fast - fixed, 0.0) / (len(done.classes) - counted)
        note += f"; fast: {len(done.classes)}, too, and what each video takes once"
    what = f"{TITLES[matcher]}, {shot}-shot, {episodes:,} episodes"
    return [
        Line(
            TOPIC, f"{what}: pair by pair", plain * episodes / counted, fast, memory=memory,
            targets=(("fast", SECONDS[shot]), ("ratio", FASTER), ("memory", MEMORY)),
            equal=same(scores.log_vv[:counted], wanted), note=note,
        ),
        Line(
            TOPIC, f"{what}: one episode a call", single * episodes / counted, fast,
            equal=same(scores.log_vv[:counted], alone), note=note,
        ),
    ]  # fmt: skip
