"""Fetching what publishers give away: the key `download` of config/datasets/NAME.yaml.

A file is written under a temporary name beside its place, checked (length, SHA-256), and renamed. An attempt that
breaks off is continued where it stopped, also by a later call. `download.json` in the data set's folder records what
was fetched. With a mirror, MIRROR/HOST/PATH stands for https://HOST/PATH, and no other address is asked.
"""

from __future__ import annotations

import email.utils
import gzip
import hashlib
import http.client
import json
import os
import random
import shutil
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO
from urllib.parse import unquote, urlsplit

from pydantic import Field

from pipeline.config import Config, parse
from pipeline.datasets.archives import is_archive, unpack
from pipeline.errors import UserError
from pipeline.experiment import Frozen
from pipeline.files import disk_full, write_text

CHUNK = 1 << 18
TIMEOUT = 60.0  # seconds without a byte
TRIES = 6  # attempts in a row that bring nothing
LONGEST_WAIT = 120.0
AGAIN = (408, 425, 429, 500, 502, 503, 504)
RECORD = "download.json"
Say = Callable[[str], None]


def tell(line: str) -> None:
    """Print a line now, also where the output is a file."""
    print(line, flush=True)


class FileSpec(Frozen):
    """One file of a publisher."""

    url: str = Field(description="http(s) address")
    to: str = Field("", description="its place below the folder; empty: archives/NAME or NAME")
    sha256: str = Field("", pattern="^([0-9a-f]{64})?$")
    bytes: int = Field(0, ge=0, description="length; 0: not known")
    extract: str = Field("", description="folder, below the data set's, that the archive is unpacked into")
    nested: bool = Field(False, description="archives inside of the archive are unpacked too")

    @property
    def place(self) -> str:
        """Where the file goes, below the data set's folder."""
        name = PurePosixPath(unquote(urlsplit(self.url).path)).name
        return self.to or (f"archives/{name}" if self.extract else name)


class DownloadSpec(Frozen):
    """The key `download` of a data set."""

    folder: str = Field("", description="where everything goes; empty: data/NAME")
    files: list[FileSpec] = Field(default=[])
    manual: str = Field("", description="what must be asked for, accepted or done by hand, and where it goes")
    size: str = Field("", description="for people")


@dataclass
class Fetcher:
    """How files are fetched. `workers` files at a time; `say` gets lines for people."""

    mirror: str = ""
    workers: int = 4
    tries: int = TRIES
    timeout: float = TIMEOUT
    wait: float = 1.0  # seconds before the second attempt; then twice as long each time
    say: Say = tell
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def fetch_all(self, spec: DownloadSpec, folder: str | Path, root: str | Path = "") -> Path:
        """Fetch and unpack the files of a data set; returns the record.

        What was fetched before is not fetched again, and no archive whose content somebody has put into `root`, the
        folder of the clips. Every file is tried before the first error is raised (UserError:
        an address that does not answer, a wrong length or hash, a hostile archive).
        """
        folder = Path(folder)
        errors: list[UserError] = []
        by_hand = self._by_hand(spec, folder, root)

        def one(file: FileSpec) -> None:
            try:
                self._fetch(file, folder)
            except UserError as error:
                errors.append(error)
                self.say(f"{file.place}: failed")

        with ThreadPoolExecutor(self.workers, thread_name_prefix="download") as pool:
            list(pool.map(one, [file for file in spec.files if file not in by_hand]))
        if errors:
            more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
            raise UserError(f"{errors[0]}{more}")
        return folder / RECORD

    def _by_hand(self, spec: DownloadSpec, folder: Path, root: str | Path) -> list[FileSpec]:
        """Archives that need not be fetched: their clips are there, and no archive was unpacked by us."""
        place = Path(root).expanduser()
        ours = any("extract" in made for made in read_record(folder).values())
        if not root or ours or place.resolve() in (folder.resolve(), *folder.resolve().parents):
            return []
        if not (place.is_dir() and any(place.iterdir())):
            return []
        found = [file for file in spec.files if file.extract and not _below(folder, file.place).is_file()]
        for file in found:
            self.say(f"{file.place}: not fetched, for {place} holds files; empty that folder to fetch and unpack it")
        return found

    def _fetch(self, file: FileSpec, folder: Path) -> None:
        target = _below(folder, file.place)
        with self._lock:
            known = read_record(folder).get(file.url, {})
        if _still_there(known, file, folder, target):
            self.say(f"{file.place}: there already")
            return
        if target.is_file():  # put here by hand, or fetched before the record was written
            sha256 = _check(target, file, "it is not the published file: move it away, or correct the configuration")
        else:
            part = Part(target)
            self._get(file, part)
            sha256 = part.finish(file)
        made = {"to": file.place, "bytes": target.stat().st_size, "sha256": sha256}
        if file.extract:
            self.say(f"{file.place}: unpacking")
            made |= {"extract": file.extract, "files": unpack(target, _below(folder, file.extract), file.nested)}
        with self._lock:
            content = read_record(folder) | {file.url: made}
            write_text(folder / RECORD, json.dumps(content, indent=1, sort_keys=True) + "\n")
        self.say(f"{file.place}: {_size(made['bytes'])}, sha256 {sha256}{'' if file.sha256 else ' (none published)'}")

    # ------------------------------------------------------------------------------------------- one file
    def _get(self, file: FileSpec, part: Part) -> None:
        """All bytes of a file into its part; raises UserError when that fails."""
        address = mirrored(file.url, self.mirror)
        if not address.startswith(("http://", "https://")):
            _copy(Path(address), file, part)
            return
        idle, best = 0, part.size
        while True:
            try:
                self._attempt(address, file, part)
                return
            except _Again as again:
                idle = 0 if part.size > best else idle + 1
                best = max(best, part.size)  # a server that makes us start again brings nothing new
                if idle >= self.tries:
                    raise UserError(
                        f"{address} cannot be fetched ({again}); run again to continue, or put it at {part.target}"
                    ) from None
                pause = again.wait if again.wait is not None else self.wait * 2 ** min(idle, 6) * random.uniform(0.5, 1)
                self.say(f"{file.place}: {again}; attempt {idle + 1} in {pause:.1f} s")
                time.sleep(min(pause, LONGEST_WAIT))

    def _attempt(self, address: str, file: FileSpec, part: Part) -> None:
        """One request; continues a part. Raises _Again for what may go better next time."""
        have = part.resumable(bool(file.sha256))
        headers = {"User-Agent": "few-shot-action-tables", "Accept-Encoding": "identity"}
        if have:
            headers["Range"] = f"bytes={have}-"
            if part.validator:
                headers["If-Range"] = part.validator
        try:
            with urllib.request.urlopen(
                urllib.request.Request(address, headers=headers), timeout=self.timeout
            ) as reply:
                self._receive(reply, file, part, have)
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == 416:  # the part is as long as the file, or longer
                part.drop()
                raise _Again("the server has no more bytes than were there; from the start", 0.0) from None
            if error.code in AGAIN:
                raise _Again(f"the server answers {error.code}", _retry_after(error.headers)) from None
            raise UserError(
                f"{address} answers {error.code}; it may have moved: put the file at {part.target}, or set mirror"
            ) from None
        except (http.client.HTTPException, urllib.error.URLError, ConnectionError, TimeoutError) as error:
            raise _Again(
                f"connection lost: {getattr(error, 'reason', None) or error or type(error).__name__}"
            ) from None

    def _receive(self, reply: Any, file: FileSpec, part: Part, have: int) -> None:
        length = reply.headers.get("Content-Length")
        if reply.status == 206:
            first, total = _content_range(reply.headers.get("Content-Range", ""))
            if first != have:
                part.drop()
                raise _Again("the server sends another part than was asked for; from the start", 0.0)
        else:
            have, total = 0, int(length) if length else None
        if file.bytes and total not in (None, file.bytes):
            part.drop()
            raise UserError(f"{file.url} has {total:,} bytes in place of {file.bytes:,}: refused, another version?")
        part.validator = _validator(reply.headers)
        report = _Progress(file.place, total, self.say)
        with part.open(have) as out:
            while chunk := reply.read(CHUNK):
                out.write(chunk)
                report(out.tell())
        if total is not None and part.size < total:
            raise _Again(f"connection lost after {_size(part.size)} of {_size(total)}")
        if total is not None and part.size > total:
            part.drop()
            raise _Again("the server sent more than it said; from the start")


class _Again(Exception):
    """A failure that may not happen again; `wait` seconds if the server says so."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


class Part:
    """A file on its way: `.NAME.part` beside its place, and what tells whether the server still has the same file."""

    def __init__(self, target: Path) -> None:
        self.target = target
        self.path = target.with_name(f".{target.name}.part")
        self._mark = target.with_name(f".{target.name}.part.tag")
        target.parent.mkdir(parents=True, exist_ok=True)

    @property
    def size(self) -> int:
        """Bytes that are there."""
        return self.path.stat().st_size if self.path.is_file() else 0

    @property
    def validator(self) -> str:
        """Strong ETag or date of the file that the part belongs to."""
        return self._mark.read_text() if self._mark.is_file() else ""

    @validator.setter
    def validator(self, value: str) -> None:
        self._mark.write_text(value)

    def resumable(self, checked: bool) -> int:
        """Bytes to go on from: none where nothing would tell that the file has changed since."""
        if not (self.validator or checked):
            self.drop()
        return self.size

    def open(self, have: int) -> BinaryIO:
        """The part, to write on from `have`."""
        file = self.path.open("r+b" if have else "wb")
        file.seek(have)
        file.truncate()
        return file

    def drop(self) -> None:
        """Forget what was fetched."""
        self.path.unlink(missing_ok=True)
        self._mark.unlink(missing_ok=True)

    def finish(self, file: FileSpec) -> str:
        """Check the part and give it its name; returns its SHA-256. A wrong one is deleted (UserError)."""
        try:
            sha256 = _check(self.path, file, "refused and deleted; is it another version, or damaged on its way?")
        except UserError:
            self.drop()
            raise
        os.replace(self.path, self.target)
        self._mark.unlink(missing_ok=True)
        return sha256


# ------------------------------------------------------------------------------------------------- data sets
def download_spec(definition: Mapping[str, Any], name: str, where: str) -> DownloadSpec:
    """The key `download` of a data set, checked; `folder` is filled in."""
    given = definition.get("download") or {}
    if not given:
        raise UserError(f"the data set {name} has nothing to download ({where} lacks the key download)")
    spec = parse(DownloadSpec, given, f"{where}, download")
    for file in spec.files:
        if not file.url.startswith(("http://", "https://")):
            raise UserError(f"{where}: {file.url!r} is not an http(s) address; correct it")
        if file.extract and not is_archive(file.place):
            raise UserError(f"{where}: {file.place} is not an archive, and extract: {file.extract} is set; remove it")
    return spec.model_copy(update={"folder": spec.folder or f"data/{name}"})


def download_dataset(config: Config, name: str, fetcher: Fetcher) -> Path:
    """Fetch what can be fetched of a data set, and say what must be done by hand; returns the record.

    Raises UserError when a file cannot be had, and, after the others are there, for a set that its publisher gives to
    registered users only and that is not in its place (`root`).
    """
    where = config.place("datasets", name)
    definition = config.entry("datasets", name, "the command line")
    spec = download_spec(definition, name, where)
    if definition.get("licence"):
        fetcher.say(f"{name}: licence {definition['licence']}")
    root = definition.get("root")
    record = fetcher.fetch_all(spec, spec.folder, root or "")
    if spec.manual and not (root and Path(root).expanduser().exists()):
        raise UserError(f"{name}, by hand: {' '.join(spec.manual.split())} Then {root} is where it is looked for.")
    if not record.is_file():
        write_text(record, "{}\n")
    return record


def read_record(folder: str | Path) -> dict[str, Any]:
    """{address: {to, bytes, sha256, ...}} of what was fetched into a folder."""
    try:
        content = json.loads((Path(folder) / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def mirrored(url: str, mirror: str) -> str:
    """Where a file is fetched from: its address, or its place in a mirror (a folder or a server)."""
    if not mirror:
        return url
    parts = urlsplit(url)
    place = f"{parts.netloc}{parts.path}" + (f"?{parts.query}" if parts.query else "")
    if mirror.startswith(("http://", "https://")):
        return f"{mirror.rstrip('/')}/{place}"
    return str(_below(Path(mirror).expanduser(), unquote(place)))


def _copy(source: Path, file: FileSpec, part: Part) -> None:
    """A file of a mirror that is a folder; there it may be gzipped."""
    zipped = source.with_name(source.name + ".gz")
    found, opener = (source, open) if source.is_file() else (zipped, gzip.open)
    if not found.is_file():
        raise UserError(f"the mirror has no {source}; put {file.url} there")
    part.drop()
    try:
        with opener(found, "rb") as reader, part.open(0) as out:
            shutil.copyfileobj(reader, out, CHUNK)
    except OSError as error:
        part.drop()
        if disk_full(error):
            raise UserError(f"no space left on the disk of {part.target.parent}; free some and run again") from None
        raise UserError(f"{found} cannot be read ({error}); correct the mirror") from None


def _check(path: Path, file: FileSpec, otherwise: str) -> str:
    """SHA-256 of a file; raises UserError when it or the length is not the published one."""
    size = path.stat().st_size
    if file.bytes and size != file.bytes:
        raise UserError(f"{file.place} from {file.url} has {size:,} bytes in place of {file.bytes:,}: {otherwise}")
    with path.open("rb") as reader:
        head = reader.read(64).lstrip().lower()
        reader.seek(0)
        sha256 = hashlib.file_digest(reader, "sha256").hexdigest()
    if file.sha256 and sha256 != file.sha256:
        raise UserError(f"{file.place} from {file.url} has sha256 {sha256} in place of {file.sha256}: {otherwise}")
    if head.startswith((b"<!doctype html", b"<html")) and not file.place.endswith((".html", ".htm")):
        raise UserError(f"{file.place} from {file.url} is a web page, perhaps a log-in: {otherwise}")
    return sha256


def _still_there(known: Mapping[str, Any], file: FileSpec, folder: Path, target: Path) -> bool:
    """Whether a file was fetched as it is asked for; an archive that was unpacked may have been deleted since."""
    if known.get("to") != file.place or (file.sha256 and known.get("sha256") != file.sha256):
        return False
    if file.extract:
        return known.get("extract") == file.extract and _below(folder, file.extract).is_dir()
    return target.is_file() and target.stat().st_size == known.get("bytes")


def _below(folder: Path, place: str) -> Path:
    """folder/place, which must not lead out of the folder."""
    parts = PurePosixPath(place)
    if parts.is_absolute() or ".." in parts.parts:
        raise UserError(f"{place!r} leads out of {folder}; correct the configuration")
    return folder / place


# ------------------------------------------------------------------------------------------------------ HTTP
def _content_range(text: str) -> tuple[int, int | None]:
    """First byte and length of the whole of "bytes 5-9/10"."""
    try:
        span, _, total = text.removeprefix("bytes ").partition("/")
        return int(span.partition("-")[0]), None if total == "*" else int(total)
    except ValueError:
        return -1, None


def _validator(headers: Any) -> str:
    tag = headers.get("ETag", "")
    return tag if tag and not tag.startswith("W/") else headers.get("Last-Modified", "")


def _retry_after(headers: Any) -> float | None:
    """Seconds of a Retry-After header (a number or a date), or None."""
    value = headers.get("Retry-After", "") if headers else ""
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError):
        return None


class _Progress:
    """Says every tenth of a file, or every 100 MB where its length is unknown, and no file below 10 MB."""

    def __init__(self, name: str, total: int | None, say: Say) -> None:
        self.name, self.total, self.say = name, total, say
        self.step = max(total // 10, 10**7) if total else 10**8
        self.last = 0

    def __call__(self, done: int) -> None:
        if not self.last:
            self.last = done // self.step
        if done // self.step > self.last:
            self.last = done // self.step
            share = f" of {_size(self.total)}" if self.total else ""
            self.say(f"{self.name}: {_size(done)}{share}")


def _size(count: float) -> str:
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
