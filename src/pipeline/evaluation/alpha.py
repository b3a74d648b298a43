"""Alpha of LGA's Eq. 5 as a Ray Tune search over cached validation scores: no encoding, no training.

An experiment of Tune takes seconds to start, and a curve of eleven alphas milliseconds to measure. So a process has one
experiment that lives on, is fed with the alphas of run after run, and has all its trials in one actor.
"""

from __future__ import annotations

import atexit
import queue
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.search import Searcher

from pipeline.scores import EpisodeScores, alpha_curve

TRIALS = 500  # of one experiment, which remembers them all; then comes the next one


class AlphaTrial(tune.Trainable):
    """One alpha on the validation scores of a run; the same actor serves alpha after alpha."""

    def setup(self, config: dict[str, Any]) -> None:
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.files, self.alpha = new_config["files"], new_config["alpha"]
        return True

    def save_checkpoint(self, checkpoint_dir: str) -> dict[str, float]:
        return {"alpha": self.alpha}

    def load_checkpoint(self, checkpoint: dict[str, float]) -> None:
        self.alpha = checkpoint["alpha"]

    def step(self) -> dict[str, float]:
        scores = {key: EpisodeScores.load(Path(path)) for key, path in self.files.items()}
        return {key: alpha_curve(of_file, [self.alpha])[0][1] for key, of_file in scores.items()}


class _Asked(Searcher):
    """Gives the experiment the alphas that are asked for, whenever that is.

    Tune pickles a searcher; what it hands out lives in the process, in `_live`.
    """

    def __init__(self) -> None:
        super().__init__(metric="training_iteration", mode="max")

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        return _live.next(trial_id) if _live else Searcher.FINISHED

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        if _live:
            _live.ended(trial_id, None if error else result)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: whoever needs an alpha asks again."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, likewise."""


class _Experiment:
    """One experiment of Tune, in a thread of its own."""

    def __init__(self, storage: Path) -> None:
        self.waiting: queue.SimpleQueue[tuple[dict[str, Any], Future] | None] = queue.SimpleQueue()
        self.under_way: dict[str, Future] = {}
        self.left, self.over = TRIALS, False
        self.storage = storage
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def ask(self, config: dict[str, Any]) -> Future:
        """The metrics of one trial, when it has ended."""
        self.left -= 1
        future: Future = Future()
        self.waiting.put((config, future))
        if self.over:  # it ended before the question was there
            self._fail(RuntimeError("the search for alpha has ended"))
        return future

    def close(self) -> None:
        """Let it end when all that was asked is done."""
        self.waiting.put(None)
        self.thread.join(60)

    def next(self, trial_id: str) -> dict[str, Any] | str | None:
        """Settings of the next trial; None while there is none."""
        try:
            asked = self.waiting.get(timeout=0.02)
        except queue.Empty:
            return None
        if asked is None:
            return Searcher.FINISHED
        config, self.under_way[trial_id] = asked
        return config

    def ended(self, trial_id: str, result: dict[str, Any] | None) -> None:
        """Hand on what a trial found."""
        if (future := self.under_way.pop(trial_id, None)) is None:
            return
        if result is None:
            future.set_exception(RuntimeError("a trial of the search for alpha failed"))
        else:
            future.set_result(result)

    def _run(self) -> None:
        tuner = tune.Tuner(
            tune.with_resources(AlphaTrial, {"cpu": 0.01}),
            tune_config=tune.TuneConfig(
                search_alg=_Asked(), num_samples=-1, reuse_actors=True, max_concurrent_trials=1,
                trial_dirname_creator=_dirname,
            ),
            run_config=tune.RunConfig(
                name=f"alpha-{id(self):x}", storage_path=str(self.storage.resolve()), stop={"training_iteration": 1},
                verbose=0,
            ),
        )  # fmt: skip
        try:
            tuner.fit()
        except Exception as error:
            self._fail(error)
        else:
            self._fail(RuntimeError("the search for alpha has ended"))

    def _fail(self, error: Exception) -> None:
        """Nobody waits for what will not come."""
        self.over = True
        left = [*self.under_way.values()]
        while not self.waiting.empty():
            left += [asked[1] for asked in [self.waiting.get()] if asked]
        for future in left:
            if not future.done():
                future.set_exception(error)


_live: _Experiment | None = None


def search_with_tune(storage: Path, name: str, files: dict[str, Path], grid: Sequence[float]) -> dict[str, list]:
    """The accuracy of each file of scores over the `grid`: {key: [(alpha, per cent), ...]}.

    Needs a running Ray cluster. The results of the trials stay in `storage`.
    """
    global _live
    if _live is not None and (_live.left < len(grid) or _live.over):
        _live.close()
        _live = None
    if _live is None:
        _live = _Experiment(storage)
        atexit.register(_live.close)  # before Ray's own end
    paths = {key: str(path.resolve()) for key, path in files.items()}
    asked = [(alpha, _live.ask({"name": name, "alpha": alpha, "files": paths})) for alpha in sorted(grid)]
    found = [(alpha, future.result()) for alpha, future in asked]
    return {key: [(alpha, metrics[key]) for alpha, metrics in found] for key in files}


def _dirname(trial: Any) -> str:
    return f"{trial.config['name']}-alpha_{trial.config['alpha']:g}"
