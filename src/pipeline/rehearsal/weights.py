"""Networks with random weights, in the folders and formats of their publishers.

CLIP, ResNet-50 and ViT-S have their full size. DeBERTa and Vicuna have all their layers and heads and are narrow:
nothing in them is trained, and wide ones would do the same for longer. Their publishers give them as pickles with files
of sentencepiece, these are safetensors with a `tokenizer.json`. Tokenizers are trained on a few sentences; a word that
they do not know is spelt.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file

from pipeline.compat import quiet
from pipeline.datasets.synthetic import grammar
from pipeline.files import new_folder, write_json
from pipeline.models.backbones.nano_clip import FUNCTION_WORDS
from pipeline.text import DEBERTA

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

CLIP, RESNET, VIT = "clip-vit-base-patch16", "resnet50.tv_in1k", "vit_small_patch16_224.augreg_in21k_ft_in1k"
VICUNA = "vicuna-7b-v1.5"
HUB = f"hub/models--{DEBERTA.replace('/', '--')}"  # the hub's cache, where a training looks for DeBERTa
COMMIT = "0" * 40  # of the stand-in there
WORDS = 4000  # of a trained tokenizer, at most
CLIP_WORDS, CLIP_START, CLIP_END = 49408, "<|startoftext|>", "<|endoftext|>"  # the marks are its last two words
# Of both towers of CLIP where it is to be small: what a test of the way needs, not of the networks.
SMALL_TOWER = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def make_weights(name: str, folder: Path, small: bool = False) -> None:
    """The network `name`, a key of `NETWORKS`, below `folder` unless it is there. small: its CLIP has narrow layers."""
    place = folder / name
    if not place.exists():
        torch.manual_seed(0)
        with new_folder(place) as new, quiet():
            NETWORKS[name](new, small)


def _clip(folder: Path, small: bool) -> None:
    """openai/clip-vit-base-patch16: a byte-level BPE of lower case whose words end in </w>, and both towers."""
    from tokenizers import models, normalizers, pre_tokenizers
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

    known = _byte_pairs(CLIP_END, ends="</w>", rules=normalizers.Lowercase(), splits=pre_tokenizers.WhitespaceSplit())
    model = json.loads(known.to_str())["model"]
    words: dict[str, int] = {word: i for i, word in enumerate(sorted(set(model["vocab"]) - {CLIP_END}))}
    words |= {f"<|unused{i}|>": i for i in range(len(words), CLIP_WORDS - 2)}
    words |= {CLIP_START: CLIP_WORDS - 2, CLIP_END: CLIP_WORDS - 1}
    models.BPE(words, [tuple(pair) for pair in model["merges"]]).save(str(folder))  # vocab.json, merges.txt
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=77)
    tokenizer.save_pretrained(folder)
    tower = SMALL_TOWER if small else {}
    vision = {**tower, "patch_size": 56 if small else 16}
    CLIPModel(CLIPConfig(vision_config=vision, text_config=tower)).save_pretrained(folder)


def _resnet(folder: Path, small: bool) -> None:
    """timm/resnet50.tv_in1k: torchvision's names, with the classifier, and timm's settings."""
    from pipeline.models.backbones.resnet import ResNetBackbone

    ResNetBackbone({"depth": 50}).save(folder)
    _classify(folder, "fc", 2048, "resnet50")


def _vit(folder: Path, small: bool) -> None:
    """timm/vit_small_patch16_224: an image ViT with the classifier, and timm's settings."""
    from pipeline.models.semi.timesformer import ElementTimeSformer

    ElementTimeSformer("small", [8]).save(folder)
    _classify(folder, "head", 384, "vit_small_patch16_224")


def _classify(folder: Path, layer: str, width: int, architecture: str) -> None:
    """Add ImageNet's classifier to the weights of a folder, and replace its settings by those that timm writes."""
    state = load_file(folder / "model.safetensors")
    state |= {f"{layer}.weight": torch.randn(1000, width) * 0.01, f"{layer}.bias": torch.zeros(1000)}
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    write_json(folder / "config.json", {"architecture": architecture, "num_classes": 1000})


def _vicuna(folder: Path, small: bool) -> None:
    """lmsys/vicuna-7b-v1.5: Llama's 32 layers of 32 heads in bfloat16, 256 wide and not 4096."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = _tokenizer(_byte_pairs("<unk>", "<s>", "</s>"), unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=256, intermediate_size=688, num_hidden_layers=32,
        num_attention_heads=32, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _deberta(folder: Path, small: bool) -> None:
    """microsoft/deberta-v2-xlarge as `hf download` leaves it: 24 layers of 24 heads with disentangled attention and a
    convolution, 192 wide and not 1536."""
    from transformers import DebertaV2Config, DebertaV2Model

    marks = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
    tokenizer = _tokenizer(_byte_pairs(*marks.values()), model_max_length=512, **marks)
    config = DebertaV2Config(
        vocab_size=len(tokenizer), hidden_size=192, intermediate_size=768, num_hidden_layers=24, num_attention_heads=24,
        relative_attention=True, position_buckets=256, norm_rel_ebd="layer_norm", share_att_key=True,
        pos_att_type=["p2c", "c2p"], position_biased_input=False, max_relative_positions=-1, type_vocab_size=0,
        conv_kernel_size=3, conv_act="gelu", pad_token_id=0,
    )  # fmt: skip
    snapshot = folder / "snapshots" / COMMIT
    DebertaV2Model(config).save_pretrained(snapshot)
    tokenizer.save_pretrained(snapshot)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(COMMIT, encoding="utf-8")


# ---------------------------------------------------------------------------------------------------- tokenizers
def _byte_pairs(*marks: str, ends: str = "", rules: Any = None, splits: Any = None) -> Any:
    """A byte-level BPE of the words of generated texts. marks: its first words, the first of them for what is unknown;
    ends: what marks the end of a word; rules: a normalizer; splits: a pre-tokenizer before that of bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    suffix = {"end_of_word_suffix": ends} if ends else {}
    made = Tokenizer(models.BPE(unk_token=marks[0], **suffix))
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=splits is None)
    made.pre_tokenizer = pre_tokenizers.Sequence([splits, bytes_]) if splits else bytes_
    made.decoder = decoders.ByteLevel()
    if rules:
        made.normalizer = rules
    made.train_from_iterator(_sentences(), trainers.BpeTrainer(
        vocab_size=WORDS, special_tokens=list(marks), show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), **suffix,
    ))  # fmt: skip
    return made


def _sentences() -> Iterable[str]:
    yield " ".join(FUNCTION_WORDS)
    for entry in grammar.texts("scene")["classes"].values():
        yield from (entry["label"], entry["global"], *entry["stages"], *entry["joints"].values())


def _tokenizer(made: Any, **settings: Any) -> PreTrainedTokenizerFast:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=made, **settings)


NETWORKS: dict[str, Callable[[Path, bool], None]] = {
    f"weights/{CLIP}": _clip, f"weights/{RESNET}": _resnet, f"weights/{VIT}": _vit, f"weights/{VICUNA}": _vicuna,
    HUB: _deberta,
}  # fmt: skip
