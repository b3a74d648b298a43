import cv2
import numpy as np
import pytest
import torch

from pipeline.datasets import transforms as module
from pipeline.datasets.transforms import CLIP_MEAN, CLIP_STD, ClipTransform, colour_jitter
from pipeline.errors import UserError

FRAMES = np.random.default_rng(0).integers(0, 256, (4, 40, 50, 3), np.uint8)


def raw(**options):
    return ClipTransform(32, mean=(0, 0, 0), std=(1, 1, 1), **options)


def back(tensor):
    return (tensor.numpy() * 255).round().astype(np.uint8).transpose(0, 2, 3, 1)


def test_the_test_transform_is_a_centre_crop():
    made = raw()(FRAMES)
    assert made.shape == (4, 3, 32, 32) and made.dtype == torch.float32 and made.is_contiguous()
    np.testing.assert_array_equal(back(made), FRAMES[:, 4:36, 9:41])


def test_normalisation():
    made = ClipTransform(32)(FRAMES).numpy()
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
    pixels = np.repeat(FRAMES[:1], 3, axis=0).astype(np.float32) / 255
    grey = 0
    for seed in range(100):
        made = colour_jitter(pixels, np.random.default_rng(seed))
        assert made.dtype == np.float32 and made.shape == pixels.shape
        assert made.min() >= 0 and made.max() <= 1
        np.testing.assert_array_equal(made[0], made[2])
        grey += bool((np.ptp(made, axis=-1) < 1e-5).all())
    assert 15 < grey < 45  # 30 of 100 are turned grey


def test_colour_changes_against_their_definitions():
    pixels = FRAMES.astype(np.float32) / 255
    np.testing.assert_allclose(module._brightness(pixels, np.float32(0.5)), pixels / 2, atol=1e-6)
    for change in (module._contrast, module._saturation):
        np.testing.assert_allclose(change(pixels, np.float32(1)), pixels, atol=1e-6)
    grey = cv2.cvtColor(pixels[0], cv2.COLOR_RGB2GRAY)
    none = module._saturation(pixels, np.float32(0))[0]
    np.testing.assert_allclose(none, np.repeat(grey[..., None], 3, -1), atol=1e-3)
    flat = module._contrast(pixels, np.float32(0))
    np.testing.assert_allclose(flat[0], grey.mean(), atol=1e-3)
    red = np.zeros((1, 2, 2, 3), np.float32)
    red[..., 0] = 1
    np.testing.assert_allclose(module._hue(red, np.float32(1 / 3))[0, 0, 0], [0, 1, 0], atol=1e-5)
    np.testing.assert_allclose(module._hue(red, np.float32(-1 / 3))[0, 0, 0], [0, 0, 1], atol=1e-5)
    np.testing.assert_allclose(module._hue(pixels, np.float32(0)), pixels, atol=1e-4)


def test_only_the_generator_matters():
    transform = ClipTransform(32, train=True, flip=0.5, jitter=True)
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


def test_one_of_four_colour_changes_or_all():
    """TEAM: each clip gets exactly one, the same for all its frames."""
    clip = np.repeat(FRAMES[:1], 3, axis=0)
    plain = raw(train=True)(clip, np.random.default_rng(0))
    kinds = set()
    for seed in range(40):
        one = raw(train=True, colour="one")(clip, np.random.default_rng(seed)).numpy()
        assert (one == one[:1]).all() and one.min() >= 0 and one.max() <= 1
        rng = np.random.default_rng(seed)
        rng.integers(0, 9), rng.integers(0, 19)
        amounts = [rng.uniform(*ends) for ends in ((0.5, 1.5), (0.5, 1.5), (0.5, 1.5), (-0.25, 0.25))]
        kind = int(rng.permutation(4)[0])
        change = (module._brightness, module._contrast, module._saturation, module._hue)[kind]
        cut = raw(train=True)(clip, np.random.default_rng(seed)).numpy().transpose(0, 2, 3, 1)
        np.testing.assert_allclose(one.transpose(0, 2, 3, 1), change(cut, np.float32(amounts[kind])), atol=1e-6)
        kinds.add(kind)
    assert kinds == {0, 1, 2, 3}
    every = raw(train=True, colour="all")(clip, np.random.default_rng(0))
    assert not torch.equal(every, raw(train=True, colour="one")(clip, np.random.default_rng(0)))
    assert torch.equal(raw(colour="one")(clip), raw()(clip)) and plain.shape == every.shape
    with pytest.raises(UserError, match="unknown colour 'two'; did you mean 'one'|unknown colour 'two'"):
        raw(colour="two")
