"""What a model answers in a test, as the metrics look at it (`pipeline.metrics`)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.datasets.index import read_index
from pipeline.errors import UserError
from pipeline.experiment import Run
from pipeline.scores import accuracy
from pipeline.tasks.semi.confusion import check_pairs, confusion, opposite


@dataclass(frozen=True)
class Answers:
    """Logits (E, Q, N) of E episodes with Q queries and N classes, and labels (E, Q), places of the right classes."""

    run: Run
    index: Path
    """`index.csv` of the clips that were there."""
    logits: np.ndarray
    labels: np.ndarray

    def right(self) -> np.ndarray:
        """Share of right answers of each episode, in per cent: (E,)."""
        return accuracy(self.logits, self.labels)

    def opposites(self) -> dict[str, Any]:
        """opposite (V,): 100 for each video that is taken for the class of the opposite direction, else 0; the
        `confusion` of the `classes`, counts of videos.

        Raises:
            UserError: the test is no choice among all classes of the data set, or these are no pairs.
        """
        classes = sorted({clip.label for clip in read_index(self.index)})
        if self.labels.shape[1] != 1 or self.logits.shape[-1] != len(classes):
            raise UserError(f"{self.run.id}: opposite_pct needs a test in which every video is told from all classes")
        check_pairs(classes, self.run.dataset)
        right, said = self.labels[:, 0], self.logits[:, 0].argmax(-1)
        counts = confusion(said, right, len(classes)).tolist()
        return {"opposite": opposite(said, right), "confusion": counts, "classes": classes}
