"""CLIP in Hugging Face format: features, tokenizer, errors."""

from __future__ import annotations

import json
import logging
import shutil
import zipfile

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, CLIPModel

from pipeline.compat import MODELS
from pipeline.errors import UserError
from pipeline.models.backbones.clip import CLIP_MEAN, CLIP_STD, VIT_B_16, CLIPBackbone
from pipeline.models.backbones.nano_clip import EOS, PAD, UNK, build_tokenizer, init_nano, nano_config

SENTENCES = ["a photo of a red ball", "The left hand moves slowly, then stops.", "a ball"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A nano CLIP with random weights, written by transformers itself."""
    path = tmp_path_factory.mktemp("clip")
    tokenizer = build_tokenizer(SENTENCES, max_length=16)
    torch.manual_seed(0)
    CLIPModel(nano_config(len(tokenizer), layers=3, max_length=16)).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture
def broken(folder, tmp_path):
    """A copy of the folder to break."""
    return shutil.copytree(folder, tmp_path / "clip")


def test_features_are_those_of_transformers(folder):
    backbone = CLIPBackbone(folder)
    reference = CLIPModel.from_pretrained(folder).eval()
    x = torch.randn(2, 3, 3, 64, 64)
    tokens = AutoTokenizer.from_pretrained(folder)(SENTENCES, padding=True, return_tensors="pt")
    with torch.no_grad():
        frames = reference.get_image_features(x.flatten(0, 1)).pooler_output
        texts = reference.get_text_features(**tokens).pooler_output
        torch.testing.assert_close(backbone.encode_frames(x).flatten(0, 1), frames, atol=1e-5, rtol=0)
        torch.testing.assert_close(backbone.encode_text(SENTENCES), texts, atol=1e-5, rtol=0)
    assert backbone.encode_frames(x).shape == (2, 3, backbone.dim)


def test_frame_feature_is_the_projected_cls_token(folder):
    backbone = CLIPBackbone(folder, attention="eager")
    x = torch.randn(1, 2, 3, 64, 64)
    vision = backbone.clip.vision_model
    with torch.no_grad():
        hidden = vision.pre_layrnorm(vision.embeddings(x[0]))
        for layer in vision.encoder.layers:
            hidden = layer(hidden, None)
        expected = vision.post_layernorm(hidden[:, 0]) @ backbone.clip.visual_projection.weight.T
        torch.testing.assert_close(backbone.encode_frames(x)[0], expected, atol=1e-5, rtol=0)


def test_registered(folder):
    backbone = MODELS.build({"type": "CLIPBackbone", "source": str(folder)})
    assert (backbone.dim, backbone.image_size, backbone.max_length) == (64, 64, 16)


def test_loading_prints_nothing(folder, capfd):
    CLIPBackbone(folder)
    out, err = capfd.readouterr()
    assert out == "" and err == ""


def test_only_the_frame_tower_is_trained_when_text_is_frozen(folder):
    backbone = CLIPBackbone(folder, activation_checkpointing=True).train()
    backbone.encode_frames(torch.randn(1, 2, 3, 64, 64)).sum().backward()
    assert not backbone.encode_text(["a ball"]).requires_grad
    for name, parameter in backbone.named_parameters():
        assert (parameter.grad is not None) == name.startswith(("clip.vision_model", "clip.visual_projection")), name
    assert CLIPBackbone(folder, freeze_text=False).encode_text(["a ball"]).requires_grad


def test_activation_checkpointing_changes_no_gradient(folder):
    x = torch.randn(1, 2, 3, 64, 64)
    grads = []
    for checkpointing in (False, True):
        backbone = CLIPBackbone(folder, activation_checkpointing=checkpointing).train()
        backbone.encode_frames(x).square().sum().backward()
        grads.append(backbone.clip.vision_model.embeddings.patch_embedding.weight.grad)
    torch.testing.assert_close(*grads)


def test_autocast_keeps_features_close(folder):
    backbone = CLIPBackbone(folder)
    x = torch.randn(1, 2, 3, 64, 64)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        half = backbone.encode_frames(x)
    with torch.no_grad():
        assert torch.cosine_similarity(half.float(), backbone.encode_frames(x), dim=-1).min() > 0.99


def test_vit_b_16_has_the_published_size():
    with torch.device("meta"):
        backbone = CLIPBackbone(VIT_B_16)
    assert sum(p.numel() for p in backbone.parameters()) == 149_620_737
    assert (backbone.dim, backbone.image_size, backbone.max_length) == (512, 224, 77)


@pytest.mark.slow
def test_vit_b_16_encodes_a_clip():
    backbone = CLIPBackbone(VIT_B_16).eval()
    with torch.no_grad():
        assert backbone.encode_frames(torch.randn(1, 8, 3, 224, 224)).shape == (1, 8, 512)
        assert backbone.encode_tokens(torch.tensor([[49406, 320, 49407, 0]])).shape == (1, 512)


def test_padding_and_what_follows_the_end_have_no_influence(folder):
    backbone = CLIPBackbone(folder)
    short, long = backbone.tokenize(["a ball"]), backbone.tokenize(["a ball"], length=16)
    assert long.shape == (1, 16) and long[0, 4:].eq(0).all()
    dirty = long.clone()
    dirty[0, 4:] = torch.arange(4, 16)
    with torch.no_grad():
        expected = backbone.encode_tokens(short)
        for ids in (long, dirty):
            torch.testing.assert_close(backbone.encode_tokens(ids), expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(backbone.encode_text(SENTENCES)[2:], expected, atol=1e-5, rtol=0)


def test_folder_laid_out_like_openai_clip(tmp_path):
    """vocab.json and merges.txt, no tokenizer.json; eos_token_id 2, the old "end of text = highest id"."""
    vocabulary = ["a", "b", "c", "a</w>", "b</w>", "c</w>", "ab</w>", "<|startoftext|>", "<|endoftext|>"]
    (tmp_path / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(vocabulary)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b</w>\n")
    config = nano_config(9, width=24, layers=2)
    config.text_config.update({"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1})
    CLIPModel(config).save_pretrained(tmp_path)
    backbone = CLIPBackbone(tmp_path)
    ids = backbone.tokenize(["AB c", "b"])
    assert ids.tolist() == [[7, 6, 5, 8], [7, 4, 8, 0]]
    with torch.no_grad():
        hidden = backbone.clip.text_model(input_ids=ids).last_hidden_state
        expected = torch.stack([hidden[0, 3], hidden[1, 2]]) @ backbone.clip.text_projection.weight.T
        torch.testing.assert_close(backbone.encode_text(["AB c", "b"]), expected)


def test_tokenizer_of_another_model(broken):
    build_tokenizer([" ".join(f"word{i}" for i in range(500))]).save_pretrained(broken)
    with pytest.raises(UserError, match="does not belong to the weights"):
        CLIPBackbone(broken)


def test_long_text_keeps_its_end_and_warns_once(folder, caplog):
    backbone = CLIPBackbone(folder)
    long = " ".join(["ball"] * 40)
    with caplog.at_level(logging.WARNING, logger="pipeline"):
        ids = backbone.tokenize([long, "a ball", long])
    assert len(caplog.records) == 1 and "2 of 3 texts" in caplog.text
    end = backbone.clip.config.text_config.eos_token_id
    assert ids.shape == (3, 16) and ids[0, -1] == end and ids[0].eq(end).sum() == 1
    assert backbone.encode_text([long]).shape == (1, 64)


def test_tokenizer_round_trip_and_unknown_words(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("A photo of a RED ball, then draw_sword!")["input_ids"]
    tokens = tokenizer.convert_ids_to_tokens(ids)
    words = "a photo of a red ball , then".split()
    assert tokens == ["<|startoftext|>", *words, UNK, "_", UNK, "!", EOS]
    assert tokenizer.decode(tokenizer(SENTENCES[0])["input_ids"], skip_special_tokens=True) == SENTENCES[0]
    assert tokenizer.convert_tokens_to_ids(PAD) == 0
    assert build_tokenizer(SENTENCES).get_vocab() == build_tokenizer(reversed(SENTENCES)).get_vocab()


def test_nano_weights_depend_on_the_generator_alone():
    models = []
    for _ in range(2):
        model = CLIPModel(nano_config(50, width=24, layers=2))
        for parameter in model.parameters():
            torch.nn.init.constant_(parameter, torch.nan)
        init_nano(model, torch.Generator().manual_seed(3))
        models.append(model.state_dict())
    for name, value in models[0].items():
        assert torch.equal(value, models[1][name]) and value.isfinite().all(), name


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("config.json", "no config.json in"),
        ("model.safetensors", "model.safetensors is missing"),
        ("tokenizer.json", "neither tokenizer.json nor vocab.json"),
    ],
)
def test_missing_file(broken, name, message):
    (broken / name).unlink()
    with pytest.raises(UserError, match=message) as error:
        CLIPBackbone(broken)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_damaged_file(broken, name):
    data = (broken / name).read_bytes()
    (broken / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError) as error:
        CLIPBackbone(broken)
    assert "\n" not in str(error.value) and str(broken) in str(error.value)


def test_folder_of_another_model(broken):
    (broken / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(UserError, match="'vit'"):
        CLIPBackbone(broken)


def test_weights_without_a_tower(broken):
    from safetensors.torch import load_file, save_file

    state = load_file(broken / "model.safetensors")
    save_file({k: v for k, v in state.items() if "text" not in k}, broken / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"lack \d+ tensors"):
        CLIPBackbone(broken)


def test_pickled_weights_are_not_executed(broken, tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "owned"), "w"))

    (broken / "model.safetensors").unlink()
    torch.save({"logit_scale": Evil()}, broken / "pytorch_model.bin")
    with pytest.raises(UserError):
        CLIPBackbone(broken)
    assert not (tmp_path / "owned").exists()


def test_state_dict_file_is_read(folder, broken):
    model = CLIPModel.from_pretrained(broken)
    (broken / "model.safetensors").unlink()
    torch.save(model.state_dict(), broken / "pytorch_model.bin")
    with torch.no_grad():
        expected = CLIPBackbone(folder).encode_text(SENTENCES)
        torch.testing.assert_close(CLIPBackbone(broken).encode_text(SENTENCES), expected)


def test_no_such_folder(tmp_path):
    with pytest.raises(UserError, match="no CLIP folder"):
        CLIPBackbone(tmp_path / "absent")


def test_hub_without_network(monkeypatch):
    import huggingface_hub

    def offline(*args, **kwargs):
        raise huggingface_hub.errors.LocalEntryNotFoundError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(UserError, match="hf download openai/clip-vit-base-patch16") as error:
        CLIPBackbone("openai/clip-vit-base-patch16")
    assert "\n" not in str(error.value)


def test_wrong_frame_size(folder):
    with pytest.raises(UserError, match="32x64"):
        CLIPBackbone(folder).encode_frames(torch.zeros(1, 1, 3, 32, 64))


def test_text_without_tokenizer():
    with pytest.raises(UserError, match="no tokenizer"):
        CLIPBackbone(nano_config(20, layers=1)).encode_text(["a"])


def test_the_normalisation_of_the_folder(folder, broken, tmp_path):
    assert (CLIPBackbone(folder).mean, CLIPBackbone(folder).std) == (CLIP_MEAN, CLIP_STD)
    (broken / "preprocessor_config.json").write_text('{"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.4, 0.5]}')
    backbone = CLIPBackbone(broken)
    assert (backbone.mean, backbone.std) == ((0.5, 0.5, 0.5), (0.5, 0.4, 0.5))
    backbone.save(tmp_path / "again")
    assert CLIPBackbone(tmp_path / "again").std == (0.5, 0.4, 0.5)
    (broken / "preprocessor_config.json").write_text('{"image_mean": [0.5], "image_std": [0.5]}')
    with pytest.raises(UserError, match="three numbers of RGB"):
        CLIPBackbone(broken)


def test_files_that_are_no_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights").mkdir()
    with zipfile.ZipFile("weights/ViT-B-16.pt", "w") as archive:
        archive.writestr("ViT-B-16/code/__torch__/model.py", "class Multimodal(Module): pass")
    for name in ("weights/ViT-B-16.pt", str(tmp_path / "weights" / "ViT-B-16.pt")):
        with pytest.raises(UserError, match=r"TorchScript .* as OpenAI publishes CLIP.* Hugging\s+Face's format"):
            CLIPBackbone(name)
    with pytest.raises(UserError, match=r"no CLIP folder weights/other\.pt"):
        CLIPBackbone("weights/other.pt")


def test_weights_that_are_not_finite(broken):
    path = broken / "model.safetensors"
    state = load_file(path)
    state["visual_projection.weight"][0, 0] = float("nan")
    save_file(state, path, {"format": "pt"})
    with pytest.raises(UserError, match=r"visual_projection\.weight holds numbers that are not finite"):
        CLIPBackbone(broken)
