"""The data stages, one function each: videos, splits, texts, frames. What differs between kinds of data set is here."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.datasets.kinds.registry import data_of
from pipeline.errors import UserError, unknown
from pipeline.experiment import Asset
from pipeline.files import copy_file, write_json
from pipeline.workspace import Workspace


def synthesize(asset: Asset, ws: Workspace, workers: int) -> Path:
    """Generate the videos of a synthetic data set; returns its annotations."""
    return data_of(asset).make_videos(ws, workers)


def make_poses(asset: Asset, ws: Workspace, workers: int, nodes: int = 1) -> Path:
    """Extract the poses of a skeleton data set from its `videos`, as its key `pose` says; returns their table.

    Raises:
        UserError: it names no videos, a key is wrong, or see `pose.extract.extract_poses`.
    """
    from pipeline.pose.estimator import PoseSettings
    from pipeline.pose.extract import extract_poses, find_videos
    from pipeline.pose.picture import write_picture

    data = data_of(asset)
    if data.source != ("poses", asset.key) or data.definition.format != "poses":
        raise UserError(f"{data.place}: poses are extracted for kind skeletons, format poses, with the key videos")
    layout = data.definition.graph
    if not isinstance(layout, str):
        raise UserError(f"{data.place}: poses need a built-in graph (coco17, h36m17, openpose18, ntu25)")
    out, wanted = data.root(ws), data.definition.pose.model_dump(exclude_unset=True)
    root, videos = find_videos(data.definition.videos)
    extract_poses(root, videos, out, PoseSettings(layout=layout, **wanted), workers, nodes=nodes)
    write_picture(out, root)
    return out / "poses.csv"


def make_splits(asset: Asset, ws: Workspace, workers: int) -> Path:
    """Write the data set's index.csv: every usable clip with its class and split."""
    ws.dataset(asset.key).mkdir(parents=True, exist_ok=True)
    return data_of(asset).make_splits(ws, workers)


def make_texts(asset: Asset, ws: Workspace) -> Path:
    """Put the text corpus of the data set in place, after a look whether every class has its texts.

    Where there is none it is an empty one, which stops the methods that read texts, and no others.

    Raises:
        UserError: a class is missing in the corpus.
    """
    from pipeline.datasets.index import read_index
    from pipeline.text.corpus import Corpus

    given, target = asset.options.get("texts"), ws.texts(asset.key)
    source = data_of(asset).made_texts(ws) or (Path(given) if given and Path(given).is_file() else None)
    if source is None and (asked := asset.options.get("describe")):
        source = describe_classes(asset, ws, asked, "llm")
    if source is None:
        print(
            f"data set {asset.name} has no texts ({given or 'key texts is missing'}); methods that read them will stop"
        )
        return Corpus({}).save(target)
    labels = sorted({clip.label for clip in read_index(ws.index(asset.key))})
    for name, other in _corpora(asset, ws).items():
        _put_texts(asset, other, target.with_name(f"texts-{name}.json"), labels)
    _put_texts(asset, source, target, labels)
    return target


def _put_texts(asset: Asset, source: Path, target: Path, labels: list[str]) -> None:
    """Copy a corpus to `target`, with the classes called as in the data set; what is spelt apart is printed.

    Raises:
        UserError: classes have no text; they are named.
    """
    from pipeline.names import told
    from pipeline.text.corpus import load_corpus

    corpus = load_corpus(source)
    named, found = corpus.named(labels)
    named.require(labels)
    for label in labels:
        named.label(label)
    lines = told(found, "has the texts of")
    for line in lines:
        print(f"{asset.name}: {line}")
    if lines:
        named.save(target)
    else:
        copy_file(source, target)


def describe_classes(asset: Asset, ws: Workspace, asked: Mapping[str, Any], name: str) -> Path:
    """Have the language model of `asked` (see `text.prompts.resolve`) describe the classes; returns the corpus's file.

    Raises:
        UserError: no key, model or server; a class without a usable answer.
    """
    from pipeline.datasets.index import read_index
    from pipeline.text.describe import describe_with

    labels = {clip.label for clip in read_index(ws.index(asset.key))}
    corpus = describe_with(asked, labels, ws.answers, data_of(asset).joints)
    return corpus.save(ws.dataset(asset.key) / f".texts-{name}.json")


def _corpora(asset: Asset, ws: Workspace) -> dict[str, Path]:
    """Files with further words for the classes, by name: of other language models, or GAP's own (a folder)."""
    data, made = data_of(asset), {}
    for voice, content in data.voices(ws).items():
        made[voice] = ws.dataset(asset.key) / f".texts-{voice}.json"
        write_json(made[voice], content)
    if data.whole:
        return made
    for name, given in asset.options.get("corpora", {}).items():
        if isinstance(given, dict):
            made[name] = describe_classes(asset, ws, given, name)
        elif Path(given).is_dir():
            from pipeline.models.skeleton.gap import released_corpus

            classes = asset.spec.get("classes", ())
            corpus = released_corpus(given, tuple(classes.values() if isinstance(classes, dict) else classes))
            made[name] = corpus.save(ws.dataset(asset.key) / f".texts-{name}.json")
        elif Path(given).is_file():
            made[name] = Path(given)
        else:
            print(f"{asset.name}: nothing at {given}, so no corpus {name!r}; a method that reads it cannot be trained")
    return made


def make_frames(asset: Asset, ws: Workspace, store: str, policy: dict, workers: int, nodes: int = 1) -> Path:
    """Decode every clip of the data set once into its frame store; returns the manifest.

    Raises:
        UserError: a smaller share of the clips that its lists name is there than its `min_coverage`.
    """
    data_of(asset).make_store(ws, ws.dataset(asset.key) / store, policy, workers, nodes)
    return ws.manifest(asset.key, store)


def pretrain_backbone(asset: Asset, ws: Workspace, threads: int, anew: bool = False) -> Path:
    """Pretrain a tiny backbone (`kind`: clip, locked_clip, resnet, vit) on base classes; returns its config.json.

    One that comes with the repository (`packed`, see `Plan.backbone`) is fetched from there, unless `anew`.

    Raises:
        UserError: an unknown kind or setting; no clips or texts to train on; a damaged file of the repository.
    """
    if "packed" in asset.options and not anew:
        from pipeline.models.backbones.shipped import unpack

        return unpack(Path(asset.options["packed"]), ws.backbone(asset.key)) / "config.json"
    import torch

    from pipeline.datasets.frames import FrameStore
    from pipeline.text.corpus import load_corpus
    from pipeline.training.pretrain import IMAGE_NETWORKS, align, pretrain, pretrain_classifier

    trainers = {"clip": pretrain, "locked_clip": align}
    trainers |= {kind: partial(pretrain_classifier, kind=kind) for kind in IMAGE_NETWORKS}
    where = f"config/backbones.yaml, {asset.name}"
    kind = asset.spec.get("kind", "clip")
    if kind not in trainers:
        raise unknown("kind of backbone", kind, trainers, where)
    settings = {key: value for key, value in asset.spec.items() if key not in ("kind", "sources", "stores", "texts")}
    known = set(inspect.signature(trainers[kind]).parameters) - {"sources", "out_folder", "progress", "kind"}
    if odd := set(settings) - known:
        raise unknown("key", min(odd), known, where)
    torch.set_num_threads(threads)
    keys, stores = asset.spec["sources"], asset.spec["stores"]
    sources = [
        (FrameStore(ws.dataset(key) / store), load_corpus(ws.dataset(key) / "texts.json"))
        for key, store in zip(keys, stores, strict=True)
    ]
    trainers[kind](sources, ws.backbone(asset.key), **settings)
    return ws.backbone(asset.key) / "config.json"


__all__ = ["make_frames", "make_poses", "make_splits", "make_texts", "pretrain_backbone", "synthesize"]
