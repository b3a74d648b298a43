"""Adapters on the frozen layers of CLIP: AIM (Yang et al., ICLR 2023), Task-Adapter (Cao et al., MM 2024) and the
semantic order adapters of Task-Adapter++.

Nothing here owns a weight of CLIP: layers and towers get it as an argument, so that it stays whole, is saved once, and
serves any number of adapters. A tower runs in two parts. The trunk is plain CLIP up to the first adapted layer; what
it gives of a video or a sentence depends on nothing else and is worked out once. The rest goes on from there.

Shapes: G tasks, M videos of a task that see each other, T frames, P tokens of a frame (CLS first), W width of CLIP,
C classes, S sentences of a class (its sub-actions), l tokens of a sentence, D width of the features.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.errors import UserError, unknown

if TYPE_CHECKING:
    from transformers import CLIPConfig, CLIPModel
    from transformers.models.clip.modeling_clip import CLIPAttention, CLIPEncoderLayer

PLACEMENTS = ("top", "bottom", "all")
TASK_POSITIONS = ("after", "before", "between")
ORDER_POSITIONS = ("after", "before")
TASK_INITS = ("zero", "default")
TEMPORAL_EMBEDDINGS = ("adapters", "input", "none")

SEQUENCES = 32_768
"""Sequences in one call of an attention kernel; some kernels of CUDA take no more than 65,535."""


class Adapter(nn.Module):
    """Linear - GELU - Linear with biases through a bottleneck (Task-Adapter++ Fig. 4c): (..., dim) -> (..., dim).

    `hidden` defaults to a quarter of `dim`; `skip` adds the input to the output. With `zero` the second Linear starts
    at zero, so that the adapter starts as nothing, or with `skip` as the identity; else PyTorch's own start.
    """

    def __init__(self, dim: int, hidden: int | None = None, skip: bool = False, zero: bool = True) -> None:
        super().__init__()
        hidden = hidden or dim // 4
        self.down = nn.Linear(dim, hidden)
        self.up = nn.Linear(hidden, dim)
        self.skip = skip
        if zero:
            nn.init.zeros_(self.up.weight)
            nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        y = self.up(F.gelu(self.down(x)))
        return x + y if self.skip else y


def attend(attention: CLIPAttention, x: Tensor, dim: int) -> Tensor:
    """A CLIP layer's self-attention along dimension `dim` of tokens (..., W), everything else being batch."""
    if x.shape[dim] == 1:  # the weight of the only token is 1
        return attention.out_proj(attention.v_proj(x))
    moved = x.movedim(dim, -2)
    parts = moved.reshape(-1, *moved.shape[-2:]).contiguous().split(SEQUENCES)
    attended = torch.cat([attention(part)[0] for part in parts]) if len(parts) > 1 else attention(parts[0])[0]
    return attended.reshape(moved.shape).movedim(-2, dim)


class VisionAdapters(nn.Module):
    """The adapters of one layer of the frame tower (Task-Adapter++ Eq. 6-9; without Task-MSA it is AIM, Eq. 3-5).

    All three attentions are the layer's own, after its own first LayerNorm: T-MSA over the frames of a video at the
    same token, S-MSA over the tokens of a frame, Task-MSA over the videos of a task at the same frame and token. Each
    is followed by an adapter (the spatial one with an inner skip); the MLP has one beside it.

    Args:
        dim: W.
        aim: the adapters of T-MSA, S-MSA and MLP. Without them S-MSA and MLP are plain and there is no T-MSA.
        task: Task-MSA and its adapter.
        task_position: Task-MSA `after` T-MSA and S-MSA, `before` both, or `between` them (Table 9).
        task_init: `zero`, as the other adapters; `default` is the released code, where only the task adapter's second
            Linear starts at random, so that training does not start from CLIP.
        task_group: videos that see each other, of all M; 0 is all. The released code runs on three GPUs, which makes it
            2 of the 5 videos of a 5-way 1-shot task (the groups are 2, 2 and 1).
        mlp_scale: factor of the MLP's adapter; 0.5 in AIM except on SSv2.
        temporal_adapters: 2 is AIM's setting for SSv2, one more adapter, with a skip, between LayerNorm and T-MSA.
        drop_path: chance to drop the temporal and the MLP adapter's term of a video in training (AIM).
    """

    def __init__(
        self,
        dim: int,
        aim: bool = True,
        task: bool = True,
        task_position: str = "after",
        task_init: str = "zero",
        task_group: int = 0,
        mlp_scale: float = 1.0,
        temporal_adapters: int = 1,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        if task_position not in TASK_POSITIONS:
            raise unknown("task_position", task_position, TASK_POSITIONS)
        if task_init not in TASK_INITS:
            raise unknown("task_init", task_init, TASK_INITS)
        if temporal_adapters not in (1, 2):
            raise UserError(f"temporal_adapters is {temporal_adapters}; give 1, or 2 for one before T-MSA as well")
        if task_group < 0:
            raise UserError(f"task_group is {task_group}; give the number of videos that see each other, 0 for all")
        if not 0 <= drop_path < 1:
            raise UserError(f"drop_path is {drop_path}; give a chance from 0 to below 1")
        self.temporal_in = Adapter(dim, skip=True) if aim and temporal_adapters == 2 else None
        self.temporal = Adapter(dim) if aim else None
        self.spatial = Adapter(dim, skip=True) if aim else None
        self.mlp = Adapter(dim) if aim else None
        self.task = Adapter(dim, zero=task_init == "zero") if task else None
        self.task_group, self.mlp_scale, self.drop_path = task_group, mlp_scale, drop_path
        self.steps = ["temporal", "spatial"] if aim else ["spatial"]
        if task:
            place = {"before": 0, "between": len(self.steps) - 1, "after": len(self.steps)}
            self.steps.insert(place[task_position], "task")

    def forward(self, layer: CLIPEncoderLayer, tokens: Tensor, cls_only: bool = False) -> Tensor:
        """Tokens (G, M, T, P, W) through `layer` -> the same shape; with `cls_only` (G, M, T, 1, W).

        Past the spatial attention tokens of a frame no longer mix, so the last layer can go on with CLS alone.
        """
        for step in self.steps:
            tokens = tokens + getattr(self, f"_{step}")(layer, layer.layer_norm1(tokens))
            if cls_only and step == "spatial":
                tokens = tokens[..., :1, :]
        y = layer.layer_norm2(tokens)
        tokens = tokens + layer.mlp(y)
        return tokens if self.mlp is None else tokens + self._drop(self.mlp_scale * self.mlp(y))

    def _temporal(self, layer: CLIPEncoderLayer, y: Tensor) -> Tensor:
        y = y if self.temporal_in is None else self.temporal_in(y)
        return self._drop(self.temporal(attend(layer.self_attn, y, 2)))

    def _spatial(self, layer: CLIPEncoderLayer, y: Tensor) -> Tensor:
        y = attend(layer.self_attn, y, 3)
        return y if self.spatial is None else self.spatial(y)

    def _task(self, layer: CLIPEncoderLayer, y: Tensor) -> Tensor:
        if not self.task_group:
            return self.task(attend(layer.self_attn, y, 1))
        groups = y.split(self.task_group, dim=1)
        return self.task(torch.cat([attend(layer.self_attn, group, 1) for group in groups], dim=1))

    def _drop(self, x: Tensor) -> Tensor:
        """Stochastic depth: the term of a whole video is left out, or scaled to keep its mean."""
        if not (self.training and self.drop_path):
            return x
        keep = torch.rand(*x.shape[:2], 1, 1, 1, device=x.device) >= self.drop_path
        return x * keep / (1 - self.drop_path)


class OrderAdapter(nn.Module):
    """The adapter of one layer of the text tower (Task-Adapter++ Eq. 12-14): O-MSA, the layer's own attention over the
    S sub-actions of a class at the same token position, without a mask, then an adapter.

    position: O-MSA `after` the attention over tokens, or `before` it (Table 9).
    """

    def __init__(self, dim: int, position: str = "after") -> None:
        super().__init__()
        if position not in ORDER_POSITIONS:
            raise unknown("order_position", position, ORDER_POSITIONS)
        self.adapter = Adapter(dim)
        self.steps = ("tokens", "order") if position == "after" else ("order", "tokens")

    def forward(self, layer: CLIPEncoderLayer, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """Tokens (C, S, l, W) through `layer` -> the same shape; `mask` as `causal_mask` gives it."""
        for step in self.steps:
            tokens = tokens + getattr(self, f"_{step}")(layer, layer.layer_norm1(tokens), mask)
        return tokens + layer.mlp(layer.layer_norm2(tokens))

    def _tokens(self, layer: CLIPEncoderLayer, y: Tensor, mask: Tensor | None) -> Tensor:
        return layer.self_attn(y.flatten(0, 1), mask, is_causal=True)[0].unflatten(0, y.shape[:2])

    def _order(self, layer: CLIPEncoderLayer, y: Tensor, mask: Tensor | None) -> Tensor:
        return self.adapter(attend(layer.self_attn, y, 1))


def adapted_layers(total: int, count: int, placement: str, where: str) -> range:
    """Numbers of the adapted layers of a tower with `total`: its last `count`, its first, or all of them (Table 8).

    Raises UserError for an unknown placement or more layers than there are; `where` names the setting in it.
    """
    if placement not in PLACEMENTS:
        raise unknown("placement", placement, PLACEMENTS, where)
    if not 0 <= count <= total:
        raise UserError(f"{where} is {count}, and the tower has {total} layers; give a number from 0 to {total}")
    return {"top": range(total - count, total), "bottom": range(count), "all": range(total)}[placement]


class VisionTower(nn.Module):
    """CLIP's frame tower with adapters in some layers.

    Args:
        config: the vision configuration of CLIP.
        frames: T, the length of the temporal embedding.
        layers: L, the number of adapted layers; 0 is plain CLIP.
        placement: adapters in the `top` L layers, the `bottom` L, or `all`.
        temporal_embedding: a learnt vector for each frame, zero at the start, added to all its tokens. `adapters` adds
            it where the first adapted layer begins, so that the trunk stays plain CLIP; `input` is the released code,
            before CLIP's first LayerNorm, and sends the gradient through the whole tower; `none` has none.
        drop_path: at the last layer of the tower; it grows from 0 at the first, as in AIM.
        settings: of `VisionAdapters`.
    """

    def __init__(
        self,
        config: Any,
        frames: int = 8,
        layers: int = 2,
        placement: str = "top",
        temporal_embedding: str = "adapters",
        drop_path: float = 0.0,
        **settings: Any,
    ) -> None:
        super().__init__()
        if temporal_embedding not in TEMPORAL_EMBEDDINGS:
            raise unknown("temporal_embedding", temporal_embedding, TEMPORAL_EMBEDDINGS)
        total, width = config.num_hidden_layers, config.hidden_size
        self.places = adapted_layers(total, layers, placement, "layers")
        self.first = self.places.start if self.places else total
        self.adapters = nn.ModuleList(
            VisionAdapters(width, drop_path=drop_path * i / max(total - 1, 1), **settings) for i in self.places
        )
        self.embedded = temporal_embedding if self.places or temporal_embedding == "input" else "none"
        self.temporal_embedding = None if self.embedded == "none" else nn.Parameter(torch.zeros(1, frames, width))

    def trunk(self, clip: CLIPModel, clips: Tensor) -> Tensor:
        """Tokens of videos where the first adapted layer begins: (B, T, 3, H, W) -> (B, T, P, W).

        Without gradient if nothing up to there is trained. Raises UserError for frames of another size than CLIP's.
        """
        vision, side = clip.vision_model, clip.config.vision_config.image_size
        if tuple(clips.shape[-2:]) != (side, side):
            height, width = clips.shape[-2:]
            raise UserError(
                f"frames of {height}x{width} pixels for a CLIP of {side}x{side}; crop frames to {side} pixels"
            )
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.trains_trunk(clip)):
            tokens = vision.embeddings(clips.flatten(0, 1)).unflatten(0, clips.shape[:2])
            if self.embedded == "input":
                tokens = tokens + self._embedding(clips.shape[1])
            tokens = vision.pre_layrnorm(tokens).flatten(0, 1)
            for layer in vision.encoder.layers[: self.first]:
                tokens = layer(tokens, None)
        return tokens.unflatten(0, clips.shape[:2])

    def trains_trunk(self, clip: CLIPModel) -> bool:
        """Whether training changes what `trunk` gives."""
        return self.embedded == "input" or any(p.requires_grad for p in clip.vision_model.parameters())

    def rest(self, clip: CLIPModel, tokens: Tensor) -> Tensor:
        """Features of the M videos of each of G tasks from their trunks: (G, M, T, P, W) -> (G, M, T, D)."""
        vision = clip.vision_model
        if self.embedded == "adapters":
            tokens = tokens + self._embedding(tokens.shape[2])
        layers = vision.encoder.layers
        for i in range(self.first, len(layers)):
            if i in self.places:
                tokens = self.adapters[i - self.first](layers[i], tokens, cls_only=i == len(layers) - 1)
            else:
                tokens = layers[i](tokens.flatten(0, 2), None).unflatten(0, tokens.shape[:3])
        return clip.visual_projection(vision.post_layernorm(tokens[..., 0, :]))

    def forward(self, clip: CLIPModel, clips: Tensor) -> Tensor:
        """Videos of G tasks, (G, M, T, 3, H, W) -> (G, M, T, D): trunk and rest in one."""
        return self.rest(clip, self.trunk(clip, clips.flatten(0, 1)).unflatten(0, clips.shape[:2]))

    def _embedding(self, frames: int) -> Tensor:
        if frames != self.temporal_embedding.shape[1]:
            raise UserError(
                f"videos of {frames} frames for a temporal embedding of {self.temporal_embedding.shape[1]}; "
                f"set frames: {frames} in the model"
            )
        return self.temporal_embedding[0, :, None]


class TextTower(nn.Module):
    """CLIP's text tower with order adapters in some layers; sub-actions of a class see each other there.

    Args:
        config: the text configuration of CLIP.
        layers: M, the number of adapted layers; 0 is plain CLIP.
        placement: adapters in the `top` M layers, the `bottom` M, or `all`.
        position: of O-MSA, see `OrderAdapter`.
    """

    def __init__(self, config: Any, layers: int = 2, placement: str = "top", position: str = "after") -> None:
        super().__init__()
        total = config.num_hidden_layers
        self.places = adapted_layers(total, layers, placement, "order_layers")
        self.first = self.places.start if self.places else total
        self.adapters = nn.ModuleList(OrderAdapter(config.hidden_size, position) for _ in self.places)

    def trunk(self, clip: CLIPModel, ids: Tensor, trim: bool = True) -> tuple[Tensor, Tensor]:
        """Token ids (C, S, l) -> tokens where the first adapted layer begins (C, S, l', W), and the place (C, S) of
        each end-of-text token. Without gradient if the text tower is frozen.

        l' is the longest of the texts, or l without `trim`, which waits for the device. What stands behind it has no
        say: attention over tokens is causal, and O-MSA joins equal places. Behind the end of a shorter text it does,
        and there stand zeros, as in the released code.
        """
        text = clip.text_model
        ends = text_ends(clip.config, ids)
        ids = ids[..., : int(ends.max()) + 1] if trim else ids
        with torch.set_grad_enabled(torch.is_grad_enabled() and any(p.requires_grad for p in text.parameters())):
            tokens = text.embeddings(input_ids=ids.flatten(0, 1))
            mask = causal_mask(clip, tokens)
            for layer in text.encoder.layers[: self.first]:
                tokens = layer(tokens, mask, is_causal=True)
        return tokens.unflatten(0, ids.shape[:2]), ends

    def rest(self, clip: CLIPModel, tokens: Tensor, ends: Tensor) -> Tensor:
        """Features (C, S, D) of the sentences of C classes from what `trunk` gave."""
        text = clip.text_model
        mask = causal_mask(clip, tokens.flatten(0, 1)) if self.places else None
        for i in range(self.first, len(text.encoder.layers)):
            layer = text.encoder.layers[i]
            if i in self.places:
                tokens = self.adapters[i - self.first](layer, tokens, mask)
            else:
                tokens = layer(tokens.flatten(0, 1), mask, is_causal=True).unflatten(0, tokens.shape[:2])
        index = ends[..., None, None].expand(*ends.shape, 1, tokens.shape[-1])
        return clip.text_projection(text.final_layer_norm(tokens.gather(2, index).squeeze(2)))

    def forward(self, clip: CLIPModel, ids: Tensor, trim: bool = True) -> Tensor:
        """Token ids (C, S, l) -> features (C, S, D): trunk and rest in one."""
        return self.rest(clip, *self.trunk(clip, ids, trim))


def text_ends(config: CLIPConfig, ids: Tensor) -> Tensor:
    """Place of the end-of-text token in each row of ids: (..., l) -> (...).

    Old configurations say 2, which transformers reads as "the highest id".
    """
    end = config.text_config.eos_token_id
    return ids.argmax(-1) if end == 2 else (ids == end).int().argmax(-1)


def causal_mask(clip: CLIPModel, tokens: Tensor) -> Tensor | None:
    """Mask of the attention over tokens (n, l, W) for CLIP's attention kernel; None where a flag tells it enough."""
    from transformers.masking_utils import create_causal_mask

    return create_causal_mask(clip.text_model.config, tokens, None, None)
