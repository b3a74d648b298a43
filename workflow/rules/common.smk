# Helpers of the rules: the plan, names of files, and the settings that stages get.
import json
import os
import re
import shlex
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path

from pipeline.config import check_command_line, without_places
from pipeline.errors import UserError
from pipeline.files import read_json, system_error
from pipeline.plan import Plan
from pipeline.experiment import store_key
from pipeline.sheets import table_stem
from pipeline.status import totals
from pipeline.steps import STAGES
from pipeline.workspace import Workspace

STARTED = time.time()
CONFIG = Path(workflow.basedir) / "config"


def read_plan():
    """The plan of the configured tables; a mistake in a config file or the command is one line."""
    try:
        plan = Plan.read(CONFIG, config)
        for note in check_command_line(sys.argv, config, plan.config.settings.scale):
            print(f"note: {note}", file=sys.stderr)
        return plan
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.stderr.flush()
        os._exit(2)


PLAN = read_plan()
WORKSPACE = Workspace("results")
CLUSTER = PLAN.config.settings.cluster
# What only says where and how fast something is done is no parameter of a rule: another value makes nothing anew.
OVERLAY_JSON = json.dumps(without_places(config), sort_keys=True)


def made(stage, **names):
    """Files that a stage makes (`pipeline.steps`); without names as patterns."""
    return [str(path) for path in STAGES[stage].files(WORKSPACE, **names)]


def log_of(stage, **names):
    return str(STAGES[stage].log(WORKSPACE, **names))


def benchmark_of(stage, **names):
    return str(STAGES[stage].benchmark(WORKSPACE, **names))


def numbers(words):
    """Snakemake reads numbers inside braces, as in --config 'resources={train: {mem_mb: 4000}}', as words."""
    return {
        key: int(value) if str(value).isdecimal() else value
        for key, value in words.items()
    }


SITE = numbers(PLAN.config.settings.site)


def needs(stage):
    """Resources of a stage's jobs: those of the site and the scale, and as many nodes as its work is spread over."""
    found = SITE | numbers(PLAN.config.settings.resources.get(stage, {}))
    found.pop("threads", None)
    nodes = 1
    if stage in ("train", "sweep") and CLUSTER.mode == "job":
        nodes = CLUSTER.nodes
    elif stage in ("frames", "poses"):
        # What a command is told of where it runs is no parameter: another number of nodes makes nothing anew.
        nodes = int(found.pop("nodes", 1))
        over = f"--nodes {nodes} --interface {shlex.quote(CLUSTER.interface)}"
        found["over"] = over if nodes > 1 else ""
    if stage in ("train", "sweep", "evaluate"):
        # No parameter, likewise; a resource called `cluster` would be read by the Slurm executor.
        found["placed"] = shlex.quote(CLUSTER.model_dump_json())
    if nodes > 1:
        # For Slurm: a job of so many nodes, whose step runs on the first; `pipeline.cluster.nodes` starts one on each.
        found |= {"nodes": nodes, "tasks": nodes, "tasks_per_gpu": 0, "mpi": "srun"}
    return found


def waits(stage):
    """Resources of jobs that only wait for a slot of the one Ray cluster, if there is one."""
    return needs(stage) | ({"waiting": 1} if WAITING else {})


def cores(stage, default):
    """CPU cores of a stage's jobs."""
    return int(PLAN.config.settings.resources.get(stage, {}).get("threads", default))


# With one Ray cluster for all (`python -m pipeline cluster start`), trainings and tests only wait for one of its slots.
# They take no core then, and one more waits than there are slots, so that none is idle between two of them.
WAITING = CLUSTER.mode == "shared"
CLIENT_CORES = 0 if WAITING else 1
if WAITING:
    workflow.global_resources.setdefault("waiting", CLUSTER.slots + 1)

# Whatever the locale is, text is UTF-8; and a queue.py in the working folder is not Python's.
PYTHON = "export PYTHONUTF8=1 PYTHONSAFEPATH=1; "
# The C library keeps up to 256 MB that a process has freed: what it hands back comes again in pages of zeros, which takes
# a twentieth of a small training. A user's own settings stay.
PYTHON += "export MALLOC_TRIM_THRESHOLD_=${{MALLOC_TRIM_THRESHOLD_:-268435456}} "
PYTHON += "MALLOC_MMAP_THRESHOLD_=${{MALLOC_MMAP_THRESHOLD_:-33554432}}; "
if not workflow.deployment_settings.deployment_method:
    # Jobs find the Python that runs Snakemake, also where its environment is not activated.
    PYTHON += f"export PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH; "
shell.prefix(PYTHON)


def drop_default_rate_limit(scheduler):
    """Let Snakemake start jobs without its default limit of 100 a second; another one that a user sets stays.

    For its sake the scheduler would look at the files of all ready jobs again every second, and that once for each job
    so far: a third of a core after 250 of them.
    """
    limit = getattr(scheduler, "job_rate_limiter", None)
    if limit and (limit.max_jobs, limit.timespan) == (100, 1):
        scheduler.job_rate_limiter = None


wildcard_constraints:
    dataset=r"[a-z0-9_]+-[0-9a-f]{8}",
    backbone=r"[a-z0-9_]+-[0-9a-f]{8}",
    store=r"frames-[0-9a-f]{8}",
    run=r"[a-z0-9_]+-[a-z0-9_]+-s\d+-[0-9a-f]{8}",
    paper="[a-z0-9_]+",
    stem=r"(table|fig)[0-9A-Za-z]+",
    name="[a-z0-9_]+",


# Sheets that are drawn, as a pattern: the job that draws one writes its numbers, too.
DRAWN = "|".join(
    sorted(
        {
            table_stem(number)
            for paper, number in PLAN.tables()
            if PLAN.papers[paper].tables[number].figure
        }
    )
)
STEMS = {(paper, table_stem(number)): number for paper, number in PLAN.tables()}


def paper_tables(paper=None):
    """The numbers of the tables of a paper, or of all."""
    return [
        path
        for p, number in PLAN.tables(paper)
        for path in made("table", paper=p, stem=table_stem(number))
    ]


def cell_files(paper=None):
    """Every cell of the tables: named in the targets, so that a deleted one is measured again."""
    cells = [
        cell for p, number in PLAN.tables(paper) for cell in PLAN.table_cells(p, number)
    ]
    return [str(WORKSPACE.cell(cell)) for cell in dict.fromkeys(cells)]


def figure_files(paper):
    """The figures of a paper that are drawn, and the curves of its trainings."""
    return [
        path
        for stem in PLAN.figures(paper)
        for path in made("figure", paper=paper, stem=stem)
    ]


def trainings(paper):
    """Ids of the trainings behind the tables of a paper."""
    cells = (
        cell for entry in PLAN.entries if entry.paper == paper for cell in entry.cells
    )
    return list(dict.fromkeys(cell.run.id for cell in cells if cell.run.train))


def trainings_of_paper(wildcards):
    known(PLAN.papers, wildcards.paper, "paper")
    return [str(WORKSPACE.trained(run)) for run in trainings(wildcards.paper)]


def combined_tables():
    """Tables of several papers, side by side; one of a single paper is made where it is asked for."""
    numbers = [number for _, number in PLAN.tables()]
    shared = [number for number in PLAN.numbers() if numbers.count(number) > 1]
    return [f"results/{table_stem(number)}.csv" for number in shared]


def stored_files(dataset, store):
    """What a stage that reads the frames of a data set needs: these, and the texts if it has any."""
    has_texts = "text" in PLAN.data(PLAN.datasets[dataset]).stages
    texts = made("text", dataset=dataset) if has_texts else []
    return made("frames", dataset=dataset, store=store) + texts


def dataset_files(run):
    return stored_files(run.dataset, store_key(run.frames))


def backbone_files(key):
    """The folder's config.json of a backbone that the workflow makes; nothing for one that is given."""
    made_here = key and "sources" in PLAN.backbones[key].spec
    return made("pretrain", backbone=key) if made_here else []


def training_inputs(run_id):
    run = PLAN.runs[run_id]
    return dataset_files(run) + backbone_files(run.backbone) + encoder_files(run)


def encoder_files(run):
    """The record of the training whose features a run reads, if it does."""
    encoder = run.model.get("encoder_run")
    return made("train", run=encoder) if encoder else []


def stop_cluster():
    """End the shared cluster that the stages have started here; one in a Slurm job is the user's.

    `make demo` calls Snakemake twice and keeps it in between.
    """
    record = read_json("results/ray/cluster.json") or {"job": ""}
    here = "job" not in record and record.get("host") == socket.gethostname()
    if here and not os.environ.get("PIPELINE_KEEP_CLUSTER"):
        shell("python -m pipeline cluster stop > /dev/null || true")


def say_where_nothing_can_be_written():
    """The reason of a failure in a line here, where the logs lie on the full disk and have room for none."""
    probe = Path(f"results/.probe-{os.getpid()}")
    try:
        probe.write_bytes(bytes(65536))
    except OSError as error:
        print(f"error: {system_error(error, 'results') or error}", file=sys.stderr)
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)


def say_totals():
    print(totals(PLAN, "results", time.time() - STARTED), file=sys.stderr)


def known(mapping, key, kind):
    """`mapping[key]`; a wrong name in a target is one line with the nearest one."""
    from pipeline.errors import unknown

    if key not in mapping:
        raise WorkflowError(str(unknown(kind, key, mapping)))
    return mapping[key]


def clips_of(wildcards):
    """Generated videos are made first, and so are poses from videos; others lie where the user has put them."""
    asset = known(PLAN.datasets, wildcards.dataset, "data set")
    source = PLAN.data(asset).source
    return made(source[0], dataset=source[1])[0] if source else []


def options_of(wildcards):
    """What the splits of a data set depend on beside its identity."""
    options = PLAN.datasets[wildcards.dataset].options
    others = ("min_coverage", "stands_in")  # of the frames, and of the plan
    return json.dumps(
        {key: value for key, value in options.items() if key not in others},
        sort_keys=True,
    )


def texts_of(wildcards):
    given = known(PLAN.datasets, wildcards.dataset, "data set").options.get("texts")
    return [given] if given and os.path.exists(given) else []


def corpora_of(wildcards):
    """Files of further words for the classes that are there; a folder counts by its files."""
    given = (
        known(PLAN.datasets, wildcards.dataset, "data set")
        .options.get("corpora", {})
        .values()
    )
    paths = [Path(path) for path in given if isinstance(path, str)]
    files = [
        file for path in paths for file in (path.iterdir() if path.is_dir() else [path])
    ]
    return sorted(str(file) for file in files if file.is_file())


def asked_of(wildcards):
    """What language models are asked for the texts, so that other questions are asked anew; else nothing."""
    from pipeline.text.prompts import identity

    options = PLAN.datasets[wildcards.dataset].options
    asked = {"": options.get("describe"), **options.get("corpora", {})}
    return json.dumps(
        {
            name: identity(given)
            for name, given in asked.items()
            if isinstance(given, dict) and not (name == "" and texts_of(wildcards))
        },
        sort_keys=True,
    )


def pretraining_inputs(wildcards):
    asset = known(PLAN.backbones, wildcards.backbone, "backbone")
    spec = asset.spec
    if "packed" in asset.options:  # comes with the repository
        return []
    return [
        path
        for key, store in zip(spec["sources"], spec["stores"])
        for path in made("frames", dataset=key, store=store) + made("text", dataset=key)
    ]


def cells_of_table(wildcards):
    known(PLAN.papers, wildcards.paper, "paper")
    number = known(
        {
            stem: number
            for (paper, stem), number in STEMS.items()
            if paper == wildcards.paper
        },
        wildcards.stem,
        f"table of {wildcards.paper}",
    )
    return [
        str(WORKSPACE.cell(cell)) for cell in PLAN.table_cells(wildcards.paper, number)
    ]


def inspections_of_figure(wildcards):
    """What is seen inside the runs of a figure that shows it."""
    number = STEMS.get((wildcards.paper, wildcards.stem))
    runs = PLAN.table_inspections(wildcards.paper, number) if number else []
    return [path for run in runs for path in made("inspect", run=run)]


def about(wildcards):
    """Title and note of a sheet, for its caption in Snakemake's report."""
    sheet = PLAN.papers[wildcards.paper].tables[STEMS[wildcards.paper, wildcards.stem]]
    paper = PLAN.papers[wildcards.paper].title
    return {"paper": paper, "title": sheet.title, "note": sheet.note}


def tables_of_number(wildcards):
    known({stem: stem for _, stem in STEMS}, wildcards.stem, "table")
    return [
        str(WORKSPACE.table(paper, stem))
        for paper, stem in STEMS
        if stem == wildcards.stem
    ]
