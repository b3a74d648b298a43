"""JSON schemas of the YAML files, for editors, and a page of all their keys: from the models that check them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from pipeline.config import Settings
from pipeline.datasets.kinds.registry import KINDS as data_kinds
from pipeline.experiment import Measure
from pipeline.files import write_text
from pipeline.sheets import Paper
from pipeline.tasks.kinds import KINDS

COMMENT = "# yaml-language-server: $schema="
"""How the first line of a YAML file names its schema."""
EXTENDS = {"type": "string", "description": "method whose recipe this one is laid over"}


def schemas() -> dict[str, dict[str, Any]]:
    """Schema by the name of its file in `config/schema`."""
    made = {
        "config.json": Settings.model_json_schema(),
        "dataset.json": _datasets(),
        "method.json": _methods(),
        "table.json": Paper.model_json_schema(),
    }
    return {name: {"$schema": "https://json-schema.org/draft/2020-12/schema"} | made[name] for name in made}


def _datasets() -> dict[str, Any]:
    """A definition of one of the kinds of data set."""
    whole = [kind.Definition.model_json_schema() for kind in data_kinds.values()]
    for name, schema in zip(data_kinds, whole, strict=True):
        schema["properties"]["kind"] = {"const": name}
    definitions = {name: part for schema in whole for name, part in schema.pop("$defs", {}).items()}
    return {"title": "Definition", "anyOf": whole, "$defs": definitions}


def _methods() -> dict[str, Any]:
    """A recipe of one of the kinds of task, or what differs from the one that it extends."""
    whole = [kind.recipe.model_json_schema() for kind in KINDS.values()]
    definitions = {name: part for schema in whole for name, part in schema.pop("$defs", {}).items()}
    properties: dict[str, Any] = {"extends": EXTENDS}
    for schema in whole:
        for key, part in schema["properties"].items():
            properties.setdefault(key, {"anyOf": []} if key in ("train", "task") else part)
            if key in ("train", "task"):
                properties[key]["anyOf"].append(_optional(part, definitions) if key == "train" else part)
    extending = {"type": "object", "required": ["extends"], "properties": properties, "additionalProperties": False}
    return {"title": "Recipe", "anyOf": [*whole, extending], "$defs": definitions}


def _optional(part: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """The schema of a training of which any keys may be given."""
    names = [branch["$ref"] for branch in (part, *part.get("anyOf", [])) if "$ref" in branch]
    whole = definitions[names[0].rsplit("/", 1)[1]]
    return {key: value for key, value in whole.items() if key != "required"}


def keys_page() -> str:
    """`docs/keys.md`: every key of the settings, of a recipe, of a data set, of a measurement and of a sheet."""
    parts = [
        "# All keys",
        "These are all keys of the YAML files, with type and default. You must give a key that has no default. "
        "`python -m pipeline schema` writes this page from the classes that read the files, and with it the JSON "
        "schemas in `config/schema/`, by which editors complete and check the files.",
        "## Settings",
        "`config/config.yaml`, a scale in `config/scales/`, or a config file of your own.",
        *_tables(Settings),
        "## Methods",
        "`config/methods/NAME.yaml`. With `extends: OTHER`, a recipe is laid over that of another method: mappings are "
        "merged key by key, but a `model` with a `type` of its own starts anew, and so do `models` and `options`.",
        *(part for kind in KINDS.values() for part in _tables(kind.recipe, f"`task: {kind.name}`")),
        "## Data sets",
        "`config/datasets/NAME.yaml`. Another value of a key makes another data set, with files of its own in the "
        "results, except where the key is said to be no part of the identity.",
        *(part for name, kind in data_kinds.items() for part in _tables(kind.Definition, f"`kind: {name}`")),
        "## Measurements",
        "`measure` of a method, a scale, or a row or column of a table.",
        *_tables(Measure),
        "## Tables",
        "`config/tables/PAPER.yaml`.",
        *_tables(Paper),
    ]
    return "\n\n".join(parts) + "\n"


def _tables(model: type[BaseModel], title: str = "") -> Iterator[str]:
    """A heading, what it is, and a table of keys, of a model and of the models in it."""
    schema = model.model_json_schema()
    inner = {name: part for name, part in schema.pop("$defs", {}).items() if "properties" in part}
    for name, part in [(title, schema), *((f"`{name}`", part) for name, part in inner.items())]:
        if name:
            yield f"### {name}"
        if said := part.get("description", "").split("\n")[0]:
            yield said
        needed = set(part.get("required", ()))
        rows = [_row(key, field, key in needed) for key, field in part["properties"].items()]
        yield "\n".join(["| key | type | default | meaning |", "|---|---|---|---|", *rows])


def _row(key: str, field: dict[str, Any], needed: bool) -> str:
    default = "" if needed else f"`{json.dumps(field.get('default'))}`" if "default" in field else "as below"
    said = "; ".join(filter(None, [field.get("description"), field.get("$comment")]))
    cells = (f"`{key}`", _type(field), default, said)
    return f"| {' | '.join(' '.join(cell.split()).replace('|', chr(92) + '|') for cell in cells)} |"


def _type(field: dict[str, Any]) -> str:
    """The type of a key in words."""
    if "$ref" in field:
        return f"`{field['$ref'].rsplit('/', 1)[1]}`"
    if "allOf" in field:
        return _type(field["allOf"][0])
    if "anyOf" in field:
        return " or ".join(dict.fromkeys(_type(part) for part in field["anyOf"]))
    if "const" in field or "enum" in field:
        return ", ".join(f"`{value or json.dumps(value)}`" for value in field.get("enum", [field.get("const")]))
    kind = field.get("type")
    if kind == "array":
        parts = field.get("prefixItems") or [field.get("items", {})]
        return f"list of {', '.join(dict.fromkeys(_type(part) for part in parts))}"
    if kind == "object":
        inside = field.get("additionalProperties")
        return f"mapping to {_type(inside)}" if isinstance(inside, dict) and inside else "mapping"
    bounds = [
        f"{words} {field[key]:g}"
        for key, words in (("minimum", "from"), ("exclusiveMinimum", "above"), ("maximum", "to"))
        if key in field
    ]
    name = {"integer": "whole number", "number": "number", "boolean": "true or false", "string": "text"}.get(kind, "")
    return " ".join(filter(None, [name or {"null": "null"}.get(kind, "anything"), *bounds]))


def write_reference(config: Path, page: Path) -> list[Path]:
    """Write the schemas to `config`/schema and the keys to `page`; returns the files."""
    made = [
        write_text(config / "schema" / name, json.dumps(schema, indent=1, sort_keys=True) + "\n")
        for name, schema in schemas().items()
    ]
    return [*made, write_text(page, keys_page())]


__all__ = ["COMMENT", "keys_page", "schemas", "write_reference"]
