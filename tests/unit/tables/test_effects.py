"""The page of what the switches do: from made-up cells, and as it stands in the documentation."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from pipeline.errors import UserError
from pipeline.evaluation.needed import scores_path
from pipeline.intervals import ci95
from pipeline.plan import Plan
from pipeline.scores import EpisodeScores
from pipeline.tables.effects import SCALES, UNMEASURED, write_effects
from pipeline.workspace import Workspace

SHEET = {
    "tables": {
        "switches": {
            "title": "Switches",
            "tables": {
                "1": {
                    "title": "OTAM",
                    "columns": [{"name": "scene", "experiment": {"dataset": "hmdb51", "measure": {"shot": 1}}}],
                    "rows": [
                        {"name": "default", "experiment": {"method": "otam"}},
                        {"name": "model.lam: 0.5", "experiment": {"method": "otam", "model": {"lam": 0.5}}},
                        {"name": "model.lam: 2", "experiment": {"method": "otam", "model": {"lam": 2}}, "note": "soft"},
                    ],
                }
            },
        }
    }
}


@pytest.fixture
def sheet(tmp_path) -> Path:
    path = tmp_path / "switches.yaml"
    path.write_text(yaml.safe_dump(SHEET))
    return path


@pytest.fixture
def write(repo, tmp_path, sheet):
    """Writes the page anew and returns its places and its text."""

    def again():
        page = tmp_path / "page.md"
        return write_effects([sheet], page, repo / "config", tmp_path / "results"), page.read_text()

    return again


def measure(repo: Path, tmp_path: Path, values: dict[str, float], scale: str = "demo") -> dict[str, object]:
    """Writes a cell with ± 3 for each row of `values`; returns the cells by row."""
    plan, cells = Plan.read(repo / "config", SHEET | {"scale": scale}, "switches"), {}
    for entry in plan.table_entries("switches", "1"):
        (cell,) = entry.cells
        if entry.row in values:
            cells[entry.row] = cell
            made = {"cell": cell.id, "run": cell.run.id, "metric": "accuracy_pct", "n": 4, "ci95": 3.0}
            path = Workspace(tmp_path / "results").cell(cell.id)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(made | {"value": values[entry.row]}))
    return cells


def line(text: str, row: str) -> str:
    return next(line for line in text.splitlines() if row in line and line.startswith("|"))


def test_a_row_has_value_difference_interval_and_scale(repo, tmp_path, write):
    measure(repo, tmp_path, {"default": 70.0, "model.lam: 0.5": 66.0})
    measure(repo, tmp_path, {"default": 80.0, "model.lam: 0.5": 81.0}, "quick")
    _, text = write()
    assert "| default | demo | 70.0 ± 3.0 |  |" in text and "| default | quick | 80.0 ± 3.0 |  |" in text
    assert "| `model.lam: 0.5` | demo | 66.0 ± 3.0 (−4.0 ± 4.2) |  |" in text  # 4.2: two independent ones
    assert "| `model.lam: 0.5` | quick | 81.0 ± 3.0 (+1.0 ± 4.2) |  |" in text
    assert line(text, "lam: 2") == f"| `model.lam: 2` |  | {UNMEASURED} | soft |"


def test_what_is_left_is_counted_with_the_command_that_measures_it(repo, tmp_path, write, sheet):
    measure(repo, tmp_path, {"default": 70.0, "model.lam: 0.5": 66.0, "model.lam: 2": 60.0})
    measure(repo, tmp_path, {"model.lam: 2": 60.0}, "quick")  # without its default it says nothing
    places, text = write()
    assert [sum(p.effect is None for p in places if p.scale == scale) for scale in SCALES] == [0, 3, 3]
    assert "- demo: 0 of 3 places are not measured\n" in text
    command = f"`snakemake --config scale=quick --configfile {sheet.as_posix()} -- results/switches/table1.csv`"
    assert f"- quick: 3 of 3 places are not measured: {command}" in text


def test_the_interval_of_a_difference_is_that_of_the_same_episodes(repo, tmp_path, write):
    """Where the scores are there: two rows that fail on the same questions but one differ by little."""
    cells = measure(repo, tmp_path, {"default": 75.0, "model.lam: 0.5": 50.0})
    right = {"default": [1, 1, 1, 0], "model.lam: 0.5": [1, 1, 0, 0]}
    for row, cell in cells.items():
        scores = np.zeros((4, 1, 2), np.float32)
        scores[np.arange(4), 0, 1 - np.array(right[row])] = 1
        path = scores_path(Workspace(tmp_path / "results"), cell.run, cell.measure.settled(), "test")
        EpisodeScores(scores, None, np.zeros((4, 1), int)).save(path)
    half = ci95([0, 0, -100, 0])
    places, text = write()
    assert half < np.hypot(3, 3) * 20 and f"(−25.0 ± {half:.1f})" in text
    assert next(p.effect.difference_ci95 for p in places if p.row == "model.lam: 0.5") == pytest.approx(half, abs=1e-3)


def test_the_page_outlives_the_cells_and_forgets_what_another_setting_measured(repo, tmp_path, write, sheet):
    measure(repo, tmp_path, {"default": 70.0, "model.lam: 0.5": 66.0})
    _, first = write()
    shutil.rmtree(tmp_path / "results")
    _, second = write()
    assert second == first
    changed = yaml.safe_load(sheet.read_text())
    changed["tables"]["switches"]["tables"]["1"]["rows"][1]["experiment"]["model"]["lam"] = 0.6
    sheet.write_text(yaml.safe_dump(changed))
    _, third = write()
    assert UNMEASURED in line(third, "lam: 0.5") and "70.0 ± 3.0" in line(third, "default")
    with (tmp_path / "page.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 1


def test_what_is_wrong_is_told_in_a_line(repo, tmp_path, sheet):
    def told(sheets, match):
        with pytest.raises(UserError, match=match) as caught:
            write_effects(sheets, tmp_path / "page.md", repo / "config", tmp_path / "results")
        assert "\n" not in str(caught.value)

    told([], "there is no sheet of switches here; name one")
    (tmp_path / "page.csv").write_text("cells,value\na,much\n")
    told([sheet], r"page\.csv: line without its columns; delete the file")
    (tmp_path / "page.csv").unlink()
    sheet.write_text("seeds: [0]")
    told([sheet], r"switches\.yaml: key tables is missing")


# As it stands in the documentation


@pytest.fixture(scope="module")
def sheets(repo) -> list[Path]:
    return sorted((repo / "docs" / "examples").glob("switches_*.yaml"))


def test_the_page_of_the_documentation_is_that_of_todays_settings(repo, tmp_path, monkeypatch, sheets):
    """A number whose settings have changed since fails here; `python -m pipeline effects` drops it."""
    monkeypatch.chdir(repo)  # the page names the sheets from there
    for name in ("switches.md", "switches.csv"):
        shutil.copy(repo / "docs" / name, tmp_path / name)
    write_effects([sheet.relative_to(repo) for sheet in sheets], tmp_path / "switches.md", "config", tmp_path / "none")
    for name in ("switches.md", "switches.csv"):
        assert (tmp_path / name).read_text() == (repo / "docs" / name).read_text(), name


def test_every_row_of_a_sheet_differs_from_its_default(repo, sheets):
    for sheet in sheets:
        content = yaml.safe_load(sheet.read_text())
        (paper,) = content["tables"]
        plan = Plan.read(repo / "config", content, paper)
        for number, table in plan.papers[paper].tables.items():
            for column in table.columns:
                cells = [e.cells[0].id for e in plan.table_entries(paper, number) if e.column == column.name]
                assert len(set(cells)) == len(cells) == len(table.rows), (paper, number, column.name)


def test_switches_that_the_notes_call_measured_have_a_row(repo, sheets):
    """A choice in the notes that links to the page names a key which a row of that sheet sets."""
    names = {}
    for sheet in sheets:
        for paper in yaml.safe_load(sheet.read_text())["tables"].values():
            rows = [row["name"] for table in paper["tables"].values() for row in table["rows"]]
            names[paper["title"].lower().replace(" ", "-")] = " ".join(rows)
    lines = (repo / "docs" / "reproduction-notes.md").read_text().splitlines()
    choices = [line.strip("| ").split(" | ") for line in lines if "(switches.md#" in line and line.count(" | ") == 5]
    assert len(choices) > 40
    for *_, switch, effect in choices:
        anchor = re.search(r"switches\.md#([a-z-]+)", effect)[1]
        keys = re.findall(r"[a-z_]+\.[a-z_.]+|selection", " ".join(re.findall(r"`([^`]+)`", switch)))
        assert any(key in names[anchor] for key in keys), (switch, effect)
