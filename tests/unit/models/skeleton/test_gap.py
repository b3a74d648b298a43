"""GAP against what its released code computes, and its text side."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skeleton_set import BASE, GCN, make_skeleton_set, training_curve

from pipeline.datasets.skeletons.graph import SKELETONS, get_graph
from pipeline.errors import UserError
from pipeline.models.backbones.clip import CLIPBackbone
from pipeline.models.backbones.nano_clip import build_tokenizer, nano_config
from pipeline.models.skeleton import gap
from pipeline.models.skeleton.base import ClassTexts
from pipeline.models.skeleton.baseline import SkeletonBaseline
from pipeline.models.skeleton.gap import GAP, PartHeads, TextChoice, alignment_loss, featured, part_joints
from pipeline.text.corpus import Corpus, load_corpus

torch.set_num_threads(1)
CLASSES = 4


def _close(got, want, tolerance=1e-5):
    np.testing.assert_allclose(got.detach().numpy(), want, rtol=tolerance, atol=tolerance)


def sentences(classes=CLASSES):
    return [
        [[f"action {c}", f"deed {c}"], *([f"action {c}, the {p} moves"] for p in gap.PARTS)] for c in range(classes)
    ]


def build(tmp_path, **more):
    torch.manual_seed(0)
    given = featured(sentences(), tmp_path) if "text_tower" not in more else ClassTexts(sentences=sentences())
    return GAP("coco17", 2, CLASSES, given, settings=GCN, **{"width": 12, **more})


def batch(n=6):
    g = torch.Generator().manual_seed(1)
    return {"x": torch.randn(n, 3, 8, 17, 2, generator=g), "labels": torch.arange(n) % CLASSES}


# -------------------------------------------------------------------------------------- the released numbers
def test_loss_equals_the_released_code(golden):
    data = {name: torch.from_numpy(value) for name, value in golden("gap").items() if value.dtype.kind in "fi"}
    skeletons = torch.cat((data["in/loss_global"][None], data["in/loss_parts"]))
    labels, scale = data["in/loss_labels"], data["in/loss_logit_scale"][0]
    got = alignment_loss(skeletons, data["in/loss_texts"], labels, scale)
    _close(got, data["loss/contrastive_mean5"])
    for i in range(5):
        one = alignment_loss(skeletons[i : i + 1], data["in/loss_texts"][i : i + 1], labels, scale[i : i + 1])
        mean = (data[f"loss/branch{i}_skel_to_text"] + data[f"loss/branch{i}_text_to_skel"]) / 2
        _close(one, mean)
    cross_entropy = torch.nn.functional.cross_entropy(data["in/loss_logits"], labels)
    _close(cross_entropy + 0.8 * got, data["loss/total_alpha0.8"])


def test_parts_equal_the_released_code(golden):
    data = golden("gap")
    for part in gap.PARTS:
        assert list(part_joints(get_graph("ntu25"))[part]) == data[f"parts/{part}"].tolist()
    state = torch.from_numpy(data["in/feature_l10"])  # (N * M, C, T, V)
    joints = state.unflatten(0, (2, 2)).mean((1, 3)).transpose(1, 2)
    heads = PartHeads(get_graph("ntu25"), 256, 512)
    names = [
        "linear_head.ViT-B/32",
        *(f"part_list.{i}" for i in (0, 1, 3, 2)),
    ]  # the released order has foot before hip
    for head, name in zip(heads.heads, names, strict=True):
        head.load_state_dict({k: torch.from_numpy(data[f"weights/{name}.{k}"]) for k in ("weight", "bias")})
    want = ["global_512", *(f"part_{i}_{part}" for i, part in enumerate(gap.PARTS, 1))]
    for got, name in zip(heads(joints), want, strict=True):
        _close(got, data[f"model/{name}"])
    logits = joints.mean(1).numpy() @ data["weights/fc.weight"].T + data["weights/fc.bias"]
    np.testing.assert_allclose(logits, data["model/logits"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(torch.tensor(data["model/logit_scale"][0, 0]), torch.tensor(1 / 0.07).log())


def test_texts_are_put_together_as_released(golden, reference_data):
    """The same words as CLIP's tokens stand for: as many commas, and one token, wherever it stands, for each word."""
    data, folder = golden("gap"), reference_data / "text" / "gap"
    rows = gap.released_sentences(folder, range(120), released_separator=True)
    assert [len(row[0]) for row in rows] == data["text/n_synonyms_per_class"].tolist()
    assert all([len(part) for part in row[1:]] == [1] * 4 for row in rows)
    compared = 0
    meaning: dict[str, int] = {}
    for i in range(8):
        for branch in range(5):
            tokens = [t for t in data[f"text/tokens_branch{branch}_first8classes"][i].tolist() if t][1:-1]
            text = rows[i][branch][0]
            assert tokens.count(267) == text.count(","), text
            words = text.replace(",", " ,").replace(".", " .").split()
            if len(words) == len(tokens):  # every word is one token
                compared += 1
                assert all(meaning.setdefault(w, t) == t for w, t in zip(words, tokens, strict=True)), text
    assert compared >= 25
    apart = gap.released_sentences(folder, [0])[0]
    assert apart[2] == ["drink water, hand grasps cup, arm lifts cup to mouth"]
    with pytest.raises(UserError, match="no texts of GAP for class 121"):
        gap.released_sentences(folder, [120])
    with pytest.raises(UserError, match="there is no .*synonym_openai_t01.txt"):
        gap.released_sentences(folder / "absent", [0])


def test_the_released_texts_reach_the_model(reference_data, repo, tmp_path):
    """The folder that a data set names under `corpora` becomes a corpus of its classes, which the method reads."""
    from pipeline.datasets.index import Clip, write_index
    from pipeline.plan import Plan
    from pipeline.stages import make_texts
    from pipeline.workspace import Workspace

    folder = reference_data / "text" / "gap"
    plan = Plan.read(repo / "config", {"scale": "paper"})
    classes = plan.dataset("ntu120_oneshot", "the test").spec["classes"]
    Corpus({name: {"label": name} for name in classes}).save(tmp_path / "texts.json")
    given = {"texts": str(tmp_path / "texts.json"), "corpora": {"gap": str(folder), "qwen": str(tmp_path / "none")}}
    plan = Plan.read(repo / "config", {"scale": "paper", "datasets": {"ntu120_oneshot": given}})
    cell = plan.cell({"method": "gap", "dataset": "ntu120_oneshot"}, 0, "the test")
    model, asset, ws = cell.run.model, plan.datasets[cell.run.dataset], Workspace(tmp_path / "results")
    assert (model["text"], model["text_tower"]) == ("clip", "openai/clip-vit-base-patch32") and cell.run.text
    write_index(ws.dataset(asset.key) / "index.csv", [Clip(name, name, name, "train") for name in classes])
    make_texts(asset, ws)
    corpus = load_corpus(ws.dataset(asset.key) / f"texts-{model['corpus']}.json")
    some = [classes[7], classes[0], classes[119]]
    texts = gap.GAP.read_texts(corpus, some, get_graph("ntu25"), tmp_path, model["text"], model["text_source"])
    assert texts.sentences == gap.released_sentences(folder, [7, 0, 119]) and texts.parts is None
    assert texts.sentences[1][2] == ["drink water, hand grasps cup, arm lifts cup to mouth"]


# ------------------------------------------------------------------------------------------------- the parts
@pytest.mark.parametrize("name", SKELETONS)
def test_parts_of_every_skeleton(name):
    graph = get_graph(name)
    parts = part_joints(graph)
    assert list(parts) == list(gap.PARTS) and all(parts.values())
    assert {graph.joint("left wrist"), graph.joint("right elbow")} <= set(parts["hand"])
    assert {graph.joint("left knee"), graph.joint("right ankle")} <= set(parts["foot"])
    assert not set(parts["foot"]) & set(parts["hand"])


def test_a_skeleton_without_a_part():
    graph = get_graph({"names": ["head", "neck"], "parents": {"head": "neck", "neck": None}})
    with pytest.raises(UserError, match="no joint of GAP's part 'hand'"):
        part_joints(graph)


def test_each_sample_is_shown_one_of_its_alternatives():
    choice = TextChoice(torch.tensor([[2, 1], [1, 3]]))
    torch.manual_seed(0)
    drawn = choice(torch.tensor([0, 1]).repeat(300)).reshape(300, 2, 2)
    assert [sorted(set(drawn[:, c, p].tolist())) for c in (0, 1) for p in (0, 1)] == [[0, 1], [2], [3], [4, 5, 6]]
    assert 100 < (drawn[:, 0, 0] == 0).sum() < 200


# ------------------------------------------------------------------------------------------------- the model
def test_losses_and_gradients(tmp_path):
    model = build(tmp_path)
    losses = model(mode="loss", **batch())
    assert set(losses) == {"loss_class", "loss_prior", "loss_mean", "loss_text", "accuracy"}
    losses["loss_text"].backward(retain_graph=True)
    assert model.encoder.classifier.weight.grad is None
    sum(value for name, value in losses.items() if name != "accuracy").backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert model.guidance.texts.project.weight.grad.any() and model.guidance.scale.grad.all()
    features = model.guidance.texts.features
    assert len(features) == 6 * CLASSES and not features.requires_grad
    assert torch.allclose(features.norm(dim=1), torch.ones(6 * CLASSES))
    torch.testing.assert_close(model.guidance.scale.detach(), torch.full((5,), 2.6593), atol=1e-4, rtol=0)


def test_the_scale_may_be_an_exponent(tmp_path):
    torch.manual_seed(3)
    plain = build(tmp_path)
    torch.manual_seed(3)
    grown = build(tmp_path, scale_exp=True)
    with torch.no_grad():
        plain.guidance.scale.exp_()
    torch.manual_seed(0)
    want = plain(mode="loss", **batch())["loss_text"]
    torch.manual_seed(0)
    torch.testing.assert_close(grown(mode="loss", **batch())["loss_text"], want)


@torch.no_grad()
def test_a_test_is_the_encoder_alone(tmp_path):
    model = build(tmp_path).eval()
    alone = SkeletonBaseline("coco17", 2, CLASSES, settings=GCN).eval()
    assert model.exported_state().keys() == alone.exported_state().keys() and model.size() == alone.size()
    alone.load_state_dict(model.exported_state(), strict=False)
    for feature in ("embedding", "hidden"):
        assert torch.equal(alone.embed(batch()["x"], feature), model.embed(batch()["x"], feature))
    with pytest.raises(UserError, match="built for tests"):
        GAP("coco17", 2, CLASSES, settings=GCN)(mode="loss", **batch())


def test_a_text_tower_is_trained_along():
    flat = [text for row in sentences() for part in row for text in part]
    tokenizer = build_tokenizer(flat)
    config = nano_config(len(tokenizer), width=16, mlp_width=16, layers=1, heads=2, projection_dim=10, max_length=16)
    torch.manual_seed(0)
    clip = CLIPBackbone(config)
    clip.tokenizer = tokenizer
    want = clip.encode_text(["action 2, the hip moves"])
    model = build(None, text_tower=clip)
    tower = model.guidance.texts
    assert tower.width == 10 and model.guidance.heads.heads[0].out_features == 10
    torch.testing.assert_close(tower(torch.tensor([0, 2]))[3, 1:], want)
    losses = model(mode="loss", **batch())
    losses["loss_text"].backward()
    moved = [name for name, p in model.guidance.texts.named_parameters() if p.grad is not None and p.grad.any()]
    assert any("text_model.embeddings" in name for name in moved) and any("text_projection" in n for n in moved)
    assert all(p.grad is not None for p in model.guidance.parameters())
    assert not any("vision" in name or "logit_scale" in name for name, _ in model.named_parameters())
    assert "tokens" not in " ".join(model.state_dict())


def test_on_generated_skeletons(tmp_path_factory, tmp_path):
    data = make_skeleton_set(tmp_path_factory.mktemp("skeletons"), clips=4)
    graph = get_graph("ntu25")
    given = GAP.read_texts(data.corpus, data.split.base_classes, graph, tmp_path, text="lsa")
    assert given.parts.shape[:3] == (BASE, 5, 1) and len(given.sentences) == BASE
    hand = given.sentences[0][2][0]
    assert hand.startswith(f"{data.split.base_classes[0]}, ") and "wrist" in hand and "knee" not in hand
    assert GAP.read_texts(data.corpus, data.split.base_classes, graph, tmp_path, text="clip").parts is None
    torch.manual_seed(0)
    model = GAP(graph, 1, BASE, given, settings=GCN, width=16)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    steps = training_curve(model, data.training(), optimizer)
    curve = [[step[name] for name in ("loss_class", "loss_text")] for step in steps]
    assert (np.mean(curve[-3:], 0) < np.mean(curve[:3], 0)).all()


def test_texts_that_do_not_fit(tmp_path):
    with pytest.raises(UserError, match="texts are of 3 classes, not 4"):
        GAP("coco17", 2, CLASSES, featured(sentences(3), tmp_path), settings=GCN)
    with pytest.raises(UserError, match="needs features of the texts"):
        GAP("coco17", 2, CLASSES, ClassTexts(sentences=sentences()), settings=GCN)
