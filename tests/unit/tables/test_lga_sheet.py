"""The sheet of LGA against the printed numbers, and its rows against the experiments that they must be."""

from __future__ import annotations

import pytest
from sheets import cell_ids

PAPER = "lga"
PRINTED = {"1": 162, "2": 16, "3": 20, "4": 28, "5": 16, "6": 16, "fig3": 8}
IN_SHEET = PRINTED | {"4": 32, "fig3": 4}
"""Table 4: four numbers stand for both shots; Figure 3: its four multiples stand in notes."""
EXCHANGED = {"HMDB51": "SSv2-Small", "SSv2-Small": "HMDB51"}
FULL = [
    ("1", "Our (LGA) [CLIP-ViT-B]"),
    ("2", "Visual-An=1,Textual-An=1,vv=1,vt=1"),
    ("3", "Text=Atomic Description,Scale=L,Attention=Cross"),
    ("4", "video-video=AB-MHM,video-text=Atomic description"),
    ("5", "CLUSTER"),
    ("6", "Number=3"),
]
TWO_SETS = [f"{name}/{shot}-shot" for name in ("HMDB51", "SSv2-Small") for shot in (1, 5)]


def places(line: dict[str, str]) -> list[str]:
    """Columns of our sheet where a printed number of the CSV belongs."""
    column = line["column"]
    if line["table"] == "6":
        name, shot = column.split("/")
        return [f"{EXCHANGED[name]}/{shot}"]
    if "1-shot+5-shot" in column:
        name = column.split("/")[0]
        return [f"{name}/1-shot", f"{name}/5-shot"]
    return [column]


def test_every_printed_number_is_in_the_sheet_and_no_other(printed, values, entries):
    expected = {}
    for line in printed:
        if line["metric"] == "ratio_x":
            note = entries[line["table"], line["row"], "Inference Time"].note
            assert f"×{line['value']}" in note
            continue
        factor = 1000 if line["metric"] == "time_s" else 1
        for column in places(line):
            expected[line["table"], line["row"], column] = pytest.approx(factor * float(line["value"]), abs=1e-9)
    assert values == expected


def test_number_of_values_per_table(values):
    assert {table: sum(place[0] == table for place in values) for table in IN_SHEET} == IN_SHEET


def test_number_of_printed_values_per_table(printed):
    assert {table: sum(line["table"] == table for line in printed) for table in PRINTED} == PRINTED
    assert len(printed) == sum(PRINTED.values()) == 266


def test_times_are_in_milliseconds(entries):
    times = {row: e for (table, row, column), e in entries.items() if column == "Inference Time"}
    assert {e.metric for e in times.values()} == {"time_ms"}
    assert times["Qwen-2.5"].published == 5800 and "5.80 s" in times["Qwen-2.5"].note
    assert times["LLaVA-1.5"].published == 3590 and "3.59 s" in times["LLaVA-1.5"].note


def test_table_6_keeps_both_readings(plan):
    table = plan.papers["lga"].tables["6"]
    assert "exchanged" in table.note
    for row in table.rows:
        hmdb, ssv2 = row.published[:2], row.published[2:]
        assert f"as printed HMDB51 {ssv2[0]} and {ssv2[1]}, SSv2-Small {hmdb[0]} and {hmdb[1]}" in row.note


def test_numbers_printed_once_for_both_shots_say_so(values, entries):
    for row in ("Action label", "Atomic description"):
        name = f"video-video=-,video-text={row}"
        for data in ("HMDB51", "SSv2-Small"):
            one, five = (("4", name, f"{data}/{shot}-shot") for shot in (1, 5))
            assert values[one] == values[five]
            assert "printed once for both shots" in entries[one].note


# Which rows are one experiment


@pytest.mark.parametrize("column", TWO_SETS)
def test_the_full_model_is_one_cell_in_all_tables(entries, column):
    here = [entries[table, row, column] for table, row in FULL if (table, row, column) in entries]
    assert len(here) == (6 if column.startswith("HMDB51") else 5)
    assert len({cell_ids(entry) for entry in here}) == 1
    assert len({entry.published for entry in here}) == 1


@pytest.mark.parametrize(
    ("one", "other", "shots"),
    [
        (("1", "CLIP-FSAR [CLIP-ViT-B]"), ("2", "Visual-An=0,Textual-An=0,vv=1,vt=1"), (1, 5)),
        (("1", "CLIP-FSAR [CLIP-ViT-B]"), ("fig3", "CLIP-FSAR"), (1,)),
        (("1", "Our (LGA) [CLIP-ViT-B]"), ("fig3", "Our"), (1,)),
        (("2", "Visual-An=1,Textual-An=1,vv=1,vt=0"), ("4", "video-video=AB-MHM,video-text=-"), (1, 5)),
    ],
)
def test_rows_of_one_experiment_are_one_cell(entries, one, other, shots):
    for shot in shots:
        column = f"HMDB51/{shot}-shot"
        assert cell_ids(entries[(*one, column)]) == cell_ids(entries[(*other, column)])


def test_printed_identities_hold_or_are_noted_as_broken(values, entries):
    """Numbers that stand twice are equal; where the paper contradicts itself, notes at both say so."""

    def at(table: str, row: str, shot: int) -> tuple[str, str, str]:
        return table, row, f"HMDB51/{shot}-shot"

    for shot in (1, 5):
        fsar = at("1", "CLIP-FSAR [CLIP-ViT-B]", shot), at("2", "Visual-An=0,Textual-An=0,vv=1,vt=1", shot)
        assert values[fsar[0]] == values[fsar[1]]
    twice = [
        ("Visual-An=1,Textual-An=1,vv=1,vt=0", ("4", "video-video=AB-MHM,video-text=-"), 1, "80.9", "80.8"),
        ("Visual-An=0,Textual-An=1,vv=1,vt=1", ("3", "Text=Atomic Description,Scale=G,Attention=Self"), 5,
         "87.6", "87.8"),
    ]  # fmt: skip
    for row, other, shot, there, here in twice:
        first, second = at("2", row, shot), at(*other, shot)
        assert (str(values[first]), str(values[second])) == (here, there)
        assert f"{there} in Table {other[0]}" in entries[first].note
        assert f"{here} in Table 2" in entries[second].note
        equal = 5 if shot == 1 else 1
        assert values[at("2", row, equal)] == values[at(*other, equal)]


def test_video_text_matching_of_labels_uses_the_run_of_table_3(entries):
    for column in TWO_SETS:
        matched = entries["4", "video-video=-,video-text=Action label", column].cells[0]
        fused = entries["3", "Text=Action Label,Scale=G,Attention=Cross", column].cells[0]
        assert matched.run == fused.run
        assert (matched.measure.score, fused.measure.score) == ("vt", "both")


def test_scores_of_table_2_follow_the_ticks(entries):
    for (table, row, _), entry in entries.items():
        if table == "2":
            assert entry.cells[0].measure.score == ("both" if row.endswith("vt=1") else "vv")


def test_rows_of_a_table_are_different_experiments(plan):
    for number, table in plan.papers["lga"].tables.items():
        for column in table.columns:
            here = [cell_ids(e) for e in plan.table_entries("lga", number) if e.column == column.name and e.cells]
            assert len(set(here)) == len(here), f"table {number}, {column.name}"


def test_matchers_of_table_4_are_trained_with(entries):
    for name, matcher in (("OTAM", "otam"), ("Bi-MHM", "bi_mhm"), ("AB-MHM", "ab_mhm")):
        for text in ("-", "Atomic description"):
            cell = entries["4", f"video-video={name},video-text={text}", "HMDB51/1-shot"].cells[0]
            assert cell.run.model["matcher"] == matcher and cell.measure.matcher is None


def test_number_of_phases_is_a_sweep(plan):
    sweeps = [sweep for name, sweep in plan.sweeps.items() if name.startswith("lga_table6")]
    assert [(sweep.axis, len(sweep.runs)) for sweep in sweeps] == [("model.atoms", 4)] * 2


def test_rows_without_an_experiment_give_a_reason(plan):
    rows = [row for table in plan.papers["lga"].tables.values() for row in table.rows]
    only = {row.name: row.published_only for row in rows if row.published_only}
    assert len(rows) == 59 and len(only) == 6
    assert len(set(only.values())) == len(only)  # each has its own
    measured = [r.name for r in plan.papers["lga"].tables["1"].rows if r.experiment]
    clip = [f"{name} [CLIP-ViT-B]" for name in ("OTAM", "CLIP-Freeze", "EMP-Net", "CLIP-FSAR", "Our (LGA)")]
    assert measured == [f"{name} [INet-RN50]" for name in ("OTAM", "TRX", "STRM", "HyRSM", "MoLo", "TEAM")] + clip


def test_a_part_of_a_note_has_no_separator_inside(plan):
    """Notes are joined by "; ", and taken apart there to become footnotes."""
    for table in plan.papers["lga"].tables.values():
        for row in table.rows:
            assert not any("; " in note for note in (row.published_only, row.note, *row.notes.values()))
