"""Sentences to vectors for the skeleton methods, and which sentences of a corpus they read.

- deberta: DeBERTa-V2-xlarge (He et al., ICLR 2021), the paper's text encoder; frozen, kept on disk once computed;
- lsa: latent semantic analysis of the given sentences themselves, TF-IDF and a truncated SVD; needs no download.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.compat import quiet
from pipeline.datasets.skeletons.graph import SkeletonGraph, side_of, unsided
from pipeline.errors import UserError, unknown
from pipeline.files import new_file
from pipeline.text import DEBERTA
from pipeline.text.corpus import Corpus

KINDS = ("deberta", "lsa")
LSA_DIMENSIONS = 128
BATCH = 32  # sentences in one pass of DeBERTa

STAND_INS: dict[str, tuple[str, ...]] = {
    "pelvis": ("base of spine", "hip"),
    "base of spine": ("pelvis", "hip"),
    "thorax": ("spine", "neck", "arm"),
    "spine": ("thorax", "neck", "arm"),
    "mid of spine": ("spine", "thorax", "hip"),
    "neck": ("thorax", "spine", "head"),
    "head": ("nose",),
    "nose": ("head",),
    "eye": ("head", "nose"),
    "ear": ("head", "nose"),
    "shoulder": ("arm",),
    "elbow": ("arm",),
    "hand": ("wrist", "hand"),
    "tip of hand": ("hand", "wrist"),
    "thumb": ("hand", "wrist"),
    "wrist": ("hand",),
    "hip": ("hip",),
    "knee": ("leg",),
    "foot": ("ankle", "foot"),
    "ankle": ("foot",),
}
"""Joints (without their side), or parts of the body, whose sentence speaks for one that a corpus lacks."""


# ------------------------------------------------------------------------------------------- which sentences
def joint_sentences(corpus: Corpus, classes: Sequence[str], graph: SkeletonGraph) -> list[list[str]]:
    """What the corpus says of each joint of `graph`: for each class one sentence a joint, in the graph's order.

    A joint that the corpus does not know has the sentence of a neighbour (`STAND_INS`), so that the 25 sentences of
    NTU serve the 17 or 18 joints of 2D poses. Raises UserError when a class or a joint has no sentence.
    """
    corpus.require(classes)
    return [_of_joints(corpus.joints(name), name, corpus.path, graph) for name in classes]


def _of_joints(said: dict[str, str], name: str, path: Path, graph: SkeletonGraph) -> list[str]:
    sentences = []
    for joint in graph.names:
        side = side_of(joint)
        others = [_sided(other, side) for other in STAND_INS.get(unsided(joint), ())]
        found = next((said[key] for key in (joint, *others, *STAND_INS.get(unsided(joint), ())) if key in said), None)
        if found is None:
            raise UserError(f"{path}: the class {name!r} has no text for the joint {joint!r}; write it")
        sentences.append(found)
    return sentences


def _sided(joint: str, side: str | None) -> str:
    """ "tip of hand", "left" -> "tip of left hand"."""
    if side is None:
        return joint
    *before, last = joint.split()
    return " ".join((*before, side, last))


# --------------------------------------------------------------------------------------------------- vectors
def encode_grid(
    kind: str, rows: Sequence[Sequence[str]], cache_folder: str | Path, source: str | None = None
) -> Tensor:
    """`encode_sentences` of rows of equal length: (n, m, D)."""
    flat = [sentence for row in rows for sentence in row]
    return encode_sentences(kind, flat, cache_folder, source).unflatten(0, (len(rows), -1))


def encode_sentences(
    kind: str, sentences: Sequence[str], cache_folder: str | Path, source: str | None = None
) -> Tensor:
    """Vectors of sentences, (n, D) float32 without gradient.

    deberta: the mean of the last layer over the tokens of a sentence, its end marks among them (D 1536); `source` is
    a folder or a name on the Hugging Face hub (default `DEBERTA`). A sentence that `cache_folder` knows is not
    encoded again. lsa: vectors of the given sentences' own words, of which their number and order change nothing
    (D `LSA_DIMENSIONS`, or as many as the sentences give). Raises UserError for an unknown kind, an empty sentence,
    or weights that cannot be had.
    """
    if kind not in KINDS:
        raise unknown("text encoder", kind, KINDS, "model.text")
    if not sentences or not all(sentence.strip() for sentence in sentences):
        raise UserError("a text is empty; every class needs one for each joint")
    unique = sorted(set(sentences))
    if kind == "lsa":
        vectors = dict(zip(unique, _lsa(unique), strict=True))
    else:
        vectors = _cached(unique, Path(cache_folder), source or DEBERTA)
    return torch.stack([vectors[sentence] for sentence in sentences])


def _lsa(sentences: Sequence[str]) -> Tensor:
    """(n, D): left singular vectors times singular values of the sentences' TF-IDF matrix, each row of length 1."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.utils.extmath import svd_flip
    from threadpoolctl import threadpool_limits

    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"(?u)\b\w+\b")
    try:
        matrix = words.fit_transform(sentences)
    except ValueError as error:
        raise UserError(f"the texts hold no words ({error}); write them") from None
    rank = min(LSA_DIMENSIONS, min(matrix.shape) - 1)
    if rank < 1:
        return torch.from_numpy(matrix.toarray().astype(np.float32))
    with threadpool_limits(1):  # and no ARPACK, whose restarts are random: it gave others each time, in the sixth digit
        left, singular, right = np.linalg.svd(matrix.toarray(), full_matrices=False)
    vectors = svd_flip(left[:, :rank], right[:rank], u_based_decision=False)[0] * singular[:rank]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-12)
    return torch.from_numpy(vectors.astype(np.float32))


def _cached(sentences: Sequence[str], folder: Path, source: str) -> dict[str, Tensor]:
    """DeBERTa's vectors, those on disk and the missing ones, which are added to them."""
    name = f"deberta-{_source_hash(source)}.safetensors"
    key = {sentence: hashlib.sha256(sentence.encode()).hexdigest() for sentence in sentences}
    known = _read_cache(folder / name)
    missing = [sentence for sentence in sentences if key[sentence] not in known]
    if missing:
        found = _deberta(missing, source)
        known = {**_read_cache(folder / name), **{key[s]: v for s, v in zip(missing, found, strict=True)}}
        with new_file(folder / name) as temporary:
            save_file({sha: vector.contiguous().clone() for sha, vector in known.items()}, temporary)
    return {sentence: known[sha] for sentence, sha in key.items()}


def _read_cache(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path) if path.is_file() else {}
    except (SafetensorError, OSError):  # damaged: everything is encoded anew
        return {}


def _source_hash(source: str) -> str:
    """Of the hub's name, or of a folder's configuration and the names and sizes of its files."""
    folder = Path(source).expanduser()
    content = source.encode()
    if folder.is_dir():
        files = sorted((f.name, f.stat().st_size) for f in folder.iterdir() if f.is_file())
        config = folder / "config.json"
        content = repr(files).encode() + (config.read_bytes() if config.is_file() else b"")
    return hashlib.sha256(content).hexdigest()[:12]


def _deberta(sentences: Sequence[str], source: str) -> Tensor:
    """(n, D) of sentences, on the GPU where there is one."""
    tokenizer, model = _load(source)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = model.to(device).eval()
    order = sorted(range(len(sentences)), key=lambda i: len(sentences[i]))  # little padding
    vectors: list[Tensor] = [torch.empty(0)] * len(sentences)
    with torch.inference_mode(), quiet():
        for first in range(0, len(order), BATCH):
            part = order[first : first + BATCH]
            tokens = tokenizer([sentences[i] for i in part], return_tensors="pt", padding=True, truncation=True,
                               max_length=model.config.max_position_embeddings).to(device)  # fmt: skip
            mask = tokens["attention_mask"]
            last = model(input_ids=tokens["input_ids"], attention_mask=mask).last_hidden_state
            means = (last * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
            for i, vector in zip(part, means.float().cpu(), strict=True):
                vectors[i] = vector.clone()
    return torch.stack(vectors)


def _load(source: str):
    from transformers import AutoModel, AutoTokenizer

    try:
        with quiet():
            return AutoTokenizer.from_pretrained(source), AutoModel.from_pretrained(source, weights_only=True)
    except Exception as error:  # each file format fails with exceptions of its own
        if find_spec("sentencepiece") is None and "tiktoken" in str(error):  # what transformers tries in its place
            raise UserError("the tokenizer of DeBERTa needs sentencepiece; run pip install sentencepiece") from error
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"can't load the text encoder {source!r} ({reason:.140}); download it on a machine with network "
            f"(hf download {DEBERTA} --local-dir FOLDER) and set model.text_source: FOLDER"
        ) from error
