import numpy as np
import pytest

from pipeline.pose.tracking import distinct, overlap, similarity, track

BODY = np.array([(x, y) for x in (-10, 0, 10) for y in (-30, -10, 10, 30)], dtype=np.float32)  # 12 joints


def pose(x, y=0.0, confidence=0.9):
    return np.concatenate([BODY + np.array((x, y)), np.full((12, 1), confidence)], axis=1).astype(np.float32)


def frame(*poses):
    return np.array(poses, dtype=np.float32).reshape(-1, 12, 3)


def places(persons):
    """x of the middle of each person in each frame, None where absent."""
    return [[round(float(p[:, 0].mean())) if p.any() else None for p in person] for person in persons]


def test_similarity():
    assert similarity(pose(0), pose(0)) == pytest.approx(1)
    values = [similarity(pose(0), pose(x)) for x in (0, 2, 5, 10, 40)]
    assert values == sorted(values, reverse=True) and values[-1] < 0.01
    # An area of 20 x 60 pixels: at 0.2 of its root every joint has exp(-1/2).
    assert similarity(pose(0), pose(0.2 * np.sqrt(1200))) == pytest.approx(np.exp(-0.5), rel=1e-4)
    far = pose(0)
    far[:6, :2] += 1000
    far[:6, 2] = 0  # joints without confidence say nothing
    assert similarity(far, pose(0)) == pytest.approx(1)
    assert similarity(pose(0, confidence=0), pose(0)) == 0


def test_poses_in_one_place_are_one():
    upside_down = pose(0, confidence=0.5) * (1, -1, 1)
    assert similarity(pose(0), pose(0)) and overlap(pose(0), upside_down) == pytest.approx(1)
    assert distinct(frame(upside_down, pose(0), pose(15))) == [1, 2]
    assert distinct(frame()) == []
    assert overlap(pose(0), pose(10)) == pytest.approx(1 / 3) and overlap(pose(0), pose(99)) == 0


def test_persons_keep_their_place_whatever_the_order():
    frames = [frame(pose(0 + t), pose(100 - t)) for t in range(10)]
    frames[3], frames[7] = frames[3][::-1], frames[7][::-1]
    assert places(track(frames)) == [list(range(10)), list(range(100, 90, -1))]


def test_a_person_who_is_missed_returns():
    frames = [frame(pose(0), pose(100)), frame(pose(100)), frame(pose(1), pose(100)), frame(), frame(pose(100))]
    assert places(track(frames)) == [[100, 100, 100, None, 100], [0, None, 1, None, None]]


def test_one_person_in_two_places_in_turn():
    """Tracks that share no frame are one person, so that a jump does not cost the second place."""
    frames = [frame(pose(0))] * 5 + [frame(pose(300))] * 4
    assert places(track(frames)) == [[0] * 5 + [300] * 4]


def test_the_surest_two_of_three():
    frames = [frame(pose(0, confidence=0.3), pose(100, confidence=0.9), pose(200, confidence=0.6))] * 4
    assert places(track(frames)) == [[100] * 4, [200] * 4]
    assert places(track(frames, persons=1)) == [[100] * 4]


def test_short_tracks_are_noise():
    frames = [frame(pose(0))] * 30
    frames[4] = frame(pose(0), pose(200))
    assert places(track(frames)) == [[0] * 30]
    frames[5] = frames[6] = frames[4]
    assert len(track(frames)) == 2


def test_nobody():
    assert track([frame(), frame()]).shape == (0, 2, 12, 3)
