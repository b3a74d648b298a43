"""Losses of unlabelled videos and the whole training step, against what the released codes compute."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pipeline.compat import MODELS
from pipeline.errors import UserError
from pipeline.models.semi import SeFARModel, regulation
from pipeline.models.semi.losses import mixed_loss, ramp_up, ssl_progress, unlabelled_loss
from pipeline.models.semi.mixing import hardened, mix_targets, tube_mask
from pipeline.models.semi.model import Draws

torch.set_num_threads(1)
TINY = {"width": 48, "depth": 2, "heads": 4, "patch": 16, "image_size": 48}


def _close(got, want, rtol: float = 1e-5, atol: float = 2e-6) -> None:
    np.testing.assert_allclose(torch.as_tensor(got).detach().numpy(), want, rtol=rtol, atol=atol)


def _model(elements="2-2-4", drop_path=0.0, classes=7, **settings) -> SeFARModel:
    torch.manual_seed(0)
    return SeFARModel({"source": TINY, "drop_path": drop_path}, classes, elements, **settings)


def _clips(videos: int, lengths=(2, 2, 4), seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(videos, t, 3, 48, 48, generator=generator) for t in lengths]


# -------------------------------------------------------------------------------------- parts of the loss
def test_adaptive_weight(golden):
    arrays = golden("sefar_units")
    mu, sigma = torch.from_numpy(arrays["eta/mu"]), torch.from_numpy(arrays["eta/sigma"])
    _close(regulation.adaptive_weight(mu, sigma), arrays["eta/eta"])
    _close(regulation.adaptive_weight(mu, sigma, factor=1.0), arrays["eta/eta"] / 4)


def test_ramp(golden):
    _close([ramp_up(ssl_progress(e, 30, 5)) for e in range(5, 30)], golden("sefar_units")["xi/epoch0based_5_to_29"])
    assert ssl_progress(2, 30, 5) == 0 and ssl_progress(29, 30) == 1 and ssl_progress(14, 30) == 0.5


@pytest.mark.parametrize(("share", "count"), [(0.5, 98), (0.37, 72), (0.62, 121)])
def test_tube_masks(golden, share, count):
    masks = golden("sefar_units")
    assert masks[f"tube/lam{share}_T4_ones_per_frame"] == count
    drawn = [tube_mask(196, share, np.random.default_rng(seed)) for seed in range(300)]
    assert {int(mask.sum()) for mask in drawn} == {count}
    assert abs(np.mean(drawn, 0) - share).max() < 0.15  # no place is favoured


@pytest.mark.parametrize("epoch", [5, 17, 29])
def test_losses_of_sefar_on_given_logits(golden, epoch):
    arrays = golden("sefar_units")
    lab, labels, student, mix, teacher = (
        torch.from_numpy(arrays[f"in/scripted/{n}"]) for n in ("lab", "labels", "student", "mix", "teacher10")
    )
    model = _model(classes=6)
    pseudo, weight = model.judge(teacher)
    ramp = ramp_up(ssl_progress(epoch, 30, 5))
    un = unlabelled_loss(student, pseudo.labels, weight)
    if epoch != 17:  # lambda and the permutation of the other epochs are not stored
        _close(ramp, arrays[f"scripted/epoch{epoch}_0based/xi"])
        return
    want = {name.split("/")[-1]: value for name, value in arrays.items() if "/epoch17_0based/" in name}
    _close(pseudo.probabilities, want["pseudo_label"])
    _close(pseudo.confidence, want["max_probs"])
    _close(pseudo.deviation, want["max_std"])
    np.testing.assert_array_equal(pseudo.labels, want["targets_u"])
    _close(weight, want["mask"])
    share, partner = float(want["lambda"]), torch.from_numpy(want["idx"])
    mixed_weight = mix_targets(weight, share, partner)
    target = mix_targets(pseudo.probabilities, share, partner)
    _close(mixed_weight, want["mask_mix"])
    _close(target, want["y_label"])
    mixed = mixed_loss(mix, target, mixed_weight)
    _close(un, want["loss_un"])
    _close(mixed, want["loss_mix"])
    _close(F.cross_entropy(lab, labels) + ramp * (2 * un + 2 * mixed), want["loss"])


@pytest.mark.parametrize("threshold", [0.3, 0.5])
def test_losses_of_svformer_on_given_logits(golden, threshold):
    arrays = golden("svformer")
    lab, labels, student, mix, teacher = (
        torch.from_numpy(arrays[f"in/scripted/{n}"]) for n in ("lab", "labels", "student", "mix", "teacher")
    )
    want = {n.split("/")[-1]: v for n, v in arrays.items() if n.startswith(f"scripted/delta{threshold}/")}
    model = _model("8", head="linear", threshold=threshold, classes=6)
    pseudo, weight = model.judge(teacher[None])
    _close(pseudo.probabilities, want["pseudo_label"])
    np.testing.assert_array_equal(weight, want["mask"])
    target = hardened(pseudo, weight)
    _close(target, want["pseudo"])
    share, partner = float(want["lambda"]), torch.from_numpy(want["idx"])
    _close(mix_targets(weight, share, partner), want["mask_mix"])
    _close(mix_targets(target, share, partner), want["y_label"])
    un = unlabelled_loss(student, pseudo.labels, weight)
    mixed = mixed_loss(mix, mix_targets(target, share, partner), mix_targets(weight, share, partner))
    _close(un, want["loss_un"])
    _close(mixed, want["loss_mix"])
    _close(F.cross_entropy(lab, labels) + 2 * un + 2 * mixed, want["loss"])
    assert int(share * 196) == want["tubemask_ones_per_frame"][0]


def test_mixed_loss_on_probabilities():
    logits = torch.randn(3, 5)
    assert mixed_loss(logits, logits.softmax(-1), torch.ones(3), "probabilities") < 1e-12
    assert mixed_loss(logits, logits.softmax(-1), torch.ones(3)) > 0.1


# --------------------------------------------------------------------------------------- the whole step
def test_a_released_training_step(golden, released_state):
    """Every number of one step of SeFAR as released: swapped colours, a partner of its own for each element."""
    arrays = golden("sefar_tiny")
    model = _model(perturbation="channels", one_partner=False, ema=0.9).train()
    model.network.load_state_dict(released_state(arrays, "weights/"))
    model.network.head.dropout.p = 0.0  # the stored step has none in the student
    model.start_teacher()
    model.teacher.load_state_dict(released_state(arrays, "teacher_weights_changed/"), strict=False)
    passes = torch.from_numpy(arrays["iter/teacher_logits_10"])
    model.teacher_logits = lambda weak: passes

    def clips(kind: str) -> list[torch.Tensor]:
        return [torch.from_numpy(arrays[f"in/iter_{kind}{i}"]).transpose(1, 2) for i in range(3)]

    draws = Draws(
        orders=[torch.arange(t).expand(3, -1) for t in (2, 2, 4)],
        kept=[torch.from_numpy(arrays[f"iter/dropout2d_scale_element{i}_clip_by_channel"]) > 0 for i in range(3)],
        partners=[torch.from_numpy(arrays[f"iter/perm_element{i}"]) for i in range(3)],
        masks=[torch.from_numpy(arrays[f"iter/tubemask_element{i}"][0, 0]) > 0 for i in range(3)],
        share=float(arrays["iter/lambda"]),
    )
    labels = torch.from_numpy(arrays["in/iter_labels"])
    progress = ssl_progress(12, 30, 5)
    outputs = []
    model.network.head.classifier.register_forward_hook(lambda module, args, output: outputs.append(output))
    losses = model(
        labelled=clips("lab"), labels=labels, weak=clips("weak"), strong=clips("strong"), progress=progress, draws=draws
    )
    for got, name in zip(outputs, ("preds", "student", "student_mix"), strict=True):
        _close(got, arrays[f"iter/{name}"])
    xi = arrays["iter/xi"]
    _close(losses["loss_labelled"], arrays["iter/loss_label"])
    _close(losses["loss_unlabelled"] / (2 * xi), arrays["iter/loss_un"])
    _close(losses["loss_mixed"] / (2 * xi), arrays["iter/loss_mix"])
    total = sum(value for name, value in losses.items() if name.startswith("loss_"))
    _close(total, arrays["iter/loss"])
    _close(losses["weight"], arrays["iter/mask"].mean())

    total.backward()
    torch.optim.SGD(model.network.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-3).step()
    model.update_teacher()
    state = model.state_dict()
    _close(state["network.head.classifier.weight"], arrays["iter/student_after_step/fc.weight"])
    after = arrays["iter/student_after_step/blocks.0.temporal_fc.weight"]
    _close(state["network.backbone.blocks.0.temporal_fc.weight"], after)
    _close(state["teacher.head.classifier.weight"], arrays["iter/teacher_after_ema0.9/fc.weight"])


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"elements": "2-4", "perturbation": "warping", "mix_loss": "probabilities", "one_partner": False},
        {"elements": "8", "head": "linear", "threshold": 0.1, "perturbation": "warping", "harden": True, "ramp": False},
        {"elements": "8", "head": "linear", "threshold": 0.1, "perturbation": "spatial", "mixing": 0, "ema": 0.0},
        {"threshold": 0.1, "channel_dropout": 0.0},
    ],
    ids=["sefar", "released", "svformer", "fixmatch", "no regulation"],
)
def test_a_step_trains_the_student_alone(settings):
    model = _model(drop_path=0.1, **settings).train()
    model.start_teacher()
    before = {name: value.clone() for name, value in model.teacher.state_dict().items()}
    lengths = model.lengths
    losses = model(
        mode="loss", labelled=_clips(2, lengths), labels=torch.tensor([1, 4]), weak=_clips(3, lengths, 1),
        strong=_clips(3, lengths, 2), progress=0.5,
    )  # fmt: skip
    assert ("loss_mixed" in losses) == bool(settings.get("mixing", 10))
    total = sum(value for name, value in losses.items() if name.startswith("loss_"))
    assert total.isfinite() and losses["loss_unlabelled"] > 0
    total.backward()
    missing = [name for name, p in model.network.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not missing
    assert all(p.grad is None and not p.requires_grad for p in model.teacher.parameters())
    assert not model.teacher.training and model.network.training
    assert all(value.equal(before[name]) for name, value in model.teacher.state_dict().items())
    torch.optim.SGD(model.network.parameters(), lr=0.1).step()
    model.update_teacher()
    weight, teacher = model.network.head.classifier.weight, model.teacher.head.classifier.weight
    if model.ema == 0:
        assert teacher.equal(weight)
    else:
        expected = model.ema * before["head.classifier.weight"] + (1 - model.ema) * weight
        torch.testing.assert_close(teacher, expected.detach())


def test_the_labelled_phase_needs_no_teacher():
    model = _model().train()
    losses = model(labelled=_clips(2), labels=torch.tensor([0, 1]))
    assert set(losses) == {"loss_labelled", "accuracy"}
    with pytest.raises(RuntimeError, match="start_teacher"):
        model(labelled=_clips(2), labels=torch.tensor([0, 1]), weak=_clips(2), strong=_clips(2))
    with pytest.raises(TypeError, match="unlabelled"):  # no label of theirs can come in
        model(labelled=_clips(2), labels=torch.tensor([0, 1]), unlabelled_labels=torch.tensor([0, 1]))


def test_dropout_passes_are_distributed_like_whole_passes():
    network = _model().network.eval()
    clips = _clips(1)
    with torch.no_grad():
        quick = network.dropped_logits(clips, 4000)[:, 0].softmax(-1)
        feature = network.feature(network.patches(clips))
        network.head.dropout.train()
        whole = torch.stack([network.head(feature)[0] for _ in range(4000)]).softmax(-1)
        assert network(clips).shape == (1, 7)
    torch.testing.assert_close(quick.mean(0), whole.mean(0), atol=0.01, rtol=0)
    torch.testing.assert_close(quick.std(0), whole.std(0), atol=0.01, rtol=0.05)
    assert len(quick.unique(dim=0)) > 3900


def test_draws_follow_the_seed_and_the_switch():
    model, strong = _model(), _clips(8)
    torch.manual_seed(4)
    first = model.draw(strong)
    torch.manual_seed(4)
    again = model.draw(strong)
    for a, b in zip(first[:4], again[:4], strict=True):
        assert all(x.equal(y) for x, y in zip(a, b, strict=True))
    assert first.share == again.share
    assert all(partner.equal(first.partners[0]) for partner in first.partners)
    assert [order[0].tolist() for order in first.orders] == [[1, 0], [1, 0], [0, 1, 2, 3]]
    assert {int(mask.sum()) for mask in first.masks} == {int(first.share * 9)}
    model.one_partner = False
    partners = model.draw(strong).partners
    assert not partners[0].equal(partners[1])
    kept = torch.cat([torch.cat(model.draw(strong).kept) for _ in range(40)])
    assert abs(kept.float().mean() - 0.8) < 0.03


def test_prediction_uses_the_student_and_the_order_of_frames():
    model = _model().eval()
    model.start_teacher()
    for parameter in model.teacher.parameters():
        parameter.zero_()
    clips = _clips(2)
    assert model.predict(clips).abs().sum() > 0
    with torch.no_grad():
        for block in model.network.backbone.blocks:
            torch.nn.init.normal_(block.temporal_fc.weight)
        model.network.backbone.time_embed[0].normal_()
    changed = [clips[0].flip(1), *clips[1:]]
    assert not torch.allclose(model.predict(clips), model.predict(changed), atol=1e-4)


def test_states_come_back():
    model = _model()
    model.start_teacher()
    with torch.no_grad():
        model.network.head.classifier.bias.add_(1)
    other = _model()
    other.load_trained_state(model.trained_state())
    assert other.teacher.head.classifier.bias.equal(model.teacher.head.classifier.bias)
    assert not other.teacher.head.classifier.bias.requires_grad
    assert other.predict(_clips(1)).equal(other.predict(_clips(1))) is False  # dropout in training mode
    assert other.eval().predict(_clips(1)).equal(model.eval().predict(_clips(1)))


def test_it_is_registered():
    model = MODELS.build({"type": "SeFARModel", "backbone": {"source": TINY}, "classes": 3})
    assert model.mean == (0.45,) * 3 and model.std == (0.225,) * 3 and model.image_size == 48


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"head": "linear", "elements": "8"}, "adaptive regulation needs"),
        ({"dropout": 0.0}, "adaptive regulation needs"),
        ({"harden": True}, "needs a model.threshold"),
        ({"perturbation": "revers"}, "unknown perturbation"),
        ({"mix_loss": "logit"}, "did you mean 'logits'"),
        ({"elements": "2/4"}, "not a combination"),
        ({"channel_dropout": 1.0}, "channel_dropout"),
        ({"ema": 99.99}, "model.ema is 99.99"),
    ],
)
def test_contradicting_settings(settings, words):
    with pytest.raises(UserError, match=words):
        _model(**settings)
