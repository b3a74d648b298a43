"""`python -m pipeline STAGE`: every step of the workflow, as Snakemake runs it, by hand."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from pipeline.config import Cluster, Config, read_yaml
from pipeline.errors import UserError, unknown
from pipeline.progress import follow, job
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
app.add_typer(cluster_app, name="cluster")

Results = Annotated[Path, typer.Option("--results", help="Folder of everything that is computed.")]
ConfigFolder = Annotated[Path, typer.Option("--config", help="Folder of config.yaml, scales/, tables/ and so on.")]
Workers = Annotated[int, typer.Option("--workers", min=1, help="Processes.")]
Nodes = Annotated[
    int, typer.Option("--nodes", min=1, help="Nodes of this Slurm job that share the work, each with --workers.")
]
Interface = Annotated[str, typer.Option(help="Network interface between them (default: the one that Slurm uses).")]
Settings = Annotated[str, typer.Option("--settings", help="Cluster settings as JSON (default: the config's).")]
Key = Annotated[str, typer.Argument(help="Key of the data set or backbone: name and hash, as in results/specs.")]
RunId = Annotated[str, typer.Argument(help="Id of the run; its beginning is enough where it is unambiguous.")]


Scale = Annotated[str, typer.Option(help="demo, quick or paper (default: the config's).")]
Overlay = Annotated[str, typer.Option(help="Settings over the config: JSON, or a YAML file.")]


def _overlay(text: str, scale: str) -> dict:
    """Settings from the command line: JSON, or the name of a YAML file."""
    try:
        content = json.loads(text)
    except ValueError:
        content = read_yaml(Path(text))
    return content | ({"scale": scale} if scale else {})


def _spread(ws: Workspace, settings: Cluster) -> None:
    """Go on, where a job is to have several nodes, as the driver of a Ray cluster over them."""
    if settings.mode == "job" and settings.nodes > 1 and "RAY_ADDRESS" not in os.environ:
        from pipeline.nodes import spread

        raise typer.Exit(spread([sys.executable, "-m", "pipeline", *sys.argv[1:]], ws, settings))


def _share(ws: Workspace, nodes: int, workers: int, interface: str) -> None:
    """Go on, where several nodes are to share the work, as a driver that is connected to a Ray cluster over them."""
    if nodes > 1:
        from pipeline.cluster import connect

        # One task a node; of the CPUs there Ray counts one more than the threads of its worker.
        threads = max(1, workers - 1)
        settings = Cluster(mode="job", nodes=nodes, workers=nodes, threads=threads, interface=interface)
        _spread(ws, settings)
        connect(ws, settings)


def _settings(text: str) -> Cluster:
    if text:
        return Cluster.model_validate_json(text)
    return Config().settings.cluster if Path("config/config.yaml").is_file() else Cluster()


@app.command()
def videos(key: Key, results: Results = Path("results"), workers: Workers = 1) -> None:
    """Generate the videos of a synthetic data set, with skeletons, phases and texts."""
    from pipeline.datasets.prepare import synthesize

    ws = Workspace(results)
    with job(ws, "videos", key):
        print(synthesize(ws.read_asset(key), ws, workers))


@app.command()
def download(
    names: Annotated[list[str], typer.Argument(help="Data sets, as in config/datasets.")],
    mirror: Annotated[str, typer.Option(help="Folder or server with all files (default: the config's).")] = "",
    record: Annotated[str, typer.Option(help="File to copy the record of a single data set to.")] = "",
    workers: Annotated[int, typer.Option("--workers", min=1, help="Files at a time.")] = 4,
    config: ConfigFolder = Path("config"),
    overlay: Overlay = "{}",
) -> None:
    """Fetch a data set and the lists of its splits from their publishers, or say what must be done by hand.

    A download that broke off is continued; what is there is not fetched again.
    """
    from pipeline.datasets.download import Fetcher, download_dataset

    settings = Config(config, _overlay(overlay, ""))
    fetcher = Fetcher(mirror or settings.settings.mirror, workers)
    for name in names:
        made = download_dataset(settings, name, fetcher)
        print(made)
        if record:
            from pipeline.datasets.index import write_text

            write_text(record, made.read_text())


@app.command()
def poses(
    key: Key, results: Results = Path("results"), workers: Workers = 1, nodes: Nodes = 1, interface: Interface = ""
) -> None:
    """Find the joints of the persons in the videos of a skeleton data set (`format: poses`, `videos`)."""
    ws = Workspace(results)
    _share(ws, nodes, workers, interface)
    from pipeline.datasets.prepare import make_poses

    with job(ws, "poses", key):
        print(make_poses(ws.read_asset(key), ws, workers, nodes))


@app.command()
def splits(key: Key, results: Results = Path("results"), workers: Workers = 1) -> None:
    """List the clips of a data set with class and split (index.csv), and check that they can be read."""
    from pipeline.datasets.prepare import make_splits

    ws = Workspace(results)
    with job(ws, "splits", key):
        print(make_splits(ws.read_asset(key), ws, workers))


@app.command()
def split(
    names: Annotated[list[str] | None, typer.Argument(help="Data sets (default: all with published lists).")] = None,
    check: Annotated[bool, typer.Option("--check", help="Exit with status 1 where a count differs.")] = False,
    config: ConfigFolder = Path("config"),
    overlay: Overlay = "{}",
) -> None:
    """Count classes and clips of each split, from the list files alone, beside the papers' counts."""
    from pipeline.datasets.counts import check_splits

    found = check_splits(Config(config, _overlay(overlay, "")), names or ())
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
    from pipeline.datasets.prepare import make_texts

    ws = Workspace(results)
    with job(ws, "text", key):
        print(make_texts(ws.read_asset(key), ws))


@app.command()
def describe(
    dataset: Annotated[str, typer.Argument(help="Data set, as in config/datasets.")] = "",
    classes: Annotated[str, typer.Option(help="In place of a data set: file with a class name a line.")] = "",
    out: Annotated[Path, typer.Option(help="File for the descriptions, which `texts:` may name.")] = Path("texts.json"),
    prompts: Annotated[str, typer.Option(help="Prompts of config/prompts, by commas (default: the data set's).")] = "",
    model: Annotated[str, typer.Option(help="Language model (default: the data set's or llm.model).")] = "",
    base_url: Annotated[str, typer.Option("--base-url", help="Its server, up to /v1.")] = "",
    graph: Annotated[str, typer.Option(help="Skeleton whose joints are described, with --classes.")] = "",
    cache: Annotated[str, typer.Option(help="Folder of the answers that are kept (default: RESULTS/text).")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what it would take; ask nothing.")] = False,
    imported: Annotated[
        str, typer.Option("--import", help="Published texts to convert, files by commas; asks nothing.")
    ] = "",
    results: Results = Path("results"),
    config: ConfigFolder = Path("config"),
    overlay: Overlay = "{}",
) -> None:
    """Have a language model describe the classes of a data set (texts.json); every answer is kept.

    The key is read from the environment variable that llm.key names (OPENAI_API_KEY).
    """
    from pipeline.text.command import Wishes, describe_command

    wishes = Wishes(dataset, classes, prompts, model, base_url, graph, imported)
    describe_command(wishes, Config(config, _overlay(overlay, "")), out, results, cache or results / "text", dry_run)


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
    _share(ws, nodes, workers, interface)
    from pipeline.datasets.prepare import make_frames

    with job(ws, "frames", f"{key}-{store}"):
        print(make_frames(ws.read_asset(key), ws, store, ws.read_store(store), workers, nodes))


@app.command()
def pretrain(
    key: Key,
    results: Results = Path("results"),
    threads: Annotated[int, typer.Option(min=1)] = 1,
    anew: Annotated[bool, typer.Option("--anew", help="Also where the repository has it ready.")] = False,
    pack: Annotated[
        str, typer.Option(help="Also write it to FOLDER/KEY, in half precision: config/pretrained holds such.")
    ] = "",
) -> None:
    """Fetch a tiny backbone that comes with the repository, or pretrain it on frames and captions of base classes."""
    from pipeline.datasets.prepare import pretrain_backbone

    ws = Workspace(results)
    with job(ws, "pretrain", key):
        print(pretrain_backbone(ws.read_asset(key), ws, threads, anew))
        if pack:
            from pipeline.models.backbones import shipped

            print(shipped.pack(ws.backbone(key), Path(pack) / key))


@app.command()
def train(run: RunId, results: Results = Path("results"), settings: Settings = "") -> None:
    """Train one run: on the shared Ray cluster, or as a Ray job of its own (cluster.mode: job).

    A training that was interrupted continues from its last checkpoint.
    """
    ws, cluster = Workspace(results), _settings(settings)
    _spread(ws, cluster)
    spec = ws.read_run(run)
    with follow(ws, "train", spec.id):
        if cluster.mode == "shared":
            from pipeline.cluster import Client

            Client(ws, cluster).run(spec.id, "train", {"run": spec.id})
        else:
            from pipeline.cluster import connect

            connect(ws, cluster)
            from pipeline.training.ray_train import fit

            fit(spec, ws, cluster)
    print(ws.run(spec.id) / "train.json")


@app.command()
def sweep(
    name: Annotated[str, typer.Argument(help="Name of the sweep, as `plan` lists it.")],
    results: Results = Path("results"),
    settings: Settings = "",
) -> None:
    """Train the runs along one axis of a table as one Ray Tune sweep; finished trials are kept."""
    ws, cluster = Workspace(results), _settings(settings)
    _spread(ws, cluster)
    if cluster.mode == "shared":
        from pipeline.cluster import running
        from pipeline.nodes import enter

        enter(running(ws) or {})
    from pipeline.training.sweep import sweep as tune_sweep

    with job(ws, "sweep", name):
        print(tune_sweep(name, ws, cluster))


@app.command()
def evaluate(
    run: RunId,
    cells: Annotated[list[str] | None, typer.Argument(help="Ids of its cells (default: all that are planned).")] = None,
    results: Results = Path("results"),
    settings: Settings = "",
) -> None:
    """Measure cells of a trained run: encode each video once, score the episodes, choose alpha by Ray Tune.

    A cell that is there, and is as new as the training and the data, is not measured again.
    """
    from pipeline.evaluation.evaluate import measure_run, needed_work, search_in_process

    ws, cluster = Workspace(results), _settings(settings)
    spec = ws.read_run(run)
    asked = ws.read_cells(spec.id, cells)
    todo = ws.unmeasured(asked)
    by_tune = any(cell.measure.settled().alpha == "val" for cell in todo)
    name = cells[0] if cells else spec.id
    if not needed_work(todo, ws) and not by_tune:
        measure_run(spec, todo, ws, search_in_process)
    elif cluster.mode == "shared":
        from pipeline.cluster import Client

        with follow(ws, "evaluate", name):
            Client(ws, cluster).run(f"evaluate-{name}", "evaluate", {"run": spec.id, "cells": cells, "name": name})
    else:
        if by_tune:
            from pipeline.cluster import connect

            connect(ws, cluster)
        from pipeline.evaluation.score import evaluate_run

        with job(ws, "evaluate", name):
            evaluate_run(spec, todo, ws)
    for path in (ws.cell(cell.id) for cell in asked):
        record = json.loads(path.read_text())
        half = "" if record["ci95"] is None else f" +- {record['ci95']:.2f}"
        print(f"{path}: {record['value']:.2f}{half}")


@app.command()
def pose(
    videos: Annotated[Path, typer.Argument(help="Folder of videos, or CSV file with the column path (index.csv).")],
    out: Annotated[Path, typer.Option(help="Folder for the poses, which `format: poses` reads.")],
    backend: Annotated[str, typer.Option(help="rtmpose, blazepose, or package.module:Class.")] = "rtmpose",
    layout: Annotated[str, typer.Option(help="Skeleton: coco17, h36m17, openpose18 or ntu25.")] = "coco17",
    persons: Annotated[int, typer.Option(min=1, max=8, help="Persons of a clip at most.")] = 2,
    frames: Annotated[int, typer.Option(min=0, help="Frames of a clip at most, evenly spaced; 0 takes all.")] = 0,
    models: Annotated[str, typer.Option(help="Folder with the backend's networks.")] = "",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    root: Annotated[str, typer.Option(help="Where the paths of a CSV file start (default: its folder).")] = "",
    pictures: Annotated[int, typer.Option(min=0, help="Draw so many clips into preview.png.")] = 3,
    results: Results = Path("results"),
    workers: Workers = 1,
    nodes: Nodes = 1,
    interface: Interface = "",
) -> None:
    """Find persons and their joints in videos, for skeleton data sets; what was interrupted is continued."""
    _share(Workspace(results), nodes, workers, interface)
    from pipeline.pose.estimator import PoseSettings
    from pipeline.pose.extract import extract_poses, find_videos, read_table
    from pipeline.pose.picture import write_picture

    base, found = find_videos(videos, root)
    settings = PoseSettings(backend, layout, persons, frames, models, device)
    print(extract_poses(base, found, out, settings, workers, nodes=nodes))
    made = read_table(out)[0]
    share = 100 * made["frames_with_person"] / made["all_frames"]
    left = f", {made['failures']} left out (failures.csv)" if made["failures"] else ""
    print(f"{made['clips']} clips{left}; somebody is found in {share:.1f} % of their {made['all_frames']} frames")
    if pictures:
        print(write_picture(out, base, pictures))


@app.command()
def inspect(run: RunId, results: Results = Path("results")) -> None:
    """Look inside a trained run, for figures: features, attention, phases or joints of a few fixed clips (npz)."""
    from pipeline.inspection import inspect_run

    ws = Workspace(results)
    spec = ws.read_run(run)
    with job(ws, "inspect", spec.id):
        print(inspect_run(spec, ws))


Model = Annotated[str, typer.Option("--model", help="Folder of an exported model, in place of a run.")]
OwnRun = Annotated[str, typer.Option("--run", help="Id of a trained run, or its beginning.")]
Method = Annotated[str, typer.Option("--method", help="The trained run of this method, if there is one only.")]
Pattern = Annotated[str, typer.Option(help="Regular expression: only files whose name it matches are clips or frames.")]
StripPrefix = Annotated[bool, typer.Option("--strip-prefix", help="01_wave is the class wave.")]


@app.command()
def predict(
    support: Annotated[Path, typer.Option(help="Folder with a folder of example clips for each class.")],
    query: Annotated[Path, typer.Option(help="A clip, or a folder of clips.")],
    run: OwnRun = "",
    method: Method = "",
    model: Model = "",
    texts: Annotated[str, typer.Option(help="Descriptions of the classes (JSON); without them videos decide.")] = "",
    alpha: Annotated[
        float | None, typer.Option(help="Weight of the video-video score (default: validation's).")
    ] = None,
    truth: Annotated[bool, typer.Option("--truth", help="--query has class folders: print the accuracy.")] = False,
    strip_prefix: StripPrefix = False,
    pattern: Pattern = "",
    pictures: Annotated[int, typer.Option(min=0, help="Draw the first so many clips.")] = 8,
    out: Annotated[Path, typer.Option(help="Folder for predictions.json and the pictures.")] = Path("predictions"),
    workers: Workers = 1,
    results: Results = Path("results"),
) -> None:
    """Label clips of your own from a few examples of each class, with a trained few-shot run."""
    from pipeline.actions.command import Asked, predict_clips
    from pipeline.actions.model import find_model

    asked = Asked(support, query, texts, alpha, truth, strip_prefix, pictures, workers, pattern)
    print(predict_clips(find_model(model, run, method, results), asked, out))


@app.command()
def embed(
    clips: Annotated[Path, typer.Argument(help="A clip, a folder of clips, or (--labelled) of class folders.")],
    run: OwnRun = "",
    method: Method = "",
    model: Model = "",
    labelled: Annotated[bool, typer.Option("--labelled", help="Folders are classes.")] = False,
    strip_prefix: StripPrefix = False,
    pattern: Pattern = "",
    out: Annotated[Path, typer.Option(help="A file NAME.npz, or a folder of shards.")] = Path("features.npz"),
    workers: Workers = 1,
    nodes: Nodes = 1,
    interface: Interface = "",
    results: Results = Path("results"),
) -> None:
    """Write what a trained few-shot run works out for each clip of your own: features, clips, labels.

    A file has all features in memory at once. A folder takes any number of clips: it is written shard by shard, an
    interrupted one is continued, and several nodes may share the work.
    """
    from pipeline.actions.clips import labelled_clips, loose_clips

    if nodes > 1 and out.suffix == ".npz":
        raise UserError(f"over several nodes features go into a folder of shards, and {out} is a file: --out features")
    _share(Workspace(results), nodes, workers, interface)
    found = labelled_clips(clips, strip_prefix, pattern) if labelled else loose_clips(clips, pattern)
    if out.suffix == ".npz":
        from pipeline.actions.command import embed_clips
        from pipeline.actions.model import find_model

        count, bad = embed_clips(find_model(model, run, method, results), found, out, workers)
        print(f"{out}: {count} clips{f', {len(bad)} left out' if bad else ''}")
        return
    from pipeline.actions.features import ModelName, embed_folder

    made = embed_folder(ModelName(model, run, method, str(results)), clips, found, out, workers, nodes)
    left_out = f", {made['failures']} left out (failures.csv)" if made["failures"] else ""
    print(f"{out}: {made['features']} clips{left_out}")


@app.command()
def export(
    run: RunId,
    to: Annotated[Path, typer.Option(help="The folder to write.")],
    results: Results = Path("results"),
) -> None:
    """Write a trained few-shot run into a folder of its own, which predict and embed take as --model."""
    from pipeline.actions.model import choose_run, export_model

    ws = Workspace(results)
    print(export_model(choose_run(ws, run), ws, to))


@app.command()
def table(
    number: Annotated[str, typer.Argument(help="The table: 4, or fig3.")],
    paper: Annotated[str, typer.Option(help="One paper's table; without it every paper's of this number.")] = "",
    results: Results = Path("results"),
    config: ConfigFolder = Path("config"),
    overlay: Overlay = "{}",
) -> None:
    """Write a table from the measured cells (CSV, Markdown, LaTeX, HTML)."""
    from pipeline.plan import Plan
    from pipeline.tables.results import write_combined, write_table

    plan = Plan.read(config, _overlay(overlay, ""), paper, number)
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

    plan = Plan.read(config, _overlay(overlay, ""), paper, number)
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

    for path in write_training(Plan.read(config, _overlay(overlay, ""), paper), paper, results):
        print(path)


@app.command()
def report(
    results: Results = Path("results"),
    config: ConfigFolder = Path("config"),
    scale: Scale = "",
    overlay: Overlay = "{}",
) -> None:
    """Write every table and figure, as far as it is measured, into one page: results/report.html."""
    from pipeline.plan import Plan
    from pipeline.report.build import write_report

    print(write_report(Plan.read(config, _overlay(overlay, scale)), results))


@app.command()
def show(
    number: Annotated[str, typer.Argument(help="The table: 4, or fig3.")],
    paper: Annotated[str, typer.Option(help="One paper's table; without it every paper's of this number.")] = "",
    results: Results = Path("results"),
    config: ConfigFolder = Path("config"),
    scale: Scale = "",
    overlay: Overlay = "{}",
) -> None:
    """Print a table in the paper's layout."""
    from pipeline.plan import Plan
    from pipeline.tables.console import print_table
    from pipeline.tables.spec import table_number

    print_table(Plan.read(config, _overlay(overlay, scale)), paper or None, table_number(number), results)


@app.command()
def demo(
    number: Annotated[str, typer.Argument(help="The table.")] = "4",
    cores: Annotated[str, typer.Option(help="CPU cores, as Snakemake takes them.")] = "all",
) -> None:
    """Measure a table of every paper at demo scale, by Snakemake, and print each as soon as it is there."""
    from pipeline.demo import run_demo
    from pipeline.plan import Plan

    run_demo(Plan.read("config", {"scale": "demo"}, number=number), number, Path("results"), cores)


@app.command()
def plan(
    results: Results = Path("results"),
    config: ConfigFolder = Path("config"),
    scale: Scale = "",
    overlay: Overlay = "{}",
    write: Annotated[bool, typer.Option("--write", help="Write the specs that the other commands read.")] = False,
    gpus: Annotated[int, typer.Option(min=1, help="GPUs whose wall time is wanted.")] = 8,
    table: Annotated[str, typer.Option(help="Only the tables of this number: 4, fig3 (default: all).")] = "",
    check: Annotated[
        bool, typer.Option("--check", help="Show each training's texts, frames, length, labels; say what is wrong.")
    ] = False,
) -> None:
    """Say what the tables need: cells, trainings, sweeps, time; at paper scale GPU hours, disk and questions."""
    from pipeline.estimate import print_plan
    from pipeline.plan import Plan

    planned = Plan.read(config, _overlay(overlay, scale), number=table)
    if table and not planned.entries:
        raise unknown("table", table, planned.numbers())
    if write:
        planned.write_specs(results / "specs")
    if check:
        from pipeline.paper import check_plan, print_check

        found = check_plan(planned)
        print_check(found)
        raise typer.Exit(1 if found.faults else 0)
    print_plan(planned, results, gpus)


@app.command()
def status(
    results: Results = Path("results"),
    config: ConfigFolder = Path("config"),
    scale: Scale = "",
    overlay: Overlay = "{}",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, for a program.")] = False,
) -> None:
    """Say what is done, what runs now and how far it is, and what has failed and why."""
    from pipeline.plan import Plan
    from pipeline.status import print_status, read_status

    found = read_status(Plan.read(config, _overlay(overlay, scale)), results)
    print(json.dumps(found)) if as_json else print_status(found)


@app.command()
def doctor(
    results: Results = Path("results"),
    config: ConfigFolder = Path("config"),
    scale: Scale = "",
    overlay: Overlay = "{}",
    network: Annotated[
        bool, typer.Option("--network", help="Ask the language model's server whether it is there.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, for a program.")] = False,
) -> None:
    """Say whether this machine has what the tables need, and what to do where not.

    Exits with status 1 where the configured scale lacks something (fail); warnings are no failure.
    """
    from pipeline import doctor as checks
    from pipeline.plan import Plan

    with checks.start_torch() as probe:  # while the plan is read
        try:
            plan = Plan.read(config, _overlay(overlay, scale))
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
    """Say where the dashboards of the running Ray clusters are, and how to reach them from elsewhere."""
    import webbrowser

    from pipeline.cluster import live, tunnel

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


@cluster_app.command("serve", hidden=True)
def cluster_serve(results: Results = Path("results"), settings: Settings = "") -> None:
    """Run the shared cluster in the foreground."""
    from pipeline.cluster import serve

    serve(Workspace(results), _settings(settings))


@cluster_app.command("node", hidden=True)
def cluster_node(
    folder: Annotated[Path, typer.Argument()], command: Annotated[list[str], typer.Argument()], settings: Settings = ""
) -> None:
    """The part of one node in a Ray cluster over the nodes of a Slurm job; srun starts it on each."""
    from pipeline.nodes import run_node

    raise typer.Exit(run_node(folder, _settings(settings), command))


@cluster_app.command("host", hidden=True)
def cluster_host(results: Results = Path("results"), settings: Settings = "") -> None:
    """Host the shared cluster on the nodes of this Slurm job."""
    from pipeline.nodes import spread

    cluster = _settings(settings)
    inner = [sys.executable, "-m", "pipeline", "cluster", "serve", "--results", str(results)]
    raise typer.Exit(spread([*inner, "--settings", cluster.model_dump_json()], Workspace(results), cluster))


@cluster_app.command("start", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def cluster_start(
    context: typer.Context,
    results: Results = Path("results"),
    settings: Settings = "",
    nodes: Annotated[int, typer.Option(min=0, help="Host it on so many nodes of a Slurm job; 0: here.")] = 0,
) -> None:
    """Start the shared cluster (stages do it by themselves) and say where its dashboard is.

    With --nodes it is a Slurm job, to which further options go: --partition=gpu --gres=gpu:4 --time=24:00:00.
    """
    from pipeline.cluster import ensure, running

    ws, cluster = Workspace(results), _settings(settings)
    if not nodes and context.args:
        raise UserError(f"options of sbatch ({' '.join(context.args)}) need --nodes")
    if nodes and not running(ws):
        from pipeline.nodes import allocate

        record = allocate(ws, cluster.model_copy(update={"mode": "shared", "nodes": nodes}), context.args)
    else:
        record = ensure(ws, cluster)
    where = f" (Slurm job {record['job']})" if "job" in record else ""
    print(f"cluster {record['address']}{where}, dashboard {record['dashboard']}, token in {results}/ray/token")


@cluster_app.command("stop")
def cluster_stop(results: Results = Path("results")) -> None:
    """Stop the shared cluster; what runs on it can be resumed."""
    from pipeline.cluster import stop

    print("stopped" if stop(Workspace(results)) else "no cluster is running")


@cluster_app.command("status")
def cluster_status(results: Results = Path("results")) -> None:
    """Say whether the shared cluster runs, and where."""
    from pipeline.cluster import running

    record = running(Workspace(results))
    print(json.dumps(record) if record else "no cluster is running")


def main() -> None:
    """Entry point: errors that the user can mend are one line on stderr, and exit status 2."""
    try:
        app(standalone_mode=True)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.errno != 28 or os.environ.get("PIPELINE_DEBUG"):
            raise
        print(f"error: no space left on the disk of {error.filename or 'the results'}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
