"""EMP-Net against released code, and what is right where that is not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from pipeline.errors import UserError
from pipeline.models.backbones.clip import CLIPBackbone
from pipeline.models.build import build_model
from pipeline.models.few_shot.base import EpisodeBatch
from pipeline.models.few_shot.blocks.post_reasoning import SpaceTimeBlock, cross_block
from pipeline.models.few_shot.emp_net import LEVELS, EMPNet, first_supports
from pipeline.models.few_shot.matchers import frame_distance

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
BLOCK = {"norm": "0.norm", "to_q": "0.fn.to_q", "to_k": "0.fn.to_k", "to_v": "0.fn.to_v", "out.0": "0.fn.to_out.0",
         "ffn.0": "1.net.0", "ffn.3": "1.net.3"}  # fmt: skip
SPACE_TIME = {f"{ours}.{part}": f"{number}.{name}"
              for ours, number in (("time", 1), ("space", 0))
              for part, name in (("norm", "norm"), ("project", "fn.to_qkv"), ("out.0", "fn.to_out.0"))}  # fmt: skip
SPACE_TIME |= {"ffn.0": "2.net.0", "ffn.3": "2.net.3"}


def _load(module, data, name, names):
    prefix = f"w.{name}.layers.0."
    state = {}
    for ours in module.state_dict():
        stem, _, kind = ours.rpartition(".")
        state[ours] = torch.tensor(data[f"{prefix}{names[stem]}.{kind}"])
    module.load_state_dict(state)


def _model(data=None, dim=32, **settings):
    """EMP-Net without CLIP: `encode` takes the tokens that CLIP would give."""
    model = object.__new__(EMPNet)
    nn.Module.__init__(model)
    model.skip = nn.ModuleList(SpaceTimeBlock(dim) for _ in range(3))
    model.reason = nn.ModuleDict({level: cross_block(dim) for level in LEVELS})
    model.fuse = nn.ModuleDict({level: cross_block(dim) for level in LEVELS})
    model.matcher, model.lam, model.top_patches = "otam", 0.5, 49
    model.loss_of, model.text_columns = settings.get("loss", "logits"), settings.get("text_columns", "class")
    if data is not None:
        for i in range(3):
            _load(model.skip[i], data, f"spatialtemporal_reasion_{i + 1}", SPACE_TIME)
        for level in LEVELS:
            _load(model.reason[level], data, f"inter_reasion_{level}", BLOCK)
            _load(model.fuse[level], data, f"fusion_{level}", BLOCK)
    return model.eval()


def _case(data, case):
    """Tokens (B, T, 3 (1 + P), D) of supports by class and of queries, texts (1, N, L, D), the order of supports."""

    def tokens(videos):
        return torch.tensor(videos).transpose(1, 2).flatten(2, 3)

    order = data[f"in.{case}_support_videos"].astype(np.int64)
    shots = len(order) // 5
    support = (
        data["in.support"][:, :shots]
        if shots > 1
        else np.stack([data["in.support"][v // 5, v % 5] for v in sorted(order)])[:, None]
    )
    ids = data[f"in.{case}_class_ids"]
    if "train" in case:
        texts = data["in.text_train"][data[f"set.{case}_prompt_index"]][ids][:, None]
    else:
        texts = data["in.text_test"][:, ids].swapaxes(0, 1)
    return (tokens(support.reshape(-1, *support.shape[2:])).unflatten(0, (5, shots)), tokens(data["in.query"]),
            torch.tensor(texts)[None], torch.tensor(order // 5))  # fmt: skip


def _run(model, data, case):
    support, query, texts, order = _case(data, case)
    features = model.encode(support.flatten(0, 1)).unflatten(0, support.shape[:2])[None]
    asked = model.encode(query)[None]
    every = data["in.text_train"][data[f"set.{case}_prompt_index"]] if "train" in case else data["in.text_test"].mean(0)
    model.first_text = torch.tensor(every[0])
    prototypes = model.prototypes(features, texts)
    if model.text_columns == "first_supports":  # in the order of the case, not in one that is drawn
        prototypes = prototypes._replace(text=first_supports(order[None], texts.mean(-2), model.first_text))
    scores = model.match(model.relate_queries(asked), prototypes, texts)
    return features, asked, prototypes, scores, order


@pytest.mark.parametrize(
    ("case", "text_columns"),
    [("shot1", "class"), ("shot1_train", "class"), ("shot5_ordered", "class"), ("shot5_shuffled", "first_supports"),
     ("shot5_train_shuffled", "first_supports"), ("shot1", "first_supports")],
)  # fmt: skip
@torch.no_grad()
def test_released_code(golden, case, text_columns):
    data = golden("empnet")

    def out(name):
        return torch.tensor(data[f"out.{case}_{name}"])

    model = _model(data, loss="probabilities", text_columns=text_columns)
    features, asked, prototypes, scores, order = _run(model, data, case)
    on_supports = model.text_scores(features.flatten(1, 2), prototypes.text)
    placed = order.argsort(stable=True).argsort()  # of a support given, its place among those by class
    for level in LEVELS:
        assert_close(-scores[level][0], out(f"{level}_distance"), **CLOSE)
        assert_close(scores[level][0].softmax(-1), out(f"{level}_match"), **CLOSE)
        assert_close(scores[f"{level}_text"][0], out(f"{level}_text_cosine")[len(order) :], **CLOSE)
        assert_close(scores[f"{level}_text"][0].softmax(-1), out(f"{level}_text")[len(order) :], **CLOSE)
        if len(order) == 5:  # of several shots the order within a class is not told apart here
            assert_close(on_supports[f"{level}_text"][0][placed], out(f"{level}_text_cosine")[: len(order)], **CLOSE)
    assert_close(scores["both"][0], out("final"), **CLOSE)
    assert_close(prototypes.token[0], out("token_proto"), **CLOSE)
    assert_close(prototypes.frame[0], out("frame_proto"), **CLOSE)
    assert_close(prototypes.patch[0], out("patch_proto_mean"), **CLOSE)
    if case == "shot1":
        query = model.relate_queries(asked)
        assert_close(asked[0, :, :, 0], out("token_query"), **CLOSE)
        assert_close(asked[0, :, :, 1], out("frame_query"), **CLOSE)
        assert_close(asked[0, 0, :, 2:], out("patch_query0"), **CLOSE)
        assert_close(query.token[0], out("token_query_fused"), **CLOSE)
        assert_close(query.patch[0], out("patch_query_fused_mean"), **CLOSE)
    labels = torch.tensor(data["in.query_labels"])[None].long()
    batch = EpisodeBatch(features, asked, None, None, labels, None, prototypes, None, None)
    losses = model.auxiliary(batch, scores)
    matching = F.cross_entropy(model.training_logits(scores)[0], labels[0])
    assert_close(matching + losses["loss_frame"] + losses["loss_patch"], out("loss_match"), **CLOSE)
    assert_close(losses["loss_text"], out("loss_text"), **CLOSE)
    assert matching + sum(losses.values()) > 6.280  # no softmax of a softmax is less


@torch.no_grad()
def test_a_shuffled_episode_is_scored_as_an_ordered_one(golden):
    data = golden("empnet")
    *_, scores, _ = _run(_model(data), data, "shot5_shuffled")
    assert_close(scores["both"][0], torch.tensor(data["out.shot5_ordered_final"]), **CLOSE)
    released = torch.tensor(data["out.shot5_shuffled_final"])
    assert (scores["both"][0] - released).abs().max() > 1e-3


def test_gradients_of_the_released_loss(golden):
    data = golden("empnet")
    model = _model(data, loss="probabilities")
    features, asked, prototypes, scores, _ = _run(model, data, "shot1_train")
    labels = torch.tensor(data["in.query_labels"])[None].long()
    batch = EpisodeBatch(features, asked, None, None, labels, None, prototypes, None, None)
    loss = F.cross_entropy(model.training_logits(scores)[0], labels[0]) + sum(model.auxiliary(batch, scores).values())
    loss.backward()
    for level in LEVELS:
        for kind, module in (("inter_reasion", model.reason[level]), ("fusion", model.fuse[level])):
            for name, parameter in module.named_parameters():
                stem, _, part = name.rpartition(".")
                want = float(data[f"out.shot1_train_gradnorm.{kind}_{level}.layers.0.{BLOCK[stem]}.{part}"])
                assert float(parameter.grad.norm()) == pytest.approx(want, rel=1e-4, abs=1e-9), name


@torch.no_grad()
def test_tokens_are_those_of_three_depths_of_clip(golden):
    data = golden("empnet")
    tower = {"hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 12, "num_attention_heads": 4,
             "image_size": 12, "patch_size": 4, "hidden_act": "quick_gelu"}  # fmt: skip
    text = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "vocab_size": 9,
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
    model = _model()
    model.backbone = CLIPBackbone({"vision_config": tower, "text_config": text, "projection_dim": 16}).eval()
    vision, state = (
        model.backbone.clip.vision_model,
        {k[8:]: torch.tensor(v) for k, v in data.items() if k.startswith("w.tower.")},
    )
    vision.embeddings.class_embedding.copy_(state["class_embedding"])
    vision.embeddings.position_embedding.weight.copy_(state["positional_embedding"])
    vision.embeddings.patch_embedding.weight.copy_(state["conv1.weight"])
    model.backbone.clip.visual_projection.weight.copy_(state["proj"].T)
    for ours, theirs in ((vision.pre_layrnorm, "ln_pre"), (vision.post_layernorm, "ln_post")):
        ours.weight.copy_(state[f"{theirs}.weight"])
        ours.bias.copy_(state[f"{theirs}.bias"])
    for i, layer in enumerate(vision.encoder.layers):
        block = f"transformer.resblocks.{i}."
        parts = zip(("q_proj", "k_proj", "v_proj"), state[block + "attn.in_proj_weight"].chunk(3),
                    state[block + "attn.in_proj_bias"].chunk(3), strict=True)  # fmt: skip
        for name, weight, bias in parts:
            getattr(layer.self_attn, name).weight.copy_(weight)
            getattr(layer.self_attn, name).bias.copy_(bias)
        for ours, theirs in ((layer.self_attn.out_proj, "attn.out_proj"), (layer.layer_norm1, "ln_1"),
                             (layer.layer_norm2, "ln_2"), (layer.mlp.fc1, "mlp.c_fc"),
                             (layer.mlp.fc2, "mlp.c_proj")):  # fmt: skip
            ours.weight.copy_(state[f"{block}{theirs}.weight"])
            ours.bias.copy_(state[f"{block}{theirs}.bias"])
    stages = model.trunk(torch.tensor(data["in.tower_images"])[None])[0].chunk(3, dim=1)
    for stage, depth in zip(stages, (4, 8, 12), strict=True):
        assert_close(stage, torch.tensor(data[f"out.tower_f{depth}"]), **CLOSE)


def test_parameters():
    with torch.device("meta"):
        blocks = _model(dim=512)
    assert sum(p.numel() for p in blocks.parameters()) == 7_495_296
    assert sum(p.numel() for p in blocks.skip[0].parameters()) == 1_183_360
    assert sum(p.numel() for p in blocks.reason["token"].parameters()) == 657_536
    norms = sum(p.numel() for m in blocks.modules() if isinstance(m, nn.LayerNorm) for p in m.parameters())
    assert norms == 12_288


def test_clip_is_frozen_and_norms_are_not_decayed(world):
    from pipeline.training.train import _parameter_groups

    model = build_model(world.run(method="emp_net"), world.ws, world.store)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {name.split(".")[0] for name in trained} == {"skip", "reason", "fuse"}
    groups = _parameter_groups(model, {})
    undecayed = {name for name in trained if any(key in name for key in groups)}
    assert undecayed == {name for name in trained if ".norm." in name} and len(undecayed) == 2 * 12


def test_a_template_is_drawn_in_training_and_all_are_averaged_in_tests(world):
    model = build_model(world.run(method="emp_net"), world.ws, world.store)
    ids, texts = torch.tensor([[0, 3, 2], [5, 1, 4]]), model.base_texts
    assert texts.shape[1] == 16
    assert torch.equal(model.eval().class_texts(ids), texts[ids])
    torch.manual_seed(0)
    seen = set()
    for _ in range(60):
        drawn = model.train().class_texts(ids)
        assert drawn.shape == (2, 3, 1, texts.shape[-1])
        number = [next(i for i in range(16) if torch.equal(drawn[e, :, 0], texts[ids[e], i])) for e in range(2)]
        seen |= set(number)
    assert len(seen) > 12
    assert_close(model.eval().prototypes(torch.randn(2, 3, 1, 8, 18, 32), texts[ids]).text, texts[ids].mean(2))


def test_wrong_columns_of_the_released_lookup():
    texts, other = torch.randn(1, 5, 4), torch.randn(4)
    order = torch.tensor([[3, 3, 0, 1, 3, 2, 4, 2, 0, 1]])
    columns = first_supports(order, texts, other)[0]
    for n in range(5):
        assert torch.equal(columns[n], texts[0, n] if n in (3, 0, 1) else other)
    drawn = torch.rand(4000, 25).argsort(1) // 5
    known = torch.ones(4000, 5, 1)
    wrong = 5 - first_supports(drawn, known, torch.zeros(1)).sum((1, 2))
    assert float(wrong.mean()) == pytest.approx(1.46, abs=0.06) and float((wrong == 0).float().mean()) < 0.09


def test_scores_are_those_of_the_levels():
    torch.manual_seed(1)
    model = _model()
    support, query, texts = torch.randn(2, 5, 2, 8, 12, 32), torch.randn(2, 3, 8, 12, 32), torch.randn(2, 5, 4, 32)
    prototypes, asked = model.prototypes(support, texts), model.relate_queries(query)
    scores = model.match(asked, prototypes, texts)
    six = [scores[name].softmax(-1) for level in LEVELS for name in (level, f"{level}_text")]
    assert_close(scores["both"], sum(six) / 6)
    assert_close(scores["vv"].softmax(-1), sum(six[::2]) / 3)
    assert_close(scores["vt"].softmax(-1), sum(six[1::2]) / 3)
    assert "vt" not in model.match(asked, model.prototypes(support, None), None)
    other = model.match(asked, prototypes, texts, "bi_mhm")
    assert_close(other["token"], -frame_distance("bi_mhm", asked.token, prototypes.token))
    back = model.match(model.relate_queries(query.flip(2)), prototypes, texts)
    assert_close(back["token_text"], scores["token_text"])  # nothing but the matching knows the order of frames
    assert (back["token"] - scores["token"]).abs().max() > 1e-4


def test_wrong_settings(world):
    def build(**model):
        run = world.run(method="emp_net")
        return build_model(run.model_copy(update={"model": run.model | model}), world.ws, world.store)

    for settings, message in (({"loss": "logit"}, "did you mean 'logits'"), ({"text_columns": "klass"}, "'class'")):
        with pytest.raises(UserError, match=message):
            build(**settings)
    run = world.run(method="emp_net", backbone="resnet50")
    with pytest.raises(UserError, match="EMPNet reads texts, and its backbone is a ResNetBackbone; give it a CLIP"):
        build_model(run, world.ws, world.store)
