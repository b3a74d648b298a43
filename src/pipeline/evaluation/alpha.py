"""Alpha of LGA's Eq. 5 as a Ray Tune search over cached validation scores: no encoding, no training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ray import tune

from pipeline.evaluation.scores import EpisodeScores, alpha_curve


class AlphaTrial(tune.Trainable):
    """One alpha on the validation scores of a run; the same actor serves alpha after alpha."""

    def setup(self, config: dict[str, Any]) -> None:
        self.scores = {key: EpisodeScores.load(Path(path)) for key, path in config["files"].items()}
        self.alpha = config["alpha"]

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.alpha = new_config["alpha"]
        return True

    def save_checkpoint(self, checkpoint_dir: str) -> dict[str, float]:
        return {"alpha": self.alpha}

    def load_checkpoint(self, checkpoint: dict[str, float]) -> None:
        self.alpha = checkpoint["alpha"]

    def step(self) -> dict[str, float]:
        return {key: alpha_curve(scores, [self.alpha])[0][1] for key, scores in self.scores.items()}


def search_with_tune(storage: Path, name: str, files: dict[str, Path], grid: Sequence[float]) -> dict[str, list]:
    """The accuracy of each file of scores over the `grid`: {key: [(alpha, per cent), ...]}.

    Needs a running Ray cluster. The results of the trials stay in `storage`/`name`.
    """
    tuner = tune.Tuner(
        tune.with_resources(AlphaTrial, {"cpu": 0.01}),
        param_space={
            "alpha": tune.grid_search(list(grid)),
            "files": {key: str(path.resolve()) for key, path in files.items()},
        },
        tune_config=tune.TuneConfig(reuse_actors=True, max_concurrent_trials=1, trial_dirname_creator=_dirname),
        run_config=tune.RunConfig(
            name=name, storage_path=str(storage.resolve()), stop={"training_iteration": 1}, verbose=0
        ),
    )
    results = tuner.fit()
    if results.errors:
        raise results.errors[0]
    points = sorted((result.config["alpha"], result.metrics) for result in results)
    return {key: [(alpha, metrics[key]) for alpha, metrics in points] for key in files}


def _dirname(trial: Any) -> str:
    return f"alpha_{trial.config['alpha']:g}"
