"""Which joints a skeleton model looks at, in clips as a test shows them.

Arrays: `joints` (V,) names, `parents` (V,). Of the first base classes, `base_classes` (N,), `base_attention`
(N, blocks, V) and, with a model that weighs joints, `importance` (N, V) and what the texts ask for, `target` (N, V),
both shares of 1. Of the first novel ones, `novel_classes` (K,), `novel_attention` (K, blocks, V) and a pose of the
exemplar, `poses` (K, V, 2), x to the right and y up. All are means over clips. Attention is what a joint gets of all
joints, of the first person, over heads and frames; 1 is an equal share.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.datasets.skeletons.graph import SkeletonGraph
from pipeline.errors import UserError
from pipeline.models.skeleton.base import SkeletonModel
from pipeline.models.skeleton.infogcn import SelfAttentionGraphConv
from pipeline.progress import bar
from pipeline.tasks.one_shot.scoring import as_tested, sequences
from pipeline.tasks.one_shot.task import OneShotTask

CLASSES, CLIPS = 8, 16  # of base and of novel classes, and of each of them at most


@torch.inference_mode()
def look(
    task: OneShotTask, model: SkeletonModel, split: str = "test", label: str = "", clip: str = ""
) -> dict[str, np.ndarray]:
    """The arrays of a trained model; split: test, or val for the validation classes in place of the novel ones.

    Raises:
        UserError: a class or clip is named, of which no figure of skeletons shows one alone.
    """
    if label or clip or split == "train":
        raise UserError("a figure of skeletons shows several classes of test or val; name the split alone under show")
    split, graph = task.split(split), model.encoder.graph
    out = {"joints": np.array(graph.names), "parents": np.array(graph.parents)}
    base = [split.base[split.base_labels == label] for label in range(len(split.base_classes))][:CLASSES]
    seen = _seen(task, model, base)
    out["base_classes"] = np.array(split.base_classes[: len(base)])
    out |= {f"base_{name}" if name == "attention" else name: values for name, values in seen.items()}
    if hasattr(model, "joint_target"):
        target = model.joint_target[: len(base)].cpu().numpy()
        out["target"] = target / target.sum(1, keepdims=True)
    novel = [split.queries[split.query_labels == label] for label in range(len(split.novel_classes))][:CLASSES]
    out["novel_classes"] = np.array(split.novel_classes[: len(novel)])
    out["poses"] = np.stack([telling_pose(x, graph) for x in _clips(task, split.exemplars[: len(novel)])])
    if "attention" in (seen := _seen(task, model, novel)):
        out["novel_attention"] = seen["attention"]
    return out


def _clips(task: OneShotTask, numbers: Sequence[int] | np.ndarray) -> Tensor:
    """Clips of the store (B, C, T, V, M)."""
    dataset = as_tested(task.store, numbers, task.definition.policy, task.definition.feed)
    return sequences(dataset, range(len(numbers)))


@torch.inference_mode()
def _seen(task: OneShotTask, model: SkeletonModel, of_class: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """`attention` (classes, blocks, V) and `importance` (classes, V), as far as the model has them."""
    device, found = next(model.parameters()).device, {"attention": [], "importance": []}
    with bar("looking", len(of_class), "classes") as looking:
        for numbers in of_class:
            with attention_of_joints(model) as blocks, joint_weights(model) as weights:
                model.embed(_clips(task, numbers[:CLIPS]).to(device))
            if blocks:
                found["attention"].append(torch.stack(blocks).mean(1))
            if weights:
                found["importance"].append((weights[0] / weights[0].sum(-1, keepdim=True)).mean(0))
            looking.advance()
    return {name: torch.stack(parts).float().cpu().numpy() for name, parts in found.items() if parts}


@contextmanager
def attention_of_joints(model: SkeletonModel) -> Iterator[list[Tensor]]:
    """In the block, a list of what each joint gets in each block (B, V); empty without attention between joints."""
    blocks: list[Tensor] = []

    def note(module: SelfAttentionGraphConv, args: tuple) -> None:
        attention = module.attention(args[0].permute(0, 2, 3, 1))  # (heads, B * M, T, V, V)
        got = attention.mean((0, 2, 3))[:: model.encoder.persons]
        blocks.append(got * got.shape[-1])

    layers = [layer for layer in model.encoder.modules() if isinstance(layer, SelfAttentionGraphConv)]
    handles = [layer.register_forward_pre_hook(note) for layer in layers]
    try:
        yield blocks
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def joint_weights(model: SkeletonModel) -> Iterator[list[Tensor]]:
    """In the block, a list with the weights of the joints (B, V); empty for a model that has none."""
    weights: list[Tensor] = []
    module: nn.Module | None = getattr(model, "jid", None)
    if module is None:
        yield weights
        return
    handle = module.register_forward_hook(lambda module, args, output: weights.append(output))
    try:
        yield weights
    finally:
        handle.remove()


def telling_pose(clip: Tensor, graph: SkeletonGraph) -> np.ndarray:
    """Of a clip (C, T, V, M), the pose (V, 2) of the first person that is farthest from its mean one, upright.

    Cameras have y up, images have it down: the side with the head is up.
    """
    poses = clip[:2, :, :, 0].permute(1, 2, 0).double().numpy()  # (T, V, 2)
    poses = poses - poses.mean(1, keepdims=True)
    pose = poses[((poses - poses.mean(0)) ** 2).sum((1, 2)).argmax()]
    heights = {
        part: [i for i, name in enumerate(graph.names) if name.endswith(part)] for part in ("head", "nose", "ankle")
    }
    top, bottom = heights["head"] or heights["nose"], heights["ankle"]
    if top and bottom and poses[:, top, 1].mean() < poses[:, bottom, 1].mean():
        pose = pose * [1, -1]
    return pose.astype(np.float32)
