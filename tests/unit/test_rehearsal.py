"""`make rehearse` without Snakemake: its data sets and networks are read as published ones, and its lines say what ran.

tests/e2e/test_paper_scale.py runs a row of it.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pipeline.config import LLM, read_yaml
from pipeline.datasets.index import read_index
from pipeline.datasets.kinds.registry import data_of
from pipeline.datasets.semi import read_semi_lists
from pipeline.datasets.synthetic import grammar
from pipeline.errors import UserError
from pipeline.plan import Plan
from pipeline.rehearsal import layout, rehearse, server, weights
from pipeline.tasks.questions.questions import read_names
from pipeline.text.describe import describe
from pipeline.text.prompts import read_prompts
from pipeline.workspace import Workspace


@pytest.fixture
def config(repo):
    return repo / "config"


@pytest.fixture
def plan(config):
    return Plan.read(config, read_yaml(config / "rehearsal.yaml"), "rehearsal")


@pytest.fixture
def unfilmed(monkeypatch):
    """Films are small files that differ: what is looked at is where they lie."""

    def film(path, set_name, label, number, film):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{path.name} " * 30)

    monkeypatch.setattr(layout, "write_film", film)


# ------------------------------------------------------------------------------------------------ the data sets
@pytest.mark.parametrize(
    ("name", "located"), [("hmdb51", "its folder"), ("ucf101", "its folder"), ("kinetics100", "time range"),
                          ("ssv2_small", "")],
)  # fmt: skip
def test_few_shot_videos_are_found_by_lists_of_the_published_form(unfilmed, plan, tmp_path, monkeypatch, name, located):
    monkeypatch.chdir(tmp_path)
    layout.make_data(name, Path("data"))
    asset = next(asset for asset in plan.datasets.values() if asset.name == name)
    index = data_of(asset).make_splits(Workspace("results"), 1)
    clips = read_index(index)
    assert len(clips) == 9 * layout.CLIPS
    for split, classes in layout.CLASSES[name].items():
        assert {clip.label for clip in clips if clip.split == split} == set(classes), "as the published lists call them"
    assert located in (index.parent / "located.csv").read_text()


def test_a_set_is_made_once_and_as_a_whole(unfilmed, tmp_path, monkeypatch):
    folder = layout.make_data("hmdb51", tmp_path)
    (folder / "mine").touch()
    assert layout.make_data("hmdb51", tmp_path) == folder and (folder / "mine").is_file()
    monkeypatch.setitem(layout.SETS, "broken", lambda new: (new / "half").touch() or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        layout.make_data("broken", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["hmdb51"]


@pytest.mark.parametrize("name", layout.FILMS)
def test_films_are_packed_as_their_publishers_do(tmp_path, monkeypatch, name):
    import av

    monkeypatch.setattr(layout, "FRAMES", (12, 12))
    film = layout.FILMS[name]
    path = tmp_path / f"a.{'webm' if name == 'ssv2_small' else 'avi' if film.codec == 'mpeg4' else 'mp4'}"
    layout.write_film(path, "scene", grammar.classes("scene", "train")[0], 0, film)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.width, stream.codec_context.height) == (film.width, film.height)
        assert stream.average_rate == film.fps and sum(1 for _ in container.decode(stream)) == 12


def test_finegyms_clips_are_those_of_sefars_list(unfilmed, tmp_path):
    layout.make_data("finegym", tmp_path)
    layout.make_data("gym99", tmp_path)
    split = read_semi_lists(tmp_path / "gym99" / "lists" / "5")
    names = {Path(path).name for path in (*(video.path for video in (*split.labelled, *split.test)), *split.unlabelled)}
    assert {path.name for path in (tmp_path / "finegym" / "videos").iterdir()} == names
    assert {video.label for video in split.test} == set(layout.GYM99) and not split.absent()
    assert len(read_names(str(tmp_path / "gym99" / "gym99_categories.txt"))) == 99


def test_ntus_skeletons_and_poses_give_the_whole_protocol(plan, tmp_path, monkeypatch):
    monkeypatch.setattr(layout, "FRAMES", (12, 13))
    monkeypatch.chdir(tmp_path)
    layout.make_data("ntu120", Path("data"))
    for name, novel in (("ntu120_oneshot", 20), ("ntu120_hrnet", 2)):
        asset = next(asset for asset in plan.datasets.values() if asset.name == name)
        index = data_of(asset).make_splits(Workspace("results"), 1)
        clips = read_index(index)
        tested = [clip.label for clip in clips if clip.split == "test"]
        assert len(set(tested)) == novel and len(tested) == 2 * novel
        assert len({clip.label for clip in clips}) == 120


# ------------------------------------------------------------------------------------- networks and texts
@pytest.mark.parametrize("name", weights.NETWORKS)
def test_networks_are_made_once(monkeypatch, tmp_path, name):
    made = []
    monkeypatch.setitem(weights.NETWORKS, name, lambda folder, small: made.append((folder / "there").write_text("")))
    weights.make_weights(name, tmp_path)
    weights.make_weights(name, tmp_path)
    assert len(made) == 1 and (tmp_path / name / "there").is_file()


def test_the_tokenizer_of_clip_is_as_the_published_one(tmp_path):
    from pipeline.models.backbones.clip import CLIPBackbone

    weights.make_weights(f"weights/{weights.CLIP}", tmp_path, small=True)
    clip = CLIPBackbone(tmp_path / "weights" / weights.CLIP)
    (row,) = clip.tokenize(["A person Xylophones."]).tolist()
    assert (row[0], row[-1]) == (49406, 49407) and len(clip.tokenizer) == 49408
    assert clip.tokenizer.decode(row, skip_special_tokens=True).replace(" ", "") == "apersonxylophones."
    assert clip.image_size == 224


def test_the_language_model_answers_every_prompt_in_the_form_that_is_asked(config, tmp_path):
    prompts = read_prompts(config / "prompts", sorted(path.stem for path in (config / "prompts").glob("*.yaml")))
    labels = {"draw_sword": "draw sword", "golf": "golf"}
    with server.language_model() as address:
        settings = LLM(model="stand-in", base_url=address)
        corpus = describe(prompts, labels, settings, tmp_path, ("head", "left hand"), say=lambda line: None)
    for name in labels:
        assert len(corpus.stages(name)) == 3 and len(set(corpus.atomic(name, 4))) == 4
        assert corpus.global_text(name) and set(corpus.joints(name)) == {"head", "left hand"}


# ------------------------------------------------------------------------------------------------- what is run
def test_it_has_every_family_and_cuts_budgets_and_clips_alone(config, plan):
    assert {run.method for run in plan.runs.values()} >= {
        "lga", "clip_fsar", "task_adapter_pp", "trx", "molo", "infogcn", "crossglg", "motionbert", "sefar", "sefar_qa",
    }  # fmt: skip
    settings = plan.config.overlay
    assert set(settings) == {
        "scale", "cluster", "resources", "llm", "backbones", "methods", "datasets", "train", "measure", "budgets",
        "tables",
    }  # fmt: skip
    assert settings["scale"] == "paper" and plan.config.settings.cluster.mode == "job"
    assert all(set(need) == {"threads"} for need in settings["resources"].values())
    assert all(set(backbone) == {"path"} for backbone in settings["backbones"].values())
    assert all(method == {"model": {"activation_checkpointing": True}} for method in settings["methods"].values())
    assert {key for keys in settings["datasets"].values() for key in keys} == {"describe", "min_coverage", "protocol"}
    assert all(set(budget) <= {"train", "measure"} for budget in settings["budgets"].values())


def test_families_are_chosen_by_method(config):
    chosen = rehearse._overlay(config, ["crossglg"], gpu=False, small=False)
    assert {number: len(table["rows"]) for number, table in chosen["tables"]["rehearsal"]["tables"].items()} == {
        "1": 1, "fig2": 1,
    }  # fmt: skip
    assert chosen["cluster"]["gpus"] == 0
    on_a_cluster = rehearse._overlay(config, [], gpu=True, small=True)
    assert on_a_cluster["cluster"] == {"dashboard": False} and on_a_cluster["resources"] == {}
    with pytest.raises(UserError, match="unknown family 'moloo'.*did you mean 'molo'"):
        rehearse._overlay(config, ["moloo"], gpu=False, small=False)


class Snakemake:
    """Stands for the process: it has ended, and has made what `makes` makes."""

    returncode = 0

    def __init__(self, makes):
        self.makes, self.commands = makes, []

    def __call__(self, command, stdout, stderr, env):
        self.commands.append(command)
        assert env["HF_HUB_OFFLINE"] == "1"
        self.makes()
        return self

    def poll(self):
        return 0

    def wait(self):
        return 0


@pytest.fixture
def calls(monkeypatch):
    """What Snakemake is called with; nothing is prepared."""

    def stand(makes=lambda: None):
        process = Snakemake(makes)
        monkeypatch.setattr(subprocess, "Popen", process)
        monkeypatch.setattr(rehearse, "prepare", lambda made: None)
        return process.commands

    return stand


def test_each_family_has_a_line_and_what_is_not_measured_its_reason(config, plan, calls, tmp_path, capsys):
    lga, molo = (next(run for run in plan.runs.values() if run.method == method) for method in ("lga", "molo"))

    def makes():
        ws = Workspace("results")
        (entry,) = [entry for entry in plan.table_entries("rehearsal", "1") if entry.row == "LGA"]
        cell = entry.cells[0].id
        for path in (
            ws.cell(cell),
            ws.root / "benchmarks/train/a",
            ws.root / "benchmarks/evaluate/a",
            ws.progress("train", "a"),
        ):
            path.parent.mkdir(parents=True, exist_ok=True)
        ws.cell(cell).write_text(json.dumps({"value": 62.5, "ci95": 12.34}))
        for stage, seconds, memory in (("train", "70.5", "3000.0"), ("evaluate", "20", "NA")):
            (ws.root / "benchmarks" / stage / f"{lga.id}.tsv").write_text(f"s\tmax_pss\n{seconds}\t{memory}\n")
        (ws.progress("train", molo.id)).write_text(json.dumps(
            {"stage": "train", "name": molo.id, "state": "failed", "reason": ["UserError: no room"], "host": "here",
             "bars": [], "started": 0, "updated": 0, "pid": 1}))  # fmt: skip

    commands = calls(makes)
    assert not rehearse.rehearse(config, tmp_path / "here", ["lga", "molo"], cores="3")
    out = capsys.readouterr().out
    (first,) = [line for line in out.splitlines() if line.startswith("LGA")]
    assert first.split() == ["LGA", lga.id, "90", "3.0", "GB", "62.5", "±", "12.3"]
    assert f"{molo.id:42}       0  0.0 GB  not measured: train: UserError: no room" in out
    assert re.search(
        r"^1 of 2 families in \d+ s; in .*/here, what Snakemake said: results/logs/rehearsal.log$", out, re.M
    )
    (command,) = commands
    assert command[command.index("--cores") + 1] == "3" and command[-1] == "rehearsal_tables"
    given = yaml.safe_load((tmp_path / "here" / "rehearsal.yaml").read_text())
    assert given["llm"]["base_url"].startswith("http://127.0.0.1:") and Path.cwd() != tmp_path / "here"


def test_on_a_cluster_texts_are_made_here_first(config, repo, calls, tmp_path, monkeypatch):
    monkeypatch.chdir(repo)
    commands = calls()
    assert not rehearse.rehearse(config, tmp_path / "there", ["lga", "molo"], gpu=True, profile="slurm")
    texts, tables = commands
    assert texts[-1].endswith("texts.json") and texts[texts.index("--cores") + 1] == "2"
    assert tables[tables.index("--profile") + 1] == str(repo / "slurm") and "--cores" not in tables
    with pytest.raises(UserError, match=r"holds a rehearsal of another size .* another --folder"):
        rehearse.rehearse(config, tmp_path / "there", ["lga"], small=True)


def test_a_full_disk_is_said_before_anything_is_made(config, tmp_path, monkeypatch):
    monkeypatch.setattr(rehearse, "DISK", 1e18)
    with pytest.raises(UserError, match=r"GB are free, and a rehearsal takes up to 1000000000; free some, or name a"):
        rehearse.rehearse(config, tmp_path / "here", ["lga"])
    assert not list((tmp_path / "here").iterdir())


def test_memory_is_that_of_all_processes_of_a_job():
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'x = bytearray(60_000_000); input()'])"
    words = [sys.executable, "-c", code, "pipeline", "train", "run-1"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, env={**os.environ}) as job:
        most = 0.0
        while most < 60:
            most = max(most, dict(rehearse.memory_of_jobs(os.getpid())).get("train-run-1", 0.0))
        job.stdin.close()
    assert most < 1000 and not list(rehearse.memory_of_jobs(job.pid))
