"""From the tables to the work: which cells, of which runs, on which data sets and backbones.

The plan is what Snakemake reads at parse time, and what `python -m pipeline plan` prints.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from pipeline.config import Config, merge, parse
from pipeline.datasets.kinds.base import DataSet, FrameKeys
from pipeline.datasets.kinds.registry import data_of, kind_named
from pipeline.errors import UserError, unknown
from pipeline.experiment import Asset, Cell, Measure, Run, canonical, digest, store_key
from pipeline.files import content_of, new_file
from pipeline.sheets import INSIDE, Column, Paper, Row, Table, read_papers, table_stem
from pipeline.tasks.kind import Kind
from pipeline.tasks.kinds import check_metric, kind_of
from pipeline.tasks.questions.kind import Encoder

BACKBONE_OPTIONS = ("path", "llm")  # where it lies, or what server has it
GONE = {"loader_workers": "cluster.loaders", "compile": "cluster.compile"}
"""Keys of recipes that change no number, and where they stand now."""
PRETRAINED = "pretrained"  # folder of backbones that come with the repository


@dataclass(frozen=True)
class Entry:
    """One place of a table: the printed value and the cells (one a seed) that are measured for it."""

    paper: str
    table: str
    row: str
    column: str
    metric: str
    published: float | None
    note: str
    cells: tuple[Cell, ...]
    dataset: str = ""
    """Name of the data set that was measured."""


@dataclass(frozen=True)
class SweepPlan:
    """Runs of one table that differ along one axis on one data set."""

    name: str
    axis: str
    runs: tuple[str, ...]


@dataclass
class Plan:
    """Everything that the configured tables need."""

    config: Config
    papers: dict[str, Paper] = field(default_factory=dict)
    entries: list[Entry] = field(default_factory=list)
    runs: dict[str, Run] = field(default_factory=dict)
    cells: dict[str, Cell] = field(default_factory=dict)
    datasets: dict[str, Asset] = field(default_factory=dict)
    backbones: dict[str, Asset] = field(default_factory=dict)
    sweeps: dict[str, SweepPlan] = field(default_factory=dict)
    _data: dict[str, DataSet] = field(default_factory=dict, repr=False)
    _methods: dict[str, tuple[dict[str, Any], Kind]] = field(default_factory=dict, repr=False)
    _datasets: dict[str, Asset] = field(default_factory=dict, repr=False)
    """By the name in the sheets; `datasets` is by key."""
    _backbones: dict[tuple[str, str], Asset] = field(default_factory=dict, repr=False)
    """By the name in the settings and the key of the data set that it is used on."""

    @classmethod
    def read(
        cls,
        folder: Path | str = "config",
        overlay: Mapping[str, Any] | None = None,
        paper: str = "",
        number: str = "",
    ) -> Plan:
        """The plan of the tables in `folder` under `overlay`; with `paper` or `number` what these alone need.

        Raises:
            UserError: something in the configuration is wrong; the message names file, key and nearest name.
        """
        plan = cls(Config(folder, overlay))
        plan._check_overlays()
        plan.papers = read_papers(plan.config)
        for name, sheet in plan.papers.items():
            for key, table in sheet.tables.items():
                if paper in ("", name) and number in ("", key):
                    plan._add_table(name, key, table)
        return plan

    def _check_overlays(self) -> None:
        """Keys of the settings that would be passed over in silence."""
        settings, where = self.config.settings, f"the settings ({self.config.folder}/config.yaml, scale, command line)"
        parse(FrameKeys, settings.frames, f"{self.config.folder}/config.yaml (or scale, or command line), frames")
        _refuse_gone(settings.train, where)
        methods = [self.method(name, where) for name in self.config.names("methods")]
        known = {"train": set(), "model": set()}
        for recipe, kind in methods:
            known["train"] |= kind.keys(recipe.get("train", {})) if kind.scaled else set()
            known["model"] |= _model_keys(recipe)
        for part, keys in known.items():
            if odd := set(getattr(settings, part)) - keys:
                raise unknown(f"{part} key", min(odd), keys, where)
        for name in [*settings.substitute, *settings.substitute.values()]:
            self.config.entry("datasets", name, f"{where}, key substitute")
        for name in [*settings.substitute_backbone, *settings.substitute_backbone.values()]:
            self.config.backbone(name, f"{where}, key substitute_backbone")
        for name in settings.cluster.precision:
            self.method(name, f"{where}, key cluster.precision")
        for name, budget in settings.budgets.items():
            recipe, kind = self.method(name, f"{where}, key budgets")
            keys = kind.keys(recipe.get("train", {}))
            for part, content in budget.items():
                if part not in ("train", "measure"):
                    raise unknown("key", part, ("train", "measure"), f"{where}, key budgets.{name}")
                _refuse_gone(content if part == "train" else {}, f"{where}, key budgets.{name}")
                if odd := set(content) - keys if part == "train" else ():
                    raise unknown("train key", min(odd), keys, f"{where}, key budgets.{name}")

    def method(self, name: str, where: str) -> tuple[dict[str, Any], Kind]:
        """The recipe of a method, checked, and its kind of task.

        Raises:
            UserError: there is no such method; a key of it is missing, unknown or wrong.
        """
        if name not in self._methods:
            recipe = self.config.entry("methods", name, where)
            recipe.pop("extends", None)
            kind = kind_of(recipe, self.config.place("methods", name, "task"))
            _refuse_gone(recipe.get("train", {}), self.config.place("methods", name, "train"))
            parse(kind.recipe, recipe, lambda key: self.config.place("methods", name, key))
            train = recipe.get("train", {})
            for dataset, schedule in recipe.get("schedules", {}).items():
                here = f"{self.config.place('methods', name, 'schedules')}, schedules.{dataset}"
                if odd := set(schedule) - kind.keys(train):
                    raise unknown("train key", min(odd), kind.keys(train), here)
                parse(kind.train, merge(train, schedule), here)
            self._methods[name] = recipe, kind
        return self._methods[name]

    def kind(self, run: Run) -> Kind:
        """The kind of task of a run."""
        return self.method(run.method, run.id)[1]

    def _add_table(self, paper: str, number: str, table: Table) -> None:
        trials: dict[str, dict[str, Any]] = {}
        for row in table.rows:
            for index, column in enumerate(table.columns):
                published = row.published[index] if row.published else None
                where = f"{self.config.folder}/tables/{paper}.yaml, table {number}, row {row.name!r}"
                cells = self._cells(row, column, where) if row.experiment else ()
                if not cells and published is None:
                    continue
                note = "; ".join(filter(None, [row.published_only, row.note, row.notes.get(column.name, "")]))
                dataset = cells[0].run.dataset.rsplit("-", 1)[0] if cells else ""
                self.entries.append(
                    Entry(paper, number, row.name, column.name, column.metric, published, note, cells, dataset)
                )
                if table.sweep:
                    for cell in cells:
                        trials.setdefault(cell.run.dataset, {})[cell.run.id] = None
        for dataset, runs in trials.items():
            name = f"{paper}_{table_stem(number)}-{dataset}"
            self.sweeps[name] = SweepPlan(name, table.sweep.axis, tuple(runs))

    def _cells(self, row: Row, column: Column, where: str) -> tuple[Cell, ...]:
        """The cells of one place of a table, one for each training seed."""
        on, what = (
            column.experiment.model_dump(exclude_unset=True),
            row.experiment.model_dump(exclude_unset=True),
        )
        delta = merge(on, what)
        if "method" not in delta or "dataset" not in delta:
            raise UserError(
                f"{where}: neither row nor column names a {'method' if 'method' not in delta else 'dataset'}"
            )
        delta.setdefault("measure", {})["metric"] = column.metric
        cells = [self.cell(delta, seed, where) for seed in self.config.settings.seeds]
        for cell in cells:
            self.cells.setdefault(cell.id, cell)
            self.runs.setdefault(cell.run.id, cell.run)
        return tuple(cells)

    def cell(self, delta: Mapping[str, Any], seed: int, where: str) -> Cell:
        """The cell of an experiment: method defaults, schedule of the data set, scale, then the experiment.

        Raises:
            UserError: an unknown method, data set, backbone or key.
        """
        settings = self.config.settings
        method, kind = self.method(delta["method"], where)
        name = self._stands_in(delta["dataset"], where)
        dataset = self.dataset(name, where)
        train = self._scheduled(method, name, delta.get("train", {}))
        budget = settings.budgets.get(delta["method"], {})
        if kind.scaled:  # a scale's rates and lengths are of episodes; others have their budgets
            own = kind.keys(train)
            train = merge(train, {key: value for key, value in settings.train.items() if key in own})
        train = merge(train, budget.get("train", {}))
        options = method.get("options", {})
        model = merge(options | method.get("model", {}), method.get("models", {}).get(name, {}))
        model = merge(model, {key: value for key, value in settings.model.items() if key in model})
        _refuse_gone(delta.get("train", {}), f"{where} (method {delta['method']})")
        for part, known in (("model", _model_keys(method)), ("train", kind.keys(method.get("train", {})))):
            for key in delta.get(part, {}):
                if key not in known:
                    raise unknown(f"{part} key", key, known, f"{where} (method {delta['method']})")
        wanted = delta.get("backbone") or method.get("backbone", "")
        wanted = settings.substitute_backbone.get(wanted, wanted)
        backbone = self.backbone(wanted, dataset, where).key if wanted else ""
        measure = merge(merge(method.get("measure", {}), settings.measure), budget.get("measure", {}))
        measure = merge(measure, delta.get("measure", {}))
        measure.setdefault("alpha_grid", settings.alpha_grid)
        measure = parse(Measure, measure, f"{where}, measure").settled()
        train = kind.settle(merge(train, delta.get("train", {})), measure, where)
        if train.get("base_set"):
            train["base_set"] = self._base_set(dataset, train["base_set"], where)
        model = kind.settle_model(merge(model, delta.get("model", {})), train, where)
        model = {key: value for key, value in model.items() if key not in options or value != options[key]}
        check_metric(measure, kind, where)
        kind.check_measure(measure, model, where)
        text = _texts_of(dataset, model)
        if encoder := self._encoder(method, delta, train, seed, where):
            model, text = model | {"encoder_run": encoder.id}, _names_of(dataset)
        run = Run(
            method=delta["method"],
            model=model,
            train=train,
            dataset=dataset.key,
            frames=merge(self.frames(dataset), self._chosen_frames(method, delta, dataset, where)),
            backbone=backbone,
            text=text,
            scale=settings.scale,
            seed=seed if train else 0,
            selection=self._selection(delta, dataset) if train else "last",
            recipe=method.get("recipe", 1),
        )
        return Cell(run=run, measure=measure)

    def _stands_in(self, name: str, where: str) -> str:
        """The data set that is measured where a table names `name`."""
        settings = self.config.settings
        if name in settings.substitute or not settings.stand_in:
            return settings.substitute.get(name, name)
        if wanted := self.config.entry("datasets", name, where).get("stands_in"):
            self.config.entry("datasets", wanted, f"{self.config.place('datasets', name, 'stands_in')}, key stands_in")
        return wanted or name

    def _scheduled(self, method: Mapping[str, Any], dataset: str, asked: Mapping[str, Any]) -> dict[str, Any]:
        """The recipe of a method on a data set, and on one of its base sets (`schedules: {DATASET/BASE SET: ...}`)."""
        train, schedules = method.get("train", {}), method.get("schedules", {})
        train = merge(train, schedules.get(dataset, {}))
        base_set = asked.get("base_set", train.get("base_set"))
        return merge(train, schedules.get(f"{dataset}/{base_set}", {}))

    def _encoder(
        self, method: Mapping[str, Any], delta: Mapping[str, Any], train: Mapping[str, Any], seed: int, where: str
    ) -> Run | None:
        """The run whose features a method reads, registered in the plan: same data set, label rate and seed."""
        wanted = merge(method.get("encoder", {}), delta.get("encoder", {}))
        if not wanted:
            return None
        if "encoder" not in method:
            raise UserError(f"{where}: the method {delta['method']} reads no features of another run; drop `encoder`")
        here = f"{where}, encoder"
        parse(Encoder, wanted, here)
        given = {key: delta[key] for key in ("dataset", "selection") if delta.get(key)}
        run = self.cell(merge(given | {"train": {"label_rate": train["label_rate"]}}, wanted), seed, here).run
        return self.runs.setdefault(run.id, run)

    def _chosen_frames(
        self, method: Mapping[str, Any], delta: Mapping[str, Any], dataset: Asset, where: str
    ) -> dict[str, Any]:
        """What recipe and experiment say of the choice of frames, or of how skeletons are shown."""
        recipe, asked = method.get("frames", {}), delta.get("frames", {})
        for own, place in ((recipe, self.config.place("methods", delta["method"], "frames")), (asked, where)):
            parse(self.data(dataset).method_frames, own, f"{place}, frames")
        return merge(recipe, asked)

    def _selection(self, delta: Mapping[str, Any], dataset: Asset) -> str:
        """The rule that selects a checkpoint; where nothing is held out to select one, it is the last one."""
        wanted = delta.get("selection") or self.config.settings.selection
        return "last" if wanted == "val" and not self.data(dataset).validated else wanted

    def _base_set(self, dataset: Asset, name: str, where: str) -> str:
        """The first name of a set of base classes, so that equal sets of two tables are one."""
        bases = self.data(dataset).bases
        if name not in bases:
            raise unknown("base set", name, bases, f"{where} (data set {dataset.name}, protocol.bases)")
        return next(other for other, classes in bases.items() if classes == bases[name])

    def dataset(self, name: str, where: str) -> Asset:
        """The data set `name`, registered in the plan."""
        if name in self._datasets:
            return self._datasets[name]
        definition, place = self.config.entry("datasets", name, where), partial(self.config.place, "datasets", name)
        kind = kind_named(definition, place)
        spec, options = kind.divide(definition, place, lambda other, here: self.dataset(other, here).key)
        options |= self._described(definition, kind.prompts, place("describe"))
        asset = Asset(name=name, spec=spec, options=options)
        if not kind(asset).whole:
            share = definition.get("min_coverage")
            options["min_coverage"] = float(self.config.settings.min_coverage if share is None else share)
            asset = asset.model_copy(update={"options": options})
        self._datasets[name] = self.datasets.setdefault(asset.key, asset)
        return self._datasets[name]

    def data(self, dataset: Asset) -> DataSet:
        """A data set, as its kind answers for it."""
        if dataset.key not in self._data:
            self._data[dataset.key] = data_of(dataset)
        return self._data[dataset.key]

    def _described(self, definition: Mapping[str, Any], prompts: Sequence[str], where: str) -> dict[str, Any]:
        """The keys that say how a language model writes the texts, with its settings and the prompts' words."""
        from pipeline.text.prompts import resolve

        made: dict[str, Any] = {}
        config = self.config
        if definition.get("describe") not in (None, False):
            made["describe"] = resolve(config, definition["describe"], prompts, f"{where}, describe")
        if corpora := definition.get("corpora"):
            made["corpora"] = {
                name: given if isinstance(given, str) else resolve(config, given, prompts, f"{where}, corpora.{name}")
                for name, given in corpora.items()
            }
        return made

    def backbone(self, name: str, dataset: Asset, where: str) -> Asset:
        """The backbone `name`, registered in the plan.

        One that the workflow pretrains names its data sets in `sources`; "own" is the one that it is used on. Its
        option `packed` is the folder from which it is fetched, where the repository has it.
        """
        if known := self._backbones.get((name, dataset.key)):
            return known
        definition = self.config.backbone(name, where)
        spec = {key: value for key, value in definition.items() if key not in BACKBONE_OPTIONS}
        options = {key: value for key, value in definition.items() if key in BACKBONE_OPTIONS}
        if spec.get("kind") == "vision_server":
            options["llm"] = merge(self.config.settings.llm.model_dump(exclude={"prompts"}), options.get("llm", {}))
        if "sources" in spec:
            here = f"{self.config.folder}/backbones.yaml, {name}, sources"
            own = spec["sources"] == "own"
            assets = [dataset] if own else [self.dataset(source, here) for source in spec["sources"]]
            stores = [store_key(self.frames(asset)) for asset in assets]
            texts = [_texts_of(asset, {}) for asset in assets]
            spec = spec | {"sources": [a.key for a in assets], "stores": stores, "texts": texts}
        asset = Asset(name=name, spec=spec, options=options)
        packed = self.config.folder / PRETRAINED / asset.key
        if packed.is_dir():
            asset = asset.model_copy(update={"options": options | {"packed": str(packed.resolve())}})
        self._backbones[name, dataset.key] = self.backbones.setdefault(asset.key, asset)
        return self._backbones[name, dataset.key]

    def frames(self, dataset: Asset) -> dict[str, Any]:
        """The frame policy of a data set, or how its skeletons are stored and shown."""
        return self.data(dataset).frames(self.config.settings.frames)

    # What Snakemake asks

    @cached_property
    def stores(self) -> dict[str, dict[str, Any]]:
        """Frame store name -> its policy."""
        policies = [self.frames(asset) for asset in self.datasets.values()]
        return {store_key(frames): frames["store"] for frames in policies}

    @cached_property
    def cells_of(self) -> dict[str, list[str]]:
        """Run id -> ids of its cells."""
        out: dict[str, list[str]] = {run: [] for run in self.runs}
        for cell in self.cells.values():
            out[cell.run.id].append(cell.id)
        return out

    @cached_property
    def measured_together(self) -> dict[str, tuple[str, list[str]]]:
        """Jobs that measure: name -> (run id, ids of cells of the run whose scores the same tables need).

        So a target scores nothing that it does not need; cells that are read off the same scores, as those of another
        alpha, come with them. The only job of a run has the run's id as its name, others the id of their first cell.
        """
        tables: dict[tuple[str, str], set[tuple[str, str]]] = {}
        for entry in self.entries:
            for cell in entry.cells:
                tables.setdefault((cell.run.id, cell.measure.scored), set()).add((entry.paper, entry.table))
        parts: dict[tuple[str, frozenset], list[str]] = {}
        for run, cells in self.cells_of.items():
            for cell in cells:
                read_by = frozenset(tables[run, self.cells[cell].measure.scored])
                parts.setdefault((run, read_by), []).append(cell)
        return {
            run if len(cells) == len(self.cells_of[run]) else cells[0]: (run, cells)
            for (run, _), cells in parts.items()
        }

    def datasets_read(self) -> set[str]:
        """Keys of the data sets that runs or backbones read; others are generated for the sake of these."""
        read = {run.dataset for run in self.runs.values()}
        made = (asset for asset in self.backbones.values() if "packed" not in asset.options)
        return read | {key for asset in made for key in asset.spec.get("sources", ())}

    @cached_property
    def swept(self) -> dict[str, str]:
        """Run id -> the sweep that trains it; a run that another table needs too is trained on its own."""
        alone = {
            cell.run.id
            for entry in self.entries
            if not self.papers[entry.paper].tables[entry.table].sweep
            for cell in entry.cells
        }
        return {run: sweep.name for sweep in self.sweeps.values() for run in sweep.runs if run not in alone}

    def tables(self, paper: str | None = None) -> list[tuple[str, str]]:
        """(paper, table) of every table, or of one paper's."""
        return [(p, t) for p, sheet in self.papers.items() for t in sheet.tables if paper in (None, p)]

    def figures(self, paper: str) -> list[str]:
        """Stems of the files of the figures of a paper: drawn sheets, and the curves of its trainings."""
        drawn = [table_stem(number) for number, table in self.papers[paper].tables.items() if table.figure]
        trained = any(cell.run.train for entry in self.entries if entry.paper == paper for cell in entry.cells)
        return [*drawn, *(["training"] if trained else [])]

    def numbers(self) -> list[str]:
        """Every table number that some paper has."""
        return list(dict.fromkeys(table for _, table in self.tables()))

    def table_entries(self, paper: str, table: str) -> list[Entry]:
        """The places of one table.

        Raises:
            UserError: there is no such paper or table.
        """
        if paper not in self.papers:
            raise unknown("paper", paper, self.papers)
        if table not in self.papers[paper].tables:
            raise unknown("table", f"table{table}", [f"table{t}" for t in self.papers[paper].tables], f"paper {paper}")
        return [entry for entry in self.entries if (entry.paper, entry.table) == (paper, table)]

    def table_cells(self, paper: str, table: str) -> list[str]:
        """Ids of the cells of one table."""
        return list(dict.fromkeys(c.id for entry in self.table_entries(paper, table) for c in entry.cells))

    def table_inspections(self, paper: str, table: str) -> list[str]:
        """Ids of the runs that are inspected for the figure of a table: of each place that of the first seed."""
        figure = self.papers[paper].tables[table].figure
        if figure is None or figure.kind not in INSIDE:
            return []
        return list(dict.fromkeys(e.cells[0].run.id for e in self.table_entries(paper, table) if e.cells))

    @cached_property
    def inspected(self) -> list[str]:
        """Ids of the runs that figures look into."""
        return list(dict.fromkeys(run for place in self.tables() for run in self.table_inspections(*place)))

    @cached_property
    def shown(self) -> dict[str, dict[str, str]]:
        """Run id -> which clip figures show it (`sheets.Show`), where it is not the first of the test."""
        out: dict[str, dict[str, str]] = {}
        for paper, number in self.tables():
            figure = self.papers[paper].tables[number].figure
            for run in self.table_inspections(paper, number) if figure else ():
                wish = figure.show.get(self.datasets[self.runs[run].dataset].name)
                wanted = wish.model_dump(exclude_defaults=True) if wish else {}
                if out.setdefault(run, wanted) != wanted:
                    raise UserError(f"{paper}, {number}: another figure shows {run} another clip; name one")
        return {run: wanted for run, wanted in out.items() if wanted}

    def write_specs(self, folder: Path | str) -> None:
        """Write every run, cell, data set and backbone to `folder`, one JSON file each.

        Stages read these, so that a job sees exactly what was planned, with all overlays. The files are named by
        their content, so an existing one is never rewritten; only the options of an asset may change.
        """
        folder = Path(folder)
        things: Iterable[tuple[str, Any]] = [
            *((f"{run.id}", run) for run in self.runs.values()),
            *((f"{key}", asset) for key, asset in {**self.datasets, **self.backbones}.items()),
            *self.stores.items(),
            *((f"sweep-{name}", vars(sweep)) for name, sweep in self.sweeps.items()),
            *((f"shown-{run}", wanted) for run, wanted in self.shown.items()),
            *(
                (f"cells-{run}", {"cells": {cell: self.cells[cell] for cell in cells}})
                for run, cells in self.cells_of.items()
            ),
        ]
        folder.mkdir(parents=True, exist_ok=True)
        for name, thing in things:
            path, text = folder / f"{name}.json", canonical(thing) + "\n"
            if not path.is_file() or path.read_text("utf-8") != text:
                with new_file(path) as temporary:
                    temporary.write_text(text, "utf-8")


def _model_keys(recipe: Mapping[str, Any]) -> set[str]:
    """Settings that the model of a method may have."""
    return {*recipe.get("model", {}), *recipe.get("options", {})}


def _refuse_gone(train: Mapping[str, Any] | None, where: str) -> None:
    """Raise UserError for a key of a recipe that stands elsewhere now."""
    for key in sorted((train or {}).keys() & GONE.keys()):
        raise UserError(
            f"{where}: train.{key} changes no number, so it is no part of a recipe any more; set {GONE[key]} instead"
        )


def _texts_of(dataset: Asset, model: Mapping[str, Any]) -> str:
    """Short hash of the texts that a model reads: of the user's file, else of what a language model is asked.

    The file is the data set's, or that of the corpus which the model names.
    """
    from pipeline.text.prompts import identity

    if name := model.get("corpus"):
        given = dataset.options.get("corpora", {}).get(name)
        return identity(given) if isinstance(given, dict) else content_of(given)
    asked = dataset.options.get("describe")
    return content_of(dataset.options.get("texts")) or (identity(asked) if asked else "")


def _names_of(dataset: Asset) -> str:
    """Short hash of the names of the classes, of a file or as the definition lists them; empty where there are none."""
    names = dataset.options.get("names", "")
    return content_of(names) if isinstance(names, str) else digest(names)


__all__ = ["Entry", "Plan", "SweepPlan", "store_key"]
