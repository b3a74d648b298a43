"""What a method's file, the data set, the scale and a row of a table each say of a run."""

from __future__ import annotations

import inspect

import pytest

from pipeline.errors import UserError
from pipeline.plan import Plan


@pytest.fixture(scope="module")
def plans(repo):
    return {scale: Plan.read(repo / "config", {"scale": scale}) for scale in ("demo", "quick", "paper")}


def _cell(plan, method, dataset, seed=0, **experiment):
    return plan.cell({"method": method, "dataset": dataset, **experiment}, seed, "the test")


def _overlaid(repo, **overlay):
    return Plan.read(repo / "config", overlay)


# Models by data set


@pytest.mark.parametrize(
    ("dataset", "depths", "norm"),
    [
        ("hmdb51", (2, 8), False), ("kinetics100", (2, 8), False), ("ucf101", (2, 8), False),
        ("ssv2_small", (6, 2), False), ("ssv2_full", (6, 2), True),
    ],
)  # fmt: skip
def test_the_model_is_that_of_the_data_set(plans, dataset, depths, norm):
    model = _cell(plans["paper"], "task_adapter_pp", dataset).run.model
    assert (model["layers"], model["order_layers"], model["alignment_norm"]) == (*depths, norm)
    assert model["offset"] == 0.0 and model["text"] == "stages"
    # at demo scale it is that of the data set which stands for it
    model = _cell(plans["demo"], "task_adapter_pp", dataset).run.model
    assert (model["layers"], model["order_layers"], model["alignment_norm"]) == (*depths, False)
    assert model["offset"] == 0.5


def test_a_row_and_the_settings_win_over_the_model_of_the_data_set(repo, plans):
    row = _cell(plans["paper"], "task_adapter_pp", "ssv2_small", model={"layers": 12}).run.model
    assert (row["layers"], row["order_layers"]) == (12, 2)
    plan = _overlaid(repo, scale="paper", model={"layers": 3})
    assert _cell(plan, "task_adapter_pp", "ssv2_small").run.model["layers"] == 3
    assert _cell(plan, "task_adapter_pp", "ssv2_small", model={"layers": 4}).run.model["layers"] == 4
    assert "layers" not in _cell(plan, "lga", "ssv2_small").run.model  # a method without such a key


def test_models_of_the_frame_methods(plans):
    plan = plans["paper"]
    assert _cell(plan, "hyrsm", "kinetics100").run.model["position_a"] == 2048
    assert _cell(plan, "hyrsm", "hmdb51").run.model["position_a"] == 10
    full = _cell(plan, "molo", "ssv2_full").run.model
    assert (full["class_weight"], full["reconstruction_weight"], full["motion_weight"]) == (0.8, 0.4, 0.3)


def test_options_are_in_the_identity_where_they_are_used(repo, plans):
    plan = plans["demo"]
    options = plan.config.entry("methods", "lga", "the test")["options"]
    plain = _cell(plan, "lga", "hmdb51").run
    assert not set(options) & set(plain.model)  # as before there were such options
    assert _cell(plan, "lga", "hmdb51", model=options).run.id == plain.id
    other = _cell(plan, "lga", "hmdb51", model={"divisor": "frames", "pooled": "backbone"}).run
    assert other.model == plain.model | {"divisor": "frames"} and other.id != plain.id
    assert _cell(_overlaid(repo, model={"distance": "norm"}), "lga", "hmdb51").run.model["distance"] == "norm"
    with pytest.raises(UserError, match="unknown model key 'divisior'.*did you mean 'divisor'"):
        _cell(plan, "lga", "hmdb51", model={"divisior": "frames"})
    from pipeline.models.few_shot.lga import LGA

    made = inspect.signature(LGA).parameters  # what the class takes where nothing is said
    assert {key: made[key].default for key in options} == options


# Trainings


@pytest.mark.parametrize("method", ["task_adapter", "task_adapter_pp", "trx", "strm", "hyrsm", "hyrsm_pp"])
def test_a_training_has_as_many_shots_as_its_test(plans, method):
    runs = {shot: _cell(plans["paper"], method, "hmdb51", measure={"shot": shot}).run for shot in (1, 3, 5)}
    assert {shot: run.train["shot"] for shot, run in runs.items()} == {1: 1, 3: 3, 5: 5}
    assert len({run.id for run in runs.values()}) == 3
    for scale in ("demo", "quick"):
        runs = {_cell(plans[scale], method, "hmdb51", measure={"shot": shot}).run.id for shot in (1, 3, 5)}
        assert len(runs) == 1
    fixed = _cell(plans["paper"], method, "hmdb51", train={"shot": 2}, measure={"shot": 5})
    assert (fixed.run.train["shot"], fixed.measure.shot) == (2, 5)


@pytest.mark.parametrize("method", ["lga", "otam", "clip_fsar", "clip_finetune", "molo"])
def test_a_training_of_one_shot_serves_all_tests(plans, method):
    cells = [_cell(plans["paper"], method, "hmdb51", measure={"shot": shot}) for shot in (1, 3, 5)]
    assert len({cell.run.id for cell in cells}) == 1 and cells[0].run.train["shot"] == 1


def test_no_steps_are_no_training(plans):
    """Nothing of the recipe is in its identity: neither the budget, nor the seed, nor how a checkpoint is chosen."""
    plan = plans["paper"]
    frozen = {"model": {"finetune": "none"}, "train": {"steps": 0}}
    run = _cell(plan, "task_adapter", "ssv2_small", **frozen).run
    assert run.train == {} and (run.seed, run.selection) == (0, "last")
    same = (
        _cell(plan, "task_adapter", "ssv2_small", 7, **frozen),
        _cell(plan, "task_adapter", "ssv2_small", selection="test", **frozen),
        _cell(plan, "task_adapter", "ssv2_small", measure={"shot": 5}, **frozen),
        _cell(plan, "task_adapter", "ssv2_small", model={"finetune": "none"}, train={"steps": 0, "optimizer": "adam"}),
    )
    assert {cell.run.id for cell in same} == {run.id}
    assert _cell(plan, "task_adapter", "hmdb51", **frozen).run.id != run.id


def test_budgets_of_a_scale_are_those_of_single_methods(repo, plans):
    demo, general = plans["demo"], plans["demo"].config.settings.train
    for method in ("task_adapter", "task_adapter_pp"):
        cell = _cell(demo, method, "hmdb51")
        train = cell.run.train
        assert (train["optimizer"], train["learning_rate"], train["episodes_per_step"]) == ("adamw", 5e-3, 1)
        budget = demo.config.settings.budgets[method]["measure"]["episodes"]
        assert train["steps"] == general["steps"] and cell.measure.episodes == budget < 1000
    other = _cell(demo, "lga", "hmdb51")
    assert other.run.train["learning_rate"] == general["learning_rate"] and other.measure.episodes == 1000
    for scale in ("quick", "paper"):
        assert "task_adapter" not in plans[scale].config.settings.budgets
        assert _cell(plans[scale], "task_adapter", "hmdb51").run.train["optimizer"] == "sgd"
    # a row wins over the budget, and another budget can be given
    row = _cell(demo, "task_adapter", "hmdb51", train={"optimizer": "sgd"}, measure={"episodes": 9})
    assert (row.run.train["optimizer"], row.measure.episodes) == ("sgd", 9)
    plan = _overlaid(repo, budgets={"task_adapter": {"measure": {"episodes": 60}}})
    assert _cell(plan, "task_adapter", "hmdb51").measure.episodes == 60
    assert _cell(plan, "task_adapter", "hmdb51").run.train["optimizer"] == "adamw"


def test_parameters_at_paper_scale_are_counted_on_the_training_of_the_row(plans):
    cell = _cell(plans["paper"], "task_adapter", "ssv2_small", measure={"metric": "params_m", "part": "visual"})
    assert cell.run.train["shot"] == cell.measure.shot == 1
    five = _cell(plans["paper"], "task_adapter", "ssv2_small", measure={"metric": "params_m", "shot": 5})
    assert five.run.train["shot"] == 1  # shots are of no account


# Backbones and frames


def test_backbones_of_a_scale_stand_for_those_of_the_paper(repo, plans):
    wanted = {"lga": ("clip_vit_b16", "clip_nano"), "hyrsm": ("resnet50", "resnet_nano")}
    for method, (asked, used) in wanted.items():
        for scale, name in (("paper", asked), ("demo", used), ("quick", used)):
            plan = plans[scale]
            assert plan.backbones[_cell(plan, method, "hmdb51").run.backbone].name == name
    plan = _overlaid(repo, substitute_backbone={"resnet50": "resnet50"})
    assert plan.backbones[_cell(plan, "trx", "hmdb51").run.backbone].name == "resnet50"
    assert plan.backbones[_cell(plan, "lga", "hmdb51").run.backbone].name == "clip_nano"  # the other still holds
    row = _cell(plans["demo"], "otam", "hmdb51", backbone="resnet50").run
    assert plans["demo"].backbones[row.backbone].name == "resnet_nano"
    assert row.id != _cell(plans["demo"], "otam", "hmdb51").run.id


def test_frames_are_chosen_as_the_recipe_says_and_stored_as_the_data_set_does(plans):
    for scale, plan in plans.items():
        for method in ("trx", "strm"):
            frames = _cell(plan, method, "kinetics100").run.frames
            assert (frames["sampling"], frames["test_sampling"]) == ("linspace_jitter", "linspace")
        other = _cell(plan, "hyrsm", "kinetics100").run.frames
        rule = ("kinetics_grid", "kinetics_grid") if scale == "paper" else ("segment_random", "segment_centre")
        assert (other["sampling"], other["test_sampling"]) == rule
        assert other["store"] == frames["store"] and other["number"] == frames["number"] == 8
    kept = [_cell(plans["paper"], method, "kinetics100").run.frames["store"] for method in ("trx", "lga", "hyrsm")]
    assert kept[0] == kept[1] == kept[2]  # one store of frames serves every method


def test_task_adapters_see_an_eighth_of_the_video_each_on_kinetics_too(plans):
    """Released: of 300 frames the middle ones 18 to 281; CLIP-FSAR's grid on Kinetics takes 2 to 263."""
    from pipeline.datasets.sampling import sample_positions

    seen = {}
    for method in ("task_adapter", "task_adapter_pp", "clip_finetune", "clip_fsar"):
        frames = _cell(plans["paper"], method, "kinetics100").run.frames
        shown = sample_positions(300, frames["number"], frames["test_sampling"])
        seen[method] = (frames["sampling"], int(shown[0]), int(shown[-1]))
    assert seen.pop("clip_fsar")[0] == "kinetics_grid"
    assert set(seen.values()) == {("segment_random", 18, 281)}


@pytest.mark.parametrize("method", ["hyrsm", "hyrsm_pp"])
def test_queries_of_hyrsm_are_fewer_with_more_shots(plans, method):
    """As released: 40 videos an episode, whatever the shots."""
    for shot, query in ((1, 7), (3, 5), (5, 3), (2, 7), (4, 5), (9, 3)):
        train = _cell(plans["paper"], method, "ssv2_small", measure={"shot": shot}).run.train
        assert (train["shot"], train["query"]) == (shot, query)
    assert _cell(plans["demo"], method, "ssv2_small").run.train["query"] == 1
    assert _cell(plans["paper"], method, "hmdb51", train={"query": 2}).run.train["query"] == 2
    with pytest.raises(UserError, match=r"train.query is \{3: 5\} and says nothing of 1 shots"):
        _cell(plans["paper"], "trx", "hmdb51", train={"query": {3: 5}})


def test_batch_norm_of_the_resnets_is_trained_as_released(plans):
    for method, keys in {"hyrsm": 2, "hyrsm_pp": 2, "molo": 2, "trx": 1, "strm": 1, "lga": 0}.items():
        for data in ("hmdb51", "ssv2_full"):
            train = _cell(plans["paper"], method, data).run.train
            assert [train.get(key, False) for key in ("bn_apart", "bn_undecayed")] == [keys > 0, keys > 1], method
            demo = _cell(plans["demo"], method, data).run.train
            assert not {"bn_apart", "bn_undecayed"} & set(demo)  # its numbers are of before
    with pytest.raises(UserError, match="the test, train: key bn_apart: Input should be a valid boolean .*'yes'"):
        _cell(plans["paper"], "hyrsm", "hmdb51", train={"bn_apart": "yes"})


# Errors


@pytest.mark.parametrize(
    ("overlay", "message"),
    [
        ({"budgets": {"lgaa": {"train": {"steps": 1}}}}, r"unknown method 'lgaa' in .*key budgets; did you mean 'lga'"),
        ({"budgets": {"lga": {"trian": {}}}}, r"unknown key 'trian' in .*key budgets\.lga; did you mean 'train'"),
        ({"budgets": {"lga": {"train": {"stepz": 1}}}}, r"unknown train key 'stepz' in .*key budgets\.lga; did you"),
        ({"budgets": {"lga": {"measure": {"shots": 1}}}}, r"unknown key 'shots' in .*measure.*did you mean 'shot'"),
        ({"methods": {"trx": {"frames": {"sampeling": "linspace"}}}},
         r"unknown key 'sampeling' in .*key methods\.trx, frames \(sampeling\); did you mean 'sampling'"),
        ({"methods": {"trx": {"frames": {"number": 4}}}},
         r"unknown key 'number' in .*key methods\.trx, frames \(number\); known: sampling, test_sampling"),
        ({"substitute_backbone": {"resnet_50": "resnet_nano"}}, r"unknown backbone 'resnet_50'.*did you mean"),
        ({"substitute_backbone": {"resnet50": "resnet_nan"}}, r"unknown backbone 'resnet_nan'.*did you mean"),
    ],
)  # fmt: skip
def test_errors_are_not_passed_over(repo, overlay, message):
    with pytest.raises(UserError, match=message) as caught:
        _overlaid(repo, **overlay)
    assert "\n" not in str(caught.value)


# Semi-supervised sets


def test_fixmatch_has_a_strong_view(plans):
    assert _cell(plans["paper"], "fixmatch", "gym99").run.train["randaugment"] == 2
    assert "randaugment" not in _cell(plans["demo"], "fixmatch", "gym99").run.train
    assert _cell(plans["paper"], "sefar", "gym99", train={"randaugment": 1}).run.train["randaugment"] == 1
    with pytest.raises(UserError, match=r"key randaugment: Input should be greater than or equal to 0 \(got -1\)"):
        _cell(plans["paper"], "fixmatch", "gym99", train={"randaugment": -1})


# Skeletons


def test_texts_of_skeleton_methods_are_encoded_as_the_papers_do(plans):
    """CrossGLG: DeBERTa; GAP: CLIP's text tower, trained along, with its own sentences. The demo downloads nothing."""
    for scale, plan in plans.items():
        runs = [run for run in plan.runs.values() if run.model["type"] in ("CrossGLG", "GAP")]
        found = {
            (run.model["type"], run.model["text"], run.model.get("text_tower"), run.model["corpus"]) for run in runs
        }
        guided = {
            ("CrossGLG", "deberta" if scale == "paper" else "lsa", None, corpus) for corpus in ("", "gemini", "qwen")
        }
        clip = ("clip", "openai/clip-vit-base-patch32", "gap") if scale == "paper" else ("lsa", None, "")
        assert found == guided | {("GAP", *clip)}, scale


def test_motionberts_batches_fit_every_base_set_of_the_tables(plans):
    """Batches of 16 classes x 2 need 16 classes; NTU-60 has base sets of 10."""
    runs = [run for run in plans["paper"].runs.values() if run.train.get("per_class")]
    found = {}
    for run in runs:
        bases = plans["paper"].datasets[run.dataset].spec["protocol"]["bases"]
        classes = bases[run.train["base_set"]]
        classes = classes if isinstance(classes, int) else len(classes)
        assert run.train["batch"] // run.train["per_class"] <= classes, run.id
        found[run.dataset.split("-")[0], classes] = run.train["per_class"]
    assert len(runs) > 10 and {key for key, per_class in found.items() if per_class != 2} == {("ntu60_hrnet", 10)}
    assert found["ntu60_hrnet", 10] == 4
