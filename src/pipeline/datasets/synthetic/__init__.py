"""Small, honest video data for runs without downloads: an articulated figure that acts by a grammar."""

from pipeline.datasets.synthetic.grammar import SETS, SPLITS, actions, captions, classes, texts
from pipeline.datasets.synthetic.skeleton_file import read_skeleton, write_skeleton
from pipeline.datasets.synthetic.writer import Annotation, generate, read_annotations

__all__ = [
    "SETS",
    "SPLITS",
    "Annotation",
    "actions",
    "captions",
    "classes",
    "generate",
    "read_annotations",
    "read_skeleton",
    "texts",
    "write_skeleton",
]
