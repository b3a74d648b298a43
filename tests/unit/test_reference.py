"""The schemas and the page of keys are those of the models that read the YAML files."""

from __future__ import annotations

import json

import jsonschema
import pytest
import yaml

from pipeline.reference import COMMENT, keys_page, schemas

FOLDERS = {"datasets": "dataset.json", "methods": "method.json", "scales": "config.json", "tables": "table.json"}


def _files(repo):
    files = [path for folder in FOLDERS for path in sorted((repo / "config" / folder).glob("*.yaml"))]
    return [repo / "config" / "config.yaml", repo / "config" / "rehearsal.yaml", *files]


def test_the_files_are_up_to_date(repo):
    made = {name: json.dumps(schema, indent=1, sort_keys=True) + "\n" for name, schema in schemas().items()}
    found = {path.name: path.read_text() for path in (repo / "config" / "schema").glob("*.json")}
    assert found == made, "run `python -m pipeline schema`"
    assert (repo / "docs" / "keys.md").read_text() == keys_page(), "run `python -m pipeline schema`"


def test_every_key_has_a_meaning():
    assert not [line for line in keys_page().splitlines() if line.endswith("|  |")]


def test_every_file_names_its_schema_and_keeps_to_it(repo):
    for path in _files(repo):
        first = path.read_text().split("\n", 1)[0]
        assert first.startswith(COMMENT), path
        schema = (path.parent / first.removeprefix(COMMENT)).resolve()
        assert schema.name == FOLDERS.get(path.parent.name, "config.json")
        jsonschema.validate(yaml.safe_load(path.read_text()), json.loads(schema.read_text()))


@pytest.mark.parametrize(("change", "message"), [
    ({"trian": {}}, "trian"), ({"train": {"stpes": 3}}, "stpes"), ({"train": {"amp": "maybe"}}, "maybe"),
    ({"backbone": 3}, "3"),
])  # fmt: skip
def test_an_editor_sees_mistakes(repo, change, message):
    extending = {"extends": "clip_fsar", "model": {"type": "LGA"}}
    schema = schemas()["method.json"]
    jsonschema.validate(extending, schema)
    with pytest.raises(jsonschema.ValidationError, match=message):
        jsonschema.validate(extending | change, schema)
