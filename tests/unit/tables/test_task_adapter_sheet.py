"""The sheet of Task-Adapter++ against the printed numbers, and its rows against the experiments that they must be."""

from __future__ import annotations

import pytest
from sheets import cell_ids

from pipeline.plan import Plan

PAPER = "task_adapter"
PRINTED = {"1": 67, "2": 116, "3": 7, "4": 6, "5": 6, "6": 4, "7": 24, "8": 20, "9": 5}
FIGURES = ("fig8a", "fig8b", "fig9", "fig10")
ONE_SHOT = "SSv2-Small/1-shot"
PLUS_PLUS = [
    ("1", "Task-Adapter++ [ViT-B, CLIP, PEFT]", ONE_SHOT),
    ("4", "Task-Adapter=1,Three Sub-actions=1,Order Adaptation=1,Cross-modal Alignment=1", ONE_SHOT),
    ("5", "Task-Adapter++", "both"),
    ("6", "ours", "accuracy"),
    ("7", "1-layer Cross Attention", ONE_SHOT),
    ("8", "Order Adapter,Position=Top 2", ONE_SHOT),
    ("9", "O-MSA,Position=back of MSA", ONE_SHOT),
    ("fig8b", "M=2", ONE_SHOT),
    ("fig9", "Task-Adapter++", "SSv2-Small/5-way"),
    ("fig10", "Task-Adapter++", "ProtoNet"),
    ("fig11", "Task-Adapter++", ONE_SHOT),
]
PLAIN = [
    ("1", "Task-Adapter [ViT-B, CLIP, PEFT]", ONE_SHOT),
    ("3", "Frozen Backbone=1,AIM=1,Task-specific Adaptation=1,Partial Adapting=1", ONE_SHOT),
    ("4", "Task-Adapter=1,Three Sub-actions=0,Order Adaptation=0,Cross-modal Alignment=0", ONE_SHOT),
    ("5", "Task-Adapter", "both"),
    ("6", "w/o sub-actions", "accuracy"),
    ("8", "Task-Adapter,Position=Top 6", ONE_SHOT),
    ("9", "Task-MSA,Position=back of T&S-MSA", ONE_SHOT),
    ("fig8a", "L=6", ONE_SHOT),
    ("fig9", "Task-Adapter", "SSv2-Small/5-way"),
    ("fig10", "Task-Adapter", "ProtoNet"),
    ("fig11", "Task-Adapter", ONE_SHOT),
]
SETS = {
    "1": [f"{name}/{shot}-shot" for name in ("SSv2-Small", "SSv2-Full") for shot in (1, 3, 5)],
    "2": [f"{name}/{shot}-shot" for name in ("HMDB51", "UCF101", "Kinetics") for shot in (1, 3, 5)],
}
ABSENT = "its released facts do not suffice: see docs/reproduction-notes.md"


@pytest.fixture(scope="module")
def of_lga(plan):
    return {(e.table, e.row, e.column): e for e in plan.entries if e.paper == "lga"}


def runs(plan: Plan, method: str, dataset: str) -> dict[int, set[str]]:
    """Shots of a test -> ids of the trainings of the method's own row of Tables 1 and 2 on a data set."""
    out: dict[int, set[str]] = {}
    for entry in plan.entries:
        if entry.paper == "task_adapter" and entry.table in "12" and entry.column.startswith(f"{dataset}/"):
            for cell in entry.cells:
                if cell.run.method == method and not cell.run.model.get("transductive"):
                    out.setdefault(cell.measure.shot, set()).add(cell.run.id)
    return out


# Printed values


def test_every_printed_number_is_in_the_sheet_and_no_other(printed, values, entries):
    expected = {}
    for line in printed:
        place = line["table"], line["row"], line["column"]
        factor = 0.001 if line["metric"] == "params_k" else 1  # the sheet counts in millions
        expected[place] = pytest.approx(factor * float(line["value"]), abs=1e-9)
        metric = "params_m" if line["metric"].startswith("params") else line["metric"]
        assert entries[place].metric == metric
        if line["metric"] == "params_k":
            assert f"printed as {line['value']} K" in entries[place].note
    assert values == expected


def test_number_of_values_per_table(values, printed):
    for found in ([place[0] for place in values], [line["table"] for line in printed]):
        assert {table: found.count(table) for table in PRINTED} == PRINTED
        assert len(found) == sum(PRINTED.values()) == 255


def test_figures_print_no_numbers_and_are_measured(plan, entries):
    for number in FIGURES:
        here = [entry for place, entry in entries.items() if place[0] == number]
        table = plan.papers["task_adapter"].tables[number]
        assert "prints no numbers" in table.note and len(here) == len(table.rows) * len(table.columns)
        assert all(entry.published is None and entry.cells for entry in here)


@pytest.mark.parametrize("places", [PLUS_PLUS, PLAIN], ids=["plus_plus", "plain"])
def test_one_experiment_has_one_printed_value(values, places):
    assert len({values[place] for place in places if place in values}) == 1
    assert sum(place in values for place in places) == 7


def test_numbers_that_the_two_papers_print_differently_say_so(of_lga, entries):
    """A row that stands in both papers has one number in both, or each names the other's."""
    different = 0
    names = {"OTAM": ("INet-RN50", "ResNet50, IN-21K"), "CLIP-FSAR": ("CLIP-ViT-B", "ViT-B, CLIP")}
    for method in ("OTAM", "TRX", "STRM", "HyRSM", "MoLo", "CLIP-FSAR"):
        there, here = names.get(method, names["OTAM"])
        for table, columns in SETS.items():
            for column in columns:
                one = of_lga.get(("1", f"{method} [{there}]", column))
                two = entries.get((table, f"{method} [{here}]", column))
                if one is None or two is None or two.published is None or one.published is None:
                    continue
                if one.published == two.published:
                    continue
                different += 1
                assert f"LGA prints {one.published}" in two.note
                assert f"{two.published} in Table 1 of Task-Adapter++" in one.note
    assert different == 5


# Which rows are one experiment


@pytest.mark.parametrize("places", [PLUS_PLUS, PLAIN], ids=["plus_plus", "plain"])
def test_the_full_model_is_one_cell_wherever_it_stands(plan, entries, places):
    assert len({cell_ids(entries[place]) for place in places}) == 1
    (cell,) = entries[places[0]].cells
    in_tables = [number for number in plan.papers["task_adapter"].tables if cell.id in _cells(plan, number)]
    assert in_tables == [place[0] for place in places]


def _cells(plan: Plan, number: str) -> list[str]:
    return plan.table_cells("task_adapter", number)


@pytest.mark.parametrize("dataset", ["SSv2-Small", "Kinetics"])
@pytest.mark.parametrize("shot", [1, 3, 5])
def test_one_layer_of_table_7_is_task_adapter_plus_plus(entries, dataset, shot):
    column, table = f"{dataset}/{shot}-shot", "1" if dataset == "SSv2-Small" else "2"
    full = entries[table, "Task-Adapter++ [ViT-B, CLIP, PEFT]", column]
    assert cell_ids(entries["7", "1-layer Cross Attention", column]) == cell_ids(full)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (
            ("3", "Frozen Backbone=1,AIM=1,Task-specific Adaptation=1,Partial Adapting=0", ONE_SHOT),
            ("8", "Task-Adapter,Position=All", ONE_SHOT),
        ),
        (("8", "Task-Adapter,Position=All", ONE_SHOT), ("fig8a", "L=12", ONE_SHOT)),
        (("8", "Task-Adapter,Position=Top 2", ONE_SHOT), ("fig8a", "L=2", ONE_SHOT)),
        (("8", "Order Adapter,Position=Top 6", ONE_SHOT), ("fig8b", "M=6", ONE_SHOT)),
        (("8", "Order Adapter,Position=All", ONE_SHOT), ("fig8b", "M=12", ONE_SHOT)),
        (
            ("3", "Frozen Backbone=1,AIM=1,Task-specific Adaptation=0,Partial Adapting=1", ONE_SHOT),
            ("fig10", "AIM", "ProtoNet"),
        ),
        (
            ("3", "Frozen Backbone=0,AIM=0,Task-specific Adaptation=0,Partial Adapting=0", ONE_SHOT),
            ("fig9", "Full fine-tuning", "SSv2-Small/5-way"),
        ),
        (("fig9", "Full fine-tuning", "SSv2-Small/5-way"), ("fig10", "Full fine-tuning", "ProtoNet")),
        (("2", "Task-Adapter [ViT-B, CLIP, PEFT]", "Kinetics/1-shot"), ("fig9", "Task-Adapter", "Kinetics/5-way")),
        (("2", "Task-Adapter [ViT-B, CLIP, PEFT]", "Kinetics/1-shot"), ("fig8a", "L=2", "Kinetics/1-shot")),
        (("2", "Task-Adapter++ [ViT-B, CLIP, PEFT]", "HMDB51/1-shot"), ("fig8b", "M=8", "HMDB51/1-shot")),
    ],
)
def test_rows_of_one_experiment_are_one_cell(entries, one, other):
    assert cell_ids(entries[one]) == cell_ids(entries[other])


@pytest.mark.parametrize(
    ("here", "there"),
    [
        ("CLIP-FSAR [ViT-B, CLIP]", "CLIP-FSAR [CLIP-ViT-B]"),
        ("OTAM [ResNet50, IN-21K]", "OTAM [INet-RN50]"),
        ("TRX [ResNet50, IN-21K]", "TRX [INet-RN50]"),
        ("STRM [ResNet50, IN-21K]", "STRM [INet-RN50]"),
        ("HyRSM [ResNet50, IN-21K]", "HyRSM [INet-RN50]"),
        ("MoLo [ResNet50, IN-21K]", "MoLo [INet-RN50]"),
    ],
)
def test_rows_of_both_papers_share_their_cells(entries, of_lga, here, there):
    """One- and five-shot: LGA's Table 1 has no three shots."""
    for table, columns in SETS.items():
        for column in columns:
            if not column.endswith("3-shot"):
                assert cell_ids(entries[table, here, column]) == cell_ids(of_lga["1", there, column]), column


def test_the_methods_name_their_backbones(plan, entries):
    for (table, row, _), entry in entries.items():
        for cell in entry.cells if table in "12" else ():
            asked = "resnet50" if "ResNet50" in row else "clip_vit_b16"
            name = plan.config.settings.substitute_backbone.get(asked, asked)
            assert plan.backbones[cell.run.backbone].name == name


def test_scores_of_table_5_are_those_of_one_training(entries):
    columns = {"video matching score": "vv", "video-text matching score": "vt", "both": "both"}
    for row in ("Task-Adapter", "Task-Adapter++"):
        cells = {column: entries["5", row, column].cells[0] for column in columns}
        assert {column: cell.measure.score for column, cell in cells.items()} == columns
        assert len({cell.run.id for cell in cells.values()}) == 1
        assert cells["both"].measure.alpha == "own"


def test_rows_of_a_column_are_different_experiments(plan):
    for number, table in plan.papers["task_adapter"].tables.items():
        for column in table.columns:
            here = [cell_ids(e) for e in plan.table_entries("task_adapter", number) if e.column == column.name]
            here = [ids for ids in here if ids]
            if number == "8":  # the full model stands there twice, under two towers, and so do four counts
                continue
            assert len(set(here)) == len(here), f"table {number}, {column.name}"


# What a row is


def test_parameters_of_table_8_are_those_of_one_tower_and_need_no_shots(plan):
    here = [e for e in plan.table_entries("task_adapter", "8") if e.metric == "params_m"]
    assert len(here) == 10
    for entry in here:
        (cell,) = entry.cells
        assert cell.measure.part == ("visual.adapters" if entry.row.startswith("Task") else "text.adapters")
        assert cell.measure.shot == 1 and cell.measure.episodes == 0
        accuracy = next(
            e for e in plan.table_entries("task_adapter", "8") if (e.row, e.column) == (entry.row, ONE_SHOT)
        )
        assert accuracy.cells[0].run.id == cell.run.id and accuracy.cells[0].id != cell.id


def test_ticks_of_table_3(entries):
    """Columns of the paper: frozen, AIM, Task-MSA, and adapters in a part of the layers only."""
    for (table, row, _), entry in entries.items():
        if table != "3":
            continue
        ticks = {name: value == "1" for name, value in (part.split("=") for part in row.split(","))}
        run = entry.cells[0].run
        if not ticks["AIM"] and not ticks["Task-specific Adaptation"]:
            assert run.model["finetune"] == ("none" if ticks["Frozen Backbone"] else "full")
            assert bool(run.train) is not ticks["Frozen Backbone"]
            continue
        assert run.model["finetune"] == "adapters"
        assert (run.model["aim"], run.model["task"]) == (ticks["AIM"], ticks["Task-specific Adaptation"])
        assert run.model["layers"] == (6 if ticks["Partial Adapting"] else 12)


def test_ticks_of_table_4(entries):
    for (table, row, _), entry in entries.items():
        if table != "4":
            continue
        ticks = {name: value == "1" for name, value in (part.split("=") for part in row.split(","))}
        model = entry.cells[0].run.model
        assert (model["text"], model["subactions"]) == (
            ("stages", "stages") if ticks["Three Sub-actions"] else ("label", "single")
        )
        assert (model["order_layers"] > 0) is ticks["Order Adaptation"]
        assert (model["alignment"] == "attention") is ticks["Cross-modal Alignment"]
        assert model["layers"] == 6 and model["task"] and model["aim"]


@pytest.mark.parametrize("number", ["1", "2", "3", "4"])
def test_tables_1_to_4_have_a_row_in_which_queries_see_each_other(plan, entries, number):
    """It differs from the full model beside it in nothing else, and the paper prints no value for it."""
    rows = {row.name: row for row in plan.papers["task_adapter"].tables[number].rows}
    (seen,) = [name for name in rows if "ransductive" in name]
    full = list(rows)[list(rows).index(seen) - 1]
    released = {"transductive": True} | ({} if number == "3" else {"alignment_over": "queries"})
    columns = [column.name for column in plan.papers["task_adapter"].tables[number].columns]
    assert not rows[seen].published and "see each other" in rows[seen].note
    for column in columns:
        (one,), (other,) = entries[number, seen, column].cells, entries[number, full, column].cells
        assert not other.run.model["transductive"] and one.run.model == other.run.model | released
        assert one.measure == other.measure and one.run.train == other.run.train


def test_table_7_measures_forms_that_attend(plan, entries):
    """Over the queries of a task, in one to three layers, and over the next frames of a query."""
    table = plan.papers["task_adapter"].tables["7"]
    assert "nothing is attended to" in table.note and "their rows are below" in table.note
    for layers in (1, 2, 3):
        (cell,) = entries["7", f"{layers}-layer Cross Attention, over queries", ONE_SHOT].cells
        model = cell.run.model
        assert (model["alignment"], model["alignment_layers"]) == ("attention", layers)
        assert model["transductive"] and model["alignment_over"] == "queries"
    (cell,) = entries["7", "1-layer Cross Attention, over 3 frames", ONE_SHOT].cells
    assert (cell.run.model["alignment_over"], cell.run.model["alignment_window"]) == ("frames", 3)
    assert not cell.run.model["transductive"]


def test_depths_are_the_papers(plan, entries):
    """L 2 and M 8 where the scene tells much, L 6 and M 2 where order matters."""
    for table, depths in (("1", (6, 2)), ("2", (2, 8))):
        for column in SETS[table]:
            (cell,) = entries[table, "Task-Adapter++ [ViT-B, CLIP, PEFT]", column].cells
            assert (cell.run.model["layers"], cell.run.model["order_layers"]) == depths
            (cell,) = entries[table, "Task-Adapter [ViT-B, CLIP, PEFT]", column].cells
            assert (cell.run.model["layers"], cell.run.model["order_layers"]) == (depths[0], 0)


def test_more_ways_are_measured_on_the_training_with_five(entries):
    for row in ("Full fine-tuning", "Task-Adapter", "Task-Adapter++"):
        for name in ("SSv2-Small", "Kinetics"):
            cells = [entries["fig9", row, f"{name}/{way}-way"].cells[0] for way in range(5, 11)]
            assert [cell.measure.way for cell in cells] == list(range(5, 11))
            assert len({cell.run.id for cell in cells}) == 1 and cells[0].run.train["way"] == 5


def test_matchers_of_figure_10_are_trained_with(entries):
    for row in ("Full fine-tuning", "AIM", "Task-Adapter", "Task-Adapter++"):
        for column, matcher in (("TRX", "trx"), ("Bi-MHM", "bi_mhm"), ("OTAM", "otam"), ("ProtoNet", "cosine")):
            (cell,) = entries["fig10", row, column].cells
            assert cell.run.model["matcher"] == matcher and cell.measure.matcher is None


def test_depths_are_sweeps(plan):
    sweeps = [sweep for name, sweep in plan.sweeps.items() if name.startswith("task_adapter_")]
    sets = 2 if plan.config.settings.stand_in else 3  # the demo has one set of scenes for HMDB51 and Kinetics
    assert sorted((sweep.axis, len(sweep.runs)) for sweep in sweeps) == sorted(
        [("model.layers", 12)] * sets + [("model.order_layers", 12)] * sets
    )


# Shots


@pytest.mark.parametrize("dataset", ["SSv2-Small", "HMDB51"])
@pytest.mark.parametrize("method", ["trx", "strm", "hyrsm", "hyrsm_pp", "task_adapter", "task_adapter_pp"])
def test_trainings_of_the_shots(plan, method, dataset):
    """Recipes with `shot: test` train for each number of shots; the demo has one training for all of them."""
    found = runs(plan, method, dataset)
    assert sorted(found) == [1, 3, 5] and all(len(ids) == 1 for ids in found.values())
    assert len(set.union(*found.values())) == (1 if plan.config.settings.scale == "demo" else 3)


@pytest.mark.parametrize("method", ["otam", "clip_fsar", "molo"])
def test_trainings_of_one_shot_serve_more(plan, method):
    found = runs(plan, method, "SSv2-Full")
    assert len(set.union(*found.values())) == 1 and sorted(found)[0] == 1


def test_a_training_has_the_shots_of_its_test_or_one(plan):
    demo, seen = plan.config.settings.scale == "demo", set()
    for entry in plan.entries:
        for cell in entry.cells:
            method = plan.config.entry("methods", cell.run.method, "test")
            if cell.run.train and method["train"].get("shot") == "test":
                seen.add(cell.measure.shot)
                assert cell.run.train["shot"] == (1 if demo else cell.measure.shot)
    assert seen == {1, 3, 5}


# Rows without an experiment, notes


def test_rows_without_an_experiment_give_a_reason(plan):
    rows = {number: table.rows for number, table in plan.papers["task_adapter"].tables.items()}
    only = [row for table in rows.values() for row in table if row.published_only]
    assert len(only) == 14 and len({r.published_only for r in only}) == len({r.name for r in only})  # each has its own
    assert [row.name for row in only if row.published_only == ABSENT] == ["MA-FSAR [ViT-B, CLIP, PEFT]"] * 2
    assert all(row.experiment for number in rows if number not in "12" for row in rows[number])
    for number in "12":
        measured = [row.name.split(" [")[0] for row in rows[number] if row.experiment]
        names = ["OTAM", "TRX", "STRM", "HyRSM", "MoLo", "HyRSM++", "CLIP-FSAR", "Task-Adapter", "Task-Adapter++"]
        names.append("Task-Adapter++, transductive")
        assert measured == names


def test_what_the_captions_do_not_say_is_noted(plan):
    for table in ("5", "6"):
        for entry in plan.table_entries("task_adapter", table):
            assert "inferred from 60.2 and 63.6" in entry.note
    assert "1, 3 and 5 shots" in plan.papers["task_adapter"].tables["7"].note


def test_a_part_of_a_note_has_no_separator_inside(plan):
    """Notes are joined by "; ", and taken apart there to become footnotes."""
    for table in plan.papers["task_adapter"].tables.values():
        for row in table.rows:
            assert not any("; " in note for note in (row.published_only, row.note, *row.notes.values()))
