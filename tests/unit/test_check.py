"""`plan --check` names what is wrong with lists, labels, texts, weights and room, on a small generated layout."""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline import __main__ as cli
from pipeline import paper
from pipeline.config import Config
from pipeline.datasets.kinds.registry import defined
from pipeline.datasets.skeletons.readers import first_annotations
from pipeline.paper import list_faults, names_of
from pipeline.text.corpus import Corpus

CLASSES = {"train": ["eat", "run", "jump"], "val": ["swim", "sing"], "test": ["cut grass", "wave"]}
EXPECTED = {"classes": {name: len(found) for name, found in CLASSES.items()},
            "clips": {name: 2 * len(found) for name, found in CLASSES.items()}}  # fmt: skip


def few_shot(folder: Path, first: int = 0, names: int = 0, clips: int = 2) -> None:
    """Lists of `CLASSES`, videos in folders of their classes. first: number of the first training class. names: how
    many names too many stand before those of the training classes."""
    folder.mkdir(exist_ok=True)
    for split, classes in CLASSES.items():
        offset = first if split == "train" else 0
        rows = (f"{split}{i + offset}//{name.replace(' ', '_')}/{j}.avi" for i, name in enumerate(classes)
                for j in range(clips))  # fmt: skip
        (folder / f"{split}_few_shot.txt").write_text("\n".join(rows))
    given = {"train": ["nothing"] * names + CLASSES["train"], "test": CLASSES["test"]}
    (folder / "class_names.json").write_text(json.dumps(given))


def rates(folder: Path, first: int = 0, train: int = 0) -> None:
    """Lists of 4 classes at a rate of 10 %, of which `train.csv` counts from `first`. train: videos too many in it."""
    (folder / "10").mkdir(parents=True, exist_ok=True)
    for part, by, count in (("train", first, 1 + train), ("unlabel", 0, 2), ("test", 0, 1)):
        rows = (f"v/{part}{label}_{i}.mp4 {label + by}" for label in range(4) for i in range(count))
        (folder / "10" / f"{part}.csv").write_text("\n".join(rows))


def poses(path: Path, first: int = 0) -> None:
    """A pickle of pyskl whose labels count from `first`, of more annotations than are looked at."""
    names = [f"S001C001P{i // 50:03d}R001A{i % 50 + 1:03d}" for i in range(1200)]
    notes = [{"frame_dir": name, "label": int(name[-3:]) - 1 + first, "keypoint": np.zeros((1, 2, 17, 2), np.float16)}
             for name in names]  # fmt: skip
    path.write_bytes(pickle.dumps({"split": {"train": names}, "annotations": notes}))


def texts(folder: Path, *classes: str) -> None:
    Corpus({name: {"label": name, "stages": ["a", "b", "c"]} for name in classes}).save(folder / "texts.json")


@pytest.fixture
def layout(tmp_path):
    """Overlay of three data sets whose files are right."""
    few_shot(tmp_path / "few"), rates(tmp_path / "semi"), poses(tmp_path / "poses.pkl")
    every = [name for classes in CLASSES.values() for name in classes]
    texts(tmp_path, *every)
    return {
        "hmdb51": {"lists": str(tmp_path / "few"), "texts": str(tmp_path / "texts.json"), "expected": EXPECTED},
        "gym99": {"lists": str(tmp_path / "semi"), "expected": {"classes": 4, "train": 12, "test": 4, 5: 0, 10: 4}},
        "ntu60_hrnet": {"root": str(tmp_path / "poses.pkl")},
    }


def faults(repo, layout, name):
    """What is wrong with the lists and the texts of a data set."""
    data = defined(Config(repo / "config", {"datasets": layout}), name, "the test")
    return [*list_faults(data), *names_of(data)[1]]


def test_nothing_is_wrong_with_a_right_layout(repo, layout):
    assert [faults(repo, layout, name) for name in layout] == [[], [], []]


@pytest.mark.parametrize(("name", "spoil", "said"), [
    ("hmdb51", lambda f: few_shot(f / "few", first=1), "the train list counts its classes from 1 to 3"),
    ("hmdb51", lambda f: few_shot(f / "few", names=1), "train classes stand one place later than the labels"),
    ("hmdb51", lambda f: few_shot(f / "few", names=1), "3 of 3 classes"),
    ("hmdb51", lambda f: few_shot(f / "few", clips=3), "is another version of the lists than the paper's: train"),
    ("hmdb51", lambda f: texts(f, "eat"), "no text for cut"),
    ("gym99", lambda f: rates(f / "semi", first=1), "train.csv: its labels run from 1 to 4, those of 4 classes from 0"),
    ("gym99", lambda f: rates(f / "semi", train=1), "another version of the lists than the paper's: train: 16, publis"),
    ("ntu60_hrnet", lambda f: poses(f / "poses.pkl", 1), "A001 is class 2 by its label and 1 by its name"),
])  # fmt: skip
def test_what_is_wrong_is_named(repo, layout, tmp_path, name, spoil, said):
    spoil(tmp_path)
    assert any(said in line for line in faults(repo, layout, name))


def test_names_that_are_one_short(repo, layout, tmp_path):
    """Names counted from 1 and labels from 0: the last class has none."""
    few_shot(tmp_path / "few")
    given = {"train": [*CLASSES["train"][1:], "last"], "test": CLASSES["test"]}
    (tmp_path / "few" / "class_names.json").write_text(json.dumps(given))
    assert any("stand one place earlier" in line and "2 of 3" in line for line in faults(repo, layout, "hmdb51"))


def test_a_protocol_that_counts_from_another_number_than_its_exemplars(repo, layout):
    """Without `first_class` the protocol's class 7 would be NTU's A008."""
    layout["ntu60_hrnet"] = {"first_class": 0}
    (line,) = faults(repo, layout, "ntu60_hrnet")
    assert "A002 to A056, and the exemplars are A001 to A055" in line and line.endswith("set first_class: 1")


def test_lists_without_a_reader(repo, layout, tmp_path):
    """What of label-rate lists cannot be read is said here, for nothing else reads them before the splits."""
    (tmp_path / "semi" / "10" / "test.csv").write_text("v/a.mp4\n")
    assert any("test.csv, line 1" in line for line in faults(repo, layout, "gym99"))


def test_the_first_annotations_alone_are_read(tmp_path):
    poses(tmp_path / "p.pkl")
    assert len(first_annotations(tmp_path / "p.pkl")) == 1000
    (tmp_path / "p.pkl").write_bytes(b"nothing")
    assert first_annotations(tmp_path / "p.pkl") == []


def test_the_command_names_everything(repo, layout, tmp_path, monkeypatch, capsys):
    """A line each, and status 1."""
    few_shot(tmp_path / "few", first=1), rates(tmp_path / "semi", train=1)
    texts(tmp_path, "eat")
    layout["kinetics100"] = layout["hmdb51"] | {"lists": str(tmp_path / "other")}
    few_shot(tmp_path / "other")
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip" / "config.json").write_text('{"vision_config": {"patch_size": 32}}')
    overlay = {"datasets": layout, "backbones": {"clip_vit_b16": {"path": str(tmp_path / "clip")}}}
    monkeypatch.setattr(paper.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10**9}))
    command = ["pipeline", "plan", "--scale", "paper", "--check", "--config", str(repo / "config")]
    monkeypatch.setattr(sys, "argv", [*command, "--results", str(tmp_path / "r"), "--overlay", json.dumps(overlay)])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    out = [line for line in capsys.readouterr().out.splitlines() if line.startswith("fault: ")]
    assert caught.value.code == 1
    for said in (
        "hmdb51: the train list counts its classes from 1", "gym99: ", "is another version of the lists",
        "kinetics100: " + str(tmp_path / "texts.json") + " has no text for", "patch_size is 32, not 16", "GB are free",
    ):  # fmt: skip
        assert any(said in line for line in out), said
