"""Settings: one complete default (`config/`), overlaid by a scale, by files and by the command line.

Every error names the file and the key, and the nearest known name.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.errors import UserError, unknown

Model = TypeVar("Model", bound=BaseModel)
Stage = Literal["generate", "poses", "splits", "frames", "pretrain", "train", "sweep", "evaluate"]


class Cluster(BaseModel):
    """Where trainings run."""

    model_config = ConfigDict(extra="forbid")
    mode: Literal["shared", "job"] = Field(
        "shared",
        description="shared: all runs on one running Ray cluster (started when first needed); "
        "job: every training starts its own Ray cluster",
    )
    slots: int = Field(2, ge=1, description="trainings at a time on the shared cluster")
    threads: int = Field(1, ge=1, description="CPU threads of each training")
    loaders: int = Field(
        -1, ge=-1, description="processes that read clips ahead for each training; -1: as many as its threads allow"
    )
    compile: bool = Field(False, description="compile the layers of CLIP's frame tower (torch.compile)")
    precision: dict[str, Literal["float32", "tf32", "bf16"]] = Field(
        {},
        description="method -> in what its trainings compute on a GPU that can. bf16: the layers of CLIP's frame tower "
        "in bfloat16; tf32: products of matrices with factors of 10 bits; float32, of methods not named: neither",
    )
    gpus: float = Field(0, ge=0, description="GPUs of each training; a fraction packs several on one GPU")
    workers: int = Field(1, ge=1, description="processes of one training, which share its episodes")
    nodes: int = Field(1, ge=1, description="nodes of a Slurm job over which Ray and its workers are spread")
    interface: str = Field("", description="network interface between nodes; empty: the one that Slurm uses")
    stop_minutes: float = Field(
        2, ge=0, description="how long before its time limit a Slurm job saves a checkpoint and ends"
    )
    idle_minutes: float = Field(2, gt=0, description="how long the shared cluster may be unused before it stops")
    dashboard: bool = Field(True, description="start Ray's dashboard with the shared cluster")
    tracker: Literal["", "wandb", "mlflow"] = Field("", description="where curves go besides TensorBoard")


class LLM(BaseModel):
    """The language model that describes classes, on any server that offers OpenAI's chat completions."""

    model_config = ConfigDict(extra="forbid")
    model: str = Field("", description="name of the model, as the server calls it")
    base_url: str = Field("", description="address up to /v1; empty: $OPENAI_BASE_URL, or else OpenAI's")
    key: str = Field("OPENAI_API_KEY", description="environment variable that holds the key, which is in no file")
    parameters: dict[str, Any] = Field(
        {"temperature": 0.0}, description="sent with every question: temperature, seed, max_tokens, ..."
    )
    prompts: list[str] = Field([], description="files in config/prompts; empty: those that the kind of data set needs")
    concurrency: int = Field(4, ge=1, description="questions at a time")
    timeout: float = Field(120, gt=0, description="seconds to wait for an answer")
    retries: int = Field(6, ge=0, description="further attempts after 408, 409, 429, 5xx, time-outs, lost connections")
    repairs: int = Field(2, ge=0, description="turns in which the model may repair an answer of the wrong form")
    price: dict[Literal["input", "output"], float] = Field({}, description="of a million tokens, to print the cost")


PLACES = ("cluster", "resources", "site", "mirror")  # settings that say where and how fast something is done
ANSWERED_BY = ("model", "parameters", "prompts")  # of `LLM`: what decides the answers


def without_places(overlay: Mapping[str, Any]) -> dict[str, Any]:
    """What of an overlay decides results."""
    kept = {key: value for key, value in overlay.items() if key not in PLACES}
    if isinstance(kept.get("llm"), Mapping):
        kept["llm"] = {key: value for key, value in kept["llm"].items() if key in ANSWERED_BY}
        if not kept["llm"]:
            del kept["llm"]
    return kept


class Settings(BaseModel):
    """`config/config.yaml`, checked."""

    model_config = ConfigDict(extra="forbid")
    scale: str = Field("demo", description="overlay in config/scales: budgets and substitutions")
    seeds: list[int] = Field([0], min_length=1, description="training seeds; a cell reports their mean")
    selection: Literal["val", "last", "test"] = Field(
        "val", description="which checkpoint is measured; test is the released papers' way and is labelled so"
    )
    alpha_grid: list[float] = Field(
        [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0],
        min_length=1,
        description="weights of Eq. 5 tried",
    )
    cluster: Cluster = Field(default_factory=Cluster, description="where trainings run")
    substitute: dict[str, str] = Field({}, description="data set in a table -> data set used instead")
    stand_in: bool = Field(
        False, description="use the data set that a definition's `stands_in` names, if `substitute` says nothing"
    )
    substitute_backbone: dict[str, str] = Field({}, description="backbone that is named -> backbone used instead")
    frames: dict[str, Any] = Field({}, description="overlay on the frame policy of every data set")
    train: dict[str, Any] = Field({}, description="overlay on the recipe of every method that is trained on episodes")
    model: dict[str, Any] = Field({}, description="overlay on the model settings of every method that has them")
    measure: dict[str, Any] = Field({}, description="overlay on every measurement")
    budgets: dict[str, dict[str, dict[str, Any]]] = Field(
        {}, description="method -> {train, measure}: overlay on one method's recipe, over the general ones"
    )
    min_coverage: float = Field(
        0.9,
        ge=0,
        le=1,
        description="share of each split's listed clips that must be there; a data set may have its own",
    )
    datasets: dict[str, dict[str, Any]] = Field({}, description="overlay on config/datasets/NAME.yaml, or a new one")
    methods: dict[str, dict[str, Any]] = Field({}, description="overlay on config/methods/NAME.yaml, or a new one")
    backbones: dict[str, dict[str, Any]] = Field({}, description="overlay on config/backbones.yaml, or a new one")
    tables: dict[str, Any] = Field({}, description="overlay on config/tables/PAPER.yaml, or a new paper")
    llm: LLM = Field(default_factory=LLM, description="writes the texts of data sets with the key describe")
    mirror: str = Field("", description="folder or server that holds every file to download, at MIRROR/HOST/PATH")
    site: dict[str, int | str] = Field(
        {},
        description="what every job asks of this site's Slurm (slurm_partition, slurm_account, constraint, ...); what "
        "a stage asks for itself goes over it",
    )
    resources: dict[Stage, dict[str, int | str]] = Field(
        {},
        description="stage -> what its jobs ask of a cluster (gpu, mem_mb, runtime in minutes, ...), threads, and "
        "for frames and poses nodes",
    )


def check_command_line(words: Sequence[str], config: Mapping[str, Any], scale: str) -> Iterator[str]:
    """What has to be said of the words with which Snakemake was called, whose `--config` is `config` then.

    Raises:
        UserError: `--config` is given twice; Snakemake drops the first one silently.
    """
    given = [word for word in words if word in ("--config", "-C") or word.startswith("--config=")]
    if len(given) > 1:
        raise UserError("--config is given twice, and Snakemake reads only the last; write `--config a=1 b=2`")
    profiles = [after for word, after in pairwise(words) if word == "--profile"]
    profiles += [word.partition("=")[2] for word in words if word.startswith("--profile=")]
    if given and "scale" not in config:
        for lost in filter(None, map(_scale_of_profile, profiles)):
            if lost != scale:
                yield (
                    f"scale {scale} runs, and not {lost}: --config takes the place of the profile's settings; "
                    f"add scale={lost} to it if that is meant"
                )


def _scale_of_profile(folder: str) -> str:
    """The scale in a profile's own `config`; empty where it has none."""
    try:
        content = yaml.safe_load((Path(folder) / "config.yaml").read_text("utf-8"))
    except (OSError, yaml.YAMLError):
        return ""
    given = content.get("config", []) if isinstance(content, Mapping) else []
    if isinstance(given, Mapping):
        return str(given.get("scale", ""))
    return next((str(item).partition("=")[2] for item in given if str(item).startswith("scale=")), "")


def merge(base: Mapping[str, Any], overlay: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `overlay` on top: mappings are merged key by key, everything else is replaced."""
    out = {key: _copy(value) for key, value in base.items() if key not in overlay}
    for key, value in overlay.items():
        both = isinstance(value, Mapping) and isinstance(base.get(key), Mapping)
        out[key] = merge(base[key], value) if both else _copy(value)
    return {key: out[key] for key in [*base, *(key for key in overlay if key not in base)]}


def _copy(value: Any) -> Any:
    """A deep copy; what settings consist of is copied some five times as fast as by `copy.deepcopy`."""
    if type(value) is dict:
        return {key: _copy(entry) for key, entry in value.items()}
    if type(value) is list:
        return [_copy(entry) for entry in value]
    return value if type(value) in (str, int, float, bool, NoneType) else copy.deepcopy(value)


@lru_cache(maxsize=256)
def _load(path: Path, mtime: int) -> Any:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        return yaml.load(path.read_text("utf-8"), Loader=loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark else ""
        reason = getattr(error, "problem", None) or " ".join(str(error).split())
        raise UserError(f"{path}{line}: not valid YAML: {reason}") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file that holds a mapping.

    Raises:
        UserError: the file is missing, is no YAML, or holds something else.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    content = _load(path, path.stat().st_mtime_ns)
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected `key: value` lines, found a {type(content).__name__}")
    return content


class Config:
    """The settings of one invocation and the files they refer to."""

    def __init__(self, folder: Path | str = "config", overlay: Mapping[str, Any] | None = None) -> None:
        """Reads `folder`/config.yaml, its scale, then `overlay` (from the command line, say).

        Raises:
            UserError: a file or key is wrong; the message names both.
        """
        self.folder = Path(folder)
        self._names: dict[str, list[str]] = {}
        self.overlay = overlay = dict(overlay or {})
        default = read_yaml(self.folder / "config.yaml")
        scale = str(overlay.get("scale") or default.get("scale", "demo"))
        scales = {path.stem: path for path in sorted((self.folder / "scales").glob("*.yaml"))}
        if scale not in scales:
            where = "settings of the command line" if overlay.get("scale") else f"{self.folder}/config.yaml"
            raise unknown("scale", scale, scales, f"{where}, key scale")
        # Layer by layer, so that an error names the file that it is in.
        check(default, f"{self.folder}/config.yaml")
        merged = merge(default, read_yaml(scales[scale]))
        check(merged, str(scales[scale]))
        self.settings = check(merge(merged, overlay | {"scale": scale}), "settings of the command line")

    def names(self, kind: str) -> list[str]:
        """Known data sets, methods or tables (`kind` is the folder's name)."""
        if kind not in self._names:
            files = {path.stem for path in (self.folder / kind).glob("*.yaml")}
            self._names[kind] = sorted(files | set(getattr(self.settings, kind)))
        return self._names[kind]

    def entry(self, kind: str, name: str, where: str) -> dict[str, Any]:
        """The definition `config/KIND/NAME.yaml` with its overlay; `where` says who asked for it.

        Raises:
            UserError: no such name; the nearest one is named.
        """
        if name not in self.names(kind):
            raise unknown(kind.removesuffix("s"), name, self.names(kind), where)
        return merge(self._written(kind, name), getattr(self.settings, kind).get(name, {}))

    def _written(self, kind: str, name: str, above: tuple[str, ...] = ()) -> dict[str, Any]:
        """The definition of an entry as files have it: laid over that of the entry which its key `extends` names.

        A `model` that says its `type` starts anew, with `models` and `options`: it takes other settings.
        """
        path, overlay = self.folder / kind / f"{name}.yaml", getattr(self.settings, kind).get(name, {})
        own = read_yaml(path) if path.is_file() else {}
        parent = overlay.get("extends", own.get("extends"))
        if parent is None:
            return own
        where = f"{self.place(kind, name, 'extends')}, key extends"
        if parent not in self.names(kind):
            raise unknown(kind.removesuffix("s"), str(parent), self.names(kind), where)
        if parent in (*above, name):
            raise UserError(f"{where}: {name} extends {' extends '.join((*above, str(parent)))}; end the circle")
        base = self._written(kind, parent, (*above, name))
        if not (self.folder / kind / f"{parent}.yaml").is_file():
            base = merge(base, getattr(self.settings, kind)[parent])
        if "type" in {**own.get("model", {}), **overlay.get("model", {})}:
            base = {key: value for key, value in base.items() if key not in ("model", "models", "options")}
        return merge(base, own)

    def place(self, kind: str, name: str, key: str = "") -> str:
        """Where an entry, or its `key`, stands, for messages: its file, or the settings that are laid over it."""
        path, overlay = self.folder / kind / f"{name}.yaml", getattr(self.settings, kind).get(name, {})
        if path.is_file() and key not in overlay:
            own = read_yaml(path)
            return str(path) if key in own or "extends" not in own else self.place(kind, own["extends"], key)
        return f"the settings (scale, configfile or command line), key {kind}.{name}"

    def backbone(self, name: str, where: str) -> dict[str, Any]:
        """The definition of a backbone: an entry of `config/backbones.yaml` with its overlay."""
        known = merge(read_yaml(self.folder / "backbones.yaml"), self.settings.backbones)
        if name not in known:
            raise unknown("backbone", name, known, where)
        return known[name]


def check(content: Mapping[str, Any], where: str) -> Settings:
    """`content` as `Settings`.

    Raises:
        UserError: the first wrong key, with the file, and the nearest known key where it is unknown.
    """
    return parse(Settings, content, where)


def parse(model: type[Model], content: Mapping[str, Any], where: str | Callable[[str], str]) -> Model:
    """`content` checked against a pydantic `model`; errors name the place and the key.

    where: the place, or what says it of a top key.
    """
    try:
        return model.model_validate(content)
    except ValidationError as error:
        first = min(error.errors(), key=lambda found: found["type"] != "extra_forbidden")  # a misspelt key lacks, too
        key = ".".join(str(part) for part in first["loc"])
        where = where if isinstance(where, str) else where(str(first["loc"][0]))
        if first["type"] == "extra_forbidden":
            fields = _fields_at(model, first["loc"][:-1])
            raise unknown("key", str(first["loc"][-1]), fields, f"{where} ({key})") from None
        if first["type"] == "missing":
            raise UserError(f"{where}: key {key} is missing") from None
        raise UserError(f"{where}: key {key}: {first['msg']} (got {first.get('input')!r})") from None


def _fields_at(model: type[BaseModel], loc: tuple[Any, ...]) -> list[str]:
    """Keys that are known at a place of `model`, through mappings, lists and optional parts."""
    kind: Any = model
    for part in loc:
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            kind = _some(kind.model_fields[str(part)].annotation)
        else:
            kind = _some(get_args(kind)[-1])  # of dict[str, X] and list[X]
    return list(kind.model_fields)


def _some(kind: Any) -> Any:
    """X of `X | None`."""
    return next(arg for arg in get_args(kind) if arg is not NoneType) if isinstance(kind, UnionType) else kind
