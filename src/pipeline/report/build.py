"""One page with every table and figure, `RESULTS/report.html`: no server, no network, nothing beside the file.

A number on it leads to its cell: what was asked, the command that makes it again, the training and its curve.
"""

from __future__ import annotations

import csv
import json
import platform
import re
import shlex
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from pipeline.config import merge
from pipeline.errors import UserError
from pipeline.experiment import Cell, Run
from pipeline.figures import style
from pipeline.figures.draw import draw, figures_of
from pipeline.figures.training import draw_training, read_curve, runs_of
from pipeline.files import write_text
from pipeline.metrics import METRICS
from pipeline.plan import Plan
from pipeline.sheets import Table, table_stem
from pipeline.tables.html import html
from pipeline.tables.layout import layout
from pipeline.tables.records import heading, records
from pipeline.tables.results import FORMATS
from pipeline.workspace import Workspace

PACKAGES = (
    "few-shot-action-tables", "torch", "numpy", "transformers", "mmengine", "mmaction2", "ray", "snakemake", "av",
    "scikit-learn", "matplotlib",
)  # fmt: skip
CURVE = ("step", "loss", "accuracy", "validation_accuracy")
POINTS = 200  # of a curve; a longer one is thinned


def write_report(plan: Plan, results_dir: Path | str = "results") -> Path:
    """Writes `RESULTS/report.html` and returns its path. What is not measured yet is shown as such.

    Raises:
        UserError: a cell file is damaged.
    """
    environment = Environment(loader=PackageLoader("pipeline.report"), autoescape=True, undefined=StrictUndefined)
    source = environment.loader.get_source
    page = environment.get_template("report.html.j2").render(
        papers=[_paper(plan, name, results_dir) for name in plan.papers],
        settings=plan.config.settings,
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        versions=_versions(),
        style=Markup(source(environment, "report.css")[0]),
        script=Markup(source(environment, "report.js")[0]),
        data=_embedded(_data(plan, Workspace(results_dir))),
    )
    return write_text(Path(results_dir) / "report.html", page)


# What is shown


def _paper(plan: Plan, paper: str, results_dir: Path | str) -> dict[str, Any]:
    drawn, tables = {number for _, number in figures_of(plan, paper)}, []
    for _, number in plan.tables(paper):
        found = records(plan, paper, number, results_dir, allow_missing=True)
        title, key = heading(plan, paper, number).removeprefix(f"{paper}, "), f"{paper}-{table_stem(number)}"
        page = layout(plan.papers[paper].tables[number], found)
        files = [f"{paper}/{table_stem(number)}.{ending}" for ending in (*FORMATS, *style.FORMATS)]
        tables.append({
            "key": key,
            "name": number.replace("fig", "Figure ") if number.startswith("fig") else f"Table {number}",
            "title": title,
            "missing": sum(record.status == "missing" for record in found),
            "measured": sum(record.status == "measured" for record in found),
            "flagged": sum(bool(record.health) for record in found),
            "html": Markup(html(title, key, page)),
            "figure": _figure(lambda n=number: draw(plan, paper, n, results_dir), key) if number in drawn else None,
            "files": [name for name in files if (Path(results_dir) / name).is_file()],
        })  # fmt: skip
    curves = _figure(lambda: draw_training(plan, paper, results_dir), f"{paper}-training")
    return {
        "key": paper, "title": plan.papers[paper].title, "tables": tables,
        "curves": curves if runs_of(plan, paper) else None,
    }  # fmt: skip


def _figure(make: Callable[[], Any], key: str) -> dict[str, Any]:
    """A figure as inline SVG in the page's own colours, or why there is none."""
    try:
        text = style.content(make(), "svg").decode()
    except UserError as error:
        return {"svg": None, "reason": str(error)}
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    text = text.replace(style.INK, "currentColor").replace(style.PAPER, "none")
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{key}-", text)
    return {"svg": Markup(text.replace("<svg ", '<svg aria-hidden="true" focusable="false" ', 1)), "reason": ""}


def _versions() -> dict[str, str]:
    """Python, the platform and the packages that results depend on, as they are now."""
    found = {"python": platform.python_version(), "platform": platform.platform(terse=True)}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


# What a number leads to


def _embedded(content: Any) -> Markup:
    """JSON that may stand in a <script>."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029"))


def _data(plan: Plan, ws: Workspace) -> dict[str, Any]:
    asked: dict[str, dict[str, str]] = {}
    for paper, number in plan.tables():
        table, key = plan.papers[paper].tables[number], f"{paper}-{table_stem(number)}"
        asked[key] = _asked(plan, table)
    return {
        "cells": {cell.id: _cell(plan, cell, ws) for cell in plan.cells.values() if ws.cell(cell.id).is_file()},
        "planned": {cell: _command(plan, Workspace().cell(cell)) for cell in plan.cells},
        "runs": {run.id: _run(run, ws) for run in plan.runs.values() if (ws.run(run.id) / "train.json").is_file()},
        "asked": asked,
    }


def _asked(plan: Plan, table: Table) -> dict[str, str]:
    """ "ROW\\nCOLUMN" -> what the sheet says of that place, over the method's defaults."""
    out = {}
    for row in table.rows:
        for column in table.columns if row.experiment else ():
            on, what = (x.experiment.model_dump(exclude_unset=True) for x in (column, row))
            delta = merge(on, what)
            out[f"{row.name}\n{column.name}"] = yaml.safe_dump(delta, sort_keys=False, allow_unicode=True)
    return out


def _command(plan: Plan, path: Path) -> str:
    """The call of Snakemake that makes a cell, with the settings that were laid over the default."""
    overlay = {"scale": plan.config.settings.scale} | plan.config.overlay
    settings = " ".join(shlex.quote(f"{k}={v if isinstance(v, str) else json.dumps(v)}") for k, v in overlay.items())
    return f"snakemake --config {settings} -- {shlex.quote(str(path))}"


def _cell(plan: Plan, cell: Cell, ws: Workspace) -> dict[str, Any]:
    path = ws.cell(cell.id)
    record = json.loads(path.read_text())
    kept = (
        "value", "ci95", "n", "metric", "alpha", "alpha_curve", "coverage", "coverage_train", "scale", "selection",
        "seed", "dataset",
    )  # fmt: skip
    out = {key: record[key] for key in kept if record.get(key) is not None}
    out["decimals"] = max(METRICS[cell.measure.metric].decimals, 2)
    return out | {"run": cell.run.id, "measure": _yaml(cell.measure.settled()), "made": _time(path)}


def _run(run: Run, ws: Workspace) -> dict[str, Any]:
    folder = ws.run(run.id)
    trained = json.loads((folder / "train.json").read_text())
    curve = read_curve(folder / "curve.csv", POINTS) if (folder / "curve.csv").is_file() else {}
    return {
        "settings": _yaml(run),
        "trained": _yaml({key: value for key, value in trained.items() if key != "run"}),
        "curve": {key: [_short(x) for x in curve[key]] for key in CURVE if key in curve},
        "selected": trained.get("selected_step"),
        "weights": next((str(folder / n) for n in ("model.safetensors",) if (folder / n).is_file()), ""),
        "made": _time(folder / "train.json"),
        "evaluation": _benchmark(ws.root / "benchmarks" / "evaluate" / f"{run.id}.tsv"),
    }


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.5g}")


def _yaml(content: Any) -> str:
    plain = content if isinstance(content, Mapping) else content.model_dump(mode="json")
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, default_flow_style=None, width=100)


def _time(path: Path) -> str:
    return datetime.fromtimestamp(path.stat().st_mtime, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _benchmark(path: Path) -> str:
    """Time and memory that Snakemake saw, where it ran the job."""
    if not path.is_file():
        return ""
    with path.open(newline="") as file:
        line = next(csv.DictReader(file, delimiter="\t"), {})
    return f"{line.get('s', '?')} s, {line.get('max_rss', '?')} MB"
