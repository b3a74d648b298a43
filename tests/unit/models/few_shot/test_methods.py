"""Every registered method, from its plan to trained weights, and what LGA and CLIP-FSAR compute."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

from pipeline.compat import MODELS
from pipeline.datasets.transforms import ClipTransform
from pipeline.errors import UserError
from pipeline.models.build import WEIGHTS, build_model, class_sentences, load_weights
from pipeline.models.few_shot.base import FewShotModel
from pipeline.models.few_shot.blocks.necks import ContextTransformer, PhaseFusion
from pipeline.models.few_shot.clip_baselines import ClipFreeze, Otam
from pipeline.models.few_shot.clip_fsar import ClipFsar
from pipeline.models.few_shot.lga import LGA
from pipeline.models.few_shot.matching import cosine_similarity
from pipeline.plan import Plan
from pipeline.tasks.few_shot.episodes import EpisodeDataset
from pipeline.tasks.few_shot.scoring import class_texts, encode_clips, score_split
from pipeline.text.corpus import load_corpus
from pipeline.training.train import train_run

CONFIG = Path(__file__).resolve().parents[4] / "config"
PLAN = Plan.read(CONFIG, None, "none")
RECIPES = {name: PLAN.method(name, "the test")[0] for name in PLAN.config.names("methods")}
# Of videos; those of skeletons have tests of their own.
METHODS = [name for name, recipe in RECIPES.items() if issubclass(MODELS.get(recipe["model"]["type"]), FewShotModel)]
TRAINED = [name for name in METHODS if "train" in RECIPES[name]]

# Rows of LGA's Tables 2 to 6 and Figure 3 that are models of their own.
VARIANTS = {
    "label": {"text": "label"},
    "no_phases": {"segmenter": "none", "scale": "G", "attention": "self"},
    "label_global_self": {"text": "label", "scale": "G", "attention": "self"},
    "label_global_cross": {"text": "label", "scale": "G", "attention": "cross"},
    "global_self": {"scale": "G", "attention": "self"},
    "local_self": {"attention": "self"},
    "eq1_without_residual": {"residual": False},
    "otam": {"matcher": "otam"},
    "bi_mhm": {"matcher": "bi_mhm"},
    "twfinch": {"segmenter": "twfinch"},
    "hard": {"segmenter": "hard"},
    "no_overlap": {"overlap": 0},
    "atoms_1": {"atoms": 1},
    "atoms_2": {"atoms": 2},
    "atoms_4": {"atoms": 4},
}


def _scores(run, model, world, shot=1, **kwargs):
    return score_split(
        run, model, world.ws, world.store, "test", way=5, shot=shot, query=1, episodes=12, seed=3, **kwargs
    )


def _batch(world, run, model, episodes=1):
    """A batch of training episodes as the loader would give it."""
    transform = ClipTransform(crop=run.frames["crop"], train=True)
    dataset = EpisodeDataset(
        world.store, "train", way=3, shot=2, query=2, episodes=episodes, seed=0,
        frames=run.frames["number"], mode="segment_random", transform=transform,
    )  # fmt: skip
    return model.data_preprocessor(torch.utils.data.default_collate([dataset[i] for i in range(episodes)]), True)


# ---------------------------------------------------------------------------------------- the registry


def test_every_registered_method_has_a_configuration():
    """A method without a file in config/methods cannot be named in a table, and would escape the tests below."""
    registered = {
        name for name, kind in MODELS.module_dict.items() if isinstance(kind, type) and issubclass(kind, FewShotModel)
    }
    configured = {RECIPES[name]["model"]["type"] for name in METHODS}
    assert registered == configured
    assert {"LGA", "ClipFsar", "Otam", "ClipFreeze"} <= registered


@pytest.mark.parametrize("method", TRAINED)
def test_training_changes_exactly_the_trained_state_and_survives_a_reload(world, tmp_path, method):
    ws, run = world.elsewhere(tmp_path), world.run(method=method, selection="last")
    before = {k: v.clone() for k, v in build_model(run, ws, world.store).state_dict().items()}
    seen = {}

    def keep(self, *args, **kwargs):  # the very model that was trained, frozen weights included
        seen["model"] = self
        return original(self, *args, **kwargs)

    original, FewShotModel.loss = FewShotModel.loss, keep
    try:
        train_run(run, ws)
    finally:
        FewShotModel.loss = original
    trained = seen["model"].eval()
    expected = set(trained.trained_state())
    assert expected == set(load_file(ws.run(run.id) / WEIGHTS))
    after = trained.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed <= expected
    # A bias of the keys drops out of the softmax, so its gradient is zero. What stands before a zero in an adapter
    # gets its gradient from the second step on, and behind a residual of zeros from the third.
    # TRX takes the difference of two values, so that their bias drops out too.
    silent = ("k_proj.bias", "key.bias", "value.bias", ".down.")
    assert all(any(part in name for part in silent) for name in expected - changed), sorted(expected - changed)[:3]
    assert not any("logit_scale" in name for name in expected)
    assert any("text_model" in name for name in expected) == (method == "clip_finetune")  # all of CLIP
    # What sees the frames: the backbone, adapters in it, or what stands behind a frozen one.
    inside = ("backbone.clip.vision_model", "backbone.resnet", "visual.adapters", "skip.", "change.")
    assert any(name.startswith(inside) for name in expected)

    loaded = load_weights(build_model(run, ws, world.store), run, ws)
    assert not loaded.training
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, after[name]), name
    one, two = _scores(run, trained, world), _scores(run, loaded, world)
    assert (one.log_vv == two.log_vv).all()
    assert (one.log_vt is None) == (two.log_vt is None) == (not trained.wants_text)
    fresh = _scores(run, build_model(run, ws, world.store).eval(), world)
    assert abs(fresh.log_vv - two.log_vv).max() > 1e-6  # two steps at 1e-3 leave a trace


def test_clip_freeze_trains_nothing(world, tmp_path):
    ws, run = world.elsewhere(tmp_path), world.run(method="clip_freeze")
    train_run(run, ws)
    assert not (ws.run(run.id) / WEIGHTS).exists()
    model = load_weights(build_model(run, ws, world.store), run, ws)
    assert model.trained_state() == {}
    assert not any(parameter.requires_grad for parameter in model.parameters())
    for matcher in ("mean", "otam", "bi_mhm"):
        assert _scores(run, model, world, matcher=matcher).log_vt is None


def test_weights_that_do_not_fit_are_refused(world, tmp_path):
    ws, run = world.elsewhere(tmp_path), world.run(method="otam")
    with pytest.raises(UserError, match=r"model\.safetensors is missing.*pipeline train " + run.id):
        load_weights(build_model(run, ws, world.store), run, ws)
    model = build_model(run, ws, world.store)
    state = dict(model.trained_state())
    name = sorted(state)[0]
    value = state.pop(name)
    with pytest.raises(KeyError, match=name.replace(".", r"\.")):
        model.load_trained_state(state)
    with pytest.raises(KeyError, match="no_such_tensor"):
        model.load_trained_state({**state, name: value, "no_such_tensor": torch.ones(1)})
    ws.run(run.id).mkdir(parents=True)
    save_file(state, ws.run(run.id) / WEIGHTS)
    with pytest.raises(UserError, match="cannot be loaded.*train again"):
        load_weights(build_model(run, ws, world.store), run, ws)
    (ws.run(run.id) / WEIGHTS).write_bytes(b"cut off")
    with pytest.raises(UserError, match="cannot be loaded.*train again"):
        load_weights(build_model(run, ws, world.store), run, ws)


def test_wrong_settings_of_a_model(world):
    def build(method="lga", drop=(), **model):
        run = world.run(method=method)
        settings = {key: value for key, value in run.model.items() if key not in drop} | model
        return build_model(run.model_copy(update={"model": settings}), world.ws, world.store)

    for arguments, message in (
        ({"type": "LGAA"}, "unknown model type 'LGAA' in method lga; did you mean 'LGA'"),
        ({"matcher": "otan"}, "unknown matcher 'otan'; did you mean 'otam'"),
        ({"text": "atomics"}, "unknown text 'atomics'.*did you mean 'atomic'"),
        ({"scale": "l"}, "unknown fusion scale 'l'"),
        ({"attention": "crss"}, "did you mean 'cross'"),
        ({"atomz": 3}, "method lga: .*'atomz'"),
        ({"atoms": 7}, "has no 7 atomic action"),
        ({"method": "clip_freeze", "drop": ("matcher",), "macher": "mean"}, "method clip_freeze: .*'macher'"),
    ):
        with pytest.raises(UserError, match=message):
            build(**arguments)
    model = build(segmenter="clusters")
    with pytest.raises(UserError, match="did you mean 'cluster'"):
        model.phases(torch.randn(1, 8, model.backbone.dim))


def test_a_models_first_weights_depend_on_its_seed_only(world):
    def neck(seed):
        return build_model(world.run(method="lga", seed=seed), world.ws, world.store).neck.state_dict()

    one, again, other = neck(0), neck(0), neck(1)
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_base_texts_are_those_of_the_training_classes_in_order(world):
    corpus = load_corpus(world.ws.dataset(world.run(method="lga").dataset) / "texts.json")
    names = world.store.classes("train")
    for method, sentences in (
        ("lga", [corpus.atomic(name, 3) for name in names]),
        ("clip_fsar", [[f"a photo of {corpus.label(name)}"] for name in names]),
    ):
        run = world.run(method=method)
        assert class_sentences(corpus, names, run.model) == sentences
        model = build_model(run, world.ws, world.store).eval()
        assert model.base_texts.shape == (len(names), len(sentences[0]), model.backbone.dim)
        want = model.backbone.encode_text(sentences[4])
        torch.testing.assert_close(model.base_texts[4], want, atol=1e-5, rtol=1e-5)
        assert model.base_texts[4].std() > 0.01 and (model.base_texts[4] - model.base_texts[5]).abs().max() > 1e-3


# ------------------------------------------------------------------------------------- losses of an episode


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_of_lgas_tables_train(world, variant):
    run = world.run(method="lga", model=VARIANTS[variant])
    model = build_model(run, world.ws, world.store).train()
    losses = model(mode="loss", **_batch(world, run, model))
    total = losses["loss_matching"] + losses["loss_video_text"]
    assert losses["loss_matching"].item() == pytest.approx(math.log(3), abs=1.0)
    assert losses["loss_video_text"].item() == pytest.approx(1.2 * math.log(26), abs=1.2)
    total.backward()
    missing = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert missing == []  # DistributedDataParallel would wait for them
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert torch.isfinite(parameter.grad).all(), name
    assert model.neck.block.to_q.weight.grad.abs().max() > 0
    assert model.backbone.clip.vision_model.embeddings.patch_embedding.weight.grad.abs().max() > 0
    assert model.scale.grad.abs() > 0


@pytest.mark.parametrize(
    ("method", "model"), [("otam", {}), ("clip_fsar", {}), ("clip_fsar", {"text": "atomic"}), ("lga", {})]
)
def test_loss_is_the_cross_entropies_of_the_episode(world, method, model):
    """The loss from `encode`, `prototypes` and `match` by hand, with the shuffled supports sorted in a loop."""
    run = world.run(method=method, model=model)
    network = build_model(run, world.ws, world.store).eval()
    batch = _batch(world, run, network, 2)
    with torch.no_grad():
        losses = network(mode="loss", **batch)
        matching, video_text = [], []
        for e in range(2):
            labels, ids = batch["support_labels"][e], batch["class_ids"][e]
            support = network.encode(batch["support"][e])  # these methods relate no videos
            by_class = torch.stack([support[labels == n] for n in range(3)])[None]  # (1, N, K, T, D)
            query = network.encode(batch["query"][e])
            texts = torch.stack([network.base_texts[i] for i in ids])[None] if network.wants_text else None
            logits = network.match(network.relate_queries(query[None]), network.prototypes(by_class, texts), texts)[
                "vv"
            ][0]
            matching.append(F.cross_entropy(logits, batch["query_labels"][e]))
            if network.wants_text:
                for clips, which in ((support, labels), (query, batch["query_labels"][e])):
                    every = network.video_text(clips, network.base_texts)
                    video_text += [
                        F.cross_entropy(row[None], ids[n][None]) for row, n in zip(every, which, strict=True)
                    ]
    assert losses["loss_matching"].item() == pytest.approx(float(torch.stack(matching).mean()), abs=2e-5)
    if network.wants_text:
        want = run.train["video_text_weight"] * float(torch.stack(video_text).mean())
        assert losses["loss_video_text"].item() == pytest.approx(want, abs=2e-5)
    else:
        assert set(losses) == {"loss_matching", "accuracy"}


@pytest.mark.parametrize("method", METHODS)
def test_order_of_supports_and_other_queries_do_not_matter(world, method):
    run = world.run(method=method)
    model = build_model(run, world.ws, world.store).eval()
    batch = _batch(world, run, model)
    generator = torch.Generator().manual_seed(1)
    order = torch.randperm(6, generator=generator)
    shuffled = dict(batch, support=batch["support"][:, order], support_labels=batch["support_labels"][:, order])
    with torch.no_grad():
        one, two = model(mode="loss", **batch), model(mode="loss", **shuffled)
        for name in ("loss_matching", "accuracy"):
            assert one[name].item() == pytest.approx(two[name].item(), abs=1e-5), name

        features, texts = encode_clips(run, model, world.store, range(20)), None
        support, query = features[:12].unflatten(0, (1, 4, 3)), features[12:]
        if model.wants_text:
            texts = class_texts(run, model, world.ws, world.store.classes("test")[:4])[None]
        prototypes = model.prototypes(model.relate_supports(support), texts)
        together = model.match(model.relate_queries(query[None]), prototypes, texts)
        others = model.prototypes(model.relate_supports(support.flip(2)), texts)
        mirrored = model.match(model.relate_queries(query[None]), others, texts)
        for i in range(len(query)):
            alone = model.match(model.relate_queries(query[None, i : i + 1]), prototypes, texts)
            for name in together:
                torch.testing.assert_close(alone[name][:, 0], together[name][:, i], atol=1e-5, rtol=0)
        for name in together:
            torch.testing.assert_close(mirrored[name], together[name], atol=1e-5, rtol=0)
            assert together[name].std() > 0


# --------------------------------------------------------------- LGA and CLIP-FSAR against other computations


class Width(nn.Module):
    """Stands where CLIP would: knows the feature width and nothing else."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim


def _bare(kind, dim, scale=1.0, **attributes):
    """A method without CLIP: `match` and `prototypes` see features only."""
    model = object.__new__(kind)
    nn.Module.__init__(model)
    model.backbone, model.scale = Width(dim), nn.Parameter(torch.tensor(scale))
    for name, value in attributes.items():
        setattr(model, name, value)
    return model.eval()


def _lga(dim, seed, heads=4, atoms=3, segmenter="cluster", overlap=1, matcher="ab_mhm", residual=True, **switches):
    torch.manual_seed(seed)
    neck = PhaseFusion(dim, heads, 24, "L", "cross", residual)
    nn.init.normal_(neck.block.norm.weight, 1, 0.2)
    nn.init.normal_(neck.block.norm.bias, 0, 0.2)
    return _bare(
        LGA, dim, 1.7, neck=neck, atoms=atoms, segmenter=segmenter, overlap=overlap, matcher=matcher, lam=0.5,
        **{"divisor": "own", "distance": "cosine", "pooled": "backbone", **switches},
    )  # fmt: skip


def _cluster(frames, L):
    """Algorithm 1: lists of frame numbers, merged while there are more than L."""
    clusters = [[i] for i in range(len(frames))]
    while len(clusters) > L:
        means = [torch.stack([frames[i] for i in c]).mean(0) for c in clusters]
        similar = [float(F.cosine_similarity(a, b, dim=0)) for a, b in itertools.pairwise(means)]
        j = similar.index(max(similar))
        clusters[j : j + 2] = [clusters[j] + clusters[j + 1]]
    return clusters


def _share(clusters, overlap):
    """Duplicated frames: each phase also takes the neighbours' frames next to its boundary."""
    out = []
    for k, own in enumerate(clusters):
        before = clusters[k - 1][-overlap:] if overlap and k else []
        after = clusters[k + 1][:overlap] if overlap and k + 1 < len(clusters) else []
        out.append([*before, *own, *after])
    return out


def _fuse(model, frames, phases, texts):
    """Eq. 1, one query vector and one key at a time: {(phase, frame): fused vector}."""
    block = model.neck.block
    heads, width = block.heads, frames.shape[1] // block.heads
    keys = [block.norm(frames[i]) for phase in phases for i in phase]  # K = V = concat of all phases
    fused = {}
    for k, phase in enumerate(phases):
        for i in phase:
            asked = frames[i] if texts is None else texts[k] + frames[i]
            q, parts = block.to_q(block.norm(asked)), []
            for h in range(heads):
                piece = slice(h * width, (h + 1) * width)
                dots = [float(q[piece] @ block.to_k(key)[piece]) / math.sqrt(width) for key in keys]
                weights = [math.exp(d - max(dots)) for d in dots]
                parts.append(
                    sum(w * block.to_v(key)[piece] for w, key in zip(weights, keys, strict=True)) / sum(weights)
                )
            attended = block.out(torch.cat(parts)) + (asked if model.neck.residual_attention else 0)
            fused[k, i] = attended + block.ffn(attended)
    return fused


def _distance(a, b):
    return 1 - float(a @ b / (a.norm() * b.norm() + 0.01))


def _slow_match(model, support, query, texts):
    """LGA Eq. 1 to 4 for one episode: support (N, K, T, D), query (Q, T, D), texts (N, L, D)."""
    vv, vt = torch.zeros(len(query), len(support)), torch.zeros(len(query), len(support))
    frames_of = [shots.sum(0) / len(shots) for shots in support]
    L, T = texts.shape[1], query.shape[1]
    for n, proto in enumerate(frames_of):
        of_class = _share(_cluster(proto, L), model.overlap)
        fused_class = _fuse(model, proto, of_class, texts[n])
        for q, video in enumerate(query):
            of_query = _share(_cluster(video, L), model.overlap)
            fused_query = _fuse(model, video, of_query, None)
            total = 0.0
            for k in range(L):
                for m in of_query[k]:
                    total += min(_distance(fused_query[k, m], fused_class[k, i]) for i in of_class[k])
                for i in of_class[k]:
                    total += min(_distance(fused_query[k, m], fused_class[k, i]) for m in of_query[k])
            vv[q, n] = -total / T
            for k in range(L):
                pooled = torch.stack([video[m] for m in of_query[k]]).mean(0)
                vt[q, n] += model.scale.detach() * (1 - _distance(pooled, texts[n, k]))
    return vv, vt


@torch.no_grad()
@pytest.mark.parametrize("shot", [1, 5])
@pytest.mark.parametrize(("atoms", "overlap", "residual"), [(3, 1, True), (2, 0, False), (1, 1, True)])
def test_lga_is_the_papers_equations(shot, atoms, overlap, residual):
    model = _lga(16, 5, atoms=atoms, overlap=overlap, residual=residual).double()
    generator = torch.Generator().manual_seed(shot)
    support = torch.randn(2, 3, shot, 8, 16, generator=generator, dtype=torch.float64)
    query = torch.randn(2, 2, 8, 16, generator=generator, dtype=torch.float64)
    texts = torch.randn(2, 3, atoms, 16, generator=generator, dtype=torch.float64)
    scores = model.match(model.relate_queries(query), model.prototypes(support, texts), texts)
    for e in range(2):
        vv, vt = _slow_match(model, support[e], query[e], texts[e])
        torch.testing.assert_close(scores["vv"][e].float(), vv, atol=1e-5, rtol=0)
        torch.testing.assert_close(scores["vt"][e].float(), vt, atol=1e-5, rtol=0)


@torch.no_grad()
def test_video_text_loss_scores_are_those_of_the_match():
    """`video_text` (training, all base classes) and `match` (test, the classes of the episode) are one formula."""
    model = _lga(16, 1)
    query, texts = torch.randn(1, 4, 8, 16), torch.randn(5, 3, 16)
    scores = model.match(
        model.relate_queries(query), model.prototypes(torch.randn(1, 5, 2, 8, 16), texts[None]), texts[None]
    )
    torch.testing.assert_close(model.video_text(query[0], texts), scores["vt"][0], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_lgas_matchers_are_divided_alike_where_asked():
    """Eq. 2 divides AB-MHM by T, the released Bi-MHM and OTAM are sums: eight times steeper logits in Table 4."""
    query, support = torch.randn(1, 4, 8, 16), torch.randn(1, 3, 2, 8, 16)
    texts = torch.randn(1, 3, 3, 16)

    def logits(matcher, divisor):
        model = _lga(16, 2, matcher=matcher, divisor=divisor)
        return model.match(model.relate_queries(query), model.prototypes(support, texts), texts)["vv"]

    for matcher in ("ab_mhm", "bi_mhm", "otam"):
        torch.testing.assert_close(logits(matcher, "none"), 8 * logits(matcher, "frames"))
        own = "frames" if matcher == "ab_mhm" else "none"
        torch.testing.assert_close(logits(matcher, "own"), logits(matcher, own))


@torch.no_grad()
def test_lgas_equations_as_they_are_printed():
    """Eq. 2 prints the norm of a difference, and Eq. 4 pools the frames that Eq. 1 has fused."""
    query, support, texts = torch.randn(1, 4, 8, 16), torch.randn(1, 3, 1, 8, 16), torch.randn(1, 3, 3, 16)
    model = _lga(16, 5, distance="norm", pooled="fused")
    seen, prototypes = model.relate_queries(query), model.prototypes(support, texts)
    scores = model.match(seen, prototypes, texts)
    total, pooled = 0.0, []
    for k in range(3):
        of_query, of_class = seen.features[0, 1, k][seen.mask[0, 1, k]], prototypes.features[0, 2, k]
        apart = torch.linalg.norm(of_query[:, None] - of_class[prototypes.mask[0, 2, k]], dim=-1)
        total += apart.amin(0).sum() + apart.amin(1).sum()
        pooled.append(cosine_similarity(of_query.mean(0)[None], texts[0, 2, k][None]))
    torch.testing.assert_close(scores["vv"][0, 1, 2], -total / 8, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(scores["vt"][0, 1, 2], 1.7 * sum(pooled).squeeze(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model.video_text(query[0], texts[0]), scores["vt"][0], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_matcher_of_a_measurement_replaces_the_models_own():
    query, support, texts = torch.randn(1, 4, 8, 16), torch.randn(1, 3, 2, 8, 16), torch.randn(1, 3, 3, 16)
    for name in ("otam", "bi_mhm"):
        trained, swapped = _lga(16, 2, matcher=name), _lga(16, 2)
        want = trained.match(trained.relate_queries(query), trained.prototypes(support, texts), texts)["vv"]
        prototypes = swapped.prototypes(support, texts)
        torch.testing.assert_close(swapped.match(swapped.relate_queries(query), prototypes, texts, name)["vv"], want)
        assert (swapped.match(swapped.relate_queries(query), prototypes, texts)["vv"] - want).abs().max() > 1e-3
    with pytest.raises(UserError, match="did you mean 'otam'"):
        swapped.match(swapped.relate_queries(query), prototypes, texts, "otan")


@torch.no_grad()
def test_frames_of_two_phases_are_averaged_for_the_order_free_matchers():
    model = _lga(16, 3)
    frames = torch.randn(1, 8, 16)
    mask = model.phases(frames)
    fused = model.neck(frames, mask, torch.randn(1, 3, 16))
    from pipeline.models.few_shot.lga import Phases

    per_frame = Phases(fused, mask).frames()[0]
    assert mask.sum(1).max() == 2  # overlap 1: frames at the boundaries belong to two phases
    for t in range(8):
        parts = [fused[0, k, t] for k in range(3) if mask[0, k, t]]
        torch.testing.assert_close(per_frame[t], torch.stack(parts).mean(0), atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_clip_fsar_agrees_with_the_released_head(golden):
    data = {key: torch.tensor(value) for key, value in golden("clipfsar_head").items()}
    neck = ContextTransformer(64, 8, 2048)
    prefix = "w.context2.layers.0."
    released = {key.removeprefix(prefix): value for key, value in data.items() if key.startswith(prefix)}
    names = {
        "0.norm.weight": "norm.weight", "0.norm.bias": "norm.bias", "0.fn.to_q.weight": "to_q.weight",
        "0.fn.to_k.weight": "to_k.weight", "0.fn.to_v.weight": "to_v.weight", "0.fn.to_out.0.weight": "out.0.weight",
        "0.fn.to_out.0.bias": "out.0.bias", "1.net.0.weight": "ffn.0.weight", "1.net.0.bias": "ffn.0.bias",
        "1.net.3.weight": "ffn.3.weight", "1.net.3.bias": "ffn.3.bias",
    }  # fmt: skip
    neck.layers[0].load_state_dict({names[key]: value for key, value in released.items()})
    model = _bare(ClipFsar, 64, float(data["w.scale"][0]), neck=neck, matcher="otam", lam=0.5)
    label, real = data["in.support_labels"].long(), data["in.real_support_labels"].long()
    support = torch.stack([data["in.support_frames"][label == c] for c in range(5)])[None]
    query = data["in.query_frames"][None]
    for texts, logits in (("in.text_test", "visual_merge"), ("in.text_train", "train_merge")):
        of_class = data[texts][torch.stack([real[label == c][0] for c in range(5)])][None, :, None]
        scores = model.match(model.relate_queries(query), model.prototypes(support, of_class), of_class)
        torch.testing.assert_close(scores["vv"][0], data[f"out.{logits}_logits"], atol=2e-5, rtol=1e-5)
        if texts == "in.text_test":  # the release's cosine of the test has no 0.01, which moves it by 8e-5
            text = scores["vt"][0].softmax(-1)
            torch.testing.assert_close(text, data["out.text_logits"], atol=1e-4, rtol=0)
            both = 0.9 * scores["vt"][0].log_softmax(-1) + 0.1 * scores["log_vv"][0]
            torch.testing.assert_close(both.exp(), data["out.combine_merge_logits"], atol=1e-4, rtol=0)
    clips = torch.cat((data["in.support_frames"], data["in.query_frames"]))
    classes = model.video_text(clips, data["in.text_train"][:, None])
    torch.testing.assert_close(classes, data["out.train_merge_class_logits"], atol=2e-5, rtol=1e-5)


@torch.no_grad()
def test_otam_agrees_with_the_released_head(golden):
    data = {key: torch.tensor(value) for key, value in golden("otam_head").items()}
    label = data["in.support_labels"].long()
    support = torch.stack([data["in.support_frames"][label == c] for c in range(5)])[None]
    model = _bare(Otam, 64, matcher="otam", lam=0.1)
    scores = model.match(model.relate_queries(data["in.query_frames"][None]), model.prototypes(support), None)
    torch.testing.assert_close(scores["vv"][0], data["out.logits"], atol=2e-5, rtol=1e-5)


@torch.no_grad()
def test_clip_freeze_is_the_cosine_of_mean_frames():
    model = _bare(ClipFreeze, 16, matcher="mean", lam=0.1)
    support, query = torch.randn(1, 3, 2, 8, 16), torch.randn(1, 4, 8, 16)
    got = model.match(model.relate_queries(query), model.prototypes(support), None)["vv"][0]
    for q in range(4):
        for n in range(3):
            cosines = [cosine_similarity(query[0, q].mean(0)[None], s.mean(0)[None]).item() for s in support[0, n]]
            assert got[q, n].item() == pytest.approx(sum(cosines) / 2 - 1, abs=1e-5)
    shuffled = query[:, :, torch.randperm(8, generator=torch.Generator().manual_seed(0))]
    torch.testing.assert_close(
        model.match(model.relate_queries(shuffled), support, None)["vv"][0], got, atol=1e-5, rtol=0
    )
