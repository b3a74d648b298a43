"""MemDPC (Han et al., ECCV 2020): a network learns to foretell videos out of a memory, then classes from few labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.model import BaseModel
from torch import Tensor, nn

from pipeline.compat import MODELS
from pipeline.datasets.elements import parse_elements
from pipeline.datasets.transforms import IMAGENET_MEAN, IMAGENET_STD, UNCHANGED, change_colours, draw_some_colours
from pipeline.errors import UserError
from pipeline.models.semi.model import Elements, SeFARModel, shape_of

SHAPE = {"width": 64, "image_size": 128}
CHANGES = 4  # of brightness, contrast, saturation and hue
CHANGED, SPLIT = 0.3, 0.25  # share of labelled clips whose colours change; of frames that show one channel, before that
GAIN = 0.1  # of the first, orthogonal weights of what foretells


class BasicBlock(nn.Module):
    """Two convolutions beside a shortcut; over time too where `deep`, over each frame by itself elsewhere."""

    def __init__(self, before: int, width: int, stride: tuple[int, int, int], deep: bool, signed: bool = False) -> None:
        super().__init__()
        size, padding = ((3, 3, 3), (1, 1, 1)) if deep else ((1, 3, 3), (0, 1, 1))
        self.conv1 = nn.Conv3d(before, width, size, stride, padding, bias=False)
        self.conv2 = nn.Conv3d(width, width, size, 1, padding, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm3d(width), nn.BatchNorm3d(width)
        self.signed, self.downsample = signed, nn.Sequential()
        if before != width or stride != (1, 1, 1):
            self.downsample = nn.Sequential(
                nn.Conv3d(before, width, 1, stride, bias=False), nn.BatchNorm3d(width)
            )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu())) + self.downsample(x)
        return out if self.signed else out.relu()


class ResNet2D3D(nn.Module):
    """ResNet-18 whose last two of four stages see time as well: clips (B, 3, T, H, W) -> (B, 4 * width, t, h, w).

    The last stage is as wide as the one before it, and no ReLU follows its last sum.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(3, width, (1, 7, 7), (1, 2, 2), (0, 3, 3), bias=False)
        self.bn1, self.pool = nn.BatchNorm3d(width), nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1))
        before, stages = width, ((width, 1, 1), (2 * width, 1, 2), (4 * width, 2, 2), (4 * width, 2, 2))
        for i, (wide, over_time, over_space) in enumerate(stages, start=1):
            stride, deep = (over_time, over_space, over_space), i > 2
            first = BasicBlock(before, wide, stride, deep)
            second = BasicBlock(wide, wide, (1, 1, 1), deep, signed=i == len(stages))
            self.add_module(f"layer{i}", nn.Sequential(first, second))
            before = wide
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")

    def stages(self, clips: Tensor) -> list[Tensor]:
        """The maps after each of the four stages."""
        maps = [self.pool(self.bn1(self.conv1(clips)).relu())]
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            maps.append(layer(maps[-1]))
        return maps[1:]

    def forward(self, clips: Tensor) -> Tensor:
        return self.stages(clips)[-1]


class PlaceGRU(nn.Module):
    """A gated recurrent unit of each place of a map by itself; dropout acts on its state, also as carried on."""

    def __init__(self, dim: int, dropout: float) -> None:
        super().__init__()
        self.reset_gate, self.update_gate, self.out_gate = (nn.Conv2d(2 * dim, dim, 1) for _ in range(3))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, state: Tensor) -> Tensor:
        """Input and state -> the next state, each (B, D, h, w)."""
        both = torch.cat((x, state), dim=1)
        reset, update = self.reset_gate(both).sigmoid(), self.update_gate(both).sigmoid()
        out = self.out_gate(torch.cat((x, reset * state), dim=1)).tanh()
        return self.dropout((1 - update) * state + update * out)

    def over(self, maps: Tensor) -> Tensor:
        """The state after the maps of N blocks, (B, N, D, h, w) -> (B, D, h, w); it begins with zeros."""
        state = torch.zeros_like(maps[:, 0])
        for block in maps.relu().unbind(1):
            state = self(block, state)
        return state


class ForetellingNetwork(nn.Module):
    """What is pretrained: the encoder of blocks, a unit for each direction of time, the memory, and what addresses it.

    Shapes: B videos, N blocks of t times, S blocks foretold, D = 4 * width, M slots, h x w places.
    """

    def __init__(self, width: int, slots: int, dropout: float) -> None:
        super().__init__()
        self.dim = 4 * width
        self.backbone = ResNet2D3D(width)
        self.forwards, self.backwards = PlaceGRU(self.dim, dropout), PlaceGRU(self.dim, dropout)
        self.address = nn.Sequential(nn.Conv2d(self.dim, self.dim, 1), nn.ReLU(), nn.Conv2d(self.dim, slots, 1))
        self.memory = nn.Parameter(torch.randn(slots, self.dim))
        for part in (self.forwards, self.backwards, self.address):
            for parameter in part.parameters():
                if parameter.ndim > 1:
                    nn.init.orthogonal_(parameter, GAIN)
                else:
                    nn.init.zeros_(parameter)

    def encode(self, blocks: Tensor) -> Tensor:
        """Blocks (B, N, 3, T, H, W), each seen alone -> features (B, N, D, t, h, w), of either sign."""
        return self.backbone(blocks.flatten(0, 1)).unflatten(0, blocks.shape[:2])

    def foretell(self, unit: PlaceGRU, maps: Tensor, steps: int) -> Tensor:
        """The maps that follow on those of some blocks, (B, N, D, h, w) -> (B, S, D, h, w): means of what the memory
        holds. Each is taken for seen before the next one is told."""
        state, told = unit.over(maps), []
        for step in range(steps):
            if step:
                state = unit(told[-1].relu(), state)
            weights = self.address(state).softmax(1)
            told.append(torch.einsum("bmhw,md->bdhw", weights, self.memory))
        return torch.stack(told, dim=1)

    def both_ways(self, features: Tensor, steps: int) -> list[tuple[Tensor, Tensor]]:
        """What is foretold and what comes, (B, S, D, h, w) each, from features (B, N, D, t, h, w) of blocks: of the
        last blocks, and of the first ones, told backwards in time."""
        maps, seen = features.mean(3), features.shape[1] - steps
        return [
            (self.foretell(unit, order[:, :seen], steps), order[:, seen:])
            for unit, order in ((self.forwards, maps), (self.backwards, maps.flip(1)))
        ]

    def context(self, features: Tensor) -> Tensor:
        """Both units' last states over all blocks, means over places: (B, N, D, t, h, w) -> (B, 2 * D).

        As released, what is negative is cut off before the mean over times here, and after it in foretelling.
        """
        maps = features.relu().mean(3)
        states = self.forwards.over(maps), self.backwards.over(maps.flip(1))
        return torch.cat([state.mean((-2, -1)) for state in states], dim=1)


def own_place(told: Tensor, true: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of finding a feature by what was foretold of it, among all features of a batch, and how often that
    is right. Both are (B, S, D, h, w); the scores are dot products as they are."""
    told, true = (maps.movedim(2, -1).flatten(0, -2) for maps in (told, true))
    scores, own = told @ true.T, torch.arange(len(told), device=told.device)
    return F.cross_entropy(scores, own), (scores.detach().argmax(-1) == own).float().mean()


@MODELS.register_module()
class MemDPC(SeFARModel):
    """Learns in two phases: on all training videos to foretell their blocks, then on labelled ones their classes.

    A video is N blocks of equally many frames, one element of the sampler. After the pretraining
    (`train.pretraining`) memory and address have no further use.

    Args:
        backbone: `source`, a shape: width of the first stage, image_size.
        classes: C.
        elements: number of frames.
        blocks: N.
        steps: blocks that are foretold, from those before them and backwards from those after them.
        slots: vectors in the memory.
        state_dropout: of the recurrent units.
        dropout: before the classifier.
        recolour: in training the colours of frames change: in pretraining those of each frame by itself.
        target_gradient: what is foretold learns to be so, too, as released; off, it stands still.
        test_normalised: clips of a test are normalised as those of the training are; off, as released, they are not.
    """

    phases = True

    def __init__(
        self,
        backbone: Mapping[str, Any],
        classes: int,
        elements: str | int = 40,
        blocks: int = 8,
        steps: int = 3,
        slots: int = 1024,
        state_dropout: float = 0.1,
        dropout: float = 0.9,
        recolour: bool = True,
        target_gradient: bool = True,
        test_normalised: bool = True,
    ) -> None:
        BaseModel.__init__(self)
        shape = shape_of(backbone["source"], SHAPE, "MemDPC's ResNet-18")
        self.lengths = parse_elements(elements)
        if len(self.lengths) != 1 or blocks < 1 or self.lengths[0] % blocks:
            raise UserError(
                f"MemDPC sees one element of blocks of equal length, and model.elements is {elements!r} with "
                f"{blocks} model.blocks; give a number of frames that is a multiple of the blocks"
            )
        if not 0 < steps < blocks:
            raise UserError(f"model.steps is {steps}; of {blocks} blocks (model.blocks) 1 to {blocks - 1} are foretold")
        self.network = ForetellingNetwork(shape["width"], slots, state_dropout)
        width = 2 * self.network.dim
        self.classifier = nn.Sequential(nn.BatchNorm1d(width), nn.Dropout(dropout), nn.Linear(width, classes))
        nn.init.orthogonal_(self.classifier[-1].weight)
        nn.init.zeros_(self.classifier[-1].bias)
        self.blocks, self.steps = blocks, steps
        self.recolour, self.target_gradient, self.test_normalised = recolour, target_gradient, test_normalised
        self.teacher, self.image_size = None, shape["image_size"]
        self.mean, self.std = IMAGENET_MEAN, IMAGENET_STD

    def init_weights(self) -> None:
        """Nothing: they are drawn."""

    def start_teacher(self) -> None:
        """There is none."""

    # ------------------------------------------------------------------------------------------- at test
    def predict(self, elements: Elements) -> Tensor:
        """Logits (B, C)."""
        return self.classifier(self.context(self._tested(elements[0])))

    def features(self, elements: Elements) -> Tensor:
        """The context that the classifier reads, (B, 1, 2 * D)."""
        return self.context(self._tested(elements[0]))[:, None]

    def context(self, clips: Tensor) -> Tensor:
        """Clips (B, N * T, 3, H, W) -> (B, 2 * D)."""
        return self.network.context(self.encode(clips))

    def encode(self, clips: Tensor) -> Tensor:
        """Clips (B, N * T, 3, H, W) -> the features of their blocks, (B, N, D, t, h, w)."""
        return self.network.encode(clips.unflatten(1, (self.blocks, -1)).transpose(2, 3))

    def _tested(self, clips: Tensor) -> Tensor:
        return clips if self.test_normalised else self._pixels(clips)

    # --------------------------------------------------------------------------------------- in training
    def loss(
        self, labelled: Elements | None = None, labels: Tensor | None = None, clips: Elements | None = None
    ) -> dict[str, Tensor]:
        """In the pretraining, with `clips` of any videos, the losses of foretelling in either direction and how often
        the right place is found; then those of labelled videos with labels (B,), and how many are right."""
        if clips is not None:
            return self.foretelling(self.encode(self._recoloured(clips[0], single_frames=True)))
        logits = self.classifier(self.context(self._recoloured(labelled[0], single_frames=False)))
        return {
            "loss_labelled": F.cross_entropy(logits, labels),
            "accuracy": (logits.detach().argmax(-1) == labels).float().mean(),
        }

    def foretelling(self, features: Tensor) -> dict[str, Tensor]:
        """Losses from the features of N blocks, (B, N, D, t, h, w)."""
        pairs = self.network.both_ways(features, self.steps)
        if not self.target_gradient:
            pairs = [(told, true.detach()) for told, true in pairs]
        (ahead, found), (back, found_back) = (own_place(*pair) for pair in pairs)
        return {"loss_forwards": ahead, "loss_backwards": back, "found": (found + found_back) / 2}

    def _pixels(self, clips: Tensor) -> Tensor:
        """Normalised clips as RGB in [0, 1]."""
        mean, std = self._statistics(clips)
        return clips * std + mean

    def _statistics(self, clips: Tensor) -> list[Tensor]:
        return [torch.tensor(values, device=clips.device)[:, None, None] for values in (self.mean, self.std)]

    def _recoloured(self, clips: Tensor, single_frames: bool) -> Tensor:
        """Clips (B, T, 3, H, W) in other colours: each frame by itself, some of them from one channel; or some clips.

        torch's global generator seeds it.
        """
        if not self.recolour:
            return clips
        rng = np.random.default_rng(int(torch.randint(2**63 - 1, ())))
        shown = self._pixels(clips)
        if single_frames:
            shown = one_channel(shown.flatten(0, 1), SPLIT, rng)[:, None]
        share = 1.0 if single_frames else CHANGED
        drawn = [draw_some_colours(rng, CHANGES) if rng.random() < share else UNCHANGED for _ in shown]
        shown = change_colours(shown.clamp(0, 1), torch.from_numpy(np.stack(drawn))).reshape(clips.shape)
        mean, std = self._statistics(clips)
        return (shown - mean) / std


def one_channel(frames: Tensor, share: float, rng: np.random.Generator) -> Tensor:
    """Frames (n, 3, H, W); about a `share` of them shows one of its channels, drawn for each, in place of all three."""
    channels = torch.from_numpy(rng.integers(3, size=len(frames))).to(frames.device)
    chosen = torch.from_numpy(rng.random(len(frames)) < share).to(frames.device)
    grey = frames[torch.arange(len(frames), device=frames.device), channels][:, None].expand_as(frames)
    return torch.where(chosen[:, None, None, None], grey, frames)
