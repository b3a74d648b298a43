"""A prepared world so small that whole stages run in seconds: one generated data set, its frames, a random CLIP."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from pipeline.datasets.frames import FrameStore
from pipeline.datasets.index import read_index
from pipeline.experiment import Asset, Cell, Run, store_key
from pipeline.models.backbones.clip import CLIPBackbone
from pipeline.models.backbones.nano_clip import build_tokenizer, init_nano, nano_config
from pipeline.models.backbones.resnet import ResNetBackbone
from pipeline.plan import Plan
from pipeline.stages import make_frames, make_splits, make_texts, synthesize
from pipeline.text.corpus import load_corpus
from pipeline.workspace import Workspace

CONFIG = Path(__file__).resolve().parents[1] / "config"
IMAGE = 32  # pixels

OVERLAY: dict[str, Any] = {
    "scale": "demo",
    "substitute": dict.fromkeys(("hmdb51", "kinetics100", "ucf101", "ssv2_small", "ssv2_full"), "synthetic_scene"),
    "datasets": {"synthetic_scene": {"clips_per_class": 6, "size": 40, "nuisance": 0.5}},
    "frames": {"store": {"size": [36, 36], "frames": 10}, "crop": IMAGE},
    "train": {
        "steps": 2,
        "episodes_per_step": 2,
        "way": 3,
        "query": 1,
        "validate_every": 1,
        "validation_episodes": 20,
        "checkpoint_every": 1,
        "learning_rate": 1e-3,
        "warmup_steps": 0,
        "milestones": [4],
    },
    "model": {"layers": 1, "order_layers": 1},  # of the two that the tiny CLIP has
    "measure": {"episodes": 24, "val_episodes": 30},
}


def bare_plan(overlay: dict[str, Any]) -> Plan:
    """The settings without a table, in a tenth of the time: for tests that ask for cells of their own."""
    return Plan.read(CONFIG, overlay, number="none of them")


@dataclass(frozen=True)
class World:
    """A workspace in which every stage before training is done, and the plan that it belongs to."""

    ws: Workspace
    plan: Plan
    store: FrameStore

    def cell(self, seed: int = 0, **experiment: Any) -> Cell:
        """The cell of an experiment, as a row and a column of a table would ask for it."""
        return self.plan.cell({"dataset": "hmdb51", **experiment}, seed, "the test")

    def run(self, seed: int = 0, **experiment: Any) -> Run:
        """The run of an experiment."""
        return self.cell(seed, **experiment).run

    def elsewhere(self, folder: Path) -> Workspace:
        """The same data and backbone under another root, where a test may train, score and break what it likes."""
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("data", "backbones", "specs"):
            (folder / name).symlink_to(self.ws.root / name)
        return Workspace(folder)


def make_world(root: Path) -> World:
    """Generate the data, decode it and write a CLIP with random weights, in about ten seconds."""
    plan, ws = Plan.read(CONFIG, OVERLAY), Workspace(root)
    plan.write_specs(root / "specs")
    (dataset,) = [asset for asset in plan.datasets.values() if asset.name == "synthetic_scene"]
    synthesize(dataset, ws, 1)
    make_splits(dataset, ws, 1)
    make_texts(dataset, ws)
    store = store_key(plan.frames(dataset))
    make_frames(dataset, ws, store, plan.stores[store], 1)
    for backbone in plan.backbones.values():
        write_backbone(backbone, dataset, ws)
    return World(ws, plan, FrameStore(ws.dataset(dataset.key) / store))


def write_backbone(backbone: Asset, dataset: Asset, ws: Workspace) -> None:
    """A narrow ResNet, or a CLIP of two narrow layers, with random weights, for the pretrained one of the workflow."""
    folder = ws.backbone(backbone.key)
    folder.mkdir(parents=True)
    if backbone.spec.get("kind") == "resnet":
        torch.manual_seed(0)
        ResNetBackbone({"width": 4, "strides": [1, 2, 1, 1]}).save(folder)
        return
    corpus = load_corpus(ws.dataset(dataset.key) / "texts.json")
    names = {clip.label for clip in read_index(ws.dataset(dataset.key) / "index.csv")}
    sentences = [corpus.label(name) for name in sorted(names)]
    sentences += [
        sentence for name in sorted(names) for count in (1, 2, 3, 4) for sentence in corpus.atomic(name, count)
    ]
    sentences += [sentence for name in sorted(names) for sentence in corpus.stages(name)]
    tokenizer = build_tokenizer(sentences)
    config = nano_config(
        len(tokenizer), image_size=IMAGE, patch_size=8, width=32, mlp_width=32, layers=2, heads=2, projection_dim=32
    )
    clip = CLIPBackbone(config)
    init_nano(clip.clip, torch.Generator().manual_seed(0))
    clip.tokenizer = tokenizer
    clip.save(folder)


def train_on_workers(count: int, run: Run, ws: Workspace) -> None:
    """Train `run` on `count` processes, of which this is one, that speak gloo on the loopback interface."""
    from ports import free_port

    arguments = (count, free_port(), run.model_dump(mode="json"), str(ws.root))
    context = torch.multiprocessing.get_context("spawn")
    others = [context.Process(target=_worker, args=(rank, *arguments)) for rank in range(1, count)]
    for other in others:
        other.start()
    try:
        with mock.patch.dict(os.environ):
            _worker(0, *arguments)
    finally:
        for other in others:
            other.join(60)
            other.kill()
    assert [other.exitcode for other in others] == [0] * len(others)


def _worker(rank: int, count: int, port: int, run: dict[str, Any], root: str) -> None:
    from pipeline.training.train import train_run

    os.environ.update(
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(count),
        LOCAL_WORLD_SIZE=str(count), GLOO_SOCKET_IFNAME="lo",
    )  # fmt: skip
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=count, timeout=timedelta(seconds=240))
    try:
        train_run(Run.model_validate(run), Workspace(root))
    finally:
        torch.distributed.destroy_process_group()
