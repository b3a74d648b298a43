"""A Q-Former turns the frozen features of a video into words of a language model, which then weighs the options.

SeFAR (Section "SeFAR Empowers MLLMs", Table 5) names the parts and leaves their sizes open; those of BLIP-2 are taken.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from mmengine.model import BaseModel
from torch import Tensor, nn

from pipeline.compat import MODELS
from pipeline.errors import UserError, unknown
from pipeline.models.questions.language import load_language

QFORMER = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "cross_attention_frequency",
    "hidden_dropout_prob", "attention_probs_dropout_prob",
)  # fmt: skip


class Words(NamedTuple):
    """B texts of at most L tokens, the first of each a mark of the beginning.

    ids (B, L) token ids; seen (B, L) where there is a token and no padding; answer (B, L) which tokens are the answer.
    """

    ids: Tensor
    seen: Tensor
    answer: Tensor


@MODELS.register_module()
class QuestionModel(BaseModel):
    """Answers questions on videos whose features are given.

    Shapes: B videos, n visual features of a video, each D wide; L tokens; O options.

    Args:
        language: folder or hub id of a causal language model, or the shape of one to be made (`load_language`).
        width: D.
        sentences: what the tokenizer of a made language model must know.
        question: the words of every question; its options follow them.
        queries: number of the Q-Former's learnt queries, each a word to the language model.
        qformer: keys of transformers' `Blip2QFormerConfig`.
        blind: the features of all videos are zero: what words alone give away.

    Trained are the queries, the Q-Former and the linear layer after it, and a language model that was made.

    Raises:
        UserError: a key of `qformer` is unknown, or the language model cannot be loaded.
    """

    head_prefixes = ("queries", "qformer", "project")

    def __init__(
        self,
        language: str | Mapping[str, int],
        width: int,
        sentences: Iterable[str],
        question: str,
        queries: int = 32,
        qformer: Mapping[str, Any] | None = None,
        blind: bool = False,
    ) -> None:
        super().__init__()
        from transformers import Blip2QFormerConfig, Blip2QFormerModel

        settings = dict(qformer or {})
        if odd := set(settings) - set(QFORMER):
            raise unknown("key", min(odd), QFORMER, "model.qformer")
        config = Blip2QFormerConfig(**settings, encoder_hidden_size=width)
        if config.hidden_size % config.num_attention_heads:
            raise UserError(
                f"model.qformer: {config.num_attention_heads} heads do not divide the width {config.hidden_size}"
            )
        self.question, self.blind = question, blind
        self.queries = nn.Parameter(torch.empty(1, queries, config.hidden_size))
        nn.init.trunc_normal_(self.queries, std=config.initializer_range)
        self.qformer = Blip2QFormerModel(config)
        self.language, self.tokenizer = load_language(language, [question, *sentences])
        self.project = nn.Linear(config.hidden_size, self.language.config.hidden_size)

    # ---------------------------------------------------------------------------------------------- words
    def words(self, prompts: Sequence[str], answers: Sequence[str]) -> Words:
        """Prompts, each followed by its answer and the mark of an end, as tokens on the right of which is padding."""
        start, end = [self.tokenizer.bos_token_id], [self.tokenizer.eos_token_id]
        asked, given = (
            self.tokenizer(list(texts), add_special_tokens=False)["input_ids"] for texts in (prompts, answers)
        )
        rows = [(start + a, b + end) for a, b in zip(asked, given, strict=True)]
        longest = max(len(a) + len(b) for a, b in rows)
        ids = torch.full((len(rows), longest), end[0])
        answer, seen = torch.zeros_like(ids, dtype=torch.bool), torch.zeros_like(ids)
        for i, (a, b) in enumerate(rows):
            ids[i, : len(a) + len(b)] = torch.tensor(a + b)
            seen[i, : len(a) + len(b)] = 1
            answer[i, len(a) : len(a) + len(b)] = True
        return Words(ids, seen, answer)

    # ------------------------------------------------------------------------------------------- likelihood
    def visual_words(self, features: Tensor) -> Tensor:
        """Features of videos (B, n, D) -> what the language model reads in the place of words, (B, queries, H)."""
        features = torch.zeros_like(features) if self.blind else features
        found = self.qformer(self.queries.expand(len(features), -1, -1), encoder_hidden_states=features)
        return self.project(found.last_hidden_state)

    def log_likelihood(self, visual: Tensor, words: Words) -> Tensor:
        """Log-probability of each token of the answers after visual words and prompt, (B, L - 1); 0 for the others."""
        embedded = self.language.get_input_embeddings()(words.ids)
        sequence = torch.cat((embedded[:, :1], visual.to(embedded.dtype), embedded[:, 1:]), 1)
        seen = torch.cat((words.seen.new_ones(visual.shape[:2]), words.seen), 1)
        logits = self.language(inputs_embeds=sequence, attention_mask=seen, use_cache=False).logits
        logits = logits[:, visual.shape[1] : -1].float()  # place j speaks of token j + 1
        return -F.cross_entropy(logits.transpose(1, 2), words.ids[:, 1:], reduction="none") * words.answer[:, 1:]

    def weigh(self, features: Tensor, questions: Sequence[Any], normalise: bool = True) -> Tensor:
        """Log-likelihood of each option of B questions on videos with features (B, n, D): (B, O).

        normalise: divided by the option's number of tokens (the mark of its end counts as one), so that a long name
        is not at a disadvantage. Call it in evaluation mode.
        """
        options = [option for question in questions for option in question.options]
        prompts = [question.text(self.question) for question in questions for _ in question.options]
        words = Words(*(part.to(features.device) for part in self.words(prompts, options)))
        visual = self.visual_words(features).repeat_interleave(len(options) // len(questions), 0)
        total = self.log_likelihood(visual, words).sum(1)
        found = total / words.answer.sum(1) if normalise else total
        return found.unflatten(0, (len(questions), -1))

    # ------------------------------------------------------------------------------------------- in training
    def forward(self, mode: str = "loss", **batch: Any) -> dict[str, Tensor]:
        """Losses (names begin with loss_) of a batch, see `loss`."""
        if mode != "loss":
            raise ValueError(f"mode {mode!r}: only 'loss' is a forward pass of training; use weigh")
        return self.loss(**batch)

    def loss(self, features: Tensor, ids: Tensor, seen: Tensor, answer: Tensor) -> dict[str, Tensor]:
        """Cross-entropy of the tokens of right answers, for features (B, n, D) and `Words`, mean over the tokens."""
        found = self.log_likelihood(self.visual_words(features), Words(ids, seen, answer))
        return {"loss_answer": -found.sum() / answer.sum()}

    # ------------------------------------------------------------------------------------------- its tensors
    def init_weights(self) -> None:
        """Nothing: MMEngine would have the parts of transformers draw their weights anew, also those that were read."""

    def train(self, mode: bool = True) -> QuestionModel:
        """Training or evaluation mode; a frozen language model stays in the second."""
        super().train(mode)
        if not any(parameter.requires_grad for parameter in self.language.parameters()):
            self.language.eval()
        return self

    def trained_state(self) -> dict[str, Tensor]:
        """All that training changes."""
        return {name: value for name, value in self.named_parameters() if value.requires_grad}

    def load_trained_state(self, state: Mapping[str, Tensor]) -> None:
        """Load what `trained_state` gave. Raises RuntimeError if it does not fit."""
        if odd := set(state) ^ set(self.trained_state()):
            raise RuntimeError(f"{min(odd)} is missing, or belongs to another model")
        self.load_state_dict(dict(state), strict=False)
