"""Adapters on CLIP layers: against released numbers, and against loops that attend token by token."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import nn
from transformers import CLIPConfig, CLIPModel

from pipeline.errors import UserError
from pipeline.models.backbones.clip import VIT_B_16, CLIPBackbone
from pipeline.models.backbones.nano_clip import nano_config
from pipeline.models.few_shot.blocks import adapters
from pipeline.models.few_shot.blocks.adapters import (
    Adapter,
    OrderAdapter,
    TextTower,
    VisionAdapters,
    VisionTower,
    adapted_layers,
)

torch.set_num_threads(1)


# ------------------------------------------------------------------------------- released weights in our modules
ADAPTER_NAMES = {
    "temporal": ("t_adapter", "T_Adapter"),
    "temporal_in": ("T_Adapter_in",),
    "spatial": ("s_adapter", "S_Adapter"),
    "mlp": ("MLP_adapter", "MLP_Adapter"),
    "task": ("task_adapter",),
    "adapter": ("sub3_adapter",),
}


def golden_config(projection: int = 512, layers: int = 3) -> CLIPConfig:
    """The sizes of the reference cases: width 32, four heads, nine patches, 77 tokens of a vocabulary of 40."""
    tower = {"hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": layers, "num_attention_heads": 4}
    return CLIPConfig(
        vision_config={**tower, "image_size": 12, "patch_size": 4},
        text_config={**tower, "vocab_size": 40, "max_position_embeddings": 77, "eos_token_id": 2},
        projection_dim=projection,
    )


def _weights(arrays: dict, prefix: str) -> dict[str, torch.Tensor]:
    prefix = f"w.{prefix}"
    return {key[len(prefix) :]: torch.from_numpy(value) for key, value in arrays.items() if key.startswith(prefix)}


@torch.no_grad()
def copy_layer(layer: nn.Module, w: dict[str, torch.Tensor], prefix: str = "") -> None:
    """A released residual attention block into a layer of transformers."""
    for kind in ("weight", "bias"):
        parts = w[f"{prefix}attn.in_proj_{kind}"].chunk(3)
        for name, part in zip(("q_proj", "k_proj", "v_proj"), parts, strict=True):
            getattr(getattr(layer.self_attn, name), kind).copy_(part)
        for mine, theirs in (
            (layer.self_attn.out_proj, "attn.out_proj"), (layer.layer_norm1, "ln_1"), (layer.layer_norm2, "ln_2"),
            (layer.mlp.fc1, "mlp.c_fc"), (layer.mlp.fc2, "mlp.c_proj"),
        ):  # fmt: skip
            getattr(mine, kind).copy_(w[f"{prefix}{theirs}.{kind}"])


@torch.no_grad()
def copy_adapters(module: nn.Module, w: dict[str, torch.Tensor], prefix: str = "") -> None:
    """Released adapters of one block into `VisionAdapters` or `OrderAdapter`."""
    for name, adapter in module.named_children():
        (theirs,) = [known for known in ADAPTER_NAMES[name] if f"{prefix}{known}.D_fc1.weight" in w]
        for mine, their in ((adapter.down, "D_fc1"), (adapter.up, "D_fc2")):
            mine.weight.copy_(w[f"{prefix}{theirs}.{their}.weight"])
            mine.bias.copy_(w[f"{prefix}{theirs}.{their}.bias"])


@torch.no_grad()
def copy_vision(clip: CLIPModel, tower: VisionTower, w: dict[str, torch.Tensor]) -> None:
    """A released frame tower, adapters and all, into CLIP and a `VisionTower`."""
    vision = clip.vision_model
    vision.embeddings.class_embedding.copy_(w["class_embedding"])
    vision.embeddings.position_embedding.weight.copy_(w["positional_embedding"])
    vision.embeddings.patch_embedding.weight.copy_(w["conv1.weight"])
    for mine, theirs in ((vision.pre_layrnorm, "ln_pre"), (vision.post_layernorm, "ln_post")):
        mine.weight.copy_(w[f"{theirs}.weight"])
        mine.bias.copy_(w[f"{theirs}.bias"])
    clip.visual_projection.weight.copy_(w["proj"].T if "proj" in w else torch.eye(32))
    tower.temporal_embedding.copy_(w["temporal_embedding"])
    for i, layer in enumerate(vision.encoder.layers):
        copy_layer(layer, w, f"transformer.resblocks.{i}.")
    for i, module in zip(tower.places, tower.adapters, strict=True):
        copy_adapters(module, w, f"transformer.resblocks.{i}.")


@torch.no_grad()
def copy_text(clip: CLIPModel, tower: TextTower, w: dict[str, torch.Tensor]) -> None:
    """A released text tower, adapters and all, into CLIP and a `TextTower`."""
    text = clip.text_model
    text.embeddings.token_embedding.weight.copy_(w["token_embedding.weight"])
    text.embeddings.position_embedding.weight.copy_(w["positional_embedding"])
    text.final_layer_norm.weight.copy_(w["ln_final.weight"])
    text.final_layer_norm.bias.copy_(w["ln_final.bias"])
    clip.text_projection.weight.copy_(w["text_projection"].T)
    for i, layer in enumerate(text.encoder.layers):
        copy_layer(layer, w, f"transformer.resblocks.{i}.")
    for i, module in zip(tower.places, tower.adapters, strict=True):
        copy_adapters(module, w, f"transformer.resblocks.{i}.")


def _tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.asarray(array))


def _close(got: torch.Tensor, want, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(got.detach(), torch.as_tensor(want), rtol=tolerance, atol=tolerance)


def _layer(config: CLIPConfig, kind: str = "vision_model") -> nn.Module:
    return getattr(CLIPModel(config).eval(), kind).encoder.layers[0]


# --------------------------------------------------------------------------------------------- released numbers
@torch.no_grad()
def test_a_layer_gives_the_released_numbers(golden):
    arrays = golden("ta_visual_layer")
    w, layer, module = _weights(arrays, ""), _layer(golden_config()), VisionAdapters(32).eval()
    copy_layer(layer, w)
    copy_adapters(module, w)
    for name, videos in (("5videos", 5), ("1video", 1)):
        x = _tensor(arrays[f"in.x_{name}"]).unflatten(0, (1, videos, 8))
        got = module(layer, x)
        _close(got.flatten(0, 2), arrays[f"out.y_{name}"])
        _close(module(layer, x, cls_only=True), got[..., :1, :], 1e-6)
    x = _tensor(arrays["in.x_5videos"]).unflatten(0, (1, 5, 8))
    attention = adapters.attend(layer.self_attn, layer.layer_norm1(x), 3)
    _close(attention.flatten(0, 2), arrays["out.attention_plain"])
    _close(layer(x.flatten(0, 2), None), arrays["out.y_5videos_adapter_off"])
    for name in ("t_adapter", "s_adapter", "task_adapter", "MLP_adapter"):  # branch by branch
        got = {
            "t_adapter": lambda x: module._temporal(layer, layer.layer_norm1(x)),
            "s_adapter": lambda x: module._spatial(layer, layer.layer_norm1(x)),
            "task_adapter": lambda x: module._task(layer, layer.layer_norm1(x)),
            "MLP_adapter": lambda x: module.mlp(layer.layer_norm2(x)),
        }[name](x)
        want = _tensor(arrays[f"out.branch_{name}"])
        _close(got.flatten(0, 2), want)
        if name != "MLP_adapter":
            x = x + got


@pytest.mark.parametrize("layers", [0, 1, 2, 3])
@torch.no_grad()
def test_the_frame_tower_gives_the_released_numbers(golden, layers):
    arrays = golden("ta_visual_tower")
    clip = CLIPModel(golden_config()).eval()
    tower = VisionTower(clip.config.vision_config, layers=layers, temporal_embedding="input").eval()
    copy_vision(clip, tower, _weights(arrays, ""))
    clips = _tensor(arrays["in.video"]).transpose(1, 2)[None]
    _close(tower(clip, clips)[0], arrays[f"out.features_adapters_in_last_{layers}_of_3"])


@torch.no_grad()
def test_groups_of_videos_give_the_released_numbers(golden):
    """What three GPUs do to a task of five videos; the golden file does not say in how many layers: in two."""
    arrays = golden("ta_visual_tower")
    clip = CLIPModel(golden_config()).eval()
    tower = VisionTower(clip.config.vision_config, layers=2, temporal_embedding="input", task_group=2).eval()
    copy_vision(clip, tower, _weights(arrays, ""))
    clips = _tensor(arrays["in.video"]).transpose(1, 2)[None]
    _close(tower(clip, clips)[0], arrays["out.features_groups_2_2_1"])
    parts = [tower(clip, part) for part in clips.chunk(3, dim=1)]
    _close(torch.cat(parts, dim=1)[0], arrays["out.features_groups_2_2_1"])


@torch.no_grad()
def test_a_text_layer_gives_the_released_numbers(golden):
    arrays = golden("ta_text_layer")
    clip = CLIPModel(golden_config()).eval()
    layer, w, module = clip.text_model.encoder.layers[0], _weights(arrays, ""), OrderAdapter(32)
    copy_layer(layer, w)
    copy_adapters(module, w)
    x = _tensor(arrays["in.x_LND"]).permute(1, 0, 2)[None]  # (1 class, 3, 9, 32)
    mask = adapters.causal_mask(clip, x[0])
    _close(module(layer, x, mask)[0].permute(1, 0, 2), arrays["out.y"])
    _close(layer(x[0], mask, is_causal=True).permute(1, 0, 2), arrays["out.y_adapter_off"])
    x = x + module._tokens(layer, layer.layer_norm1(x), mask)
    got = module._order(layer, layer.layer_norm1(x), mask)
    _close(got[0].permute(1, 0, 2), arrays["out.branch_order_adapter"])


@pytest.mark.parametrize("layers", [0, 1, 2, 3])
@torch.no_grad()
def test_the_text_tower_gives_the_released_numbers(golden, layers):
    arrays = golden("ta_text_tower")
    clip = CLIPModel(golden_config()).eval()
    tower = TextTower(clip.config.text_config, layers=layers)
    copy_text(clip, tower, _weights(arrays, ""))
    ids = _tensor(arrays["in.tokens"]).long()
    _close(tower(clip, ids), arrays[f"out.features_fp32_adapters_in_last_{layers}_of_3"])


@pytest.mark.parametrize(("name", "scale", "temporal"), [("block_t1_scale05", 0.5, 1), ("block_t2_scale1", 1.0, 2)])
@torch.no_grad()
def test_an_aim_layer_gives_the_released_numbers(golden, name, scale, temporal):
    arrays = golden("aim")
    w, layer = _weights(arrays, f"{name}."), _layer(golden_config())
    module = VisionAdapters(32, task=False, mlp_scale=scale, temporal_adapters=temporal, drop_path=0.2).eval()
    copy_layer(layer, w)
    copy_adapters(module, w)
    x = _tensor(arrays["in.x_LND"]).transpose(0, 1).unflatten(0, (3, 1, 8))  # three videos, each a task of its own
    got = module._temporal(layer, layer.layer_norm1(x))  # released order: (frames, videos * tokens)
    _close(got.squeeze(1).permute(1, 0, 2, 3).flatten(1, 2), arrays[f"out.{name}_branch_T_Adapter"])
    for videos in ((3, 1), (1, 3)):  # without Task-MSA it does not matter who is in a task with whom
        got = module(layer, x.reshape(*videos, *x.shape[2:]))
        _close(got.flatten(0, 2).transpose(0, 1), arrays[f"out.{name}_y"])


@torch.no_grad()
def test_an_aim_tower_gives_the_released_numbers(golden):
    arrays = golden("aim")
    clip = CLIPModel(golden_config(projection=32, layers=2)).eval()
    settings = {"layers": 2, "temporal_embedding": "input", "task": False, "mlp_scale": 0.5}
    tower = VisionTower(clip.config.vision_config, **settings).eval()
    copy_vision(clip, tower, _weights(arrays, "tower."))
    clips = _tensor(arrays["in.video"]).transpose(1, 2)[None]
    _close(tower(clip, clips)[0].transpose(1, 2), arrays["out.tower_cls_per_frame_BDT11"][..., 0, 0])


# ------------------------------------------------------------------------------------------------ slow references
def _random(module: nn.Module, seed: int = 0) -> nn.Module:
    """Every parameter at random, so that no branch is silent."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=g) * 0.3)
    return module.eval()


def _slow_attention(attention: nn.Module, rows: torch.Tensor, causal: bool = False) -> torch.Tensor:
    """Attention of one sequence (n, W) over itself, head by head and row by row."""
    q, k, v = attention.q_proj(rows), attention.k_proj(rows), attention.v_proj(rows)
    size, out = attention.head_dim, torch.zeros_like(rows)
    for head, i in itertools.product(range(attention.num_heads), range(len(rows))):
        part = slice(head * size, (head + 1) * size)
        seen = i + 1 if causal else len(rows)
        weights = torch.softmax(torch.stack([q[i, part] @ k[j, part] for j in range(seen)]) / size**0.5, 0)
        out[i, part] = sum(weight * v[j, part] for j, weight in enumerate(weights))
    return attention.out_proj(out)


def _slow_layer(module: VisionAdapters, layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """One adapted layer on tokens (G, M, T, P, W), one sequence at a time."""
    shape = x.shape[:-1]
    for step in module.steps:
        y, out = layer.layer_norm1(x), torch.zeros_like(x)
        y = module.temporal_in(y) if step == "temporal" and module.temporal_in else y
        for g, m, t, p in itertools.product(*map(range, shape)):
            if step == "temporal" and t == 0:
                out[g, m, :, p] = _slow_attention(layer.self_attn, y[g, m, :, p])
            elif step == "spatial" and p == 0:
                out[g, m, t] = _slow_attention(layer.self_attn, y[g, m, t])
            elif step == "task" and m % (module.task_group or shape[1]) == 0:
                group = slice(m, m + (module.task_group or shape[1]))
                out[g, group, t, p] = _slow_attention(layer.self_attn, y[g, group, t, p])
        adapter = getattr(module, step)
        x = x + (out if adapter is None else adapter(out))
    y = layer.layer_norm2(x)
    return x + layer.mlp(y) + (module.mlp_scale * module.mlp(y) if module.mlp else 0)


SETTINGS = {
    "task_adapter": {},
    "aim": {"task": False, "mlp_scale": 0.5},
    "aim_ssv2": {"task": False, "temporal_adapters": 2},
    "task_alone": {"aim": False},
    "task_alone_before": {"aim": False, "task_position": "before"},
    "before": {"task_position": "before"},
    "between": {"task_position": "between"},
    "groups": {"task_group": 2},
}
STEPS = {
    "task_adapter": ["temporal", "spatial", "task"],
    "aim": ["temporal", "spatial"],
    "aim_ssv2": ["temporal", "spatial"],
    "task_alone": ["spatial", "task"],
    "task_alone_before": ["task", "spatial"],
    "before": ["task", "temporal", "spatial"],
    "between": ["temporal", "task", "spatial"],
    "groups": ["temporal", "spatial", "task"],
}


@pytest.mark.parametrize("name", SETTINGS)
@torch.no_grad()
def test_a_layer_is_its_slow_self(name):
    config = nano_config(10, width=8, mlp_width=12, layers=1, heads=2)
    for seed, shape in enumerate([(2, 3, 2, 3), (1, 1, 3, 2), (1, 5, 1, 2)]):
        layer, module = _random(_layer(config)), _random(VisionAdapters(8, **SETTINGS[name]), 1)
        assert module.steps == STEPS[name]
        x = torch.randn(*shape, 8, generator=torch.Generator().manual_seed(seed))
        got = module(layer, x)
        _close(got, _slow_layer(module, layer, x))
        _close(module(layer, x, cls_only=True), got[..., :1, :], 1e-6)


@torch.no_grad()
def test_tasks_and_groups_do_not_see_each_other():
    config = nano_config(10, width=8, mlp_width=12, layers=1, heads=2)
    layer, module = _random(_layer(config)), _random(VisionAdapters(8, task_group=2), 1)
    x = torch.randn(2, 5, 2, 3, 8)
    got, other = module(layer, x), x.clone()
    other[0, 1] += torch.randn(2, 3, 8)  # the second video of the first task
    changed = (module(layer, other) - got).abs().amax((-1, -2, -3)) > 1e-6
    assert changed.tolist() == [[True, True, False, False, False], [False] * 5]


@torch.no_grad()
def test_long_batches_of_attention_are_split(monkeypatch):
    layer, module = _random(_layer(nano_config(10, width=8, layers=1, heads=2))), _random(VisionAdapters(8), 1)
    x = torch.randn(2, 3, 2, 3, 8)
    whole = module(layer, x)
    monkeypatch.setattr(adapters, "SEQUENCES", 4)
    _close(module(layer, x), whole, 1e-6)


@pytest.mark.parametrize("position", ["after", "before"])
@torch.no_grad()
def test_a_text_layer_is_its_slow_self(position):
    clip = CLIPModel(nano_config(10, width=8, mlp_width=12, layers=1, heads=2)).eval()
    layer, module = _random(clip.text_model.encoder.layers[0]), _random(OrderAdapter(8, position), 1)
    x = torch.randn(2, 3, 4, 8)
    want = x
    for step in ("tokens", "order") if position == "after" else ("order", "tokens"):
        y, out = layer.layer_norm1(want), torch.zeros_like(x)
        for c, s, i in itertools.product(*map(range, x.shape[:-1])):
            if step == "tokens" and i == 0:
                out[c, s] = _slow_attention(layer.self_attn, y[c, s], causal=True)
            elif step == "order" and s == 0:
                out[c, :, i] = _slow_attention(layer.self_attn, y[c, :, i])
        want = want + (out if step == "tokens" else module.adapter(out))
    want = want + layer.mlp(layer.layer_norm2(want))
    _close(module(layer, x, adapters.causal_mask(clip, x.flatten(0, 1))), want)


# -------------------------------------------------------------------------------------------------------- towers
def _clip(layers: int = 12, attention: str = "sdpa") -> CLIPModel:
    config = nano_config(
        60, image_size=8, patch_size=4, width=8, mlp_width=12, layers=layers, heads=2, projection_dim=6
    )
    torch.manual_seed(0)
    clip = CLIPModel._from_config(config, attn_implementation=attention)
    return _random(clip, 3).requires_grad_(False)


def _whole_tower(clip: CLIPModel, tower: VisionTower, clips: torch.Tensor) -> torch.Tensor:
    """One task (M, T, 3, H, W) layer after layer, from the pixels on."""
    vision = clip.vision_model
    x = vision.embeddings(clips.flatten(0, 1)).unflatten(0, clips.shape[:2])[None]
    if tower.embedded == "input":
        x = x + tower.temporal_embedding[0][:, None]
    x = vision.pre_layrnorm(x)
    for i, layer in enumerate(vision.encoder.layers):
        if i == tower.places.start and tower.embedded == "adapters":
            x = x + tower.temporal_embedding[0][:, None]
        if i in tower.places:
            x = tower.adapters[i - tower.places.start](layer, x)
        else:
            x = torch.stack([layer(video, None) for video in x[0]])[None]
    return clip.visual_projection(vision.post_layernorm(x[0, :, :, 0]))


@pytest.mark.parametrize("embedding", ["adapters", "input", "none"])
@pytest.mark.parametrize(("layers", "placement"), [(2, "top"), (6, "top"), (2, "bottom"), (1, "all")])
@torch.no_grad()
def test_a_trunk_worked_out_once_serves_every_task(layers, placement, embedding):
    clip = _clip()
    settings = {"frames": 3, "layers": layers, "placement": placement, "temporal_embedding": embedding}
    tower = _random(VisionTower(clip.config.vision_config, **settings), 4)
    assert len(tower.adapters) == (12 if placement == "all" else layers)
    clips = torch.randn(6, 3, 3, 8, 8)
    trunk = tower.trunk(clip, clips)
    assert trunk.shape == (6, 3, 5, 8)
    for task in ([0, 1, 2], [3, 1, 5], [4]):
        got = tower.rest(clip, trunk[task][None])[0]
        _close(got, _whole_tower(clip, tower, clips[task]), 1e-4)
    both = tower.rest(clip, trunk[torch.tensor([[0, 1, 2], [3, 1, 5]])])  # two tasks in one call
    _close(both[1], _whole_tower(clip, tower, clips[[3, 1, 5]]), 1e-4)
    alone = tower.rest(clip, trunk[[1]][None])[0, 0]
    assert (both[0, 1] - both[1, 1]).abs().max() > 1e-4 and (both[0, 1] - alone).abs().max() > 1e-4


@pytest.mark.parametrize("placement", ["top", "bottom", "all"])
@torch.no_grad()
def test_fresh_adapters_leave_clip_as_it_is(placement):
    backbone = CLIPBackbone(nano_config(60, image_size=8, patch_size=4, width=8, layers=4, heads=2, projection_dim=6))
    clip = _random(backbone.clip, 3)
    clips, ids = torch.randn(4, 3, 3, 8, 8), torch.tensor([[[1, 5, 6, 3, 0], [1, 7, 3, 0, 0]]])
    for settings in ({}, {"temporal_adapters": 2}, {"aim": False}, {"task_position": "before"}):
        tower = VisionTower(clip.config.vision_config, 3, 2, placement, **settings).eval()
        _close(tower(clip, clips[None])[0], backbone.encode_frames(clips), 1e-6)
    text = TextTower(clip.config.text_config, 2, placement)
    _close(text(clip, ids)[0], backbone.encode_tokens(ids[0]), 1e-6)
    tower = VisionTower(clip.config.vision_config, 3, 2, placement, task_init="default").eval()
    assert (tower(clip, clips[None])[0] - backbone.encode_frames(clips)).abs().max() > 1e-5


@torch.no_grad()
def test_no_layers_are_plain_clip():
    backbone = CLIPBackbone(nano_config(60, image_size=8, patch_size=4, width=8, layers=2, heads=2, projection_dim=6))
    clip, clips = _random(backbone.clip, 3), torch.randn(2, 5, 3, 8, 8)
    tower = VisionTower(clip.config.vision_config, layers=0)
    assert not list(tower.parameters())  # no adapted layer, so nowhere for the temporal embedding to enter
    _close(tower(clip, clips[None])[0], backbone.encode_frames(clips), 1e-6)
    ids = torch.tensor([[1, 5, 6, 3, 0], [1, 7, 3, 0, 0]])
    for config in (clip.config, CLIPConfig(**clip.config.to_dict())):
        assert adapters.text_ends(config, ids).tolist() == [3, 2]
    _close(TextTower(clip.config.text_config, layers=0)(clip, ids[None])[0], backbone.encode_tokens(ids), 1e-6)
    old = CLIPConfig(text_config={"eos_token_id": 2})  # the end is the highest id
    assert adapters.text_ends(old, ids).tolist() == [2, 1]


def test_the_trunk_has_a_gradient_only_where_something_in_it_learns():
    clip, clips = _clip(3), torch.randn(2, 3, 3, 8, 8)
    for embedding, placement, wanted in (
        ("adapters", "top", False), ("none", "bottom", False), ("input", "top", True), ("adapters", "bottom", False)
    ):  # fmt: skip
        tower = VisionTower(clip.config.vision_config, 3, 1, placement, embedding)
        assert tower.trunk(clip, clips).requires_grad is wanted
        tower(clip, clips[None]).square().sum().backward()
        reached = {name for name, p in tower.named_parameters() if p.grad is not None}
        assert reached == {name for name, _ in tower.named_parameters()}
    assert all(p.grad is None for p in clip.parameters())
    ids = torch.tensor([[[1, 5, 3], [1, 7, 3]]])
    text = TextTower(clip.config.text_config, 1)
    assert not text.trunk(clip, ids)[0].requires_grad and text(clip, ids).requires_grad
    clip.requires_grad_(True)
    assert (
        text.trunk(clip, ids)[0].requires_grad
        and VisionTower(clip.config.vision_config).trunk(clip, clips).requires_grad
    )


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(("layers", "placement"), [(2, "top"), (2, "bottom"), (0, "all"), (0, "top")])
@torch.no_grad()
def test_padding_behind_the_longest_text_changes_nothing(layers, placement, attention):
    clip = _clip(4, attention)
    tower = _random(TextTower(clip.config.text_config, layers, placement), 5)
    ids = torch.zeros(2, 3, 77, dtype=torch.long)
    for c, s, length in ((0, 0, 4), (0, 1, 7), (0, 2, 3), (1, 0, 9), (1, 1, 5), (1, 2, 9)):
        ids[c, s, :length] = torch.randint(4, 60, (length,))
        ids[c, s, length - 1] = 3  # end of text
    tokens, ends = tower.trunk(clip, ids)
    assert tokens.shape[2] == 9 and ends.tolist() == [[3, 6, 2], [8, 4, 8]]
    full = clip.text_model.embeddings(input_ids=ids.flatten(0, 1))  # all 77 tokens, by hand
    mask = adapters.causal_mask(clip, full)
    full = full.unflatten(0, (2, 3))
    for i, layer in enumerate(clip.text_model.encoder.layers):
        if i in tower.places:
            full = tower.adapters[i - tower.places.start](layer, full, mask)
        else:
            full = layer(full.flatten(0, 1), mask, is_causal=True).unflatten(0, (2, 3))
    ended = torch.stack([torch.stack([full[c, s, ends[c, s]] for s in range(3)]) for c in range(2)])
    want = clip.text_projection(clip.text_model.final_layer_norm(ended))
    got = tower(clip, ids)
    _close(got, want)
    _close(tower(clip, ids[:1]), want[:1])  # a class does not depend on the others, however long they are
    if tower.places:  # but what stands behind a short sub-action counts, for O-MSA joins equal places
        dirty = ids.clone()
        dirty[0, 2, 3:] = 11
        assert (tower(clip, dirty)[0] - got[0]).abs().max() > 1e-6


def test_drop_path_drops_whole_videos_in_training_only():
    layer, module = _random(_layer(nano_config(10, width=8, layers=1, heads=2))), VisionAdapters(8, drop_path=0.5)
    _random(module, 1)
    x = torch.randn(2, 50, 2, 3, 8)
    assert torch.equal(module(layer, x), module(layer, x))
    module.train()
    torch.manual_seed(0)
    term = torch.ones(20, 50, 2, 3, 8)
    dropped = module._drop(term)
    assert set(dropped.unique().tolist()) == {0.0, 2.0} and dropped.mean().item() == pytest.approx(1, abs=0.1)
    assert torch.equal(dropped.amin((2, 3, 4)), dropped.amax((2, 3, 4)))
    torch.manual_seed(1)
    one = module(layer, x)
    assert not torch.equal(module(layer, x), one)
    torch.manual_seed(1)
    assert torch.equal(module(layer, x), one)
    rates = [
        a.drop_path for a in VisionTower(nano_config(10, layers=5).vision_config, layers=3, drop_path=0.2).adapters
    ]
    assert rates == pytest.approx([0.1, 0.15, 0.2])


# ----------------------------------------------------------------------------------------------- sizes and errors
def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_sizes_at_vit_b_16():
    """Exact counts beside Table 8 of the paper, in millions, which rounds and in places misses by 0.1."""
    with torch.device("meta"):
        assert _count(VisionAdapters(768)) == 1_183_488
        assert _count(VisionAdapters(768, task=False)) == 887_616
        assert _count(VisionAdapters(768, aim=False)) == 295_872
        assert _count(OrderAdapter(512)) == _count(Adapter(512)) == 131_712
        vision, text = CLIPConfig(**VIT_B_16).vision_config, CLIPConfig(**VIT_B_16).text_config
        for layers, printed in ((2, 2.4), (6, 7.2), (12, 14.1)):
            tower = VisionTower(vision, layers=layers)
            assert tower.temporal_embedding.numel() == 6_144
            assert _count(tower) == layers * 1_183_488 + 6_144
            assert _count(tower) / 1e6 == pytest.approx(printed, abs=0.11)
            assert _count(VisionTower(vision, layers=layers, placement="bottom")) == _count(tower)
        for layers, printed in ((2, 0.263), (6, 0.790), (12, 1.58)):
            assert _count(TextTower(text, layers)) == layers * 131_712
            assert _count(TextTower(text, layers)) / 1e6 == pytest.approx(printed, abs=0.001)
        for layers, order, exact, printed in ((2, 8, 3_426_816, 3.5), (6, 2, 7_370_496, 7.5)):
            total = _count(VisionTower(vision, layers=layers)) + _count(TextTower(text, order))
            assert total == exact and total / 1e6 == pytest.approx(printed, abs=0.15)


def test_adapters_start_as_nothing():
    x = torch.randn(3, 8)
    assert torch.equal(Adapter(8)(x), torch.zeros_like(x)) and torch.equal(Adapter(8, skip=True)(x), x)
    assert Adapter(8, zero=False)(x).abs().max() > 0 and Adapter(8, hidden=3).down.out_features == 3
    module = VisionAdapters(8, task_init="default", temporal_adapters=2)
    silent = {name for name, adapter in module.named_children() if not adapter.up.weight.any()}
    assert silent == {"temporal_in", "temporal", "spatial", "mlp"}


def test_places_of_adapters():
    assert list(adapted_layers(12, 2, "top", "layers")) == [10, 11]
    assert list(adapted_layers(12, 2, "bottom", "layers")) == [0, 1]
    assert list(adapted_layers(3, 1, "all", "layers")) == [0, 1, 2]
    assert not adapted_layers(3, 0, "top", "layers")


def test_settings_that_make_no_sense():
    config = nano_config(10, width=8, layers=2, heads=2)
    for build, message in (
        (lambda: VisionAdapters(8, task_position="betwen"), "task_position 'betwen'; did you mean 'between'"),
        (lambda: VisionAdapters(8, task_init="zeros"), "did you mean 'zero'"),
        (lambda: VisionAdapters(8, temporal_adapters=3), "temporal_adapters is 3"),
        (lambda: VisionAdapters(8, drop_path=1.0), "drop_path is 1.0"),
        (lambda: VisionAdapters(8, task_group=-1), "task_group is -1"),
        (lambda: OrderAdapter(8, "aftr"), "order_position 'aftr'"),
        (lambda: VisionTower(config.vision_config, layers=3), "layers is 3, and the tower has 2 layers"),
        (lambda: VisionTower(config.vision_config, placement="botom"), "placement 'botom' in layers"),
        (lambda: VisionTower(config.vision_config, temporal_embedding="inputs"), "did you mean 'input'"),
        (lambda: TextTower(config.text_config, layers=3), "order_layers is 3"),
    ):
        with pytest.raises(UserError, match=message):
            build()
    clip = CLIPModel(nano_config(10, image_size=8, patch_size=4, width=8, layers=2, heads=2))
    tower = VisionTower(clip.config.vision_config, frames=4)
    with pytest.raises(UserError, match="videos of 3 frames for a temporal embedding of 4; set frames: 3"):
        tower(clip, torch.zeros(1, 1, 3, 3, 8, 8))
    with pytest.raises(UserError, match="frames of 8x16 pixels for a CLIP of 8x8"):
        tower.trunk(clip, torch.zeros(1, 4, 3, 8, 16))
