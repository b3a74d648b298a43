"""The commands `predict`, `embed` and `export`, as functions."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.actions.clips import OwnClip, Sampled, labelled_clips, loose_clips
from pipeline.actions.model import ActionModel, Encoded
from pipeline.actions.page import Page, thumbnail
from pipeline.actions.picture import write_picture
from pipeline.actions.predict import ALPHA, Labeller, Prediction, proportion
from pipeline.errors import UserError
from pipeline.files import write_bytes, write_json
from pipeline.guarded import Failure
from pipeline.scores import calibration_error
from pipeline.text.corpus import load_corpus

Say = Callable[[str], None]
THUMBNAIL = 72  # pixels of the short side of the examples' frames that the page shows


@dataclass(frozen=True)
class Asked:
    """What `predict` is asked for."""

    support: Path
    query: Path
    texts: str = ""
    alpha: float | None = None
    truth: bool = False
    strip_prefix: bool = False
    pictures: int = 8
    workers: int = 1
    pattern: str = ""
    reject: float = 0.0


def predict_clips(model: ActionModel, asked: Asked, out: Path, say: Say = print) -> Path:
    """Label the query clips, print them, and write `predictions.json`, `index.html` and pictures into `out`.

    A clip that cannot be read is named in a line and in the file; the rest goes on.

    Raises:
        UserError: a folder, class or text is missing, or no clip can be read.
    """
    support = labelled_clips(asked.support, asked.strip_prefix, asked.pattern)
    _check_classes(asked.support, support)
    if asked.truth:
        queries = labelled_clips(asked.query, asked.strip_prefix, asked.pattern)
    else:
        queries = loose_clips(asked.query, asked.pattern)
    corpus = load_corpus(asked.texts) if asked.texts else None
    bad: list[dict[str, str]] = []
    examples = _encoded(model, support, "support", asked.workers, bad)
    labeller = Labeller(model, examples, corpus, asked.alpha, asked.reject)
    for name in sorted({clip.label for clip in support} - set(labeller.classes)):
        print(f"left out: class {name}: none of its clips can be read", file=sys.stderr, flush=True)
    if asked.truth:
        _check_truth(queries, labeller.classes, asked.query)
    say(_about(labeller, asked))
    found: list[Prediction] = []
    page = Page(labeller, {item.clip.name: item.seen for item in examples})
    for item in labeller.label(queries, asked.workers):
        if isinstance(item[1], Failure):
            _report(item[0], item[1], "query", bad)
            continue
        _, seen, prediction = item
        found.append(prediction)
        page.add(prediction, seen)
        say(_line(prediction))
        if len(found) <= asked.pictures:
            _draw(out, prediction, seen, [clip.name for clip in queries])
    if not found:
        raise UserError(f"none of the {len(queries)} clips of {asked.query} can be read")
    record = _record(labeller, found, bad, asked)
    for line in _summary(record, labeller):
        say(line)
    page.write(out / "index.html", record)
    write_json(out / "predictions.json", record)
    return out / "predictions.json"


def embed_clips(model: ActionModel, clips: Sequence[OwnClip], out: Path, workers: int = 1) -> tuple[int, list[dict]]:
    """Write `out` (npz) with what the model works out for each clip: `features` (V, ...) float32, `clips` (V,) names,
    `labels` (V,) classes where they are known. Returns how many, and the clips that cannot be read.

    Raises:
        UserError: no clip can be read.
    """
    bad: list[dict[str, str]] = []
    found = _encoded(model, clips, "clip", workers, bad)
    arrays: dict[str, Any] = {
        "features": np.stack([item.features.float().cpu().numpy() for item in found]),
        "clips": np.array([item.clip.name for item in found]),
        "run": np.array(model.about.run),
    }
    if all(item.clip.label for item in found):
        arrays["labels"] = np.array([item.clip.label for item in found])
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    write_bytes(out, stream.getvalue())
    return len(found), bad


def _encoded(
    model: ActionModel, clips: Sequence[OwnClip], what: str, workers: int, bad: list[dict[str, str]]
) -> list[Encoded]:
    """The clips that can be read, encoded, with small pictures in the place of their frames."""
    found = []
    for item in model.encode(clips, workers):
        if isinstance(item, Encoded):
            small = np.stack([thumbnail(frame, THUMBNAIL) for frame in item.seen.pixels])
            seen = Sampled(small, item.seen.positions, item.seen.seconds, item.seen.source_frames)
            found.append(Encoded(item.clip, item.features, seen))
        else:
            _report(*item, what, bad)
    if not found:
        raise UserError(f"none of the {len(clips)} clips can be read; the first, {bad[0]['clip']}: {bad[0]['reason']}")
    return found


def _report(clip: OwnClip, failure: Failure, what: str, bad: list[dict[str, str]]) -> None:
    print(f"left out: {what} {clip.name}: {failure.reason}", file=sys.stderr, flush=True)
    bad.append({"clip": clip.name, "part": what, "reason": failure.reason})


def _check_classes(folder: Path, support: Sequence[OwnClip]) -> None:
    """Raises UserError where there are fewer than two classes, before anything is encoded."""
    names = sorted({clip.label for clip in support})
    if len(names) > 1:
        return
    inside = Path(support[0].name).parts[0]
    deeper = any(len(Path(clip.name).parts) > 2 for clip in support)
    hint = f"; if the folders in it are the classes, give --support {folder / inside}" if deeper else ""
    raise UserError(f"{folder} has 1 class, {names[0]!r}; give at least two{hint}")


def _check_truth(queries: Sequence[OwnClip], classes: Sequence[str], folder: Path) -> None:
    if odd := sorted({clip.label for clip in queries} - set(classes)):
        raise UserError(f"{folder}: the class {odd[0]!r} has no readable clip in the support; add some or drop --truth")


def _about(labeller: Labeller, asked: Asked) -> str:
    shots = sorted(set(labeller.shots.values()))
    number = str(shots[0]) if len(shots) == 1 else f"{shots[0]} to {shots[-1]}"
    line = f"{labeller.model.about.run}: {len(labeller.classes)} classes of {number} clip{'s' * (shots[-1] > 1)}"
    if asked.texts and labeller.corpus is None:
        return f"{line}; {labeller.model.about.method} reads no texts"
    if labeller.corpus is None:
        return f"{line}, video-video alone"
    if labeller.alpha is not None:
        return f"{line}, alpha {labeller.alpha:g}"
    return f"{line}, both branches as the method joins them, or with alpha {ALPHA:g}"


def _line(found: Prediction) -> str:
    """The best classes, with both branches, and the phases, in one line."""
    parts = []
    for guess in found.top:
        branches = "" if guess.video_text is None else (
            f" (video-video {100 * guess.video_video:.0f}, video-text {100 * guess.video_text:.0f})"
        )  # fmt: skip
        parts.append(f"{guess.label} {100 * guess.score:.0f} %{branches}")
    mark = "" if not found.truth else "  right" if found.right else f"  wrong, it is {found.truth}"
    doubt = "none of these: " if found.rejected else "unsure: " if found.unsure else ""
    return f"{found.clip.name}: {doubt}{' | '.join(parts)}{_phases(found)}{mark}"


def _phases(found: Prediction) -> str:
    """Where the phases begin and end, such as `; phases 1: 0.1-0.6 s, 2: 0.8-1.9 s`."""
    if not found.phase:
        return ""
    at, unit = (found.seconds, " s") if found.seconds else (found.frames, "")
    spans = []
    for number, run in groupby(zip(found.phase, at, strict=True), key=itemgetter(0)):  # TW-FINCH may come back to one
        times = [time for _, time in run]
        spans.append(f"{number}: {times[0]:.4g}-{times[-1]:.4g}{unit}")
    return f"; {'phases' if unit else 'phases by frame'} {', '.join(spans)}"


def _draw(out: Path, found: Prediction, seen: Sampled, names: Sequence[str]) -> None:
    """The picture of a clip; names that differ in odd characters alone get a number."""
    safe = [re.sub(r"[^\w.-]+", "_", name) for name in names]
    mine = names.index(found.clip.name)
    again = safe[:mine].count(safe[mine])
    write_picture(out / f"{safe[mine]}{f'-{again + 1}' if again else ''}.png", found, seen)


def _record(labeller: Labeller, found: list[Prediction], bad: list[dict], asked: Asked) -> dict[str, Any]:
    """What `predictions.json` holds."""
    about = labeller.model.about
    record: dict[str, Any] = {
        "run": about.run, "method": about.method, "scale": about.scale, "classes": labeller.classes,
        "shots": labeller.shots, "alpha": labeller.alpha, "texts": asked.texts if labeller.corpus else None,
        "calibration": labeller.calibration.model_dump(mode="json"), "reject": asked.reject,
        "queries": [prediction.as_dict() for prediction in found], "unreadable": bad,
    }  # fmt: skip
    if not asked.truth:
        return record
    for name, answers in (("accuracy", found), ("accuracy_of_taken", [one for one in found if not one.rejected])):
        right = sum(prediction.right for prediction in answers)
        value, low, high = proportion(right, len(answers)) if answers else (None, None, None)
        record[name] = {"value": value, "low95": low, "high95": high, "right": right, "n": len(answers)}
    certain, right = [one.top[0].score for one in found], [one.right for one in found]
    record["calibration_error"] = calibration_error(np.array(certain), np.array(right))
    return record


def _summary(record: dict[str, Any], labeller: Labeller) -> list[str]:
    """What is said at the end: doubts, and with --truth how good the answers and their probabilities are."""
    queries = record["queries"]
    lines = []
    if unsure := sum(query["unsure"] for query in queries):
        lines.append(
            f"unsure of {unsure} of {len(queries)}: their best two classes are closer than the "
            f"{100 * labeller.calibration.error:.0f} points by which probabilities err"
        )
    rejected = sum(query["rejected"] for query in queries)
    if rejected:
        lines.append(f"{rejected} of {len(queries)} are none of these: below {100 * record['reject']:g} %")
    if "accuracy" in record:
        lines.append(f"accuracy {_share(record['accuracy'])}")
        if 0 < rejected < len(queries):
            lines.append(f"without those that are none of these: {_share(record['accuracy_of_taken'])}")
        error = 100 * record["calibration_error"]
        lines.append(f"expected calibration error {error:.1f} % (the gap between probability and accuracy)")
    return lines


def _share(found: dict[str, Any]) -> str:
    ends = f"95 % interval {found['low95']:.1f} to {found['high95']:.1f}"
    return f"{found['value']:.1f} %, {ends}: {found['right']} of {found['n']} right"
