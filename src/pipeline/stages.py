"""The data stages, one function each: videos, splits, texts, frames. What differs between kinds of data set is here."""

from __future__ import annotations

import inspect
import os
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.datasets.sources import KINDS, skeleton_definition, video_root, where_defined
from pipeline.errors import UserError, unknown
from pipeline.experiment import Asset
from pipeline.files import write_json
from pipeline.workspace import Workspace

if TYPE_CHECKING:
    pass


def synthesize(asset: Asset, ws: Workspace, workers: int) -> Path:
    """Generate the videos of a synthetic data set; returns its annotations."""
    from pipeline.datasets.synthetic import generate

    spec = {key: value for key, value in asset.spec.items() if key not in ("kind", "set", "frames")}
    known = set(inspect.signature(generate).parameters) - {"name", "root", "workers"}
    if odd := set(spec) - known:
        raise unknown("key", min(odd), known, where_defined(asset))
    generate(asset.spec["set"], video_root(asset, ws), workers=workers, **spec)
    return video_root(asset, ws) / "annotations.csv"


def make_poses(asset: Asset, ws: Workspace, workers: int, nodes: int = 1) -> Path:
    """Extract the poses of a skeleton data set from its `videos`, as its key `pose` says; returns their table.

    Raises:
        UserError: it names no videos, a key is wrong, or see `pose.extract.extract_poses`.
    """
    from pipeline.pose.estimator import PoseSettings
    from pipeline.pose.extract import extract_poses, find_videos
    from pipeline.pose.picture import write_picture

    where, wanted = where_defined(asset), asset.spec.get("pose", {})
    if asset.spec.get("format") != "poses" or "videos" not in asset.options:
        raise UserError(f"{where}: poses are extracted for kind skeletons, format poses, with the key videos")
    known = set(inspect.signature(PoseSettings).parameters) - {"layout"}  # the graph says it
    if odd := set(wanted) - known:
        raise unknown("key", min(odd), known, f"{where}, pose")
    layout = asset.spec.get("graph", "ntu25")
    if not isinstance(layout, str):
        raise UserError(f"{where}: poses need a built-in graph (coco17, h36m17, openpose18, ntu25)")
    out = video_root(asset, ws)
    root, videos = find_videos(asset.options["videos"])
    extract_poses(root, videos, out, PoseSettings(layout=layout, **wanted), workers, nodes=nodes)
    write_picture(out, root)
    return out / "poses.csv"


def make_splits(asset: Asset, ws: Workspace, workers: int) -> Path:
    """Write the data set's index.csv: every usable clip with its class and split."""
    folder, kind = ws.dataset(asset.key), asset.spec["kind"]
    folder.mkdir(parents=True, exist_ok=True)
    if kind == "synthetic":
        _copy(video_root(asset, ws) / "index.csv", folder / "index.csv")
        return folder / "index.csv"
    if kind == "skeletons":
        from pipeline.datasets.skeletons.prepare import prepare_skeletons

        available = asset.options.get("available", "") if asset.spec.get("format") == "ntu" else ""
        return prepare_skeletons(skeleton_definition(asset, ws), folder, available)
    spec = {**asset.spec, **asset.options, "name": asset.name, "root": str(video_root(asset, ws))}
    spec.pop("contents", None)
    if kind == "folder":
        from pipeline.datasets.folder import prepare_folder

        return Path(prepare_folder(spec, folder, workers))
    if kind == "list":
        from pipeline.datasets.splits import prepare_list

        return Path(prepare_list(spec, folder))
    if kind == "semi":
        from pipeline.datasets.semi import prepare_semi

        return prepare_semi(spec, folder)
    raise unknown("kind of data set", kind, KINDS, where_defined(asset))


def make_texts(asset: Asset, ws: Workspace) -> Path:
    """Put the text corpus of the data set in place, after a look whether every class has its texts.

    Where there is none it is an empty one, which stops the methods that read texts, and no others.

    Raises:
        UserError: a class is missing in the corpus.
    """
    from pipeline.datasets.index import read_index
    from pipeline.text.corpus import Corpus

    given = asset.options.get("texts")
    if asset.spec["kind"] == "synthetic" or "reads" in asset.spec:
        source = video_root(asset, ws) / "texts.json"
    elif given and Path(given).is_file():
        source = Path(given)
    elif asked := asset.options.get("describe"):
        source = describe_classes(asset, ws, asked, "llm")
    else:
        print(
            f"data set {asset.name} has no texts ({given or 'key texts is missing'}); methods that read them will stop"
        )
        return Corpus({}).save(ws.dataset(asset.key) / "texts.json")
    labels = sorted({clip.label for clip in read_index(ws.dataset(asset.key) / "index.csv")})
    target = ws.dataset(asset.key) / "texts.json"
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
        _copy(source, target)


def describe_classes(asset: Asset, ws: Workspace, asked: Mapping[str, Any], name: str) -> Path:
    """Have the language model of `asked` (see `text.prompts.resolve`) describe the classes; returns the corpus's file.

    Raises:
        UserError: no key, model or server; a class without a usable answer.
    """
    from pipeline.datasets.index import read_index
    from pipeline.text.describe import describe_with

    labels = {clip.label for clip in read_index(ws.dataset(asset.key) / "index.csv")}
    joints: tuple[str, ...] = ()
    if asset.spec["kind"] == "skeletons":
        from pipeline.datasets.skeletons.graph import get_graph

        joints = get_graph(asset.spec.get("graph", "ntu25")).names
    corpus = describe_with(asked, labels, ws.answers, joints)
    return corpus.save(ws.dataset(asset.key) / f".texts-{name}.json")


def _corpora(asset: Asset, ws: Workspace) -> dict[str, Path]:
    """Files with further words for the classes, by name: of other language models, or GAP's own (a folder)."""
    if "reads" in asset.spec:  # a generated set, whose grammar has other voices
        from pipeline.datasets.synthetic.grammar import corpora

        made = {}
        for voice, content in corpora(ws.read_asset(asset.spec["reads"]).spec["set"]).items():
            made[voice] = ws.dataset(asset.key) / f".texts-{voice}.json"
            write_json(made[voice], content)
        return made
    made = {}
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
    from pipeline.datasets.coverage import Audit
    from pipeline.datasets.frames import build_frame_store

    folder, skeletons = ws.dataset(asset.key), asset.spec["kind"] == "skeletons"
    again = folder / store if skeletons else None  # frames look themselves for files that were mended
    expected = asset.options.get("expected") or {}
    published = {"train": expected.get("base", 0), "test": expected.get("queries", 0)} if skeletons else {}
    minimum = float(asset.options.get("min_coverage", 0))
    audit = Audit(asset.name, folder, folder / store, minimum, again, published)
    audit.before()
    if skeletons:
        from pipeline.datasets.skeletons.prepare import make_skeleton_store

        make_skeleton_store(skeleton_definition(asset, ws), folder, folder / store, workers, audit=audit)
    else:
        root = video_root(asset, ws)
        pattern = asset.spec.get("pattern", "")
        build_frame_store(
            folder / "index.csv", root, folder / store, policy, workers, nodes=nodes, audit=audit, pattern=pattern
        )
    audit.after()
    return folder / store / "manifest.json"


def pretrain_backbone(asset: Asset, ws: Workspace, threads: int, anew: bool = False) -> Path:
    """Pretrain a tiny backbone (`kind`: clip, resnet, vit) on base classes of its sources; returns its config.json.

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
    from pipeline.training.pretrain import IMAGE_NETWORKS, pretrain, pretrain_classifier

    trainers = {"clip": pretrain, **{kind: partial(pretrain_classifier, kind=kind) for kind in IMAGE_NETWORKS}}
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


def _copy(source: Path, target: Path) -> None:
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    shutil.copyfile(source, temporary)
    os.replace(temporary, target)


__all__ = ["make_frames", "make_poses", "make_splits", "make_texts", "pretrain_backbone", "synthesize", "video_root"]
