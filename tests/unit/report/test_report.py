"""The report: what is on it, and how it behaves in a browser."""

from __future__ import annotations

import json
import re
import shlex

import pytest
import yaml
from browser import CHROMIUM, visit
from made_up import fill

from pipeline.errors import UserError
from pipeline.plan import Plan
from pipeline.report.build import write_report
from pipeline.tables.results import write_table

FIRST = ("video-video=OTAM,video-text=-", "HMDB51/1-shot")


@pytest.fixture(scope="module")
def plan(repo) -> Plan:
    return Plan.read(repo / "config", {"alpha_grid": [0.0, 0.4, 1.0]})


@pytest.fixture(scope="module")
def results(plan, tmp_path_factory):
    """Everything is measured but one cell of Task-Adapter++'s Figure 9; the training of FIRST has not learnt."""
    folder = tmp_path_factory.mktemp("results")
    fill(plan, folder)
    run = next(e for e in plan.table_entries("lga", "4") if (e.row, e.column) == FIRST).cells[0].run.id
    record = json.loads((path := folder / "runs" / run / "train.json").read_text())
    loss = {"name": "loss_matching", "value": 1.7, "chance": 1.609}
    path.write_text(json.dumps(record | {"last_loss": loss}))
    (folder / "cells" / f"{plan.table_cells('task_adapter', 'fig9')[-1]}.json").unlink()
    write_table(plan, "lga", "4", folder)
    write_report(plan, folder)
    return folder


@pytest.fixture(scope="module")
def page(results) -> str:
    return (results / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def data(page) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1])


def test_every_table_and_figure_is_on_the_page(plan, page):
    for paper, number in plan.tables():
        stem = number if number.startswith("fig") else f"table{number}"
        assert f'<section class="table" id="{paper}-{stem}"' in page
        assert f'href="#{paper}-{stem}"' in page
        if plan.papers[paper].tables[number].figure:
            assert f'id="{paper}-{stem}-figure"' in page
    assert page.count("<figure") == 18 + len(plan.papers)  # Figure 9 is not drawn, curves of every paper are


def test_it_is_one_file_without_addresses(page):
    assert len(page.encode()) < 20e6
    bare = re.sub(r'xmlns(:xlink)?="[^"]*"', "", page)
    for address in re.findall(r"\w+://[^\s\"'<>]*", bare):
        assert address == "http://www.w3.org/2000/svg", address  # the name of a language, which nobody fetches
    assert not re.search(r"<(link|img|iframe|script)[^>]*\s(src|href)=(?!\"data:)", page)
    assert not re.search(r"@import|url\((?!#)", page)


def test_ids_are_unique(page):
    ids = re.findall(r'\sid="([^"]*)"', page)
    assert len(ids) == len(set(ids))


def test_what_is_not_measured_says_so(page):
    assert re.search(r'id="task_adapter-fig9-figure">Not drawn: .*not measured yet; make it with', page)
    assert 'class="missing"' in page and 'title="1 places are not measured yet"' in page


def test_what_did_not_learn_is_flagged(plan, page):
    section = re.search(r'<section class="table" id="lga-table4".*?</section>', page, re.S)[0]
    assert re.search(r'<li id="lga-table4-note-\d+">did not learn: training loss 1.70 \(chance 1.61\)</li>', section)
    assert re.search(r'href="#lga-table4">Table 4</a> <span class="todo" title="\d+ places are flagged', page)
    assert 'href="#lga-table5">Table 5</a></li>' in page


def test_a_number_leads_to_its_cell(plan, data):
    entry = next(e for e in plan.table_entries("lga", "4") if (e.row, e.column) == FIRST)
    (cell,) = entry.cells
    found = data["cells"][cell.id]
    assert found["run"] == cell.run.id and found["ci95"] > 0 and found["n"] == 1000
    asked = yaml.safe_load(data["asked"]["lga-table4"]["\n".join(FIRST)])
    assert asked["method"] == "lga" and asked["dataset"] == "hmdb51" and asked["model"] == {"matcher": "otam"}
    run = data["runs"][cell.run.id]
    assert yaml.safe_load(run["settings"])["seed"] == 0
    assert len(run["curve"]["loss"]) == len(run["curve"]["step"]) == 48


def test_the_command_has_the_settings_that_were_given(plan, data, repo):
    cell = plan.table_cells("lga", "4")[0]
    words = shlex.split(data["planned"][cell])
    assert words[:2] == ["snakemake", "--config"] and words[-2:] == ["--", f"results/cells/{cell}.json"]
    settings = {key: yaml.safe_load(value) for key, value in (word.split("=", 1) for word in words[2:-2])}
    assert settings == {"scale": "demo", "alpha_grid": [0.0, 0.4, 1.0]}
    assert cell in Plan.read(repo / "config", settings).cells


def test_a_damaged_cell_is_an_error(plan, results):
    path = results / "cells" / f"{plan.table_cells('lga', '4')[0]}.json"
    kept = path.read_text()
    path.write_text("{")
    with pytest.raises(UserError, match="damaged cell file"):
        write_report(plan, results)
    path.write_text(kept)


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium")
def test_in_a_browser(results, tmp_path):
    pytest.importorskip("aiohttp")
    url = (results / "report.html").as_uri()
    table = "document.querySelector('#lga-table4 table')"
    names = f"[...{table}.tBodies[0].rows].map(row => row.cells[0].textContent)"
    values = f"[...{table}.tBodies[0].rows].map(row => Number(row.cells[1].dataset.order))"
    head = f"{table}.querySelector('th[data-column=\"1\"]')"
    shown = "[...document.querySelectorAll('section.table tbody tr')].filter(row => row.checkVisibility()).length"

    async def script(page):
        # sorting: down, up, as printed
        printed = await page.run(names)
        for order, state in ((lambda v: sorted(v, reverse=True), "descending"), (sorted, "ascending")):
            await page.run(f"{head}.querySelector('button').click()")
            found = await page.run(values)
            assert found == order(found) and await page.run(f"{head}.getAttribute('aria-sort')") == state
        await page.run(f"{head}.querySelector('button').click()")
        assert await page.run(names) == printed

        # the filter
        everything = await page.run(shown)
        fill_in = (
            "(v => {const s = document.getElementById('search'); s.value = v; s.dispatchEvent(new Event('input'))})"
        )
        await page.run(f"{fill_in}('otam atomic')")
        some = await page.run(shown)
        assert 0 < some < everything
        assert f"{some} of {everything} rows" in await page.run("document.getElementById('hits').textContent")
        await page.run(f"{fill_in}('no such row anywhere')")
        assert await page.run(shown) == 0
        await page.run(f"{fill_in}('')")
        assert await page.run(shown) == everything
        select = (
            "(v => {const s = document.getElementById('status'); s.value = v; s.dispatchEvent(new Event('change'))})"
        )
        await page.run(f"{select}('missing')")
        assert 0 < await page.run(shown) < 10
        await page.run(f"{select}('')")

        # a cell, by keyboard: open, read, close, and the focus is back
        await page.run(f"{table}.querySelector('td[data-cells] button').focus()")
        await page.key("Enter")
        assert await page.run("document.getElementById('cell').open")
        text = await page.run("document.getElementById('cell').innerText")
        for part in (
            *FIRST,
            "matcher: otam",
            "snakemake --config scale=demo",
            "lga-synthetic_scene-s0-",
            "torch",
            "seed",
        ):
            assert part in text, part
        assert await page.run("document.querySelectorAll('#cell svg.chart path').length") >= 2
        await page.screenshot(tmp_path / "cell.png")
        await page.key("Escape")
        assert not await page.run("document.getElementById('cell').open")
        assert await page.run("document.activeElement.className") == "number"

        # numbers all over the page open, measured or not
        opened = await page.run(
            "[...document.querySelectorAll('button.number')].filter((b, i) => i % 25 === 0 || b.closest('.missing'))"
            ".map(b => {b.click(); const cell = document.getElementById('cell'), text = cell.textContent; cell.close();"
            "return text.includes('snakemake --config')})"
        )
        assert len(opened) > 10 and all(opened)

        # the theme
        colours = {}
        for _ in range(3):
            await page.run("document.getElementById('theme').click()")
            theme = await page.run("document.documentElement.dataset.theme")
            colours[theme] = await page.run("getComputedStyle(document.body).backgroundColor")
        assert set(colours) == {"auto", "light", "dark"} and colours["light"] != colours["dark"]

        # names of controls, for those who do not see them
        unnamed = "[...document.querySelectorAll('button, input, select')].filter(x => !(x.textContent.trim() || "
        assert await page.run(f"{unnamed}x.labels?.length || x.getAttribute('aria-label'))).length") == 0
        return page

    page = visit(url, tmp_path / "profile", script)
    assert page.errors == []
    assert all(address == url or address.startswith("data:") for address in page.requests)
