"""Which of several trained runs a name or a method means, and what is said of the others."""

from __future__ import annotations

import pytest

from pipeline.actions import runs
from pipeline.actions.runs import choose_run, differences, list_runs
from pipeline.errors import UserError
from pipeline.experiment import Run
from pipeline.files import write_json


@pytest.fixture(scope="module")
def three(world, tmp_path_factory):
    """Trained runs of LGA: the method's own with two seeds, and one with another matcher that validates best."""
    ws = world.elsewhere(tmp_path_factory.mktemp("three"))
    made = [
        world.run(0, method="lga"),
        world.run(1, method="lga"),
        world.run(0, method="lga", model={"matcher": "otam"}),
    ]
    for run, accuracy in zip(made, (50.0, 60.0, 70.0), strict=True):
        write_json(ws.run(run.id) / "run.json", run.model_dump(mode="json"))
        write_json(ws.run(run.id) / "train.json", {"validation_accuracy": accuracy})
    return ws, *made


@pytest.fixture(autouse=True)
def config(monkeypatch, repo):
    monkeypatch.setattr(runs, "CONFIG", repo / "config")


def test_a_method_means_its_own_settings_the_best_by_validation(three, capsys):
    ws, first, second, other = three
    assert choose_run(ws, method="lga") == second
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith(f"taking {second.id} (") and "validation 60.0 %): the method's own settings" in said[0]
    assert len(said) == 3 and said[2].endswith("validation 70.0 %): model.matcher otam") and first.id in said[1]
    assert differences([first, other]) == {first.id: {}, other.id: {"model.matcher": "otam"}}


def test_a_beginning_of_an_id_must_be_of_one_run(three):
    ws, first, _, other = three
    assert choose_run(ws, first.id) == first and choose_run(ws, other.id[:-1]) == other
    with pytest.raises(UserError, match=r"3 trained runs fit; name one of them with --run:\n") as caught:
        choose_run(ws, "lga")
    assert f"\n  {other.id} (" in str(caught.value) and "model.matcher otam" in str(caught.value)
    with pytest.raises(UserError, match=f"no trained few-shot run of the method 'otam' .* {first.id}"):
        choose_run(ws, method="otam")
    with pytest.raises(UserError, match="of the method 'lag' in .*; did you mean 'lga'"):
        choose_run(ws, method="lag")
    with pytest.raises(UserError, match=f"did you mean '{first.id}'"):
        choose_run(ws, f"x{first.id}")


def test_runs_of_other_kinds_say_what_serves_them(world, three, tmp_path):
    ws = world.elsewhere(tmp_path)
    for method, kind in (("crossglg", "CrossGLG"), ("sefar", "SeFARModel")):
        run = Run(**three[1].model_dump() | {"method": method, "model": {"type": kind}})
        write_json(ws.run(run.id) / "run.json", run.model_dump(mode="json"))
        write_json(ws.run(run.id) / "train.json", {"validation_accuracy": None})
    with pytest.raises(UserError, match=r"crossglg-.* it reads joints, not videos: `python -m pipeline pose`"):
        choose_run(ws, method="crossglg")
    with pytest.raises(UserError, match=r"it knows the classes .* `python -m pipeline evaluate sefar-"):
        choose_run(ws, "sefar")
    assert [row[2] for row in list_runs(ws)] == ["-", "-"]


def test_the_list_has_a_row_a_run(three, tmp_path, world):
    ws, first, _, other = three
    rows = {row[0]: row for row in list_runs(ws, "lga")}
    assert len(rows) == 3 and rows[other.id][2] == "70.0 %" and rows[other.id][4] == "model.matcher otam"
    assert rows[first.id][4] == "the method's own settings" and rows[first.id][1] == first.dataset.rsplit("-", 1)[0]
    with pytest.raises(UserError, match="no trained few-shot run in .*; there are: none"):
        list_runs(world.elsewhere(tmp_path))
