"""Drawing the figure: capsules sorted by depth before a background, with a thing in hand or at the foot."""

from __future__ import annotations

import colorsys
from dataclasses import dataclass

import cv2
import numpy as np

_SHIFT = 4  # fractional bits of the coordinates given to OpenCV
_ONE = 1 << _SHIFT

THING_COLOURS = {  # RGB
    "red ball": (222, 32, 36),
    "blue box": (36, 78, 226),
    "green stick": (30, 176, 52),
    "yellow cup": (250, 214, 30),
    "purple ring": (160, 42, 196),
}
# (first joint, last joint, thickness in metres, colour key) of the capsules of the body.
_CAPSULES = (
    (4, 5, 0.105, "left_sleeve"), (5, 6, 0.085, "left_sleeve"),
    (8, 9, 0.105, "right_sleeve"), (9, 10, 0.085, "right_sleeve"),
    (12, 13, 0.15, "left_trouser"), (13, 14, 0.115, "left_trouser"), (14, 15, 0.10, "left_shoe"),
    (16, 17, 0.15, "right_trouser"), (17, 18, 0.115, "right_trouser"), (18, 19, 0.10, "right_shoe"),
    (20, 3, 0.09, "skin"),
)  # fmt: skip
_HANDS = ((7, "skin"), (11, "skin"))


@dataclass(frozen=True)
class Look:
    """Everything about the looks of a clip: RGB colours, background (H, W, 3) uint8, noise and occluders."""

    colours: dict[str, tuple[int, int, int]]
    background: np.ndarray
    noise: np.ndarray
    flicker: float
    occluders: tuple[tuple[tuple[int, int, int, int], tuple[int, int, int]], ...]


def _rgb(hue: float, saturation: float, value: float) -> tuple[int, int, int]:
    return tuple(round(255 * c) for c in colorsys.hsv_to_rgb(hue % 1.0, saturation, value))


def make_clothes(rng: np.random.Generator) -> dict[str, tuple[int, int, int]]:
    """Colours of a subject. Left limbs are light and right limbs dark: the side shows at 64 pixels."""
    shirt, trousers = rng.uniform(0, 1, 2)
    tone = rng.uniform(0.0, 1.0)
    skin = tuple(int(a + (b - a) * tone) for a, b in zip((244, 205, 172), (138, 92, 66), strict=True))
    return {
        "skin": skin,
        "hair": _rgb(rng.uniform(0.02, 0.12), rng.uniform(0.2, 0.7), rng.uniform(0.08, 0.4)),
        "shirt": _rgb(shirt, 0.5, 0.66),
        "front": _rgb(shirt, 0.16, 0.96),
        "left_sleeve": _rgb(shirt, 0.42, 0.95),
        "right_sleeve": _rgb(shirt, 0.75, 0.36),
        "pelvis": _rgb(trousers, 0.4, 0.55),
        "left_trouser": _rgb(trousers, 0.35, 0.84),
        "right_trouser": _rgb(trousers, 0.6, 0.28),
        "left_shoe": (235, 235, 228),
        "right_shoe": (30, 28, 30),
    }


def make_look(rng: np.random.Generator, clothes: dict[str, tuple[int, int, int]], size: int, nuisance: float) -> Look:
    """Random background (gradient, texture, clutter), noise and at most two occluders.

    A `nuisance` of 0 leaves a plain wall and floor of random colour.
    """
    hue, value = rng.uniform(0, 1), 0.66 + 0.18 * rng.uniform(-1, 1) * nuisance
    wall = np.array(_rgb(hue, 0.06 + 0.10 * rng.uniform(), value), dtype=np.float64)
    floor = wall * rng.uniform(0.62, 0.8)
    tilt = rng.normal(0, 12, 2) * nuisance
    v, u = np.mgrid[0:size, 0:size] / size - 0.5
    coarse = rng.normal(0, 5 * nuisance, (8, 8, 1)) + rng.normal(0, 2 * nuisance, (8, 8, 3))
    texture = cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)
    image = np.where((v > 0.33)[..., None], floor, wall) + (tilt[0] * u + tilt[1] * v)[..., None] + texture
    image = np.ascontiguousarray(np.clip(image, 0, 255).astype(np.uint8))
    for _ in range(rng.poisson(3 * nuisance)):
        _clutter(image, rng, wall)
    image = cv2.GaussianBlur(image, (3, 3), 0)
    noise = np.clip(rng.normal(128, 1e-3 + 4 * nuisance, (size + 16, size + 16, 3)), 0, 255).astype(np.uint8)
    occluders = []
    for _ in range(rng.binomial(2, min(0.15 * nuisance, 1.0))):
        width, height = rng.uniform(0.04, 0.09) * size, rng.uniform(0.25, 0.6) * size
        left, top = rng.choice([rng.uniform(0, 0.25), rng.uniform(0.7, 0.95)]) * size, size - height
        box = (int(left), int(top), int(left + width), size)
        occluders.append((box, _rgb(rng.uniform(), 0.2, rng.uniform(0.3, 0.6))))
    return Look(clothes, image, noise, 5 * nuisance, tuple(occluders))


def _clutter(image: np.ndarray, rng: np.random.Generator, wall: np.ndarray) -> None:
    """Paint one pale thing on the wall: rectangle, disc or bar."""
    size = len(image)
    colour = tuple(map(float, 0.72 * wall + 0.28 * np.array(_rgb(rng.uniform(), 0.6, 0.8))))
    x, y = map(int, rng.uniform(0, size, 2))
    a, b = map(int, rng.uniform(0.06, 0.24, 2) * size)
    kind = rng.integers(3)
    if kind == 0:
        cv2.rectangle(image, (x, y), (x + a, y + b), colour, cv2.FILLED, cv2.LINE_AA)
    elif kind == 1:
        cv2.circle(image, (x, y), a // 2 + 1, colour, cv2.FILLED, cv2.LINE_AA)
    else:
        cv2.line(image, (x, y), (x + 3 * a, y + b), colour, max(1, size // 40), cv2.LINE_AA)


def _dark(colour: tuple[int, ...], factor: float = 0.55) -> tuple[int, ...]:
    return tuple(int(c * factor) for c in colour)


class _Canvas:
    """Drawing in pixels with fractions, for one frame."""

    def __init__(self, image: np.ndarray, focal: float) -> None:
        self.image, self.focal = image, focal

    def width(self, metres: float, depth: float) -> int:
        return max(1, round(metres * self.focal / depth))

    def capsule(self, a: Spot, b: Spot, metres: float, depth: float, colour: tuple[int, ...]) -> None:
        cv2.line(self.image, a, b, colour, self.width(metres, depth), cv2.LINE_AA, _SHIFT)

    def disc(self, at: Spot, metres: float, depth: float, colour: tuple[int, ...]) -> None:
        radius = max(1, round(metres * self.focal / depth * _ONE))
        cv2.circle(self.image, at, radius, colour, cv2.FILLED, cv2.LINE_AA, _SHIFT)

    def polygon(self, points: np.ndarray, colour: tuple[int, ...]) -> None:
        cv2.fillConvexPoly(self.image, np.rint(points * _ONE).astype(np.int32), colour, cv2.LINE_AA, _SHIFT)


Spot = tuple[int, int]  # a pixel with fractions, as OpenCV takes it


def _spots(points: np.ndarray) -> list[Spot]:
    return list(map(tuple, (points * _ONE + 0.5).astype(int).tolist()))


def _spot(point: np.ndarray) -> Spot:
    return int(point[0] * _ONE + 0.5), int(point[1] * _ONE + 0.5)


def _draw_thing(canvas: _Canvas, thing: str, at: np.ndarray, depth: float, axis: np.ndarray, grow: float) -> None:
    """`axis` is the unit direction of the forearm in the image: a stick lies across, a cup opens along it."""
    colour = THING_COLOURS[thing]
    edge = _dark(colour)
    unit = canvas.focal / depth * grow
    across = np.array([-axis[1], axis[0]])
    if thing == "red ball":
        canvas.disc(_spot(at), 0.135 * grow, depth, edge)
        canvas.disc(_spot(at), 0.112 * grow, depth, colour)
    elif thing == "purple ring":
        radius = max(1, round(0.14 * unit * _ONE))
        cv2.circle(canvas.image, _spot(at), radius, colour, max(2, round(0.065 * unit)), cv2.LINE_AA, _SHIFT)
    elif thing == "green stick":
        ends = _spot(at + across * 0.4 * unit), _spot(at - across * 0.4 * unit)
        canvas.capsule(*ends, 0.085 * grow, depth, edge)
        canvas.capsule(*ends, 0.05 * grow, depth, colour)
    else:
        top, bottom, height = (0.13, 0.13, 0.13) if thing == "blue box" else (0.14, 0.075, 0.15)
        corners = np.array([axis * height + across * top, axis * height - across * top,
                            -axis * height - across * bottom, -axis * height + across * bottom])  # fmt: skip
        canvas.polygon(at + corners * unit, edge)
        canvas.polygon(at + corners * unit * 0.78, colour)


def draw_frame(
    image: np.ndarray,
    seen: np.ndarray,
    pixels: np.ndarray,
    facing: np.ndarray,
    focal: float,
    colours: dict[str, tuple[int, int, int]],
    girth: float,
    thing: tuple[str, np.ndarray, float, np.ndarray, float] | None,
) -> None:
    """Draw one figure into `image` (H, W, 3) RGB.

    `seen` (25, 3) camera points, metres; `pixels` (25, 2); `facing` (2, 3): unit directions in which the
    chest and the head point; `thing`: (name, pixel, depth, image direction, growth) or None.
    """
    canvas = _Canvas(image, focal)
    depth, spots = seen[:, 2].tolist(), _spots(pixels)
    jobs: list[tuple[float, int, tuple]] = []
    for k, (a, b, metres, key) in enumerate(_CAPSULES):
        jobs.append(
            (
                (depth[a] + depth[b]) / 2,
                k,
                (canvas.capsule, spots[a], spots[b], metres * girth, depth[b], colours[key]),
            )
        )
    for joint, key in _HANDS:
        jobs.append((depth[joint] - 0.03, 50 + joint, (canvas.disc, spots[joint], 0.055, depth[joint], colours[key])))
    middle = (depth[0] + depth[20]) / 2
    jobs.append((middle, 70, (_draw_trunk, canvas, pixels, spots, depth[1], facing[0], colours, girth)))
    jobs.append((depth[3] - 0.02, 80, (_draw_head, canvas, pixels[3], spots[3], depth[3], facing[1], colours)))
    if thing is not None:
        jobs.append((thing[2] - 0.12, 90, (_draw_thing, canvas, *thing)))
    for _, _, (draw, *arguments) in sorted(jobs, key=lambda job: (-job[0], job[1])):
        draw(*arguments)


def _draw_trunk(
    canvas: _Canvas, pixels: np.ndarray, spots: list[Spot], z: float, facing: np.ndarray, colours: dict, girth: float
) -> None:
    # Joints 20 and 1 keep a strongly bent trunk from looking like a flat card.
    canvas.capsule(spots[12], spots[16], 0.17 * girth, z, colours["pelvis"])
    canvas.capsule(spots[0], spots[1], 0.24 * girth, z, colours["shirt"])
    canvas.capsule(spots[1], spots[20], 0.26 * girth, z, colours["shirt"])
    canvas.capsule(spots[4], spots[8], 0.12 * girth, z, colours["shirt"])
    if facing[2] < 0:
        offset = facing[:2] * (1, -1) * 0.10 * canvas.focal / z
        canvas.capsule(_spot(pixels[1] + offset), _spot(pixels[20] + offset), 0.12, z, colours["front"])


def _draw_head(canvas: _Canvas, at: np.ndarray, spot: Spot, depth: float, facing: np.ndarray, colours: dict) -> None:
    canvas.disc(spot, 0.135, depth, colours["hair"])
    if facing[2] < 0.25:
        offset = facing[:2] * (1, -1) * 0.075 * canvas.focal / depth + (0, 0.02 * canvas.focal / depth)
        canvas.disc(_spot(at + offset), 0.098, depth, colours["skin"])


def finish_frame(image: np.ndarray, look: Look, rng: np.random.Generator) -> np.ndarray:
    """Occluders, flicker and noise, in place of a real camera."""
    for (left, top, right, bottom), colour in look.occluders:
        image[top:bottom, left:right] = colour
    size = len(image)
    dy, dx = rng.integers(0, 17, 2)
    grain = look.noise[dy : dy + size, dx : dx + size]
    return cv2.addWeighted(image, 1.0, grain, 1.0, -128.0 + look.flicker * rng.uniform(-1, 1))
