"""The identity of runs and cells: equal settings, equal id; everything that matters is in it, nothing else is."""

from __future__ import annotations

import json

import pytest
from pydantic import ValidationError
from tiny import bare_plan

from pipeline.experiment import Asset, Cell, Measure, Run, canonical, digest, slug
from pipeline.plan import Plan

RUN = dict(
    method="lga", model={"type": "LGA", "atoms": 3, "lam": 0.5}, train={"steps": 10, "milestones": [4, 8]},
    dataset="hmdb51-0123abcd", frames={"number": 8, "store": {"size": [72, 72]}}, backbone="clip_nano-0123abcd",
    text="aa", scale="demo", seed=0, selection="val", recipe=1,
)  # fmt: skip


def _run(**changes) -> Run:
    return Run(**(RUN | changes))


# ---------------------------------------------------------------------------------------- canonical JSON


def test_canonical_json_of_equal_things_is_equal():
    one = {"b": [1.0, 2, {"y": 0.5, "x": True}], "a": {"k": None, "j": "é"}}
    two = {"a": {"j": "é", "k": None}, "b": (1, 2.0, {"x": True, "y": 0.5})}
    assert canonical(one) == canonical(two) == '{"a":{"j":"é","k":null},"b":[1,2,{"x":true,"y":0.5}]}'
    assert digest(one) == digest(two) and len(digest(one)) == 8 and digest(one, 12).startswith(digest(one))
    assert canonical(_run()) == canonical(json.loads(canonical(_run())))


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ({"a": 1}, {"a": 2}),
        ({"a": 0.1}, {"a": 0.2}),
        ({"a": "1"}, {"a": 1}),
        ({"a": True}, {"a": 1}),
        ({"a": None}, {}),
        ({"a": [1, 2]}, {"a": [2, 1]}),
        ({"a": {"b": 1}}, {"a": {"c": 1}}),
        ({"a": 1e-5}, {"a": 1e-6}),
    ],
)
def test_canonical_json_of_other_things_differs(one, two):
    assert canonical(one) != canonical(two) and digest(one) != digest(two)


def test_a_number_that_is_none_has_no_identity():
    with pytest.raises(ValueError, match="JSON"):
        canonical({"a": float("nan")})


def test_identity_does_not_depend_on_the_process():
    """A fixed value: a change of the canonical form would orphan every result that exists."""
    assert digest({"a": 1.0, "b": [0.5, "x"]}) == "d9dda6d0"
    assert slug("Kinetics-100 (CMN)") == "kinetics_100_cmn"


# ------------------------------------------------------------------------------------------------- runs


def test_equal_runs_have_one_id():
    again = _run(
        train={"milestones": [4.0, 8], "steps": 10.0}, frames={"store": {"size": (72, 72)}, "number": 8.0}
    )  # fmt: skip
    assert again.id == _run().id == Run.model_validate(json.loads(canonical(_run()))).id
    assert _run().id.startswith("lga-hmdb51-s0-")


CHANGES = {
    "method": "clip_fsar", "model": {"type": "LGA", "atoms": 2, "lam": 0.5},
    "train": {"steps": 11, "milestones": [4, 8]},
    "dataset": "hmdb51-0123abce", "frames": {"number": 4, "store": {"size": [72, 72]}}, "backbone": "clip_nano-0",
    "text": "ab", "scale": "quick", "seed": 1, "selection": "last", "recipe": 2,
}  # fmt: skip


@pytest.mark.parametrize("key", Run.model_fields)
def test_every_field_of_a_run_reaches_its_id(key):
    assert _run(**{key: CHANGES[key]}).id != _run().id


def test_runs_are_strict_and_cannot_be_changed():
    with pytest.raises(ValidationError, match="alpha"):
        _run(alpha=0.5)
    with pytest.raises(ValidationError, match="selection"):
        _run(selection="best")
    with pytest.raises(ValidationError, match="frozen"):
        _run().seed = 3


# ------------------------------------------------------------------- knobs, through the plan as users set them


@pytest.fixture(scope="module")
def plan(repo):
    return Plan.read(repo / "config")


def _cell(plan, seed=0, method="lga", dataset="hmdb51", **delta) -> Cell:
    return plan.cell({"method": method, "dataset": dataset, **delta}, seed, "the test")


OTHER = {"optimizer": "adamw", "crop": "frame", "flip": 0.25}  # keys whose values are few


def _other(value):
    if isinstance(value, bool):
        return not value
    if isinstance(value, list):
        return [*value, 1000]
    return value * 2 + 1 if isinstance(value, int | float) else f"{value}_"


@pytest.mark.parametrize("method", ["lga", "clip_fsar", "otam"])
@pytest.mark.parametrize("part", ["train", "model"])
def test_every_training_and_model_knob_changes_the_run(plan, method, part):
    default = _cell(plan, method=method)
    ids = {default.run.id}
    knobs = getattr(default.run, part)
    for key, value in knobs.items():
        changed = _cell(plan, method=method, **{part: {key: OTHER.get(key, _other(value))}})
        assert changed.run.id not in ids, key
        ids.add(changed.run.id)
    assert len(ids) == 1 + len(knobs) > 2


OTHER_MEASURE = {
    "metric": "time_ms", "way": 4, "shot": 5, "query": 3, "episodes": 77, "val_episodes": 78, "episode_seed": 9,
    "score": "vt", "alpha": 0.4, "alpha_grid": [0.0, 1.0], "matcher": "otam", "part": "text",
    "one_shot": {"feature": "hidden"},
}  # fmt: skip


@pytest.mark.parametrize("key", Measure.model_fields)
def test_no_measurement_knob_reaches_the_run(plan, key):
    on = {"method": "infogcn", "dataset": "ntu120_oneshot"} if key == "one_shot" else {}  # which only skeletons have
    default, changed = _cell(plan, **on), _cell(plan, measure={key: OTHER_MEASURE[key]}, **on)
    assert changed.run.id == default.run.id
    assert (changed.id != default.id) == (key != "part")  # which is of counts, not of accuracies


def test_overlays_reach_what_they_concern(plan):
    def ids(overlay, method="lga"):
        cell = _cell(bare_plan(overlay), method=method)
        return cell.run.id, cell.id

    run, cell = _cell(plan).run.id, _cell(plan).id
    assert ids({}) == (run, cell)
    for overlay in ({"alpha_grid": [0.1]}, {"measure": {"episodes": 9}}, {"measure": {"shot": 5}}):
        assert ids(overlay)[0] == run and ids(overlay)[1] != cell, overlay
    for overlay in (
        {"train": {"steps": 9}}, {"model": {"atoms": 2}}, {"frames": {"number": 4}}, {"scale": "quick"},
        {"selection": "last"}, {"datasets": {"synthetic_scene": {"seed": 5}}},
        {"backbones": {"clip_nano": {"steps": 9}}}, {"methods": {"lga": {"recipe": 2}}},
    ):  # fmt: skip
        assert ids(overlay)[0] != run, overlay
    for overlay in (
        {"cluster": {"slots": 1}}, {"cluster": {"workers": 2}}, {"resources": {"train": {"gpu": 1}}}, {"seeds": [0, 1]},
        {"datasets": {"synthetic_scene": {"workers": 4, "note": "x"}}}, {"backbones": {"clip_nano": {"path": "/x"}}},
        {"methods": {"otam": {"recipe": 2}}},
    ):  # fmt: skip
        assert ids(overlay) == (run, cell), overlay
    assert ids({"methods": {"otam": {"recipe": 2}}}, "otam")[0] != _cell(plan, method="otam").run.id


def test_seed_selection_and_scale(plan):
    assert _cell(plan, seed=1).run.id != _cell(plan).run.id
    assert _cell(plan, selection="test").run.id != _cell(plan, selection="last").run.id != _cell(plan).run.id
    frozen = [_cell(plan, seed=seed, method="clip_freeze") for seed in (0, 1)]
    assert frozen[0].id == frozen[1].id  # nothing is trained, so nothing is seeded or selected
    assert frozen[0].run.selection == "last"
    quick = bare_plan({"scale": "quick"})
    assert _cell(quick).run.scale == "quick" and _cell(quick).run.id != _cell(plan).run.id


# ------------------------------------------------------------------------------------------------- cells


@pytest.mark.parametrize("score", ["vv", "vt"])
def test_alpha_is_of_no_account_for_a_single_score(score):
    ids = {
        Cell(run=_run(), measure=Measure(score=score, alpha=alpha, alpha_grid=grid, val_episodes=n)).id
        for alpha in ("val", 0.0, 0.7) for grid in ((), (0.1, 0.2)) for n in (1, 1000)
    }  # fmt: skip
    assert len(ids) == 1


def test_the_grid_matters_only_where_it_is_searched():
    def cell(**measure):
        return Cell(run=_run(), measure=Measure(**measure)).id

    assert cell(alpha="val", alpha_grid=(0.1,)) != cell(alpha="val", alpha_grid=(0.1, 0.2))
    assert cell(alpha="val", val_episodes=10) != cell(alpha="val", val_episodes=11)
    assert cell(alpha=0.3, alpha_grid=(0.1,), val_episodes=10) == cell(alpha=0.3, alpha_grid=(0.2,))
    assert cell(alpha=0.3) != cell(alpha=0.4) != cell(alpha="val")
    assert cell(metric="time_ms", score="vv", alpha=0.3) == cell(metric="time_ms", alpha_grid=(0.5,))
    assert len({cell(score=score) for score in ("vv", "vt", "both")}) == 3


def test_another_grid_touches_the_searched_cells_only(repo, plan):
    other = Plan.read(repo / "config", {"alpha_grid": [0.0, 0.5, 1.0]})
    assert other.runs.keys() == plan.runs.keys()
    for one, two in zip(plan.entries, other.entries, strict=True):
        for a, b in zip(one.cells, two.cells, strict=True):
            searched = a.measure.alpha == "val"
            assert (a.id != b.id) == searched
    searched = [cell for cell in plan.cells.values() if cell.measure.alpha == "val"]
    assert 0 < len(searched) < len(plan.cells)


def test_settling_is_idempotent_and_keeps_the_task():
    for measure in (Measure(), Measure(score="vv", shot=5), Measure(metric="time_ms"), Measure(alpha=0.2)):
        settled = measure.settled()
        assert settled.settled() == settled
        untested = {"episodes": 0} if measure.metric == "time_ms" else {}  # twenty tasks, whatever a test has
        assert settled.scoring == measure.scoring | untested
    assert Measure(score="vv").settled().alpha == 1.0 and Measure(score="vt").settled().alpha == 0.0


def test_options_of_an_asset_are_no_part_of_its_key():
    spec = {"kind": "folder", "seed": 1}
    one, two = Asset(name="My Set", spec=spec, options={"root": "/a"}), Asset(name="My Set", spec=spec)
    assert one.key == two.key and one.key.startswith("my_set-")
    assert Asset(name="My Set", spec=spec | {"seed": 2}).key != one.key
