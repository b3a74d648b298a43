"""How far a step of ViT-B/16 is from what the machine's matrix products and memory allow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.lines import Line, least
from benchmarks.training import WIDTHS, Step, Width, _otam, episode

TOPIC = "8 floor"


class Traffic(TorchDispatchMode):
    """Adds up the bytes that each operation reads and writes, views left out: what moves if nothing is fused."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if not function.is_view and function not in ALLOCATING:
            tensors = [x for x in tree_leaves((args, kwargs, result)) if isinstance(x, Tensor)]
            self.bytes += sum(x.numel() * x.element_size() for x in tensors)
        return result


ALLOCATING = {torch.ops.aten.empty.memory_format, torch.ops.aten.empty_like.default, torch.ops.aten.detach.default}


def measure(width: Width = WIDTHS[1], side: int = 1536, copied: int = 2**26) -> list[Line]:
    """Lines of a test and of a training step, plain: the step, fast: its floor at the machine's rates.

    The rates are measured before the steps and after them; the better ones count.
    """
    model, batch = _otam(width), episode(width)
    clips = torch.cat((batch["support"], batch["query"]), dim=1)[0]

    @torch.inference_mode()
    def test() -> Tensor:
        return model.encode(clips)

    frames = clips.shape[0] * clips.shape[1]
    steps = {f"test, {frames} frames": test, f"training step (OTAM), {frames} frames": Step(model, batch)}
    before = rates(side, copied)
    found = {what: (least(step, 1), *count(step)) for what, step in steps.items()}
    product, copy = (max(pair) for pair in zip(before, rates(side, copied), strict=True))
    return [_line(f"{width.name}, {what}", *numbers, product, copy) for what, numbers in found.items()]


def rates(side: int, copied: int) -> tuple[float, float]:
    """FLOP a second in products of `side` x `side` float32 matrices; bytes a second in copies of `copied` numbers."""
    one, two = torch.randn(side, side), torch.randn(side, side)
    source, target = torch.ones(copied), torch.empty(copied)
    product = 2 * side**3 / least(lambda: one @ two, 5)
    return product, 2 * 4 * copied / least(lambda: target.copy_(source), 5)


def _line(what: str, seconds: float, flops: int, traffic: int, product: float, copy: float) -> Line:
    compute, moved = flops / product, traffic / copy
    note = (
        f"{flops / 1e9:.0f} GFLOP at {product / 1e9:.0f} GFLOP/s; {traffic / 1e9:.1f} GB, if no operations are fused, "
        f"at {copy / 1e9:.1f} GB/s = {moved:.2f} s; products alone are {100 * compute / seconds:.0f} % of the step"
    )
    return Line(TOPIC, f"{what}: step, and the floor of its products", seconds, compute, note=note)


def count(step: Callable[[], object]) -> tuple[int, int]:
    """FLOPs, and bytes that all operations read and write, of one step."""
    counter = FlopCounterMode(display=False)
    with counter:
        step()
    traffic = Traffic()
    with traffic:
        step()
    return counter.get_total_flops(), traffic.bytes
