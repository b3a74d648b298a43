"""Scores of thousands of episodes from features made once, against episodes that are encoded one by one."""

from __future__ import annotations

import tempfile

import numpy as np
import pytest
import torch

from pipeline.datasets.sampling import sample_positions
from pipeline.datasets.transforms import ClipTransform
from pipeline.models.build import build_model, class_sentences
from pipeline.tasks.few_shot import scoring as module
from pipeline.tasks.few_shot.episodes import EpisodeSampler, episode_table
from pipeline.tasks.few_shot.scoring import (
    class_texts,
    encode_clips,
    read_clip,
    score_episodes,
    score_split,
    split_clips,
)
from pipeline.text.corpus import load_corpus

METHODS = ("clip_freeze", "clip_fsar", "lga", "otam")
RELATED = ("task_adapter", "task_adapter_pp")
ON_RESNET = ("hyrsm", "hyrsm_pp", "molo", "strm", "trx")


def _model(world, method, **experiment):
    run = world.run(method=method, **experiment)
    model = build_model(run, world.ws, world.store).eval()
    return run, _stirred(model) if method in RELATED else model


@torch.no_grad()
def _stirred(model):
    """Adapters start as nothing; moved at random they have a say."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


@torch.no_grad()
def _one_by_one(world, run, model, split, shot, episodes, seed, way=5, query=1):
    """(log_vv, log_vt, labels, both): every episode reads and encodes its own clips, whoever had them before."""
    store = world.store
    names = store.classes(split)
    clips_of = {name: [i for i in range(len(store.clips)) if store.labels[i] == name] for name in names}
    sampler = EpisodeSampler(clips_of, way, shot, query, seed)
    transform = ClipTransform(crop=run.frames["crop"])
    corpus = load_corpus(world.ws.dataset(run.dataset) / "texts.json")

    def encode(clip):
        return model.encode(model.pixels(read_clip(run, store, int(clip), transform)[None]))[0]

    vv, vt, both, labels = [], [], [], []
    for i in range(episodes):
        episode = sampler.draw(i)
        support = torch.stack([torch.stack([encode(clip) for clip in shots]) for shots in episode.support])
        query_features = torch.stack([encode(clip) for clip in episode.query])
        texts = None
        if model.wants_text:
            sentences = class_sentences(corpus, [names[c] for c in episode.classes], run.model)
            texts = model.encode_texts(sentences)[None]
        prototypes = model.prototypes(model.relate_supports(support[None]), texts)
        rows = [model.match(model.relate_queries(q[None, None]), prototypes, texts) for q in query_features]
        vv.append(torch.stack([row.get("log_vv", row["vv"].log_softmax(-1))[0, 0] for row in rows]))
        if model.wants_text:
            vt.append(torch.stack([row["vt"][0, 0].log_softmax(-1) for row in rows]))
        if "both" in rows[0]:
            both.append(torch.stack([row["both"][0, 0] for row in rows]))
        labels.append(episode.query_labels)
    vt, both = (torch.stack(part).numpy() if part else None for part in (vt, both))
    return torch.stack(vv).numpy(), vt, np.stack(labels), both


@pytest.mark.parametrize("shot", [1, 5])
@pytest.mark.parametrize("method", [*METHODS, *RELATED, *ON_RESNET])
def test_scores_are_those_of_episodes_that_are_encoded_one_by_one(world, monkeypatch, method, shot):
    monkeypatch.setattr(module, "ENCODE_CLIPS", 7)  # neither the clips nor the episodes are a multiple
    run, model = _model(world, method)
    model.episodes_at_once = 3
    got = score_split(run, model, world.ws, world.store, "test", way=5, shot=shot, query=1, episodes=5, seed=4)
    vv, vt, labels, both = _one_by_one(world, run, model, "test", shot, 5, 4)
    assert (got.labels == labels).all()
    assert got.log_vv.shape == (5, 5, 5) and abs(got.log_vv - vv).max() < 1e-5 * max(1, abs(vv).max())
    assert (got.log_vv.argmax(-1) == vv.argmax(-1)).all()
    np.testing.assert_allclose(np.exp(got.log_vv).sum(-1), 1, atol=1e-5)
    if vt is None:
        assert got.log_vt is None
    else:
        assert abs(got.log_vt - vt).max() < 1e-5
        assert (got.log_vt.argmax(-1) == vt.argmax(-1)).all()
    assert (got.both is not None) == (both is not None) == (method in RELATED)
    assert got.trained is (got.both if method in RELATED else got.log_vv)
    if both is not None:
        assert abs(got.both - both).max() < 1e-5 and np.ptp(both) > 1e-3


def test_several_queries_a_class(world):
    run, model = _model(world, "otam")
    got = score_split(run, model, world.ws, world.store, "val", way=3, shot=2, query=3, episodes=3, seed=0)
    vv, _, labels, _ = _one_by_one(world, run, model, "val", 2, 3, 0, way=3, query=3)
    assert got.log_vv.shape == (3, 9, 3) and abs(got.log_vv - vv).max() < 1e-5
    assert (got.labels == labels).all() and (np.sort(labels, 1) == np.repeat([0, 1, 2], 3)).all()


@pytest.mark.parametrize("split", ["val", "test"])
def test_every_clip_of_the_split_is_encoded_once_and_no_other(world, monkeypatch, split):
    run, model = _model(world, "lga")
    encoded, read = [], []
    original, reader = type(model).encode, module.read_clip
    monkeypatch.setattr(type(model), "encode", lambda self, x: encoded.append(len(x)) or original(self, x))
    monkeypatch.setattr(module, "read_clip", lambda r, s, clip, t: read.append(clip) or reader(r, s, clip, t))
    score_split(run, model, world.ws, world.store, split, way=5, shot=5, query=1, episodes=100, seed=0)
    clips = [i for i in range(len(world.store.clips)) if world.store.splits[i] == split]
    assert sorted(read) == clips and len(clips) == 60
    assert sum(encoded) == 60 and len(encoded) == 2  # batches of 32 and 28
    features = encode_clips(run, model, world.store, split_clips(world.store, split))
    del encoded[:], read[:]
    score_split(
        run, model, world.ws, world.store, split, way=5, shot=1, query=1, episodes=50, seed=0, features=features
    )
    assert read == encoded == []


def test_features_that_are_handed_in_give_the_same_scores(world):
    run, model = _model(world, "clip_fsar")
    settings = dict(way=5, shot=1, query=1, episodes=20, seed=9)
    features = encode_clips(run, model, world.store, split_clips(world.store, "test"))
    one = score_split(run, model, world.ws, world.store, "test", **settings)
    two = score_split(run, model, world.ws, world.store, "test", **settings, features=features)
    assert (one.log_vv == two.log_vv).all() and (one.log_vt == two.log_vt).all()
    other = score_split(run, model, world.ws, world.store, "test", **settings | {"seed": 10}, features=features)
    assert (one.log_vv != other.log_vv).any()


def test_all_methods_see_the_same_episodes(world, monkeypatch):
    """Whatever the method, the clips of supports and queries are the same ones, in the same order."""
    tables = {}
    original = module.score_episodes

    def spy(model, features, table, texts, matcher=None):
        tables[type(model).__name__] = table
        return original(model, features, table, texts, matcher)

    monkeypatch.setattr(module, "score_episodes", spy)
    for method in METHODS:
        run, model = _model(world, method)
        score_split(run, model, world.ws, world.store, "test", way=5, shot=1, query=1, episodes=30, seed=0)
    first, *others = tables.values()
    assert len(tables) == 4
    for other in others:
        assert all((one == two).all() for one, two in zip(first, other, strict=True))
    assert len({tuple(row.ravel()) for row in first.support}) == 30


# ------------------------------------------------------------------------------------- worked out once


class Counts:
    """Rows, over all calls, that a method of `model` was given."""

    def __init__(self, monkeypatch, model, name, dims):
        self.rows, self.calls = 0, 0
        original = getattr(type(model), name)

        def counted(model, first, *rest):
            self.rows += first.shape[:dims].numel()
            self.calls += 1
            return original(model, first, *rest)

        monkeypatch.setattr(type(model), name, counted)


def _support_sets(table):
    return {tuple(row) for row in np.concatenate([table.classes[..., None], table.support], -1).reshape(-1, 2)}


@pytest.mark.parametrize("method", ["otam", "clip_fsar", "lga", "strm"])
def test_a_shared_prototype_and_a_query_are_worked_out_once(world, monkeypatch, method):
    """One shot: 60 videos are all supports that there are, in however many episodes."""
    run, model = _model(world, method)
    features = encode_clips(run, model, world.store, split_clips(world.store, "test"))
    prototypes = Counts(monkeypatch, model, "prototypes", 2)
    queries = Counts(monkeypatch, model, "relate_queries", 2)
    settings = dict(way=5, query=1, seed=0, features=features)
    score_split(run, model, world.ws, world.store, "test", shot=1, episodes=200, **settings)
    assert prototypes.rows == queries.rows == 60
    # With five shots nearly every support set is another one, so they are made episode by episode.
    score_split(run, model, world.ws, world.store, "test", shot=5, episodes=20, **settings)
    assert prototypes.rows == 60 + 20 * 5 and queries.rows == 60 + 60


def test_the_text_of_a_class_is_part_of_a_shared_prototype(world, monkeypatch):
    """The same clip under two class numbers has two prototypes."""
    run, model = _model(world, "clip_fsar")
    classes = world.store.classes("test")
    features = encode_clips(run, model, world.store, split_clips(world.store, "test"))
    texts = class_texts(run, model, world.ws, classes)
    place = {name: [0, 1, 2] for name in classes}  # every class has the same three clips
    table = episode_table(place, 5, 1, 1, 40, 0)
    counts = Counts(monkeypatch, model, "prototypes", 2)
    scores = score_episodes(model, features, table, texts)
    assert counts.rows == len(_support_sets(table)) == 30
    monkeypatch.setattr(module, "_prototypes", lambda *_: None)
    alone = score_episodes(model, features, table, texts)
    assert counts.rows == 30 + 200
    np.testing.assert_allclose(scores.log_vv, alone.log_vv, atol=1e-5)
    assert np.ptp(scores.log_vv) > 1e-3


@pytest.mark.parametrize("method", RELATED)
def test_supports_that_see_each_other_share_no_prototype(world, monkeypatch, method):
    run, model = _model(world, method)
    prototypes = Counts(monkeypatch, model, "prototypes", 2)
    supports = Counts(monkeypatch, model, "relate_supports", 3)
    queries = Counts(monkeypatch, model, "relate_queries", 2)
    score_split(run, model, world.ws, world.store, "test", way=5, shot=1, query=1, episodes=20, seed=0)
    assert prototypes.rows == supports.rows == 100 and model.episodes_at_once < 20
    assert prototypes.calls == supports.calls == -(-20 // model.episodes_at_once)
    assert queries.rows == 60  # a query sees no other, so it is worked out once


def test_queries_that_see_each_other_are_related_episode_by_episode(world):
    run, model = _model(world, "task_adapter_pp", model={"transductive": True, "alignment_over": "queries"})
    assert not model.queries_alone
    features = encode_clips(run, model, world.store, split_clips(world.store, "test"))
    texts = class_texts(run, model, world.ws, world.store.classes("test"))
    table = _table(world, 11)
    got = score_episodes(model, features, table, texts)
    assert (got.labels == table.labels).all() and (got.labels != np.arange(5)).any()
    with torch.no_grad():
        for i in range(11):
            support, query = (torch.from_numpy(a[i]) for a in (table.support, table.query))
            chosen = texts[torch.from_numpy(table.classes[i])][None]
            prototypes = model.prototypes(model.relate_supports(features[support][None]), chosen)
            want = model.match(model.relate_queries(features[query][None]), prototypes, chosen)["both"][0]
            assert abs(got.both[i] - want.numpy()).max() < 1e-5
    alone = _model(world, "task_adapter_pp")[1]
    assert abs(score_episodes(alone, features, table, texts).both - got.both).max() > 1e-3


def _table(world, episodes):
    """5-way 1-shot episodes of the test classes."""
    clips, names = split_clips(world.store, "test"), world.store.classes("test")
    place = {name: [i for i, clip in enumerate(clips) if world.store.labels[clip] == name] for name in names}
    return episode_table(place, 5, 1, 1, episodes, 0)


# ---------------------------------------------------------------------------- queries in class order


def test_queries_in_the_order_of_their_classes():
    table = episode_table({str(c): range(10 * c, 10 * c + 6) for c in range(7)}, 5, 2, 3, 30, 0)
    ordered = module.in_class_order(table)
    assert (ordered.labels == np.repeat(np.arange(5), 3)).all() and (table.labels != ordered.labels).any()
    assert (ordered.support == table.support).all() and (ordered.classes == table.classes).all()
    # every query keeps its class, and no query is lost
    assert (np.take_along_axis(ordered.classes, ordered.labels, 1) == ordered.query // 10).all()
    assert (np.sort(ordered.query, 1) == np.sort(table.query, 1)).all()
    again = module.in_class_order(ordered)
    assert all((one == two).all() for one, two in zip(ordered, again, strict=True))


def test_only_a_method_that_asks_for_it_gets_queries_in_class_order(world):
    settings = dict(way=5, shot=1, query=1, episodes=20, seed=0)
    scores = {}
    for transposed in (False, True):
        run, model = _model(world, "task_adapter_pp", model={"transposed": transposed})
        assert model.class_order is transposed
        scores[transposed] = score_split(run, model, world.ws, world.store, "test", **settings)
    assert (scores[True].labels == np.arange(5)).all() and (scores[False].labels != np.arange(5)).any()
    # the same queries of the same episodes: sorted by their labels, the scores that are not transposed are equal
    order = np.argsort(scores[False].labels, 1, kind="stable")[..., None]
    for name in ("log_vv", "log_vt"):
        sorted_scores = np.take_along_axis(getattr(scores[False], name), order, 1)
        np.testing.assert_allclose(getattr(scores[True], name), sorted_scores, atol=1e-5)
    assert abs(np.take_along_axis(scores[False].both, order, 1) - scores[True].both).max() > 1e-4


# ------------------------------------------------------------------------------ features out of memory


@pytest.mark.parametrize("method", ["lga", "task_adapter_pp", "strm"])
def test_features_beyond_the_memory_lie_in_a_file_and_give_the_same_scores(world, monkeypatch, tmp_path, method):
    run, model = _model(world, method)
    settings = dict(way=5, shot=1, query=1, episodes=12, seed=0)
    want = score_split(run, model, world.ws, world.store, "test", **settings)
    mapped, original = [], torch.from_file
    monkeypatch.setattr(torch, "from_file", lambda name, **k: mapped.append(name) or original(name, **k))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    features = encode_clips(run, model, world.store, split_clips(world.store, "test"))
    assert not mapped
    size = 4 * features.numel()
    for limit, in_file in ((size, False), (size - 1, True)):
        monkeypatch.setattr(module, "IN_MEMORY", limit)
        again = encode_clips(run, model, world.store, split_clips(world.store, "test"))
        assert bool(mapped) is in_file and torch.equal(again, features) and again.shape == features.shape
    got = score_split(run, model, world.ws, world.store, "test", **settings)
    assert len(mapped) == 2 and all(name.startswith(f"{tmp_path}/features-") for name in mapped)
    assert not list(tmp_path.iterdir())  # the file has no name any more, and goes with its last reader
    for name in ("log_vv", "log_vt", "both"):
        one, two = getattr(got, name), getattr(want, name)
        assert (one is None) == (two is None) and (one is None or (one == two).all())


def test_text_of_a_class_stands_at_the_place_of_its_supports(world):
    """With features that are the class texts themselves, video-text matching is never wrong."""
    run, model = _model(world, "lga")
    classes = world.store.classes("test")
    texts = class_texts(run, model, world.ws, classes)
    clips = split_clips(world.store, "test")
    model.segmenter, model.overlap = "hard", 0
    place = {name: [i for i, clip in enumerate(clips) if world.store.labels[clip] == name] for name in classes}
    table = module.episode_table(place, 5, 1, 1, 40, 0)
    # HARD cuts 8 frames 3 | 3 | 2, so give every phase its own text.
    features = torch.stack([texts[classes.index(world.store.labels[clip])][[0, 0, 0, 1, 1, 1, 2, 2]] for clip in clips])
    scores = score_episodes(model, features, table, texts)
    assert (scores.log_vt.argmax(-1) == scores.labels).mean() == 1.0
    wrong = score_episodes(model, features, table, texts.roll(1, 0))
    assert (wrong.log_vt.argmax(-1) == wrong.labels).mean() < 0.6


def test_a_split_with_few_classes_is_tested_with_all_of_them(world):
    run, model = _model(world, "clip_freeze")
    scores = score_split(run, model, world.ws, world.store, "val", way=50, shot=1, query=1, episodes=3, seed=0)
    assert scores.log_vv.shape == (3, 10, 10)


def test_frames_of_a_test_are_chosen_without_chance_unless_asked(world):
    transform = ClipTransform(crop=32)
    run = world.run(method="otam")
    one, two = (read_clip(r, world.store, 5, transform) for r in (run, run.model_copy(update={"seed": 7})))
    assert one.shape == (8, 32, 32, 3) and one.dtype == torch.uint8 and torch.equal(one, two)
    released = run.model_copy(update={"frames": run.frames | {"test_sampling": "segment_random", "number": 4}})
    draws = [read_clip(released.model_copy(update={"seed": s}), world.store, 5, transform) for s in range(4)]
    again = read_clip(released, world.store, 5, transform)
    assert torch.equal(draws[0], again) and any(not torch.equal(draws[0], draw) for draw in draws[1:])


@pytest.mark.parametrize(("method", "mode"), [("trx", "linspace"), ("hyrsm", "segment_centre")])
def test_frames_of_a_test_are_those_of_the_methods_recipe(world, monkeypatch, method, mode):
    run = world.run(method=method)
    assert run.frames["test_sampling"] == mode
    seen, original = [], module.sample_positions

    def spy(n, t, mode, rng=None, **kwargs):
        seen.append((n, mode, rng, original(n, t, mode, rng, **kwargs)))
        return seen[-1][-1]

    monkeypatch.setattr(module, "sample_positions", spy)
    read_clip(run, world.store, 3, ClipTransform(crop=32))
    ((n, used, rng, positions),) = seen
    assert used == mode and rng is None
    np.testing.assert_array_equal(positions, sample_positions(n, 8, mode))


def test_matcher_of_the_measurement(world):
    run, model = _model(world, "clip_freeze")
    settings = dict(way=5, shot=1, query=1, episodes=10, seed=0)
    as_otam = score_split(run, model, world.ws, world.store, "test", **settings, matcher="otam")
    own = score_split(run, model, world.ws, world.store, "test", **settings)
    otam_run = world.run(method="clip_freeze", model={"matcher": "otam"})
    trained = build_model(otam_run, world.ws, world.store).eval()
    want = score_split(otam_run, trained, world.ws, world.store, "test", **settings)
    np.testing.assert_allclose(as_otam.log_vv, want.log_vv, atol=1e-6)
    assert abs(own.log_vv - want.log_vv).max() > 1e-4
