"""SeFAR's training: a student on labelled and perturbed videos, a slowly following teacher on unlabelled ones.

With other settings it is SVFormer, FixMatch, or plain supervised training (see config/methods).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.model import BaseModel
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from pipeline.compat import MODELS
from pipeline.datasets.elements import parse_elements
from pipeline.errors import UserError, unknown
from pipeline.models.semi import timesformer  # noqa: F401  (registers it)
from pipeline.models.semi.fusion import ElementNetwork
from pipeline.models.semi.losses import MIX_LOSSES, mixed_loss, ramp_up, unlabelled_loss
from pipeline.models.semi.mixing import hardened, mix_patches, mix_targets, tube_mask
from pipeline.models.semi.perturb import PERTURBATIONS, draw_orders, drop_channels, perturb
from pipeline.models.semi.regulation import Pseudo, adaptive_weight, pseudo_labels, threshold_weight

Elements = Sequence[Tensor]
"""The elements of B videos, the context last: each (B, T, 3, H, W), normalised."""


def shape_of(source: Any, usual: Mapping[str, int], network: str) -> dict[str, int]:
    """The `source` of a backbone that starts from random weights: the `usual` shape of a network with what differs.

    Raises:
        UserError: it is no shape, or has an unknown key.
    """
    if not isinstance(source, Mapping) or set(source) - set(usual):
        odd = min(set(source) - set(usual)) if isinstance(source, Mapping) else str(source)
        raise unknown("key", odd, usual, f"the shape of {network}, which starts from random weights")
    return {**usual, **source}


class Draws(NamedTuple):
    """All that is random in the losses of a step on B unlabelled videos, but for dropout.

    For each element: orders (B, T), the frame shown at each position; kept (B, 3), colour channels that are not
    dropped; partners (B,), the video that each is mixed with; masks (P,), patches that stay. share: lambda.
    """

    orders: list[Tensor]
    kept: list[Tensor]
    partners: list[Tensor]
    masks: list[Tensor]
    share: float


@MODELS.register_module()
class SeFARModel(BaseModel):
    """A video classifier trained on labelled and unlabelled videos.

    Shapes: B labelled, B' unlabelled videos, T frames of an element, C classes, P patches, U passes of the teacher.

    Args:
        backbone: arguments of `ElementTimeSformer` (source, drop_path, activation_checkpointing).
        classes: C.
        elements: the combination, such as "2-2-4"; "8" is one element.
        head: fusion | linear (one element, SVFormer).
        dropout: in the fusion head; it also makes the teacher's passes differ.
        perturbation: a key of PERTURBATIONS.
        channel_dropout: probability of blanking a colour channel of a strong clip.
        threshold: confidence from which a pseudo-label counts; without it adaptive regulation weighs them.
        passes: U, with adaptive regulation; with a threshold the teacher predicts once, without dropout.
        mixing: both parameters of the Beta distribution of lambda; 0 for no mixing.
        harden: the mixing target of a confident video is one-hot (SVFormer).
        one_partner: all elements of a video are mixed with those of one other video. Off as in SeFAR's released
            code, each element meets another one and the target counts only the context's.
        mix_loss: logits | probabilities, see `mixed_loss`.
        unlabelled_weight: gamma_1.
        mixed_weight: gamma_2.
        ramp: the losses on unlabelled videos grow with xi (SeFAR); off, they are there at once (SVFormer).
        ema: decay of the teacher; 0 makes it the student itself (FixMatch).

    Raises:
        UserError: settings that are unknown or contradict each other.

    `start_teacher` makes the teacher, a frozen copy, when the supervised epochs are over; `update_teacher` follows
    each training step. The teacher takes no gradient, and no label of an unlabelled video is asked for anywhere.
    """

    phases = False
    """Whether it can be pretrained without labels: `loss` then takes `clips` in the place of labelled videos."""

    def __init__(
        self,
        backbone: Mapping[str, Any],
        classes: int,
        elements: str | int = "2-2-4",
        head: str = "fusion",
        dropout: float = 0.5,
        perturbation: str = "moderate",
        channel_dropout: float = 0.2,
        threshold: float | None = None,
        passes: int = 10,
        mixing: float = 10.0,
        harden: bool = False,
        one_partner: bool = True,
        mix_loss: str = "logits",
        unlabelled_weight: float = 2.0,
        mixed_weight: float = 2.0,
        ramp: bool = True,
        ema: float = 0.9999,
    ) -> None:
        super().__init__()
        if perturbation not in PERTURBATIONS:
            raise unknown("perturbation", perturbation, PERTURBATIONS, "model.perturbation")
        if mix_loss not in MIX_LOSSES:
            raise unknown("mix loss", mix_loss, MIX_LOSSES, "model.mix_loss")
        if threshold is None and (head == "linear" or dropout <= 0 or passes < 2):
            raise UserError(
                "adaptive regulation needs a head with dropout and at least 2 passes; set model.head: fusion, "
                "model.dropout and model.passes, or a model.threshold"
            )
        if harden and threshold is None:
            raise UserError("model.harden: true needs a model.threshold that tells which videos are confident")
        for name, value in (("channel_dropout", channel_dropout), ("ema", ema)):
            if not 0 <= value < 1:
                raise UserError(f"model.{name} is {value:g}; it must be at least 0 and below 1")
        self.lengths = parse_elements(elements)
        self.network = ElementNetwork(backbone, self.lengths, classes, head, dropout)
        self.teacher: ElementNetwork | None = None
        self.perturbation, self.channel_dropout = perturbation, channel_dropout
        self.threshold, self.passes = threshold, passes
        self.mixing, self.harden, self.one_partner, self.mix_loss = mixing, harden, one_partner, mix_loss
        self.unlabelled_weight, self.mixed_weight, self.ramp, self.ema = unlabelled_weight, mixed_weight, ramp, ema
        self.mean, self.std = self.network.backbone.mean, self.network.backbone.std
        self.image_size = self.network.backbone.image_size

    # ------------------------------------------------------------------------------------------- at test
    def predict(self, elements: Elements) -> Tensor:
        """Logits (B, C) of the student, which is what is tested. Call it in evaluation mode."""
        return self.network(elements)

    def features(self, elements: Elements) -> Tensor:
        """The student's feature of each of the n elements, (B, n, D), before they are fused."""
        return self.network.features(elements)

    # --------------------------------------------------------------------------------------- in training
    def forward(self, mode: str = "loss", **batch: Any) -> dict[str, Tensor]:
        """Losses (names begin with loss_) and other numbers of a batch, see `loss`."""
        if mode != "loss":
            raise ValueError(f"mode {mode!r}: only 'loss' is a forward pass of training; use predict")
        return self.loss(**batch)

    def loss(
        self,
        labelled: Elements,
        labels: Tensor,
        weak: Elements | None = None,
        strong: Elements | None = None,
        progress: float = 1.0,
        draws: Draws | None = None,
    ) -> dict[str, Tensor]:
        """Losses of labelled videos with labels (B,) and, in the semi-supervised phase, of unlabelled ones.

        weak, strong: two views of the same B' unlabelled videos; both without perturbation, which happens here.
        progress: how much of the semi-supervised phase is over (`losses.ssl_progress`). draws: what `draw` would
        give. Beside the losses, "accuracy" on the labelled videos and the teacher's mean "confidence" and "weight".
        """
        logits = self.network(labelled)
        losses = {
            "loss_labelled": F.cross_entropy(logits, labels),
            "accuracy": (logits.detach().argmax(-1) == labels).float().mean(),
        }
        if weak is not None and strong is not None:
            losses |= self._unlabelled(weak, strong, progress, draws or self.draw(strong))
        return losses

    def _unlabelled(self, weak: Elements, strong: Elements, progress: float, draws: Draws) -> dict[str, Tensor]:
        pseudo, weight = self.judge(self.teacher_logits(weak))
        clean = perturb(strong, draws.orders, self.perturbation)
        dropped = [drop_channels(x, kept, self.channel_dropout) for x, kept in zip(clean, draws.kept, strict=True)]
        ramp = ramp_up(progress) if self.ramp else 1.0
        if self.mixing:
            # The partner is perturbed but has all its colours, as in the released code of SVFormer and SeFAR. One pass
            # for both is quicker than two.
            both = self.network.patches([*dropped, *clean])
            patches, others = both[: len(clean)], both[len(clean) :]
            partners = [x[partner] for x, partner in zip(others, draws.partners, strict=True)]
            mixed = [mix_patches(*parts) for parts in zip(patches, partners, draws.masks, strict=True)]
            encoded = [torch.cat(parts) for parts in zip(patches, mixed, strict=True)]
        else:
            encoded = self.network.patches(dropped)
        features = self.network.feature(encoded).split(len(weight))
        logits = self.network.head(features[0])
        losses = {
            "loss_unlabelled": ramp * self.unlabelled_weight * unlabelled_loss(logits, pseudo.labels, weight),
            "confidence": pseudo.confidence.mean(),
            "weight": weight.mean(),
        }
        if self.mixing:
            target = hardened(pseudo, weight) if self.harden else pseudo.probabilities
            value = mixed_loss(
                self.network.head(features[1]),
                mix_targets(target, draws.share, draws.partners[-1]),
                mix_targets(weight, draws.share, draws.partners[-1]),
                self.mix_loss,
            )
            losses["loss_mixed"] = ramp * self.mixed_weight * value
        return losses

    def draw(self, strong: Elements) -> Draws:
        """The random part of a step on these strong elements; torch's global generator seeds it."""
        rng = np.random.default_rng(int(torch.randint(2**63 - 1, ())))
        device, videos = strong[0].device, len(strong[0])
        n, patches = len(self.lengths), self.network.backbone.n_patches
        share = rng.beta(self.mixing, self.mixing) if self.mixing else 1.0
        partners = [rng.permutation(videos) for _ in range(1 if self.one_partner else n)]
        arrays = (
            draw_orders(self.perturbation, self.lengths, videos, rng),
            [rng.random((videos, 3)) >= self.channel_dropout for _ in range(n)],
            partners * n if self.one_partner else partners,
            [tube_mask(patches, share, rng) for _ in range(n)],
        )
        return Draws(*([torch.from_numpy(a).to(device) for a in group] for group in arrays), share)

    # --------------------------------------------------------------------------------------- the teacher
    def start_teacher(self) -> None:
        """Make the student's present state the teacher's."""
        self.teacher = deepcopy(self.network).requires_grad_(False).eval()

    def update_teacher(self, times: int = 1) -> None:
        """Move the teacher towards the student: decay * teacher + (1 - decay) * student (Eq. 1), `times` at once.

        Raises RuntimeError before `start_teacher`.
        """
        teacher, student = list(self._teacher().parameters()), list(self.network.parameters())
        get_ema_multi_avg_fn(self.ema**times)(teacher, student, None)

    @torch.no_grad()
    def teacher_logits(self, weak: Elements) -> Tensor:
        """Logits of the teacher's passes, (U, B', C); one pass without dropout where a threshold judges them."""
        teacher = self._teacher()
        return teacher(weak)[None] if self.threshold is not None else teacher.dropped_logits(weak, self.passes)

    def judge(self, logits: Tensor) -> tuple[Pseudo, Tensor]:
        """Pseudo-labels from the teacher's logits (U, B', C), and the weight (B',) of each."""
        pseudo = pseudo_labels(logits)
        if self.threshold is not None:
            return pseudo, threshold_weight(pseudo.confidence, self.threshold)
        return pseudo, adaptive_weight(pseudo.confidence, pseudo.deviation)

    def _teacher(self) -> ElementNetwork:
        if self.teacher is None:
            raise RuntimeError("there is no teacher yet: call start_teacher when the supervised epochs are over")
        return self.teacher

    def train(self, mode: bool = True) -> SeFARModel:
        """Training or evaluation mode; the teacher stays in the second."""
        super().train(mode)
        if self.teacher is not None:
            self.teacher.eval()
        return self

    # ----------------------------------------------------------------------------------------- its tensors
    def trained_state(self) -> dict[str, Tensor]:
        """All that training changes: the student and, once it is there, the teacher."""
        return self.state_dict()

    def load_trained_state(self, state: Mapping[str, Tensor]) -> None:
        """Load what `trained_state` gave, the teacher too if it has one. Raises RuntimeError if it does not fit."""
        if any(name.startswith("teacher.") for name in state):
            self.start_teacher()
        self.load_state_dict(dict(state))
