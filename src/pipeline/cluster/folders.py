"""The temporary folder of a Ray: nobody else gets into it, and it goes with its process, or soon after.

Ray opens its own folder to everyone (mode 0777), so it lies within one that only its owner enters.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from pipeline.errors import UserError

PREFIX = "actions-"
SOCKET = 107  # bytes of a socket's path at most: Linux'
# What comes after TMPDIR: this folder, Ray's, its session's and the longest name of a socket in it.
LONGEST = f"/{PREFIX}12345678/r/session_2000-12-31_23-59-59_123456_1234567/sockets/dash_TaskEventsHead"


@contextmanager
def ray_folder() -> Iterator[str]:
    """A folder for Ray's sockets and logs, which goes when the block ends; this process's own locks lie beside it.

    Raises:
        UserError: others could enter it.
    """
    base = _base(tempfile.gettempdir())
    sweep(base)
    own = Path(tempfile.mkdtemp(prefix=PREFIX, dir=base))
    with (own / "new").open("w") as lock:
        with suppress(OSError):  # no locks here: then nobody sweeps it either
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.replace(own / "new", own / "lock")  # only now, so that a lock is always held while its process lives
        before = os.environ.get("RAY_TMPDIR")
        os.environ["RAY_TMPDIR"] = str(own)  # else Ray makes a folder `ray` in TMPDIR, and leaves it there
        try:
            check_private(own)
            yield str(own / "r")
        finally:
            os.environ.pop("RAY_TMPDIR", None)
            os.environ |= {"RAY_TMPDIR": before} if before else {}
            _remove(own)


def check_private(folder: Path) -> None:
    """Raises UserError where a folder is not this user's alone."""
    found = folder.lstat()
    mine = stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()
    if not mine or stat.S_IMODE(found.st_mode) & 0o077:
        raise UserError(
            f"{folder}: others may enter it (mode {stat.S_IMODE(found.st_mode):04o}), and Ray's logs and sockets would "
            "lie there; set TMPDIR to a folder on a file system that keeps rights"
        )


def sweep(base: str | Path | None = None) -> None:
    """Remove the folders that processes of this user have left which were killed: nobody holds their lock.

    base: where they are; None: where this process would have its own.
    """
    wanted = tempfile.gettempdir()
    for own in Path(base or ("/tmp" if too_long(wanted) else wanted)).glob(f"{PREFIX}*"):
        with suppress(OSError):
            if own.lstat().st_uid != os.geteuid():
                continue
            with (own / "lock").open("r+") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(own)


def _base(wanted: str) -> str:
    """The folder for temporary files, or /tmp where the paths of Ray's sockets would become too long in it."""
    if too_long(wanted):
        fits = SOCKET - len(LONGEST)
        said = f"TMPDIR ({wanted}) is too long for the paths of Ray's sockets, so /tmp is used; {fits} characters fit"
        print(said, file=sys.stderr, flush=True)
        return "/tmp"
    return wanted


def too_long(base: str) -> int:
    """By how many characters the path of a folder is too long for the sockets in it; 0 where it is not."""
    return max(0, len(os.fsencode(base + LONGEST)) - SOCKET)


def _remove(folder: Path) -> None:
    """End the processes whose temporary folder this is, and remove it: one of Ray's that started while the others were
    ended would make it anew."""
    for _ in range(50):
        if users := list(_users(folder)):
            psutil.wait_procs(users, 1)
            continue
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(0.1)


def _users(folder: Path) -> Iterator[psutil.Process]:
    """Processes with this TMPDIR, which have been sent SIGKILL."""
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.environ().get("TMPDIR") == str(folder):
                process.kill()
                yield process
