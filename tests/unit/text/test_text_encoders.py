from importlib.util import find_spec

import numpy as np
import pytest
import torch

from pipeline.datasets.skeletons.graph import get_graph
from pipeline.errors import UserError
from pipeline.text import encoders
from pipeline.text.corpus import Corpus
from pipeline.text.encoders import encode_grid, encode_sentences, joint_sentences

torch.set_num_threads(1)
SAID = ["The left hand moves up.", "The right hand moves up.", "The left foot stays still.", "The head stays still."]


# --------------------------------------------------------------------------------------------------- lsa
def test_lsa_is_made_of_the_words_and_of_nothing_else(tmp_path):
    vectors = encode_sentences("lsa", SAID, tmp_path)
    assert vectors.shape == (4, 3) and vectors.dtype == torch.float32 and not list(tmp_path.iterdir())
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(4))
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[3]
    order = [2, 0, 0, 3, 1]
    again = encode_sentences("lsa", [SAID[i] for i in order], tmp_path)
    torch.testing.assert_close(again, vectors[order], atol=1e-6, rtol=0)
    assert encode_grid("lsa", [SAID[:2], SAID[2:]], tmp_path).shape == (2, 2, 3)
    assert encode_sentences("lsa", ["one", "one"], tmp_path).shape == (2, 1)


def test_lsa_has_no_more_than_its_dimensions(tmp_path):
    many = [f"word{i} word{i + 1} both" for i in range(200)]
    assert encode_sentences("lsa", many, tmp_path).shape == (200, encoders.LSA_DIMENSIONS)


# ------------------------------------------------------------------------------------------------ deberta
PIECES = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "▁"]
PIECES += [f"▁{word}" for word in "the left right hand foot head moves up stays still".split()]
PIECES += list(".abcdefghijklmnopqrstuvwxyz")


def save_deberta(folder):
    """A narrow DeBERTa-V2 with random weights, without a tokenizer."""
    from transformers import DebertaV2Config, DebertaV2Model

    torch.manual_seed(0)
    config = DebertaV2Config(
        vocab_size=len(PIECES) + 4, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=24, relative_attention=True, position_biased_input=False, pos_att_type=["p2c", "c2p"],
    )  # fmt: skip
    config.save_pretrained(folder)
    torch.save(DebertaV2Model(config).state_dict(), folder / "pytorch_model.bin")


@pytest.fixture(scope="module")
def deberta(tmp_path_factory):
    from transformers import DebertaV2Tokenizer

    folder = tmp_path_factory.mktemp("deberta")
    save_deberta(folder)
    vocabulary = [(piece, -float(i)) for i, piece in enumerate(PIECES)]
    DebertaV2Tokenizer(vocab=vocabulary, unk_id=3, do_lower_case=True).save_pretrained(folder)
    return folder


def test_deberta_in_the_files_of_the_hub(deberta, tmp_path):
    """spm.model in place of tokenizer.json: the same tokens, or word of the package that reads it."""
    from transformers.utils import sentencepiece_model_pb2_new as pb

    model, kinds = pb.ModelProto(), pb.ModelProto.SentencePiece.Type
    for i, piece in enumerate(PIECES):
        kind = kinds.UNKNOWN if i == 3 else kinds.CONTROL if i < 3 else kinds.NORMAL
        model.pieces.add(piece=piece, score=-float(i), type=kind)
    model.trainer_spec.model_type, model.trainer_spec.unk_id = pb.TrainerSpec.ModelType.UNIGRAM, 3
    (tmp_path / "spm.model").write_bytes(model.SerializeToString())
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": true, "vocab_type": "spm"}')
    save_deberta(tmp_path)
    if find_spec("sentencepiece") is None:
        with pytest.raises(UserError, match="pip install sentencepiece"):
            encode_sentences("deberta", SAID, tmp_path / "cache", str(tmp_path))
        return
    want = encode_sentences("deberta", SAID, tmp_path / "a", str(deberta))
    torch.testing.assert_close(encode_sentences("deberta", SAID, tmp_path / "b", str(tmp_path)), want)


def test_deberta_is_the_mean_over_tokens_and_padding_is_no_matter(deberta, tmp_path):
    from transformers import AutoModel, AutoTokenizer

    vectors = encode_sentences("deberta", [*SAID, SAID[0]], tmp_path, str(deberta))
    assert vectors.shape == (5, 16) and not vectors.requires_grad and torch.equal(vectors[0], vectors[4])
    tokenizer, model = AutoTokenizer.from_pretrained(deberta), AutoModel.from_pretrained(deberta).eval()
    for sentence, vector in zip(SAID, vectors, strict=False):
        tokens = tokenizer(sentence, return_tensors="pt")
        assert len(set(tokens["input_ids"][0].tolist())) > 4
        with torch.no_grad():
            want = model(**tokens).last_hidden_state[0].mean(0)
        torch.testing.assert_close(vector, want, atol=1e-5, rtol=1e-4)


def test_deberta_encodes_a_sentence_once(deberta, tmp_path, monkeypatch):
    first = encode_sentences("deberta", SAID[:3], tmp_path, str(deberta))
    (cache,) = tmp_path.iterdir()
    asked = []
    really = encoders._deberta
    monkeypatch.setattr(encoders, "_deberta", lambda texts, source: asked.extend(texts) or really(texts, source))
    second = encode_sentences("deberta", SAID, tmp_path, str(deberta))
    assert asked == [SAID[3]] and torch.equal(first, second[:3])
    assert encode_sentences("deberta", SAID, tmp_path, str(deberta)).shape == (4, 16) and len(asked) == 1
    cache.write_bytes(b"damaged")
    torch.testing.assert_close(encode_sentences("deberta", SAID, tmp_path, str(deberta)), second)
    assert len(asked) == 5 and [p.name for p in tmp_path.iterdir()] == [cache.name]


def test_what_cannot_be_encoded(tmp_path):
    with pytest.raises(UserError, match="unknown text encoder 'debrta' in model.text; did you mean 'deberta'"):
        encode_sentences("debrta", SAID, tmp_path)
    with pytest.raises(UserError, match="a text is empty"):
        encode_sentences("lsa", ["a", " "], tmp_path)
    with pytest.raises(UserError, match="can't load the text encoder .*absent.*set model.text_source"):
        encode_sentences("deberta", SAID, tmp_path, str(tmp_path / "absent"))


# -------------------------------------------------------------------------------------------- which sentences
def corpus(joints, *names):
    entry = {"label": "jump", "joints": {joint: f"The {joint} moves." for joint in joints}}
    return Corpus(dict.fromkeys(names or ("jump",), entry))


def test_sentences_in_the_order_of_the_joints():
    graph = get_graph("ntu25")
    (row,) = joint_sentences(corpus(reversed(graph.names)), ["jump"], graph)
    assert row == [f"The {joint} moves." for joint in graph.names]


@pytest.mark.parametrize("skeleton", ["coco17", "h36m17", "openpose18"])
def test_sentences_of_ntu_serve_2d_poses(skeleton):
    ntu, graph = get_graph("ntu25"), get_graph(skeleton)
    (row,) = joint_sentences(corpus(ntu.names), ["jump"], graph)
    said = dict(zip(graph.names, row, strict=True))
    assert said["left wrist"] == "The left wrist moves." and said["nose"] == "The head moves."
    assert said.get("pelvis", "The base of spine moves.") == "The base of spine moves."
    assert said.get("right ear", "The head moves.") == "The head moves."
    back = joint_sentences(corpus(graph.names), ["jump"], get_graph("coco17")) if skeleton == "openpose18" else [row]
    assert len(back[0]) in (17, 18)


def test_a_sided_joint_stands_in_on_its_own_side():
    names = [name for name in get_graph("ntu25").names if "thumb" not in name]
    (row,) = joint_sentences(corpus(names), ["jump"], get_graph("ntu25"))
    assert np.array(row)[[22, 24]].tolist() == ["The left hand moves.", "The right hand moves."]


def test_missing_sentences_name_the_class_and_the_joint():
    graph = get_graph("ntu25")
    few = [name for name in graph.names if name != "left knee"]
    with pytest.raises(UserError, match=r"corpus\.json: the class 'jump' has no text for the joint 'left knee'"):
        joint_sentences(corpus(few), ["jump"], graph)
    with pytest.raises(UserError, match=r"corpus\.json has no text for 1 class\(es\): hop"):
        joint_sentences(corpus(graph.names), ["jump", "hop"], graph)
    with pytest.raises(UserError, match="has no texts of joints"):
        joint_sentences(Corpus({"jump": {"label": "jump"}}), ["jump"], graph)
