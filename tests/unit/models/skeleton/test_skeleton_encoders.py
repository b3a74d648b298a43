"""What every encoder owes its users: splitting, the joint weights, shapes, independence of samples and persons."""

from __future__ import annotations

import pytest
import torch
from skeleton_set import GCN, MMACTION
from skeleton_set import SMALL as BY_RECIPE
from torch import Tensor

from pipeline.compat import MODELS
from pipeline.errors import UserError
from pipeline.models.skeleton import ENCODERS, SkeletonEncoder, build_encoder
from pipeline.models.skeleton.base import ENCODERS as NAMES

torch.set_num_threads(1)
SMALL = {NAMES[recipe]: settings for recipe, settings in BY_RECIPE.items()}
every_encoder = pytest.mark.parametrize(
    "kind", [kind for kind in ENCODERS if kind != "ImageEncoder"]
)  # it sees pictures


def _build(kind: str, **more) -> SkeletonEncoder:
    """A small encoder in evaluation mode whose weights all matter: nothing is left at its start value."""
    torch.manual_seed(5)
    model = build_encoder({"type": kind, **SMALL[kind]}, graph="coco17", classes=3, **more).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.dim() < 2:
                value.add_(0.3 * torch.randn(value.shape)).add_(1 if "bn.weight" in name else 0)
        for module in model.modules():
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                module.running_mean.normal_(0, 0.2)
                module.running_var.uniform_(0.5, 1.5)
    return model


def _clips(n: int = 3, frames: int = 8, persons: int = 2) -> Tensor:
    return torch.randn(n, 3, frames, 17, persons, generator=torch.Generator().manual_seed(1))


@every_encoder
@torch.no_grad()
def test_widths_and_shapes(kind):
    model, x = _build(kind), _clips()
    state = model.embed(x)
    assert state.shape[0] == 6 and state.shape[2:] == (8, 17)
    assert model.n_blocks == len(model.channels) == 4
    for i, width in enumerate(model.channels):
        state = model.run(state, i, i + 1)
        assert state.shape[1] == width
        assert model.pre_features(state).shape == (3, 17, width)
    features = model.features(state)
    assert features.shape[:3] == (3, 2, model.dim) and features.shape[4] == 17
    pooled = model.pool(features)
    embedding = model.head(pooled)
    assert pooled.shape == (3, model.pooled_dim) and embedding.shape == (3, model.embedding_dim)
    torch.testing.assert_close(model(x), embedding)
    assert model.logits(embedding).shape == (3, 3)
    torch.testing.assert_close(model.pool_joints(features.mean((1, 3)).transpose(1, 2)), pooled)


@every_encoder
@torch.no_grad()
def test_running_in_two_parts_is_running_at_once(kind):
    model, x = _build(kind), _clips()
    state = model.embed(x)
    whole = model.run(state, 0, 4)
    for split in range(5):
        assert torch.equal(model.run(model.run(state, 0, split), split, 4), whole)
    first = model.run(state, 0, 2)
    want = first.reshape(3, 2, *first.shape[1:]).permute(0, 4, 2, 1, 3).flatten(3).mean(-1)
    torch.testing.assert_close(model.pre_features(first), want)


@every_encoder
@torch.no_grad()
def test_weights_of_one_change_nothing_and_others_do(kind):
    model, x = _build(kind), _clips()
    state = model.embed(x)
    whole = model.run(state, 0, 4)
    assert torch.equal(model.run(state, 0, 4, scale=torch.ones(3, 17)), whole)
    assert not torch.allclose(model.run(state, 0, 1, scale=torch.full((3, 17), 0.5)), model.run(state, 0, 1))
    # A weight is a sample's own, and both its persons share it.
    scale = torch.ones(3, 17)
    scale[1] = 2
    changed = (model.run(state, 0, 4, scale=scale) - whole).abs().flatten(1).amax(1) > 1e-6
    assert changed.tolist() == [False, False, True, True, False, False]


@torch.no_grad()
@pytest.mark.parametrize("kind", [k for k in ENCODERS if k not in ("DSTformer", "ImageEncoder")])
def test_weight_zero_leaves_a_joint_its_shortcut_only(kind):
    model, x = _build(kind), _clips()
    state = model.run(model.embed(x), 0, 2)
    block, scale = model.blocks[2], torch.ones(3, 17)
    scale[:, 4] = 0
    got, plain = model.run(state, 2, 3, scale), model.run(state, 2, 3)
    spatial = block.spatial(state)
    want = (block.temporal(torch.zeros_like(spatial)) + block.residual(state)).relu()
    others = [j for j in range(17) if j != 4]
    torch.testing.assert_close(got[..., 4], want[..., 4])
    torch.testing.assert_close(got[..., others], plain[..., others])
    moved = state.clone()
    moved[..., 9] += 1  # what the others do no longer reaches the silenced joint
    assert torch.equal(model.run(moved, 2, 3, scale)[..., 4], got[..., 4])


@torch.no_grad()
def test_weight_zero_keeps_a_joint_of_the_transformer_to_itself():
    model, x = _build("DSTformer"), _clips()
    state = model.run(model.embed(x), 0, 2)
    scale = torch.ones(3, 17)
    scale[:, 4] = 0
    got = model.run(state, 2, 3, scale)
    moved = state.clone()
    moved[..., 9] += torch.randn(moved.shape[:-1])
    assert torch.equal(model.run(moved, 2, 3, scale)[..., 4], got[..., 4])
    assert not torch.allclose(model.run(moved, 2, 3)[..., 4], model.run(state, 2, 3)[..., 4])
    assert not torch.allclose(model.run(moved, 2, 3, scale)[..., 5], got[..., 5])


@every_encoder
@torch.no_grad()
def test_samples_do_not_see_each_other(kind):
    model, x = _build(kind), _clips(4)
    whole = model(x)
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(model(x[order]), whole[order], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model(x[1:2]), whole[1:2], rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["DSTformer", "STGCNEncoder", "AAGCNEncoder"])
def test_order_of_persons_is_no_matter_where_the_input_norm_does_not_tell_them_apart(kind):
    model, x = _build(kind), _clips()
    torch.testing.assert_close(model(x.flip(-1)), model(x), rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["InfoGCN", "HDGCN"])
def test_persons_share_everything_but_the_input_norm(kind):
    model, x = _build(kind), _clips()
    state = model.embed(x)
    swapped = state.unflatten(0, (3, 2)).flip(1).flatten(0, 1)

    def embedding(state: Tensor) -> Tensor:
        return model.head(model.pool(model.features(model.run(state, 0, 4))))

    torch.testing.assert_close(embedding(swapped), embedding(state), rtol=1e-4, atol=1e-5)


@every_encoder
def test_gradients_reach_the_weights_and_the_earlier_blocks(kind):
    model, x = _build(kind).train(), _clips()
    scale = torch.rand(3, 17, requires_grad=True)
    state = model.run(model.embed(x), 0, 2)
    state.retain_grad()
    embedding = model.head(model.pool(model.features(model.run(state, 2, 4, scale))))
    loss = model.logits(embedding).square().sum()
    (loss + sum(model.regularisation(embedding, torch.tensor([0, 1, 1])).values())).backward()
    assert scale.grad.abs().sum() > 0 and state.grad.abs().sum() > 0
    assert all(p.grad is not None for p in model.parameters())


@every_encoder
@torch.no_grad()
def test_double_precision(kind):
    model, x = _build(kind), _clips()
    single, double = model(x), model.double()(x.double())
    assert double.dtype == torch.float64
    torch.testing.assert_close(single.double(), double, rtol=1e-2, atol=1e-2)


@every_encoder
def test_mixed_precision(kind):
    model, x = _build(kind), _clips()
    with torch.autocast("cpu", torch.bfloat16):
        embedding = model(x)
        model.logits(embedding).float().square().mean().backward()
    want = model(x).detach()
    assert (embedding.detach() - want).norm() < 0.2 * want.norm()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@every_encoder
@torch.no_grad()
def test_one_seed_one_model(kind):
    assert all(torch.equal(a, b) for a, b in zip(_build(kind).parameters(), _build(kind).parameters(), strict=True))


@torch.no_grad()
@pytest.mark.parametrize(("kind", "mode"), [("STGCNEncoder", "stgcn_spatial"), ("AAGCNEncoder", "spatial")])
def test_mmaction2_computes_the_same(kind, mode):
    settings = {**MMACTION, "base_channels": MMACTION["width"], "data_bn_type": "MVC"}
    del settings["width"]
    graph = {"layout": "coco", "mode": mode}
    theirs = MODELS.build({"type": kind.removesuffix("Encoder"), "graph_cfg": graph, **settings}).eval()
    model, x = _build(kind, data_bn_type="MVC"), _clips()
    theirs.data_bn.load_state_dict(model.norm.state_dict())
    for block, ours in zip(theirs.gcn, model.blocks, strict=True):
        block.gcn.load_state_dict(ours.spatial.state_dict())
        block.tcn.load_state_dict(ours.temporal.state_dict())
        if isinstance(block.residual, torch.nn.Module):
            block.residual.load_state_dict(ours.residual.state_dict())
    torch.testing.assert_close(model.features(model.run(model.embed(x), 0, 4)), theirs(x.permute(0, 4, 2, 3, 1)))


def test_requests_that_do_not_fit():
    model = _build("InfoGCN")
    with pytest.raises(UserError, match="InfoGCN is set up for 17 joints and 2 persons, the sequences have 17 and 1"):
        model(_clips(persons=1))
    state = model.embed(_clips())
    for first, last in ((2, 1), (0, 5), (-1, 2)):
        with pytest.raises(UserError, match="it has 4"):
            model.run(state, first, last)
    bare = build_encoder({"type": "InfoGCN", **GCN})
    with pytest.raises(UserError, match="no classifier"):
        bare.logits(torch.zeros(1, 16))


def test_building_from_settings():
    with pytest.raises(UserError, match="unknown skeleton encoder 'InfoGNC'; did you mean 'InfoGCN'"):
        build_encoder({"type": "InfoGNC"})
    with pytest.raises(UserError, match="InfoGCN: .*'widht'"):
        build_encoder({"type": "InfoGCN", "widht": 3})
    with pytest.raises(UserError, match="width equals its 3 input channels"):
        build_encoder({"type": "STGCNEncoder", "width": 3})
