"""Downloads from a server in this process that breaks off, lies and misnames."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import shutil
import socket
import stat
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from pipeline import __main__ as cli
from pipeline.config import Config
from pipeline.datasets.archives import unpack
from pipeline.datasets.counts import check_splits
from pipeline.datasets.download import (
    DownloadSpec,
    Fetcher,
    FileSpec,
    Part,
    download_dataset,
    download_spec,
    mirrored,
    read_record,
)
from pipeline.errors import UserError

DATA = bytes(range(256)) * 4000  # about 1 MB
SHA = hashlib.sha256(DATA).hexdigest()


class Server:
    """Serves `files` by path; `faults` are gone through first, one a request."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {"/a.bin": DATA}
        self.faults: list[Any] = []
        self.asked: list[tuple[str, str | None]] = []
        self.tag = '"1"'
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"state": self}))
        self._http.daemon_threads = True
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: Server

    def do_GET(self) -> None:
        state, wanted = self.state, self.headers.get("Range")
        state.asked.append((self.path, wanted))
        fault = state.faults.pop(0) if state.faults else None
        if isinstance(fault, int):
            self._send(fault, b"no", {"Retry-After": "0"})
            return
        if self.path not in state.files:
            self._send(404, b"no", {})
            return
        content, status, headers = state.files[self.path], 200, {"ETag": state.tag, "Accept-Ranges": "bytes"}
        if wanted and fault != "no ranges" and self.headers.get("If-Range", state.tag) == state.tag:
            first = int(wanted.removeprefix("bytes=").rstrip("-"))
            if first >= len(content):
                self._send(416, b"", {})
                return
            headers["Content-Range"] = f"bytes {first}-{len(content) - 1}/{len(content)}"
            content, status = content[first:], 206
        self._send(status, content, headers, cut=fault == "drop", long=fault == "long")

    def _send(self, status: int, content: bytes, headers: dict, cut: bool = False, long: bool = False) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content) + (7 if long else 0)))
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if cut else content)
        self.wfile.flush()
        if cut or long:
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.close()


def fetch(server: Server, folder: Path, *files: dict, **options: Any) -> list[str]:
    """Fetch files (default: /a.bin); returns what was said."""
    said: list[str] = []
    specs = [FileSpec(**{"url": f"{server.url}/a.bin", **file}) for file in files or [{}]]
    Fetcher(**{"wait": 0.01, "tries": 3, **options}, say=said.append).fetch_all(DownloadSpec(files=specs), folder)
    return said


def left(folder: Path) -> list[str]:
    """All files of a folder."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_a_file_is_fetched_once(server, tmp_path):
    said = fetch(server, tmp_path, {"sha256": SHA, "bytes": len(DATA)})
    assert (tmp_path / "a.bin").read_bytes() == DATA and left(tmp_path) == ["a.bin", "download.json"]
    assert read_record(tmp_path)[f"{server.url}/a.bin"] == {"to": "a.bin", "bytes": len(DATA), "sha256": SHA}
    assert SHA in said[-1] and fetch(server, tmp_path) == ["a.bin: there already"] and len(server.asked) == 1
    (tmp_path / "a.bin").write_bytes(b"cut")
    with pytest.raises(UserError, match=r"has sha256 .* in place of .*move it away"):
        fetch(server, tmp_path, {"sha256": SHA})


def test_dropped_connections_are_continued(server, tmp_path):
    server.faults = ["drop", "drop", 503, "drop"]
    said = fetch(server, tmp_path, {"sha256": SHA})
    assert (tmp_path / "a.bin").read_bytes() == DATA
    half, rest = len(DATA) // 2, len(DATA) // 4
    ranges = [wanted for _, wanted in server.asked]
    third = f"bytes={half + rest}-"
    assert ranges[:4] == [None, f"bytes={half}-", third, third] and len(ranges) == 5
    assert "connection lost" in said[0] and any("answers 503" in line for line in said)


def test_a_later_call_continues(server, tmp_path):
    server.faults = ["drop", *[503] * 9]
    with pytest.raises(UserError, match=r"cannot be fetched \(the server answers 503\); run again to continue"):
        fetch(server, tmp_path)
    assert left(tmp_path) == [".a.bin.part", ".a.bin.part.tag"]
    server.faults, server.asked = [], []
    fetch(server, tmp_path)
    assert server.asked == [("/a.bin", f"bytes={len(DATA) // 2}-")]
    assert (tmp_path / "a.bin").read_bytes() == DATA and left(tmp_path) == ["a.bin", "download.json"]


def test_a_file_that_changed_meanwhile_is_fetched_from_the_start(server, tmp_path):
    server.faults = ["drop", *[503] * 9]
    with pytest.raises(UserError):
        fetch(server, tmp_path)
    server.faults, server.tag, server.files["/a.bin"] = [], '"2"', DATA[::-1]
    fetch(server, tmp_path)
    assert (tmp_path / "a.bin").read_bytes() == DATA[::-1]


def test_a_part_of_unknown_origin_is_not_continued(server, tmp_path):
    for checked, first in ((False, None), (True, "bytes=10-")):
        folder = tmp_path / str(checked)
        part = Part(folder / "a.bin")
        part.path.write_bytes(DATA[:10])
        server.asked = []
        fetch(server, folder, {"sha256": SHA} if checked else {})
        assert server.asked == [("/a.bin", first)] and (folder / "a.bin").read_bytes() == DATA


@pytest.mark.parametrize("fault", [["no ranges"], ["drop", "no ranges"], [429, 503, 500]])
def test_servers_without_ranges_and_busy_ones(server, tmp_path, fault):
    server.faults = fault
    fetch(server, tmp_path, {"sha256": SHA}, tries=4)
    assert (tmp_path / "a.bin").read_bytes() == DATA


def test_a_part_that_is_too_long(server, tmp_path):
    part = Part(tmp_path / "a.bin")
    part.path.write_bytes(DATA + b"more")
    fetch(server, tmp_path, {"sha256": SHA})
    assert [wanted for _, wanted in server.asked] == [f"bytes={len(DATA) + 4}-", None]
    assert (tmp_path / "a.bin").read_bytes() == DATA


@pytest.mark.parametrize(
    "file, fault, message",
    [
        ({"sha256": "0" * 64}, None, rf"has sha256 {SHA} in place of 0000"),
        ({"bytes": 5}, None, r"has 1,024,000 bytes in place of 5"),
        ({}, "long", r"cannot be fetched \(.*; run again"),
        ({"url": "/none"}, None, r"answers 404; it may have moved: put the file at .*none, or set mirror"),
        ({"url": "/page"}, None, r"is a web page, perhaps a log-in"),
    ],
)
def test_what_is_wrong_is_refused_in_one_line(server, tmp_path, file, fault, message):
    server.files["/page"] = b"\n<!DOCTYPE html><p>Please sign in"
    server.faults = [fault] * 20 if fault else []
    if "url" in file:
        file = {**file, "url": server.url + file["url"]}
    with pytest.raises(UserError, match=message) as caught:
        fetch(server, tmp_path, file)
    assert "\n" not in str(caught.value)
    assert all(name.startswith(".a.bin.part") for name in left(tmp_path)) and (fault or not left(tmp_path))


def test_one_bad_file_does_not_keep_the_others_away(server, tmp_path):
    server.files |= {f"/{i}": bytes([i]) for i in range(8)}
    files = [{"url": f"{server.url}/{i}"} for i in range(8)] + [{"url": f"{server.url}/none"}]
    with pytest.raises(UserError, match="answers 404"):
        fetch(server, tmp_path, *files, workers=4)
    assert set(left(tmp_path)) == {*map(str, range(8)), "download.json"} and len(read_record(tmp_path)) == 8


def test_no_server(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/a"
    said: list[str] = []
    with pytest.raises(UserError, match="cannot be fetched.*refused"):
        Fetcher(tries=2, wait=0.01, say=said.append).fetch_all(DownloadSpec(files=[FileSpec(url=url)]), tmp_path)


# -------------------------------------------------------------------------------------------------- archives
def packed(kind: str, members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(out, "w") as file:
            for name, content in members.items():
                file.writestr(name, content)
    else:
        with tarfile.open(fileobj=out, mode="w:gz") as file:
            for name, content in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                file.addfile(info, io.BytesIO(content))
    return out.getvalue()


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_archives_are_unpacked_and_may_then_be_deleted(server, tmp_path, kind):
    server.files["/v"] = packed(kind, {"run/a.avi": b"a", "run/b.avi": b"b", f"sit.{kind}": packed(kind, {"c": b"c"})})
    file = {"url": f"{server.url}/v", "to": f"archives/v.{kind}", "extract": "videos", "nested": True}
    fetch(server, tmp_path, file)
    assert left(tmp_path / "videos") == ["c", "run/a.avi", "run/b.avi"]
    (tmp_path / "archives" / f"v.{kind}").unlink()
    assert fetch(server, tmp_path, file) == [f"archives/v.{kind}: there already"]
    server.files["/w"] = packed(kind, {"run/d.avi": b"d"})  # a second archive into the same folder
    fetch(server, tmp_path, file, {"url": f"{server.url}/w", "to": f"w.{kind}", "extract": "videos"})
    assert left(tmp_path / "videos") == ["c", "run/a.avi", "run/b.avi", "run/d.avi"]


def test_clips_that_somebody_unpacked_are_not_fetched_again(repo, server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    server.files["/v"] = packed("zip", {"run/a.avi": b"a"})
    own = {
        "kind": "list", "root": "elsewhere/videos", "lists": "data/own",
        "download": {"files": [{"url": f"{server.url}/v", "to": "v.zip", "extract": "videos"},
                               {"url": f"{server.url}/a.bin"}]},
    }  # fmt: skip
    config, said = Config(repo / "config", {"datasets": {"own": own}}), []
    (tmp_path / "elsewhere" / "videos" / "run").mkdir(parents=True)
    for _ in range(2):
        record = download_dataset(config, "own", Fetcher(say=said.append))
        assert [path for path, _ in server.asked] == ["/a.bin"] and len(read_record(record.parent)) == 1
    assert said[0] == "v.zip: not fetched, for elsewhere/videos holds files; empty that folder to fetch and unpack it"
    (tmp_path / "elsewhere" / "videos" / "run").rmdir()
    download_dataset(config, "own", Fetcher(say=said.append))
    assert left(tmp_path / "data" / "own" / "videos") == ["run/a.avi"]


def _linked(kind: str, target: str, hard: bool = False) -> bytes:
    out = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(out, "w") as file:
            info = zipfile.ZipInfo("link")
            info.external_attr = (stat.S_IFLNK | 0o777) << 16
            file.writestr(info, target)
    else:
        with tarfile.open(fileobj=out, mode="w:gz") as file:
            info = tarfile.TarInfo("link")
            info.type, info.linkname = tarfile.LNKTYPE if hard else tarfile.SYMTYPE, target
            file.addfile(info)
    return out.getvalue()


HOSTILE = {
    "up.zip": packed("zip", {"good": b"", "../evil": b"x"}),
    "absolute.zip": packed("zip", {"/tmp/evil": b"x"}),
    "backslash.zip": packed("zip", {"..\\evil": b"x"}),
    "link.zip": _linked("zip", "/etc/passwd"),
    "up.tar.gz": packed("tar.gz", {"good": b"", "a/../../evil": b"x"}),
    "absolute.tar.gz": packed("tar.gz", {"/tmp/evil": b"x"}),
    "link.tar.gz": _linked("tar.gz", "../.."),
    "hard.tar.gz": _linked("tar.gz", "/etc/passwd", hard=True),
    "nested.zip": packed("zip", {"good": b"", "in/inner.tar.gz": packed("tar.gz", {"../../evil": b"x"})}),
    "cut.zip": packed("zip", {"good": b"x" * 999})[:-30],
    "cut.tar.gz": packed("tar.gz", {"good": os.urandom(9999)})[:-3000],
    "text.tar": b"no archive at all",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_and_damaged_archives(server, tmp_path, name):
    folder = tmp_path / "set"
    server.files["/x"] = HOSTILE[name]
    with pytest.raises(UserError, match=r"is refused|cannot be unpacked") as caught:
        fetch(server, folder, {"url": f"{server.url}/x", "to": name, "extract": "videos", "nested": True})
    assert "\n" not in str(caught.value) and left(tmp_path) == [f"set/{name}"]
    assert sorted(path.name for path in folder.iterdir()) == [name]  # no empty folder either


def _in_parts(kind: str) -> bytes:
    """The last of several parts of a zip: as a packer writes it, or cut from the whole."""
    data = bytearray(packed("zip", {f"{i}.avi": os.urandom(999) for i in range(6)}))
    if kind == "cut":
        return bytes(data[len(data) // 2 :])
    if kind == "first":
        return bytes(data[: len(data) // 2])
    end = data.rindex(b"PK\5\6")
    data[end + 4 : end + 8] = (2).to_bytes(2, "little") * 2  # the third disk
    return bytes(data[2000:])


@pytest.mark.parametrize(
    ("kind", "message"),
    [("packer", "is the last part of several"), ("cut", "is the last part of several"), ("first", "join all parts")],
)
def test_one_part_of_several(tmp_path, kind, message):
    (tmp_path / "v.zip").write_bytes(_in_parts(kind))
    with pytest.raises(UserError, match=message) as caught:
        unpack(tmp_path / "v.zip", tmp_path / "out")
    assert "fetch it again" not in str(caught.value) and not (tmp_path / "out").exists()


def test_archives_are_what_their_bytes_say(tmp_path, monkeypatch):
    (tmp_path / "v.zip").write_bytes(packed("tar.gz", {"a.avi": b"a"}))
    (tmp_path / "w.tar").write_bytes(packed("zip", {"b.avi": b"b"}))
    for name in ("v.zip", "w.tar"):
        monkeypatch.delattr(tarfile, "data_filter", raising=False)  # as in Python 3.11.2
        assert unpack(tmp_path / name, tmp_path / "out") == 1
    (tmp_path / "x.zip").write_bytes(b"7z\xbc\xaf\x27\x1c" + bytes(99))
    with pytest.raises(UserError, match="it is a 7z archive"):
        unpack(tmp_path / "x.zip", tmp_path / "out")
    (tmp_path / "y.zip").write_bytes(b"  <!DOCTYPE html>" + bytes(99))
    with pytest.raises(UserError, match="it is a web page"):
        unpack(tmp_path / "y.zip", tmp_path / "out")


def test_deflate64(tmp_path):
    data = bytearray(packed("zip", {"a.avi": b"a" * 99}))
    for at in (8, data.rindex(b"PK\1\2") + 10):
        data[at : at + 2] = (9).to_bytes(2, "little")
    (tmp_path / "v.zip").write_bytes(data)
    with pytest.raises(
        UserError, match=r"packed by Deflate64, which Python cannot read; unpack it .* by hand \(7z x\)"
    ):
        unpack(tmp_path / "v.zip", tmp_path / "out")


def test_rar_files_need_a_program(tmp_path, monkeypatch):
    (tmp_path / "v.rar").write_bytes(b"Rar!")
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(UserError, match="neither bsdtar nor unrar is installed; install one"):
        unpack(tmp_path / "v.rar", tmp_path / "out")
    assert left(tmp_path) == ["v.rar"]


@pytest.mark.parametrize("evil", ["", "-rw-r--r-- 0 0 0 1 Jan 1 ../evil", "lrwxrwxrwx 0 0 0 1 Jan 1 evil -> /etc"])
def test_rar_files_go_through_the_program_when_their_names_are_good(tmp_path, monkeypatch, evil):
    """With a script in the place of bsdtar: rar files cannot be written by free software."""
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "bsdtar"
    lines = ["drwxr-xr-x 0 0 0 0 Jan 1 run", "-rw-r--r-- 0 0 0 1 Jan 1 run/a b.avi", *filter(None, [evil])]
    names = ["run", "run/a b.avi", *(["../evil"] if "../" in evil else ["evil"] if evil else [])]
    program.write_text(
        "#!/bin/sh\ncase $1 in\n"
        f"-tvf) printf '%s\\n' {' '.join(repr(line) for line in lines)};;\n"
        f"-tf) printf '%s\\n' {' '.join(repr(name) for name in names)};;\n"
        "-xf) mkdir run; echo a > 'run/a b.avi'; touch ../unpacked;;\nesac\n"
    )
    program.chmod(0o755)
    (tmp_path / "v.rar").write_bytes(b"Rar!")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    if evil:
        with pytest.raises(UserError, match="is refused"):
            unpack(tmp_path / "v.rar", tmp_path / "out" / "videos")
        assert not (tmp_path / "out" / "unpacked").exists() and not (tmp_path / "out" / "videos").exists()
    else:
        assert unpack(tmp_path / "v.rar", tmp_path / "out" / "videos") == 1
        assert left(tmp_path / "out" / "videos") == ["run/a b.avi"]


# -------------------------------------------------------------------------------------------------- data sets
def test_mirrors(server, tmp_path):
    url = "https://example.org/a/b%20c.zip?dl=1"
    assert mirrored(url, "") == url
    assert mirrored(url, "http://mirror/x/") == "http://mirror/x/example.org/a/b%20c.zip?dl=1"
    assert mirrored(url, "/m") == "/m/example.org/a/b c.zip?dl=1"
    with pytest.raises(UserError, match="leads out of"):
        mirrored("https://example.org/%2e%2e/%2e%2e/etc", "/m")
    mirror = tmp_path / "mirror" / "example.org"
    mirror.mkdir(parents=True)
    (mirror / "plain").write_bytes(b"p")
    (mirror / "zipped.gz").write_bytes(gzip.compress(b"z"))
    files = [{"url": f"https://example.org/{name}"} for name in ("plain", "zipped")]
    fetch(server, tmp_path / "a", *files, mirror=str(tmp_path / "mirror"))
    assert (tmp_path / "a" / "plain").read_bytes() == b"p" and (tmp_path / "a" / "zipped").read_bytes() == b"z"
    with pytest.raises(UserError, match=r"the mirror has no .*other; put https://example.org/other there"):
        fetch(server, tmp_path / "a", {"url": "https://example.org/other"}, mirror=str(tmp_path / "mirror"))
    server.files["/example.org/plain"] = b"q"
    fetch(server, tmp_path / "b", files[0], mirror=server.url)
    assert (tmp_path / "b" / "plain").read_bytes() == b"q"


def test_every_definition_can_be_read(repo):
    config = Config(repo / "config")
    for name in config.names("datasets"):
        definition = config.entry("datasets", name, "here")
        if definition["kind"] == "synthetic" or "reads" in definition or "download" not in definition:
            continue
        spec = download_spec(definition, name, name)
        assert (spec.files or spec.manual) and spec.folder.startswith("data/") and definition["licence"]


@pytest.mark.parametrize(
    "given, message",
    [
        ({"files": [{"url": "ftp://a/b"}]}, "is not an http"),
        ({"files": [{"url": "https://a/b", "sha": "0"}]}, "unknown key 'sha'"),
        ({"files": [{"url": "https://a/b", "sha256": "xyz"}]}, "sha256"),
        ({"files": [{"url": "https://a/b", "extract": "v"}]}, "is not an archive"),
        ({}, "has nothing to download"),
    ],
)
def test_wrong_definitions(given, message):
    with pytest.raises(UserError, match=message):
        download_spec({"download": given}, "own", "own.yaml")


def test_sets_that_must_be_asked_for(repo, server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = {
        "kind": "list", "root": "data/own/videos", "lists": "data/own",
        "download": {"files": [{"url": f"{server.url}/a.bin"}], "manual": "Sign the form\nat its page."},
    }  # fmt: skip
    config = Config(repo / "config", {"datasets": {"own": own}})
    with pytest.raises(UserError, match=r"own, by hand: Sign the form at its page. Then data/own/videos is where"):
        download_dataset(config, "own", Fetcher(say=lambda _: None))
    assert (tmp_path / "data" / "own" / "a.bin").is_file()  # the lists are there already
    (tmp_path / "data" / "own" / "videos").mkdir()
    assert download_dataset(config, "own", Fetcher(say=lambda _: None)).is_file()


def layout(reference_data: Path, mirror: Path) -> None:
    """A mirror of the published lists, from the table of their sources."""
    for line in (reference_data / "lists" / "MANIFEST.tsv").read_text().splitlines()[1:]:
        file, source, *_ = line.split("\t")
        here = reference_data / "lists" / file
        if file.startswith("llm_text/"):
            here = reference_data / "text" / file.removeprefix("llm_text/")
        if "@" not in source or not here.is_file():
            continue
        repository, _, path = source.partition("@")
        commit, _, path = path.partition(":")
        place = mirror / "raw.githubusercontent.com" / repository / commit / path
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(here, f"{place}.gz" if file.endswith(".gz") else place)


def test_lists_from_a_mirror_have_the_papers_counts(repo, reference_data, tmp_path, monkeypatch, capsys):
    layout(reference_data, tmp_path / "mirror")
    monkeypatch.chdir(tmp_path)
    config = Config(repo / "config", {"datasets": {"hmdb51": {"root": str(tmp_path)}}})
    names = ["kinetics100", "ssv2_small", "ssv2_full", "ntu60_oneshot", "ntu120_oneshot"]
    for name in names:
        with pytest.raises(UserError, match=f"{name}, by hand: "):
            download_dataset(config, name, Fetcher(str(tmp_path / "mirror"), say=lambda _: None))
    for name in ("hmdb51", "ucf101"):  # the mirror has no videos
        with pytest.raises(UserError, match=r"the mirror has no .*\.rar"):
            download_dataset(config, name, Fetcher(str(tmp_path / "mirror"), say=lambda _: None))
    found = check_splits(config)
    assert sorted(found.equal) == sorted([*names, "hmdb51", "ucf101"]) and not found.differ
    assert "gym99" in found.absent  # its lists were not asked for
    # through the command, with a published count that is another one
    overlay = '{"datasets": {"hmdb51": {"expected": {"clips": {"train": 4281}}}}}'
    command = ["pipeline", "split", "--check", "--config", str(repo / "config")]
    for more, status, words in (
        (["ssv2_full"], 0, "train: 64 classes (published: 64), 67013 clips (published: 67013)"),
        (["hmdb51", "--overlay", overlay], 1, "4280 clips (published: 4281)"),
        (["ssv2_full", "--overlay", '{"datasets": {"ssv2_full": {"lists": "nowhere"}}}'], 2, "no *_few_shot.txt"),
    ):
        monkeypatch.setattr(sys, "argv", [*command, *more])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        out, _ = capsys.readouterr()
        assert (caught.value.code or 0) == status and words in " ".join(out.split())


def test_the_command_is_one_line_where_it_fails(repo, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(repo / "src")}
    command = [sys.executable, "-m", "pipeline", "download", "ssv2_full", "--mirror", str(tmp_path), "--config"]
    done = subprocess.run(
        [*command, str(repo / "config")], cwd=tmp_path, env=environment, text=True, capture_output=True
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and done.stderr.startswith("error: the mirror has no")
