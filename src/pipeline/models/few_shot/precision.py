"""In which numbers a training computes on a GPU (`cluster.precision`)."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.device import get_device
from torch import nn

from pipeline.models.few_shot.base import FewShotModel


def use_precision(model: nn.Module, wanted: str, anywhere: bool = False) -> str:
    """Have a training of `model` compute as `wanted`, as far as this machine can; returns what it computes in.

    bf16: the layers of a CLIP's frame tower, and adapters in them, compute in bfloat16 where autocast finds it safe,
    while the model trains; it is tested in float32. Weights, their gradients and moments, what goes from layer to
    layer, heads, matching, texts and losses stay float32. tf32: products of matrices round their factors to 10 bits.
    float32: neither. A model without such a tower, and a device that cannot, compute in float32.

    Args:
        anywhere: bf16 on a CPU, too, which is slower there: for comparisons.
    """
    cuda = torch.cuda.is_available()
    tf32 = wanted == "tf32" and cuda and torch.cuda.get_device_capability() >= (8, 0)
    torch.backends.cuda.matmul.allow_tf32 = tf32  # of the process: an earlier training may have set it
    if tf32:
        return "tf32"
    layers = model.frame_layers() if wanted == "bf16" and isinstance(model, FewShotModel) else []
    if not layers or not (anywhere or (cuda and torch.cuda.is_bf16_supported(including_emulation=False))):
        return "float32"
    for layer in layers:
        layer.forward = _lowered(layer.forward, model)
    return "bf16"


def _lowered(forward: Any, model: nn.Module) -> Any:
    device = get_device()

    def lowered(*arguments: Any, **named: Any) -> Any:
        with torch.autocast(device, torch.bfloat16, enabled=model.training):
            return forward(*arguments, **named)

    return lowered
