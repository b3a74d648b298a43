"""Texts of classes: who writes them, where they are kept, how they become vectors."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

DEBERTA = "microsoft/deberta-v2-xlarge"  # the text encoder of CrossGLG


def lacks_sentencepiece(folder: str | Path) -> bool:
    """Whether a language model's folder has its tokenizer as sentencepiece's file alone, and that is not installed."""
    there = {name for name in ("tokenizer.json", "tokenizer.model") if (Path(folder) / name).is_file()}
    return there == {"tokenizer.model"} and find_spec("sentencepiece") is None
