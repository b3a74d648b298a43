"""Which clips a folder of one's own holds, and which of their frames a model sees."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from pipeline.actions.clips import OwnClip, labelled_clips, loose_clips, read_all, read_sampled
from pipeline.datasets.index import read_index
from pipeline.datasets.sampling import sample_positions
from pipeline.errors import UserError
from pipeline.guarded import Failure


@pytest.fixture
def folder(tmp_path):
    """Two classes: one of a file and a file in a subfolder, one of a folder of frames."""
    root = tmp_path / "mine"
    for name in ("01_wave/a.mp4", "01_wave/anna/b.avi", "02_jump/c/1.jpg", "02_jump/c/2.jpg"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def test_class_folders_are_classes(folder):
    found = labelled_clips(folder, strip_prefix=True)
    assert [(clip.name, clip.label) for clip in found] == [
        ("01_wave/a.mp4", "wave"), ("01_wave/anna/b.avi", "wave"), ("02_jump/c", "jump"),
    ]  # fmt: skip
    assert all(clip.path == str(folder / clip.name) for clip in found)
    assert {clip.label for clip in labelled_clips(folder)} == {"01_wave", "02_jump"}


def test_clips_without_classes(folder):
    assert [clip.name for clip in loose_clips(folder)] == ["01_wave/a.mp4", "01_wave/anna/b.avi", "02_jump/c"]
    for path in (folder / "01_wave" / "a.mp4", folder / "02_jump" / "c"):
        (clip,) = loose_clips(path)
        assert (clip.name, clip.path, clip.label) == (path.name, str(path), "")


def test_folders_that_are_not_what_they_should_be(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="there is no folder"):
        labelled_clips(tmp_path / "nowhere")
    with pytest.raises(UserError, match="there is no"):
        loose_clips(tmp_path / "nowhere")
    with pytest.raises(UserError, match="holds no video"):
        loose_clips(tmp_path / "empty")
    (folder / "03_run").mkdir()
    with pytest.raises(UserError, match="03_run holds no clip"):
        labelled_clips(folder)
    shutil.copytree(folder / "01_wave", folder / "03_run" / "x")
    (folder / "03_run").rename(folder / "03_wave")
    with pytest.raises(UserError, match="'01_wave' and '03_wave' are both the class 'wave'"):
        labelled_clips(folder, strip_prefix=True)


def test_a_model_sees_the_pixels_that_a_frame_store_would_give(world):
    run = world.run(method="otam")
    data = world.ws.dataset(run.dataset)
    clips = read_index(data / "index.csv")
    for number in (0, len(clips) - 1):
        seen = read_sampled(OwnClip("own", str(data / "generated" / clips[number].path)), run.frames)
        chosen = sample_positions(world.store.n_frames(number), run.frames["number"], "segment_centre")
        np.testing.assert_array_equal(seen.pixels, world.store.read(number, chosen))
        assert seen.source_frames == world.store.source_frames(number)
        np.testing.assert_array_equal(seen.seconds, world.store.times(number)[chosen])
        assert (np.diff(seen.positions) > 0).all() and seen.positions[-1] < seen.source_frames


def test_a_broken_clip_is_a_failure_and_the_next_is_read(world, tmp_path):
    run = world.run(method="otam")
    data = world.ws.dataset(run.dataset)
    shutil.copy(data / "generated" / read_index(data / "index.csv")[0].path, tmp_path / "b.mp4")
    (tmp_path / "a.mp4").write_bytes(b"no video" * 50)
    (_, bad), (_, good) = read_all(loose_clips(tmp_path), run.frames)
    assert isinstance(bad, Failure) and bad.reason and len(good.pixels) == run.frames["number"]
