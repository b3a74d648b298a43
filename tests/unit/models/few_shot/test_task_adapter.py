"""Task-Adapter and Task-Adapter++: released scores, what is trained, and who sees whom."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from test_adapters import copy_text, copy_vision, golden_config

from pipeline.errors import UserError
from pipeline.models.backbones.clip import VIT_B_16, CLIPBackbone
from pipeline.models.backbones.nano_clip import build_tokenizer, init_nano, nano_config
from pipeline.models.few_shot.matching import otam_bidirectional
from pipeline.models.few_shot.matching.distances import episode_distances
from pipeline.models.few_shot.task_adapter import TaskAdapter

torch.set_num_threads(1)

SENTENCES = [
    [f"the {name} moves", f"then the {name} turns slowly", f"the {name} stops"]
    for name in ("ball", "box", "door", "hand", "cup", "wheel")
]
LABELS = [[sentences[0]] for sentences in SENTENCES]
FRAMES, WAY, SHOT, QUERY = 4, 3, 2, 3

RELEASED = {
    "temporal_embedding": "input", "alignment_over": "queries", "average_first": False, "transductive": True,
    "cosine": "means", "transposed": True, "task_init": "default",
}  # fmt: skip

# Rows of Tables 3, 4, 6, 7, 8, 9 and Figure 10, and the released switches.
VARIANTS = {
    "task_adapter_pp": {},
    "task_adapter": {"order_layers": 0, "subactions": "single", "alignment": "none"},
    "aim": {"task": False, "order_layers": 0, "subactions": "single", "alignment": "none"},
    "aim_ssv2": {"task": False, "temporal_adapters": 2, "drop_path": 0.2, "mlp_scale": 0.5, "layers": 4},
    "task_alone": {"aim": False},
    "no_vision_adapters": {"layers": 0, "aim": False, "task": False},
    "full": {"finetune": "full"},
    "all": {"placement": "all", "order_placement": "all"},
    "bottom": {"placement": "bottom", "order_placement": "bottom"},
    "before": {"task_position": "before", "order_position": "before"},
    "between": {"task_position": "between"},
    "average": {"subactions": "average"},
    "stages_alone": {"order_layers": 0, "alignment": "none"},
    "alignment_alone": {"order_layers": 0, "subactions": "single"},
    "three_layers": {"alignment_layers": 3},
    "conv": {"alignment": "conv"},
    "norm": {"alignment_norm": True},
    "window": {"alignment_window": 2},
    "otam": {"matcher": "otam"},
    "bi_mhm": {"matcher": "bi_mhm"},
    "trx": {"matcher": "trx"},
    "released": RELEASED,
    "released_groups": {**RELEASED, "task_group": 2, "transposed": False},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A CLIP of four narrow layers with random weights."""
    tokenizer = build_tokenizer([sentence for sentences in SENTENCES for sentence in sentences])
    backbone = CLIPBackbone(
        nano_config(
            len(tokenizer), image_size=8, patch_size=4, width=16, mlp_width=16, layers=4, heads=2, projection_dim=12
        )
    )
    init_nano(backbone.clip, torch.Generator().manual_seed(0))
    backbone.tokenizer = tokenizer
    path = tmp_path_factory.mktemp("clip")
    backbone.save(path)
    return path


@pytest.fixture
def build(folder):
    def make(seed: int | None = None, **settings) -> TaskAdapter:
        """A model; with a `seed`, all that it trains is at random, so that nothing is silent."""
        torch.manual_seed(0)
        texts = LABELS if settings.get("subactions") == "single" else SENTENCES
        settings = {"frames": FRAMES, "order_layers": 2, **settings}
        model = TaskAdapter({"source": str(folder)}, texts, **settings).eval()
        if seed is not None:
            g = torch.Generator().manual_seed(seed)
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.requires_grad:
                        parameter.add_(0.2 * torch.randn(parameter.shape, generator=g))
        return model

    return make


def _episodes(count: int = 2, seed: int = 0) -> dict[str, torch.Tensor]:
    """A batch of episodes of random frames, one query a class, everything shuffled."""
    g = torch.Generator().manual_seed(seed)
    return {
        "support": torch.randn(count, WAY * SHOT, FRAMES, 3, 8, 8, generator=g),
        "query": torch.randn(count, QUERY, FRAMES, 3, 8, 8, generator=g),
        "support_labels": torch.stack([torch.randperm(WAY * SHOT, generator=g) % WAY for _ in range(count)]),
        "query_labels": torch.stack([torch.randperm(WAY, generator=g) for _ in range(count)]),
        "class_ids": torch.stack([torch.randperm(len(SENTENCES), generator=g)[:WAY] for _ in range(count)]),
        "episode": torch.arange(count),
    }


def _scores(model: TaskAdapter, support: torch.Tensor, query: torch.Tensor, class_ids: torch.Tensor) -> dict:
    """Scores of videos (E, N, K, T, 3, h, w) and (E, Q, T, 3, h, w)."""
    encoded = model.encode(support.flatten(0, 2)).unflatten(0, support.shape[:3])
    asked = model.encode(query.flatten(0, 1)).unflatten(0, query.shape[:2])
    texts = model.class_texts(class_ids)
    prototypes = model.prototypes(model.relate_supports(encoded), texts)
    return model.match(model.relate_queries(asked), prototypes, texts)


def _task(seed: int = 0, count: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    support = torch.randn(count, WAY, SHOT, FRAMES, 3, 8, 8, generator=g)
    query = torch.randn(count, QUERY, FRAMES, 3, 8, 8, generator=g)
    return support, query, torch.tensor([[4, 0, 2], [1, 2, 5]])[:count]


def _close(got: torch.Tensor, want, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(got.detach(), torch.as_tensor(want), rtol=tolerance, atol=tolerance)


# ---------------------------------------------------------------------------------------------- released numbers
@pytest.mark.parametrize("shots", [1, 2])
@pytest.mark.parametrize("variant", ["fp32", "fp32_ln"])
@torch.no_grad()
def test_scores_and_loss_are_the_released_ones(golden, variant, shots):
    arrays = golden("ta_scores")
    released = {**RELEASED, "alignment_norm": variant == "fp32_ln"}
    model = TaskAdapter({"source": golden_config()}, layers=2, order_layers=2, **released).eval()
    weights = {key[2:]: torch.from_numpy(value) for key, value in arrays.items() if key.startswith("w.")}
    for part, copy, tower in (("feature.", copy_vision, model.visual), ("text.", copy_text, model.text)):
        copy(model.clip, tower, {key[len(part) :]: value for key, value in weights.items() if key.startswith(part)})
    if variant == "fp32_ln":
        model.alignment.norms[0].weight.copy_(weights["ca_ln.ln_1.weight"])
        model.alignment.norms[0].bias.copy_(weights["ca_ln.ln_1.bias"])
    model.base_tokens, model.base_ends = model.text.trunk(model.clip, torch.from_numpy(arrays["in.tokens"]).long())

    videos, classes = torch.from_numpy(arrays["in.videos"]), torch.from_numpy(arrays["in.label_idx"]).long()[None]
    support, query = videos[None, :, [0] if shots == 1 else [0, 1]], videos[None, :, 2]
    scores = _scores(model, support, query, classes)
    want = {name: arrays[f"out.{shots}shot_{variant}_{name}"] for name in (
        "text_score_as_returned", "visual_score", "released_product", "corrected_product", "released_loss",
        "text_score_transposed_to_query_class",
    )}  # fmt: skip
    _close(scores["vv"][0], want["visual_score"])
    _close(scores["vt"][0].T, want["text_score_as_returned"])
    _close(scores["vt"][0], want["text_score_transposed_to_query_class"])
    _close(scores["both"][0], want["released_product"])
    _close(model.class_texts(classes)[0], arrays["out.text_features_class_stage"])
    of_query = model.relate_queries(model.encode(query[0])[None])[0]
    _close(of_query, arrays["out.query_features"])
    of_support = model.relate_supports(model.encode(support.flatten(0, 2)).unflatten(0, (1, 5, shots)))[0]
    _close(of_support.flatten(0, 1), arrays[f"out.{shots}shot_support_features"])

    order, labels = torch.tensor([3, 1, 4, 0, 2]), torch.arange(5)  # the loss puts shuffled videos in class order
    losses = model(
        mode="loss", support=support.transpose(1, 2).flatten(1, 2), query=query[:, order],
        support_labels=labels.repeat(shots)[None], query_labels=order[None], class_ids=classes,
        episode=torch.zeros(1, dtype=torch.long),
    )  # fmt: skip
    _close(losses["loss_matching"], float(want["released_loss"]), 1e-4)
    model.transposed = False
    _close(_scores(model, support, query, classes)["both"][0], want["corrected_product"])


# ---------------------------------------------------------------------------------------------- what is trained
NAMED = {
    "adapters": {"visual.adapters", "visual.temporal_embedding", "text.adapters"},
    "norm": {"visual.adapters", "visual.temporal_embedding", "text.adapters", "alignment.norms"},
    "conv": {"visual.adapters", "visual.temporal_embedding", "text.adapters", "alignment.conv"},
    "trx": {"visual.adapters", "visual.temporal_embedding", "text.adapters", "trx"},
    "task_adapter": {"visual.adapters", "visual.temporal_embedding"},
    "full": {"backbone.clip"},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_a_step_trains_what_is_named_and_nothing_else(build, name):
    model = build(**VARIANTS[name]).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    named = {key for key, parameter in model.named_parameters() if parameter.requires_grad}
    if name in NAMED:
        assert all(key.startswith(tuple(NAMED[name])) for key in named)
        assert {part for part in NAMED[name] if any(key.startswith(part) for key in named)} == NAMED[name]
    assert ("backbone.clip.logit_scale" in named) is False
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(3):  # an adapter's first Linear has a gradient once its second is no longer zero
        losses = model(mode="loss", **_episodes())
        assert set(losses) == {"loss_matching", "accuracy"} and torch.isfinite(losses["loss_matching"])
        optimizer.zero_grad()
        losses["loss_matching"].backward()
        assert {key for key, p in model.named_parameters() if p.grad is not None} == named  # none is left out
        optimizer.step()
    after = model.state_dict()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed <= named == set(model.trained_state())
    still = named - changed  # a bias of the keys drops out of the softmax, so its gradient is nearly zero
    assert all("k_proj.bias" in key for key in still), still

    fresh = build(**VARIANTS[name])
    fresh.load_trained_state(model.trained_state())
    task = _task()
    with torch.no_grad():
        for key, value in _scores(model.eval(), *task).items():
            _close(_scores(fresh, *task)[key], value, 1e-6)


def test_nothing_is_trained_in_frozen_clip(build):
    model = build(finetune="none", alignment_norm=True, matcher="trx")
    assert model.trained_state() == {} and not model.related
    support, query, class_ids = _task()
    assert not _scores(model, support, query, class_ids)["both"].requires_grad
    features = model.encode(query[0])
    _close(features, model.backbone.encode_frames(query[0]), 1e-6)
    _close(model.class_texts(class_ids)[0, 1], model.backbone.encode_text(SENTENCES[0]))
    _close(build(finetune="full").encode(query[0]), features, 1e-6)


def test_fresh_adapters_score_as_frozen_clip(build):
    task = _task()
    with torch.no_grad():
        want = _scores(build(finetune="none"), *task)
        for settings in ({}, {"layers": 4}, {"placement": "bottom"}, {"aim": False}, {"transductive": True}):
            got = _scores(build(**settings), *task)
            for key in ("vv", "vt", "both"):
                _close(got[key], want[key], 1e-5)
        assert (_scores(build(task_init="default"), *task)["vv"] - want["vv"]).abs().max() > 1e-4


def _trained(model: TaskAdapter) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_sizes_at_vit_b_16():
    """Section 4.3: 3.5 M for scenes, 7.5 M for temporal data sets (sums of rounded numbers), 149.6 M for CLIP."""
    for settings, exact, printed in (
        ({"layers": 2, "order_layers": 8}, 3_426_816, 3.5e6),
        ({"layers": 6, "order_layers": 2}, 7_370_496, 7.5e6),
        ({"layers": 6, "order_layers": 2, "alignment_norm": True}, 7_371_520, 7.5e6),
        ({"layers": 6, "order_layers": 0}, 7_107_072, 7.2e6),
        ({"layers": 12, "order_layers": 0, "task": False}, 10_657_536, None),
        ({"finetune": "full"}, 149_620_736, 149.6e6),
        ({"finetune": "none"}, 0, 0),
    ):
        with torch.device("meta"):
            model = TaskAdapter({"source": VIT_B_16}, **settings)
        assert _trained(model) == exact
        if printed is not None:
            assert exact == pytest.approx(printed, abs=0.15e6)


# -------------------------------------------------------------------------------------------------- who sees whom
def _other_queries(model: TaskAdapter) -> torch.Tensor:
    """How far the scores of the first query move when the others are exchanged, for each kind of score."""
    support, query, class_ids = _task()
    other = torch.cat((query[:, :1], _task(seed=9)[1][:, 1:]), dim=1)
    one, two = _scores(model, support, query, class_ids), _scores(model, support, other, class_ids)
    return {key: (one[key][:, 0] - two[key][:, 0]).abs().max().item() for key in ("vv", "vt", "both")}


@torch.no_grad()
def test_a_query_is_scored_alone_unless_transductive(build):
    for settings in ({}, {"alignment_over": "queries"}, {"layers": 4}, {"subactions": "average"}, {"matcher": "trx"}):
        model = build(seed=1, **settings)
        assert model.queries_alone and not model.class_order
        assert max(_other_queries(model).values()) < 1e-6
    model = build(seed=1, transductive=True)
    assert not model.queries_alone
    assert min(_other_queries(model).values()) > 1e-4
    moved = _other_queries(build(seed=1, transductive=True, task=False, alignment_over="queries"))
    assert moved["vv"] < 1e-6 and moved["vt"] > 1e-4
    moved = _other_queries(build(seed=1, alignment_over="queries", transposed=True))
    assert moved["vv"] < 1e-6 and moved["both"] > 1e-4


@torch.no_grad()
def test_supports_see_each_other_but_no_query_and_no_other_task(build):
    model = build(seed=1)
    support, query, _ = _task()
    encoded = model.encode(support.flatten(0, 2)).unflatten(0, support.shape[:3])
    related = model.relate_supports(encoded)
    other = encoded.clone()
    other[0, 0, 0] = encoded[1, 2, 1]
    moved = (model.relate_supports(other) - related).abs().amax((-1, -2))
    assert moved[0].min() > 1e-5 and moved[1].max() < 1e-6
    one = model.relate_queries(model.encode(query.flatten(0, 1)).unflatten(0, query.shape[:2]))
    _close(one[1, 2], model.visual(model.clip, query[1, 2][None, None])[0, 0])


@pytest.mark.parametrize("settings", [{"layers": 1}, {"layers": 3}, {"placement": "bottom"}, {"placement": "all"}])
@torch.no_grad()
def test_the_trunk_is_worked_out_once_a_video(build, settings):
    model = build(seed=1, **settings)
    clips = torch.randn(5, FRAMES, 3, 8, 8)
    trunk = model.encode(clips)
    assert trunk.shape == (5, FRAMES, 5, 16) and model.related and model.episodes_at_once == 4
    for task in ([0, 1, 2], [2, 4, 3]):
        _close(model.relate(trunk[task][None])[0], model.visual(model.clip, clips[task][None])[0])


@torch.no_grad()
def test_without_task_attention_features_come_once_a_video(build):
    model = build(seed=1, task=False)
    clips = torch.randn(5, FRAMES, 3, 8, 8)
    features = model.encode(clips)
    assert features.shape == (5, FRAMES, 12) and model.episodes_at_once == 200
    assert torch.equal(model.relate(features[None])[0], features)
    for i in range(5):
        _close(features[i], model.visual(model.clip, clips[i][None, None])[0, 0])


# ---------------------------------------------------------------------------------------------------------- texts
@pytest.mark.parametrize("settings", [{}, {"order_layers": 0}, {"order_placement": "bottom"}, {"finetune": "full"}])
def test_texts_of_base_classes_are_those_of_a_test(build, settings):
    model = build(seed=1, **settings)
    ids = torch.tensor([[3, 1, 3], [5, 3, 0]])
    texts = model.class_texts(ids)
    assert texts.shape == (2, 3, 3, 12)
    assert texts.requires_grad is (settings != {"order_layers": 0})
    for e, n in itertools.product(range(2), range(3)):
        _close(texts[e, n], model.encode_texts([SENTENCES[ids[e, n]]])[0])
    encoded = model.encode_texts(SENTENCES)
    assert encoded.shape == (6, 3, 12) and not encoded.requires_grad
    _close(encoded[ids], texts)
    # Order adapters make a sentence depend on the others of its class.
    mixed = model.encode_texts([[SENTENCES[0][0], *SENTENCES[1][1:]]])[0, 0]
    seen = (mixed - encoded[0, 0]).abs().max() > 1e-4
    assert seen == (bool(model.text.places))


@torch.no_grad()
def test_what_is_done_with_sub_actions(build):
    query, texts = torch.randn(1, 2, FRAMES, 12), torch.randn(1, WAY, 3, 12)
    plain = {"alignment": "none", "order_layers": 0}
    stages = [(0, 1), (1, 2), (2, 3)]  # four frames
    by_stage, average = build(**plain)._text_score(query, texts), build(subactions="average", **plain)
    by_frame = build(average_first=False, **plain)._text_score(query, texts)
    single = build(subactions="single", **plain)
    for q, n in itertools.product(range(2), range(WAY)):
        of_stage = [F.cosine_similarity(query[0, q, list(t)].mean(0), texts[0, n, s], 0) for s, t in enumerate(stages)]
        _close(by_stage[0, q, n], sum(of_stage) / 3)
        of_frame = [F.cosine_similarity(query[0, q, t], texts[0, n, s], 0) for s, u in enumerate(stages) for t in u]
        _close(by_frame[0, q, n], sum(of_frame) / 6)
        want = F.cosine_similarity(query[0, q].mean(0), texts[0, n].mean(0), 0)
        _close(average._text_score(query, texts)[0, q, n], want)
        want = F.cosine_similarity(query[0, q].mean(0), texts[0, n, 0], 0)
        _close(single._text_score(query, texts[:, :, :1])[0, q, n], want)
    aligned = query[:, :, :-1] + query[:, :, 1:]  # the default alignment, three frames of four
    want = F.cosine_similarity(aligned.mean(-2)[0, 1], texts[0, 2, 0], 0)
    _close(build(subactions="single")._text_score(query, texts[:, :, :1])[0, 1, 2], want)


# --------------------------------------------------------------------------------------------------------- scores
@torch.no_grad()
def test_the_cosines_of_query_and_prototype(build):
    query, support, texts = (
        torch.randn(1, 2, FRAMES, 12),
        torch.randn(1, WAY, SHOT, FRAMES, 12),
        torch.randn(1, 3, 3, 12),
    )
    for cosine in ("frames", "means", "aligned"):
        model = build(cosine=cosine)
        scores = model.match(query, model.prototypes(support, texts), texts)
        for q, n in itertools.product(range(2), range(WAY)):
            one, two = query[0, q], support[0, n].mean(0)
            by_frame = [F.cosine_similarity(one[t], two[u], 0) for t in range(FRAMES) for u in range(FRAMES)]
            want = {
                "frames": sum(by_frame) / FRAMES**2,
                "means": F.cosine_similarity(one.mean(0), two.mean(0), 0),
                "aligned": sum(by_frame[:: FRAMES + 1]) / FRAMES,
            }
            _close(scores["vv"][0, q, n], want[cosine])
        _close(scores["both"], scores["vv"] * scores["vt"], 0)
        _close(model.training_logits(scores), 64 * scores["both"], 0)


@torch.no_grad()
def test_other_matchers_give_probabilities(build):
    query, prototypes, texts = torch.randn(2, 4, FRAMES, 12), torch.randn(2, WAY, FRAMES, 12), torch.randn(2, 3, 3, 12)
    want = (-otam_bidirectional(episode_distances(query, prototypes), 0.3)).softmax(-1)
    _close(build(matcher="otam", lam=0.3).match(query, prototypes, texts)["vv"], want)
    _close(build(lam=0.3).match(query, prototypes, texts, matcher="otam")["vv"], want)
    model = build(matcher="trx")
    want = -(model.trx[0](prototypes.unsqueeze(2), query) + model.trx[1](prototypes.unsqueeze(2), query)) / 2
    for matcher in ("trx", "bi_mhm"):
        scores = model.match(query, prototypes, texts, matcher)
        _close(scores["vv"].sum(-1), torch.ones(2, 4))
        _close(scores["log_vv"].exp(), scores["vv"])
        _close(scores["both"], scores["vv"] * scores["vt"], 0)
        assert matcher != "trx" or torch.allclose(scores["vv"], want.softmax(-1), atol=1e-6)


@torch.no_grad()
def test_the_transposed_score_wants_one_query_a_class(build):
    model = build(seed=1, transposed=True)
    assert model.class_order
    support, query, class_ids = _task()
    scores, right = _scores(model, support, query, class_ids), _scores(build(seed=1), support, query, class_ids)
    _close(scores["both"], right["vv"] * right["vt"].transpose(1, 2), 1e-6)
    with pytest.raises(UserError, match="transposed: true with 2 queries for 3 classes"):
        _scores(model, support, query[:, :2], class_ids)


def test_autocast_keeps_scores_in_single_precision(build):
    model, task = build(seed=1), _task()
    with torch.no_grad():
        want = _scores(model, *task)
        with torch.autocast("cpu", torch.bfloat16):
            got = _scores(model, *task)
    for key in ("vv", "vt", "both"):
        assert got[key].dtype == torch.float32
        _close(got[key], want[key], 0.03)


def test_settings_that_make_no_sense(build, folder):
    for settings, message in (
        ({"finetune": "adapter"}, "finetune 'adapter'; did you mean 'adapters'"),
        ({"subactions": "stage"}, "subactions 'stage'; did you mean 'stages'"),
        ({"cosine": "frame"}, "did you mean 'frames'"),
        ({"matcher": "cos"}, "matcher 'cos'; did you mean 'cosine'"),
        ({"alignment": "atention"}, "did you mean 'attention'"),
        ({"layers": 5}, "layers is 5, and the tower has 4 layers"),
        ({"order_layers": 5}, "order_layers is 5"),
        ({"aim": False, "task": False}, "leave no adapter in the frame tower; set layers: 0"),
        ({"video_text_weight": 1.0}, "set video_text_weight: 0"),
    ):
        with pytest.raises(UserError, match=message):
            build(**settings)
    with pytest.raises(UserError, match="subactions: stages needs several sentences a class"):
        TaskAdapter({"source": str(folder)}, LABELS, order_layers=2)
    with pytest.raises(UserError, match="subactions: single with 3 sentences a class"):
        TaskAdapter({"source": str(folder)}, SENTENCES, order_layers=2, subactions="single")
    model = build()
    for matcher, message in (("trx", "trx has weights of its own"), ("mean", "unknown matcher 'mean'")):
        with pytest.raises(UserError, match=message):
            model.match(torch.randn(1, 1, 4, 12), torch.randn(1, 3, 4, 12), torch.randn(1, 3, 3, 12), matcher)
    with pytest.raises(UserError, match="videos of 3 frames for a temporal embedding of 4"):
        model.relate(model.encode(torch.randn(2, 3, 3, 8, 8))[None])
