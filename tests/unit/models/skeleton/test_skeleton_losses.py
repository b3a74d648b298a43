"""Supervised contrastive loss against its formula and released numbers; InfoGCN's terms are in test_infogcn."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from pipeline.models.skeleton.losses import contrastive_chance, latent_discrepancy, supervised_contrastive_loss


def test_released_values(golden):
    arrays = golden("motionbert")
    features = torch.from_numpy(arrays["in/supcon_features"])
    labels = torch.from_numpy(arrays["in/supcon_labels"])
    two_views = torch.cat((features, features.flip(0)), dim=1)
    cases = ((features, 0.1, "t0.1"), (features, 0.07, "t0.07"), (two_views, 0.1, "t0.1_two_views"))
    for views, temperature, name in cases:
        got = supervised_contrastive_loss(views, labels, temperature)
        assert got.item() == pytest.approx(float(arrays[f"supcon/loss_{name}"]), rel=1e-5)


def test_formula_with_lonely_anchors_left_out():
    generator = torch.Generator().manual_seed(0)
    features = F.normalize(torch.randn(5, 2, 4, generator=generator, dtype=torch.float64), dim=-1)[:, :1]
    labels = [0, 0, 1, 1, 2]
    total = []
    for i in range(5):
        others = [j for j in range(5) if j != i]
        scores = {j: float(features[i, 0] @ features[j, 0]) / 0.5 for j in others}
        norm = math.log(sum(math.exp(s) for s in scores.values()))
        positive = [scores[j] - norm for j in others if labels[j] == labels[i]]
        if positive:
            total.append(-sum(positive) / len(positive))
    want = 0.5 / 0.07 * sum(total) / len(total)
    got = supervised_contrastive_loss(features, torch.tensor(labels), 0.5)
    assert len(total) == 4
    assert got.item() == pytest.approx(want, rel=1e-9)


def test_no_pair_at_all_is_zero_with_finite_gradient():
    features = F.normalize(torch.randn(3, 1, 4), dim=-1).requires_grad_()
    loss = supervised_contrastive_loss(features, torch.arange(3))
    loss.backward()
    assert loss.item() == 0
    assert features.grad.isfinite().all()


def test_latent_discrepancy_counts_present_classes_once():
    z = torch.tensor([[2.0, 0.0], [4.0, 0.0], [0.0, 1.0]])
    prior = torch.tensor([[9.0, 9.0], [0.0, 0.0], [1.0, 1.0]])
    by_class, overall = latent_discrepancy(z, torch.tensor([2, 2, 1]), prior)
    assert by_class.item() == pytest.approx(((3 - 1) ** 2 + (0 - 1) ** 2 + 0 + 1) / 4)
    assert overall.item() == pytest.approx(math.hypot(2, 1 / 3))


def test_equal_features_have_the_contrastive_loss_of_chance():
    features = torch.nn.functional.normalize(torch.ones(6, 1, 4), dim=-1)
    loss = supervised_contrastive_loss(features, torch.tensor([0, 0, 1, 1, 2, 2]), 0.3)
    assert float(loss) == pytest.approx(contrastive_chance(6, 0.3), rel=1e-5)
