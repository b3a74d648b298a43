"""A look inside a trained run, for figures: one file of arrays a run, from a few fixed clips of its data set.

`inspect_run` writes it (`python -m pipeline inspect RUN`); figures read it without the model. What is in it depends
on the method: `pipeline.tasks.few_shot.look` and `pipeline.tasks.one_shot.look` name the arrays.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from pipeline.errors import UserError
from pipeline.experiment import Run, canonical
from pipeline.workspace import Workspace

Look = Mapping[str, np.ndarray]
"""The arrays of one run, by name."""


def inspect_run(run: Run, ws: Workspace) -> Path:
    """Look into a trained run and write what is seen; returns the file.

    Raises:
        UserError: it is not trained, or its method has nothing to show.
    """
    import torch

    from pipeline.models.build import load_weights
    from pipeline.tasks.kinds import kind_of_model, task_of

    task, shown = task_of(run, ws), ws.read_shown(run.id)
    model = load_weights(task.build(), run, ws).to("cuda" if torch.cuda.is_available() else "cpu")
    return write_look(run, ws, kind_of_model(run).look(task, model, **shown), shown)


def write_look(run: Run, ws: Workspace, look: Look, shown: Mapping[str, str] | None = None) -> Path:
    """Write the arrays of a run and which clip it was `shown`, all or none; returns the file."""
    from pipeline.files import write_bytes

    stream = io.BytesIO()
    np.savez_compressed(stream, run=np.array(run.id), shown=np.array(canonical(shown or {})), **look)
    return write_bytes(ws.inspection(run.id), stream.getvalue())


def read_look(run: Run, results_dir: Path | str, wanted: Sequence[str], shown: Mapping[str, str] | None = None) -> Look:
    """The arrays of a run that was `shown` a clip (`sheets.Show`; by default the first of the test).

    Raises:
        UserError: the file is missing, damaged, of another clip, or lacks one of `wanted`; the message has the command
            to make it.
    """
    path = Workspace(results_dir).inspection(run.id)
    make = f"`snakemake --config scale={run.scale} -- {path}`"
    if not path.is_file():
        raise UserError(f"{path}: nobody has looked into this run yet; make it with {make}")
    try:
        with np.load(path, allow_pickle=False) as file:
            look = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: damaged ({error}); delete it and make it again with {make}") from None
    if str(look.get("run")) != run.id:
        raise UserError(f"{path}: it is of the run {look.get('run')}; delete it and make it again with {make}")
    if str(look.get("shown", "{}")) != canonical(shown or {}):
        raise UserError(f"{path}: it is of another clip; delete it and make it again with {make}")
    if lacking := [name for name in wanted if name not in look]:
        raise UserError(f"{path}: the method {run.method} has no {lacking[0]} to show; leave its row out of the figure")
    return look
