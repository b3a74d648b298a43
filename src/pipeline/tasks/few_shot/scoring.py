"""Few-shot tests: features once per video, then thousands of episodes as tensor arithmetic.

The frames of a test are chosen without chance, so what a method works out for a video on its own is the same in
every episode. Only what depends on the other videos of a task (`FewShotModel.relate`) is done episode by episode.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from pipeline.datasets.coverage import present_clips
from pipeline.datasets.frames import FrameStore
from pipeline.datasets.loading import read_ahead
from pipeline.datasets.sampling import sample_positions
from pipeline.datasets.transforms import ClipTransform
from pipeline.experiment import Measure, Run
from pipeline.files import new_file
from pipeline.models.build import class_sentences
from pipeline.models.few_shot.base import FewShotModel, in_parts
from pipeline.progress import bar
from pipeline.scores import EpisodeScores
from pipeline.tasks.few_shot.episodes import EpisodeTable, episode_table
from pipeline.text.corpus import load_corpus
from pipeline.workspace import Workspace

FEATURES = "features"  # files of features that wait for other tests of their run
ENCODE_CLIPS = 32  # videos encoded at a time
IN_MEMORY = 2 * 2**30  # bytes of the features of a split beyond which they lie in a file
IN_CACHE = 16 * 2**20  # bytes of the videos of the episodes matched in one call on a CPU: they stay in its cache


def read_clip(run: Run, store: FrameStore, clip: int, transform: ClipTransform) -> Tensor:
    """The frames of a test: uint8 (T, h, w, 3), chosen and cropped without chance (or, as released, by the clip's
    seed)."""
    rng = np.random.default_rng(np.random.SeedSequence([run.seed, clip]))
    mode = run.frames["test_sampling"]
    positions = sample_positions(
        store.n_frames(clip), run.frames["number"], mode, rng if mode == "segment_random" else None,
        fps=store.fps(clip), source_frames=store.source_frames(clip),
    )  # fmt: skip
    return transform(store.read(clip, positions), rng)


@torch.inference_mode()
def encode_clips(run: Run, model: FewShotModel, store: FrameStore, clips: Sequence[int]) -> Tensor:
    """What the model works out for each of `clips` on its own: (V, ...) float32, (V, T, D) for most.

    On the model's device; above IN_MEMORY in a file without a name, so that memory does not grow with the videos.
    """
    transform = ClipTransform(crop=run.frames["crop"])
    device = next(model.parameters()).device
    size = run.frames["number"] * 3 * transform.crop**2
    features, first = None, 0
    with bar("encoding", len(clips), "clips") as encoding:
        for part in read_ahead(lambda clip: read_clip(run, store, clip, transform), clips, ENCODE_CLIPS, size):
            encoded = model.encode(model.pixels(part))
            if features is None:
                features = _space((len(clips), *encoded.shape[1:]), device)
            features[first : first + len(part)] = encoded.float()
            first += len(part)
            encoding.advance(len(part))
    return features


def _space(shape: tuple[int, ...], device: torch.device) -> Tensor:
    if 4 * math.prod(shape) <= IN_MEMORY:
        return torch.empty(shape, device=device)
    with tempfile.NamedTemporaryFile(prefix="features-") as file:  # lives as long as it is mapped
        return torch.from_file(file.name, shared=True, size=math.prod(shape)).reshape(shape)


def split_features(
    run: Run, model: FewShotModel, ws: Workspace, store: FrameStore, split: str, keep: bool = False
) -> Tensor:
    """`encode_clips` of the clips of `split`, in the store's order; those that an earlier test has kept, if any.

    keep: write them for later tests of the run, up to IN_MEMORY bytes; `remove_features` deletes them.
    """
    present = present_clips(ws.store(run))
    path = ws.scores(run.id) / f"{FEATURES}-{split}{f'-{present}' if present else ''}.safetensors"
    if path.is_file():
        return load_file(path)["features"].to(next(model.parameters()).device)
    features = encode_clips(run, model, store, split_clips(store, split))
    if keep and 4 * features.numel() <= IN_MEMORY:
        with new_file(path) as temporary:
            save_file({"features": features.cpu()}, temporary)
    return features


def remove_features(ws: Workspace, run: Run) -> None:
    """Delete the features that `split_features` has kept of a run."""
    for path in ws.scores(run.id).glob(f"{FEATURES}-*.safetensors"):
        path.unlink(missing_ok=True)


@torch.inference_mode()
def score_episodes(
    model: FewShotModel,
    features: Tensor,
    table: EpisodeTable,
    texts: Tensor | None,
    matcher: str | None = None,
) -> EpisodeScores:
    """Scores of the episodes of `table`, whose clip numbers index `features` (V, ...) and class numbers `texts`
    (C, L, D).

    A query that stands alone, and the prototype of a class whose supports see no other class, are worked out once,
    however many episodes they stand in.
    """
    table = in_class_order(table) if model.class_order else table
    device = next(model.parameters()).device
    features = model.condense(features, matcher)
    queries = _queries(model, features, device)
    known = _prototypes(model, features, table, texts, device)
    videos = (features if queries is None else queries, table.query), _supports(features, table, known)
    at_once = _episodes_at_once(model, device, *videos)
    found: dict[str, Tensor] = {}
    with bar("matching", len(table.classes), "episodes") as matching:
        for first in range(0, len(table.classes), at_once):
            part = slice(first, first + at_once)
            support, query, classes = (torch.from_numpy(a[part]) for a in (table.support, table.query, table.classes))
            episode_texts = None if texts is None else texts[classes]
            if known is not None:
                prototypes = _take(known.prototypes, known.places[part])
            elif model.condensed:
                prototypes = _take(features, support)
            else:
                prototypes = model.prototypes(model.relate_supports(_take(features, support).to(device)), episode_texts)
            if queries is None:
                asked = model.relate_queries(_take(features, query).to(device))
            else:
                asked = _take(queries, query)
            scores = model.match(asked, prototypes, episode_texts, matcher)
            scores["log_vv"] = scores.get("log_vv", scores["vv"].log_softmax(-1))
            if "vt" in scores:
                scores["log_vt"] = scores["vt"].log_softmax(-1)
            for name in {"log_vv", "log_vt", "both"} & set(scores):
                if name not in found:
                    found[name] = torch.empty(*table.labels.shape, scores[name].shape[-1])
                found[name][part] = scores[name]
            matching.advance(len(support))
    arrays = {name: array.numpy() for name, array in found.items()}
    return EpisodeScores(arrays["log_vv"], arrays.get("log_vt"), table.labels, arrays.get("both"))


def _queries(model: FewShotModel, features: Any, device: torch.device) -> Any:
    """Every video as a query: what `match` takes, with V in the place of (E, Q); None where queries see each other."""
    if model.condensed or not model.queries_alone:
        return features if model.condensed else None

    def alone(videos: Tensor) -> Any:
        return tree_map(lambda tensor: tensor[0], model.relate_queries(videos[None].to(device)))

    return in_parts(alone, features, ENCODE_CLIPS)


class _Known(NamedTuple):
    """Prototypes (U, ...) of the different support sets of a class, and which of them is whose: places (E, N)."""

    prototypes: Any
    places: Tensor


def _prototypes(
    model: FewShotModel, features: Tensor, table: EpisodeTable, texts: Tensor | None, device: torch.device
) -> _Known | None:
    """The prototypes of all support sets, where many episodes share them (one shot); None where few do."""
    if model.condensed or type(model).relate is not FewShotModel.relate:
        return None
    rows = np.concatenate([table.classes[..., None], table.support], axis=-1)
    unique, inverse = np.unique(rows.reshape(-1, rows.shape[-1]), axis=0, return_inverse=True)
    if 2 * len(unique) > inverse.size:
        return None

    def of_sets(rows: Tensor) -> Any:
        of_class = None if texts is None else texts[rows[:, 0]][None]
        made = model.prototypes(_take(features, rows[:, 1:]).to(device)[None], of_class)
        return tree_map(lambda tensor: tensor[0], made)

    prototypes = in_parts(of_sets, torch.from_numpy(unique), model.episodes_at_once)
    return _Known(prototypes, torch.from_numpy(inverse.reshape(table.classes.shape)))


def _take(tree: Any, places: Tensor) -> Any:
    """The rows of every tensor of `tree` that `places` names: copied whole, several times faster than by indexing."""

    def rows(tensor: Tensor) -> Tensor:
        return tensor.index_select(0, places.flatten().to(tensor.device)).unflatten(0, places.shape)

    return tree_map(rows, tree)


def _supports(features: Tensor, table: EpisodeTable, known: _Known | None) -> tuple[Any, np.ndarray]:
    """What an episode takes of its supports, and the places (E, ...) of its rows."""
    return (features, table.support) if known is None else (known.prototypes, table.classes)


def _episodes_at_once(model: FewShotModel, device: torch.device, *videos: tuple[Any, np.ndarray]) -> int:
    """Episodes in one call: those of the method, on a CPU no more than fit into its cache.

    videos: trees of tensors, and the places of the rows (E, ...) that the episodes take of them.
    """
    if device.type != "cpu":
        return model.episodes_at_once
    size = sum(
        tensor[0].numel() * tensor.element_size() * places[0].size
        for tree, places in videos
        for tensor in tree_leaves(tree)
    )
    return max(1, min(model.episodes_at_once, IN_CACHE // size))


def in_class_order(table: EpisodeTable) -> EpisodeTable:
    """The same episodes with their queries in the order of the classes."""
    order = np.argsort(table.labels, axis=1, kind="stable")
    query, labels = (np.take_along_axis(a, order, axis=1) for a in (table.query, table.labels))
    return table._replace(query=query, labels=labels)


def score_split(
    run: Run, model: FewShotModel, ws: Workspace, store: FrameStore, split: str,
    *, way: int, shot: int, query: int, episodes: int, seed: int, matcher: str | None = None,
    features: Tensor | None = None,
) -> EpisodeScores:  # fmt: skip
    """Scores of seeded episodes of the classes of `split`, the same episodes for every method.

    Validation with fewer classes than `way` uses all that there are; a test raises UserError. `features` (of the
    split's clips, in the store's order) saves encoding them again.
    """
    table = split_table(store, split, way, shot, query, episodes, seed)
    if features is None:
        features = encode_clips(run, model, store, split_clips(store, split))
    return score_episodes(model, features, table, class_texts(run, model, ws, store.classes(split)), matcher)


def split_table(
    store: FrameStore, split: str, way: int, shot: int, query: int, episodes: int, seed: int
) -> EpisodeTable:
    """Seeded episodes of the classes of `split`, in which a clip is its place among the split's."""
    classes, place = store.classes(split), {name: [] for name in store.classes(split)}
    for i, clip in enumerate(split_clips(store, split)):
        place[store.labels[clip]].append(i)
    way = min(way, len(classes)) if split == "val" else way
    return episode_table(place, way, shot, query, episodes, seed)


def split_clips(store: FrameStore, split: str) -> list[int]:
    """Numbers of the clips of `split` in the store."""
    return [i for i, name in enumerate(store.splits) if name == split]


def class_texts(run: Run, model: FewShotModel, ws: Workspace, classes: Sequence[str]) -> Tensor | None:
    """Text features of `classes` (C, L, D), or None for a method that reads none."""
    if not model.wants_text:
        return None
    corpus = load_corpus(ws.dataset(run.dataset) / "texts.json")
    return model.encode_texts(class_sentences(corpus, classes, run.model))


TIMED_TASKS = 20


@torch.inference_mode()
def time_tasks(run: Run, measure: Measure, model: torch.nn.Module, store: FrameStore, ws: Workspace) -> list[float]:
    """Milliseconds of whole tasks, one by one: read and encode supports and queries, match (LGA, Figure 3)."""
    clips, classes = split_clips(store, "test"), store.classes("test")
    place = {name: [i for i, c in enumerate(clips) if store.labels[c] == name] for name in classes}
    table = episode_table(place, measure.way, measure.shot, measure.query, TIMED_TASKS + 2, measure.episode_seed)
    texts = class_texts(run, model, ws, classes)  # of the classes, known before a query comes
    times = []
    for i in range(TIMED_TASKS + 2):
        start = time.perf_counter()
        used = np.concatenate([table.support[i].ravel(), table.query[i]])
        features = encode_clips(run, model, store, [clips[j] for j in used])
        support = features[: table.support[i].size].unflatten(0, table.support[i].shape)
        query = model.relate_queries(features[table.support[i].size :][None])
        chosen = None if texts is None else texts[torch.from_numpy(table.classes[i])][None]
        prototypes = model.prototypes(model.relate_supports(support[None]), chosen)
        float(model.match(query, prototypes, chosen, measure.matcher)["vv"].sum())
        times.append(1000 * (time.perf_counter() - start))
    return times[2:]  # the first ones warm up
