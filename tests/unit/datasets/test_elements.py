"""Which frames the elements show, and the perturbations of these."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from pipeline.datasets.elements import ElementSampler, element_slots, parse_elements
from pipeline.errors import UserError
from pipeline.models.semi.perturb import (
    PERTURBATIONS,
    draw_orders,
    drop_channels,
    frame_order,
    perturb,
    warp_order,
)

torch.set_num_threads(1)
COMBINATIONS = ("2-2-4", "2-4", "2-2-2-4", "2-2-6", "2-2-8")


def _rows(padded: np.ndarray) -> list[list[int]]:
    return [[int(value) for value in row if value >= 0] for row in padded]


@pytest.mark.parametrize("elements", COMBINATIONS)
def test_slots_and_their_bounds_match_the_released_ones(golden, elements):
    arrays, sampler = golden("sefar_units"), ElementSampler(elements)
    assert [slots.tolist() for slots in sampler.slots] == _rows(arrays[f"slots/{elements}/slots_pad-1"])
    lengths = sum(sampler.lengths) + 3, 53, 100
    for n in lengths:
        key = f"slots/{elements}/len{n}"
        edges = sampler.edges(n)
        bounds = [(edges[slot], edges[slot + 1] - 1) for slots in sampler.slots for slot in slots]
        np.testing.assert_array_equal(bounds, arrays[f"{key}_randint_bounds_inclusive_in_order"])
        drawer = random.Random(5)  # the released draws, one an element and slot
        drawn = [[drawer.randint(int(edges[s]), int(edges[s + 1]) - 1) for s in slots] for slots in sampler.slots]
        assert drawn == _rows(arrays[f"{key}_python_random_seed5_pad-1"])


@pytest.mark.parametrize("elements", [*COMBINATIONS, "8", "3-5", "4-2-1-7", "1"])
def test_released_slots_are_all_used_once(elements):
    lengths = parse_elements(elements)
    slots = element_slots(lengths)
    assert tuple(map(len, slots)) == lengths
    assert sorted(np.concatenate(slots)) == list(range(sum(lengths)))
    assert all((np.diff(part) > 0).all() for part in slots)


def test_steps_of_the_paper():
    assert [s.tolist() for s in element_slots((2, 2, 4), "step")] == [[0, 4], [1, 5], [0, 2, 4, 6]]
    assert [s.tolist() for s in element_slots((2, 2, 6), "step")] == [[0, 5], [1, 6], [0, 1, 2, 3, 4, 5]]
    for lengths in ((2,) * 9 + (4,), (8,), (3, 5)):
        assert all(0 <= part.min() and part.max() < sum(lengths) for part in element_slots(lengths, "step"))


def test_sampling_stays_in_its_slots_and_is_seeded():
    sampler = ElementSampler("2-2-4")
    edges = sampler.edges(53)
    seen = {tuple(np.concatenate(sampler.sample(53, np.random.default_rng(seed)))) for seed in range(20)}
    assert len(seen) == 20
    for frames in seen:
        slots = np.concatenate(sampler.slots)
        assert (edges[slots] <= frames).all() and (frames < edges[slots + 1]).all()
    again = [sampler.sample(53, np.random.default_rng(7)) for _ in range(2)]
    assert all((a == b).all() for a, b in zip(*again, strict=True))
    assert [part.tolist() for part in sampler.sample(8, np.random.default_rng(0))] == [[3, 7], [1, 5], [0, 2, 4, 6]]


def test_centres_at_test():
    assert [part.tolist() for part in ElementSampler("2-4").sample(30)] == [[7, 22], [2, 12, 17, 27]]


def test_shared_slots_share_their_frame():
    first, _, context = ElementSampler("2-2-4", "step").sample(80, np.random.default_rng(0))
    assert first[0] == context[0]


@pytest.mark.parametrize("elements", ["", "2-", "2--4", "0-4", "2-x", "-2-4", "2.5", None, "2 2 4"])
def test_malformed_combinations(elements):
    with pytest.raises(UserError, match="is not a combination"):
        parse_elements(elements)


def test_other_errors():
    assert parse_elements(8) == (8,) and parse_elements("{2-2-4}") == (2, 2, 4)
    with pytest.raises(UserError, match="7 frames is too short for the 8"):
        ElementSampler("2-2-4").sample(7)
    with pytest.raises(UserError, match="did you mean 'spread'"):
        ElementSampler("2-2-4", "spred").sample(20)


# ------------------------------------------------------------------------------------------- perturbations
@pytest.mark.parametrize("keep", [2, 4])
def test_warping_matches_svformer(golden, keep):
    arrays = golden("svformer")
    for kept, gaps, frames in zip(
        arrays[f"warp/keep{keep}_kept_sorted"],
        arrays[f"warp/keep{keep}_gap_lo_hi_switch_pad-1"],
        arrays[f"warp/keep{keep}_frame_index"],
        strict=True,
    ):
        np.testing.assert_array_equal(warp_order(8, kept, [gap[2] for gap in gaps if gap[0] >= 0]), frames)


def test_warping_keeps_two_four_or_all_of_eight_frames():
    rng = np.random.default_rng(0)
    orders = [frame_order("warping", 8, rng) for _ in range(600)]
    whole = sum(list(order) == list(range(8)) for order in orders)
    assert 150 < whole < 250
    assert all((np.diff(order) >= 0).all() and len(set(order)) in (1, 2, 3, 4, 8) for order in orders)


ORDERS = {
    "spatial": ([0, 1, 2, 3],), "slow": ([0, 0, 1, 1],), "moderate": ([3, 2, 1, 0],), "channels": ([0, 1, 2, 3],),
    "t_half": ([0, 1, 0, 1], [2, 3, 2, 3]),
}  # fmt: skip


@pytest.mark.parametrize("kind", PERTURBATIONS)
def test_every_perturbation(kind):
    rng = np.random.default_rng(1)
    orders = [frame_order(kind, 4, rng) for _ in range(50)]
    assert all(order.shape == (4,) and 0 <= order.min() and order.max() < 4 for order in orders)
    if kind in ORDERS:
        assert {tuple(order) for order in orders} == {tuple(order) for order in ORDERS[kind]}
    if kind in ("local_shuffle", "all_shuffle"):
        assert len({tuple(order) for order in orders}) > 10 and all(sorted(o) == [0, 1, 2, 3] for o in orders)
    if kind == "t_drop":
        assert len({tuple(order) for order in orders}) == 8
        assert all(order[0] == 0 and (order[1:] >= order[:-1]).all() for order in orders)
    assert frame_order(kind, 1, rng).tolist() == [0]
    assert set(frame_order(kind, 2, rng)) <= {0, 1}


def test_halves_of_an_odd_number_of_frames():
    seen = {tuple(frame_order("t_half", 5, np.random.default_rng(seed))) for seed in range(9)}
    assert seen == {(0, 1, 2, 0, 1), (3, 4, 2, 3, 4)}


@pytest.mark.parametrize(("kind", "context"), [("moderate", False), ("all_reverse", True), ("all_shuffle", True)])
def test_the_context_keeps_its_order_but_for_the_whole_ones(kind, context):
    rng = np.random.default_rng(0)
    fine, last = draw_orders(kind, (2, 9), 20, rng)
    assert (fine != [0, 1]).any()
    assert (last != np.arange(9)).any() == context
    (alone,) = draw_orders(kind, (8,), 20, rng)
    assert (alone != np.arange(8)).any()


def test_time_and_colours_of_clips():
    x = torch.randn(2, 2, 3, 4, 4), torch.randn(2, 4, 3, 4, 4)
    orders = [torch.tensor([[1, 0], [0, 1]]), torch.arange(4).expand(2, -1)]
    fine, context = perturb(x, orders, "moderate")
    torch.testing.assert_close(fine[0], x[0][0].flip(0))
    torch.testing.assert_close(fine[1], x[0][1])
    torch.testing.assert_close(context, x[1])
    fine, context = perturb(x, [torch.arange(2).expand(2, -1), orders[1]], "channels")
    torch.testing.assert_close(fine, x[0].flip(2))
    torch.testing.assert_close(context, x[1])
    kept = torch.tensor([[True, False, True], [True, True, True]])
    dropped = drop_channels(x[0], kept, 0.2)
    assert not dropped[0, :, 1].any()
    torch.testing.assert_close(dropped[1], x[0][1] * 1.25)


def test_a_misspelt_perturbation():
    with pytest.raises(UserError, match="did you mean 'moderate'"):
        draw_orders("moderat", (2, 4), 1, np.random.default_rng(0))
