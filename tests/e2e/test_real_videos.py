"""Real clips from folder to table, at budgets of seconds: what the example of docs/examples/utd_mhad does."""

from __future__ import annotations

import csv
import os
import subprocess
import sys

import pytest
import yaml

pytestmark = pytest.mark.slow
CLIPS = 8  # of each class


@pytest.fixture(scope="module")
def made(tmp_path_factory, reference_data, repo):
    """Folder in which the example's own table was made; one of its videos is cut off."""
    folder = tmp_path_factory.mktemp("utd")
    for source in sorted((reference_data / "videos" / "utd_mhad_depth").iterdir()):
        target = folder / "videos" / source.name
        target.mkdir(parents=True)
        for clip in sorted(source.iterdir())[::4][:CLIPS]:
            (target / clip.name).symlink_to(clip)
    broken = next((folder / "videos" / "08_draw_x").iterdir())
    content = broken.read_bytes()
    broken.unlink()
    broken.write_bytes(content[: len(content) // 2])
    overlay = yaml.safe_load((repo / "docs/examples/utd_mhad/overlay.yaml").read_text())
    overlay["datasets"]["utd_mhad"] |= {
        "root": str(folder / "videos"),
        "texts": str(repo / "docs/examples/utd_mhad/texts.json"),
    }
    small = {"batch": 16, "model": {"image_size": 32, "layers": 2}}
    overlay["frames"] = {"store": {"size": [36, 36], "frames": 8}, "crop": 32}
    overlay["backbones"]["clip_untrained"] |= small
    overlay["backbones"]["clip_nano"] = {"steps": 3, **small}
    overlay["model"] |= {"layers": 1, "order_layers": 1}
    overlay["train"] = {
        "steps": 2, "episodes_per_step": 2, "validate_every": 1, "validation_episodes": 20,
        "checkpoint_every": 1, "warmup_steps": 0, "milestones": [2],
    }  # fmt: skip
    overlay["measure"] = {"episodes": 60, "val_episodes": 30}
    fewer = {"train": {"validate_every": 2, "validation_episodes": 20}, "measure": {"episodes": 60}}
    overlay["budgets"] = {"task_adapter": fewer, "task_adapter_pp": fewer}  # over those of the scale
    overlay["cluster"] = {"dashboard": False}
    (folder / "overlay.yaml").write_text(yaml.safe_dump(overlay))
    command = [sys.executable, "-m", "snakemake", "-s", str(repo / "Snakefile"), "--cores", "2"]
    command += ["--configfile", "overlay.yaml", "--", "results/utd_mhad/table1.csv"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=500, env={**os.environ})
    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
    return folder, broken


def test_every_method_is_measured_on_real_clips(made):
    with (made[0] / "results/utd_mhad/table1.csv").open() as file:
        rows = list(csv.DictReader(file))
    names = ["Untrained", "CLIP-Freeze", "OTAM", "CLIP-FSAR", "LGA", "Task-Adapter", "Task-Adapter++"]
    assert [row["row"] for row in rows[::2]] == names
    assert all(row["status"] == "measured" and 0 < float(row["value"]) <= 100 for row in rows)
    assert len({row["run_id"] for row in rows}) == 7


def test_a_broken_video_is_listed_and_left_out(made):
    folder, broken = made
    data = next((folder / "results/data").glob("utd_mhad-*"))
    listed = (data / "unreadable.csv").read_text()
    assert broken.name in listed and listed.count("\n") == 2
    assert broken.name not in (data / "index.csv").read_text()
    splits = [line.rsplit(",", 1)[1] for line in (data / "index.csv").read_text().splitlines()[1:]]
    assert len(splits) == 19 * CLIPS - 1 and set(splits) == {"train", "val", "test"}


def test_an_empty_class_folder_is_an_error_of_one_line(made, tmp_path):
    folder = made[0]
    squat = folder / "videos" / "27_squat"
    squat.rename(folder / "kept")
    squat.mkdir()
    try:
        key = next((folder / "results/data").glob("utd_mhad-*")).name
        (tmp_path / "specs").mkdir()
        (tmp_path / "specs" / f"{key}.json").write_text((folder / "results/specs" / f"{key}.json").read_text())
        done = subprocess.run(
            [sys.executable, "-m", "pipeline", "splits", key, "--results", str(tmp_path)],
            cwd=folder, capture_output=True, text=True, timeout=200,
        )  # fmt: skip
        assert done.returncode == 2
        errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
        assert len(errors) == 1 and "squat" in errors[0]
        assert not (tmp_path / "data" / key / "index.csv").exists()
    finally:
        squat.rmdir()
        (folder / "kept").rename(squat)
