"""What the tables will cost."""

from __future__ import annotations

import pytest

from pipeline.estimate import (
    BYTES_OF_FRAME,
    FRAMES_OF_CLIP,
    disk_bytes,
    language_calls,
    memory_needed,
    small_work,
    wall_hours,
)
from pipeline.plan import Plan
from pipeline.tasks.costs import Cost, clips_of, kept_gb
from pipeline.tasks.few_shot.kind import SMALL
from pipeline.workspace import Workspace


@pytest.fixture(scope="module")
def paper(repo):
    return Plan.read(repo / "config", {"scale": "paper"})


def _dataset(plan, name):
    return next(asset for key, asset in plan.datasets.items() if key.rsplit("-", 1)[0] == name)


def test_clips_are_those_of_the_definition(paper):
    assert clips_of(_dataset(paper, "hmdb51")) == {"train": 4280, "val": 1194, "test": 1292}
    assert clips_of(_dataset(paper, "gym99")) == {"train": 26320, "val": 0, "test": 8521}
    assert clips_of(_dataset(paper, "ntu120_oneshot")) == {"train": 95001, "val": 0, "test": 18924}


def test_memory_of_the_activations_of_a_step(repo, paper):
    """What was counted of whole networks, an item at a time: 240 frames of CLIP are 35 GB."""
    needed = memory_needed(paper)
    assert list(needed)[:2] == ["svformer", "sefar"] and needed["motionbert"] == 64
    for method, gigabytes in (("lga", 35.3), ("clip_fsar", 35.3), ("svformer", 117.6), ("sefar", 74.8)):
        assert needed[method] == pytest.approx(gigabytes, abs=0.1)
    assert needed["task_adapter_pp"] == needed["lga"] / 2  # nothing is kept below the sixth of twelve layers
    assert not {"infogcn", "clip_freeze"} & set(needed)
    model = {"model": {"activation_checkpointing": True}}
    less = memory_needed(Plan.read(repo / "config", {"scale": "paper", "methods": {"lga": model}}, "lga"))
    assert less["lga"] == pytest.approx(240 * (147 / 12 + 12 * 0.61) / 1000) and less["lga"] < needed["lga"] / 7
    assert kept_gb("words_nano-1", 240) == 0


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


def test_time_at_demo_scale_grows_with_steps_and_shrinks_with_what_is_done(repo, tmp_path):
    demo, ws = Plan.read(repo / "config", number="4"), Workspace(tmp_path)
    whole, left = small_work(demo, ws)
    assert whole == left > 0
    run = next(run for run in demo.runs.values() if run.id.startswith("lga-"))
    (ws.run(run.id)).mkdir(parents=True)
    (ws.run(run.id) / "train.json").touch()
    seconds = demo.kind(run).seconds(run)
    assert small_work(demo, ws) == (whole, pytest.approx(whole - seconds.start - seconds.step))
    # 32 steps of 2 episodes, each of 5 supports and 5 queries of 8 frames
    assert seconds.step == pytest.approx(48 * SMALL.step)
    longer = Plan.read(repo / "config", {"train": {"steps": 96}}, number="4")
    assert small_work(longer, ws)[0] > whole
    assert {name: demo.kind(run).seconds(run).step > 0 for name, run in _kinds(demo).items()} == {
        "crossglg": True,
        "sefar": True,
    }


def _kinds(plan):
    return {name: next(r for r in plan.runs.values() if r.id.startswith(f"{name}-")) for name in ("crossglg", "sefar")}
