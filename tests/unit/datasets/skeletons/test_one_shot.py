import gzip
import json
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import yaml

from pipeline.datasets.coverage import Audit, read_coverage
from pipeline.datasets.index import read_index
from pipeline.datasets.skeletons.definition import OneShotProtocol, SkeletonDefinition
from pipeline.datasets.skeletons.prepare import count_clips, load_split, make_skeleton_store, prepare_skeletons
from pipeline.datasets.skeletons.protocols import Listing, class_sets, one_shot_split, split_clips
from pipeline.datasets.skeletons.source import Item
from pipeline.datasets.skeletons.store import SkeletonStore
from pipeline.datasets.synthetic import write_skeleton
from pipeline.errors import UserError


def definition(repo, name, **changes):
    spec = yaml.safe_load((repo / "config" / "datasets" / f"{name}.yaml").read_text())
    return SkeletonDefinition.read({**spec, **changes}, f"{name}.yaml")


def listed(items, classes, first_class=0):
    """Stands for a source: only its listing is looked at."""
    return SimpleNamespace(items=items, classes=classes, first_class=first_class, root="data", missing=[])


# ---------------------------------------------------------------------------------- the published protocols
@pytest.mark.parametrize("name, statistics", [("ntu120_oneshot", "ntu120"), ("ntu60_oneshot", "ntu60")])
def test_ntu_counts(repo, reference_data, name, statistics, capsys):
    """The published names of the samples that have skeletons give the published counts."""
    path = reference_data / "lists" / "ntu" / f"{statistics}_statistics" / "skes_available_name.txt.gz"
    names = gzip.decompress(path.read_bytes()).decode().split()
    made = definition(repo, name)
    classes = tuple(made.source.classes)
    source = listed([Item(n, f"{n}.skeleton", classes[int(n[-3:]) - 1]) for n in names], classes, 1)
    sets = class_sets(made.protocol, source)
    store = Listing(split_clips(made.protocol, sets, source))
    assert len(store.clips) == len(names) == {"ntu120": 113_945, "ntu60": 56_578}[statistics]
    split = one_shot_split(store, made.protocol, sets.base, sets.novel)
    print(f"\n{name}\n{split}")
    assert len(split.queries) == made.expected["queries"] == {"ntu120": 18_924, "ntu60": 9_388}[statistics]
    assert [store.clips[i] for i in split.exemplars] == list(split.exemplar_names) == made.protocol.exemplars
    assert not set(split.queries) & set(split.exemplars)
    sizes = {}
    for base in made.protocol.bases:
        one = one_shot_split(store, made.protocol, sets.base_set(base), sets.novel)
        sizes[base] = len(one.base)
        assert len(one.base_classes) == made.protocol.bases[base] and np.bincount(one.base_labels).all()
    print(sizes)
    assert sizes == {base: made.expected[base] for base in sizes} and sizes["100%"] == made.expected["base"]
    wanted = {"ntu120": [18_817, 37_739, 56_721, 75_831, 95_001], "ntu60": [9_391, 18_817, 28_277, 37_739, 47_180]}
    assert list(sizes.values()) == wanted[statistics]


@pytest.mark.parametrize("name, file", [("ntu120_oneshot", "ntu120"), ("ntu60_oneshot", "ntu60")])
def test_ntu_protocols_are_the_published_ones(repo, reference_data, name, file):
    published = json.loads((reference_data / "lists" / "ntu" / f"{file}_one_shot_protocol.json").read_text())
    made = definition(repo, name)
    assert made.protocol.novel == published["novel_classes_1based"]
    assert made.protocol.exemplars == published["exemplars"]
    names = made.source.classes
    source = listed([Item(str(i), "", label) for i, label in enumerate(names)], tuple(names), 1)
    assert list(class_sets(made.protocol, source).base) == [names[i - 1] for i in published["auxiliary_classes_1based"]]
    lines = (reference_data / "lists" / "label_maps" / "pyskl_nturgbd_120.txt").read_text().splitlines()
    assert names == [line.replace("’", "'") for line in lines][: len(names)]


@pytest.mark.parametrize("name, classes", [("ntu60_hrnet", 60), ("ntu120_hrnet", 120)])
def test_the_protocol_reads_a_pickle_of_poses(repo, tmp_path, name, classes):
    """Its labels start at 0, the protocol's classes at 1: exemplars are found, and are of the class that they name."""
    exemplars = definition(repo, name).protocol.exemplars
    base = [f"S001C001P001R001A{number:03d}" for number in range(1, classes + 1)]
    notes = [{"frame_dir": clip, "label": int(clip[-3:]) - 1, "img_shape": (480, 640), "total_frames": 5,
              "keypoint": np.ones((1, 5, 17, 2)), "keypoint_score": np.ones((1, 5, 17))}
             for clip in [*base, *exemplars]]  # fmt: skip
    (tmp_path / "poses.pkl").write_bytes(pickle.dumps({"split": {}, "annotations": notes}))
    made = definition(repo, name, root=str(tmp_path / "poses.pkl"))
    index = prepare_skeletons(made, tmp_path / "prepared")
    split = load_split(tmp_path / "prepared", Listing(read_index(index)))
    assert list(split.exemplar_names) == exemplars
    assert split.novel_classes == tuple(made.source.classes[int(clip[-3:]) - 1] for clip in exemplars)
    assert len(split.base_classes) == classes - len(exemplars)


def test_kinetics_class_lists(repo, reference_data):
    path = reference_data / "lists" / "kinetics_skeleton" / "crossglg_one_shot_split.json"
    published = json.loads(path.read_text())
    made = definition(repo, "kinetics_skeleton")
    classes = tuple(f"class {i}" for i in range(400))
    items = [
        Item(f"{s}{i}_{k}", "", name, s) for i, name in enumerate(classes) for s in ("train", "val") for k in (0, 1)
    ]
    source = listed(items, classes)
    sets = class_sets(made.protocol, source)
    for base, size in (("50%", "20"), ("100%", "40")):
        assert sets.base_set(base) == tuple(classes[i] for i in published[size]["train"])
        assert sets.novel == tuple(classes[i] for i in published[size]["novel"])
    store = Listing(split_clips(made.protocol, sets, source))
    split = one_shot_split(store, made.protocol, sets.base_set("50%"), sets.novel)
    assert (len(split.base), len(split.queries)) == (20 * 2, 20 * 3)  # base: training part only; queries: all others
    assert all(store.clips[i].startswith("train") for i in split.base)


@pytest.mark.parametrize("name, file, clips, sizes", [
    ("kinder_gator", "kinder_gator.npz", 1159, {"base": 799, "queries": 342, "50%": 399, "100%": 799}),
    ("nw_ucla", "nw_ucla_all_sqe.tar.gz", 1484, {"base": 726, "queries": 753, "100%": 726}),
])  # fmt: skip
def test_real_sets_end_to_end(repo, reference_data, tmp_path, name, file, clips, sizes):
    made = definition(repo, name, root=str(reference_data / "skeletons" / file))
    index = prepare_skeletons(made, tmp_path)
    assert len(read_index(index)) == clips
    make_skeleton_store(made, tmp_path, tmp_path / "store")
    store = SkeletonStore(tmp_path / "store", made.policy)
    assert len(store) == clips and not store.skipped
    assert count_clips(tmp_path, store) == count_clips(tmp_path, Listing(read_index(index))) == sizes
    joints = store.read(clips // 2)
    np.testing.assert_allclose(joints[0, 0, made.policy.center], 0, atol=1e-6)
    assert made.policy.axes == (0, 1, 16, 12) and made.source.joints == 20


# ---------------------------------------------------------------------------------------- one's own protocols
CLASSES = ("bow", "jump", "run", "sit", "wave")


@pytest.fixture
def source():
    items = [Item(f"{label}{k}", "", label, "train" if k else "val") for label in CLASSES for k in range(4)]
    return listed(items, CLASSES)


def split_of(source, base_set="", split="test", **protocol):
    made = OneShotProtocol(**protocol)
    sets = class_sets(made, source)
    store = Listing(split_clips(made, sets, source))
    novel = sets.novel if split == "test" else sets.validation
    return one_shot_split(store, made, sets.base_set(base_set), novel, split), store


def test_own_classes_and_exemplars(source):
    split, store = split_of(source, novel=["run", "bow"], validation=["sit", "jump"])
    assert split.novel_classes == ("run", "bow") and split.base_classes == ("wave",)
    assert split.exemplar_names == ("run0", "bow0") and len(split.queries) == 6
    assert {store.clips[i] for i in split.queries[split.query_labels == 1]} == {"bow1", "bow2", "bow3"}
    assert [store.labels[i] for i in split.base] == ["wave"] * 4
    checked, _ = split_of(
        source, split="val", novel=["run", "bow"], validation=["sit", "jump"], exemplars=["run1", "bow2"]
    )
    assert checked.exemplar_names == ("sit0", "jump0")
    named, _ = split_of(source, novel=[0, 2], exemplars=["run1", "bow2"])
    assert named.exemplar_names == ("bow2", "run1")
    assert str(split).splitlines()[1].split() == ["base", "1", "4"]
    assert split.rows() == [("base", "wave", 4, ""), ("novel", "run", 3, "run0"), ("novel", "bow", 3, "bow0")]


def test_draws_depend_on_the_seed_and_the_class_alone(source):
    drawn = {seed: split_of(source, novel=2, exemplars="seed", seed=seed)[0] for seed in range(12)}
    assert len({split.novel_classes for split in drawn.values()}) > 3
    assert split_of(source, novel=2, exemplars="seed", seed=5)[0].exemplar_names == drawn[5].exemplar_names
    one, two = (split_of(source, novel=names, exemplars="seed")[0] for names in (["bow", "run"], ["run", "sit"]))
    assert one.exemplar_names[1] == two.exemplar_names[0]
    assert (
        len({split_of(source, novel=["bow", "run"], exemplars="seed", seed=s)[0].exemplar_names for s in range(9)}) > 3
    )


def test_base_sets(source):
    protocol = {"novel": ["run", "bow"], "bases": {"2": 2, "mine": ["wave"]}}
    assert split_of(source, "2", **protocol)[0].base_classes == ("jump", "sit")
    assert split_of(source, "mine", **protocol)[0].base_classes == ("wave",)
    assert len(split_of(source, novel=["run", "bow"], base_subset="val")[0].base) == 3
    with pytest.raises(UserError, match=r"unknown base set '3' in the protocol"):
        split_of(source, "3", **protocol)


def test_classes_by_subset():
    items = [
        Item(f"{s}{label}{k}", "", f"{s}{label}", s) for s in ("train", "val", "test") for label in "ab" for k in (0, 1)
    ]
    made = listed(items, tuple(dict.fromkeys(item.label for item in items)))
    split, _ = split_of(made, novel="test", base="train", validation="val")
    assert split.base_classes == ("traina", "trainb") and split.novel_classes == ("testa", "testb")
    with pytest.raises(UserError, match="unknown subset 'tset'.*did you mean 'test'"):
        split_of(made, novel="tset")


@pytest.mark.parametrize("protocol, message", [
    ({"novel": ["run", "hop"]}, "unknown class 'hop'"),
    ({"novel": [1, 7]}, "there is no class 7; they are numbered from 0 to 4"),
    ({"novel": ["run"]}, "two novel ones, not 4 and 1"),
    ({"novel": ["run", "run"]}, "names the novel class 'run' twice"),
    ({"novel": ["run", "bow"], "base": ["run"]}, "'run' in two of base, novel, validation"),
    ({"novel": 9}, "draws 9 novel classes of 5"),
    ({"novel": ["run", "bow"], "bases": {"4": 4}}, "base set 4 asks for 4 of 3"),
    ({"novel": ["run", "bow"], "bases": {"x": ["run"]}}, "unknown base class 'run'"),
    ({"novel": ["run", "bow"], "exemplars": ["run1"]}, "no exemplar of the novel class 'bow'"),
    ({"novel": ["run", "bow"], "exemplars": ["run1", "run2"]}, "two exemplars of 'run', run2 is the second"),
    ({"novel": ["run", "bow"], "exemplars": ["run1", "bow9"]}, "exemplar bow9 .* is not usable: there is no such clip"),
    ({"novel": ["run", "bow"], "base_subset": "test"}, "'jump' has no clip in the subset 'test'"),
])  # fmt: skip
def test_wrong_protocols(source, protocol, message):
    with pytest.raises(UserError, match=message):
        split_of(source, **protocol)


def test_a_class_without_query(source):
    source.items = [item for item in source.items if item.label != "bow" or item.clip == "bow0"]
    with pytest.raises(UserError, match="'bow' has one clip, its exemplar"):
        split_of(source, novel=["run", "bow"])


# -------------------------------------------------------------------------------------------- from definition
@pytest.fixture
def ntu(tmp_path):
    """Four classes of NTU's naming, two clips each."""
    rng = np.random.default_rng(0)
    (tmp_path / "raw").mkdir()
    for action in range(1, 5):
        for subject in (1, 8):
            name = f"S001C003P{subject:03d}R001A{action:03d}"
            write_skeleton(tmp_path / "raw" / f"{name}.skeleton", rng.standard_normal((15, 1, 25, 3)))
    exemplars = ["S001C003P008R001A001", "S001C003P008R001A003"]
    return {
        "kind": "skeletons", "format": "ntu", "root": str(tmp_path / "raw"), "classes": ["a", "b", "c", "d"],
        "protocol": {"novel": [1, 3], "exemplars": exemplars, "bases": {"1": 1}},
        "expected": {"queries": 2, "base": 5},
    }  # fmt: skip


def test_stages(ntu, tmp_path):
    made = SkeletonDefinition.read(ntu, "mine.yaml")
    prepare_skeletons(made, tmp_path / "set")
    make_skeleton_store(made, tmp_path / "set", tmp_path / "set" / "store")
    store = SkeletonStore(tmp_path / "set" / "store")
    split = load_split(tmp_path / "set", store, "1")
    assert split.base_classes == ("b",) and len(split.base) == 2 and split.novel_classes == ("a", "c")
    assert split.query_labels.tolist() == [0, 1]
    folder = tmp_path / "set" / "store"
    assert (folder / "counts.csv").read_text() == "set,clips,published\nbase,4,5\nqueries,2,2\n1,2,\n"
    assert "novel,a,1,S001C003P008R001A001" in (folder / "split.csv").read_text()
    with pytest.raises(UserError, match="prepare the data set first"):
        load_split(tmp_path / "nowhere", store)


def test_samples_of_a_published_list_that_are_not_there_are_listed(ntu, tmp_path):
    names = sorted(path.stem for path in (tmp_path / "raw").iterdir())
    others = ["S001C003P009R001A003", "S001C003P009R001A002", "S001C003P009R001A005"]  # of c (novel), b, and none
    (tmp_path / "names.txt").write_text("\n".join(names + others))
    made, folder = SkeletonDefinition.read(ntu, "mine.yaml"), tmp_path / "set"
    prepare_skeletons(made, folder, tmp_path / "names.txt")
    assert (folder / "unreadable.csv").read_text().splitlines()[1:] == [
        f"{name}.skeleton,the file is missing" for name in others[:2]
    ]
    audit = Audit("mine", folder, folder / "store", 0.5)
    make_skeleton_store(made, folder, folder / "store", audit=audit)
    assert read_coverage(folder / "store") == {"train": 4 / 5, "test": 4 / 5}
    prepare_skeletons(made, folder, tmp_path / "no such list")
    assert len(read_index(folder / "listed.csv")) == 8


def test_an_exemplar_that_cannot_be_used_stops_before_training(ntu, tmp_path):
    made = SkeletonDefinition.read(ntu, "mine.yaml")
    path = tmp_path / "raw" / "S001C003P008R001A003.skeleton"
    (tmp_path / "missing.txt").write_text(path.stem)
    listed_missing = SkeletonDefinition.read({**ntu, "missing": str(tmp_path / "missing.txt")}, "mine.yaml")
    with pytest.raises(
        UserError, match=r"exemplar S001C003P008R001A003 .*not usable \(in the list of samples with missing"
    ):
        prepare_skeletons(listed_missing, tmp_path / "one")
    prepare_skeletons(made, tmp_path / "set")
    path.write_text("3\n0\n0\n0\n")
    with pytest.raises(
        UserError, match=r"exemplar S001C003P008R001A003 .*not usable \(no body in any of its 3 frames\)"
    ):
        make_skeleton_store(made, tmp_path / "set", tmp_path / "set" / "store")
    path.unlink()
    with pytest.raises(UserError, match=r"exemplar S001C003P008R001A003 .*not usable: there is no such clip"):
        prepare_skeletons(made, tmp_path / "two")


def test_wrong_definitions(ntu):
    for change, message in (
        ({"protocl": {}}, r"unknown key 'protocl' in mine.yaml"),
        ({"policy": {"gap": "keeep"}}, "mine.yaml: key policy.gap"),
        ({"protocol": {"novl": 2}}, "mine.yaml.*protocol"),
        ({"graph": "coco17"}, "format ntu has 25 joints, its graph 17"),
        ({"graph": "ntu52"}, "unknown skeleton 'ntu52'; did you mean 'ntu25'"),
        ({"policy": {"center": "nose"}}, "unknown joint 'nose' in mine.yaml, policy"),
        ({"format": "npz", "joints": 20}, "joints is 20, and its graph has 25"),
    ):
        with pytest.raises(UserError, match=message):
            SkeletonDefinition.read({**ntu, **change}, "mine.yaml")
