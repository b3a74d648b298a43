"""ResNet: torchvision's weights, maps and features, what is saved, errors."""

from __future__ import annotations

import json
import pickle
import shutil

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from pipeline.compat import MODELS
from pipeline.errors import UserError
from pipeline.models.backbones.resnet import IMAGENET_MEAN, IMAGENET_STD, NANO_RESNET, ResNetBackbone

SMALL = {"width": 4}
STAGES = {18: (2, (2, 2, 2, 2)), 50: (3, (3, 4, 6, 3))}  # convolutions a block, blocks of each stage


def _torchvision_state(depth):
    """Random weights with the names and shapes of torchvision's ResNet."""
    generator = torch.Generator().manual_seed(depth)
    convolutions, stages = STAGES[depth]
    expansion = 1 if convolutions == 2 else 4
    state = {}

    def layer(conv, norm, shape):
        fan_in = shape[1] * shape[2] * shape[3]
        state[f"{conv}.weight"] = torch.randn(shape, generator=generator) * (2 / fan_in) ** 0.5
        for name in ("weight", "running_var"):
            state[f"{norm}.{name}"] = 0.5 + torch.rand(shape[0], generator=generator)
        for name in ("bias", "running_mean"):
            state[f"{norm}.{name}"] = 0.1 * torch.randn(shape[0], generator=generator)
        state[f"{norm}.num_batches_tracked"] = torch.tensor(5)

    layer("conv1", "bn1", (64, 3, 7, 7))
    inner = 64
    for i, blocks in enumerate(stages):
        planes = 64 * 2**i
        for block in range(blocks):
            at = f"layer{i + 1}.{block}"
            out = planes * expansion
            shapes = [(planes, inner, 3, 3), (planes, planes, 3, 3)]
            if expansion == 4:
                shapes = [(planes, inner, 1, 1), (planes, planes, 3, 3), (out, planes, 1, 1)]
            for number, shape in enumerate(shapes, 1):
                layer(f"{at}.conv{number}", f"{at}.bn{number}", shape)
            if block == 0 and (i or expansion == 4):
                layer(f"{at}.downsample.0", f"{at}.downsample.1", (out, inner, 1, 1))
            inner = out
    state["fc.weight"], state["fc.bias"] = torch.zeros(1000, inner), torch.zeros(1000)
    return state


def _reference(state, x, strides=(1, 2, 2, 2)):
    """ResNet written out with functions, in evaluation: (n, 3, H, W) -> last maps."""

    def layer(x, conv, norm, stride=1, relu=True):
        weight = state[f"{conv}.weight"]
        x = F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)
        x = F.batch_norm(x, *(state[f"{norm}.{name}"] for name in ("running_mean", "running_var", "weight", "bias")))
        return x.relu() if relu else x

    state = {name: value.double() for name, value in state.items()}
    x = F.max_pool2d(layer(x, "conv1", "bn1", 2), 3, 2, 1)
    for i, first in enumerate(strides, 1):
        block = 0
        while f"layer{i}.{block}.conv1.weight" in state:
            at, stride = f"layer{i}.{block}", first if block == 0 else 1
            last = 3 if f"{at}.conv3.weight" in state else 2
            y = x
            for number in range(1, last + 1):  # the 3 x 3 convolution has the stride: conv1, in bottlenecks conv2
                step = stride if number == last - 1 else 1
                y = layer(y, f"{at}.conv{number}", f"{at}.bn{number}", step, relu=number < last)
            if f"{at}.downsample.0.weight" in state:
                x = layer(x, f"{at}.downsample.0", f"{at}.downsample.1", stride, relu=False)
            x, block = (x + y).relu(), block + 1
    return x


@pytest.fixture
def small(tmp_path):
    """Folder of a small ResNet with random weights and statistics."""
    torch.manual_seed(0)
    backbone = ResNetBackbone(SMALL).train()
    backbone.encode_frames(torch.randn(2, 4, 3, 32, 32))
    backbone.save(tmp_path / "small")
    return tmp_path / "small"


@pytest.mark.parametrize(("depth", "name"), [(18, "resnet18.pth"), (50, "resnet50.safetensors")])
def test_torchvision_weights_give_torchvision_maps(tmp_path, depth, name):
    state = _torchvision_state(depth)
    if name.endswith(".pth"):
        torch.save(state, tmp_path / name)
    else:
        save_file({key: value for key, value in state.items() if "num_batches" not in key}, tmp_path / name)
    backbone = ResNetBackbone(tmp_path / name).eval().double()  # rounding depends on the memory layout
    x = torch.randn(2, 2, 3, 64, 64, dtype=torch.double)
    with torch.no_grad():
        maps, expected = backbone.feature_maps(x), _reference(state, x.flatten(0, 1)).unflatten(0, (2, 2))
        features = backbone.encode_frames(x)
    assert maps.shape == (2, 2, backbone.dim, 2, 2) and features.shape == (2, 2, backbone.dim)
    torch.testing.assert_close(maps, expected)
    torch.testing.assert_close(features, expected.mean((3, 4)))


def test_small_one_is_a_resnet_too(small):
    backbone = ResNetBackbone(small).eval().double()
    x = torch.randn(1, 3, 3, 48, 64, dtype=torch.double)  # any size
    with torch.no_grad():
        expected = _reference(load_file(small / "model.safetensors"), x[0], NANO_RESNET["strides"])
        torch.testing.assert_close(backbone.feature_maps(x)[0], expected)
    assert backbone.dim == 32 and expected.shape == (3, 32, 3, 4)


def test_folder_of_timm(tmp_path):
    """Its config.json is of another form; the names of the tensors tell the depth."""
    save_file(_torchvision_state(18), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"architecture": "resnet18", "num_classes": 1000}')
    backbone = ResNetBackbone(tmp_path)
    assert backbone.architecture == {"depth": 18} and backbone.dim == 512


def test_resnet_50_has_the_published_size():
    with torch.device("meta"):
        backbone = ResNetBackbone({"depth": 50})
    assert sum(p.numel() for p in backbone.parameters()) == 23_508_032
    assert (backbone.dim, backbone.image_size) == (2048, None)


def test_registered_with_the_statistics_of_imagenet(small):
    backbone = MODELS.build({"type": "ResNetBackbone", "source": str(small), "norm_eval": True})
    assert (backbone.mean, backbone.std) == (IMAGENET_MEAN, IMAGENET_STD) and backbone.norm_eval


def test_nano_has_maps_of_four_by_four():
    backbone = ResNetBackbone(NANO_RESNET)
    assert backbone.feature_maps(torch.randn(1, 2, 3, 64, 64)).shape == (1, 2, 128, 4, 4)
    assert sum(p.numel() for p in backbone.parameters()) == 309_456


def test_save_and_load(small, tmp_path):
    first, config = ResNetBackbone(small), json.loads((small / "config.json").read_text())
    assert config == {"model_type": "resnet", **NANO_RESNET, **SMALL}
    first.save(tmp_path / "again")
    for name in ("config.json", "model.safetensors"):
        assert (small / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    assert "layer2.0.downsample.1.running_var" in load_file(small / "model.safetensors")


@pytest.mark.parametrize("norm_eval", [False, True])
def test_batch_statistics_in_training(small, norm_eval):
    backbone = ResNetBackbone(small, norm_eval=norm_eval)
    x, before = torch.randn(1, 8, 3, 32, 32), {k: v.clone() for k, v in backbone.named_buffers()}
    with torch.no_grad():
        plain = backbone.eval().encode_frames(x)
    assert backbone.train() is backbone and backbone.training
    features = backbone.encode_frames(x)
    assert torch.equal(features, plain) == norm_eval
    assert all(torch.equal(v, before[k]) for k, v in backbone.named_buffers()) == norm_eval
    features.sum().backward()
    assert all(p.grad is not None for p in backbone.parameters())


def _change(folder, change):
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("layer1.0.bn2.bias"), r"lacks 1 tensors, such as layer1.0.bn2.bias"),
        (lambda state: state.update({"conv9.weight": torch.ones(1)}), r"too many: 1 tensors, such as conv9.weight"),
        (lambda state: state.update({"bn1.bias": torch.ones(5)}), r"bn1.bias is \(5,\) instead of \(4,\)"),
    ],
)
def test_weights_of_another_resnet(small, change, message):
    _change(small, change)
    with pytest.raises(UserError, match=message) as error:
        ResNetBackbone(small)
    assert "\n" not in str(error.value) and str(small) in str(error.value)


def test_weights_of_another_model(small):
    save_file({"visual.weight": torch.ones(1)}, small / "model.safetensors")
    (small / "config.json").unlink()
    with pytest.raises(UserError, match="no ResNet in torchvision's names"):
        ResNetBackbone(small)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_damaged_file(small, name):
    data = (small / name).read_bytes()
    (small / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError) as error:
        ResNetBackbone(small)
    assert "\n" not in str(error.value) and str(small / name) in str(error.value)


def test_pickled_weights_are_not_executed(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "owned"), "w"))

    torch.save({"conv1.weight": Evil()}, tmp_path / "a.pth")
    (tmp_path / "b.pth").write_bytes(pickle.dumps(Evil()))
    for name in ("a.pth", "b.pth"):
        with pytest.raises(UserError, match="can't load"):
            ResNetBackbone(tmp_path / name)
    assert not (tmp_path / "owned").exists()


def test_no_state_dict(tmp_path):
    torch.save({"epoch": 3}, tmp_path / "a.pth")
    with pytest.raises(UserError, match="not a state dict"):
        ResNetBackbone(tmp_path / "a.pth")


@pytest.mark.parametrize("name", ["./absent", "/absent/folder", "absent", "weights/resnet50.pth"])
def test_nothing_there(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="no ResNet weights"):
        ResNetBackbone(name)


def test_folder_without_weights(small):
    (small / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"model\.safetensors is missing"):
        ResNetBackbone(small)


def test_hub(small, monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **_: str(small))
    assert ResNetBackbone("timm/resnet50.tv_in1k").dim == 32
    (small / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"has no model\.safetensors"):
        ResNetBackbone("timm/resnet50.tv_in1k")

    def offline(*args, **kwargs):
        raise huggingface_hub.errors.LocalEntryNotFoundError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(UserError, match=r"hf download timm/resnet50\.tv_in1k") as error:
        ResNetBackbone("timm/resnet50.tv_in1k")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("architecture", "message"),
    [({"wdith": 4}, "'width'"), ({"depth": 51}, "'50'"), ({"depth": 18, "width": 4}, "unknown key 'width'")],
)
def test_unknown_architecture(architecture, message):
    with pytest.raises(UserError, match=message):
        ResNetBackbone(architecture)


def test_weights_as_trainers_save_them(small, tmp_path):
    plain = load_file(small / "model.safetensors")
    shutil.copy(small / "config.json", tmp_path / "config.json")
    for wrapped in ({"state_dict": {f"module.{name}": value for name, value in plain.items()}, "epoch": 3},
                    {"model": {f"module.backbone.{name}": value for name, value in plain.items()}}):  # fmt: skip
        torch.save(wrapped, tmp_path / "model.safetensors")  # what the bytes are counts, not the suffix
        state = ResNetBackbone(tmp_path).resnet.state_dict()
        torch.testing.assert_close(state, ResNetBackbone(small).resnet.state_dict())
    _change(small, lambda state: state["bn1.bias"].fill_(float("nan")))
    with pytest.raises(UserError, match=r"bn1\.bias holds numbers that are not finite"):
        ResNetBackbone(small)
    (small / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(UserError, match="a pointer of Git LFS"):
        ResNetBackbone(small)


def test_the_normalisation_beside_the_weights(small, tmp_path):
    assert ResNetBackbone(small).mean == IMAGENET_MEAN
    own = {"pretrained_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.2]}}
    config = json.loads((small / "config.json").read_text())
    (small / "config.json").write_text(json.dumps(config | own))
    backbone = ResNetBackbone(small)
    assert (backbone.mean, backbone.std) == ((0.5, 0.5, 0.5), (0.25, 0.25, 0.2))
    backbone.save(tmp_path / "again")
    assert ResNetBackbone(tmp_path / "again").std == (0.25, 0.25, 0.2)
    (small / "preprocessor_config.json").write_text('{"image_mean": [123, 117, 104], "image_std": [1, 1, 1]}')
    with pytest.raises(UserError, match=r"preprocessor_config\.json says mean \[123"):
        ResNetBackbone(small)
