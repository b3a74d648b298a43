"""Causal language models, with their tokenizers: published ones, or small ones with random weights and known words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from pipeline.compat import quiet
from pipeline.errors import UserError, unknown
from pipeline.models.backbones.nano_clip import build_tokenizer
from pipeline.text import lacks_sentencepiece

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SHAPE = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
LONGEST = 512  # tokens, of a made model


def load_language(
    source: str | Mapping[str, int], sentences: Iterable[str]
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model at `source` (a folder or hub id), frozen; or one of a shape, with random weights, all to be trained.

    A published model keeps what it knows of words, so it is frozen, in bfloat16, which halves its memory. A made one
    (Llama's architecture, like Vicuna's) knows nothing: frozen, it would be a random map from words to words. Its
    tokenizer is one of words, those of `sentences`. Torch's global generator draws its weights.

    Raises:
        UserError: no such model, or a key of a shape is missing or unknown.
    """
    if isinstance(source, Mapping):
        return _make(source, sentences)
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(source)
            model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
    except (OSError, ValueError, ImportError) as error:
        if lacks_sentencepiece(source):
            raise UserError(f"the tokenizer of {source} needs sentencepiece; run pip install sentencepiece") from error
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"can't load the language model {source!r} ({reason:.160}); download it on a machine with network "
            f"(hf download {source} --local-dir FOLDER) and set its path: FOLDER"
        ) from error
    return model.requires_grad_(False), tokenizer


def _make(shape: Mapping[str, int], sentences: Iterable[str]) -> tuple[Any, Any]:
    from transformers import LlamaConfig, LlamaForCausalLM

    if odd := set(shape) ^ set(SHAPE):
        raise unknown("key", min(odd), SHAPE, "the shape of a language model, which has all of these")
    tokenizer = build_tokenizer(sentences, LONGEST)
    config = LlamaConfig(
        **shape, vocab_size=len(tokenizer), max_position_embeddings=LONGEST, pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    return LlamaForCausalLM(config), tokenizer
