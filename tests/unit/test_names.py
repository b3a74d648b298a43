"""Names that are spelt apart."""

import json

import pytest

from pipeline.datasets.splits import read_lists
from pipeline.errors import UserError
from pipeline.names import match_names, normal, told
from pipeline.text.corpus import Corpus, import_task_adapter, load_corpus


def test_spellings_of_one_name():
    for spelt in ("draw_sword", "Draw Sword", "DrawSword", "draw-sword", "[draw] sword"):
        assert normal(spelt) == "drawsword"
    assert normal("Café") != normal("cafe") and normal("step 1") != normal("step 2")
    found = match_names(["DrawSword", "run", "hop"], ["draw_sword", "run"])
    assert found == {"DrawSword": "draw_sword", "run": "run", "hop": None}
    assert told(found, "has the texts of") == ["'DrawSword' has the texts of 'draw_sword'"]
    # the same spelling wins; where none is the same, two that are alike are not guessed between
    assert match_names(["sit up"], ["sit up", "situp"]) == {"sit up": "sit up"}
    with pytest.raises(UserError, match="c.json: 'Sit Up' may be 'sit up' or 'situp'"):
        match_names(["Sit Up"], ["sit up", "situp"], "c.json")


@pytest.mark.parametrize("name, texts, same, found, absent", [
    ("hmdb51", "hmdb51", 47, 51, []),
    ("ucf101", "ucf101", 0, 101, []),
    ("kinetics100", "kinetics", 99, 99, ["trimming or shaving beard"]),
    ("ssv2_small", "somethingcmn", 0, 100, []),
])  # fmt: skip
def test_the_released_texts_are_of_the_published_classes(reference_data, name, texts, same, found, absent):
    """Names of CLIP-FSAR's lists among those of Task-Adapter++'s texts: as they are written, and as they are meant."""
    classes = set(read_lists({"lists": reference_data / "lists" / "fewshot" / name})[1].values())
    corpus = import_task_adapter(reference_data / "text" / "task_adapter_pp" / f"classes_{texts}.yml")
    assert len(classes & set(corpus.classes)) == same
    named, whose = corpus.named(sorted(classes))
    assert sum(other is not None for other in whose.values()) == found == len(classes & set(named.classes))
    assert [one for one, other in whose.items() if other is None] == absent
    if absent:
        with pytest.raises(UserError, match=f"no text for 1 class.*{absent[0]}"):
            named.require(classes)


def test_texts_are_put_in_place_under_the_names_of_the_data_set(repo, tmp_path, capsys):
    from pipeline.datasets.index import Clip, write_index
    from pipeline.plan import Plan
    from pipeline.stages import make_texts
    from pipeline.workspace import Workspace

    texts = {"draw sword": {"label": "draw sword"}, "Apply Eye Makeup": {"label": "x"}, "run": {"label": "run"}}
    Corpus(texts).save(tmp_path / "texts.json")
    plan = Plan.read(
        repo / "config", {"scale": "paper", "datasets": {"hmdb51": {"texts": str(tmp_path / "texts.json")}}}
    )
    asset, ws = plan.dataset("hmdb51", "the test"), Workspace(tmp_path / "results")
    index = ws.dataset(asset.key) / "index.csv"
    write_index(index, [Clip(n, n, n, s) for n, s in (("draw_sword", "train"), ("ApplyEyeMakeup", "test"))])
    corpus = load_corpus(make_texts(asset, ws))
    assert set(corpus.classes) == {"draw_sword", "ApplyEyeMakeup", "run"} and corpus.label("ApplyEyeMakeup") == "x"
    assert "hmdb51: 'draw_sword' has the texts of 'draw sword'" in capsys.readouterr().out
    write_index(index, [Clip(n, n, n, "train") for n in ("draw_sword", "hop", "sit")])
    with pytest.raises(UserError, match=r"no text for 2 class\(es\): hop, sit; write them"):
        make_texts(asset, ws)
    assert json.loads((tmp_path / "texts.json").read_text())["classes"] == texts  # the user's file stays as it is
