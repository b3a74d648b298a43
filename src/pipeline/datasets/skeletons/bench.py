"""How fast skeleton files are read and cleaned on this machine: `python -m pipeline.datasets.skeletons.bench FOLDER`.

FOLDER holds `.skeleton` files (`--generate N` writes N of about NTU's size there first). The store is built in a
temporary folder and deleted. Printed: files a second, memory, and what NTU RGB+D 120 would take at that rate.
"""

from __future__ import annotations

import argparse
import os
import resource
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.datasets.index import Clip, write_index
from pipeline.datasets.skeletons.definition import SkeletonPolicy, SourceSpec
from pipeline.datasets.skeletons.readers import open_source
from pipeline.datasets.skeletons.store import SkeletonStore, build_skeleton_store

NTU120_FILES = 114_480
MEAN_FRAMES = 70  # 8 million frames in all (Liu et al., TPAMI 2020)


@dataclass(frozen=True)
class Speed:
    """Result of `measure`: rates a second, memory in MB (of this process, of the largest worker)."""

    files: int
    workers: int
    build_rate: float
    read_rate: float
    memory: float
    worker_memory: float
    megabytes: float

    def __str__(self) -> str:
        scale = NTU120_FILES / self.files
        minutes = NTU120_FILES / self.build_rate / 60
        return "\n".join(
            (
                f"{self.files} files, {self.workers} process(es)",
                f"cleaned and stored  {self.build_rate:9.0f} files/s",
                f"read from the store {self.read_rate:9.0f} clips/s",
                f"memory              {self.memory:9.0f} MB, largest worker {self.worker_memory:.0f} MB",
                f"store               {self.megabytes:9.1f} MB",
                f"NTU RGB+D 120 ({NTU120_FILES:,} files) at this rate: {minutes:.1f} min, "
                f"{self.megabytes * scale / 1000:.1f} GB",
            )
        )


def measure(folder: str | Path, workers: int = 1) -> Speed:
    """Build a store of the `.skeleton` files below `folder` in a temporary place, then read it all."""
    folder = Path(folder)
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.skeleton"))
    with tempfile.TemporaryDirectory() as temporary:
        index = write_index(Path(temporary) / "index.csv", [Clip(name, name, "any", "train") for name in names])
        spec = SourceSpec(format="files", root=str(folder), pattern="(?P<label>)")
        began = time.perf_counter()
        build_skeleton_store(index, open_source(spec), Path(temporary) / "store", SkeletonPolicy(), workers)
        built = time.perf_counter() - began
        kilobytes = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        own, others = (size / 1000 for size in kilobytes)
        store = SkeletonStore(Path(temporary) / "store")
        began = time.perf_counter()
        for i in range(len(store)):
            store.read(i).sum()  # the store is a memory map: touch every number
        read = time.perf_counter() - began
        megabytes = store.manifest["bytes"] / 1e6
    return Speed(len(names), workers, len(names) / built, len(store) / read, own, others, megabytes)


def write_samples(folder: str | Path, number: int, seed: int = 0) -> None:
    """Write `number` random `.skeleton` files of about the size of NTU's (a fifth with two bodies)."""
    folder, rng = Path(folder), np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(number):
        frames, bodies = int(rng.integers(MEAN_FRAMES - 40, MEAN_FRAMES + 41)), 1 + (i % 5 == 0)
        joints = rng.standard_normal((bodies, 1, 25, 3)) * 0.3 + rng.standard_normal((bodies, frames, 25, 3)) * 0.05
        rest = rng.standard_normal((frames, bodies, 25, 8))
        lines = [str(frames)]
        for t in range(frames):
            lines.append(str(bodies))
            for m in range(bodies):
                lines += [f"{72057594037900000 + 10 * i + m} 0 1 1 0 0 0 0.02 -0.1 2", "25"]
                for joint, other in zip(joints[m, t].tolist(), rest[t, m].tolist(), strict=True):
                    lines.append(" ".join(f"{value:.7g}" for value in (*joint, *other)) + " 2")
        name = f"S001C001P{i // 120 % 999 + 1:03d}R{i // 120 // 999 + 1:03d}A{i % 120 + 1:03d}.skeleton"
        (folder / name).write_text("\r\n".join(lines) + "\r\n")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--generate", type=int, default=0, metavar="N")
    given = parser.parse_args()
    if given.generate:
        write_samples(given.folder, given.generate)
    print(measure(given.folder, given.workers))


if __name__ == "__main__":
    main()
