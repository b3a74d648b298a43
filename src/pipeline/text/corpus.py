"""The text of a data set: what a language model wrote about each class, as one JSON file.

    {"classes": {name: {"label": str, "atomic": {"1": [s], "2": [s, s], ...}, "stages": [s, s, s],
    "global": str, "joints": {joint: s}, "parts": {part: [s, ...]}}},
     "provenance": {...}}

Every field of a class but its label may be missing: a method asks for what it needs.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.errors import UserError, unknown
from pipeline.files import write_text
from pipeline.names import composed, match_names
from pipeline.textfiles import load_json, load_yaml, read_text

FIELDS = ("label", "atomic", "stages", "global", "joints", "parts")
STAGES = 3  # beginning, process, end (Task-Adapter++)
BODY_PARTS = ("head", "hand", "arm", "hip", "leg", "foot")  # of GAP and USLLF, in their order


@dataclass(frozen=True)
class Corpus:
    """Texts by class name; `path` is where they came from, for messages."""

    classes: dict[str, dict[str, Any]]
    provenance: dict[str, Any] = field(default_factory=dict)
    path: Path = Path("corpus.json")

    def __post_init__(self) -> None:
        for name, entry in self.classes.items():
            _check_entry(name, entry, self.path)

    @property
    def names(self) -> list[str]:
        """Sorted class names."""
        return sorted(self.classes)

    @property
    def sha256(self) -> str:
        """Hash of the texts (not of the provenance, nor of how the file is laid out)."""
        text = json.dumps(self.classes, sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode("utf-8")).hexdigest()

    def label(self, name: str) -> str:
        """The class's name as words. Like every look-up, raises UserError when class or text is missing."""
        return self._field(name, "label", "label")

    def atomic(self, name: str, count: int) -> list[str]:
        """The `count` atomic actions of a class, in time order."""
        texts = self._field(name, "atomic", f"{count} atomic action(s)").get(str(count))
        if texts is None:
            raise self._missing(name, f"{count} atomic action(s)")
        return list(texts)

    def stages(self, name: str) -> list[str]:
        """Beginning, process and end of the action."""
        return list(self._field(name, "stages", "stages"))

    def global_text(self, name: str) -> str:
        """One description of the whole action."""
        return self._field(name, "global", "global text")

    def joints(self, name: str) -> dict[str, str]:
        """What each joint does, by joint."""
        return dict(self._field(name, "joints", "texts of joints"))

    def parts(self, name: str) -> dict[str, list[str]]:
        """Alternative sentences about each part of the body, by part (GAP's own texts)."""
        return dict(self._field(name, "parts", "texts of parts"))

    def named(self, names: Iterable[str]) -> tuple[Corpus, dict[str, str | None]]:
        """The corpus with its classes called as in `names`, and whose text each of `names` has (None: no text).

        Spellings differ in case, brackets and other marks (`names`); other classes stay as they are. Raises
        UserError where two classes could be meant.
        """
        found = match_names(names, self.classes, str(self.path))
        meant = {name: self.classes[theirs] for name, theirs in found.items() if theirs is not None}
        others = {name: entry for name, entry in self.classes.items() if name not in found.values()}
        return Corpus(others | meant, self.provenance, self.path), found

    def require(self, names: Iterable[str]) -> None:
        """Raise UserError unless every class of `names` has an entry."""
        absent = sorted(set(names) - set(self.classes))
        if absent:
            shown = ", ".join(absent[:5]) + (f" and {len(absent) - 5} more" if len(absent) > 5 else "")
            raise UserError(f"{self.path} has no text for {len(absent)} class(es): {shown}; write them")

    def merge(self, other: Corpus) -> Corpus:
        """Both corpora as one; raises UserError where they say different things of one class."""
        classes = {name: dict(entry) for name, entry in self.classes.items()}
        for name, entry in other.classes.items():
            classes[name] = self._merge_entry(name, classes.get(name, {}), entry, other.path)
        return Corpus(classes, {**self.provenance, **other.provenance}, self.path)

    def _merge_entry(self, name: str, mine: dict[str, Any], theirs: dict[str, Any], where: Path) -> dict[str, Any]:
        made = dict(mine)
        for key, value in theirs.items():
            old = made.get(key)
            if isinstance(old, Mapping) and isinstance(value, Mapping):
                clash = [part for part in value if part in old and old[part] != value[part]]
                value = {**old, **value}
            else:
                clash = [] if old is None or old == value else [key]
            if clash:
                raise UserError(f"{self.path} and {where} differ in {key} of the class {name!r}; keep one of them")
            made[key] = value
        return made

    def save(self, path: str | Path) -> Path:
        """Write the corpus as JSON, as a whole or not at all."""
        content = {"classes": self.classes, "provenance": self.provenance}
        return write_text(path, json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n")

    def _field(self, name: str, key: str, what: str) -> Any:
        if not self.classes:
            raise UserError(
                f"{self.path} has no texts, and this method reads them; write the descriptions of the classes in the "
                "form that docs/add-a-dataset.md shows and name the file in `texts:`, or set `describe:`"
            )
        if name not in self.classes:
            raise unknown("class", name, self.classes, str(self.path))
        if key not in self.classes[name]:
            raise self._missing(name, what)
        return self.classes[name][key]

    def _missing(self, name: str, what: str) -> UserError:
        return UserError(f"{self.path}: the class {name!r} has no {what}; write it, or choose another text")


def load_corpus(path: str | Path) -> Corpus:
    """Read a corpus; raises UserError when the file is missing or not of the form above."""
    path = Path(path)
    content = _parse(path, load_json)
    if not isinstance(content, dict) or not isinstance(content.get("classes"), dict):
        raise UserError(f'{path} is not a corpus: it needs {{"classes": {{name: {{...}}}}}}; write it again')
    classes: dict[str, Any] = {}
    for name, entry in content["classes"].items():  # letters may be escaped, and so not composed yet
        if classes.setdefault(composed(name), entry) is not entry:
            raise UserError(f"{path} has the class {name!r} twice, in composed and decomposed letters; keep one")
    return Corpus(classes, content.get("provenance", {}), path)


def import_task_adapter(path: str | Path) -> Corpus:
    """Corpus from a YAML file of Task-Adapter++: `class: {label, sub_act_en_li: [begin, process, end]}`.

    Raises UserError when the file is missing or of another form.
    """
    path = Path(path)

    def twice(name: str) -> None:
        print(f"{path}: {name!r} is there twice; the last entry counts", file=sys.stderr)

    content = _parse(path, lambda text: load_yaml(text, twice))
    if not isinstance(content, dict) or not all(isinstance(entry, dict) for entry in content.values()):
        raise UserError(f"{path} is not a Task-Adapter++ corpus; it needs class: {{label, sub_act_en_li}}")
    classes = {}
    for name, entry in content.items():
        if not {"label", "sub_act_en_li"} <= entry.keys():
            raise UserError(f"{path}: the class {name!r} needs label and sub_act_en_li; add them")
        classes[str(name)] = {"label": str(entry["label"]), "stages": entry["sub_act_en_li"]}
    sha = hashlib.sha256(path.read_bytes()).hexdigest()
    return Corpus(classes, {"source": "Task-Adapter++", "file": path.name, "sha256": sha}, path)


def import_corpus(paths: Sequence[str | Path], names: Sequence[str] = ()) -> Corpus:
    """Published texts, one file or several that complete each other, as one corpus.

    A YAML file is one of Task-Adapter++. Any other holds a class and its text a line, apart by the `;`, `:` or `,` that
    comes first in most lines (GAP, USLLF, MotionDescriptions): six parts of the body, from the head to the foot, become
    texts of joints, everything else is the global text. A line of a file of parts that has not six of them gives its
    class none (`without_parts` in the provenance names it).

    Args:
        names: what the classes are called in the data set, in the order of each file of lines; by default as there.

    Raises:
        UserError: a file is missing, of another form, or has another number of classes than `names`.
    """
    for folder in filter(Path.is_dir, map(Path, paths)):
        inside = ",".join(str(path) for path in sorted(folder.iterdir()) if path.is_file()) or "and it is empty"
        raise UserError(f"{folder} is a folder; name its files, apart by commas: {inside}")
    made = Corpus({}, {}, Path(paths[0]))
    for path in map(Path, paths):
        read = import_task_adapter(path) if path.suffix in (".yml", ".yaml") else _import_lines(path, names)
        made = made.merge(read)
    return made


def _import_lines(path: Path, names: Sequence[str]) -> Corpus:
    lines = [line.strip() for line in _parse(path, str.splitlines) if line.strip()]
    first = [mark.group() for line in lines if (mark := re.search("[;:,]", line))]
    if len(first) < len(lines) or not lines:
        raise UserError(f"{path} is not a corpus of lines: each needs a class, one of ; : , and its text")
    separator = max(";:,", key=first.count)
    if len(names or lines) != len(lines):
        raise UserError(
            f"{path} has {len(lines)} classes, and {len(names)} are named; the lines must be in their order"
        )
    said = [[part.strip().strip('"').strip() for part in line.split(separator, 1)] for line in lines]
    texts: dict[str, str] = {}
    for i, (given, text) in enumerate(said):
        name = names[i] if names else given
        if not text or name in texts:
            raise UserError(f"{path}, line {i + 1}: the class {name!r} {'comes twice' if text else 'has no text'}")
        texts[name] = text
    parts = {name: [part.strip(" .") for part in text.split(";")] for name, text in texts.items()}
    whole = [name for name, found in parts.items() if len(found) == len(BODY_PARTS)]
    classes: dict[str, dict[str, Any]] = {name: {"label": name} for name in texts}
    source: dict[str, Any] = {"sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    if len(whole) > len(lines) / 2:
        for name in whole:
            classes[name]["joints"] = dict(zip(BODY_PARTS, parts[name], strict=True))
        source["without_parts"] = [name for name in texts if name not in whole]
    else:
        for name, text in texts.items():
            classes[name]["global"] = text
    return Corpus(classes, {f"imported from {path.name}": source}, path)


def _parse(path: Path, parse: Any) -> Any:
    try:
        return parse(read_text(path, "the corpus", "write or import it first"))
    except ValueError as error:
        raise UserError(f"{path} cannot be read ({' '.join(str(error).split())}); write it again") from None


def _check_entry(name: str, entry: Any, path: Path) -> None:
    """Raise UserError when the texts of a class have another form than the module's docstring says."""
    where = f"{path}: the class {name!r}"
    if not isinstance(entry, Mapping):
        raise UserError(f"{where} must be an object with {', '.join(FIELDS)}; correct it")
    for key in entry:
        if key not in FIELDS:
            raise unknown("field", key, FIELDS, f"{path}, class {name!r}")
    for key in ("label", "global"):
        if key in entry and not _is_text(entry[key]):
            raise UserError(f"{where} has an empty {key}; correct it")
    if "stages" in entry and not _are_texts(entry["stages"], STAGES):
        raise UserError(f"{where} needs {STAGES} non-empty stages; correct it")
    for key in ("atomic", "joints"):
        if not isinstance(entry.get(key, {}), Mapping):
            raise UserError(f"{where} has {key} that are not an object; correct it")
    for count, texts in entry.get("atomic", {}).items():
        if not str(count).isdecimal() or not _are_texts(texts, int(count)):
            raise UserError(f"{where} needs a list of {count} non-empty texts as its atomic {count!r}; correct it")
    for joint, text in entry.get("joints", {}).items():
        if not _is_text(text):
            raise UserError(f"{where} has no text for the joint {joint!r}; correct it")
    parts = entry.get("parts", {})
    if not isinstance(parts, Mapping) or not all(map(_is_choice, parts.values())):
        raise UserError(f"{where} needs a list of non-empty texts for each of its parts; correct it")


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _are_texts(value: Any, count: int) -> bool:
    return isinstance(value, list) and len(value) == count and all(map(_is_text, value))


def _is_choice(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_text, value))
