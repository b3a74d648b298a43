"""The answers as one page: frames, phases and scores of each clip, and the example that it is most like.

It holds its pictures and its script, and reaches no network.
"""

from __future__ import annotations

import base64
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from pipeline.actions.clips import Sampled
from pipeline.files import write_text

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pipeline.actions.predict import Labeller, Prediction

SHOWN = 8  # frames of a clip
SIDE = 72  # pixels of the short side of a picture
CLIPS = 500  # clips on a page, of some 25 kB each; the JSON file has all


class Page:
    """Collects answers as they come, with small pictures of what the model saw.

    Args:
        labeller: what gave the answers.
        examples: what the model saw of each example, by its name.
    """

    def __init__(self, labeller: Labeller, examples: Mapping[str, Sampled]) -> None:
        self.labeller, self.examples = labeller, examples
        self.clips: list[dict[str, Any]] = []
        self.left_out = 0

    def add(self, found: Prediction, seen: Sampled) -> None:
        """One more answer."""
        if len(self.clips) == CLIPS:
            self.left_out += 1
            return
        count = len(seen.pixels)
        places = [(2 * i + 1) * count // (2 * min(SHOWN, count)) for i in range(min(SHOWN, count))]
        self.clips.append({
            "name": found.clip.name, "label": found.top[0].label, "truth": found.truth,
            "right": found.right if found.truth else None, "unsure": found.unsure, "rejected": found.rejected,
            "margin": found.top[0].score - found.top[1].score,
            "frames": [_frame(seen, i, found.phase) for i in places],
            "guesses": [{"label": guess.label, "percent": 100 * guess.score} for guess in found.top],
            "texts": found.texts, "like": self._like(found, places),
        })  # fmt: skip

    def _like(self, found: Prediction, places: list[int]) -> dict[str, Any] | None:
        """The nearest example with the frames that match those at `places`."""
        if found.neighbour is None or found.neighbour.clip not in self.examples:
            return None
        seen = self.examples[found.neighbour.clip]
        return {
            "name": found.neighbour.clip,
            "frames": [_frame(seen, found.neighbour.frames[i], []) for i in places],
        }

    def write(self, path: Path, record: Mapping[str, Any]) -> Path:
        """Write the page; `record` is what `predictions.json` holds."""
        classes = list(record["classes"])
        order = sorted(self.clips, key=lambda clip: (not clip["rejected"], not clip["unsure"], clip["margin"]))
        said = [(query["truth"], query["top"][0]["label"]) for query in record["queries"] if "truth" in query]
        table = [[sum(pair == (truth, label) for pair in said) for label in classes] for truth in classes]
        text = _templates().get_template("predictions.html.j2").render(
            record=record, classes=classes, clips=order, left_out=self.left_out, confusion=table if said else None,
            most=max((max(row) for row in table), default=1) or 1, calibration=self.labeller.calibration,
            about=self.labeller.model.about,
        )  # fmt: skip
        return write_text(path, text + "\n")


def thumbnail(frame: np.ndarray, side: int = SIDE) -> np.ndarray:
    """A frame (H, W, 3) with a short side of `side` pixels, or as it is where it is smaller."""
    height, width = frame.shape[:2]
    factor = side / min(height, width)
    if factor >= 1:
        return frame
    return cv2.resize(frame, (round(width * factor), round(height * factor)), interpolation=cv2.INTER_AREA)


def _frame(seen: Sampled, place: int, phases: list[int]) -> dict[str, Any]:
    """A picture with when it is shown and the phase that it belongs to (0: of none)."""
    when = f"{seen.seconds[place]:.1f} s" if len(seen.seconds) else f"frame {seen.positions[place]}"
    picture = cv2.cvtColor(thumbnail(seen.pixels[place]), cv2.COLOR_RGB2BGR)
    data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 80])[1].tobytes()
    return {"when": when, "phase": phases[place] if phases else 0, "data": base64.b64encode(data).decode("ascii")}


@lru_cache
def _templates():
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("pipeline.actions")
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
