"""Tables of videos (path, label, split) of sets whose lists of labels are not published, from the sets' own files.

    python docs/examples/semi/videos_csv.py finediving data/finediving/Annotations
    python docs/examples/semi/videos_csv.py ssv2 data/ssv2_semi

finediving: the folder with fine-grained_annotation_aqa.pkl, train_split.pkl and test_split.pkl of FineDiving's release;
writes data/{finediving,diving_10m,diving_5253b}/videos.csv. The clips of 5253B are its steps: their frames are linked
from data/finediving/videos/EVENT/NUMBER into data/diving_5253b/videos.
ssv2: the folder with something-something-v2-train.json and -validation.json; writes videos.csv there.
"""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

from pipeline.datasets.skeletons.readers import load_pickle  # of plain values only: a pickle can hold a program

DATA = Path("data")
DIVE = "5253b"


def write(folder: Path, rows: list[tuple[str, str, str]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "videos.csv", "w", newline="") as file:
        csv.writer(file).writerows([("path", "label", "split"), *sorted(rows)])
    print(f"{folder / 'videos.csv'}: {len(rows)} videos of {len({label for _, label, _ in rows})} classes")


def finediving(annotations: Path) -> None:
    told = load_pickle(annotations / "fine-grained_annotation_aqa.pkl")  # {(event, number): (type of dive, ...)}
    clips = [(key, split) for split in ("train", "test") for key in load_pickle(annotations / f"{split}_split.pkl")]
    rows = [(f"{event}/{number}", str(told[event, number][0]), split) for (event, number), split in clips]
    write(DATA / "finediving", rows)
    write(DATA / "diving_10m", [row for row in rows if "10m" in row[0].split("/")[0]])
    dives = [(key, split) for key, split in clips if str(told[key][0]).lower() == DIVE]
    write(DATA / "diving_5253b", [step for key, split in dives for step in steps(key, split, told[key][4])])


def steps(key: tuple, split: str, of_frames: list) -> list[tuple[str, str, str]]:
    """The steps of one dive as clips of their own: frames that follow each other and have the same label."""
    event, number = key
    frames = sorted((DATA / "finediving" / "videos" / str(event) / str(number)).glob("*.jpg"))
    rows = {}
    for frame, label in zip(frames, of_frames, strict=False):
        clip = f"{event}_{number}_step{label}"
        folder = DATA / "diving_5253b" / "videos" / clip
        folder.mkdir(parents=True, exist_ok=True)
        (folder / frame.name).unlink(missing_ok=True)
        (folder / frame.name).symlink_to(frame.resolve())
        rows[clip] = (clip, f"step {label}", split)
    return list(rows.values())


def ssv2(folder: Path) -> None:
    rows = []
    for split, name in (("train", "train"), ("test", "validation")):
        videos = json.loads((folder / f"something-something-v2-{name}.json").read_text())
        rows += [(f"{video['id']}.webm", video["template"], split) for video in videos]
    write(folder, rows)


if __name__ == "__main__":
    {"finediving": finediving, "ssv2": ssv2}[sys.argv[1]](Path(sys.argv[2]))
