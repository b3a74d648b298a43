"""A row at paper scale, from a publisher's layout to a table: lists, relative roots, a Ray cluster a training, readers.

The data are generated and the network is narrow; sizes of frames, sampling, rules and the way of the data are those
of `scale=paper`. Budgets are cut.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
import yaml

from pipeline.datasets.index import read_index
from pipeline.datasets.synthetic import generate
from pipeline.models.backbones.clip import CLIPBackbone
from pipeline.models.backbones.nano_clip import build_tokenizer, init_nano, nano_config
from pipeline.text.corpus import load_corpus

pytestmark = pytest.mark.slow
CLASSES, CLIPS = 5, 3  # of each split, and of each class
COLUMN = {"name": "HMDB51/1-shot", "experiment": {"dataset": "hmdb51", "measure": {"shot": 1}}}
TABLE = {"title": "one row", "columns": [COLUMN], "rows": [{"name": "LGA", "experiment": {"method": "lga"}}]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A working folder as a lab has it: data/hmdb51 with videos, lists and texts, and weights/clip."""
    folder = tmp_path_factory.mktemp("paper")
    index = generate("scene", folder / "made", CLIPS, frames=(12, 14), size=64, workers=1)
    clips = read_index(index)
    own = folder / "data" / "hmdb51"
    (own / "lists").mkdir(parents=True)
    names = {}
    for split in ("train", "val", "test"):
        names[split] = sorted({clip.label for clip in clips if clip.split == split})[:CLASSES]
        lines = []
        for clip in (clip for clip in clips if clip.split == split and clip.label in names[split]):
            place = f"videos/{clip.label}/{os.path.basename(clip.path)}"
            (own / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(index.parent / clip.path, own / place)
            lines.append(f"{split}{names[split].index(clip.label)}//{place}")
        (own / "lists" / f"{split}_few_shot.txt").write_text("\n".join(lines))
    (own / "lists" / "class_names.json").write_text(json.dumps(names))
    shutil.copyfile(index.parent / "texts.json", own / "texts.json")
    _clip(
        folder / "weights" / "clip",
        load_corpus(own / "texts.json"),
        [name for split in names.values() for name in split],
    )
    return folder


def _clip(folder, corpus, classes):
    """A CLIP of CLIP's size of frames, two narrow layers and random weights."""
    sentences = [corpus.label(name) for name in classes]
    sentences += [sentence for name in classes for count in (1, 2, 3) for sentence in corpus.atomic(name, count)]
    tokenizer = build_tokenizer(sentences)
    clip = CLIPBackbone(
        nano_config(len(tokenizer), image_size=224, patch_size=56, width=32, mlp_width=32, layers=2, heads=2,
                    projection_dim=32)
    )  # fmt: skip
    init_nano(clip.clip, torch.Generator().manual_seed(0))
    clip.tokenizer = tokenizer
    folder.mkdir(parents=True)
    clip.save(folder)


def test_a_row_from_the_publishers_files_to_the_table(folder, repo):
    overlay = {
        "scale": "paper",
        "backbones": {"clip_vit_b16": {"path": "weights/clip"}},
        "tables": {"rehearsal": {"title": "rehearsal", "tables": {"1": TABLE}}},
        "train": {"steps": 2, "episodes_per_step": 2, "query": 1, "validate_every": 1, "validation_episodes": 20,
                  "checkpoint_every": 1, "warmup_steps": 0, "milestones": [2]},
        "measure": {"episodes": 40, "val_episodes": 30},
        "cluster": {"gpus": 0, "threads": 1, "loaders": 2, "dashboard": False},  # mode: job stays
    }  # fmt: skip
    (folder / "cut.yaml").write_text(yaml.safe_dump(overlay))
    command = [sys.executable, "-m", "snakemake", "-s", str(repo / "Snakefile"), "--cores", "2"]
    command += ["--configfile", "cut.yaml", "--", "results/rehearsal/table1.csv"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=900, env={**os.environ})
    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
    with (folder / "results/rehearsal/table1.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert (row["status"], row["scale"], row["selection"], row["n"]) == ("measured", "paper", "val", "40")
    run = json.loads((folder / "results/runs" / row["run_id"] / "run.json").read_text())
    assert run["frames"]["store"] == {"size": [256, 256], "frames": 0, "codec": "jpeg", "quality": 95}
    assert run["frames"]["crop"] == 224 and run["train"]["way"] == 5 and run["dataset"].startswith("hmdb51-")
    record = json.loads((folder / "results/runs" / row["run_id"] / "train.json").read_text())
    assert record["classes"] == {"train": 5, "val": 5, "test": 5} and record["steps"] == 2
