"""What an experiment is: a `Run` is one training, a `Cell` is one measured number.

Their ids are a readable prefix and a short hash of the canonical JSON of everything that can change the result,
so equal experiments of different tables are one and the same file, and a changed setting never reuses an old
number. This is the only identity in the system; nothing heavy is imported here, because Snakemake reads it at
parse time in every job.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from functools import cached_property
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

SCORES = ("vv", "vt", "both")
SCORED = ("accuracy_pct", "opposite_pct")
"""Metrics that are read off the scores of a test; the others come from the model itself."""


def canonical(value: Any) -> str:
    """Canonical JSON: sorted keys, no blanks, 1.0 written as 1, so that equal settings have equal text."""

    def plain(item: Any) -> Any:
        if isinstance(item, BaseModel):
            return plain(item.model_dump(mode="json"))
        if isinstance(item, dict):
            return {str(key): plain(entry) for key, entry in item.items()}
        if isinstance(item, list | tuple):
            return [plain(entry) for entry in item]
        if isinstance(item, float) and item.is_integer():
            return int(item)
        return item

    return json.dumps(plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(value: Any, length: int = 8) -> str:
    """First `length` hexadecimal digits of the SHA-256 of the canonical JSON of `value`."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()[:length]


def slug(text: str) -> str:
    """`text` as a part of a file name: letters, digits and underscores only."""
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")


class Frozen(BaseModel):
    """Immutable, and strict about unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Asset(Frozen):
    """Something that is made once and used by many runs: a data set or a backbone.

    `key` (name and hash of `spec`) is its folder's name; `options` (where files lie on this machine, number of
    processes) do not change results and stay out of the hash.
    """

    name: str
    spec: dict[str, Any]
    options: dict[str, Any] = Field(default_factory=dict)

    @cached_property
    def key(self) -> str:
        """Readable name and hash."""
        return f"{slug(self.name)}-{digest(self.spec)}"


class Run(Frozen):
    """One training (or, for a method without one, one frozen model).

    Everything that changes the weights is in here, and nothing that only changes how they are measured.
    """

    method: str
    model: dict[str, Any]
    """Architecture knobs, as the model class takes them."""
    train: dict[str, Any]
    """Recipe: episodes per step, steps, learning rates, augmentation."""
    dataset: str
    """Key of the data set."""
    frames: dict[str, Any]
    """Frame policy: how many frames are stored and how large."""
    backbone: str
    """Key of the backbone."""
    text: str = ""
    """Hash of the text corpus where the user provides it; a generated one is part of the data set's key."""
    scale: str
    seed: int = 0
    selection: Literal["val", "last", "test"] = "val"
    recipe: int = 1
    """Raised by hand when a change of code changes results."""

    @cached_property
    def id(self) -> str:
        """Identity of the training."""
        name = "-".join([slug(self.method), self.dataset.rsplit("-", 1)[0], f"s{self.seed}"])
        return f"{name}-{digest(self)}"


class Measure(Frozen):
    """How a trained run is measured; none of this reaches `Run.id`."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    metric: Literal[
        "accuracy_pct", "opposite_pct", "time_ms", "params_m", "teacher_time_share_pct", "teacher_spread_pct"
    ] = "accuracy_pct"
    way: int = 5
    shot: int = 1
    query: int = 1
    """Queries per class of a test episode."""
    episodes: int = 10_000
    val_episodes: int = 1_000
    """Episodes of the validation classes on which alpha is chosen."""
    episode_seed: int = 0
    score: Literal["vv", "vt", "both"] = "both"
    """Video-video matching, video-text matching, or their weighted geometric mean."""
    alpha: float | Literal["val", "own"] = "val"
    """Exponent of the video-video part (LGA, Eq. 5); "val" picks it on the validation classes; "own" takes the score
    that the method itself makes of both (Task-Adapter's product)."""
    alpha_grid: tuple[float, ...] = ()
    matcher: str | None = None
    """Matcher at test where it differs from the one in training."""
    one_shot: dict[str, Any] = Field(default_factory=dict)
    """Of a test of skeletons, where it is another than the default: `feature`, and `calibration` with its settings."""
    part: str = ""
    """Of params_m: the tuned parameters whose names begin so, all without it."""

    @model_serializer(mode="wrap")
    def _as_before(self, make: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without `one_shot` where it is empty: identities are those of before there was such a key."""
        made = make(self)
        return {key: value for key, value in made.items() if value or key != "one_shot"}

    def settled(self) -> Measure:
        """The same measurement with the keys that cannot matter for it set to one value.

        Two cells that must give the same number then have the same id: alpha does not matter for a single score,
        nor the grid for a given alpha.
        """
        changes: dict[str, Any] = {}
        if self.score != "both":
            changes |= {"alpha": 1.0 if self.score == "vv" else 0.0, "alpha_grid": (), "val_episodes": 0}
        elif self.alpha != "val":
            changes |= {"alpha_grid": (), "val_episodes": 0}
        if self.metric not in SCORED:
            changes |= {"alpha": 1.0, "alpha_grid": (), "val_episodes": 0, "episodes": 0, "score": "both"}
        if self.metric == "params_m":
            return Measure(metric="params_m", part=self.part, **changes)
        if self.metric in ("teacher_time_share_pct", "teacher_spread_pct"):
            return Measure(metric=self.metric, **changes)
        changes["part"] = ""
        return self.model_copy(update=changes)

    @property
    def scoring(self) -> dict[str, Any]:
        """The part that decides which episodes are scored, and how: the key of the cached scores."""
        return self.model_dump(include={"way", "shot", "query", "episodes", "episode_seed", "matcher", "one_shot"})

    @property
    def scored(self) -> str:
        """What is worked out for it: the same for cells that are read off the same scores."""
        measure = self.settled()
        if measure.metric in SCORED:
            return canonical(measure.scoring)
        return canonical({"metric": measure.metric, "part": measure.part, **measure.scoring})


class Cell(Frozen):
    """One number: a run and a measurement of it."""

    run: Run
    measure: Measure

    @cached_property
    def id(self) -> str:
        """Identity of the number."""
        return f"{self.run.id}.{digest(self.measure.settled())}"


def store_key(frames: Mapping[str, Any]) -> str:
    """Folder name of the frame store of a frame policy."""
    return f"frames-{digest(frames['store'])}"
