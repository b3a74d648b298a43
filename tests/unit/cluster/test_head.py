"""How Ray is started, found and given up, without Ray; its temporary folder, its logs, its resources."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import time
import types
from pathlib import Path

import psutil
import pytest
from ports import free_port

from pipeline.cluster import client, folders, head, resources
from pipeline.cluster import lean as module
from pipeline.cluster.lean import lean
from pipeline.cluster.logs import last_words, reason_of, rotate
from pipeline.config import Cluster
from pipeline.errors import UserError
from pipeline.workspace import Workspace

# ---------------------------------------------------------------------------------------------- ports


def test_ray_chooses_its_ports(tmp_path, monkeypatch):
    """None is looked for here and bound there: of two that start at once, one would find it taken."""
    started = []
    monkeypatch.setattr(head.subprocess, "Popen", lambda command, **options: started.append((command, options)))
    monkeypatch.setattr(head, "wait_for_head", lambda *_: "127.0.0.1:7")
    head.start_head(Cluster(), "127.0.0.1", 3, "/tmp/x/r", tmp_path / "head.log")
    ((command, options),) = started
    ports = [word for word in command if "port" in word]
    assert ports == ["--port=0"] and not [word for word in command if word.startswith("--include-dashboard")]
    assert options["env"]["TMPDIR"] == "/tmp/x"
    assert options["env"]["RAY_START_HOOK"] == f"{lean.__module__}.{lean.__name__}"
    monkeypatch.setattr(module, "be_patient", lambda: None)
    params = types.SimpleNamespace(dashboard_port=8265, ray_client_server_port=10001, no_monitor=False)
    lean(params, True)
    assert params.dashboard_port is params.ray_client_server_port is None and params.no_monitor
    head.start_head(Cluster(dashboard=False), "127.0.0.1", 3, "/tmp/x/r", tmp_path / "head.log")
    assert "--include-dashboard=false" in started[1][0]


def test_a_slow_node_is_waited_for(monkeypatch):
    from ray._private import services

    answers = iter([RuntimeError("no such node")] * 3 + [{"node_id": "7"}])

    def asked(address, *, node):
        if isinstance(answer := next(answers), RuntimeError):
            raise answer
        return answer

    monkeypatch.setattr(services, "get_node", asked)
    monkeypatch.setattr(module.time, "sleep", lambda _: None)
    module.be_patient()
    assert services.get_node("127.0.0.1:1", node="7") == {"node_id": "7"}
    answers = iter([RuntimeError("no such node")] * 9)
    monkeypatch.setattr(module, "PATIENCE", -1.0)
    with pytest.raises(RuntimeError):
        services.get_node("127.0.0.1:1", node="7")


def test_a_machine_that_is_too_busy_for_ray_gets_a_second_start(tmp_path, monkeypatch):
    """With ports for Ray's agents: its raylet does not wait for those that they find, then."""
    ports, ended = [], []
    monkeypatch.setattr(
        head.subprocess, "Popen", lambda _, env, **__: ports.append(env["PIPELINE_GIVEN_PORTS"]) or len(ports)
    )
    monkeypatch.setattr(head, "end_process", lambda process, seconds: ended.append(process))

    def slow(temporary, process, log):
        if process == 1:
            raise UserError(f"Ray's head did not start: Check failed: {head.SLOW} x")
        return "127.0.0.1:7"

    monkeypatch.setattr(head, "wait_for_head", slow)
    words = Cluster(), "127.0.0.1", 3, str(tmp_path / "r"), tmp_path / "head.log"
    assert head.start_head(*words) == (2, "127.0.0.1:7") and ports == ["0", "1"] and ended == [1]
    monkeypatch.setattr(head, "wait_for_head", lambda *_: slow(None, 1, None))
    with pytest.raises(UserError, match="Timed out"):
        head.start_head(*words)
    monkeypatch.setenv("PIPELINE_GIVEN_PORTS", "1")
    monkeypatch.setattr(module, "be_patient", lambda: None)
    params = types.SimpleNamespace()
    lean(params, True)
    given = {name: port for name, port in vars(params).items() if name.endswith("port") and port}
    assert set(given) == {
        "metrics_agent_port", "dashboard_agent_listen_port", "runtime_env_agent_port", "metrics_export_port",
    }  # fmt: skip
    assert len(set(given.values())) == 4 and min(given.values()) > 1023


def test_ray_still_asks_the_hook():
    import ray._private.ray_constants as constants
    from ray._private.parameter import RayParams

    assert constants.RAY_START_HOOK == "RAY_START_HOOK"
    assert {
        "dashboard_port", "ray_client_server_port", "no_monitor", "metrics_agent_port", "dashboard_agent_listen_port",
        "runtime_env_agent_port", "metrics_export_port",
    } <= set(vars(RayParams()))  # fmt: skip


def test_the_head_s_address_is_read_when_it_is_up(tmp_path):
    (tmp_path / "ray_current_cluster").write_text("127.0.0.1:43210")
    assert head.wait_for_head(str(tmp_path), types.SimpleNamespace(poll=lambda: None), tmp_path / "log") == (
        "127.0.0.1:43210"
    )


def test_a_raylet_that_crashes_is_not_waited_for(tmp_path):
    logs = tmp_path / "session_latest" / "logs"
    logs.mkdir(parents=True)
    (logs / "raylet.err").write_text("[t C 1 2] (raylet) port.cc:1: Check failed: no port file\n")
    with pytest.raises(UserError, match=r"Ray's head did not start: Check failed: no port file \(log: "):
        head.wait_for_head(str(tmp_path), types.SimpleNamespace(poll=lambda: None), tmp_path / "head.log")


def test_a_head_that_dies_or_is_silent(tmp_path, monkeypatch):
    log = tmp_path / "head.log"
    log.write_text("Traceback\nValueError: no memory for the object store\n")
    with pytest.raises(UserError, match=r"did not start: ValueError: no memory for the .* \(log: .*head\.log\)"):
        head.wait_for_head(str(tmp_path), types.SimpleNamespace(poll=lambda: 1), log)
    monkeypatch.setattr(head, "START_SECONDS", 0.2)
    with pytest.raises(UserError, match=r"did not answer within 0 s: ValueError"):
        head.wait_for_head(str(tmp_path), types.SimpleNamespace(poll=lambda: None), log)


# -------------------------------------------------------------------------------------- RAY_ADDRESS


@pytest.fixture
def given(monkeypatch):
    """`given(address)` sets RAY_ADDRESS and gives what is believed."""

    def ask(address, ours=""):
        head._unreachable.cache_clear()
        monkeypatch.setenv("RAY_ADDRESS", address)
        monkeypatch.delenv(head.OURS, raising=False)
        if ours:
            monkeypatch.setenv(head.OURS, ours)
        return head.given_address()

    return ask


def test_a_leftover_address_is_left_aside(given, capsys, monkeypatch):
    closed = f"127.0.0.1:{free_port()}"
    assert given(closed, ours="head.json") == closed  # `nodes` has set it
    assert given(closed) is None and "RAY_ADDRESS" not in os.environ
    assert f"RAY_ADDRESS is {closed}: nothing listens at {closed}" in capsys.readouterr().err
    for address in ("local", ""):
        assert given(address) is None
    monkeypatch.setattr(head, "ANSWER_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # a database, say
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        assert given(address) is None
    assert f"RAY_ADDRESS is {address}: no Ray " in capsys.readouterr().err


def test_an_address_at_which_a_ray_answers_is_believed(given, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        done = types.SimpleNamespace(returncode=0, stderr=b"")
        monkeypatch.setattr(head.subprocess, "run", lambda *_, **__: done)
        assert given(address) == address
        done.returncode, done.stderr = 1, b"a trace\nAuthenticationError: wrong token\n"
        assert given(address) is None


def test_a_ray_that_has_gone_is_a_line(given, monkeypatch, tmp_path):
    given(f"127.0.0.1:{free_port()}", ours=str(tmp_path / "head.json"))
    with pytest.raises(UserError, match=r"^no Ray at .* \(nothing listens at .*\); the same command goes on$"):
        client.connect(Workspace(tmp_path), Cluster())


def test_attaching_has_a_limit(tmp_path):
    """A head that takes connections and never answers, as one whose GCS hangs does; Ray alone would wait on."""
    (tmp_path / "ray.py").write_text("import time\ndef init(**_): time.sleep(600)\n")
    code = (
        "import sys; from pipeline.cluster import head; head.START_SECONDS = 0.5\n"
        "sys.path.insert(0, sys.argv[1]); head.attach(sys.argv[2])"
    )
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        command = [sys.executable, "-c", code, str(tmp_path), address]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and done.stderr.startswith(f"error: Ray at {address} has not answered for 0 s")


# ---------------------------------------------------------------------------------------- its folder


@pytest.fixture
def base(tmp_path, monkeypatch):
    """A folder for temporary files."""
    monkeypatch.setattr(folders.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(folders, "SOCKET", 500)
    return tmp_path


def test_nobody_else_enters_the_folder_of_ray(base):
    with folders.ray_folder() as inside:
        os.makedirs(inside)
        os.chmod(inside, 0o777)  # as Ray does
        own = Path(inside).parent
        assert own.parent == base and stat.S_IMODE(own.stat().st_mode) == 0o700
        assert os.environ["RAY_TMPDIR"] == str(own)
    assert not own.exists() and "RAY_TMPDIR" not in os.environ
    (base / "open").mkdir(mode=0o755)
    with pytest.raises(UserError, match=r"open: others may enter it \(mode 0755\).*set TMPDIR"):
        folders.check_private(base / "open")
    (base / "link").symlink_to(own)
    with pytest.raises(UserError, match="link: others may enter it"):
        folders.check_private(base / "link")


def test_no_process_makes_the_folder_anew(base):
    """One that Ray started while the others were ended is nobody's child any more."""
    code = "import os, sys, time; os.fork() and os._exit(0)\nwhile True: os.makedirs(sys.argv[1], exist_ok=True)"
    with folders.ray_folder() as inside:
        command = [sys.executable, "-c", code, f"{inside}/logs"]
        subprocess.run(command, env={**os.environ, "TMPDIR": str(Path(inside).parent)}, check=True)
        assert list(folders._users(Path(inside).parent / "another")) == []
    assert not list(base.iterdir()) and not list(folders._users(Path(inside).parent))


def test_folders_of_killed_processes_are_swept_and_those_of_living_ones_stay(base):
    code = (
        "import sys; from pipeline.cluster import folders; folders.SOCKET = 500\n"
        "folders.tempfile.gettempdir = lambda: sys.argv[1]\n"
        "with folders.ray_folder() as inside: print(inside, flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(base)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    killed, living = (subprocess.Popen(command, **pipes) for _ in range(2))
    theirs = [Path(process.stdout.readline().strip()).parent for process in (killed, living)]
    killed.kill()
    killed.wait()
    assert theirs[0].exists()
    (base / "actions-foreign").mkdir()  # nobody has locked it
    with folders.ray_folder():
        assert not theirs[0].exists() and theirs[1].exists() and (base / "actions-foreign").exists()
    living.kill()
    living.wait()
    folders.sweep()
    assert not theirs[1].exists()


def test_a_long_folder_for_temporary_files_is_named_and_not_used(capsys):
    long = "/scratch/" + 86 * "x"
    assert folders._base(long) == "/tmp" and f"TMPDIR ({long}) is too long" in capsys.readouterr().err
    assert folders._base("/var/tmp") == "/var/tmp" and len("/tmp" + folders.LONGEST) <= folders.SOCKET


# ------------------------------------------------------------------------------------- what it has


def _nodes(*resources):
    return [{"Alive": True, "Resources": has} for has in resources]


def test_room_is_counted_node_by_node():
    gpus = Cluster(gpus=1, threads=2)
    need = resources.need_of(gpus)
    assert need == {"CPU": 2, "GPU": 1} and resources.need_of(Cluster()) == {"CPU": 1}
    assert resources.room_for(need, _nodes({"CPU": 8.0})) == 0
    assert resources.room_for(need, _nodes({"CPU": 8.0, "GPU": 2.0}, {"CPU": 3.0, "GPU": 4.0})) == 3
    assert resources.room_for(need | {"GPU": 2}, _nodes({"CPU": 8, "GPU": 1}, {"CPU": 8, "GPU": 1})) == 0
    assert resources.room_for({"CPU": 1, "GPU": 0.1}, _nodes({"CPU": 20, "GPU": 1})) == 10
    assert resources.room_for(need, [{"Alive": False, "Resources": {"CPU": 8, "GPU": 8}}]) == 0


def test_what_cannot_come_is_said_before_anybody_waits(monkeypatch):
    found = {"CPU": 3.0}
    ray = types.SimpleNamespace(nodes=lambda: _nodes(found), cluster_resources=lambda: found)
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setattr(resources, "SETTLE_SECONDS", 0.0)
    with pytest.raises(UserError, match=r"2 times 1 CPU and 1 GPU .* 3 CPU and 0 GPU .*cluster\.gpus: 0"):
        resources.wait_for_room(2, Cluster(gpus=1))
    with pytest.raises(UserError, match=r"8 times 1 CPU .* has 3 CPU in all, room for 3; lower cluster\.workers"):
        resources.wait_for_room(8, Cluster())
    assert resources.wait_for_room(8, Cluster(), least=1) == 3
    assert resources.wait_for_room(2, Cluster()) == 2
    joined = iter([1, 1, 4])
    ray.nodes = lambda: _nodes(*[found] * next(joined))  # the others come later
    monkeypatch.setattr(resources, "START_SECONDS", 5.0)
    assert resources.wait_for_room(12, Cluster(nodes=4, workers=12)) == 12


def test_tasks_that_no_node_has_room_for_are_not_waited_for(monkeypatch, capsys):
    found = _nodes({"CPU": 4.0}, {"CPU": 2.0, "GPU": 1.0})
    ray = types.SimpleNamespace(nodes=lambda: found, cluster_resources=lambda: {"CPU": 6.0, "GPU": 1.0})
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setattr(resources, "SETTLE_SECONDS", 0.0)
    monkeypatch.delenv(resources.OURS, raising=False)
    assert resources.wait_for_tasks(3, {"CPU": 2, "GPU": 0}) == 3 and not capsys.readouterr().err
    assert resources.wait_for_tasks(2, {"CPU": 2, "GPU": 1}) == 1
    assert capsys.readouterr().err == "there is room for 1 of 2 tasks at a time\n"
    with pytest.raises(UserError, match=r"2 times 4 CPU and 1 GPU .* 6 CPU and 1 GPU in all, room for 0; fewer --work"):
        resources.wait_for_tasks(2, {"CPU": 4, "GPU": 1})
    monkeypatch.setenv(resources.OURS, "head.json")  # on nodes of a Slurm job, which may still be joining
    monkeypatch.setattr(resources, "START_SECONDS", 5.0)
    late = iter([found[:1], found[:1], found])
    ray.nodes = lambda: next(late)
    assert resources.wait_for_tasks(1, {"CPU": 1, "GPU": 1}) == 1


# ------------------------------------------------------------------------------------------ its logs


def test_a_log_of_each_start_is_kept(tmp_path):
    log = tmp_path / "head.log"
    for number in range(8):
        rotate(log).write_text(str(number))
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "head.log": "7", **{f"head.{n}.log": str(7 - n) for n in range(1, 6)},
    }  # fmt: skip


def test_the_line_that_tells_is_found(tmp_path):
    deep, shallow = tmp_path / "raylet.err", tmp_path / "server.log"
    shallow.write_text("starts\nerror: Ray did not start\nbye\n")
    assert last_words(deep, shallow) == "Ray did not start"
    deep.write_text("[2026-11-30 16:27:25 E 12 34] (raylet) main.cc:12: Check failed: there is no /dev/shm\nat 0x1\n")
    assert last_words(deep, shallow) == "Check failed: there is no /dev/shm"
    bug = "An unexpected system state has occurred. You have likely discovered a bug in Ray. Tell us. "
    deep.write_text(f"[2026-11-30 16:27:25,123 C 12 34] (raylet) port.cc:12:  {bug} Check failed: no port file\n")
    assert last_words(deep, shallow) == "Check failed: no port file"
    deep.write_text("all is well\n")
    assert last_words(deep, shallow) == "Ray did not start"
    shallow.write_text("one\ntwo\n")
    assert last_words(deep, shallow) == "two"
    assert last_words(tmp_path / "none") == "it said nothing"


def test_ray_s_memory_monitor_is_named_and_cuda_s_memory_is_another():
    said = reason_of(RuntimeError("The actor died.\nWorker exit type: NODE_OUT_OF_MEMORY Worker exit detail: ..."), 8)
    assert (
        said.startswith("memory pressure: Ray's memory monitor ended a worker, with 8 of them") and "slots: 1" in said
    )
    assert reason_of(RuntimeError("trace\ntorch.OutOfMemoryError: CUDA out of memory\n"), 8) == (
        "torch.OutOfMemoryError: CUDA out of memory"
    )
    assert reason_of(ValueError(), 1) == "ValueError"


def test_a_zombie_that_nobody_notices_is_not_waited_for():
    """As in a container whose first process does not ask for the end of others."""
    parent = "import subprocess, time; child = subprocess.Popen(['true']); print(child.pid, flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True) as careless:
        try:
            child = psutil.Process(int(careless.stdout.readline()))
            while child.status() != psutil.STATUS_ZOMBIE:
                time.sleep(0.01)
            began = time.monotonic()
            head.end_all([child])
            assert time.monotonic() - began < 2
            head.end_all([psutil.Process(careless.pid)])
            assert careless.wait(5) == -signal.SIGKILL
        finally:
            careless.kill()
