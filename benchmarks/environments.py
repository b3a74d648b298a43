"""A tiny table in the surroundings that users bring: is it the same one, and does nothing stay, listen or tell?

    python -m benchmarks.environments                       # all, each in mode shared
    python -m benchmarks.environments proxies --mode job    # some of them, with the plain one to compare with

In each of them the ports that its processes listen on must be those of the loopback interface, and the token must
stand in no log and on no command line. Some need root; they are skipped, with the reason, where it is not there.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import pwd
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from benchmarks.sandbox import MODES, REPO, TinyTable, difference, kill, sandbox
from pipeline.files import read_json

SECONDS = 3000.0  # for a table
GRACE = 5.0  # until nothing is left
LOOK_SECONDS = 2.0  # between two looks at ports and logs
USER = "tiny-table"  # made for a while


class Skip(Exception):
    """This environment cannot be had here."""


# The environments: each changes how the table is called


@contextmanager
def plain(table: TinyTable) -> Iterator[None]:
    """as it is"""
    yield


@contextmanager
def proxies(table: TinyTable) -> Iterator[None]:
    """HTTP_PROXY and HTTPS_PROXY lead to a closed port"""
    with socket.socket() as closed:  # taken, and nobody listens
        closed.bind(("127.0.0.1", 0))
        where = "http://{}:{}".format(*closed.getsockname())
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            table.variables |= {name: where, name.lower(): where}
        table.variables |= {"NO_PROXY": None, "no_proxy": None}
        yield


@contextmanager
def files(table: TinyTable) -> Iterator[None]:
    """ulimit -n 256"""
    table.before = ["prlimit", "--nofile=256:256", "--"]
    yield


@contextmanager
def memory(table: TinyTable) -> Iterator[None]:
    """32 MB of /dev/shm"""
    table.before = _unshared("--mount", "mount -t tmpfs -o size=32m tmpfs /dev/shm")
    yield


@contextmanager
def network(table: TinyTable) -> Iterator[None]:
    """no network but loopback, and a host name that nobody knows"""
    if not shutil.which("ip"):
        raise Skip("no command `ip`")
    name = "echo nobody-knows-me > /proc/sys/kernel/hostname"
    table.before = _unshared("--net --uts", f"{name} && ip link set lo up")
    yield


@contextmanager
def names(table: TinyTable) -> Iterator[None]:
    """a path with blanks and accents"""
    table.folder = table.folder.rename(table.folder.with_name("größer als être"))
    yield


@contextmanager
def locale(table: TinyTable) -> Iterator[None]:
    """LC_ALL=C"""
    table.variables |= {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": None, "PYTHONIOENCODING": None}
    yield


@contextmanager
def core(table: TinyTable) -> Iterator[None]:
    """one core"""
    table.before = ["taskset", "--cpu-list", "0"]
    yield


@contextmanager
def checkout(table: TinyTable) -> Iterator[None]:
    """a read-only checkout, and another folder with --directory"""
    table.before = _unshared("--mount", f"mount --bind {REPO} {REPO} && mount -o remount,bind,ro {REPO}")
    if not subprocess.run([*table.before, "touch", str(REPO / "probe")], stderr=subprocess.DEVNULL).returncode:
        (REPO / "probe").unlink()
        raise Skip("the checkout does not become read-only")
    yield


@contextmanager
def user(table: TinyTable) -> Iterator[None]:
    """another user, who has no home"""
    _need_root()
    made = ["useradd", "--system", "--user-group", "--no-create-home", "--shell", "/usr/sbin/nologin", USER]
    subprocess.run(made, check=True)
    try:
        who = pwd.getpwnam(USER)
        table.before = ["setpriv", f"--reuid={who.pw_uid}", f"--regid={who.pw_gid}", "--clear-groups", "--"]
        caches = str(table.box.folder / "caches")  # as `doctor` advises: Snakemake itself needs a folder for them
        table.variables |= {"XDG_CACHE_HOME": caches, "HF_HOME": caches}
        table.variables |= {"HOME": "/nonexistent", "USER": USER, "LOGNAME": USER}
        for path in (table.box.folder, *table.box.folder.rglob("*")):
            shutil.chown(path, USER, USER)
        # From a shell, as rules do: what is started at once by root has more rights.
        call = [*table.before, "sh", "-c", '"$0" -c ""', sys.executable]
        if subprocess.run(call, stderr=subprocess.DEVNULL).returncode:
            raise Skip(f"another user cannot enter the folder of {os.path.realpath(sys.executable)}")
        yield
    finally:
        kill(table.box.processes())
        subprocess.run(["userdel", USER], check=True)


ENVIRONMENTS: dict[str, Callable] = {
    each.__name__: each
    for each in (plain, proxies, files, memory, network, names, locale, core, checkout, user)
}  # fmt: skip


def _need_root() -> None:
    if os.geteuid():
        raise Skip("needs root")


def _unshared(options: str, prepare: str) -> list[str]:
    """Words before a command, so that it runs in namespaces of its own in which `prepare` has been done."""
    _need_root()
    before = ["unshare", *options.split(), "sh", "-c", f'{prepare} && exec "$@"', "sh"]
    done = subprocess.run([*before, "true"], capture_output=True, text=True)
    if done.returncode:
        raise Skip(f"unshare: {done.stderr.strip()[-200:]}")
    return before


# What is looked at while the table is made


class Watch:
    """Looks, as long as its block runs, at the ports, command lines and logs of a table's processes."""

    def __init__(self, table: TinyTable) -> None:
        self.table = table
        self.ports: set[tuple[str, int]] = set()
        self.tokens: set[str] = set()
        self.told: set[str] = set()
        self.answer: str | None = None  # of the queue to a stranger
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self.look()

    def _run(self) -> None:
        while not self._ended.wait(LOOK_SECONDS):
            self.look()

    def look(self) -> None:
        """Once."""
        processes = self.table.box.processes()
        for path in (*self.table.results.glob("ray/token"), *self.table.results.glob("ray/jobs/*/token")):
            with suppress(OSError):
                self.tokens.add(path.read_text("utf-8"))
        for process in processes:
            with suppress(psutil.Error):
                self.ports |= {
                    (one.laddr.ip, one.laddr.port)
                    for one in process.net_connections()
                    if one.status == psutil.CONN_LISTEN
                }
                self._search(f"the command line of process {process.pid}", " ".join(process.cmdline()))
        for path in self._logs():
            with suppress(OSError):
                self._search(str(path), path.read_text("utf-8", "replace"))
        record = read_json(self.table.results / "ray" / "cluster.json")
        if record and not self.answer:
            self.answer = knock(record["queue"], self.table.box.folder / "unpickled")

    def _logs(self) -> Iterator[Path]:
        """Logs there are; `os.walk` passes over a folder that goes away meanwhile."""
        for folder, _, names in os.walk(self.table.box.folder):
            within = "logs" in Path(folder).parts
            yield from (Path(folder, name) for name in names if name.endswith(".log") or (within and "." in name))

    def _search(self, where: str, text: str) -> None:
        if any(token in text for token in self.tokens):
            self.told.add(where)

    def faults(self) -> list[str]:
        """What should not be."""
        wide = [f"port {ip}:{port}" for ip, port in sorted(self.ports) if not _loopback(ip)]
        told = [f"the token stands in {where}" for where in sorted(self.told)]
        return wide + told + ([self.answer] if self.answer else [])


def _loopback(address: str) -> bool:
    return bool(re.match(r"127\.|::1$|::ffff:127\.", address))


class Trap:
    """Makes a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def knock(queue: str, path: Path) -> str | None:
    """What is wrong with a queue's answers to a stranger, who should get a line of JSON and be refused; or nothing.

    None where nobody answers, as from another network namespace.
    """
    host, port = queue.rsplit(":", 1)
    for said in (pickle.dumps(Trap(path)) + b"\n", b'["submit", "a", "train", {}]\n', b"\0" * 4096 + b"\n"):
        try:
            with socket.create_connection((host, int(port)), timeout=10) as stranger, stranger.makefile("rb") as file:
                lines = [file.readline()]
                stranger.sendall(said)
                lines += file.readlines()
        except ConnectionResetError:
            continue  # it has hung up
        except OSError:
            return None
        try:
            answers = [json.loads(line) for line in lines]
        except ValueError:
            return f"the queue says what is no JSON: {lines}"
        if len(answers) > 2 or answers[1:] not in ([], ["wrong token"]):
            return f"the queue answers a stranger: {answers}"
    return "the queue unpickles what a stranger says" if path.exists() else ""


# A table in an environment


def attempt(name: str, mode: str, wanted: bytes | None) -> tuple[list[str], bytes]:
    """Make the table; what is wrong, and its CSV. Says how it went in a line.

    Raises:
        Skip: the environment cannot be had here.
    """
    with sandbox() as box:
        table = TinyTable(box, box.folder / "w", mode)
        with ENVIRONMENTS[name](table):
            began = time.monotonic()
            with Watch(table) as watch:
                status = table.start().wait(SECONDS)
            seconds = time.monotonic() - began
            faults = [f"status {status}: {table.last_words()}"] if status else []
            csv = table.csv.read_bytes() if table.csv.is_file() else b""
            faults += [] if wanted is None else difference(wanted, csv)
            faults += watch.faults() + table.left(GRACE)
            faults += [] if watch.tokens else ["no token was seen"]
        said = [] if wanted is None else ["the same table"]
        said += [f"{len(watch.ports)} ports, all of loopback", "no token told"]
        said += ["strangers refused"] if watch.answer == "" else []
        said = faults or [*said, "nothing left"]
        print(f"{name} ({ENVIRONMENTS[name].__doc__}): {seconds:.0f} s; {'; '.join(said)}", flush=True)
        return faults, csv


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(ENVIRONMENTS)}; all without")
    parser.add_argument("--mode", choices=MODES, default=MODES[0])
    asked = parser.parse_args()
    if odd := sorted(set(asked.names) - set(ENVIRONMENTS)):
        parser.error(f"unknown environment {odd[0]!r}; known: {', '.join(ENVIRONMENTS)}")
    faults, wanted = attempt("plain", asked.mode, None)
    faulty, skipped = int(bool(faults)), 0
    chosen = [name for name in asked.names or ENVIRONMENTS if name != "plain"]
    for name in chosen:
        try:
            faulty += bool(attempt(name, asked.mode, wanted)[0])
        except Skip as reason:
            skipped += 1
            print(f"{name} ({ENVIRONMENTS[name].__doc__}): skipped: {reason}", flush=True)
    print(f"mode {asked.mode}: {1 + len(chosen)} environments, {faulty} with faults, {skipped} skipped")
    sys.exit(bool(faulty))


if __name__ == "__main__":
    main()
