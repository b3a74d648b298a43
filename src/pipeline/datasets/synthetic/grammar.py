"""The classes of the synthetic sets, their splits, and what can be said about them in words.

An action is composed of few parts, and every part of a novel class (validation, test) occurs in some base
class, so a text encoder trained on base classes knows all words of the novel ones. The three sets ask for
different things:

* `scene`: limb + motion + object; novel classes are new compositions, and the look of one frame tells a lot;
* `temporal`: three sub-motions one after the other; the classes of a split are all orders of few triples, so
  the frames of a clip without their order never tell a class from the others of its triple;
* `fine`: a gymnast's move, its direction and how often it is repeated.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from itertools import permutations

import numpy as np

from pipeline.datasets.synthetic import motion
from pipeline.datasets.synthetic.figure import JOINTS, forward_kinematics, make_body
from pipeline.errors import unknown

SETS = ("scene", "temporal", "fine")
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Action:
    """One class.

    `label` is its name, `phases` one sentence for each phase, `steps` the same without subject and thing,
    `ending` what closes a sentence on all steps; `program` gives the key poses and `shares` the mean parts of
    the clip that the phases take; `thing` is drawn in the hand or at the foot of `limb`, or on the floor and
    `kicked` away.
    """

    label: str
    split: str
    phases: tuple[str, str, str]
    steps: tuple[str, str, str]
    program: Callable[[], list[motion.Segment]] = field(repr=False, compare=False)
    shares: tuple[float, float, float]
    ending: str = ""
    limb: str = ""
    thing: str = "nothing"
    kicked: bool = False

    @property
    def slug(self) -> str:
        """Name for folders and files."""
        return self.label.replace(" ", "_")


# ------------------------------------------------------------------------------------------------------ scene

# Novel classes share few things, so that the thing alone does not tell one from another.
_SCENE_TABLE = {
    "train": """
        left arm, raise, red ball      | right arm, raise, blue box     | left leg, raise, yellow cup
        right arm, lower, green stick  | left arm, lower, purple ring   | both arms, lower, red ball
        left arm, wave, green stick    | right arm, wave, purple ring   | left arm, push, yellow cup
        right arm, push, red ball      | both arms, pull, blue box      | right arm, pull, purple ring
        left arm, circle, blue box     | right arm, circle, green stick | left arm, swing, red ball
        right leg, swing, purple ring  | both arms, squat, purple ring  | right arm, squat, yellow cup
        left arm, bend, blue box       | both arms, bend, green stick   | left arm, jump, yellow cup
        right arm, jump, nothing       | left leg, kick, red ball       | right leg, kick, blue box
        both arms, turn, yellow cup    | right arm, turn, red ball""",
    "val": """
        left arm, raise, yellow cup    | both arms, lower, yellow cup   | right arm, circle, yellow cup
        right leg, kick, yellow cup    | left arm, wave, purple ring    | both arms, pull, purple ring
        left arm, swing, purple ring   | left arm, jump, purple ring    | left leg, swing, blue box
        right arm, bend, nothing""",
    "test": """
        right arm, raise, green stick  | right arm, swing, green stick  | left arm, squat, green stick
        both arms, push, green stick   | left leg, kick, blue box       | right arm, jump, blue box
        left arm, push, blue box       | right arm, wave, red ball      | right arm, pull, red ball
        both arms, bend, red ball""",
}

# motion -> what the person is doing at the beginning, in progression and at the end; {limb} is filled in.
_SCENE_PHRASES = {
    "raise": ("standing with {limb} low", "raising {limb} up", "keeping {limb} high"),
    "lower": ("standing with {limb} high", "lowering {limb} down", "keeping {limb} low"),
    "wave": ("standing with {limb} bent", "waving {limb} from side to side", "keeping {limb} bent"),
    "push": ("standing with {limb} at the chest", "pushing {limb} forward", "keeping {limb} straight"),
    "pull": ("standing with {limb} straight", "pulling {limb} back", "keeping {limb} at the chest"),
    "circle": ("standing with {limb} straight", "moving {limb} in a circle", "keeping {limb} straight"),
    "swing": ("standing with {limb} low", "swinging {limb} from side to side", "keeping {limb} low"),
    "squat": (
        "standing tall with {limb} in front",
        "squatting down with {limb} in front",
        "sitting low on bent legs",
    ),
    "bend": (
        "standing tall with {limb} in front",
        "bending the body forward",
        "keeping the body bent forward",
    ),
    "jump": ("standing tall with {limb} in front", "jumping up and down", "standing with both legs apart"),
    "turn": ("standing with {limb} high", "turning the body around", "standing with the back to us"),
    "kick": ("standing with both legs straight", "kicking with {limb}", "keeping {limb} straight in the air"),
}


def _with_article(limb: str) -> str:
    return limb if limb.startswith("both") else f"the {limb}"


def _scene_action(split: str, cell: str) -> Action:
    limb, verb, thing = (part.strip() for part in cell.split(","))
    leg = limb.endswith("leg")
    if thing == "nothing":
        carrying = "holding nothing"
        label = f"{verb} with {limb}" if verb in _MOVES_THING else f"{verb} with {limb} in front"
    else:
        carrying = f"with a {thing} at the foot" if leg else f"holding a {thing}"
        label = f"{verb} {thing} with {limb}" if verb in _MOVES_THING else f"{verb} with {thing} in {limb}"
    doing = [phrase.format(limb=_with_article(limb)) for phrase in _SCENE_PHRASES[verb]]
    last = f"with a {thing} far from the foot" if verb == "kick" else carrying
    return Action(
        label=label,
        split=split,
        phases=tuple(f"A person {d}, {c}." for d, c in zip(doing, (carrying, carrying, last), strict=True)),
        steps=tuple(doing),
        program=lambda: motion.scene_program(limb, verb),
        shares=(0.26, 0.46, 0.28),
        ending=f", {carrying}",
        limb=limb,
        thing=thing,
        kicked=verb == "kick",
    )


_MOVES_THING = ("raise", "lower", "wave", "push", "pull", "circle", "swing", "kick")


def _scene() -> list[Action]:
    return [
        _scene_action(split, cell)
        for split, table in _SCENE_TABLE.items()
        for line in table.strip().splitlines()
        for cell in line.split("|")
        if cell.strip()
    ]


# --------------------------------------------------------------------------------------------------- temporal

_TRIPLES = {
    "train": (
        ("raise right arm", "bend body", "squat down"),
        ("raise left arm", "spread both arms", "kick right leg"),
        ("kick left leg", "turn around", "bend body"),
        ("raise right arm", "spread both arms", "turn around"),
    ),
    "val": (
        ("spread both arms", "squat down", "kick left leg"),
        ("raise right arm", "raise left arm", "kick right leg"),
    ),
    "test": (
        ("raise right arm", "kick left leg", "squat down"),
        ("raise left arm", "bend body", "turn around"),
    ),
}
_TEMPORAL_PHRASES = {
    "raise right arm": "raising the right arm up",
    "raise left arm": "raising the left arm up",
    "spread both arms": "spreading both arms to the side",
    "bend body": "bending the body forward",
    "squat down": "squatting down on bent legs",
    "kick right leg": "kicking with the right leg",
    "kick left leg": "kicking with the left leg",
    "turn around": "turning the body around",
}


def _temporal_action(split: str, parts: tuple[str, ...]) -> Action:
    steps = tuple(_TEMPORAL_PHRASES[part] for part in parts)
    return Action(
        label=" then ".join(parts),
        split=split,
        phases=tuple(f"A person {step}." for step in steps),
        steps=steps,
        program=lambda: motion.temporal_program(parts),
        shares=(1 / 3, 1 / 3, 1 / 3),
    )


def _temporal() -> list[Action]:
    return [
        _temporal_action(split, order)
        for split, triples in _TRIPLES.items()
        for triple in triples
        for order in permutations(triple)
    ]


# ------------------------------------------------------------------------------------------------------- fine

_COUNTS = ("one time", "two times", "three times")
_FINE_PHRASES = {
    "turn": "making a half turn {}",
    "circle": "moving both arms in a half circle {}",
    "cartwheel": "making a cartwheel to the {}",
    "hop": "hopping to the {}",
    "lean": "leaning to the {}",
    "bounce": "bouncing {}",
}
_DIRECTIONS = {
    "turn": ("clockwise", "counterclockwise"),
    "circle": ("clockwise", "counterclockwise"),
    "cartwheel": ("left", "right"),
    "hop": ("left", "right"),
    "lean": ("left", "right"),
    "bounce": ("up", "down"),
}
# Base classes of the moves that have novel classes: two of six each; the novel ones differ in little but the
# count or the direction. The other moves belong to the base classes with all six.
_FINE_BASE = {
    "turn": (("clockwise", 1), ("counterclockwise", 3)),
    "hop": (("left", 2), ("right", 1)),
    "circle": (("clockwise", 3), ("counterclockwise", 1)),
    "cartwheel": (("left", 1), ("right", 2)),
}
_FINE_NOVEL = {"turn": "test", "hop": "test", "circle": "val", "cartwheel": "val"}


def _fine_action(move: str, direction: str, count: int) -> Action:
    base = (direction, count) in _FINE_BASE.get(move, ((direction, count),))
    doing = f"{_FINE_PHRASES[move].format(direction)} {_COUNTS[count - 1]}"
    steps = ("standing with both arms high", doing, "standing with both arms apart")
    verb = f"half {move}" if move in ("turn", "circle") else move
    return Action(
        label=f"{verb} {direction} {_COUNTS[count - 1]}",
        split="train" if base else _FINE_NOVEL[move],
        phases=tuple(f"A person {step}." for step in steps),
        steps=steps,
        program=lambda: motion.fine_program(move, direction, count),
        # A repetition takes about the same time in every class: preparation shrinks as the count grows.
        shares=((0.27, 0.46, 0.27), (0.2, 0.6, 0.2), (0.14, 0.72, 0.14))[count - 1],
    )


def _fine() -> list[Action]:
    return [
        _fine_action(move, direction, count)
        for move, directions in _DIRECTIONS.items()
        for direction in directions
        for count in (1, 2, 3)
    ]


# ------------------------------------------------------------------------------------------------ the grammar


@cache
def actions(name: str) -> dict[str, Action]:
    """All classes of set `name` by label, in a fixed order. Raises UserError for an unknown set."""
    builders = {"scene": _scene, "temporal": _temporal, "fine": _fine}
    if name not in builders:
        raise unknown("synthetic set", name, SETS)
    return {action.label: action for action in builders[name]()}


def find(name: str, label: str) -> Action:
    """The class `label` of set `name`. Raises UserError if there is none."""
    known = actions(name)
    if label not in known:
        raise unknown("class", label, known, where=f"synthetic set {name}")
    return known[label]


def classes(name: str, split: str) -> list[str]:
    """Labels of the classes of `split` in set `name`."""
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    return [a.label for a in actions(name).values() if a.split == split]


def captions(name: str, label: str) -> list[str]:
    """Three sentences: sentence k is true of the frames of phase k of every clip of class `label`."""
    return list(find(name, label).phases)


# ------------------------------------------------------------------------------------------------------ words


def _sequence(action: Action) -> str:
    first, middle, last = action.steps
    return f"A person first {first}, then {middle}, and finally {last}{action.ending}."


def _atomic(action: Action) -> dict[str, list[str]]:
    first, middle, last = action.phases
    start = "A person standing before the action."
    return {
        "1": [_sequence(action)],
        "2": [f"A person first {action.steps[0]}, then {action.steps[1]}{action.ending}.", last],
        "3": [first, middle, last],
        "4": [start, first, middle, last],
    }


_AXES = (("to the left", "to the right"), ("up", "down"), ("backward", "forward"))
_WHEN = ("in the beginning", "in the middle", "in the end")


def _joint_sentences(action: Action) -> dict[str, str]:
    """One sentence for each joint, from where it goes in the figure of average shape in each phase."""
    per_phase = 24
    poses = motion.render_poses(action.program(), (0, per_phase, 2 * per_phase, 3 * per_phase))
    track, _ = forward_kinematics(poses, make_body())
    out = {}
    for j, joint in enumerate(JOINTS):
        said = []
        for phase, when in enumerate(_WHEN):
            path = track[phase * per_phase : (phase + 1) * per_phase, j]
            away = path - path[0]
            far = int(np.argmax(np.linalg.norm(away, axis=1)))
            if np.linalg.norm(away[far]) < 0.15:
                continue
            axis = int(np.argmax(np.abs(away[far])))
            said.append(f"moves {_AXES[axis][int(away[far, axis] < 0)]} {when}")
        out[joint] = f"The {joint} {' and '.join(said)}." if said else f"The {joint} stays still."
    return out


def _second(action: Action, joint: str, said: str) -> tuple[str, str]:
    """Global text and sentence of a joint in the words of the second voice."""
    begin, middle, end = action.steps
    whole = f"The performer starts by {begin}. Next comes {middle}. The action closes with {end}{action.ending}."
    return whole, said.replace("The ", "During this, the ", 1).replace(" moves ", " goes ").replace(
        " in the ", " at the "
    )


def _third(action: Action, joint: str, said: str) -> tuple[str, str]:
    """Global text and sentence of a joint in the words of the third voice: terse."""
    begin, middle, end = action.steps
    whole = f"Beginning: {begin}. Process: {middle}. End: {end}{action.ending}."
    return whole, said.replace(f"The {joint} ", f"{joint}: ", 1).replace("stays still", "no motion").replace(
        "moves ", ""
    )


VOICES = {"gemini": _second, "qwen": _third}
"""The same facts in other words, for tables that compare the descriptions of several language models."""


def corpora(name: str) -> dict[str, dict]:
    """The text corpus of set `name` in each of the other voices: labels, global texts and sentences of joints."""
    first, known = texts(name), actions(name)
    out = {}
    for voice, speak in VOICES.items():
        classes = {}
        for label, entry in first["classes"].items():
            said = {joint: speak(known[label], joint, text) for joint, text in entry["joints"].items()}
            joints = {joint: sentence for joint, (_, sentence) in said.items()}
            classes[label] = {"label": label, "global": next(iter(said.values()))[0], "joints": joints}
        out[voice] = {"classes": classes, "provenance": {**first["provenance"], "voice": voice}}
    return out


def texts(name: str) -> dict:
    """The text corpus of set `name`: {"classes": {label: {...}}, "provenance": {...}}, ready for JSON."""
    known = actions(name)
    return {
        "classes": {
            label: {
                "label": label,
                "atomic": _atomic(action),
                "stages": list(action.steps),
                "global": f"This is a video of a person: {label}. {_sequence(action)}",
                "joints": _joint_sentences(action),
            }
            for label, action in known.items()
        },
        "provenance": {"source": f"grammar of the synthetic set {name}", "model": None},
    }
