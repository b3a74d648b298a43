"""Small films of the kinds that are easily read wrongly. Each frame says its number and which way is up."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np

SIZE = (96, 80)  # width, height
TICKS = Fraction(1, 6000)


def paint(number: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """The upright frame of a number (0 to 255): uint8 RGB, eight bars for its bits above their negative, red on the
    left of the upper edge, blue on the right."""
    width, height = size
    picture = np.full((height, width, 3), 128, np.uint8)
    band = height // 4
    picture[:band, : width // 2], picture[:band, width // 2 :] = (210, 40, 40), (40, 40, 210)
    edges = np.linspace(0, width, 9).round().astype(int)
    for i in range(8):
        light, dark = (225, 30) if number >> (7 - i) & 1 else (30, 225)
        picture[band : 2 * band, edges[i] : edges[i + 1]] = light
        picture[2 * band : 3 * band, edges[i] : edges[i + 1]] = dark
    return picture


def read_number(frame: np.ndarray) -> int | None:
    """The number that an upright RGB frame shows; None where it shows none, or is not upright."""
    height, width = frame.shape[:2]
    red, blue = frame[: height // 5, : width // 3].mean((0, 1)), frame[: height // 5, -width // 3 :].mean((0, 1))
    if not (red[0] > red[2] + 80 and blue[2] > blue[0] + 80):
        return None
    number = 0
    for i in range(8):
        columns = slice(int((i + 0.3) * width / 8), int((i + 0.7) * width / 8) + 1)
        upper = frame[int(0.31 * height) : int(0.44 * height), columns].mean()
        lower = frame[int(0.56 * height) : int(0.69 * height), columns].mean()
        if abs(upper - lower) < 80:
            return None
        number = number << 1 | int(upper > lower)
    return number


def even(count: int, wanted: int) -> list[int]:
    """The middles of `wanted` equal parts of `count` frames."""
    wanted = min(count, wanted)
    return [(2 * i + 1) * count // (2 * wanted) for i in range(wanted)]


def film(
    path: Path, numbers: Iterable[int], codec: str = "libx264", *, rate: int = 30, between: int = 0, group: int = 250,
    pixels: str = "yuv420p", turned: int = 0, size: tuple[int, int] = SIZE, times: Sequence[float] = (), first: int = 0,
    sound: float = 0, preview: bool = False, mux: dict[str, str] | None = None, tag: str = "", options: Any = None,
) -> Path:  # fmt: skip
    """Encode the frames of `numbers`.

    between: B frames in a row. group: frames from one key frame to the next. turned: quarter turns, counter-clockwise,
    by which frames are stored. times: seconds of each frame. first: frames by which all are late. sound: seconds of it.
    preview: a smaller stream that shows 255 alone comes first.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options=mux or {}) as out:
        small = (size[0] // 2, size[1] // 2)
        teaser = _stream(out, "libx264", rate, small, "yuv420p", {}) if preview else None
        stream = _stream(out, codec, rate, size[::-1] if turned % 2 else size, pixels, options or {})
        context = stream.codec_context
        context.gop_size, context.max_b_frames = group, between
        if tag:
            context.codec_tag = tag
        if codec.startswith("mpeg"):
            context.bit_rate = 1_000_000
        if times:
            context.time_base = stream.time_base = TICKS
        noise = out.add_stream("pcm_s16le", rate=8000, layout="mono") if sound else None
        for i, number in enumerate(numbers):
            if teaser is not None:
                _put(out, teaser, paint(255, small), i, Fraction(1, rate))
            stored = np.ascontiguousarray(np.rot90(paint(number, size), turned))
            at, base = (round(times[i] / TICKS), TICKS) if times else (i + first, Fraction(1, rate))
            _put(out, stream, stored, at, base)
        for one in filter(None, (teaser, stream)):
            out.mux(one.encode(None))
        if noise is not None:
            _hum(out, noise, sound)
    return path


def _stream(out: Any, codec: str, rate: int, size: tuple[int, int], pixels: str, options: dict[str, str]) -> Any:
    stream = out.add_stream(codec, rate=rate, options=options)
    stream.width, stream.height, stream.pix_fmt = *size, pixels
    stream.codec_context.thread_count = 1
    return stream


def _put(out: Any, stream: Any, picture: np.ndarray, at: int, base: Fraction) -> None:
    frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
    frame.pts, frame.time_base = at, base
    out.mux(stream.encode(frame))


def _hum(out: Any, stream: Any, seconds: float) -> None:
    for start in range(0, int(seconds * 8000), 1000):
        piece = av.AudioFrame.from_ndarray(np.zeros((1, 1000), np.int16), format="s16", layout="mono")
        piece.sample_rate, piece.pts, piece.time_base = 8000, start, Fraction(1, 8000)
        out.mux(stream.encode(piece))
    out.mux(stream.encode(None))


# --------------------------------------------------------------------------------- what is said in an MP4's header
def _boxes(data: bytes, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    while start + 8 <= end:
        size = int.from_bytes(data[start : start + 4], "big")
        yield bytes(data[start + 4 : start + 8]), start, start + size
        start += size


def _inside(data: bytes, *kinds: bytes) -> tuple[int, int]:
    """Where the content of the box at a path such as moov, trak, tkhd begins and ends."""
    start, end = -8, len(data)
    for kind in kinds:
        _, start, end = next(box for box in _boxes(data, start + 8, end) if box[0] == kind)
    return start + 8, end


def _box(kind: bytes, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return (8 + len(body)).to_bytes(4, "big") + kind + body


def tell_turn(path: Path, a: int, b: int, c: int, d: int) -> Path:
    """Say that x is shown at a x + c y, and y at b x + d y; 0, 1, -1, 0 turns clockwise by 90 degrees."""
    data = bytearray(path.read_bytes())
    at = _inside(data, b"moov", b"trak", b"tkhd")[1] - 44
    for place, value in zip((0, 1, 3, 4), (a, b, c, d), strict=True):
        data[at + 4 * place : at + 4 * place + 4] = (value << 16 & 0xFFFFFFFF).to_bytes(4, "big")
    path.write_bytes(data)
    return path


def tell_cut(path: Path, first: int, count: int, rate: int = 30) -> Path:
    """Have the edit list show `count` frames from number `first` on, as a lossless cut does."""
    data = bytearray(path.read_bytes())
    whole, _ = _inside(data, b"moov", b"mvhd")
    media, _ = _inside(data, b"moov", b"trak", b"mdia", b"mdhd")
    edits, _ = _inside(data, b"moov", b"trak", b"edts", b"elst")
    clock, ticks = (int.from_bytes(data[at + 12 : at + 16], "big") for at in (whole, media))
    start = int.from_bytes(data[edits + 12 : edits + 16], "big") + round(first * ticks / rate)
    data[edits + 8 : edits + 16] = round(count * clock / rate).to_bytes(4, "big") + start.to_bytes(4, "big")
    path.write_bytes(data)
    return path


def add_cover(path: Path) -> Path:
    """Put a green cover picture, larger than the film, before it."""
    picture = cv2.imencode(".jpg", np.full((240, 320, 3), (0, 200, 0), np.uint8))[1].tobytes()
    cover = _box(b"covr", _box(b"data", (13).to_bytes(4, "big"), bytes(4), picture))
    handler = _box(b"hdlr", bytes(8), b"mdir", b"appl", bytes(9))
    user = _box(b"udta", _box(b"meta", bytes(4), handler, _box(b"ilst", cover)))
    data = path.read_bytes()
    start, end = _inside(data, b"moov")
    inside = [data[a:b] for kind, a, b in _boxes(data, start, end) if kind != b"udta"]
    path.write_bytes(data[: start - 8] + _box(b"moov", inside[0], user, *inside[1:]) + data[end:])
    return path


def cut(path: Path, share: float) -> Path:
    """Leave the beginning of a file alone."""
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path
