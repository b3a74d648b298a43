"""Videos and folders of frames, decoded: each frame as a player shows it, once, in its order, with its time.

One decoder reads all videos (PyAV, from their first frame on): it counts the frames that are shown, hides what an edit
list hides, turns pictures that a phone stored lying, and is no slower than decoders that seek.
"""

from __future__ import annotations

import itertools
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av
import cv2
import numpy as np
from av.stream import Disposition
from av.video.reformatter import VideoReformatter

from pipeline.guarded import Unreadable

VIDEO_SUFFIXES = (".mp4", ".avi", ".webm", ".mkv", ".mov", ".gif", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".3gp")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
_SKIP = 100  # frames: what is nearer than this is decoded on the way, not sought
_TIMED = (
    "mp4",
    "matroska",
)  # containers that say when each frame is shown (in AVI it is guessed): frames can be sought
_COVERS = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.still_image

Choose = Callable[[np.ndarray], np.ndarray]
"""Times of a clip's frames, in seconds from the first, ascending (n,) -> places of those that are wanted, ascending."""


@dataclass(frozen=True, slots=True)
class ReadClip:
    """What was made of a clip's frames.

    frames: of the wanted frames, in order. places: their numbers in the clip, from 0. times: when each of them is
    shown, in seconds from the clip's first frame; empty for a folder of frames, which says no times. fps: frames a
    second, on average (0: unknown). source_frames: how many frames the clip has.
    """

    frames: list[Any]
    places: list[int]
    times: list[float]
    fps: float
    source_frames: int


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Sort key that puts frame 2 before frame 10."""
    parts = re.split(r"(\d+)", name)
    return [(0, int(part), part) if part.isdecimal() else (1, 0, part) for part in parts if part]


def read_clip(path: str | Path, function: Callable[[np.ndarray], Any], choose: Choose, pattern: str = "") -> ReadClip:
    """Decode a video, or a folder of jpg/png frames, and keep what `function` makes of each wanted frame.

    function gets uint8 RGB (H, W, 3), upright, in order; where a video holds another number of frames than its packets,
    it is given some of them again. pattern: a regular expression that names of pictures must match to count as frames.

    Raises Unreadable when the file is missing or damaged, holds no frame, ends before the frames that its header
    announces, or a folder holds pictures of several series.
    """
    path = Path(path)
    if path.is_dir():
        return _read_pictures(path, function, choose, pattern)
    if not path.is_file():
        raise Unreadable("the file is missing")
    if not path.stat().st_size:
        raise Unreadable("the file is empty")
    film = _survey(path)
    chosen = choose(film.times)
    runs = _runs(film, chosen)
    if len(runs) > 1 and (made := _seek(path, film, runs, function)) is not None:
        return ReadClip(made, chosen.tolist(), film.times[chosen].tolist(), film.fps, film.count)
    return _read_on(path, film, chosen, function, choose)


# ---------------------------------------------------------------------------------------- a look at the packets
class _Film(NamedTuple):
    """What the packets of a video say. stream: number of the stream that is the film. stamps: presentation times of
    the frames that are shown, ascending, in `base` seconds, or None where packets do not say them. keys: places of
    those at which decoding can begin."""

    stream: int
    count: int
    stamps: np.ndarray | None
    base: Fraction
    keys: np.ndarray
    rate: float

    @property
    def times(self) -> np.ndarray:
        return _times(self.stamps, self.base, self.count, self.rate)

    @property
    def fps(self) -> float:
        return _fps(self.times, self.rate)


def _times(stamps: np.ndarray | None, base: Fraction, count: int, rate: float) -> np.ndarray:
    """Seconds from the first frame on; evenly spread where the frames' own times are not known."""
    if stamps is not None and len(stamps) == count:
        return (stamps - stamps[0]) * float(base)
    return np.arange(count) / (rate or 1.0)


def _fps(times: np.ndarray, rate: float) -> float:
    """The rate that the container says, unless the frames' times give another one."""
    measured = (len(times) - 1) / times[-1] if len(times) > 1 and times[-1] > 0 else rate
    return rate if rate and abs(rate - measured) < 0.03 * measured else float(measured)


class _Packet(NamedTuple):
    pts: int | None
    dts: int | None
    key: bool
    discard: bool


def _open(path: Path) -> Any:
    """The opened container. The name is said to be a file's: `12:30.mp4` is no protocol. A name that is not UTF-8,
    which the library does not take, is opened here."""
    name = os.fspath(path)
    try:
        name.encode()
    except UnicodeEncodeError:
        return av.open(path.open("rb"))
    return av.open(f"file:{name}")


def _survey(path: Path) -> _Film:
    """Look at all packets of a video, decoding none; raises Unreadable when its end is missing."""
    try:
        with _open(path) as container:
            packets, end = _packets(container)
            stream = _main_stream(container, packets)
            shown = [packet for packet in packets[stream.index] if not packet.discard]
            rate = float(stream.average_rate or stream.guessed_rate or 0)
            _check_whole(container, stream, shown, end, rate)
            stamps = _stamps(shown)
            keys = np.zeros(0, dtype=np.int64)
            timed = any(kind in container.format.name for kind in _TIMED)
            if stamps is not None and timed and all(packet.pts is not None for packet in shown):
                keys = np.searchsorted(stamps, sorted(packet.pts for packet in shown if packet.key))
            return _Film(stream.index, len(shown), stamps, stream.time_base, keys, rate)
    except (av.FFmpegError, OSError, ValueError) as error:
        raise _undecodable(error) from error


def _undecodable(error: Exception) -> Unreadable:
    said = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return Unreadable(f"cannot be decoded ({said}): it is damaged, or no video")


def _packets(container: Any) -> tuple[dict[int, list[_Packet]], float]:
    """Packets of each video stream, and when the last packet of any stream ends, in seconds."""
    found: dict[int, list[_Packet]] = defaultdict(list)
    end = 0.0
    for packet in _demuxed(container):
        if not packet.size:
            continue
        stamp = packet.dts if packet.pts is None else packet.pts
        if stamp is not None and packet.time_base:
            end = max(end, float((stamp + (packet.duration or 0)) * packet.time_base))
        if packet.stream.type == "video":
            found[packet.stream_index].append(_Packet(packet.pts, packet.dts, packet.is_keyframe, packet.is_discard))
    return found, end


def _demuxed(container: Any, *streams: Any) -> Iterator[Any]:
    """Packets up to where the file is damaged; what is missing then is found by counting."""
    try:
        yield from container.demux(*streams)
    except av.InvalidDataError:
        return


def _main_stream(container: Any, packets: dict[int, list[_Packet]]) -> Any:
    """The stream that is the film: no cover picture; of several the largest picture, then the default, then the first.

    Raises Unreadable when there is none.
    """
    if not container.streams.video:
        raise Unreadable("it holds no video stream")
    films = [stream for stream in container.streams.video if not stream.disposition & _COVERS]
    if not films:
        raise Unreadable("it holds a picture and no film")
    films = [stream for stream in films if packets[stream.index]] or films

    def rank(stream: Any) -> tuple[bool, int, bool, int]:
        size = stream.codec_context.width * stream.codec_context.height if stream.codec_context else 0
        default = bool(stream.disposition & Disposition.default)
        return len(packets[stream.index]) > 1, size, default, -stream.index

    best = max(films, key=rank)
    if best.codec_context is None:
        raise Unreadable("cannot be decoded: its codec is not known here")
    return best


def _stamps(shown: Sequence[_Packet]) -> np.ndarray | None:
    """Presentation times, ascending; None where they are not known or not all different."""
    for values in ([packet.pts for packet in shown], [packet.dts for packet in shown]):
        if values and None not in values and len(set(values)) == len(values):
            return np.array(sorted(values), dtype=np.int64)
    return None


def _check_whole(container: Any, stream: Any, shown: Sequence[_Packet], end: float, rate: float) -> None:
    """Raise Unreadable when packets are missing that the container announces for this stream."""
    if not shown:
        raise Unreadable("no frame can be decoded")
    name = container.format.name
    announced = stream.frames
    if "mp4" in name:  # its index names every frame, also those that an edit list hides
        announced = sum(not entry.is_discard for entry in stream.index_entries)
    if announced and name != "gif":
        have = max(len(shown), _span(shown) if name == "avi" else 0)
        if have < announced - _slack(announced):
            raise Unreadable(f"it is cut short: {have} of {announced} frames are there")
    elif container.duration and ("matroska" in name or name in ("flv", "asf")):
        start = float(container.start_time or 0) / av.time_base
        lasts = container.duration / av.time_base - start
        slack = max(lasts / 20, 3 / rate if rate else 0.5, 0.5 if lasts > 3 else 0)
        if end - start < lasts - slack:
            raise Unreadable(f"it is cut short: {end - start:.1f} of {lasts:.1f} s are there")


def _slack(announced: int) -> int:
    """Frames that may be missing all the same: headers are off by a few after cutting."""
    return max(2, announced // 20)


def _span(shown: Sequence[_Packet]) -> int:
    """Frames from the first to the last packet in containers that count time in frames (AVI), with those left out."""
    stamps = [packet.dts for packet in shown if packet.dts is not None]
    return max(stamps) - min(stamps) + 1 if stamps else 0


# ------------------------------------------------------------------------------------------------- decoding
def _read_on(
    path: Path, film: _Film, chosen: np.ndarray, function: Callable[[np.ndarray], Any], choose: Choose
) -> ReadClip:
    """Decode from the first frame to the last."""
    wanted = set(chosen.tolist())
    kept: dict[int, Any] = {}
    stamps: list[int | None] = []
    turn, damaged = _Upright(), []
    for place, frame in enumerate(_frames(path, film.stream, damaged)):
        stamps.append(frame.pts)
        if place in wanted:
            kept[place] = function(turn(frame))
    times = film.times
    if len(stamps) != film.count:  # packets that hold no frame, or two
        _check_decoded(len(stamps), film.count, len(damaged))
        known = None not in stamps and all(a < b for a, b in itertools.pairwise(stamps))
        again = film._replace(count=len(stamps), stamps=np.array(stamps) if known else None)
        times, chosen = again.times, choose(again.times)
        if not wanted.issuperset(chosen.tolist()):
            return _read_on(path, again, chosen, function, choose)
    places = chosen.tolist()
    return ReadClip([kept[i] for i in places], places, times[chosen].tolist(), _fps(times, film.rate), len(stamps))


def _check_decoded(count: int, packets: int, damaged: int) -> None:
    """Raise Unreadable when frames are missing and packets were damaged. Without any damage those that are missing were
    never shown: pictures to predict others from, or the second fields of interlaced ones."""
    if not count:
        raise Unreadable("cannot be decoded: none of its frames is whole")
    if damaged and count < packets - _slack(packets):
        raise Unreadable(f"it is damaged: {count} of its {packets} frames can be decoded")


def _frames(path: Path, stream: int, damaged: list[Any]) -> Iterator[av.VideoFrame]:
    """All frames of a stream that are shown, in order; a packet that is damaged gives none, and is put into a list."""
    try:
        with _open(path) as container:
            yield from _decoded(container, _alone(container, stream), damaged)
    except (av.FFmpegError, OSError) as error:
        raise _undecodable(error) from error


def _alone(container: Any, stream: int) -> Any:
    """The stream, to be decoded without threads: clips are shared among processes."""
    film = container.streams[stream]
    film.codec_context.thread_count, film.codec_context.thread_type = 1, "NONE"
    return film


def _decoded(container: Any, stream: Any, damaged: list[Any]) -> Iterator[av.VideoFrame]:
    for packet in _demuxed(container, stream):
        try:
            yield from packet.decode()
        except av.InvalidDataError:
            damaged.append(packet.dts)


def _runs(film: _Film, chosen: np.ndarray) -> list[tuple[int, list[int]]]:
    """The wanted frames in runs that are decoded in one go: (place where decoding begins, places). More than one run
    only where that leaves out many frames."""
    runs: list[tuple[int, list[int]]] = [(0, [])]
    at = 0
    for place in chosen.tolist():
        before = film.keys[film.keys <= place]
        if len(before) and before[-1] - at > _SKIP:
            runs.append((int(before[-1]), []))
        runs[-1][1].append(place)
        at = place + 1
    return runs


def _seek(
    path: Path, film: _Film, runs: Sequence[tuple[int, list[int]]], function: Callable[[np.ndarray], Any]
) -> list[Any] | None:
    """What `function` makes of the frames of all runs; None where a frame is not found at its time."""
    made, turn = [], _Upright()
    try:
        with _open(path) as container:
            stream = _alone(container, film.stream)
            for start, places in runs:
                if start:
                    container.seek(int(film.stamps[start]), stream=stream)
                wanted = [int(film.stamps[place]) for place in places]
                found = list(_at(container, stream, wanted))
                if [frame.pts for frame in found] != wanted:
                    return None
                made += [function(turn(frame)) for frame in found]
    except (av.FFmpegError, OSError):
        return None
    return made


def _at(container: Any, stream: Any, wanted: Sequence[int]) -> Iterator[av.VideoFrame]:
    """Frames of these times, as far as they come."""
    left = list(wanted)
    if not left:
        return
    for frame in _decoded(container, stream, []):
        if frame.pts == left[0]:
            yield frame
            left.pop(0)
        if not left or (frame.pts is not None and frame.pts > left[0]):
            return


class _Upright:
    """Makes upright uint8 RGB (H, W, 3) of the frames of one video, as its display matrix says."""

    def __init__(self) -> None:
        self._rgb = VideoReformatter()

    def __call__(self, frame: av.VideoFrame) -> np.ndarray:
        try:
            picture = self._rgb.reformat(frame, format="rgb24", threads=1).to_ndarray()
        except (av.FFmpegError, ValueError) as error:
            raise Unreadable(f"pixels of the form {frame.format.name} cannot be made RGB ({error})") from error
        matrix = frame.side_data.get("DISPLAYMATRIX")
        if matrix is None:
            return picture
        a, b, _, c, d = np.frombuffer(bytes(matrix), dtype=np.int32)[:5].tolist()
        if abs(a) + abs(d) < abs(b) + abs(c):  # a quarter turn: x and y change places
            a, d, picture = c, b, picture.transpose(1, 0, 2)
        picture = picture[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]
        return np.ascontiguousarray(picture)


# ---------------------------------------------------------------------------------------- folders of frames
def _read_pictures(path: Path, function: Callable[[np.ndarray], Any], choose: Choose, pattern: str) -> ReadClip:
    names = picture_names(path, pattern)
    if not names:
        which = f" whose name matches {pattern!r}" if pattern else ""
        raise Unreadable(f"the folder holds no jpg or png frame{which}")
    check_series(names)
    chosen = choose(np.arange(len(names), dtype=np.float64)).tolist()
    made = [function(read_picture(path / names[place])) for place in chosen]
    return ReadClip(made, chosen, [], 0.0, len(names))


def picture_names(folder: Path, pattern: str = "") -> list[str]:
    """Names of the pictures in a folder that `pattern` matches, in natural order."""
    names = (name for name in os.listdir(folder) if name.lower().endswith(IMAGE_SUFFIXES) and name[0] != ".")
    return sorted((name for name in names if re.search(pattern, name)), key=natural_key)


def check_series(names: Sequence[str]) -> None:
    """Raise Unreadable when pictures are of several series (img_0001 beside flow_x_0001), or one is of none."""
    series: dict[str, list[str]] = defaultdict(list)
    for name in names:
        series[re.sub(r"\d+", "#", name.lower()).replace(".jpeg", ".jpg")].append(name)
    if len(series) < 2 or not any("#" in form and len(found) > 1 for form, found in series.items()):
        return  # names without numbers have no series
    said = ", ".join(f"{found[0]}" + (f" (and {len(found) - 1} more)" if len(found) > 1 else "")
                     for found in list(series.values())[:4])  # fmt: skip
    raise Unreadable(
        f"pictures of {len(series)} series lie in one folder: {said}; move the others away, or say by `pattern:` which "
        "names are frames"
    )


def read_picture(path: Path) -> np.ndarray:
    """A picture file as uint8 RGB (H, W, 3), turned as its EXIF says; raises Unreadable."""
    try:
        data = np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise Unreadable(f"frame {path.name} cannot be read ({error.strerror})") from None
    picture = cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None
    if picture is None:
        raise Unreadable(f"frame {path.name} cannot be decoded")
    return cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)


__all__ = [
    "IMAGE_SUFFIXES",
    "VIDEO_SUFFIXES",
    "ReadClip",
    "Unreadable",
    "check_series",
    "natural_key",
    "picture_names",
    "read_clip",
    "read_picture",
]
