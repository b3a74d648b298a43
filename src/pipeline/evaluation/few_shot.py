"""Few-shot tests: features once per video, then thousands of episodes as tensor arithmetic.

Exact for every method that encodes each video on its own: the frames of a test are chosen without chance, so a
video has one set of features whatever episode it stands in.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pipeline.datasets.episodes import EpisodeTable, episode_table
from pipeline.datasets.frames import FrameStore
from pipeline.datasets.sampling import sample_positions
from pipeline.datasets.transforms import ClipTransform
from pipeline.evaluation.scores import EpisodeScores
from pipeline.experiment import Run
from pipeline.models.backbones.clip import CLIP_MEAN, CLIP_STD
from pipeline.models.build import class_sentences
from pipeline.models.methods.base import FewShotModel
from pipeline.text.corpus import load_corpus
from pipeline.workspace import Workspace

ENCODE_CLIPS = 32  # videos encoded at a time
MATCH_EPISODES = 200  # episodes matched at a time


def read_clip(run: Run, store: FrameStore, clip: int, transform: ClipTransform) -> Tensor:
    """The frames of a test: (T, 3, h, w), chosen and cropped without chance (or, as released, by the clip's seed)."""
    rng = np.random.default_rng(np.random.SeedSequence([run.seed, clip]))
    mode = run.frames["test_sampling"]
    positions = sample_positions(
        store.n_frames(clip), run.frames["number"], mode, rng if mode == "segment_random" else None,
        fps=store.fps(clip), source_frames=store.source_frames(clip),
    )  # fmt: skip
    return transform(store.read(clip, positions), rng)


@torch.inference_mode()
def encode_clips(run: Run, model: FewShotModel, store: FrameStore, clips: Sequence[int]) -> Tensor:
    """Features of `clips`: (V, T, D) float32 on the model's device."""
    transform = ClipTransform(crop=run.frames["crop"], mean=CLIP_MEAN, std=CLIP_STD, train=False)
    device = next(model.parameters()).device
    features = []
    for first in range(0, len(clips), ENCODE_CLIPS):
        batch = torch.stack([read_clip(run, store, clip, transform) for clip in clips[first : first + ENCODE_CLIPS]])
        features.append(model.encode(batch.to(device)).float())
    return torch.cat(features)


@torch.inference_mode()
def score_episodes(
    model: FewShotModel,
    features: Tensor,
    table: EpisodeTable,
    texts: Tensor | None,
    matcher: str | None = None,
) -> EpisodeScores:
    """Scores of the episodes of `table`, whose clip numbers index `features` (V, T, D) and class numbers `texts`
    (C, L, D)."""
    vv, vt = [], []
    for first in range(0, len(table.classes), MATCH_EPISODES):
        part = slice(first, first + MATCH_EPISODES)
        support, query, classes = (torch.from_numpy(a[part]) for a in (table.support, table.query, table.classes))
        episode_texts = None if texts is None else texts[classes]
        prototypes = model.prototypes(features[support], episode_texts)
        scores = model.match(features[query], prototypes, episode_texts, matcher)
        vv.append(scores.get("log_vv", scores["vv"].log_softmax(-1)).cpu())
        if "vt" in scores:
            vt.append(scores["vt"].log_softmax(-1).cpu())
    return EpisodeScores(torch.cat(vv).float().numpy(), torch.cat(vt).float().numpy() if vt else None, table.labels)


def score_split(
    run: Run, model: FewShotModel, ws: Workspace, store: FrameStore, split: str,
    *, way: int, shot: int, query: int, episodes: int, seed: int, matcher: str | None = None,
    features: Tensor | None = None,
) -> EpisodeScores:  # fmt: skip
    """Scores of seeded episodes of the classes of `split`, the same episodes for every method.

    Validation with fewer classes than `way` uses all that there are; a test raises UserError. `features` (of the
    split's clips, in the store's order) saves encoding them again.
    """
    clips = split_clips(store, split)
    classes = store.classes(split)
    place = {name: [] for name in classes}
    for i, clip in enumerate(clips):
        place[store.labels[clip]].append(i)
    way = min(way, len(classes)) if split == "val" else way
    table = episode_table(place, way, shot, query, episodes, seed)
    if features is None:
        features = encode_clips(run, model, store, clips)
    return score_episodes(model, features, table, class_texts(run, model, ws, classes), matcher)


def split_clips(store: FrameStore, split: str) -> list[int]:
    """Numbers of the clips of `split` in the store."""
    return [i for i, name in enumerate(store.splits) if name == split]


def class_texts(run: Run, model: FewShotModel, ws: Workspace, classes: Sequence[str]) -> Tensor | None:
    """Text features of `classes` (C, L, D), or None for a method that reads none."""
    if not model.wants_text:
        return None
    corpus = load_corpus(ws.dataset(run.dataset) / "texts.json")
    return model.encode_texts(class_sentences(corpus, classes, run.model))
