"""Matching as the papers write it, one pair of videos after the other: what the batched functions are compared with.

Written for reading, not for speed: an episode is a loop over its queries, classes and shots, and OTAM one over the
cells of its matrix. T frames, D width, N way, K shots, Q queries.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.models.few_shot.blocks.segmentation import segment
from pipeline.models.few_shot.blocks.tuples import TemporalCrossTransformer, frame_tuples

EPS = 0.01


def cosine(a: np.ndarray, b: np.ndarray, eps: float = EPS) -> float:
    """x.y / (|x||y| + eps) of two vectors."""
    a, b = np.asarray(a), np.asarray(b)
    return float(a @ b / (np.sqrt(a @ a) * np.sqrt(b @ b) + eps))


def frame_distances(one: np.ndarray, two: np.ndarray, eps: float = EPS) -> np.ndarray:
    """1 - cosine of all frames of two videos (Tq, D), (Ts, D): (Tq, Ts)."""
    lengths = np.linalg.norm(one, axis=1)[:, None] * np.linalg.norm(two, axis=1)
    return 1 - one @ two.T / (lengths + eps)


def otam(d: np.ndarray, lam: float) -> float:
    """Alignment cost of frame distances (Tq, Ts), cell by cell on the padded matrix (OTAM, Eq. 6 to 8)."""
    rows, columns = d.shape
    d = np.pad(d, ((0, 0), (1, 1)))
    total = np.zeros_like(d)

    def smin(*values: float) -> float:
        return -lam * math.log(sum(math.exp(-v / lam) for v in values))

    for m in range(1, columns + 2):
        total[0, m] = d[0, m] + total[0, m - 1]
    for i in range(1, rows):
        for m in range(1, columns + 2):
            neighbours = [total[i - 1, m - 1], total[i, m - 1]]
            if m in (1, columns + 1):
                neighbours.append(total[i - 1, m])
            total[i, m] = d[i, m] + smin(*neighbours)
    return total[-1, -1]


def bimhm(d: np.ndarray, rows: Sequence | None = None, columns: Sequence | None = None, both: bool = True) -> float:
    """Sum of the distances to the nearest frame, of the `rows` (masks; None: all) and, with `both`, of the columns."""
    rows = range(d.shape[0]) if rows is None else np.flatnonzero(rows)
    columns = range(d.shape[1]) if columns is None else np.flatnonzero(columns)
    total = sum(min(d[i, j] for j in columns) for i in rows)
    return total + (sum(min(d[i, j] for i in rows) for j in columns) if both else 0)


def abmhm(one: np.ndarray, two: np.ndarray, mask_one: np.ndarray, mask_two: np.ndarray) -> float:
    """LGA, Eq. 2: Bi-MHM phase by phase; frames (T, D), phases (L, T)."""
    d = frame_distances(one, two)
    return sum(bimhm(d, rows, columns) for rows, columns in zip(mask_one, mask_two, strict=True)) / len(one)


def trx(model: TemporalCrossTransformer, support: Tensor, query: Tensor) -> Tensor:
    """Distances (Q, N) of support (N, K, T, D) and query (Q, T, D): every tuple mapped whole, class by class."""
    tuples = frame_tuples(model.frames, model.key.cardinality)

    def embed(layer: torch.nn.Linear, videos: Tensor) -> Tensor:
        return F.linear(model.position(videos)[..., tuples, :].flatten(-2), layer.weight, layer.bias)

    asked, wanted = model.norm(embed(model.key, query)), embed(model.value, query)
    columns = []
    for shots in support:
        keys, values = model.norm(embed(model.key, shots)).flatten(0, 1), embed(model.value, shots).flatten(0, 1)
        rows = []
        for q in range(len(query)):
            weights = (asked[q] @ keys.T / math.sqrt(model.out_dim)).softmax(-1)
            rows.append((wanted[q] - weights @ values).square().sum() / len(tuples))
        columns.append(torch.stack(rows))
    return torch.stack(columns, dim=1)


Pair = Callable[[np.ndarray, np.ndarray], float]
PAIRS: dict[str, Pair] = {
    "otam": lambda x, y: otam(d := frame_distances(x, y), 0.1) + otam(d.T, 0.1),
    "bi_mhm": lambda x, y: bimhm(frame_distances(x, y)),
    "mean": lambda x, y: 1 - cosine(x.mean(0), y.mean(0)),
}
"""Distances of two videos (T, D)."""


def episode(matcher: str, model: torch.nn.Module, support: Tensor, query: Tensor) -> np.ndarray:
    """Distances (Q, N) of one episode: support (N, K, T, D), query (Q, T, D). `model` is read by TRX alone."""
    if matcher == "trx":
        with torch.inference_mode():
            return torch.stack([trx(part, support, query) for part in model.transformers]).mean(0).numpy()
    if matcher == "ab_mhm":
        return np.array([[_phases(model, q, shots) for shots in support] for q in query])
    pair, shots, asked = PAIRS[matcher], support.numpy(), query.numpy()
    return np.array([[np.mean([pair(x, y) for y in of_class]) for of_class in shots] for x in asked])


def _phases(model: torch.nn.Module, query: Tensor, shots: Tensor) -> float:
    merged = shots.mean(0)
    masks = [segment(video, model.atoms, model.segmenter, model.overlap).numpy() for video in (query, merged)]
    return abmhm(query.numpy(), merged.numpy(), *masks)
