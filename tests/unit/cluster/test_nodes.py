"""Ray over the nodes of a Slurm job, without Slurm: what is asked of it, and what is made of the answers."""

from __future__ import annotations

import json
import os
import socket

import pytest

from pipeline.cluster import nodes, slurm
from pipeline.cluster.client import live, tunnel
from pipeline.cluster.head import HEAD
from pipeline.config import Cluster
from pipeline.errors import UserError
from pipeline.files import write_json
from pipeline.workspace import Workspace


@pytest.fixture
def answers(monkeypatch):
    """`answers[command]` is what Slurm says."""
    found = {}
    monkeypatch.setattr(slurm, "_ask", lambda *command: found[" ".join(command)])
    return found


@pytest.mark.parametrize(
    ("said", "seconds"),
    [
        ("1-02:03:04", 93784), ("02:03:04", 7384), ("59:30", 3570), ("0:05", 5),
        ("UNLIMITED", None), ("INVALID", None), ("NOT_SET", None), ("", None),
    ],
)  # fmt: skip
def test_time_left_as_slurm_writes_it(answers, said, seconds):
    answers["squeue --noheader --jobs=7 --format=%L"] = said
    assert slurm.seconds_left("7") == seconds


def test_hosts_and_their_addresses(answers):
    answers["squeue --noheader --jobs=7 --format=%N"] = "gpu[01-02]"
    answers["scontrol show hostnames gpu[01-02]"] = "gpu01\ngpu02"
    assert slurm.hosts("7") == ["gpu01", "gpu02"]
    answers["scontrol show node gpu01"] = "NodeName=gpu01 Arch=x86_64\n   NodeAddr=127.0.0.3 NodeHostName=gpu01"
    assert slurm.address_of("gpu01") == "127.0.0.3"


def test_the_interface_of_an_address():
    assert slurm.interface_of("127.0.0.1") == "lo"
    with pytest.raises(UserError, match=r"no network interface .* 192\.0\.2\.1 .*cluster\.interface"):
        slurm.interface_of("192.0.2.1")  # for documentation alone


def test_several_nodes_need_a_slurm_job_that_has_them(answers, monkeypatch, tmp_path):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    with pytest.raises(UserError, match=r"2 nodes are wanted, and this is no Slurm job; .*--profile slurm"):
        nodes.spread(["true"], Workspace(tmp_path), Cluster(nodes=2))
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    answers["squeue --noheader --jobs=7 --format=%N"] = answers["scontrol show hostnames gpu01"] = "gpu01"
    with pytest.raises(UserError, match=r"2 nodes are wanted, and Slurm job 7 has 1: gpu01"):
        nodes.spread(["true"], Workspace(tmp_path), Cluster(nodes=2))
    assert not (tmp_path / "ray").exists()


def test_without_slurm_one_line_says_so():
    with pytest.raises(UserError, match="no-such-program does not answer"):
        slurm._ask("no-such-program")
    with pytest.raises(UserError, match="^ls /no/such/file: "):
        slurm._ask("ls", "/no/such/file")


def test_a_further_srun_is_not_told_of_this_step(monkeypatch):
    for key in ("SLURM_NTASKS", "SLURM_MEM_PER_NODE", "SBATCH_PARTITION", "SLURM_JOB_ID", "SLURM_CONF"):
        monkeypatch.setenv(key, "1")
    kept = slurm.plain_environment()
    assert {key for key in kept if key.startswith(("SLURM_", "SBATCH_"))} == {"SLURM_JOB_ID", "SLURM_CONF"}
    assert kept["PATH"] == os.environ["PATH"]


def test_workers_and_slots_are_dealt_out():
    training = Cluster(mode="job", nodes=2, workers=8, threads=4)
    assert nodes.per_node(training) == 4 and nodes.cpus_per_node(training) == 17
    assert nodes.per_node(Cluster(mode="shared", nodes=2, slots=3)) == 2
    assert nodes.per_node(Cluster(mode="job", nodes=1, workers=1)) == 1


def test_nobody_goes_to_a_cluster_of_this_machine(monkeypatch):
    monkeypatch.setattr(nodes.os, "execvpe", lambda *_: pytest.fail("it went"))
    nodes.enter({})
    nodes.enter({"address": "127.0.0.1:1"})
    monkeypatch.setenv("PIPELINE_ENTERED", "7")  # it is there already
    nodes.enter({"job": "7", "host": "gpu01"})


def test_a_driver_goes_to_the_job_that_hosts_the_cluster(monkeypatch):
    gone = []
    monkeypatch.delenv("PIPELINE_ENTERED", raising=False)
    monkeypatch.setattr(nodes.os, "execvpe", lambda *words: gone.append(words))
    monkeypatch.setattr(nodes.sys, "argv", ["pipeline", "sweep", "x"])
    nodes.enter({"job": "7", "host": "gpu01"})
    ((program, command, environment),) = gone
    assert program == "srun" and "--jobid=7" in command and "--nodelist=gpu01" in command and "--overlap" in command
    assert command[-4:] == ["-m", "pipeline", "sweep", "x"] and environment["PIPELINE_ENTERED"] == "7"


def test_running_clusters_are_listed_and_dead_ones_forgotten(tmp_path):
    ws = Workspace(tmp_path)
    here = {"host": socket.gethostname(), "dashboard": "http://127.0.0.1:8265", "job": ""}
    write_json(ws.ray / "jobs" / "mine" / HEAD, here | {"pid": os.getpid()})
    write_json(ws.ray / "jobs" / "dead" / HEAD, here | {"pid": 2**22 - 3})
    write_json(ws.ray / "jobs" / "far" / HEAD, {"host": "gpu01", "dashboard": "http://10.1.2.3:8265", "job": "7"})
    found = {record["name"]: record for record in live(ws)}
    assert set(found) == {"mine", "far"} and not (ws.ray / "jobs" / "dead").exists()
    assert found["mine"]["token"] == str(ws.ray / "jobs" / "mine" / "token")
    assert json.loads((ws.ray / "jobs" / "far" / HEAD).read_text())["job"] == "7"


def test_the_ssh_line_goes_where_the_dashboard_is():
    assert tunnel("http://127.0.0.1:9000", "gpu01") == "ssh -L 8265:127.0.0.1:9000 gpu01"
    assert tunnel("http://10.1.2.3:9000", "gpu01") == f"ssh -L 8265:10.1.2.3:9000 {socket.gethostname()}"
