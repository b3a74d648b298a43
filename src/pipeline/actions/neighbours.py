"""Which example a clip is most like, and where in time the two match."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from pipeline.actions.model import Encoded
from pipeline.models.few_shot.matching import cosine_distance


@dataclass(frozen=True, slots=True)
class Neighbour:
    """An example, and for each frame that the model saw of a clip the place (from 0) of the example's frame there.

    at: when these frames of the example are shown, in seconds, or their numbers where the rate is unknown.
    """

    clip: str
    frames: list[int]
    at: list[float]


@torch.inference_mode()
def nearest_clip(query: Encoded, examples: Sequence[Encoded]) -> Neighbour | None:
    """The example whose frames, in order, are most like those of `query`; None where a model has no feature a frame."""
    if query.features.dim() != 2:
        return None
    paths = [align(cosine_distance(query.features, item.features).double().cpu().numpy()) for item in examples]
    best = int(np.argmin([cost for cost, _ in paths]))
    seen, frames = examples[best].seen, paths[best][1]
    when = seen.seconds.round(3) if len(seen.seconds) else seen.positions
    return Neighbour(examples[best].clip.name, frames, when[frames].tolist())


def align(distances: np.ndarray) -> tuple[float, list[int]]:
    """Dynamic time warping of distances (Tq, Ts): the cost of the cheapest path from start to end, and for each row the
    column on it that is cheapest."""
    rows, columns = distances.shape
    total = np.full((rows + 1, columns + 1), np.inf)
    total[0, 0] = 0
    for i in range(rows):
        for j in range(columns):
            total[i + 1, j + 1] = distances[i, j] + min(total[i, j], total[i, j + 1], total[i + 1, j])
    best = np.full(rows, -1)
    i, j = rows, columns
    while i and j:
        if best[i - 1] < 0 or distances[i - 1, j - 1] < distances[i - 1, best[i - 1]]:
            best[i - 1] = j - 1
        i, j = min(((i - 1, j - 1), (i - 1, j), (i, j - 1)), key=lambda place: total[place])
    return float(total[rows, columns]), best.tolist()
