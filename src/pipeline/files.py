"""Writing files as a whole or not at all, and waiting for one another: what every stage needs of a disk."""

from __future__ import annotations

import csv
import errno
import fcntl
import hashlib
import io
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pipeline.errors import UserError


@contextmanager
def new_file(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path` whose file takes its place when the block ends without an error.

    So a reader sees all of it, or the file as it was before.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_bytes(path: str | Path, data: bytes) -> Path:
    """Write `data` to `path` so that a reader sees all of it or the file as it was before.

    Raises UserError where the disk is full, or does not let itself be written.
    """
    path = Path(path)
    try:
        with new_file(path) as temporary:
            temporary.write_bytes(data)
    except OSError as error:
        if said := system_error(error, path.parent):
            raise UserError(said) from error
        raise
    return path


def write_text(path: str | Path, text: str) -> Path:
    """`write_bytes` of UTF-8 text."""
    return write_bytes(path, text.encode("utf-8"))


def read_json(path: str | Path) -> dict[str, Any] | None:
    """The JSON object in a file; None where there is no such file, or it is damaged."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None


def write_csv(path: str | Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Path:
    """Write a CSV file with a header line, as a whole or not at all."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return write_text(path, buffer.getvalue())


def disk_full(error: OSError) -> bool:
    """Whether `error` says that the disk, or the user's share of it, is full."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def system_error(error: OSError, where: str | Path = "") -> str | None:
    """One line about an error that the user mends outside of this program: what, where, what to do; else None.

    where: the path that was used; the error's own one, if it has one, is more exact.
    """
    if error.errno not in _SYSTEM:
        return None
    what, remedy = _SYSTEM[error.errno]
    path = error.filename if isinstance(error.filename, str) else str(where)
    return f"{what}{f' {path}' if path else ''}; {remedy}"


_ELSEWHERE = "compute in another folder (`--directory`), or ask for the rights"
_SYSTEM = {
    errno.ENOSPC: ("no space left on the disk of", "free some and run the same command again"),
    errno.EDQUOT: ("your quota is used up on the disk of", "free some and run the same command again"),
    errno.EROFS: ("nothing can be written, for the file system is read-only:", _ELSEWHERE),
    errno.EACCES: ("no permission for", _ELSEWHERE),
    errno.EPERM: ("no permission for", _ELSEWHERE),
    errno.ENOLCK: (
        "the file system has no locks:",
        "keep results on one that has, or use --config 'cluster={mode: job}', which needs none",
    ),
}


def write_json(path: Path, content: Any) -> None:
    """Write `content` to `path` so that a reader sees the whole file or none."""
    with new_file(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n", "utf-8")


@contextmanager
def exclusive(path: Path, needed: bool = False) -> Iterator[None]:
    """No other process is in a block of the same `path` while this one is, on any node that shares the folder.

    On a file system without locks nobody waits: what two of them do at once must be harmless, if wasteful; else the
    lock is `needed`, and a UserError says that there is none.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            if needed:
                raise UserError(system_error(error, path) or f"{path}: {error.strerror}") from error
        yield


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path` that takes its place when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        yield temporary
        if path.exists():
            shutil.rmtree(path)
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def copy_file(source: Path, target: Path) -> Path:
    """Copy a file so that a reader sees all of it or what was there before."""
    with new_file(target) as temporary:
        shutil.copyfile(source, temporary)
    return target


def content_of(path: str | None) -> str:
    """Short hash of a file, or of the files in a folder; empty where there is none yet."""
    if not path or not Path(path).exists():
        return ""
    files = sorted(item for item in Path(path).rglob("*") if item.is_file()) if Path(path).is_dir() else [Path(path)]
    return hashlib.sha256(b"".join(hashlib.sha256(file.read_bytes()).digest() for file in files)).hexdigest()[:8]
