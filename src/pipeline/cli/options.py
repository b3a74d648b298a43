"""What the commands share: options, settings from the command line, and work over several nodes."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from pipeline.config import Cluster, Config, read_yaml
from pipeline.workspace import Workspace

app = typer.Typer(
    help="Every table of four papers on data-efficient action recognition, step by step.\n\n"
    "Snakemake runs these commands in the right order (`snakemake results/table4.csv`); each can be run by hand. "
    "The order is: videos, splits, text, frames, pretrain, train (or sweep), evaluate, table.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


cluster_app = typer.Typer(help="The shared Ray cluster that trains and scores many runs.", no_args_is_help=True)
Results = Annotated[Path, typer.Option("--results", help="Folder for everything that is computed.")]
ConfigFolder = Annotated[Path, typer.Option("--config", help="Folder of config.yaml, scales/, tables/ and so on.")]
Workers = Annotated[int, typer.Option("--workers", min=1, help="Processes.")]
Nodes = Annotated[
    int, typer.Option("--nodes", min=1, help="How many nodes of this Slurm job share the work, each with --workers.")
]


Interface = Annotated[str, typer.Option(help="Network interface between them (default: the one that Slurm uses).")]
Settings = Annotated[str, typer.Option("--settings", help="Cluster settings as JSON (default: the config's).")]
Key = Annotated[str, typer.Argument(help="Key of the data set or backbone: name and hash, as in results/specs.")]
RunId = Annotated[str, typer.Argument(help="Id of the run; its beginning is enough if it is unambiguous.")]
Scale = Annotated[str, typer.Option(help="demo, quick or paper (default: the config's).")]
Overlay = Annotated[str, typer.Option(help="Settings laid over the config: JSON, or a YAML file.")]


def overlay_of(text: str, scale: str) -> dict:
    """Settings from the command line: JSON, or the name of a YAML file."""
    try:
        content = json.loads(text)
    except ValueError:
        content = read_yaml(Path(text))
    return content | ({"scale": scale} if scale else {})


def spread_over_nodes(ws: Workspace, settings: Cluster) -> None:
    """Go on, where a job is to have several nodes, as the driver of a Ray cluster over them."""
    if settings.mode == "job" and settings.nodes > 1 and "RAY_ADDRESS" not in os.environ:
        from pipeline.cluster.nodes import spread

        raise typer.Exit(spread([sys.executable, "-m", "pipeline", *sys.argv[1:]], ws, settings))


def share_nodes(ws: Workspace, nodes: int, workers: int, interface: str) -> None:
    """Go on, where several nodes are to share the work, as a driver that is connected to a Ray cluster over them."""
    if nodes > 1:
        from pipeline.cluster.client import connect

        # One task a node; of the CPUs there Ray counts one more than the threads of its worker.
        threads = max(1, workers - 1)
        settings = Cluster(mode="job", nodes=nodes, workers=nodes, threads=threads, interface=interface)
        spread_over_nodes(ws, settings)
        connect(ws, settings)


def settings_of(text: str) -> Cluster:
    if text:
        return Cluster.model_validate_json(text)
    return Config().settings.cluster if Path("config/config.yaml").is_file() else Cluster()
