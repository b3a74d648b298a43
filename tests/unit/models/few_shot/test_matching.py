"""The matchers against slow references written from the papers' formulas, and against released numbers."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from benchmarks.reference import bimhm as _slow_bimhm
from benchmarks.reference import cosine as _cosine_of
from benchmarks.reference import otam as _slow_otam
from pipeline.errors import UserError
from pipeline.models.few_shot import matching as M

torch.set_num_threads(1)


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=_generator(seed), dtype=torch.float64)


def _masks(*shape: int, seed: int = 0) -> torch.Tensor:
    """Random masks with at least one True in the last dimension."""
    g = _generator(seed)
    mask = torch.rand(*shape, generator=g) < 0.5
    return mask | F.one_hot(torch.randint(shape[-1], shape[:-1], generator=g), shape[-1]).bool()


def _close(got: torch.Tensor, want, rtol: float = 1e-5, atol: float = 1e-5) -> None:
    np.testing.assert_allclose(got.detach().double().numpy(), np.asarray(want), rtol=rtol, atol=atol)


# ----------------------------------------------------------------------------------------- distances
@pytest.mark.parametrize("eps", [0.01, 0.0])
def test_cosine_is_pairwise_with_epsilon_on_the_norms(eps):
    x, y = _randn(2, 3, 5, 7), _randn(2, 3, 4, 7, seed=1)
    got = M.cosine_similarity(x, y, eps)
    assert got.shape == (2, 3, 5, 4)
    for a, b, i, j in itertools.product(range(2), range(3), range(5), range(4)):
        assert got[a, b, i, j].item() == pytest.approx(_cosine_of(x[a, b, i], y[a, b, j], eps), abs=1e-12)
    _close(M.cosine_distance(x, y, eps), 1 - got, atol=0)


def test_unit_similarity_is_the_cosine_without_epsilon_and_survives_zero_rows():
    x, y = _randn(5, 7), _randn(4, 7, seed=1)
    _close(M.unit_similarity(x, y), M.cosine_similarity(x, y, 0), atol=1e-12)
    assert torch.equal(M.unit_similarity(torch.zeros(1, 7).double(), y), torch.zeros(1, 4).double())


def test_gradients_are_finite_at_a_zero_frame():
    x = torch.zeros(3, 7, dtype=torch.float64, requires_grad=True)
    (M.cosine_similarity(x, _randn(4, 7)).sum() + M.unit_similarity(x, _randn(4, 7)).sum()).backward()
    assert torch.isfinite(x.grad).all()


def test_episode_distances_are_those_of_every_pair():
    query, proto = _randn(2, 3, 8, 6), _randn(2, 5, 4, 6, seed=1)
    got = M.episode_distances(query, proto)
    assert got.shape == (2, 3, 5, 8, 4)
    for e, q, n in itertools.product(range(2), range(3), range(5)):
        _close(got[e, q, n], M.cosine_distance(query[e, q], proto[e, n]), atol=1e-12)


# ---------------------------------------------------------------------------------------------- OTAM
@pytest.mark.parametrize("shape", [(8, 8), (8, 5), (5, 8), (2, 2), (1, 8), (8, 1), (1, 1), (2, 1), (16, 16)])
@pytest.mark.parametrize("lam", [0.5, 0.1])
def test_otam_follows_the_recursion(shape, lam):
    d = torch.rand(2, 3, *shape, generator=_generator(), dtype=torch.float64) * 1.5
    forward, both = M.otam(d, lam), M.otam_bidirectional(d, lam)
    assert forward.shape == both.shape == (2, 3)
    for a, b in itertools.product(range(2), range(3)):
        one, other = _slow_otam(d[a, b].numpy(), lam), _slow_otam(d[a, b].numpy().T, lam)
        assert forward[a, b].item() == pytest.approx(one, rel=1e-10)
        assert both[a, b].item() == pytest.approx(one + other, rel=1e-10)


def test_otam_takes_any_leading_dimensions():
    d = torch.rand(2, 1, 3, 4, 5, generator=_generator())
    _close(M.otam(d), M.otam(d.flatten(0, 2)).reshape(2, 1, 3), rtol=0, atol=1e-6)
    _close(M.otam(d[0, 0, 0]), M.otam(d)[0, 0, 0], rtol=0, atol=1e-6)
    assert M.otam(torch.rand(0, 5, 8, 8)).shape == (0, 5)


def test_otam_and_its_gradient_stay_finite_where_exponentials_underflow():
    d = (torch.rand(4, 16, 16, generator=_generator()) * 0.5 + 1.5).requires_grad_()
    value = M.otam_bidirectional(d, 0.1)
    value.sum().backward()
    assert torch.isfinite(value).all() and torch.isfinite(d.grad).all() and (d.grad >= 0).all()
    want = [_slow_otam(x, 0.1) + _slow_otam(x.T, 0.1) for x in d.detach().double().numpy()]
    _close(value, want)


def test_otam_gradient_is_the_derivative():
    d = torch.rand(2, 3, 4, generator=_generator(), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: M.otam_bidirectional(x, 0.5), (d,))


def test_otam_sees_order_and_refuses_a_bad_lambda():
    d = 1 - torch.eye(8, dtype=torch.float64)
    assert M.otam_bidirectional(d) < M.otam_bidirectional(d.flip(0))
    with pytest.raises(UserError, match="lambda is 0"):
        M.otam(d, 0)


# ------------------------------------------------------------------------------------ Bi-MHM, AB-MHM
@pytest.mark.parametrize("shape", [(8, 8), (3, 5), (1, 4)])
@pytest.mark.parametrize("masked", [False, True])
def test_bimhm_is_the_sum_of_nearest_distances(shape, masked):
    d = torch.rand(3, 4, *shape, generator=_generator(), dtype=torch.float64)
    mq, ms = (_masks(3, 4, shape[0]), _masks(3, 4, shape[1], seed=1)) if masked else (None, None)
    both, single = M.bimhm(d, mq, ms), M.bimhm(d, mq, ms, direction="query")
    for a, b in itertools.product(range(3), range(4)):
        rows, columns = (mq[a, b].numpy(), ms[a, b].numpy()) if masked else (None, None)
        pair = d[a, b].numpy()
        assert both[a, b].item() == pytest.approx(_slow_bimhm(pair, rows, columns), abs=1e-12)
        assert single[a, b].item() == pytest.approx(_slow_bimhm(pair, rows, columns, both=False), abs=1e-12)


def test_bimhm_masks_broadcast_over_pairs_and_direction_is_checked():
    d, mq, ms = torch.rand(5, 3, 8, 8), _masks(5, 1, 8), _masks(3, 8, seed=1)
    want = M.bimhm(d, mq.expand(5, 3, 8), ms.expand(5, 3, 8))
    assert torch.equal(M.bimhm(d, mq, ms), want)
    with pytest.raises(UserError, match="matching direction 'quary'"):
        M.bimhm(d, direction="quary")


def test_bimhm_ignores_order_and_is_symmetric():
    d = torch.rand(2, 8, 8, generator=_generator(), dtype=torch.float64)
    order = torch.randperm(8, generator=_generator())
    _close(M.bimhm(d[:, order]), M.bimhm(d), atol=1e-12)
    _close(M.bimhm(d.mT), M.bimhm(d), atol=1e-12)
    assert M.bimhm(1 - torch.eye(8)).item() == 0


@pytest.mark.parametrize("phases", [1, 2, 3, 5])
def test_abmhm_adds_the_phases_of_equation_2(phases):
    d = torch.rand(2, 3, 8, 6, generator=_generator(), dtype=torch.float64)
    sq, ss = _masks(2, 3, phases, 8), _masks(2, 3, phases, 6, seed=1)  # frames in several phases, or in none
    got = M.abmhm(d, sq, ss)
    for a, b in itertools.product(range(2), range(3)):
        parts = [_slow_bimhm(d[a, b].numpy(), sq[a, b, k].numpy(), ss[a, b, k].numpy()) for k in range(phases)]
        assert got[a, b].item() == pytest.approx(sum(parts) / 8, abs=1e-12)
    _close(M.abmhm(d, sq, ss, frames=4), 2 * got, atol=1e-12)


def test_abmhm_with_one_phase_of_all_frames_is_bimhm_over_t():
    d = torch.rand(4, 5, 8, 8, generator=_generator(), dtype=torch.float64)
    all_frames = torch.ones(1, 8, dtype=torch.bool)
    _close(M.abmhm(d, all_frames, all_frames), M.bimhm(d) / 8, atol=1e-12)


@pytest.mark.parametrize(("ways", "queries", "phases", "tq", "ts"), [(5, 5, 3, 8, 8), (3, 2, 2, 4, 6), (1, 1, 1, 2, 1)])
def test_abmhm_phases_from_features_of_each_phase(ways, queries, phases, tq, ts):
    fq, fs = _randn(2, queries, phases, tq, 6), _randn(2, ways, phases, ts, 6, seed=1)
    mq, ms = _masks(2, queries, phases, tq), _masks(2, ways, phases, ts, seed=1)
    got = M.abmhm_phases(fq, mq, fs, ms)
    assert got.shape == (2, queries, ways)
    for e, q, n in itertools.product(range(2), range(queries), range(ways)):
        total = 0.0
        for k in range(phases):
            own = [fq[e, q, k, t] for t in range(tq) if mq[e, q, k, t]]
            other = [fs[e, n, k, t] for t in range(ts) if ms[e, n, k, t]]
            pair = np.array([[1 - _cosine_of(a, b) for b in other] for a in own])
            total += _slow_bimhm(pair)
        assert got[e, q, n].item() == pytest.approx(total / tq, abs=1e-12)


def test_abmhm_phases_equals_abmhm_when_features_do_not_depend_on_the_phase():
    query, proto = _randn(3, 4, 8, 6), _randn(3, 5, 8, 6, seed=1)
    mq, ms = _masks(3, 4, 3, 8), _masks(3, 5, 3, 8, seed=1)
    want = M.abmhm(M.episode_distances(query, proto), mq[:, :, None], ms[:, None])
    fq, fs = (x.unsqueeze(2).expand(-1, -1, 3, -1, -1) for x in (query, proto))
    _close(M.abmhm_phases(fq, mq, fs, ms), want, atol=1e-12)


def test_abmhm_sees_the_order_of_phases_and_bimhm_does_not():
    video = F.one_hot(torch.tensor([0, 0, 0, 1, 1, 2, 2, 2]), 3).double()
    phase = video.T.bool()
    back = video.flip(0)
    same, other = M.cosine_distance(video, video), M.cosine_distance(video, back)
    assert M.bimhm(same) == M.bimhm(other)
    assert M.abmhm(same, phase, phase) < M.abmhm(other, phase, phase)


def test_gradients_through_ragged_masks_are_finite_and_only_at_members():
    fq = _randn(2, 3, 3, 8, 6).requires_grad_()
    fs = _randn(2, 5, 3, 8, 6, seed=1).requires_grad_()
    mq, ms = _masks(2, 3, 3, 8), _masks(2, 5, 3, 8, seed=1)
    M.abmhm_phases(fq, mq, fs, ms).log_softmax(-1)[..., 0].sum().backward()
    for features, mask in ((fq, mq), (fs, ms)):
        assert torch.isfinite(features.grad).all()
        assert (features.grad[~mask] == 0).all() and (features.grad[mask] != 0).any()


# ---------------------------------------------------------------------- prototypes, texts and scores
@pytest.mark.parametrize("shots", [1, 2, 5])
def test_merge_shots_and_prototype_cosine(shots):
    support, query = _randn(2, 3, shots, 8, 6), _randn(2, 4, 8, 6, seed=1)
    proto = M.merge_shots(support)
    assert proto.shape == (2, 3, 8, 6)
    got = M.prototype_cosine(query, proto)
    for e, q, n in itertools.product(range(2), range(4), range(3)):
        mean = sum(support[e, n, k, t] for k in range(shots) for t in range(8)) / (shots * 8)
        want = 1 - _cosine_of(query[e, q].mean(0), mean)
        assert got[e, q, n].item() == pytest.approx(want, abs=1e-12)
    _close(M.prototype_cosine(query[:, :, torch.randperm(8, generator=_generator())], proto), got, atol=1e-12)


@pytest.mark.parametrize("phases", [1, 3])
def test_phase_text_similarity_is_equation_4(phases):
    f, texts, mask = _randn(2, 4, phases, 8, 6), _randn(2, 5, phases, 6, seed=1), _masks(2, 4, phases, 8)
    got = M.phase_text_similarity(M.pool_phases(f, mask), texts)
    assert got.shape == (2, 4, 5)
    for e, q, n in itertools.product(range(2), range(4), range(5)):
        want = 0.0
        for k in range(phases):
            members = [f[e, q, k, t] for t in range(8) if mask[e, q, k, t]]
            want += _cosine_of(sum(members) / len(members), texts[e, n, k])
        assert got[e, q, n].item() == pytest.approx(want, abs=1e-12)
    plain = f[:, :, :1]
    _close(M.pool_phases(plain, mask), M.pool_phases(plain.expand_as(f), mask), atol=1e-12)
    assert not M.pool_phases(f, torch.zeros_like(mask)).any()


def test_fuse_is_a_weighted_geometric_mean():
    p, t = torch.rand(3, 5, generator=_generator()), torch.rand(3, 5, generator=_generator(1))
    for alpha in (0.0, 0.3, 0.5, 1.0):
        _close(M.fuse(p.log(), t.log(), alpha).exp(), p**alpha * t ** (1 - alpha))
    assert torch.equal(M.fuse(torch.full((5,), -torch.inf), t, 0), t)
    with pytest.raises(UserError, match=r"1\.1"):
        M.fuse(p, t, 1.1)


# -------------------------------------------------------------------------- numbers of released code
def test_cosines_of_released_code(golden):
    data = {k: torch.tensor(v) for k, v in golden("otam_cossim").items()}
    _close(M.cosine_similarity(data["in.x"], data["in.y"]), data["out.cos_sim"])
    _close(M.cosine_similarity(data["in.x_small"], data["in.y_small"]), data["out.cos_sim_small"])
    _close(M.cosine_similarity(data["in.xb"], data["in.yb"]), data["out.cos_sim_batched"])


def test_otam_of_released_code(golden):
    data = golden("otam_cossim")
    checked = 0
    for key in (k for k in data if "_lam" in k):
        name, lam, which = key.removeprefix("out.").split("_")
        d, lam, want = torch.tensor(data[f"in.{name}"]), float(lam.removeprefix("lam")), data[key]
        run = {"fwd": M.otam, "bwd": lambda x, y: M.otam(x.mT, y), "sum": M.otam_bidirectional}[which]
        got = run(d, lam)
        assert torch.isfinite(got).all()
        if np.isfinite(want).all():  # the released code overflows for lambda 0.1 and large distances
            _close(got, want)
            checked += 1
    assert checked == 57


def test_otam_head_of_released_code(golden):
    data = golden("otam_head")
    labels = torch.tensor(data["in.support_labels"]).long()
    query, support = torch.tensor(data["in.query_frames"]), torch.tensor(data["in.support_frames"])
    by_class = torch.stack([support[labels == c] for c in range(5)])  # (N, K, T, D)
    d = M.otam_bidirectional(M.episode_distances(query, by_class.flatten(0, 1)), 0.1)
    _close(-d.unflatten(1, (5, 2)).mean(-1), data["out.logits"])


def test_bimhm_of_hyrsm(golden):
    data = golden("bimhm")
    for name, labels, out in (
        ("in.hyrsm_support", "in.support_labels_1shot", "out.hyrsm_logits_1shot"),
        ("in.hyrsm_support_2shot", "in.support_labels_unsorted_2shot", "out.hyrsm_logits_2way2shot"),
    ):
        query, support = torch.tensor(data["in.hyrsm_query"]), torch.tensor(data[name])
        d = M.bimhm(1 - M.unit_similarity(query[:, None], support))  # (q, supports)
        label = torch.tensor(data[labels]).long()
        per_class = torch.stack([d[:, label == c].mean(1) for c in label.unique()], dim=1)
        _close(-per_class, data[out])


def test_bimhm_of_molo(golden):
    data = {k: torch.tensor(v) for k, v in golden("bimhm").items()}
    rgb, motion = (  # token 0 of either stream is its class token and takes no part
        M.episode_distances(data[f"in.molo_query{s}"][:, 1:], data[f"in.molo_support{s}"][:, 1:])
        for s in ("", "_motion")
    )
    _close(-(M.bimhm(rgb) + 0.3 * M.bimhm(motion)), data["out.molo_default_logits"])
    _close(-(M.bimhm(rgb) + M.bimhm(motion)), data["out.molo_coff1_logits"])
    _close(-M.bimhm(rgb), data["out.molo_rgb_only_logits"])
    single = M.bimhm(rgb, direction="query") + 0.3 * M.bimhm(motion, direction="query")
    _close(-single, data["out.molo_single_logits"])


def _clipfsar_scores(data):
    """Text log-probabilities (6, 5) of CLIP-FSAR's test mode, from its inputs."""
    label, real = (torch.tensor(data[f"in.{k}"]).long() for k in ("support_labels", "real_support_labels"))
    texts = torch.tensor(data["in.text_test"])[torch.stack([real[label == c][0] for c in range(5)])]
    cosine = M.unit_similarity(torch.tensor(data["in.query_frames"]).mean(1), texts)
    return (float(data["w.scale"][0]) * cosine).log_softmax(-1)


def test_score_fusion_of_clipfsar(golden):
    data = golden("clipfsar_head")
    text = _clipfsar_scores(data)
    _close(text.exp(), data["out.text_logits"])
    for visual, weight, out in (
        ("visual", 0.9, "combine"),
        ("visual_merge", 0.9, "combine_merge"),
        ("visual_merge", 0.5, "combine_merge_coff05"),
    ):
        distance = -torch.tensor(data[f"out.{visual}_logits"])
        _close(M.clipfsar_combine(distance, text, weight).exp(), data[f"out.{out}_logits"])
        p_visual = M.clipfsar_visual_probability(distance)
        _close(text.exp() ** weight * p_visual ** (1 - weight), data[f"out.{out}_logits"])
        _close(M.clipfsar_visual_log_probability(distance).exp(), p_visual, atol=1e-7)


def test_class_text_cosine_of_clipfsar_training(golden):
    data = golden("clipfsar_head")
    frames = torch.cat([torch.tensor(data["in.support_frames"]), torch.tensor(data["in.query_frames"])])
    everything = torch.ones(16, 1, 8, dtype=torch.bool)
    pooled = M.pool_phases(frames[:, None], everything)
    cosine = M.phase_text_similarity(pooled, torch.tensor(data["in.text_train"])[:, None])
    _close(float(data["w.scale"][0]) * cosine, data["out.visual_class_logits"])
