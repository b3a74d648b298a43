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

from pipeline.metrics import METRICS, MetricName

NO_SEARCH = {"alpha_grid": (), "val_episodes": 0}  # of a measurement that does not choose its alpha
VALIDATION_SEED = 2  # of the episodes that choose alpha: other ones than those that select the checkpoint
UNUSED = {"alpha": 1.0, "episodes": 0, **NO_SEARCH}  # where a metric has no use for them; of other keys the default


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
    """How a trained run is measured; none of this enters the id of the training."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    metric: MetricName = "accuracy_pct"
    """What is measured: docs/add-a-table-row.md describes each."""
    way: int = 5
    """Classes in a test episode."""
    shot: int = 1
    """Supports per class in a test episode."""
    query: int = 1
    """Queries per class in a test episode."""
    episodes: int = 10_000
    """Test episodes."""
    val_episodes: int = 1_000
    """Episodes of the validation classes on which alpha is chosen."""
    episode_seed: int = 0
    """Seed of the test episodes."""
    score: Literal["vv", "vt", "both"] = "both"
    """Video-video matching, video-text matching, or their weighted geometric mean."""
    alpha: float | Literal["val", "own"] = "val"
    """Exponent of the video-video part (LGA, Eq. 5). "val" chooses it on the validation classes; "own" takes the
    method's own fusion of both scores (Task-Adapter's product)."""
    alpha_grid: tuple[float, ...] = ()
    """Values of alpha to choose from; empty: the settings' `alpha_grid`."""
    matcher: str | None = None
    """Matcher in the test, if not the one in training."""
    one_shot: dict[str, Any] = Field(default_factory=dict)
    """For tests of skeletons, if not the default: `feature`, and `calibration` with its settings."""
    part: str = ""
    """For params_m: count only the tuned parameters whose names begin so."""

    @model_serializer(mode="wrap")
    def _as_before(self, make: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without `one_shot` where it is empty: identities are those of before there was such a key."""
        made = make(self)
        return {key: value for key, value in made.items() if value or key != "one_shot"}

    def settled(self) -> Measure:
        """The same measurement with the keys that cannot matter for it set to one value.

        Two cells that must give the same number then have the same id: alpha does not matter for a single score,
        nor the grid for a given alpha, nor what the metric's entry does not name.
        """
        given = {key: getattr(self, key) for key in METRICS[self.metric].settings}
        settled = Measure(metric=self.metric, **(UNUSED | given))
        if settled.score != "both":
            return settled.model_copy(update={"alpha": 1.0 if settled.score == "vv" else 0.0, **NO_SEARCH})
        return settled if settled.alpha == "val" else settled.model_copy(update=NO_SEARCH)

    @property
    def scoring(self) -> dict[str, Any]:
        """The part that decides which episodes are scored, and how: the key of the cached scores."""
        return self.model_dump(include={"way", "shot", "query", "episodes", "episode_seed", "matcher", "one_shot"})

    def scoring_on(self, split: str) -> dict[str, Any]:
        """What the scores on `split` depend on beside the run."""
        chosen = {"episodes": self.val_episodes, "episode_seed": VALIDATION_SEED} if split == "val" else {}
        return {**self.scoring, "split": split} | chosen

    @property
    def scored(self) -> str:
        """What is worked out for it: the same for cells that are read off the same scores."""
        measure = self.settled()
        if METRICS[measure.metric].scored:
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
