"""The one reader of text files that others wrote: lists, tables, JSON and YAML from any system and editor."""

from __future__ import annotations

import csv
import gzip
import io
import json
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import yaml

from pipeline.errors import UserError
from pipeline.names import near_path

_MARKS = ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))


def decode_text(data: bytes) -> str:
    """Text of UTF-8 with or without a byte order mark, or of UTF-16 with one; lines end by \\n, letters are composed.

    Raises ValueError that names the first byte and line that is neither.
    """
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ValueError(f"line {line} is not UTF-8: byte {data[error.start]:#04x}; save it as UTF-8") from None
    return unicodedata.normalize("NFC", text.replace("\r\n", "\n").replace("\r", "\n"))


def read_text(path: str | Path, what: str = "the file", absent: str = "correct its path") -> str:
    """Text of a file, also gzipped, as `decode_text`.

    what, absent: for the message, what the file is and what to do where it is missing. Raises UserError.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
        return decode_text(gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data)
    except FileNotFoundError:
        raise UserError(f"there is no {what.removeprefix('the ')} {path}; {absent}{near_path(path)}") from None
    except (OSError, EOFError, ValueError) as error:
        said = getattr(error, "strerror", None) or error
        raise UserError(f"{what} {path} cannot be read ({said})") from None


def read_lines(path: str | Path, what: str = "the list", absent: str = "correct its path or fetch it") -> list[str]:
    """Lines of a text file, as `read_text`."""
    return read_text(path, what, absent).splitlines()


def slashed(path: str) -> str:
    """A path of a list with / between its folders, also where Windows wrote it."""
    return path if "/" in path else path.replace("\\", "/")


def read_table(path: str | Path, what: str, columns: Iterable[str], absent: str = "correct its path") -> list[dict]:
    """Rows of a table with a header line as {column: cell}, stripped; cells are apart by commas, semicolons or tabs.

    Raises UserError when the file cannot be read, one of `columns` is missing, or a row has more cells than the header.
    """
    lines, columns = read_lines(path, what, absent), list(columns)
    header = next((line for line in lines if line.strip()), "")
    marks = [mark for mark in ",;\t" if set(columns) <= {name.strip() for name in header.split(mark)}]
    if not marks:
        absent = ", ".join(sorted(set(columns) - {name.strip() for name in header.split(",")}))
        raise UserError(f"{what} {path} lacks the column {absent}; it needs a header line with {','.join(columns)}")
    try:
        reader = csv.DictReader(io.StringIO("\n".join(lines)), delimiter=marks[0])
        reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
        rows = list(reader)
    except csv.Error as error:
        raise UserError(f"{what} {path} is not a table ({error}); write it again") from None
    for number, row in enumerate(rows, start=2):
        if any(row.pop(None, ())):
            raise UserError(f"{what} {path}, row {number} has more cells than the header; quote cells with commas")
    return [{key: (cell or "").strip() for key, cell in row.items()} for row in rows]


def load_json(text: str) -> Any:
    """Content of JSON text; raises ValueError, also where a key is there twice."""
    return json.loads(text, object_pairs_hook=_once)


def load_yaml(text: str, twice: Callable[[str], None] | None = None) -> Any:
    """Content of YAML (or JSON) text.

    Raises ValueError, also where a key is there twice; with `twice` that is called with each such key, and the last
    entry counts.
    """
    loader = _Loader(text)
    loader.twice = twice
    try:
        return loader.get_single_data()
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None
    finally:
        loader.dispose()


def _once(pairs: Iterable[tuple[Any, Any]]) -> dict[Any, Any]:
    made: dict[Any, Any] = {}
    for key, value in pairs:
        if key in made:
            raise ValueError(f"{key!r} is there twice; keep one")
        made[key] = value
    return made


class _Loader(yaml.SafeLoader):
    """A safe loader that takes no key twice without a word."""

    twice: Callable[[str], None] | None = None

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        if isinstance(node, yaml.MappingNode):
            keys = [self.construct_object(key, deep=True) for key, _ in node.value if not key.tag.endswith(":merge")]
            for key, times in Counter(map(str, keys)).items():
                if times > 1 and self.twice is None:
                    raise ValueError(f"{key!r} is there twice; keep one")
                if times > 1:
                    self.twice(key)
        return super().construct_mapping(node, deep)


__all__ = ["decode_text", "load_json", "load_yaml", "read_lines", "read_table", "read_text", "slashed"]
