"""How long a recipe that counts in epochs is."""

from types import SimpleNamespace

import numpy as np
import pytest

from pipeline.tasks.one_shot.task import OneShotTask

TRAIN = {"epochs": 110, "steps": None, "warmup_epochs": 5, "milestones": [90, 100], "validate_epochs": 5}


@pytest.mark.parametrize(("batch", "batches"), [(128, 1), (64, 1), (64, 2), (32, 1), (32, 4)])
def test_epochs_are_passes_over_the_clips_however_many_batches_make_a_step(monkeypatch, batch, batches):
    """360 clips, 110 epochs: what makes no whole batch is left out of a pass, and nothing more."""
    train = TRAIN | {"batch": batch, "batches_per_step": batches}
    monkeypatch.setattr(OneShotTask, "split", lambda task, split: SimpleNamespace(base=np.arange(360)))
    made = OneShotTask(SimpleNamespace(train=train), None).schedule()
    seen = made["steps"] * made["items"] * batch
    assert made["items"] == batches and abs(seen / (360 // batch * batch) - 110) < 1.1
    assert made["milestones"] == [round(made["steps"] * share / 110) for share in (90, 100)]
