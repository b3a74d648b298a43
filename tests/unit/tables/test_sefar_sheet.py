"""The sheet of SeFAR against the printed numbers, and its rows against the experiments that they must be."""

from __future__ import annotations

import pytest
from sheets import cell_ids

PAPER = "sefar"
PRINTED = {"1a": 35, "1b": 30, "1c": 30, "2": 63, "3": 12, "4": 40, "5": 8, "6": 10, "7": 32, "8": 1}
FULL = "SeFAR-S [ViT-S, V, ImgNet=yes, 8 frames, 30 epochs]"
WHOLE = "Dual-Ele=1,Mod-Perturb=1,Ada-Reg=1"
RATES = {
    "Gym99": 5, "Gym288": 5, "Diving": 5, "G.-New": 10, "Sth.-Sth.": 5, "Gym-New/opposite": 10, "Gym-New/accuracy": 10,
}  # fmt: skip
"""Where the heading does not print them."""
PERTURBATIONS = {
    "Spatial-only": "spatial", "Slow (T-Drop)": "slow", "Slow-rate": "slow", "T-Drop": "t_drop",
    "All shuffle": "all_shuffle", "Local-shuffle": "local_shuffle", "Warping": "warping", "T-Half": "t_half",
    "All reverse": "all_reverse", "Mod-Perturb": "moderate",
}  # fmt: skip


def test_every_printed_number_is_in_the_sheet_and_no_other(printed, values, entries):
    numbers = [line for line in printed if line["metric"] != "increase_pct"]
    expected = {(line["table"], line["row"], line["column"]): float(line["value"]) for line in numbers}
    assert values == {place: pytest.approx(value, abs=1e-9) for place, value in expected.items()}
    for line in numbers:
        assert entries[line["table"], line["row"], line["column"]].metric == line["metric"]


def test_printed_increases_are_in_the_notes(printed, entries):
    increases = [line for line in printed if line["metric"] == "increase_pct"]
    assert len(increases) == 5
    for line in increases:
        assert f"printed as +{line['value']} %" in entries["6", "SeFAR", line["column"]].note


def test_number_of_values_per_table(values):
    tables = [place[0] for place in values]
    assert {table: tables.count(table) for table in PRINTED} == PRINTED
    assert len(tables) == sum(PRINTED.values())


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("1a", FULL, "Gym99/5%"), ("3", WHOLE, "Gym99")),
        (("1a", FULL, "Gym288/5%"), ("3", WHOLE, "Gym288")),
        (("1a", FULL, "Diving/5%"), ("3", WHOLE, "Diving")),
        (("1a", FULL, "Gym99/5%"), ("4", "Mod-Perturb [O]", "Gym99")),
        (("1a", FULL, "Gym288/5%"), ("4", "Mod-Perturb [O]", "Gym288")),
        (("1a", FULL, "Diving/5%"), ("4", "Mod-Perturb [O]", "Diving")),
        (("1a", FULL, "Diving/5%"), ("6", "SeFAR", "FineDiving/5%")),
        (("1a", FULL, "Gym99/5%"), ("fig4a", "{2-2-4}", "Gym99/5%")),
        (("6", "SeFAR", "FineDiving/5%"), ("fig4b", "adaptive regulation", "FineDiving/5%")),
        (("6", "SeFAR w/o Ada-Reg", "FineDiving/5%"), ("fig4b", "threshold 0.3", "FineDiving/5%")),
        (("4", "Mod-Perturb [O]", "G.-New"), ("fig8", "SeFAR", "Gym-New/accuracy")),
        (("1a", FULL, "Diving/10%"), ("6", "SeFAR", "FineDiving/10%")),
        (("1b", "SeFAR-S", "FX/10%"), ("7", "Mod-Perturb [Order]", "FX/10%")),
        (("1b", "SeFAR-S", "10m/10%"), ("7", "Mod-Perturb [Order]", "10m/10%")),
        (("1c", "SeFAR-S", "UB-S1/10%"), ("7", "Mod-Perturb [Order]", "UB-S1/10%")),
        (("1c", "SeFAR-S", "5253B/10%"), ("7", "Mod-Perturb [Order]", "5253B/10%")),
    ],
)
def test_rows_of_one_experiment_are_the_same_cells(entries, values, one, other):
    assert cell_ids(entries[one]) == cell_ids(entries[other])
    assert values[one] == values[other] if other[0] in PRINTED else other not in values


def test_a_row_without_regulation_is_one_cell_though_two_numbers_are_printed(entries, values):
    places = ("3", "Dual-Ele=1,Mod-Perturb=1,Ada-Reg=0", "Diving"), ("6", "SeFAR w/o Ada-Reg", "FineDiving/5%")
    assert cell_ids(entries[places[0]]) == cell_ids(entries[places[1]])
    assert [values[place] for place in places] == [67.4, 67.2]
    assert "67.2" in entries[places[0]].note and "67.4" in entries[places[1]].note


def test_the_accuracy_at_ten_predictions_is_that_of_table_1a(entries):
    row = "number of teacher predictions=10"
    accuracy = entries["8", row, "Gym99/5%"]
    (time,) = entries["8", row, "teacher prediction time / total training time"].cells
    assert cell_ids(accuracy) == cell_ids(entries["1a", FULL, "Gym99/5%"]) and time.run == accuracy.cells[0].run


def test_rows_of_a_column_are_different_experiments(plan):
    """At demo scale one tiny ViT stands for the small one, the base one, and the one without ImageNet."""
    for number, table in plan.papers["sefar"].tables.items():
        for column in table.columns:
            here = [e for e in plan.table_entries("sefar", number) if e.column == column.name and e.cells]
            if plan.config.settings.scale == "paper":
                assert len({cell_ids(e) for e in here}) == len(here), (number, column.name)
            else:
                settings = {(c.run.method, c.run.backbone, str(c.run.model)) for e in here for c in e.cells}
                assert len({cell_ids(e) for e in here}) == len(settings), (number, column.name)


def test_columns_are_label_rates(entries):
    for (table, _, column), entry in entries.items():
        rate = float(column.split("/")[1].rstrip("%")) if "%" in column else RATES.get(column, 5)
        for cell in entry.cells:
            assert cell.run.train["label_rate"] == rate, (table, column)


def test_ablations_switch_what_they_name(entries):
    for (table, row, _), entry in entries.items():
        for cell in entry.cells:
            model = cell.run.model
            if table == "3":
                dual, moderate, regulated = (part[-1] == "1" for part in row.split(","))
                assert (model["elements"] == "2-2-4") == dual and (model["threshold"] is None) == regulated
                assert model["perturbation"] == ("moderate" if moderate else "warping")
            elif table in ("4", "7"):
                assert model["perturbation"] == PERTURBATIONS[row.split(" [")[0]]
            elif table == "6":
                assert (model["threshold"] is None) == (row == "SeFAR")
            elif table == "8":
                assert model["passes"] == int(row.split("=")[1])
            elif table == "fig4a":
                assert f"{{{model['elements']}}}" == row
            elif table == "fig4b":
                assert str(model["threshold"]) == {"adaptive regulation": "None"}.get(row, row.split()[-1])


def test_figures_of_single_videos_measure_what_tables_train(plan, entries):
    """But for SVFormer on Gym-New, which no table has. Figure 8 tests once for both of its numbers."""
    others = {cell.run.id for place, e in entries.items() if not place[0].startswith("fig") for cell in e.cells}
    for (table, row, column), entry in entries.items():
        if table in ("fig4c", "fig5", "fig8") and row == "SeFAR":
            assert all(cell.run.id in others for cell in entry.cells)
        if table == "fig5":
            assert cell_ids(entry) == cell_ids(entries["fig4c", row, column])
            assert entry.metric == "teacher_spread_pct" and not entry.cells[0].run.model["threshold"]
    for row in ("SVFormer", "SeFAR"):
        (opposite,), (accuracy,) = (entries["fig8", row, f"Gym-New/{name}"].cells for name in ("opposite", "accuracy"))
        assert opposite.run == accuracy.run and opposite.run.method == row.lower() and opposite.id != accuracy.id
        assert opposite.measure.settled().scoring == accuracy.measure.settled().scoring


def test_backbones(read_plan):
    plan = read_plan("paper")
    names = {"ViT-S": "vit_s16", "ViT-B": "vit_b16"}
    for entry in plan.table_entries("sefar", "2"):
        for cell in entry.cells:
            kind = next((name for name in names if name in entry.row), "ViT-S")  # FixMatch's is another one
            wanted = "vit_s16_scratch" if "ImgNet=no" in entry.row else names[kind]
            wanted = {"LTG": "r3d18", "MemDPC": "r2d3d18"}.get(entry.row.split()[0], wanted)
            assert cell.run.backbone.rsplit("-", 1)[0] == wanted, entry.row


def test_predictions_of_the_teacher_are_one_sweep(plan):
    (sweep,) = (sweep for name, sweep in plan.sweeps.items() if name.startswith("sefar_"))
    assert sweep.axis == "model.passes"
    assert [plan.runs[run].model["passes"] for run in sweep.runs] == [2, 5, 10, 20]
    assert [plan.runs[run].model["passes"] for run in sweep.runs if run not in plan.swept] == [10]


def test_rows_without_an_experiment_give_a_reason(plan):
    rows = [row for table in plan.papers["sefar"].tables.values() for row in table.rows]
    only = [row for row in rows if row.published_only]
    assert len({row.published_only for row in only}) == len(only) == 9
    assert [row.name for row in plan.papers["sefar"].tables["5"].rows if row.published_only] == []


def test_a_part_of_a_note_has_no_separator_inside(plan):
    for table in plan.papers["sefar"].tables.values():
        for row in table.rows:
            assert not any("; " in note for note in (row.published_only, row.note, *row.notes.values()))


def test_questions_read_the_trainings_of_other_tables(plan, entries):
    """SeFAR and supervised training of Table 1a; a network as it was drawn, or read from a file, is none of these."""
    rows = {"SeFAR (Ours)": FULL, "Supervised only": "Supervised only [ViT-S, V, ImgNet=yes, 8 frames, 30 epochs]"}
    for name, other in (("Gym-QA-99", "Gym99/5%"), ("Gym-QA-288", "Gym288/5%")):
        for row, trained in rows.items():
            (cell,), (read,) = entries["5", row, name].cells, entries["1a", trained, other].cells
            assert cell.run.model["encoder_run"] == read.run.id and cell.run.train["label_rate"] == 5
        for row in ("ViT-S, not trained further", "no video"):
            (cell,) = entries["5", row, name].cells
            assert plan.runs[cell.run.model["encoder_run"]].train == {} and cell.run.model["blind"] == (
                row == "no video"
            )


def test_the_demo_is_a_few_trainings(read_plan):
    plan = read_plan("demo")
    runs = {cell.run.id: cell.run for e in plan.entries if e.paper == "sefar" for cell in e.cells}
    assert len(runs) <= 75 and {run.dataset.rsplit("-", 1)[0] for run in runs.values()} == {"synthetic_semi"}
