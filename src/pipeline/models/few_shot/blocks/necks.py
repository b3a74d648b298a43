"""Transformer blocks between backbone and matching: CLIP-FSAR's context block, LGA's phase fusion (Eq. 1)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.errors import UserError, unknown

SCALES = ("G", "L")
ATTENTIONS = ("self", "cross")


class AttentionBlock(nn.Module):
    """One layer: multi-head attention, then a feed-forward network with residual but without LayerNorm.

    As in CLIP-FSAR: one LayerNorm shared by queries, keys and values; projections without bias; the residual
    around the attention starts from the un-normalised queries; no output projection if there is one head.
    Raises UserError if `heads` does not divide `dim`.
    """

    def __init__(self, dim: int, heads: int, ffn: int, dropout: float, ffn_dropout: float) -> None:
        super().__init__()
        if heads < 1 or dim % heads:
            raise UserError(f"feature width {dim} is not a multiple of the {heads} attention heads; change heads")
        self.heads = heads
        self.norm = nn.LayerNorm(dim)
        self.to_q = nn.Linear(dim, dim, bias=False)
        self.to_k = nn.Linear(dim, dim, bias=False)
        self.to_v = nn.Linear(dim, dim, bias=False)
        self.out = nn.Sequential(nn.Linear(dim, dim), nn.Dropout(dropout)) if heads > 1 else nn.Identity()
        self.ffn = nn.Sequential(
            nn.Linear(dim, ffn),
            nn.GELU(),
            nn.Dropout(ffn_dropout),
            nn.Linear(ffn, dim),
            nn.Dropout(ffn_dropout),
        )

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, weight: Tensor | None = None, residual: bool = True,
        wanted: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """q (B, n, D), k and v (B, m, D), optional weight (B, m) -> (B, n, D).

        `weight` says how often each key counts: 2 is the same as having it twice, 0 leaves it out. `wanted`, bool
        (B, n): the queries whose result is of use; where `picks` says so the others stay zero and cost no feed-forward.
        """
        bias = None if weight is None else weight.to(q.dtype).log()[:, None, None, :]
        attended = self.out(self._attend(self.norm(q), self.norm(k), self.norm(v), bias))
        if residual:
            attended = attended + q
        if wanted is None or not picks(attended.device):
            return attended + self.ffn(attended)
        some = attended[wanted]
        return torch.zeros_like(attended).index_put((wanted,), some + self.ffn(some))

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        def split(x: Tensor) -> Tensor:
            return x.unflatten(-1, (self.heads, -1)).transpose(-3, -2)  # (B, heads, n, D / heads)

        q, k, v = split(self.to_q(q)), split(self.to_k(k)), split(self.to_v(v))
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=None if bias is None else bias.to(q.dtype))
        return mixed.transpose(-3, -2).flatten(-2)


def picks(device: torch.device) -> bool:
    """Whether to leave out what is not of use: on a GPU the host would wait there to learn how much that is."""
    return device.type == "cpu"


class ContextTransformer(nn.Module):
    """CLIP-FSAR's `context2`: attention blocks over the tokens of one video, shared by queries and supports.

    The first layer attends from q to k, v; the layers after it attend over themselves. No position embedding,
    no final norm. Released values: 8 heads, FFN 2048, one layer, dropout 0.2 after the attention and 0.05 in
    the FFN. Raises UserError if `heads` does not divide `dim`.
    """

    def __init__(
        self,
        dim: int,
        heads: int = 8,
        ffn: int = 2048,
        depth: int = 1,
        dropout: float = 0.2,
        ffn_dropout: float = 0.05,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(AttentionBlock(dim, heads, ffn, dropout, ffn_dropout) for _ in range(depth))

    def forward(self, q: Tensor, k: Tensor | None = None, v: Tensor | None = None) -> Tensor:
        """q (..., n, D), k and v (..., m, D) -> (..., n, D); k defaults to q, v to k.

        Supports enter as [frames ; class text] and the caller keeps the first T of the T + 1 tokens.
        """
        k = q if k is None else k
        v = k if v is None else v
        x, context, value = (t.reshape(-1, *t.shape[-2:]) for t in (q, k, v))
        for i, layer in enumerate(self.layers):
            x = layer(x, context, value) if i == 0 else layer(x, x, x)
        return x.reshape(q.shape)


class PhaseFusion(nn.Module):
    """Fuses the frames of each phase with its atomic description (LGA Eq. 1) or one of Table 3's variants.

    `scale` "L" is local, one text a phase; "G" is global. `attention` is "cross" or "self":

    * L, cross (LGA itself): Q_i = t_i + f_{S_i}; K = V = the frames of all phases, a frame that two phases
      share standing there twice; f~ = FFN(a) + a with a = attention. The equation has no residual around the
      attention; `residual_attention` adds one (a = attention + Q).
    * G, cross: Q = f + mean of the texts; K = V = the T frames, once each; then as above.
    * G, self: as CLIP-FSAR: [frames ; texts] attend over themselves, the frames are kept.
    * L, self: [frames of phase i ; t_i] attend over themselves, phase by phase; the frames are kept.

    The self variants are CLIP-FSAR's block and always have its residual around the attention. All variants
    have CLIP-FSAR's LayerNorm before the projections, which Eq. 1 does not show. A video without text (a
    query) takes the same path without the text term or token. Raises UserError for an unknown scale or
    attention and if `heads` does not divide `dim`.
    """

    def __init__(
        self,
        dim: int,
        heads: int = 8,
        ffn: int = 2048,
        scale: str = "L",
        attention: str = "cross",
        residual_attention: bool = False,
        dropout: float = 0.2,
        ffn_dropout: float = 0.05,
    ) -> None:
        super().__init__()
        if scale not in SCALES:
            raise unknown("fusion scale", scale, SCALES)
        if attention not in ATTENTIONS:
            raise unknown("fusion attention", attention, ATTENTIONS)
        self.scale, self.attention, self.residual_attention = scale, attention, residual_attention
        self.block = AttentionBlock(dim, heads, ffn, dropout, ffn_dropout)

    def forward(self, frames: Tensor, masks: Tensor, texts: Tensor | None = None) -> Tensor:
        """frames (..., T, D), masks bool (..., L, T), texts (..., L, D) or None -> fused (..., L, T, D).

        Leading dimensions are equal. One text in place of L serves all phases (an action label); the "G"
        scale takes any number. Places outside `masks` are zero. Every phase needs at least one frame.
        """
        lead, phases = frames.shape[:-2], masks.shape[-2]
        if self.scale == "L" and texts is not None and texts.shape[-2] not in (1, phases):
            raise UserError(f"{texts.shape[-2]} texts for {phases} phases; give one a phase, or a single one")
        frames, masks = frames.reshape(-1, *frames.shape[-2:]), masks.reshape(-1, *masks.shape[-2:])
        texts = None if texts is None else texts.reshape(-1, *texts.shape[-2:])
        fused = {
            ("L", "cross"): self._local_cross,
            ("L", "self"): self._local_self,
            ("G", "cross"): self._global_cross,
            ("G", "self"): self._global_self,
        }[self.scale, self.attention](frames, masks, texts)
        fused = torch.where(masks[..., None], fused, 0)  # (B, L or 1, T, D) -> (B, L, T, D)
        return fused.reshape(*lead, *fused.shape[1:])

    def _local_cross(self, frames: Tensor, masks: Tensor, texts: Tensor | None) -> Tensor:
        # Keys carry no text, so a frame of two phases is one key that counts twice: T keys instead of L * T.
        # Without text the phases ask the same questions, which are then asked once.
        times = masks.sum(-2)
        if texts is None:
            return self.block(frames, frames, frames, times, self.residual_attention)[:, None]
        asked = (frames[:, None] + texts[:, :, None]).flatten(1, 2)
        wanted = masks.flatten(1) if masks.shape[1] == texts.shape[1] else None
        fused = self.block(asked, frames, frames, times, self.residual_attention, wanted)
        return fused.unflatten(1, (-1, frames.shape[1]))

    def _local_self(self, frames: Tensor, masks: Tensor, texts: Tensor | None) -> Tensor:
        (batch, phases, count), width = masks.shape, frames.shape[-1]
        tokens, valid = frames[:, None].expand(-1, phases, -1, -1), masks
        if texts is not None:
            tokens = torch.cat((tokens, texts[:, :, None].expand(-1, phases, 1, -1)), dim=2)
            valid = torch.cat((masks, masks.new_ones(batch, phases, 1)), dim=2)
        tokens = tokens.reshape(batch * phases, -1, width)
        fused = self.block(tokens, tokens, tokens, valid.flatten(0, 1))[:, :count]
        return fused.unflatten(0, (batch, phases))

    def _global_cross(self, frames: Tensor, masks: Tensor, texts: Tensor | None) -> Tensor:
        asked = frames if texts is None else frames + texts.mean(1, keepdim=True)
        return self.block(asked, frames, frames, residual=self.residual_attention)[:, None]

    def _global_self(self, frames: Tensor, masks: Tensor, texts: Tensor | None) -> Tensor:
        tokens = frames if texts is None else torch.cat((frames, texts), dim=1)
        return self.block(tokens, tokens, tokens)[:, None, : frames.shape[1]]
