"""Vision-language models through transformers (tiny, random) and on a server (in this process)."""

from __future__ import annotations

import base64
import io
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from pipeline.errors import UserError
from pipeline.models.backbones.vision_language import Asked, VisionLanguageBackbone, VisionServerBackbone
from pipeline.models.build import build_model
from pipeline.models.few_shot.vision_language import VisionLanguage, grid
from pipeline.tasks.few_shot.scoring import score_split

KINDS = ("llava", "qwen2_5_vl")
NAMES = ("run", "draw sword", "sit")
KEY = "sk-test-0123456789abcdef"
PICTURES = np.random.default_rng(0).integers(0, 256, (4, 30, 30, 3), np.uint8)


@pytest.fixture(scope="module", params=KINDS)
def backbone(request):
    torch.manual_seed(3)
    made = VisionLanguageBackbone({"model_type": request.param})
    for parameter in made.parameters():  # what is drawn for a real model would make all words alike here
        parameter.data = torch.randn(parameter.shape) / max(parameter.shape[-1], 1) ** 0.5
    return made


@torch.no_grad()
def _slow(backbone, asked, normalise):
    """One pass for each option, prompt and option together, without a cache."""
    scores = []
    for option in asked.options:
        pixels = backbone.images(list(asked.pictures), return_tensors="pt")
        prompt = backbone.family.prompt(pixels, asked.question)
        before = len(backbone.tokenizer(prompt)["input_ids"])
        row = torch.tensor([backbone.tokenizer(prompt + backbone.family.between + option)["input_ids"]])
        extra = backbone.family.inputs(row, backbone.mark)
        logits = backbone.model(input_ids=row, attention_mask=torch.ones_like(row), **pixels, **extra).logits
        said = logits[0, before - 1 : -1].log_softmax(-1).gather(-1, row[0, before:, None])
        scores.append(said.mean() if normalise else said.sum())
    return torch.stack(scores)


@pytest.mark.parametrize("normalise", [True, False])
def test_options_after_one_pass_of_the_prompt_are_as_likely_as_alone(backbone, normalise):
    asked = [Asked(tuple(PICTURES[:count]), "What is it?", NAMES) for count in (1, 3)]
    got = backbone.weigh(asked, normalise)
    assert got.shape == (2, 3) and got.std() > 0.01
    for row, question in zip(got, asked, strict=True):
        assert_close(row, _slow(backbone, question, normalise), rtol=1e-5, atol=1e-5)
    letters = Asked(tuple(PICTURES[:2]), "What is it?\nA. run\nB. sit", ("A", "B"))
    assert_close(backbone.weigh([letters], True)[0], _slow(backbone, letters, True), rtol=1e-5, atol=1e-5)
    others = backbone.weigh([asked[0]._replace(pictures=tuple(PICTURES[3:]))], normalise)
    assert (others[0] - got[0]).abs().max() > 1e-5  # it looks at the pictures


def test_images_of_qwen_have_positions_of_their_own(backbone):
    """Without `mm_token_type_ids` they would silently be those of text."""
    if backbone.model.config.model_type != "qwen2_5_vl":
        return
    row = torch.tensor([[9, backbone.mark, 9]])
    assert backbone.family.inputs(row, backbone.mark)["mm_token_type_ids"].tolist() == [[0, 1, 0]]


def test_a_prompt_that_is_too_long_is_an_error(backbone):
    """transformers runs it without a word."""
    with pytest.raises(UserError, match=r"4 images and the question are \d+ tokens, and the model reads 1024"):
        backbone.weigh([Asked(tuple(PICTURES), "very " * 250, NAMES)], True)


def test_unknown_models():
    with pytest.raises(UserError, match="unknown model_type 'lava'.*did you mean 'llava'"):
        VisionLanguageBackbone({"model_type": "lava"})
    with pytest.raises(UserError, match="can't load the vision-language model '/no/such/folder'"):
        VisionLanguageBackbone("/no/such/folder")


# ------------------------------------------------------------------------------------------------------ episodes
def _model(world, method="vision_language", backbone="qwen25_vl_7b", **model):
    run = world.run(method=method, backbone=backbone, model=model)
    return run, build_model(run, world.ws, world.store).eval()


def _scores(run, model, world, **settings):
    return score_split(
        run, model, world.ws, world.store, "test", way=5, shot=1, query=1, episodes=3, seed=3, **settings
    )  # fmt: skip


@pytest.mark.parametrize("show", ["images", "single", "grid"])
def test_names_are_weighed_once_a_test(world, monkeypatch, show):
    run, model = _model(world, backbone="llava_15_7b", show=show)
    seen = []
    original = model.backbone.weigh
    monkeypatch.setattr(model.backbone, "weigh", lambda asked, n: seen.extend(asked) or original(asked, n))
    scores = _scores(run, model, world)
    videos = world.store.splits.count("test")
    assert len(seen) == videos * (8 if show == "single" else 1) and len(seen[0].options) == 10
    assert {len(one.pictures) for one in seen} == {8 if show == "images" else 1}
    assert scores.log_vt is None and scores.log_vv.std() > 0
    monkeypatch.setattr(VisionLanguage, "_once", False)  # each episode by itself gives the same
    assert np.abs(_scores(run, model, world).log_vv - scores.log_vv).max() < 1e-5
    other = _scores(run, model, world, matcher="sum")
    assert np.abs(other.log_vv - scores.log_vv).max() > 1e-3


def test_labels_in_the_prompt(world, monkeypatch):
    run, model = _model(world, "vision_language_labels")
    seen = []
    monkeypatch.setattr(
        model.backbone, "weigh", lambda asked, n: seen.extend(asked) or torch.arange(5.0).expand(len(asked), 5)
    )
    scores = _scores(run, model, world)
    assert len(seen) == 3 * 5 and (scores.log_vv.argmax(-1) == 4).all()
    first = seen[0]
    assert first.options == ("A", "B", "C", "D", "E") and first.question.endswith("\nAnswer with the letter.")
    listed = first.question.splitlines()[1:-1]
    assert [line[:3] for line in listed] == ["A. ", "B. ", "C. ", "D. ", "E. "] and first.pictures[0].shape == (
        32,
        32,
        3,
    )


def test_pictures_of_a_video(world):
    _, model = _model(world, show="grid")
    frames = torch.rand(8, 3, 4, 4)
    assert model._pictures(frames)[0][0].shape == (12, 12, 3)
    places = grid(np.arange(5, dtype=np.uint8).repeat(4 * 3).reshape(5, 2, 2, 3))
    assert places[:, :, 0].tolist()[::2] == [[0, 0, 1, 1, 2, 2], [3, 3, 4, 4, 0, 0], [0] * 6]
    for settings, message in (
        ({"show": "video"}, "unknown show 'video'"),
        ({"text": "atomic"}, "reads one name a class"),
    ):
        with pytest.raises(UserError, match=message):
            _model(world, **settings)
    with pytest.raises(UserError, match="and its backbone is a CLIPBackbone"):
        _model(world, backbone="clip_vit_b16")


# ------------------------------------------------------------------------------------------------------ a server
class Server:
    """Names an option after going through `faults`."""

    def __init__(self) -> None:
        self.calls, self.headers, self.faults = [], [], []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                server.calls.append(body)
                server.headers.append(self.headers["Authorization"])
                fault = server.faults.pop(0) if server.faults else None
                options = body["response_format"]["json_schema"]["schema"]["properties"]["answer"]["enum"]
                text = fault if isinstance(fault, str) else json.dumps({"answer": options[-1]})
                choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
                content = {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice],
                           "usage": {"prompt_tokens": 900, "completion_tokens": 5, "total_tokens": 905}}  # fmt: skip
                if isinstance(fault, int):
                    content = {"error": {"message": f"no: {self.headers['Authorization']}"}}
                data = json.dumps(content).encode()
                self.send_response(fault if isinstance(fault, int) else 200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        threading.Thread(target=self.http.serve_forever, args=(0.05,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("VISION_KEY", KEY)
    made = Server()
    yield made
    made.http.shutdown()
    made.http.server_close()


def _server_backbone(server, folder, **settings):
    llm = {"base_url": server.url, "key": "VISION_KEY", "price": {"input": 2.0, "output": 10.0}, "repairs": 1}
    return VisionServerBackbone("some/model", str(folder), {"temperature": 0.0, "top_k": 1}, llm | settings)


def test_what_a_server_is_sent_and_that_it_is_asked_once(server, tmp_path, capsys, caplog):
    asked = [Asked(tuple(PICTURES[:2]), "What is it?", NAMES), Asked(tuple(PICTURES[2:]), "What is it?", NAMES)]
    backbone = _server_backbone(server, tmp_path)
    scores = backbone.weigh(asked, True)
    assert scores.tolist() == [[-10.0, -10.0, 0.0]] * 2
    assert len(server.calls) == 2 and set(server.headers) == {f"Bearer {KEY}"}
    for body in server.calls:
        assert (body["model"], body["temperature"], body["top_k"]) == ("some/model", 0.0, 1)
        schema = body["response_format"]["json_schema"]
        assert schema["strict"] is True and schema["schema"]["properties"]["answer"]["enum"] == list(NAMES)
        *images, words = body["messages"][0]["content"]
        assert words == {"type": "text", "text": "What is it?"} and len(images) == 2
        sent = []
        for image in images:
            head, data = image["image_url"]["url"].split(",")
            assert head == "data:image/png;base64"
            sent.append(np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))))
        assert any(np.array_equal(np.stack(sent), np.stack(one.pictures)) for one in asked)
    assert (backbone.used.calls, backbone.used.input) == (2, 1800)
    assert backbone.used.cost(backbone.settings.price) == pytest.approx((1800 * 2 + 10 * 10) / 1e6)
    again = _server_backbone(server, tmp_path, key="NO_SUCH_KEY", base_url="")
    assert torch.equal(again.weigh(asked, True), scores) and len(server.calls) == 2 and again.used.calls == 0
    _server_backbone(server, tmp_path).weigh([asked[0]._replace(options=NAMES[:2])], True)
    assert len(server.calls) == 3
    kept = "".join(path.read_text() for path in tmp_path.rglob("*.json"))
    assert "draw sword" in kept and KEY not in kept
    assert KEY not in capsys.readouterr().out + caplog.text


def test_faults_of_a_server(server, tmp_path, monkeypatch):
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)
    asked = [Asked(tuple(PICTURES[:1]), "What is it?", NAMES)]
    server.faults = [429, 500, "no JSON"]
    assert _server_backbone(server, tmp_path).weigh(asked, True).argmax() == 2 and len(server.calls) == 4
    server.faults = ["{}", '{"answer": "swim"}']
    with pytest.raises(UserError, match=r"names none of run, draw sword, sit \(\{\"answer\": \"swim\"\}\)") as caught:
        _server_backbone(server, tmp_path / "b").weigh(asked, True)
    server.faults = [401]
    with pytest.raises(UserError, match="refuses the key in the environment variable VISION_KEY") as denied:
        _server_backbone(server, tmp_path / "c").weigh(asked, True)
    assert KEY not in f"{caught.value}{denied.value}"


def test_a_row_on_a_server(server, world, tmp_path):
    """The plan's settings reach it, a second test asks nothing."""
    from tiny import OVERLAY, bare_plan

    from pipeline.config import merge

    llm = {"base_url": server.url, "key": "VISION_KEY"}
    plan = bare_plan(merge(OVERLAY, {"llm": llm}))
    run = plan.cell({"dataset": "hmdb51", "method": "vision_language", "backbone": "qwen25_vl_server"}, 0, "test").run
    other = bare_plan(merge(OVERLAY, {"llm": llm | {"base_url": "http://elsewhere/v1"}}))
    assert (
        other.cell({"dataset": "hmdb51", "method": "vision_language", "backbone": "qwen25_vl_server"}, 0, "test").run.id
        == run.id
    )
    ws = world.elsewhere(tmp_path)
    (tmp_path / "specs").unlink()
    (tmp_path / "specs").mkdir()
    plan.write_specs(tmp_path / "specs")
    model = build_model(run, ws, world.store).eval()
    scores = _scores(run, model, world)
    assert (scores.log_vv.argmax(-1) == 4).all() and len(server.calls) == 3 * 5
    assert len(server.calls[0]["messages"][0]["content"]) == 9
    _scores(run, build_model(run, ws, world.store).eval(), world)
    assert len(server.calls) == 3 * 5 and list((tmp_path / "text").rglob("*.json"))
