"""What the kinds of data set bring, what of a definition is identity, and how a mistake in one is told."""

from __future__ import annotations

import importlib.util
import inspect
import sys

import pytest
import yaml
from tiny import bare_plan

from pipeline.config import Config
from pipeline.datasets.index import Clip, read_index
from pipeline.datasets.kinds.base import DataSet, Definition
from pipeline.datasets.kinds.registry import KINDS, defined
from pipeline.datasets.kinds.synthetic import SyntheticDefinition
from pipeline.datasets.skeletons.definition import PoseKeys
from pipeline.datasets.synthetic import generate
from pipeline.errors import UserError
from pipeline.experiment import store_key
from pipeline.pose.estimator import PoseSettings
from pipeline.stages import make_splits
from pipeline.steps import steps_of
from pipeline.workspace import Workspace


def _planned(definition, **overlay):
    return bare_plan({"datasets": {"mine": definition}, **overlay}).dataset("mine", "the test")


OWN = {
    "folder": {"kind": "folder", "root": "videos"},
    "list": {"kind": "list", "root": "videos", "lists": "lists"},
    "semi": {"kind": "semi", "root": "videos", "labels": "videos.csv"},
    "skeletons": {"kind": "skeletons", "format": "ntu", "root": "files", "protocol": {"novel": [1, 7]}},
    "synthetic": {"kind": "synthetic", "set": "scene", "clips_per_class": 4},
}


# ------------------------------------------------------------------------------------------ a new kind
NEW = '''
from typing import Annotated

from pydantic import Field

from pipeline.datasets.index import Clip, write_index
from pipeline.datasets.kinds.base import HERE, DataSet, VideoDefinition


class NumberedDefinition(VideoDefinition):
    """Clips that are called by their numbers."""

    classes: int = Field(ge=2)
    clips: int = 3
    disk: Annotated[str, HERE] = ""


class Numbered(DataSet):
    Definition = NumberedDefinition
    stages = ("splits", "frames")
    validated = False

    def make_splits(self, ws, workers):
        made = [
            Clip(f"{label}_{i}", f"{label}/{i}.mp4", f"class {label}", "train" if i else "test")
            for label in range(self.definition.classes)
            for i in range(self.definition.clips)
        ]
        return write_index(ws.index(self.asset.key), made)
'''


@pytest.fixture
def numbered(tmp_path, monkeypatch):
    """A kind of data set that is one file, and the line of the registry that names it."""
    (tmp_path / "numbered.py").write_text(NEW)
    spec = importlib.util.spec_from_file_location("numbered", tmp_path / "numbered.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "numbered", module)
    spec.loader.exec_module(module)
    monkeypatch.setitem(KINDS, "numbered", module.Numbered)


def test_a_new_kind_is_a_file_and_a_line(numbered, tmp_path):
    mine = {"kind": "numbered", "classes": 2, "root": str(tmp_path), "disk": "a", "frames": {"number": 4}}
    plan = bare_plan({"datasets": {"mine": mine}, "substitute": {"hmdb51": "mine"}})
    run = plan.cell({"method": "otam", "dataset": "hmdb51"}, 0, "the test").run
    plan.runs[run.id] = run
    asset = plan.datasets[run.dataset]
    assert asset.spec == {"kind": "numbered", "classes": 2, "frames": {"number": 4}}
    assert asset.options == {"root": str(tmp_path), "disk": "a", "min_coverage": 0.9}
    assert (run.frames["number"], run.selection) == (4, "last")
    steps = {step.stage: step for step in steps_of(plan, tmp_path) if step.kind == "data sets"}
    assert list(steps) == ["splits", "frames"]
    assert steps["frames"].outputs == (Workspace(tmp_path).manifest(asset.key, store_key(run.frames)),)
    assert make_splits(asset, Workspace(tmp_path), 1) == steps["splits"].outputs[0] and steps["splits"].done
    assert len(read_index(steps["splits"].outputs[0])) == 6
    with pytest.raises(UserError, match=r"unknown key 'clases' in .*datasets\.mine \(clases\); did you mean 'classes'"):
        _planned({"kind": "numbered", "clases": 2})
    with pytest.raises(UserError, match=r"key datasets\.mine: key classes: .*greater than or equal to 2 \(got 1\)"):
        _planned(mine | {"classes": 1})


# ------------------------------------------------------------------------------------------ definitions
@pytest.mark.parametrize("scale", ["demo", "paper"])
def test_every_definition_of_the_project_is_read(repo, scale):
    config = Config(repo / "config", {"scale": scale})
    for name in config.names("datasets"):
        data = defined(config, name, "the test")
        assert isinstance(data, DataSet) and data.definition.kind == data.asset.spec["kind"]
        wanted = data.definition.stands_in
        assert not wanted or defined(config, wanted, "the test").whole


def test_every_definition_of_the_examples_is_read(repo):
    read = 0
    for path in sorted((repo / "docs" / "examples").rglob("*.yaml")):
        overlay = yaml.safe_load(path.read_text())
        config = Config(repo / "config", overlay)
        for name in overlay.get("datasets", {}):
            read += isinstance(defined(config, name, "the test").definition, Definition)
    assert read >= 4


def test_keys_are_those_of_what_reads_them():
    known = set(inspect.signature(generate).parameters) - {"name", "root", "workers", "frames"}
    assert known == set(SyntheticDefinition.model_fields) - set(Definition.model_fields) - {"set", "frames"}
    settings = {name: field.default for name, field in PoseSettings.__dataclass_fields__.items() if name != "layout"}
    assert settings == {name: field.default for name, field in PoseKeys.model_fields.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_of_this_machine_changes_no_identity(kind, tmp_path):
    plain = _planned(OWN[kind])
    here = {
        "root": "elsewhere", "texts": "t.json", "licence": "free", "workers": 3, "expected": {}, "min_coverage": 0.5,
        "stands_in": "synthetic_scene",
    }  # fmt: skip
    moved = _planned(OWN[kind] | here)
    assert moved.key == plain.key and not set(here) & set(moved.spec)
    assert moved.options["texts"] == "t.json" and moved.options["min_coverage"] == 0.5
    changed = {"policy": {"bodies": 1}} if kind == "skeletons" else {"frames": {"number": 4}}
    assert _planned(OWN[kind] | changed).key != plain.key
    assert _planned(OWN[kind]).spec == {key: value for key, value in OWN[kind].items() if key in plain.spec}


def test_what_a_file_holds_is_identity_and_its_place_is_not(tmp_path):
    one, two = tmp_path / "one.csv", tmp_path / "two.csv"
    for path in (one, two):
        path.write_text("path,label\n")
    first, second = (_planned(OWN["folder"] | {"labels": str(path)}) for path in (one, two))
    assert first.key == second.key != _planned(OWN["folder"]).key and "labels" not in first.spec
    two.write_text("path,label\na.mp4,jump\n")
    assert _planned(OWN["folder"] | {"labels": str(two)}).key != first.key


def test_a_set_that_reads_another_has_its_key_in_its_own():
    reads = {"kind": "semi", "reads": "synthetic_fine", "clips": {"train": 2, "test": 1}}
    plain, other = _planned(reads), _planned(reads, datasets={"mine": reads, "synthetic_fine": {"seed": 1}})
    assert plain.spec["reads"].startswith("synthetic_fine-") and plain.key != other.key
    assert "min_coverage" not in plain.options
    with pytest.raises(UserError, match=r"unknown dataset 'synthetic_fin' in .*, key reads; did you mean"):
        _planned(reads | {"reads": "synthetic_fin"})


def test_a_key_that_is_null_counts_as_not_given():
    assert _planned(OWN["folder"] | {"texts": None, "splits": None}).options["texts"] is None


# --------------------------------------------------------------------------------------------- mistakes
@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("folder", {"rot": "x"}, r"unknown key 'rot' in the settings .*datasets\.mine \(rot\); did you mean 'root'"),
        ("folder", {"splits": {"training": ["a"]}}, r"'training' .*splits\.training.*did you mean 'train'"),
        ("folder", {"lists": "x"}, "unknown key 'lists'"),
        ("folder", {"lists": None}, "unknown key 'lists'"),
        ("folder", {"contents": {}}, "unknown key 'contents'"),
        ("folder", {"kind": ["folder"]}, "unknown kind of data set"),
        ("synthetic", {"clips_per_class": None}, "key clips_per_class is missing"),
        ("list", {"names_form": "x"}, "did you mean 'names_from'"),
        ("list", {"min_clips": "many"}, r"key min_clips: .*integer.*\(got 'many'\)"),
        ("semi", {"validate": 0.1}, "did you mean 'validation'"),
        ("semi", {"validation": 1.5}, r"key validation: .*less than 1 \(got 1\.5\)"),
        ("semi", {"clips": {"tain": 3}}, "did you mean 'train'"),
        ("skeletons", {"protocl": {}}, "did you mean 'protocol'"),
        ("skeletons", {"protocol": {"novl": 2}}, r"'novl' .*protocol\.novl.*did you mean 'novel'"),
        ("skeletons", {"policy": {"gap": "keeep"}}, r"key policy\.gap"),
        ("skeletons", {"feed": {"frame": 3}}, "did you mean 'frames'"),
        ("skeletons", {"pose": {"backnd": "rtmpose"}}, "did you mean 'backend'"),
        ("skeletons", {"frames": {"number": 3}}, "unknown key 'frames'"),
        ("synthetic", {"clips_per_clas": 3}, "did you mean 'clips_per_class'"),
        ("synthetic", {"nuisance": 3}, r"key nuisance"),
        ("folder", {"min_coverage": 90}, r"key min_coverage: .*less than or equal to 1 \(got 90\)"),
        ("folder", {"duplicates": "kep"}, r"key duplicates: .*'error' or 'keep'"),
        ("folder", {"kind": "foldr"}, "unknown kind of data set 'foldr' in .*did you mean 'folder'"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_with_file_key_and_nearest_name(kind, change, message):
    with pytest.raises(UserError, match=message) as caught:
        _planned(OWN[kind] | change)
    assert "\n" not in str(caught.value) and "datasets.mine" in str(caught.value)


def test_a_mistake_in_a_file_names_the_file(repo, tmp_path):
    (tmp_path / "datasets").mkdir()
    for name in ("config.yaml", "scales", "methods"):
        (tmp_path / name).symlink_to(repo / "config" / name)
    (tmp_path / "datasets" / "mine.yaml").write_text("kind: list\nrot: videos\nlists: lists\n")
    with pytest.raises(UserError, match=r"unknown key 'rot' in .*/datasets/mine\.yaml \(rot\); did you mean 'root'"):
        defined(Config(tmp_path, {}), "mine", "the test")


@pytest.mark.parametrize(
    ("method", "frames", "message"),
    [
        ("crossglg", {"feed": {"frams": 3}}, r"unknown key 'frams' in .*frames \(feed\.frams\); did you mean 'frames'"),
        ("crossglg", {"policy": {"alignment": "axis"}}, r"frames: key policy\.alignment"),
        ("sefar", {"elements": "spred"}, r"frames: key elements"),
    ],
)
def test_what_a_method_says_of_frames_is_checked_too(method, frames, message):
    dataset = "ntu120_oneshot" if method == "crossglg" else "gym99"
    plan = bare_plan({"methods": {method: {"frames": frames}}})
    with pytest.raises(UserError, match=message):
        plan.cell({"method": method, "dataset": dataset, "train": {}}, 0, "the test")


def test_names_of_classes_stop_no_list_of_few_labels(tmp_path):
    """They are for questions; the stage that lists the videos passes them over."""
    (tmp_path / "videos").mkdir()
    clips = [Clip(f"videos/{i}", f"{i}.mp4", f"c{i % 2}", "test" if i > 3 else "train") for i in range(6)]
    for clip in clips:
        (tmp_path / "videos" / clip.path).write_bytes(clip.clip.encode() * 99)
    rows = "".join(f"{clip.path},{clip.label},{clip.split}\n" for clip in clips)
    (tmp_path / "videos.csv").write_text("path,label,split\n" + rows)
    mine = OWN["semi"] | {"root": str(tmp_path / "videos"), "labels": str(tmp_path / "videos.csv"), "names": ["a", "b"]}
    assert len(read_index(make_splits(_planned(mine), Workspace(tmp_path), 1))) == 6


# --------------------------------------------------------------------------------------------- stand-ins
def test_what_stands_in_is_said_by_the_data_set_and_overruled_by_the_settings():
    def measured(stands_in="synthetic_temporal", **overlay):
        mine = OWN["folder"] | {"stands_in": stands_in}
        plan = bare_plan({"datasets": {"mine": mine}, **overlay})
        return plan.cell({"method": "otam", "dataset": "mine"}, 0, "the test").run.dataset.rsplit("-", 1)[0]

    assert measured() == "synthetic_temporal" and measured(stand_in=False) == "mine"
    assert measured(substitute={"mine": "synthetic_scene"}) == "synthetic_scene"
    assert measured(substitute={"mine": "mine"}) == "mine"
    with pytest.raises(
        UserError, match=r"'synthetic_temp' in .*datasets\.mine, key stands_in; did you mean 'synthetic_t"
    ):
        measured("synthetic_temp")
