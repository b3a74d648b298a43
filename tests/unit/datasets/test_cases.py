"""The reference data's cases of files that are often read wrongly, through the command line.

One decoder reads all films, so there is no second one that could differ from it.
"""

import importlib.util
import json
import os
import socket

import numpy as np
import pytest

from pipeline.cli.options import app
from pipeline.datasets.frames import FrameStore
from pipeline.datasets.index import read_index
from pipeline.errors import UserError
from pipeline.experiment import Asset
from pipeline.files import write_json
from pipeline.workspace import Workspace

SIZE = [128, 160]
TABLES = {"train": 3, "val": 1, "test": 2, "seed": 0}
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cases(reference_data, tmp_path_factory):
    """The module that makes the cases, and {name: (folder, what is expected)}."""
    path = reference_data / "cases" / "make_cases.py"
    if not path.is_file():
        pytest.skip("the reference data have no cases")
    spec = importlib.util.spec_from_file_location("make_cases", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    out, made = tmp_path_factory.mktemp("cases"), {}
    os.environ.setdefault("SVT_LOG", "1")
    for name, (function, _, _) in module.CASES.items():
        (out / name).mkdir()
        try:
            made[name] = out / name, json.loads(json.dumps(function(out / name)))
        except module.Skip as why:
            print(f"skipped {name}: {why}")
    return module, made


@pytest.fixture
def say(capsys):
    """`say(words...)` runs a command of `python -m pipeline`: (the error's line or "", all that was printed)."""

    def run(*words):
        capsys.readouterr()
        try:
            app([str(word) for word in words], standalone_mode=False)
            error = ""
        except UserError as caught:
            error = str(caught)
        assert "\n" not in error
        printed = capsys.readouterr()
        return error, printed.out + printed.err

    return run


def plan(results, name, spec, **options):
    """Write the spec of a data set as file `name`; returns the data set's folder."""
    asset = Asset(name=name, spec=spec, options={key: str(value) for key, value in options.items()})
    write_json(results / "specs" / f"{name}.json", asset.model_dump(mode="json"))
    return Workspace(results).dataset(asset.key)


def helps(error, refusal):
    """Whether a message has a word of each group of those that help, and none that misleads."""
    said = error.lower()
    good = all(any(word.lower() in said for word in group) for group in refusal["names"])
    return bool(said) and good and not any(word.lower() in said for word in refusal["misleads"])


def chosen(cases, *kinds, leave=()):
    return {name: case for name, case in cases[1].items() if case[1]["kind"] in kinds and name not in leave}


def test_films(cases, tmp_path, say, monkeypatch):
    module, films = cases[0], chosen(cases, "film", leave=("frames_beside_flow",))
    root, results = tmp_path / "films", tmp_path / "results"
    root.mkdir()
    rows = ["path,label,split"]
    for name, (folder, expected) in films.items():
        place = expected["file"] if "as" in expected else f"{name}.{expected['file'].rpartition('.')[2]}"
        (folder / expected["file"]).rename(root / place)  # a colon's film by its bare name
        rows.append(f"{place},{name},train")
    (tmp_path / "labels.csv").write_text("\n".join(rows))
    data = plan(results, "films", {"kind": "folder", "min_clips": 1}, root=".", labels=tmp_path / "labels.csv")
    monkeypatch.chdir(root)
    assert say("splits", "films", "--results", results, "--workers", "2")[0] == ""
    sizes = {row.split(",")[0]: row.split(",")[3:] for row in (data / "clips.csv").read_text().splitlines()[1:]}
    for count in (0, 16, 32):
        policy = {"size": SIZE, "frames": count, "codec": "raw"}
        write_json(results / "specs" / f"store{count}.json", policy)
        assert say("frames", "films", f"store{count}", "--results", results)[0] == ""
        store = FrameStore(data / f"store{count}")
        assert sorted(store.labels) == sorted(films)
        for i, name in enumerate(store.labels):
            expected, frames = films[name][1], store.read(i)
            wanted = expected["samples"][str(count)] if count else expected["shows"]
            assert [module.read_number(frame) for frame in frames] == wanted, name
            assert store.source_frames(i) == expected["frames"]
            assert all(module.read_corners(frame) == expected["corners"] for frame in frames), name
            assert sizes[store.clips[i]] == list(map(str, expected["size"]))
            if "rate" in expected:
                assert store.fps(i) == pytest.approx(expected["rate"], abs=0.05)
            if count and "times" in expected:
                np.testing.assert_allclose(store.times(i), expected["times"][str(count)], atol=2e-3)


def test_folders_of_frames(cases, tmp_path, say):
    folder, expected = cases[1]["frames_beside_flow"]
    (tmp_path / "labels.csv").write_text("path,label,split\nclip,walk,train\n")
    spec = {"kind": "folder", "min_clips": 1}
    plan(tmp_path, "flow", spec, root=folder, labels=tmp_path / "labels.csv")
    error, _ = say("splits", "flow", "--results", tmp_path)
    assert helps(error, expected["or refuse"]) and "pattern" in error
    data = plan(tmp_path, "flow2", spec | {"pattern": "^img_"}, root=folder, labels=tmp_path / "labels.csv")
    assert say("splits", "flow2", "--results", tmp_path)[0] == ""
    write_json(tmp_path / "specs" / "store.json", {"size": SIZE, "frames": 32, "codec": "raw"})
    assert say("frames", "flow2", "store", "--results", tmp_path)[0] == ""
    shown = [cases[0].read_number(frame) for frame in FrameStore(data / "store").read(0)]
    assert shown == expected["samples"]["32"]


def test_class_folders(cases, tmp_path, say):
    for name, (folder, expected) in chosen(cases, "class folders").items():
        spec: dict = {"kind": "folder", "splits": TABLES}
        options = {"root": folder / expected["folder"]}
        if "class lists" in expected:
            spec["splits"] = {split: str(folder / f"{split}.txt") for split in ("train", "val", "test")}
        if "table" in expected:
            spec, options = {"kind": "folder"}, options | {"labels": folder / expected["table"]}
        if "texts" in expected:
            options["texts"] = folder / expected["texts"]
        data = plan(tmp_path, name, spec, **options)
        error, printed = say("splits", name, "--results", tmp_path, "--workers", "2")
        if error and "or refuse" in expected:
            assert helps(error, expected["or refuse"]), error
            continue
        assert error == "", name
        clips = read_index(data / "index.csv")
        if len(clips) != expected["clips"]:
            assert len(clips) == expected["or left out"]["clips"], name
            assert any(word in printed for word in expected["or left out"]["named"]), printed
        assert sorted({clip.label for clip in clips}) == sorted(expected["classes"]), name
        if "texts" in expected:
            assert say("text", name, "--results", tmp_path)[0] == ""


def test_lists(cases, tmp_path, say):
    for name, (folder, expected) in chosen(cases, "few-shot lists", "semi-supervised").items():
        kind = "list" if expected["kind"] == "few-shot lists" else "semi"
        table = {"labels": folder / expected["table"]} if "table" in expected else {"lists": folder / expected["lists"]}
        data = plan(tmp_path, name, {"kind": kind}, root=folder / expected["videos"], **table)
        error, printed = say("splits", name, "--results", tmp_path)
        if "refuse" in expected:
            assert helps(error or printed, expected["refuse"]), error
            continue
        assert error == "", name
        clips = read_index(data / "index.csv")
        assert len(clips) == expected["clips"], name
        for split, count in expected.get("clips of splits", {}).items():
            assert sum(clip.split == split for clip in clips) == count
        if "classes" in expected:
            assert sorted({clip.label for clip in clips}) == sorted(expected["classes"])
        if "clip names" in expected:
            assert sorted(clip.clip for clip in clips) == expected["clip names"]


def test_texts(cases, tmp_path, say):
    for name, (folder, expected) in chosen(cases, "texts").items():
        if expected.get("import"):
            out = tmp_path / f"{name}.json"
            assert say("describe", "--import", folder / expected["file"], "--out", out)[0] == ""
        else:
            data = plan(tmp_path, name, {"kind": "folder"}, texts=folder / expected["file"])
            data.mkdir(parents=True)
            rows = "".join(f"{i},{i}.mp4,{label},train\n" for i, label in enumerate(expected["classes"]))
            (data / "index.csv").write_text("clip,path,label,split\n" + rows)
            assert say("text", name, "--results", tmp_path)[0] == ""
            out = data / "texts.json"
        from pipeline.text.corpus import load_corpus

        assert load_corpus(out).names == sorted(expected["classes"])


def test_skeletons(cases, tmp_path, say):
    for name, (folder, expected) in chosen(cases, "skeleton files").items():
        options = {"root": folder / expected["folder"]}
        if "missing" in expected:
            options["missing"] = folder / expected["missing"]
        spec = {"kind": "skeletons", "format": "ntu", "protocol": {"novel": [1, 3]}}
        data = plan(tmp_path, name, spec, **options)
        assert say("splits", name, "--results", tmp_path)[0] == ""
        write_json(tmp_path / "specs" / "store.json", {"skeletons": {}})
        assert say("frames", name, "store", "--results", tmp_path)[0] == ""
        assert len(read_index(data / "store" / "index.csv")) == expected["clips"], name


def test_pickles(cases, tmp_path, say):
    for name, (folder, expected) in chosen(cases, "pose pickle").items():
        spec = {
            "kind": "skeletons", "format": "pyskl", "graph": "coco17", "classes": expected["classes"],
            "protocol": {"novel": expected["novel"]}, "policy": {"origin": "none"},
        }  # fmt: skip
        data = plan(tmp_path, name, spec, root=folder / expected["file"])
        error, printed = say("splits", name, "--results", tmp_path)
        if "refuse" in expected:
            assert helps(error or printed, expected["refuse"]), error
            continue
        assert error == "" or helps(error, expected["or refuse"]), error
        if not error:
            clips = read_index(data / "index.csv")
            assert sorted(clip.clip for clip in clips if clip.split == "test") == sorted(expected["novel clips"])
            assert len(clips) == expected["clips"]


def test_archives(cases, tmp_path, say, repo):
    for name, (folder, expected) in chosen(cases, "archive").items():
        place = tmp_path / name / "example.org" / expected["file"]
        place.parent.mkdir(parents=True)
        (folder / expected["file"]).rename(place)
        files = [{"url": f"https://example.org/{expected['file']}", "extract": "videos"}]
        own = {"kind": "folder", "download": {"folder": str(tmp_path / name / "data"), "files": files}}
        overlay = json.dumps({"datasets": {"mine": own}})
        error, _ = say(
            "download", "mine", "--mirror", tmp_path / name, "--config", repo / "config", "--overlay", overlay
        )
        assert helps(error, expected["refuse"]), error


def test_weights(cases, monkeypatch):
    from pipeline.models.backbones.clip import CLIPBackbone

    def refuse(*_):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    for folder, expected in chosen(cases, "clip weights").values():
        monkeypatch.chdir(folder)
        with pytest.raises(UserError) as caught:
            CLIPBackbone(expected["file"])
        assert helps(str(caught.value), expected["refuse"])
