"""How fast a machine computes, reads stored frames and copies them to its device: what `plan` turns work into hours by.

`python -m pipeline bench-gpu` measures this machine within a minute and keeps what it finds in `results/gpu.json`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, PositiveFloat

from pipeline.config import parse
from pipeline.errors import UserError
from pipeline.files import read_json, write_json
from pipeline.workspace import Workspace

if TYPE_CHECKING:
    import torch

TERA = 1e12
ITEM = 5 * 6 * 8 * 224 * 224 * 3  # bytes of an item of LGA: 30 clips of 8 frames
VISION: Mapping[str, Any] = {"patch_size": 16, "num_hidden_layers": 1}  # a layer of ViT-B/16


class Rates(BaseModel):
    """Rates of a machine."""

    device: str
    gpu: bool
    flops: dict[str, PositiveFloat]
    """Operations a second of a layer of ViT-B/16, forwards and backwards, by the numbers that it computes in."""
    frames: PositiveFloat
    """Stored frames of 256 x 256 that one core decodes and cuts in a second."""
    products: dict[str, PositiveFloat] = {}
    """Operations a second of a product of two square matrices, likewise."""
    copied: float = 0.0
    """Bytes a second from pinned memory to the device; 0: not measured."""

    def computed(self, numbers: str) -> float:
        """Operations a second in `numbers`; where they were not measured, in float32."""
        return self.flops.get(numbers, self.flops["float32"])

    def __str__(self) -> str:
        return ", ".join(f"{name} {rate / TERA:.3g}" for name, rate in self.flops.items()) + f" TFLOP/s ({self.device})"


# Of printed peaks 0.4 with tensor cores (TF32 156, bf16 312) and 0.8 without (19.5): assumptions. Frames: benchmarks.
STATED = Rates(
    device="an A100, as stated", gpu=True, flops={"float32": 15e12, "tf32": 60e12, "bf16": 120e12}, frames=3000
)


def rates_for(ws: Workspace, asked: str = "") -> Rates:
    """The rates by which a plan is costed.

    asked: TFLOP/s, whatever is computed in; "measured": those of `results/gpu.json`, though they be a CPU's; empty:
    those if they are a GPU's, else `STATED`. Raises UserError where it is none of these, or nothing was measured.
    """
    content = read_json(ws.rates)
    measured = parse(Rates, content, str(ws.rates)) if content is not None else None
    if asked == "measured":
        if measured is None:
            raise UserError(f"--rate measured: there is no {ws.rates}; run `python -m pipeline bench-gpu`")
        return measured
    if not asked:
        return measured if measured and measured.gpu else STATED
    try:
        rate = float(asked) * TERA
    except ValueError:
        rate = 0.0
    if not 0 < rate < float("inf"):
        raise UserError(f"--rate is {asked!r}; give TFLOP/s above 0, or measured")
    return STATED.model_copy(update={"device": "as given", "flops": dict.fromkeys(STATED.flops, rate)})


# ------------------------------------------------------------------------------------------------- measuring
def measure(seconds: float = 4.0, vision: Mapping[str, Any] = VISION, frames: int = 0, side: int = 0) -> Rates:
    """Measure this machine: each of at most eight rates for `seconds`, on its GPU or, without one, on its CPU.

    vision: the layer, as of CLIP's configuration. frames: that it sees at a time; side: of the matrices. 0: as many as
    keep the device busy.
    """
    import torch

    gpu = torch.cuda.is_available()
    device = torch.device("cuda" if gpu else "cpu")
    numbers = ("float32", "tf32", "bf16") if gpu else ("float32", "bf16")
    frames, side = frames or (240 if gpu else 2), side or (8192 if gpu else 1024)
    layer, products = {}, {}
    for name in numbers:
        torch.backends.cuda.matmul.allow_tf32 = name == "tf32"
        lowered = torch.autocast(device.type, torch.bfloat16, enabled=name == "bf16")
        products[name] = _products(side, torch.bfloat16 if name == "bf16" else torch.float32, device, seconds)
        layer[name] = _layer(vision, frames, lowered, device, seconds)
    torch.backends.cuda.matmul.allow_tf32 = False
    return Rates(
        device=torch.cuda.get_device_name() if gpu else f"a CPU, {torch.get_num_threads()} threads", gpu=gpu,
        flops=layer, products=products, frames=_frames(seconds), copied=_copied(device, seconds),
    )  # fmt: skip


def keep(ws: Workspace, rates: Rates) -> None:
    """Write `results/gpu.json`."""
    write_json(ws.rates, rates.model_dump(mode="json"))


def _rate(work: Callable[[], object], amount: float, seconds: float, clock: Callable[[], float]) -> float:
    """`amount` a second of `work`, repeated for so long after one that warms up."""
    work()
    count, began = 0, clock()
    while not count or clock() - began < seconds:
        work()
        count += 1
    return amount * count / max(clock() - began, 1e-9)


def _clock() -> float:
    """Wall time when the device has done all that it was given."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def _products(side: int, dtype: torch.dtype, device: torch.device, seconds: float) -> float:
    import torch

    one, two = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    return _rate(lambda: one @ two, 2.0 * side**3, seconds, _clock)


def _layer(vision: Mapping[str, Any], frames: int, lowered: Any, device: torch.device, seconds: float) -> float:
    """Operations a second of the frame tower of a small CLIP, forwards and backwards."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from pipeline.models.backbones.clip import CLIPBackbone

    text = {"num_hidden_layers": 1, "vocab_size": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    tower = CLIPBackbone({"vision_config": dict(vision), "text_config": text}).to(device).train()
    size = tower.clip.config.vision_config.image_size
    clip = torch.randn(1, frames, 3, size, size, device=device)

    def step() -> None:
        with lowered:
            loss = tower.encode_frames(clip).float().square().mean()
        loss.backward()

    with FlopCounterMode(display=False) as counted:
        step()
    return _rate(step, counted.get_total_flops(), seconds, _clock)


def _frames(seconds: float) -> float:
    """Stored frames that a core decodes and cuts in a second; of patterned pictures."""
    import cv2
    import numpy as np

    from pipeline.datasets.frames import FramePolicy, decode_jpeg, encode_frame
    from pipeline.datasets.transforms import ClipTransform

    rng = np.random.default_rng(0)
    picture = cv2.resize(rng.integers(0, 255, (48, 64, 3), np.uint8), (320, 240), interpolation=cv2.INTER_CUBIC)
    stored = encode_frame(FramePolicy(), picture)
    cut = ClipTransform(224, train=True)

    def read() -> None:
        cut(np.stack([decode_jpeg(stored) for _ in range(8)]), rng)

    return _rate(read, 8.0, seconds, time.process_time)


def _copied(device: torch.device, seconds: float) -> float:
    """Bytes a second of a copy of an item to the device; on a CPU within its memory."""
    import torch

    item = torch.zeros(ITEM, dtype=torch.uint8, pin_memory=device.type == "cuda")
    there = torch.empty(ITEM, dtype=torch.uint8, device=device)
    return _rate(lambda: there.copy_(item, non_blocking=True), float(ITEM), seconds, _clock)


__all__ = ["STATED", "Rates", "keep", "measure", "rates_for"]
