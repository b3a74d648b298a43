"""A CLIP small enough to train in a minute on one core: its dimensions, weights at the start and tokenizer.

It has the anatomy of CLIP ViT-B/16 (two towers of twelve pre-norm layers, QuickGELU, CLS pooling, a causal
text tower pooled at the end-of-text token), so that everything a method does to CLIP, up to an adapter in any
of the twelve layers, works on it unchanged. Only width, image and vocabulary are small.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import CLIPConfig, CLIPModel, CLIPTextModelWithProjection, PreTrainedTokenizerFast

PAD, UNK, BOS, EOS = "<|pad|>", "<|unknown|>", "<|startoftext|>", "<|endoftext|>"
SPECIAL_TOKENS = (PAD, UNK, BOS, EOS)  # ids 0..3; EOS must not be 2, which transformers reads as "highest id"

# Known to every nano tokenizer, whatever sentences it is built from: prompt templates are made of these.
FUNCTION_WORDS = tuple(
    "a about across action after again against all along an and another are around as at away back before "
    "being both by class down each first for frame from front has her his hold in into is it its left "
    "like may more move near no not object of off on one onto or other out over performing person photo "
    "photograph picture right side slowly someone something start still that the their them then they "
    "this through to toward towards two under until up upward video view when which while who with "
    "without".split()
) + tuple(".,;:!?'\"()[]-_/")


def nano_config(
    vocab_size: int,
    *,
    image_size: int = 64,
    patch_size: int = 16,
    width: int = 64,
    mlp_width: int = 128,
    layers: int = 12,
    heads: int = 4,
    projection_dim: int = 64,
    max_length: int = 77,
) -> CLIPConfig:
    """Configuration of nano CLIP; both towers have the same width, depth and heads.

    `image_size` and `patch_size` are in pixels, `max_length` in tokens with both end marks.
    """
    from transformers import CLIPConfig

    tower = {
        "hidden_size": width,
        "intermediate_size": mlp_width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "hidden_act": "quick_gelu",
        "projection_dim": projection_dim,
    }
    marks = {
        f"{name}_token_id": SPECIAL_TOKENS.index(token) for name, token in (("pad", PAD), ("bos", BOS), ("eos", EOS))
    }
    return CLIPConfig(
        vision_config={**tower, "image_size": image_size, "patch_size": patch_size},
        text_config={**tower, **marks, "vocab_size": vocab_size, "max_position_embeddings": max_length},
        projection_dim=projection_dim,
    )


def build_tokenizer(sentences: Iterable[str], max_length: int = 77) -> PreTrainedTokenizerFast:
    """Word-level tokenizer of the words in `sentences` plus `FUNCTION_WORDS`.

    Text is lower-cased, split at spaces and at every punctuation mark (so `draw_sword` is three tokens); a
    word that was not in `sentences` becomes the unknown token. Saved with `save_pretrained` and loaded by
    `AutoTokenizer`.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    splitter = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation("isolated")])
    words = set(FUNCTION_WORDS)
    for sentence in sentences:
        words.update(word for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(sentence)))
    vocabulary = {token: i for i, token in enumerate([*SPECIAL_TOKENS, *sorted(words - set(SPECIAL_TOKENS))])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNK))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = splitter
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A {EOS}", special_tokens=[(token, vocabulary[token]) for token in (BOS, EOS)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        unk_token=UNK,
        bos_token=BOS,
        eos_token=EOS,
        model_max_length=max_length,
    )


@torch.no_grad()
def init_nano(model: CLIPModel, generator: torch.Generator) -> None:
    """Draw every weight of a fresh nano CLIP anew, so that a few hundred steps can train its twelve layers.

    CLIP's own initialisation shrinks the query, key and value weights with the depth, which suits long
    training. Here they keep unit gain, and what each block adds to the stream is scaled by 1/sqrt(2 x layers)
    (GPT-2), attention three times as much: all that the CLS and end-of-text tokens know comes through it.
    Position and end-of-text embeddings start small, so that the features of different inputs differ from the
    start. The patch embedding starts as the lowest frequencies of the cosine transform of a patch, position
    embeddings as sines and cosines. `width` must be a multiple of 4.
    """
    _draw_layers(model, (model.vision_model, model.text_model), generator)
    vision, text = model.vision_model.embeddings, model.text_model.embeddings
    vision.patch_embedding.weight.copy_(_cosine_patches(vision.embed_dim, vision.patch_size))
    grid = vision.image_size // vision.patch_size
    half = _sinusoids(grid, vision.embed_dim // 2, period=2.0 * grid)
    table = torch.cat((half[:, None].expand(-1, grid, -1), half[None].expand(grid, -1, -1)), dim=-1)
    vision.position_embedding.weight[1:] = 0.1 * table.reshape(grid * grid, -1)
    nn.init.zeros_(vision.position_embedding.weight[:1])
    nn.init.normal_(vision.class_embedding, std=0.5, generator=generator)
    _draw_words(text, generator)
    model.logit_scale.fill_(math.log(5))


@torch.no_grad()
def init_nano_text(model: CLIPTextModelWithProjection, generator: torch.Generator) -> None:
    """As `init_nano`, for a text tower alone."""
    _draw_layers(model, (model.text_model,), generator)
    _draw_words(model.text_model.embeddings, generator)


def _draw_layers(model: nn.Module, towers: Iterable[nn.Module], generator: torch.Generator) -> None:
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5, generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for tower in towers:
        for layer in tower.encoder.layers:
            scale = (2 * len(tower.encoder.layers)) ** -0.5
            layer.self_attn.out_proj.weight.mul_(3 * scale)
            layer.mlp.fc2.weight.mul_(scale)


def _draw_words(text: nn.Module, generator: torch.Generator) -> None:
    """The embeddings of a text tower."""
    nn.init.normal_(text.token_embedding.weight, std=0.5, generator=generator)
    text.token_embedding.weight[SPECIAL_TOKENS.index(EOS)] *= 0.1
    length = text.position_embedding.num_embeddings
    text.position_embedding.weight.copy_(0.1 * _sinusoids(length, text.position_embedding.embedding_dim, 1000.0))


def _sinusoids(length: int, dim: int, period: float) -> Tensor:
    """(length, dim): sines and cosines whose wavelengths run geometrically from 4 to `period` positions."""
    waves = 4.0 * (period / 4.0) ** torch.linspace(0, 1, dim // 2)
    phase = 2 * math.pi * torch.arange(length)[:, None] / waves
    return torch.cat((phase.sin(), phase.cos()), dim=1)


def _cosine_patches(width: int, patch: int) -> Tensor:
    """(width, 3, patch, patch): cosine basis of grey and two colour differences, lowest frequencies first.

    Gains grow with the frequency, to even out the spectrum of pictures (amplitude ~ 1/frequency).
    """
    opponent = torch.tensor([[1.0, 1.0, 1.0], [1.0, -1.0, 0.0], [0.5, 0.5, -1.0]])
    opponent = opponent / opponent.norm(dim=1, keepdim=True)
    steps = (torch.arange(patch) + 0.5) * math.pi / patch
    order = sorted(((u, v) for u in range(patch) for v in range(patch)), key=lambda uv: (uv[0] ** 2 + uv[1] ** 2, uv))
    filters = []
    for u, v in order[: -(-width // 3)]:
        wave = torch.cos(u * steps)[:, None] * torch.cos(v * steps)[None]
        wave = wave / wave.norm() * (1 + math.hypot(u, v)) / patch
        filters += [colour[:, None, None] * wave for colour in opponent]
    return torch.stack(filters[:width])
