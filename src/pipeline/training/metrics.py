"""What a training says to Ray's metrics, and so to the dashboard, Prometheus and Grafana."""

from __future__ import annotations

import sys
import time
from typing import Any

import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.runner import Runner

WORDS = {
    "loss": "mean loss of the last optimiser step",
    "validation_accuracy": "accuracy on the validation classes or videos in per cent, when last measured",
    "items_per_second": "episodes, or batches, that this worker has trained on in a second",
    "data_wait_share": "share of the time of the last optimiser step spent waiting for data",
    "gpu_memory_bytes": "largest GPU memory so far",
}


class Watched(Hook):
    """Sets the gauges `pipeline_*` of a run and worker after each optimiser step; nothing without Ray."""

    priority = "VERY_LOW"  # after the validation, whose accuracy stands in the row

    def __init__(self, run_id: str, rows: list[dict[str, Any]], every: int) -> None:
        self.rows, self.every, self.gauges = rows, every, {}
        self.waited, self.ended = 0.0, time.perf_counter()
        self.began = self.ended
        if "ray" in sys.modules and sys.modules["ray"].is_initialized():
            from ray.util.metrics import Gauge

            tags = {"run": run_id, "worker": str(get_rank())}
            self.gauges = {name: Gauge(f"pipeline_{name}", words, tuple(tags)) for name, words in WORDS.items()}
            for gauge in self.gauges.values():
                gauge.set_default_tags(tags)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        self.waited += time.perf_counter() - self.ended

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict | None = None
    ) -> None:
        self.ended = time.perf_counter()
        if (runner.iter + 1) % self.every or not self.gauges or not self.rows:
            return  # the losses of the first steps may still be on the device
        seconds, row = self.ended - self.began, self.rows[-1]
        values = {
            "loss": row["loss"],
            "items_per_second": self.every / seconds,
            "data_wait_share": self.waited / seconds,
        }
        if row.get("validation_accuracy") is not None:
            values["validation_accuracy"] = row["validation_accuracy"]
        if torch.cuda.is_available():
            values["gpu_memory_bytes"] = torch.cuda.max_memory_allocated()
        for name, value in values.items():
            self.gauges[name].set(float(value))
        self.began, self.waited = self.ended, 0.0
