"""Films of the kinds that are easily read wrongly: the right frames, in order, upright, with their times."""

import os
import shutil

import cv2
import numpy as np
import pytest
from films import SIZE, add_cover, cut, even, film, paint, read_number, tell_cut, tell_turn

from pipeline.datasets import videos
from pipeline.datasets.frames import FramePolicy, probe_clip
from pipeline.datasets.videos import read_clip
from pipeline.guarded import Unreadable

LATE = list(np.arange(45) / 60) + list(0.75 + np.arange(15) * 0.15)  # the frame rate falls to a ninth

FILMS = {
    "mpeg4 with B frames.avi": lambda p: film(p, range(130), "mpeg4", between=2, group=60, tag="XVID"),
    "late.avi": lambda p: film(p, range(30), "mpeg4", between=2, first=60),
    "h264.mp4": lambda p: film(p, range(40), between=2),
    "10 bit.mp4": lambda p: film(p, range(40), pixels="yuv420p10le", between=2),
    "444.mp4": lambda p: film(p, range(20), pixels="yuv444p"),
    "full range.mp4": lambda p: film(p, range(20), pixels="yuvj420p"),
    "fragments.mp4": lambda p: film(p, range(40), group=10, mux={"movflags": "frag_keyframe+empty_moov"}),
    "12:30.mp4": lambda p: film(p, range(20)),
    "A & b; (c) 50% #1 [d] 'e'?.mp4": lambda p: film(p, range(20)),
    "mpeg4.mov": lambda p: film(p, range(20), "mpeg4", between=2),
    "wmv2.wmv": lambda p: film(p, range(20), "wmv2"),
    "mpeg2.mpg": lambda p: film(p, range(40), "mpeg2video", between=2, rate=25),
    "no duration.webm": lambda p: film(p, range(20), "libvpx", mux={"live": "1"}),
    "sound is longer.mkv": lambda p: film(p, range(30), between=2, sound=8),
    "begins at 5 s.mkv": lambda p: film(p, range(30), between=2, first=150),
    "preview first.mp4": lambda p: film(p, range(30), preview=True),
    "preview first.mkv": lambda p: film(p, range(30), preview=True),
    "cover first.mp4": lambda p: add_cover(film(p, range(40), between=2)),
    "rate changes.mp4": lambda p: film(p, range(60), rate=60, times=LATE),
    "rate changes.mkv": lambda p: film(p, range(60), rate=60, times=LATE),
    "turned by 90.mp4": lambda p: tell_turn(film(p, range(20), turned=1), 0, 1, -1, 0),
    "turned by 180.mp4": lambda p: tell_turn(film(p, range(20), turned=2), -1, 0, 0, -1),
    "turned by 270.mp4": lambda p: tell_turn(film(p, range(20), turned=3), 0, -1, 1, 0),
}
SHOWN = {"cut without encoding.mp4": (45, 18), "cut at its end.mp4": (0, 40)}  # first, count


def places(frames):
    return FramePolicy(frames=frames).places


def numbers(path, frames=0, **options):
    clip = read_clip(path, read_number, places(frames), **options)
    return clip.frames, clip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("films")
    for name, make in FILMS.items():
        make(made / name)
    for name, (first, count) in SHOWN.items():
        tell_cut(film(made / name, range(70), between=2), first, count)
    return made


@pytest.mark.parametrize("name", [*FILMS, *SHOWN])
def test_the_right_frames(folder, name, monkeypatch):
    monkeypatch.chdir(folder)
    found, clip = numbers(name)
    first, count = SHOWN.get(name, (0, len(found)))
    assert found == list(range(first, first + count)) and clip.source_frames == count and count >= 18
    for frames in (8, 16):
        kept, clip = numbers(name, frames)
        assert kept == [first + place for place in even(count, frames)] and clip.places == even(count, frames)
    assert clip.source_frames == probe_clip(name).frames == count
    if "rate changes" in name:
        np.testing.assert_allclose(clip.times, np.array(LATE)[clip.places], atol=2e-3)
        assert clip.fps == pytest.approx(59 / LATE[-1], rel=0.02)
    else:
        rate = 25 if name.endswith("mpg") else 30
        assert clip.fps == pytest.approx(rate, abs=0.05)
        np.testing.assert_allclose(clip.times, np.array(clip.places) / rate, atol=1e-3)


@pytest.mark.parametrize("codec", ["libx265", "libsvtav1"])
def test_the_codecs_of_phones_are_upright_too(tmp_path, codec):
    options = {"libx265": {"x265-params": "log-level=none"}, "libsvtav1": {"preset": "10"}}[codec]
    path = tell_turn(film(tmp_path / "a.mp4", range(8), codec, turned=1, options=options), 0, 1, -1, 0)
    kept, _ = numbers(path)
    assert kept == list(range(8))
    assert probe_clip(path).height == SIZE[1]


def test_frames_even_in_time(folder):
    clip = read_clip(folder / "rate changes.mp4", read_number, FramePolicy(frames=6, spacing="time").places)
    middles = (np.arange(6) + 0.5) * (LATE[-1] + LATE[-1] / 59) / 6
    assert clip.places == [max(i for i, time in enumerate(LATE) if time <= middle) for middle in middles]
    assert clip.frames == clip.places != even(60, 6)
    steady = read_clip(folder / "h264.mp4", read_number, FramePolicy(frames=5, spacing="time").places)
    assert steady.places == even(40, 5)


def test_few_frames_of_a_long_film_are_sought(tmp_path, monkeypatch):
    path = film(tmp_path / "a.mp4", [i % 256 for i in range(700)], between=3, group=48, size=(48, 32))
    sought = []
    seek = videos._seek

    def watch(*given):
        sought.append(seek(*given))
        return sought[-1]

    monkeypatch.setattr(videos, "_seek", watch)
    kept, clip = numbers(path, 4)
    assert kept == sought[0] == [place % 256 for place in even(700, 4)] and clip.source_frames == 700
    monkeypatch.setattr(videos, "_at", lambda *_: iter(()))  # a file in which seeking leads astray
    assert numbers(path, 4)[0] == kept


def test_a_damaged_packet_in_the_middle(tmp_path):
    path = film(tmp_path / "a.mp4", range(60), between=0, group=5)
    data, noise = bytearray(path.read_bytes()), np.random.default_rng(0)
    with videos._open(path) as container:
        where = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    for pos, size in where[20:30]:
        data[pos : pos + size] = noise.bytes(size)
    path.write_bytes(data)
    with pytest.raises(Unreadable, match=r"damaged: \d+ of its 60 frames"):
        numbers(path)


@pytest.mark.parametrize(
    ("name", "share"), [("a.mkv", 0.8), ("a.mp4", 0.8), ("fragments.mp4", 0.6), ("a.avi", 0.7), ("a.flv", 0.6)]
)
def test_a_file_whose_end_is_missing(tmp_path, name, share):
    flags = "frag_keyframe+empty_moov" if "frag" in name else "faststart"
    mux = {"movflags": flags} if name.endswith("mp4") else None
    path = cut(film(tmp_path / name, range(90), group=15, mux=mux), share)
    for look in (probe_clip, numbers):
        with pytest.raises(Unreadable, match=r"cut short: [\d.]+ of [\d.]+ (frames|s) are there"):
            look(path)


def test_a_name_that_is_not_utf8(tmp_path):
    path = tmp_path / os.fsdecode(b"caf\xe9.mp4")
    try:
        film(tmp_path / "a.mp4", range(10)).rename(path)
    except OSError:
        pytest.skip("this file system takes names in UTF-8 alone")
    assert numbers(path)[0] == list(range(10))


# ------------------------------------------------------------------------------------- folders of frames
def pictures(folder, names, first=0):
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names, start=first):
        cv2.imwrite(str(folder / name), paint(number)[..., ::-1])
    return folder


def test_frames_beside_optical_flow(tmp_path):
    folder = pictures(tmp_path / "clip", [f"img_{i:05d}.jpg" for i in range(1, 13)])
    assert numbers(folder)[0] == list(range(12)) and numbers(folder)[1].times == []
    for axis in "xy":
        pictures(folder, [f"flow_{axis}_{i:05d}.jpg" for i in range(1, 12)], first=100)
    with pytest.raises(Unreadable, match=r"3 series .*flow_x_00001.jpg \(and 10 more\).*`pattern:`"):
        numbers(folder)
    assert numbers(folder, pattern="^img_")[0] == list(range(12))
    with pytest.raises(Unreadable, match="no jpg or png frame whose name matches"):
        numbers(folder, pattern="^rgb_")


def test_a_cover_among_frames(tmp_path):
    folder = pictures(tmp_path / "clip", [f"{i}.jpg" for i in range(1, 12)])
    pictures(folder, ["cover.jpg"])
    with pytest.raises(Unreadable, match=r"cover\.jpg"):
        numbers(folder)
    shutil.rmtree(folder)
    assert numbers(pictures(folder, ["a.jpg", "b.png", "c.JPG"]))[0] == [0, 1, 2]  # no numbers, no series


def test_a_picture_turned_by_its_exif(tmp_path):
    from PIL import Image

    (tmp_path / "clip").mkdir()
    turned = Image.fromarray(np.ascontiguousarray(np.rot90(paint(77))))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by 90 degrees
    turned.save(tmp_path / "clip" / "1.jpg", exif=exif, quality=95)
    assert numbers(tmp_path / "clip")[0] == [77]


@pytest.mark.parametrize("name", ["h264.mp4", "10 bit.mp4", "mpeg4 with B frames.avi", "turned by 90.mp4", "wmv2.wmv"])
def test_a_second_reader_shows_the_same_frames(folder, name):
    """decord, from the first frame to the last: where it seeks it is not to be trusted with B frames in an AVI."""
    import decord

    ours = read_clip(folder / name, lambda frame: frame, places(0)).frames
    reader = decord.VideoReader(str(folder / name), num_threads=1)
    theirs = [reader.next().asnumpy() for _ in range(len(reader))]
    assert [read_number(frame) for frame in ours] == [read_number(frame) for frame in theirs]
    assert max(np.abs(a.astype(int) - b).mean() for a, b in zip(ours, theirs, strict=True)) < 4
