"""Data sets as a lab has them after their archives are unpacked, of a few generated clips each.

Names of folders, files and classes, forms of lists, containers and codecs are the publishers'; what the clips show is a
generated figure.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import av
import cv2
import numpy as np
import yaml

from pipeline.datasets.synthetic import grammar, motion, write_skeleton
from pipeline.datasets.synthetic.figure import forward_kinematics, make_body
from pipeline.datasets.synthetic.writer import Request, draw_clip
from pipeline.files import new_folder, write_text
from pipeline.text.corpus import import_task_adapter

CLASSES: dict[str, dict[str, tuple[str, ...]]] = {
    "hmdb51": {
        "train": ("brush hair", "clap", "draw_sword"),
        "val": ("cartwheel", "eat", "golf"),
        "test": ("fencing", "kick ball", "pour"),
    },
    "kinetics100": {
        "train": ("air drumming", "arm wrestling", "bowling"),
        "val": ("baking cookies", "crossing river", "dunking basketball"),
        "test": ("blasting sand", "busking", "cutting watermelon"),
    },
    "ssv2_small": {
        "train": (
            "Pouring [something] into [something]",
            "Pretending to poke [something]",
            "Moving [part] of [something]",
        ),
        "val": (
            "Lifting something up completely without letting it drop down",
            "Holding something in front of something",
            "Pulling something out of something",
        ),
        "test": (
            "Opening [something]",
            "Poking a stack of [something] so the stack collapses",
            "Unfolding [something]",
        ),
    },
    "ucf101": {
        "train": ("Apply Eye Makeup", "Archery", "Baby Crawling"),
        "val": ("Apply Lipstick", "Cricket Shot", "Hammer Throw"),
        "test": ("Blowing Candles", "Cliff Diving", "Golf Swing"),
    },
}
"""Some classes of each split of the published few-shot lists."""

CLIPS = 2  # of each of these classes: an exemplar and a query
GYM99 = (0, 20, 40, 55, 70, 98)  # some of its classes
GYM99_CLIPS = {"train": 2, "unlabel": 2, "test": 1}  # of each of them
NTU_CLASSES, NTU_NOVEL, NTU_BASES = range(1, 121), range(1, 121, 6), 20  # NTU_BASES: of its smallest base set
# Joints of NTU's sensor in the place of COCO's: nose, eyes, ears; shoulders, elbows, wrists, hips, knees, ankles.
COCO = (3, 3, 3, 3, 3, 4, 8, 5, 9, 6, 10, 12, 16, 13, 17, 14, 18)
DRAWN = 192  # pixels at which a figure is drawn, before it gets a publisher's size
FRAMES = (30, 44)  # of a clip, at least and at most


class Film(NamedTuple):
    """How a publisher packs videos: codec, size in pixels, frames a second, settings of the codec."""

    codec: str
    width: int
    height: int
    fps: int
    options: dict[str, str]


FILMS = {
    "hmdb51": Film("mpeg4", 320, 240, 30, {"qscale": "5"}),
    "ucf101": Film("mpeg4", 320, 240, 25, {"qscale": "5"}),
    "kinetics100": Film("libx264", 340, 256, 30, {"preset": "veryfast", "crf": "24"}),
    "ssv2_small": Film("libvpx-vp9", 426, 240, 12, {"deadline": "realtime", "cpu-used": "8", "crf": "34", "b": "0"}),
    "finegym": Film("libx264", 640, 360, 25, {"preset": "veryfast", "crf": "26"}),
}


class Listed(NamedTuple):
    """A clip of a few-shot set: its split, the number and name of its class there, and its own number in the set."""

    split: str
    label: int
    name: str
    number: int


def make_data(name: str, data: Path) -> Path:
    """The folder `data`/`name` of a data set, made unless it is there; `name` is a key of `SETS`."""
    folder = data / name
    if not folder.exists():
        with new_folder(folder) as new:
            SETS[name](new)
    return folder


# ------------------------------------------------------------------------------------------------ few-shot videos
def hmdb51(folder: Path) -> None:
    """A folder a class, as the archive of each class unpacks."""
    for clip in _listed("hmdb51"):
        words = clip.name.replace(" ", "_")
        path = f"videos/{words}/Generated_{words}_u_nm_np1_fr_goo_{clip.number}.avi"
        _write(folder, "hmdb51", clip, f"/{path}", path)
    _name_classes(folder, "hmdb51")


def ucf101(folder: Path) -> None:
    """A folder a class, below one that the lists do not name."""
    for clip in _listed("ucf101"):
        words = clip.name.replace(" ", "")
        path = f"{words}/v_{words}_g{clip.number + 1:02d}_c01.avi"
        _write(folder, "ucf101", clip, f"/videos/{path}", f"videos/UCF-101/{path}")
    _name_classes(folder, "ucf101")


def kinetics100(folder: Path) -> None:
    """Flat folders; validation lists leave out the times in the names of files. Texts as a user writes them."""
    for clip in _listed("kinetics100"):
        part, video = "val" if clip.split == "val" else "train", f"generated{clip.number:02d}"
        timed = f"{video}_{clip.number:06d}_{clip.number + 10:06d}.mp4"
        shown = f"{video}.mp4" if part == "val" else timed
        path = f"/{part}_256/{clip.name.replace(' ', '_')}/{shown}"
        _write(folder, "kinetics100", clip, path, f"videos/{part}/{timed}")
    _name_classes(folder, "kinetics100")
    classes = {name: {"label": name} for names in CLASSES["kinetics100"].values() for name in names}
    write_text(folder / "texts.json", json.dumps({"classes": classes}, indent=1) + "\n")


def ssv2_small(folder: Path) -> None:
    """Numbered webm files, and CMN's list for the names of validation classes. Texts imported from Task-Adapter++'s
    form, whose names lack the brackets."""
    named = []
    for clip in _listed("ssv2_small"):
        _write(
            folder,
            "ssv2_small",
            clip,
            str(clip.number + 1),
            f"videos/20bn-something-something-v2/{clip.number + 1}.webm",
        )
        named += [f"{clip.name}/{clip.number + 1}"] if clip.split == "val" else []
    _name_classes(folder, "ssv2_small")
    write_text(folder / "lists" / "cmn_val.list", "\n".join(named) + "\n")
    stages = ("a hand comes near", "the hand moves the thing", "the hand goes away")
    names = [name.replace("[", "").replace("]", "") for names in CLASSES["ssv2_small"].values() for name in names]
    published = {name: {"label": name, "sub_act_en_li": list(stages)} for name in names}
    write_text(folder / "task_adapter.yaml", yaml.safe_dump(published))
    import_task_adapter(folder / "task_adapter.yaml").save(folder / "texts.json")


def _listed(name: str) -> Iterator[Listed]:
    """All clips of a few-shot set."""
    number = 0
    for split, classes in CLASSES[name].items():
        for label, words in enumerate(classes):
            for _ in range(CLIPS):
                yield Listed(split, label, words, number)
                number += 1


def _write(folder: Path, name: str, clip: Listed, listed: str, path: str) -> None:
    """Film a clip at `path` in the set's folder, and add its line to the list of its split."""
    label = grammar.classes("scene", clip.split)[clip.label]
    write_film(folder / path, "scene", label, clip.number, FILMS[name])
    (folder / "lists").mkdir(exist_ok=True)
    with (folder / "lists" / f"{clip.split}_few_shot.txt").open("a", encoding="utf-8") as file:
        file.write(f"{clip.split}{clip.label}/{listed}\n")


def _name_classes(folder: Path, name: str) -> None:
    """The recipe of CLIP-FSAR that names the classes of training and test."""
    recipe = {split.upper(): {"CLASS_NAME": list(CLASSES[name][split])} for split in ("train", "test")}
    write_text(folder / "lists" / "class_names.yaml", yaml.safe_dump(recipe))


# ------------------------------------------------------------------------------------------------------ FineGym
def finegym(folder: Path) -> None:
    """Clips of elements, named by video, event and action."""
    labels = grammar.classes("fine", "train")
    for i, (path, label, _) in enumerate(_elements()):
        write_film(folder / "videos" / Path(path).name, "fine", labels[GYM99.index(label)], i, FILMS["finegym"])


def gym99(folder: Path) -> None:
    """SeFAR's lists at 5 per cent, and FineGym's table of the classes."""
    lines: dict[str, list[str]] = {part: [] for part in GYM99_CLIPS}
    for path, label, part in _elements():
        lines[part].append(f"{path} {label}\n")
    for part, content in lines.items():
        write_text(folder / "lists" / "5" / f"{part}.csv", "".join(content))
    names = [f"({event}) element {i} with {i % 4} turn" for event in ("VT", "FX", "BB", "UB") for i in range(25)]
    table = [f"Clabel: {i:3d}; set: {i // 25:2d}; Glabel: {i + 1:3d}; {name}" for i, name in enumerate(names[:99])]
    write_text(folder / "gym99_categories.txt", "\n".join(table) + "\n")


def _elements() -> Iterator[tuple[str, int, str]]:
    """Path in the lists, number of the class, and list of every clip."""
    place = 0
    for label in GYM99:
        for part, count in GYM99_CLIPS.items():
            for _ in range(count):
                yield f"/root/video/generated{place:02d}_E_{place:06d}_{place + 90:06d}_A_0010_0012.mp4", label, part
                place += 1


# ---------------------------------------------------------------------------------------------------- NTU RGB+D
def ntu120(folder: Path) -> None:
    """The sensor's files in the folders of the two archives, and the pickle of HRNet's poses; one clip of a class, two
    of the novel ones (of which one is the protocol's exemplar) and of the smallest base set."""
    write_text(folder / "NTU_RGBD120_samples_with_missing_skeletons.txt", "S001C002P005R002A008\n")
    notes, actions = [], grammar.classes("scene", "train")
    twice = {*NTU_NOVEL, *[action for action in NTU_CLASSES if action not in NTU_NOVEL][:NTU_BASES]}
    for action in NTU_CLASSES:
        for number in range(1 + (action in twice)):
            setup, subject = (1, 8) if action <= 60 else (18, 8)
            name = f"S{setup:03d}C{3 - number:03d}P{subject:03d}R001A{action:03d}"
            rng = np.random.default_rng([action, number])
            joints = _moves(actions[action % len(actions)], rng)
            place = folder / "skeletons" / ("nturgb+d_skeletons" if action <= 60 else "nturgb+d_skeletons_s018_to_s032")
            place.mkdir(parents=True, exist_ok=True)
            write_skeleton(place / f"{name}.skeleton", joints[:, None].round(5))
            notes.append(_pose(name, action, joints, rng))
    with (folder / "ntu120_hrnet.pkl").open("wb") as file:
        pickle.dump({"split": {"xsub_train": [], "xsub_val": []}, "annotations": notes}, file, protocol=4)


def _moves(label: str, rng: np.random.Generator) -> np.ndarray:
    """Joints of a generated action, (T, 25, 3) in metres, three of them from the sensor."""
    action, frames = grammar.find("scene", label), int(rng.integers(*FRAMES))
    poses = motion.render_poses(action.program(), motion.draw_boundaries(frames, action.shares, 0.5, rng), rng)
    return forward_kinematics(poses, make_body(rng))[0] + np.array([0.0, 0.0, 3.0])


def _pose(name: str, action: int, joints: np.ndarray, rng: np.random.Generator) -> dict:
    """An annotation of pyskl: COCO's joints in pixels, y downwards, with their scores."""
    points = (joints[None, :, COCO, :2] * (400, -400) + (960, 700)).astype(np.float16)
    return {
        "frame_dir": name, "label": action - 1, "img_shape": (1080, 1920), "original_shape": (1080, 1920),
        "total_frames": len(joints), "keypoint": points,
        "keypoint_score": rng.uniform(0.5, 1, points.shape[:3]).astype(np.float16),
    }  # fmt: skip


# --------------------------------------------------------------------------------------------------------- films
def write_film(path: Path, set_name: str, label: str, number: int, film: Film) -> None:
    """Clip `number` of a class of a generated set, as a publisher packs it; the suffix says the container."""
    request = Request(set_name, 1, FRAMES, DRAWN, film.fps, 0, grammar.SPLITS, 1.0)
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(film.codec, rate=film.fps, options=film.options)
        stream.width, stream.height, stream.pix_fmt = film.width, film.height, "yuv420p"
        for image in draw_clip(request, label, number).images:
            sized = cv2.resize(image, (film.width, film.height))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(sized, format="rgb24")))
        container.mux(stream.encode())


SETS: dict[str, Callable[[Path], None]] = {
    made.__name__: made for made in (hmdb51, kinetics100, ssv2_small, ucf101, finegym, gym99, ntu120)
}
