"""Searches for alpha on a Ray cluster of this process, which reads its settings when Ray is imported: no test's own.

python alpha_search.py FOLDER: three searches, one that fails and one more; prints what was found and seen as JSON.
"""

import json
import sys
from pathlib import Path

import numpy as np

from pipeline.cluster.client import connect
from pipeline.config import Cluster
from pipeline.scores import EpisodeScores, alpha_curve
from pipeline.workspace import Workspace

GRID = (0.0, 0.5, 1.0)


def main(folder: Path) -> None:
    connect(Workspace(folder / "results"), Cluster(mode="job", dashboard=False))
    from pipeline.evaluation import alpha

    alpha.TRIALS = 7  # two searches of three trials, then another experiment
    rng, seen, right = np.random.default_rng(0), [], []
    for number in range(3):
        files = {}
        for key in ("one-shot", "five-shot")[: 1 + number % 2]:
            values = rng.normal(size=(2, 30, 5, 5)).astype("f")
            files[key] = folder / f"{number}-{key}.npz"
            EpisodeScores(values[0], values[1], rng.integers(0, 5, (30, 5))).save(files[key])
        found = alpha.search_with_tune(folder / "tune", f"run-{number}", files, GRID)
        right.append(found == {key: alpha_curve(EpisodeScores.load(path), GRID) for key, path in files.items()})
        seen.append(alpha._live)
    failure = ""
    try:
        alpha.search_with_tune(folder / "tune", "gone", {"x": folder / "nowhere.npz"}, GRID)
    except RuntimeError as error:
        failure = str(error)
    again = alpha.search_with_tune(folder / "tune", "again", files, GRID)
    print(json.dumps({
        "right": right, "again": again == found, "failure": failure, "living": seen[0] is seen[1] is not seen[2],
        "ended": not seen[1].thread.is_alive(), "kept": len(list((folder / "tune").glob("*/run-0-alpha_0.5"))),
    }))  # fmt: skip


if __name__ == "__main__":
    main(Path(sys.argv[1]))
