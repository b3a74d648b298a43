"""Every run at paper scale: texts, frames, checkpoint, length, labels and names are what the papers say."""

from __future__ import annotations

import gzip
import json
import shutil
from collections import defaultdict

import pytest

from pipeline import paper
from pipeline.config import Config
from pipeline.datasets.kinds.registry import defined
from pipeline.estimate import disk_bytes
from pipeline.experiment import Asset
from pipeline.paper import check_plan, files_faults, list_faults, print_check, weights_faults
from pipeline.plan import Plan
from pipeline.text.corpus import Corpus
from pipeline.workspace import Workspace


@pytest.fixture(scope="module")
def plan(repo):
    return Plan.read(repo / "config", {"scale": "paper"})


@pytest.fixture(scope="module")
def checked(plan):
    return check_plan(plan)


@pytest.fixture(scope="module")
def by(checked):
    """{(method, data set): its lines}."""
    found = defaultdict(list)
    for line in checked.lines:
        found[line.method, line.dataset].append(line)
    return found


def test_every_training_is_looked_at_and_none_is_wrong(plan, checked, capsys):
    assert checked.faults == []
    assert checked.lines.total() == sum(bool(run.train) for run in plan.runs.values()) > 400
    print_check(checked)
    out = capsys.readouterr().out
    assert f"{checked.lines.total()} trainings, 0 faults" in out and "short side 320" in out


def test_text_encoders(by):
    for (method, _), lines in by.items():
        texts = {line.text for line in lines}
        if method.startswith("crossglg"):
            assert all(text.endswith("deberta") for text in texts), method
        if method == "gap":
            assert texts == {"gap, trained along: openai/clip-vit-base-patch32"}
        if method in ("trx", "strm", "hyrsm", "hyrsm_pp", "molo", "otam", "infogcn", "sefar"):
            assert texts == {"-"}, method


def test_frames_and_checkpoints(by):
    for (method, dataset), lines in by.items():
        frames, selection = {line.frames for line in lines}, {line.selection for line in lines}
        if method in ("task_adapter", "task_adapter_pp", "clip_finetune"):
            assert frames == {"8 of 256x256, segment_random, test segment_centre"}, dataset
        if method in ("lga", "clip_fsar", "hyrsm", "molo"):
            chosen = "kinetics_grid" if dataset == "kinetics100" else "segment_random"
            assert all(f", {chosen}, " in shown for shown in frames), (method, dataset)
        semi = method in ("sefar", "svformer", "fixmatch", "sefar_supervised", "sefar_qa", "ltg", "memdpc")
        if semi:
            shown = {int(count): size.startswith("short side 320") for count, size in (f.split(" of ") for f in frames)}
            assert all(shown.values()) and (40 if method == "memdpc" else 8) in shown, (method, dataset)
        # skeletons have no validation classes, and labels are worth more than a checkpoint
        last = semi or dataset.startswith(("ntu", "kinetics_skeleton"))
        assert selection == {"last" if last else "val"}, (method, dataset)


def test_lengths_and_labels_at_the_published_sizes(by):
    labels = {(dataset, line.labels) for (method, dataset), lines in by.items() if method == "sefar" for line in lines}
    assert labels >= {
        ("gym99", "1316 of 5 %"), ("gym99", "2632 of 10 %"), ("gym288", "1466 of 5 %"), ("fx", "540 of 10 %"),
        ("finediving", "23 of 1 %"), ("finediving", "113 of 5 %"), ("finediving", "225 of 10 %"),
        ("ucf101_semi", "101 of 1 %"), ("ucf101_semi", "477 of 5 %"), ("hmdb51_semi", "2094 of 40 %"),
        ("gym_new", "651 of 10 %"), ("ssv2_semi", "8446 of 5 %"),
    }  # fmt: skip
    (five,) = {line.length for line in by["sefar", "gym99"] if line.labels == "1316 of 5 %"}
    assert five == "30 epochs in 600 steps"  # 164 passes of 8, 20 steps of 64 an epoch
    assert {line.length for line in by["memdpc", "gym99"] if line.labels == "1316 of 5 %"} == {
        "500 epochs in 20500 steps, after 500 without labels"
    }
    base = {line.labels: line.length for line in by["infogcn", "ntu120_oneshot"]}
    assert base == {"18817": "110 epochs in 16170 steps", "37739": "110 epochs in 32340 steps",
                    "56721": "110 epochs in 48730 steps", "75831": "110 epochs in 65120 steps",
                    "95001": "110 epochs in 81620 steps"}  # fmt: skip
    assert {line.length for line in by["hyrsm", "hmdb51"]} == {
        f"1000 x 8 episodes, 5-way {shot}-shot, {query} queries" for shot, query in ((1, 7), (3, 5), (5, 3))
    }


def test_names_in_lists_and_texts(repo, reference_data, tmp_path):
    """With the published lists and texts at hand each class is looked for in both."""
    fewshot, overlay = reference_data / "lists" / "fewshot", {}
    texts = reference_data / "text" / "task_adapter_pp"
    for name, file in (("hmdb51", "hmdb51"), ("kinetics100", "kinetics")):
        classes = json.loads((texts / f"classes_{file}.json").read_text())
        Corpus({key: {"label": key, "stages": said} for key, said in classes.items()}).save(tmp_path / f"{name}.json")
        overlay[name] = {"lists": str(fewshot / name), "texts": str(tmp_path / f"{name}.json")}
    overlay["ssv2_full"] = {"lists": str(fewshot / "ssv2_full")}
    found = check_plan(Plan.read(repo / "config", {"scale": "paper", "datasets": overlay}))
    names = {line.dataset: line.names for line in found.lines}
    assert names["hmdb51"] == "51 classes, 51 with texts (4 spelt apart)"
    assert names["kinetics100"] == "100 classes, 99 with texts (0 spelt apart)"
    missing, unnamed = sorted(found.faults)
    assert missing.endswith("has no text for trimming or shaving beard")
    assert "ssv2_full: the lists do not say what 12 classes are called" in unnamed


def test_lists_of_another_version(repo, reference_data, tmp_path):
    fewshot = reference_data / "lists" / "fewshot"
    for name in ("hmdb51", "kinetics100"):
        shutil.copytree(fewshot / name, tmp_path / name)
    shortened = next((tmp_path / "hmdb51").glob("*test_few_shot.txt*"))
    opener = gzip.open if shortened.suffix == ".gz" else open
    with opener(shortened, "rt") as file:
        lines = file.read().splitlines()
    with opener(shortened, "wt") as file:
        file.write("\n".join(lines[:-7]))
    overlay = {name: {"lists": str(tmp_path / name)} for name in ("hmdb51", "kinetics100")}
    plan = Plan.read(repo / "config", {"scale": "paper", "datasets": overlay}, number="1")
    whole, short = (list(list_faults(plan.data(_asset(plan, name)))) for name in ("kinetics100", "hmdb51"))
    assert whole == [] and len(short) == 1 and "hmdb51 is another version" in short[0] and "1285" in short[0]


def test_labels_of_the_published_lists_are_counted_as_their_names(repo, reference_data):
    fewshot, names = reference_data / "lists" / "fewshot", ("hmdb51", "ucf101", "kinetics100", "ssv2_small")
    overlay = {name: {"lists": str(fewshot / name)} for name in names}
    config = Config(repo / "config", {"datasets": overlay})
    assert [list(defined(config, name, "the test").offsets()) for name in names] == [[]] * len(names)


def _asset(plan, name):
    return next(asset for asset in plan.datasets.values() if asset.name == name)


def _safetensors(path, **shapes):
    head = {name: {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]} for name, shape in shapes.items()}
    content = json.dumps({"__metadata__": {}} | head).encode()
    path.write_bytes(len(content).to_bytes(8, "little") + content)


def test_weights_of_another_architecture(tmp_path):
    def said(name):
        return list(weights_faults(Asset(name=name, spec={}, options={"path": str(tmp_path)})))

    def clip(**vision):
        (tmp_path / "config.json").write_text(json.dumps({"vision_config": vision}))
        return said("clip_vit_b16")

    assert clip(patch_size=16) == []  # what is left out is as in the base model
    assert "patch_size is 32, not 16" in clip()[0] and "hidden_size is 1024" in clip(hidden_size=1024, patch_size=16)[0]
    (tmp_path / "config.json").write_text("[]")
    assert "no config.json of a CLIP" in said("clip_vit_b16")[0]
    file = tmp_path / "model.safetensors"
    base = {"pos_embed": [1, 197, 768], "blocks.11.mlp.fc1.weight": [3072, 768]}
    _safetensors(file, **base)
    assert said("vit_b16") == [] and "pos_embed should be [1, 197, 384] and is [1, 197, 768]" in said("vit_s16")[0]
    _safetensors(file, **base, **{"blocks.12.mlp.fc1.weight": [3072, 768]})
    assert "blocks.12.mlp.fc1.weight should be absent" in said("vit_b16")[0]
    file.unlink()
    assert said("vit_b16") == said("resnet50") == said("words_nano") == []  # nothing to look at, or nothing known


def test_too_little_disk(repo, tmp_path, monkeypatch):
    plan = Plan.read(repo / "config", {"scale": "paper"}, number="1")
    needed = disk_bytes(plan)
    for free, faults in ((needed + 1, 0), (needed - 1, 1)):
        monkeypatch.setattr(paper.shutil, "disk_usage", lambda _, free=free: type("Usage", (), {"free": free}))
        found = [line for line in files_faults(plan, Workspace(tmp_path / "results")) if "still to be stored" in line]
        assert len(found) == faults


@pytest.mark.parametrize(("overlay", "fault"), [
    ({"methods": {"crossglg": {"model": {"text": "lsa"}}}}, "vectors of their own words"),
    ({"methods": {"motionbert": {"schedules": {"ntu60_hrnet/20%": {"per_class": 2}}}}}, "16 classes and 20% are 10"),
    ({"datasets": {"gym99": {"validation": 0.05}}}, "labels of more videos than the rate has"),
    ({"methods": {"task_adapter": {"frames": {"sampling": "kinetics_grid"}}}}, "chosen by kinetics_grid"),
    ({"methods": {"gap": {"model": {"corpus": "gip"}}}}, "names no corpus 'gip'"),
])  # fmt: skip
def test_faults(repo, overlay, fault):
    found = check_plan(Plan.read(repo / "config", {"scale": "paper", **overlay}))
    assert found.faults and all(fault in line for line in found.faults)
