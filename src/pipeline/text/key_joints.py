"""Which joints a description of an action speaks of, and where (CrossGLG, section 3.4).

The paper takes the noun phrases of Stanford's CoreNLP, keeps joints and body parts, and turns parts into joints. Here
the words are looked up in a list, `graph.BODY_PARTS` and the synonyms below, which needs no parser: plurals, sides
("both arms", "left and right hand", "the right hand and wrist") and the phrases in which such a word is no part of
the body ("at hand", "swings back", "faces the mirror") are told by their neighbours.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pipeline.datasets.skeletons.graph import BODY_PARTS, SIDES, SkeletonGraph, side_of, unsided
from pipeline.errors import UserError

_SYNONYMS = {
    "head": "skull, jaw, tongue, tooth, brow, eyebrow, eyelid, nostril",
    "neck": "throat, nape",
    "upper arm": "bicep, biceps, tricep, triceps",
    "hand": "knuckle, fingernail, nail",
    "finger": "index finger, middle finger, ring finger, little finger, pinky",
    "torso": "midsection, ribcage, rib, lower back, upper back",
    "chest": "breast",
    "waist": "belly, tummy, lower abdomen",
    "hip": "buttock, glute, groin",
    "thigh": "quadriceps, hamstring, lap",
    "foot": "sole, instep, big toe, tiptoe, ball of foot",
    "arm": "upper limb",
    "leg": "lower limb",
}
SYNONYMS = {word: part for part, words in _SYNONYMS.items() for word in words.split(", ")}
"""Words of descriptions -> the body part, of `BODY_PARTS`, that they mean."""

WIDER: dict[str, tuple[str, ...]] = {
    "limb": ("arm", "leg"),
    **dict.fromkeys(("whole body", "entire body", "full body"), ("upper body", "lower body", "torso", "hand")),
}
"""Words that mean several body parts."""

_IRREGULAR = {"foot": "feet", "tooth": "teeth", "ball of foot": "balls of feet"}
_ADJECTIVES = "raised extended stretched outstretched straight bent open closed dominant inner outer front rear".split()
_PERSONS = "person individual actor performer subject man woman someone somebody recipient partner opponent".split()
_OWNERS = "the a an his her their your my our its one's this that each either other".split()
_ARTICLE = r"(?:(?:the|a|an|his|her|their|your|one's)\s+)?"
_SIDE = r"(?:left|right)"

_NOT_BODY = re.compile(
    r"""
      \b (?: at | on \s+ the \s+ (?:one|other) ) \s+ hand \b (?! \s+ side )   # at hand, on the other hand
    | \b hand (?: \s+ | s \s+ ) (?: over | out | off ) \b                    # hand over
    | \b body \s+ (?: part | language | weight ) s? \b
    | \b fac (?: e | es ) \s+ (?: the | a | an | each | away | toward | towards | forward | to ) \b
    | \b (?: to | must | can | they ) \s+ face \b (?! \s* [.,;] )
    | \b (?: and | to ) \s+ head \s+ (?: to | towards? | for ) \b
    """,
    re.VERBOSE | re.IGNORECASE,
)
_BACK_BEFORE = re.compile(
    rf"(?:\b(?:{'|'.join(_OWNERS)}|lower|upper|straight|arched|{'|'.join(_PERSONS)})|(?:{'|'.join(_PERSONS)})'s|s')\s+$",
    re.IGNORECASE,
)
_BACK_AFTER = re.compile(
    r"\s+(?:and|of|regions?|pockets?)\b(?!\s+(?:the\s+)?(?:neck|head|legs?|arms?|shoulders?))", re.I
)
_JOINED = re.compile(r"\s*,?\s*(?:(?:and|or)\s+)?", re.IGNORECASE)


class Mention(NamedTuple):
    """A body part in a text: text[start:end], the part's name with its side if it has one, and its joints."""

    start: int
    end: int
    part: str
    joints: tuple[int, ...]


class KeyJoints(NamedTuple):
    """joints (V,) float32: 1 where a text names the joint, else 0. mentions: what it says of them, in its order."""

    joints: np.ndarray
    mentions: tuple[Mention, ...]


def key_joints(text: str, graph: SkeletonGraph) -> KeyJoints:
    """The joints of `graph` that `text` speaks of.

    A part without a side means both sides. A singular part that follows a sided one across no more than a comma or
    "and" has its side. Parts that the skeleton does not know are passed over.
    """
    pattern, singular, plural = _vocabulary(graph)
    ignored = [match.span() for match in _NOT_BODY.finditer(text)]
    mentions: list[Mention] = []
    before: tuple[int, str | None] = (-1, None)  # end and side of the last mention
    for match in pattern.finditer(text):
        start, end = match.span("part")
        if any(start < last and first < end for first, last in ignored) or _adverb(match, text):
            continue
        sides = {word.lower() for word in re.findall(rf"\b{_SIDE}\b", match.group(), re.IGNORECASE)}
        word = _plain(match.group("part"))
        side = next(iter(sides)) if len(sides) == 1 else None
        if not sides and word in singular and before[1] and _JOINED.fullmatch(text[before[0] : match.start()]):
            side = before[1]
        found = _joints(singular.get(word) or plural[word], side, graph)
        before = (match.end(), side)
        if found[1]:
            mentions.append(Mention(match.start(), match.end(), *found))
    joints = np.zeros(len(graph), dtype=np.float32)
    joints[[joint for mention in mentions for joint in mention.joints]] = 1
    return KeyJoints(joints, tuple(mentions))


def key_joint_matrix(texts: Sequence[str], graph: SkeletonGraph) -> np.ndarray:
    """`key_joints` of several texts: (n, V) float32."""
    return np.stack([key_joints(text, graph).joints for text in texts])


def _adverb(match: re.Match[str], text: str) -> bool:
    """Whether "back" is no part of the body here: it is one after an article or an owner, and not before "of"."""
    if match.group("part").lower() != "back":
        return False
    start, end = match.span("part")
    return not _BACK_BEFORE.search(text[:start]) or bool(_BACK_AFTER.match(text[end:]))


def _joints(part: str, side: str | None, graph: SkeletonGraph) -> tuple[str, tuple[int, ...]]:
    """Name with its side, and joints, of a part; no joints where the skeleton does not know it."""
    joints: set[int] = set()
    for piece in WIDER.get(part, (part,)):
        try:  # as a part first: the spine is more than the joint of that name, a hand has fingers
            joints |= set(graph.parts.get(piece) or graph.joints_of(piece))
        except UserError:
            continue
    joints = {joint for joint in joints if side is None or side_of(graph.names[joint]) in (None, side)}
    return (f"{side} {part}" if side else part), tuple(sorted(joints))


# ----------------------------------------------------------------------------------------------- vocabulary
def _plural(word: str) -> str:
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    if word.endswith("y") and word[-2] not in "aeiou":
        return f"{word[:-1]}ies"
    if word.endswith("f"):
        return f"{word[:-1]}ves"
    return f"{word}es" if word.endswith(("s", "ch", "sh", "x")) else f"{word}s"


def _plural_of_phrase(word: str) -> str:
    """tip of hand -> tips of hands; upper arm -> upper arms."""
    if word in _IRREGULAR or " of " not in word:
        return _plural(word)
    return " of ".join(map(_plural, word.split(" of ")))


def _plain(phrase: str) -> str:
    """A matched phrase without articles and sides, lower-case, single blanks."""
    words = phrase.lower().split()
    return " ".join(word for word in words if word not in (*SIDES, *_OWNERS))


@functools.lru_cache(maxsize=16)
def _vocabulary_of(names: tuple[str, ...], parts: tuple[str, ...]) -> tuple[re.Pattern[str], dict, dict]:
    meaning = {part: part for part in (*BODY_PARTS, *parts, *map(unsided, names), *WIDER)} | SYNONYMS
    singular = {word: part for word, part in meaning.items()}
    plural = {_plural_of_phrase(word): part for word, part in meaning.items()}
    forms = sorted({*singular, *plural}, key=lambda form: (-len(form), form))

    def as_pattern(form: str) -> str:
        # "tip of hand" is also found as "tip of the left hand".
        head, *rest = form.split(" of ")
        inner = rf"\s+of\s+{_ARTICLE}(?:{_SIDE}\s+)?"
        return inner.join(r"\s+".join(map(re.escape, piece.split())) for piece in (head, *rest))

    sides = rf"(?:{_SIDE}(?:\s*(?:and|or|/)\s*{_ARTICLE}{_SIDE})?\s+)?"
    adjectives = rf"(?:(?:{'|'.join(_ADJECTIVES)})\s+)*?"
    words = "|".join(map(as_pattern, forms))
    pattern = re.compile(rf"(?<![\w-]){sides}{adjectives}(?P<part>{words})(?![\w-])", re.IGNORECASE)
    return pattern, singular, plural


def _vocabulary(graph: SkeletonGraph) -> tuple[re.Pattern[str], dict[str, str], dict[str, str]]:
    """The pattern of all words for parts of `graph`, and what singular and plural forms mean."""
    return _vocabulary_of(graph.names, tuple(sorted(graph.parts)))
