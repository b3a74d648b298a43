"""A backbone with ResNetBackbone's interface and no depth, and random episodes, for the tests of the ResNet methods."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pipeline.compat import MODELS

BACKBONE = {"type": "StubResNet"}


@MODELS.register_module(force=True)
class StubResNet(nn.Module):
    """One strided convolution: a 32-pixel frame has a map of 4 x 4."""

    mean, std, image_size = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), None

    def __init__(self, dim: int = 16, stride: int = 8) -> None:
        super().__init__()
        self.dim = dim
        self.conv = nn.Conv2d(3, dim, stride, stride)

    def feature_maps(self, x: Tensor) -> Tensor:
        return self.conv(x.flatten(0, 1)).relu().unflatten(0, x.shape[:2])

    def encode_frames(self, x: Tensor) -> Tensor:
        return self.feature_maps(x).mean((-2, -1))


def episodes(count=2, way=3, shots=2, queries=4, frames=4, size=32, classes=7, seed=0) -> dict[str, Tensor]:
    """Arguments of `FewShotModel.loss`: shuffled labels, a random choice of base classes."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.arange(way).repeat_interleave(shots)
    return {
        "support": torch.randn(count, way * shots, frames, 3, size, size, generator=g),
        "query": torch.randn(count, queries, frames, 3, size, size, generator=g),
        "support_labels": torch.stack([labels[torch.randperm(len(labels), generator=g)] for _ in range(count)]),
        "query_labels": torch.randint(way, (count, queries), generator=g),
        "class_ids": torch.stack([torch.randperm(classes, generator=g)[:way] for _ in range(count)]),
        "episode": torch.arange(count),
    }


def by_class(videos: Tensor, labels: Tensor) -> Tensor:
    """Videos (M, ...) with labels (M,) -> one episode (1, N, K, ...)."""
    return torch.stack([videos[labels == c] for c in labels.unique()])[None]


def randn(*shape: int, seed: int = 0) -> Tensor:
    """Seeded normal numbers, float64."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def scramble(model: nn.Module, seed: int = 0) -> nn.Module:
    """Every parameter random, so that none is zero or one by its initialisation; evaluation mode, float64."""
    g = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        fan_in = parameter[0].numel() if parameter.dim() > 1 else 1
        parameter.data = torch.randn(parameter.shape, generator=g) / fan_in**0.5
    return model.double().eval()


def assert_gradients(model: nn.Module, losses: dict[str, Tensor], without: tuple[str, ...] = ()) -> None:
    """The losses are finite and reach just the trainable parameters, except those whose name ends in one `without`."""
    model.zero_grad()
    total = sum(value for name, value in losses.items() if name.startswith("loss_"))
    assert torch.isfinite(total)
    total.backward()
    for name, parameter in model.named_parameters():
        gradient = torch.zeros(1) if parameter.grad is None else parameter.grad
        assert torch.isfinite(gradient).all(), name
        assert (gradient.abs().max() > 1e-9) == (parameter.requires_grad and not name.endswith(without)), name
