"""GAP (Xiang et al., ICCV 2023): features of the body and of four parts of it, aligned with texts about them.

GAP trains a text encoder along with the skeleton encoder, contrasts the two in a batch, and drops the texts at test.
CrossGLG's Table 1 applies it to one-shot recognition on InfoGCN. Where paper and released code differ, or the code
alone says something, this is the released code (MartinXM/GAP).

P = 5 features: the whole body, then the parts of `PARTS`; D the width in which they meet the texts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.compat import MODELS
from pipeline.datasets.skeletons.graph import SkeletonGraph
from pipeline.errors import UserError
from pipeline.models.backbones.clip import CLIPBackbone
from pipeline.models.skeleton.base import ClassTexts, SkeletonModel
from pipeline.text.corpus import Corpus
from pipeline.text.encoders import encode_sentences, joint_sentences

PARTS: dict[str, tuple[str, ...]] = {
    "head": ("head", "neck"),
    "hand": ("arm", "hand"),
    "hip": ("waist", "hip"),
    "foot": ("leg", "foot"),
}
"""GAP's four parts, as body parts of `SkeletonGraph.parts`."""
NTU_PARTS = {
    "head": (2, 3, 20),
    "hand": (*range(4, 12), *range(21, 25)),
    "hip": (0, 1, 2, 12, 16),
    "foot": tuple(range(12, 20)),
}
"""The released joints on NTU; the hip has the neck (2), so it stands here as it is."""
WHOLE = "body"  # name of the first text in a corpus
SHARPNESS = 10.0  # of the target: softmax over 10 for pairs of one class and 0 for others
WORDS = ("head", "hand", "arm", "hip", "leg", "foot")  # order of the released texts of a class


def part_joints(graph: SkeletonGraph) -> dict[str, tuple[int, ...]]:
    """Joints of GAP's four parts: the released ones on NTU, else by their names; raises UserError for an empty part."""
    if graph.name == "ntu25":
        return NTU_PARTS
    parts = {
        part: tuple(sorted({joint for piece in pieces for joint in graph.parts.get(piece, ())}))
        for part, pieces in PARTS.items()
    }
    if empty := [part for part, joints in parts.items() if not joints]:
        raise UserError(f"skeleton {graph.name!r} has no joint of GAP's part {empty[0]!r}; name its joints under parts")
    return parts


# ------------------------------------------------------------------------------------------------- texts
def corpus_sentences(corpus: Corpus, classes: Sequence[str], graph: SkeletonGraph) -> list[list[list[str]]]:
    """Texts of P parts from a corpus: N lists of P lists of alternatives.

    Those of the corpus, where it has them for each part (`released_corpus`). Else they are made of what it says of
    joints: the whole body has the label; a part the label, a comma and the sentences of its joints, each once.
    """
    if all("parts" in corpus.classes.get(name, {}) for name in classes):
        return [[_part(corpus, name, part) for part in (WHOLE, *PARTS)] for name in classes]
    parts = part_joints(graph)
    rows = []
    for name, said in zip(classes, joint_sentences(corpus, classes, graph), strict=True):
        label = corpus.label(name)
        texts = [[f"{label}, {' '.join(dict.fromkeys(said[j] for j in joints))}"] for joints in parts.values()]
        rows.append([[label], *texts])
    return rows


def _part(corpus: Corpus, name: str, part: str) -> list[str]:
    texts = corpus.parts(name)
    if part not in texts:
        raise UserError(f"{corpus.path}: the class {name!r} has no texts of the part {part!r}; write them")
    return texts[part]


def released_corpus(folder: str | Path, classes: Sequence[str]) -> Corpus:
    """GAP's own texts of NTU as a corpus with `parts`; classes: names in the order of the data set (A001 first).

    Raises UserError like `released_sentences`.
    """
    rows = released_sentences(folder, range(len(classes)))
    entries = {
        name: {"label": row[0][0], "parts": dict(zip((WHOLE, *PARTS), row, strict=True))}
        for name, row in zip(classes, rows, strict=True)
    }
    return Corpus(entries, {"source": "GAP", "folder": Path(folder).name}, Path(folder))


def released_sentences(
    folder: str | Path, numbers: Sequence[int], released_separator: bool = False
) -> list[list[list[str]]]:
    """GAP's own texts of NTU, for classes by their place in the data set (A001 is 0): N lists of P lists.

    folder holds the files `synonym_openai_t01.txt` (the name and synonyms, drawn from in training, for the whole body)
    and `pasta_openai_t01.txt` (six sentences). A part has the name, a comma and its sentences: head; hand, arm; hip;
    leg, foot. `released_separator`: no comma before the hand, as the released code writes. Raises UserError when a
    file or a class is missing.
    """
    synonyms = [_fields(line, ",") for line in _lines(Path(folder) / "synonym_openai_t01.txt")]
    pasta = [_fields(line, ";") for line in _lines(Path(folder) / "pasta_openai_t01.txt")]
    rows = []
    for number in numbers:
        if not 0 <= number < min(len(synonyms), len(pasta)) or len(pasta[number]) != 1 + len(WORDS):
            raise UserError(f"{folder}: no texts of GAP for class {number + 1}; fetch its files again")
        label, *said = pasta[number]
        head, hand, arm, hip, leg, foot = said
        gap = " " if released_separator else ", "
        texts = (f"{label}, {head}", f"{label}{gap}{hand}, {arm}", f"{label}, {hip}", f"{label}, {leg}, {foot}")
        rows.append([synonyms[number], *([text] for text in texts)])
    return rows


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except OSError:
        raise UserError(f"there is no {path}; fetch the texts of GAP's repository") from None


def _fields(line: str, mark: str) -> list[str]:
    return [field.strip() for field in line.split(mark)]


class TextChoice(nn.Module):
    """Which sentence each sample is shown of each part: labels (B,) -> numbers (B, P) of sentences.

    A part with several alternatives has one drawn, by torch's global generator, for each sample.
    """

    counts: Tensor
    first: Tensor

    def __init__(self, counts: Tensor) -> None:
        super().__init__()
        self.register_buffer("counts", counts, persistent=False)  # (N, P)
        self.register_buffer("first", counts.flatten().cumsum(0).view_as(counts) - counts, persistent=False)

    def forward(self, labels: Tensor) -> Tensor:
        counts = self.counts[labels]
        drawn = (torch.rand(counts.shape, device=counts.device) * counts).long()
        return self.first[labels] + torch.minimum(drawn, counts - 1)


class FrozenTexts(nn.Module):
    """Given sentence features behind a trained projection: labels (B,) -> (P, B, D)."""

    features: Tensor

    def __init__(self, parts: Tensor, counts: Tensor, width: int) -> None:
        super().__init__()
        self.choice = TextChoice(counts)
        there = torch.arange(parts.shape[2]) < counts[..., None]
        self.register_buffer("features", parts[there].float(), persistent=False)
        self.project = nn.Linear(parts.shape[-1], width)

    def forward(self, labels: Tensor) -> Tensor:
        return self.project(self.features[self.choice(labels)]).transpose(0, 1)


class TextTower(nn.Module):
    """CLIP's text tower, trained along: labels (B,) -> (P, B, D). Every sentence of a batch is encoded once."""

    tokens: Tensor

    def __init__(self, source: Any, sentences: Sequence[Sequence[Sequence[str]]], counts: Tensor) -> None:
        super().__init__()
        self.clip = source if isinstance(source, CLIPBackbone) else CLIPBackbone(source, freeze_text=False)
        self.clip.clip.requires_grad_(True)
        del self.clip.clip.vision_model, self.clip.clip.visual_projection, self.clip.clip.logit_scale
        self.choice = TextChoice(counts)
        flat = [sentence for row in sentences for part in row for sentence in part]
        self.register_buffer("tokens", self.clip.tokenize(flat), persistent=False)

    @property
    def width(self) -> int:
        return self.clip.dim

    def forward(self, labels: Tensor) -> Tensor:
        used, place = self.choice(labels).unique(return_inverse=True)
        return self.clip.encode_tokens(self.tokens[used])[place].transpose(0, 1)


# ------------------------------------------------------------------------------------------------- model
class PartHeads(nn.Module):
    """Joint features (B, V, C) -> (P, B, D): a linear map each of the mean over all joints and over each part's."""

    members: Tensor

    def __init__(self, graph: SkeletonGraph, width_in: int, width_out: int) -> None:
        super().__init__()
        groups = [range(len(graph)), *part_joints(graph).values()]
        members = torch.zeros(len(groups), len(graph))
        for row, group in zip(members, groups, strict=True):
            row[list(group)] = 1 / len(group)
        self.register_buffer("members", members, persistent=False)
        self.heads = nn.ModuleList(nn.Linear(width_in, width_out) for _ in groups)

    def forward(self, joints: Tensor) -> Tensor:
        means = torch.einsum("bvc,pv->pbc", joints, self.members)
        return torch.stack([head(mean) for head, mean in zip(self.heads, means, strict=True)])


def alignment_loss(skeletons: Tensor, texts: Tensor, labels: Tensor, scale: Tensor) -> Tensor:
    """GAP's contrastive loss of features (P, B, D) and texts (P, B, D), `scale` (P,) of their cosines -> scalar.

    The cosines of every skeleton with every text of the batch, as a distribution over the texts and over the
    skeletons, against a softmax over 10 for pairs of one class and 0 for others: Kullback-Leibler divergence, its mean
    over samples, directions and parts.
    """
    logits = scale[:, None, None] * (F.normalize(skeletons, dim=-1) @ F.normalize(texts, dim=-1).transpose(1, 2))
    same = (labels[:, None] == labels).to(logits.dtype)
    target = (SHARPNESS * same).log_softmax(-1).expand_as(logits)

    def divergence(scores: Tensor) -> Tensor:
        return F.kl_div(scores.log_softmax(-1), target, reduction="sum", log_target=True) / scores.shape[:2].numel()

    return (divergence(logits) + divergence(logits.transpose(1, 2))) / 2


class TextAlignment(nn.Module):
    """The modules that only training has: part heads, scales, texts."""

    def __init__(
        self, graph: SkeletonGraph, width_in: int, width: int, texts: ClassTexts, text_tower: Any, scale_exp: bool
    ) -> None:
        super().__init__()
        counts = torch.tensor([[len(part) for part in row] for row in texts.sentences])
        if text_tower is not None:
            self.texts: nn.Module = TextTower(text_tower, texts.sentences, counts)
            width = self.texts.width
        else:
            if texts.parts is None:
                raise UserError("GAP needs features of the texts about body parts; prepare them, or set a text tower")
            self.texts = FrozenTexts(texts.parts, counts, width)
        self.heads = PartHeads(graph, width_in, width)
        self.scale_exp = scale_exp
        self.scale = nn.Parameter(torch.full((len(self.heads.heads),), math.log(1 / 0.07)))

    def forward(self, joints: Tensor, labels: Tensor) -> Tensor:
        scale = self.scale.exp() if self.scale_exp else self.scale
        return alignment_loss(self.heads(joints), self.texts(labels), labels, scale)


@MODELS.register_module()
class GAP(SkeletonModel):
    """GAP on any encoder.

    Args:
        graph, persons, classes: as of `SkeletonModel`. texts: `sentences` and, without a text tower, their `parts`.
        text_weight: lambda, of the contrastive loss (0.8).
        width: D, where texts are given as features; a text tower has its own.
        text_tower: folder, hub name or configuration of a CLIP whose text tower is trained along, as in the paper
            (openai/clip-vit-base-patch32); None: frozen features of the sentences behind a trained projection.
        scale_exp: the cosines' scale, which starts at log(1 / 0.07) = 2.66, is put through exp, as CLIP does and GAP's
            released code does not.
        encoder: settings of `SkeletonModel`.

    The test feature is the encoder's own: neither parts nor texts reach it.
    """

    wants_text: ClassVar[bool] = True

    def __init__(
        self,
        graph: SkeletonGraph | str | Mapping[str, Any],
        persons: int,
        classes: int,
        texts: ClassTexts | None = None,
        text_weight: float = 0.8,
        width: int = 512,
        text_tower: Any = None,
        scale_exp: bool = False,
        **encoder: Any,
    ) -> None:
        super().__init__(graph, persons, classes, texts, **encoder)
        self.text_weight = text_weight
        self.guidance = None
        if texts is not None:
            if len(texts.sentences) != classes:
                raise UserError(f"GAP's texts are of {len(texts.sentences)} classes, not {classes}; prepare them again")
            self.guidance = TextAlignment(self.encoder.graph, self.encoder.dim, width, texts, text_tower, scale_exp)

    @classmethod
    def read_texts(
        cls,
        corpus: Corpus,
        classes: Sequence[str],
        graph: SkeletonGraph,
        cache_folder: str | Path,
        text: str = "lsa",
        source: str | None = None,
    ) -> ClassTexts:
        """Sentences about the parts, from what the corpus says of the joints, and their features."""
        return featured(corpus_sentences(corpus, classes, graph), cache_folder, text, source)

    def loss(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The encoder's own losses, and the contrast with the texts on the features that its head gets."""
        if self.guidance is None:
            raise UserError("this GAP was built for tests, without texts; build it with them to train it")
        trunk = self.encoder
        features = trunk.features(trunk.run(trunk.embed(x), 0, trunk.n_blocks))
        losses = self.encoder_losses(trunk.head(trunk.pool(features)), labels)
        joints = features.mean((1, 3)).transpose(1, 2)  # over persons and frames
        losses["loss_text"] = self.text_weight * self.guidance(joints, labels)
        return losses


def featured(
    sentences: list[list[list[str]]], cache_folder: str | Path, text: str = "lsa", source: str | None = None
) -> ClassTexts:
    """Texts with their features; `text` "clip" leaves those to a text tower that is trained along."""
    if text == "clip":
        return ClassTexts(sentences=sentences)
    flat = [sentence for row in sentences for part in row for sentence in part]
    vectors = iter(encode_sentences(text, flat, cache_folder, source))
    most = max(len(part) for row in sentences for part in row)
    rows = [[[next(vectors) for _ in part] for part in row] for row in sentences]
    blank = torch.zeros_like(rows[0][0][0])
    parts = [torch.stack([torch.stack(part + [blank] * (most - len(part))) for part in row]) for row in rows]
    return ClassTexts(parts=torch.stack(parts), sentences=sentences)
