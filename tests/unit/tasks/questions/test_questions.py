"""Questions with options: drawn, worded, named, and in the form of the released ones."""

from __future__ import annotations

import gzip
import json
import re
from collections import Counter

import numpy as np
import pytest

from pipeline.errors import UserError
from pipeline.tasks.questions.questions import EVENT, Question, class_names, draw_question, read_names

NAMES = ["split jump", "giant circle backward", "giant circle forward", "round-off", "stalder", "split jump"]


def test_a_question_has_four_names_of_which_one_is_right():
    rng, wrong, places = np.random.default_rng(0), Counter(), Counter()
    for _ in range(800):
        question = draw_question("round-off", NAMES, rng)
        assert question.options[question.right] == "round-off" and len(set(question.options)) == 4
        wrong.update(question.options)
        places[question.right] += 1
    assert wrong.pop("round-off") == 800 and set(wrong) == set(NAMES) - {"round-off"}
    assert all(500 < count < 700 for count in wrong.values())  # 600 each: a name that stands twice counts once
    assert all(150 < places[place] < 250 for place in range(4))


def test_questions_are_those_of_their_seed():
    one, two, other = (draw_question("stalder", NAMES, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert one == two != other
    with pytest.raises(UserError, match="needs 3 wrong options, and there are 2 names beside 'a'"):
        draw_question("a", ["a", "b", "c", "c"], np.random.default_rng(0))


def test_a_question_is_worded_as_the_released_ones():
    assert Question(("x", "y z", "u", "v"), 2).text("What is it?") == "What is it? A.x B.y z C.u D.v"


def test_names_of_numbered_classes(tmp_path):
    plain, listed, broken = (tmp_path / name for name in ("plain.txt", "listed.txt", "broken.txt"))
    plain.write_text("jump\nturn\n")
    listed.write_text(
        "Clabel:   0; set:  1; Glabel:   1; (VT) round-off\n"
        "Clabel:   1; set: 44; Glabel: 9; (UB) (swing forward) salto\n"
    )
    broken.write_text("Clabel:   0; set:  1; Glabel:   1; (VT) a\nClabel:   2; set:  1; Glabel:   3; (VT) b\n")
    assert read_names(str(plain)) == read_names(["jump", "turn"]) == ["jump", "turn"]
    assert [EVENT.sub("", name) for name in read_names(str(listed))] == ["round-off", "(swing forward) salto"]
    assert class_names(["class 001"], str(plain), "gym") == ["turn"]
    assert class_names(["spin_left", "leap"], None, "fine") == ["spin left", "leap"]
    for names, message in (
        (str(broken), "does not name the classes 0, 1, 2"), (None, "name the file with their names in the key names"),
        (["one"], "the names of gym are 1, and there is a class 1"), (str(tmp_path / "no"), "there is no list"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=message):
            class_names(["class 000", "class 001"], names, "gym")


@pytest.mark.parametrize(
    ("name", "part", "count"), [("99", "train", 1316), ("288", "train", 1466), ("99", "val", 8521)]
)
def test_the_released_questions_have_this_form(reference_data, name, part, count):
    """One for each video; wrong options of any event, drawn evenly; the places of the right ones are even."""
    lists = reference_data / "lists"
    with gzip.open(lists / "sefar" / "qa_datasets" / f"all{name}_5" / f"{part}.json.gz", "rt") as file:
        released = list(json.load(file).values())
    assert len(released) == len({entry["video"] for entry in released}) == count
    listed = read_names(str(lists / "finegym" / f"gym{name}_categories.txt"))
    event = {EVENT.sub("", text): EVENT.match(text)[1] for text in listed}
    rng, same, ours, twice = np.random.default_rng(0), 0, 0, 0
    for entry in released:
        _, *options = re.split(r" (?=[ABCD]\.)", entry["question"])
        options = tuple(option[2:] for option in options)
        right = "ABCD".index(entry["answer"])
        twice += len(set(options)) < 4
        question = Question(options, right)
        assert question.text("What gymnastics move is this athlete performing?") == entry["question"]
        drawn = draw_question(options[right], list(event), rng)
        same += sum(event[option] == event[options[right]] for i, option in enumerate(options) if i != right)
        ours += sum(
            event[option] == event[options[right]] for i, option in enumerate(drawn.options) if i != drawn.right
        )
    assert 0 < twice < 0.02 * count  # the released ones; never here
    assert same / count / 3 == pytest.approx(ours / count / 3, abs=0.04)
    places = Counter(entry["answer"] for entry in released)
    assert all(0.22 < places[letter] / count < 0.28 for letter in "ABCD")
