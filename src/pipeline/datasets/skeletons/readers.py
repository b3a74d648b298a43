"""Where skeleton clips come from: files of NTU RGB+D, npz arrays, JSON files, pose pickles, generated sets.

A `Source` lists its clips (`items`) and reads one at a time. Formats of `open_source`:

- ntu: a folder (with subfolders) of `.skeleton` files named as in NTU RGB+D.
- files: a folder of `.skeleton` files, classes by folder, name pattern or table.
- generated: the folder of a generated set (its `index.csv` and `skeletons/`).
- npz: one file of arrays, see `NpzSource`.
- json: a folder or tar archive of NW-UCLA style JSON files, see `JsonSource`.
- pyskl: a pickle of MMAction2/pyskl, see `PysklSource`.
- openpose: the Kinetics-skeleton folder of ST-GCN, see `OpenPoseSource`.
- poses: the folder that `python -m pipeline pose` makes of videos, see `PoseFolder`.
- table: text tables with a row for each joint of each frame, see `tables.TableSource`.
"""

from __future__ import annotations

import csv
import json
import pickle
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from pipeline.datasets.index import read_index
from pipeline.datasets.skeletons import ntu
from pipeline.datasets.skeletons.definition import SourceSpec
from pipeline.datasets.skeletons.ntu import Recording
from pipeline.datasets.skeletons.preprocess import Pose
from pipeline.datasets.skeletons.source import Item, Source, files_below, labelled_items, plain_text
from pipeline.errors import UserError, unknown
from pipeline.guarded import Unreadable
from pipeline.names import near_path

MAX_JSON = 256 * 2**20  # bytes; a clip's file is some kilobytes, more is damaged or hostile


def open_source(spec: SourceSpec | Mapping[str, Any]) -> Source:
    """The source of a definition; raises UserError when it is wrong or holds no clip."""
    if not isinstance(spec, SourceSpec):
        from pipeline.config import parse

        spec = parse(SourceSpec, spec, "the skeleton source")
    root = Path(spec.root).expanduser()
    if not root.exists():
        raise UserError(f"there is no {root}; put the skeletons there or set root: to where they are{near_path(root)}")
    if spec.format == "table":
        from pipeline.datasets.skeletons.tables import TableSource

        return TableSource(spec)
    return _SOURCES[spec.format](spec)


# --------------------------------------------------------------------------------------- .skeleton files
class SkeletonFiles(Source):
    """`.skeleton` files below a folder; their classes as in `labelled_items`."""

    def __init__(self, spec: SourceSpec) -> None:
        super().__init__(spec)
        self._done(self._find())

    def _find(self) -> Iterator[Item]:
        return labelled_items(self, files_below(self.root, ntu.SUFFIX))

    def read(self, path: str) -> Recording:
        return ntu.read_recording(self.root / path, self.joints)


class NtuFolder(SkeletonFiles):
    """NTU RGB+D 60 or 120: the class is in the name (A001 is class 1); without `classes` it is called A001.

    Actions beyond the list of classes are left out, so that NTU-60 can be read from the folder of NTU-120.
    """

    def __init__(self, spec: SourceSpec) -> None:
        super().__init__(spec.model_copy(update={"first_class": 1}))

    def _find(self) -> Iterator[Item]:
        missing = ntu.read_missing(self.spec.missing) if self.spec.missing else set()
        limit = len(self.spec.classes) or 999
        for path in sorted(files_below(self.root, ntu.SUFFIX), key=lambda path: PurePosixPath(path).name):
            name = PurePosixPath(path).name.removesuffix(ntu.SUFFIX)
            found = ntu.parse_name(name)
            if found is None:
                self.missing.append((path, "not named like S001C002P003R002A013"))
            elif found.action <= limit:
                if name in missing:
                    self.missing.append((path, "in the list of samples with missing skeletons"))
                else:
                    raw = found.action if self.spec.classes else f"A{found.action:03d}"
                    yield Item(name, path, self._label(raw, path))


class GeneratedSet(SkeletonFiles):
    """A generated set: clips, classes and subsets (its splits) of its index, skeletons beside the videos."""

    def _find(self) -> Iterator[Item]:
        for clip in read_index(self.root / "index.csv"):
            yield Item(clip.clip, f"skeletons/{clip.clip}{ntu.SUFFIX}", clip.label, clip.split)


# ------------------------------------------------------------------------------------------- array files
class NpzSource(Source):
    """One npz file with all clips, the frames of one after those of the other (the layout of Kinder-Gator).

    positions (F, V, C), or (F, M, V, C) with zeros for absent persons; or positions_mm, in millimetres, which are
    made metres. lengths (N,): frames of each clip, together F. label (N,): class names, or numbers into
    class_names (K,). Optional: clip (N,) names, split (N,) subsets. Numbers only, no pickled objects.
    """

    parallel = False

    def __init__(self, spec: SourceSpec) -> None:
        super().__init__(spec)
        arrays = _load_npz(self.root)
        scale = 0.001 if "positions_mm" in arrays else 1.0
        positions = arrays.get("positions_mm", arrays.get("positions"))
        for key, value in {
            "positions": positions,
            "lengths": arrays.get("lengths"),
            "label": arrays.get("label"),
        }.items():
            if value is None:
                raise UserError(f"{self.root} lacks the array {key}; it has {', '.join(arrays) or 'none'}")
        lengths = arrays["lengths"].astype(np.int64)
        n = len(lengths)
        if positions.ndim not in (3, 4) or lengths.sum() != len(positions) or len(arrays["label"]) != n:
            raise UserError(
                f"{self.root}: positions {positions.shape}, lengths (sum {lengths.sum()}) and {len(arrays['label'])} "
                "labels do not fit together; write the file again"
            )
        if positions.shape[-2] != self.joints:
            raise UserError(f"{self.root} has {positions.shape[-2]} joints, the declared skeleton {self.joints}")
        self.channels = self.spatial = positions.shape[-1]
        if "positions_mm" not in arrays:  # lengths
            self._ask_third([positions])
        self._positions = positions[:, None] if positions.ndim == 3 else positions
        self._scale, self._first = scale, np.concatenate([[0], np.cumsum(lengths)])
        names = [plain_text(name) for name in arrays["class_names"].tolist()] if "class_names" in arrays else None
        if names and not self.classes:
            self.classes = tuple(names)
        clips = [plain_text(name) for name in arrays["clip"].tolist()] if "clip" in arrays else None
        subsets = [plain_text(name) for name in arrays["split"].tolist()] if "split" in arrays else [""] * n
        clips = clips or [f"{i:05d}" for i in range(n)]
        if len(clips) != n or len(subsets) != n:
            raise UserError(
                f"{self.root} has {n} lengths, {len(clips)} clips and {len(subsets)} splits; write it again"
            )
        _refuse_twice(clips, "clip", self.root)
        self._done(
            Item(clips[i], str(i), self._name(raw, names), subsets[i]) for i, raw in enumerate(arrays["label"].tolist())
        )

    def _name(self, raw: Any, names: list[str] | None) -> str:
        if isinstance(raw, float) and raw.is_integer():
            raw = int(raw)
        if names is not None and isinstance(raw, int):
            if not 0 <= raw < len(names):
                raise UserError(f"{self.root}: label {raw}, and class_names has {len(names)}; write the file again")
            raw = names[raw]
        return self._label(raw if isinstance(raw, int) else plain_text(raw), str(self.root))

    def read(self, path: str) -> Pose:
        i = int(path)
        frames = self._positions[self._first[i] : self._first[i + 1]]
        return Pose(self._check(np.moveaxis(frames, 1, 0)) * np.float32(self._scale))


def _refuse_twice(clips: Sequence[str], what: str, where: Path) -> None:
    """Raise UserError where two clips have one name: none is to be dropped without a word."""
    if twice := [name for name, times in Counter(clips).items() if times > 1]:
        first, second = [i for i, name in enumerate(clips) if name == twice[0]][:2]
        raise UserError(
            f"{where} has the {what} {twice[0]} twice, as number {first} and {second} of its clips ({len(twice)} names "
            "are there more than once); give each clip a name of its own"
        )


def _load_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}
    except (OSError, ValueError, EOFError, AttributeError) as error:
        raise UserError(f"{path} is not an npz file of plain arrays ({error}); write it with numpy.savez") from None
    except Exception as error:  # zipfile.BadZipFile, zlib.error: damaged archives
        raise UserError(f"{path} is damaged ({error}); fetch it again") from None


# ------------------------------------------------------------------------------------------------- JSON
class JsonSource(Source):
    """A JSON file for each clip, in a folder or a tar archive (.tar, .tar.gz), as CTR-GCN's of NW-UCLA.

    {"skeletons": [frames][joints][x, y, z]}, or [frames][persons][joints][...] with zeros for absent persons. Classes
    as in `labelled_items`. An archive is read as a stream, nothing of it is written to disk; links and devices in it
    are passed over.
    """

    def __init__(self, spec: SourceSpec) -> None:
        super().__init__(spec)
        self.parallel = self.root.is_dir()
        self._archive: tarfile.TarFile | None = None
        self._members: dict[str, tarfile.TarInfo] = {}
        if self.parallel:
            self._done(labelled_items(self, files_below(self.root, ".json")))
            self._settle_third()
            return
        try:
            self._archive = tarfile.open(self.root)
            self._members = {
                member.name: member
                for member in self._archive
                if member.isreg() and member.name.endswith(".json") and member.size <= MAX_JSON
            }
        except (OSError, EOFError, tarfile.TarError) as error:
            raise UserError(f"{self.root} is not a tar archive, or is damaged ({error}); fetch it again") from None
        self._done(labelled_items(self, self._members))  # in the archive's order: no seeking back
        self._settle_third()

    def _settle_third(self) -> None:
        some = []
        for item in islice(self.items, 3):
            with suppress(Unreadable):
                some.append(self.read(item.path).joints)
        self._ask_third(some)

    def read(self, path: str) -> Pose:
        try:
            if self._archive is None:
                data = (self.root / path).read_bytes()
            else:
                data = self._archive.extractfile(self._members[path]).read()  # type: ignore[union-attr]
            joints = np.array(json.loads(data)["skeletons"], dtype=np.float32)
        except (OSError, EOFError, tarfile.TarError) as error:
            raise Unreadable(f"cannot be read ({error})") from None
        except (ValueError, KeyError, TypeError):
            raise Unreadable("no JSON file with `skeletons` of frames of joints") from None
        joints = joints[None] if joints.ndim == 3 else np.moveaxis(joints, 1, 0) if joints.ndim == 4 else joints
        return Pose(self._check(joints))


class OpenPoseSource(Source):
    """Kinetics-skeleton as ST-GCN publishes it: `kinetics_{train,val}/*.json` and `kinetics_{train,val}_label.json`.

    A joint is (x, y, confidence): x, y are shares of the image, moved so that its middle is 0, y upwards; joints
    without confidence are 0. The persons of a frame are sorted by their mean confidence (ST-GCN's feeder). Class
    numbers are `label_index`, from 0. Videos that the label file says have no skeleton are listed as missing.
    """

    spatial = 2

    def __init__(self, spec: SourceSpec) -> None:
        super().__init__(spec)
        numbers: dict[int, str] = {}
        items = []
        for subset in ("train", "val"):
            table = self.root / f"kinetics_{subset}_label.json"
            if not table.is_file():
                continue
            for video, about in _read_json(table).items():
                path = f"kinetics_{subset}/{video}.json"
                try:
                    number, label = int(about["label_index"]), str(about["label"])
                    found = about.get("has_skeleton", True)
                except (AttributeError, KeyError, TypeError, ValueError):
                    raise UserError(
                        f"{table}: {video} needs label, label_index and has_skeleton; fetch it again"
                    ) from None
                if not found:
                    self.missing.append((path, "no skeleton was found in the video"))
                    continue
                numbers.setdefault(number, label)
                items.append(Item(video, path, label, subset))
        if numbers and not self.classes:
            self.classes = tuple(numbers.get(i, f"class {i}") for i in range(max(numbers) + 1))
        self._done(items)

    def read(self, path: str) -> Pose:
        try:
            frames = _read_json(self.root / path)["data"]
            persons = max((len(frame["skeleton"]) for frame in frames), default=0)
            joints = np.zeros((len(frames), persons, self.joints, 3), dtype=np.float32)
            for t, frame in enumerate(frames):
                for m, person in enumerate(frame["skeleton"]):
                    joints[t, m, :, 0] = person["pose"][0::2]
                    joints[t, m, :, 1] = person["pose"][1::2]
                    joints[t, m, :, 2] = person["score"]
        except OSError as error:
            raise Unreadable(f"cannot be read ({error.strerror})") from None
        except (UserError, ValueError, KeyError, TypeError):
            raise Unreadable(f"no file of OpenPose poses with {self.joints} joints") from None
        if not joints.size:
            raise Unreadable("no body in any frame")
        joints[..., :2] = (joints[..., :2] - 0.5) * np.float32([1, -1]) * (joints[..., 2:] != 0)
        order = np.argsort(-joints[..., 2].mean(axis=2), axis=1, kind="stable")
        joints = np.take_along_axis(joints, order[:, :, None, None], axis=1)
        return Pose(np.moveaxis(joints, 1, 0))


def _read_json(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        try:
            content = json.load(file)
        except ValueError as error:
            raise UserError(f"{path} is no JSON file ({error}); fetch it again") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no JSON object; fetch it again")
    return content


# -------------------------------------------------------------------------------------- poses from videos
class PoseFolder(Source):
    """Poses that were extracted from videos (`pose.extract`): x, y in pixels and confidence.

    Classes are those of the list of videos where it had them, else as in `labelled_items`, by the path of the video;
    `labels` and `pattern` win over the list. Videos without poses are listed as missing.
    """

    spatial = 2

    def __init__(self, spec: SourceSpec) -> None:
        from pipeline.datasets.skeletons.pose_folder import read_table

        super().__init__(spec)
        manifest, rows = read_table(self.root)
        self.layout = manifest["layout"]
        if manifest["joints"] != self.joints:
            raise UserError(
                f"the poses of {self.root} have {manifest['joints']} joints ({self.layout}), the declared skeleton "
                f"{self.joints}; set graph: {self.layout}"
            )
        self._shard: tuple[str, dict[str, np.ndarray]] = ("", {})
        with open(self.root / "failures.csv", newline="", encoding="utf-8") as file:
            self.missing += [(row["path"], row["reason"]) for row in csv.DictReader(file)]
        self._done(self._items(rows))

    def _items(self, rows: list[dict[str, str]]) -> Iterator[Item]:
        places = {row["path"]: f"{row['shard']}/{row['place']}" for row in rows}
        if any(row["label"] for row in rows) and not (self.spec.labels or self.spec.pattern):
            for row in rows:
                if row["label"]:
                    label = self._label(row["label"], row["path"])
                    yield Item(row["clip"], places[row["path"]], label, row["split"])
                else:
                    self.missing.append((row["path"], "no label"))
            return
        for item in labelled_items(self, places):
            yield replace(item, path=places[item.path])

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_shard": ("", {})}

    def read(self, path: str) -> Pose:
        from pipeline.datasets.skeletons.pose_folder import clip_of, read_shard

        name, place = path.rsplit("/", 1)
        if name != self._shard[0]:
            shard = read_shard(self.root / name)
            if shard is None:
                raise Unreadable(f"{name} is missing or damaged; extract the poses again")
            self._shard = (name, shard)
        clip = clip_of(self._shard[1], int(place))
        joints = self._check(clip.joints)
        if self.spec.unit == "image":
            height, width = clip.size
            shares = (joints[..., :2] - np.float32([width / 2, height / 2])) / np.float32(max(height, width))
            shares *= np.float32([1, -1]) * (joints[..., 2:] != 0)  # a joint that is not seen stays at the origin
            joints = np.concatenate((shares, joints[..., 2:]), axis=-1)
        return Pose(joints, clip.size)


# ------------------------------------------------------------------------------------------------ pickles
class PysklSource(Source):
    """A pickle of MMAction2/pyskl: {"split": {name: [frame_dir]}, "annotations": [{frame_dir, label, keypoint, ...}]}.

    keypoint (M, T, V, 2 or 3); 2D ones come with keypoint_score (M, T, V) and give (x, y, confidence), pixels.
    It is read by an unpickler that makes plain values and numpy arrays only.
    """

    parallel = False

    def __init__(self, spec: SourceSpec) -> None:
        super().__init__(spec)
        content = load_pickle(self.root)
        notes = content.get("annotations") if isinstance(content, dict) else content
        if not isinstance(notes, list) or not all(isinstance(note, dict) for note in notes) or not notes:
            raise UserError(f"{self.root} holds no list of annotations; it is not a pickle of pyskl")
        if absent := [i for i, note in enumerate(notes) if "frame_dir" not in note]:
            raise UserError(f"{self.root}: annotation {absent[0]} has no frame_dir; it is not a pickle of pyskl")
        names = [plain_text(note["frame_dir"]) for note in notes]
        _refuse_twice(names, "frame_dir", self.root)
        self._notes = dict(zip(names, notes, strict=True))
        splits = (content.get("split") if isinstance(content, dict) else None) or {}
        if not isinstance(splits, dict):
            raise UserError(f"{self.root}: split is not {{name: [frame_dir]}}; it is not a pickle of pyskl")
        for name in spec.subsets:
            if name not in splits:
                raise unknown("split", name, splits, f"{self.root}, key subsets")
        subset_of: dict[str, str] = {}
        for name in spec.subsets or [name for name in ("train", "val", "test") if name in splits]:
            for clip in splits[name]:
                subset_of.setdefault(plain_text(clip), name)
        arrays = [array for note in notes[:20] if (array := _array(note.get("keypoint"))) is not None]
        width = next((array.shape[-1] for array in arrays if array.ndim), 0)
        if width not in (2, 3):
            raise UserError(f"{self.root} holds no keypoints of two or three coordinates; it cannot be used")
        self.spatial = width
        if width == 3:
            self._ask_third(arrays)
        self._done(self._items(subset_of))

    def _items(self, subset_of: Mapping[str, str]) -> Iterator[Item]:
        for clip, note in self._notes.items():
            if "label" not in note:
                self.missing.append((clip, "no label"))
                continue
            yield Item(clip, clip, self._class(note["label"], clip), subset_of.get(clip, ""))

    def _class(self, given: Any, clip: str) -> str:
        """The class of an annotation, whose label is a number from 0 on, or a name."""
        number = _whole(given)
        if number is not None:
            raw = number + self.first_class
            label = self._label(raw, f"{self.root}, {clip}") if self.spec.classes else f"class {raw}"
            self._agrees(clip, raw)
            return label
        if isinstance(given, str | bytes) and given:
            return self._label(plain_text(given), f"{self.root}, {clip}")
        raise UserError(f"{self.root}: the label of {clip} is {given!r:.60}, neither a number nor a name; correct it")

    def _agrees(self, clip: str, number: int) -> None:
        """Raises UserError where a name of NTU RGB+D (S001C002P003R002A013) says another class than the label."""
        listed = isinstance(self.spec.classes, list) and self.spec.classes
        if listed and (said := named_otherwise(clip, number)):
            raise UserError(f"{self.root}: {said}")

    def read(self, path: str) -> Pose:
        note = self._notes[path]
        if "keypoint" not in note:
            raise Unreadable("no keypoint array")
        joints = _array(note["keypoint"])
        if joints is None or joints.ndim != 4:
            raise Unreadable("keypoint is not an array (M, T, V, C) of numbers")
        if joints.shape[-1] == 2:
            score = _array(note.get("keypoint_score", ()))
            if score is None or score.shape != joints.shape[:3]:
                raise Unreadable("keypoint_score does not fit keypoint")
            joints = np.concatenate([joints, score[..., None]], axis=-1, dtype=np.float32)
        return Pose(self._check(joints), _size_of(note))


def named_otherwise(clip: str, number: int) -> str:
    """What is wrong where a name of NTU RGB+D says another class than `number`, its label as names count; or ""."""
    parsed = ntu.parse_name(clip)
    if not parsed or parsed.action == number:
        return ""
    return (
        f"{clip} is class {number} by its label and {parsed.action} by its name; labels of pickles start at 0 and "
        "names at A001: set first_class: 1, or give `classes` as {label: name}"
    )


def _array(value: Any) -> np.ndarray | None:
    """An array of numbers, None where it is none."""
    try:
        made = np.asarray(value)
    except ValueError:
        return None
    return made if made.dtype.kind in "fiu" else None


def _size_of(note: Mapping[str, Any]) -> tuple[int, int]:
    """(height, width) of an annotation's video, (0, 0) where it is not said."""
    for key in ("img_shape", "original_shape"):
        size = [_whole(side) for side in np.ravel(note.get(key, ())).tolist()]
        if len(size) >= 2 and None not in size[:2]:
            return size[0], size[1]  # type: ignore[return-value]
    return 0, 0


def _whole(value: Any) -> int | None:
    """A whole number, also one in an array or a text; None where it is none."""
    try:
        number = float(np.asarray(value).item() if not isinstance(value, str | bytes) else value)
    except (TypeError, ValueError):
        return None
    return int(number) if number.is_integer() else None


def _latin1(text: str, encoding: str = "latin1") -> bytes:
    """How Python 3 stores bytes in the old pickle protocols."""
    if encoding not in ("latin1", "latin-1", "iso-8859-1"):
        raise pickle.UnpicklingError(f"text in the encoding {encoding}")
    return text.encode("latin1")


def _allowed() -> dict[tuple[str, str], Any]:
    """What a pickle may name: the makers of numpy arrays and scalars, and plain containers."""
    rebuild, scalar = np.empty(0).__reduce__()[0], np.float64(0).__reduce__()[0]
    buffer = np.empty(0).__reduce_ex__(5)[0]
    allowed: dict[tuple[str, str], Any] = {
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("_codecs", "encode"): _latin1,
    }
    for core in ("numpy.core", "numpy._core"):
        allowed |= {
            (f"{core}.multiarray", "_reconstruct"): rebuild,
            (f"{core}.multiarray", "scalar"): scalar,
            (f"{core}.numeric", "_frombuffer"): buffer,
        }
    for module in ("builtins", "__builtin__"):
        allowed |= {(module, kind.__name__): kind for kind in (set, frozenset, complex)}
    return allowed


class _Plain:
    """For files that others made: a pickle can name any function of Python, these unpicklers refuse."""

    known = _allowed()

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self.known[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it names {module}.{name}") from None

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("it refers to things outside of it")


class _PlainUnpickler(_Plain, pickle.Unpickler):
    """The quick one, which reads a pickle as a whole."""


class _Found(Exception):
    """The first annotations of a pickle."""


class _FirstUnpickler(_Plain, pickle._Unpickler):
    """Stops at the first annotations: a list is pickled a thousand entries at a time."""

    def _append(self) -> None:
        entries = self.pop_mark()
        if entries and isinstance(entries[0], dict) and "frame_dir" in entries[0]:
            raise _Found(entries)
        self.stack[-1].extend(entries)

    dispatch = pickle._Unpickler.dispatch | {pickle.APPENDS[0]: _append}


def first_annotations(path: Path) -> list[dict[str, Any]]:
    """Some of the annotations of a pickle of pyskl, without reading the gigabytes of the others; none if it is none."""
    try:
        with path.open("rb") as file:
            _FirstUnpickler(file, encoding="latin1").load()
    except _Found as found:
        return found.args[0]
    except Exception:  # damaged, or no pickle: said when it is read as a whole
        return []
    return []


def load_pickle(path: str | Path) -> Any:
    """Content of a pickle of plain values and numpy arrays.

    Raises UserError when it is missing, damaged, or names anything else (such a file could run code).
    """
    try:
        with open(path, "rb") as file:
            return _PlainUnpickler(file, encoding="latin1").load()
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}); correct the root") from None
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} is refused or damaged: {error}; a pickle may hold plain values and arrays only"
        ) from None
    except (EOFError, ValueError, TypeError, KeyError, IndexError, AttributeError, MemoryError, ImportError) as error:
        raise UserError(f"{path} is damaged or no pickle ({type(error).__name__}: {error}); fetch it again") from None


_SOURCES: dict[str, type[Source]] = {
    "ntu": NtuFolder,
    "files": SkeletonFiles,
    "generated": GeneratedSet,
    "npz": NpzSource,
    "json": JsonSource,
    "pyskl": PysklSource,
    "openpose": OpenPoseSource,
    "poses": PoseFolder,
}

__all__ = ["Item", "Source", "SourceSpec", "load_pickle", "open_source"]
