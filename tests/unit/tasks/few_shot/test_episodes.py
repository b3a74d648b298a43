import time

import numpy as np
import pytest
import torch

from pipeline.errors import UserError
from pipeline.tasks.few_shot.episodes import EpisodeDataset, EpisodeSampler, episode_table

LABELS = np.repeat([f"class{c:02d}" for c in range(12)], [7, 9, 30, 8, 7, 100, 12, 11, 7, 8, 9, 10])


def test_episodes_are_valid():
    rng = np.random.default_rng(0)
    labels = rng.permutation(LABELS)
    names = np.unique(labels)
    table = episode_table(labels, 5, 3, 4, 500, seed=1)
    assert [array.shape for array in table] == [(500, 5, 3), (500, 20), (500, 20), (500, 5)]
    for support, query, of, classes in zip(*table, strict=True):
        assert len(set(classes)) == 5
        clips = np.concatenate([support.ravel(), query])
        assert len(set(clips)) == len(clips)  # support and query share nothing
        assert (labels[support] == names[classes][:, None]).all()
        assert (labels[query] == names[classes[of]]).all()
        assert (np.bincount(of) == 4).all()


def test_draw_equals_the_table_and_ignores_history():
    table = episode_table(LABELS, 5, 1, 2, 40, seed=3)
    groups = {name: np.flatnonzero(name == LABELS).tolist() for name in np.unique(LABELS)[::-1]}
    for labels in (LABELS, list(LABELS), groups):
        sampler = EpisodeSampler(labels, 5, 1, 2, seed=3)
        for i in (39, 0, 17, 17):
            drawn = sampler.draw(i)
            for found, wanted in zip(
                (drawn.support, drawn.query, drawn.query_labels, drawn.classes), table, strict=True
            ):
                np.testing.assert_array_equal(found, wanted[i])


def test_seeds_differ_and_numbers_stay():
    table = episode_table(LABELS, 5, 1, 1, 100, seed=0)
    other = episode_table(LABELS, 5, 1, 1, 100, seed=1)
    assert not np.array_equal(table.support, other.support)
    assert len(np.unique(table.query, axis=0)) > 95
    np.testing.assert_array_equal(episode_table(LABELS, 5, 1, 1, 10, seed=0).query, table.query[:10])


def test_draws_are_uniform():
    labels = np.repeat(np.arange(6), 10)
    table = episode_table(labels, 3, 2, 2, 20_000, seed=0)
    places = np.stack([np.bincount(table.classes[:, i], minlength=6) for i in range(3)]) / 20_000
    assert abs(places - 1 / 6).max() < 0.012
    clips = np.bincount(np.concatenate([table.support.ravel(), table.query.ravel()]), minlength=60)
    assert abs(clips / clips.mean() - 1).max() < 0.06
    order = np.stack([np.bincount(table.labels[:, i], minlength=3) for i in range(6)]) / 20_000
    assert abs(order - 1 / 3).max() < 0.015  # queries are shuffled
    assert abs(np.corrcoef(table.support[:, 0, 0] % 10, table.support[:, 0, 1] % 10)[0, 1] + 1 / 9) < 0.03


def test_ten_thousand_episodes_are_quick():
    labels = np.repeat(np.arange(64), 1000)
    began = time.perf_counter()
    episode_table(labels, 5, 5, 1, 10_000, seed=0)
    assert time.perf_counter() - began < 2


def test_errors_name_the_classes():
    with pytest.raises(UserError, match=r"takes 8 clips of a class; too few in class00 \(7\), class04 \(7\)"):
        EpisodeSampler(LABELS, 5, 5, 3, 0)
    with pytest.raises(UserError, match="20-way episodes need 20 classes, and there are 12"):
        EpisodeSampler(LABELS, 20, 1, 1, 0)
    with pytest.raises(UserError, match="1 or more"):
        EpisodeSampler(LABELS, 5, 0, 1, 0)
    with pytest.raises(UserError, match="there are 0"):
        EpisodeSampler([], 5, 1, 1, 0)


class Store:
    """Clips whose pixels tell clip and frame."""

    def by_class(self, split):
        return {f"{split}{c}": np.arange(6) + 6 * c for c in range(7)}

    def n_frames(self, i):
        return 16

    def fps(self, i):
        return 25.0

    def source_frames(self, i):
        return 16

    def read(self, i, positions):
        frames = np.zeros((len(positions), 4, 4, 3), np.uint8)
        frames[..., 0], frames[..., 1] = i, np.asarray(positions)[:, None, None]
        return frames


def plain(frames, rng):
    return torch.from_numpy(frames.transpose(0, 3, 1, 2).astype(np.float32))


def marked(frames, rng):
    frames[..., 2] = rng.integers(1, 200)
    return plain(frames, rng)


def make(**changes):
    given = dict(way=5, shot=2, query=3, episodes=6, seed=4, frames=8, mode="segment_random", transform=plain)
    return EpisodeDataset(Store(), "train", **{**given, **changes})


def test_items_hold_what_their_labels_say():
    item = make(query_transform=marked)[2]
    shapes = {name: tuple(tensor.shape) for name, tensor in item.items()}
    assert shapes == {
        "support": (10, 8, 3, 4, 4),
        "query": (15, 8, 3, 4, 4),
        "support_labels": (10,),
        "query_labels": (15,),
        "class_ids": (5,),
        "episode": (),
    }
    for part in ("support", "query"):
        of_class = (item[part][:, 0, 0, 0, 0] // 6).long()
        assert torch.equal(item["class_ids"][item[f"{part}_labels"]], of_class)
    assert (item["support"][:, :, 2] == 0).all() and (item["query"][:, :, 2] > 0).all()
    drawn = EpisodeSampler(Store().by_class("train"), 5, 2, 3, 4).draw(2)
    assert item["query"][:, 0, 0, 0, 0].tolist() == drawn.query.tolist()


def test_items_depend_on_seed_and_number_only():
    first, second = make(), make(start=3, episodes=3)
    first[0], first[5]
    for i in range(3):
        for name, tensor in first[3 + i].items():
            assert torch.equal(tensor, second[i][name])
    assert not torch.equal(make(seed=5)[3]["support"], first[3]["support"])
    with pytest.raises(IndexError):
        second[3]


def test_workers_give_the_same_items():
    dataset = make(query_transform=marked)
    loader = torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=2)
    for i, item in enumerate(loader):
        assert item["episode"] == i
        assert torch.equal(item["query"], dataset[i]["query"])
