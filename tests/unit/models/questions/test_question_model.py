"""The model that weighs options: likelihoods, what is frozen, what is padded, errors."""

from __future__ import annotations

import pytest
import torch

from pipeline.errors import UserError
from pipeline.models.questions import QuestionModel
from pipeline.models.questions.language import load_language
from pipeline.tasks.questions.questions import Question

SHAPE = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
NAMES = ["leap", "spin left", "turn on one leg", "kick"]
QUESTION = Question(("kick", "leap", "turn on one leg", "spin left"), 1)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return QuestionModel(SHAPE, 5, NAMES, "What is it?", queries=3, qformer=SHAPE).eval()


def test_an_option_is_weighed_as_its_words_one_after_another(model):
    """Against probabilities that are read off one sequence, token by token, without padding."""
    features = torch.randn(1, 2, 5, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        mean, total = (model.weigh(features, [QUESTION], normalise)[0] for normalise in (True, False))
        visual = model.visual_words(features)
        prompt = model.tokenizer(QUESTION.text("What is it?"), add_special_tokens=False)["input_ids"]
        for place, option in enumerate(QUESTION.options):
            wanted = [*model.tokenizer(option, add_special_tokens=False)["input_ids"], model.tokenizer.eos_token_id]
            said = [model.tokenizer.bos_token_id, *prompt]
            value = 0.0
            for token in wanted:
                words = model.language.get_input_embeddings()(torch.tensor([said]))
                sequence = torch.cat((words[:, :1], visual, words[:, 1:]), 1)
                value += model.language(inputs_embeds=sequence).logits[0, -1].log_softmax(-1)[token].item()
                said.append(token)
            assert total[place].item() == pytest.approx(value, abs=1e-4)
            assert mean[place].item() == pytest.approx(value / len(wanted), abs=1e-4)


def test_questions_do_not_change_one_another(model):
    features = torch.randn(2, 2, 5, generator=torch.Generator().manual_seed(2))
    long = Question(tuple(f"{name} on one leg on one leg" for name in QUESTION.options), 0)
    with torch.no_grad():
        both = model.weigh(features, [QUESTION, long])
        torch.testing.assert_close(both[:1], model.weigh(features[:1], [QUESTION]))
    assert both.shape == (2, 4)


def test_the_answer_depends_on_the_video_but_not_blind(model):
    features = torch.randn(2, 2, 5, generator=torch.Generator().manual_seed(3)) * 5
    with torch.no_grad():
        one, other = model.weigh(features, [QUESTION, QUESTION])
        apart = (one - other).abs().max()
        model.blind = True
        one, other = model.weigh(features, [QUESTION, QUESTION])
        assert apart > 10 * (one - other).abs().max() and apart > 1e-6


def test_a_published_language_model_is_frozen_and_not_saved(tmp_path):
    """Written as a published one lies on a disk, it is read, in half precision; gradients go through it."""
    language, tokenizer = load_language(SHAPE, ["What is it? A. B. C. D.", *NAMES])
    language.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model = QuestionModel(str(tmp_path), 5, [], "What is it?", queries=2, qformer=SHAPE)
    assert model.language.dtype == torch.bfloat16 and not any(p.requires_grad for p in model.language.parameters())
    assert not any(name.startswith("language") for name in model.trained_state())
    model.train()
    assert model.qformer.training and not model.language.training
    model.init_weights()  # as MMEngine does before a training
    read = model.language.get_input_embeddings().weight.float()
    torch.testing.assert_close(read, language.get_input_embeddings().weight, atol=1e-3, rtol=1e-2)
    words = model.words([QUESTION.text("What is it?")], ["leap"])
    model(mode="loss", features=torch.randn(1, 2, 5), **words._asdict())["loss_answer"].backward()
    assert model.queries.grad.abs().sum() > 0 and model.project.weight.grad.abs().sum() > 0


def test_weights_come_back_and_others_do_not_fit(model):
    state = {name: value.clone() for name, value in model.trained_state().items()}
    with torch.no_grad():
        model.queries.add_(1)
    model.load_trained_state(state)
    assert model.queries.equal(state["queries"])
    with pytest.raises(RuntimeError, match="queries is missing"):
        model.load_trained_state({name: value for name, value in state.items() if name != "queries"})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"qformer": {"layers": 2}}, "unknown key 'layers' in model.qformer"),
        ({"qformer": {**SHAPE, "num_attention_heads": 3}}, "3 heads do not divide the width 16"),
        ({"language": {**SHAPE, "heads": 2}}, "unknown key 'heads'"),
        ({"language": {"hidden_size": 16}}, "the shape of a language model, which has all of these"),
        ({"language": "/nowhere/vicuna"}, "can't load the language model '/nowhere/vicuna'"),
    ],
)
def test_errors_are_one_line(settings, message):
    with pytest.raises(UserError, match=message) as caught:
        QuestionModel(
            **{"language": SHAPE, "width": 5, "sentences": NAMES, "question": "x", "qformer": SHAPE, **settings}
        )
    assert "\n" not in str(caught.value)
