"""The TimeSformer of elements, its fusion head and its weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.errors import UserError
from pipeline.models.semi.fusion import ElementNetwork, FusionHead
from pipeline.models.semi.mixing import mix_patches
from pipeline.models.semi.timesformer import ElementTimeSformer

torch.set_num_threads(1)
TINY = {"width": 48, "depth": 2, "heads": 4, "patch": 16, "image_size": 48}


def _close(got: torch.Tensor, want) -> None:
    np.testing.assert_allclose(got.detach().numpy(), want, rtol=1e-5, atol=2e-6)


def _clip(array: np.ndarray) -> torch.Tensor:
    """(B, 3, T, H, W) of the released code -> (B, T, 3, H, W)."""
    return torch.from_numpy(array).transpose(1, 2)


def _tiny(frames=(2, 2, 4), **more) -> ElementTimeSformer:
    return ElementTimeSformer(TINY, frames, drop_path=0.0, **more)


@torch.no_grad()
def _randomise(module: torch.nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)


def test_elements_have_the_released_features(golden, sefar_network):
    arrays = golden("sefar_tiny")
    backbone = sefar_network.backbone
    for i, frames in enumerate((2, 2, 4)):
        x = _clip(arrays[f"in/iter_lab{i}"])
        _close(backbone(x, i), arrays[f"tiny/element{i}_T{frames}_feature"])
    _close(sefar_network([_clip(arrays[f"in/iter_lab{i}"]) for i in range(3)]), arrays["tiny/logits"])

    tokens = []
    backbone.blocks[0].register_forward_hook(lambda module, args, output: tokens.append(output))
    backbone(_clip(arrays["in/iter_lab2"]), 2)
    _close(tokens[0], arrays["tiny/element2_block0_tokens"])


def test_elements_that_share_a_pass_are_encoded_as_each_alone():
    model = _tiny((2, 2, 4)).eval()
    _randomise(model)
    generator = torch.Generator().manual_seed(2)
    clips = [torch.randn(3, frames, 3, 48, 48, generator=generator) for frames in (2, 2, 4)]
    passes = []
    model.blocks[0].register_forward_hook(lambda module, args, output: passes.append(len(output)))
    together = model.encode(dict(enumerate(model.patches(*clips))))
    assert passes == [6, 3] and list(together) == [0, 1, 2]
    for i, clip in enumerate(clips):
        _close(together[i], model(clip, i).detach())
    assert (together[0] - together[1]).abs().max() > 0.01


def test_mixing_lies_at_the_patch_embedding(golden, sefar_network):
    arrays = golden("sefar_tiny")
    x = sefar_network.backbone.patches(_clip(arrays["in/iter_lab2"]))[0]
    mask = torch.from_numpy(arrays["in/tiny_mixmask_element2_1xTxN"][0, 0] > 0)
    assert (arrays["in/tiny_mixmask_element2_1xTxN"] == mask.float().numpy()).all()  # the same in all frames
    mixed = sefar_network.backbone.encode({2: mix_patches(x[:1], x[1:], mask)})
    _close(mixed[2], arrays["tiny/mixed_element2_feature"])


def test_fusion_head_matches_the_released_one(golden, sefar_network):
    arrays, head = golden("sefar_tiny"), sefar_network.head
    features = torch.from_numpy(arrays["in/fusion_element_features"]).unbind(0)
    pairs = torch.stack([head.pair(torch.cat((features[i], features[j]), -1)) for i, j in head.pairs])
    _close(pairs, arrays["fusion/pair_features_01_02_12"])
    _close(torch.stack([head.single(x) for x in features]), arrays["fusion/single_features"])
    _close(head.feature(features), arrays["fusion/global_feature"])
    _close(head(head.feature(features)), arrays["fusion/logits"])


def test_svformer_has_the_same_trunk(golden):
    arrays = golden("svformer")
    model = _tiny((8,)).eval()
    state = {name[8:]: torch.from_numpy(value) for name, value in arrays.items() if name.startswith("weights/")}
    state["time_embed.0"] = state.pop("time_embed")
    model.load_state_dict(state)
    x = _clip(arrays["in/mix_x_first2_a_last2_b"])
    patches = model.patches(x)[0]
    _close(patches[:, :2], arrays["mix/patch_tokens_plain"])
    _close(model(x), arrays["mix/feature_plain"])
    masks = torch.from_numpy(arrays["in/mix_mask"] > 0)
    mixed = torch.cat([mix_patches(patches[i, None], patches[i + 2, None], masks[i, 0]) for i in range(2)])
    _close(model.encode({0: mixed})[0], arrays["mix/feature_mixed"])


def test_equals_mmaction2_timesformer():
    from mmengine.registry import DefaultScope

    from pipeline.compat import MODELS

    with DefaultScope.overwrite_default_scope("mmaction"):  # it can't be built without
        settings = {"num_frames": 4, "img_size": 48, "patch_size": 16, "embed_dims": 48, "num_heads": 4}
        theirs = MODELS.build({"type": "TimeSformer", **settings, "num_transformer_layers": 2})
    _randomise(theirs)
    names = {
        "patch_embed.proj": "patch_embed.projection",
        "time_embed.0": "time_embed",
        "blocks": "transformer_layers.layers",
        "temporal_norm1": "attentions.0.norm",
        "temporal_attn.qkv.": "attentions.0.attn.in_proj_",
        "temporal_attn.proj": "attentions.0.attn.out_proj",
        "temporal_fc": "attentions.0.temporal_fc",
        ".attn.qkv.": ".attentions.1.attn.in_proj_",
        ".attn.proj": ".attentions.1.attn.out_proj",
        ".norm1": ".attentions.1.norm",
        "norm2": "ffns.0.norm",
        "mlp.fc1": "ffns.0.layers.0.0",
        "mlp.fc2": "ffns.0.layers.1",
    }
    ours, state = _tiny((4,)), theirs.state_dict()
    renamed = {}
    for name in ours.state_dict():
        old = name
        for mine, other in names.items():
            old = old.replace(mine, other)
        renamed[name] = state.pop(old)
    assert not state
    ours.load_state_dict(renamed)
    x = torch.randn(2, 4, 3, 48, 48, generator=torch.Generator().manual_seed(1))
    _close(ours.eval()(x), theirs.eval()(x.transpose(1, 2)).detach())


@pytest.mark.parametrize(
    ("source", "head", "elements", "classes", "total"),
    [
        ("small", "fusion", (2, 2, 4), 99, 31_264_227),
        ("base", "fusion", (2, 2, 4), 99, 122_269_539),
        ("base", "linear", (8,), 400, 121_566_352),
    ],
)
def test_published_sizes(source, head, elements, classes, total):
    with torch.device("meta"):
        network = ElementNetwork({"source": source}, elements, classes, head, 0.5)
    assert sum(parameter.numel() for parameter in network.parameters()) == total


@pytest.mark.parametrize("classes", [7, 99])
def test_size_of_the_fusion_head(classes):
    head = FusionHead(768, 3, classes)
    assert sum(parameter.numel() for parameter in head.parameters()) == 985_344 + 257 * classes


@pytest.mark.parametrize(("elements", "inputs"), [(1, 1), (2, 3), (4, 10)])
def test_fusion_of_other_numbers_of_elements(elements, inputs):
    head = FusionHead(12, elements, 5)
    assert head.whole[0].in_features == inputs * 256
    assert head(head.feature([torch.randn(3, 12)] * elements)).shape == (3, 5)


def test_a_new_network_sees_each_frame_alone():
    model = _tiny((2,)).eval()
    assert all(not b.temporal_fc.weight.any() and not b.temporal_fc.bias.any() for b in model.blocks)
    x = torch.randn(2, 2, 3, 48, 48)
    torch.testing.assert_close(model(x), model(x.flip(1)))
    torch.testing.assert_close(model(x[:, :1].expand(-1, 2, -1, -1, -1)), model(x[:, [0, 0]]))


def test_a_network_may_know_the_order_of_frames_from_the_start():
    torch.manual_seed(0)
    x = torch.randn(2, 2, 3, 48, 48)
    plain, ordered = _tiny((2,)).eval(), _tiny((2,), time_init=0.3).eval()
    assert (plain(x) - plain(x.flip(1))).abs().max() < 1e-5 < 1e-3 < (ordered(x) - ordered(x.flip(1))).abs().max()
    assert {n for n, v in plain.state_dict().items() if not v.any()} > {
        n for n, v in ordered.state_dict().items() if not v.any()
    }


def test_checkpointing_changes_no_gradient():
    grads = []
    x = torch.randn(1, 2, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    for saving in (False, True):
        torch.manual_seed(3)
        model = _tiny((2,), activation_checkpointing=saving).train()
        model(x).square().sum().backward()
        grads.append(model.patch_embed.proj.weight.grad)
    torch.testing.assert_close(*grads)


# ------------------------------------------------------------------------------------------------- weights
def _image_weights(**changes: torch.Tensor) -> dict[str, torch.Tensor]:
    """A ViT of width 64 in timm's names, with its classifier."""
    vit = ElementTimeSformer({"width": 64, "depth": 2, "heads": 1, "patch": 16, "image_size": 48}, (2,))
    _randomise(vit)
    state = {n: v.clone() for n, v in vit.state_dict().items() if "temporal" not in n and "time_embed" not in n}
    return {**state, "head.weight": torch.zeros(5, 64), "head.bias": torch.zeros(5), **changes}


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ""])
def test_image_weights_start_space_and_time(tmp_path, suffix):
    from safetensors.torch import save_file

    weights = _image_weights()
    path = tmp_path / (f"vit{suffix}" if suffix else "model.safetensors")
    torch.save(weights, path) if suffix == ".pth" else save_file(weights, path)
    model = ElementTimeSformer(str(path if suffix else tmp_path), (2, 4))
    assert model.architecture == {"width": 64, "depth": 2, "heads": 1, "patch": 16, "image_size": 48}
    for name in ("attn.qkv.weight", "attn.proj.bias", "norm1.weight"):
        for own in (name, f"temporal_{name}"):
            torch.testing.assert_close(model.state_dict()[f"blocks.1.{own}"], weights[f"blocks.1.{name}"])
    assert not model.blocks[0].temporal_fc.weight.any() and not model.time_embed[1].any()
    assert model(torch.randn(1, 4, 3, 48, 48), 1).shape == (1, 64)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"extra": torch.zeros(1)}, "has too many: 1 tensors, such as extra"),
        ({"norm.weight": torch.zeros(3)}, "norm.weight is"),
        ({"patch_embed.proj.weight": torch.zeros(3)}, "holds no ViT"),
    ],
)
def test_weights_of_another_model_are_refused(tmp_path, change, words):
    path = tmp_path / "vit.pth"
    torch.save(_image_weights(**change), path)
    with pytest.raises(UserError, match=words):
        ElementTimeSformer(path, (2,))


def test_a_missing_tensor_is_named(tmp_path):
    weights = _image_weights()
    del weights["blocks.1.mlp.fc2.bias"]
    torch.save(weights, tmp_path / "vit.pth")
    with pytest.raises(UserError, match=r"lacks 1 tensors, such as blocks\.1\.mlp\.fc2\.bias"):
        ElementTimeSformer(tmp_path / "vit.pth", (2,))


class _Trap:
    def __reduce__(self):
        return (print, ("executed",))


def test_nothing_in_a_file_is_executed(tmp_path, capsys):
    torch.save({"norm.weight": _Trap()}, tmp_path / "vit.pth")
    with pytest.raises(UserError, match="can't load a ViT"):
        ElementTimeSformer(tmp_path / "vit.pth", (2,))
    assert "executed" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("nowhere.safetensors", "no ViT weights nowhere"),
        ({"widht": 64}, "did you mean 'width'"),
        ({"width": 50}, "must divide"),
    ],
)
def test_wrong_sources(source, words):
    with pytest.raises(UserError, match=words):
        ElementTimeSformer(source, (2,))


def test_wrong_input():
    model = _tiny()
    with pytest.raises(UserError, match="frames of 32x32 pixels"):
        model(torch.zeros(1, 2, 3, 32, 32))
    with pytest.raises(ValueError, match="element 2 has 4 frames"):
        model(torch.zeros(1, 2, 3, 48, 48), 2)
    with pytest.raises(UserError, match="linear head takes one element"):
        ElementNetwork({"source": TINY}, (2, 4), 5, "linear", 0.0)
    with pytest.raises(UserError, match="unknown head"):
        ElementNetwork({"source": TINY}, (2, 4), 5, "fusoin", 0.0)
