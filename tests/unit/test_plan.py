"""From the repository's tables to runs, cells, files and errors."""

from __future__ import annotations

import json
import shutil

import pytest
import yaml
from tiny import bare_plan

from pipeline.errors import UserError
from pipeline.experiment import canonical, store_key
from pipeline.plan import Plan
from pipeline.workspace import Workspace

SCALES = ("demo", "quick", "paper")
SYNTHETIC = ("scene", "temporal", "skeleton", "semi")


@pytest.fixture(scope="module")
def plans(repo):
    return {scale: Plan.read(repo / "config", {"scale": scale}) for scale in SCALES}


@pytest.fixture
def folder(repo, tmp_path):
    return shutil.copytree(repo / "config", tmp_path / "config")


@pytest.mark.parametrize("scale", SCALES)
def test_everything_that_a_run_needs_is_planned(plans, scale):
    plan = plans[scale]
    assert plan.runs and plan.cells
    used = {run.dataset for run in plan.runs.values()}
    read_by_others = {run.model.get("encoder_run") for run in plan.runs.values()}
    for run in plan.runs.values():
        assert run.scale == scale and run.dataset in plan.datasets
        assert run.backbone in plan.backbones or plan.datasets[run.dataset].spec["kind"] == "skeletons"
        assert store_key(run.frames) in plan.stores
        assert plan.cells_of[run.id] or run.id in read_by_others
        spec = plan.datasets[run.dataset].spec
        validated = spec["kind"] != "semi" and not (spec.get("protocol") and scale == "paper")
        assert (run.selection, run.seed) == (("val", 0) if run.train and validated else ("last", 0))
    for backbone in plan.backbones.values():
        for source, store in zip(backbone.spec.get("sources", []), backbone.spec.get("stores", []), strict=True):
            assert source in plan.datasets and store in plan.stores
            used.add(source)
    used |= {plan.datasets[key].spec["reads"] for key in used if "reads" in plan.datasets[key].spec}
    assert used == set(plan.datasets)
    for key, thing in [*plan.datasets.items(), *plan.backbones.items()]:
        assert key == thing.key
    measured = {cell.run.id for cell in plan.cells.values()}
    assert measured <= set(plan.runs) and set(plan.runs) - measured <= read_by_others
    assert sorted(cell for cells in plan.cells_of.values() for cell in cells) == sorted(plan.cells)
    in_tables = {cell.id for entry in plan.entries for cell in entry.cells}
    assert in_tables == set(plan.cells)


@pytest.mark.parametrize("scale", SCALES)
def test_a_target_scores_what_it_needs_and_nothing_else(plans, scale):
    plan = plans[scale]
    jobs = plan.measured_together.values()
    assert sorted(cell for _, cells in jobs for cell in cells) == sorted(plan.cells)
    assert all(plan.cells[cell].run.id == run for run, cells in jobs for cell in cells)
    for place in plan.tables():
        needed = set(plan.table_cells(*place))
        scored = {(plan.cells[cell].run.id, plan.cells[cell].measure.scored) for cell in needed}
        for run, cells in jobs:
            if not needed.isdisjoint(cells):
                assert {(run, plan.cells[cell].measure.scored) for cell in cells} <= scored, place
    # The 6- to 10-way tests of Figure 9 are no matter of Table 4, whose runs they are of.
    ways = {cell.measure.way for cell in plan.cells.values()}
    assert {6, 10} < ways
    in_table4 = {cell for _, cells in jobs if set(cells) & set(plan.table_cells("task_adapter", "4")) for cell in cells}
    assert {plan.cells[cell].measure.way for cell in in_table4} == {5}


def test_scales_differ_in_budgets_and_data(plans):
    demo, quick, paper = (plans[scale] for scale in SCALES)
    assert [entry.row for entry in demo.entries] == [entry.row for entry in paper.entries]
    kinds = [asset.spec["kind"] for asset in paper.datasets.values()]
    assert {kind: kinds.count(kind) for kind in kinds} == {"list": 5, "skeletons": 5, "semi": 13}
    assert {asset.name for asset in demo.datasets.values()} == {f"synthetic_{name}" for name in (*SYNTHETIC, "fine")}
    given = {"clip_vit_b16", "resnet50", "resnet18", "vit_s16", "vit_s16_scratch", "vit_b16", "vicuna_7b",
             "llava_15_7b", "qwen25_vl_7b", "r3d18", "r2d3d18", "clip_vit_l14", "eva_clip_vit_g14",
             "dinov2_vit_l14"}  # fmt: skip
    assert {asset.name for asset in paper.backbones.values()} == given
    assert not set(demo.runs) & set(quick.runs) and not set(quick.runs) & set(paper.runs)
    of_cells = {(c.run.method, c.measure.episodes) for c in paper.cells.values() if c.measure.metric == "accuracy_pct"}
    assert {method for method, episodes in of_cells if episodes != 10_000} == {"vision_language_labels"}
    few_shot = [run for run in paper.runs.values() if "episodes_per_step" in run.train]
    steps = {(run.method, run.train["episodes_per_step"]) for run in few_shot}
    assert {episodes for method, episodes in steps if not method.startswith("task_adapter")} == {16, 8}
    assert {episodes for method, episodes in steps if method.startswith("task_adapter")} == {1}
    for one, two in zip(demo.entries, paper.entries, strict=True):
        assert one.published == two.published and len(one.cells) == len(two.cells)
        for a, b in zip(one.cells, two.cells, strict=True):
            same = a.run.model == b.run.model  # architecture is no matter of scale, but it may be one of the data set
            assert same or demo.config.entry("methods", a.run.method, "test")["models"]


def test_schedule_of_the_data_set_then_scale_then_experiment():
    def train(dataset, scale="paper", **delta):
        return bare_plan({"scale": scale}).cell({"method": "lga", "dataset": dataset, **delta}, 0, "x").run.train

    assert (train("hmdb51")["steps"], train("hmdb51")["video_text_weight"]) == (1250, 1.2)
    assert (train("ucf101")["steps"], train("ucf101")["video_text_weight"]) == (750, 1.5)
    assert (train("ssv2_full")["steps"], train("ssv2_full")["milestones"]) == (7500, [2000, 3000])
    assert train("kinetics100")["jitter_queries"] and not train("hmdb51")["jitter_queries"]
    assert train("ucf101", train={"steps": 5})["steps"] == 5
    assert train("ssv2_small", "demo")["steps"] == bare_plan({}).config.settings.train["steps"]
    assert train("ssv2_small", "demo")["video_text_weight"] == 3.0  # synthetic_temporal stands for it
    assert train("hmdb51", "demo", train={"steps": 5})["steps"] == 5


def test_full_model_is_one_cell_in_all_six_tables(plans):
    for plan in plans.values():
        column = "HMDB51/1-shot"
        rows = {
            "1": "Our (LGA) [CLIP-ViT-B]", "2": "Visual-An=1,Textual-An=1,vv=1,vt=1",
            "3": "Text=Atomic Description,Scale=L,Attention=Cross",
            "4": "video-video=AB-MHM,video-text=Atomic description", "5": "CLUSTER", "6": "Number=3",
        }  # fmt: skip
        ids = {
            cell.id
            for table, row in rows.items()
            for entry in plan.table_entries("lga", table)
            if (entry.row, entry.column) == (row, column)
            for cell in entry.cells
        }
        assert len(ids) == 1
        found = [t for t in rows if ids <= set(plan.table_cells("lga", t))]
        assert found == list(rows)


@pytest.mark.parametrize("scale", ["demo", "quick"])
def test_schedules_of_episodes_do_not_reach_other_recipes(plans, scale):
    """A scale's milestones and rates are counted in episodes; those of skeletons and labelled videos are their own."""
    plan = plans[scale]
    few_shot = plan.config.settings.train
    for run in plan.runs.values():
        if run.train and "episodes_per_step" not in run.train:
            recipe = plan.config.entry("methods", run.method, "test")["train"]
            budget = plan.config.settings.budgets.get(run.method, {}).get("train", {})
            assert run.train["milestones"] == budget.get("milestones", recipe["milestones"]), run.id
            assert run.train["learning_rate"] != few_shot["learning_rate"], run.id


def test_swept_runs_are_trained_by_one_rule_only(plans):
    plan = plans["demo"]
    axes = [sweep.axis.removeprefix("model.") for sweep in plan.sweeps.values()]
    counts = {"atoms": 2, "layers": 2, "order_layers": 2, "n_pre": 1, "passes": 1}  # two: scene and temporal
    assert {axis: axes.count(axis) for axis in axes} == counts
    for sweep in [sweep for sweep in plan.sweeps.values() if sweep.axis == "model.atoms"]:
        assert [plan.runs[run].model["atoms"] for run in sweep.runs] == [1, 2, 3, 4]
        mine = [run for run in sweep.runs if plan.swept.get(run) == sweep.name]
        assert [plan.runs[run].model["atoms"] for run in mine] == [1, 2, 4]  # three is needed elsewhere
    for axis in ("layers", "order_layers"):
        depths = [
            [plan.runs[run].model[axis] for run in s.runs] for s in plan.sweeps.values() if s.axis == f"model.{axis}"
        ]
        assert depths == [list(range(1, 13))] * 2


def test_seeds_multiply_trainings_not_frozen_models(repo, plans):
    plan, one = Plan.read(repo / "config", {"seeds": [0, 1, 2]}), plans["demo"]
    trained, frozen = ([r for r in one.runs.values() if bool(r.train) is kind] for kind in (True, False))
    assert len(plan.runs) == 3 * len(trained) + len(frozen)
    assert {len(entry.cells) for entry in plan.entries} == {0, 3}
    assert set(one.runs) < set(plan.runs)


def test_published_only_rows_have_no_cells_and_measured_ones_have(plans):
    plan = plans["demo"]
    for entry in plan.entries:
        assert entry.cells or (entry.published is not None and entry.note), (entry.paper, entry.row)
    assert {entry.dataset for entry in plan.entries if entry.cells} == {f"synthetic_{name}" for name in SYNTHETIC}


# --------------------------------------------------------------------------------------------- specs


def test_specs_say_what_the_plan_says(plans, tmp_path):
    plan, ws = plans["demo"], Workspace(tmp_path)
    plan.write_specs(tmp_path / "specs")
    for run in plan.runs.values():
        assert ws.read_run(run.id) == run and ws.read_run(run.id).id == run.id
        assert ws.read_run(run.id[:-3]) == run
        cells = ws.read_cells(run.id)
        assert {cell.id: cell for cell in cells} == {cell: plan.cells[cell] for cell in plan.cells_of[run.id]}
        assert len(cells) == len(plan.cells_of[run.id])
    for asset in [*plan.datasets.values(), *plan.backbones.values()]:
        assert ws.read_asset(asset.key) == asset
    for name, policy in plan.stores.items():
        assert ws.read_store(name) == policy
    for name, sweep in plan.sweeps.items():
        assert ws.read_sweep(name) == {"name": name, "axis": sweep.axis, "runs": list(sweep.runs)}


def test_specs_are_rewritten_only_where_something_changed(plans, repo, tmp_path):
    plans["demo"].write_specs(tmp_path)
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    Plan.read(repo / "config").write_specs(tmp_path)
    assert before == {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    other = Plan.read(repo / "config", {"alpha_grid": [0.5], "datasets": {"synthetic_scene": {"workers": 9}}})
    other.write_specs(tmp_path)
    changed = {path.name for path in tmp_path.iterdir() if before.get(path.name) != path.stat().st_mtime_ns}
    assert all(name.startswith(("cells-", "synthetic_scene-")) for name in changed) and changed
    assert not list(tmp_path.glob("*.tmp"))


# -------------------------------------------------------------------------------------------- errors


def _table(folder, edit):
    path = folder / "tables" / "lga.yaml"
    sheet = yaml.safe_load(path.read_text())
    edit(sheet["tables"]["4"]["rows"][0]["experiment"], sheet)
    path.write_text(yaml.safe_dump(sheet, sort_keys=False))


HERE = r"tables/lga\.yaml, table 4, row 'video-video=OTAM,video-text=-'"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "lgaa"}, rf"unknown method 'lgaa' in .*{HERE}; did you mean 'lga'\?"),
        ({"dataset": "hmdb_51"}, rf"unknown dataset 'hmdb_51' in .*{HERE}; did you mean 'hmdb51'\?"),
        ({"backbone": "clip_nan"}, rf"unknown backbone 'clip_nan' in .*{HERE}; did you mean 'clip_nano'\?"),
        ({"model": {"atom": 3}}, rf"unknown model key 'atom' in .*{HERE} \(method lga\); did you mean 'atoms'\?"),
        ({"train": {"step": 3}}, rf"unknown train key 'step' in .*{HERE} \(method lga\); did you mean 'steps'\?"),
        ({"measure": {"shots": 3}}, rf"unknown key 'shots' in .*{HERE}, measure \(shots\); did you mean 'shot'\?"),
        ({"measure": {"score": "vx"}}, rf"{HERE}, measure: key score: "),
        ({"frames": {"smapling": "linspace"}}, rf"unknown key 'smapling' in .*{HERE}, frames .*'sampling'\?"),
        ({"modle": {}}, r"unknown key 'modle' in .*tables/lga\.yaml .*did you mean 'model'"),
        ({"method": None}, rf"unknown method None in .*{HERE}; known: "),
    ],
)
def test_errors_in_a_table_name_file_row_and_nearest_name(folder, change, message):
    _table(folder, lambda experiment, sheet: experiment.update(change))
    with pytest.raises(UserError, match=message) as caught:
        Plan.read(folder)
    assert "\n" not in str(caught.value)


def test_errors_in_a_sheet(folder):
    _table(folder, lambda _, sheet: sheet["tables"]["4"]["rows"][0]["published"].pop())
    with pytest.raises(UserError, match=r"lga\.yaml: key tables\.4: .*3 published values for 4 columns"):
        Plan.read(folder)


def test_a_row_without_a_method(folder):
    _table(folder, lambda experiment, sheet: experiment.pop("method"))
    with pytest.raises(UserError, match=HERE + ": neither row nor column names a method"):
        Plan.read(folder)


@pytest.mark.parametrize(
    ("overlay", "message"),
    [
        ({"train": {"stepz": 3}}, r"unknown train key 'stepz' in the settings .*; did you mean 'steps'\?"),
        ({"model": {"atomz": 3}}, r"unknown model key 'atomz' in the settings .*; did you mean 'atoms'\?"),
        ({"frames": {"nmber": 3}}, r"unknown key 'nmber' in .*frames \(nmber\); did you mean 'number'\?"),
        ({"measure": {"episode": 3}}, r"unknown key 'episode' in .*measure.*did you mean 'episodes'\?"),
        ({"substitute_backbone": {"clip_vit_b16": "clip_nan"}}, r"unknown backbone 'clip_nan'.*did you mean"),
        ({"substitute": {"hmbd51": "synthetic_scene"}}, r"unknown dataset 'hmbd51' in .*key substitute; did you mean"),
        ({"substitute": {"hmdb51": "synthetic_scen"}}, r"unknown dataset 'synthetic_scen' in .*key substitute; did"),
        ({"datasets": {"hmdb51": {"kind": None}, "x": {"root": "."}}, "substitute": {"hmdb51": "x"}},
         r"the settings \(.*\), key datasets\.x: key kind is missing"),
        ({"datasets": {"synthetic_scene": {"frames": {"sise": 1}}}},
         r"unknown key 'sise' in the settings .*, key datasets\.synthetic_scene \(frames\.sise\); known: crop, number"),
        ({"methods": {"lga": {"modle": {}}}}, r"unknown key 'modle' in .*, key methods\.lga .*did you mean 'model'\?"),
        ({"methods": {"lga": {"schedules": {"synthetic_scene": {"stps": 1}}}}},
         r"unknown train key 'stps' in .*, key methods\.lga, schedules\.synthetic_scene; did you mean 'steps'\?"),
        ({"backbones": {"clip_nano": {"sources": ["synthetic_sene"]}}},
         r"unknown dataset 'synthetic_sene' in .*backbones\.yaml, clip_nano, sources; did you mean"),
    ],
)  # fmt: skip
def test_errors_in_the_settings_are_not_passed_over(repo, overlay, message):
    with pytest.raises(UserError, match=message) as caught:
        Plan.read(repo / "config", overlay)
    assert "\n" not in str(caught.value)


LGA_FIGURES = ("fig3", "fig4", "figphases", "figalpha")


def test_unknown_table_and_paper(plans):
    plan = plans["demo"]
    with pytest.raises(UserError, match="unknown table 'table44' in paper lga; did you mean 'table4'"):
        plan.table_entries("lga", "44")
    with pytest.raises(UserError, match="unknown paper 'lgaa'; did you mean 'lga'"):
        plan.table_entries("lgaa", "4")
    assert [number for _, number in plan.tables("lga")] == ["1", "2", "3", "4", "5", "6", *LGA_FIGURES]
    assert plan.tables("none") == []
    assert set(plan.numbers()) == {number for _, number in plan.tables()}


# ------------------------------------------------------------------------------------ things of one's own


def test_overlays_add_data_sets_methods_and_papers(repo, tmp_path):
    texts = tmp_path / "texts.json"
    overlay = {
        "datasets": {"mine": {"kind": "folder", "root": "videos", "texts": str(texts)}},
        "methods": {"lga_two": {"task": "few_shot", "backbone": "clip_vit_b16", "model": {"type": "LGA", "atoms": 2}}},
        "tables": {
            "notes": {
                "title": "mine",
                "tables": {
                    "9": {
                        "title": "nine",
                        "columns": [{"name": "c", "experiment": {"dataset": "mine"}}],
                        "rows": [{"name": "r", "experiment": {"method": "lga_two"}}],
                    }
                },
            }
        },
    }
    plan = Plan.read(repo / "config", overlay, "notes")
    (entry,) = plan.table_entries("notes", "9")
    (cell,) = entry.cells
    assert cell.run.dataset.startswith("mine-") and cell.run.model == {"type": "LGA", "atoms": 2} and not cell.run.train
    assert plan.backbones[cell.run.backbone].spec["sources"] == [cell.run.dataset]  # nano CLIP of its own base classes
    texts.write_text(json.dumps({"classes": {}}))
    (again,) = Plan.read(repo / "config", overlay, "notes").table_entries("notes", "9")[0].cells
    assert again.run.id != cell.run.id and again.run.dataset == cell.run.dataset  # other texts, same videos
    moved = overlay | {"datasets": {"mine": overlay["datasets"]["mine"] | {"root": "elsewhere"}}}
    assert Plan.read(repo / "config", moved, "notes").table_entries("notes", "9")[0].cells[0].id == again.id


def test_an_experiment_lays_its_frames_over_those_of_the_method(repo):
    rows = [
        {"name": "default", "experiment": {"method": "trx"}},
        {"name": "other", "experiment": {"method": "trx", "frames": {"test_sampling": "segment_centre"}}},
    ]
    table = {"title": "t", "columns": [{"name": "c", "experiment": {"dataset": "hmdb51"}}], "rows": rows}
    plan = Plan.read(repo / "config", {"tables": {"mine": {"title": "mine", "tables": {"1": table}}}}, "mine")
    default, other = (entry.cells[0].run for entry in plan.table_entries("mine", "1"))
    assert default.frames["test_sampling"] == "linspace" and default.id != other.id
    assert other.frames == default.frames | {"test_sampling": "segment_centre"}


def test_specs_do_not_depend_on_the_order_of_keys(repo):
    one = Plan.read(repo / "config", {"train": {"steps": 9, "way": 4}, "measure": {"episodes": 5, "shot": 2}})
    two = Plan.read(repo / "config", {"measure": {"shot": 2, "episodes": 5}, "train": {"way": 4, "steps": 9}})
    assert list(one.cells) == list(two.cells)
    assert canonical(list(one.runs.values())) == canonical(list(two.runs.values()))
