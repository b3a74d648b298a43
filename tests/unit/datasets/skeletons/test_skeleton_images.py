"""Pictures of skeletons against those of released examples, and as training and tests get them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from skeleton_set import make_skeleton_set

from pipeline.datasets.skeletons.definition import Feed
from pipeline.datasets.skeletons.images import ImageDataset, skeleton_image

LAYOUTS = {"axes": "sl_dml", "triples": "skeleton_dml"}


@pytest.fixture(scope="module")
def skeletons(tmp_path_factory):
    return make_skeleton_set(tmp_path_factory.mktemp("pictures"))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", ["a", "b", "two", "c"])
def test_released_pictures(golden, case, layout):
    data = golden("dml_images")
    rows = data[f"in.{case}"].astype(np.float64)  # (J, 3, T), of two persons one below the other
    persons = 2 if case == "two" else 1
    joints = rows.reshape(persons, -1, *rows.shape[1:]).transpose(0, 3, 1, 2)
    picture = skeleton_image(joints, layout)
    np.testing.assert_allclose(picture, data[f"out.{case}.{LAYOUTS[layout]}_f64"], rtol=0, atol=1e-12)
    pixels = (picture * 255).astype(np.uint8)
    np.testing.assert_array_equal(pixels, data[f"out.{case}.{LAYOUTS[layout]}_uint8"])
    small = Image.fromarray(pixels).resize((32, 32), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(np.asarray(small), data[f"out.{case}.{LAYOUTS[layout]}_pil32"])


def test_a_still_clip_is_black():
    assert not skeleton_image(np.ones((1, 4, 5, 3)), "axes").any()


def test_pictures_of_a_store(skeletons):
    made, store = skeletons.definition, skeletons.store

    def pictures(train=False, **feed):
        shown = Feed(kind="image", **{"size": 40, **feed})
        return ImageDataset(store, skeletons.split.base, skeletons.split.base_labels, made.policy, shown, train=train)

    plain = pictures()
    x, label, place = plain[3]
    assert x.shape == (3, 40, 40, 1) and (label, place) == (skeletons.split.base_labels[3], 3)
    assert float(x.min()) >= 0 and float(x.max()) <= 1 and x.std() > 0.05
    joints = store.read(int(skeletons.split.base[3]))[:1]  # a second person is in no frame
    pixels = (skeleton_image(joints.astype(np.float64), "axes") * 255).astype(np.uint8)
    wanted = Image.fromarray(np.ascontiguousarray(pixels)).resize((40, 40), Image.Resampling.BILINEAR)
    assert torch.equal((x[..., 0] * 255).round().byte(), torch.from_numpy(np.array(wanted)).permute(2, 0, 1))
    assert not torch.equal(x, pictures(layout="triples")[3][0])
    assert torch.equal(pictures(train=True)[3][0], x)  # no change in training, unless it is asked for
    turned = pictures(train=True, turn=5.0)
    one, two = turned[0, 3][0], turned[1, 3][0]
    assert not torch.equal(one, two) and torch.equal(one, turned[0, 3][0]) and torch.equal(pictures(turn=5.0)[3][0], x)
