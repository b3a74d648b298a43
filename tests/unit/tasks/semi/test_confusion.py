"""Confusions and opposite directions against counting one by one."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.errors import UserError
from pipeline.tasks.semi.confusion import check_pairs, confusion, opposite

NAMES = ["hop left", "hop right", "jump down", "jump up", "lean left", "lean right"]


@pytest.fixture
def videos():
    """Predicted and true classes of 200 videos, 6 classes."""
    rng = np.random.default_rng(0)
    return rng.integers(0, 6, 200), rng.integers(0, 6, 200)


def test_confusion_counts_each_video_once(videos):
    said, right = videos
    slow = np.zeros((6, 6), int)
    for one, truth in zip(said, right, strict=True):
        slow[truth, one] += 1
    assert (confusion(said, right, 6) == slow).all() and slow.sum() == 200
    assert (confusion(right, said, 6) == slow.T).all() and (slow != slow.T).any()


def test_opposites_are_the_two_classes_of_a_pair(videos):
    said, right = videos
    pairs = [{0, 1}, {2, 3}, {4, 5}]
    slow = [100.0 * (one != truth and {one, truth} in pairs) for one, truth in zip(said, right, strict=True)]
    assert opposite(said, right).tolist() == slow and 0 < np.mean(slow) < 100
    assert opposite(right, right).sum() == 0


def test_it_depends_on_pairs_alone(videos):
    """Pairs in another order are the same pairs; classes that change their partner are not."""
    said, right = videos
    among, across = np.array([4, 5, 1, 0, 2, 3]), np.array([0, 2, 1, 3, 4, 5])
    assert (opposite(among[said], among[right]) == opposite(said, right)).all()
    assert (opposite(across[said], across[right]) != opposite(said, right)).any()


def test_classes_that_are_no_pairs_are_an_error():
    check_pairs(NAMES, "the set")
    check_pairs([f"class {i:03d}" for i in range(40)], "the set")
    with pytest.raises(UserError, match="the set has 5 classes, so they don't form pairs"):
        check_pairs(NAMES[:5], "the set")
    with pytest.raises(UserError, match="the set has no video of class 003"):
        check_pairs([f"class {i:03d}" for i in range(40) if i not in (3, 17)], "the set")
    with pytest.raises(UserError, match="the set has no video of class 000"):
        check_pairs([f"class {i:03d}" for i in range(1, 39)], "the set")
