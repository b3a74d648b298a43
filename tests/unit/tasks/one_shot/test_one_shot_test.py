import math

import numpy as np
import pytest
import torch
from skeleton_set import BASE, GCN, NOVEL, make_skeleton_set

from pipeline.datasets.skeletons.feeder import MotionBertDataset
from pipeline.models.skeleton.baseline import SkeletonBaseline
from pipeline.tasks.one_shot.calibration import Calibration
from pipeline.tasks.one_shot.scoring import (
    OneShot,
    as_tested,
    features,
    measure_one_shot,
    predict_nearest,
    result,
    sequences,
)

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def skeletons(tmp_path_factory):
    return make_skeleton_set(tmp_path_factory.mktemp("skeletons"))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return SkeletonBaseline("ntu25", 1, BASE, encoder="hdgcn", settings=GCN)


def test_features_are_the_model_s_own_in_any_batches(skeletons, model):
    made, split = skeletons.definition, skeletons.split
    dataset = as_tested(skeletons.store, split.queries, made.policy, made.feed)
    model.train()
    state = torch.get_rng_state()
    got = features(model, dataset, range(len(dataset)), "embedding", batch=4)
    assert model.training and torch.equal(torch.get_rng_state(), state)
    assert got.shape == (NOVEL * 5, 16) and got.dtype == np.float32
    np.testing.assert_allclose(got, features(model, dataset, range(len(dataset))), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(features(model, dataset, [7, 2]), got[[7, 2]], rtol=1e-4, atol=1e-5)
    model.eval()
    with torch.no_grad():
        want = model.embed(torch.stack([dataset[i][0] for i in range(3)])).numpy()
    np.testing.assert_allclose(got[:3], want, rtol=1e-4, atol=1e-5)


def test_dropout_at_test_comes_from_one_seed(skeletons):
    made, split = skeletons.definition, skeletons.split
    settings = {"width": 8, "depth": 1, "heads": 2, "representation": 8, "embedding": 12, "dropout": 0.5}
    torch.manual_seed(0)
    noisy = SkeletonBaseline("ntu25", 1, BASE, encoder="motionbert", settings=settings, test_dropout=True)
    dataset = as_tested(skeletons.store, split.queries, made.policy, made.feed)
    first = features(noisy, dataset, range(6))
    torch.manual_seed(5)
    np.testing.assert_array_equal(first, features(noisy, dataset, range(6)))
    noisy.test_dropout = False
    assert not np.allclose(first, features(noisy, dataset, range(6)))


def test_the_nearest_exemplar_is_that_of_the_largest_cosine():
    exemplars = np.array([[1.0, 0], [0, 10], [-1, -1]], dtype=np.float32)
    queries = np.array([[5, 1], [1, 5], [-0.1, -0.2], [0, 0]], dtype=np.float32)
    assert predict_nearest(exemplars, queries).tolist() == [0, 1, 2, 0]


def test_accuracy_and_its_interval():
    got = result(np.array([0, 0, 1, 1, 1]), np.array([0, 1, 1, 1, 1]), 0.5)
    assert got.value == pytest.approx(80)
    assert got.interval == pytest.approx(196 * math.sqrt(0.8 * 0.2 / 4))
    assert got.by_class(2).tolist() == [100, 75] and got.by_class(3)[2] == 0


@pytest.mark.parametrize("classifier", ["nearest", "calibration"])
def test_a_whole_measurement(skeletons, model, classifier, monkeypatch):
    made = skeletons.definition
    settings = OneShot(classifier=classifier, calibration=Calibration(samples=20))
    assert settings.of == {"nearest": "embedding", "calibration": "hidden"}[classifier]
    assert OneShot(classifier=classifier, feature="embedding").of == "embedding"
    read = []
    really = skeletons.store.read
    monkeypatch.setattr(skeletons.store, "read", lambda i: read.append(i) or really(i))
    got = [measure_one_shot(model, skeletons.store, skeletons.split, made.policy, made.feed, settings) for _ in "ab"]
    assert got[0].labels.tolist() == skeletons.split.query_labels.tolist()
    np.testing.assert_array_equal(got[0].predicted, got[1].predicted)
    assert set(got[0].predicted) <= set(range(NOVEL)) and 0 <= got[0].value <= 100
    assert bool(set(read) & set(skeletons.split.base.tolist())) == (classifier == "calibration")


def test_an_exemplar_is_recognised(skeletons, model):
    made, split = skeletons.definition, skeletons.split
    seen = split.__class__(**{**vars(split), "queries": split.exemplars, "query_labels": np.arange(NOVEL)})
    settings = OneShot(classifier="nearest")
    assert measure_one_shot(model, skeletons.store, seen, made.policy, made.feed, settings).value == 100


def test_sequences_of_motionbert_are_turned():
    class Fake(MotionBertDataset):
        def __init__(self):
            pass

        def __getitem__(self, item):
            return torch.arange(2 * 5 * 17 * 3.0).reshape(2, 5, 17, 3), 0, item

    x = sequences(Fake(), [(3, 0), 1])
    assert x.shape == (2, 3, 5, 17, 2) and x[0, 1, 4, 16, 0] == Fake()[0][0][0, 4, 16, 1]
