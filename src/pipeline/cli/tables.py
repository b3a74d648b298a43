"""Commands that write and show tables, figures and the report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.options import ConfigFolder, Overlay, Results, Scale, app, overlay_of


@app.command()
def table(
    number: Annotated[str, typer.Argument(help="The table: 4, or fig3.")],
    paper: Annotated[str, typer.Option(help="Only this paper's table (default: every paper's of this number).")] = "",
    results: Results = Path("results"),
    config: ConfigFolder = Path("config"),
    overlay: Overlay = "{}",
) -> None:
    """Write a table from the measured cells (CSV, Markdown, LaTeX, HTML)."""
    from pipeline.plan import Plan
    from pipeline.tables.results import write_combined, write_table

    plan = Plan.read(config, overlay_of(overlay, ""), paper, number)
    for path in write_table(plan, paper, number, results) if paper else write_combined(plan, number, results):
        print(path)


@app.command()
def figure(
    number: Annotated[str, typer.Argument(help="The figure: fig3.")],
    paper: Annotated[str, typer.Option(help="The paper whose figure it is.")],
    results: Results = Path("results"),
    config: ConfigFolder = Path("config"),
    overlay: Overlay = "{}",
) -> None:
    """Draw a figure from the measured cells (PNG, SVG and PDF), and write its numbers as a table."""
    from pipeline.figures.draw import write_figure
    from pipeline.plan import Plan
    from pipeline.tables.results import write_table

    plan = Plan.read(config, overlay_of(overlay, ""), paper, number)
    for path in (*write_figure(plan, paper, number, results), *write_table(plan, paper, number, results)):
        print(path)


@app.command()
def curves(
    paper: Annotated[str, typer.Option(help="The paper whose trainings are drawn.")],
    results: Results = Path("results"),
    config: ConfigFolder = Path("config"),
    overlay: Overlay = "{}",
) -> None:
    """Draw the curves of a paper's trainings (PNG, SVG and PDF)."""
    from pipeline.figures.training import write_training
    from pipeline.plan import Plan

    for path in write_training(Plan.read(config, overlay_of(overlay, ""), paper), paper, results):
        print(path)


@app.command()
def report(
    results: Results = Path("results"),
    config: ConfigFolder = Path("config"),
    scale: Scale = "",
    overlay: Overlay = "{}",
) -> None:
    """Write all tables and figures, as far as they are measured, into one page: results/report.html."""
    from pipeline.plan import Plan
    from pipeline.report.build import write_report

    print(write_report(Plan.read(config, overlay_of(overlay, scale)), results))


@app.command()
def effects(
    sheets: Annotated[
        list[Path] | None,
        typer.Argument(help="Sheets with a row for each switch (default: docs/examples/switches_*.yaml)."),
    ] = None,
    page: Annotated[Path, typer.Option(help="Where the page goes; its numbers go beside it.")] = Path(
        "docs/switches.md"
    ),
    results: Results = Path("results"),
    config: ConfigFolder = Path("config"),
) -> None:
    """Write what each switch changes, from the measured cells, and count what is not measured."""
    from pipeline.tables.effects import SCALES, write_effects

    places = write_effects(sheets or sorted(Path("docs/examples").glob("switches_*.yaml")), page, config, results)
    print(page)
    for scale in SCALES:
        here = [place for place in places if place.scale == scale]
        print(f"{scale}: {sum(place.effect is None for place in here)} of {len(here)} places are not measured")


@app.command()
def show(
    number: Annotated[str, typer.Argument(help="The table: 4, or fig3.")],
    paper: Annotated[str, typer.Option(help="Only this paper's table (default: every paper's of this number).")] = "",
    results: Results = Path("results"),
    config: ConfigFolder = Path("config"),
    scale: Scale = "",
    overlay: Overlay = "{}",
) -> None:
    """Print a table in the paper's layout."""
    from pipeline.plan import Plan
    from pipeline.sheets import table_number
    from pipeline.tables.console import print_table

    print_table(Plan.read(config, overlay_of(overlay, scale)), paper or None, table_number(number), results)


@app.command()
def demo(
    number: Annotated[str, typer.Argument(help="The table.")] = "4",
    cores: Annotated[str, typer.Option(help="CPU cores, in Snakemake's form.")] = "all",
) -> None:
    """Measure a table of every paper at demo scale, by Snakemake, and print each as soon as it is there."""
    from pipeline.demo import run_demo
    from pipeline.plan import Plan

    run_demo(Plan.read("config", {"scale": "demo"}, number=number), number, Path("results"), cores)


@app.command()
def rehearse(
    methods: Annotated[
        list[str] | None, typer.Argument(help="Methods of the families (default: all of config/rehearsal.yaml).")
    ] = None,
    folder: Annotated[Path, typer.Option(help="Where everything of it goes.")] = Path("results/rehearsal"),
    config: ConfigFolder = Path("config"),
    cores: Annotated[str, typer.Option(help="CPU cores, in Snakemake's form: so many trainings at a time.")] = "2",
    gpu: Annotated[
        bool, typer.Option("--gpu", help="Each training has a GPU and its threads, as at paper scale.")
    ] = False,
    profile: Annotated[str, typer.Option(help="Of Snakemake, such as slurm, in place of this machine's cores.")] = "",
    small: Annotated[bool, typer.Option("--small", help="A CLIP of narrow layers, and only the table.")] = False,
) -> None:
    """Run one row of every family at paper scale on generated data and random weights, and say what each took.

    Exits with status 1 if one of them is not measured; the same command goes on from there.
    """
    from pipeline.rehearsal.rehearse import rehearse as run

    raise typer.Exit(0 if run(config, folder, methods or (), cores, gpu, profile, small) else 1)
