import json

import pytest

from pipeline.errors import UserError
from pipeline.text.corpus import Corpus, import_task_adapter, load_corpus

JUMP = {
    "label": "jump",
    "atomic": {"1": ["leaps"], "2": ["bends the knees", "leaps"]},
    "stages": ["bends", "leaps", "lands"],
    "global": "A person jumps.",
    "joints": {"knee": "bends and stretches"},
}


def test_what_is_saved_is_loaded(tmp_path):
    corpus = Corpus({"jump": JUMP, "café": {"label": "café"}}, {"model": "m"})
    loaded = load_corpus(corpus.save(tmp_path / "new" / "corpus.json"))
    assert loaded.classes == corpus.classes
    assert loaded.provenance == {"model": "m"}
    assert loaded.sha256 == corpus.sha256
    assert loaded.names == ["café", "jump"]
    assert loaded.atomic("jump", 2) == ["bends the knees", "leaps"]
    assert loaded.stages("jump") == ["bends", "leaps", "lands"]
    assert (loaded.label("jump"), loaded.global_text("jump")) == ("jump", "A person jumps.")
    assert loaded.joints("jump") == {"knee": "bends and stretches"}


def test_missing_text_names_class_and_file(tmp_path):
    corpus = load_corpus(Corpus({"jump": JUMP, "run": {"label": "run"}}).save(tmp_path / "c.json"))
    with pytest.raises(UserError, match=r"unknown class 'jmp' in .*c\.json; did you mean 'jump'"):
        corpus.label("jmp")
    with pytest.raises(UserError, match=r"c\.json: the class 'jump' has no 3 atomic action"):
        corpus.atomic("jump", 3)
    for ask in (corpus.stages, corpus.global_text, corpus.joints, lambda name: corpus.atomic(name, 1)):
        with pytest.raises(UserError, match=r"c\.json: the class 'run' has no"):
            ask("run")
    with pytest.raises(UserError, match=r"no text for 2 class\(es\): hop, sit"):
        corpus.require(["sit", "jump", "hop"])
    corpus.require(["jump"])


def test_hash_is_of_the_texts():
    one = Corpus({"jump": JUMP}, {"model": "a"})
    assert one.sha256 == Corpus({"jump": dict(reversed(JUMP.items()))}, {"model": "b"}).sha256
    assert one.sha256 != Corpus({"jump": {**JUMP, "label": "hop"}}).sha256


def test_merge():
    one = Corpus({"jump": {"label": "jump", "atomic": {"1": ["leaps"]}}}, {"a": 1})
    two = Corpus({"jump": {"label": "jump", "atomic": {"2": ["bends", "leaps"]}}, "run": {"label": "run"}}, {"b": 2})
    both = one.merge(two)
    assert both.names == ["jump", "run"]
    assert set(both.classes["jump"]["atomic"]) == {"1", "2"}
    assert both.provenance == {"a": 1, "b": 2}
    assert set(one.classes["jump"]["atomic"]) == {"1"}  # left as it was
    with pytest.raises(UserError, match="differ in atomic of the class 'jump'"):
        one.merge(Corpus({"jump": {"label": "jump", "atomic": {"1": ["hops"]}}}))
    with pytest.raises(UserError, match="differ in label"):
        one.merge(Corpus({"jump": {"label": "hop"}}))


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"atomic": {"2": ["one"]}}, "list of 2 non-empty texts"),
        ({"atomic": {"two": ["a", "b"]}}, "'two'"),
        ({"atomic": {"1": [" "]}}, "non-empty"),
        ({"stages": ["a", "b"]}, "3 non-empty stages"),
        ({"global": ""}, "empty global"),
        ({"joints": {"knee": ""}}, "joint 'knee'"),
        ({"joints": []}, "joints that are no object"),
        ({"lable": "x"}, "did you mean 'label'"),
        ("text", "must be an object"),
    ],
)
def test_wrong_entries(tmp_path, entry, message):
    path = tmp_path / "c.json"
    path.write_text(json.dumps({"classes": {"jump": entry}}))
    with pytest.raises(UserError, match=message):
        load_corpus(path)


def test_wrong_files(tmp_path):
    path = tmp_path / "c.json"
    with pytest.raises(UserError, match="there is no corpus"):
        load_corpus(path)
    path.write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        load_corpus(path)
    path.write_text("[]")
    with pytest.raises(UserError, match="is not a corpus"):
        load_corpus(path)


@pytest.mark.parametrize(
    ("name", "classes"), [("hmdb51", 51), ("kinetics", 102), ("ucf101", 150), ("somethingcmn", 100)]
)
def test_task_adapter_files(reference_data, name, classes):
    corpus = import_task_adapter(reference_data / "text" / "task_adapter_pp" / f"classes_{name}.yml")
    assert len(corpus.names) == classes
    assert all(len(corpus.stages(each)) == 3 for each in corpus.names)
    assert corpus.provenance["source"] == "Task-Adapter++"


def test_wrong_task_adapter_files(tmp_path):
    path = tmp_path / "c.yml"
    path.write_text("jump: {label: jump}\n")
    with pytest.raises(UserError, match="'jump' needs label and sub_act_en_li"):
        import_task_adapter(path)
    path.write_text("- jump\n")
    with pytest.raises(UserError, match="not a Task-Adapter"):
        import_task_adapter(path)
