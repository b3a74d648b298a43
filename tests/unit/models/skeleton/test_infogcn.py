"""InfoGCN against what its released code computes."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pipeline.errors import UserError
from pipeline.models.skeleton import InfoGCN, get_graph
from pipeline.models.skeleton import losses as L
from pipeline.models.skeleton.base import SkeletonModel

torch.set_num_threads(1)


def _close(got: torch.Tensor, want, rtol: float = 1e-5, atol: float = 1e-5) -> None:
    np.testing.assert_allclose(got.detach().numpy(), want, rtol=rtol, atol=atol)


def _near(got: torch.Tensor, want: np.ndarray, error: float) -> None:
    """Root mean square of the difference, relative to that of the values.

    Attention with weights of variance 1 is steep: float32 rounding grows about a hundredfold from block 1 to 5 and
    again to 9, where the released numbers themselves are 6e-4 away from this model run in float64.
    """
    got = got.detach().double().numpy()
    assert got.shape == want.shape
    assert np.sqrt(np.mean((got - want) ** 2) / np.mean(np.square(want, dtype=float))) < error


def _released(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The released parameters under this module's names; its per-branch convolutions are stacked here."""
    plain = {
        "pos_embedding": "position",
        "data_bn": "norm",
        "to_joint_embedding": "to_joint",
        "decoder": "classifier",
        "agcn.shared_topology": "spatial.topology",
        "agcn.attn.to_qk": "spatial.to_qk",
        "agcn.attn.ln": "spatial.norm",
        "agcn.conv_d": "spatial.mix",
        "agcn.bn": "spatial.bn",
        "agcn.down": "spatial.down",
        "residual.conv": "residual.0",
        "residual.bn": "residual.1",
        "tcn.branches.0.3.conv": "temporal.0.over_time.0",
        "tcn.branches.1.3.conv": "temporal.0.over_time.1",
        "tcn.branches.3.0": "temporal.0.plain",
    }
    stacked = {"temporal.0.reduce.0": ("0.0", "1.0", "2.0"), "temporal.0.reduce.1": ("0.1", "1.1", "2.1"),
               "temporal.0.norm": ("0.3.bn", "1.3.bn", "2.4", "3.1")}  # fmt: skip
    result = {}
    for name, value in weights.items():
        prefix, _, rest = name.partition(".")
        block = f"blocks.{int(prefix[1:]) - 1}." if prefix[1:].isdigit() else ""
        rest = rest if block else name
        if rest.startswith("tcn.branches."):
            for target, branches in stacked.items():
                if rest.startswith(f"tcn.branches.{branches[0]}."):
                    end = rest.rpartition(".")[2]
                    parts = [weights[f"{prefix}.tcn.branches.{b}.{end}"] for b in branches]
                    result[block + target + "." + end] = parts[0] if not parts[0].dim() else torch.cat(parts)
        for old, new in plain.items():
            if rest == old or rest.startswith(old + "."):
                value = value[..., 0, 0] if ".conv_d." in name and value.dim() == 4 else value
                result[block + new + rest[len(old) :]] = value
        if not block and name.startswith("fc"):
            result[name] = value
    return result


@pytest.fixture(scope="module")
def arrays(golden):
    return golden("infogcn")


@pytest.fixture(scope="module")
def build(arrays):
    prefix = "weights/"
    weights = {n[len(prefix) :]: torch.from_numpy(a) for n, a in arrays.items() if n.startswith(prefix)}

    def make(k: int) -> InfoGCN:
        model = InfoGCN(classes=10, k=k).eval()
        assert sum(p.numel() for p in model.parameters()) == arrays["params_10"]
        missing = model.load_state_dict(_released(weights), strict=False)
        assert (missing.missing_keys, missing.unexpected_keys) == (["prior"], [])
        return model

    return make


@torch.no_grad()
def test_blocks_and_head_of_the_released_model(arrays, build):
    model, x = build(8), torch.from_numpy(arrays["in/x"])
    state = model.embed(x)
    want = arrays["out/k8/after_data_bn"].reshape(2, 25, 64, 16).transpose(0, 2, 3, 1)  # persons, C, T, V
    _near(state[:2], want, 2e-6)
    _near(model.blocks[0].spatial(state)[0], arrays["out/k8/block1_sagc"], 2e-6)
    _near(model.blocks[0].temporal(model.blocks[0].spatial(state))[0], arrays["out/k8/block1_mstcn"], 2e-6)
    _near(model.run(state, 0, 1)[0], arrays["out/k8/block1"], 2e-6)
    fifth = model.run(state, 0, 5)
    _near(fifth, arrays["out/k8/block5"], 1e-4)
    assert fifth.shape[1] == model.channels[4]
    last = model.run(fifth, 5, 9)
    _near(last, arrays["out/k8/block9"], 2e-3)
    pooled = model.pool(model.features(last))
    _near(model.hidden(pooled), arrays["out/k8/fc_relu"], 3e-4)
    _near(model.fc_logvar(model.hidden(pooled)), arrays["out/k8/logvar"], 3e-4)


@torch.no_grad()
@pytest.mark.parametrize("k", [8, 1, 2])
def test_embedding_and_logits_for_each_input_representation(arrays, build, k):
    model, x = build(k), torch.from_numpy(arrays["in/x"])
    z = model(x)
    _near(z, arrays[f"out/k{k}/z"], 3e-4)
    _near(model.logits(z), arrays[f"out/k{k}/logits"], 3e-4)
    _close(model.transform @ x.permute(0, 4, 2, 3, 1), arrays[f"kmode/x_k{k}"])


def test_powers_of_the_tree(arrays):
    graph = get_graph("ntu25")
    _close(graph.adjacency(), arrays["kmode/A_child_to_parent"], atol=0)
    for k in range(9):
        _close(graph.power_transform(k), arrays[f"kmode/matrix_k{k}"], atol=0)


def test_latent_noise_is_scaled_and_capped(arrays):
    model = InfoGCN(channels=(8,), strides=(1,))
    mu, logvar = (torch.from_numpy(arrays[f"in/latent_{name}"]) for name in ("mu", "logvar"))
    noise = torch.from_numpy(arrays["latent/eps"])
    _close(model.sample(mu, logvar, noise), arrays["latent/z_train"])
    torch.manual_seed(3)
    drawn = model.sample(mu, logvar)
    torch.manual_seed(3)
    _close(model.sample(mu, logvar, torch.randn_like(mu)), drawn, rtol=0, atol=0)
    _close(model.eval().sample(mu, logvar, noise), arrays["latent/z_eval"], atol=0)


def test_a_huge_variance_has_finite_gradients():
    """The factor is capped; where exp itself would be infinite, the cap must not turn the gradient into NaN."""
    model = InfoGCN(channels=(8,), strides=(1,))
    logvar = torch.tensor([[0.0, 9.0, 500.0]], requires_grad=True)
    out = model.sample(torch.zeros(1, 3), logvar, torch.ones(1, 3))
    assert out[0].tolist() == pytest.approx([1, math.exp(4.5), 100])
    out.sum().backward()
    assert logvar.grad[0].tolist() == pytest.approx([0.5, 0.5 * math.exp(4.5), 0])


def test_losses(arrays):
    z, prior = torch.from_numpy(arrays["in/loss_z"]), torch.from_numpy(arrays["in/loss_z_prior"])
    labels, logits = torch.from_numpy(arrays["in/loss_y"]), torch.from_numpy(arrays["in/loss_logits"])
    by_class, overall = L.latent_discrepancy(z, labels, prior)
    _close(by_class, arrays["loss/mmd"])
    _close(overall, arrays["loss/l2_z_mean"])
    encoder = InfoGCN(channels=(256,), strides=(1,), classes=10)
    encoder.prior.copy_(prior)
    encoder.logits = lambda _: logits
    found = SkeletonModel.encoder_losses(SimpleNamespace(encoder=encoder, smoothing=0.1, contrastive=0), z, labels)
    _close(found["loss_class"], arrays["loss/ce_smooth"])
    _close(sum(value for name, value in found.items() if name.startswith("loss_")), arrays["loss/total"])


@pytest.mark.parametrize(
    ("classes", "published"), [(10, 1_543_957), (60, 1_556_807), (100, 1_567_087), (120, 1_572_227)]
)
def test_published_parameter_counts(classes, published):
    count = sum(p.numel() for p in InfoGCN(classes=classes).parameters())
    print(f"InfoGCN, {classes} classes: {count:,}")
    assert count == published


def test_class_priors_are_orthogonal_and_kept_with_the_weights():
    model = InfoGCN(channels=(16,), strides=(1,), classes=10)
    _close(model.prior @ model.prior.T, 9 * np.eye(10), atol=1e-4)
    assert "prior" in model.state_dict()


def test_a_trained_batch_moves_every_parameter():
    torch.manual_seed(0)
    model = InfoGCN("coco17", persons=1, classes=4, channels=(16, 16, 32), strides=(1, 2, 1))
    x, labels = torch.randn(4, 3, 8, 17, 1), torch.tensor([0, 1, 1, 3])
    z = model(x)
    loss = F.cross_entropy(model.logits(z), labels) + sum(model.regularisation(z, labels).values())
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_settings_that_do_not_fit():
    with pytest.raises(UserError, match="k is 0"):
        InfoGCN(k=0)
    with pytest.raises(UserError, match="3 block widths but 2 strides"):
        InfoGCN(channels=(16, 16, 16), strides=(1, 1))
    with pytest.raises(UserError, match="multiple of 4"):
        InfoGCN(channels=(18,), strides=(1,))
    with pytest.raises(UserError, match="below 8"):
        InfoGCN(channels=(4,), strides=(1,))
