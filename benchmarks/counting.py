"""Counts of work instead of seconds: they are the same on every machine, so a test can hold on to them."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

WAITING = {
    torch.ops.aten._local_scalar_dense.default: "item",
    torch.ops.aten.nonzero.default: "nonzero",
    torch.ops.aten._unique2.default: "unique",
    torch.ops.aten.unique_consecutive.default: "unique",
    torch.ops.aten.unique_dim.default: "unique",
    torch.ops.aten.masked_select.default: "masked_select",
    torch.ops.aten.equal.default: "equal",
}
"""Operations of which the host must know the result or its shape: on a GPU it waits there for all that is under way."""


class HostReads(TorchDispatchMode):
    """Counts, by name, the times that the host reads what a device holds: numbers (`item`, `int`, `if`), lists, shapes.

    They are counted on every device, so a test on a CPU tells what would wait on a GPU. `numpy` and `cpu` are not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __enter__(self) -> HostReads:
        self._tolist = Tensor.tolist

        def tolist(tensor: Tensor) -> Any:
            self.counts["tolist"] += 1
            return self._tolist(tensor)

        Tensor.tolist = tolist
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        Tensor.tolist = self._tolist
        super().__exit__(*error)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in WAITING:
            self.counts[WAITING[function]] += 1
        elif function is torch.ops.aten.index.Tensor and any(i is not None and i.dtype == torch.bool for i in args[1]):
            self.counts["mask"] += 1
        return function(*args, **(kwargs or {}))

    @property
    def total(self) -> int:
        """Reads of all kinds."""
        return self.counts.total()
