"""Pretraining of the nano backbones on the base classes of few-shot data sets.

It stands in for the web-scale pretraining of CLIP and for ImageNet where no such weights are at hand. The backbones
see frames, and sentences, of base classes only, so novel classes stay unseen, in pictures and in words.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.errors import UserError, unknown
from pipeline.models.backbones.clip import CLIP_MEAN, CLIP_STD, CLIPBackbone
from pipeline.models.backbones.efficientnet import PACKAGE
from pipeline.models.backbones.locked_clip import LockedCLIP
from pipeline.models.backbones.nano_clip import (
    SPECIAL_TOKENS,
    UNK,
    build_tokenizer,
    init_nano,
    init_nano_text,
    nano_config,
)
from pipeline.models.backbones.resnet import NANO_RESNET, ResNetBackbone
from pipeline.models.backbones.shipped import round_to_half
from pipeline.models.semi.timesformer import ElementTimeSformer
from pipeline.progress import bar

if TYPE_CHECKING:
    from pipeline.datasets.frames import FrameStore
    from pipeline.text.corpus import Corpus

MAX_WORDS = 77  # of a sentence
FRAMES_AT_ONCE = 32  # that pass a frozen image tower
PHASES = 3  # thirds of a clip, described by the three atomic actions of its class
CAPTIONS = ("{label}", "a photo of {label}", "{description}", "{atomic}")
"""What is said of a frame: label and global description of its class, atomic action of its third of the clip."""
Encode = Callable[[Tensor], Tensor]
"""Normalised frames (n, 3, S, S) -> features (n, D)."""
Progress = Callable[[int, int, float], None]
"""Called after every step as progress(step, steps, loss)."""
_MARGIN = 8 / 7  # frames are held this much larger than the crop, as CLIP-FSAR's 256 for 224


@dataclass(frozen=True)
class _Recipe:
    steps: int
    batch: int
    lr: float
    weight_decay: float
    warmup: float


@dataclass(frozen=True)
class _Pool:
    """Frames of all sources in memory and which sentences hold for them.

    Of frames: frames (F, S, S, 3) uint8, group (F,) = class x PHASES + phase, clip (F,). Of groups: kinds
    (G, captions), the numbers of its sentences, one for each form of caption. Of clips: held_out and clip_class
    (C,). Of classes: class_source, the number of its data set (classes of two sets are never the same).
    """

    frames: Tensor
    group: Tensor
    clip: Tensor
    kinds: Tensor
    sentences: list[str]
    held_out: Tensor
    clip_class: Tensor
    class_source: Tensor


def pretrain(
    sources: Sequence[tuple[FrameStore, Corpus]],
    out_folder: str | os.PathLike,
    *,
    steps: int = 400,
    batch: int = 64,
    lr: float = 2e-3,
    seed: int = 0,
    split: str = "train",
    weight_decay: float = 0.05,
    warmup: float = 0.1,
    held_out: float = 0.1,
    max_frames: int = 6_000,
    captions: Sequence[str] = CAPTIONS,
    mean: Sequence[float] = CLIP_MEAN,
    std: Sequence[float] = CLIP_STD,
    model: dict[str, Any] | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train nano CLIP on pairs (frame, sentence) and write it to `out_folder` in Hugging Face format.

    A frame's sentence is one of the forms of `captions`. Give all forms that methods will ask it in: CLIP knows
    them from the web, but a nano CLIP that never met "{label}: {atomic}" cannot tell the atomic actions of one
    label apart. The loss is CLIP's symmetric cross-entropy
    over the batch, in which every sentence that holds for a frame is a positive, plus the prediction of
    the words said of the frame (see `_word_reader`). Same arguments and number of threads, same weights.

    Args:
        sources: frame store and text corpus of each data set.
        out_folder: gets config.json, model.safetensors, the tokenizer and pretrain.json; all or nothing.
        steps, batch, lr, weight_decay: AdamW steps, frames a step, peak learning rate (cosine to zero).
        warmup: part of the steps with linearly rising learning rate.
        captions: forms of a sentence, with {label} and {description} of the class and {atomic} of the third of the
            clip that the frame lies in. Retrieval is measured with the first, which should name the class.
        held_out: part of the base clips of each class that is kept to measure retrieval.
        max_frames: frames held in memory, over all sources; evenly spaced frames of each clip.
        mean, std: normalisation of RGB in [0, 1].
        model: arguments of `nano_config` other than the vocabulary.
        progress: told the contrastive loss of every step.

    Returns: what pretrain.json holds (settings, loss, retrieval, seconds).
    Raises UserError: split other than "train", no clips, a base class that is also in another split, missing
    text, an unknown field of a caption, a loss that is not finite.
    """
    start = time.perf_counter()
    generator = torch.Generator().manual_seed(seed)
    config_args = dict(model or {})
    size = nano_config(8, **config_args).vision_config.image_size
    rng = np.random.default_rng(seed)
    pool = _read_pool(sources, split, round(size * _MARGIN), held_out, max_frames, rng, captions)
    tokenizer = build_tokenizer(pool.sentences, config_args.get("max_length", 77))
    with torch.random.fork_rng(devices=[]):  # transformers draws weights globally; init_nano draws all anew
        clip = CLIPBackbone(nano_config(len(tokenizer), **config_args), freeze_text=False)
    clip.tokenizer = tokenizer
    init_nano(clip.clip, generator)
    normalise = _Normalise(mean, std)
    recipe = _Recipe(steps, batch, lr, weight_decay, warmup)
    loss = _train(clip, pool, normalise, recipe, generator, progress)
    round_to_half(clip)
    report = {
        "settings": {
            **asdict(recipe), "seed": seed, "held_out": held_out, "max_frames": max_frames,
            "captions": list(captions), "mean": list(mean), "std": list(std), "model": config_args,
            "classes": _classes(sources),
        },
        "frames": len(pool.frames),
        "loss": loss,
        "retrieval": _held_out_top1(_prompt_scores(clip, pool), pool, normalise, size),
    }  # fmt: skip
    return _write(clip, report, start, Path(out_folder))


def pretrain_classifier(
    sources: Sequence[tuple[FrameStore, Corpus]],
    out_folder: str | os.PathLike,
    *,
    kind: str = "resnet",
    steps: int = 300,
    batch: int = 64,
    lr: float = 2e-3,
    seed: int = 0,
    split: str = "train",
    weight_decay: float = 0.05,
    warmup: float = 0.1,
    held_out: float = 0.1,
    max_frames: int = 6_000,
    image_size: int = 64,
    words: bool = False,
    model: dict[str, Any] | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train a nano network to tell the thirds of the base classes' clips apart and write it to `out_folder`.

    Each frame has one label: its class and the third of the clip that it lies in, as the frames of nano CLIP have
    sentences of both. The loss is the cross-entropy of a linear classifier, which is thrown away afterwards. Same
    arguments and number of threads, same weights.

    Args:
        sources, steps, batch, lr, weight_decay, warmup, max_frames: as in `pretrain`.
        out_folder: gets config.json, model.safetensors and pretrain.json; all or nothing.
        kind: a key of IMAGE_NETWORKS.
        held_out: part of the base clips of each class that is kept to measure the classifier.
        image_size: side of the crops in pixels.
        words: the words said of a frame are predicted too (see `_word_reader`): a ViT needs them as nano CLIP does.
        model: what differs from the nano architecture of that kind.
        progress: told the loss of every step.

    Returns: what pretrain.json holds (settings, loss, recognition, seconds).
    Raises UserError: as `pretrain`; an unknown kind.
    """
    start = time.perf_counter()
    if kind not in IMAGE_NETWORKS:
        raise unknown("kind of image network", kind, IMAGE_NETWORKS)
    generator = torch.Generator().manual_seed(seed)
    pool = _read_pool(sources, split, round(image_size * _MARGIN), held_out, max_frames, np.random.default_rng(seed))
    with torch.random.fork_rng(devices=[]):  # layers draw their weights globally
        torch.manual_seed(seed)
        network, architecture, encode = IMAGE_NETWORKS[kind](model or {}, image_size)
        classifier = torch.nn.Linear(network.dim, len(pool.kinds))
    normalise = _Normalise(network.mean, network.std)
    recipe = _Recipe(steps, batch, lr, weight_decay, warmup)
    table = _words_of(pool) if words else None
    reader = _word_reader(network.dim, table, generator) if words else None

    def classification(index: Tensor) -> tuple[Tensor, Tensor]:
        frames = normalise(_augment(pool.frames[index], image_size, generator))
        feature = encode(frames)
        loss = F.cross_entropy(classifier(feature), pool.group[index])
        if reader is None:
            return loss, loss
        said = F.binary_cross_entropy_with_logits(reader(feature), table[pool.group[index]], reduction="sum")
        return loss + said / len(frames), loss

    network.train()
    trained = [value for value in network.parameters() if value.requires_grad]
    trained += [*classifier.parameters(), *(reader.parameters() if reader else ())]
    loss = _descend(trained, classification, pool, recipe, generator, progress)
    network.eval()
    round_to_half(network)
    report = {
        "settings": {
            **asdict(recipe), "kind": kind, "seed": seed, "held_out": held_out, "max_frames": max_frames,
            "image_size": image_size, "words": words, "model": architecture, "classes": _classes(sources),
        },
        "frames": len(pool.frames),
        "loss": loss,
        "recognition": _held_out_top1(_class_scores(encode, classifier), pool, normalise, image_size),
    }  # fmt: skip
    return _write(network, report, start, Path(out_folder))


def align(
    sources: Sequence[tuple[FrameStore, Corpus]],
    out_folder: str | os.PathLike,
    *,
    steps: int = 400,
    batch: int = 64,
    lr: float = 2e-3,
    seed: int = 0,
    split: str = "train",
    weight_decay: float = 0.05,
    warmup: float = 0.1,
    held_out: float = 0.1,
    max_frames: int = 3_000,
    captions: Sequence[str] = CAPTIONS,
    image_size: int = 224,
    width: int = 256,
    image: str = PACKAGE,
    model: dict[str, Any] | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train a small text tower to find the frames that its sentences hold for, as a frozen image tower sees them.

    This is locked-image tuning (LiT): nothing but the text tower moves, by CLIP's contrastive loss. Each frame passes
    the image tower once.

    Args:
        sources, steps, batch, lr, weight_decay, warmup, captions, held_out, max_frames: as in `pretrain`.
        out_folder: gets config.json, both towers and pretrain.json; all or nothing.
        image_size: side of the frames that the image tower sees, in pixels.
        width: of the features of frames and sentences (`LockedCLIP.fit_projection`).
        image: source of the image tower, see `EfficientNetBackbone`.
        model: arguments of `nano_config` for the text tower, such as `layers`.
        progress: told the loss of every step.

    Returns: what pretrain.json holds (settings, loss, retrieval, seconds).
    Raises UserError: as `pretrain`; the packages of the image tower are not installed; fewer frames than `width`.
    """
    start = time.perf_counter()
    generator = torch.Generator().manual_seed(seed)
    pool = _read_pool(sources, split, image_size, held_out, max_frames, np.random.default_rng(seed), captions)
    config_args = dict(model or {})
    tokenizer = build_tokenizer(pool.sentences, config_args.get("max_length", 77))
    with torch.random.fork_rng(devices=[]):  # transformers draws weights globally; init_nano_text draws all anew
        clip = LockedCLIP(nano_config(len(tokenizer), projection_dim=width, **config_args).text_config, image)
    clip.tokenizer = tokenizer
    init_nano_text(clip.text, generator)
    normalise = _Normalise(clip.mean, clip.std)
    recipe = _Recipe(steps, batch, lr, weight_decay, warmup)
    loss = _align(clip, pool, normalise, recipe, generator, progress)
    report = {
        "settings": {
            **asdict(recipe), "seed": seed, "held_out": held_out, "max_frames": max_frames, "image_size": image_size,
            "width": width, "image": image, "captions": list(captions), "model": config_args,
            "classes": _classes(sources),
        },
        "frames": len(pool.frames),
        "loss": loss,
        "retrieval": _held_out_top1(_prompt_scores(clip, pool), pool, normalise, image_size),
    }  # fmt: skip
    return _write(clip, report, start, Path(out_folder))


def _align(
    clip: LockedCLIP,
    pool: _Pool,
    normalise: _Normalise,
    recipe: _Recipe,
    generator: torch.Generator,
    progress: Progress | None,
) -> float:
    """Returns the mean loss of the last tenth of the steps."""
    seen = _image_features(clip, pool, normalise)
    clip.fit_projection(seen[~pool.held_out[pool.clip]])
    features = F.normalize(clip.projection(seen), dim=-1)
    tokens = clip.tokenize(pool.sentences)
    holds = torch.zeros(len(pool.kinds), len(tokens), dtype=torch.bool).scatter_(1, pool.kinds, True)
    scale = torch.nn.Parameter(torch.tensor(math.log(5)))

    def contrast(index: Tensor) -> tuple[Tensor, Tensor]:
        group = pool.group[index]
        used = _sentences_of(group, pool, tokens, generator)
        text = F.normalize(_encode_sentences(clip, tokens[used], generator), dim=-1)
        loss = contrastive_loss(scale.clamp(max=math.log(100)).exp() * features[index] @ text.T, holds[group][:, used])
        return loss, loss

    clip.text.requires_grad_(True)
    loss = _descend([*clip.text.parameters(), scale], contrast, pool, recipe, generator, progress)
    clip.text.requires_grad_(False)
    _neutralise_unseen_words(clip.text.text_model.embeddings.token_embedding.weight, tokens)
    clip.fit_length(tokens)
    return loss


@torch.no_grad()
def _image_features(clip: LockedCLIP, pool: _Pool, normalise: _Normalise) -> Tensor:
    """What the image tower makes of all frames of a pool: (F, W)."""
    with bar("encoding", len(pool.frames), "frames") as encoding:
        found = []
        for frames in pool.frames.split(FRAMES_AT_ONCE):
            found.append(clip.image.encode_frames(normalise(frames.float() / 255)[None])[0])
            encoding.advance(len(frames))
    return torch.cat(found)


def _resnet(changes: dict[str, Any], image_size: int) -> tuple[ResNetBackbone, dict[str, Any], Encode]:
    """A new nano ResNet, its architecture, and what gives the features of frames."""
    architecture = {**NANO_RESNET, **changes}
    resnet = ResNetBackbone(architecture)
    return resnet, architecture, lambda frames: resnet.encode_frames(frames[None])[0]


def _vit(changes: dict[str, Any], image_size: int) -> tuple[ElementTimeSformer, dict[str, Any], Encode]:
    """A new nano ViT, as `_resnet`: a TimeSformer that sees single frames, and whose parts over time stay as new."""
    vit = ElementTimeSformer({**changes, "image_size": image_size}, [1], drop_path=0.0)
    vit.requires_grad_(False)
    for name, value in vit.image_parameters().items():
        value.requires_grad_(True)
        # The usual deviation of 0.02 suits widths of hundreds; a narrow ViT hardly learns from it.
        if value.ndim > 1 and "patch_embed" not in name:
            torch.nn.init.trunc_normal_(value, std=value.shape[-1] ** -0.5)
    return vit, vit.architecture, lambda frames: vit(frames[:, None])


IMAGE_NETWORKS: dict[str, Callable[[dict[str, Any], int], tuple[Any, dict[str, Any], Encode]]] = {
    "resnet": _resnet,
    "vit": _vit,
}


def _classes(sources: Sequence[tuple[FrameStore, Corpus]]) -> list[list[str]]:
    """The base classes of each data set."""
    return [store.classes("train") for store, _ in sources]


def _read_pool(
    sources: Sequence[tuple[FrameStore, Corpus]],
    split: str,
    side: int,
    held_out: float,
    max_frames: int,
    rng: np.random.Generator,
    captions: Sequence[str] = CAPTIONS,
) -> _Pool:
    if split != "train":
        raise UserError(f"pretraining on split {split!r}: only base classes (split 'train') may be used")
    clips = [[i for i, s in enumerate(store.splits) if s == split] for store, _ in sources]
    total = sum(map(len, clips))
    if not total:
        raise UserError(f"no clips of split {split!r} to pretrain on; check the index of the data sets")
    per_clip = max(1, max_frames // total)
    frames, group, clip_of_frame, kinds, clip_class, class_source = [], [], [], [], [], []
    held: list[bool] = []
    ids: dict[str, int] = {}
    for number, ((store, corpus), chosen) in enumerate(zip(sources, clips, strict=True)):
        names = sorted({store.labels[i] for i in chosen})
        _check_disjoint(store, split, names)
        first = len(class_source)
        class_source += [number] * len(names)
        for name_id, name in enumerate(names):
            for texts in _texts(corpus, name, captions):
                kinds.append([ids.setdefault(text, len(ids)) for text in texts])
            members = rng.permutation([i for i in chosen if store.labels[i] == name])
            test = set(members[: round(held_out * len(members))].tolist())
            for i in members.tolist():
                n = store.n_frames(i)
                positions = np.unique(np.linspace(0, n - 1, min(n, per_clip)).round().astype(int))
                frames.append(_resize(store.read(i, positions), side))
                phase = np.minimum(positions * PHASES // n, PHASES - 1)
                group.append(torch.from_numpy((first + name_id) * PHASES + phase))
                clip_of_frame.append(torch.full((len(positions),), len(held)))
                held.append(i in test)
                clip_class.append(first + name_id)
    return _Pool(
        frames=torch.cat(frames),
        group=torch.cat(group),
        clip=torch.cat(clip_of_frame),
        kinds=torch.tensor(kinds),
        sentences=list(ids),
        held_out=torch.tensor(held),
        clip_class=torch.tensor(clip_class),
        class_source=torch.tensor(class_source),
    )


def _texts(corpus: Corpus, name: str, captions: Sequence[str]) -> list[list[str]]:
    """The sentences of each phase of class `name`, one for each form of caption."""
    about = {"label": corpus.label(name), "description": corpus.global_text(name)}
    try:
        return [[form.format(**about, atomic=atomic) for form in captions] for atomic in corpus.atomic(name, PHASES)]
    except KeyError as error:
        raise unknown("field", error.args[0], [*about, "atomic"], "captions of the backbone (config)") from None


def _check_disjoint(store: FrameStore, split: str, names: list[str]) -> None:
    other = {label for label, s in zip(store.labels, store.splits, strict=True) if s != split}
    if shared := sorted(other & set(names)):
        raise UserError(
            f"class {shared[0]!r} is in split {split!r} and in another one; "
            "pretrain on a few-shot split, whose base classes are in no other"
        )


def _resize(frames: np.ndarray, side: int) -> Tensor:
    """(T, H, W, 3) uint8 -> (T, side, side, 3) uint8."""
    x = torch.from_numpy(frames).permute(0, 3, 1, 2).float()
    x = F.interpolate(x, (side, side), mode="bilinear", antialias=True, align_corners=False)
    return x.round().clamp(0, 255).byte().permute(0, 2, 3, 1).contiguous()


class _Normalise:
    """(n, S, S, 3) in [0, 1] -> (n, 3, S, S) with zero mean and unit deviation."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.mean, self.std = torch.tensor(mean), torch.tensor(std)

    def __call__(self, x: Tensor) -> Tensor:
        return ((x - self.mean) / self.std).permute(0, 3, 1, 2).contiguous()


def _augment(frames: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Random crop, contrast and brightness of each frame: (n, S, S, 3) uint8 -> (n, size, size, 3) in [0, 1].

    No flip: left and right mean something in the sentences.
    """
    n, free = len(frames), frames.shape[1] - size + 1
    corner = torch.randint(free, (2, n, 1), generator=generator) + torch.arange(size)
    x = frames[torch.arange(n)[:, None, None], corner[0][:, :, None], corner[1][:, None]].float() / 255
    contrast, shift = torch.rand(2, n, 1, 1, 1, generator=generator) - 0.5
    tint = 1 + 0.1 * (torch.rand(n, 1, 1, 3, generator=generator) - 0.5)
    return ((x - 0.5) * (1 + 0.4 * contrast) + 0.5 + 0.2 * shift).mul(tint).clamp(0, 1)


def _train(
    clip: CLIPBackbone,
    pool: _Pool,
    normalise: _Normalise,
    recipe: _Recipe,
    generator: torch.Generator,
    progress: Progress | None,
) -> float:
    """Returns the mean contrastive loss of the last tenth of the steps."""
    tokens = clip.tokenize(pool.sentences)
    holds = torch.zeros(len(pool.kinds), len(tokens), dtype=torch.bool).scatter_(1, pool.kinds, True)
    words = _word_table(tokens, holds)
    reader = _word_reader(clip.dim, words, generator)

    def contrast_and_words(index: Tensor) -> tuple[Tensor, Tensor]:
        _bound_scale(clip)
        group = pool.group[index]
        used = _sentences_of(group, pool, tokens, generator)
        frames = normalise(_augment(pool.frames[index], clip.image_size, generator))
        feature = clip.encode_frames(frames[None])[0]
        text = _encode_sentences(clip, tokens[used], generator)
        logits = clip.clip.logit_scale.exp() * F.normalize(feature, dim=-1) @ F.normalize(text, dim=-1).T
        contrast = contrastive_loss(logits, holds[group][:, used])
        said = F.binary_cross_entropy_with_logits(reader(feature), words[group], reduction="sum") / len(frames)
        return contrast + said, contrast

    clip.train()
    parameters = [*clip.parameters(), *reader.parameters()]
    loss = _descend(parameters, contrast_and_words, pool, recipe, generator, progress)
    _bound_scale(clip)
    _neutralise_unseen_words(clip.clip.text_model.embeddings.token_embedding.weight, tokens)
    clip.eval()
    return loss


def _sentences_of(group: Tensor, pool: _Pool, tokens: Tensor, generator: torch.Generator) -> Tensor:
    """Numbers of sentences that hold for frames of these groups, short ones first: of one kind for each class and step,
    so that few sentences go through the text tower."""
    kind = torch.randint(pool.kinds.shape[1], (len(pool.class_source),), generator=generator)
    used = pool.kinds[group, kind[group // PHASES]].unique()
    return used[(tokens[used] != 0).sum(1).argsort(stable=True)]


@torch.no_grad()
def _bound_scale(clip: CLIPBackbone) -> None:
    clip.clip.logit_scale.clamp_(max=math.log(100))  # as CLIP does


def _descend(
    parameters: list[torch.nn.Parameter],
    losses_of: Callable[[Tensor], tuple[Tensor, Tensor]],
    pool: _Pool,
    recipe: _Recipe,
    generator: torch.Generator,
    progress: Progress | None,
) -> float:
    """Minimise the first of the two losses that `losses_of` gives for the numbers of a batch of frames.

    Returns the mean of the second, the one to report, over the last tenth of the steps.
    """
    usable = torch.nonzero(~pool.held_out[pool.clip]).flatten()
    optimiser, schedule = _optimiser(parameters, recipe)
    reported: list[float] = []
    with bar("pretraining", recipe.steps, "steps") as pretraining:
        for step in range(recipe.steps):
            total, loss = losses_of(usable[torch.randint(len(usable), (recipe.batch,), generator=generator)])
            optimiser.zero_grad(set_to_none=True)
            total.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step()
            schedule.step()
            reported.append(loss.item())
            if not math.isfinite(reported[-1]):
                raise UserError(
                    f"pretraining diverged at step {step + 1} (loss {reported[-1]}); lower lr, now {recipe.lr}"
                )
            pretraining.advance(note=f"loss {reported[-1]:.3f}")
            if progress:
                progress(step + 1, recipe.steps, reported[-1])
    return float(np.mean(reported[-max(1, recipe.steps // 10) :]))


def _optimiser(
    parameters: list[torch.nn.Parameter], recipe: _Recipe
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """AdamW (no decay of gains, biases and the logit scale) with a linear rise and a cosine fall to zero."""
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, 0.98), fused=True)
    rise = max(1, round(recipe.warmup * recipe.steps))

    def factor(step: int) -> float:
        fall = max(0, step - rise) / max(1, recipe.steps - rise)
        return min((step + 1) / rise, 0.5 + 0.5 * math.cos(math.pi * fall))

    return optimiser, torch.optim.lr_scheduler.LambdaLR(optimiser, factor)


@torch.no_grad()
def _neutralise_unseen_words(table: Tensor, tokens: Tensor) -> None:
    """Make words of the vocabulary that no sentence had, random so far, mean "some word" as well; their `table` (words,
    W)."""
    unseen = torch.ones(len(table), dtype=torch.bool)
    unseen[tokens.unique()] = False
    unseen[: len(SPECIAL_TOKENS)] = False
    table[unseen] = table[SPECIAL_TOKENS.index(UNK)].clone()


def _encode_sentences(clip: CLIPBackbone | LockedCLIP, tokens: Tensor, generator: torch.Generator) -> Tensor:
    """Features (m, D) of tokens (m, L) sorted by length: in two halves, so that less work is padding."""
    parts = []
    for ids in tokens.chunk(2):
        ids = ids[:, : int((ids != 0).sum(1).max())]
        parts.append(clip.encode_tokens(_hide_words(ids, generator)))
    return torch.cat(parts)


def _hide_words(ids: Tensor, generator: torch.Generator) -> Tensor:
    """A tenth of the words replaced by the unknown token, so that it comes to mean "some word"."""
    hidden = (torch.rand(ids.shape, generator=generator) < 0.1) & (ids >= len(SPECIAL_TOKENS))
    return ids.masked_fill(hidden, SPECIAL_TOKENS.index(UNK))


def _word_table(tokens: Tensor, holds: Tensor) -> Tensor:
    """(groups, words) 0/1: the words that are said of some groups (class, phase) of frames and not of all."""
    said = torch.zeros(len(tokens), int(tokens.max()) + 1).scatter_(1, tokens, 1.0)
    said[:, : len(SPECIAL_TOKENS)] = 0
    words = (holds.float() @ said > 0).float()
    return words[:, (words.mean(0) > 0) & (words.mean(0) < 1)]


def _words_of(pool: _Pool) -> Tensor:
    """`_word_table` of all sentences of a pool."""
    tokens = build_tokenizer(pool.sentences, MAX_WORDS)(pool.sentences, padding=True, return_tensors="pt")["input_ids"]
    return _word_table(
        tokens, torch.zeros(len(pool.kinds), len(tokens), dtype=torch.bool).scatter_(1, pool.kinds, True)
    )


def _word_reader(dim: int, words: Tensor, generator: torch.Generator) -> torch.nn.Linear:
    """A linear map from frame features to the words said of the frame, for pretraining only.

    The contrastive loss alone leaves fresh towers on a plateau (or collapses them) for hundreds of steps.
    Predicting the bag of words (Joulin et al., ECCV 2016; compared with CLIP's loss in Radford et al., Figure
    2) gives the frame tower a signal that does not hang on the text tower.
    """
    reader = torch.nn.utils.skip_init(torch.nn.Linear, dim, words.shape[1])  # leaves the global generator alone
    with torch.no_grad():
        reader.weight.normal_(std=dim**-0.5, generator=generator)
        reader.bias.copy_(words.mean(0).logit())
    return reader


def contrastive_loss(logits: Tensor, positive: Tensor) -> Tensor:
    """Symmetric InfoNCE with soft targets; logits and positive are (n frames, m sentences).

    The target of a row (and of a column) is uniform over its positives; each must have one at least.
    """
    by_frame = positive / positive.sum(1, keepdim=True)
    by_text = positive / positive.sum(0, keepdim=True)
    loss_frame = -(by_frame * logits.log_softmax(1)).sum(1).mean()
    loss_text = -(by_text * logits.log_softmax(0)).sum(0).mean()
    return (loss_frame + loss_text) / 2


@torch.no_grad()
def _prompt_scores(clip: CLIPBackbone | LockedCLIP, pool: _Pool) -> Callable[[Tensor], Tensor]:
    """Frames of a clip (T, 3, S, S) -> (classes,): cosine of their mean feature and each class' first caption."""
    prompts = [pool.sentences[i] for i in pool.kinds[::PHASES, 0]]
    text = F.normalize(clip.encode_text(prompts), dim=-1)
    return lambda frames: text @ F.normalize(clip.encode_frames(frames[None])[0], dim=-1).mean(0)


def _class_scores(encode: Encode, classifier: torch.nn.Linear) -> Callable[[Tensor], Tensor]:
    """Frames of a clip (T, 3, S, S) -> (classes,): mean log-probability of each class, whatever the third."""

    def scores(frames: Tensor) -> Tensor:
        log = classifier(encode(frames)).log_softmax(-1)
        return log.unflatten(-1, (-1, PHASES)).logsumexp(-1).mean(0)

    return scores


@torch.no_grad()
def _held_out_top1(
    scores_of: Callable[[Tensor], Tensor], pool: _Pool, normalise: _Normalise, size: int
) -> dict[str, Any]:
    """Top-1 of held-out base clips (centre crop) among the classes of their data set; equal captions are one class."""
    clips = torch.nonzero(pool.held_out).flatten()
    if not len(clips):
        return {"clips": 0, "top1": None, "chance": None}
    prompts = pool.kinds[::PHASES, 0]  # one for each class
    edge = (pool.frames.shape[1] - size) // 2
    hits, chance = [], []
    for c in clips:
        x = pool.frames[pool.clip == c][:, edge : edge + size, edge : edge + size].float() / 255
        truth = pool.clip_class[c]
        rivals = pool.class_source == pool.class_source[truth]
        score = scores_of(normalise(x)).masked_fill(~rivals, -math.inf)
        hits.append(prompts[score.argmax()] == prompts[truth])
        chance.append(1 / rivals.sum().item())
    return {
        "clips": len(clips),
        "top1": float(torch.stack(hits).float().mean()),
        "chance": float(np.mean(chance)),
    }


def _write(
    backbone: CLIPBackbone | LockedCLIP | ResNetBackbone | ElementTimeSformer,
    report: dict[str, Any],
    start: float,
    folder: Path,
) -> dict[str, Any]:
    """All files of the model, or none: written beside `folder`, then renamed. Returns the report, now with its time."""
    report = {**report, "seconds": round(time.perf_counter() - start, 1)}
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        new = partial / "new"
        backbone.save(new)
        (new / "pretrain.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        if folder.exists():
            os.replace(folder, partial / "old")
        try:
            os.replace(new, folder)
        except BaseException:
            if (partial / "old").exists():
                os.replace(partial / "old", folder)
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return report
