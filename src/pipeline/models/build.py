"""From a `Run` to its model: plain arguments out of the run, texts out of the corpus, weights out of its folder."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from pipeline.compat import MODELS
from pipeline.datasets.frames import FrameStore
from pipeline.errors import UserError, unknown
from pipeline.experiment import Run
from pipeline.models import few_shot  # noqa: F401  (registers the methods)
from pipeline.models.few_shot.base import FewShotModel
from pipeline.models.questions import QuestionModel
from pipeline.models.semi import SeFARModel
from pipeline.models.skeleton import baseline, crossglg, dml, gap  # noqa: F401  (register the methods)
from pipeline.models.skeleton.base import SkeletonModel
from pipeline.text.corpus import Corpus, load_corpus
from pipeline.workspace import Workspace

if TYPE_CHECKING:
    pass

TEXT_KEYS = ("text", "template")
MEMORY = ("activation_checkpointing",)  # of a few-shot model's settings, those of its backbone
BACKBONES = {
    "clip": "CLIPBackbone", "resnet": "ResNetBackbone", "efficientnet": "EfficientNetBackbone",
    "locked_clip": "LockedCLIP", "vision_language": "VisionLanguageBackbone", "vision_server": "VisionServerBackbone",
}  # fmt: skip
WEIGHTS = "model.safetensors"
Model = TypeVar("Model", FewShotModel, SkeletonModel, SeFARModel, QuestionModel)


def class_sentences(corpus: Corpus, classes: Sequence[str], model: dict[str, Any]) -> list[list[str]]:
    """The sentences of each class that a method reads, each in `template`, where {} is the text and {label} the label.
    Of several templates each gives a sentence.

    text: label; atomic, L atomic descriptions; stages, the three sub-actions; concat, these in one sentence.

    Raises:
        UserError: the corpus has no such text for a class, or `text` is unknown.
    """
    kind, templates = model.get("text", "label"), model.get("template", "{}")
    templates = [templates] if isinstance(templates, str) else templates
    if kind == "label":
        sentences = [[corpus.label(name)] for name in classes]
    elif kind == "atomic":
        sentences = [corpus.atomic(name, model.get("atoms", 3)) for name in classes]
    elif kind == "stages":
        sentences = [corpus.stages(name) for name in classes]
    elif kind == "concat":
        sentences = [[" ".join(corpus.stages(name))] for name in classes]
    else:
        raise unknown("text", kind, ("label", "atomic", "stages", "concat"), "model settings")
    return [
        [template.format(sentence, label=corpus.label(name)) for template in templates for sentence in row]
        for name, row in zip(classes, sentences, strict=True)
    ]


def backbone_source(key: str, ws: Workspace) -> str | dict[str, Any]:
    """Folder, hub id, or architecture for random weights, of a planned backbone."""
    asset = ws.read_asset(key)
    if "sources" in asset.spec:
        return str(ws.backbone(key))
    return asset.options.get("path") or asset.spec["source"]


def backbone_arguments(key: str, ws: Workspace) -> dict[str, Any]:
    """What builds a planned backbone: its type and where its weights are."""
    kind = ws.read_asset(key).spec.get("kind", "clip")
    if kind not in BACKBONES:
        raise unknown("kind", kind, BACKBONES, "config/backbones.yaml")
    made = {"type": BACKBONES[kind], "source": backbone_source(key, ws)}
    if kind != "vision_server":
        return made
    asset = ws.read_asset(key)
    asked = {"parameters": asset.spec.get("parameters"), "llm": asset.options.get("llm")}
    return made | asked | {"cache": str(ws.answers)}


def build_model(run: Run, ws: Workspace, store: FrameStore) -> FewShotModel:
    """The untrained model of `run`, initialised from its seed.

    Raises:
        UserError: unknown method type or setting, missing backbone or text.
    """
    arguments = model_arguments(run, ws, store.classes("train"))
    return make_model(run.model["type"], backbone_arguments(run.backbone, ws), arguments, run.method, run.seed)


def model_arguments(run: Run, ws: Workspace, base_classes: Sequence[str]) -> dict[str, Any]:
    """What the class of a few-shot run is made with beside its backbone: plain values, as JSON has them.

    Raises:
        UserError: unknown method type, missing text.
    """
    settings = {key: value for key, value in run.model.items() if key not in ("type", *TEXT_KEYS)}
    kind = few_shot_kind(run.model["type"], run.method)
    if kind.wants_text:
        corpus = load_corpus(ws.dataset(run.dataset) / "texts.json")
        settings["base_texts"] = class_sentences(corpus, base_classes, run.model)
    if "frames" in inspect.signature(kind).parameters:
        settings["frames"] = run.frames["number"]
    if kind.wants_classes:
        settings["base_classes"] = len(base_classes)
    if "video_text_weight" in run.train:
        settings["video_text_weight"] = run.train["video_text_weight"]
    return settings


def make_model(
    kind: str, backbone: dict[str, Any], arguments: dict[str, Any], method: str, seed: int = 0
) -> FewShotModel:
    """The few-shot model of class `kind` with untrained weights from `seed`; `method` is named in errors.

    Raises:
        UserError: unknown class or argument, or a backbone that can't be read.
    """
    made = few_shot_kind(kind, method)
    of_backbone = {key: value for key, value in arguments.items() if key in MEMORY}
    arguments = {key: value for key, value in arguments.items() if key not in MEMORY}
    torch.manual_seed(seed)
    try:
        return made(backbone=backbone | of_backbone, **arguments)
    except TypeError as error:
        raise UserError(f"method {method}: {str(error).removeprefix(made.__name__ + '.__init__() ')}") from error


def few_shot_kind(name: str, method: str) -> type[FewShotModel]:
    """The class of a few-shot method by its name in MODELS; raises UserError if there is none."""
    kind = MODELS.get(name)
    if not _is_method(kind):
        known = [name for name, entry in MODELS.module_dict.items() if _is_method(entry)]
        raise unknown("model type", name, known, f"method {method}")
    return kind


def _is_method(entry: Any) -> bool:
    """Whether an entry of MODELS, which holds functions too, is a few-shot method."""
    return isinstance(entry, type) and issubclass(entry, FewShotModel)


def load_weights(model: Model, run: Run, ws: Workspace) -> Model:
    """`model` with the weights that the training of `run` left, in evaluation mode.

    Raises:
        UserError: it is not trained yet.
    """
    if run.train:
        path = ws.run(run.id) / WEIGHTS
        if not path.is_file():
            raise UserError(f"{path} is missing: train it with `python -m pipeline train {run.id}`")
        try:
            model.load_trained_state(load_file(path))
        except (KeyError, OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise UserError(f"{path} cannot be loaded ({error}); delete it and train again") from error
    return model.eval()
