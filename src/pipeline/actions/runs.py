"""Which trained run is meant: by its id, or by its method; and in which settings runs of a method differ."""

from __future__ import annotations

import difflib
import json
import sys
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from pipeline.compat import MODELS
from pipeline.config import read_yaml
from pipeline.datasets.index import classes_of, read_index
from pipeline.errors import UserError
from pipeline.experiment import Run, canonical
from pipeline.models.few_shot.base import FewShotModel
from pipeline.models.semi import SeFARModel
from pipeline.models.skeleton.base import SkeletonModel
from pipeline.names import normal
from pipeline.workspace import Workspace

CONFIG = Path("config")
LISTED = 8  # other runs that are named when one is taken
NAMED = 3  # runs that an error names
ELSEWHERE = {
    SkeletonModel: "it reads joints, not videos: `python -m pipeline pose` finds them, and a data set of poses "
    "(docs/pose.md) with its cells in a table measures it",
    SeFARModel: "it knows the classes that it was trained on and learns none from examples: `python -m pipeline "
    "evaluate {run}` measures it",
}
OTHER = "it answers questions on the classes that it was trained on: `python -m pipeline evaluate {run}` measures it"


def trained_runs(ws: Workspace, few_shot: bool = True) -> list[Run]:
    """The finished trainings by their ids: of few-shot methods on videos, or of all."""
    found = []
    for path in sorted((ws.root / "runs").glob("*/train.json")):
        try:
            run = Run.model_validate_json(path.with_name("run.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue  # of an older version, or not whole
        if not few_shot or _is(run, FewShotModel):
            found.append(run)
    return found


def _is(run: Run, base: type) -> bool:
    kind = MODELS.get(run.model["type"])
    return isinstance(kind, type) and issubclass(kind, base)


def choose_run(ws: Workspace, name: str = "", method: str = "", classes: Collection[str] = ()) -> Run:
    """The trained run whose id begins with `name`; or of those of `method` the one that serves best.

    That is one with the method's own settings (of config/methods, as the sheets have them where no row changes them);
    of such runs one whose data set shares most class names with `classes`, a data set of real videos before a generated
    one, then the best on its validation classes. What else fits is listed on stderr.

    Raises:
        UserError: there is none, several ids begin so, or it is of a kind that knows no few examples.
    """
    known = trained_runs(ws)
    found = [run for run in known if run.id.startswith(name) and method in ("", run.method)]
    found = [run for run in found if run.id == name] or found
    if not found:
        raise _missing(ws, name, method, known)
    if len(found) == 1:
        return found[0]
    differing = differences(found)
    if not method:
        lines = "".join(f"\n  {_line(run, differing, ws)}" for run in found)
        raise UserError(f"{len(found)} trained runs fit; name one of them with --run:{lines}")
    wanted = {normal(label) for label in classes}
    best = min(found, key=lambda run: (len(differing[run.id]), *_fit(run, ws, wanted)))
    others = [run for run in sorted(found, key=lambda run: len(differing[run.id])) if run != best]
    print(f"taking {_line(best, differing, ws)}", file=sys.stderr)
    for run in others[:LISTED]:
        print(f"  not {_line(run, differing, ws)}", file=sys.stderr)
    if len(others) > LISTED:
        print(f"  and {len(others) - LISTED} more: `python -m pipeline runs --method {method}`", file=sys.stderr)
    return best


def _missing(ws: Workspace, name: str, method: str, known: Sequence[Run]) -> UserError:
    """Nothing fits; perhaps a run of another kind would."""
    for run in trained_runs(ws, few_shot=False):
        if run not in known and run.id.startswith(name) and method in ("", run.method) and (name or method):
            why = next((text for base, text in ELSEWHERE.items() if _is(run, base)), OTHER).format(run=run.id)
            return UserError(f"{run.id} is no few-shot method on videos; {why}")
    wanted = f"run {name!r}" if name else f"run of the method {method!r}" if method else "run"
    ids = [run.id for run in known]
    near = difflib.get_close_matches(name or method, ids if name else {run.method for run in known}, n=1, cutoff=0.5)
    if near:
        hint = f"did you mean {near[0]!r}?"
    elif len(ids) > NAMED:
        hint = f"there are: {', '.join(ids[:NAMED])} and {len(ids) - NAMED} more (`python -m pipeline runs`)"
    else:
        nothing = "none; train one, give --model FOLDER of an exported one, or leave it out to use a frozen backbone"
        hint = f"there are: {', '.join(ids) or nothing}"
    return UserError(f"no trained few-shot {wanted} in {ws.root / 'runs'}; {hint}")


def _fit(run: Run, ws: Workspace, wanted: set[str]) -> tuple[int, bool, float, str]:
    """How well the data set of a run fits, the best first, and the run's own quality."""
    try:
        mine = {normal(label) for label in classes_of(read_index(ws.dataset(run.dataset) / "index.csv"))}
        generated = ws.read_asset(run.dataset).spec.get("kind") == "synthetic"
    except UserError:
        mine, generated = set(), False
    return -len(wanted & mine), generated, -(trained(run, ws)[0] or 0.0), run.id


def trained(run: Run, ws: Workspace) -> tuple[float | None, str]:
    """The accuracy of a run on its validation classes in per cent (None without any), and the day of its training."""
    path = ws.run(run.id) / "train.json"
    accuracy = json.loads(path.read_text(encoding="utf-8")).get("validation_accuracy")
    return accuracy, datetime.fromtimestamp(path.stat().st_mtime).strftime("%Y-%m-%d %H:%M")


def _line(run: Run, differing: Mapping[str, Mapping[str, Any]], ws: Workspace) -> str:
    accuracy = trained(run, ws)[0]
    measured = "" if accuracy is None else f", validation {accuracy:.1f} %"
    data = run.dataset.rsplit("-", 1)[0]
    return f"{run.id} (scale {run.scale}, seed {run.seed}, {data}{measured}): {told(differing[run.id])}"


def told(settings: Mapping[str, Any]) -> str:
    """Settings that are not the method's own, in words."""
    return ", ".join(f"{key} {value}" for key, value in settings.items()) or "the method's own settings"


def differences(runs: Sequence[Run]) -> dict[str, dict[str, Any]]:
    """For each run of a method, by its id, the settings that are not the method's own on its data set.

    Those of config/methods count as own wherever a run has them, or else the commonest among the runs: a scale may set
    others for all.
    """
    flat = {run.id: _flat(run) for run in runs}
    own = {run.id: _own_settings(run) for run in runs}
    found: dict[str, dict[str, Any]] = {run.id: {} for run in runs}
    for key in dict.fromkeys(key for settings in flat.values() for key in settings):
        values = {name: settings.get(key, "-") for name, settings in flat.items()}
        kept = any(value == own[name].get(key) for name, value in values.items())
        commonest = Counter(values.values()).most_common(1)[0][0]
        for name, value in values.items():
            if value != (own[name].get(key) if kept else commonest):
                found[name][key] = value
    return found


def _flat(run: Run) -> dict[str, str]:
    """What makes runs of a method on one data set different, as text."""
    parts = {"model": run.model, "train": run.train, "frames": run.frames}
    found = {f"{part}.{key}": _text(value) for part, settings in parts.items() for key, value in settings.items()}
    return found | {"backbone": run.backbone.rsplit("-", 1)[0], "selection": run.selection, "scale": run.scale}


def _own_settings(run: Run) -> dict[str, str]:
    """Those of its method on its data set in config/methods, as `_flat` writes them; none without that folder."""
    path = CONFIG / "methods" / f"{run.method}.yaml"
    if not path.is_file():
        return {}
    content = read_yaml(path)
    train = content.get("train", {}) | content.get("schedules", {}).get(run.dataset.rsplit("-", 1)[0], {})
    parts = (("model", content.get("model", {})), ("train", train))
    return {f"{part}.{key}": _text(value) for part, settings in parts for key, value in settings.items()}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else canonical(value)


def list_runs(ws: Workspace, method: str = "") -> list[tuple[str, ...]]:
    """Rows of all trained runs, or those of a method: id, data set, validation accuracy, day, what differs.

    Raises:
        UserError: there is none.
    """
    runs = [run for run in trained_runs(ws, few_shot=False) if method in ("", run.method)]
    if not runs:
        raise _missing(ws, "", method, [])
    differing: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys(run.method for run in runs):
        differing |= differences([run for run in runs if run.method == name])
    rows = []
    for run in runs:
        accuracy, day = trained(run, ws)
        number = "-" if accuracy is None else f"{accuracy:.1f} %"
        rows.append((run.id, run.dataset.rsplit("-", 1)[0], number, day, told(differing[run.id])))
    return rows
