"""RandAugment of clips."""

import numpy as np

from pipeline.datasets.randaugment import GREY, OPERATIONS, rand_augment
from pipeline.tasks.semi.items import ElementView

CLIP = np.random.default_rng(0).integers(0, 256, (3, 40, 48, 3), dtype=np.uint8)


def test_every_operation_keeps_the_form_and_most_change_the_picture():
    from PIL import Image

    image = Image.fromarray(CLIP[0])
    changed = set()
    for name, (low, high, operation) in OPERATIONS.items():
        for value in (low, high):
            out = np.asarray(operation(image, value))
            assert out.shape == CLIP[0].shape and out.dtype == np.uint8, name
            changed |= {name} if (out != CLIP[0]).any() else set()
    assert {"rotate", "shear_x", "translate_y", "posterize", "solarize", "equalize", "colour"} <= changed
    assert "identity" not in changed and len(OPERATIONS) == 14


def test_a_clip_is_changed_alike_in_all_frames_and_by_the_generator_alone():
    still = np.broadcast_to(CLIP[:1], CLIP.shape)
    out = rand_augment(still, 2, np.random.default_rng(3))
    assert (out == out[:1]).all() and (out != still).any()
    assert (rand_augment(still, 2, np.random.default_rng(3)) == out).all()
    assert (rand_augment(still, 2, np.random.default_rng(4)) != out).any()
    assert rand_augment(CLIP, 0, np.random.default_rng(0)) is CLIP
    grey = sum((rand_augment(CLIP, 1, np.random.default_rng(i)) == GREY).all(-1).mean() for i in range(40)) / 40
    assert 0.03 < grey < 0.2  # the square


def test_the_strong_view_of_a_recipe_has_it():
    plain, strong = ElementView(32), ElementView(32, randaugment=2)
    assert (plain(CLIP, np.random.default_rng(1)) != strong(CLIP, np.random.default_rng(1))).any()
    assert (plain(CLIP) == strong(CLIP)).all()  # never in a test
