"""Every table of the papers in every format, from made-up cells."""

from __future__ import annotations

import csv
import io
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
from made_up import fill

from pipeline.plan import Plan
from pipeline.sheets import table_stem
from pipeline.tables.html import html
from pipeline.tables.latex import PACKAGES, escape, latex
from pipeline.tables.layout import MISSING, layout
from pipeline.tables.markdown import markdown
from pipeline.tables.records import heading, records
from pipeline.tables.results import FORMATS, to_wide_csv, write_table

VOID = {"br", "hr", "img", "meta", "link", "input"}


@pytest.fixture(scope="module")
def plan(repo) -> Plan:
    return Plan.read(repo / "config", {"seeds": [0, 1]})


@pytest.fixture(scope="module")
def results(plan, tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    fill(plan, folder)
    for paper, number in plan.tables():
        write_table(plan, paper, number, folder)
    return folder


@pytest.fixture(scope="module")
def sheets(plan, results):
    """(paper, number) -> (title, sheet, records, layout)."""
    out = {}
    for paper, number in plan.tables():
        sheet, found = plan.papers[paper].tables[number], records(plan, paper, number, results)
        out[paper, number] = heading(plan, paper, number), sheet, found, layout(sheet, found)
    return out


class Nesting(HTMLParser):
    """Checks that what is opened is closed, and collects ids, links and the text of places."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.ids, self.links, self.places = [], [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag not in VOID:
            self.open.append(tag)
        if "id" in attrs:
            self.ids.append(attrs["id"])
        if tag == "a":
            self.links.append(attrs["href"])
        if tag == "td":
            self.places.append(attrs)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_all_formats_are_written(plan, results):
    for paper, number in plan.tables():
        for ending in FORMATS:
            path = results / paper / f"{table_stem(number)}.{ending}"
            assert path.stat().st_size > 100, path
    assert not list(results.rglob("*.tmp"))


def test_html_is_nested_and_its_links_lead_to_its_notes(sheets):
    for (paper, number), (title, sheet, _, page) in sheets.items():
        seen = Nesting(html(title, f"{paper}-{number}", page))
        assert len(seen.ids) == len(set(seen.ids))
        assert {link.removeprefix("#") for link in seen.links} <= set(seen.ids)
        assert len(seen.places) == len(sheet.rows) * len(sheet.columns)


def test_html_knows_the_cells_of_a_place(plan, sheets):
    for (paper, number), (title, _, _, page) in sheets.items():
        places = Nesting(html(title, "key", page)).places
        cells = {cell for place in places for cell in place.get("data-cells", "").split(";") if cell}
        assert cells == set(plan.table_cells(paper, number))


def test_markup_in_names_is_escaped(sheets):
    title, sheet, found, _ = sheets["lga", "6"]
    odd = sheet.model_copy(update={"note": "<b> & 50 % of {x}_y^2 ~ $1 #2 \\end"})
    page = layout(odd, found)
    assert "&lt;b&gt; &amp; 50" in html(title, "key", page)
    assert r"\textless{}b\textgreater{} \& 50 \% of \{x\}\_y\textasciicircum{}2" in latex(title, "key", page)
    assert r"\textasciitilde{} \$1 \#2 \textbackslash{}end" in latex(title, "key", page)


def test_best_and_second_best_are_marked_in_every_format(sheets):
    title, sheet, found, page = sheets["lga", "3"]
    for index, column in enumerate(page.columns):
        places = [places[index] for _, places in page.rows]
        ordered = sorted({float(place.value) for place in places}, reverse=True)
        assert {float(place.value) for place in places if place.rank == 1} == {ordered[0]}, column
        assert {float(place.value) for place in places if place.rank == 2} == {ordered[1]}, column
        for place in places:
            if place.rank:
                value = re.escape(place.value)
                assert re.search(
                    (rf"\\textbf{{{value}}}", rf"\\underline{{{value}}}")[place.rank - 1], latex("", "", page)
                )
                tag = ("strong", "u")[place.rank - 1]
                assert f"<{tag}>{place.ours}</{tag}>" in html(title, "key", page)
                mark = ("**{}**", "<ins>{}</ins>")[place.rank - 1].format(place.ours)
                assert mark in markdown(title, sheet, found)


def test_fewer_opposites_are_better(sheets):
    """Of Figure 8: the row with the smaller share is marked in the one column, that with the larger accuracy beside."""
    *_, found, page = sheets["sefar", "fig8"]
    values = {(record.row, record.column): record.value for record in found}
    for place, (column, best) in enumerate((("Gym-New/opposite", min), ("Gym-New/accuracy", max))):
        (marked,) = (row for row, places in page.rows if places[place].rank == 1)
        assert values[marked, column] == best(values[row, column] for row, _ in page.rows)


def test_two_measured_rows_have_a_best_and_no_second_best(sheets):
    _, _, _, page = sheets["task_adapter", "5"]
    assert {place.rank for _, places in page.rows for place in places} == {0, 1}


def test_wide_csv_has_the_numbers_of_the_long_one(sheets):
    for _, sheet, found, page in sheets.values():
        lines = {line["row"]: line for line in csv.DictReader(io.StringIO(to_wide_csv(page, found)))}
        assert list(lines) == [row.name for row in sheet.rows]
        for record in found:
            for key in ("value", "ci95", "published", "delta"):
                value = getattr(record, key)
                assert lines[record.row][f"{record.column} {key}"] == ("" if value is None else str(value))


def test_places_that_are_not_measured_are_shown_as_such(plan, tmp_path):
    found = records(plan, "task_adapter", "5", tmp_path, allow_missing=True)
    page = layout(plan.papers["task_adapter"].tables["5"], found)
    assert {place.ours for _, places in page.rows for place in places} == {MISSING}
    assert 'class="missing"' in html("", "key", page) and escape(MISSING) in latex("", "key", page)


# LaTeX


def test_latex_is_balanced(results):
    for path in results.rglob("*.tex"):
        text = path.read_text()
        assert text.isascii() or set(re.findall(r"[^\x00-\x7f]", text)) <= set("éèüöäßÅ"), path
        bare = re.sub(r"(?m)^%.*$", "", text).replace(r"\\", "").replace(r"\{", "").replace(r"\}", "")
        assert bare.count("{") == bare.count("}"), path
        assert not re.search(r"(?<!\\)[#_%^](?!\\)", re.sub(r"\$[^$]*\$|\\label{[^}]*}", "", bare)), path
        stack = []
        for kind, name in re.findall(r"\\(begin|end){([a-z*]+)}", text):
            assert kind == "begin" or stack.pop() == name, path
            stack += [name] if kind == "begin" else []
        assert not stack, path
        columns = len(re.search(r"\\begin{tabular}{(l[r]+)}", text)[1])
        for line in text.splitlines():
            if line.endswith(r" \\"):
                spanned = sum(int(count) - 1 for count in re.findall(r"\\multicolumn{(\d+)}", line))
                assert len(re.findall(r"(?<!\\)&", line)) + 1 + spanned == columns, (path, line)


def _has_packages() -> bool:
    if not shutil.which("pdflatex") or not shutil.which("kpsewhich"):
        return False
    return all(subprocess.run(["kpsewhich", f"{name}.sty"], capture_output=True).stdout for name in PACKAGES)


@pytest.mark.skipif(not _has_packages(), reason=f"no pdflatex with {', '.join(PACKAGES)}")
def test_latex_compiles(results, tmp_path):
    inputs = "".join(rf"\input{{{path}}}\clearpage" + "\n" for path in sorted(results.rglob("*.tex")))
    head = rf"\documentclass{{article}}\usepackage{{{','.join(PACKAGES)}}}"
    (tmp_path / "all.tex").write_text(f"{head}\\begin{{document}}\n{inputs}\\end{{document}}\n")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace", timeout=300)
    assert done.returncode == 0, done.stdout[-2000:]
    assert (tmp_path / "all.pdf").stat().st_size > 10_000
