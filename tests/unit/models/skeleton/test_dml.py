"""SL-DML and Skeleton-DML: mining and loss against the library of their time, sizes, one training."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from pipeline.models.skeleton.base import SkeletonModel
from pipeline.models.skeleton.dml import SkeletonDML
from pipeline.models.skeleton.losses import mined_triplets, triplet_loss
from pipeline.tasks.one_shot.scoring import predict_nearest


def _model(classes=5, **settings):
    torch.manual_seed(0)
    small = {"source": {"width": 4}, "embedding": 16, "shrink": 2}
    return SkeletonDML("ntu25", 1, classes, encoder="image", settings=small, **settings)


@pytest.mark.parametrize("case", ["batch", "straddle", "easy", "small"])
@pytest.mark.parametrize("epsilon", [0.1, 0.05])
def test_triplets_and_losses_of_the_library(golden, case, epsilon):
    data = golden("dml_metric")
    embedding = torch.tensor(data[f"in.{case}.embeddings"], requires_grad=True)
    labels = torch.tensor(data[f"in.{case}.labels"]).long()
    found = mined_triplets(embedding, labels, epsilon)
    np.testing.assert_array_equal(found.numpy(), data[f"out.{case}.eps{epsilon}.triplets"])
    for margin in (0.2, 0.1):
        loss = triplet_loss(embedding, found, margin)
        want = torch.tensor(data[f"out.{case}.eps{epsilon}.margin{margin}.loss"])
        assert_close(loss.detach(), want, rtol=1e-5, atol=1e-5)
    if epsilon == 0.1:
        triplet_loss(embedding, found, 0.2).backward()
        assert_close(embedding.grad, torch.tensor(data[f"out.{case}.eps0.1.margin0.2.grad"]), rtol=1e-4, atol=1e-5)


def test_the_two_losses_together(golden):
    data = golden("dml_metric")
    embedding, labels = torch.tensor(data["in.batch.embeddings"]), torch.tensor(data["in.batch.labels"]).long()
    model = _model(10)
    model.encoder.classifier.weight.data = torch.tensor(data["w.classifier.weight"])
    model.encoder.classifier.bias.data = torch.tensor(data["w.classifier.bias"])
    losses = model.encoder_losses(embedding, labels)
    assert_close(2 * losses["loss_class"], torch.tensor(data["out.batch.cross_entropy"]), rtol=1e-5, atol=1e-5)
    total = losses["loss_class"] + losses["loss_triplet"]
    assert_close(total, torch.tensor(data["out.batch.total"]), rtol=1e-5, atol=1e-5)


def test_the_nearest_exemplar(golden):
    data = golden("dml_metric")
    np.testing.assert_array_equal(predict_nearest(data["in.exemplars"], data["in.queries"]), data["out.nearest"])


def test_nothing_to_mine():
    labels = torch.tensor([0, 1, 2, 3])
    embedding = torch.randn(4, 6, requires_grad=True)
    found = mined_triplets(embedding, labels)
    assert found.shape == (0, 3)
    loss = triplet_loss(embedding, found)
    loss.backward()
    assert loss == 0 and not embedding.grad.any()


def test_parameters():
    with torch.device("meta"):
        model = SkeletonDML("ntu25", 2, 100, encoder="image", settings={"source": {"depth": 18}})
    assert sum(p.numel() for p in model.encoder.backbone.parameters()) == 11_176_512
    assert sum(p.numel() for p in model.parameters()) == 11_255_076
    assert model.size() == 11_242_176


def test_a_query_is_embedded_alone_and_what_training_needs_stays_behind():
    model = _model().eval()
    pictures = torch.rand(6, 3, 64, 64, 1)
    with torch.no_grad():
        every = model.embed(pictures)
        assert every.shape == (6, 16) and model.embed(pictures, "hidden").min() >= 0
        for i in range(6):
            assert_close(model.embed(pictures[i : i + 1])[0], every[i], rtol=0, atol=1e-5)
    assert not any("classifier" in name for name in model.exported_state())
    assert any("classifier" in name for name in model.trained_state())


def test_training_reaches_every_parameter():
    model = _model(margin=0.4).train()
    losses = model(torch.rand(8, 3, 64, 64, 1), torch.arange(8) // 2 % 4)
    assert set(losses) == {"loss_class", "loss_triplet", "accuracy"} and isinstance(model, SkeletonModel)
    (losses["loss_class"] + losses["loss_triplet"]).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all() and parameter.grad.any(), name
    smaller = _model(class_weight=0.1, margin=0.4).train()(torch.rand(8, 3, 64, 64, 1), torch.arange(8) // 2 % 4)
    assert smaller["loss_class"] < losses["loss_class"]
