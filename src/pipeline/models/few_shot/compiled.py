"""`torch.compile` for the layers of the frame tower (`cluster.compile`)."""

from __future__ import annotations

import torch
from mmengine.device import get_device
from torch import nn

from pipeline.errors import UserError
from pipeline.models.few_shot.base import FewShotModel


def compile_layers(model: nn.Module) -> None:
    """Compile the layers of the frame tower in place, each on its own: they are alike, so few compilations serve all.

    The weights keep their names, so checkpoints are those of a plain model, and what is random stays what it is. A
    model without such layers is left alone.

    Raises:
        UserError: `torch.compile` does not work on this machine.
    """
    layers = model.frame_layers() if isinstance(model, FewShotModel) else []
    if not layers:
        return
    torch.compiler.reset()  # what an earlier training of this process compiled would count against a limit of this one
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.ones(8, device=get_device()))
    except Exception as error:  # each backend fails with exceptions of its own
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"cluster.compile: torch.compile does not work on this machine ({reason:.160}); install a C++ compiler "
            "(g++; for a GPU Triton as well), or set compile: false"
        ) from error
    for layer in layers:
        layer.compile(options={"fallback_random": True})
