"""What the loader cuts, and what the device makes of it, against the plain way: a clip at a time, in float32."""

import cv2
import numpy as np
import pytest
import torch

from benchmarks.pixels import training_clip
from pipeline.datasets import transforms as module
from pipeline.datasets.transforms import (
    CLIP_MEAN,
    CLIP_STD,
    ClipTransform,
    change_colours,
    draw_colours,
    normalise,
    normalise_changed,
)
from pipeline.errors import UserError

FRAMES = np.random.default_rng(0).integers(0, 256, (4, 40, 50, 3), np.uint8)
MEAN, STD = (torch.tensor(values)[:, None, None] for values in (CLIP_MEAN, CLIP_STD))


def raw(**options):
    return ClipTransform(32, **options)


def back(tensor):
    return tensor.numpy()


def plain(frames, rng, jitter=False):
    return training_clip(frames, rng, CLIP_MEAN, CLIP_STD, 32, 0.5, jitter)


def planes(clip):
    """Clips (T, H, W, 3) in [0, 1] as a batch of one, (1, T, 3, H, W)."""
    return torch.from_numpy(clip).movedim(-1, -3)[None].contiguous()


def test_a_clip_is_that_of_the_plain_way_to_the_last_bit():
    for seed in range(20):
        cut = raw(train=True, flip=0.5)(FRAMES, np.random.default_rng(seed))
        made = normalise(cut, MEAN, STD)
        assert made.shape == (4, 3, 32, 32) and made.dtype == torch.float32 and made.is_contiguous()
        np.testing.assert_array_equal(made.numpy(), plain(FRAMES, np.random.default_rng(seed)))


def test_jittered_clips_are_those_of_the_plain_way():
    """Many clips at once, each with colours and an order of its own; generators are left at the same place."""
    flat = np.broadcast_to(np.uint8([7, 7, 7]), FRAMES.shape)  # no hue
    clips = [FRAMES, flat, np.sort(FRAMES, axis=-1), FRAMES // 64 * 64, FRAMES[:, ::-1]] * 12
    wanted, cut, colours = [], [], []
    for seed, clip in enumerate(clips):
        one, two = np.random.default_rng(seed), np.random.default_rng(seed)
        wanted.append(plain(clip, one, jitter=True))
        cut.append(raw(train=True, flip=0.5)(clip, two))
        colours.append(torch.from_numpy(draw_colours(two)))
        assert one.random() == two.random()
    made = normalise_changed(torch.stack(cut), torch.stack(colours), MEAN, STD)
    np.testing.assert_allclose(made.numpy(), np.stack(wanted), atol=2e-5)
    orders = {tuple(row) for row in torch.stack(colours)[:, 5:].int().tolist()}
    assert len(orders) > 15 and len({int(row[0]) for row in colours}) == 2


def test_the_test_transform_is_a_centre_crop():
    made = raw()(FRAMES)
    assert made.shape == (4, 32, 32, 3) and made.dtype == torch.uint8 and made.is_contiguous()
    np.testing.assert_array_equal(back(made), FRAMES[:, 4:36, 9:41])


def test_normalisation():
    made = normalise(ClipTransform(32)(FRAMES), MEAN, STD).numpy()
    wanted = (FRAMES[:, 4:36, 9:41] / 255 - CLIP_MEAN) / CLIP_STD
    np.testing.assert_allclose(made.transpose(0, 2, 3, 1), wanted, atol=1e-5)


def test_a_random_crop_is_one_for_all_frames():
    corners = set()
    for seed in range(200):
        made = back(raw(train=True)(FRAMES, np.random.default_rng(seed)))
        places = [
            (y, x)
            for y in range(9)
            for x in range(19)
            if (made[:, 0, 0] == FRAMES[:, y, x]).all() and (made == FRAMES[:, y : y + 32, x : x + 32]).all()
        ]
        assert len(places) == 1
        corners.add(places[0])
    assert {y for y, _ in corners} == set(range(9))
    assert {x for _, x in corners} == set(range(19))


def test_a_crop_for_each_frame():
    """As in Task-Adapter's released code: every frame of a clip is cut at a place of its own."""
    places = []
    for seed in range(60):
        made = back(raw(train=True, per_frame=True)(FRAMES, np.random.default_rng(seed)))
        assert made.shape == (4, 32, 32, 3)
        found = [
            [(y, x) for y in range(9) for x in range(19) if (cut == frame[y : y + 32, x : x + 32]).all()]
            for cut, frame in zip(made, FRAMES, strict=True)
        ]
        assert [len(corners) for corners in found] == [1] * 4
        places.append([corners[0] for corners in found])
    assert {y for clip in places for y, _ in clip} == set(range(9))
    assert {x for clip in places for _, x in clip} == set(range(19))
    assert sum(len(set(clip)) == 1 for clip in places) == 0
    again = back(raw(train=True, per_frame=True)(FRAMES, np.random.default_rng(59)))
    np.testing.assert_array_equal(again, made)


def test_a_crop_for_each_frame_is_for_training_alone():
    np.testing.assert_array_equal(back(raw(per_frame=True)(FRAMES)), FRAMES[:, 4:36, 9:41])
    with pytest.raises(UserError, match="network takes 48x48"):
        ClipTransform(48, train=True, per_frame=True)(FRAMES, np.random.default_rng(0))


def test_a_flip_is_one_for_all_frames_also_where_crops_are_not():
    made = back(raw(train=True, per_frame=True, flip=1.0)(FRAMES[:, :32, :32], np.random.default_rng(0)))
    np.testing.assert_array_equal(made, FRAMES[:, :32, :32][:, :, ::-1])


def test_flip():
    always = back(raw(train=True, flip=1.0)(FRAMES[:, :32, :32], np.random.default_rng(0)))
    np.testing.assert_array_equal(always, FRAMES[:, :32, :32][:, :, ::-1])
    test = back(raw(flip=1.0)(FRAMES[:, :32, :32]))
    np.testing.assert_array_equal(test, FRAMES[:, :32, :32])
    rng = np.random.default_rng(0)
    half = [
        torch.equal(raw(train=True, flip=0.5)(FRAMES[:, :32, :32], rng), raw()(FRAMES[:, :32, :32])) for _ in range(200)
    ]
    assert 0.35 < np.mean(half) < 0.65


def test_jitter_is_one_for_all_frames_and_stays_in_range():
    pixels = planes(np.repeat(FRAMES[:1], 3, axis=0).astype(np.float32) / 255).expand(100, -1, -1, -1, -1)
    colours = np.stack([draw_colours(np.random.default_rng(seed)) for seed in range(100)])
    made = change_colours(pixels, torch.from_numpy(colours)).numpy()
    assert made.dtype == np.float32 and made.shape == pixels.shape
    assert made.min() >= 0 and made.max() <= 1
    np.testing.assert_array_equal(made[:, 0], made[:, 2])
    grey = (np.ptp(made, axis=2) < 1e-5).all((1, 2, 3)).sum()
    assert 15 < grey < 45  # 30 of 100 are turned grey


def test_colour_changes_against_their_definitions():
    clip = FRAMES.astype(np.float32) / 255
    pixels = planes(clip)

    def by(change, amount):
        return change(pixels, torch.full((1, 1, 1, 1, 1), amount))[0].movedim(-3, -1).numpy()

    np.testing.assert_allclose(by(module._brightness, 0.5), clip / 2, atol=1e-6)
    for change in (module._contrast, module._saturation):
        np.testing.assert_allclose(by(change, 1), clip, atol=1e-6)
    grey = cv2.cvtColor(clip[0], cv2.COLOR_RGB2GRAY)
    np.testing.assert_allclose(by(module._saturation, 0)[0], np.repeat(grey[..., None], 3, -1), atol=1e-3)
    np.testing.assert_allclose(by(module._contrast, 0)[0], grey.mean(), atol=1e-3)
    red = torch.zeros(1, 1, 3, 2, 2)
    red[:, :, 0] = 1
    for turn, wanted in ((1 / 3, [0, 1, 0]), (-1 / 3, [0, 0, 1]), (1 / 6, [1, 1, 0]), (0.5, [0, 1, 1])):
        made = module._hue(red, torch.full((1, 1, 1, 1, 1), turn))
        np.testing.assert_allclose(made[0, 0, :, 0, 0], wanted, atol=1e-5)
    np.testing.assert_allclose(by(module._hue, 0), clip, atol=1e-6)


def test_only_the_generator_matters():
    transform = ClipTransform(32, train=True, flip=0.5)
    first = transform(FRAMES, np.random.default_rng(5))
    np.random.seed(1)  # noqa: NPY002
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    assert torch.equal(transform(FRAMES, np.random.default_rng(5)), first)
    np.testing.assert_array_equal(np.random.get_state()[1], state)  # noqa: NPY002
    assert not torch.equal(transform(FRAMES, np.random.default_rng(6)), first)


def test_wrong_use():
    with pytest.raises(UserError, match="40x50 pixels and the network takes 48x48"):
        ClipTransform(48)(FRAMES)
    with pytest.raises(ValueError, match="generator"):
        ClipTransform(32, train=True)(FRAMES)
