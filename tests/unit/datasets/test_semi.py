"""Lists of labelled and unlabelled videos, label rates, and the clips of elements."""

from __future__ import annotations

import gzip

import numpy as np
import pytest
import torch

from pipeline.datasets.semi import (
    PAPER_COUNTS,
    ElementView,
    ListedVideo,
    draw_labelled,
    read_elements,
    read_semi_lists,
    read_video_list,
)
from pipeline.errors import UserError
from pipeline.models.sefar.elements import ElementSampler

torch.set_num_threads(1)


# ---------------------------------------------------------------------------------------------------- lists
@pytest.mark.parametrize("name", sorted(PAPER_COUNTS))
def test_published_lists_have_their_sizes(reference_data, name):
    sefar = reference_data / "lists" / "sefar"
    stem, _, rate = name.rpartition("_")
    folders = {
        "gym99": sefar / "finegym" / f"all99_{rate}",
        "gym288": sefar / "finegym" / f"all288_{rate}",
        "gym_new": sefar / "finegym-new" / f"list_finegym_new_{rate}",
        "ucf101": sefar / f"list_ucf_{rate}",
        "hmdb51": sefar / f"list_hmdb_{rate}",
    }
    folder = folders.get(stem, sefar / "finegym" / f"{stem.upper()}_{rate}")
    split = read_semi_lists(folder)
    assert (len(split.labelled), len(split.unlabelled), len(split.test), split.classes) == PAPER_COUNTS[name]
    if name in ("gym288_10", "gym_new_10"):  # as published: classes without a label
        assert len({v.label for v in split.labelled}) == {"gym288_10": 214, "gym_new_10": 31}[name]
        assert split.absent()
    if name in ("gym288_5", "ucf101_1"):
        assert not split.absent()


def test_svformer_lists_are_read_too(reference_data):
    split = read_semi_lists(reference_data / "lists" / "svformer" / "list_ucf_1")
    assert (len(split.labelled), len(split.unlabelled), len(split.test)) == PAPER_COUNTS["ucf101_1"][:3]


def test_the_broken_list_is_named(reference_data):
    path = reference_data / "lists" / "sefar" / "list_ucf_5" / "train.csv"
    with pytest.raises(UserError, match=r"train.csv, line 1: .* is not 'path label'"):
        read_video_list(path)


def _write(folder, **lists: str):
    for name, text in lists.items():
        (folder / f"{name}.csv").write_text(text)
    return folder


def test_lists_of_own(tmp_path):
    folder = _write(tmp_path, train="a b.mp4 0\n", unlabel="c.mp4 1\n\nd.mp4 1\n")
    with gzip.open(folder / "test.csv.gz", "wt") as file:
        file.write("e.mp4 1\n")
    split = read_semi_lists(folder)
    assert split.labelled == (ListedVideo("a b.mp4", 0),)
    assert split.unlabelled == ("c.mp4", "d.mp4")  # no label: training can't see it
    assert split.classes == 2 and split.absent() == [1]


@pytest.mark.parametrize(
    ("lists", "words"),
    [
        ({"train": "a 0", "unlabel": "b 0"}, "no list .*test.csv"),
        ({"train": "a 0", "unlabel": "a 0", "test": "b 0"}, "a is in train.csv and unlabel.csv"),
        ({"train": "a 0", "unlabel": "b 0", "test": "b 0"}, "b is in unlabel.csv and test.csv"),
        ({"train": "a -1", "unlabel": "b 0", "test": "c 0"}, "line 1: 'a -1' is not"),
        ({"train": "a 0\na 1", "unlabel": "b 0", "test": "c 0"}, "line 2: a is listed twice"),
        ({"train": "", "unlabel": "b 0", "test": "c 0"}, "holds no video"),
    ],
)
def test_wrong_lists(tmp_path, lists, words):
    with pytest.raises(UserError, match=words):
        read_semi_lists(_write(tmp_path, **lists))


# --------------------------------------------------------------------------------------------- label rates
def _videos(*sizes: int) -> list[ListedVideo]:
    return [ListedVideo(f"{label}/{i:03d}.mp4", label) for label, size in enumerate(sizes) for i in range(size)]


def _counts(labelled: list[ListedVideo]) -> dict[int, int]:
    labels = [video.label for video in labelled]
    return {label: labels.count(label) for label in sorted(set(labels))}


def test_labels_are_proportional_and_seeded():
    videos = _videos(100, 50, 30, 20)
    labelled, rest = draw_labelled(videos, 0.1, seed=3)
    assert _counts(labelled) == {0: 10, 1: 5, 2: 3, 3: 2}
    assert len(rest) == 180 and {video.path for video in labelled}.isdisjoint(rest)
    assert (labelled, rest) == draw_labelled(videos[::-1], 0.1, seed=3)
    assert labelled != draw_labelled(videos, 0.1, seed=4)[0]


def test_largest_remainders_make_the_total():
    labelled, _ = draw_labelled(_videos(17, 14, 13, 6), 0.1, seed=0)  # shares 1.7, 1.4, 1.3, 0.6 of 5
    assert _counts(labelled) == {0: 2, 1: 1, 2: 1, 3: 1}
    assert len(draw_labelled(_videos(*[33] * 40), 0.05, seed=0, absent="error")[0]) == round(0.05 * 33 * 40)


def test_classes_without_a_label():
    videos = _videos(200, 3)
    assert _counts(draw_labelled(videos, 0.05, seed=0)[0]) == {0: 10, 1: 1}
    with pytest.raises(UserError, match="leaves 1 classes without a label, such as class 1 with 3 videos"):
        draw_labelled(videos, 0.05, seed=0, absent="error")
    assert len(draw_labelled(_videos(*[94] * 101), 0.01, seed=0)[0]) == 101  # UCF101 1 %: one a class


@pytest.mark.parametrize(("rate", "absent", "words"), [(5, "one", "no share"), (0.1, "non", "did you mean 'one'")])
def test_wrong_rates(rate, absent, words):
    with pytest.raises(UserError, match=words):
        draw_labelled(_videos(10), rate, 0, absent)


# ---------------------------------------------------------------------------------------------------- clips
class _Store:
    """Frames whose brightness is their number; remembers what was read."""

    def __init__(self, n: int) -> None:
        self.n, self.reads = n, []

    def n_frames(self, i: int) -> int:
        return self.n

    def read(self, i: int, positions: np.ndarray) -> np.ndarray:
        self.reads.append(list(positions))
        return np.broadcast_to(np.asarray(positions, np.uint8)[:, None, None, None], (len(positions), 20, 24, 3))


def test_elements_of_a_clip():
    store, sampler = _Store(80), ElementSampler("2-2-4")
    view = ElementView(16, mean=(0.0,) * 3, std=(1 / 255,) * 3)
    elements = read_elements(store, 0, sampler, view)
    assert [tuple(x.shape) for x in elements] == [(2, 3, 16, 16), (2, 3, 16, 16), (4, 3, 16, 16)]
    assert [x[:, 0, 0, 0].round().int().tolist() for x in elements] == [[34, 74], [14, 54], [4, 24, 44, 64]]
    assert len(store.reads) == 1 and len(store.reads[0]) == 8
    drawn = read_elements(store, 0, sampler, view, np.random.default_rng(0))
    frames = [x[:, 0, 0, 0].round().int().tolist() for x in drawn]
    expected = sampler.sample(80, np.random.default_rng(0))
    assert frames == [list(part) for part in expected]
    with pytest.raises(UserError, match="too short"):
        read_elements(_Store(7), 0, sampler, view)


def _picture(height: int, width: int) -> np.ndarray:
    """Two frames; red grows downwards, green to the right, blue is constant."""
    frames = np.zeros((2, height, width, 3), np.uint8)
    frames[..., 0] = np.arange(height)[:, None]
    frames[..., 1] = np.arange(width)
    return frames


def test_the_view_at_test_is_the_middle_square():
    view = ElementView(20, mean=(0.0,) * 3, std=(1 / 255,) * 3)
    x = view(_picture(20, 30))
    assert x[0, 1, 0, 0] == pytest.approx(5, abs=1e-3) and x[0, 1, 0, -1] == pytest.approx(24, abs=1e-3)
    assert ElementView(10)(_picture(20, 30)).shape == (2, 3, 10, 10)
    torch.testing.assert_close(ElementView(20)(_picture(20, 20))[0, 2], torch.full((20, 20), -2.0))


def test_the_view_in_training_crops_scales_and_mirrors_all_frames_alike():
    view = ElementView(56, mean=(0.0,) * 3, std=(1 / 255,) * 3)
    mirrored, sides, places = 0, set(), set()
    for seed in range(200):
        x = view(_picture(70, 90), np.random.default_rng(seed))
        torch.testing.assert_close(x[0], x[1])
        green = x[0, 1, 0]
        mirrored += bool(green[0] > green[-1])
        sides.add(round(abs(float(green[-1] - green[0]))))
        places.add(round(float(x[0, 0, 0, 0])))
    assert 70 < mirrored < 130
    assert min(sides) in (47, 48, 49) and max(sides) in (59, 60, 61)  # 70 pixels over 10/7 and 8/7
    assert min(places) == 0 and max(places) >= 18
