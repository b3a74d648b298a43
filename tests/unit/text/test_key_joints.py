import numpy as np
import pytest

from pipeline.datasets.skeletons.graph import SKELETONS, get_graph
from pipeline.datasets.synthetic import grammar
from pipeline.text.key_joints import key_joint_matrix, key_joints

NTU = get_graph("ntu25")


def found(text, graph=NTU):
    return {graph.names[j] for j in np.flatnonzero(key_joints(text, graph).joints)}


def parts(text, graph=NTU):
    return [(text[m.start : m.end], m.part) for m in key_joints(text, graph).mentions]


def both(*joints):
    return {f"{side} {joint}" for side in ("left", "right") for joint in joints}


def test_examples_of_the_paper():
    """Arms are shoulders, elbows and wrists, eyes the head (section 3.4); appendix A6's texts."""
    assert found("the arms") == both("shoulder", "elbow", "wrist")
    assert found("the eyes") == {"head"}
    wave = (
        "one arm is raised and moved side to side, typically with the hand open, often performed in a rhythmic motion, "
        "involving a swinging movement at the elbow joint while the wrist creates a slight flexion and extension"
    )
    hand = both("hand", "thumb") | {"tip of left hand", "tip of right hand"}
    assert found(wave) == both("shoulder", "elbow", "wrist") | hand
    squat = (
        "the knees and hips bend while the torso lowers, maintaining an upright posture, and the arms may extend "
        "forward or rest on the thighs, with the body weight shifting towards the heels, engaging the leg muscles"
    )
    spine = {"base of spine", "mid of spine", "spine"}
    assert found(squat) == both("knee", "hip", "ankle", "foot", "shoulder", "elbow", "wrist") | spine
    assert [m.part for m in key_joints(squat, NTU).mentions] == "knee hip torso arm thigh heel leg".split()


@pytest.mark.parametrize(
    "text, want",
    [
        ("He raises his left arm.", [("left arm", "left arm")]),
        ("the left and the right feet", [("left and the right feet", "foot")]),
        ("the right hand and wrist", [("right hand", "right hand"), ("wrist", "right wrist")]),
        ("the right hand and knees", [("right hand", "right hand"), ("knees", "knee")]),
        ("the right hand. The knee", [("right hand", "right hand"), ("knee", "knee")]),
        ("the tips of the hands; the tip of the left hand", [("tips of the hands", "tip of hand"),
                                                            ("tip of the left hand", "left tip of hand")]),
        ("his right upper arm", [("right upper arm", "right upper arm")]),
        ("with straight legs, feet and calves", [("straight legs", "leg"), ("feet", "foot"), ("calves", "calf")]),
        ("HER FOREHEAD, Teeth", [("FOREHEAD", "forehead"), ("Teeth", "head")]),
        ("feet shoulder-width apart, hand-held", [("feet", "foot")]),
    ],
)  # fmt: skip
def test_spans_sides_and_plurals(text, want):
    assert parts(text) == want


@pytest.mark.parametrize(
    "text",
    [
        "swings back and forth, then back", "the task at hand", "On the other hand, this", "he faces the mirror",
        "several body parts", "to face away", "arming, legend, handle, footage, header, kneel, backward", "",
    ],
)  # fmt: skip
def test_words_that_are_no_part_of_the_body(text):
    assert not parts(text)


def test_back_as_a_part_of_the_body():
    assert found("his back is straight") == found("the other person's back") == found("the torso")
    assert found("the back of the hand") == found("the hand")


def test_a_side_leaves_the_other_out_and_keeps_the_whole_hand():
    assert found("the left hand") == {"left hand", "left thumb", "tip of left hand"}
    assert found("the whole body") == set(NTU.names)
    assert found("the upper limbs") == found("the arms") and found("the limbs") == found("arms and legs")


@pytest.mark.parametrize("name", SKELETONS)
def test_every_skeleton_and_every_generated_class(name):
    graph = get_graph(name)
    assert found("right arm", graph) == {"right shoulder", "right elbow", "right wrist"}
    assert len(found("a foot, the head, a hand, the torso", graph)) >= 4
    for kind in grammar.SETS:
        texts = [entry["global"] for entry in grammar.texts(kind)["classes"].values()]
        matrix = key_joint_matrix(texts, graph)
        assert matrix.shape == (len(texts), len(graph)) and matrix.dtype == np.float32
        assert set(matrix.ravel()) == {0, 1} and matrix.any(1).all()


def test_parts_that_a_skeleton_adds():
    graph = get_graph({"names": ["root", "left paw"], "parents": {"root": None, "left paw": "root"},
                       "parts": {"tail": ["root"]}})  # fmt: skip
    assert found("the tail, both paws", graph) == {"root", "left paw"}
    assert not parts("the knee", graph)


def test_words_for_the_trunk_mean_the_joint_of_that_name():
    parents = {"torso": None, "neck": "torso", "left shoulder": "neck", "right shoulder": "neck", "left hip": "torso"}
    graph = get_graph({"names": list(parents), "parents": parents})
    for words in ("the torso", "the trunk", "the chest", "the waist", "the back"):
        assert found(words, graph) == {"torso"}, words


def test_descriptions_of_language_models(reference_data):
    """Nearly all published texts of NTU's actions name a joint, and few name all."""
    lines = (reference_data / "text" / "gap" / "pasta_openai_t01.txt").read_text().splitlines()
    assert key_joint_matrix(lines, NTU).any(1).all()
    lines = (reference_data / "text" / "usllf" / "text_data_global" / "1.txt").read_text().splitlines()
    matrix = key_joint_matrix([line for line in lines if line.strip()], NTU)
    assert matrix.any(1).mean() > 0.85 and matrix.sum(1).mean() < 15
