"""The sheet of CrossGLG against the printed numbers, and its rows against the experiments that they must be."""

from __future__ import annotations

import json

import pytest
from sheets import cell_ids

from pipeline.plan import Plan
from pipeline.tables.records import records

PAPER = "crossglg"
PRINTED = {"1": 69, "2": 20, "3": 6, "4": 20, "5": 20, "6": 10, "7": 3, "A1": 8}
SHARES = ("20%", "40%", "60%", "80%", "100%")
C20 = "NTU120/20 base classes"
FULL = [
    ("1", "InfoGCN+CrossGLG"),
    ("4", "G2L=1,L2G=1"),
    ("7", "LLM=ChatGPT"),
    ("A1", "alpha1=0.5"),
    ("A1", "alpha2=0.2"),
]
ABSENT = ["APSR", "uDTW", "SL-DML", "Skeleton-DML", "ALCA-GCN"]


def test_every_printed_number_is_in_the_sheet_and_no_other(printed, values, entries):
    numbers = [line for line in printed if not line["metric"].startswith(("increase", "params_increase"))]
    expected = {(line["table"], line["row"], line["column"]): float(line["value"]) for line in numbers}
    assert values == {place: pytest.approx(value, abs=1e-9) for place, value in expected.items()}
    for line in numbers:
        entry = entries[line["table"], line["row"], line["column"]]
        assert entry.metric == ("params_m" if line["metric"] == "params_m" else "accuracy_pct")


def test_printed_increases_are_in_the_notes(printed, entries):
    increases = [line for line in printed if line["metric"].startswith(("increase", "params_increase"))]
    assert increases
    for line in increases:
        note = entries[line["table"], line["row"], line["column"]].note
        assert f"printed as +{float(line['value']):g}" in note


def test_number_of_values_per_table(values):
    tables = [place[0] for place in values]
    assert {table: tables.count(table) for table in PRINTED} == PRINTED
    assert len(tables) == sum(PRINTED.values())


def test_the_full_model_is_one_cell_wherever_it_stands(entries, values):
    assert len({cell_ids(entries[table, row, C20]) for table, row in FULL}) == 1
    assert {values[table, row, C20] for table, row in FULL} == {45.3}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("1", "InfoGCN"), ("4", "G2L=0,L2G=0")),
        (("1", "InfoGCN+CrossGLG"), ("4", "G2L=1,L2G=1")),
        (("4", "G2L=1,L2G=0"), ("5", "Npre=5")),
        (("4", "G2L=0,L2G=1"), ("6", "Text-Text interaction=1")),
    ],
)
def test_rows_of_one_experiment_are_the_same_cells(entries, values, one, other):
    for share in (20, 40, 60, 80, 100):
        column = f"NTU120/{share} base classes"
        assert cell_ids(entries[*one, column]) == cell_ids(entries[*other, column])
        assert values[*one, column] == values[*other, column]


def test_rows_of_a_column_are_different_experiments(plan):
    for number, table in plan.papers["crossglg"].tables.items():
        for column in table.columns:
            here = [cell_ids(e) for e in plan.table_entries("crossglg", number) if e.column == column.name and e.cells]
            assert len(set(here)) == len(here) - (1 if number == "A1" else 0), f"table {number}, {column.name}"


def test_columns_are_base_sets(entries):
    for (table, _, column), entry in entries.items():
        for cell in entry.cells if column.startswith("NTU") else ():
            most = 100 if column.startswith("NTU120") else 50
            count = int(column.split("/")[1].split()[0])
            assert cell.run.train["base_set"] == f"{100 * count // most}%", (table, column)


def test_base_sets_hold_the_printed_numbers_of_classes(repo):
    plan = Plan.read(repo / "config", {"scale": "paper"})
    for name, most in (("ntu120_oneshot", 100), ("ntu120_hrnet", 100), ("ntu60_oneshot", 50), ("ntu60_hrnet", 50)):
        bases = next(a for a in plan.datasets.values() if a.name == name).spec["protocol"]["bases"]
        assert bases == {share: most * int(share[:-1]) // 100 for share in SHARES}


def test_encoders_are_tested_as_they_are_trained(entries):
    """MotionBERT's poses are another data set of the same classes and exemplars; its recipe knows no classifier."""
    (cell,) = entries["1", "MotionBERT", C20].cells
    assert cell.run.model["contrastive"] and not cell.run.model["cross_entropy"]
    names = {row: entries["1", row, C20].cells[0].run.method for _, row, column in entries if row in ENCODERS}
    assert names == ENCODERS


ENCODERS = {
    "MotionBERT": "motionbert",
    "MotionBERT+CrossGLG": "crossglg_motionbert",
    "HDGCN": "hdgcn",
    "HDGCN+CrossGLG": "crossglg_hdgcn",
    "InfoGCN": "infogcn",
    "InfoGCN+GAP": "gap",
    "InfoGCN+CrossGLG": "crossglg",
}


def test_ablations_switch_what_they_name(entries):
    for (table, row, _), entry in entries.items():
        parts = dict(part.split("=") for part in row.split(",") if "=" in part)
        for cell in entry.cells:
            model = cell.run.model
            if table == "4" and "1" in parts.values():
                assert (model["g2l"], model["l2g"]) == (parts["G2L"] == "1", parts["L2G"] == "1")
            elif table == "5":
                assert model["n_pre"] == int(parts["Npre"]) and not model["l2g"]
            elif table == "6":
                assert model["text_text"] == (row[-1] == "1") and not model["g2l"]
            elif table == "7":
                assert model["corpus"] == ("" if row == "LLM=ChatGPT" else parts["LLM"].lower())
            elif table == "A1":
                ((name, value),) = parts.items()
                other = {"alpha1": ("alpha2", 0.2), "alpha2": ("alpha1", 0.5)}[name]
                assert model[name] == float(value) and model[other[0]] == other[1]


def test_tables_are_written_with_what_stands_in_for_the_data(plan, entries, tmp_path):
    """Also of methods without a pretrained backbone."""
    for entry in entries.values():
        for cell in entry.cells:
            made = {"cell": cell.id, "run": cell.run.id, "metric": entry.metric, "value": 50.0, "ci95": 1.0, "n": 9}
            (tmp_path / "cells").mkdir(exist_ok=True)
            (tmp_path / "cells" / f"{cell.id}.json").write_text(json.dumps(made))
    found = {(r.row, r.column): r for r in records(plan, "crossglg", "4", tmp_path)}
    assert len(found) == 20 and all(r.status == "measured" for r in found.values())
    note = found["G2L=1,L2G=1", C20].note
    assert ("synthetic_skeleton in place of ntu120_oneshot" in note) is bool(plan.config.settings.stand_in)
    assert "backbone" not in note


def test_blocks_before_the_guidance_are_one_sweep(plan):
    (sweep,) = (sweep for name, sweep in plan.sweeps.items() if name.startswith("crossglg_"))
    assert sweep.axis == "model.n_pre" and len(sweep.runs) == 4 * len(SHARES)
    alone = set(sweep.runs) - set(plan.swept)  # those that another table needs too
    assert alone == {
        cell.run.id for e in plan.entries if e.paper == "crossglg" and e.row == "Npre=5" for cell in e.cells
    }


def test_rows_without_an_experiment_give_a_reason(plan):
    rows = [row for table in plan.papers["crossglg"].tables.values() for row in table.rows]
    only = [row for row in rows if row.published_only]
    assert [row.name for row in only] == [*ABSENT, "uDTW"]
    assert all("not implemented" in row.published_only and not row.experiment for row in only)


def test_a_part_of_a_note_has_no_separator_inside(plan):
    for table in plan.papers["crossglg"].tables.values():
        for row in table.rows:
            assert not any("; " in note for note in (row.published_only, row.note, *row.notes.values()))
