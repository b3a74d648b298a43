import gzip
import json
from pathlib import Path

import pytest
from rich.console import Console

from pipeline.datasets.index import Clip, read_index
from pipeline.datasets.splits import (
    check_counts,
    class_names,
    draw_class_split,
    prepare_list,
    read_class_list,
    read_few_shot_list,
    read_lists,
)
from pipeline.errors import UserError

# Published sizes of the few-shot splits: {split: (classes, clips)}.
PAPER_COUNTS = {
    "hmdb51": {"train": (31, 4280), "val": (10, 1194), "test": (10, 1292)},
    "ucf101": {"train": (70, 9154), "val": (10, 1421), "test": (21, 2745)},
    "kinetics100": {"train": (64, 6400), "val": (12, 1200), "test": (24, 2400)},
    "ssv2_small": {"train": (64, 6400), "val": (12, 1200), "test": (24, 2400)},
    "ssv2_full": {"train": (64, 67013), "val": (12, 1926), "test": (24, 2857)},
}


def _published(name):
    """As `expected` of a definition has it."""
    counts = PAPER_COUNTS[name].items()
    return {"classes": {s: n for s, (n, _) in counts}, "clips": {s: n for s, (_, n) in counts}}


QUIET = Console(quiet=True)


def test_drawn_classes():
    classes = [f"c{i:02d}" for i in range(19)]
    drawn = draw_class_split(classes, {"train": 11, "val": 3, "test": 5}, seed=0)
    assert [len(drawn[split]) for split in ("train", "val", "test")] == [11, 3, 5]
    assert sorted(name for names in drawn.values() for name in names) == classes
    assert draw_class_split(classes[::-1], {"test": 5, "train": 11, "val": 3}, seed=0) == drawn
    assert draw_class_split(classes, {"train": 11, "val": 3, "test": 5}, seed=1) != drawn
    with pytest.raises(UserError, match="ask for 20 classes and there are 19"):
        draw_class_split(classes, {"train": 20}, seed=0)
    with pytest.raises(UserError, match="did you mean 'test'"):
        draw_class_split(classes, {"tests": 2}, seed=0)


def test_class_lists(tmp_path):
    path = tmp_path / "classes.txt"
    path.write_text("# ours\n jump \n\nrun\n")
    assert read_class_list(path) == ["jump", "run"]
    path.write_text("jump\njump\n")
    with pytest.raises(UserError, match="'jump' twice"):
        read_class_list(path)
    path.write_text("# none\n")
    with pytest.raises(UserError, match="names no class"):
        read_class_list(path)


def write_lists(folder):
    folder.mkdir()
    lines = ["train0//videos/jump/a.b.avi", "train1//videos/sit_down/c.avi", "train0//videos/jump/d.avi"]
    with gzip.open(folder / "train_few_shot.txt.gz", "wt") as file:
        file.write("\n".join([*lines, "train1//videos/sit_down/e.avi"]))
    (folder / "val_few_shot.txt").write_text("val0//videos/PullUp/f.avi\nval0//videos/PullUp/g.avi\n")
    (folder / "test_few_shot.txt").write_text("test0/77\ntest0/78\ntest0/79\n")
    names = {"train": ["jump", "sit down"], "test": ["Opening [something]"], "note": "text"}
    (folder / "class_names.json").write_text(json.dumps(names))
    return folder


def touch(root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()


def test_lists_become_an_index(tmp_path):
    lists, root = write_lists(tmp_path / "lists"), tmp_path / "root"
    touch(root, "videos/jump/a.b.avi", "videos/jump/d.avi", "elsewhere/c.mp4", "elsewhere/e.webm")
    touch(root, "videos/PullUp/f.avi", "videos/PullUp/g.avi", "77.webm", "x/78.mp4")
    spec = {"kind": "list", "root": root, "lists": str(lists)}
    path = prepare_list(spec, tmp_path / "out")
    clips = read_index(path)
    assert [(clip.clip, clip.path, clip.label, clip.split) for clip in clips] == [
        ("videos/jump/a.b", "videos/jump/a.b.avi", "jump", "train"),
        ("videos/sit_down/c", "elsewhere/c.mp4", "sit down", "train"),
        ("videos/jump/d", "videos/jump/d.avi", "jump", "train"),
        ("videos/sit_down/e", "elsewhere/e.webm", "sit down", "train"),
        ("videos/PullUp/f", "videos/PullUp/f.avi", "Pull Up", "val"),
        ("videos/PullUp/g", "videos/PullUp/g.avi", "Pull Up", "val"),
        ("77", "77.webm", "Opening [something]", "test"),
        ("78", "x/78.mp4", "Opening [something]", "test"),
    ]
    assert (tmp_path / "out" / "unreadable.csv").read_text() == "path,reason\n79,the file is missing\n"
    expected = {"classes": {"train": 2, "test": 1}, "clips": {"test": 3}}
    assert check_counts(path, expected, QUIET) == ["test: 2 clips, published 3"]
    with pytest.raises(UserError, match=r"'Opening \[something\]' has 2 readable clip\(s\)"):
        prepare_list({**spec, "min_clips": 3}, tmp_path / "out")
    with pytest.raises(UserError, match="has 0 readable"):
        prepare_list({**spec, "probe": True}, tmp_path / "out", workers=2)
    with pytest.raises(UserError, match="none of the 9 videos"):
        prepare_list({**spec, "root": tmp_path / "lists"}, tmp_path / "out")


def test_names_of_a_split_without_names(tmp_path):
    lists = write_lists(tmp_path / "lists")
    listed = read_few_shot_list(lists / "test_few_shot.txt")
    assert class_names(listed, {}, {"77": "Opening a box"}) == {("test", 0): "Opening a box"}
    assert class_names(listed, {}, {"79": "Opening a box"}) == {("test", 0): "Opening a box"}  # any of its videos
    with pytest.raises(UserError, match="is both 'Opening a box' and 'Closing a box'"):
        class_names(listed, {}, {"77": "Opening a box", "79": "Closing a box"})
    with pytest.raises(UserError, match=r"what 1 classes are called, such as class 0 of test; .*v2-train\.json"):
        class_names(listed, {}, {})
    assert class_names(listed, {}, {}, numbered=True) == {("test", 0): "test class 0"}


def test_label_files_of_something_something_name_the_classes(tmp_path):
    """The form in which every registered user gets them: a list of {id, label, template, placeholders}."""
    lists = write_lists(tmp_path / "lists")
    (lists / "class_names.json").write_text(json.dumps({"train": ["jump", "sit down"]}))
    labels = [{"id": "78", "label": "opening a box", "template": "Opening [something]", "placeholders": ["a box"]}]
    for file in ("something-something-v2-validation.json", "train.json"):
        (lists / file).write_text(json.dumps(labels))
        names = read_lists({"lists": lists})[1]
        assert names["test", 0] == "Opening [something]" and names["val", 0] == "Pull Up"
        (lists / file).unlink()
    with pytest.raises(UserError, match="do not say what 1 classes are called"):
        read_lists({"lists": lists})
    (lists / "train.json").write_text('{"Opening [something]": "97"}')  # labels.json under another name
    with pytest.raises(UserError, match=r"train\.json is not a list of {id, template}"):
        read_lists({"lists": lists})


def test_wrong_lists(tmp_path):
    lists = write_lists(tmp_path / "lists")
    path = tmp_path / "list.txt"
    path.write_text("train0//a.avi\ntrain//b.avi\n")
    with pytest.raises(UserError, match=r"line 2: 'train//b\.avi'"):
        read_few_shot_list(path)
    with pytest.raises(UserError, match="there is no list"):
        read_few_shot_list(tmp_path / "none.txt")
    listed = read_few_shot_list(lists / "train_few_shot.txt.gz")
    with pytest.raises(UserError, match=r"label 1, beyond its 1 names"):
        class_names(listed, {"train": ["jump"]}, {})
    with pytest.raises(UserError, match="'jump' is both"):
        class_names(listed, {"train": ["jump", "jump"]}, {})
    with pytest.raises(UserError, match=r"no \*_few_shot\.txt"):
        prepare_list({"root": tmp_path, "lists": tmp_path}, tmp_path / "out")
    with pytest.raises(UserError, match="lacks lists"):
        prepare_list({"root": tmp_path}, tmp_path / "out")


@pytest.mark.parametrize("name", PAPER_COUNTS)
def test_published_lists_have_the_published_counts(reference_data, name, tmp_path):
    folder = reference_data / "lists" / "fewshot" / name
    listed = [clip for file in sorted(folder.glob("clipfsar_*_few_shot.txt*")) for clip in read_few_shot_list(file)]
    root = tmp_path / "root"
    root.mkdir()
    for folder_name in {Path(clip.path).parent for clip in listed}:
        (root / folder_name).mkdir(parents=True, exist_ok=True)
    if len(listed) > 20_000:  # files of all of SSv2-Full take a while to make
        few = {(clip.split, clip.label): [] for clip in listed}
        for clip in listed:
            few[clip.split, clip.label].append(clip)
        listed = [clip for clips in few.values() for clip in clips[:2]]
    for clip in listed:
        (root / clip.path).touch()
    spec = {"root": root, "lists": folder}
    if name == "ssv2_full":  # nothing that is published names its validation classes
        with pytest.raises(UserError, match=r"what 12 classes are called, such as class 2 of val"):
            prepare_list(spec, tmp_path / "out")
        labels = [{"id": c.path, "template": f"Doing thing {c.label}"} for c in listed if c.split == "val"]
        spec["names_from"] = str(tmp_path / "labels.json")
        (tmp_path / "labels.json").write_text(json.dumps(labels))
    found = read_index(prepare_list(spec, tmp_path / "out"))
    if name == "ssv2_full":
        assert check_counts(found, {"classes": _published(name)["classes"]}, QUIET) == []
    else:
        assert check_counts(found, _published(name), QUIET) == []
    assert not [clip.label for clip in found if " class " in clip.label]


def test_all_of_ssv2_full(reference_data):
    files = (reference_data / "lists" / "fewshot" / "ssv2_full").glob("clipfsar_*_few_shot.txt*")
    listed = [clip for file in files for clip in read_few_shot_list(file)]
    clips = [Clip(clip.path, clip.path, f"{clip.split}{clip.label}", clip.split) for clip in listed]
    assert check_counts(clips, _published("ssv2_full"), QUIET) == []
