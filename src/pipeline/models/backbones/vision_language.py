"""Models of images and words, as they are: how likely they find words after the frames of a video and a question.

Published ones run here, through transformers, or on any server that has OpenAI's chat completions.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.compat import MODELS, quiet
from pipeline.config import LLM, merge
from pipeline.errors import UserError, unknown
from pipeline.experiment import digest, slug
from pipeline.files import write_text
from pipeline.text.llm import BadBody, Chat, Usage
from pipeline.text.prompts import tell

SIDE = 28  # pixels of the images of a made model
TELL_EVERY = 100  # calls


class Asked(NamedTuple):
    """A question on some pictures, uint8 (H, W, 3) each, and the answers that are weighed."""

    pictures: tuple[np.ndarray, ...]
    question: str
    options: tuple[str, ...]


class Plain(nn.Module):
    """What every backbone of a few-shot method has: frames are taken in [0, 1]."""

    mean, std = (0.0,) * 3, (1.0,) * 3
    image_size, dim = None, 0
    likelihoods: bool
    """It weighs every option; otherwise it names one."""

    def weigh(self, asked: Sequence[Asked], normalise: bool) -> Tensor:
        """Log-likelihood of each option of questions with O options each: (len(asked), O) on the CPU.

        normalise: divided by the option's number of tokens.
        """
        raise NotImplementedError


# ------------------------------------------------------------------------------------------------ transformers
class Llava:
    """LLaVA-1.5: an image is as many tokens as its CLIP has patches, whatever its size."""

    image, between = "<image>", " "

    def __init__(self, config: Any) -> None:
        vision = config.vision_config
        self.tokens = (vision.image_size // vision.patch_size) ** 2

    def prompt(self, pixels: Mapping[str, Tensor], question: str) -> str:
        """The words, with a mark for each token of an image."""
        images = len(pixels["pixel_values"])
        return f"USER: {(self.image * self.tokens + chr(10)) * images}{question} ASSISTANT:"

    def inputs(self, ids: Tensor, mark: int) -> dict[str, Tensor]:
        """What the model takes beside tokens and pixels."""
        return {}

    def later(self, model: nn.Module, before: int, words: int, options: int) -> dict[str, Tensor]:
        """Positions of the words of options that follow a prompt of `before` tokens."""
        return {}


class QwenVL:
    """Qwen2.5-VL: an image is a grid of patches, of which four make a token; positions are in time, height and width.

    Its chat template places a line for the system where none is given.
    """

    image, between = "<|image_pad|>", ""

    def __init__(self, config: Any) -> None:
        self.merged = config.vision_config.spatial_merge_size**2

    def prompt(self, pixels: Mapping[str, Tensor], question: str) -> str:
        """As `Llava.prompt`."""
        counts = (pixels["image_grid_thw"].prod(1) // self.merged).tolist()
        images = "".join(f"<|vision_start|>{self.image * count}<|vision_end|>" for count in counts)
        return (
            f"<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n{images}{question}"
            "<|im_end|>\n<|im_start|>assistant\n"
        )

    def inputs(self, ids: Tensor, mark: int) -> dict[str, Tensor]:
        """Which tokens are of images: without it positions would silently be those of text."""
        return {"mm_token_type_ids": (ids == mark).int()}

    def later(self, model: nn.Module, before: int, words: int, options: int) -> dict[str, Tensor]:
        """As `Llava.later`; they go on from the last position of the prompt, which the model has left behind."""
        places = before + model.model.rope_deltas[:1].reshape(1, 1) + torch.arange(words, device=model.device)
        return {"position_ids": places.expand(3, options, -1)}


FAMILIES = {"llava": Llava, "qwen2_5_vl": QwenVL}


@MODELS.register_module()
class VisionLanguageBackbone(Plain):
    """A frozen model of transformers' `AutoModelForImageTextToText`.

    Args:
        source: folder or hub id; or `{model_type: llava | qwen2_5_vl}` for a tiny one with random weights, which reads
            bytes for words.

    Raises:
        UserError: it cannot be loaded, or its prompt is not known here.
    """

    likelihoods = True

    def __init__(self, source: str | Mapping[str, str]) -> None:
        super().__init__()
        made = isinstance(source, Mapping)
        self.model, self.tokenizer, self.images = _make(source["model_type"]) if made else _load(source)
        self.model.requires_grad_(False).eval()
        config = self.model.config
        self.family = FAMILIES[config.model_type](config)
        self.longest = config.get_text_config().max_position_embeddings
        self.mark = self.tokenizer.convert_tokens_to_ids(self.family.image)

    @torch.inference_mode()
    def weigh(self, asked: Sequence[Asked], normalise: bool) -> Tensor:
        """See `Plain.weigh`. Raises UserError for a prompt that is longer than the model can read."""
        return torch.stack([self._weigh(*question, normalise) for question in asked]).cpu()

    def _weigh(self, pictures: Sequence[np.ndarray], question: str, options: Sequence[str], normalise: bool) -> Tensor:
        """The prompt runs once, the options then follow it in a batch."""
        device = self.model.device
        pixels = {name: value.to(device) for name, value in self.images(list(pictures), return_tensors="pt").items()}
        prompt = self.family.prompt(pixels, question)
        ids = self.tokenizer(prompt)["input_ids"]
        words, seen = (part.to(device) for part in self._options(prompt, ids, options))
        if len(ids) + words.shape[1] > self.longest:
            raise UserError(
                f"{len(pictures)} images and the question are {len(ids)} tokens, and the model reads {self.longest}; "
                "show fewer images at a time (model.show)"
            )
        row = torch.tensor([ids], device=device)
        extra = {**pixels, **self.family.inputs(row, self.mark)}
        read = self.model(input_ids=row, attention_mask=torch.ones_like(row), use_cache=True, logits_to_keep=1, **extra)
        total = read.logits[0, -1].float().log_softmax(-1)[words[:, 0]]
        if words.shape[1] > 1:
            follow = self.family.later(self.model, len(ids), words.shape[1] - 1, len(words))
            read.past_key_values.batch_repeat_interleave(len(words))
            mask = torch.cat((seen.new_ones(len(words), len(ids)), seen[:, :-1]), dim=1)
            said = (
                self.model(input_ids=words[:, :-1], attention_mask=mask, past_key_values=read.past_key_values, **follow)
                .logits.float()
                .log_softmax(-1)
            )
            total = total + (said.gather(-1, words[:, 1:, None]).squeeze(-1) * seen[:, 1:]).sum(1)
        return total / seen.sum(1) if normalise else total

    def _options(self, prompt: str, ids: list[int], options: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Tokens of the options after the prompt, and where there is one, (O, L) each; padded on the right."""
        rows = [self.tokenizer(f"{prompt}{self.family.between}{option}")["input_ids"] for option in options]
        if any(row[: len(ids)] != ids or len(row) == len(ids) for row in rows):
            raise UserError("an option changes the tokens of the prompt before it; give it other words")
        longest = max(map(len, rows)) - len(ids)
        words, seen = torch.zeros(2, len(rows), longest, dtype=torch.long)
        for i, row in enumerate(rows):
            words[i, : len(row) - len(ids)] = torch.tensor(row[len(ids) :])
            seen[i, : len(row) - len(ids)] = 1
        return words, seen


def _load(source: str) -> tuple[Any, Any, Any]:
    from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer

    try:
        with quiet():
            kind = AutoConfig.from_pretrained(source).model_type
            if kind not in FAMILIES:
                raise unknown("model type", kind, FAMILIES, source)
            dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
            model = AutoModelForImageTextToText.from_pretrained(source, dtype=dtype)
            return model, AutoTokenizer.from_pretrained(source), AutoImageProcessor.from_pretrained(source)
    except (OSError, ValueError, ImportError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"can't load the vision-language model {source!r} ({reason:.160}); download it on a machine with network "
            f"(hf download {source} --local-dir FOLDER) and set its path: FOLDER"
        ) from error


def _make(kind: str) -> tuple[Any, Any, Any]:
    """A tiny model of a family with random weights, a tokenizer of bytes and its image processor."""
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    if kind not in FAMILIES:
        raise unknown("model_type", kind, FAMILIES, "config/backbones.yaml")
    marks = ["<pad>", "<s>", "</s>", "<image>", "<|image_pad|>", "<|vision_start|>", "<|vision_end|>", "<|video_pad|>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    plain = Tokenizer(models.BPE({token: i for i, token in enumerate([*marks, *letters])}, []))
    plain.pre_tokenizer, plain.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=plain, pad_token="<pad>", bos_token="<s>", eos_token="</s>",
        additional_special_tokens=marks[3:],
    )  # fmt: skip
    number = tokenizer.convert_tokens_to_ids
    text = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 4, "vocab_size": len(tokenizer), "max_position_embeddings": 1024,
        "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    if kind == "llava":
        vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
                  "image_size": SIDE, "patch_size": 14, "model_type": "clip_vision_model"}  # fmt: skip
        config = transformers.LlavaConfig(
            vision_config=vision, text_config={**text, "model_type": "llama"}, image_token_index=number("<image>"),
            pad_token_id=0,
        )  # fmt: skip
        images = transformers.CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=SIDE)
        return transformers.LlavaForConditionalGeneration(config), tokenizer, images
    vision = {"hidden_size": 32, "intermediate_size": 64, "depth": 2, "num_heads": 4, "patch_size": 14,
              "out_hidden_size": 32, "fullatt_block_indexes": [1], "window_size": 28}  # fmt: skip
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
    config = transformers.Qwen2_5_VLConfig(
        vision_config=vision, text_config={**text, "rope_parameters": rope}, image_token_id=number("<|image_pad|>"),
        video_token_id=number("<|video_pad|>"), vision_start_token_id=number("<|vision_start|>"),
        vision_end_token_id=number("<|vision_end|>"),
    )  # fmt: skip
    images = transformers.Qwen2VLImageProcessorPil(min_pixels=SIDE * SIDE, max_pixels=SIDE * SIDE)
    return transformers.Qwen2_5_VLForConditionalGeneration(config), tokenizer, images


# ---------------------------------------------------------------------------------------------------- a server
@MODELS.register_module()
class VisionServerBackbone(Plain):
    """A model behind OpenAI's chat completions, which is asked to name one of the options.

    Pictures are sent as PNG in data URLs, the options as the only values of the answer (structured output). Every
    answer is kept in `cache`, so that no question is paid for twice.

    Args:
        source: the model's name, as the server calls it.
        parameters: sent with every question.
        cache: folder of the answers.
        llm: address, key, price, ...: keys of `config.LLM`.
    """

    likelihoods = False

    def __init__(
        self, source: str, cache: str, parameters: Mapping[str, Any] | None = None,
        llm: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        given = {"model": source, "parameters": dict(parameters or {"temperature": 0.0})}
        self.settings = LLM.model_validate(merge(llm or {}, given))
        self.folder = Path(cache) / (slug(source) or "model")
        self.used = Usage()
        self._chat: Chat | None = None

    @property
    def chat(self) -> Chat:
        """The server, which needs no key as long as all answers are kept."""
        self._chat = self._chat or Chat(self.settings)
        return self._chat

    def weigh(self, asked: Sequence[Asked], normalise: bool) -> Tensor:
        """0 for the option that is named, -10 for the others: (len(asked), O).

        Raises UserError when the server gives no usable answer.
        """
        with ThreadPoolExecutor(self.settings.concurrency, thread_name_prefix="vision") as pool:
            named, usages = zip(*pool.map(self._name, asked), strict=True)
        before, self.used = self.used.calls, sum(usages, self.used)
        if before // TELL_EVERY != self.used.calls // TELL_EVERY:
            tell(f"{self.used.calls} calls of {self.settings.model}: {self.used.line(self.settings.price)}")
        scores = torch.full((len(asked), len(asked[0].options)), -10.0)
        return scores.scatter(1, torch.tensor(named)[:, None], 0.0)

    def _name(self, asked: Asked) -> tuple[int, Usage]:
        """Number of the option that is named, and what it took."""
        pictures = [_png(picture) for picture in asked.pictures]
        seen = [hashlib.sha256(picture).hexdigest() for picture in pictures]
        key = [self.settings.model, self.settings.parameters, asked.question, asked.options, seen]
        path = self.folder / f"{digest(key, 24)}.json"
        try:
            return asked.options.index(json.loads(path.read_text(encoding="utf-8"))["answer"]), Usage()
        except (OSError, ValueError, KeyError, TypeError):
            answer, usage = self._ask(asked, pictures)
        content = {"answer": answer, "question": asked.question, "options": asked.options, "usage": asdict(usage)}
        write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
        return asked.options.index(answer), usage

    def _ask(self, asked: Asked, pictures: Sequence[bytes]) -> tuple[str, Usage]:
        shown = [
            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{base64.b64encode(picture).decode()}"}}
            for picture in pictures
        ]
        messages = [{"role": "user", "content": [*shown, {"type": "text", "text": asked.question}]}]
        answer = {"type": "string", "enum": list(asked.options)}
        schema = {"type": "object", "properties": {"answer": answer}, "required": ["answer"],
                  "additionalProperties": False}  # fmt: skip
        used, said = Usage(), "nothing"
        for _ in range(self.settings.repairs + 1):
            try:
                said, _, usage = self.chat.ask(messages, schema, "action")
            except BadBody:
                continue
            used = used + usage
            try:
                found = json.loads(said)["answer"]
            except (ValueError, KeyError, TypeError):
                continue
            if found in asked.options:
                return found, used
        raise UserError(
            f"{self.chat.address}: {self.settings.model} names none of {', '.join(asked.options)} ({said:.80})"
        )


def _png(picture: np.ndarray) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return file.getvalue()
