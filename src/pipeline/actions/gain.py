"""What a training gained over the frozen backbone: both answer the same episodes of classes that neither has seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.datasets.frames import FrameStore
from pipeline.evaluation.needed import scores_path
from pipeline.experiment import Cell
from pipeline.files import read_json
from pipeline.intervals import ci95
from pipeline.scores import EpisodeScores, fused
from pipeline.tasks.few_shot.scoring import in_class_order, split_table
from pipeline.workspace import Workspace


@dataclass(frozen=True)
class Gain:
    """What training gained with `shot` examples a class, in per cent.

    Intervals are half widths of 95 %: of an accuracy over the episodes, of `gained` over the `clips` that were asked,
    for episodes without end say nothing of other clips.
    """

    shot: int
    frozen: float
    frozen_ci95: float
    trained: float
    trained_ci95: float
    gained: float
    gained_ci95: float
    clips: int

    @property
    def certain(self) -> bool:
        """Whether more was gained than the interval."""
        return self.gained > self.gained_ci95


def gain_of(frozen: Cell, trained: Cell, ws: Workspace) -> Gain:
    """What the run of one measured cell gained over that of the other; both have the same episodes."""
    before, after = (read_json(ws.cell(cell.id)) for cell in (frozen, trained))
    change = right_of_clips(trained, ws) - right_of_clips(frozen, ws)
    return Gain(
        trained.measure.shot, before["value"], before["ci95"], after["value"], after["ci95"],
        after["value"] - before["value"], ci95(change), len(change),
    )  # fmt: skip


def right_of_clips(cell: Cell, ws: Workspace) -> np.ndarray:
    """How often each clip that a measured cell asked got the right answer, in per cent: (V,)."""
    measure = cell.measure.settled()
    scores = EpisodeScores.load(scores_path(ws, cell.run, measure, "test"))
    alpha = read_json(ws.cell(cell.id))["alpha"] if measure.alpha == "val" else measure.alpha
    right = fused(scores, measure.score, alpha).argmax(-1) == scores.labels
    table = split_table(
        FrameStore(ws.store(cell.run)), "test", measure.way, measure.shot, measure.query, measure.episodes,
        measure.episode_seed,
    )  # fmt: skip
    if not np.array_equal(table.labels, scores.labels):
        table = in_class_order(table)  # a method that asks by class
    clips = table.query.ravel()
    asked = np.bincount(clips)
    return 100 * np.bincount(clips, right.ravel())[asked > 0] / asked[asked > 0]


def told(gains: Sequence[Gain], frozen: str, trained: str) -> list[str]:
    """The gains as a table, in lines; `frozen` and `trained` say what is compared."""
    rows = [("examples a class", frozen, trained, "gained")]
    for gain in gains:
        values = (gain.frozen, gain.frozen_ci95, ""), (gain.trained, gain.trained_ci95, "")
        values = *values, (gain.gained, gain.gained_ci95, "+")
        rows.append((str(gain.shot), *(f"{value:{sign}.1f} ± {half:.1f}" for value, half, sign in values)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(text.rjust(width) for text, width in zip(row, widths, strict=True)) for row in rows]
    return [
        f"right answers on the held-out classes, per cent ({gains[0].clips} clips; 95 % intervals: of accuracies over "
        "episodes, of what was gained over the clips)",
        *lines,
    ]
