"""Unpacking archives that others made: zip, tar and rar, into a folder and nowhere else."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import tarfile
import tempfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from pipeline.errors import UserError

TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
SUFFIXES = (".zip", ".rar", *TARS)
RAR_TOOLS = {  # program: (list with types, list of names, unpack here)
    "bsdtar": (["-tvf"], ["-tf"], ["-xf"]),
    "unrar": (["lta", "-p-"], ["lb", "-p-"], ["x", "-p-", "-y", "-idq"]),
}


def is_archive(name: str) -> bool:
    """Whether `unpack` knows the kind of a file, by its name."""
    return name.lower().endswith(SUFFIXES)


def unpack(archive: Path, target: Path, nested: bool = False) -> int:
    """Unpack an archive into the folder `target` and return the number of files.

    nested: also unpack the archives inside of it, where they lie. Files appear in `target` when the whole archive has
    been unpacked. Raises UserError, and leaves `target` as it was, for a damaged archive, one that has links or
    names outside of the folder, and a rar file where no program can read it.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        _unpack_one(archive, fresh)
        while nested and (inner := [path for path in sorted(fresh.rglob("*")) if is_archive(path.name)]):
            for path in inner:
                _unpack_one(path, path.parent)
                path.unlink()
        _check_tree(archive, fresh)
        return _merge(fresh, target)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _unpack_one(archive: Path, folder: Path) -> None:
    name = archive.name.lower()
    try:
        if name.endswith(".zip"):
            _unpack_zip(archive, folder)
        elif name.endswith(TARS):
            _unpack_tar(archive, folder)
        elif name.endswith(".rar"):
            _unpack_rar(archive, folder)
        else:
            raise UserError(f"{archive} is no archive that is known ({', '.join(SUFFIXES)})")
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
        said = " ".join(str(error).split())
        raise UserError(f"{archive} cannot be unpacked ({said}); delete it and fetch it again") from None


def _unpack_zip(archive: Path, folder: Path) -> None:
    with zipfile.ZipFile(archive) as file:
        members = file.infolist()
        for member in members:
            kind = stat.S_IFMT(member.external_attr >> 16)
            _check_name(archive, member.filename, kind in (0, stat.S_IFREG, stat.S_IFDIR))
        _check_space(archive, folder, sum(member.file_size for member in members))
        file.extractall(folder)


def _unpack_tar(archive: Path, folder: Path) -> None:
    with tarfile.open(archive) as file:
        members = file.getmembers()
        for member in members:
            _check_name(archive, member.name, member.isfile() or member.isdir())
        _check_space(archive, folder, sum(member.size for member in members))
        file.extractall(folder, members, filter="data")


def _unpack_rar(archive: Path, folder: Path) -> None:
    """By libarchive's bsdtar or by unrar; the names are looked at first."""
    tool = next((tool for tool in RAR_TOOLS if shutil.which(tool)), None)
    if tool is None:
        raise UserError(
            f"{archive} is a rar file, and neither bsdtar nor unrar is installed; install one (Debian: "
            f"libarchive-tools), or unpack it into {folder.parent} by hand"
        )
    types, names, out = RAR_TOOLS[tool]
    listed = _run([tool, *types, str(archive.absolute())], archive, folder)
    if tool == "bsdtar":
        plain = all(line[:1] in "-d" for line in listed.splitlines())
    else:
        plain = "link" not in "".join(line for line in listed.lower().splitlines() if line.strip().startswith("type:"))
    for name in _run([tool, *names, str(archive.absolute())], archive, folder).splitlines():
        _check_name(archive, name, plain)
    _run([tool, *out, str(archive.absolute())], archive, folder)


def _run(command: list[str], archive: Path, folder: Path) -> str:
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL
    )
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split())[-200:]
        raise UserError(f"{archive} cannot be unpacked by {command[0]} ({said}); delete it and fetch it again")
    return done.stdout


def _check_name(archive: Path, name: str, plain: bool) -> None:
    """Raise UserError for a member that is no file or folder below the one that is unpacked into."""
    parts = PurePosixPath(name.replace("\\", "/"))
    if not plain:
        raise UserError(f"{archive} is refused: it holds a link or device ({name[:80]!r}), not only files and folders")
    if parts.is_absolute() or ".." in parts.parts or name[1:2] == ":" or "\0" in name:
        raise UserError(f"{archive} is refused: {name[:80]!r} would be written outside of the folder")


def _check_space(archive: Path, folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(f"{archive} needs {needed:,} bytes unpacked, and {free:,} are free; free some and run again")


def _check_tree(archive: Path, folder: Path) -> None:
    """What was written once more, as the programs for rar files are not ours."""
    for path in folder.rglob("*"):
        mode = path.lstat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise UserError(f"{archive} is refused: it holds a link or device ({path.name!r})")


def _merge(fresh: Path, target: Path) -> int:
    """Move all files of a folder into another; returns how many."""
    files = [path for path in fresh.rglob("*") if path.is_file()]
    if not target.exists():
        os.chmod(fresh, 0o755)
        os.replace(fresh, target)
        return len(files)
    for path in files:
        place = target / path.relative_to(fresh)
        place.parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, place)
    return len(files)
