"""The queue of the shared cluster, and what surrounds it, without Ray."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import socket
import stat
import subprocess
import sys
import types
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipeline import progress
from pipeline.cluster import client as module
from pipeline.cluster.client import Client, ensure, running, stop
from pipeline.cluster.head import environment, write_token
from pipeline.cluster.queue import ATTEMPTS, Connection, Queue, QueueServer
from pipeline.config import Cluster
from pipeline.errors import UserError
from pipeline.files import write_json
from pipeline.progress import this_process
from pipeline.workspace import Workspace

# ------------------------------------------------------------------------------------------------ queue


def _do(*steps):
    """Run coroutines of one queue one after the other; gives their results."""

    async def chain():
        return [await asyncio.wait_for(step, 5) for step in steps]

    return asyncio.run(chain())


def test_work_is_given_in_order_and_ended():
    queue = Queue()
    *_, one, two = _do(
        queue.submit("a", "train", {"run": "a"}), queue.submit("b", "score", {"run": "b"}), queue.take(0), queue.take(1)
    )  # fmt: skip
    assert (one["key"], one["kind"], one["arguments"], one["state"]) == ("a", "train", {"run": "a"}, "running")
    assert two["key"] == "b" and two["slot"] == 1
    _, done, _, failed = _do(queue.finish("a"), queue.wait("a", 1), queue.finish("b", "it broke"), queue.wait("b", 1))
    assert done["state"] == "done" and done["message"] == ""
    assert failed["state"] == "failed" and failed["message"] == "it broke"
    assert queue.waiting == []


def test_trainings_under_way_are_known():
    async def story():
        queue = Queue()
        for key, kind in (("a", "train"), ("evaluate-c", "evaluate"), ("b", "train")):
            await queue.submit(key, kind, {"run": key[-1]})
        await queue.take(0)
        await queue.take(1)
        assert await queue.training() == ["a"]  # the other is a measurement, the third waits
        await queue.finish("a")
        assert await queue.training() == []

    asyncio.run(story())


def test_two_measurements_of_a_run_are_not_under_way_at_once():
    async def scenario():
        queue = Queue()
        for key, run in (("first", "a"), ("second", "a"), ("other", "b")):
            await queue.submit(key, "evaluate", {"run": run})
        taken = [(await queue.take(slot))["key"] for slot in (0, 1)]
        await queue.finish("other")
        waiting = asyncio.ensure_future(queue.take(1))
        await asyncio.sleep(0.1)
        waits = not waiting.done()
        await queue.finish("first")
        return taken, waits, (await waiting)["key"]

    assert asyncio.run(scenario()) == (["first", "other"], True, "second")


def test_the_same_work_is_queued_once_while_it_is_under_way():
    queue = Queue()
    _do(queue.submit("a", "train", {}), queue.submit("a", "train", {}))
    assert queue.waiting == ["a"]
    _do(queue.take(0), queue.submit("a", "train", {}))
    assert queue.waiting == [] and queue.items["a"]["state"] == "running"
    _do(queue.finish("a"), queue.submit("a", "train", {"again": 1}))
    assert queue.waiting == ["a"] and queue.items["a"]["arguments"] == {"again": 1}  # a failed run can be run again
    assert queue.items["a"]["attempts"] == 0


def test_a_dead_slot_gets_its_item_once_more_then_the_item_has_failed():
    queue = Queue()
    _do(queue.submit("bad", "train", {}), queue.submit("good", "train", {}))
    first, again, after = _do(queue.take(0), queue.take(0), queue.take(0))
    assert ATTEMPTS == 2 and first["key"] == again["key"] == "bad"
    assert after["key"] == "good" and after["attempts"] == 1
    assert queue.items["bad"]["state"] == "failed" and "died 2 times" in queue.items["bad"]["message"]
    (ended,) = _do(queue.wait("bad", 1))
    assert ended["state"] == "failed"


@pytest.mark.parametrize("known", [True, False], ids=["its death is known", "its death is not known"])
def test_a_worker_that_died_while_it_waited_gets_no_work(known):
    async def story():
        queue = Queue()
        dead = asyncio.ensure_future(queue.take(0))  # whose answer nobody would read
        await asyncio.sleep(0.01)
        if known:
            await queue.died(0, "killed")
        alive = asyncio.ensure_future(queue.take(0))
        await asyncio.sleep(0.01)
        await queue.submit("a", "train", {})
        assert (await asyncio.wait_for(alive, 5))["key"] == "a"
        assert await asyncio.wait_for(dead, 5) is None

    asyncio.run(story())


def test_a_slot_that_is_given_up_ends_what_it_held_and_the_last_one_ends_all():
    async def story():
        queue = Queue()
        queue.slots = {0, 1}
        for key in "abc":
            await queue.submit(key, "train", {})
        await queue.take(0)
        await queue.died(0, "no module named torch")
        await queue.lose(0, "no module named torch")
        assert queue.items["a"]["state"] == "failed" and queue.items["b"]["state"] == "waiting"
        waiting = asyncio.ensure_future(queue.wait("c", 5))
        await asyncio.sleep(0.05)
        await queue.lose(1, "no module named torch")
        await queue.submit("d", "train", {})  # who comes later hears of it, too
        for item in (await waiting, queue.items["b"], queue.items["d"]):
            assert item["state"] == "failed"
            assert item["message"] == "no worker of the shared cluster starts: no module named torch"
        assert not queue.waiting

    asyncio.run(story())


def test_what_a_worker_died_of_stands_in_the_error():
    queue = Queue()
    _do(queue.submit("bad", "train", {}), queue.take(0), queue.died(0, "memory pressure"), queue.take(0))
    _do(queue.died(0, "memory pressure"), queue.submit("good", "train", {}), queue.take(0))
    assert queue.items["bad"]["message"] == "its worker died 2 times (memory pressure)"
    assert queue.taken[0] == 3


def test_slots_do_not_take_each_others_work():
    queue = Queue()
    _do(queue.submit("a", "train", {}), queue.take(0), queue.submit("b", "train", {}))
    (item,) = _do(queue.take(1))
    assert item["key"] == "b" and queue.items["a"]["attempts"] == 1


def test_a_waiting_slot_wakes_up_for_work_and_for_the_end():
    async def story():
        queue = Queue()
        slots = [asyncio.create_task(queue.take(i)) for i in range(2)]
        await asyncio.sleep(0.05)
        assert not any(slot.done() for slot in slots)
        await queue.submit("a", "train", {})
        done, waiting = await asyncio.wait(slots, timeout=2, return_when=asyncio.FIRST_COMPLETED)
        assert [task.result()["key"] for task in done] == ["a"] and len(waiting) == 1
        await queue.close()
        assert await asyncio.wait_for(waiting.pop(), 2) is None

    asyncio.run(story())


def test_waiting_gives_up_and_idleness_counts_from_the_last_sign_of_life():
    async def story():
        queue = Queue()
        queue.touched -= 100
        assert await queue.idle() > 99
        await queue.submit("a", "train", {})
        assert await queue.idle() == 0.0
        queue.touched -= 100
        assert await queue.idle() == 0.0  # waiting work is no idleness
        item = await queue.wait("a", 0.05)
        assert item["state"] == "waiting"
        await queue.take(0)
        await queue.finish("a")
        assert 0 <= await queue.idle() < 50

    asyncio.run(story())


# ------------------------------------------------------------------------------------- surroundings


def test_environment_has_the_token_and_stays_on_this_machine():
    variables = environment("s3cret")
    assert variables["RAY_AUTH_MODE"] == "token" and variables["RAY_AUTH_TOKEN"] == "s3cret"
    assert variables["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] == "0"  # which makes Ray bind to loopback
    assert variables["GLOO_SOCKET_IFNAME"] == variables["NCCL_SOCKET_IFNAME"] == "lo"
    assert variables["RAY_USAGE_STATS_ENABLED"] == "0"
    assert all(isinstance(value, str) for value in variables.values())


def test_only_the_owner_reads_the_token(tmp_path):
    ws = Workspace(tmp_path)
    ws.ray.mkdir()
    old = os.umask(0)
    try:
        for token in ("first", "second"):
            write_token(ws.ray, token)
            path = ws.ray / "token"
            assert path.read_text() == token and stat.S_IMODE(path.stat().st_mode) == 0o600
    finally:
        os.umask(old)


def _alive(ws, **other):
    """A record of a server that is this process, and a port that answers."""
    server = socket.create_server(("127.0.0.1", 0))
    address = f"127.0.0.1:{server.getsockname()[1]}"
    record = {"address": address, "queue": address, "dashboard": None, "slots": 2} | this_process() | other
    write_json(ws.ray / "cluster.json", record)
    return server, record


def test_a_running_cluster_is_found_and_not_started_again(tmp_path, monkeypatch):
    ws = Workspace(tmp_path)
    monkeypatch.setattr(module.subprocess, "Popen", lambda *a, **k: pytest.fail("a second cluster"))
    assert running(ws) is None
    server, record = _alive(ws)
    with server:
        assert running(ws) == record == ensure(ws, Cluster())
    assert running(ws) is None  # the port is closed


def test_a_process_that_only_has_the_number_is_no_cluster(tmp_path):
    """Another process has got it since, and must not be ended."""
    ws = Workspace(tmp_path)
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        with _alive(ws, pid=other.pid)[0]:  # `began` is this process's
            assert running(ws) is None and stop(ws) is False and other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_a_cluster_of_another_machine_is_neither_doubled_nor_ended(tmp_path, monkeypatch):
    ws = Workspace(tmp_path)
    monkeypatch.setattr(module.subprocess, "Popen", lambda *a, **k: pytest.fail("a second cluster"))
    with _alive(ws, host="login02")[0]:
        assert running(ws) is None
        with pytest.raises(UserError, match=r"runs on login02; stop it there .* delete .*cluster\.json"):
            ensure(ws, Cluster())
        with pytest.raises(UserError, match="runs on login02; give this command there"):
            stop(ws)
    assert (ws.ray / "cluster.json").exists()


class Starter:
    """In place of `subprocess.Popen`: counts starts, and lets the cluster come up or die."""

    def __init__(self, ws, comes_up):
        self.ws, self.comes_up, self.commands, self.servers = ws, comes_up, [], []

    def __call__(self, command, **options):
        assert options["start_new_session"]  # the cluster outlives the stage that needed it first
        self.commands.append(command)
        if self.comes_up:
            self.servers.append(_alive(self.ws)[0])
        else:
            options["stdout"].write("error: Ray's head did not start: no more ports\nand so on\n")
        return types.SimpleNamespace(poll=lambda: None if self.comes_up else 1)


def test_stages_that_come_at_once_start_one_cluster(tmp_path, monkeypatch):
    ws = Workspace(tmp_path)
    starter = Starter(ws, comes_up=True)
    monkeypatch.setattr(module.subprocess, "Popen", starter)
    with ThreadPoolExecutor(4) as pool:
        records = list(pool.map(lambda _: ensure(ws, Cluster(slots=3)), range(4)))
    assert len(starter.commands) == 1 and all(record == records[0] for record in records)
    command = starter.commands[0]
    assert command[:6] == [sys.executable, "-P", "-m", "pipeline", "cluster", "serve"]
    assert json.loads(command[command.index("--settings") + 1])["slots"] == 3
    for server in starter.servers:
        server.close()


def test_a_cluster_that_does_not_start_says_why(tmp_path, monkeypatch):
    ws = Workspace(tmp_path)
    monkeypatch.setattr(module.subprocess, "Popen", Starter(ws, comes_up=False))
    for _ in range(2):
        with pytest.raises(UserError, match=r"start: Ray's head did not start: no more ports \(log: .*server\.log\)$"):
            ensure(ws, Cluster())
    assert (ws.ray / "server.1.log").exists()  # what the first start said


def test_a_server_that_does_not_come_up_is_ended(tmp_path, monkeypatch):
    """Its client gives up; without one, nobody would end it."""
    ws, started, swept = Workspace(tmp_path), [], []
    monkeypatch.setattr(module, "sweep", lambda: swept.append(started[0].poll()))
    sleeps = ["sh", "-c", "echo error: it hangs; exec sleep 600"]
    real = subprocess.Popen
    monkeypatch.setattr(module.subprocess, "Popen", lambda _, **k: started.append(real(sleeps, **k)) or started[0])
    monkeypatch.setattr(module, "START_SECONDS", 1.5)
    monkeypatch.setattr(module, "SAYING_SECONDS", 0.5)
    with pytest.raises(UserError, match=r"was not up after 2 s: it hangs \(log: .*server\.log\)"):
        ensure(ws, Cluster())
    assert swept == [started[0].returncode] != [None]  # what it has left of its folder


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    """Two stages would start two clusters there."""
    import fcntl

    def none(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    with pytest.raises(UserError, match=r"the file system has no locks: .*lock; keep .* 'cluster=\{mode: job\}'"):
        ensure(Workspace(tmp_path), Cluster())


@pytest.fixture
def work(tmp_path, monkeypatch):
    """The workspace of a running queue server, which is `work.server`."""
    ws = Workspace(tmp_path)
    ws.ray.mkdir(parents=True)
    write_token(ws.ray, "s3cret")
    ws.server = QueueServer("127.0.0.1", "s3cret")
    monkeypatch.setattr(module, "ensure", lambda *_: {"queue": ws.server.address})
    return ws


def test_client_waits_and_passes_on_failures(work):
    client = Client(work, Cluster())

    def slot():
        mine = Connection(work.server.address, "s3cret")
        for message in ("", "UserError: no such clip"):
            mine.finish(mine.take(0)["key"], message)

    with ThreadPoolExecutor(1) as pool:
        working = pool.submit(slot)
        client.run("good", "train", {"run": "good"})
        with pytest.raises(UserError, match="^bad: UserError: no such clip$"):
            client.run("bad", "train", {})
        working.result(10)
    good = work.server.queue.items["good"]
    assert good["arguments"] == {"run": "good"} and good["state"] == "done"


def test_who_does_not_know_the_token_is_refused(work):
    with pytest.raises(PermissionError, match="wrong token"):
        Connection(work.server.address, "guessed")
    write_token(work.ray, "guessed")
    with pytest.raises(UserError, match=r"no shared cluster at .*wrong token.*pipeline cluster stop"):
        Client(work, Cluster())
    # Questions before the proof are no proof, and nothing was answered or queued.
    host, port = work.server.address.rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout=10) as plain:
        plain.sendall(b'["submit", "a", "train", {}]\n["idle"]\n')
        said = plain.makefile().read().splitlines()
    assert len(said) == 2 and "wrong token" in said[1] and not work.server.queue.items


def test_the_token_does_not_travel(work):
    """What a client sends first is no token, and is another thing each time."""
    sent = []
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as pool:
        for nonce in ("one", "two"):
            caller = pool.submit(Connection, f"127.0.0.1:{listener.getsockname()[1]}", "s3cret")
            peer, _ = listener.accept()
            with peer, peer.makefile("rwb") as file:
                file.write(json.dumps(nonce).encode() + b"\n")
                file.flush()
                sent.append(file.readline())
            with pytest.raises(OSError):
                caller.result(10)
    assert sent[0] != sent[1] and not any(b"s3cret" in line for line in sent)


def test_wrong_questions_are_answered_and_harm_nothing(work):
    mine = Connection(work.server.address, "s3cret")
    for question in (["close"], ["__init__"], ["wait", "nothing", 1], ["take"]):
        assert "error" in mine._ask(question)
    assert mine.idle() >= 0


def test_client_says_when_the_cluster_goes_away(work):
    client = Client(work, Cluster())
    client.queue._socket.shutdown(socket.SHUT_RDWR)
    with pytest.raises(UserError, match=r"^a: the shared cluster stopped \(\w+\); run the same command again"):
        client.run("a", "train", {})


def test_a_server_that_is_silent_is_given_up(work, monkeypatch):
    monkeypatch.setattr(module, "ANSWER_SECONDS", 0.3)
    client = Client(work, Cluster())

    async def never(*_):
        await asyncio.sleep(3600)

    monkeypatch.setattr(work.server.queue, "submit", never)
    with pytest.raises(UserError, match=r"^a: the shared cluster stopped \(TimeoutError\); run the same command again"):
        client.run("a", "train", {})


def test_stop_ends_the_server(tmp_path):
    ws = Workspace(tmp_path)
    assert stop(ws) is False
    server = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    port, _ = _alive(ws, pid=server.pid, began=progress._began(server.pid))
    with port, ThreadPoolExecutor(1) as pool:
        reaped = pool.submit(server.wait, 20)  # as the server's own parent would
        assert stop(ws) is True
        assert reaped.result() == -15


def test_ray_is_imported_once_its_environment_is_set():
    """It reads that environment when it is imported: address, token, loopback."""
    code = (
        "import sys; from pathlib import Path; from pipeline.cli.cluster import cluster_serve\n"
        "from pipeline.cluster import server; server.serve = lambda *_: print('ray' in sys.modules)\n"
        "cluster_serve(Path('results'), '{}')"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"
