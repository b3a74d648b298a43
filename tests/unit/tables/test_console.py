"""Tables in terminals of several widths: the papers' own sheets, with a number in every place."""

from __future__ import annotations

import io
import re

import pytest
from made_up import fill
from rich.console import Console

from pipeline.plan import Plan
from pipeline.tables.console import print_table
from pipeline.tables.layout import layout
from pipeline.tables.records import records

NUMBERS = ("1", "4", "fig9")  # of many columns, of long names, of both


@pytest.fixture(scope="module")
def measured(repo, tmp_path_factory):
    """Number -> the plan of the tables of that number, all measured below the folder."""
    folder, plans = tmp_path_factory.mktemp("results"), {}
    for number in NUMBERS:
        plans[number] = Plan.read(repo / "config", number=number)
        fill(plans[number], folder)
    return folder, plans


def shown(plan: Plan, folder, number: str, paper: str, width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    print_table(plan, paper, number, folder, console)
    return console.file.getvalue().splitlines()


def cells_of(lines: list[str]) -> list[list[str]]:
    """The text of each cell of each row of a table in the console, line by line."""
    rows, cells = [], None
    for line in lines:
        if re.match("[┃│]", line):
            parts = [part.strip() for part in re.split("[┃│]", line)[1:-1]]
            cells = [[*old, new] for old, new in zip(cells or [[] for _ in parts], parts, strict=True)]
        elif cells:
            rows, cells = [*rows, *[[" ".join(filter(None, part)) for part in cells]]], None
    return rows


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("number", NUMBERS)
def test_nothing_is_cut(measured, number, width):
    folder, plans = measured
    plan = plans[number]
    for paper in plan.papers:
        if number not in plan.papers[paper].tables:
            continue
        page = layout(plan.papers[paper].tables[number], records(plan, paper, number, folder))
        lines = shown(plan, folder, number, paper, width)
        assert max(map(len, lines)) <= width
        rows = cells_of(lines)
        blocks = sum(row[0] == "" for row in rows)  # each has a head
        per_block = len(page.rows) + 1
        assert len(rows) == blocks * per_block

        def words(text):
            return text.replace(",", ", ").replace("/", "/ ").split()

        heads = [name for i in range(blocks) for name in rows[i * per_block][1:]]
        assert [re.sub(r" \[\d+\]", "", head).split() for head in heads] == [words(name) for name in page.columns]
        for at, (name, places) in enumerate(page.rows, 1):
            parts = [rows[i * per_block + at] for i in range(blocks)]
            for part in parts:
                assert re.sub(r"( \[\d+\])+$", "", part[0]).split() == name.replace(",", ", ").split()
            for text, place in zip([x for part in parts for x in part[1:]], places, strict=True):
                marks = "".join(f" [{note}]" for note in place.notes)
                printed = place.printed.replace("published ", "")
                assert text.split() == f"{place.ours} {printed}{marks}".split()


def test_numbers_and_words_stand_on_one_line(measured):
    folder, plans = measured
    text = "\n".join(shown(plans["4"], folder, "4", "lga", 80))
    page = layout(plans["4"].papers["lga"].tables["4"], records(plans["4"], "lga", "4", folder))
    words = {word for name, _ in page.rows for word in name.replace(",", ", ").split()}
    for word in words | {place.ours for _, places in page.rows for place in places}:
        assert re.search(rf"(?<![^\s│]){re.escape(word)}(?![^\s│])", text), word


def test_a_table_is_whole_where_it_fits(measured):
    folder, plans = measured
    for width, blocks in ((80, 4), (220, 1)):
        lines = shown(plans["1"], folder, "1", "lga", width)
        assert sum(line.startswith("┏") for line in lines) == blocks


def test_a_very_narrow_terminal_folds_but_does_not_cut(measured):
    folder, plans = measured
    lines = shown(plans["4"], folder, "4", "lga", 30)
    assert max(map(len, lines)) <= 30 and "…" not in "".join(lines)
