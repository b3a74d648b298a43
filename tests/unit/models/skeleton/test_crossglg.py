"""CrossGLG and the encoders alone: what is trained by what, what a test uses, sizes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skeleton_set import BASE, GCN, SMALL, make_skeleton_set, training_curve

from pipeline.datasets.skeletons.graph import get_graph
from pipeline.errors import UserError
from pipeline.models.skeleton.base import ENCODERS, ClassTexts
from pipeline.models.skeleton.baseline import SkeletonBaseline, per_class_batches
from pipeline.models.skeleton.crossglg import (
    CrossGLG,
    InteractionBlock,
    JointImportance,
    importance_target,
    split_block,
)

torch.set_num_threads(1)
JOINTS, CLASSES = 17, 4
every_encoder = pytest.mark.parametrize("encoder", [name for name in ENCODERS if name != "image"])  # it sees pictures


def texts(classes=CLASSES, joints=JOINTS, width=6):
    g = torch.Generator().manual_seed(3)
    keys = (torch.rand(classes, joints, generator=g) < 0.3).float()
    return ClassTexts(joints=torch.randn(classes, joints, width, generator=g), key_joints=keys)


def build(encoder="infogcn", seed=0, given=None, **more):
    torch.manual_seed(seed)
    small = {"space": 8, "heads": 2, "mlp_hidden": 12}
    given = texts() if given is None else given
    return CrossGLG("coco17", 2, CLASSES, given or None, encoder=encoder, settings=SMALL[encoder], **{**small, **more})


def batch(n=6):
    g = torch.Generator().manual_seed(1)
    return {"x": torch.randn(n, 3, 8, JOINTS, 2, generator=g), "labels": torch.arange(n) % CLASSES}


def stir(model):
    """Weights that all matter, the batch norms' statistics included."""
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.dim() < 2:
                value.add_(0.3 * torch.randn(value.shape)).add_(1 if "bn.weight" in name else 0)
        for module in model.modules():
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                module.running_mean.normal_(0, 0.2)
                module.running_var.uniform_(0.5, 1.5)
    return model


# ---------------------------------------------------------------------------------------------- the pieces
def test_where_the_weights_begin():
    assert [split_block(n, 9) for n in (3, 5, 7, 9)] == [3, 5, 7, 9]
    assert [split_block(5, n) for n in (10, 5, 4, 1)] == [6, 3, 2, 1]
    for wrong in (0, 10):
        with pytest.raises(UserError, match=f"n_pre is {wrong}; give 1 to 9"):
            split_block(wrong, 9)


def test_joint_weights_and_their_targets():
    torch.manual_seed(0)
    x, keys = torch.randn(3, 5, 4), torch.tensor([[1.0, 0, 0, 1, 0], [0, 0, 0, 0, 0]])
    scores = None
    for output, total in (("softmax", 1.0), ("softmax_scaled", 5.0), ("sigmoid", None)):
        module = JointImportance(4, 6, output)
        module.load_state_dict(scores or module.state_dict())
        scores = scores or module.state_dict()
        hidden = (x @ module.layers[0].weight.T + module.layers[0].bias).relu()
        raw = (hidden @ module.layers[2].weight.T + module.layers[2].bias)[..., 0]
        want = raw.sigmoid() if total is None else total * raw.softmax(-1)
        torch.testing.assert_close(module(x), want)
        assert importance_target(keys, "binary", output).tolist() == [[1, 0, 0, 1, 0], [1] * 5]
        scale = 5 if output == "softmax_scaled" else 1
        shares = torch.tensor([[0.5, 0, 0, 0.5, 0], [0.2] * 5]) * scale
        torch.testing.assert_close(importance_target(keys, "normalised", output), shares)
    with pytest.raises(UserError, match="unknown jid_output 'softmx'"):
        JointImportance(4, 6, "softmx")
    with pytest.raises(UserError, match="unknown jid_target 'shares'"):
        importance_target(keys, "shares", "softmax")


def attention(module, q, kv):
    """Multi-head attention in its textbook form, from torch's packed weights."""
    d, h = q.shape[-1], module.num_heads
    w, b = module.in_proj_weight.split(d), module.in_proj_bias.split(d)
    q, k, v = ((x @ w[i].T + b[i]).unflatten(-1, (h, -1)).transpose(1, 2) for i, x in enumerate((q, kv, kv)))
    mixed = (q @ k.transpose(-1, -2) / (d / h) ** 0.5).softmax(-1) @ v
    return mixed.transpose(1, 2).flatten(2) @ module.out_proj.weight.T + module.out_proj.bias


@pytest.mark.parametrize("text_text", [True, False])
def test_interaction_is_equations_3_to_5(text_text):
    torch.manual_seed(0)
    block = stir(InteractionBlock(8, 2, 12, text_text, residual=False))
    t, s = torch.randn(2, 5, 8), torch.randn(2, 5, 8)
    ti = attention(block.among_texts, t, t) if text_text else t
    torch.testing.assert_close(block(t, s), block.mlp(ti + attention(block.across, ti, s)))
    assert (block.among_texts is None) == (not text_text)
    other = InteractionBlock(8, 2, 12, text_text, residual=True)
    assert len(other.norms) == 2 + text_text and other(t, s).shape == s.shape


# ------------------------------------------------------------------------------------------- the whole model
@every_encoder
def test_gradients_reach_all_that_is_trained_and_no_text(encoder):
    model = stir(build(encoder, contrastive=1.0 if encoder == "motionbert" else 0.0)).train()
    model.joint_texts.requires_grad_(False)
    losses = model(mode="loss", **batch())
    names = {"loss_class", "loss_calibration", "loss_guidance"}
    names |= {"infogcn": {"loss_prior", "loss_mean"}, "motionbert": {"loss_contrast"}}.get(encoder, set())
    assert set(losses) == names | {"accuracy"} and 0 <= losses["accuracy"] <= 1
    total, _ = model.parse_losses(losses)
    torch.testing.assert_close(total, sum(losses[name] for name in names))
    total.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        # Of what CrossGLG adds; a bias of a key, or of what a softmax takes, changes nothing.
        assert parameter.grad.any() or name.startswith("encoder.") or name.endswith("bias"), name
    assert model.joint_texts.grad is None and "joint_texts" not in dict(model.named_parameters())
    assert not any("joint_t" in name for name in model.state_dict())


@every_encoder
def test_each_loss_reaches_what_it_guides(encoder):
    """The calibration trains the blocks before JID and no other; the guidance branch all blocks; no test module."""
    model = stir(build(encoder)).train()
    losses = model(mode="loss", **batch())

    def touched(loss):
        found = torch.autograd.grad(losses[loss], list(model.parameters()), retain_graph=True, allow_unused=True)
        return {n for (n, _), g in zip(model.named_parameters(), found, strict=True) if g is not None and g.any()}

    calibration, guidance = touched("loss_calibration"), touched("loss_guidance")
    assert any(n.startswith("jid.") for n in calibration) and not any("guidance" in n for n in calibration)
    assert any(n.startswith("encoder.blocks.1.") for n in calibration)
    assert not any(n.startswith(("encoder.blocks.2.", "encoder.blocks.3.", "projector.")) for n in calibration)
    for part in ("guidance.from_text.", "guidance.from_joints.", "guidance.blocks.0.", "guidance.back.", "jid.",
                 "encoder.blocks.0.", "encoder.blocks.3.", "encoder.classifier."):  # fmt: skip
        assert any(n.startswith(part) for n in guidance), part
    assert not any(n.startswith("projector.") for n in guidance)


@every_encoder
@torch.no_grad()
def test_a_test_uses_no_text_and_nothing_of_the_guidance(encoder):
    model, x = stir(build(encoder)).eval(), batch()["x"]
    want = {feature: model.embed(x, feature) for feature in ("embedding", "hidden")}
    exported = {name: value.clone() for name, value in model.exported_state().items()}
    assert not any(name.startswith(("guidance.", "joint_t")) for name in exported)
    # Without texts the same class is the model at test; its weights come from the file alone.
    bare = build(encoder, seed=9, given=()).eval()
    assert bare.guidance is None and not hasattr(bare, "joint_texts")
    assert not torch.allclose(bare.embed(x), want["embedding"])
    assert bare.exported_state().keys() == exported.keys()
    bare.load_state_dict(exported, strict=False)
    for feature, value in want.items():
        assert torch.equal(bare.embed(x, feature), value)
    for value in model.guidance.parameters():
        value.fill_(torch.nan)
    model.joint_texts.fill_(torch.nan)
    assert torch.equal(model.embed(x), want["embedding"])
    assert bare.size() == model.size() == sum(p.numel() for p in bare.parameters())
    with pytest.raises(UserError, match="built for tests, without texts"):
        bare(mode="loss", **batch())
    if encoder != "motionbert":
        assert want["hidden"].min() >= 0


@torch.no_grad()
def test_the_weights_reach_the_later_blocks():
    model, x = stir(build("hdgcn")).eval(), batch()["x"]
    trunk, importance = model.encoder, model.joint_importance(x)
    assert model.pre == 2 and importance.shape == (6, JOINTS)
    torch.testing.assert_close(importance.sum(1), torch.full((6,), float(JOINTS)))
    state = trunk.run(trunk.embed(x), 0, 2)
    state = trunk.run(state, 2, 4, model.jid(trunk.pre_features(state)))
    final = trunk.features(state).movedim(2, -1)
    projected = (final @ model.projector.linear.weight.T + model.projector.linear.bias).relu()
    torch.testing.assert_close(model.embed(x), projected.mean((1, 2, 3)))
    # With all blocks before JID its weights act on what the last one returns.
    last = stir(build("hdgcn", n_pre=9)).eval()
    trunk = last.encoder
    state = trunk.run(trunk.embed(x), 0, 4)
    weighed = trunk.features(state).mean((1, 3)).transpose(1, 2)
    got = last._trunk(x)[0].mean((1, 3)).transpose(1, 2)
    torch.testing.assert_close(got, weighed * last.joint_importance(x)[..., None])


def test_calibration_loss_is_equation_2():
    model = build("hdgcn", alpha1=0.5).train()
    data = batch()
    keys = texts().key_joints
    target = keys / keys.sum(1, keepdim=True) * JOINTS
    state = model.encoder.run(model.encoder.embed(data["x"]), 0, 2)
    weights = model.jid(model.encoder.pre_features(state))
    want = 0.5 * (weights - target[data["labels"]]).square().mean()
    torch.testing.assert_close(model(mode="loss", **data)["loss_calibration"], want)


@pytest.mark.parametrize(
    "off, absent, present",
    [("g2l", {"loss_calibration"}, {"loss_guidance"}), ("l2g", {"loss_guidance"}, {"loss_calibration"})],
)
def test_either_half_alone(off, absent, present):
    model = build(**{off: False})
    losses = model(mode="loss", **batch())
    assert not absent & set(losses) and present <= set(losses)
    sum(v for k, v in losses.items() if "loss" in k).backward()
    assert all(p.grad is not None for p in model.parameters())
    assert (model.jid is None) == (off == "g2l") and (model.guidance is None) == (off == "l2g")
    if off == "g2l":
        with pytest.raises(UserError, match="no joint weights"):
            model.joint_importance(batch()["x"])


@every_encoder
def test_the_encoder_starts_as_it_does_alone(encoder):
    torch.manual_seed(0)
    alone = SkeletonBaseline("coco17", 2, CLASSES, encoder=encoder, settings=SMALL[encoder])
    ours = build(encoder).encoder.state_dict()
    assert all(torch.equal(value, ours[name]) for name, value in alone.encoder.state_dict().items())
    assert alone.exported_state().keys() == {k for k in build(encoder, given=()).exported_state() if k[:4] == "enco"}


@every_encoder
def test_state_comes_back(encoder):
    model = stir(build(encoder))
    state = {name: value.clone() for name, value in model.trained_state().items()}
    other = build(encoder, seed=4)
    other.load_trained_state(state)
    model.eval(), other.eval()
    torch.testing.assert_close(model.embed(batch()["x"]), other.embed(batch()["x"]))
    torch.manual_seed(0)
    a = model.train()(mode="loss", **batch())
    torch.manual_seed(0)
    b = other.train()(mode="loss", **batch())
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert any("running_mean" in name for name in state) == (encoder != "motionbert")
    assert ("encoder.prior" in state) == (encoder == "infogcn")
    del state["projector.linear.bias"]
    with pytest.raises(KeyError, match="differ in projector.linear.bias"):
        other.load_trained_state(state)


def test_batches_of_a_loader():
    """One axis more, and the number of the batch: what mmengine hands over."""
    model, data = build("hdgcn").train(), batch()
    want = model(mode="loss", **data)
    got = model(mode="loss", x=data["x"][None], labels=data["labels"][None], episode=torch.tensor([3]))
    assert all(torch.equal(want[name], got[name]) for name in want)
    with pytest.raises(ValueError, match="mode 'tensor'"):
        model(mode="tensor", **data)


# ----------------------------------------------------------------------------------------------- the sizes
FULL = {"infogcn": ("ntu25", 9), "hdgcn": ("ntu25", 10), "motionbert": ("h36m17", 5)}


@pytest.mark.parametrize(
    "encoder, alone, more, printed",
    [("infogcn", 1_567_087, 82_433, 0.1), ("hdgcn", 1_670_260, 82_433, 0.1), ("motionbert", 60_294_157, 525_825, 0.5)],
)
def test_sizes_that_table_1_prints(encoder, alone, more, printed, capsys):
    """What CrossGLG leaves in the model at test, next to the encoder; texts and phi cost nothing."""
    graph, blocks = FULL[encoder]
    settings = {"pose_head": True} if encoder == "motionbert" else {}  # the released size counts it
    contrast = {"contrastive": 1.0} if encoder == "motionbert" else {}
    with torch.device("meta"):
        kwargs = {"encoder": encoder, "settings": settings, **contrast}
        base = SkeletonBaseline(graph, 2, 100, cross_entropy=not contrast, **kwargs)
        ours = CrossGLG(graph, 2, 100, **kwargs)
        assert len(ours.encoder.blocks) == blocks and ours.pre == {9: 5, 10: 6, 5: 3}[blocks]
    with capsys.disabled():
        print(f"\n{encoder}: {base.size():,} alone, {ours.size():,} with CrossGLG (+{ours.size() - base.size():,})")
    assert base.size() == alone and ours.size() - base.size() == more
    assert round(more / 1e6, 1) == printed
    width = ours.encoder.channels[ours.pre - 1]
    jid, projector = (sum(p.numel() for p in m.parameters()) for m in (ours.jid, ours.projector))
    assert jid == width * width + 2 * width + 1 and projector == ours.encoder.dim * (ours.encoder.dim + 1)
    assert jid + projector == more


# -------------------------------------------------------------------------------------------- the baselines
def test_motionbert_alone_is_contrastive():
    torch.manual_seed(0)
    model = SkeletonBaseline(
        "coco17", 2, CLASSES, encoder="motionbert", settings=SMALL["motionbert"], cross_entropy=False, contrastive=1.0
    )
    losses = model(mode="loss", **batch(8))
    assert set(losses) == {"loss_contrast", "accuracy"} and model.encoder.classifier is None
    assert model.head_prefixes[0] == "encoder.to_embedding."
    losses["loss_contrast"].backward()
    assert all(p.grad is not None for p in model.parameters())


def test_dropout_at_test_is_a_switch():
    kwargs = {"encoder": "motionbert", "settings": {**SMALL["motionbert"], "dropout": 0.5}, "contrastive": 1.0}
    x = batch()["x"]
    for switch in (False, True):
        torch.manual_seed(0)
        model = SkeletonBaseline("coco17", 2, CLASSES, test_dropout=switch, **kwargs).eval()
        with torch.no_grad():
            assert torch.equal(model.embed(x), model.embed(x)) == (not switch)


def test_batches_of_a_few_classes():
    labels = np.repeat(np.arange(6), [5, 9, 4, 7, 1, 6])
    batches = per_class_batches(labels, 8, 2, np.random.default_rng(0))
    assert batches.shape == (4, 8)
    for row in batches:
        names, counts = np.unique(labels[row], return_counts=True)
        assert len(names) == 4 and (counts == 2).all()
        assert all(len(set(row[labels[row] == c])) == (2 if (labels == c).sum() > 1 else 1) for c in names)
    np.testing.assert_array_equal(batches, per_class_batches(labels, 8, 2, np.random.default_rng(0)))
    for size, each in ((9, 2), (14, 2), (4, 1)):
        with pytest.raises(UserError, match="change train.batch or train.per_class"):
            per_class_batches(labels, size, each, np.random.default_rng(0))


def test_settings_that_do_not_fit():
    with pytest.raises(UserError, match="unknown skeleton encoder 'infogc' in model.encoder; did you mean 'infogcn'"):
        SkeletonBaseline("coco17", 2, 3, encoder="infogc")
    with pytest.raises(UserError, match="needs a loss"):
        SkeletonBaseline("coco17", 2, 3, cross_entropy=False)
    with pytest.raises(UserError, match="shares a classifier"):
        build("motionbert", cross_entropy=False, contrastive=1.0)
    with pytest.raises(UserError, match="space 8 is not a multiple of model.heads 3"):
        build(heads=3)
    with pytest.raises(UserError, match=r"texts \(joints\) are of 4 classes of 12 joints, not 4 of 17"):
        build(given=texts()._replace(joints=torch.zeros(4, 12, 3)))
    with pytest.raises(UserError, match=r"texts \(key_joints\) are of nothing"):
        build(given=ClassTexts(joints=texts().joints))
    with pytest.raises(UserError, match="unknown feature 'hiden'"):
        build().embed(batch()["x"], "hiden")


# --------------------------------------------------------------------------------------- on generated skeletons
@pytest.fixture(scope="module")
def skeletons(tmp_path_factory):
    return make_skeleton_set(tmp_path_factory.mktemp("skeletons"))


def test_training_lowers_the_losses(skeletons, tmp_path):
    graph = get_graph(skeletons.definition.graph)
    given = CrossGLG.read_texts(skeletons.corpus, skeletons.split.base_classes, graph, tmp_path, text="lsa")
    assert given.joints.shape[:2] == (BASE, 25) == given.key_joints.shape
    named = {graph.names[j] for j in given.key_joints[0].nonzero()[:, 0].tolist()}
    assert named and named < set(graph.names)
    torch.manual_seed(0)
    small = {"space": 16, "heads": 2, "mlp_hidden": 32, "layers": 2}
    model = CrossGLG(graph, 1, BASE, given, settings={**GCN, "k": 8}, **small)
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, nesterov=True)
    curve = training_curve(model, skeletons.training(), optimizer)
    first, last = ({k: np.mean([c[k] for c in part]) for k in curve[0]} for part in (curve[:3], curve[-3:]))
    print(first, last)
    assert all(last[name] < first[name] for name in ("loss_class", "loss_calibration", "loss_guidance"))
    assert last["accuracy"] > first["accuracy"]


def test_missing_text_names_the_class(skeletons, tmp_path):
    with pytest.raises(UserError, match="no text for 1 class"):
        CrossGLG.read_texts(skeletons.corpus, ["fly"], get_graph("ntu25"), tmp_path)
