"""Settings: layers, merging, and errors that name file, key and the nearest name."""

from __future__ import annotations

import shutil

import pytest

from pipeline.config import Cluster, Config, check, merge, read_yaml, without_places
from pipeline.errors import UserError, unknown
from pipeline.plan import Plan


@pytest.fixture
def folder(repo, tmp_path):
    """A copy of the repository's configuration to break."""
    return shutil.copytree(repo / "config", tmp_path / "config")


def test_merge_goes_into_mappings_and_replaces_the_rest():
    base = {"a": {"b": 1, "c": {"d": 2}}, "l": [1, 2], "x": 0, "m": {"n": 1}}
    overlay = {"a": {"c": {"e": 3}}, "l": [9], "x": {"y": 1}, "m": None, "new": {"z": [1]}}
    merged = merge(base, overlay)
    assert merged == {"a": {"b": 1, "c": {"d": 2, "e": 3}}, "l": [9], "x": {"y": 1}, "m": None, "new": {"z": [1]}}
    assert base == {"a": {"b": 1, "c": {"d": 2}}, "l": [1, 2], "x": 0, "m": {"n": 1}}
    merged["new"]["z"].append(2)
    merged["a"]["c"]["d"] = 7
    assert overlay["new"]["z"] == [1] and base["a"]["c"]["d"] == 2


def test_scale_lies_over_the_default_and_the_overlay_over_both(repo):
    demo = Config(repo / "config").settings
    assert demo.scale == "demo" and demo.frames["crop"] == 64 and demo.frames["number"] == 8
    assert demo.frames["store"] == {"size": [72, 72], "frames": 16, "codec": "jpeg", "quality": 95}
    paper = Config(repo / "config", {"scale": "paper"}).settings
    assert paper.frames["crop"] == 224 and paper.train == paper.substitute == paper.substitute_backbone == {}
    assert paper.cluster.mode == "job" and paper.cluster.gpus == 1 and paper.cluster.dashboard
    mine = Config(repo / "config", {"frames": {"store": {"quality": 50}}, "seeds": [3], "train": {"steps": 7}}).settings
    assert mine.frames["store"]["quality"] == 50 and mine.frames["store"]["size"] == [72, 72]
    assert mine.seeds == [3] and mine.train["steps"] == 7 and mine.train["episodes_per_step"] == 2
    assert Config(repo / "config").settings == demo  # no overlay leaks into a later reading


def _error(folder, overlay=None) -> str:
    with pytest.raises(UserError) as caught:
        Config(folder, overlay)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_errors_name_the_file_that_they_are_in(folder):
    path = folder / "config.yaml"
    good = path.read_text()
    path.write_text(good + "\nalpha_gird: [0.5]\n")
    assert _error(folder) == f"unknown key 'alpha_gird' in {path} (alpha_gird); did you mean 'alpha_grid'?"
    path.write_text(good.replace("slots: 2", "slots: 0"))
    assert "config.yaml: key cluster.slots:" in _error(folder) and "got 0" in _error(folder)
    path.write_text(good.replace("slots: 2", "slot: 2"))
    assert "config.yaml (cluster.slot); did you mean 'slots'?" in _error(folder)
    path.write_text(good)
    scale = folder / "scales" / "demo.yaml"
    scale.write_text(scale.read_text() + "\nbackbones: 7\n")
    assert _error(folder).startswith(f"{scale}: key backbones:")
    scale.write_text("substitutes: {}\n")
    assert _error(folder) == f"unknown key 'substitutes' in {scale} (substitutes); did you mean 'substitute'?"


@pytest.mark.parametrize(
    ("overlay", "message"),
    [
        ({"scale": "demos"}, "unknown scale 'demos' in settings of the command line, key scale; did you mean 'demo'?"),
        ({"scale": "xyz"}, "known: demo, own, paper, quick"),
        ({"seeds": []}, "command line: key seeds: .*at least 1"),
        ({"seeds": ["x"]}, r"command line: key seeds\.0: .*got 'x'"),
        ({"selection": "best"}, "command line: key selection: .*'val', 'last' or 'test'"),
        ({"cluster": {"mode": "shard"}}, r"key cluster\.mode: "),
        ({"cluster": {"gpus": -1}}, r"key cluster\.gpus: "),
        ({"cluster": {"wokers": 2}}, r"unknown key 'wokers' in .* \(cluster\.wokers\); did you mean 'workers'\?"),
        ({"alpha_grid": []}, "key alpha_grid: "),
        ({"trian": {"steps": 1}}, "unknown key 'trian' .*did you mean 'train'"),
    ],
)
def test_errors_of_the_command_line(repo, overlay, message):
    with pytest.raises(UserError, match=message):
        Config(repo / "config", overlay)


def test_broken_files(folder):
    path = folder / "config.yaml"
    path.write_text("scale: demo\nseeds: [0\nselection: val\n")
    assert f"{path} line 3" in _error(folder) and "not valid YAML" in _error(folder)
    path.write_text("- a\n- b\n")
    assert _error(folder) == f"{path}: expected `key: value` lines, found a list"
    path.write_text("scale: demo\x00")
    assert str(path) in _error(folder)
    path.unlink()
    assert _error(folder) == f"{path}: no such file"


def test_an_empty_file_is_an_empty_mapping_and_a_changed_one_is_read_again(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("# nothing\n")
    assert read_yaml(path) == {}
    path.write_text("a: 1\n")
    assert read_yaml(path) == {"a": 1}


def test_names_and_entries(repo):
    config = Config(repo / "config", {"datasets": {"mine": {"kind": "folder"}, "hmdb51": {"root": "/elsewhere"}}})
    assert "mine" in config.names("datasets") and "hmdb51" in config.names("datasets")
    assert config.entry("datasets", "mine", "x") == {"kind": "folder"}
    hmdb = config.entry("datasets", "hmdb51", "x")
    assert hmdb["root"] == "/elsewhere" and hmdb["kind"] == "list"
    with pytest.raises(UserError, match="unknown dataset 'hmbd51' in table 9; did you mean 'hmdb51'"):
        config.entry("datasets", "hmbd51", "table 9")
    with pytest.raises(UserError, match="unknown method 'lgaa' in row 2; did you mean 'lga'"):
        config.entry("methods", "lgaa", "row 2")
    with pytest.raises(UserError, match="unknown backbone 'clip_nana' in row 3; did you mean 'clip_nano'"):
        config.backbone("clip_nana", "row 3")
    nano = Config(repo / "config", {"backbones": {"clip_nano": {"steps": 3}}}).backbone("clip_nano", "x")
    assert nano["steps"] == 3 and nano["sources"] == "own"


def test_nearest_name_or_all_names():
    assert str(unknown("dish", "spagetti", ["spaghetti", "risotto"])) == (
        "unknown dish 'spagetti'; did you mean 'spaghetti'?"
    )
    assert str(unknown("dish", "xyz", ["b", "a"], "menu")) == "unknown dish 'xyz' in menu; known: a, b"
    assert str(unknown("dish", "xyz", [])) == "unknown dish 'xyz'; known: none"


def test_every_default_setting_is_the_one_of_the_file(repo):
    """`config.yaml` is the complete default, so the defaults in the code must not say something else."""
    content = read_yaml(repo / "config" / "config.yaml")
    bare, full = check({}, "code").model_dump(), check(content, "file").model_dump()
    assert bare | {"frames": full["frames"]} == full
    assert set(content["cluster"]) == set(Cluster.model_fields)


def test_a_mistake_is_blamed_on_what_has_it(repo):
    config = Config(repo / "config", {"datasets": {"hmdb51": {"root": "."}, "mine": {"kind": "folder"}}})
    assert config.place("datasets", "hmdb51") == config.place("datasets", "hmdb51", "frames")
    assert config.place("datasets", "hmdb51") == str(repo / "config" / "datasets" / "hmdb51.yaml")
    for name, key in (("hmdb51", "root"), ("mine", ""), ("mine", "kind")):
        assert config.place("datasets", name, key).endswith(f"command line), key datasets.{name}")


def test_a_second_config_on_the_command_line_is_no_silence(tmp_path):
    from pipeline.config import check_command_line

    def said(*words, **config):
        return list(check_command_line(["snakemake", *words], config, "demo"))

    with pytest.raises(UserError, match=r"--config is given twice, .* only the last; write `--config a=1 b=2`"):
        said("--config", "scale=paper", "--config", "seeds=[0]")
    with pytest.raises(UserError, match="twice"):
        said("--config=scale=paper", "-C", "seeds=[0]")
    assert not said("--configfile", "a.yaml", "--config", "seeds=[0]", "mirror=x")
    (tmp_path / "config.yaml").write_text("config:\n  - scale=paper # this one\njobs: 3\n")
    profile = ["--profile", str(tmp_path)]
    (note,) = said(*profile, "--config", "seeds=[0]")
    assert note.startswith("scale demo runs, and not paper") and "add scale=paper" in note
    assert said(f"--profile={tmp_path}", "--config", "seeds=[0]") == [note]
    assert not said(*profile) and not said(*profile, "--config", "scale=demo", scale="demo")
    assert not said("--profile", str(tmp_path / "none"), "--config", "seeds=[0]")


def test_what_says_where_and_how_fast_is_left_out_and_no_id_with_it(repo):
    decides = {"seeds": [0, 1], "datasets": {"hmdb51": {"describe": True}}}
    places = {"cluster": {"slots": 1}, "resources": {"train": {"mem_mb": 1}}, "mirror": "/m", "site": {}}
    asked = {"model": "m", "base_url": "http://127.0.0.1:1/v1", "price": {"input": 1.0}, "concurrency": 9}
    assert without_places(decides | places | {"llm": asked}) == decides | {"llm": {"model": "m"}}
    assert without_places({"llm": {"price": {"input": 1.0}}}) == {}
    plans = [
        Plan.read(repo / "config", overlay | {"scale": "paper"}, "lga", "4")
        for overlay in (decides | {"llm": asked}, without_places(decides | {"llm": asked}), decides)
    ]
    assert plans[0].runs.keys() == plans[1].runs.keys() != plans[2].runs.keys()
