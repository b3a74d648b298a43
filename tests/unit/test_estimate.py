"""What the tables will cost."""

from __future__ import annotations

import pytest

from pipeline.errors import UserError
from pipeline.estimate import (
    BYTES_OF_FRAME,
    disk_bytes,
    hours_of,
    language_calls,
    memory_needed,
    print_plan,
    small_work,
    wall_hours,
)
from pipeline.plan import Plan
from pipeline.rates import STATED, Rates, keep, measure, rates_for
from pipeline.tasks.costs import bases_of, clips_of, kept_gb
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
    hours = (4, 3, 3, 2, 2, 2)
    assert wall_hours(hours, 1) == 16
    assert wall_hours(hours, 2) == 8
    assert wall_hours(hours, 3) == 6  # 4 + 2, 3 + 2, 3 + 2
    assert wall_hours(hours, 100) == 4  # a training is on one
    assert wall_hours([], 4) == 0


RATES = Rates(device="a test's", gpu=True, flops={"float32": 1e13, "bf16": 1e14}, frames=1000)


def _of(plan, method, **wanted):
    """Hours of the first run of a method with such settings of its training."""
    runs = (run for run in plan.runs.values() if run.method == method and wanted.items() <= run.train.items())
    return hours_of(plan, next(runs), RATES)


def test_hours_are_those_of_operations_and_of_what_is_read(paper):
    """Counted by hand: frames that are shown, times operations of a frame, in the numbers of the method."""
    lga = next(run for run in paper.runs.values() if run.method == "lga" and run.train["shot"] == 1)
    train = lga.train
    frames = train["steps"] * train["episodes_per_step"] * train["way"] * (1 + train["query"]) * 8
    tested = 8 * 33.7e9 * 2 * clips_of(paper.datasets[lga.dataset])["test"] / 1e13
    found = hours_of(paper, lga, RATES)
    assert found.computes == "bf16" and found.arithmetic * 3600 == pytest.approx(3 * frames * 33.7e9 / 1e14 + tested)
    assert found.decoding * 3600 == pytest.approx(frames / 1000 / 7) and found.bound == max(
        found.arithmetic, found.decoding
    )
    # half of Task-Adapter's layers are frozen; a ResNet-50 is not a ViT; skeletons count; two networks of LTG
    assert {_of(paper, name).computes for name in ("task_adapter_pp", "clip_fsar", "sefar_qa")} == {"bf16"}
    assert {_of(paper, name).computes for name in ("hyrsm", "sefar", "motionbert", "ltg")} == {"float32"}
    (run, *_) = (run for run in paper.runs.values() if (run.method, run.train.get("base_set")) == ("motionbert", "20%"))
    clips = bases_of(paper.datasets[run.dataset])["20%"], clips_of(paper.datasets[run.dataset])["test"]
    operations = 287e9 * (3 * run.train["epochs"] * clips[0] + clips[1])
    assert hours_of(paper, run, RATES).arithmetic * 3600 == pytest.approx(operations / 1e13)
    both = _of(paper, "lga") + _of(paper, "hyrsm")
    assert both.computes == "bf16 or float32" and both.runs == 2 and both.longest < both.bound


def test_rates_are_measured_or_stated(tmp_path):
    ws = Workspace(tmp_path)
    assert rates_for(ws) is STATED and rates_for(ws, "300").computed("tf32") == 3e14
    with pytest.raises(UserError, match="--rate measured: there is no .*bench-gpu"):
        rates_for(ws, "measured")
    for wrong in ("fast", "-1", "inf", "nan"):
        with pytest.raises(UserError, match="give TFLOP/s above 0"):
            rates_for(ws, wrong)
    keep(ws, RATES)
    assert rates_for(ws) == RATES and RATES.computed("tf32") == 1e13
    keep(ws, RATES.model_copy(update={"gpu": False}))
    assert rates_for(ws) is STATED and rates_for(ws, "measured").frames == 1000
    (tmp_path / "gpu.json").write_text('{"device": "x"}')
    with pytest.raises(UserError, match="gpu.json: key gpu is missing"):
        rates_for(ws)


def test_this_machine_is_measured(tmp_path):
    tiny = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2, "image_size": 32, "patch_size": 16,
            "num_hidden_layers": 1}  # fmt: skip
    found = measure(seconds=0.0, vision=tiny, frames=2, side=16)
    assert not found.gpu and found.flops.keys() == found.products.keys() == {"float32", "bf16"}
    assert found.frames > 0 and found.copied > 0 and "CPU" in found.device


def test_the_bounds_are_printed_by_method(repo, paper, tmp_path, capsys):
    keep(Workspace(tmp_path), RATES)
    print_plan(Plan.read(repo / "config", {"scale": "paper"}, "lga", "4"), tmp_path)
    out = " ".join(capsys.readouterr().out.split())
    assert "arithmetic" in out and "decoding" in out and "bf16 100, float32 10 TFLOP/s (a test's)" in out


def test_disk_counts_each_set_of_videos_once_and_no_skeletons(paper):
    read = paper.datasets_read()
    videos = [key for key in read if paper.datasets[key].spec["kind"] not in ("skeletons", "synthetic")]
    assert len(videos) < len(read)
    assert sum(sum(clips_of(paper.datasets[key]).values()) for key in videos) > 400_000  # SSv2 twice, Gym
    one = Plan.read(paper.config.folder, {"scale": "paper"}, "lga", "5")
    sizes = {one.datasets[key].name: sum(clips_of(one.datasets[key]).values()) for key in one.datasets_read()}
    lengths = {"hmdb51": 95, "ucf101": 180, "kinetics100": 300, "ssv2_small": 46, "ssv2_full": 46}
    assert disk_bytes(one) == sum(clips * lengths[name] * BYTES_OF_FRAME for name, clips in sizes.items()) > 0
    larger = {"scale": "paper", "frames": {"store": {"size": 320}}}  # the short side of 4:3
    assert disk_bytes(Plan.read(paper.config.folder, larger, "lga", "5")) == pytest.approx(
        disk_bytes(one) * 320**2 * 4 / 3 / 256**2
    )
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
