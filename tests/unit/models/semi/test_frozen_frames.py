"""Image encoders as they are: what they see, and what they are not for."""

from __future__ import annotations

import pytest
import torch
import transformers
from torch.testing import assert_close

from pipeline.errors import UserError
from pipeline.models.semi import ElementTimeSformer, FrozenFrames
from pipeline.models.semi.frozen import TOWERS, FrameEncoder

TINY = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28,
        "patch_size": 14, "initializer_range": 0.2}  # fmt: skip


def _saved(kind, folder):
    """A tiny encoder of a family, in a folder as published ones are."""
    torch.manual_seed(0)
    if kind == "clip":
        text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
        transformers.CLIPModel(transformers.CLIPConfig(vision_config=TINY, text_config=text)).save_pretrained(folder)
    elif kind == "dinov2":
        transformers.Dinov2Model(transformers.Dinov2Config(**TINY, mlp_ratio=2)).save_pretrained(folder)
    else:
        words = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
        config = transformers.Blip2Config(
            vision_config=TINY, qformer_config={**words, "encoder_hidden_size": 16, "vocab_size": 9},
            text_config={**words, "model_type": "opt", "ffn_dim": 16, "vocab_size": 9, "word_embed_proj_dim": 16},
        )  # fmt: skip
        transformers.Blip2Model(config).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("kind", TOWERS)
@torch.no_grad()
def test_an_element_is_the_mean_of_its_frames(tmp_path, kind):
    source = _saved(kind, tmp_path)
    model = FrozenFrames({"source": source}, 7, "2-4").eval()
    name, mean, std = TOWERS[kind]
    whole = transformers.Blip2Model.from_pretrained(source).vision_model if kind == "blip-2" else None
    plain = (whole or getattr(transformers, name).from_pretrained(source)).eval()
    assert (model.image_size, model.network.backbone.dim) == (28, 16) and sum(
        p.numel() for p in model.parameters()
    ) == sum(p.numel() for p in plain.parameters())
    pixels = [torch.rand(3, length, 3, 28, 28) for length in (2, 4)]
    got = model.features([(x - 0.45) / 0.225 for x in pixels])
    assert got.shape == (3, 2, 16) and got.std() > 0.05
    for i, x in enumerate(pixels):
        shown = (x[1] - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
        assert_close(got[1, i], plain(pixel_values=shown).pooler_output.mean(0), rtol=1e-5, atol=1e-5)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert_close(model.features([(x[:1] - 0.45) / 0.225 for x in pixels])[0], got[0], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_plain_vit_sees_single_frames(tmp_path):
    vit = ElementTimeSformer({"width": 16, "depth": 2, "heads": 2, "patch": 14, "image_size": 28}, [4]).eval()
    vit.save(tmp_path)
    x = torch.randn(2, 4, 3, 28, 28)
    one = ElementTimeSformer(str(tmp_path), [1]).eval()
    want = torch.stack([one(x[:, t : t + 1]) for t in range(4)]).mean(0)
    assert_close(FrozenFrames({"source": str(tmp_path)}, 7, 4).eval().features([x])[:, 0], want, rtol=1e-5, atol=1e-5)


def test_it_is_no_classifier_and_others_are_refused(tmp_path):
    transformers.BertConfig().save_pretrained(tmp_path)
    with pytest.raises(UserError, match="unknown model type 'bert'"):
        FrameEncoder(str(tmp_path))
    with pytest.raises(UserError, match="can't load the image encoder '/no/such'"):
        FrameEncoder("/no/such")
    model = FrozenFrames({"source": {"width": 16, "depth": 1, "heads": 2, "patch": 14, "image_size": 28}}, 7)
    for call in (lambda: model.predict([]), lambda: model(mode="loss")):
        with pytest.raises(UserError, match="FrozenFrames"):
            call()
