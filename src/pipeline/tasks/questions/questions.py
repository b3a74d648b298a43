"""Multiple-choice questions on the actions of videos, as in SeFAR's Gym-QA: one right option, three wrong ones.

The released Gym-QA has one question for each labelled video and each test video. Its wrong options are classes of
the whole list, not of the event of the right one, and in 1 of 100 questions two options are the same words, for
classes of two events share a name. Here the four options always are four different names.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pipeline.errors import UserError
from pipeline.textfiles import read_lines

LETTERS = "ABCD"
EVENT = re.compile(r"^\((VT|FX|BB|UB)\)\s+")
"""What FineGym puts before the name of a class; Gym-QA leaves it out."""
_LISTED = re.compile(r"^Clabel:\s*(\d+);.*?Glabel:\s*\d+;\s*(.+)$")
_NUMBERED = re.compile(r"^class (\d+)$")


class Question(NamedTuple):
    """Four options, and the place of the right one."""

    options: tuple[str, ...]
    right: int

    def text(self, question: str) -> str:
        """The question with its options, as Gym-QA writes it."""
        return " ".join(
            [question, *(f"{letter}.{option}" for letter, option in zip(LETTERS, self.options, strict=True))]
        )


def draw_question(answer: str, names: Sequence[str], rng: np.random.Generator) -> Question:
    """A question whose right option is `answer` and whose others are drawn from the other `names`, in random order.

    Raises UserError when there are fewer than three other names.
    """
    others = sorted(set(names) - {answer})
    wrong = len(LETTERS) - 1
    if len(others) < wrong:
        raise UserError(f"a question needs {wrong} wrong options, and there are {len(others)} names beside {answer!r}")
    options = [answer, *(others[i] for i in rng.choice(len(others), wrong, replace=False))]
    order = rng.permutation(len(options))
    return Question(tuple(options[i] for i in order), int(np.flatnonzero(order == 0)[0]))


def read_names(names: str | Sequence[str]) -> list[str]:
    """Names of classes in the order of their numbers: a list, or a file with a name a line, or FineGym's categories.

    Raises UserError for a file that is missing or empty, or whose numbers leave one out.
    """
    if not isinstance(names, str):
        return [str(name) for name in names]
    lines = [line.strip() for line in read_lines(names) if line.strip()]
    listed = [_LISTED.match(line) for line in lines]
    if not lines or (any(listed) and [int(found[1]) if found else -1 for found in listed] != list(range(len(lines)))):
        raise UserError(f"{names} does not name the classes 0, 1, 2, ... in this order; fetch it again")
    return [found[2] for found in listed] if all(listed) else lines


def class_names(classes: Sequence[str], names: str | Sequence[str] | None, dataset: str) -> list[str]:
    """What the classes of a data set are called: the words of `names` for "class 012", else the class's own words.

    Raises UserError when classes are numbers without names.
    """
    numbers = [_NUMBERED.match(name) for name in classes]
    if not all(numbers):
        return [name.replace("_", " ") for name in classes]
    if not names:
        raise UserError(
            f"the classes of {dataset} are numbers; name the file with their names in the key names of its definition"
        )
    found = read_names(names)
    if (last := max(int(number[1]) for number in numbers)) >= len(found):
        raise UserError(f"the names of {dataset} are {len(found)}, and there is a class {last}; correct its key names")
    return [found[int(number[1])] for number in numbers]
