"""Commands that prepare data: videos, downloads, poses, splits, texts, frames."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.options import (
    ConfigFolder,
    Interface,
    Key,
    Nodes,
    Overlay,
    Results,
    Workers,
    app,
    overlay_of,
    share_nodes,
)
from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.progress import job
from pipeline.workspace import Workspace


@app.command()
def videos(key: Key, results: Results = Path("results"), workers: Workers = 1) -> None:
    """Generate the videos of a synthetic data set, with skeletons, phases and texts."""
    from pipeline.stages import synthesize

    ws = Workspace(results)
    with job(ws, "videos", key):
        print(synthesize(ws.read_asset(key), ws, workers))


@app.command()
def download(
    names: Annotated[list[str], typer.Argument(help="Data sets, as in config/datasets.")],
    mirror: Annotated[str, typer.Option(help="Folder or server with all files (default: the config's).")] = "",
    record: Annotated[str, typer.Option(help="Copy the record of a single data set to this file.")] = "",
    workers: Annotated[int, typer.Option("--workers", min=1, help="How many files to fetch at a time.")] = 4,
    config: ConfigFolder = Path("config"),
    overlay: Overlay = "{}",
) -> None:
    """Fetch a data set and the lists of its splits from their publishers, or say what to do by hand.

    An interrupted download is continued; what is there is not fetched again.
    """
    from pipeline.datasets.download import Fetcher, download_dataset

    settings = Config(config, overlay_of(overlay, ""))
    fetcher = Fetcher(mirror or settings.settings.mirror, workers)
    for name in names:
        made = download_dataset(settings, name, fetcher)
        print(made)
        if record:
            from pipeline.files import write_text

            write_text(record, made.read_text())


@app.command()
def poses(
    key: Key, results: Results = Path("results"), workers: Workers = 1, nodes: Nodes = 1, interface: Interface = ""
) -> None:
    """Find the joints of the persons in the videos of a skeleton data set (`format: poses`, `videos`)."""
    ws = Workspace(results)
    share_nodes(ws, nodes, workers, interface)
    from pipeline.stages import make_poses

    with job(ws, "poses", key):
        print(make_poses(ws.read_asset(key), ws, workers, nodes))


@app.command()
def splits(key: Key, results: Results = Path("results"), workers: Workers = 1) -> None:
    """List the clips of a data set with class and split (index.csv), and check that they can be read."""
    from pipeline.stages import make_splits

    ws = Workspace(results)
    with job(ws, "splits", key):
        print(make_splits(ws.read_asset(key), ws, workers))


@app.command()
def split(
    names: Annotated[list[str] | None, typer.Argument(help="Data sets (default: all with published lists).")] = None,
    check: Annotated[bool, typer.Option("--check", help="Exit with status 1 if a count differs.")] = False,
    config: ConfigFolder = Path("config"),
    overlay: Overlay = "{}",
) -> None:
    """Count classes and clips of each split in the list files, beside the papers' counts."""
    from pipeline.datasets.counts import check_splits

    found = check_splits(Config(config, overlay_of(overlay, "")), names or ())
    print(f"{len(found.equal)} as published, {len(found.differ)} differ, {len(found.absent)} without their lists")
    for name, lines in found.differ.items():
        print(f"{name}: {'; '.join(lines)}", file=sys.stderr)
    if found.absent and (names or not found.equal):
        raise UserError(f"not counted: {', '.join(found.absent)}; fetch the lists with `python -m pipeline download`")
    if check and found.differ:
        raise typer.Exit(1)


@app.command()
def text(key: Key, results: Results = Path("results")) -> None:
    """Put the descriptions of a data set's classes in place (texts.json)."""
    from pipeline.stages import make_texts

    ws = Workspace(results)
    with job(ws, "text", key):
        print(make_texts(ws.read_asset(key), ws))


@app.command()
def describe(
    dataset: Annotated[str, typer.Argument(help="Data set, as in config/datasets.")] = "",
    classes: Annotated[str, typer.Option(help="Instead of a data set: a file with one class name per line.")] = "",
    out: Annotated[Path, typer.Option(help="File for the descriptions, which `texts:` may name.")] = Path("texts.json"),
    prompts: Annotated[
        str, typer.Option(help="Prompts of config/prompts, with commas (default: the data set's).")
    ] = "",
    model: Annotated[str, typer.Option(help="Language model (default: the data set's or llm.model).")] = "",
    base_url: Annotated[str, typer.Option("--base-url", help="Its server, up to /v1.")] = "",
    graph: Annotated[str, typer.Option(help="With --classes: the skeleton whose joints are described.")] = "",
    cache: Annotated[str, typer.Option(help="Folder in which answers are kept (default: RESULTS/text).")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what it would take.")] = False,
    imported: Annotated[
        str, typer.Option("--import", help="Published texts to convert instead of asking: files, separated by commas.")
    ] = "",
    results: Results = Path("results"),
    config: ConfigFolder = Path("config"),
    overlay: Overlay = "{}",
) -> None:
    """Have a language model describe the classes of a data set (texts.json); every answer is kept.

    The key is read from the environment variable that llm.key names (OPENAI_API_KEY).
    """
    from pipeline.cli.describe import Wishes, describe_command

    wishes = Wishes(dataset, classes, prompts, model, base_url, graph, imported)
    describe_command(wishes, Config(config, overlay_of(overlay, "")), out, results, cache or results / "text", dry_run)


@app.command()
def frames(
    key: Key,
    store: Annotated[str, typer.Argument(help="Name of the frame store: hash of its policy.")],
    results: Results = Path("results"),
    workers: Workers = 1,
    nodes: Nodes = 1,
    interface: Interface = "",
) -> None:
    """Decode every clip of a data set once, into a frame store."""
    ws = Workspace(results)
    share_nodes(ws, nodes, workers, interface)
    from pipeline.stages import make_frames

    with job(ws, "frames", f"{key}-{store}"):
        print(make_frames(ws.read_asset(key), ws, store, ws.read_store(store), workers, nodes))
