"""Ordered temporal alignment (OTAM, CVPR 2020) in the form that CLIP-FSAR computes.

The frame distances d (Tq rows, Ts columns) get a column of zeros left and right; D is the accumulated cost
and smin(a, b, ...) = -lam * log(exp(-a / lam) + exp(-b / lam) + ...):

* row 0:          D[0, m] = d[0, m] + D[0, m-1], a plain sum, D[0, 0] = 0;
* left padding:   D[l, 0] = 0;
* first column:   D[l, 1] = d[l, 1] + smin(D[l-1, 0], D[l-1, 1], D[l, 0]);
* middle columns: D[l, m] = d[l, m] + smin(D[l-1, m-1], D[l, m-1]);
* right padding:  D[l, M] = smin(D[l-1, M-1], D[l-1, M], D[l, M-1]), and the last of them is the result.

So a middle column needs the column before it only and is one vector operation over all rows; the first column
is a recursion over rows with two constant terms; the right padding is a sum of exponentials in which the
first real column entry counts twice (through row 0 and row 1), the last once and the others twice.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pipeline.errors import UserError


def otam(d: Tensor, lam: float = 0.5) -> Tensor:
    """Alignment cost of frame distances d (..., Tq, Ts) -> (...), smoothing `lam` > 0.

    CLIP-FSAR uses lam 0.5, the plain OTAM head 0.1. Worked out with log-sum-exp, so finite where the
    exponential of -D / lam would underflow. A soft minimum over many paths may be negative. Raises UserError
    if lam is not positive.
    """
    if not lam > 0:
        raise UserError(f"OTAM's smoothing lambda is {lam}; give a positive number, e.g. 0.5")
    # Time first: each step then works on long contiguous stretches (Tq, episodes * pairs).
    cost = d.movedim((-2, -1), (0, 1)).flatten(2) if d.dim() > 2 else d.unsqueeze(-1)
    score = cost.contiguous() / -lam  # e^score is what the soft minima add up
    column = _first_column(score[:, 0])
    for m in range(1, score.shape[1]):
        reached = torch.cat((column[:1], torch.logaddexp(column[:-1], column[1:])))
        column = score[:, m] + reached
    return (-lam * _right_padding(column)).reshape(d.shape[:-2])


def _first_column(score: Tensor) -> Tensor:
    """Column 1 of the accumulated scores from its frame scores (Tq, P); padded neighbours give e^0 each."""
    rows = [score[0]]
    padded = score.new_tensor(math.log(2))
    for row in score[1:]:
        rows.append(row + torch.logaddexp(rows[-1], padded))
    return torch.stack(rows)


def _right_padding(column: Tensor) -> Tensor:
    """Score of the last padded cell from the last real column (Tq, P) -> (P,)."""
    if len(column) == 1:
        return column[0]
    times = column.new_full((len(column), 1), math.log(2))
    times[-1] = 0
    return torch.logsumexp(column + times, dim=0)


def otam_bidirectional(d: Tensor, lam: float = 0.5) -> Tensor:
    """otam(d) + otam(d transposed): frame distances (..., Tq, Ts) -> (...), as CLIP-FSAR and OTAM."""
    return otam(d, lam) + otam(d.transpose(-1, -2), lam)
