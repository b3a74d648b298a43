"""Score fusion of the video-video and the video-text branch. Class scores stand in the last dimension."""

from __future__ import annotations

from torch import Tensor

from pipeline.errors import UserError

CLIPFSAR_SCALE = 8
"""The 8 of CLIP-FSAR's (8 - D) / 8: a literal of the released code, whatever the number of frames."""


def fuse(log_p_vv: Tensor, log_p_vt: Tensor, alpha: float) -> Tensor:
    """Log of LGA Eq. 5, p_vv^alpha * p_vt^(1 - alpha): (..., N), (..., N) -> (..., N), not renormalised.

    alpha 1 is video-video alone, 0 video-text alone. Raises UserError if alpha lies outside [0, 1].
    """
    if not 0 <= alpha <= 1:
        raise UserError(f"alpha of the score fusion is {alpha}; give a number from 0 (text) to 1 (video)")
    if alpha in (0, 1):  # 0 * log 0 would be NaN
        return log_p_vv if alpha else log_p_vt
    return alpha * log_p_vv + (1 - alpha) * log_p_vt


def clipfsar_visual_log_probability(distance: Tensor) -> Tensor:
    """log softmax((8 - D) / 8) over the classes of CLIP-FSAR's test mode: (..., N) -> (..., N)."""
    return ((CLIPFSAR_SCALE - distance) / CLIPFSAR_SCALE).log_softmax(-1)


def clipfsar_visual_probability(distance: Tensor) -> Tensor:
    """softmax((8 - D) / 8) over the classes of CLIP-FSAR's test mode: (..., N) -> (..., N)."""
    return clipfsar_visual_log_probability(distance).exp()


def clipfsar_combine(distance: Tensor, log_p_text: Tensor, text_weight: float = 0.9) -> Tensor:
    """Log of CLIP-FSAR's combined score p_text^w * p_visual^(1 - w): (..., N), (..., N) -> (..., N).

    `text_weight` is CLIP-FSAR's TEXT_COFF, that is 1 - alpha of `fuse`. Not renormalised.
    """
    return fuse(clipfsar_visual_log_probability(distance), log_p_text, 1 - text_weight)
