"""The search for alpha on a real Ray: one experiment of Tune serves run after run."""

from __future__ import annotations

import os

import numpy as np
import pytest

from pipeline.cluster import connect
from pipeline.config import Cluster
from pipeline.evaluation.scores import EpisodeScores, alpha_curve
from pipeline.workspace import Workspace

pytestmark = pytest.mark.slow
GRID = (0.0, 0.5, 1.0)


@pytest.fixture
def tune(tmp_path):
    """`search_with_tune` on a cluster of this process."""
    before = dict(os.environ)
    connect(Workspace(tmp_path / "results"), Cluster(mode="job", dashboard=False))
    import ray

    from pipeline.evaluation import alpha

    yield alpha
    if alpha._live:
        alpha._live.close()
    alpha._live = None
    ray.shutdown()
    os.environ.clear()
    os.environ.update(before)


def test_one_experiment_serves_run_after_run(tune, tmp_path, monkeypatch):
    monkeypatch.setattr(tune, "TRIALS", 7)  # two searches of three trials, then another experiment
    rng, seen = np.random.default_rng(0), []
    for number in range(3):
        files = {}
        for key in ("one-shot", "five-shot")[: 1 + number % 2]:
            shape = (30, 5, 5)
            scores = EpisodeScores(
                rng.normal(size=shape).astype("f"), rng.normal(size=shape).astype("f"), rng.integers(0, 5, (30, 5))
            )
            files[key] = tmp_path / f"{number}-{key}.npz"
            scores.save(files[key])
        found = tune.search_with_tune(tmp_path / "tune", f"run-{number}", files, GRID)
        assert found == {key: alpha_curve(EpisodeScores.load(path), GRID) for key, path in files.items()}
        seen.append(tune._live)
    assert seen[0] is seen[1] and seen[1] is not seen[2] and not seen[1].thread.is_alive()
    assert len(list((tmp_path / "tune").glob("*/run-0-alpha_0.5"))) == 1
    # What cannot be read is an error of that search, and the next one is served.
    with pytest.raises(RuntimeError, match="a trial of the search for alpha failed"):
        tune.search_with_tune(tmp_path / "tune", "gone", {"x": tmp_path / "nowhere.npz"}, GRID)
    assert tune.search_with_tune(tmp_path / "tune", "again", files, GRID) == found
