"""Folders in which clusters and a tiny table are tried out, and what they leave behind."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import yaml

from pipeline.cluster.folders import sweep
from pipeline.cluster.head import forget_dead
from pipeline.workspace import Workspace

REPO = Path(__file__).resolve().parents[1]
MARK = "PIPELINE_SANDBOX"
MODES = ("shared", "job")
CSV = Path("results/tiny/table0.csv")
CACHE = "torchinductor_"  # torch's cache of what it has compiled; it is for all processes of a user, and stays
STEPS = 60  # of each training, with a checkpoint after every tenth
CONFIG: dict[str, Any] = {
    "datasets": {"synthetic_scene": {"clips_per_class": 4, "size": 40, "nuisance": 0.5}},
    "frames": {"store": {"size": [36, 36], "frames": 8}, "crop": 32},
    "backbones": {"clip_nano": {"steps": 3, "batch": 16, "model": {"image_size": 32, "layers": 2}}},
    "train": {"steps": STEPS, "validate_every": 30, "validation_episodes": 20, "checkpoint_every": 10},
    "measure": {"episodes": 40, "val_episodes": 30},
    "tables": {
        "tiny": {
            "title": "A tiny table",
            "tables": {
                "0": {
                    "title": "Two trainings",
                    "columns": [{"name": "HMDB51/1-shot", "experiment": {"dataset": "hmdb51", "measure": {"shot": 1}}}],
                    "rows": [{"name": name, "experiment": {"method": name}} for name in ("otam", "lga")],
                }
            },
        }
    },
}


class Sandbox:
    """A folder, with another one in it for temporary files. What is started here has a mark in its environment, by
    which it is found again at any depth, also when its parent has gone."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.temporary, self.mark = folder, folder / "t", secrets.token_hex(4)
        self.temporary.mkdir()
        self.environment = {**os.environ, "TMPDIR": str(self.temporary), MARK: self.mark}

    def python(self, *words: str, **options: Any) -> subprocess.Popen:
        """`python WORDS`, whose output can be read."""
        return subprocess.Popen(
            [sys.executable, "-P", *words], env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, **options,
        )  # fmt: skip

    def processes(self) -> list[psutil.Process]:
        """Living processes that were started here."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get(MARK) == self.mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def listening(self) -> set[int]:
        """Ports on which something listens that was started here, or nobody knows what: others may take a free one."""
        ours = {process.pid for process in self.processes()} | {None}
        found = psutil.net_connections("tcp")
        return {each.laddr.port for each in found if each.status == psutil.CONN_LISTEN and each.pid in ours}

    def left(self, *results: Path) -> list[str]:
        """What is left: processes, temporary folders, and files of clusters in results folders."""
        found = []
        for process in self.processes():
            with suppress(psutil.Error):
                found.append(f"process {process.pid} {' '.join(process.cmdline())[:100]}")
        found += [f"folder {path}" for path in self.temporary.iterdir() if not path.name.startswith(CACHE)]
        for root in results:
            kept = [*(root / "ray" / "jobs").glob("*/*"), *(root / "ray" / "metrics").glob("*.json")]
            found += [f"file {path}" for path in [*kept, *(root / "ray").glob("cluster.json")]]
        return found


@contextmanager
def sandbox() -> Iterator[Sandbox]:
    """A sandbox, which goes with everything that was started in it. Its path is short, for Ray's sockets."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # it goes then, too
    folder = Path(tempfile.mkdtemp(prefix="s", dir="/tmp"))
    made = Sandbox(folder)
    try:
        yield made
    finally:
        kill(made.processes())
        shutil.rmtree(folder, ignore_errors=True)


def kill(processes: Sequence[psutil.Process]) -> None:
    """SIGKILL for all, and wait until they are gone."""
    for process in processes:
        with suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(processes, 10)


def difference(wanted: bytes, found: bytes) -> list[str]:
    """What is wrong with a table: its lines that are not those of the wanted one."""
    other = sorted(set(found.decode("utf-8").splitlines()) ^ set(wanted.decode("utf-8").splitlines()))
    return [f"another table: {' / '.join(other)}"] if found != wanted else []


class TinyTable:
    """The tiny table in a folder of its own, as `snakemake` makes it in one of the `MODES`.

    before: words before the command, such as those of `taskset`; variables: of its environment, None: without it.
    """

    def __init__(self, box: Sandbox, folder: Path, mode: str) -> None:
        self.box, self.folder = box, folder
        self.before: list[str] = []
        self.variables: dict[str, str | None] = {}
        folder.mkdir(parents=True)
        settings = yaml.safe_dump(CONFIG | {"cluster": {"mode": mode}})
        (folder / "tiny.yaml").write_text(settings, "utf-8")

    @property
    def results(self) -> Path:
        """Its results folder."""
        return self.folder / "results"

    @property
    def csv(self) -> Path:
        """The table."""
        return self.folder / CSV

    @property
    def locked(self) -> bool:
        """Whether Snakemake holds the folder, or was killed there."""
        return any((self.folder / ".snakemake" / "locks").glob("*"))

    def start(self, *more: str) -> subprocess.Popen:
        """`snakemake`, as a user calls it from the folder."""
        command = [*self.before, sys.executable, "-m", "snakemake", "--snakefile", str(REPO / "Snakefile")]
        command += ["--directory", str(self.folder), "--configfile", "tiny.yaml", *more, "--", str(CSV)]
        environment = {**self.box.environment, **self.variables}
        with (self.folder / "said.log").open("a", encoding="utf-8") as log:
            return subprocess.Popen(
                command, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env={key: value for key, value in environment.items() if value is not None},
            )  # fmt: skip

    def last_words(self) -> str:
        """The end of what it has said."""
        return (self.folder / "said.log").read_text("utf-8", "replace").strip()[-1500:]

    def left(self, seconds: float = 0.0) -> list[str]:
        """What is left of it so many seconds later at most, once a next start has removed what killed ones left."""
        end = time.monotonic() + seconds
        while True:
            sweep(self.box.temporary)
            forget_dead(Workspace(self.results))
            if not (found := self.box.left(self.results)) or time.monotonic() > end:
                return found
            time.sleep(0.5)
