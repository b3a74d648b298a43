"""Questions on videos through the one training loop, from the features of another run."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from semi_world import SemiWorld

from pipeline.errors import UserError
from pipeline.evaluation.evaluate import measure_run, search_in_process
from pipeline.evaluation.score import score_run
from pipeline.models.build import WEIGHTS, load_weights
from pipeline.models.questions import QuestionModel
from pipeline.tasks.kinds import task_of
from pipeline.training.train import train_run

TRAIN = {"label_rate": 25, "epochs": 2, "steps": 4, "batch": 4, "batches_per_step": 2, "validate_epochs": 1}
LABELS = {"train": {"label_rate": 25}}


@pytest.fixture(scope="module")
def semi(tmp_path_factory):
    torch.set_num_threads(1)
    return SemiWorld(tmp_path_factory.mktemp("semi"))


@pytest.fixture(scope="module")
def asked(semi):
    """`asked(encoder, ...)` is a cell of questions; without an encoder that of a network which is not trained."""

    def cell(encoder=None, train=None, seed=0, **rest):
        encoder = encoder or {"method": "sefar", "train": {"steps": 0}}
        train = {**TRAIN, **(train or {})}
        experiment = {"dataset": "gym99", "method": "sefar_qa", "encoder": encoder, "train": train, **rest}
        found = semi.plan.cell(experiment, seed, "the test")
        semi.plan.runs.setdefault(found.run.id, found.run)
        semi.plan.write_specs(semi.ws.root / "specs")
        return found

    return cell


def trained(cell, ws):
    """The record of a training, after that of its encoder."""
    train_run(ws.read_run(cell.run.model["encoder_run"]), ws)
    train_run(cell.run, ws)
    return json.loads((ws.run(cell.run.id) / "train.json").read_text())


def test_questions_are_planned_with_the_run_that_they_read(semi, asked):
    encoder = {"method": "sefar", "train": {"epochs": 3, "steps": 6}}
    run = asked(encoder).run
    read = semi.plan.runs[run.model["encoder_run"]]
    assert (read.method, read.dataset, read.seed) == ("sefar", run.dataset, run.seed)
    assert read.train["label_rate"] == run.train["label_rate"] == 25 and read.train["steps"] == 6
    assert asked({**encoder, "model": {"passes": 5}}).run.id != run.id  # another encoder, another identity
    other = asked(encoder, seed=1).run
    assert semi.plan.runs[other.model["encoder_run"]].seed == 1
    rate = asked(encoder, {"label_rate": 50}).run
    assert semi.plan.runs[rate.model["encoder_run"]].train["label_rate"] == 50
    untrained = semi.plan.runs[asked().run.model["encoder_run"]]
    assert untrained.train == {} and untrained.method == "sefar"
    for wrong, message in (
        ({"method": "sefar", "seed": 3}, "unknown key 'seed' in the test, encoder"),
        ({"method": "lga"}, "unknown train key 'label_rate'"),
    ):
        with pytest.raises(UserError, match=message):
            asked(wrong)
    with pytest.raises(UserError, match="the method svformer reads no features of another run"):
        semi.plan.cell({"dataset": "gym99", "method": "svformer", "encoder": {"method": "sefar"}}, 0, "the test")


@pytest.mark.parametrize(
    "encoder",
    [
        None,
        {"method": "frozen_frames", "train": {"steps": 0}},
        {"method": "svformer", "train": {"epochs": 2, "steps": 2, "warm_epochs": 1}},
    ],
)
def test_it_trains_is_saved_and_gives_the_same_answers_again(semi, asked, tmp_path, encoder):
    ws = semi.elsewhere(tmp_path / "ws")
    if encoder and encoder["method"] == "svformer":
        encoder["train"] |= {"batch": 2, "unlabelled": 1, "labelled_per_step": 4}
    cell = asked(encoder)
    record = trained(cell, ws)
    assert record["steps"] == 4 and record["classes"]["labelled"] == 12 and 0 <= record["validation_accuracy"] <= 100
    assert record["validation"]["classes"] == 4 and record["last_loss"] is None  # of four options; of tokens
    assert score_run(cell.run, [cell], ws) == 1
    (path,) = measure_run(cell.run, [cell], ws, search_in_process)
    value = json.loads(path.read_text())
    task = task_of(cell.run, ws)
    scores = task.scores(load_weights(task.build(), cell.run, ws), cell.measure, "test")
    assert (
        scores.log_vv.shape == (36, 1, 4)
        and value["n"] == 36
        and value["predictions"]["classes"] == 4
        and (scores.log_vv < 0).all()
    )
    assert 100 * (scores.trained[:, 0].argmax(1) == scores.labels[:, 0]).mean() == pytest.approx(value["value"])


def test_what_is_trained_is_what_reads_the_features(semi, asked, tmp_path):
    """The Q-Former, and a language model that knew nothing; the encoder stays as its own training left it."""
    ws = semi.elsewhere(tmp_path / "ws")
    cell = asked({"method": "sefar_supervised", "train": {"epochs": 1, "steps": 2, "batch": 2, "labelled_per_step": 2}})
    train_run(ws.read_run(cell.run.model["encoder_run"]), ws)
    encoder = ws.run(cell.run.model["encoder_run"]) / WEIGHTS
    before = encoder.read_bytes()
    start = {name: value.clone() for name, value in task_of(cell.run, ws).build().trained_state().items()}
    train_run(cell.run, ws)
    assert encoder.read_bytes() == before
    weights = load_file(ws.run(cell.run.id) / WEIGHTS)
    assert weights.keys() == start.keys()
    moved = {name.split(".")[0] for name, value in weights.items() if not value.equal(start[name])}
    assert moved == {"queries", "qformer", "project", "language"}


def test_training_items_depend_on_seed_and_number_only(semi, asked):
    task = task_of(asked().run, semi.ws)
    model = task.build()
    items, again = task.items(model), task.items(model)
    assert len(items) == 8
    first = items[5]
    assert all(first[key].equal(again[5][key]) for key in first)
    assert first["features"].shape == (4, 3, 16)
    other = {key: items[key]["ids"].tolist() for key in range(8)}
    assert len({str(value) for value in other.values()}) == 8
    answers = model.tokenizer.batch_decode([row[mask] for row, mask in zip(first["ids"], first["answer"], strict=True)])
    assert all(text.split(" <|")[0] in {name.lower() for name in task.names} for text in answers)
    with pytest.raises(IndexError):
        items[8]


def test_all_runs_are_asked_the_same_at_test(semi, asked):
    clips = list(range(20))
    questions = [task_of(asked(**settings).run, semi.ws).questions(clips, 0) for settings in (
        {}, {"seed": 1}, {"encoder": {"method": "sefar_supervised"}},
    )]  # fmt: skip
    assert questions[0] == questions[1] == questions[2]
    task = task_of(asked().run, semi.ws)
    assert questions[0] != task.questions(clips, 1)
    for clip, question in zip(clips, questions[0], strict=True):
        assert question.options[question.right] == task.store.labels[clip].replace("_", " ")


def test_it_learns_what_the_features_say_and_nothing_without_them():
    """Features that name their class: nearly all answers are right. Blind, no better than chance."""
    from pipeline.tasks.questions.questions import draw_question
    from pipeline.tasks.questions.task import QuestionItems

    names = ["spin left", "spin right", "leap", "bend", "long turn on one leg", "kick"]
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    answers = [names[i % 6] for i in range(48)]
    found = {}
    for blind in (False, True):
        torch.manual_seed(0)
        model = QuestionModel(
            shape, 6, names, "What is it?", queries=2, qformer={**shape, "num_hidden_layers": 1}, blind=blind
        )
        features = torch.eye(6)[[names.index(name) for name in answers]][:, None] * 3
        items = QuestionItems(model, features, answers, names, 16, 150, 0)
        optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
        model.train()
        for i in range(150):
            batch = {key: value for key, value in items[i].items() if key != "episode"}
            optimizer.zero_grad()
            model(mode="loss", **batch)["loss_answer"].backward()
            optimizer.step()
        rng = np.random.default_rng(9)
        asked = [draw_question(name, names, rng) for name in answers]
        with torch.no_grad():
            chosen = model.eval().weigh(features, asked).argmax(1).numpy()
        found[blind] = (chosen == np.array([question.right for question in asked])).mean()
    assert found[False] > 0.8 and found[True] < 0.5, found
