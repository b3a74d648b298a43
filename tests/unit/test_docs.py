"""The examples of the documentation, as they stand there."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import get_args

import pytest
import torch
import typer
import yaml
from tiny import CONFIG, OVERLAY

from pipeline.__main__ import app
from pipeline.compat import MODELS
from pipeline.config import merge
from pipeline.datasets.kinds.base import HERE
from pipeline.datasets.kinds.registry import KINDS
from pipeline.evaluation.evaluate import measure_run, search_in_process
from pipeline.evaluation.score import score_run
from pipeline.experiment import Cell, Measure
from pipeline.models.few_shot.base import FewShotModel
from pipeline.plan import Plan
from pipeline.sheets import Experiment, Figure
from pipeline.text.corpus import load_corpus
from pipeline.training.train import train_run

DOCS = Path(__file__).resolve().parents[2] / "docs"
EXAMPLES = sorted(path.relative_to(DOCS).as_posix() for path in (DOCS / "examples").rglob("*.yaml"))


def blocks(page: str, kind: str) -> list[str]:
    """Code blocks of one kind on a page of the documentation."""
    return re.findall(rf"^```{kind}\n(.*?)^```$", (DOCS / page).read_text(), re.M | re.S)


@pytest.fixture
def diagonal(tmp_path):
    """The module of the example method, registered for the length of a test."""
    (source,) = blocks("add-a-method.md", "python")
    path = tmp_path / "diagonal.py"
    path.write_text(source)
    spec = importlib.util.spec_from_file_location("diagonal", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    MODELS.module_dict.pop("Diagonal")


def test_the_example_method_is_planned_trained_and_measured(world, tmp_path, diagonal):
    method, sheet = (yaml.safe_load(text) for text in blocks("add-a-method.md", "yaml"))
    overlay = merge(OVERLAY, {"methods": {"diagonal": method}, **sheet})
    plan = Plan.read(CONFIG, overlay)
    ws = world.elsewhere(tmp_path / "ws")
    (entry, _otam) = plan.table_entries("mine", "1")
    (cell,) = entry.cells
    assert cell.run.method == "diagonal" and cell.run.dataset in {run.dataset for run in world.plan.runs.values()}
    train_run(cell.run, ws)
    score_run(cell.run, [cell], ws)
    (path,) = measure_run(cell.run, [cell], ws, search_in_process)
    assert 0 <= json.loads(path.read_text())["value"] <= 100


def test_the_example_method_compares_frames_at_equal_times(world, diagonal):
    run = world.run(method="otam")
    model = diagonal.Diagonal({"source": str(world.ws.backbone(run.backbone))}, sharpness=2.0)
    support = torch.randn(2, 3, 1, 4, 16, generator=torch.Generator().manual_seed(0))
    prototypes = model.prototypes(support, None)
    assert prototypes.shape == (2, 3, 4, 16)
    scores = model.match(support[:, :, 0], prototypes, None)["vv"]
    assert (scores.argmax(-1) == torch.arange(3)).all()
    turned = model.match(support[:, :, 0].flip(-2), prototypes, None)["vv"]
    assert not torch.allclose(scores, turned)


@pytest.mark.parametrize("page", ["add-a-table-row.md"])
def test_example_sheets_are_planned(repo, page):
    sheet = yaml.safe_load(blocks(page, "yaml")[0])
    plan = Plan.read(repo / "config", sheet)
    assert len(plan.table_entries("mine", "1")) == 6
    runs = {cell.run.id for entry in plan.table_entries("mine", "1") for cell in entry.cells}
    assert len(runs) == 2  # as the page says: the third row changes only the measurement


def test_settings_of_the_quickstart_are_known(repo):
    for text in blocks("quickstart.md", "yaml"):
        Plan.read(repo / "config", yaml.safe_load(text))


@pytest.mark.parametrize("name", EXAMPLES)
def test_example_files_are_planned(repo, monkeypatch, name):
    monkeypatch.chdir(repo)  # their paths start at the root
    overlay = yaml.safe_load((DOCS / name).read_text())
    plan = Plan.read(repo / "config", overlay)
    for paper in overlay.get("tables", {}):
        for _, number in plan.tables(paper):
            assert plan.table_cells(paper, number)


def test_the_texts_of_the_documentation_are_whole(tmp_path):
    (text,) = blocks("add-a-dataset.md", "json")
    (tmp_path / "texts.json").write_text(text)
    for path in (tmp_path / "texts.json", DOCS / "examples" / "utd_mhad" / "texts.json"):
        corpus = load_corpus(path)
        for name in corpus.names:
            assert len(corpus.stages(name)) == 3 and corpus.label(name) and corpus.global_text(name)
            assert all(len(corpus.atomic(name, count)) == count for count in (1, 2, 3, 4))


def test_targets_that_the_pages_name_exist(repo):
    """`results/PAPER/TABLE.csv` and `results/TABLE.csv`, of the papers or of the page's own examples."""
    plan = Plan.read(repo / "config")
    own = {
        "mine",
        *yaml.safe_load((repo / "config" / "rehearsal.yaml").read_text())["tables"],
        *(paper for name in EXAMPLES for paper in yaml.safe_load((DOCS / name).read_text()).get("tables", {})),
    }
    pages = [repo / "README.md", *DOCS.rglob("*.md"), *(DOCS / name for name in EXAMPLES)]
    for page in pages:
        for paper, stem in re.findall(r"results/(?:([a-z_]+)/)?((?:table|fig)\w+)\.(?:csv|md)", page.read_text()):
            number = stem.removeprefix("table")
            assert paper in own or (paper or None, number) in {*plan.tables(), *((None, n) for n in plan.numbers())}, (
                page.name,
                paper,
                stem,
            )


def test_files_of_the_corrections_are_there(repo):
    """In the notes' table of corrections: code and configuration, then tests; a name alone is beside the one before."""
    notes = (DOCS / "reproduction-notes.md").read_text()
    lines = notes[notes.index("| what was wrong |") :].partition("\n\n")[0].splitlines()[2:]
    assert len(lines) >= 14
    for line in lines:
        _, _, code, tests, _, _ = (part.strip() for part in line.split("|"))
        for text, roots in ((code, (repo, repo / "src" / "pipeline")), (tests, (repo / "tests" / "unit",))):
            folders = list(roots)
            for name in re.findall(r"`([^`]+)`", text):
                found = [path for folder in folders for path in folder.glob(name)]
                assert found, (name, line)
                folders = [*roots, found[0].parent]


def anchors(page: Path) -> set[str]:
    """What links within a page may name: its headings, as GitHub spells them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.M)
    return {re.sub(r"[^\w -]", "", text.lower()).replace(" ", "-") for text in headings}


def test_links_between_pages_lead_somewhere(repo):
    for page in [repo / "README.md", *DOCS.rglob("*.md")]:
        links = re.findall(r"\]\((?![a-z]+:)([^)#]*)(?:#([^)]+))?\)", page.read_text())
        for target, anchor in links:
            there = page.parent / target if target else page
            assert there.exists(), (page.name, target)
            assert not anchor or anchor in anchors(there), (page.name, target, anchor)


def test_every_paper_has_a_page_that_names_its_tables_and_says_how_many_rows_stay(repo):
    for name, paper in Plan.read(repo / "config").papers.items():
        page = (DOCS / "papers" / f"{name}.md").read_text()
        told = {title: last for title, last in re.findall(r"^\| ([^|]+) \|.*\| ([^|]+) \|$", page, re.M)}
        of = {number: last for title, last in told.items() for number in re.findall(r"\w+", title)}
        for number, table in paper.tables.items():
            only = sum(bool(row.published_only) for row in table.rows)
            assert of[number].split()[0] == (str(only) if only else "none"), (name, number, of[number])
    assert "papers/index.md" in (repo / "mkdocs.yml").read_text()


def spelt_out(numbers: str) -> set[str]:
    """Numbers of tables or figures as a page lists them: "1 to 3, A1" is 1, 2, 3 and A1."""
    found = set()
    for part in numbers.split(", "):
        first, _, last = part.partition(" to ")
        found |= {str(n) for n in range(int(first), int(last) + 1)} if last else {first}
    return found


def test_the_readme_lists_the_tables_and_figures_of_every_paper(repo):
    plan = Plan.read(repo / "config")
    told = re.findall(
        r"^\| [^|]+ \| ([^|]+) \| ([^|]+) \| \[(\w+)\]\(docs/papers", (repo / "README.md").read_text(), re.M
    )
    assert [paper for *_, paper in told] and {paper for *_, paper in told} == set(plan.papers)
    for tables, figures, paper in told:
        numbers = set(plan.papers[paper].tables)
        drawn = {number.removeprefix("fig") for number in numbers if re.match(r"fig[\dA-Z]", number)}  # figphases: ours
        plain = {number for number in numbers if not number.startswith("fig")}
        for said, planned in ((spelt_out(tables), plain), (spelt_out(figures), drawn)):
            assert {n if n in said else n.rstrip("abc") for n in planned} == said, paper


def test_the_readme_names_every_command(repo):
    readme = (repo / "README.md").read_text()
    section = readme[readme.index("## Stages by hand") : readme.index("## Where to go next")]
    commands = typer.main.get_command(app).commands
    assert not [name for name in commands if f"`{name}`" not in section]


def test_the_readme_counts_what_the_demo_measures(repo):
    plan = Plan.read(repo / "config", number="4")
    trainings = sum(bool(run.train) for run in plan.runs.values())
    assert f"{trainings} trainings, {len(plan.cells)} numbers" in (repo / "README.md").read_text()


def test_the_picture_shows_the_numbers_of_the_readme(repo):
    """Of LGA alone: `docs/img/table4.py` draws its table."""
    results = (repo / "README.md").read_text().partition("<!-- results:begin -->")[2]
    rows = re.findall(r"^\| LGA[^|]*\|(.*)\|$", results, re.M)
    values = [value.strip() for row in rows for value in row.split("|")]
    assert len(values) == 16
    drawn = re.findall(r">([^<>]+)</text>", (DOCS / "img" / "table4.svg").read_text())
    assert not [value for value in values if value not in drawn]


def test_every_rule_of_the_workflow_is_described(repo):
    page = (DOCS / "quickstart.md").read_text()
    table = page[page.index("## What runs for a table") : page.index("## Did it learn?")]
    files = (repo / "workflow" / "rules").glob("*.smk")
    rules = {rule for file in files for rule in re.findall(r"^rule (\w+):", file.read_text(), re.M)}
    assert {"train", "report"} <= rules and not [rule for rule in rules if f"`{rule}`" not in table]


def test_the_setting_train_reaches_the_methods_that_the_quickstart_says(repo):
    """Those that train in episodes: all of two papers, and none of the others'."""
    plan = Plan.read(repo / "config", {"train": {"steps": 7}})
    reached = {
        paper: {cell.run.train["steps"] == 7 for number in page.tables for cell in trained(plan, paper, number)}
        for paper, page in plan.papers.items()
    }
    assert reached == {"lga": {True}, "task_adapter": {True}, "crossglg": {False}, "sefar": {False}}


def trained(plan: Plan, paper: str, number: str) -> list[Cell]:
    """Cells of a table whose run is a training."""
    return [cell for entry in plan.table_entries(paper, number) for cell in entry.cells if cell.run.train]


def test_every_key_of_a_sheet_is_described():
    page = re.sub(r"^```.*?^```$", "", (DOCS / "add-a-table-row.md").read_text(), flags=re.M | re.S)
    measure = [key for key in Measure.model_fields if key != "metric"]
    metrics = [metric for metric in get_args(Measure.model_fields["metric"].annotation) if metric != "accuracy_pct"]
    kinds = get_args(Figure.model_fields["kind"].annotation)
    told = set(re.findall(r"[\w.]+", " ".join(re.findall(r"`([^`]+)`", page))))
    assert kinds and not {*Experiment.model_fields, *measure, *metrics, *kinds} - told


def test_every_function_and_flag_of_a_method_is_described():
    page = (DOCS / "add-a-method.md").read_text()
    own = [name for name, value in vars(FewShotModel).items() if not name.startswith("_")]
    shared = {"register_texts", "forward", "loss", "relate_supports", "load_trained_state"}  # no method replaces these
    assert not [name for name in own if name not in shared and f"`{name}" not in page]


def test_every_kind_of_data_set_is_described():
    page = (DOCS / "add-a-dataset.md").read_text()
    section = page[page.index("There are ") : page.index("The tables name")]
    kinds = re.findall(r"^\| \[?`(\w+)`", section, re.M)
    assert set(kinds[1:]) == set(KINDS)  # the first is the head of the table
    assert f"There are {['three', 'four', 'five', 'six', 'seven'][len(KINDS) - 3]} kinds" in section


def test_every_data_set_is_listed(repo):
    told = re.findall(r"`([\w*]+)`", "".join(re.findall(r"^\| (`.*?) \|", (DOCS / "datasets.md").read_text(), re.M)))
    names = {path.stem for path in (repo / "config" / "datasets").glob("*.yaml")}
    assert {name for name in names if not name.startswith("synthetic_")} == set(told) - {"synthetic_*"}


def test_the_keys_that_enter_no_id_are_marked_on_the_page_of_keys():
    page = (DOCS / "keys.md").read_text()
    for name, kind in KINDS.items():
        section = page[page.index(f"### `kind: {name}`") :].split("\n###")[0]
        told = re.findall(r"^\| `(\w+)` .*no part of the identity \|$", section, re.M)
        assert {"root", "texts", "licence"} <= set(told)
        marks = {key: field.metadata for key, field in kind.Definition.model_fields.items()}
        assert told == [key for key, found in marks.items() if HERE in found]


def test_the_notes_give_the_steps_that_the_demo_has_now(repo):
    plan = Plan.read(repo / "config")
    steps = {
        method: max(run.train["steps"] for run in plan.runs.values() if run.method == method and run.train.get("steps"))
        for method in ("task_adapter_pp", "sefar", "infogcn", "motionbert")
    }
    page = (DOCS / "reproduction-notes.md").read_text()
    told = re.findall(r"the demo now has (\d+)", page) + list(*re.findall(r"(\d+) steps \(MotionBERT: (\d+)\)", page))
    assert told == [str(count) for count in steps.values()]


def test_every_page_is_in_the_site(repo):
    nav = (repo / "mkdocs.yml").read_text()
    for page in DOCS.rglob("*.md"):
        assert f" {page.relative_to(DOCS).as_posix()}\n" in nav, page.name


def test_the_readme_tells_every_command_that_ci_calls(repo):
    commands = [line for line in (repo / ".ci" / "run").read_text().splitlines() if line.startswith("make ")]
    told = re.findall(r"^(make [\w-]+) +# ", (repo / "README.md").read_text(), re.M)
    assert commands and set(commands) <= set(told)


def test_every_key_of_a_skeleton_set_is_described():
    from pipeline.datasets.skeletons.definition import (
        Feed,
        Format,
        OneShotProtocol,
        SkeletonDefinition,
        SkeletonPolicy,
        SourceSpec,
    )

    page = (DOCS / "add-a-dataset.md").read_text()
    section = page[page.index("## Skeletons") : page.index("## Identity")]
    keys = [key for model in (SourceSpec, OneShotProtocol, SkeletonPolicy, Feed) for key in model.model_fields]
    assert not [key for key in (*keys, *get_args(Format)) if f"`{key}`" not in section]
    (example,) = (text for text in blocks("add-a-dataset.md", "yaml") if "kind: skeletons" in text)
    made = SkeletonDefinition.read(yaml.safe_load(example), "the example")
    assert made.policy.center == 0 and made.source.joint_names[0] == "torso"
