"""Result files and console tables from made-up cells of a small sheet of its own."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from pipeline.errors import UserError
from pipeline.experiment import Cell
from pipeline.plan import Plan
from pipeline.sheets import table_number, table_stem
from pipeline.tables.console import print_table
from pipeline.tables.records import COLUMNS, records
from pipeline.tables.results import FORMATS, write_combined, write_table

SHEET = {
    "title": "A paper",
    "tables": {
        "1": {
            "title": "Methods",
            "note": "Read with care.",
            "columns": [
                {"name": "Set/1-shot", "experiment": {"dataset": "real", "measure": {"shot": 1}}},
                {"name": "Set/5-shot", "experiment": {"dataset": "real", "measure": {"shot": 5}}},
                {"name": "Time", "metric": "time_ms", "experiment": {"dataset": "real"}},
            ],
            "rows": [
                {
                    "name": "Other [RN|50]",
                    "published_only": "not implemented",
                    "published": [54.5, None, 3590],
                },
                {
                    "name": "Plain",
                    "experiment": {"method": "net", "measure": {"score": "vv"}},
                    "published": [70.0, 80.0, None],
                },
                {
                    "name": "Ours",
                    "experiment": {"method": "net", "model": {"width": 2}},
                    "published": [86.8, None, 187.82],
                    "note": "the proposed one",
                    "notes": {"Set/1-shot": "printed twice"},
                },
            ],
        },
        "fig3": {
            "title": "Figure 3: one bar",
            "columns": [{"name": "Set/1-shot", "experiment": {"dataset": "real", "measure": {"shot": 1}}}],
            "rows": [{"name": "Ours", "experiment": {"method": "net", "model": {"width": 2}}}],
        },
    },
}
RECIPE = yaml.safe_load((Path(__file__).parents[3] / "config" / "methods" / "clip_fsar.yaml").read_text())
FILES = {
    "config.yaml": {
        "scale": "small",
        "alpha_grid": [0.0, 0.5, 1.0],
        "frames": {"store": {"size": [8, 8]}, "number": 8},
    },
    "scales/small.yaml": {"substitute": {"real": "fake"}, "substitute_backbone": {"large": "nano"}},
    "scales/paper.yaml": {},
    "backbones.yaml": {"large": {"source": "hub/large"}, "nano": {"source": "hub/nano"}},
    "datasets/real.yaml": {"kind": "list"},
    "datasets/fake.yaml": {"kind": "synthetic", "set": "scene", "clips_per_class": 2},
    "methods/net.yaml": {
        "task": "few_shot",
        "backbone": "large",
        "model": {"width": 1},
        "train": RECIPE["train"] | {"steps": 3},
    },
    "tables/one.yaml": SHEET,
    "tables/two.yaml": {
        "title": "Another paper",
        "tables": {"1": SHEET["tables"]["fig3"] | {"title": "Bars"}},
    },
}
CELL = ("Ours", "Set/1-shot")


@pytest.fixture
def folder(tmp_path) -> Path:
    for name, content in FILES.items():
        path = tmp_path / "config" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(content))
    return tmp_path


@pytest.fixture
def make(folder):
    """`make(overlay, {(row, column): values})` writes the cell files of a plan; places not named get 50."""

    def build(overlay=None, values=None) -> Plan:
        plan = Plan.read(folder / "config", overlay)
        for entry in plan.entries:
            for i, cell in enumerate(entry.cells):
                numbers = (values or {}).get((entry.row, entry.column), [50.0] * len(entry.cells))
                write_cell(folder, cell, value=numbers[i])
        return plan

    return build


def write_cell(folder: Path, cell: Cell, /, **changes) -> Path:
    record = {
        "cell": cell.id, "run": cell.run.id, "metric": cell.measure.metric, "value": 50.0, "ci95": 0.4,
        "n": 2000, "alpha": 0.5 if cell.measure.score == "both" else None,
        "alpha_curve": {"val": [[0.5, 50.0]], "test": [[0.5, 50.0]]},
        "dataset": "fake", "scale": cell.run.scale, "selection": cell.run.selection, "seed": cell.run.seed,
        "coverage": None,
    }  # fmt: skip
    path = folder / "results" / "cells" / f"{cell.id}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record | changes))
    return path


def read(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))


def line(lines: list[dict[str, str]], row: str, column: str) -> dict[str, str]:
    return next(x for x in lines if (x["row"], x["column"]) == (row, column))


# Names


@pytest.mark.parametrize(("number", "stem"), [("4", "table4"), ("1a", "table1a"), ("fig3", "fig3")])
def test_names_of_tables(number, stem):
    assert table_stem(number) == stem
    assert table_number(stem) == table_number(number) == number


# The long file


def test_long_file_has_every_place_in_order(make, folder):
    path, *_ = write_table(make({}, {CELL: [85.3]}), "one", "1", folder / "results")
    assert path == folder / "results" / "one" / "table1.csv"
    lines = read(path)
    expected = "paper table row column metric value ci95 n published delta scale selection seeds run_id cell_id"
    assert list(lines[0]) == list(COLUMNS) == [*expected.split(), "status", "health", "note"]
    assert [(x["row"], x["status"]) for x in lines] == [
        *[("Other [RN|50]", "published-only")] * 2,
        *[("Plain", "measured")] * 3,
        *[("Ours", "measured")] * 3,
    ]


def test_a_measured_line(make, folder):
    plan = make({}, {CELL: [85.3]})
    found = line(read(write_table(plan, "one", "1", folder / "results")[0]), *CELL)
    (cell,) = next(e for e in plan.entries if (e.row, e.column) == CELL).cells
    assert (found["value"], found["ci95"], found["n"]) == ("85.3", "0.4", "2000")
    assert (found["published"], found["delta"]) == ("86.8", "-1.5")
    assert (found["run_id"], found["cell_id"]) == (cell.run.id, cell.id)
    assert (found["scale"], found["selection"], found["seeds"]) == ("small", "val", "0")
    assert found["note"].split("; ") == [
        "the proposed one",
        "printed twice",
        "measured on fake in place of real",
        "backbone nano in place of large",
        "alpha 0.5 (chosen on validation)",
    ]


def test_a_printed_line_has_no_measurement(make, folder):
    found = line(read(write_table(make(), "one", "1", folder / "results")[0]), "Other [RN|50]", "Set/1-shot")
    assert found["published"] == "54.5" and found["note"] == "not implemented"
    assert {found[key] for key in ("value", "ci95", "n", "delta", "scale", "selection", "run_id")} == {""}


def test_nothing_is_substituted_at_paper_scale(make, folder):
    _, page, *_ = write_table(make({"scale": "paper"}), "one", "1", folder / "results")
    assert "in place of" not in page.read_text()
    assert "not comparable" not in page.read_text()


def test_selection_on_the_test_classes_is_labelled(make, folder):
    path, page, *_ = write_table(make({"selection": "test"}), "one", "1", folder / "results")
    assert line(read(path), *CELL)["selection"] == "test (paper)"
    assert "checkpoint selection test (paper)" in page.read_text()


def test_a_given_alpha_is_not_called_chosen(make, folder):
    (found,) = records(make({"measure": {"alpha": 0.5}}), "one", "fig3", folder / "results")
    assert found.note.endswith("; alpha 0.5")


def test_incomplete_coverage_is_noted(make, folder):
    plan = make()
    (entry,) = plan.table_entries("one", "fig3")
    whole = records(plan, "one", "fig3", folder / "results")[0].note
    write_cell(folder, entry.cells[0], coverage=1.0, coverage_train=1.0)
    assert records(plan, "one", "fig3", folder / "results")[0].note == whole
    write_cell(folder, entry.cells[0], coverage=0.9234, coverage_train=1.0)
    assert records(plan, "one", "fig3", folder / "results")[0].note == f"{whole}; 92.3 % of the test clips"
    write_cell(folder, entry.cells[0], coverage=0.9999, coverage_train=0.5)
    found = records(plan, "one", "fig3", folder / "results")[0].note
    assert found == f"{whole}; 99.9 % of the test clips; 50.0 % of the training clips"


def test_seeds_are_averaged_and_their_intervals_pooled(make, folder):
    plan = make({"seeds": [0, 1, 7]}, {CELL: [60.0, 62.0, 64.0]})
    (entry,) = plan.table_entries("one", "fig3")
    write_cell(folder, entry.cells[1], value=62.0, alpha=1.0)
    (found,) = records(plan, "one", "fig3", folder / "results")
    assert (found.value, found.n, found.seeds) == (62.0, 6000, "0;1;7")
    assert found.ci95 == pytest.approx(((4.30265 * 2 / 3**0.5) ** 2 + 0.4**2) ** 0.5, abs=1e-4)
    assert found.run_id.split(";") == [cell.run.id for cell in entry.cells]
    assert found.cell_id.split(";") == [cell.id for cell in entry.cells]
    assert "alpha 0.5/1 (chosen" in found.note


# The page


def test_page_has_the_layout_of_the_paper(make, folder):
    values = {
        CELL: [85.31],
        ("Plain", "Set/1-shot"): [85.29],
        ("Ours", "Time"): [20.0],
        ("Plain", "Time"): [21.5],
    }
    _, path, *_ = write_table(make({}, values), "one", "1", folder / "results")
    page = path.read_text(encoding="utf-8")
    rows = [x for x in page.splitlines() if x.startswith("|")]
    assert page.startswith("## one, Table 1: Methods\n")
    assert "Scale small, checkpoint selection val, training seed 0. Smaller than" in page
    assert "Read with care." in page
    assert [row.count(" | ") for row in rows] == [3] * 5
    assert rows[2] == "| Other \\[RN\\|50\\] [^3] | (54.5) |  | (3590.00) |"
    assert "**85.3 ± 0.4** (published 70.0, +15.3)" in rows[3]  # equal as shown: both are best
    assert "**85.3 ± 0.4** (published 86.8, −1.5)" in rows[4]
    assert "| **20.00 ± 0.40** (published 187.82, −167.82) |" in rows[4]  # of times the smaller is better
    assert "| 21.50 ± 0.40 |" in rows[3]


def test_every_note_is_a_footnote_once(make, folder):
    _, path, *_ = write_table(make(), "one", "1", folder / "results")
    page = path.read_text(encoding="utf-8")
    for text in ("measured on fake in place of real", "the proposed one", "printed twice", "not implemented"):
        assert sum(x.startswith("[^") and x.endswith(f": {text}") for x in page.splitlines()) == 1
    head = next(x for x in page.splitlines() if x.startswith("|  |"))
    assert head == "|  | Set/1-shot [^1] [^2] | Set/5-shot [^1] [^2] | Time [^1] [^2] |"


def test_tables_of_one_number_are_combined(make, folder):
    table, page = write_combined(make(), "1", folder / "results")
    assert table == folder / "results" / "table1.csv"
    assert [x["paper"] for x in read(table)] == ["one"] * 8 + ["two"]
    text = page.read_text(encoding="utf-8")
    assert "## one, Table 1: Methods" in text and "## two, Table 1: Bars" in text
    assert "[^one1]: " in text and "[^two1]: " in text


def test_a_figure_is_named_as_one(make, folder):
    paths = write_table(make(), "one", "fig3", folder / "results")
    assert [path.name for path in paths] == [f"fig3.{ending}" for ending in FORMATS]
    assert paths[1].read_text().startswith("## one, Figure 3: one bar")


def test_an_interrupted_writing_leaves_the_old_file(make, folder, monkeypatch):
    plan = make()
    path, *_ = write_table(plan, "one", "1", folder / "results")
    before = path.read_text()

    def stop(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", stop)
    with pytest.raises(OSError, match="disk full"):
        write_table(plan, "one", "1", folder / "results")
    assert path.read_text() == before


# Health


def predictions(**changes) -> dict:
    found = {"accuracy": 50.0, "ci95": 0.4, "classes": 5, "most_said": 0.2, "most_true": 0.2, "constant_scores": False}
    return found | changes


def test_what_did_not_learn_is_flagged_in_the_file_and_on_the_page(make, folder):
    plan = make()
    entry = next(e for e in plan.table_entries("one", "1") if (e.row, e.column) == CELL)
    (cell,) = entry.cells
    write_cell(folder, cell, value=20.3, ci95=0.5, predictions=predictions(accuracy=20.3, ci95=0.5))
    record = {"last_loss": {"name": "loss_matching", "value": 1.7, "chance": 1.609}}
    path = folder / "results" / "runs" / cell.run.id / "train.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(record))
    of_training = "did not learn: training loss 1.70 (chance 1.61)"
    of_test = "did not learn: test 20.3 ± 0.5 (chance 20.0)"
    table, page, *_ = write_table(plan, "one", "1", folder / "results")
    lines = read(table)
    assert line(lines, *CELL)["health"] == f"{of_training}; {of_test}"
    assert "did not learn" not in line(lines, *CELL)["note"]
    assert line(lines, "Ours", "Set/5-shot")["health"] == of_training  # the same training
    assert line(lines, "Ours", "Time")["health"] == line(lines, "Plain", "Set/1-shot")["health"] == ""
    text = page.read_text(encoding="utf-8")
    assert text.count(of_training) == text.count(of_test) == 1  # footnotes
    write_cell(folder, cell, predictions=predictions())
    assert line(read(write_table(plan, "one", "1", folder / "results")[0]), *CELL)["health"].startswith("doubtful: ")


def test_each_seed_has_its_own_health(make, folder):
    plan = make({"seeds": [0, 3]})
    (entry,) = plan.table_entries("one", "fig3")
    write_cell(folder, entry.cells[1], predictions=predictions(most_said=1.0))
    (found,) = records(plan, "one", "fig3", folder / "results")
    assert found.health == "did not learn: one class for 100 % of the test queries (seed 3)"


def test_a_note_says_where_the_untrained_model_was_chosen(make, folder):
    told = "validation chose the untrained model"
    for seeds, note in (([0, 3], f"{told} (seed 3)"), ([3], told)):
        plan = make({"seeds": seeds})
        (entry,) = plan.table_entries("one", "fig3")
        for cell in entry.cells:
            path = folder / "results" / "runs" / cell.run.id / "train.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({"selected_step": 0 if cell.run.seed else 20}))
        (found,) = records(plan, "one", "fig3", folder / "results")
        assert found.note.split("; ")[-1] == note


def test_a_damaged_training_record_is_one_line(make, folder):
    plan = make()
    (entry,) = plan.table_entries("one", "fig3")
    path = folder / "results" / "runs" / entry.cells[0].run.id / "train.json"
    path.parent.mkdir(parents=True)
    path.write_text("{")
    with pytest.raises(UserError, match="train.json: damaged file"):
        records(plan, "one", "fig3", folder / "results")


def test_rows_with_the_same_predictions_say_so(make, folder):
    plan = make()
    cells = {(e.row, e.column): e.cells[0] for e in plan.table_entries("one", "1") if e.cells}
    assert cells["Plain", "Set/1-shot"] != cells[CELL]
    for place in (("Plain", "Set/1-shot"), CELL, ("Ours", "Set/5-shot")):
        write_cell(folder, cells[place], predictions=predictions(digest="abc"))
    lines = read(write_table(plan, "one", "1", folder / "results")[0])
    text = "same predictions for all queries (their trainings differ too little to change an answer): Plain | Ours"
    flagged = [(x["row"], x["column"]) for x in lines if text in x["note"].split("; ")]
    assert flagged == [("Plain", "Set/1-shot"), CELL]  # of one column
    for losses, why in (
        ((0.5, 0.51), "their trainings differ too little to change an answer (last losses 0.5, 0.51)"),
        ((0.5, 0.5), "their trainings are equal: what differs between the rows had no effect"),
    ):
        for place, loss in zip((("Plain", "Set/1-shot"), CELL), losses, strict=True):
            path = folder / "results" / "runs" / cells[place].run.id / "train.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({"last_loss": {"name": "loss", "value": loss, "chance": 1.6}}))
        assert f"queries ({why}): Plain | Ours" in write_table(plan, "one", "1", folder / "results")[0].read_text()
    write_cell(folder, cells[CELL], predictions=predictions(digest="abd"))
    assert "same predictions" not in write_table(plan, "one", "1", folder / "results")[0].read_text()


def test_rows_of_one_cell_need_no_note(make, folder):
    sheet = yaml.safe_load((folder / "config" / "tables" / "one.yaml").read_text())
    fig = sheet["tables"]["fig3"]
    fig["rows"].append(fig["rows"][0] | {"name": "Ours again"})
    (folder / "config" / "tables" / "one.yaml").write_text(yaml.safe_dump(sheet))
    plan = make()
    first, second = plan.table_entries("one", "fig3")
    assert first.cells == second.cells
    write_cell(folder, first.cells[0], predictions=predictions(digest="abc"))
    assert not any("same" in found.note for found in records(plan, "one", "fig3", folder / "results"))


# Errors


def test_missing_cell_names_the_file_and_the_command(make, folder):
    plan = make()
    (entry,) = plan.table_entries("one", "fig3")
    path = folder / "results" / "cells" / f"{entry.cells[0].id}.json"
    path.unlink()
    with pytest.raises(UserError) as error:
        write_table(plan, "one", "fig3", folder / "results")
    assert str(error.value).startswith(f"{path}: not measured yet")
    assert f"`snakemake --config scale=small -- {path}`" in str(error.value)
    assert not (folder / "results" / "one").exists()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "Expecting value"),
        ('{"cell": "a"', "damaged"),
        ("[]", "damaged"),
        ({"value": "high"}, "key value"),
        ({"value": float("nan")}, "key value"),
        ({"cell": "other"}, "cell is 'other' but should be"),
        ({"run": "other"}, "run is 'other' but should be"),
        ({"metric": "time_ms"}, "metric is 'time_ms' but should be 'accuracy_pct'"),
    ],
)
def test_damaged_cell_says_what_and_how_to_make_it_again(make, folder, content, reason):
    plan = make()
    (entry,) = plan.table_entries("one", "fig3")
    if isinstance(content, str):
        path = write_cell(folder, entry.cells[0])
        path.write_text(content)
    else:
        path = write_cell(folder, entry.cells[0], **content)
    with pytest.raises(UserError) as error:
        records(plan, "one", "fig3", folder / "results", allow_missing=True)
    message = str(error.value)
    assert message.startswith(f"{path}: ") and reason in message
    assert f"delete it and make it again with `snakemake --config scale=small -- {path}`" in message
    assert "\n" not in message


@pytest.mark.parametrize("call", [write_table, records])
def test_unknown_table_names_the_nearest(make, folder, call):
    with pytest.raises(UserError, match="unknown table 'table2' in paper one; did you mean 'table1'"):
        call(make(), "one", "2", folder / "results")


def test_unknown_names_in_other_calls(make, folder):
    plan = make()
    with pytest.raises(UserError, match="unknown table 'table9'; did you mean 'table1'"):
        write_combined(plan, "9", folder / "results")
    with pytest.raises(UserError, match="unknown table 'fig4'; did you mean 'fig3'"):
        print_table(plan, None, "fig4", folder / "results")
    with pytest.raises(UserError, match="unknown paper 'ones'; did you mean 'one'"):
        write_table(plan, "ones", "1", folder / "results")


# The console


def shown(plan: Plan, folder: Path, number: str, paper: str | None = None) -> str:
    console = Console(file=io.StringIO(), width=140)
    print_table(plan, paper, number, folder / "results", console)
    return console.file.getvalue()


def test_console_shows_ours_and_the_printed_value(make, folder):
    text = shown(make({}, {CELL: [85.3]}), folder, "table1", paper="one")
    assert "one, Table 1: Methods" in text and "two, Table 1" not in text
    assert "85.3 ± 0.4" in text and "(86.8, −1.5)" in text and "(54.5)" in text
    assert "measured on fake in place of real" in text


def test_console_shows_every_paper_that_has_the_table(make, folder):
    text = shown(make(), folder, "1")
    assert "one, Table 1: Methods" in text and "two, Table 1: Bars" in text


def test_console_shows_what_there_is(make, folder):
    plan = make()
    entry = next(e for e in plan.table_entries("one", "1") if (e.row, e.column) == CELL)
    (folder / "results" / "cells" / f"{entry.cells[0].id}.json").unlink()
    text = shown(plan, folder, "table1", paper="one")
    assert "1 of 6 places are not measured yet (–)" in text
    assert "(86.8)" in text and "(86.8," not in text
