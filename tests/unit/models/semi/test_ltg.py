"""LTG against released code, and what its views are."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from pipeline.datasets.elements import ElementSampler
from pipeline.errors import UserError
from pipeline.models.semi.ltg import LTG, ClipNetwork, contrast, projection, temporal_gradient

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
SHAPE = {"source": {"width": 4, "image_size": 32}}


def _given(data, prefix, classes=7, dim=16):
    """LTG without its networks: their stages are given."""
    model = object.__new__(LTG)
    nn.Module.__init__(model)
    for name, theirs in (("network", "cls_head"), ("changes", "temp_sup_head")):
        network = object.__new__(ClipNetwork)
        nn.Module.__init__(network)
        network.dropout, network.classifier = nn.Dropout(0.0), nn.Linear(dim, classes)
        for part in ("weight", "bias"):
            getattr(network.classifier, part).data = torch.tensor(data[f"w.{prefix}{theirs}.fc_cls.{part}"])
        setattr(model, name, network)
    model.projections = nn.ModuleList(projection(dim) for _ in range(2))
    for view, layers in zip(("rgb", "tg"), model.projections, strict=True):
        for i in (0, 1, 3, 4, 6):
            for part, parameter in layers[i].named_parameters():
                parameter.data = torch.tensor(data[f"w.{prefix}contrast_head_{view}.fcs.{i}.{part}"])
    model.teacher, model.threshold, model.temperature = None, 0.3, 0.5
    return model.train()


@pytest.mark.parametrize("prefix", ["", "confident."])
@pytest.mark.parametrize("epoch", [0, 30])
def test_released_losses(golden, prefix, epoch):
    data = golden("ltg_losses")

    def out(name):
        return torch.tensor(data[f"out.{prefix}epoch{epoch}.{name}"]).reshape(())

    model = _given(data, prefix)
    stages = {
        view: [torch.tensor(data[f"in.{prefix}{view}.stage{i}"]).requires_grad_() for i in range(4)]
        for view in ("rgb", "tg")
    }
    labels = torch.tensor(data[f"in.{prefix}labels"]).long()
    losses = model.losses(stages["rgb"], stages["tg"], labels, 6, epoch >= 30)
    of_both = {name: out(f"loss_cls_{name}_rgb") + out(f"loss_cls_{name}_diff") for name in ("labeled", "unlabeled")}
    assert_close(losses["loss_labelled"], of_both["labeled"], **CLOSE)
    assert_close(losses["loss_unlabelled"], of_both["unlabeled"], **CLOSE)
    assert_close(losses["loss_contrast"], out("loss_crossview_contrast"), **CLOSE)
    assert_close(losses["loss_aligned"], sum(out(f"loss_layer{i}_align") for i in range(4)), **CLOSE)
    total = sum(value for name, value in losses.items() if name.startswith("loss_"))
    assert_close(total, out("total"), **CLOSE)
    if epoch:
        total.backward()
        for i, maps in enumerate(stages["rgb"]):
            assert_close(maps.grad, torch.tensor(data[f"out.{prefix}epoch30.grad.rgb.stage{i}"]), **CLOSE)
        assert_close(stages["tg"][3].grad, torch.tensor(data[f"out.{prefix}epoch30.grad.tg.stage3"]), **CLOSE)
        assert stages["tg"][0].grad is None  # it is aligned with, not aligned


def test_contrast(golden):
    data = golden("ltg_losses")
    one, other = (torch.tensor(data[f"in.pair.{name}"]) for name in "ab")
    for temperature in (0.1, 0.5, 1.0):
        want = torch.tensor(data[f"out.pair.simclr_T{temperature}"]).reshape(())
        assert_close(contrast(one, other, temperature), want, **CLOSE)


@pytest.mark.parametrize("mode", ["eval", "train"])
@torch.no_grad()
def test_released_network(golden, mode):
    data = golden("ltg_backbone")
    network = ClipNetwork(4, 7, 0.5)
    state = {name.removeprefix("w."): torch.tensor(value) for name, value in data.items() if name.startswith("w.")}
    odd = network.backbone.load_state_dict(state, strict=False)
    assert not odd.unexpected_keys and all("num_batches_tracked" in name for name in odd.missing_keys)
    network.train(mode == "train")
    for i, maps in enumerate(network.stages(torch.tensor(data["in.x"]))):
        assert_close(maps, torch.tensor(data[f"out.{mode}.stage{i}"]), **CLOSE)


def test_temporal_gradients(golden):
    data = golden("ltg_temporal_gradient")
    frames = torch.tensor(data["in.frames_bgr"]).float()
    changes = temporal_gradient(frames[:-1], frames[1:])
    assert_close(changes, torch.tensor(data["out.tempgrad_bgr"]).float(), rtol=0, atol=0)
    pairs = torch.stack((frames[:-1], frames[1:]), dim=1).flatten(0, 1).flip(-1).permute(0, 3, 1, 2)  # RGB
    model = LTG(SHAPE, 7)
    colours, found = model.split((pairs[None] / 255 - 0.45) / 0.225)
    assert found.shape == colours.shape == (1, 3, 6, 6, 8)
    want = torch.tensor(data["out.normalised_rgb"]).float()
    assert_close(found[0].permute(1, 2, 3, 0), want, rtol=1e-4, atol=1e-4)


def test_each_frame_comes_with_the_next():
    sampler = ElementSampler(8, "pairs")
    for rng in (None, np.random.default_rng(0)):
        (positions,) = sampler.sample(40, rng)
        assert len(positions) == 16 and (positions[1::2] == positions[0::2] + 1).all() and positions[-1] <= 39
    with pytest.raises(UserError, match="a video of 7 frames is too short for the 8 frames"):
        sampler.sample(8)


def test_parameters():
    with torch.device("meta"):
        for classes, tested, trained in ((101, 33_218_085, 68_013_130), (288, 33_314_016, 68_204_992)):
            model = LTG({"source": {}}, classes)
            assert (
                sum(p.numel() for p in model.network.parameters()) == tested
                and sum(p.numel() for p in model.parameters()) == trained
            )


def test_training_and_tests():
    torch.manual_seed(0)
    model = LTG(SHAPE, 5)
    clips = [[torch.randn(2, 16, 3, 32, 32)] for _ in range(3)]
    losses = model.train()(mode="loss", labelled=clips[0], labels=torch.tensor([0, 3]), weak=clips[1], strong=clips[2])
    assert {"loss_labelled", "loss_unlabelled", "loss_aligned", "loss_contrast"} < set(losses)
    sum(value for name, value in losses.items() if name.startswith("loss_")).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    early = model(
        mode="loss", labelled=clips[0], labels=torch.tensor([0, 3]), weak=clips[1], strong=clips[2], progress=0.1
    )
    assert early["loss_unlabelled"] == 0
    model.eval()
    with torch.no_grad():
        both = model.predict(clips[0])
        assert_close(model.predict([clips[0][0][1:]])[0], both[1], rtol=1e-4, atol=1e-5)
        assert model.features(clips[0]).shape == (2, 1, 32)
    other = LTG(SHAPE, 5).eval()
    other.load_trained_state(model.trained_state())
    with torch.no_grad():
        assert torch.equal(other.predict(clips[0]), both)
    with pytest.raises(UserError, match="LTG sees one element"):
        LTG(SHAPE, 5, elements="2-4")
    with pytest.raises(UserError, match="unknown key 'widht'"):
        LTG({"source": {"widht": 4}}, 5)
