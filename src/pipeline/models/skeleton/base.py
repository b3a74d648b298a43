"""What every skeleton method is: an encoder, the loss it trains with, and the feature that a test compares.

Shapes: B samples, M persons, T frames, V joints, C channels (coordinates); sequences are (B, C, T, V, M).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from mmengine.model import BaseModel
from torch import Tensor, nn

from pipeline.datasets.skeletons.graph import SkeletonGraph
from pipeline.errors import UserError, unknown
from pipeline.models.skeleton import build_encoder
from pipeline.models.skeleton.losses import supervised_contrastive_loss
from pipeline.text.corpus import Corpus

ENCODERS = {
    "infogcn": "InfoGCN",
    "hdgcn": "HDGCN",
    "motionbert": "DSTformer",
    "stgcn": "STGCNEncoder",
    "aagcn": "AAGCNEncoder",
}
"""Names in a recipe, and the classes that they mean."""

Feature = Literal["embedding", "hidden"]


class ClassTexts(NamedTuple):
    """What a method reads of the texts of its N base classes, in the order of their labels; empty where it reads none.

    joints (N, V, D): a feature of what is said of each joint. key_joints (N, V): 1 where the class's global text
    names the joint, else 0. parts (N, P, S, D): features of the sentences about P body parts, S of them at most, zero
    where there are fewer. sentences: these sentences, N lists of P lists.
    """

    joints: Tensor | None = None
    key_joints: Tensor | None = None
    parts: Tensor | None = None
    sentences: Sequence[Sequence[Sequence[str]]] = ()


class SkeletonModel(BaseModel):
    """An encoder and its training; base of the methods.

    Args:
        graph: the skeleton.
        persons: M.
        classes: number of base classes.
        texts: what the method reads of them (`read_texts`). Without it a method that reads texts is built as it is
            at test: without the modules that only training has.
        encoder: a key of ENCODERS.
        settings: arguments of that encoder.
        cross_entropy: train a classifier of the base classes, and with it what the encoder adds to that loss.
        smoothing: of the labels in the cross-entropy.
        contrastive: weight of the supervised contrastive loss on the embeddings (MotionBERT's one-shot training).
        temperature: of that loss.
        test_dropout: keep dropout on at test, as MotionBERT's released one-shot test, which never leaves training mode.

    Raises:
        UserError: an unknown encoder or setting, or no loss at all.
    """

    wants_text: ClassVar[bool] = False
    training_only: ClassVar[tuple[str, ...]] = ("guidance.",)
    """Beginnings of the names of tensors that no test needs."""

    def __init__(
        self,
        graph: SkeletonGraph | str | Mapping[str, Any],
        persons: int,
        classes: int,
        texts: ClassTexts | None = None,
        encoder: str = "infogcn",
        settings: Mapping[str, Any] | None = None,
        cross_entropy: bool = True,
        smoothing: float = 0.0,
        contrastive: float = 0.0,
        temperature: float = 0.1,
        test_dropout: bool = False,
    ) -> None:
        super().__init__()
        if encoder not in ENCODERS:
            raise unknown("skeleton encoder", encoder, ENCODERS, "model.encoder")
        if not (cross_entropy or contrastive):
            raise UserError("a skeleton model needs a loss: set model.cross_entropy: true or model.contrastive: 1")
        self.encoder = build_encoder(
            {**(settings or {}), "type": ENCODERS[encoder]},
            graph=graph, persons=persons, classes=classes if cross_entropy else None,
        )  # fmt: skip
        self.smoothing, self.contrastive, self.temperature = smoothing, contrastive, temperature
        self.test_dropout = test_dropout

    @classmethod
    def read_texts(
        cls,
        corpus: Corpus,
        classes: Sequence[str],
        graph: SkeletonGraph,
        cache_folder: str | Path,
        text: str = "lsa",
        source: str | None = None,
    ) -> ClassTexts:
        """What the method needs of the texts of `classes`.

        text: a kind of `pipeline.text.encoders.encode_sentences`, source: the weights it takes. Raises UserError when
        a class or a text is missing.
        """
        return ClassTexts()

    # ------------------------------------------------------------------------------------------- at test
    def pooled(self, x: Tensor) -> Tensor:
        """Sequences (B, C, T, V, M) -> what the encoder's head takes, (B, encoder.pooled_dim)."""
        trunk = self.encoder
        return trunk.pool(trunk.features(trunk.run(trunk.embed(x), 0, trunk.n_blocks)))

    def embed(self, x: Tensor, feature: Feature = "embedding") -> Tensor:
        """The feature that a test compares, (B, D); it uses no text and nothing of `training_only`.

        "embedding" is what the classifier is trained on, InfoGCN's signed latent mean for instance; "hidden" what
        lies before it. Of the graph encoders the hidden one is never negative, as distribution calibration's power
        transform wants it. Call it in evaluation mode.
        """
        if feature not in ("embedding", "hidden"):
            raise unknown("feature", feature, ("embedding", "hidden"))
        pooled = self.pooled(x)
        return self.encoder.hidden(pooled) if feature == "hidden" else self.encoder.head(pooled)

    def train(self, mode: bool = True) -> SkeletonModel:
        """Training or evaluation mode; in the second, dropout stays on where `test_dropout` says so."""
        super().train(mode)
        for module in self.modules() if self.test_dropout else ():
            if isinstance(module, nn.Dropout):
                module.train(True)
        return self

    # --------------------------------------------------------------------------------------- in training
    def forward(
        self, x: Tensor, labels: Tensor, mode: str = "loss", episode: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Losses (names begin with loss_) and "accuracy" of a batch x (B, C, T, V, M), labels (B,).

        One more dimension in front, of the loader, is taken away; `episode`, the batch's number, is the trainer's.
        """
        if mode != "loss":
            raise ValueError(f"mode {mode!r}: only 'loss' is a forward pass of training; use embed")
        if x.dim() == 6:
            x, labels = x.flatten(0, 1), labels.flatten()
        return self.loss(x, labels)

    def loss(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The losses of a batch."""
        return self.encoder_losses(self.encoder.head(self.pooled(x)), labels)

    def encoder_losses(self, embedding: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The encoder's own losses on embeddings (B, D), and the accuracy.

        The accuracy is the classifier's or, without one, that of the nearest other embedding of the batch.
        """
        losses = {}
        if self.encoder.classifier is not None:
            logits = self.encoder.logits(embedding)
            losses["loss_class"] = F.cross_entropy(logits, labels, label_smoothing=self.smoothing)
            losses |= self.encoder.regularisation(embedding, labels)
            guess = logits.argmax(-1)
        if self.contrastive:
            unit = F.normalize(embedding, dim=-1)
            value = supervised_contrastive_loss(unit[:, None], labels, self.temperature)
            losses["loss_contrast"] = self.contrastive * value
            if self.encoder.classifier is None:
                itself = torch.eye(len(unit), dtype=torch.bool, device=unit.device)
                guess = labels[(unit @ unit.T).detach().masked_fill(itself, -torch.inf).argmax(-1)]
        losses["accuracy"] = (guess == labels).float().mean()
        return losses

    @property
    def head_prefixes(self) -> tuple[str, ...]:
        """Beginnings of the names of parameters that are no part of the encoder's backbone.

        Recipes that train those at a rate of their own (`train.head_learning_rate`) mean these.
        """
        children = [name for name, _ in self.named_children() if name not in ("encoder", "data_preprocessor")]
        return ("encoder.to_embedding.", "encoder.classifier.", *(f"{name}." for name in children))

    # ----------------------------------------------------------------------------------------- its tensors
    def trained_state(self) -> dict[str, Tensor]:
        """All that training changes or that its start drew: parameters, norm statistics, InfoGCN's class priors."""
        names = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        for prefix, module in self.named_modules():
            if isinstance(module, nn.modules.batchnorm._NormBase):
                names |= {f"{prefix}.{name}" for name, _ in module.named_buffers()}
        return {name: v for name, v in self.state_dict().items() if name in names or name == "encoder.prior"}

    def load_trained_state(self, state: Mapping[str, Tensor]) -> None:
        """Load what `trained_state` gave. Raises KeyError if a tensor is missing, or not one of this model's."""
        expected = self.trained_state()
        if odd := set(expected).symmetric_difference(state):
            raise KeyError(f"checkpoint and model differ in {sorted(odd)[0]} ({len(odd)} tensors)")
        self.load_state_dict(dict(state), strict=False)

    def exported_state(self) -> dict[str, Tensor]:
        """The tensors of the model at test: `trained_state` without what only training needs.

        A classifier that the encoder is published with stays in, though a test of novel classes does not read it:
        the published sizes count it. One beside a contrastive loss, which needs none, is training's.
        """
        without = (*self.training_only, *(("encoder.classifier.",) if self.contrastive else ()), "encoder.prior")
        return {name: value for name, value in self.trained_state().items() if not name.startswith(without)}

    def size(self) -> int:
        """Number of parameters of the model at test, as `exported_state` has them."""
        shown = self.exported_state()
        return sum(parameter.numel() for name, parameter in self.named_parameters() if name in shown)
