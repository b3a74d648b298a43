"""Commands that look: plan, status, doctor, dashboard, and what measures this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.options import ConfigFolder, Overlay, Results, Scale, app, overlay_of
from pipeline.errors import unknown
from pipeline.workspace import Workspace


@app.command()
def plan(
    results: Results = Path("results"),
    config: ConfigFolder = Path("config"),
    scale: Scale = "",
    overlay: Overlay = "{}",
    write: Annotated[bool, typer.Option("--write", help="Write the specs that the other commands read.")] = False,
    gpus: Annotated[int, typer.Option(min=1, help="Estimate the wall time on so many GPUs.")] = 8,
    table: Annotated[str, typer.Option(help="Only the tables of this number: 4, fig3 (default: all).")] = "",
    check: Annotated[
        bool, typer.Option("--check", help="Show each training's texts, frames, length, labels and what is wrong.")
    ] = False,
    rate: Annotated[
        str,
        typer.Option(help="TFLOP/s by which hours are worked out, or measured: `bench-gpu`'s, even those of a CPU."),
    ] = "",
) -> None:
    """Show what the tables need: cells, trainings, sweeps, time; at paper scale also GPU hours, disk and questions."""
    from pipeline.estimate import print_plan
    from pipeline.plan import Plan

    planned = Plan.read(config, overlay_of(overlay, scale), number=table)
    if table and not planned.entries:
        raise unknown("table", table, planned.numbers())
    if write:
        planned.write_specs(results / "specs")
    if check:
        from pipeline.paper import check_plan, files_faults, print_check

        found = check_plan(planned)
        found.faults += files_faults(planned, Workspace(results))
        print_check(found)
        raise typer.Exit(1 if found.faults else 0)
    print_plan(planned, results, gpus, rate)


@app.command(name="bench-gpu")
def bench_gpu(results: Results = Path("results")) -> None:
    """Measure for a minute how fast this machine computes, reads frames and copies; `plan` takes its hours by that."""
    from pipeline import rates

    ws, found = Workspace(results), rates.measure()
    rates.keep(ws, found)
    print(f"{found.device}: forwards and backwards through a layer of ViT-B/16, and products of matrices, TFLOP/s")
    for name, flops in found.flops.items():
        print(f"  {name}: {flops / rates.TERA:.3g}, {found.products[name] / rates.TERA:.3g}")
    print(f"stored frames of 256 x 256 that a core reads: {found.frames:,.0f} a second")
    print(f"copy of an item's frames to the device: {found.copied / 1e9:.1f} GB a second")
    print(ws.rates)
    if not found.gpu:
        print("no GPU was found, so these are the CPU's: `plan` keeps its stated rates, unless told --rate measured")


@app.command()
def status(
    results: Results = Path("results"),
    config: ConfigFolder = Path("config"),
    scale: Scale = "",
    overlay: Overlay = "{}",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, for a program.")] = False,
) -> None:
    """Show what is done, what is running and how far it is, and what has failed and why."""
    from pipeline.plan import Plan
    from pipeline.status import print_status, read_status

    found = read_status(Plan.read(config, overlay_of(overlay, scale)), results)
    print(json.dumps(found)) if as_json else print_status(found)


@app.command()
def doctor(
    results: Results = Path("results"),
    config: ConfigFolder = Path("config"),
    scale: Scale = "",
    overlay: Overlay = "{}",
    network: Annotated[bool, typer.Option("--network", help="Check that the language model's server answers.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, for a program.")] = False,
) -> None:
    """Check whether this machine has what the tables need, and say what to do if not.

    Exits with status 1 if the configured scale lacks something (fail); warnings don't count.
    """
    from pipeline import doctor as checks
    from pipeline.plan import Plan

    with checks.start_torch() as probe:  # while the plan is read
        try:
            plan = Plan.read(config, overlay_of(overlay, scale))
            found = checks.examine(plan, results, network, probe)
        finally:
            probe.kill()
    print(json.dumps(checks.as_json(plan, found))) if as_json else checks.print_checks(plan, found)
    if checks.failed(found):
        raise typer.Exit(1)


@app.command()
def dashboard(
    results: Results = Path("results"),
    show: Annotated[bool, typer.Option("--open", help="Open the first one in this machine's browser.")] = False,
) -> None:
    """Show where the dashboards of the running Ray clusters are, and how to reach them from elsewhere."""
    import webbrowser

    from pipeline.cluster.client import live, tunnel

    found = [record for record in live(Workspace(results)) if record.get("dashboard")]
    for record in found:
        job = f" (Slurm job {record['job']})" if record.get("job") else ""
        print(f"{record['name']}{job} on {record['host']}: {record['dashboard']}")
        print(f"  from your own machine: {tunnel(record['dashboard'], record['host'])}, then http://127.0.0.1:8265")
        print(f"  it asks for the token in {record['token']}")
    if not found:
        print("no Ray cluster with a dashboard is running; one starts with the first training")
    elif show:
        webbrowser.open(found[0]["dashboard"])


@app.command()
def schema(
    config: ConfigFolder = Path("config"),
    page: Annotated[Path, typer.Option(help="Where the page of all keys goes.")] = Path("docs/keys.md"),
) -> None:
    """Write the JSON schemas of the YAML files (config/schema) and the page of all their keys."""
    from pipeline.reference import write_reference

    for path in write_reference(config, page):
        print(path)
