"""An encoder trained as its own paper does, the rows that CrossGLG and GAP are compared with."""

from __future__ import annotations

import numpy as np

from pipeline.compat import MODELS
from pipeline.errors import UserError
from pipeline.models.skeleton.base import SkeletonModel


@MODELS.register_module()
class SkeletonBaseline(SkeletonModel):
    """The encoder alone.

    InfoGCN: label smoothing and its two discrepancies of the latent; HD-GCN, ST-GCN, AAGCN: cross-entropy;
    MotionBERT: the supervised contrastive loss, without a classifier, on batches of `per_class_batches`.
    """


def per_class_batches(labels: np.ndarray, batch: int, per_class: int, rng: np.random.Generator) -> np.ndarray:
    """One epoch of batches for a contrastive loss: (len(labels) // batch, batch) places in `labels`.

    Every batch has batch / per_class classes, drawn without repetition, and `per_class` samples of each; a class of
    fewer samples repeats some. MotionBERT: 32 with 2 a class. Raises UserError when the numbers do not fit.
    """
    names, inverse = np.unique(labels, return_inverse=True)
    if per_class < 2 or batch % per_class or batch // per_class > len(names):
        raise UserError(
            f"batches of {batch} with {per_class} a class need {batch / max(per_class, 1):g} of the {len(names)} "
            "classes; change train.batch or train.per_class (2 or more, and a divisor of the batch)"
        )
    members = np.split(np.argsort(inverse, kind="stable"), np.cumsum(np.bincount(inverse))[:-1])

    def draw() -> list[np.ndarray]:
        chosen = rng.permutation(len(names))[: batch // per_class]
        return [rng.choice(members[c], per_class, replace=len(members[c]) < per_class) for c in chosen]

    rows = [np.concatenate(draw()) for _ in range(len(labels) // batch)]
    return np.array(rows, dtype=np.int64).reshape(-1, batch)
