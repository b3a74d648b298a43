"""What a few-shot model makes of clips: of the test, whose classes it has never seen, unless another split is named.

Arrays: `classes` (C,), the first classes of the split; one that is named is the first of them. Of n clips of them,
`labels` (n,) and `points` (n, 2), the t-SNE of what is matched. Of the first clip of each of S classes, `frames`
(S, T, h, w, 3) uint8 RGB as the model sees them, `seconds` (S, T) in the video (NaN: unknown rate), `phases` (S, T)
from 1 and, where a method reads them, `atoms` (S, L), the atomic texts of the class. `attention` (S, T, y, x) of the
class token on the patches of each frame, which sums to 1 over them, of a vision transformer. `stage_scores`
(S, C, stages), cosines with the texts, of Task-Adapter.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.datasets.frames import FrameStore
from pipeline.datasets.sampling import sample_positions
from pipeline.datasets.transforms import ClipTransform
from pipeline.errors import unknown
from pipeline.models.build import class_sentences
from pipeline.models.few_shot.base import FewShotModel
from pipeline.models.few_shot.phases import phases_of
from pipeline.models.few_shot.task_adapter import TaskAdapter
from pipeline.names import match_name
from pipeline.progress import bar
from pipeline.tasks.few_shot.scoring import class_texts, read_clip, split_clips
from pipeline.tasks.few_shot.task import FewShotTask
from pipeline.text.corpus import load_corpus

CLASSES, CLIPS = 5, 40  # of the test, and of each of them at most
STRIPS = 3  # clips whose frames are shown
BATCH = 8  # clips at a time
SIDE = 112  # pixels of a frame that is shown, at most
PERPLEXITY = 15.0


@torch.inference_mode()
def look(
    task: FewShotTask, model: FewShotModel, split: str = "test", label: str = "", clip: str = ""
) -> dict[str, np.ndarray]:
    """The arrays of a trained model; label and clip (a name of the index): what is shown first.

    Raises:
        UserError: the split has no such class, or the class no such clip.
    """
    classes = shown_classes(task.store, split, label)
    clips = shown_clips(task.store, classes, split, clip)
    labels = [classes.index(task.store.labels[number]) for number in clips]
    firsts = [clips[labels.index(number)] for number in range(len(classes))][:STRIPS]
    features = torch.cat(list(_matched(task, model, clips)))
    out = {"classes": np.array(classes), "labels": np.array(labels), "points": tsne(features)}
    return out | _strips(task, model, firsts, classes)


def shown_classes(store: FrameStore, split: str = "test", label: str = "") -> list[str]:
    """The first classes of a split; `label` goes before the others, whatever its spelling."""
    classes = store.classes(split)
    if not label:
        return classes[:CLASSES]
    if (found := match_name(label, classes, f"the split {split}")) is None:
        raise unknown("class", label, classes, f"the split {split}, figure: show")
    return [found, *(name for name in classes if name != found)][:CLASSES]


def shown_clips(store: FrameStore, classes: Sequence[str], split: str = "test", clip: str = "") -> list[int]:
    """Numbers of the first clips of each class of a split; the one named `clip`, of the first class, is the first."""
    chosen: dict[str, list[int]] = {name: [] for name in classes}
    clips = split_clips(store, split)
    if clip:
        named = [number for number in clips if store.clips[number] == clip and store.labels[number] == classes[0]]
        if not named:
            of_class = [store.clips[number] for number in clips if store.labels[number] == classes[0]]
            raise unknown("clip", clip, of_class, f"the class {classes[0]!r}, figure: show")
        clips = [*named, *(number for number in clips if number != named[0])]
    for number in clips:
        if len(chosen.get(store.labels[number], range(CLIPS))) < CLIPS:
            chosen[store.labels[number]].append(number)
    return [number for name in classes for number in chosen[name]]


def _matched(task: FewShotTask, model: FewShotModel, clips: Sequence[int]) -> Iterator[Tensor]:
    """What is matched of each clip as a query on its own: frames (b, T, D), some clips at a time."""
    with bar("encoding", len(clips), "clips") as encoding:
        for first in range(0, len(clips), BATCH):
            part = clips[first : first + BATCH]
            queries = model.relate_queries(model.encode(_pixels(task, model, part))[:, None])
            yield model.frame_features(queries)[:, 0].float().cpu()
            encoding.advance(len(part))


def _pixels(task: FewShotTask, model: FewShotModel, clips: Sequence[int]) -> Tensor:
    """Clips as a test shows them (b, T, 3, h, w)."""
    transform = ClipTransform(crop=task.run.frames["crop"])
    read = [read_clip(task.run, task.store, clip, transform) for clip in clips]
    return model.pixels(torch.stack(read))


def tsne(frames: Tensor) -> np.ndarray:
    """Frames (n, T, D) of n clips -> points (n, 2) float32. The distance of two clips is one minus the mean cosine of
    their frames at the same place, so that the order of the frames counts."""
    from sklearn.manifold import TSNE

    unit = F.normalize(frames.double(), dim=-1).flatten(1) / frames.shape[1] ** 0.5
    distance = (1 - unit @ unit.T).clamp_min(0).fill_diagonal_(0).numpy()
    fitted = TSNE(perplexity=min(PERPLEXITY, (len(unit) - 1) / 3), metric="precomputed", init="random", random_state=0)
    return fitted.fit_transform(distance).astype(np.float32)


# ------------------------------------------------------------------------------------ clips, frame by frame
def _strips(
    task: FewShotTask, model: FewShotModel, clips: Sequence[int], classes: Sequence[str]
) -> dict[str, np.ndarray]:
    pixels = _pixels(task, model, clips)
    with class_token_attention(model) as seen:
        encoded = model.encode(pixels)
        queries = model.relate_queries(encoded[:, None])
    out = {
        "frames": np.stack([shown(clip, model) for clip in pixels.cpu()]),
        "seconds": np.array([_seconds(task, clip) for clip in clips]),
    }
    if encoded.dim() == 3:
        out["phases"] = np.array([phases_of(model, clip) for clip in encoded])
    if seen:
        maps = seen[-1].unflatten(0, pixels.shape[:2])
        out["attention"] = maps.unflatten(-1, 2 * [round(maps.shape[-1] ** 0.5)]).float().cpu().numpy()
    if task.run.model.get("text") == "atomic":
        corpus = load_corpus(task.ws.dataset(task.run.dataset) / "texts.json")
        out["atoms"] = np.array(class_sentences(corpus, [task.store.labels[clip] for clip in clips], task.run.model))
    if isinstance(model, TaskAdapter):
        texts = class_texts(task.run, model, task.ws, classes)[None]
        out["stage_scores"] = model.stage_scores(queries.transpose(0, 1), texts)[0].float().cpu().numpy()
    return out


def shown(clip: Tensor, model: FewShotModel) -> np.ndarray:
    """Normalised frames (T, 3, h, w) as pixels (T, h', w', 3) uint8, of `SIDE` pixels at most."""
    mean, std = (torch.tensor(x)[:, None, None] for x in (model.mean, model.std))
    pixels = (255 * (clip * std + mean)).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
    scale = min(1.0, SIDE / max(pixels.shape[1:3]))
    size = [round(scale * pixels.shape[side]) for side in (2, 1)]
    return np.stack([cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in pixels])


def _seconds(task: FewShotTask, clip: int) -> np.ndarray:
    """When the frames that a test shows come in the video (T,); NaN for a folder of frames."""
    store, frames = task.store, task.run.frames
    mode = frames["test_sampling"]
    rng = np.random.default_rng(np.random.SeedSequence([task.run.seed, clip]))  # as `read_clip`
    chosen = sample_positions(
        store.n_frames(clip), frames["number"], mode, rng if mode == "segment_random" else None, fps=store.fps(clip),
        source_frames=store.source_frames(clip),
    )  # fmt: skip
    return store.times(clip)[chosen]


@contextmanager
def class_token_attention(model: FewShotModel) -> Iterator[list[Tensor]]:
    """In the block, a list of what the class token sees of the patches in the last layer: (frames, patches), a
    tensor a call, the mean of the heads, which sums to 1. Empty without a vision transformer.

    Adapters call the same attention along time and over the videos of a task; only that over the tokens of a frame
    counts.
    """
    seen: list[Tensor] = []
    if not hasattr(model.backbone, "clip"):
        yield seen
        return
    vision = model.backbone.clip.vision_model
    tokens = vision.embeddings.num_positions

    def note(module: nn.Module, args: tuple, kwargs: dict) -> None:
        x = args[0] if args else kwargs["hidden_states"]
        if x.shape[-2] == tokens:
            q, k = (y.unflatten(-1, (module.num_heads, -1)) for y in (module.q_proj(x[:, 0]), module.k_proj(x)))
            weights = (torch.einsum("bhc,bnhc->bhn", q, k) * module.scale).softmax(-1).mean(1)[:, 1:]
            seen.append(weights / weights.sum(-1, keepdim=True))

    handle = vision.encoder.layers[-1].self_attn.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()
