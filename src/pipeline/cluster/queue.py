"""The work of the shared cluster's slots: a queue in its server, and the connection to it.

A connection is TCP with a line of JSON for each question and each answer, so that a stage that only waits for its work
imports nothing heavy. Who connects must prove that it knows the token (HMAC-SHA256 of a nonce); the token itself never
travels.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import secrets
import socket
import threading
import time
from collections import Counter
from contextlib import closing, suppress
from typing import Any

ATTEMPTS = 2  # of an item whose worker died
LINE = 1 << 20  # bytes of a message at most
METHODS = ("submit", "take", "finish", "wait", "idle")


class Queue:
    """Work of the slots; asynchronous, so that waiting blocks nobody."""

    def __init__(self) -> None:
        self.items: dict[str, dict[str, Any]] = {}
        self.waiting: list[str] = []
        self.closed = False
        self.taken: Counter[int] = Counter()  # slot -> how often it has taken work
        self.asking: dict[int, object] = {}  # slot -> the last question for work; an earlier one is a dead worker's
        self.slots: set[int] | None = None  # those that may take work; None: nobody has said
        self.broken = ""  # why none is left
        self.touched = time.monotonic()
        self.changed = asyncio.Event()  # replaced by a new one with each change, so that nobody polls

    def _change(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()

    async def submit(self, key: str, kind: str, arguments: dict[str, Any]) -> None:
        """Add an item, unless the same one is waiting or under way."""
        self.touched = time.monotonic()
        if self.items.get(key, {}).get("state") in ("waiting", "running"):
            return
        self.items[key] = {
            "key": key,
            "kind": kind,
            "arguments": arguments,
            "state": "waiting",
            "attempts": 0,
        }
        self.waiting.append(key)
        if self.broken:
            self._fail_waiting()
        self._change()

    async def take(self, slot: int) -> dict[str, Any] | None:
        """The next item for a slot; None when the cluster closes. A slot that asks while it still holds an item
        has died over it: it gets it once more, then the item has failed. A worker that died while it waited for work
        must get none, for nobody would hear of that: it ends with None when the slot's next worker asks."""
        mine = self.asking[slot] = object()
        for item in self.items.values():
            if item["state"] == "running" and item["slot"] == slot:
                if item["attempts"] < ATTEMPTS:
                    item["attempts"] += 1
                    self.taken[slot] += 1
                    return item
                why = item.get("why") or "out of memory?"
                item |= {"state": "failed", "message": f"its worker died {ATTEMPTS} times ({why})"}
                self._change()
        self._change()  # an earlier question ends
        while not self.closed and self.asking.get(slot) is mine:
            if item := self._next():
                self.waiting.remove(item["key"])
                item |= {"state": "running", "slot": slot, "attempts": item["attempts"] + 1}
                self.taken[slot] += 1
                return item
            await self.changed.wait()
        return None

    def _next(self) -> dict[str, Any] | None:
        """The first item of a run on which no slot is at work, for two measurements of a run share what they encode."""
        busy = {item["arguments"].get("run") for item in self.items.values() if item["state"] == "running"} - {None}
        waiting = (self.items[key] for key in self.waiting)
        return next((item for item in waiting if item["arguments"].get("run") not in busy), None)

    async def finish(self, key: str, message: str = "") -> None:
        """An item is done, or has failed with a message."""
        self.touched = time.monotonic()
        self.items[key] |= {"state": "failed" if message else "done", "message": message}
        self._change()

    async def wait(self, key: str, seconds: float) -> dict[str, Any]:
        """The item when it has ended, or as it is after `seconds`."""
        self.touched = time.monotonic()
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self.items[key]["state"] in ("waiting", "running"):
                    await self.changed.wait()
        return self.items[key]

    async def idle(self) -> float:
        """Seconds since anybody asked for anything; 0 while an item is waiting or under way."""
        busy = any(item["state"] in ("waiting", "running") for item in self.items.values())
        return 0.0 if busy else time.monotonic() - self.touched

    async def died(self, slot: int, why: str) -> None:
        """The worker of a slot has died; what it held says why, should that come to an end."""
        self.asking.pop(slot, None)
        self._change()
        for item in self.items.values():
            if item["state"] == "running" and item["slot"] == slot:
                item["why"] = why

    async def lose(self, slot: int, why: str) -> None:
        """A slot is given up. Its item has failed; where it was the last one, so has all that waits, now and later."""
        for item in self.items.values():
            if item["state"] == "running" and item["slot"] == slot:
                item |= {"state": "failed", "message": why}
        self.slots = (self.slots or set()) - {slot}
        if not self.slots:
            self.broken = f"no worker of the shared cluster starts: {why}"
            self._fail_waiting()
        self._change()

    def _fail_waiting(self) -> None:
        for key in self.waiting:
            self.items[key] |= {"state": "failed", "message": self.broken}
        self.waiting.clear()

    async def training(self) -> list[str]:
        """Ids of the runs that slots train."""
        busy = [item for item in self.items.values() if (item["kind"], item["state"]) == ("train", "running")]
        return [item["arguments"]["run"] for item in busy]

    async def close(self) -> None:
        """Let the slots end after their item."""
        self.closed = True
        self._change()


class QueueServer:
    """A queue that answers on a port of `host`, from a thread of its own, to those who know the token."""

    def __init__(self, host: str, token: str) -> None:
        self.queue, self._token = Queue(), token.encode()
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        server = self.call(asyncio.start_server(self._serve, host, 0, limit=LINE))
        self.address = f"{host}:{server.sockets[0].getsockname()[1]}"

    def call(self, coroutine: Any) -> Any:
        """The result of a coroutine of the queue."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(30)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError, ValueError), closing(writer):
            nonce = secrets.token_hex(32)
            await _send(writer, nonce)
            said = await asyncio.wait_for(reader.readline(), 30)
            if not hmac.compare_digest(said.strip(), json.dumps(_proof(self._token, nonce)).encode()):
                await _send(writer, "wrong token")
                return
            await _send(writer, "")
            while line := await reader.readline():
                await _send(writer, await self._answer(line))

    async def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            method, *arguments = json.loads(line)
            if method not in METHODS:
                raise ValueError(f"no method {method!r}")
            return {"answer": await getattr(self.queue, method)(*arguments)}
        except (KeyError, TypeError, ValueError) as error:
            return {"error": f"{type(error).__name__}: {error}"}


async def _send(writer: asyncio.StreamWriter, content: Any) -> None:
    writer.write(json.dumps(content).encode() + b"\n")
    await writer.drain()


def _proof(token: bytes, nonce: str) -> str:
    return hmac.new(token, nonce.encode(), "sha256").hexdigest()


class Connection:
    """Asks a queue: `connection.submit(...)`, and so on for each of its methods.

    Raises:
        PermissionError: the token is another one.
        ConnectionError: there is no queue, or not any more.
    """

    def __init__(self, address: str, token: str, seconds: float | None = None) -> None:
        """seconds: after which an answer is given up (TimeoutError); None: never."""
        host, port = address.rsplit(":", 1)
        self._socket = socket.create_connection((host, int(port)), timeout=30)
        self._file = self._socket.makefile("rwb")
        self._lock = threading.Lock()
        refusal = self._ask(_proof(token.encode(), self._read()))
        if refusal:
            raise PermissionError(refusal)
        self._socket.settimeout(seconds)

    def __getattr__(self, method: str) -> Any:
        if method not in METHODS:
            raise AttributeError(method)

        def call(*arguments: Any) -> Any:
            with self._lock:
                answer = self._ask([method, *arguments])
            if "error" in answer:
                raise ValueError(answer["error"])
            return answer["answer"]

        return call

    def _ask(self, content: Any) -> Any:
        self._file.write(json.dumps(content).encode() + b"\n")
        self._file.flush()
        return self._read()

    def _read(self) -> Any:
        line = self._file.readline()
        if not line:
            raise ConnectionError("the queue of the shared cluster has closed the connection")
        return json.loads(line)
