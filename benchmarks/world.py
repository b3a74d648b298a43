"""Generated videos, their frames and a small CLIP with random weights, at the sizes of the demo."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline.datasets.frames import FrameStore
from pipeline.datasets.index import read_index
from pipeline.experiment import Asset, Cell, store_key
from pipeline.models.backbones.clip import CLIPBackbone
from pipeline.models.backbones.nano_clip import build_tokenizer, init_nano, nano_config
from pipeline.plan import Plan
from pipeline.stages import make_frames, make_splits, make_texts, synthesize
from pipeline.text.corpus import load_corpus
from pipeline.workspace import Workspace

CONFIG = Path(__file__).resolve().parents[1] / "config"


@dataclass(frozen=True)
class World:
    """A workspace in which every stage before training is done."""

    ws: Workspace
    plan: Plan
    dataset: Asset
    store: FrameStore

    def cell(self, **experiment: Any) -> Cell:
        """The cell of an experiment on the data set, as a row and a column of a table would ask for it."""
        return self.plan.cell({"dataset": "hmdb51", **experiment}, 0, "the benchmark")


def make_world(root: Path, clips: int = 12, workers: int = 2, **backbone: int) -> World:
    """Generate the scenes with `clips` videos a class, decode them, and write a CLIP of `nano_config(**backbone)`."""
    plan = Plan.read(CONFIG, {"scale": "demo", "datasets": {"synthetic_scene": {"clips_per_class": clips}}})
    ws, run = Workspace(root), plan.cell({"dataset": "hmdb51", "method": "lga"}, 0, "the benchmark").run
    plan.write_specs(root / "specs")
    dataset = plan.datasets[run.dataset]
    synthesize(dataset, ws, workers)
    make_splits(dataset, ws, workers)
    make_texts(dataset, ws)
    store = store_key(plan.frames(dataset))
    make_frames(dataset, ws, store, plan.stores[store], workers)
    corpus = load_corpus(ws.dataset(dataset.key) / "texts.json")
    names = sorted({clip.label for clip in read_index(ws.dataset(dataset.key) / "index.csv")})
    sentences = [text for name in names for text in (corpus.label(name), *corpus.stages(name), *corpus.atomic(name, 3))]
    tokenizer = build_tokenizer(sentences)
    torch.manual_seed(0)
    clip = CLIPBackbone(nano_config(len(tokenizer), **backbone))
    init_nano(clip.clip, torch.Generator().manual_seed(0))
    clip.tokenizer = tokenizer
    folder = ws.backbone(run.backbone)
    folder.mkdir(parents=True, exist_ok=True)
    clip.save(folder)
    return World(ws, plan, dataset, FrameStore(ws.dataset(dataset.key) / store))
