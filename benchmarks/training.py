"""One step of training: what each measure for speed or memory changes, at the width of the demo and of ViT-B/16."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.lines import Line, alternating, peak, timed
from pipeline.errors import UserError
from pipeline.models.backbones.clip import VIT_B_16
from pipeline.models.backbones.nano_clip import EOS, SPECIAL_TOKENS, nano_config
from pipeline.models.few_shot.base import FewShotModel
from pipeline.models.few_shot.clip_baselines import Otam
from pipeline.models.few_shot.compiled import compile_layers
from pipeline.models.few_shot.task_adapter import TaskAdapter
from pipeline.tasks.few_shot.stored_views import Tokens

TOPIC = "3 training"
BASE_CLASSES, SENTENCES, WORDS = 64, 3, 16


class Width(NamedTuple):
    """A size of CLIP, and the episode of a step: `way` classes of one video, `queries` of T `frames`, `side` pixels.

    repeats: of each measurement, of which the least counts; 0: one, after the one that measures the memory.
    """

    name: str
    backbone: Any
    side: int
    way: int
    queries: int
    frames: int
    repeats: int


WIDTHS = (
    Width("nano", nano_config(64), 64, 5, 5, 8, 3),
    Width("ViT-B/16", VIT_B_16, 224, 2, 1, 1, 0),
)


def episode(width: Width) -> dict[str, Tensor]:
    """One episode of random frames, as the loader gives it."""
    generator = torch.Generator().manual_seed(0)
    pixels = (width.frames, 3, width.side, width.side)
    return {
        "support": torch.randn(1, width.way, *pixels, generator=generator),
        "query": torch.randn(1, width.queries, *pixels, generator=generator),
        "support_labels": torch.arange(width.way)[None],
        "query_labels": torch.arange(width.queries)[None],
        "class_ids": torch.arange(width.way)[None] * 2,
        "episode": torch.zeros(1, dtype=torch.long),
    }


class Step:
    """A step of SGD whose rate is 0, so that every step is the same one; gives the loss."""

    def __init__(self, model: FewShotModel, batch: dict[str, Tensor], autocast: torch.dtype | None = None) -> None:
        self.model, self.batch, self.autocast = model.train(), batch, autocast
        self.optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.0)

    def __call__(self) -> Tensor:
        with torch.autocast("cpu", self.autocast) if self.autocast else nullcontext():
            losses = self.model(mode="loss", **self.batch)
        total = sum(value for name, value in losses.items() if name.startswith("loss"))
        total.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return total.detach()


def measure(widths: tuple[Width, ...] = WIDTHS, compiled: bool = True) -> list[Line]:
    """Lines of each measure at each width."""
    lines: list[Line] = []
    for width in widths:
        lines += frozen_trunk(width)
        lines += stored_tokens(width)
        lines += texts_of_the_batch(width)
        lines += attention_kernel(width)
        lines += checkpointing(width)
        lines += half_precision(width)
        if compiled:
            lines += compilation(width)
    return lines


def _compare(
    what: str, width: Width, plain: Callable[[], Tensor], fast: Callable[[], Tensor], tolerance: float = 1e-4,
    note: str = "",
) -> Iterator[Line]:  # fmt: skip
    """Lines of time and of peak memory of two steps that should give the same."""
    (plain_memory, first), (fast_memory, second) = peak(plain), peak(fast)
    times = alternating((plain, fast), width.repeats) if width.repeats else [timed(step)[0] for step in (plain, fast)]
    equal = torch.allclose(first.float(), second.float(), rtol=tolerance, atol=tolerance)
    what = f"{what}, {width.name}"
    note = note or "memory: gradients included"
    yield Line(TOPIC, f"{what}: time of a step", *times, equal=equal, note="" if note.startswith("memory") else note)
    yield Line(TOPIC, f"{what}: memory of a step", plain_memory, fast_memory, unit="MB", note=note)


def _adapter(width: Width, **settings: Any) -> TaskAdapter:
    """Task-Adapter++ on random weights, with the texts of base classes of random words."""
    torch.manual_seed(0)
    settings = {"layers": 2, "order_layers": 8, "alignment": "none", "frames": width.frames, **settings}
    model = TaskAdapter({"source": width.backbone}, **settings)
    config = model.clip.config.text_config
    end = SPECIAL_TOKENS.index(EOS) if width.name == "nano" else config.eos_token_id
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(4, config.vocab_size - 2, (BASE_CLASSES, SENTENCES, WORDS), generator=generator)
    ids[ids == end] += 1
    ids[..., -1] = end
    with torch.no_grad():
        tokens, ends = model.text.trunk(model.clip, ids)
    model.register_buffer("base_tokens", tokens, persistent=False)
    model.register_buffer("base_ends", ends, persistent=False)
    return model


def frozen_trunk(width: Width) -> Iterator[Line]:
    """The temporal embedding where the adapters begin, or at the input, which sends the gradient through all layers."""
    batch = episode(width)
    plain, fast = (Step(_adapter(width, temporal_embedding=place), batch) for place in ("input", "adapters"))
    return _compare("frozen trunk without autograd (Task-Adapter++, L = 2)", width, plain, fast)


def stored_tokens(width: Width) -> Iterator[Line]:
    """The tokens of the videos read from a file, or the layers below the adapters run on their frames."""
    batch, model = episode(width), _adapter(width)
    plain, rest = Step(model, batch), Step(model, batch)
    tokens = model.trunk(torch.cat([batch["support"][0], batch["query"][0]])).numpy()
    with tempfile.TemporaryDirectory() as folder:
        stored = Tokens(Path(folder), 1, tokens.shape[1:], {(i, 0): i for i in range(len(tokens))})
        tokens.tofile(stored.path(0))

        def fast() -> Tensor:
            read = torch.stack([stored.read(i, 0) for i in range(len(tokens))])[None]
            rest.batch = batch | {"support": read[:, : width.way], "query": read[:, width.way :]}
            return rest()

        note = f"memory: gradients included; a view takes {stored.size / 1e6:.2g} MB of the disk"
        yield from _compare("stored tokens, not the trunk (Task-Adapter++, L = 2)", width, plain, fast, note=note)


def texts_of_the_batch(width: Width) -> Iterator[Line]:
    """The adapted text tower for the classes of the episode, or for all base classes."""
    model = _adapter(width, layers=0).train()
    ids = torch.arange(width.way)[None] * 2

    def features(ids: Tensor, places: Tensor) -> Tensor:
        texts = model.class_texts(ids)[0][places]
        texts.square().sum().backward()
        model.zero_grad()
        return texts.detach()

    everything = torch.arange(BASE_CLASSES)[None]
    plain, fast = partial(features, everything, ids[0]), partial(features, ids, torch.arange(width.way))
    what = f"text tower for {width.way} classes of an episode, not all {BASE_CLASSES}"
    return _compare(what, width, plain, fast, note="text tower alone, forward and backward")


def _otam(width: Width, **backbone: Any) -> Otam:
    torch.manual_seed(0)
    return Otam({"source": width.backbone, **backbone})


def attention_kernel(width: Width) -> Iterator[Line]:
    """PyTorch's fused attention, or matrix products and a softmax."""
    batch = episode(width)
    plain, fast = (Step(_otam(width, attention=kernel), batch) for kernel in ("eager", "sdpa"))
    return _compare("SDPA attention (OTAM, all of CLIP trained)", width, plain, fast)


def checkpointing(width: Width) -> Iterator[Line]:
    """The activations of the frame tower worked out again in the backward pass, or kept."""
    batch = episode(width)
    plain, fast = (Step(_otam(width, activation_checkpointing=on), batch) for on in (False, True))
    note = "saves memory and costs time: key activation_checkpointing"
    return _compare("activation checkpointing (OTAM)", width, plain, fast, note=note)


def half_precision(width: Width) -> Iterator[Line]:
    """bfloat16 by autocast, or float32."""
    batch, model = episode(width), _otam(width)
    note = "equal: loss to 5 %; pays where the processor has bf16 units"
    return _compare("bf16 (OTAM)", width, Step(model, batch), Step(model, batch, torch.bfloat16), 0.05, note)


def compilation(width: Width) -> Iterator[Line]:
    """Each layer of the frame tower compiled (`torch.compile`), or as it is."""
    batch, plain, fast = episode(width), _otam(width), _otam(width)
    try:
        compile_layers(fast)
    except UserError as error:  # no compiler on this machine
        yield Line(TOPIC, f"torch.compile (OTAM), {width.name}", None, 0.0, note=str(error))
        return
    step = Step(fast, batch)
    seconds, _ = timed(step)
    note = f"the first step, which compiles, took {seconds:.0f} s"
    yield from _compare("torch.compile of the layers (OTAM)", width, Step(plain, batch), step, 1e-3, note)
