"""What the tables will cost."""

from __future__ import annotations

import pytest

from pipeline.estimate import BYTES_OF_FRAME, FRAMES_OF_CLIP, Cost, clips_of, disk_bytes, language_calls, wall_hours
from pipeline.plan import Plan


@pytest.fixture(scope="module")
def paper(repo):
    return Plan.read(repo / "config", {"scale": "paper"})


def _dataset(plan, name):
    return next(asset for key, asset in plan.datasets.items() if key.rsplit("-", 1)[0] == name)


def test_clips_are_those_of_the_definition(paper):
    assert clips_of(_dataset(paper, "hmdb51")) == {"train": 4280, "val": 1194, "test": 1292}
    assert clips_of(_dataset(paper, "gym99")) == {"train": 26320, "val": 0, "test": 8521}
    assert clips_of(_dataset(paper, "ntu120_oneshot")) == {"train": 95001, "val": 0, "test": 18924}


def test_wall_time_on_some_gpus():
    costs = [Cost(hours, 0.0) for hours in (4, 3, 3, 2, 2, 2)]
    assert wall_hours(costs, 1) == 16
    assert wall_hours(costs, 2) == 8
    assert wall_hours(costs, 3) == 6  # 4 + 2, 3 + 2, 3 + 2
    assert wall_hours(costs, 100) == 4  # a training is on one
    assert wall_hours([], 4) == 0


def test_disk_counts_each_set_of_videos_once_and_no_skeletons(paper):
    read = paper.datasets_read()
    videos = [key for key in read if paper.datasets[key].spec["kind"] not in ("skeletons", "synthetic")]
    assert len(videos) < len(read)
    clips = sum(sum(clips_of(paper.datasets[key]).values()) for key in videos)
    assert clips > 400_000  # SSv2 twice, Gym
    assert disk_bytes(paper) == clips * FRAMES_OF_CLIP * BYTES_OF_FRAME
    demo = Plan.read(paper.config.folder)
    assert disk_bytes(demo) < disk_bytes(paper) / 100


def test_questions_are_those_of_sets_without_texts(paper, repo):
    assert language_calls(paper) == 0  # texts are given
    asked = {"datasets": {"hmdb51": {"texts": None, "describe": {"model": "m"}}}}
    plan = Plan.read(repo / "config", {"scale": "paper", **asked})
    # LGA's four numbers of atomic actions, Task-Adapter++'s stages, CrossGLG's global text; 51 classes
    assert language_calls(plan) == 51 * 6
