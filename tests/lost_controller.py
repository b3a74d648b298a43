"""Trainings on a Ray of this process, without a dashboard, whose controllers are killed: is their room free again?

The first dies as soon as it has the room, before its worker has started; the second when that works.

python lost_controller.py FOLDER: prints what was seen as JSON.
"""

import json
import sys
import threading
import time
from pathlib import Path

import psutil

from pipeline.cluster.client import connect
from pipeline.config import Cluster
from pipeline.workspace import Workspace


def _works(config: dict) -> None:
    Path(config["flag"]).touch()
    time.sleep(600)


def _train(folder: Path, name: str) -> Path:
    """Start a training in a thread; the flag that says that its worker works."""
    from ray.train import RunConfig, ScalingConfig  # after `connect`: Ray reads its settings when it is imported

    from pipeline.training.ray_train import LeanTrainer

    flag = folder / f"{name}.works"
    trainer = LeanTrainer(
        _works, train_loop_config={"flag": str(flag)},
        scaling_config=ScalingConfig(num_workers=1, resources_per_worker={"CPU": 1}),
        run_config=RunConfig(name=name, storage_path=str(folder)),
    )  # fmt: skip
    threading.Thread(target=trainer.fit, daemon=True).start()
    return flag


def _wait(seen, seconds: float) -> float | None:
    """Seconds until `seen()`; None if it never was."""
    began = time.monotonic()
    while time.monotonic() < began + seconds:
        if seen():
            return time.monotonic() - began
        time.sleep(0.1)
    return None


def _kill_controller() -> None:
    for process in psutil.Process().children(recursive=True):
        if "ray::TrainController" in " ".join(process.cmdline()):
            process.kill()


def main(folder: Path) -> None:
    connect(Workspace(folder / "results"), Cluster(mode="job", workers=1, threads=1, dashboard=False))
    import ray

    whole = ray.cluster_resources()["CPU"]
    seen = {}
    for moment in ("early", "late"):
        flag = _train(folder, moment)
        works = moment == "early" or _wait(flag.exists, 120) is not None
        taken = _wait(lambda: ray.available_resources().get("CPU", 0) == whole - 1, 120)  # Ray says it each second
        started = flag.exists()
        _kill_controller()
        freed = _wait(lambda: ray.available_resources().get("CPU", 0) == whole, 60)
        seen[moment] = {"works": works, "taken": taken is not None, "started": started, "freed": freed}
        if freed is None:
            break
    print(json.dumps(seen))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
