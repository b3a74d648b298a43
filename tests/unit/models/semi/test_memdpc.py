"""MemDPC against released code, and its losses against loops that say them plainly."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from pipeline.datasets.elements import ElementSampler
from pipeline.errors import UserError
from pipeline.models.semi.memdpc import MemDPC, ResNet2D3D, one_channel, own_place

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
SHAPE = {"source": {"width": 4, "image_size": 32}}
NAMES = {
    "agg_f.cell_list.0.": "network.forwards.", "agg_b.cell_list.0.": "network.backwards.", "mb": "network.memory",
    "network_pred.": "network.address.", "final_bn.": "classifier.0.", "final_fc.1.": "classifier.2.",
}  # fmt: skip


def _model(**settings) -> MemDPC:
    torch.manual_seed(0)
    return MemDPC(SHAPE, **({"classes": 7, "elements": 24, "slots": 12} | settings))


def _released(data, case, **settings) -> MemDPC:
    """With the released weights of everything behind the backbone, which the golden vectors leave out."""
    model, state = _model(**settings), {}
    for name, value in data.items():
        name = name.removeprefix(f"w.{case}.") if name.startswith(f"w.{case}.") else ""
        if ours := next((ours + name.removeprefix(old) for old, ours in NAMES.items() if name.startswith(old)), ""):
            state[ours] = torch.tensor(value)
    left = model.load_state_dict(state, strict=False)
    assert not left.unexpected_keys and len(state) == {"a": 17, "b": 17, "classifier": 18}[case]
    return model.eval()


@pytest.mark.parametrize("mode", ["eval", "train"])
@torch.no_grad()
def test_released_backbone(golden, mode):
    data = golden("memdpc_backbone")
    network = ResNet2D3D(4)
    odd = network.load_state_dict({k[2:]: torch.tensor(v) for k, v in data.items() if k.startswith("w.")}, strict=False)
    assert not odd.unexpected_keys and all("num_batches_tracked" in name for name in odd.missing_keys)
    network.train(mode == "train")
    stages = network.stages(torch.tensor(data["in.x"]))
    assert_close(stages[-1], torch.tensor(data[f"out.{mode}.features"]), **CLOSE)
    assert stages[-1].min() < 0  # no ReLU at the end
    for i, maps in enumerate(stages if mode == "eval" else (), start=1):
        assert_close(maps, torch.tensor(data[f"out.eval.layer{i}"]), **CLOSE)


@pytest.mark.parametrize(("case", "blocks", "steps", "slots"), [("a", 8, 3, 12), ("b", 5, 2, 6)])
def test_released_foretelling(golden, case, blocks, steps, slots):
    data = golden("memdpc_block")
    model = _released(data, case, blocks=blocks, elements=2 * blocks, steps=steps, slots=slots)
    features = torch.tensor(data[f"in.{case}.features"]).requires_grad_()
    out = {name.removeprefix(f"out.{case}."): torch.tensor(value) for name, value in data.items()}

    losses = model.foretelling(features)
    for ours, theirs in (("loss_forwards", "loss_forward"), ("loss_backwards", "loss_backward")):
        assert_close(losses[ours], out[theirs].reshape(()), **CLOSE)
    assert_close(losses["found"], out["accuracy_top1_top5"][:, 0].mean(), **CLOSE)
    (losses["loss_forwards"] + losses["loss_backwards"]).backward()
    assert_close(features.grad, out["grad.features"], **CLOSE)
    assert_close(model.network.memory.grad, out["grad.memory"], **CLOSE)

    (ahead, _), (back, _) = model.network.both_ways(features, steps)
    assert_close(ahead.movedim(1, 2), out["predicted_forward"], **CLOSE)
    assert_close(back.movedim(1, 2), out["predicted_backward"], **CLOSE)
    seen = features.mean(3)[:, : blocks - steps], features.mean(3).flip(1)[:, : blocks - steps]
    assert_close(model.network.forwards.over(seen[0]), out["hidden.forward0"], **CLOSE)
    assert_close(model.network.backwards.over(seen[1]), out["hidden.backward0"], **CLOSE)
    weights = model.network.address(out["hidden.forward1"]).softmax(1)
    assert_close(weights, out["memory_weights.forward1"], **CLOSE)


@torch.no_grad()
def test_released_classifier(golden):
    data = golden("memdpc_block")
    model = _released(data, "classifier")
    context = model.network.context(torch.tensor(data["in.classifier.features"]))
    assert_close(model.classifier[0](context), torch.tensor(data["out.classifier.context"])[:, 0], **CLOSE)
    assert_close(model.classifier(context), torch.tensor(data["out.classifier.logits"])[:, 0], **CLOSE)


def test_losses_are_those_of_loops_over_videos_steps_and_places():
    model = _model(blocks=5, elements=10, steps=2).eval()
    features = torch.randn(3, 5, 16, 2, 2, 2)
    losses, maps = model.foretelling(features), (features[:, :, :, 0] + features[:, :, :, 1]) / 2

    def told(unit, video, y, x):
        """What is foretold of one place of one video, whose blocks come in the order of that unit."""
        state = torch.zeros(1, 16, 1, 1)
        for block in video[:3]:
            state = unit(block[None, :, y, x, None, None].clamp(min=0), state)
        found = []
        for _ in range(2):
            share = torch.softmax(model.network.address(state).flatten(), 0)
            found.append(sum(share[m] * model.network.memory[m] for m in range(12)))
            state = unit(found[-1][None, :, None, None].clamp(min=0), state)
        return found

    for name, unit, videos in (
        ("loss_forwards", model.network.forwards, maps),
        ("loss_backwards", model.network.backwards, maps.flip(1)),
    ):
        places = [(v, s, y, x) for v in range(3) for s in range(2) for y in range(2) for x in range(2)]
        true = torch.stack([videos[v, 3 + s, :, y, x] for v, s, y, x in places])
        values = []
        for own, (v, s, y, x) in enumerate(places):
            scores = true @ told(unit, videos[v], y, x)[s]
            values.append(scores.exp().sum().log() - scores[own])
        assert_close(losses[name], sum(values) / len(values), rtol=1e-4, atol=1e-5)


def test_what_is_foretold_learns_too_or_stands_still():
    for learns in (True, False):
        model = _model(blocks=4, elements=8, steps=1, target_gradient=learns).eval()
        features = torch.randn(2, 4, 16, 1, 1, 1, requires_grad=True)
        model.foretelling(features)["loss_forwards"].backward()
        assert bool(features.grad[:, 3].any()) == learns and features.grad[:, :3].any()


def test_a_batch_tells_apart_what_is_in_it():
    one = torch.eye(8).reshape(2, 2, 8, 2, 1)[:, :, :, :1]
    loss, found = own_place(9 * one, one)
    assert found == 1 and loss == F.cross_entropy(9 * torch.eye(4), torch.arange(4))


def test_parameters():
    """15.4 million is what SeFAR prints."""
    with torch.device("meta"):
        model = MemDPC({"source": {}}, 99)
    count = {name: sum(p.numel() for p in part.parameters()) for name, part in model.network.named_children()}
    pretrained = sum(p.numel() for p in model.network.parameters())
    assert (count["backbone"], pretrained) == (14_057_536, 15_436_608)
    unused = count["address"] + model.network.memory.numel()
    assert pretrained - unused + sum(p.numel() for p in model.classifier.parameters()) == 14_897_315


def test_training_and_tests():
    model = _model(classes=5)
    clips = [torch.rand(4, 24, 3, 32, 32)]
    first = model.train()(mode="loss", clips=clips)
    assert set(first) == {"loss_forwards", "loss_backwards", "found"}
    (first["loss_forwards"] + first["loss_backwards"]).backward()
    without = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is None}
    assert without == {"classifier"}
    model.zero_grad()
    second = model(mode="loss", labelled=clips, labels=torch.tensor([0, 3, 1, 4]))
    second["loss_labelled"].backward()
    without = {".".join(name.split(".")[:2]) for name, p in model.named_parameters() if p.grad is None}
    assert without == {"network.memory", "network.address"}
    model.eval()
    with torch.no_grad():
        both = model.predict(clips)
        assert_close(model.predict([clips[0][1:]])[0], both[1], rtol=1e-4, atol=1e-5)
        assert model.features(clips).shape == (4, 1, 32)
        other = _model(classes=5).eval()
        other.load_trained_state(model.trained_state())
        assert torch.equal(other.predict(clips), both)
        plain = _model(classes=5, test_normalised=False).eval()
        plain.load_trained_state(model.trained_state())
        mean, std = (torch.tensor(value)[:, None, None] for value in (model.mean, model.std))
        assert_close(plain.predict([(clips[0] - mean) / std]), both, rtol=1e-4, atol=1e-5)


def test_colours_change_frame_by_frame_or_clip_by_clip():
    model = _model()
    mean, std = (torch.tensor(value)[:, None, None] for value in (model.mean, model.std))
    clips = (torch.rand(20, 1, 3, 8, 8).expand(-1, 4, -1, -1, -1) - mean) / std  # each frame four times
    for single_frames in (True, False):
        torch.manual_seed(1)
        seen = model._recoloured(clips, single_frames)
        assert seen.shape == clips.shape and torch.equal(clips[:, 0], clips[:, 1])
        alike = [bool(torch.equal(clip[0], clip[1])) for clip in seen]
        changed = [not torch.allclose(clip, old, atol=1e-5) for clip, old in zip(seen, clips, strict=True)]
        assert not any(alike) if single_frames else all(alike)
        assert all(changed) if single_frames else 1 <= sum(changed) <= 12
    frames = torch.rand(200, 3, 2, 2)
    seen = one_channel(frames, 0.25, np.random.default_rng(0))
    grey = [bool((frame == frame[:1]).all()) for frame in seen]
    assert 35 <= sum(grey) <= 65
    shown = {next(c for c in range(3) if seen[i, 0].equal(frames[i, c])) for i, one in enumerate(grey) if one}
    assert shown == {0, 1, 2} and all(seen[i].equal(frames[i]) for i, one in enumerate(grey) if not one)
    assert torch.equal(_model(recolour=False)._recoloured(clips, True), clips)


def test_frames_are_three_apart_or_as_far_as_a_video_reaches():
    sampler, rng = ElementSampler(40, "stride"), np.random.default_rng(0)
    starts = set()
    for _ in range(50):
        (frames,) = sampler.sample(130, rng)
        assert len(frames) == 40 and (np.diff(frames) == 3).all() and 0 <= frames[0] <= 10
        starts.add(int(frames[0]))
    assert {0, 10} <= starts
    assert sampler.sample(130)[0].tolist() == list(range(5, 125, 3))
    for n in (1, 7, 39, 40, 90, 120):
        for draw in (None, rng):
            (frames,) = sampler.sample(n, draw)
            assert frames[0] == 0 and frames[-1] == 39 * min(n, 120) // 40 and (np.diff(frames) >= 0).all()


@pytest.mark.parametrize(("settings", "message"), [
    ({"elements": "2-4"}, "MemDPC sees one element of blocks of equal length"),
    ({"blocks": 5}, "is 24 with 5 model.blocks; give a number of frames that is a multiple"),
    ({"steps": 8}, "model.steps is 8; of 8 blocks .* 1 to 7 are foretold"),
])  # fmt: skip
def test_mistakes(settings, message):
    with pytest.raises(UserError, match=message):
        _model(**settings)
    with pytest.raises(UserError, match="unknown key 'widht'"):
        MemDPC({"source": {"widht": 4}}, 5)
