"""Commands for one's own videos: pose, predict, adapt, runs, embed, export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.options import ConfigFolder, Interface, Nodes, Results, Workers, app, share_nodes
from pipeline.errors import UserError
from pipeline.workspace import Workspace


@app.command()
def pose(
    videos: Annotated[Path, typer.Argument(help="Folder of videos, or CSV file with the column path (index.csv).")],
    out: Annotated[Path, typer.Option(help="Folder for the poses, which `format: poses` reads.")],
    backend: Annotated[str, typer.Option(help="rtmpose, blazepose, or package.module:Class.")] = "rtmpose",
    layout: Annotated[str, typer.Option(help="Skeleton: coco17, h36m17, openpose18 or ntu25.")] = "coco17",
    persons: Annotated[int, typer.Option(min=1, max=8, help="The most persons per clip.")] = 2,
    frames: Annotated[int, typer.Option(min=0, help="The most frames per clip, evenly spaced; 0 takes all.")] = 0,
    models: Annotated[str, typer.Option(help="Folder with the backend's networks.")] = "",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    root: Annotated[str, typer.Option(help="Where the paths of a CSV file start (default: its folder).")] = "",
    pictures: Annotated[int, typer.Option(min=0, help="How many clips to draw into preview.png.")] = 3,
    results: Results = Path("results"),
    workers: Workers = 1,
    nodes: Nodes = 1,
    interface: Interface = "",
) -> None:
    """Find persons and their joints in videos, for skeleton data sets; an interrupted call is continued."""
    share_nodes(Workspace(results), nodes, workers, interface)
    from pipeline.datasets.skeletons.pose_folder import read_table
    from pipeline.pose.estimator import PoseSettings
    from pipeline.pose.extract import extract_poses, find_videos
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


Model = Annotated[str, typer.Option("--model", help="Folder of an exported model, instead of a run.")]
OwnRun = Annotated[str, typer.Option("--run", help="Id of a trained run, or its beginning.")]
Method = Annotated[str, typer.Option("--method", help="A trained run of this method, the best.")]
Backbone = Annotated[
    str, typer.Option(help="Without a run: folder or file of weights, name on the hub, or efficientnet_lite0.")
]
Matcher = Annotated[str, typer.Option(help="Without a run: otam (default), ab_mhm, bi_mhm or mean.")]
Pattern = Annotated[str, typer.Option(help="Regular expression: only files whose name matches are clips or frames.")]
StripPrefix = Annotated[bool, typer.Option("--strip-prefix", help="01_wave is the class wave.")]


@app.command()
def predict(
    support: Annotated[Path, typer.Option(help="Folder with a folder of example clips for each class.")],
    query: Annotated[Path, typer.Option(help="A clip, or a folder of clips.")],
    run: OwnRun = "",
    method: Method = "",
    model: Model = "",
    backbone: Backbone = "",
    matcher: Matcher = "",
    texts: Annotated[str, typer.Option(help="Descriptions of the classes (JSON). Without: only videos decide.")] = "",
    alpha: Annotated[
        float | None, typer.Option(help="Weight of the video-video score (default: validation's).")
    ] = None,
    truth: Annotated[bool, typer.Option("--truth", help="--query has class folders: print the accuracy.")] = False,
    reject: Annotated[float, typer.Option(help="Probability below which the answer is: none of these.")] = 0.0,
    strip_prefix: StripPrefix = False,
    pattern: Pattern = "",
    pictures: Annotated[int, typer.Option(min=0, help="How many clips to draw, from the first.")] = 8,
    out: Annotated[Path, typer.Option(help="Folder for predictions.json and index.html.")] = Path("predictions"),
    workers: Workers = 1,
    results: Results = Path("results"),
) -> None:
    """Label clips of your own from a few examples of each class: by a frozen backbone, or a trained few-shot run."""
    from pipeline.actions.clips import labelled_clips

    trained = bool(run or method or model)
    if trained and (backbone or matcher):
        raise UserError("--backbone and --matcher go without a run; leave them out, or --run, --method and --model")
    classes = {clip.label for clip in labelled_clips(support, strip_prefix, pattern)}
    from pipeline.actions.command import Asked, predict_clips
    from pipeline.actions.frozen import frozen_model
    from pipeline.actions.model import find_model

    asked = Asked(support, query, texts, alpha, truth, strip_prefix, pictures, workers, pattern, reject)
    if trained:
        found = find_model(model, run, method, results, classes, calibrate=True)
    else:
        found = frozen_model(backbone, matcher)
    print(predict_clips(found, asked, out))


@app.command()
def adapt(
    support: Annotated[Path, typer.Option(help="Folder with a folder of clips for each class.")],
    method: Annotated[str, typer.Option(help="Few-shot method that is trained.")] = "tuned",
    backbone: Annotated[
        str, typer.Option(help="Folder or file of weights, name on the hub, or efficientnet_lite0 (default).")
    ] = "",
    texts: Annotated[str, typer.Option(help="Descriptions of the classes (JSON), for methods that read them.")] = "",
    query: Annotated[Path | None, typer.Option(help="A clip, or a folder of clips, to label then.")] = None,
    truth: Annotated[bool, typer.Option("--truth", help="--query has class folders: print the accuracy.")] = False,
    strip_prefix: StripPrefix = False,
    pattern: Pattern = "",
    out: Annotated[Path, typer.Option(help="Folder for predictions.json and index.html.")] = Path("predictions"),
    workers: Workers = 1,
    steps: Annotated[int, typer.Option(min=0, help="Optimiser steps; 0: as config/scales/own.yaml has.")] = 0,
    cores: Annotated[str, typer.Option(help="CPU cores, in Snakemake's form.")] = "all",
    config: ConfigFolder = Path("config"),
) -> None:
    """Train a few-shot method on actions of your own, say what that gained over the frozen backbone, and label clips.

    An interrupted call is continued by the same one.
    """
    from pipeline.actions.adapt import RESULTS, Wanted
    from pipeline.actions.adapt import adapt as adapt_to
    from pipeline.actions.clips import labelled_clips, loose_clips
    from pipeline.actions.command import Asked, predict_clips
    from pipeline.actions.model import find_model

    if query is not None:  # a wrong name is told before the training
        labelled_clips(query, strip_prefix, pattern) if truth else loose_clips(query, pattern)
    found, frozen = adapt_to(Wanted(support, method, backbone, texts, strip_prefix, pattern, steps), config, cores)
    if query is None:
        return
    chosen = find_model(run=found.run, results=RESULTS, calibrate=True) if found.better else frozen
    given = texts if found.better else ""
    asked = Asked(support, query, given, truth=truth, strip_prefix=strip_prefix, workers=workers, pattern=pattern)
    print(predict_clips(chosen, asked, out))


@app.command()
def runs(
    method: Annotated[str, typer.Option(help="Those of one method.")] = "",
    results: Results = Path("results"),
) -> None:
    """List the trained runs: data set, accuracy on the validation classes, day, and the settings that differ."""
    from pipeline.actions.runs import list_runs

    rows = [("run", "data set", "validation", "trained", "settings"), *list_runs(Workspace(results), method)]
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    for row in rows:
        print("  ".join([*(text.ljust(width) for text, width in zip(row[:4], widths, strict=True)), row[4]]))


@app.command()
def embed(
    clips: Annotated[Path, typer.Argument(help="A clip, a folder of clips, or (--labelled) of class folders.")],
    run: OwnRun = "",
    method: Method = "",
    model: Model = "",
    backbone: Backbone = "",
    labelled: Annotated[bool, typer.Option("--labelled", help="Folders are classes.")] = False,
    strip_prefix: StripPrefix = False,
    pattern: Pattern = "",
    out: Annotated[Path, typer.Option(help="A file NAME.npz, or a folder of shards.")] = Path("features.npz"),
    workers: Workers = 1,
    nodes: Nodes = 1,
    interface: Interface = "",
    results: Results = Path("results"),
) -> None:
    """Write what a frozen backbone or a few-shot run computes for each of your own clips: features, clips, labels.

    For a file, all features are in memory at once. A folder takes any number of clips: it is written shard by shard,
    continued after an interruption, and several nodes may share the work.
    """
    from pipeline.actions.clips import labelled_clips, loose_clips

    if nodes > 1 and out.suffix == ".npz":
        raise UserError(f"over several nodes features go into a folder of shards, and {out} is a file: --out features")
    share_nodes(Workspace(results), nodes, workers, interface)
    found = labelled_clips(clips, strip_prefix, pattern) if labelled else loose_clips(clips, pattern)
    from pipeline.actions.features import ModelName, embed_folder

    name = ModelName(model, run, method, str(results), backbone)
    if out.suffix == ".npz":
        from pipeline.actions.command import embed_clips

        count, bad = embed_clips(name.load(), found, out, workers)
        print(f"{out}: {count} clips{f', {len(bad)} left out' if bad else ''}")
        return
    made = embed_folder(name, clips, found, out, workers, nodes)
    left_out = f", {made['failures']} left out (failures.csv)" if made["failures"] else ""
    print(f"{out}: {made['features']} clips{left_out}")


@app.command()
def export(
    to: Annotated[Path, typer.Option(help="The folder to write.")],
    run: Annotated[str, typer.Argument(help="Id of the run, or its beginning; without one a frozen backbone.")] = "",
    backbone: Backbone = "",
    matcher: Matcher = "",
    results: Results = Path("results"),
) -> None:
    """Write a few-shot run, or a frozen backbone, into its own folder, which predict and embed take as --model."""
    from pipeline.actions.model import export_model, write_model
    from pipeline.actions.runs import choose_run

    if run and (backbone or matcher):
        raise UserError("--backbone and --matcher go without a run; leave them out, or the run")
    if run:
        ws = Workspace(results)
        print(export_model(choose_run(ws, run), ws, to))
        return
    from pipeline.actions.frozen import frozen_model

    frozen = frozen_model(backbone, matcher)
    print(write_model(frozen, frozen.model.backbone, to))
