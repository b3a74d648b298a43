"""The command `describe`: which classes, which prompts, which model; then ask, or convert a published corpus."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config import Config
from pipeline.datasets.counts import listed_classes
from pipeline.datasets.index import read_index
from pipeline.datasets.kinds.base import DataSet
from pipeline.datasets.kinds.registry import defined
from pipeline.datasets.splits import read_class_list
from pipeline.errors import UserError
from pipeline.plan import Plan
from pipeline.text.corpus import import_corpus
from pipeline.text.prompts import Prompt, questions, resolve, tell
from pipeline.workspace import Workspace


@dataclass(frozen=True)
class Wishes:
    """What the command line says; empty: as configured."""

    dataset: str = ""
    classes: str = ""
    prompts: str = ""
    model: str = ""
    base_url: str = ""
    graph: str = ""
    imported: str = ""


def describe_command(
    wishes: Wishes,
    config: Config,
    out: Path,
    results: Path,
    cache: str | Path,
    dry_run: bool = False,
    say: Callable[[str], None] = tell,
) -> None:
    """Write the corpus `out`; with `dry_run` only say what it would take.

    Raises UserError when the wishes are wrong or a class gets no usable answer.
    """
    if wishes.imported:
        names: list[str] = read_class_list(wishes.classes) if wishes.classes else []
        corpus = import_corpus(wishes.imported.split(","), names)
        for source in corpus.provenance.values():
            if isinstance(source, dict) and (left := source.get("without_parts")):
                say(f"not six parts, so no texts of joints: {', '.join(left)}")
        say(str(corpus.save(out)))
        return
    if bool(wishes.dataset) == bool(wishes.classes):
        raise UserError("name either a data set or a file of classes (--classes)")
    data = defined(config, wishes.dataset, "the command line") if wishes.dataset else None
    asked = resolve(config, _laid_over(data, wishes), (data or DataSet).prompts, "the command line")
    joints = _joints(wishes.graph) if wishes.graph else data.joints if data else ()
    if not wishes.prompts and not asked["prompts"]:
        raise UserError("no prompt is named; give --prompts")
    if data:
        names = _classes(config, data, results)
    else:
        names = read_class_list(wishes.classes)
    from pipeline.text.describe import Answers, describe_with, estimate, labels_of

    if dry_run:
        from pipeline.config import LLM

        prompts = {name: Prompt.model_validate(prompt) for name, prompt in asked["prompts"].items()}
        settings = LLM.model_validate({**asked, "prompts": list(prompts)})
        say(estimate(questions(prompts, labels_of(names), joints), Answers(cache, settings)).line(settings))
        return
    say(str(describe_with(asked, names, cache, joints, say).save(out)))


def _laid_over(data: DataSet | None, wishes: Wishes) -> dict[str, Any]:
    """The data set's key `describe` under what the command line says."""
    given = data.definition.describe if data else None
    made = dict(given) if isinstance(given, Mapping) else {}
    made |= {key: value for key in ("model", "base_url") if (value := getattr(wishes, key))}
    if wishes.prompts:
        made["prompts"] = [name.strip() for name in wishes.prompts.split(",") if name.strip()]
    return made


def _joints(graph: str) -> tuple[str, ...]:
    from pipeline.datasets.skeletons.graph import get_graph

    return get_graph(graph).names


def _classes(config: Config, data: DataSet, results: Path) -> list[str]:
    """Classes of a prepared data set, else those that its lists name."""
    asset = Plan(config).dataset(data.asset.name, "the command line")
    index = Workspace(results).index(asset.key)
    if index.is_file():
        return sorted({clip.label for clip in read_index(index)})
    return listed_classes(data)
