"""CrossGLG (Yan et al., ECCV 2024): texts guide a skeleton encoder to the joints that matter, in training only.

Global to local: the joints that a class's global description names are the target of a small module that weighs the
joints inside the encoder. Local to global: what is said of each joint is fused with the joint features in a second
branch, which shares the classifier. A test uses the encoder and the joint weights, and no text.

V joints, C the encoder's width after its last block, P the width of the space of texts and joints.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.compat import MODELS
from pipeline.datasets.skeletons.graph import SkeletonGraph
from pipeline.errors import UserError, unknown
from pipeline.models.skeleton.base import ClassTexts, SkeletonModel
from pipeline.text.corpus import Corpus
from pipeline.text.encoders import encode_grid, joint_sentences
from pipeline.text.key_joints import key_joint_matrix

BLOCKS = 9  # of InfoGCN, in which the paper counts `n_pre`
OUTPUTS = ("softmax_scaled", "softmax", "sigmoid")
TARGETS = ("normalised", "binary")


def split_block(n_pre: int, n_blocks: int) -> int:
    """How many blocks come before the joint weights: `n_pre` of nine, and the same share of any other number.

    At least one. n_pre 5 gives 5 of 9 (InfoGCN), 6 of 10 (HD-GCN, ST-GCN, AAGCN), 3 of 5 (MotionBERT). Raises
    UserError unless n_pre is 1 to 9.
    """
    if not 1 <= n_pre <= BLOCKS:
        raise UserError(
            f"model.n_pre is {n_pre}; give 1 to {BLOCKS}, blocks of InfoGCN's nine before the joint weights"
        )
    return max(1, round(n_pre * n_blocks / BLOCKS))


class JointImportance(nn.Module):
    """JID, the Joint Importance Determination module: features of the joints (B, V, C') -> their weights (B, V).

    Linear, ReLU, linear, then `output`. softmax: over the joints, as printed; its weights are about 1 / V each and
    shrink the features of every block that they weigh. softmax_scaled: V times that, so that 1 changes nothing.
    sigmoid: each joint on its own.
    """

    def __init__(self, width: int, hidden: int, output: str) -> None:
        super().__init__()
        if output not in OUTPUTS:
            raise unknown("jid_output", output, OUTPUTS, "model")
        self.output = output
        self.layers = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, 1))

    def forward(self, joints: Tensor) -> Tensor:
        scores = self.layers(joints).squeeze(-1)
        if self.output == "sigmoid":
            return scores.sigmoid()
        weights = scores.softmax(-1)
        return weights * weights.shape[-1] if self.output == "softmax_scaled" else weights


def importance_target(key_joints: Tensor, target: str, output: str) -> Tensor:
    """k_gt of Eq. 2 for classes whose texts name the joints `key_joints` (N, V), 0 or 1 -> (N, V).

    binary: as it is, which no softmax can reach. normalised: shares of 1 (of V for the scaled softmax), which one can.
    A class whose text names no joint has all of them.
    """
    if target not in TARGETS:
        raise unknown("jid_target", target, TARGETS, "model")
    keys = torch.where(key_joints.any(-1, keepdim=True), key_joints, torch.ones_like(key_joints)).float()
    if target == "binary":
        return keys
    shares = keys / keys.sum(-1, keepdim=True)
    return shares * keys.shape[-1] if output == "softmax_scaled" else shares


class Projector(nn.Module):
    """Linear and ReLU on the last dimension, into the space of the encoder's features, which blocks end with a ReLU."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width_in, width_out)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.linear(x))


def mlp(width_in: int, hidden: int, width_out: int) -> nn.Sequential:
    """Linear, ReLU, linear."""
    return nn.Sequential(nn.Linear(width_in, hidden), nn.ReLU(), nn.Linear(hidden, width_out))


class InteractionBlock(nn.Module):
    """phi_i, Eq. 3 to 5: texts (B, V, P) and joints (B, V, P) -> joints (B, V, P).

    The texts attend to each other (Eq. 3; not if `text_text` is off), then ask the joints (Eq. 4), and both are added
    and go through an MLP (Eq. 5). `residual` puts a residual and a LayerNorm around each of the three, not printed.
    """

    def __init__(self, width: int, heads: int, hidden: int, text_text: bool, residual: bool) -> None:
        super().__init__()

        def attention() -> nn.MultiheadAttention:
            return nn.MultiheadAttention(width, heads, batch_first=True)

        self.among_texts = attention() if text_text else None
        self.across = attention()
        self.mlp = mlp(width, hidden, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2 + text_text)) if residual else None

    def forward(self, texts: Tensor, joints: Tensor) -> Tensor:
        if self.among_texts is not None:
            attended = self.among_texts(texts, texts, texts, need_weights=False)[0]
            texts = attended if self.norms is None else self.norms[2](texts + attended)
        asked = self.across(texts, joints, joints, need_weights=False)[0]
        if self.norms is None:
            return self.mlp(texts + asked)
        fused = texts + self.norms[0](joints + asked)
        return self.norms[1](fused + self.mlp(fused))


class CrossModalGuidance(nn.Module):
    """The branch that only training has: joints (B, V, C) and texts (B, V, D) -> fused joints (B, V, C).

    Both are projected to P dimensions by MLPs, interact in `layers` blocks, each of which is given the projected texts
    (Eq. 3 names no block's output as its input), and are projected back.
    """

    def __init__(
        self, width: int, text_width: int, layers: int, space: int, heads: int, hidden: int, text_text: bool,
        residual: bool,
    ) -> None:  # fmt: skip
        super().__init__()
        self.from_text, self.from_joints = mlp(text_width, space, space), mlp(width, space, space)
        self.blocks = nn.ModuleList(InteractionBlock(space, heads, hidden, text_text, residual) for _ in range(layers))
        self.back = Projector(space, width)

    def forward(self, joints: Tensor, texts: Tensor) -> Tensor:
        texts, joints = self.from_text(texts), self.from_joints(joints)
        for block in self.blocks:
            joints = block(texts, joints)
        return self.back(joints)


@MODELS.register_module()
class CrossGLG(SkeletonModel):
    """CrossGLG on any encoder.

    Args:
        graph, persons, classes: as of `SkeletonModel`, with texts.joints and texts.key_joints.
        g2l: global to local, the joint weights.
        l2g: local to global, the guidance branch.
        n_pre: see `split_block`; with all blocks before it, the weights act on what the last one returns.
        jid_hidden: width between the two layers of JID; 0: that of the features it reads, which reproduces the
            sizes that the paper's Table 1 prints.
        jid_output, jid_target: see `JointImportance` and `importance_target`; printed: softmax, and a K of 0 and 1.
        layers: M, interaction blocks.
        space: P. heads, mlp_hidden: of the blocks.
        text_text: Eq. 3 (off in Table 6). residual: see `InteractionBlock`.
        alpha1, alpha2: weights of the calibration loss and of the guidance branch's cross-entropy (Eq. 8).
        encoder: settings of `SkeletonModel`; `cross_entropy` must be on with `l2g`.

    Raises:
        UserError: settings that do not fit, or texts that lack what they need.
    """

    wants_text: ClassVar[bool] = True
    joint_texts: Tensor
    joint_target: Tensor

    def __init__(
        self,
        graph: SkeletonGraph | str | Mapping[str, Any],
        persons: int,
        classes: int,
        texts: ClassTexts | None = None,
        g2l: bool = True,
        l2g: bool = True,
        n_pre: int = 5,
        jid_hidden: int = 0,
        jid_output: Literal["softmax_scaled", "softmax", "sigmoid"] = "softmax_scaled",
        jid_target: Literal["normalised", "binary"] = "normalised",
        layers: int = 3,
        space: int = 256,
        heads: int = 8,
        mlp_hidden: int = 512,
        text_text: bool = True,
        residual: bool = False,
        alpha1: float = 0.5,
        alpha2: float = 0.2,
        **encoder: Any,
    ) -> None:
        super().__init__(graph, persons, classes, texts, **encoder)
        trunk = self.encoder
        self.pre, self.alpha1, self.alpha2 = split_block(n_pre, trunk.n_blocks), alpha1, alpha2
        self.jid, self.guidance = None, None
        self.projector = Projector(trunk.dim, trunk.dim)
        if g2l:
            width = trunk.channels[self.pre - 1]
            self.jid = JointImportance(width, jid_hidden or width, jid_output)
        self.trainable = texts is not None or not (g2l or l2g)
        if texts is None:  # the model at test
            return
        if g2l:
            keys = _of_classes(texts.key_joints, "key_joints", classes, trunk.joints)
            self.register_buffer("joint_target", importance_target(keys, jid_target, jid_output), persistent=False)
        if l2g:
            if trunk.classifier is None:
                raise UserError("CrossGLG's guidance branch shares a classifier; set model.cross_entropy: true")
            if space % heads:
                raise UserError(f"model.space {space} is not a multiple of model.heads {heads}; change one of them")
            self.register_buffer(
                "joint_texts", _of_classes(texts.joints, "joints", classes, trunk.joints), persistent=False
            )
            self.guidance = CrossModalGuidance(
                trunk.dim, self.joint_texts.shape[-1], layers, space, heads, mlp_hidden, text_text, residual
            )

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
        """Features of the sentences about each joint, and the joints that the global texts name."""
        sentences = joint_sentences(corpus, classes, graph)
        features = encode_grid(text, sentences, cache_folder, source)
        keys = key_joint_matrix([corpus.global_text(name) for name in classes], graph)
        return ClassTexts(joints=features, key_joints=torch.from_numpy(keys))

    # ------------------------------------------------------------------------------------------- at test
    def _trunk(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Sequences (B, C, T, V, M) -> final features (B, M, C, T, V), unprojected, and the joint weights (B, V)."""
        trunk = self.encoder
        state = trunk.run(trunk.embed(x), 0, self.pre)
        if self.jid is None:
            return trunk.features(trunk.run(state, self.pre, trunk.n_blocks)), None
        weights = self.jid(trunk.pre_features(state))
        if self.pre == trunk.n_blocks:
            state = state * weights.repeat_interleave(trunk.persons, dim=0)[:, None, None]
        else:
            state = trunk.run(state, self.pre, trunk.n_blocks, weights)
        return trunk.features(state), weights

    def _pool(self, features: Tensor) -> Tensor:
        return self.encoder.pool(self.projector(features.movedim(2, -1)).movedim(-1, 2))

    def pooled(self, x: Tensor) -> Tensor:
        """The skeleton branch: final features weighed by JID, projected, and pooled as the encoder does."""
        return self._pool(self._trunk(x)[0])

    @torch.no_grad()
    def joint_importance(self, x: Tensor) -> Tensor:
        """JID's weights (B, V) of sequences (B, C, T, V, M), for figures. Raises UserError without JID."""
        weights = self._trunk(x)[1]
        if weights is None:
            raise UserError("this CrossGLG has no joint weights; build it with model.g2l: true")
        return weights

    # --------------------------------------------------------------------------------------- in training
    def loss(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Eq. 8: the encoder's own losses on the skeleton branch (L_s), and the two that texts add."""
        if not self.trainable:
            raise UserError("this CrossGLG was built for tests, without texts; build it with them to train it")
        trunk = self.encoder
        features, weights = self._trunk(x)
        losses = self.encoder_losses(trunk.head(self._pool(features)), labels)
        if weights is not None:
            losses["loss_calibration"] = self.alpha1 * F.mse_loss(weights, self.joint_target[labels])
        if self.guidance is not None:
            joints = features.mean((1, 3)).transpose(1, 2)  # over persons and frames
            fused = self.guidance(joints, self.joint_texts[labels])
            logits = trunk.logits(trunk.head(trunk.pool_joints(fused)))
            value = F.cross_entropy(logits, labels, label_smoothing=self.smoothing)
            losses["loss_guidance"] = self.alpha2 * value
        return losses


def _of_classes(tensor: Tensor | None, name: str, classes: int, joints: int) -> Tensor:
    """`tensor` as float; raises UserError unless it is there and has a row for each class and joint."""
    if tensor is None or tensor.shape[:2] != (classes, joints):
        shape = "nothing" if tensor is None else f"{tensor.shape[0]} classes of {tensor.shape[1]} joints"
        raise UserError(f"CrossGLG's texts ({name}) are of {shape}, not {classes} of {joints}; prepare them again")
    return tensor.float()
