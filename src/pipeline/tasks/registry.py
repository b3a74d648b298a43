"""The kinds of experiment: what each brings to the one training loop and to the one way of measuring.

A task knows the data of a run, builds its model, says what a worker gets in one iteration, and scores the model.
"""

from __future__ import annotations

from pipeline.compat import MODELS
from pipeline.errors import unknown
from pipeline.experiment import Run
from pipeline.models.few_shot.base import FewShotModel
from pipeline.models.questions import QuestionModel
from pipeline.models.semi import SeFARModel
from pipeline.models.skeleton.base import SkeletonModel
from pipeline.tasks.base import Task
from pipeline.tasks.few_shot.task import FewShotTask
from pipeline.tasks.one_shot.task import OneShotTask
from pipeline.tasks.questions.task import QuestionTask
from pipeline.tasks.semi.task import SemiTask
from pipeline.workspace import Workspace


def task_of(run: Run, ws: Workspace) -> Task:
    """The task of a run, by its model.

    Raises:
        UserError: no such model.
    """
    tasks = {FewShotModel: FewShotTask, SkeletonModel: OneShotTask, SeFARModel: SemiTask, QuestionModel: QuestionTask}
    kind = MODELS.get(run.model["type"])
    if isinstance(kind, type):
        for base, task in tasks.items():
            if issubclass(kind, base):
                return task(run, ws)
    kinds = {name: entry for name, entry in MODELS.module_dict.items() if isinstance(entry, type)}
    known = [name for name, entry in kinds.items() if issubclass(entry, tuple(tasks))]
    raise unknown("model type", run.model["type"], known, f"method {run.method}")
