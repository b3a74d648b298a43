"""How good `predict` is on real clips without a run: accuracy and calibration over many choices of examples.

    python -m benchmarks.own_actions data/utd_mhad --strip-prefix --person '_s(\\d+)_' --features utd_mhad.npz

A choice is `way` classes at random and, of one person, `shots` examples of each; every clip of these classes by another
person is a query. Clips are encoded once; with `--features` they are kept for the next call.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.actions.clips import OwnClip, Sampled, labelled_clips
from pipeline.actions.frozen import frozen_model
from pipeline.actions.model import ActionModel, Encoded
from pipeline.actions.predict import Labeller
from pipeline.guarded import Failure
from pipeline.intervals import ci95
from pipeline.scores import calibration_error


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.own_actions", description=__doc__)
    parser.add_argument("clips", type=Path, help="folder of class folders")
    parser.add_argument("--strip-prefix", action="store_true")
    parser.add_argument("--person", required=True, help="regular expression; its group says who is in a clip")
    parser.add_argument("--backbone", default="efficientnet_lite0")
    parser.add_argument("--matcher", nargs="+", default=["otam", "ab_mhm", "bi_mhm", "mean"])
    parser.add_argument("--shots", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--way", type=int, default=5)
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--features", type=Path, help="file (npz) that keeps what was encoded")
    given = parser.parse_args(arguments)
    clips = labelled_clips(given.clips, given.strip_prefix)
    models = {name: frozen_model(given.backbone, name) for name in given.matcher}
    encoded = encode(next(iter(models.values())), clips, given.features, given.workers)
    people = [re.search(given.person, item.clip.name)[1] for item in encoded]
    for name, model in models.items():
        for shots in given.shots:
            found = measure(model, encoded, people, shots, given.way, given.draws, given.seed)
            print(f"{name}, {shots} example{'s' * (shots > 1)} a class: {told(found)}", flush=True)


def encode(model: ActionModel, clips: Sequence[OwnClip], keep: Path | None, workers: int) -> list[Encoded]:
    """The clips that can be read, with what the model makes of them; those of the file `keep` are taken from there."""
    if keep and keep.is_file():
        with np.load(keep) as file:
            known = dict(zip(file["clips"].tolist(), torch.from_numpy(file["features"]), strict=True))
        blank = Sampled(np.zeros((0, 1, 1, 3), np.uint8), np.arange(1000), np.zeros(0), 1000)
        return [Encoded(clip, known[clip.name], blank) for clip in clips if clip.name in known]
    found = []
    for item in model.encode(clips, workers):
        if isinstance(item[1] if isinstance(item, tuple) else item, Failure):
            print(f"left out: {item[0].name}: {item[1].reason}", flush=True)
            continue
        found.append(replace(item, seen=replace(item.seen, pixels=item.seen.pixels[:0])))
    if keep:
        features = np.stack([item.features.cpu().numpy() for item in found])
        np.savez(keep, features=features, clips=np.array([item.clip.name for item in found]))
    return found


def choices(
    labels: np.ndarray, people: np.ndarray, way: int, shots: int, draws: int, seed: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(places of examples, places of queries) of each choice."""
    rng = np.random.default_rng(seed)
    for _ in range(draws):
        classes = rng.choice(np.unique(labels), way, replace=False)
        who = rng.choice(np.unique(people))
        mine = [np.flatnonzero((labels == name) & (people == who)) for name in classes]
        examples = np.concatenate([rng.choice(places, shots, replace=False) for places in mine])
        yield examples, np.flatnonzero(np.isin(labels, classes) & (people != who))


def measure(
    model: ActionModel, encoded: Sequence[Encoded], people: Sequence[str], shots: int, way: int, draws: int, seed: int
) -> dict[str, Any]:
    """Accuracy (per cent) with the 95 % interval over the choices of examples, and the expected calibration error."""
    labels = np.array([item.clip.label for item in encoded])
    accuracies, errors, certain, right = [], [], [], []
    unsure = []
    for examples, queries in choices(labels, np.array(people), way, shots, draws, seed):
        labeller = Labeller(model, [encoded[i] for i in examples])
        answers = [labeller.predict(encoded[i]) for i in queries]
        sure = np.array([answer.top[0].score for answer in answers])
        good = np.array([answer.right for answer in answers])
        accuracies.append(100 * good.mean())
        errors.append(100 * calibration_error(sure, good))
        certain, right = [*certain, *sure], [*right, *good]
        unsure += [answer.unsure for answer in answers]
    right, unsure = np.array(right), np.array(unsure)
    return {
        "accuracy": float(np.mean(accuracies)), "ci95": ci95(accuracies), "queries": len(right), "draws": draws,
        "error": float(np.mean(errors)), "pooled": 100 * calibration_error(np.array(certain), right),
        "unsure": 100 * float(unsure.mean()), "sure_accuracy": 100 * float(right[~unsure].mean()),
        "unsure_accuracy": 100 * float(right[unsure].mean()) if unsure.any() else float("nan"),
    }  # fmt: skip


def told(found: dict[str, Any]) -> str:
    """One line."""
    return (
        f"accuracy {found['accuracy']:.1f} +- {found['ci95']:.1f} % over {found['draws']} choices of examples "
        f"({found['queries']} queries); expected calibration error {found['error']:.1f} % of a choice, "
        f"{found['pooled']:.1f} % of all; unsure of {found['unsure']:.0f} % of the queries, right about "
        f"{found['unsure_accuracy']:.0f} % of these and {found['sure_accuracy']:.0f} % of the others"
    )


if __name__ == "__main__":
    main()
