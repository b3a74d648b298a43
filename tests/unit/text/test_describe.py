"""Descriptions by a language model, against a server in this process that has faults."""

from __future__ import annotations

import json
import logging
import re
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import openai._base_client
import pytest

from pipeline import __main__ as cli
from pipeline.config import LLM, Config
from pipeline.datasets.kinds.base import DataSet
from pipeline.datasets.kinds.skeletons import Skeletons
from pipeline.errors import UserError
from pipeline.experiment import Asset
from pipeline.plan import Plan
from pipeline.text.corpus import load_corpus
from pipeline.text.describe import Answers, describe, estimate, labels_of
from pipeline.text.prompts import identity, leaked, questions, read_answer, read_prompts, resolve

KEY = "sk-test-0123456789abcdef"
NAMES = ("draw_sword", "golf", "sit")
JOINTS = ("head", "left hand", "right hand")


class Server:
    """An LLM server that first goes through `faults`, one a call, then answers well."""

    def __init__(self) -> None:
        self.faults: list[Any] = []
        self.calls: list[dict] = []
        self.times: list[float] = []
        self.answer: Callable[[dict], Any] = good
        self.most = self._now = 0
        self.delay = 0.0
        self._lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"server_state": self})
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._http.daemon_threads = True
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()

    def take(self, body: dict) -> Any:
        with self._lock:
            self.calls.append(body)
            self.times.append(time.monotonic())
            self._now += 1
            self.most = max(self.most, self._now)
            return self.faults.pop(0) if self.faults else None

    def leave(self) -> None:
        with self._lock:
            self._now -= 1


def good(body: dict) -> dict:
    """An answer of the form that the schema asks for."""
    schema = body["response_format"]["json_schema"]["schema"]
    label = re.search(r'"([^"]+)"', body["messages"][1]["content"])[1]
    texts = {}
    for key, kind in schema["properties"].items():
        steps = [f"A person in phase {i} of {label}." for i in range(kind.get("minItems", 0))]
        texts[key] = steps if kind["type"] == "array" else f"The {key} moves for {label}."
    return texts


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_state: Server

    def do_POST(self) -> None:
        state = self.server_state
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        fault = state.take(body)
        try:
            time.sleep(state.delay)
            if isinstance(fault, (int, tuple)):
                status, headers = fault if isinstance(fault, tuple) else (fault, {})
                self._send(status, {"error": {"message": f"no: {self.headers['Authorization']}"}}, headers)
            elif fault == "hang":
                time.sleep(1.5)
                self.close_connection = True
            elif fault == "cut body":
                text = json.dumps(reply("{}")).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text[: len(text) // 2])
                self.wfile.flush()
                self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True
            elif fault == "bad body":
                self._send(200, None, {}, b'{"choices": [{"mess')
            elif fault == "echo":
                self._send(200, reply(json.dumps({"text": f"key {self.headers['Authorization']}"})), {})
            elif isinstance(fault, str):
                self._send(200, reply(fault), {})
            else:
                answer = fault if isinstance(fault, dict) else state.answer(body)
                self._send(200, reply(json.dumps(answer)), {})
        finally:
            state.leave()

    def _send(self, status: int, content: Any, headers: dict, raw: bytes | None = None) -> None:
        text = json.dumps(content).encode() if raw is None else raw
        self.send_response(status)
        for key, value in {"Content-Type": "application/json", "Content-Length": len(text), **headers}.items():
            self.send_header(key, str(value))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: Any) -> None:
        pass


def reply(text: str, finish: str = "stop") -> dict:
    message = {"role": "assistant", "content": text}
    return {
        "id": "1", "object": "chat.completion", "created": 0, "model": "m",
        "choices": [{"index": 0, "message": message, "finish_reason": finish}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120},
    }  # fmt: skip


@pytest.fixture
def server(monkeypatch) -> Iterator[Server]:
    monkeypatch.setattr(openai._base_client, "INITIAL_RETRY_DELAY", 0.01)
    monkeypatch.setattr(openai._base_client, "MAX_RETRY_DELAY", 0.05)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    made = Server()
    yield made
    made.close()


@pytest.fixture
def prompts(repo):
    return read_prompts(repo / "config" / "prompts", ["lga_atomic", "task_adapter_stages"])


@pytest.fixture
def one(repo):
    return read_prompts(repo / "config" / "prompts", ["crossglg_global"])


def settings(server: Server, **changes: Any) -> LLM:
    return LLM(model="m", base_url=server.url, **{"retries": 3, "timeout": 5, **changes})


def test_all_prompts_are_answered_in_the_form_of_a_corpus(repo, server, tmp_path):
    names = ["lga_atomic", "task_adapter_stages", "crossglg_global", "crossglg_joints"]
    lines: list[str] = []
    asked = read_prompts(repo / "config" / "prompts", names)
    said = settings(server, price={"input": 1.0, "output": 10.0})
    corpus = describe(asked, labels_of(NAMES), said, tmp_path / "cache", JOINTS, lines.append)
    loaded = load_corpus(corpus.save(tmp_path / "texts.json"))
    assert loaded.names == sorted(NAMES) and loaded.label("draw_sword") == "draw sword"
    for name in NAMES:
        assert all(len(loaded.atomic(name, count)) == count for count in (1, 2, 3, 4))
        assert len(loaded.stages(name)) == 3 and set(loaded.joints(name)) == set(JOINTS) and loaded.global_text(name)
    assert loaded.provenance["prompts"] == dict.fromkeys(names, 1) and loaded.provenance["model"] == "m"
    assert len(server.calls) == 3 * 7 and all(call["temperature"] == 0 for call in server.calls)
    assert server.calls[0]["response_format"]["json_schema"]["strict"] is True
    assert "21 questions, 0 answered before, 21 to ask m: about" in lines[0] and "cost 0." in lines[0]
    assert lines[-1] == "21 calls: 2100 tokens in, 420 tokens out, cost 0.0063"


def test_a_second_run_makes_no_call(server, prompts, tmp_path, monkeypatch):
    first = describe(prompts, labels_of(NAMES), settings(server), tmp_path, say=lambda _: None)
    calls, lines = len(server.calls), []
    monkeypatch.delenv("OPENAI_API_KEY")  # no key is needed either
    second = describe(prompts, labels_of(NAMES), settings(server), tmp_path, say=lines.append)
    assert second.sha256 == first.sha256 and len(server.calls) == calls
    assert "15 questions, 15 answered before, 0 to ask" in lines[0]


def test_what_decides_an_answer_is_asked_anew(repo, server, one, tmp_path):
    def ask(names=("golf",), prompts=one, **changes) -> int:
        before = len(server.calls)
        describe(prompts, labels_of(names), settings(server, **changes), tmp_path, say=lambda _: None)
        return len(server.calls) - before

    assert ask() == 1 and ask() == 0
    assert ask(concurrency=1, retries=0, timeout=9) == 0  # how it is asked is not part of the key
    assert ask(parameters={"temperature": 0.7}) == 1
    assert ask(names=("golf", "sit")) == 1  # the class that is new
    newer = {name: prompt.model_copy(update={"version": 2}) for name, prompt in one.items()}
    worded = {name: prompt.model_copy(update={"user": prompt.user + " Please."}) for name, prompt in one.items()}
    assert ask(prompts=newer) == 1 and ask(prompts=worded) == 1
    (file,) = (tmp_path / "crossglg_global-v2").rglob("*.json")
    file.write_text('{"texts": "cut o')
    assert ask(prompts=newer) == 1 and ask(prompts=newer) == 0  # a broken file is written again


FAULTS = [
    pytest.param([(429, {"Retry-After": "0.3"})], 2, id="429"),
    pytest.param([500, 503], 3, id="500"),
    pytest.param(["hang"], 2, id="time-out"),
    pytest.param(["cut body"], 2, id="lost connection"),
    pytest.param(["bad body"], 2, id="bad body"),
    pytest.param(['{"text": "A person sw'], 2, id="truncated JSON"),
    pytest.param([{"text": " "}], 2, id="empty"),
    pytest.param([{"texts": "x"}], 2, id="wrong key"),
    pytest.param([{"text": "A person who does draw sword."}], 2, id="another class"),
    pytest.param(['```json\n{"text": "A person swings."}\n```'], 1, id="fenced"),
]


@pytest.mark.parametrize("faults, calls", FAULTS)
def test_faults_are_got_over(server, one, tmp_path, faults, calls):
    server.faults = list(faults)
    labels = labels_of(NAMES) if "draw sword" in str(faults) else labels_of(["golf"])
    if len(labels) > 1:  # the others are kept first, so that golf meets the fault
        server.faults = []
        describe(one, labels, settings(server), tmp_path, say=lambda _: None)
        next((tmp_path / "crossglg_global-v1" / "m").glob("golf-*.json")).unlink()
        server.faults, server.calls = list(faults), []
    timeout = 0.5 if faults == ["hang"] else 5
    corpus = describe(one, labels, settings(server, timeout=timeout), tmp_path, say=lambda _: None)
    assert len(server.calls) == calls and corpus.global_text("golf").startswith(("The text", "A person swings"))
    if isinstance(faults[0], tuple):
        assert server.times[1] - server.times[0] >= 0.3  # as Retry-After says
    if isinstance(faults[0], dict):
        turns = server.calls[1]["messages"]
        assert [turn["role"] for turn in turns] == ["system", "user", "assistant", "user"]
        assert "cannot be used" in turns[-1]["content"]


def test_a_wrong_number_of_steps_is_repaired(server, prompts, tmp_path):
    server.faults = [{"steps": ["A person stands."] * 3}]
    describe({"lga_atomic": prompts["lga_atomic"]}, {"golf": "golf"}, settings(server, concurrency=1), tmp_path)
    assert len(server.calls) == 5
    assert "'steps' has 3 entries in place of 1" in server.calls[1]["messages"][-1]["content"]


def test_what_is_finished_is_kept_when_one_fails(server, one, tmp_path):
    server.answer = lambda body: {"text": ""} if "golf" in body["messages"][1]["content"] else good(body)
    with pytest.raises(UserError, match=r"1 of 3 questions have no answer: golf .*empty.*kept in .*run again"):
        describe(one, labels_of(NAMES), settings(server), tmp_path, say=lambda _: None)
    golf = [call for call in server.calls if "golf" in call["messages"][1]["content"]]
    assert len(golf) == 3  # two repairs
    server.answer, server.calls = good, []
    describe(one, labels_of(NAMES), settings(server), tmp_path, say=lambda _: None)
    assert len(server.calls) == 1


def test_a_server_that_only_fails_is_left_alone(server, one, tmp_path):
    server.faults = [500] * 100
    names = [f"class_{i}" for i in range(20)]
    with pytest.raises(UserError, match=r"stopped after 5 failures in a row"):
        describe(one, labels_of(names), settings(server, retries=1, concurrency=1), tmp_path, say=lambda _: None)
    assert len(server.calls) <= 14  # two attempts of each, and what was under way


def test_questions_are_asked_side_by_side_and_not_more(server, one, tmp_path):
    server.delay = 0.1
    names = [f"class_{i}" for i in range(9)]
    describe(one, labels_of(names), settings(server, concurrency=3), tmp_path, say=lambda _: None)
    assert server.most == 3


@pytest.mark.parametrize(
    "fault, message",
    [
        (401, "refuses the key in the environment variable OPENAI_API_KEY"),
        (404, "has no model 'm'"),
        (400, "refuses the question; check llm.model and llm.parameters"),
        ((429, {"Retry-After": "9999"}), "asks to slow down"),
    ],
)
def test_errors_are_kind_and_hold_no_key(server, one, tmp_path, capsys, caplog, fault, message):
    server.faults = [fault] * 50
    with caplog.at_level(logging.DEBUG), pytest.raises(UserError, match=re.escape(message)) as caught:
        describe(one, {"golf": "golf"}, settings(server, retries=1), tmp_path)
    assert "\n" not in str(caught.value)
    shown = "".join(traceback.format_exception(caught.value))
    _no_key(tmp_path, str(caught.value), shown, capsys.readouterr(), caplog.text)


def test_a_key_that_a_server_sends_back_is_not_kept(server, one, tmp_path, capsys, caplog):
    server.faults = ["echo"]
    with caplog.at_level(logging.DEBUG):
        corpus = describe(one, {"golf": "golf"}, settings(server), tmp_path)
    assert "[key]" in corpus.global_text("golf")
    _no_key(tmp_path, json.dumps(corpus.classes), capsys.readouterr(), caplog.text)


def _no_key(folder, *texts) -> None:
    files = [path.read_text() for path in folder.rglob("*") if path.is_file()]
    assert not any(KEY in str(text) for text in (*texts, *files))


def test_no_server_no_key_no_model(one, tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.setattr(openai._base_client, "INITIAL_RETRY_DELAY", 0.01)
    for given, message in [
        (LLM(model="m"), "the environment variable OPENAI_API_KEY is not set"),
        (LLM(model="m", key="OTHER"), "the environment variable OTHER is not set"),
        (LLM(), "no language model is named"),
        (
            LLM(model="m", base_url="http://u:p@127.0.0.1:9/v1", retries=1),
            r"http://127\.0\.0\.1:9/v1 cannot be reached",
        ),
    ]:
        with pytest.raises(UserError, match=message):
            describe(one, {"golf": "golf"}, given, tmp_path, say=lambda _: None)


# ------------------------------------------------------------------------------------------------- answers
def test_labels_of_other_classes():
    others = ["jump", "jump rope", "draw sword", "eat meal/snack"]
    assert leaked(["A person jumps.", "Then DRAW  sword!"], "golf", others) == ["draw sword"]
    assert leaked("to jump with a rope", "jump rope", others) == []
    assert leaked({"head": "draw.", "hand": "sword"}, "golf", others) == []  # not over the end of a sentence
    assert leaked("they eat meal-snack", "golf", others) == ["eat meal/snack"]


def test_answers_of_joints(repo):
    prompt = read_prompts(repo / "config" / "prompts", ["crossglg_joints"])
    (question,) = questions(prompt, {"golf": "golf"}, JOINTS)
    assert read_answer(question, json.dumps(dict.fromkeys(JOINTS, " moves\nup ")))[0]["head"] == "moves up"
    texts, problems = read_answer(question, json.dumps({"head": "a", "left hand": "b", "tail": "c"}))
    assert texts is None and problems == ["the key 'right hand' is missing", "the key 'tail' was not asked for"]
    assert read_answer(question, json.dumps(dict.fromkeys(JOINTS, 3)))[1] == ["a text is empty or no text"]
    with pytest.raises(UserError, match="needs the joints of a skeleton"):
        questions(prompt, {"golf": "golf"})


def test_braces_and_brackets_in_a_label_stay(one):
    (question,) = questions(one, {"a": "Pouring {count} into [something]"})
    assert "Pouring {count} into [something]" in question.messages[1]["content"]


def test_unknown_prompts_and_wrong_files(repo, tmp_path):
    with pytest.raises(UserError, match="unknown prompt 'lga_atomics'.*did you mean 'lga_atomic'"):
        read_prompts(repo / "config" / "prompts", ["lga_atomics"])
    (tmp_path / "mine.yaml").write_text("{version: 1, field: stages, system: s, user: u, counts: [3]}")
    with pytest.raises(UserError, match="counts belongs to prompts with field: atomic"):
        read_prompts(tmp_path, ["mine"])


# -------------------------------------------------------------------------------------- data sets, command line
def test_identity_is_what_decides_the_answers(repo):
    config = Config(repo / "config")
    plain = resolve(config, {"model": "m"}, DataSet.prompts, "here")
    assert identity(plain) == identity(resolve(config, {"model": "m", "concurrency": 9}, DataSet.prompts, "here"))
    assert identity(plain) != identity(resolve(config, {"model": "n"}, DataSet.prompts, "here"))
    assert identity(plain) != identity(resolve(config, {"model": "m"}, Skeletons.prompts, "here"))
    with pytest.raises(UserError, match="unknown key 'modell'.*did you mean 'model'"):
        resolve(config, {"modell": "m"}, DataSet.prompts, "here")
    with pytest.raises(UserError, match="expected `true` or settings"):
        resolve(config, "m", DataSet.prompts, "here")


def _plan(repo, tmp_path, **options) -> tuple[Plan, Asset]:
    own = {"kind": "folder", "root": str(tmp_path), "splits": {"train": ["golf"], "test": ["sit"]}, **options}
    plan = Plan(Config(repo / "config", {"datasets": {"own": own}}))
    return plan, plan.dataset("own", "here")


def test_the_plan_knows_by_whom_texts_are_written(repo, tmp_path):
    def text(**options) -> str:
        plan, _ = _plan(repo, tmp_path, **options)
        return plan.cell({"method": "lga", "dataset": "own", "measure": {}}, 0, "here").run.text

    described = text(describe={"model": "m"})
    assert text() == "" and described and described == text(describe={"model": "m", "base_url": "http://a/v1"})
    assert text(describe={"model": "n"}) != described
    (tmp_path / "texts.json").write_text('{"classes": {}}')
    given = text(texts=str(tmp_path / "texts.json"))
    assert given == text(texts=str(tmp_path / "texts.json"), describe={"model": "m"})  # a file goes first
    keys = {_plan(repo, tmp_path, **options)[1].key for options in ({}, {"describe": {"model": "m"}})}
    assert len(keys) == 1  # where the clips are prepared does not depend on it


def test_texts_of_a_data_set_are_written(repo, server, tmp_path):
    from pipeline.datasets.index import Clip, write_index
    from pipeline.stages import make_texts
    from pipeline.workspace import Workspace

    described = {"model": "m", "base_url": server.url}
    _, asset = _plan(repo, tmp_path, describe=described, corpora={"other": {**described, "model": "o"}})
    ws = Workspace(tmp_path / "results")
    clips = [Clip(name, name, name, split) for name, split in (("golf", "train"), ("sit", "test"))]
    write_index(ws.dataset(asset.key) / "index.csv", clips)
    corpus = load_corpus(make_texts(asset, ws))
    assert corpus.names == ["golf", "sit"] and len(corpus.atomic("sit", 3)) == 3
    other = load_corpus(ws.dataset(asset.key) / "texts-other.json")
    assert other.provenance["model"] == "o" and corpus.provenance["model"] == "m"
    calls = len(server.calls)
    make_texts(asset, ws)
    assert len(server.calls) == calls


def _call(monkeypatch, capsys, *arguments) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["pipeline", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    return (caught.value.code or 0, *capsys.readouterr())


def test_command(repo, server, tmp_path, monkeypatch, capsys):
    (tmp_path / "classes.txt").write_text("# two\ngolf\ndraw_sword\n")
    common = ("describe", "--classes", tmp_path / "classes.txt", "--config", repo / "config", "--model", "m")
    common += ("--base-url", server.url, "--out", tmp_path / "texts.json", "--results", tmp_path)
    status, out, _ = _call(monkeypatch, capsys, *common, "--dry-run")
    assert status == 0 and "12 questions, 0 answered before, 12 to ask m" in out and not server.calls
    assert not (tmp_path / "texts.json").exists()
    status, out, _ = _call(monkeypatch, capsys, *common, "--prompts", "crossglg_joints", "--graph", "ntu25")
    assert status == 0 and len(load_corpus(tmp_path / "texts.json").joints("golf")) == 25
    assert out.splitlines()[-1] == str(tmp_path / "texts.json")
    status, _, err = _call(monkeypatch, capsys, *common, "hmdb51")
    assert status == 2 and "name either a data set or a file" in err
    status, _, err = _call(monkeypatch, capsys, "describe", "hmbd51", "--config", repo / "config")
    assert status == 2 and "did you mean 'hmdb51'" in err


def test_command_takes_classes_from_lists_and_imports(repo, reference_data, tmp_path, monkeypatch, capsys):
    lists = {"datasets": {"hmdb51": {"lists": str(reference_data / "lists" / "fewshot" / "hmdb51")}}}
    common = ("describe", "hmdb51", "--config", repo / "config", "--results", tmp_path, "--model", "m")
    status, out, _ = _call(monkeypatch, capsys, *common, "--overlay", json.dumps(lists), "--dry-run")
    assert status == 0 and f"{51 * 6} questions" in out
    for name, count in [("hmdb51", 51), ("kinetics", 102), ("somethingcmn", 100), ("ucf101", 150)]:
        file = reference_data / "text" / "task_adapter_pp" / f"classes_{name}.yml"
        status, _, _ = _call(monkeypatch, capsys, "describe", "--import", file, "--out", tmp_path / f"{name}.json")
        assert status == 0 and len(load_corpus(tmp_path / f"{name}.json").names) == count


def test_an_estimate_makes_no_call(one, tmp_path):
    asked = questions(one, labels_of(NAMES))
    made = estimate(asked, Answers(tmp_path, LLM(model="m")))
    assert made.questions == 3 and made.kept == 0 and made.usage.calls == 3 and made.usage.input > 300
