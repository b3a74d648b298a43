"""A stand-in for a language model: OpenAI's chat completions on loopback, and answers that are right in form alone."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

WAYS = ("goes up", "goes down", "moves to the side", "stays still", "moves back and forth")


def answer(schema: dict[str, Any]) -> dict[str, Any]:
    """What the JSON schema of a question of `text.prompts` asks for: texts, and lists of different sentences."""
    texts: dict[str, Any] = {}
    for place, (key, kind) in enumerate(schema["properties"].items()):
        if kind["type"] == "array":
            texts[key] = [f"A person's right hand {WAYS[i]}." for i in range(kind["minItems"])]
        elif key == "text":
            texts[key] = "The right hand goes up while the left knee bends; the head stays still."
        else:
            texts[key] = f"The {key} {WAYS[place % len(WAYS)]}."
    return texts


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        said = json.dumps(answer(asked["response_format"]["json_schema"]["schema"]))
        body = json.dumps({
            "id": "stand-in", "object": "chat.completion", "created": 0, "model": asked["model"],
            "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": said}}],
            "usage": {"prompt_tokens": 100, "completion_tokens": 50, "total_tokens": 150},
        }).encode()  # fmt: skip
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def language_model() -> Iterator[str]:
    """Its address up to /v1, while the block runs."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1"
        finally:
            server.shutdown()
