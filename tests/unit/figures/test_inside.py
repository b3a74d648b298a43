"""Figures of what models see, from the real outputs of tiny models; their weights are untrained."""

from __future__ import annotations

import io
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from made_up import fill, look
from skeleton_set import SMALL, make_skeleton_set
from test_figures import texts

from pipeline.datasets.skeletons.graph import get_graph
from pipeline.errors import UserError
from pipeline.figures.draw import draw, write_figure
from pipeline.figures.inside import KINDS, laid_over
from pipeline.figures.style import FORMATS
from pipeline.inspection import inspect_run, read_look, write_look
from pipeline.models.skeleton.crossglg import CrossGLG
from pipeline.plan import Plan
from pipeline.sheets import INSIDE
from pipeline.tasks.few_shot import look as few_shot
from pipeline.tasks.few_shot.look import class_token_attention, tsne
from pipeline.tasks.kinds import task_of
from pipeline.tasks.one_shot import look as skeletons
from pipeline.workspace import Workspace

PICTURES = {
    ("lga", "fig4"): 4, ("lga", "figphases"): 6, ("task_adapter", "fig11"): 5, ("crossglg", "fig4"): 3,
    ("crossglg", "fig5"): 5, ("crossglg", "fig6"): 9, ("crossglg", "figA1"): 5,
}  # fmt: skip
"""Number of panels of each, colour bars among them."""


@pytest.fixture(scope="module")
def seen(world, tmp_path_factory):
    """Everything of the tiny world's plan, with inspections by real models where it has their data."""
    folder = tmp_path_factory.mktemp("seen")
    fill(world.plan, folder)
    for run_id in world.plan.inspected:
        run = world.plan.runs[run_id]
        if run.backbone:
            task = task_of(run, world.ws)
            write_look(run, Workspace(folder), few_shot.look(task, task.build().eval()))
    return folder


@pytest.fixture(scope="module")
def few(world, seen):
    """By method, what is seen in its first run."""
    runs = [world.plan.runs[name] for name in world.plan.inspected]
    return {run.method: read_look(run, seen, ()) for run in reversed(runs) if run.backbone}


@pytest.fixture(scope="module")
def joints(tmp_path_factory):
    """A CrossGLG with random weights, and what is seen in it."""
    made = make_skeleton_set(tmp_path_factory.mktemp("skeletons"))
    graph = made.definition.graph
    torch.manual_seed(0)
    words = CrossGLG.read_texts(
        made.corpus, made.split.base_classes, get_graph(graph), tmp_path_factory.mktemp("cache")
    )
    model = CrossGLG(graph, 1, len(made.split.base_classes), words, settings=SMALL["infogcn"], space=8, heads=2)
    task = SimpleNamespace(store=made.store, definition=made.definition, split=lambda name: made.split)
    return model.eval(), task, skeletons.look(task, model.eval())


def test_every_kind_is_drawn_somewhere(plan):
    kinds = {plan.papers[paper].tables[number].figure.kind for paper, number in PICTURES}
    assert kinds == set(KINDS) == set(INSIDE)


@pytest.mark.parametrize("place", PICTURES)
def test_pictures_have_labels_and_say_what_is_shown(world, seen, place):
    sheet = world.plan.papers[place[0]].tables[place[1]]
    figure = draw(world.plan, *place, seen)
    assert len(figure.axes) == PICTURES[place]
    written = texts(figure)
    assert {sheet.figure.x, sheet.figure.y} - {""} <= written
    everything = " ".join(written)
    assert "Scale demo" in everything and "in place of" in everything
    assert KINDS[sheet.figure.kind].caption.split()[-1] in everything
    if len(sheet.rows) > 1:
        assert all(row.name in everything for row in sheet.rows)
    kinds = {path.suffix[1:]: path.read_bytes() for path in write_figure(world.plan, *place, seen)}
    assert set(kinds) == set(FORMATS) and kinds["png"].startswith(b"\x89PNG")
    photographs = place[1] in ("fig11", "figphases")
    assert (b"<image" in kinds["svg"]) == photographs


@pytest.mark.parametrize("place", PICTURES)
def test_without_its_inspection_a_picture_is_an_error(world, seen, place):
    path = Workspace(seen).inspection(world.plan.table_inspections(*place)[-1])
    kept = path.read_bytes()
    for content, message in ((None, "nobody has looked into this run yet; make it with"), (b"PK", "damaged"),
                             (_of_another_run(), "it is of the run other")):  # fmt: skip
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(UserError, match=message):
            draw(world.plan, *place, seen)
    path.write_bytes(kept)


def _of_another_run() -> bytes:
    stream = io.BytesIO()
    np.savez(stream, run=np.array("other"))
    return stream.getvalue()


def test_a_method_that_lacks_what_is_shown_is_named(world, seen):
    run = world.plan.runs[world.plan.table_inspections("lga", "fig4")[1]]
    assert run.method == "clip_freeze"
    with pytest.raises(UserError, match="the method clip_freeze has no stage_scores to show; leave its row out"):
        read_look(run, seen, ["points", "stage_scores"])


def test_a_run_is_inspected_whole_or_not_at_all(world, tmp_path):
    ws = world.elsewhere(tmp_path / "mine")
    path = inspect_run(world.run(method="clip_freeze"), ws)
    assert path == ws.inspection(world.run(method="clip_freeze").id) and [*path.parent.iterdir()] == [path]
    assert set(read_look(world.run(method="clip_freeze"), ws.root, KINDS["tsne"].needs)) >= {"points", "attention"}
    before = path.read_bytes()
    assert inspect_run(world.run(method="clip_freeze"), ws).read_bytes() == before
    with pytest.raises(UserError, match="is missing: train it with"):
        inspect_run(world.run(method="lga"), ws)
    assert [*path.parent.iterdir()] == [path]


# What is seen


def test_the_clips_of_a_figure_are_the_first_of_the_test(world, few):
    classes = world.store.classes("test")[: few_shot.CLASSES]
    for name, found in few.items():
        assert found["classes"].tolist() == classes, name
        assert np.bincount(found["labels"]).tolist() == [6] * len(classes)
        assert found["points"].shape == (len(found["labels"]), 2) and np.isfinite(found["points"]).all()
        assert found["frames"].shape == (3, 8, 32, 32, 3) and found["frames"].std() > 10
        assert (np.diff(found["seconds"]) >= 0).all()


def test_frames_that_are_shown_are_those_that_are_seen(world, few):
    task = task_of(world.run(method="lga"), world.ws)
    clip = few_shot.shown_clips(task.store, [few["lga"]["classes"][0]])[0]
    stored = task.store.read(clip, range(task.store.n_frames(clip)))[:, 2:-2, 2:-2]
    for shown in few["lga"]["frames"][0]:
        assert min(np.abs(shown.astype(int) - frame).max() for frame in stored) <= 1


def test_phases_are_those_that_the_model_matches(world, few):
    task = task_of(world.run(method="lga"), world.ws)
    model = task.build().eval()
    first = few_shot.shown_clips(task.store, [few["lga"]["classes"][1]])[:1]
    encoded = model.encode(few_shot._pixels(task, model, first))
    mask = model.phases(encoded)[0]  # (L, T), neighbours overlap
    phases = few["lga"]["phases"][1]
    assert phases[0] == 1 and phases[-1] == 3 and set(np.diff(phases)) <= {0, 1}
    assert all(mask[phase - 1, place] for place, phase in enumerate(phases))
    assert few["lga"]["atoms"].shape == (3, 3)


def test_attention_is_what_the_last_layer_gives(world):
    task = task_of(world.run(method="clip_freeze"), world.ws)
    model = task.build().eval()
    clips = few_shot._pixels(task, model, [0])
    vision = model.backbone.clip.vision_model
    with torch.no_grad(), class_token_attention(model) as found:
        model.encode(clips)
        model.backbone.clip.set_attn_implementation("eager")
        wanted = vision(pixel_values=clips[0], output_attentions=True).attentions
    assert found[0].shape == (8, 16) and torch.allclose(found[0].sum(-1), torch.ones(8), atol=1e-5)
    patches = wanted[-1].mean(1)[:, 0, 1:]
    assert torch.allclose(found[0], patches / patches.sum(-1, keepdim=True), atol=1e-4)
    assert not vision.encoder.layers[-1].self_attn._forward_pre_hooks


def test_attention_of_adapted_models_is_that_of_frames(few):
    for method in ("task_adapter", "task_adapter_pp"):
        assert few[method]["attention"].shape == (3, 8, 4, 4)
        assert few[method]["attention"].sum((2, 3)) == pytest.approx(1, abs=1e-4)


def test_stage_scores_are_parts_of_the_text_score(world, few):
    task = task_of(world.run(method="task_adapter_pp"), world.ws)
    model = task.build().eval()
    queries = torch.randn(2, 3, 8, model.backbone.dim)
    words = torch.randn(2, 5, 3, model.backbone.dim)
    scores = model.stage_scores(queries, words)
    assert scores.shape == (2, 3, 5, 3)
    assert torch.allclose(
        scores.mean(-1), model.match(queries, torch.randn(2, 5, 8, model.backbone.dim), words)["vt"], atol=1e-5
    )
    assert few["task_adapter_pp"]["stage_scores"].shape == (3, 5, 3) and few["task_adapter"]["stage_scores"].shape == (
        3,
        5,
        1,
    )


def test_classes_that_differ_in_the_order_of_their_frames_lie_apart():
    generator = torch.Generator().manual_seed(0)
    forward = torch.eye(4)[None] + 0.05 * torch.randn(20, 4, 4, generator=generator)
    points = tsne(torch.cat((forward, forward.flip(1))))
    centres = points[:20].mean(0), points[20:].mean(0)
    spread = max(
        np.linalg.norm(points[:20] - centres[0], axis=1).max(), np.linalg.norm(points[20:] - centres[1], axis=1).max()
    )
    assert np.linalg.norm(centres[0] - centres[1]) > spread


def test_colours_are_strongest_where_the_attention_is():
    maps = np.zeros((1, 4, 4))
    maps[0, 0, 3] = 1
    made = laid_over(np.full((1, 16, 16, 3), 128, np.uint8), maps)
    assert made.min() >= 0 and made.max() <= 1
    coloured = np.ptp(made[0], axis=-1)
    assert coloured[:3, 13:].min() > 0.2 and coloured[8:, :8].max() < 0.01


# Joints


def test_joints_are_looked_at_in_base_and_novel_classes(joints):
    model, _, found = joints
    names, blocks = len(model.encoder.graph), model.encoder.n_blocks
    assert found["base_attention"].shape == (5, blocks, names) and found["novel_attention"].shape == (3, blocks, names)
    assert found["base_attention"].mean(-1) == pytest.approx(1, abs=1e-4)  # 1: an equal share
    assert found["importance"].sum(1) == pytest.approx(1, abs=1e-4) and found["target"].sum(1) == pytest.approx(1)
    assert found["poses"].shape == (3, names, 2)
    head, ankle = (model.encoder.graph.names.index(name) for name in ("head", "left ankle"))
    assert (found["poses"][:, head, 1] > found["poses"][:, ankle, 1]).all()


def test_importance_is_the_mean_of_the_model_s_weights(joints):
    model, task, found = joints
    clips = skeletons._clips(task, task.split("test").base[task.split("test").base_labels == 2])
    weights = model.joint_importance(clips)
    assert found["importance"][2] == pytest.approx((weights / weights.sum(1, keepdim=True)).mean(0).numpy(), abs=1e-5)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_pictures_of_joints_show_the_model(world, seen, joints, tmp_path):
    found = joints[2]
    for number in ("fig4", "fig5", "fig6"):
        for run in world.plan.table_inspections("crossglg", number):
            write_look(world.plan.runs[run], Workspace(seen), found)
    importance = draw(world.plan, "crossglg", "fig4", seen).axes
    for axis, key in zip(importance[:2], ("target", "importance"), strict=True):
        assert np.allclose(axis.collections[0].get_array(), 100 * found[key])
        assert [label.get_text() for label in axis.get_yticklabels()] == found["base_classes"].tolist()
    panel = np.ma.filled(draw(world.plan, "crossglg", "fig5", seen).axes[0].collections[0].get_array(), np.nan)
    blocks = found["base_attention"].shape[1]
    assert np.allclose(panel[:blocks], found["base_attention"][0]) and np.isnan(panel[blocks]).all()
    (circles,) = draw(world.plan, "crossglg", "fig6", seen).axes[0].collections
    shown = found["novel_attention"][0].mean(0)
    assert np.allclose(circles.get_array(), shown)
    assert (np.argsort(circles.get_sizes()) == np.argsort(shown, kind="stable")).all()


def test_a_model_without_joint_weights_shows_its_attention_alone(joints):
    model, task, _ = joints
    jid, model.jid = model.jid, None
    try:
        assert set(skeletons._seen(task, model, [task.split("test").base[:2]])) == {"attention"}
    finally:
        model.jid = jid


# Curves of alpha


def test_alpha_curves_have_the_chosen_point(plan, results):
    sheet = plan.papers["lga"].tables["figalpha"]
    figure = draw(plan, "lga", "figalpha", results)
    assert len(figure.axes) == len(sheet.columns)
    for axis, column in zip(figure.axes, sheet.columns, strict=True):
        lines = {line.get_label(): line for line in axis.lines}
        assert lines["chosen on validation"].get_xdata() == [0.4, 0.4]
        assert lines["measured"].get_xydata().tolist() == [[0.4, 80]]
        assert len(lines["test classes"].get_xdata()) == 11
        assert axis.get_title() == f"{column.name}: 80.0 %"
    assert {sheet.figure.x, sheet.figure.y, "validation classes"} <= texts(figure)


def test_made_up_arrays_are_named_as_the_real_ones(plan, few, joints):
    for method, real in (("lga", few["lga"]), ("task_adapter_pp", few["task_adapter_pp"]), ("crossglg", joints[2])):
        run = next(plan.runs[name] for name in plan.inspected if plan.runs[name].method == method)
        made = look(run)
        for name in set(real) - {"run", "shown"}:
            assert made[name].ndim == real[name].ndim, (method, name)


def test_a_figure_names_split_class_and_clip(world):
    store = world.store
    classes = store.classes("train")
    label = classes[-1]
    assert few_shot.shown_classes(store, "train", label.upper())[0] == label
    assert few_shot.shown_classes(store)[0] == store.classes("test")[0]
    clips = [i for i, (name, split) in enumerate(zip(store.labels, store.splits, strict=True))
             if (name, split) == (label, "train")]  # fmt: skip
    shown = few_shot.shown_classes(store, "train", label)
    assert few_shot.shown_clips(store, shown, "train")[0] == clips[0]
    assert few_shot.shown_clips(store, shown, "train", store.clips[clips[-1]])[0] == clips[-1]
    with pytest.raises(UserError, match="unknown class 'hopping' in the split train"):
        few_shot.shown_classes(store, "train", "hopping")
    with pytest.raises(UserError, match="unknown clip 'none' in the class"):
        few_shot.shown_clips(store, shown, "train", "none")


def test_what_is_shown_is_planned_and_checked(repo, tmp_path):
    plan = Plan.read(repo / "config", {"scale": "paper"}, "task_adapter", "fig11")
    wanted = {"split": "train", "label": "Pouring [something] into [something]"}
    runs = plan.table_inspections("task_adapter", "fig11")
    assert plan.shown == dict.fromkeys(runs, wanted) and len(runs) == 3
    plan.write_specs(tmp_path / "specs")
    ws, run = Workspace(tmp_path), plan.runs[runs[0]]
    assert ws.read_shown(run.id) == wanted and ws.read_shown("other") == {}
    write_look(run, ws, {"classes": np.array(["a"])}, wanted)
    assert read_look(run, tmp_path, ("classes",), wanted)["classes"] == ["a"]
    with pytest.raises(UserError, match="it is of another clip; delete it"):
        read_look(run, tmp_path, ("classes",))
    assert not Plan.read(repo / "config", None, "task_adapter", "fig11").shown  # the demo's set is another
    other = {"show": {"ssv2_small": {"split": "val"}}}
    sheet = plan.config.entry("tables", "task_adapter", "the test")["tables"]["fig11"]
    twice = {"task_adapter": {"tables": {"fig11b": sheet | {"figure": sheet["figure"] | other}}}}
    with pytest.raises(UserError, match="another figure shows .* another clip"):
        assert Plan.read(repo / "config", {"scale": "paper", "tables": twice}, "task_adapter").shown
