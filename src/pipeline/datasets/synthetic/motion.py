"""Key poses of every action, and the curve through them.

A *program* is a list of `Segment`s: in phase 0, 1 or 2, move to a pose. Lengths of phases and of segments are
drawn for each clip; phases are uneven on purpose, so that "a third of the clip" is never the right answer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pipeline.datasets.synthetic.figure import IN_METRES, INDEX, POSE

_FREE = np.array([name in ("x", "jump", "yaw", "roll") for name in POSE])


@dataclass(frozen=True)
class Segment:
    """Move to `pose` during phase `phase`, for a share `weight` of that phase; `linear` = constant speed."""

    phase: int
    pose: np.ndarray
    weight: float = 1.0
    linear: bool = False


def neutral(**angles: float) -> np.ndarray:
    """A standing pose with both arms hanging, changed by `angles` (names of `figure.POSE`)."""
    pose = np.zeros(len(POSE))
    for side in ("left", "right"):
        pose[INDEX[f"{side}_arm_elev"]] = 8
        pose[INDEX[f"{side}_arm_flex"]] = 6
        pose[INDEX[f"{side}_leg_elev"]] = 5
    return changed(pose, **angles)


def changed(pose: np.ndarray, **angles: float) -> np.ndarray:
    """A copy of `pose` with other values for the named degrees of freedom."""
    pose = pose.copy()
    for name, value in angles.items():
        pose[INDEX[name]] = value
    return pose


def limb_pose(base: np.ndarray, limb: str, **angles: float) -> np.ndarray:
    """`base` with other angles (elev, azim, flex, turn, knee) of `limb`, such as "both arms"."""
    side, part = limb.split()
    sides = ("left", "right") if side == "both" else (side,)
    part = part.rstrip("s")
    return changed(base, **{f"{s}_{part}_{key}": value for s in sides for key, value in angles.items()})


# -------------------------------------------------------------------------------- scene: limb, motion, object


def _arm(limb: str, **angles: float) -> np.ndarray:
    # Two hands that hold one thing meet before the body; a single arm works at its own side, where it is well
    # seen.
    inward = {"azim": 112.0 if limb.startswith("both") else 25.0}
    return limb_pose(neutral(), limb, **(inward | angles))


def _hold(limb: str) -> np.ndarray:
    return _arm(limb, elev=55, flex=35)


def _raise_arm(limb: str) -> list[Segment]:
    low, high = _arm(limb, elev=14), _arm(limb, elev=168, flex=4)
    return [Segment(0, low), Segment(1, high), Segment(2, high)]


def _lower_arm(limb: str) -> list[Segment]:
    low, high = _arm(limb, elev=14), _arm(limb, elev=168, flex=4)
    return [Segment(0, high), Segment(1, low), Segment(2, low)]


def _wave_arm(limb: str) -> list[Segment]:
    bent, out, inside = (_arm(limb, azim=0, elev=88, flex=flex) for flex in (85, 40, 130))
    return [
        Segment(0, bent),
        *[Segment(1, p) for p in (out, inside, out, inside)],
        Segment(1, bent, 0.5),
        Segment(2, bent),
    ]


def _at_chest(limb: str) -> np.ndarray:
    if limb.startswith("both"):
        return _arm(limb, elev=-12, flex=100)
    return _arm(limb, azim=40, elev=18, flex=112, turn=55)


def _stretched(limb: str) -> np.ndarray:
    return _arm(limb, azim=112 if limb.startswith("both") else 40, elev=92, flex=2)


def _push(limb: str) -> list[Segment]:
    near, far = _at_chest(limb), changed(_stretched(limb), bend=14)
    return [Segment(0, near), Segment(1, far), Segment(2, far)]


def _pull(limb: str) -> list[Segment]:
    near, far = changed(_at_chest(limb), bend=-8), _stretched(limb)
    return [Segment(0, far), Segment(1, near), Segment(2, near)]


def _circle_arm(limb: str) -> list[Segment]:
    start, end = _arm(limb, azim=0, elev=90), _arm(limb, azim=0, elev=450)
    return [Segment(0, start), Segment(1, end, linear=True), Segment(2, end)]


def _swing_arm(limb: str) -> list[Segment]:
    low = _arm(limb, azim=0, elev=10)
    if limb.startswith("both"):
        left, right = (
            changed(neutral(), left_arm_elev=e, right_arm_elev=-e, left_arm_azim=25, right_arm_azim=-25)
            for e in (70, -70)
        )
    else:
        left, right = _arm(limb, azim=0, elev=75), _arm(limb, azim=-20, elev=-62)
    return [
        Segment(0, low),
        *[Segment(1, p) for p in (left, right, left, right)],
        Segment(1, low, 0.6),
        Segment(2, low),
    ]


def _with_squat(pose: np.ndarray, depth: float = 1.0) -> np.ndarray:
    legs = {
        f"{s}_leg_{k}": v * depth for s in ("left", "right") for k, v in (("elev", 98), ("azim", 48), ("knee", 118))
    }
    return changed(pose, bend=22 * depth, **legs)


def _squat(limb: str) -> list[Segment]:
    tall, low = _hold(limb), _with_squat(_hold(limb))
    return [Segment(0, tall), Segment(1, low), Segment(2, low)]


def _bend(limb: str) -> list[Segment]:
    down = limb_pose(changed(_BENT), limb, elev=82, azim=112 if limb.startswith("both") else 70)
    return [Segment(0, _hold(limb)), Segment(1, down), Segment(2, down)]


# Arms hang down while the trunk is level, so they point forward as seen from the chest.
_BENT = neutral(
    bend=98, nod=10, left_leg_elev=12, right_leg_elev=12,
    left_arm_elev=80, left_arm_azim=75, right_arm_elev=80, right_arm_azim=75,
)  # fmt: skip


def _jump(limb: str) -> list[Segment]:
    hold = _hold(limb)
    crouch = _with_squat(hold, 0.45)
    up = changed(hold, jump=0.34, left_leg_elev=24, right_leg_elev=24)
    wide = changed(hold, left_leg_elev=26, right_leg_elev=26)
    hops = [
        Segment(1, crouch, 0.6),
        Segment(1, up),
        Segment(1, crouch, 0.8),
        Segment(1, up),
        Segment(1, wide, 0.8),
    ]
    return [Segment(0, hold), *hops, Segment(2, wide)]


def _turn(limb: str) -> list[Segment]:
    hold = _arm(limb, elev=70, azim=0, flex=20) if not limb.startswith("both") else _arm(limb, elev=150)
    away = changed(hold, yaw=180)
    return [Segment(0, hold), Segment(1, away), Segment(2, away)]


def _leg_base() -> np.ndarray:
    return neutral(left_arm_elev=38, right_arm_elev=38)


def _kick(limb: str) -> list[Segment]:
    back = limb_pose(_leg_base(), limb, azim=0, elev=-16, knee=55)
    out = limb_pose(_leg_base(), limb, azim=28, elev=82, knee=4)
    return [Segment(0, _leg_base()), Segment(1, back), Segment(1, out), Segment(2, out)]


def _raise_leg(limb: str) -> list[Segment]:
    high = limb_pose(_leg_base(), limb, azim=50, elev=88, knee=85)
    return [Segment(0, _leg_base()), Segment(1, high), Segment(2, high)]


def _swing_leg(limb: str) -> list[Segment]:
    out, across = (
        limb_pose(_leg_base(), limb, azim=0, elev=52),
        limb_pose(_leg_base(), limb, azim=-25, elev=-38),
    )
    swings = [Segment(1, p) for p in (out, across, out, across)]
    return [Segment(0, _leg_base()), *swings, Segment(1, _leg_base(), 0.6), Segment(2, _leg_base())]


_ARM_MOTIONS: dict[str, Callable[[str], list[Segment]]] = {
    "raise": _raise_arm, "lower": _lower_arm, "wave": _wave_arm, "push": _push, "pull": _pull,
    "circle": _circle_arm, "swing": _swing_arm, "squat": _squat, "bend": _bend, "jump": _jump, "turn": _turn,
}  # fmt: skip
_LEG_MOTIONS = {"kick": _kick, "raise": _raise_leg, "swing": _swing_leg}


def scene_program(limb: str, motion: str) -> list[Segment]:
    """Key poses of `motion` done with `limb`."""
    return (_LEG_MOTIONS if limb.endswith("leg") else _ARM_MOTIONS)[motion](limb)


# ------------------------------------------------------------------- temporal: any order of three sub-motions

KEY_POSES = {
    "raise right arm": neutral(right_arm_elev=172, right_arm_flex=4),
    "raise left arm": neutral(left_arm_elev=172, left_arm_flex=4),
    "spread both arms": neutral(left_arm_elev=92, right_arm_elev=92, left_arm_flex=2, right_arm_flex=2),
    "bend body": _BENT,
    "squat down": _with_squat(neutral(left_arm_elev=40, left_arm_azim=60, right_arm_elev=40, right_arm_azim=60)),
    "kick right leg": changed(_leg_base(), right_leg_elev=84, right_leg_azim=18),
    "kick left leg": changed(_leg_base(), left_leg_elev=84, left_leg_azim=18),
    "turn around": neutral(yaw=180, left_arm_elev=30, right_arm_elev=30),
}


def temporal_program(parts: tuple[str, ...]) -> list[Segment]:
    """The key poses of `parts` one after the other.

    Every phase starts and ends in the neutral pose: no frame between two key poses tells their order.
    """
    program = []
    for phase, part in enumerate(parts):
        key = KEY_POSES[part]
        program += [
            Segment(phase, neutral(), 0.12),
            Segment(phase, key, 0.9),
            Segment(phase, key, 1.4),
            Segment(phase, neutral(), 0.7),
        ]
    return program


# ------------------------------------------------------------------------- fine: move, direction, repetitions


def _spread(**angles: float) -> np.ndarray:
    return neutral(**({"left_arm_elev": 115, "right_arm_elev": 115} | angles))


def _arms_up(**angles: float) -> np.ndarray:
    return neutral(**({"left_arm_elev": 172, "right_arm_elev": 172, "left_arm_flex": 2, "right_arm_flex": 2} | angles))


def _between(steps: list[Segment], last: np.ndarray) -> list[Segment]:
    """A gymnast's beginning (arms raised), the `steps` of the move, and the finish, which is held."""
    return [Segment(0, _arms_up()), *steps, Segment(2, last, 0.6), Segment(2, last)]


def _turns(sign: int, count: int) -> list[Segment]:
    side = {"left_arm_elev": 62.0, "right_arm_elev": 62.0}
    steps = [Segment(1, neutral(yaw=180.0 * sign * i, **side)) for i in range(1, count + 1)]
    return _between(steps, _spread(yaw=180.0 * sign * count))


def _arm_circles(sign: int, count: int) -> list[Segment]:
    # Clockwise for the viewer: the figure's left arm (right in the image) comes down at its own side.
    def at(i: int) -> np.ndarray:
        return _arms_up(left_arm_elev=172 - sign * 180.0 * i, right_arm_elev=172 + sign * 180.0 * i)

    steps = [Segment(1, at(i)) for i in range(1, count + 1)]
    # The arms end spread, reached by the shorter way round.
    last = steps[-1].pose
    turns = 360.0 * np.round((last - _spread()) / 360.0)
    return _between(steps, _spread() + turns)


def _cartwheels(sign: int, count: int) -> list[Segment]:
    wide = {"left_leg_elev": 30, "right_leg_elev": 30, "left_arm_elev": 150, "right_arm_elev": 150}
    wheels = [Segment(1, neutral(roll=360.0 * sign * i, x=0.14 * sign * i, **wide)) for i in range(1, count + 1)]
    return _between(wheels, _spread(roll=360.0 * sign * count, x=0.14 * sign * count))


def _hops(sign: int, count: int) -> list[Segment]:
    hips = {"left_arm_elev": 42, "right_arm_elev": 42, "left_arm_flex": -95, "right_arm_flex": -95}
    hops = []
    for i in range(1, count + 1):
        air = neutral(jump=0.24, x=0.2 * sign * (i - 0.5), lean=10 * sign, **hips)
        hops += [Segment(1, air), Segment(1, _with_squat(neutral(x=0.2 * sign * i, **hips), 0.3))]
    return _between(hops, _spread(x=0.2 * sign * count))


def _leans(sign: int, count: int) -> list[Segment]:
    lean, back = (
        neutral(lean=55 * sign, left_arm_elev=70, right_arm_elev=70),
        neutral(left_arm_elev=70, right_arm_elev=70),
    )
    return _between([Segment(1, p) for _ in range(count) for p in (lean, back)], _spread())


def _bounces(sign: int, count: int) -> list[Segment]:
    rest = neutral(left_arm_elev=50, right_arm_elev=50)
    peak = changed(rest, jump=0.36, left_leg_elev=20, right_leg_elev=20) if sign > 0 else _with_squat(rest)
    return _between([Segment(1, p) for _ in range(count) for p in (peak, rest)], _spread())


_FINE = {
    "turn": _turns,
    "circle": _arm_circles,
    "cartwheel": _cartwheels,
    "hop": _hops,
    "lean": _leans,
    "bounce": _bounces,
}
_SIGN = {"clockwise": 1, "left": 1, "up": 1, "counterclockwise": -1, "right": -1, "down": -1}


def fine_program(move: str, direction: str, count: int) -> list[Segment]:
    """`count` repetitions of a gymnast's `move`, between arms raised and arms spread."""
    return _FINE[move](_SIGN[direction], count)


# --------------------------------------------------------------------------------------------- curves in time


def draw_boundaries(frames: int, shares: tuple[float, ...], spread: float, rng: np.random.Generator) -> tuple[int, ...]:
    """First frames (0, b1, b2, frames) of the phases: `shares` of the clip, each times a random factor.

    `spread` in [0, 1) bounds the factor to 1 ± spread. Every phase lasts three frames at least.
    """
    weights = np.asarray(shares) * rng.uniform(1 - spread, 1 + spread, len(shares))
    cuts = np.rint(np.cumsum(weights)[:-1] / weights.sum() * frames).astype(int)
    for k in range(len(cuts)):
        cuts[k] = np.clip(cuts[k], (cuts[k - 1] if k else 0) + 3, frames - 3 * (len(cuts) - k))
    return (0, *map(int, cuts), frames)


def render_poses(
    program: list[Segment],
    boundaries: tuple[int, ...],
    rng: np.random.Generator | None = None,
    spread: float = 1.0,
) -> np.ndarray:
    """Poses (T, len(POSE)) along `program`.

    With `rng`, the tempo, the amplitude and the posture vary from clip to clip, scaled by `spread`.
    """
    poses = np.array([s.pose for s in program])
    weights = np.array([s.weight for s in program])
    if rng is not None:
        weights = weights * np.exp(spread * rng.uniform(-0.45, 0.45, len(weights)))
        posture = np.where(_FREE, 0.0, spread * rng.uniform(-5, 5, len(POSE)))
        gain = 1 + spread * rng.uniform(-0.07, 0.07)
        poses = np.where(IN_METRES, poses * gain, np.where(_FREE, poses, poses * gain + posture))
    ends = np.empty(len(program))
    for phase in range(3):
        inside = [i for i, s in enumerate(program) if s.phase == phase]
        share = np.cumsum(weights[inside]) / weights[inside].sum()
        ends[inside] = boundaries[phase] + share * (boundaries[phase + 1] - boundaries[phase])
    # The first pose stands from the first frame on: its segment is the idle time before the action.
    times, values = np.concatenate([[0.0], ends]), np.concatenate([poses[:1], poses])
    at = np.arange(boundaries[-1]) + 0.5
    k = np.clip(np.searchsorted(times, at, side="right") - 1, 0, len(program) - 1)
    u = np.clip((at - times[k]) / np.maximum(times[k + 1] - times[k], 1e-9), 0, 1)
    eased = np.where(np.array([s.linear for s in program])[k], u, u * u * (3 - 2 * u))
    return values[k] + eased[:, None] * (values[k + 1] - values[k])
