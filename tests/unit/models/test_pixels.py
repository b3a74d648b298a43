"""Batches as the loader gives them, on their way to a network."""

import numpy as np
import torch

from benchmarks.pixels import normalised
from pipeline.datasets.transforms import change_colours, draw_colours
from pipeline.models.pixels import Pixels

MEAN, STD = (0.5, 0.25, 0.125), (0.25, 0.5, 0.2)


def _frames(*shape):
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (*shape, 6, 5, 3), np.uint8))


def test_frames_are_normalised_and_nothing_else_is_touched():
    made = Pixels(MEAN, STD)
    frames, tokens = _frames(1, 4, 2), torch.randn(1, 4, 2, 7, 8)
    batch = {
        "support": frames, "query": tokens, "labels": torch.tensor([[3, 1]]), "elements": [frames[0], frames[0, :, :1]],
    }  # fmt: skip
    got = made(batch, True)
    wanted = normalised(frames.numpy().reshape(-1, 6, 5, 3).astype(np.float32) / 255, MEAN, STD)
    np.testing.assert_array_equal(got["support"].flatten(0, 2).numpy(), wanted)
    assert got["support"].shape == (1, 4, 2, 3, 6, 5) and got["support"].is_contiguous()
    assert torch.equal(got["query"], tokens) and torch.equal(got["labels"], batch["labels"])
    assert [tuple(part.shape) for part in got["elements"]] == [(4, 2, 3, 6, 5), (4, 1, 3, 6, 5)]
    assert torch.equal(got["elements"][0], got["support"][0]) and frames.dtype == torch.uint8


def test_colours_are_of_the_clips_beside_which_they_stand():
    made = Pixels((0.0,) * 3, (1.0,) * 3)
    frames = _frames(2, 3, 4)
    colours = torch.stack([torch.from_numpy(draw_colours(np.random.default_rng(i))) for i in range(6)]).unflatten(
        0, (2, 3)
    )
    got = made({"query": frames, "query_colours": colours, "support": frames}, True)
    assert set(got) == {"query", "support"} and not torch.equal(got["query"], got["support"])
    for episode in range(2):
        for clip in range(3):
            one = change_colours(got["support"][episode, clip][None], colours[episode, clip][None])[0]
            torch.testing.assert_close(got["query"][episode, clip], one)


def test_statistics_are_no_part_of_a_checkpoint():
    assert not Pixels(MEAN, STD).state_dict() and Pixels(MEAN, STD).device.type == "cpu"
