"""A trained few-shot model for videos of one's own: from a run, or from a folder that needs nothing else.

An exported folder holds `model.json` (what the model is made with), `model.safetensors` (what training changed) and
`backbone/`; no pickles. Loading it needs no results folder, no Snakemake and no Ray.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.actions.calibration import Calibration, calibrations
from pipeline.actions.clips import OwnClip, Sampled, read_all
from pipeline.actions.runs import choose_run
from pipeline.compat import MODELS
from pipeline.config import parse
from pipeline.datasets.index import classes_of, read_index
from pipeline.datasets.transforms import ClipTransform
from pipeline.errors import UserError
from pipeline.experiment import Frozen, Run
from pipeline.files import new_folder, write_json
from pipeline.guarded import Failure
from pipeline.models.build import (
    TEXT_KEYS,
    WEIGHTS,
    backbone_arguments,
    class_sentences,
    load_weights,
    make_model,
    model_arguments,
)
from pipeline.models.few_shot.base import FewShotModel
from pipeline.text.corpus import Corpus
from pipeline.workspace import Workspace

FORMAT = 1  # of an exported folder
ABOUT, BACKBONE = "model.json", "backbone"
BATCH = 16  # clips encoded at a time
FROZEN = "frozen"  # the method of a model without a run


class About(Frozen):
    """`model.json`: everything about a model but its tensors."""

    format: int = FORMAT
    run: str = Field(description="id of the training")
    method: str
    scale: str
    seed: int = 0
    type: str = Field(description="class of the model")
    arguments: dict[str, Any] = Field(description="what it is made with, beside its backbone")
    backbone: str = Field(description="class of the backbone")
    texts: dict[str, Any] = Field({}, description="which texts of a class it reads, in which template")
    frames: dict[str, Any] = Field(description="frame policy")
    classes: list[str] = Field([], description="classes that it was trained on")
    alphas: dict[int, float] = Field({}, description="weight of the video-video score, by the number of shots")
    calibrations: dict[str, Calibration] = Field({}, description="how scores become probabilities, by what is scored")
    versions: dict[str, str] = Field({}, description="of the packages that wrote it")


@dataclass(frozen=True, slots=True)
class Encoded:
    """A clip, what the model works out for it on its own, and the frames that it saw."""

    clip: OwnClip
    features: Tensor
    seen: Sampled


class ActionModel:
    """A trained model, in evaluation mode, on the GPU if there is one."""

    def __init__(self, about: About, model: FewShotModel) -> None:
        self.about = about
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = model.eval().to(self.device)
        self._transform = ClipTransform(crop=about.frames["crop"])

    @torch.inference_mode()
    def encode(self, clips: Sequence[OwnClip], workers: int = 1) -> Iterator[Encoded | tuple[OwnClip, Failure]]:
        """Each clip encoded, or with the reason why it cannot be read; decoded by `workers` processes, in batches."""
        read = read_all(clips, self.about.frames, self.about.seed, workers)
        while part := list(islice(read, BATCH)):
            good = [(clip, seen) for clip, seen in part if not isinstance(seen, Failure)]
            if good:
                rng = np.random.default_rng(self.about.seed)
                frames = torch.stack([self._transform(seen.pixels, rng) for _, seen in good])
                features = iter(self.model.encode(self.model.pixels(frames)))
            for clip, seen in part:
                yield (clip, seen) if isinstance(seen, Failure) else Encoded(clip, next(features), seen)

    def class_texts(self, corpus: Corpus, classes: Sequence[str]) -> Tensor:
        """Features (C, L, D) of the texts of `classes`.

        Raises:
            UserError: the corpus lacks a class, or the text that the method reads.
        """
        with torch.inference_mode():
            return self.model.encode_texts(class_sentences(corpus, classes, self.about.texts))

    def alpha(self, shots: int) -> float | None:
        """The weight of the video-video score that was chosen for the nearest number of shots, if one was."""
        known = self.about.alphas
        return known[min(known, key=lambda n: (abs(n - shots), n))] if known else None


# ------------------------------------------------------------------------------------------------ from runs
def describe_run(run: Run, ws: Workspace) -> About:
    """What `model.json` says of a run. Raises UserError when its data set, texts or backbone are not there."""
    stored = ws.store(run) / "index.csv"  # of the clips that were trained on
    classes = classes_of(read_index(stored if stored.is_file() else ws.dataset(run.dataset) / "index.csv"), "train")
    return About(
        run=run.id, method=run.method, scale=run.scale, seed=run.seed, type=run.model["type"],
        arguments=model_arguments(run, ws, classes), backbone=backbone_arguments(run.backbone, ws)["type"],
        texts={key: run.model[key] for key in (*TEXT_KEYS, "atoms") if key in run.model},
        frames=run.frames, classes=classes, alphas=_alphas(run, ws),
        versions={name: version(name) for name in ("torch", "transformers", "mmaction2")},
    )  # fmt: skip


def _alphas(run: Run, ws: Workspace) -> dict[int, float]:
    """The alphas that validation chose, from the measured cells of a run."""
    chosen = {}
    for path in sorted(ws.cell(run.id).parent.glob(f"{run.id}.*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        measure = record["measure"]
        own = measure["matcher"] in (None, run.model.get("matcher"))
        if own and measure["score"] == "both" and measure["alpha"] == "val" and record["alpha"] is not None:
            chosen[measure["shot"]] = record["alpha"]
    return chosen


def model_of_run(run: Run, ws: Workspace, calibrate: bool = False) -> ActionModel:
    """The trained model of a run in the results folder.

    calibrate: with how its scores become probabilities, which is fitted where it is not there yet.

    Raises:
        UserError: it is not trained, or something that it is made of is missing.
    """
    about = describe_run(run, ws)
    if calibrate:
        about = about.model_copy(update={"calibrations": calibrations(run, ws, about.alphas)})
    model = make_model(about.type, backbone_arguments(run.backbone, ws), about.arguments, run.method, run.seed)
    return ActionModel(about, load_weights(model, run, ws))


# ----------------------------------------------------------------------------------------------- exported
def export_model(run: Run, ws: Workspace, folder: str | Path) -> Path:
    """Write the trained model of a run into a folder that needs nothing else; returns it.

    Raises:
        UserError: the folder is there and is no exported model; or as `model_of_run`.
    """
    _check_target(Path(folder))
    # The backbone as it was before the training: adapters are put into it when the model is made.
    return write_model(
        model_of_run(run, ws, calibrate=True), MODELS.build(backbone_arguments(run.backbone, ws)), folder
    )


def write_model(model: ActionModel, backbone: torch.nn.Module, folder: str | Path) -> Path:
    """Write a model and its untrained backbone into a folder that needs nothing else; returns it.

    Raises:
        UserError: the folder is there and is no exported model.
    """
    _check_target(folder := Path(folder))
    with new_folder(folder) as made:
        backbone.save(made / BACKBONE)
        state = {name: value.contiguous().cpu() for name, value in model.model.trained_state().items()}
        save_file(state, made / WEIGHTS, {"format": "pt"})
        write_json(made / ABOUT, model.about.model_dump(mode="json"))
    return folder


def _check_target(folder: Path) -> None:
    if folder.exists() and not (folder.is_dir() and ((folder / ABOUT).is_file() or not any(folder.iterdir()))):
        raise UserError(f"{folder} is there and holds no exported model; name another folder")


def load_model(folder: str | Path) -> ActionModel:
    """The model of an exported folder.

    Raises:
        UserError: the folder is none, is not whole, or is of another version.
    """
    folder = Path(folder)
    try:
        content = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UserError(
            f"{folder} holds no exported model ({ABOUT}); make one with `python -m pipeline export`"
        ) from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(f"{folder / ABOUT} has another version's format; export the model again")
    about = parse(About, content, str(folder / ABOUT))
    for name in (WEIGHTS, BACKBONE):
        if not (folder / name).exists():
            raise UserError(f"{folder / name} is missing; export the model again")
    backbone = {"type": about.backbone, "source": str(folder / BACKBONE)}
    model = make_model(about.type, backbone, about.arguments, about.method, about.seed)
    try:
        model.load_trained_state(load_file(folder / WEIGHTS))
    except (KeyError, OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{folder / WEIGHTS} cannot be loaded ({error}); export the model again") from error
    return ActionModel(about, model)


def find_model(
    folder: str = "", run: str = "", method: str = "", results: str | Path = "results", classes: Collection[str] = (),
    calibrate: bool = False,
) -> ActionModel:  # fmt: skip
    """The model that a command names: an exported folder, or a trained run of the results folder.

    classes: of the examples, for the choice among the runs of a method. calibrate: see `model_of_run`.

    Raises:
        UserError: none or several fit.
    """
    if folder:
        if run or method:
            raise UserError("give an exported model (--model), or a run (--run, --method), not both")
        return load_model(folder)
    ws = Workspace(results)
    return model_of_run(choose_run(ws, run, method, classes), ws, calibrate)
