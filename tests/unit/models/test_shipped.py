"""Backbones of the repository: packed, fetched, checked, and the ones that are there."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.errors import UserError
from pipeline.models.backbones.shipped import SUMS, pack, round_to_half, unpack
from pipeline.plan import PRETRAINED, Plan


def _backbone(folder):
    network = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    round_to_half(network)
    folder.mkdir()
    save_file(network.state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    return network.state_dict()


def test_a_fetched_backbone_is_the_one_that_was_packed(tmp_path):
    state = _backbone(tmp_path / "made")
    packed = pack(tmp_path / "made", tmp_path / "packed" / "key")
    assert {value.dtype for value in load_file(packed / "model.safetensors").values()} == {torch.float16, torch.int64}
    fetched = load_file(unpack(packed, tmp_path / "fetched") / "model.safetensors")
    assert sorted(fetched) == sorted(state)
    assert all(torch.equal(fetched[name], state[name]) and fetched[name].dtype == state[name].dtype for name in state)
    assert sorted(path.name for path in (tmp_path / "fetched").iterdir()) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_damaged_or_missing_file_is_one_line(tmp_path, name):
    _backbone(tmp_path / "made")
    packed = pack(tmp_path / "made", tmp_path / "packed")
    (packed / name).write_bytes((packed / name).read_bytes() + b"x")
    for _ in range(2):
        with pytest.raises(UserError, match=f"{name} is not the file that came with the repository; restore it"):
            unpack(packed, tmp_path / "fetched")
        assert not (tmp_path / "fetched").exists()
        (packed / name).unlink(missing_ok=True)


def test_the_repository_has_the_backbones_of_the_demo(repo):
    """Each key is one that the demo asks for, and its files are whole; one with other settings is pretrained."""
    plan = Plan.read(repo / "config")
    pretrained = {key for key, asset in plan.backbones.items() if "sources" in asset.spec}
    folders = {path.name: path for path in (repo / "config" / PRETRAINED).iterdir()}
    assert pretrained == set(folders)
    assert all(plan.backbones[key].options["packed"] == str(folders[key]) for key in pretrained)
    assert sum(path.stat().st_size for folder in folders.values() for path in folder.iterdir()) < 8e6
    for key, folder in folders.items():
        made = json.loads((folder / "pretrain.json").read_text())
        assert made["settings"]["steps"] == plan.backbones[key].spec["steps"]
    longer = Plan.read(repo / "config", {"backbones": {"clip_nano": {"steps": 701}}})
    assert not any("packed" in asset.options for key, asset in longer.backbones.items() if key.startswith("clip_nano"))


@pytest.mark.parametrize("name", ["clip_nano", "resnet_nano", "vit_nano"])
def test_fetched_files_are_whole(repo, tmp_path, name):
    plan = Plan.read(repo / "config")
    for key, asset in plan.backbones.items():
        if asset.name == name:
            assert (unpack(repo / "config" / PRETRAINED / key, tmp_path / key) / "model.safetensors").is_file()
            assert SUMS not in {path.name for path in (tmp_path / key).iterdir()}
