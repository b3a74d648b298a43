"""Lists of labelled and unlabelled videos, label rates, and the clips of elements."""

from __future__ import annotations

import gzip
import hashlib
import json
import pickle
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml

from pipeline.datasets.elements import ElementSampler
from pipeline.datasets.index import read_index
from pipeline.datasets.semi import ListedVideo, draw_labelled, prepare_semi, read_semi_lists
from pipeline.errors import UserError
from pipeline.plan import Plan
from pipeline.tasks.semi.items import ElementView, read_elements, semi_videos

torch.set_num_threads(1)


# ---------------------------------------------------------------------------------------------------- lists
# Published sizes: labelled, unlabelled, test videos, and classes; of SeFAR's lists (UCF101 and HMDB51: SVFormer's too).
PAPER_COUNTS = {
    "gym99_5": (1316, 25004, 8521, 99),
    "gym99_10": (2632, 23688, 8521, 99),
    "gym288_5": (1466, 27868, 9646, 288),
    "gym288_10": (2933, 26401, 9646, 288),
    "gym_new_5": (325, 6183, 1998, 40),
    "gym_new_10": (651, 5857, 1998, 40),
    "ub_10": (959, 8635, 2814, 25),
    "ub_20": (1918, 7676, 2814, 25),
    "ub_s1_10": (496, 4468, 1471, 15),
    "ub_s1_20": (992, 3972, 1471, 15),
    "fx_10": (540, 4868, 2226, 35),
    "fx_20": (1081, 4327, 2226, 35),
    "fx_s1_10": (189, 1703, 777, 11),
    "fx_s1_20": (378, 1514, 777, 11),
    "vt_10": (108, 972, 446, 6),
    "vt_20": (216, 864, 446, 6),
    "ucf101_1": (101, 9436, 3783, 101),
    "ucf101_5": (477, 9060, 3783, 101),
    "ucf101_10": (1010, 8527, 3783, 101),
    "hmdb51_40": (2094, 3142, 1530, 51),
    "hmdb51_50": (2618, 2618, 1530, 51),
    "hmdb51_60": (3141, 2095, 1530, 51),
}


@pytest.mark.parametrize("name", sorted(PAPER_COUNTS))
def test_published_lists_have_their_sizes(reference_data, name):
    sefar = reference_data / "lists" / "sefar"
    stem, _, rate = name.rpartition("_")
    folders = {
        "gym99": sefar / "finegym" / f"all99_{rate}",
        "gym288": sefar / "finegym" / f"all288_{rate}",
        "gym_new": sefar / "finegym-new" / f"list_finegym_new_{rate}",
        "ucf101": sefar / f"list_ucf_{rate}",
        "hmdb51": sefar / f"list_hmdb_{rate}",
    }
    folder = folders.get(stem, sefar / "finegym" / f"{stem.upper()}_{rate}")
    split = read_semi_lists(folder)
    assert (len(split.labelled), len(split.unlabelled), len(split.test), split.classes) == PAPER_COUNTS[name]
    if name in ("gym288_10", "gym_new_10"):  # as published: classes without a label
        assert len({v.label for v in split.labelled}) == {"gym288_10": 214, "gym_new_10": 31}[name]
        assert split.absent()
    if name in ("gym288_5", "ucf101_1"):
        assert not split.absent()


def test_svformer_lists_are_read_too(reference_data):
    split = read_semi_lists(reference_data / "lists" / "svformer" / "list_ucf_1")
    assert (len(split.labelled), len(split.unlabelled), len(split.test)) == PAPER_COUNTS["ucf101_1"][:3]


def test_lines_with_commas(tmp_path):
    """SeFAR's 5 % list of UCF101 has them, and calls its unlabelled part unlabe.csv."""
    _write(tmp_path, train="/a, b/v one.avi,45\n/c,3.avi , 8\n", unlabe="d.avi 1\n", test="e.avi 45")
    split = read_semi_lists(tmp_path)
    assert split.labelled == (ListedVideo("/a, b/v one.avi", 45), ListedVideo("/c,3.avi", 8))
    assert split.unlabelled == ("d.avi",)


@pytest.mark.parametrize("part", ["train", "unlabel", "test"])
@pytest.mark.parametrize(
    "name", ["gym99", "gym288", "gym_new", "ub", "fx", "ub_s1", "fx_s1", "hmdb51_semi", "ucf101_semi"]
)
def test_the_lists_can_be_fetched(repo, name, part):
    """A folder for each published rate, whose lists `download` puts where `prepare_semi` looks for them."""
    made = yaml.safe_load((repo / "config" / "datasets" / f"{name}.yaml").read_text())
    rates = [key for key in made["expected"] if key.isdecimal()]
    places = [file["to"] for file in made["download"]["files"]]
    assert [place for place in places if place.endswith(f"/{part}.csv")] == [
        f"lists/{rate}/{part}.csv" for rate in rates
    ]
    assert made["lists"] == f"data/{name}/lists" and len(rates) >= 2


def test_what_is_fetched_are_the_published_lists(repo, reference_data):
    """Address, length and hash of each file, against the files themselves."""
    lists = reference_data / "lists"
    sources = dict(line.split("\t")[:2] for line in (lists / "MANIFEST.tsv").read_text().splitlines()[1:])
    by_url = {}
    for place, source in sources.items():
        repository, _, rest = source.partition("@")
        by_url[f"https://raw.githubusercontent.com/{repository}/{rest.replace(':', '/', 1)}"] = lists / place
    checked = 0
    for name in ("gym99", "gym_new", "fx_s1", "hmdb51_semi", "ucf101_semi"):
        made = yaml.safe_load((repo / "config" / "datasets" / f"{name}.yaml").read_text())
        for file in made["download"]["files"]:
            path = by_url[file["url"]]
            content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
            assert (len(content), hashlib.sha256(content).hexdigest()) == (file["bytes"], file["sha256"]), path
            checked += 1
    assert checked == 3 * 2 + 1 + 6 + 6 + 9 + 9


def test_tables_of_videos_are_written_from_the_sets_own_files(repo, tmp_path):
    """The recipe for FineDiving and SSv2, whose lists of labels nobody publishes."""
    told = {("Women10m_r1", 3): ("407C", 70.5, 3.2, None, [1, 1, 2]), ("01", 7): ("5253B", 80.0, 3.0, None, [4, 6, 6])}
    folder = tmp_path / "data" / "finediving" / "Annotations"
    folder.mkdir(parents=True)
    for name, content in {"fine-grained_annotation_aqa": told, "train_split": [("01", 7)],
                          "test_split": [("Women10m_r1", 3)]}.items():  # fmt: skip
        (folder / f"{name}.pkl").write_bytes(pickle.dumps(content))
    frames = tmp_path / "data" / "finediving" / "videos" / "01" / "7"
    frames.mkdir(parents=True)
    for number in range(3):
        (frames / f"{number}.jpg").write_bytes(b"x")
    labels = tmp_path / "ssv2"
    labels.mkdir()
    for name, number in (("train", 5), ("validation", 6)):
        content = [{"id": str(number), "template": "Opening [something]", "label": "opening a box"}]
        (labels / f"something-something-v2-{name}.json").write_text(json.dumps(content))
    script = repo / "docs" / "examples" / "semi" / "videos_csv.py"
    for kind, where in (("finediving", folder), ("ssv2", labels)):
        subprocess.run([sys.executable, script, kind, where], cwd=tmp_path, check=True)
    read = lambda path: path.read_text().split()  # noqa: E731
    head = "path,label,split"
    assert read(tmp_path / "data/finediving/videos.csv") == [head, "01/7,5253B,train", "Women10m_r1/3,407C,test"]
    assert read(tmp_path / "data/diving_10m/videos.csv") == [head, "Women10m_r1/3,407C,test"]
    steps = (tmp_path / "data/diving_5253b/videos.csv").read_text().splitlines()
    assert steps == [head, "01_7_step4,step 4,train", "01_7_step6,step 6,train"]
    linked = tmp_path / "data/diving_5253b/videos/01_7_step6"
    assert sorted(path.name for path in linked.iterdir()) == ["1.jpg", "2.jpg"]
    assert (labels / "videos.csv").read_text().splitlines() == [
        head, "5.webm,Opening [something],train", "6.webm,Opening [something],test"
    ]  # fmt: skip


def _write(folder, **lists: str):
    for name, text in lists.items():
        (folder / f"{name}.csv").write_text(text)
    return folder


def test_lists_of_own(tmp_path):
    folder = _write(tmp_path, train="a b.mp4 0\n", unlabel="c.mp4 1\n\nd.mp4 1\n")
    with gzip.open(folder / "test.csv.gz", "wt") as file:
        file.write("e.mp4 1\n")
    split = read_semi_lists(folder)
    assert split.labelled == (ListedVideo("a b.mp4", 0),)
    assert split.unlabelled == ("c.mp4", "d.mp4")  # no label: training can't see it
    assert split.classes == 2 and split.absent() == [1]


@pytest.mark.parametrize(
    ("lists", "words"),
    [
        ({"train": "a 0", "unlabel": "b 0"}, "no list .*test.csv"),
        ({"train": "a 0", "unlabel": "a 0", "test": "b 0"}, "a is in train.csv and unlabel.csv"),
        ({"train": "a 0", "unlabel": "b 0", "test": "b 0"}, "b is in unlabel.csv and test.csv"),
        ({"train": "a -1", "unlabel": "b 0", "test": "c 0"}, "line 1: 'a -1' is not"),
        ({"train": "a 0\na 1", "unlabel": "b 0", "test": "c 0"}, "line 2: a is listed twice"),
        ({"train": "", "unlabel": "b 0", "test": "c 0"}, "holds no video"),
    ],
)
def test_wrong_lists(tmp_path, lists, words):
    with pytest.raises(UserError, match=words):
        read_semi_lists(_write(tmp_path, **lists))


# ------------------------------------------------------------------------------------------ prepared data sets
@pytest.mark.parametrize("name", sorted({key.rpartition("_")[0] for key in PAPER_COUNTS} - {"vt"}))
def test_definitions_have_the_published_counts(repo, name):
    stem = f"{name}_semi" if name in ("ucf101", "hmdb51") else name
    expected = yaml.safe_load((repo / "config" / "datasets" / f"{stem}.yaml").read_text())["expected"]
    rates = {key.rpartition("_")[2]: counts for key, counts in PAPER_COUNTS.items() if key.rpartition("_")[0] == name}
    for rate, (labelled, unlabelled, test, classes) in rates.items():
        assert expected[rate] == labelled
        assert (expected["train"], expected["test"], expected["classes"]) == (labelled + unlabelled, test, classes)


@pytest.fixture
def listed(tmp_path):
    """A spec of lists at two rates, of two classes and twenty training videos, and the videos, empty files."""
    names = [f"{label}_{i:02d}.mp4 {label}" for i in range(12) for label in (0, 1)]
    for rate, count in (("5", 1), ("10", 2)):
        folder = tmp_path / "lists" / rate
        folder.mkdir(parents=True)
        train, test = names[:20], names[20:]
        lists = {"train": train[:count], "unlabel": train[count:], "test": test}
        _write(folder, **{part: "".join(f"/a/video/{line}\n" for line in lines) for part, lines in lists.items()})
    (tmp_path / "video").mkdir()
    for name in names:
        (tmp_path / "video" / name.split()[0]).touch()
    return {"kind": "semi", "root": str(tmp_path), "lists": str(tmp_path / "lists"), "validation": 0.25}


def test_lists_become_an_index_and_labels_by_rate(listed, tmp_path, capsys):
    listed["expected"] = {"train": 20, "5": 1}
    clips = {clip.clip: clip for clip in read_index(prepare_semi(listed, tmp_path / "out"))}
    splits = [clip.split for clip in clips.values()]
    assert (splits.count("train"), splits.count("val"), splits.count("test")) == (15, 5, 4)
    assert clips["video/1_00"].label == "class 001" and clips["video/1_00"].path == "video/1_00.mp4"
    labelled = json.loads((tmp_path / "out" / "labelled.json").read_text())
    assert labelled.pop("train") == 20 and labelled == {"10": ["video/0_00", "video/1_00"], "5": ["video/0_00"]}
    assert all(clips[name].split == "train" for name in labelled["10"])
    out = capsys.readouterr().out
    assert "train: 20 (published: 20)" in out and "labelled at 5 %: 1 (published: 1)" in out
    assert "published labels at 5 % leave 1 tested classes without any" in out


def test_a_table_of_videos_needs_no_lists(listed, tmp_path):
    table = tmp_path / "videos.csv"
    rows = [f"video/{i % 2}_{i // 2:02d}.mp4,jump {i % 2} left,{'test' if i > 19 else 'train'}" for i in range(25)]
    table.write_text("path,label,split\n" + "\n".join(rows) + "\n")
    spec = {"kind": "semi", "root": listed["root"], "labels": str(table), "strip": " (left|right)$"}
    clips = read_index(prepare_semi(spec, tmp_path / "out"))
    assert len(clips) == 24 and {clip.label for clip in clips} == {"jump 0", "jump 1"}  # one file is missing
    assert {clip.split for clip in clips} == {"train", "test"}
    assert (tmp_path / "out" / "labelled.json").read_text() == "{}\n"
    assert "the file is missing" in (tmp_path / "out" / "unreadable.csv").read_text()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"lists": "nowhere"}, "no folder of lists named by a label rate"),
        ({"lists": None, "labels": None}, "lacks labels"),
        ({"root": "lists"}, "none of the 24 videos"),
    ],
)
def test_wrong_definitions(listed, tmp_path, change, words):
    if change.get("root"):
        change = {"root": str(tmp_path / "lists")}
    with pytest.raises(UserError, match=words):
        prepare_semi(listed | change, tmp_path / "out")


def test_lists_that_contradict_each_other(listed, tmp_path):
    path = tmp_path / "lists" / "10" / "unlabel.csv"
    path.write_text(path.read_text().replace("0_05.mp4 0", "0_05.mp4 1"))
    with pytest.raises(UserError, match="0_05 is class 001 in train and class 000 in train"):
        prepare_semi(listed, tmp_path / "out")


# --------------------------------------------------------------------------------------------- label rates
def _videos(*sizes: int) -> list[ListedVideo]:
    return [ListedVideo(f"{label}/{i:03d}.mp4", label) for label, size in enumerate(sizes) for i in range(size)]


def _counts(labelled: list[ListedVideo]) -> dict[int, int]:
    labels = [video.label for video in labelled]
    return {label: labels.count(label) for label in sorted(set(labels))}


def test_labels_are_proportional_and_seeded():
    videos = _videos(100, 50, 30, 20)
    labelled, rest = draw_labelled(videos, 0.1, seed=3)
    assert _counts(labelled) == {0: 10, 1: 5, 2: 3, 3: 2}
    assert len(rest) == 180 and {video.path for video in labelled}.isdisjoint(rest)
    assert (labelled, rest) == draw_labelled(videos[::-1], 0.1, seed=3)
    assert labelled != draw_labelled(videos, 0.1, seed=4)[0]


def test_largest_remainders_make_the_total():
    labelled, _ = draw_labelled(_videos(17, 14, 13, 6), 0.1, seed=0)  # shares 1.7, 1.4, 1.3, 0.6 of 5
    assert _counts(labelled) == {0: 2, 1: 1, 2: 1, 3: 1}
    assert len(draw_labelled(_videos(*[33] * 40), 0.05, seed=0, absent="error")[0]) == round(0.05 * 33 * 40)


def test_classes_without_a_label():
    videos = _videos(200, 3)
    assert _counts(draw_labelled(videos, 0.05, seed=0)[0]) == {0: 9, 1: 1}  # 5 % of 203 are ten, that one among them
    with pytest.raises(UserError, match="leaves 1 classes without a label, such as class 1 with 3 videos"):
        draw_labelled(videos, 0.05, seed=0, absent="error")
    few = draw_labelled(_videos(*[94] * 101), 0.01, seed=0)[0]  # fewer labels than classes: some have none
    assert len(few) == 95 and max(_counts(few).values()) == 1


def test_a_rate_is_a_share_of_all_training_videos():
    """5 % of FineDiving's 2,251 are 113, whatever the sizes of its 52 classes and whatever validation took."""
    sizes = [347, 280, 210, 180, 160, 140, 120, 100, 90, 80, 70, *[14] * 27, *[7] * 13, 5]
    assert len(sizes) == 52 and sum(sizes) == 2251
    labelled = draw_labelled(_videos(*sizes), 0.05, seed=0)[0]
    assert len(labelled) == 113 and len(_counts(labelled)) == 52
    left = _videos(*[round(0.95 * size) for size in sizes])
    assert len(left) < 2251
    labelled = draw_labelled(left, 0.05, seed=0, total=2251)[0]
    assert len(labelled) == 113 and len(_counts(labelled)) == 52


def test_validation_takes_nothing_from_the_labels(tmp_path):
    (tmp_path / "videos").mkdir()
    rows = [(f"{i}.mp4", f"c{i % 4}", "train" if i < 200 else "test") for i in range(240)]
    for path, *_ in rows:
        (tmp_path / "videos" / path).touch()
    table = "path,label,split\n" + "".join(",".join(row) + "\n" for row in rows)
    (tmp_path / "videos.csv").write_text(table)
    spec = {"root": str(tmp_path / "videos"), "labels": str(tmp_path / "videos.csv"), "validation": 0.2}
    clips = read_index(prepare_semi(spec, tmp_path / "out"))
    train = [clip for clip in clips if clip.split == "train"]
    assert len(train) == 160
    store = SimpleNamespace(
        clips=[clip.clip for clip in clips], labels=[clip.label for clip in clips],
        splits=[clip.split for clip in clips], classes=lambda: ["c0", "c1", "c2", "c3"],
    )  # fmt: skip
    found = semi_videos(store, tmp_path / "out", 10, 0)
    assert len(found.labelled) == 20 and len(found.unlabelled) == 140


def test_paper_rows_of_semi_supervised_sets_spend_no_label_on_a_checkpoint(repo):
    plan = Plan.read(repo / "config", {"scale": "paper"})
    runs = [run for run in plan.runs.values() if plan.datasets[run.dataset].spec["kind"] == "semi"]
    assert len(runs) > 60 and {run.selection for run in runs} == {"last"}
    assert {repr(run.frames["store"]["size"]) for run in runs} == {"320"}  # the short side: aspect kept


@pytest.mark.parametrize(("rate", "absent", "words"), [(5, "one", "not a share"), (0.1, "non", "did you mean 'one'")])
def test_wrong_rates(rate, absent, words):
    with pytest.raises(UserError, match=words):
        draw_labelled(_videos(10), rate, 0, absent)


# ---------------------------------------------------------------------------------------------------- clips
class _Store:
    """Frames whose brightness is their number; remembers what was read."""

    def __init__(self, n: int) -> None:
        self.n, self.reads = n, []

    def n_frames(self, i: int) -> int:
        return self.n

    def read(self, i: int, positions: np.ndarray) -> np.ndarray:
        self.reads.append(list(positions))
        return np.broadcast_to(np.asarray(positions, np.uint8)[:, None, None, None], (len(positions), 20, 24, 3))


def test_elements_of_a_clip():
    store, sampler = _Store(80), ElementSampler("2-2-4")
    view = ElementView(16)
    elements = read_elements(store, 0, sampler, view)
    assert [tuple(x.shape) for x in elements] == [(2, 16, 16, 3), (2, 16, 16, 3), (4, 16, 16, 3)]
    assert [x[:, 0, 0, 0].tolist() for x in elements] == [[34, 74], [14, 54], [4, 24, 44, 64]]
    assert len(store.reads) == 1 and len(store.reads[0]) == 8
    drawn = read_elements(store, 0, sampler, view, np.random.default_rng(0))
    frames = [x[:, 0, 0, 0].tolist() for x in drawn]
    expected = sampler.sample(80, np.random.default_rng(0))
    assert frames == [list(part) for part in expected]
    with pytest.raises(UserError, match="too short"):
        read_elements(_Store(7), 0, sampler, view)


def _picture(height: int, width: int) -> np.ndarray:
    """Two frames; red grows downwards, green to the right, blue is constant."""
    frames = np.zeros((2, height, width, 3), np.uint8)
    frames[..., 0] = np.arange(height)[:, None]
    frames[..., 1] = np.arange(width)
    return frames


def test_the_view_at_test_is_the_middle_square():
    x = ElementView(20)(_picture(20, 30))
    assert x[0, 0, 0, 1] == 5 and x[0, 0, -1, 1] == 24 and x.dtype == torch.uint8
    assert ElementView(10)(_picture(20, 30)).shape == (2, 10, 10, 3)
    assert (ElementView(20)(_picture(20, 20))[0, ..., 2] == 0).all()


def test_the_view_in_training_crops_scales_and_mirrors_all_frames_alike():
    view = ElementView(56)
    mirrored, sides, places = 0, set(), set()
    for seed in range(200):
        x = view(_picture(70, 90), np.random.default_rng(seed))
        torch.testing.assert_close(x[0], x[1])
        green = x[0, 0, :, 1].int()
        mirrored += bool(green[0] > green[-1])
        sides.add(round(abs(float(green[-1] - green[0]))))
        places.add(int(x[0, 0, 0, 0]))
    assert 70 < mirrored < 130
    assert min(sides) in (47, 48, 49) and max(sides) in (59, 60, 61)  # 70 pixels over 10/7 and 8/7
    assert min(places) == 0 and max(places) >= 18
