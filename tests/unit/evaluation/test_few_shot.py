"""Scores of thousands of episodes from features made once, against episodes that are encoded one by one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.datasets.episodes import EpisodeSampler
from pipeline.datasets.transforms import ClipTransform
from pipeline.evaluation import few_shot as module
from pipeline.evaluation.few_shot import class_texts, encode_clips, read_clip, score_episodes, score_split, split_clips
from pipeline.models.backbones.clip import CLIP_MEAN, CLIP_STD
from pipeline.models.build import build_model, class_sentences
from pipeline.text.corpus import load_corpus

METHODS = ("clip_freeze", "clip_fsar", "lga", "otam")


def _model(world, method, **experiment):
    run = world.run(method=method, **experiment)
    return run, build_model(run, world.ws, world.store).eval()


@torch.no_grad()
def _one_by_one(world, run, model, split, shot, episodes, seed, way=5, query=1):
    """(log_vv, log_vt, labels): every episode reads and encodes its own clips, whoever had them before."""
    store = world.store
    names = store.classes(split)
    clips_of = {name: [i for i in range(len(store.clips)) if store.labels[i] == name] for name in names}
    sampler = EpisodeSampler(clips_of, way, shot, query, seed)
    transform = ClipTransform(crop=run.frames["crop"], mean=model.mean, std=model.std, train=False)
    corpus = load_corpus(world.ws.dataset(run.dataset) / "texts.json")

    def encode(clip):
        return model.encode(read_clip(run, store, int(clip), transform)[None])[0]

    vv, vt, labels = [], [], []
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
        labels.append(episode.query_labels)
    return torch.stack(vv).numpy(), torch.stack(vt).numpy() if vt else None, np.stack(labels)


@pytest.mark.parametrize("shot", [1, 5])
@pytest.mark.parametrize("method", METHODS)
def test_scores_are_those_of_episodes_that_are_encoded_one_by_one(world, monkeypatch, method, shot):
    monkeypatch.setattr(module, "ENCODE_CLIPS", 7)  # neither the clips nor the episodes are a multiple
    run, model = _model(world, method)
    model.episodes_at_once = 3
    got = score_split(run, model, world.ws, world.store, "test", way=5, shot=shot, query=1, episodes=5, seed=4)
    vv, vt, labels = _one_by_one(world, run, model, "test", shot, 5, 4)
    assert (got.labels == labels).all()
    assert got.log_vv.shape == (5, 5, 5) and abs(got.log_vv - vv).max() < 1e-5
    assert (got.log_vv.argmax(-1) == vv.argmax(-1)).all()
    np.testing.assert_allclose(np.exp(got.log_vv).sum(-1), 1, atol=1e-5)
    if vt is None:
        assert got.log_vt is None
    else:
        assert abs(got.log_vt - vt).max() < 1e-5
        assert (got.log_vt.argmax(-1) == vt.argmax(-1)).all()


def test_several_queries_a_class(world):
    run, model = _model(world, "otam")
    got = score_split(run, model, world.ws, world.store, "val", way=3, shot=2, query=3, episodes=3, seed=0)
    vv, _, labels = _one_by_one(world, run, model, "val", 2, 3, 0, way=3, query=3)
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
    transform = ClipTransform(crop=32, mean=CLIP_MEAN, std=CLIP_STD, train=False)
    run = world.run(method="otam")
    one, two = (read_clip(r, world.store, 5, transform) for r in (run, run.model_copy(update={"seed": 7})))
    assert one.shape == (8, 3, 32, 32) and torch.equal(one, two)
    released = run.model_copy(update={"frames": run.frames | {"test_sampling": "segment_random", "number": 4}})
    draws = [read_clip(released.model_copy(update={"seed": s}), world.store, 5, transform) for s in range(4)]
    again = read_clip(released, world.store, 5, transform)
    assert torch.equal(draws[0], again) and any(not torch.equal(draws[0], draw) for draw in draws[1:])


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
