"""Where everything lies below the results folder. The one place that knows file names."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import UserError, unknown
from pipeline.experiment import Asset, Cell, Run, store_key


class Workspace:
    """Paths and specs below `root` (the results folder)."""

    def __init__(self, root: Path | str = "results") -> None:
        self.root = Path(root)

    # Folders

    def dataset(self, key: str) -> Path:
        """Folder of a data set: index.csv, texts.json, generated videos, frame stores."""
        return self.root / "data" / key

    def index(self, key: str) -> Path:
        """Clips of a data set, with class and split."""
        return self.dataset(key) / "index.csv"

    def texts(self, key: str) -> Path:
        """Texts of the classes of a data set."""
        return self.dataset(key) / "texts.json"

    def generated(self, key: str) -> Path:
        """Folder of the videos of a data set that the workflow generates."""
        return self.dataset(key) / "generated"

    def poses(self, key: str) -> Path:
        """Folder of the poses of a data set that the workflow extracts from its videos."""
        return self.dataset(key) / "poses"

    def manifest(self, dataset: str, store: str) -> Path:
        """What the frame store `store` of a data set holds; there when it is complete."""
        return self.dataset(dataset) / store / "manifest.json"

    def store(self, run: Run) -> Path:
        """Frame store of the data set and frame policy of a run."""
        return self.dataset(run.dataset) / store_key(run.frames)

    def backbone(self, key: str) -> Path:
        """Folder of a backbone that the workflow pretrained."""
        return self.root / "backbones" / key

    def pretrained(self, key: str) -> Path:
        """Settings of a backbone that the workflow pretrained; there when it is."""
        return self.backbone(key) / "config.json"

    def run(self, run_id: str) -> Path:
        """Folder of a training."""
        return self.root / "runs" / run_id

    def trained(self, run_id: str) -> Path:
        """Record of a training; there when it has ended."""
        return self.run(run_id) / "train.json"

    def scores(self, run_id: str) -> Path:
        """Folder of the cached scores of a run."""
        return self.root / "scores" / run_id

    def cell(self, cell_id: str) -> Path:
        """File of a measured number."""
        return self.root / "cells" / f"{cell_id}.json"

    def unmeasured(self, cells: Sequence[Cell]) -> list[Cell]:
        """Those of `cells` without a file, or with one that is older than the training or the data."""
        found = []
        for cell in cells:
            sources = self.run(cell.run.id) / "train.json", self.store(cell.run) / "manifest.json"
            made = max((path.stat().st_mtime_ns for path in sources if path.is_file()), default=0)
            path = self.cell(cell.id)
            if not (path.is_file() and path.stat().st_mtime_ns >= made):
                found.append(cell)
        return found

    @property
    def rates(self) -> Path:
        """How fast this machine is (`pipeline.rates`)."""
        return self.root / "gpu.json"

    def inspection(self, run_id: str) -> Path:
        """File of what was seen inside a trained run."""
        return self.root / "inspect" / f"{run_id}.npz"

    def table(self, paper: str, stem: str) -> Path:
        """Numbers of a table or figure, one a line."""
        return self.root / paper / f"{stem}.csv"

    def figure(self, paper: str, stem: str) -> Path:
        """A figure; its other formats lie beside it."""
        return self.root / paper / f"{stem}.svg"

    def progress(self, stage: str, name: str) -> Path:
        """File that says how far a stage is; there while it runs, and after it has failed."""
        return self.root / "progress" / f"{stage}-{name}.json"

    @property
    def answers(self) -> Path:
        """Folder of what language models answered, kept for ever."""
        return self.root / "text"

    @property
    def ray(self) -> Path:
        """Folder of the shared cluster: its address, token and logs."""
        return self.root / "ray"

    # Specs that `Plan.write_specs` wrote

    def _spec(self, name: str) -> dict[str, Any]:
        path = self.root / "specs" / f"{name}.json"
        if not path.is_file():
            known = sorted(item.stem for item in path.parent.glob(f"{name}*.json"))
            if len(known) == 1:
                path = path.with_name(f"{known[0]}.json")
            else:
                hint = f"one of {', '.join(known[:5])}" if known else "`python -m pipeline plan --write` lists them"
                raise UserError(f"no experiment {name!r} in {path.parent}; {hint}")
        return json.loads(path.read_text("utf-8"))

    def read_run(self, name: str) -> Run:
        """The planned run `name` (an unambiguous beginning of its id is enough)."""
        spec = self._spec(name)
        if "method" not in spec:
            raise UserError(
                f"{name!r} is not a run; `python -m pipeline plan --write` lists the runs in {self.root}/specs"
            )
        return Run.model_validate(spec)

    def read_asset(self, key: str) -> Asset:
        """The planned data set or backbone `key`."""
        return Asset.model_validate(self._spec(key))

    def read_store(self, name: str) -> dict[str, Any]:
        """The policy of the planned frame store `name`."""
        return self._spec(name)

    def read_cells(self, run_id: str, wanted: Sequence[str] | None = None) -> list[Cell]:
        """The planned cells of a run, or the `wanted` ones of them.

        Raises:
            UserError: a wanted cell is not planned.
        """
        planned = self._spec(f"cells-{run_id}")["cells"]
        for cell in wanted or ():
            if cell not in planned:
                raise unknown("cell", cell, planned, f"run {run_id}")
        return [Cell.model_validate(planned[cell]) for cell in wanted or planned]

    def read_shown(self, run_id: str) -> dict[str, str]:
        """Which clip figures show a planned run (`sheets.Show`); empty: the first of the test."""
        path = self.root / "specs" / f"shown-{run_id}.json"
        return json.loads(path.read_text("utf-8")) if path.is_file() else {}

    def read_sweep(self, name: str) -> dict[str, Any]:
        """The planned sweep `name`."""
        return self._spec(f"sweep-{name}")
