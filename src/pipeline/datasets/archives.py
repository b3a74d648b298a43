"""Unpacking archives that others made: zip, tar and rar, into a folder and nowhere else."""

from __future__ import annotations

import lzma
import os
import shutil
import stat
import struct
import subprocess
import tarfile
import tempfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from pipeline.errors import UserError
from pipeline.files import disk_full

TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
SUFFIXES = (".zip", ".rar", *TARS)
_MAGIC = (
    (b"PK\3\4", "zip"), (b"PK\5\6", "zip"), (b"PK\7\x08", "zip"), (b"Rar!", "rar"), (b"\x1f\x8b", "tar"),
    (b"BZh", "tar"), (b"\xfd7zXZ", "tar"), (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
)  # fmt: skip
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
_OTHER_METHODS = {9: "Deflate64", 93: "Zstandard", 95: "XZ", 98: "PPMd", 99: "AES"}
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
    unpackers = {"zip": _unpack_zip, "tar": _unpack_tar, "rar": _unpack_rar}
    try:
        kind = _kind(archive)
        if kind not in unpackers:
            raise UserError(
                f"{archive} cannot be unpacked: it is {kind or 'no archive'}, not one of {', '.join(SUFFIXES)}; fetch "
                f"the archive again, or unpack it into {folder.parent} by hand"
            )
        unpackers[kind](archive, folder)
    except (
        zipfile.BadZipFile,
        tarfile.TarError,
        zlib.error,
        lzma.LZMAError,
        EOFError,
        RuntimeError,
        ValueError,
    ) as error:
        said = " ".join(str(error).split())
        raise UserError(f"{archive} cannot be unpacked ({said}); delete it and fetch it again") from None
    except OSError as error:
        if disk_full(error) or error.filename:
            raise
        raise UserError(f"{archive} cannot be unpacked ({error}); delete it and fetch it again") from None


def _kind(archive: Path) -> str:
    """What the bytes of a file say that it is: zip, tar or rar, other archives in words; else what its name says."""
    with archive.open("rb") as file:
        head = file.read(512)
    for magic, kind in _MAGIC:
        if head.startswith(magic):
            return kind
    if head[257:262] == b"ustar":
        return "tar"
    name = archive.name.lower()
    if head.lstrip()[:1] == b"<":
        return "a web page, perhaps a log-in"
    return next((kind for kind, ends in (("zip", ".zip"), ("rar", ".rar"), ("tar", TARS)) if name.endswith(ends)), "")


def _unpack_zip(archive: Path, folder: Path) -> None:
    _check_one_part(archive)
    with zipfile.ZipFile(archive) as file:
        members = file.infolist()
        for member in members:
            kind = stat.S_IFMT(member.external_attr >> 16)
            _check_name(archive, member.filename, kind in (0, stat.S_IFREG, stat.S_IFDIR))
            if member.flag_bits & 1:
                raise UserError(f"{archive} is locked by a password; unpack it into {folder.parent} by hand")
            if member.compress_type not in _METHODS:
                how = _OTHER_METHODS.get(member.compress_type, f"method {member.compress_type}")
                raise UserError(
                    f"{archive} is packed by {how}, which Python cannot read; unpack it into {folder.parent} by hand "
                    "(7z x), or pack it anew with Deflate"
                )
        _check_space(archive, folder, sum(member.file_size for member in members))
        file.extractall(folder)


def _check_one_part(archive: Path) -> None:
    """Raise UserError for one part of a zip that is in several: its directory is on another disk than the first, or
    says that it begins before the file does."""
    with archive.open("rb") as file:
        length = file.seek(0, os.SEEK_END)
        file.seek(max(0, length - 66_000))
        tail = file.read()
    at = tail.rfind(b"PK\5\6")
    if at < 0 or len(tail) < at + 22:
        raise UserError(
            f"{archive} cannot be unpacked: it ends before its directory; it is cut short, or one of several parts: "
            "join all parts (7z x), or fetch it whole"
        )
    disk, _, _, _, size, start = struct.unpack("<HHHHII", tail[at + 4 : at + 20])
    end = length - len(tail) + at
    if 0 < disk < 0xFFFF or (start != 0xFFFFFFFF and start + size > end):
        raise UserError(
            f"{archive} is the last part of several, and its beginning is missing: get the other parts "
            f"({archive.stem}.z01 or {archive.name}.001 and so on) and join them all, by `7z x` or `zip -s 0`"
        )


def _unpack_tar(archive: Path, folder: Path) -> None:
    with tarfile.open(archive) as file:
        members = file.getmembers()
        for member in members:
            _check_name(archive, member.name, member.isfile() or member.isdir())
        _check_space(archive, folder, sum(member.size for member in members))
        for member in members:
            member.mode = 0o755 if member.isdir() else 0o644
        # The filter came with Python 3.11.4; names and kinds are checked above in any case.
        options = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
        file.extractall(folder, members, **options)


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
