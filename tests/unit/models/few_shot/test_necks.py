"""The context block against released code, the phase fusion against a token-by-token reading of LGA Eq. 1."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from pipeline.errors import UserError
from pipeline.models.few_shot import matching as M
from pipeline.models.few_shot.blocks.necks import ContextTransformer, PhaseFusion
from pipeline.models.few_shot.blocks.segmentation import segment

torch.set_num_threads(1)
VARIANTS = [("L", "cross"), ("L", "self"), ("G", "cross"), ("G", "self")]


def _randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _close(got: torch.Tensor, want, tol: float = 1e-5) -> None:
    np.testing.assert_allclose(got.detach().numpy(), np.asarray(want), rtol=tol, atol=tol)


def _fusion(dim=16, heads=4, seed=0, **options) -> PhaseFusion:
    torch.manual_seed(seed)
    return PhaseFusion(dim, heads, 24, **options).double().eval()


def _load(model: ContextTransformer, data: dict[str, np.ndarray], prefix: str) -> ContextTransformer:
    """Fills `model` with the released class's weights."""
    names = {"0.norm": "norm", "0.fn.to_q": "to_q", "0.fn.to_k": "to_k", "0.fn.to_v": "to_v"}
    names |= {"0.fn.to_out.0": "out.0", "1.net.0": "ffn.0", "1.net.3": "ffn.3"}
    state = {}
    for key in (k for k in data if k.startswith(prefix)):
        layer, rest = key.removeprefix(prefix).split(".", 1)
        rest, kind = rest.rsplit(".", 1)
        value = torch.tensor(data[key])
        if rest == "0.fn.to_qkv":
            state |= {f"layers.{layer}.to_{n}.{kind}": v for n, v in zip("qkv", value.chunk(3), strict=True)}
        else:
            state[f"layers.{layer}.{names[rest]}.{kind}"] = value
    model.load_state_dict(state, strict=True)
    return model.eval()


# ------------------------------------------------------------------------------------- context block
@pytest.mark.parametrize(
    ("name", "heads", "depth"), [("v1_d1", 4, 1), ("v1_d1_h1", 1, 1), ("v1_d3", 4, 3), ("v2_d1", 4, 1)]
)
def test_context_transformer_of_released_code(golden, name, heads, depth):
    data = golden("context2")
    model = _load(ContextTransformer(48, heads, 96, depth), data, f"w.{name}.layers.")
    x, kv, kv2 = (torch.tensor(data[f"in.{k}"]) for k in ("x", "kv", "kv2"))
    _close(model(x), data[f"out.{name}_self"])
    if name != "v2_d1":
        _close(model(x, kv), data[f"out.{name}_cross"])
        _close(model(x, kv, kv2), data[f"out.{name}_cross_kv_differ"])


def _clipfsar(data) -> tuple[ContextTransformer, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Context block, query frames (6, 8, D), supports (N, K, 8, D), class texts (N, D) of the golden head."""
    model = _load(ContextTransformer(64, 8, 2048), data, "w.context2.layers.")
    label, real = (torch.tensor(data[f"in.{k}"]).long() for k in ("support_labels", "real_support_labels"))
    support = torch.stack([torch.tensor(data["in.support_frames"])[label == c] for c in range(5)])
    texts = torch.tensor(data["in.text_test"])[torch.stack([real[label == c][0] for c in range(5)])]
    return model, torch.tensor(data["in.query_frames"]), support, texts


@torch.no_grad()
def test_clipfsar_head_of_released_code(golden):
    data = golden("clipfsar_head")
    model, query, support, texts = _clipfsar(data)
    fused_query = model(query)
    _close(fused_query, data["out.context2_query"])

    tokens = torch.cat([support, texts[:, None, None].expand(5, 2, 1, 64)], dim=2)
    after = M.merge_shots(model(tokens)[..., :8, :])
    before = model(torch.cat([M.merge_shots(support), texts[:, None]], dim=1))[:, :8]
    late, early = (M.episode_distances(fused_query, p) for p in (after, before))
    _close(-M.otam_bidirectional(late), data["out.visual_logits"], 2e-5)
    _close(-M.otam_bidirectional(early), data["out.visual_merge_logits"], 2e-5)
    _close(-M.otam(early), data["out.visual_single_logits"], 2e-5)


@torch.no_grad()
def test_global_self_fusion_is_clipfsar(golden):
    data = golden("clipfsar_head")
    model, query, support, texts = _clipfsar(data)
    fusion = PhaseFusion(64, 8, 2048, scale="G", attention="self").eval()
    fusion.block.load_state_dict(model.layers[0].state_dict())
    everything = torch.ones(1, 8, dtype=torch.bool)
    fused = fusion(query, everything.expand(6, 1, 8))
    _close(fused[:, 0], data["out.context2_query"])
    proto = fusion(M.merge_shots(support), everything.expand(5, 1, 8), texts[:, None])
    d = M.otam_bidirectional(M.episode_distances(fused[:, 0], proto[:, 0]))
    _close(-d, data["out.visual_merge_logits"], 2e-5)


def test_context_transformer_has_no_sense_of_order_and_takes_leading_dimensions():
    torch.manual_seed(0)
    model = ContextTransformer(16, 4, 24, depth=2).double().eval()
    x, order = _randn(2, 3, 8, 16), torch.randperm(8, generator=torch.Generator().manual_seed(0))
    _close(model(x[..., order, :]), model(x)[..., order, :].detach(), 1e-10)
    _close(model(x), torch.stack([model(v) for v in x]).detach(), 1e-10)


def test_width_must_be_a_multiple_of_the_heads():
    for build in (ContextTransformer, PhaseFusion):
        with pytest.raises(UserError, match="width 50 is not a multiple of the 8"):
            build(50)
    with pytest.raises(UserError, match="fusion scale 'M'"):
        PhaseFusion(16, scale="M")
    with pytest.raises(UserError, match="fusion attention 'crosss'"):
        PhaseFusion(16, attention="crosss")


# -------------------------------------------------------------------------------------- phase fusion
def _slow_block(block, q, keys, residual) -> torch.Tensor:
    """One query vector against a list of key vectors, head by head."""
    width, heads = len(q), block.heads
    size = width // heads
    asked = block.to_q(block.norm(q))
    looked = [block.to_k(block.norm(k)) for k in keys]
    given = [block.to_v(block.norm(k)) for k in keys]
    parts = []
    for h in range(heads):
        cut = slice(h * size, (h + 1) * size)
        scores = torch.stack([asked[cut] @ k[cut] / math.sqrt(size) for k in looked])
        parts.append(sum(w * v[cut] for w, v in zip(scores.softmax(0), given, strict=True)))
    attended = block.out(torch.cat(parts))
    if residual:
        attended = attended + q
    return attended + block.ffn(attended)


def _slow_fusion(fusion, frames, mask, texts) -> torch.Tensor:
    """Fused frames (L, T, D) of one video, written from the four readings."""
    phases, count = mask.shape
    out = torch.zeros(phases, count, frames.shape[-1], dtype=frames.dtype)
    texts = None if texts is None else list(texts)
    for i in range(phases):
        members = [t for t in range(count) if mask[i, t]]
        for t in members:
            q, residual = frames[t], True
            if fusion.attention == "cross":
                residual = fusion.residual_attention
            if (fusion.scale, fusion.attention) == ("L", "cross"):
                keys = [frames[s] for k in range(phases) for s in range(count) if mask[k, s]]
                q = q if texts is None else q + texts[i]
            elif (fusion.scale, fusion.attention) == ("L", "self"):
                keys = [frames[s] for s in members] + ([] if texts is None else [texts[i]])
            elif (fusion.scale, fusion.attention) == ("G", "cross"):
                keys = list(frames)
                q = q if texts is None else q + sum(texts) / len(texts)
            else:
                keys = list(frames) + (texts or [])
            out[i, t] = _slow_block(fusion.block, q, keys, residual)
    return out


@torch.no_grad()
@pytest.mark.parametrize(("scale", "attention"), VARIANTS)
@pytest.mark.parametrize("with_text", [True, False])
@pytest.mark.parametrize("residual", [True, False])
def test_fusion_token_by_token(scale, attention, with_text, residual):
    fusion = _fusion(scale=scale, attention=attention, residual_attention=residual)
    frames = _randn(2, 2, 8, 16)
    mask = segment(frames, 3)
    texts = _randn(2, 2, 3, 16, seed=1) if with_text else None
    got = fusion(frames, mask, texts)
    assert got.shape == (2, 2, 3, 8, 16)
    for a in range(2):
        for b in range(2):
            want = _slow_fusion(fusion, frames[a, b], mask[a, b], None if texts is None else texts[a, b])
            _close(got[a, b], want, 1e-10)


@torch.no_grad()
@pytest.mark.parametrize(("scale", "attention"), VARIANTS)
def test_fusion_with_one_head_and_one_phase(scale, attention):
    fusion = _fusion(8, 1, scale=scale, attention=attention)
    frames, texts, mask = _randn(3, 5, 8), _randn(3, 1, 8, seed=1), torch.ones(3, 1, 5, dtype=torch.bool)
    got = fusion(frames, mask, texts)
    for i in range(3):
        _close(got[i], _slow_fusion(fusion, frames[i], mask[i], texts[i]), 1e-10)


@torch.no_grad()
def test_shared_frames_count_twice_as_keys():
    fusion = _fusion()
    frames = _randn(1, 8, 16)
    bare, shared = segment(frames, 3, overlap=0), segment(frames, 3, overlap=1)
    assert not torch.allclose(fusion(frames, bare)[bare], fusion(frames, shared)[bare])
    doubled = torch.ones_like(bare)  # every frame in every phase: all count alike, as if once
    _close(fusion(frames, doubled)[bare], fusion(frames, bare)[bare], 1e-10)


@torch.no_grad()
def test_local_cross_with_residual_and_nothing_else_is_the_context_block():
    fusion = _fusion(residual_attention=True)
    context = ContextTransformer(16, 4, 24).double().eval()
    context.layers[0].load_state_dict(fusion.block.state_dict())
    frames = _randn(2, 8, 16)
    mask = segment(frames, 3, overlap=0)
    _close(fusion(frames, mask).sum(1), context(frames), 1e-10)


@torch.no_grad()
def test_one_text_serves_all_phases_and_a_wrong_number_is_refused():
    frames, text = _randn(2, 8, 16), _randn(2, 1, 16, seed=1)
    mask = segment(frames, 3)
    for attention in ("cross", "self"):
        fusion = _fusion(attention=attention)
        _close(fusion(frames, mask, text), fusion(frames, mask, text.expand(2, 3, 16)), 1e-10)
        with pytest.raises(UserError, match="2 texts for 3 phases"):
            fusion(frames, mask, text.expand(2, 2, 16))


@pytest.mark.parametrize(("scale", "attention"), VARIANTS)
def test_fusion_and_matching_train_together(scale, attention):
    torch.manual_seed(0)
    fusion = PhaseFusion(16, 4, 24, scale=scale, attention=attention).train()
    support, query = (_randn(2, n, 8, 16, seed=n).float().requires_grad_() for n in (5, 3))
    texts = _randn(2, 5, 3, 16, seed=1).float()
    ms, mq = segment(support, 3), segment(query, 3)
    logits = -M.abmhm_phases(fusion(query, mq), mq, fusion(support, ms, texts), ms)
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.arange(6) % 5).backward()
    leaves = [support, query, *fusion.parameters()]
    assert all(torch.isfinite(p.grad).all() and p.grad.any() for p in leaves)


def test_weights_keep_the_name_that_exempts_norms_from_decay():
    names = [n for n, _ in PhaseFusion(16, 4, 24).named_parameters() if "norm" in n]
    assert names == ["block.norm.weight", "block.norm.bias"]
