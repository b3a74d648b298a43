"""A generated skeleton set so small that it is written, cleaned and stored in a second: no videos, few classes."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from pipeline.datasets.index import Clip, write_index
from pipeline.datasets.skeletons.definition import SkeletonDefinition
from pipeline.datasets.skeletons.feeder import SkeletonDataset
from pipeline.datasets.skeletons.prepare import load_split, make_skeleton_store, prepare_skeletons
from pipeline.datasets.skeletons.protocols import OneShotSplit
from pipeline.datasets.skeletons.store import SkeletonStore
from pipeline.datasets.synthetic import grammar, motion, write_skeleton
from pipeline.datasets.synthetic.figure import forward_kinematics, make_body
from pipeline.models.skeleton.base import SkeletonModel
from pipeline.text.corpus import Corpus

BASE, NOVEL, FRAMES = 5, 3, 16

GCN = {"channels": (8, 8, 16, 16), "strides": (1, 1, 2, 1)}
MMACTION = {"width": 8, "num_stages": 4, "inflate_stages": [3], "down_stages": [3]}
SMALL = {
    "infogcn": GCN,
    "hdgcn": GCN,
    "motionbert": {"width": 16, "depth": 4, "heads": 2, "representation": 12, "embedding": 20},
    "stgcn": MMACTION,
    "aagcn": {**MMACTION, "data_bn_type": "VC"},
}
"""Arguments of tiny encoders, by their names in a recipe."""


class SkeletonSet(NamedTuple):
    """A prepared data set, its split and its texts."""

    definition: SkeletonDefinition
    store: SkeletonStore
    split: OneShotSplit
    corpus: Corpus

    def training(self, seed: int = 0) -> SkeletonDataset:
        """The base clips as training shows them."""
        made, split = self.definition, self.split
        return SkeletonDataset(self.store, split.base, split.base_labels, made.policy, made.feed, train=True, seed=seed)


def make_skeleton_set(folder: Path, clips: int = 6) -> SkeletonSet:
    """`clips` clips of each of a few classes of the set "scene", in the files that the generator writes."""
    (folder / "set" / "skeletons").mkdir(parents=True)
    rows = []
    for split, count in (("train", BASE), ("test", NOVEL)):
        for label in grammar.classes("scene", split)[:count]:
            action = grammar.find("scene", label)
            for number in range(clips):
                rng = np.random.default_rng([len(rows), 3])
                boundaries = motion.draw_boundaries(FRAMES, action.shares, 0.5, rng)
                poses = motion.render_poses(action.program(), boundaries, rng, 0.5)
                joints, _ = forward_kinematics(poses, make_body(rng, 0.5))
                name = f"{action.slug}_{number:04d}"
                write_skeleton(folder / "set" / "skeletons" / f"{name}.skeleton", joints[:, None])
                rows.append(Clip(name, f"videos/{name}.mp4", label, split))
    write_index(folder / "set" / "index.csv", rows)
    made = SkeletonDefinition.read(
        {
            "kind": "skeletons",
            "format": "generated",
            "root": str(folder / "set"),
            "protocol": {"novel": "test", "base": "train"},
            "policy": {"bodies": 1},
            "feed": {"frames": 8, "min_crop": 8, "rotation": 0.1},
        },
        "the test",
    )
    prepare_skeletons(made, folder / "data")
    make_skeleton_store(made, folder / "data", folder / "store")
    store = SkeletonStore(folder / "store")
    return SkeletonSet(made, store, load_split(folder / "data", store), Corpus(**grammar.texts("scene")))


def training_curve(model: SkeletonModel, dataset: SkeletonDataset, optimizer: torch.optim.Optimizer) -> list[dict]:
    """What twelve steps on a whole data set report, one dict a step."""
    curve = []
    for epoch in range(12):
        dataset.set_epoch(epoch)
        x, labels, _ = zip(*(dataset[i] for i in range(len(dataset))), strict=True)
        losses = model(mode="loss", x=torch.stack(x), labels=torch.tensor(labels))
        optimizer.zero_grad()
        sum(value for name, value in losses.items() if name.startswith("loss_")).backward()
        optimizer.step()
        curve.append({name: float(value.detach()) for name, value in losses.items()})
    return curve
