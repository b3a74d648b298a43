"""TEAM against released code, its ablations, and its terms in loops."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from resnet_stub import BACKBONE, assert_gradients, by_class, episodes, randn, scramble
from torch.testing import assert_close

from pipeline.errors import UserError
from pipeline.models.few_shot.base import EpisodeBatch
from pipeline.models.few_shot.blocks.positions import sinusoid
from pipeline.models.few_shot.team import TEAM, PatternTokens, token_distance

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
NAMES = {"patterns": "AP", "norm.weight": "ln.weight", "norm.bias": "ln.bias"}
NAMES |= {f"{ours}.{kind}": f"mlp.{theirs}.{kind}" for ours, theirs in (("inside", "inp_fc"), ("outside", "out_fc"))
          for kind in ("weight", "bias")}  # fmt: skip
DATA = {"shot1": "5way1shot_T8", "shot5": "5way5shot_T8"}
ABLATIONS = {
    "TEAM_pos": {"adaptation": "none", "negative": "none"},
    "TEAM_pos_neg": {"adaptation": "none"},
    "TEAM_disc_without_sim": {"adaptation": "plain"},
}


def _model(data, **settings):
    tokens = data["w.DPM.AP"].shape[1]
    model = TEAM({**BACKBONE, "dim": 32}, tokens, **settings).eval()
    state = {ours: torch.tensor(data[f"w.DPM.{theirs}"]).reshape(getattr_path(model.patterns, ours).shape)
             for ours, theirs in NAMES.items()}  # fmt: skip
    model.patterns.load_state_dict(state)
    return model


def getattr_path(module, path):
    for name in path.split("."):
        module = getattr(module, name)
    return module


def _episode(model, data, key):
    """Frames of supports by class and of queries, prototypes and scores, labels."""
    maps = {side: torch.tensor(data[f"in.{side}_maps_{key}"]).mean((-2, -1)) for side in ("support", "query")}
    support = by_class(maps["support"], torch.tensor(data[f"in.support_labels_{key}"]))
    query = maps["query"][None]
    prototypes, asked = model.prototypes(support), model.relate_queries(query)
    labels = torch.tensor(data[f"in.query_labels_{key}"])[None].long()
    return support, query, prototypes, asked, model.match(asked, prototypes), labels


def _losses(model, scores, labels):
    batch = EpisodeBatch(None, None, None, None, labels, None, None, None, None)
    return {"pos": F.cross_entropy(model.training_logits(scores)[0], labels[0]), **model.auxiliary(batch, scores)}


@pytest.mark.parametrize("case", DATA)
def test_released_code(golden, case):
    data = golden("team")

    def out(name):
        return torch.tensor(data[f"out.{case}_{name}"])

    model = _model(data)
    pe = torch.tensor(data["w.DPM.pe.pe"])[0]
    assert_close(0.1 * sinusoid(*pe.shape), pe, rtol=0, atol=1e-7)
    *_, prototypes, asked, scores, labels = _episode(model, data, DATA[case])
    for name, tokens in (("support", prototypes), ("query", asked)):
        assert_close(tokens.gathered[0], out(f"{name}_ca"), **CLOSE)
        assert_close(tokens.instance[0], out(f"{name}_pos"), **CLOSE)
        assert_close(tokens.exclusive[0], out(f"{name}_neg"), **CLOSE)
    instance, exclusive = model.adapted(prototypes)
    assert_close(instance[0], out("adapted_pos"), **CLOSE)
    assert_close(exclusive[0], out("adapted_neg"), **CLOSE)
    assert_close(scores["positive"][0], out("logits_pos"), **CLOSE)
    assert_close(scores["negative"][0], out("logits_neg"), **CLOSE)
    assert_close(scores["vv"][0], out("logits"), **CLOSE)
    assert_close(scores["vv"][0].softmax(-1), out("probability"), **CLOSE)
    losses = _losses(model, scores, labels)
    assert_close(losses["pos"], out("loss_L_pos"), **CLOSE)
    assert_close(losses["loss_negative"], out("loss_L_neg"), **CLOSE)
    sum(losses.values()).backward()
    for ours, theirs in NAMES.items():
        want = float(data[f"out.{case}_gradnorm.DPM.{theirs}"])
        assert float(getattr_path(model.patterns, ours).grad.norm()) == pytest.approx(want, rel=1e-4), ours


@pytest.mark.parametrize("name", ABLATIONS)
@torch.no_grad()
def test_released_ablations(golden, name):
    data = golden("team")
    model = _model(data, **ABLATIONS[name])
    *_, scores, labels = _episode(model, data, DATA["shot1"])
    for ours, theirs in (("vv", "logits"), ("positive", "logits_pos"), ("negative", "logits_neg")):
        if ours in scores:
            assert_close(scores[ours][0], torch.tensor(data[f"out.shot1_{name}_{theirs}"]), **CLOSE)
    total = sum(_losses(model, scores, labels).values())
    assert_close(total, torch.tensor(data[f"out.shot1_{name}_loss"]), **CLOSE)


@torch.no_grad()
def test_terms_in_loops():
    model = scramble(TEAM({**BACKBONE, "dim": 16}, 3))
    support, query = randn(2, 4, 2, 5, 16), randn(2, 3, 5, 16, seed=1)
    classes, asked = model.prototypes(support), model.relate_queries(query)
    instance, exclusive = model.adapted(classes)
    for negative in ("farthest", "nearest"):
        model.negative = negative
        scores = model.match(asked, classes)["vv"]
        for e, q, n in itertools.product(range(2), range(3), range(4)):

            def distance(x, y):
                return sum(1 - F.cosine_similarity(a, b, dim=0) for a, b in zip(x, y, strict=True))

            others = [o for o in range(4) if o != n]
            best = max if negative == "farthest" else min
            crossed = best(distance(instance[e, o], asked.exclusive[e, q]) for o in others)
            crossed += best(distance(exclusive[e, o], asked.instance[e, q]) for o in others)
            want = distance(instance[e, n], asked.instance[e, q]) + crossed / 2
            assert float(scores[e, q, n]) == pytest.approx(-float(want), abs=1e-9)
    assert_close(token_distance(asked.instance, asked.instance).diagonal(dim1=1, dim2=2), torch.zeros(2, 3).double())


@torch.no_grad()
def test_the_farthest_other_class_is_the_same_for_all_but_one(golden):
    """A surprise of the released term, which can favour one class in either direction."""
    data = golden("team")
    *_, scores, _ = _episode(_model(data), data, DATA["shot1"])
    assert all(len(np.unique(row.numpy().round(5))) <= 3 for row in scores["negative"][0])
    *_, scores, _ = _episode(_model(data, negative="nearest"), data, DATA["shot1"])
    assert all(len(np.unique(row.numpy().round(5))) <= 3 for row in scores["negative"][0])


@pytest.mark.parametrize(("tokens", "count"), [(60, 8_519_680), (70, 8_540_160), (80, 8_560_640)])
def test_parameters(tokens, count):
    with torch.device("meta"):
        assert sum(p.numel() for p in PatternTokens(tokens, 2048).parameters()) == count


@pytest.mark.parametrize("settings", [{}, *ABLATIONS.values(), {"negative": "nearest"}])
def test_training_reaches_every_parameter(settings):
    torch.manual_seed(0)
    model = TEAM({**BACKBONE, "dim": 16}, 4, **settings).train()
    losses = model(mode="loss", **episodes(way=3, shots=2))
    names = {"loss_matching", "accuracy"} | ({"loss_negative"} if settings.get("negative") != "none" else set())
    assert set(losses) == names
    assert_gradients(model, losses)


def test_wrong_settings():
    for settings, message in (({"adaptation": "simlar"}, "did you mean 'similar'"), ({"negative": "max"}, "farthest")):
        with pytest.raises(UserError, match=message):
            TEAM({**BACKBONE, "dim": 16}, 4, **settings)
    model = TEAM({**BACKBONE, "dim": 16}, 4)
    videos = torch.randn(1, 2, 3, 16)
    with pytest.raises(UserError, match="unknown matcher 'otam'"):
        model.match(model.relate_queries(videos), model.prototypes(videos[:, :, None]), matcher="otam")
