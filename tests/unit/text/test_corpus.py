import json

import pytest

from pipeline.errors import UserError
from pipeline.experiment import Asset
from pipeline.stages import make_texts
from pipeline.text.corpus import BODY_PARTS, Corpus, import_corpus, import_task_adapter, load_corpus
from pipeline.workspace import Workspace

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
        ({"joints": []}, "joints that are not an object"),
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


@pytest.mark.parametrize(
    ("files", "classes", "field"),
    [
        ("gap/sentence_openai_t01.txt", 120, "global"),
        ("gap/pasta_openai_t01.txt", 120, "joints"),
        ("gap/synonym_openai_t01.txt", 120, "global"),
        ("gap/ucla_sentence_openai_t01.txt", 10, "global"),
        ("gap/ucla_pasta_openai_t01.txt", 10, "joints"),
        ("usllf/text_data_global/*.txt", 60, "global"),
        ("usllf/text_data_part/*.txt", 60, "joints"),
        ("motiondescriptions/*mdb51*.csv", 51, "global"),
        ("motiondescriptions/u*.csv", 101, "global"),
        ("motiondescriptions/[kK]inetics400*.csv", 400, "global"),
    ],
)
def test_published_texts(reference_data, files, classes, field):
    paths = sorted((reference_data / "text").glob(files))
    assert paths
    for path in paths:
        corpus = import_corpus([path])
        assert len(corpus.names) == classes
        (source,) = corpus.provenance.values()
        odd = source.get("without_parts", [])
        assert len(odd) <= (6 if "usllf" in files else 0), path
        for name, entry in corpus.classes.items():
            assert set(entry) == ({"label"} if name in odd else {"label", field}), (path, name)
        assert all(len(name) < 60 for name in corpus.names), path


def test_texts_of_parts_serve_every_joint(reference_data):
    from pipeline.datasets.skeletons.graph import SKELETONS, get_graph
    from pipeline.text.encoders import joint_sentences

    folder = reference_data / "text" / "gap"
    corpus = import_corpus([folder / "sentence_openai_t01.txt", folder / "pasta_openai_t01.txt"])
    assert corpus.joints("drink water")["hand"] == "hand grasps cup"
    assert corpus.global_text("drink water").startswith("The man is drinking water")
    for graph in map(get_graph, SKELETONS):
        (row,) = joint_sentences(corpus, ["drink water"], graph)
        assert len(row) == len(graph.names) and set(row) <= set(corpus.joints("drink water").values())
    graph = get_graph("ntu25")
    by_name = dict(zip(graph.names, joint_sentences(corpus, ["drink water"], graph)[0], strict=True))
    assert by_name["left elbow"] == "arm lifts cup to mouth" and by_name["right thumb"] == "hand grasps cup"


def test_texts_of_any_editor(tmp_path):
    path, entry = tmp_path / "texts.json", '{"label": "x"}'
    path.write_bytes(b"\xef\xbb\xbf" + f'{{"classes": {{"cafe\u0301": {entry}}}}}'.encode())
    assert load_corpus(path).names == ["caf\u00e9"]
    for text in (
        f'{{"classes": {{"a": {entry}, "a": {entry}}}}}',
        f'{{"classes": {{"\u00e9": {entry}, "e\u0301": {entry}}}}}',
    ):
        path.write_text(text)
        with pytest.raises(UserError, match="twice"):
            load_corpus(path)
    path.write_text(f'{{"classes": {{"Draw Sword": {entry}, "run": {entry}}}}}')
    corpus, found = load_corpus(path).named(["draw_sword", "run"])
    assert corpus.names == ["draw_sword", "run"] and found["draw_sword"] == "Draw Sword"


def test_a_data_set_without_texts_stops_only_who_reads_them(tmp_path, capsys):
    ws, asset = Workspace(tmp_path), Asset(name="mine", spec={"kind": "folder"}, options={"texts": "none.json"})
    corpus = load_corpus(make_texts(asset, ws))
    assert "has no texts (none.json); methods that read them will stop" in capsys.readouterr().out
    with pytest.raises(UserError, match="has no texts, and this method reads them"):
        corpus.label("wave")


def test_a_published_class_that_is_there_twice_is_said(tmp_path, capsys):
    path = tmp_path / "classes.yml"
    path.write_text("run:\n  label: run\n  sub_act_en_li: [a, b, c]\nrun:\n  label: run\n  sub_act_en_li: [d, e, f]\n")
    assert import_task_adapter(path).stages("run") == ["d", "e", "f"]
    assert "'run' is there twice; the last entry counts" in capsys.readouterr().err


def test_lines_with_names_of_the_data_set_and_wrong_ones(tmp_path):
    path = tmp_path / "said.txt"
    path.write_text("eat meal,He eats, slowly.\nsit down,He sits.\n")
    corpus = import_corpus([path], ["eat meal/snack", "sitting down"])
    assert corpus.classes["eat meal/snack"] == {"label": "eat meal/snack", "global": "He eats, slowly."}
    assert "sit down" not in corpus.classes and list(corpus.provenance) == ["imported from said.txt"]
    with pytest.raises(UserError, match="has 2 classes, and 3 are named"):
        import_corpus([path], ["a", "b", "c"])
    parts = tmp_path / "parts.txt"
    six = "; ".join(f"the {part} rests" for part in BODY_PARTS)
    parts.write_text(f"eat meal;{six}\nsit down;{six}\nstand;{six}; and more\n")
    merged = import_corpus([path, parts])
    assert set(merged.classes["eat meal"]) == {"label", "global", "joints"} and set(merged.classes["stand"]) == {
        "label"
    }
    assert merged.joints("sit down")["foot"] == "the foot rests"
    assert merged.provenance["imported from parts.txt"]["without_parts"] == ["stand"]
    for text, message in [
        ("jump\n", "each needs a class"),
        ("jump,\n", "has no text"),
        ("a,b\na,c\n", "comes twice"),
        ("", "each"),
    ]:
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            import_corpus([path])
    with pytest.raises(UserError, match=rf"{tmp_path} is a folder; name its files, apart by commas: .*{path}"):
        import_corpus([tmp_path])
