"""The workflow for real: what is made, what is made again, and what is not."""

from __future__ import annotations

import csv
import json
import re

import pytest
import yaml

pytestmark = pytest.mark.slow


def _rows(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def _jobs(out: str) -> dict[str, int]:
    return {name: int(count) for name, count in re.findall(r"^(\w+) +(\d+)$", out, re.M)}


def test_tables_are_measured(finished):
    rows = _rows(finished.folder / "results/lga/table2.csv") + _rows(finished.folder / "results/lga/table6.csv")
    assert len(rows) == 32
    for row in rows:
        assert row["status"] == "measured" and row["scale"] == "demo" and row["selection"] == "val"
        # A model that says one class throughout is right once in every episode: an interval of 0.
        assert float(row["ci95"]) >= 0 and 0 <= float(row["value"]) <= 100 and int(row["n"]) == 40
        assert float(row["delta"]) == pytest.approx(float(row["value"]) - float(row["published"]), abs=1e-3)
        assert (finished.folder / "results/cells" / f"{row['cell_id']}.json").is_file()
    full = {
        r["cell_id"] for r in rows if (r["table"], r["row"], r["column"]) == ("2", rows[7 * 2]["row"], "HMDB51/1-shot")
    }
    six = {r["cell_id"] for r in rows if (r["table"], r["row"], r["column"]) == ("6", "Number=3", "HMDB51/1-shot")}
    assert full == six and len(full) == 1


def test_sweeps_leave_their_trials(finished):
    tables = sorted((finished.folder / "results/sweeps").glob("*.csv"))
    assert len(tables) == 2
    assert [row["model.atoms"] for row in _rows(tables[0])] == ["1", "2", "3", "4"]


def test_alpha_curve_is_kept(finished):
    cells = [json.loads(path.read_text()) for path in (finished.folder / "results/cells").glob("*.json")]
    searched = [cell for cell in cells if cell["alpha_curve"]]
    assert searched
    for cell in searched:
        assert [point[0] for point in cell["alpha_curve"]["val"]] == [i / 10 for i in range(11)]
        top = max(value for _, value in cell["alpha_curve"]["val"])
        assert dict(map(tuple, cell["alpha_curve"]["val"]))[cell["alpha"]] == top


def test_second_call_does_nothing(finished):
    status, out = finished.run("results/lga/table2.csv", "results/lga/table6.csv")
    assert status == 0 and "Nothing to be done" in out, out[-2000:]


@pytest.mark.parametrize(
    "setting",
    [
        "cluster={slots: 2, threads: 2, idle_minutes: 5}", "resources={train: {mem_mb: 4000}, evaluate: {threads: 2}}",
        "mirror=/somewhere", "llm={price: {input: 1.0, output: 4.0}}",
    ],
)  # fmt: skip
def test_where_and_how_fast_makes_nothing_anew(finished, setting):
    status, out = finished.run("-n", "--config", setting, "--", "results/lga/table2.csv", "results/lga/table6.csv")
    assert status == 0 and "Nothing to be done" in out, out[-3000:]


def test_what_a_model_sees_is_drawn_without_training(finished, repo):
    status, out = finished.run("results/lga/figphases.svg")
    assert status == 0, out[-3000:]
    assert _jobs(out) == {"inspect_run": 1, "figure_of_paper": 1, "total": 2}
    (look,) = (finished.folder / "results/inspect").glob("*.npz")
    assert not list(look.parent.glob(".*"))
    picture = (finished.folder / "results/lga/figphases.svg").read_text()
    assert "phase 3" in picture and "<image" in picture
    assert len(_rows(finished.folder / "results/lga/figphases.csv")) == 1
    look.unlink()  # the picture needs it
    status, out = finished.pipeline("figure", "figphases", "--paper", "lga", "--overlay", "tiny.yaml",
                                    "--config", str(repo / "config"))  # fmt: skip
    assert status == 2 and out.startswith("error: ") and "nobody has looked into this run yet" in out


def test_snakemake_reports_every_result_with_its_caption(finished, repo):
    status, out = finished.run("--report", "made.html", "results/lga/table2.csv", "results/lga/table6.csv")
    assert status == 0, out[-3000:]
    page = (finished.folder / "made.html").read_text()
    sheets = yaml.safe_load((repo / "config" / "tables" / "lga.yaml").read_text())["tables"]
    assert all(sheets[number]["title"] in page for number in ("2", "6"))


def test_a_deleted_cell_is_measured_again_without_training(finished):
    row = _rows(finished.folder / "results/lga/table2.csv")[0]
    cell = finished.folder / "results/cells" / f"{row['cell_id']}.json"
    before = json.loads(cell.read_text())
    others = {path: path.stat().st_ino for path in cell.parent.glob("*.json") if path != cell}
    cell.unlink()
    # As lga_tables does, name the cell beside the table: Snakemake leaves a missing file alone
    # as long as what was made from it is there.
    status, out = finished.run("results/lga/table2.csv", f"results/cells/{cell.name}", "--verbose")
    assert status == 0, out[-3000:]
    # The scheduler looks at the jobs at the start and when one ends, and not every second.
    assert 1 <= out.count("Ready jobs:") <= 4, out[-3000:]
    (job,) = (name for name in _jobs(out) if name.startswith("evaluate_"))
    assert job.startswith(f"evaluate_{row['run_id'].replace('-', '_')}")
    assert _jobs(out) == {job: 1, "table_of_paper": 1, "total": 2}
    # Cells that the same job measures, and that were there, are not written again.
    assert {path: path.stat().st_ino for path in others} == others
    assert re.search(r"^done: \d+ of \d+ cells, \d+ of \d+ trainings; \d+ (s|min) this time$", out, re.M), out[-2000:]
    assert json.loads(cell.read_text()) == before


def test_another_alpha_grid_trains_and_encodes_nothing(finished):
    scores = {path: path.stat().st_mtime_ns for path in (finished.folder / "results/scores").rglob("*.npz")}
    status, out = finished.run("results/lga/table2.csv", "--config", "alpha_grid=[0.25,0.75]")
    assert status == 0, out[-3000:]
    assert not any(name.startswith(("train", "sweep", "pretrain", "extract")) for name in _jobs(out))
    assert {path: path.stat().st_mtime_ns for path in (finished.folder / "results/scores").rglob("*.npz")} == scores
    assert all(
        json.loads((finished.folder / "results/cells" / f"{row['cell_id']}.json").read_text())["alpha"]
        in (None, 0.25, 0.75)
        for row in _rows(finished.folder / "results/lga/table2.csv")
    )


def test_two_calls_at_once_do_not_mix(finished):
    for path in (finished.folder / "results/lga").glob("table*"):
        path.unlink()
    first, second = finished.start("results/lga/table2.csv"), finished.start("results/lga/table2.csv")
    outs = [process.communicate(timeout=300)[0] for process in (first, second)]
    states = sorted([first.returncode, second.returncode])
    assert states[0] == 0, outs
    if states[1]:  # the one that came second was refused
        assert any("cannot be locked" in out for out in outs), outs
    assert len(_rows(finished.folder / "results/lga/table2.csv")) == 16


def test_a_killed_workflow_loses_nothing(finished):
    row = _rows(finished.folder / "results/lga/table2.csv")[-1]
    cell = finished.folder / "results/cells" / f"{row['cell_id']}.json"
    cell.unlink()
    targets = ("results/lga/table2.csv", f"results/cells/{cell.name}")
    process = finished.start(*targets)
    for line in process.stdout:
        if "Execute" in line:
            break
    process.kill()
    process.communicate()
    assert not list((finished.folder / "results/cells").glob("*.tmp"))
    finished.run("--unlock")
    status, out = finished.run(*targets)
    assert status == 0, out[-3000:]
    assert not any(name.startswith(("train", "sweep")) for name in _jobs(out))
    assert cell.is_file()


def test_the_cluster_is_gone_afterwards(finished):
    status, out = finished.pipeline("cluster", "status")
    assert (status, out.strip()) == (0, "no cluster is running")
    token = finished.folder / "results/ray/token"
    assert not token.exists() or token.stat().st_mode & 0o077 == 0
    secret = token.read_text() if token.exists() else None
    logs = [path for path in (finished.folder / "results").rglob("*.log")]
    assert logs and secret is not None
    assert not any(secret in path.read_text(errors="replace") for path in logs)
