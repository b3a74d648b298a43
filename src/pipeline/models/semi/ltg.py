"""LTG (Xiao et al., CVPR 2022): two 3D networks, on colours and their changes in time, label videos for each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.model import BaseModel
from torch import Tensor, nn

from pipeline.compat import MODELS
from pipeline.datasets.elements import parse_elements
from pipeline.errors import UserError
from pipeline.models.backbones.resnet import IMAGENET_MEAN, IMAGENET_STD
from pipeline.models.semi.model import Elements, SeFARModel, shape_of
from pipeline.models.semi.timesformer import ElementTimeSformer

SHAPE = {"width": 64, "image_size": 224}
STD = 0.01  # of the first weights of linear layers


def temporal_gradient(frames: Tensor, following: Tensor) -> Tensor:
    """Frames less those that follow them, both 0..255, moved to 0..255 and rounded down: 127 where nothing changes."""
    return ((frames - following + 255) / 2).floor()


class ClipNetwork(nn.Module):
    """3D-ResNet-18 on clips, and a linear classifier of their mean feature behind dropout.

    The network is MMAction2's, with a max-pool over time after its first stage. `.dim` is the width of its feature.
    """

    def __init__(self, width: int, classes: int, dropout: float) -> None:
        super().__init__()
        self.backbone = MODELS.build(
            {
                "type": "ResNet3d", "depth": 18, "pretrained": None, "pretrained2d": False, "base_channels": width,
                "conv1_kernel": (3, 7, 7), "conv1_stride_t": 1, "pool1_stride_t": 1, "inflate": (1, 1, 1, 1),
                "spatial_strides": (1, 2, 2, 2), "temporal_strides": (1, 2, 2, 2), "out_indices": (0, 1, 2, 3),
                "norm_cfg": {"type": "BN3d", "eps": 1e-3, "requires_grad": True},
            }
        )  # fmt: skip
        self.backbone.init_weights()
        self.dim = 8 * width
        self.dropout, self.classifier = nn.Dropout(dropout), nn.Linear(self.dim, classes)
        nn.init.normal_(self.classifier.weight, std=STD)
        nn.init.zeros_(self.classifier.bias)

    def stages(self, clips: Tensor) -> Sequence[Tensor]:
        """(B, 3, T, H, W) -> the maps after each of four stages, (B, C, t, h, w)."""
        return self.backbone(clips)

    def classify(self, last: Tensor) -> Tensor:
        """Maps of the last stage -> logits (B, C)."""
        return self.classifier(self.dropout(pooled(last)))


def pooled(maps: Tensor) -> Tensor:
    """(B, C, t, h, w) -> (B, C)."""
    return maps.mean((-3, -2, -1))


def projection(dim: int) -> nn.Sequential:
    """Three linear layers without bias, each with BatchNorm, the last one without gains."""
    layers: list[nn.Module] = []
    for _ in range(2):
        layers += [nn.Linear(dim, dim, bias=False), nn.BatchNorm1d(dim), nn.ReLU()]
    layers += [nn.Linear(dim, dim, bias=False), nn.BatchNorm1d(dim, affine=False)]
    for layer in layers:
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=STD)
    return nn.Sequential(*layers)


def contrast(one: Tensor, other: Tensor, temperature: float) -> Tensor:
    """InfoNCE of rows (n, D) that belong together, both ways."""
    scores = F.normalize(one, dim=-1) @ F.normalize(other, dim=-1).T / temperature
    own = torch.arange(len(scores), device=scores.device)
    return (F.cross_entropy(scores, own) + F.cross_entropy(scores.T, own)) / 2


def alignment(colours: Sequence[Tensor], changes: Sequence[Tensor]) -> Tensor:
    """Sum over the stages of 1 - the mean cosine of their channels; the second network gets no gradient."""
    return sum(
        1 - F.cosine_similarity(one, other.detach(), dim=1).mean() for one, other in zip(colours, changes, strict=True)
    )


@MODELS.register_module()
class LTG(SeFARModel):
    """A network on colours, which alone is tested, and one on temporal gradients.

    Their mean probability labels unlabelled videos, whose strong views either learns from; the first is aligned with
    the second at every stage, and both are contrasted with each other. Pseudo-labels come out of the same forward pass
    as all else, with its batch statistics and dropout, as released.

    An element shows each of its frames and the one that follows (`frames.elements: pairs`).

    Args:
        backbone: `source`, a shape: width of the first stage, image_size.
        classes: C.
        elements: number of frames.
        dropout: before the classifiers.
        threshold: confidence from which a pseudo-label counts.
        temperature: of the contrast.
        unlabelled_from: share of the training after which pseudo-labels are learnt from.
    """

    def __init__(
        self,
        backbone: Mapping[str, Any],
        classes: int,
        elements: str | int = 8,
        dropout: float = 0.5,
        threshold: float = 0.3,
        temperature: float = 0.5,
        unlabelled_from: float = 1 / 6,
    ) -> None:
        BaseModel.__init__(self)
        shape = shape_of(backbone["source"], SHAPE, "a 3D-ResNet-18")
        self.lengths = parse_elements(elements)
        if len(self.lengths) != 1:
            raise UserError(f"LTG sees one element, and model.elements is {elements!r}; give a number of frames")
        self.network = ClipNetwork(shape["width"], classes, dropout)
        self.changes = ClipNetwork(shape["width"], classes, dropout)
        self.projections = nn.ModuleList(projection(self.network.dim) for _ in range(2))
        self.threshold, self.temperature, self.unlabelled_from = threshold, temperature, unlabelled_from
        self.teacher, self.image_size = None, shape["image_size"]
        self.mean, self.std = ElementTimeSformer.mean, ElementTimeSformer.std

    def init_weights(self) -> None:
        """Nothing: they are drawn."""

    def start_teacher(self) -> None:
        """There is none."""

    def split(self, element: Tensor) -> tuple[Tensor, Tensor]:
        """An element (B, 2T, 3, H, W), each frame and the one that follows -> colours and temporal gradients, each
        (B, 3, T, H, W), normalised as of ImageNet."""
        pixels = ((element * self.std[0] + self.mean[0]) * 255).round()
        shown, following = pixels[:, 0::2], pixels[:, 1::2]
        mean, std = (
            torch.tensor(value, device=element.device)[:, None, None] * 255 for value in (IMAGENET_MEAN, IMAGENET_STD)
        )
        both = (shown, temporal_gradient(shown, following))
        return tuple(((clip - mean) / std).transpose(1, 2) for clip in both)

    def predict(self, elements: Elements) -> Tensor:
        """Logits (B, C) of the network on colours."""
        return self.network.classify(self.network.stages(self.split(elements[0])[0])[-1])

    def features(self, elements: Elements) -> Tensor:
        """The mean feature of that network, (B, 1, D)."""
        return pooled(self.network.stages(self.split(elements[0])[0])[-1])[:, None]

    def loss(
        self,
        labelled: Elements,
        labels: Tensor,
        weak: Elements | None = None,
        strong: Elements | None = None,
        progress: float = 1.0,
        draws: Any = None,
    ) -> dict[str, Tensor]:
        """Losses of labelled videos with labels (B,), and of a weak and a strong view of unlabelled ones."""
        clips = torch.cat([views[0] for views in (labelled, weak, strong) if views is not None])
        colours, changes = self.split(clips)
        stages = self.network.stages(colours), self.changes.stages(changes)
        return self.losses(*stages, labels, 0 if weak is None else len(weak[0]), progress > self.unlabelled_from)

    def losses(
        self, colours: Sequence[Tensor], changes: Sequence[Tensor], labels: Tensor, unlabelled: int, started: bool
    ) -> dict[str, Tensor]:
        """Losses from the maps of each stage; their rows are the labelled clips, the weak and the strong ones."""
        logits = self.network.classify(colours[-1]), self.changes.classify(changes[-1])
        known, weak = len(labels), len(labels) + unlabelled
        losses = {
            "loss_labelled": sum(F.cross_entropy(rows[:known], labels) for rows in logits) / 2,
            "loss_aligned": alignment([x[:weak] for x in colours], [x[:weak] for x in changes]),
            "accuracy": (logits[0][:known].detach().argmax(-1) == labels).float().mean(),
        }
        projected = [
            project(pooled(maps[-1]))[:weak] for project, maps in zip(self.projections, (colours, changes), strict=True)
        ]
        losses["loss_contrast"] = contrast(*projected, self.temperature)
        if unlabelled:
            told = (sum(rows[known:weak].detach() for rows in logits) / 2).softmax(-1)
            confidence, pseudo = told.max(-1)
            counted = (confidence >= self.threshold).float() * float(started)
            each = [F.cross_entropy(rows[weak:], pseudo, reduction="none") for rows in logits]
            losses["loss_unlabelled"] = (sum(each) * counted).sum() / (2 * unlabelled)
            losses["confidence"] = confidence.mean()
        return losses
