"""HD-GCN against slow references written from the paper, layer by layer and joint by joint."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.errors import UserError
from pipeline.models.skeleton import HDGCN, get_graph
from pipeline.models.skeleton.hdgcn import EdgeConv, HierarchyAttention, HierarchyGraphConv

torch.set_num_threads(1)


def _randomised(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Float64, evaluation mode, every weight and statistic random, so that each of them matters."""
    generator = torch.Generator().manual_seed(seed)
    module.double().eval()
    for name, value in (*module.named_parameters(), *module.named_buffers()):
        if value.is_floating_point() and "members" not in name:
            noise = torch.randn(value.shape, generator=generator, dtype=torch.float64)
            value.data.copy_(1 + 0.2 * noise if "running_var" in name else 0.3 * noise)
    return module


def _randn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _norm(x: Tensor, norm, channels: slice) -> Tensor:
    """Batch norm in evaluation mode of one vector (C,) that has these channels of the module's."""
    mean, var = norm.running_mean[channels], norm.running_var[channels]
    return (x - mean) / (var + norm.eps).sqrt() * norm.weight[channels] + norm.bias[channels]


def _slow_edge(x: Tensor, edge: EdgeConv, group: int) -> Tensor:
    """x (C, n) of one group -> (C, n), place by place."""
    c, n = x.shape
    channels = slice(group * c, (group + 1) * c)
    weight = edge.conv.weight[channels, :, 0, 0]
    out = torch.empty_like(x)
    for v in range(n):
        order = sorted(range(n), key=lambda u, v=v: float((x[:, u] - x[:, v]).square().sum()))[: edge.k]
        values = [weight @ torch.cat((x[:, u] - x[:, v], x[:, v])) for u in order]
        values = [F.leaky_relu(_norm(value, edge.norm, channels), 0.2) for value in values]
        out[:, v] = torch.stack(values).amax(0)
    return out


@torch.no_grad()
@pytest.mark.parametrize(("places", "k"), [(9, 5), (4, 5), (6, 3)])
def test_edge_convolution(places, k):
    edge = _randomised(EdgeConv(4, k, groups=3))
    x = _randn(2, 3, 4, places)
    got = edge(x)
    want = torch.stack([torch.stack([_slow_edge(x[b, g], edge, g) for g in range(3)]) for b in range(2)])
    torch.testing.assert_close(got, want)


@torch.no_grad()
@pytest.mark.parametrize("center", ["base of spine", "spine"])
def test_graph_convolution_is_a_sum_over_layers(center):
    graph = get_graph("ntu25")
    conv = _randomised(HierarchyGraphConv(5, 8, graph, graph.joint(center), attention=False))
    x = _randn(2, 5, 3, 25)
    b, _, t, v = x.shape
    total = torch.zeros(b, 8, t, v, dtype=torch.float64)
    for layer in range(6):
        part = slice(2 * layer, 2 * layer + 2)
        low = torch.empty(b, 2, t, v, dtype=torch.float64)
        for i in range(b):
            for frame in range(t):
                for joint in range(v):
                    value = conv.reduce[0].weight[part, :, 0, 0] @ x[i, :, frame, joint] + conv.reduce[0].bias[part]
                    low[i, :, frame, joint] = _norm(value, conv.reduce[1], part).relu()
        for subset in range(3):
            channels = slice(2 * (3 * layer + subset), 2 * (3 * layer + subset) + 2)
            weight, bias = conv.mix[0].weight[channels, :, 0, 0], conv.mix[0].bias[channels]
            for i in range(b):
                for frame in range(t):
                    mixed = low[i, :, frame] @ conv.adjacency[layer, subset].T
                    for joint in range(v):
                        value = _norm(weight @ mixed[:, joint] + bias, conv.mix[1], channels)
                        total[i, 2 * subset : 2 * subset + 2, frame, joint] += value
        for i in range(b):
            total[i, 6:8] += _slow_edge(low[i].mean(1), conv.edge, layer)[:, None]
    want = torch.stack([torch.stack([torch.stack([
        _norm(total[i, :, frame, joint], conv.bn, slice(None)) for joint in range(v)], -1)
        for frame in range(t)], -2) for i in range(b)])  # fmt: skip
    torch.testing.assert_close(conv(x), (want + conv.down(x)).relu())


@torch.no_grad()
def test_attention_weighs_the_layers():
    groups = get_graph("ntu25").hierarchy(0)
    attention = _randomised(HierarchyAttention(8, groups, 25))
    x = _randn(2, 6, 8, 3, 25)
    want = torch.zeros(2, 8, 3, 25, dtype=torch.float64)
    for b in range(2):
        seen = []
        for layer in range(6):
            joints = [*groups[layer], *groups[layer + 1]]
            highest = x[b, layer].amax(1)  # (C, V)
            low = [attention.reduce[0].weight[:, :, 0, 0] @ highest[:, j] + attention.reduce[0].bias for j in joints]
            seen.append(torch.stack([_norm(value, attention.reduce[1], slice(None)).relu() for value in low]).mean(0))
        related = _slow_edge(torch.stack(seen, -1), attention.edge, 0)
        for layer in range(6):
            weight = attention.expand.weight[:, :, 0] @ related[:, layer] + attention.expand.bias
            want[b] += x[b, layer] * weight.sigmoid()[:, None, None]
    torch.testing.assert_close(attention(x), want)


def test_whole_encoder_runs_on_each_skeleton_and_trains():
    torch.manual_seed(0)
    for name, persons in (("openpose18", 2), ("coco17", 1)):
        model = HDGCN(name, persons=persons, classes=3, channels=(8, 8, 16), strides=(1, 1, 2))
        x = torch.randn(2, 3, 6, model.joints, persons)
        logits = model.logits(model(x))
        F.cross_entropy(logits, torch.tensor([0, 2])).backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("center", [None, "base of spine", "mid of spine"])
def test_published_parameter_count(center):
    count = sum(p.numel() for p in HDGCN(classes=100, center=center).parameters())
    print(f"HD-GCN, 100 classes, centre {center}: {count:,}")
    assert count == 1_670_260


def test_start_values():
    model = HDGCN(classes=4)
    for index, block in enumerate(model.blocks):
        assert torch.equal(block.spatial.adjacency, model.graph.hierarchy_adjacency())
        assert (block.spatial.bn.weight == 1e-6).all()
        assert (block.residual is None) == (block.spatial.attention is None) == (index == 0)
    mix = model.blocks[9].spatial.mix[0].weight  # variance 2 / fan-out of a single 64-wide convolution
    assert mix.std().item() == pytest.approx((2 / 64) ** 0.5, rel=0.02)
    assert isinstance(model.blocks[0].spatial.down, torch.nn.Sequential)


def test_settings_that_do_not_fit():
    with pytest.raises(UserError, match="unknown joint 'spne'"):
        HDGCN(center="spne")
    with pytest.raises(UserError, match="multiple of 4"):
        HDGCN(channels=(6,), strides=(1,))
