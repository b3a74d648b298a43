"""DSTformer and MotionBERT's one-shot head against what the released code computes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.errors import UserError
from pipeline.models.skeleton import DSTformer

torch.set_num_threads(1)
TINY = {"width": 32, "depth": 2, "heads": 4, "representation": 32, "embedding": 64, "max_frames": 20}


def _close(got: torch.Tensor, want, rtol: float = 1e-5, atol: float = 1e-5) -> None:
    np.testing.assert_allclose(got.detach().numpy(), want, rtol=rtol, atol=atol)


@pytest.fixture(scope="module")
def arrays(golden):
    return golden("motionbert")


@pytest.fixture(scope="module")
def weights(arrays):
    prefix = "weights/"
    return {n[len(prefix) :]: torch.from_numpy(a) for n, a in arrays.items() if n.startswith(prefix)}


@pytest.fixture(scope="module")
def model(weights):
    model = DSTformer(**TINY, pose_head=True).eval()
    model.load_released(weights)
    return model


@torch.no_grad()
def test_representation_pose_and_embedding_of_the_released_model(arrays, model):
    x = torch.from_numpy(arrays["in/x"]).permute(0, 4, 2, 3, 1)  # (N, M, T, V, C) -> (N, C, T, V, M)
    state = model.embed(x)
    first = state.permute(0, 2, 3, 1)
    _close(model.blocks[0].st(first, None)[0, 0], arrays["out/block0_st"][0])
    _close(model.blocks[0].ts(first, None)[0, 0], arrays["out/block0_ts"][0])
    features = model.features(model.run(state, 0, 2))
    _close(features.flatten(0, 1).permute(0, 2, 3, 1), arrays["out/representation"])
    _close(model.poses(features).flatten(0, 1), arrays["out/pose3d_head"])
    _close(model(x), arrays["out/embedding"])


def test_checkpoint_of_the_backbone_alone(arrays, weights, model):
    backbone = {name.replace("backbone.", "module."): v for name, v in weights.items() if name.startswith("backbone.")}
    other = DSTformer(**TINY, classes=5).eval()
    before = other.to_embedding.weight.detach().clone()
    other.load_released(backbone)
    _close(other.to_embedding.weight, before, atol=0)
    x = torch.from_numpy(arrays["in/x"]).permute(0, 4, 2, 3, 1)
    want = model.features(model.run(model.embed(x), 0, 2))
    _close(other.features(other.run(other.embed(x), 0, 2)), want.detach(), atol=0)


def test_a_checkpoint_that_does_not_fit(weights):
    with pytest.raises(UserError, match=r"blocks\.1\..* is missing"):
        DSTformer(**{**TINY, "depth": 1}).load_released(weights)
    with pytest.raises(UserError, match="time_position"):
        DSTformer(**{**TINY, "max_frames": 21}).load_released(weights)
    with pytest.raises(UserError, match="is missing"):
        DSTformer(**TINY).load_released({name: v for name, v in weights.items() if "qkv" not in name})


def test_published_parameter_counts():
    with torch.device("meta"):
        full, plain = DSTformer(pose_head=True), DSTformer()
    count = sum(p.numel() for p in full.parameters())
    backbone = count - sum(p.numel() for p in full.to_embedding.parameters())
    print(f"MotionBERT one-shot: {count:,}, backbone {backbone:,}, backbone's pose head {3 * 513:,}")
    assert count == 60_294_157
    assert backbone == 42_466_317
    assert sum(p.numel() for p in plain.parameters()) == count - 3 * 513


def test_streams_count_the_same_at_first():
    model = DSTformer(**TINY).eval()
    x = torch.randn(2, 6, 17, 32)
    block = model.blocks[0]
    _close(block(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1), (block.st(x, None) + block.ts(x, None)).detach() / 2)


def test_dropout_before_the_mean_over_time_in_training_only():
    model = DSTformer(**TINY)
    features = torch.rand(2, 2, 32, 6, 17)
    pooled = model.pool(features)
    assert not torch.equal(pooled, model.pool(features))
    assert torch.equal(model.eval().pool(features), model.pool(features))
    joints = features.mean((1, 3)).transpose(1, 2)
    _close(model.pool(features), joints.flatten(1).numpy())
    _close(model.head(model.pool(features)).norm(dim=-1), np.ones(2))


def test_settings_that_do_not_fit():
    with pytest.raises(UserError, match="multiple of its 5 heads"):
        DSTformer(width=32, heads=5)
    model = DSTformer(**TINY)
    with pytest.raises(UserError, match="at most 20 frames, not 21"):
        model(torch.zeros(1, 3, 21, 17, 2))
    with pytest.raises(UserError, match="no pose head"):
        model.poses(torch.zeros(1, 1, 32, 2, 17))
