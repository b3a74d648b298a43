"""Commands of the shared Ray cluster."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.options import Results, Settings, cluster_app, settings_of
from pipeline.config import Cluster
from pipeline.errors import UserError
from pipeline.workspace import Workspace


@cluster_app.command("serve", hidden=True)
def cluster_serve(results: Results = Path("results"), settings: Settings = "") -> None:
    """Run the shared cluster in the foreground."""
    from pipeline.cluster.server import serve

    def slot(number: int, root: Path, cluster: Cluster, queue: str) -> None:
        from pipeline.training.ray_train import run_slot  # here: Ray reads its environment when it is imported

        run_slot(number, root, cluster, queue)

    serve(Workspace(results), settings_of(settings), slot)


@cluster_app.command("node", hidden=True)
def cluster_node(
    folder: Annotated[Path, typer.Argument()], command: Annotated[list[str], typer.Argument()], settings: Settings = ""
) -> None:
    """The part of one node in a Ray cluster over the nodes of a Slurm job; srun starts it on each."""
    from pipeline.cluster.nodes import run_node

    raise typer.Exit(run_node(folder, settings_of(settings), command))


@cluster_app.command("host", hidden=True)
def cluster_host(results: Results = Path("results"), settings: Settings = "") -> None:
    """Host the shared cluster on the nodes of this Slurm job."""
    from pipeline.cluster.nodes import spread

    cluster = settings_of(settings)
    inner = [sys.executable, "-m", "pipeline", "cluster", "serve", "--results", str(results)]
    raise typer.Exit(spread([*inner, "--settings", cluster.model_dump_json()], Workspace(results), cluster))


@cluster_app.command("start", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def cluster_start(
    context: typer.Context,
    results: Results = Path("results"),
    settings: Settings = "",
    nodes: Annotated[int, typer.Option(min=0, help="Host it on so many nodes of a Slurm job; 0: on this machine.")] = 0,
) -> None:
    """Start the shared cluster (stages do it by themselves) and print where its dashboard is.

    With --nodes it runs as a Slurm job, which gets all further options: --partition=gpu --gres=gpu:4 --time=24:00:00.
    """
    from pipeline.cluster.client import ensure, running

    ws, cluster = Workspace(results), settings_of(settings)
    if not nodes and context.args:
        raise UserError(f"options of sbatch ({' '.join(context.args)}) need --nodes")
    if nodes and not running(ws):
        from pipeline.cluster.nodes import allocate

        record = allocate(ws, cluster.model_copy(update={"mode": "shared", "nodes": nodes}), context.args)
    else:
        record = ensure(ws, cluster)
    where = f" (Slurm job {record['job']})" if "job" in record else ""
    print(f"cluster {record['address']}{where}, dashboard {record['dashboard']}, token in {results}/ray/token")


@cluster_app.command("stop")
def cluster_stop(results: Results = Path("results")) -> None:
    """Stop the shared cluster; what runs on it can be resumed."""
    from pipeline.cluster.client import stop

    print("stopped" if stop(Workspace(results)) else "no cluster is running")


@cluster_app.command("status")
def cluster_status(results: Results = Path("results")) -> None:
    """Show whether the shared cluster is running, and where."""
    from pipeline.cluster.client import running

    record = running(Workspace(results))
    print(json.dumps(record) if record else "no cluster is running")
