"""Cross-modal alignment and stage-wise matching of Task-Adapter++ (Sec. 3.6).

Shapes: E episodes, Q queries, T frames, n aligned frames, N classes, S stages (sentences of a class), D feature width.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.errors import UserError, unknown

ALIGNMENTS = ("attention", "conv", "none")
ALIGNED_OVER = ("frames", "queries")


class CrossAlignment(nn.Module):
    """Cross-attention from a frame to the next one (Eq. 15): T frames become n = T - 1.

    The attention is softmax(q k^T / sqrt(D)) v without any projection, as in the released code. Two forms:

    * over `frames`, each video for itself: q is frame i-1, k and v are frame i (`window` of them: frames i to
      i + window - 1, as far as the video goes), and frame i-1 is added as Eq. 15 prints it. The softmax over a single
      next frame is 1, so with the default window the aligned frame is F(i-1) + F(i): all that Eq. 15 says once a query
      does not see the others, for there F(i) holds frame i of all Q queries, and the softmax runs over the queries.
    * over `queries`, the released code: the softmax runs over the queries of an episode, and frame i is added, the
      one that gave k and v, in place of frame i-1.

    Args:
        dim: D.
        layers: stacked attentions (Table 7): the aligned frame is the next q, k and v stay, so that n stays T - 1.
        norm: a LayerNorm on what the attention gives, before the residual (released for SSv2-Full).
        over: frames or queries.
        window: next frames that a frame sees, over frames only.
    """

    def __init__(self, dim: int, layers: int = 1, norm: bool = False, over: str = "frames", window: int = 1) -> None:
        super().__init__()
        if over not in ALIGNED_OVER:
            raise unknown("alignment_over", over, ALIGNED_OVER)
        if layers < 1 or window < 1:
            raise UserError(f"alignment_layers is {layers}, alignment_window {window}; both must be 1 or more")
        self.norms = nn.ModuleList(nn.LayerNorm(dim) if norm else nn.Identity() for _ in range(layers))
        self.over, self.window = over, window

    def forward(self, frames: Tensor) -> Tensor:
        """Frames of the queries that see each other, (E, Q, T, D) -> (E, Q, T - 1, D)."""
        if frames.shape[-2] < 2:
            raise UserError("alignment of neighbouring frames needs videos of two frames or more")
        if self.over == "queries":
            frames = frames.transpose(1, 2)
            aligned, following = frames[:, :-1], frames[:, 1:]  # (E, T - 1, Q, D): attention over the queries
            for norm in self.norms:
                aligned = norm(F.scaled_dot_product_attention(aligned, following, following)) + following
            return aligned.transpose(1, 2)
        aligned, following = frames[..., :-1, :], frames[..., 1:, :]
        seen = torch.ones(2 * [following.shape[-2]], dtype=torch.bool, device=frames.device)
        seen = seen.triu() & seen.tril(self.window - 1)
        for norm in self.norms:
            aligned = norm(F.scaled_dot_product_attention(aligned, following, following, seen)) + aligned
        return aligned


class ConvAlignment(nn.Module):
    """Conv1d over time in place of the cross-attention (Table 7: one layer, stride 1, kernel 3, D channels).

    Padded by a frame at either end, so that n = T and the stages of Eq. 16 still exist; with the residual of Eq. 15.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(dim, dim, kernel_size=3, padding=1)

    def forward(self, frames: Tensor) -> Tensor:
        """(E, Q, T, D) -> (E, Q, T, D)."""
        mixed = self.conv(frames.flatten(0, 1).transpose(-1, -2)).transpose(-1, -2)
        return mixed.unflatten(0, frames.shape[:2]) + frames


def build_alignment(
    kind: str, dim: int, layers: int = 1, norm: bool = False, over: str = "frames", window: int = 1
) -> nn.Module:
    """The alignment called `kind`: attention, conv, or none (frames as they are). Raises UserError for another."""
    if kind not in ALIGNMENTS:
        raise unknown("alignment", kind, ALIGNMENTS)
    if kind == "attention":
        return CrossAlignment(dim, layers, norm, over, window)
    return ConvAlignment(dim) if kind == "conv" else nn.Identity()


def stage_weights(frames: int, stages: int) -> Tensor:
    """Share of each of n frames in the mean of each stage: (S, n), rows sum to 1.

    Neighbouring stages share a frame (Eq. 16): three stages of seven frames are 1-3, 3-5 and 5-7, of eight 1-3, 3-6
    and 6-8. In general they share the frames nearest to k (n - 1) / S; one stage is the whole video.
    """
    edges = [round(k * (frames - 1) / stages) for k in range(stages + 1)]
    weights = torch.zeros(stages, frames)
    for stage, (first, last) in enumerate(pairwise(edges)):
        weights[stage, first : last + 1] = 1 / (last + 1 - first)
    return weights


def stage_similarity(frames: Tensor, texts: Tensor, average_first: bool = True) -> Tensor:
    """Mean over the stages of the cosine of a stage and its sentence: (E, Q, n, D), (E, N, S, D) -> (E, Q, N).

    average_first: the stage is the mean of its frames (Eq. 16-17). False, as released: the cosine of each frame, and
    the mean of these. With one sentence the video is one stage: the cosine of its mean frame and the class text.
    """
    pooled = _stages(frames, texts.shape[-2], average_first)
    return pooled.flatten(-2) @ F.normalize(texts, dim=-1).flatten(-2).transpose(-1, -2) / texts.shape[-2]


def stage_cosines(frames: Tensor, texts: Tensor, average_first: bool = True) -> Tensor:
    """The cosine of each stage, whose mean is `stage_similarity`: (E, Q, n, D), (E, N, S, D) -> (E, Q, N, S)."""
    pooled = _stages(frames, texts.shape[-2], average_first)
    return torch.einsum("eqsd,ensd->eqns", pooled, F.normalize(texts, dim=-1))


def _stages(frames: Tensor, stages: int, average_first: bool) -> Tensor:
    """Frames (E, Q, n, D) -> stages (E, Q, S, D), whose product with a text of length 1 is the cosine."""
    weights = stage_weights(frames.shape[-2], stages).to(frames)
    if average_first:
        return F.normalize(weights @ frames, dim=-1)
    return weights @ F.normalize(frames, dim=-1)
