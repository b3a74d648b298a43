"""`snakemake --profile slurm` on a real Slurm of two nodes: tables, trainings over both, one cluster, faults."""

from __future__ import annotations

import json
import re
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
import torch
import yaml
from project import Project

from pipeline.config import read_yaml
from pipeline.plan import Plan
from pipeline.training.train import train_run
from pipeline.workspace import Workspace

PAPERS = {"LGA": "lga", "Task-Adapter++": "task_adapter_pp", "CrossGLG": "crossglg", "SeFAR": "sefar"}


def _values(project):
    return {row["row"]: (row["value"], row["ci95"], row["cell_id"]) for row in project.table()}


def _runs(project):
    return {row["row"]: row["run_id"] for row in project.table()}


def test_a_table_goes_through_sbatch_over_both_nodes(plain, tmp_path):
    project = plain.copy(tmp_path / "project")
    command = project.snakemake("results/nodes/table4.csv")
    status, out = project.run(*command)
    assert status == 0, out[-6000:]
    assert len(re.findall(r"has been submitted with SLURM jobid", out)) >= 9
    assert _values(project) == _values(plain)
    used = {node for run in _runs(project).values() for node in project.record(run)["nodes"]}
    assert used == {"n1", "n2"}
    status, out = project.run(*command)
    assert status == 0 and "Nothing to be done" in out, out[-2000:]


@pytest.fixture(scope="module")
def spread(plain, tmp_path_factory):
    """The four trainings, each over two nodes, two of them at a time."""
    project = plain.copy(tmp_path_factory.mktemp("spread") / "project")
    runs = [f"results/runs/{run}/train.json" for run in _runs(plain).values()]
    command = project.snakemake(*runs, cluster="{mode: job, nodes: 2, workers: 2, dashboard: false}", jobs=2)
    status, out = project.run(*command)
    assert status == 0, out[-6000:]
    return project


@pytest.mark.parametrize("method", PAPERS)
def test_two_nodes_train_as_one_machine_does(plain, spread, method):
    run = _runs(plain)[method]
    record = spread.record(run)
    assert record["workers"] == 2
    assert record["nodes"] == sorted(spread.slurm.address(node) for node in ("n1", "n2"))
    one, two = plain.curve(run), spread.curve(run)
    assert [row["step"] for row in one] == [row["step"] for row in two]
    for before, after in zip(one, two, strict=True):
        assert after["loss"] == pytest.approx(before["loss"], rel=2e-4)
    log = (spread.results / "logs/train" / f"{run}.log").read_text()
    assert all(spread.slurm.address(node) in log for node in ("n1", "n2"))


def test_nothing_of_a_finished_job_stays(spread):
    assert not [path for path in (spread.results / "ray/jobs").iterdir() if path.is_dir()]  # no token, no record
    words = [words for _, words in spread.slurm.processes()]
    assert not [left for left in words if "ray" in left or "pipeline" in left], words


def test_frames_are_decoded_over_both_nodes(plain, tmp_path):
    """The same bytes, and what another number of nodes has made is taken as it is."""
    project = plain.copy(tmp_path / "project")
    store = max((project.results / "data").glob("synthetic_scene-*/frames-*"))
    before = {path.name: path.read_bytes() for path in store.iterdir()}
    assert "shard-00001.bin" in before
    for path in store.iterdir():
        path.unlink()
    command = project.snakemake(f"results/{(store / 'manifest.json').relative_to(project.results)}")
    command.insert(command.index("--"), "resources={frames: {nodes: 2}}")
    status, out = project.run(*command)
    assert status == 0, out[-6000:]
    assert {path.name for path in store.iterdir()} == set(before)
    for name, content in before.items():
        if not name.endswith(".json"):  # they have times
            assert (store / name).read_bytes() == content, name
    log = (project.results / f"logs/extract_frames/{store.parent.name}-{store.name}.log").read_text()
    assert all(project.slurm.address(node) in log for node in ("n1", "n2")), log


@pytest.fixture
def hosted(plain, tmp_path):
    """A project whose shared cluster is a Slurm job on both nodes."""
    project = plain.copy(tmp_path / "project", "specs")
    settings = json.dumps({"slots": 2, "idle_minutes": 5})
    start = ["python", "-m", "pipeline", "cluster", "start", "--nodes", "2", "--settings", settings]
    status, out = project.run(*start, "--time=00:30:00", timeout=200)
    assert status == 0 and "Slurm job" in out, out
    yield project
    project.run("python", "-m", "pipeline", "cluster", "stop")


def test_one_cluster_on_two_nodes_serves_all_runs(plain, hosted):
    status, out = hosted.run("python", "-m", "pipeline", "dashboard")
    assert status == 0 and "ssh -L" in out and hosted.slurm.address("n1") in out, out
    _only_those_with_the_token(hosted)
    command = hosted.snakemake("results/nodes/table4.csv", cluster="{mode: shared}")
    status, out = hosted.run(*command)
    assert status == 0, out[-6000:]
    assert _values(hosted) == _values(plain)
    status, out = hosted.run("python", "-m", "pipeline", "cluster", "status")
    assert status == 0 and '"job"' in out  # it is the user's, who may want more tables
    used = {node for run in _runs(hosted).values() for node in hosted.record(run)["nodes"]}
    assert used <= {hosted.slurm.address(node) for node in ("n1", "n2")} and used


def _only_those_with_the_token(project):
    """Ray and the queue refuse who has another token; nothing listens beyond loopback and the nodes' network."""
    record = json.loads((project.results / "ray/cluster.json").read_text())
    client = (
        "import os, sys; sys.path.insert(0, {src!r})\n"
        "from pipeline.cluster.queue import Connection\n"
        "try: Connection({queue!r}, 'guessed')\n"
        "except PermissionError as error: print('queue:', error)\n"
        "os.environ.update(RAY_AUTH_MODE='token', RAY_AUTH_TOKEN='ab' * 32)\n"
        "import ray\n"
        "try: ray.init(address={address!r}, logging_level='ERROR'); print('ray: in')\n"
        "except Exception as error: print('ray: refused', type(error).__name__)\n"
    ).format(src=project.environment()["PYTHONPATH"], queue=record["queue"], address=record["address"])
    _, out = project.run(*project.slurm.inside("n1"), "python", "-c", client, timeout=200)
    assert "queue: wrong token" in out and "ray: refused" in out and "ray: in" not in out, out


# Faults. A longer training that keeps a checkpoint every tenth step.


@pytest.fixture(scope="module")
def undisturbed(plain, tmp_path_factory):
    """The longer training of LGA, without a fault, Slurm and Ray."""
    project = plain.copy(tmp_path_factory.mktemp("undisturbed") / "project")
    status, out = project.run("python", "-m", "pipeline", "plan", "--write", "--overlay", _overlay(project))
    assert status == 0, out
    torch.set_num_threads(1)
    ws = Workspace(project.results)
    train_run(ws.read_run(_long_run(project)), ws)
    return project


def _overlay(project):
    content = yaml.safe_load((project.folder / "overlay.yaml").read_text())
    content["train"] |= {"steps": 120, "checkpoint_every": 10, "validate_every": 60, "milestones": [120]}
    path = project.folder / "long.yaml"
    path.write_text(yaml.safe_dump(content))
    return str(path)


def _long_run(project):
    plan = Plan.read(project.folder / "config", read_yaml(project.folder / "long.yaml"))
    (row,) = [entry for entry in plan.table_entries("nodes", "4") if entry.row == "LGA"]
    return row.cells[0].run.id


def _send(project, run, node="n1", minutes=20, **settings):
    """Send the training through sbatch, and wait until it has a checkpoint; the job."""
    words = json.dumps({"mode": "job", "dashboard": False, "stop_minutes": 0} | settings)
    wrapped = f"exec python -m pipeline train {run} --settings '{words}'"
    options = ["--parsable", f"--time={minutes}", "-c4", "--mem=3000", "--no-requeue", "--output=job-%j.log"]
    job = project.slurm_run("sbatch", *options, f"--nodelist={node}", f"--wrap={wrapped}").strip()
    kept, before = project.results / "ray/train" / run, _kept(project, run)
    _until(lambda: not _runs_still(project, job) or (kept.is_dir() and _kept(project, run) - before))
    return job


def _kept(project, run):
    return {path.parent.name for path in (project.results / "ray/train" / run).glob("*/state.pt")}


def _runs_still(project, job):
    return bool(project.slurm.run("squeue", "-h", "-j", job, "-t", "PD,CF,R,CG", "-o", "%i").stdout.strip())


def _jobs(project):
    """Ids of the jobs that were sent from its folder and are not over."""
    listed = project.slurm.run("squeue", "-h", "-t", "PD,CF,R,CG", "-o", "%i %Z").stdout.splitlines()
    return [line.split()[0] for line in listed if line.split()[1] == str(project.folder)]


def _until(found, seconds=240):
    end = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.2)


def _go_on(project, run, job):
    """What the user does, or Snakemake's `retries`: the same command again, until it is done."""
    _until(lambda: not _runs_still(project, job))
    if not (project.results / "runs" / run / "train.json").is_file():
        assert _kept(project, run), "no checkpoint is left to go on from"
        job = _send(project, run)
        _until(lambda: not _runs_still(project, job))


def _same(project, undisturbed, run):
    assert project.curve(run) == undisturbed.curve(run)
    weights = f"runs/{run}/model.safetensors"
    assert (project.results / weights).read_bytes() == (undisturbed.results / weights).read_bytes()


def _scancel(project, run):
    job = _send(project, run)
    assert project.slurm.run("scancel", job).returncode == 0
    _until(lambda: not _runs_still(project, job))
    assert not (project.results / "runs" / run / "train.json").exists()
    _go_on(project, run, job)


def _time_limit(project, run):
    """A checkpoint is kept before the limit comes, though the recipe keeps none so early."""
    job = _send(project, run, minutes=5, stop_minutes=4.9)  # after its first steps
    _until(lambda: not _runs_still(project, job))
    said = (project.folder / f"job-{job}.log").read_text()
    assert "ended by the time limit of its Slurm job, with a checkpoint" in said and "DUE TO TIME LIMIT" not in said
    _go_on(project, run, job)


def _killed_worker(project, run):
    """Ray Train starts it again."""
    job = _send(project, run)
    _kill(project, run, "RayTrainWorker")
    _until(lambda: not _runs_still(project, job))
    assert (project.results / "runs" / run / "train.json").is_file()


def _killed_head(project, run):
    """The job fails, and the same command goes on."""
    job = _send(project, run)
    _kill(project, run, "gcs_server")
    _go_on(project, run, job)


def _kill(project, run, victim):
    """SIGKILL what is called so among the processes of this project's training."""
    drivers = [psutil.Process(pid) for pid, words in project.slurm.processes() if f"pipeline train {run}" in words]
    mine = [driver for driver in drivers if driver.cwd() == str(project.folder)]
    below = [process for driver in mine for process in driver.children(recursive=True)]
    killed = [process for process in below if victim in " ".join(process.cmdline()).split("--")[0]]
    for process in killed:
        process.kill()
    assert killed


def _killed_snakemake(project, run):
    """The same command finishes, and repeats no step that a checkpoint holds."""
    _overlay(project)
    command = project.snakemake(f"results/runs/{run}/train.json")
    command[command.index("overlay.yaml")] = "long.yaml"
    process = project.start(*command)
    _until(lambda: process.poll() is not None or _kept(project, run))
    process.kill()
    out, _ = process.communicate()
    assert _kept(project, run), out[-4000:]
    if jobs := _jobs(project):
        project.slurm.run("scancel", *jobs)
    _until(lambda: not _jobs(project))
    project.run(*command[:1], "--unlock", *command[1:])
    status, out = project.run(*command)
    assert status == 0, out[-6000:]


FAULTS = (_killed_head, _killed_snakemake, _time_limit, _scancel, _killed_worker)  # those that wait most come first


@pytest.fixture(scope="module")
def told(undisturbed, tmp_path_factory):
    """The faults, two at a time, for a job mostly waits: each is the future of (project, run)."""

    def tell(fault, folder):
        project, run = undisturbed.copy(folder / "project", "specs"), _long_run(undisturbed)
        fault(project, run)
        return project, run

    with ThreadPoolExecutor(2) as pool:
        yield {fault: pool.submit(tell, fault, tmp_path_factory.mktemp(fault.__name__)) for fault in FAULTS}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__.strip("_"))
def test_a_training_ends_as_if_nothing_had_been(undisturbed, told, fault):
    project, run = told[fault].result()
    _same(project, undisturbed, run)


def test_a_lost_node(undisturbed, tmp_path):
    """After the others, so that no job but this one is on it."""
    project = undisturbed.copy(tmp_path / "project", "specs")
    run = _long_run(undisturbed)
    job = _send(project, run, "n2")
    assert project.slurm.run("squeue", "-h", "-j", job, "-o", "%N").stdout.strip() == "n2"
    project.slurm.kill("n2")
    project.slurm.start("n2")
    _go_on(project, run, job)
    project.slurm.wait_idle()
    _same(project, undisturbed, run)


def test_a_full_disk(undisturbed, tmp_path):
    """One line says so, nothing that is finished is harmed, and the same command goes on when there is room."""
    project = Project(tmp_path / "project", undisturbed.slurm)
    _overlay(project)
    run = _long_run(project)
    project.results.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", project.results], check=True)
    try:
        for name in ("data", "backbones", "specs"):
            (project.results / name).symlink_to(undisturbed.results / name)
        train = ["python", "-m", "pipeline", "train", run, "--settings", '{"mode": "job", "dashboard": false}']
        status, out = project.run(*train)
        said = [line for line in out.splitlines() if line.startswith("error: ")]
        assert status == 2 and len(said) == 1 and "no space left on the disk" in said[0], out[-3000:]
        assert not (project.results / "runs" / run / "train.json").exists()
        subprocess.run(["mount", "-o", "remount,size=200m", project.results], check=True)
        status, out = project.run(*train)
        assert status == 0, out[-3000:]
        _same(project, undisturbed, run)
    finally:
        subprocess.run(["umount", "--lazy", project.results], check=True)
