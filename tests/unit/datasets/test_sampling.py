import numpy as np
import pytest

from pipeline.datasets.sampling import MODES, sample_positions
from pipeline.errors import UserError


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("n", [1, 2, 7, 8, 9, 28, 100, 301])
@pytest.mark.parametrize("t", [1, 3, 8])
def test_positions_are_in_range_and_ascend(mode, n, t):
    rng = np.random.default_rng(n)
    for _ in range(10):
        positions = sample_positions(n, t, mode, rng, fps=25)
        assert positions.shape == (t,)
        assert positions.dtype == np.int64
        assert positions.min() >= 0 and positions.max() < n
        assert (np.diff(positions) >= 0).all()


def test_centre_follows_its_formula():
    for n in range(1, 200):
        expected = [int(n / 16 + n / 8 * i) for i in range(8)]
        np.testing.assert_array_equal(sample_positions(n, 8, "segment_centre"), expected)


def test_random_covers_each_segment_evenly():
    rng = np.random.default_rng(0)
    drawn = np.array([sample_positions(32, 8, "segment_random", rng) for _ in range(4000)])
    assert (drawn // 4 == np.arange(8)).all()
    counts = np.array([np.bincount(drawn[:, i] % 4, minlength=4) for i in range(8)])
    assert (abs(counts / 4000 - 0.25) < 0.03).all()


def test_random_reaches_the_last_frames():
    rng = np.random.default_rng(0)
    drawn = np.concatenate([sample_positions(15, 8, "segment_random", rng) for _ in range(200)])
    assert set(drawn) == set(range(15))


def test_short_clips_repeat_frames():
    np.testing.assert_array_equal(sample_positions(2, 4, "segment_centre"), [0, 0, 1, 1])
    random = sample_positions(2, 4, "segment_random", np.random.default_rng(0))
    np.testing.assert_array_equal(random, [0, 0, 1, 1])


def test_kinetics_grid_leaves_out_the_last_frames():
    # 300 frames at 30 a second: the wanted 700 frames do not fit, so 296 are used and 35 of them left out.
    middle = sample_positions(300, 8, "kinetics_grid", fps=30)
    np.testing.assert_array_equal(middle, np.linspace(2, 2 + 296 - 35, 8).astype(int))
    starts = [sample_positions(300, 8, "kinetics_grid", np.random.default_rng(i), fps=30)[0] for i in range(50)]
    assert set(starts) == {0, 1, 2, 3, 4}
    # A long video: 8 * 35 * 12 / 12 = 280 of its frames.
    long = sample_positions(1000, 8, "kinetics_grid", fps=12)
    np.testing.assert_array_equal(long, np.linspace(360, 360 + 280 - 35, 8).astype(int))


def test_kinetics_grid_on_a_subset_of_the_frames():
    whole = sample_positions(300, 8, "kinetics_grid", fps=30)
    stored = sample_positions(30, 8, "kinetics_grid", fps=30, source_frames=300)
    np.testing.assert_array_equal(stored, whole // 10)


def test_an_even_grid_leaves_out_the_first_and_the_last_frame():
    """TRX's test: np.linspace(1, n - 2, t), cut down to whole frames."""
    for n in range(11, 120):
        wanted = np.linspace(1, n - 2, 8).astype(int)
        np.testing.assert_array_equal(sample_positions(n, 8, "linspace"), wanted)
    np.testing.assert_array_equal(sample_positions(1, 3, "linspace"), [0, 0, 0])
    one, two = (sample_positions(40, 8, "linspace", rng) for rng in (None, np.random.default_rng(0)))
    np.testing.assert_array_equal(one, two)  # a generator is of no account


@pytest.mark.parametrize("n", [25, 40, 100, 301])
def test_the_jittered_grid_moves_each_end_on_its_own(n):
    """By five frames at most, all distances equally often; between its ends the grid is even."""
    rng = np.random.default_rng(n)
    drawn = [sample_positions(n, 8, "linspace_jitter", rng) for _ in range(900)]
    first, last = (np.array([positions[i] for positions in drawn]) for i in (0, -1))
    for end in (first, n - 1 - last):
        values, counts = np.unique(end, return_counts=True)
        assert values[-1] - values[0] == 5 and values[-1] <= 6 and counts.min() > 0.6 * 150
    assert len(set(zip(first.tolist(), last.tolist(), strict=True))) == 36
    for positions in drawn:
        np.testing.assert_array_equal(positions, np.linspace(positions[0], positions[-1], 8).astype(int))
        assert len(set(positions)) == 8


def test_wrong_arguments():
    with pytest.raises(UserError, match=r"unknown frame sampling mode 'segment_center'.*segment_centre"):
        sample_positions(10, 8, "segment_center")
    with pytest.raises(ValueError, match="generator"):
        sample_positions(10, 8, "segment_random")
    with pytest.raises(ValueError, match="0 frames"):
        sample_positions(0, 8, "segment_centre")
