"""Prefix tuning against attention worked out by hand, on every family.

Shape legend: B sequences, A query heads, H key heads, Q query positions, K key positions, P prefix length, D head size.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import AttentionInterface

from manyskills.config import BackboneConfig, PrefixTuningConfig
from manyskills.errors import UserError
from manyskills.model.backbones import load_backbone
from manyskills.model.methods import METHODS, adapt
from manyskills.model.methods.prefix_tuning import PrefixLayer
from tests.conftest import ALL_FAMILIES

HIDDEN, LAYERS, P = 32, 2, 3
LONG = 24
"""More than the sliding windows of the tiny networks: 8 positions."""
DECODERS = ("llama", "qwen2", "qwen3", "mistral", "gemma", "gemma2", "gemma3_text", "starcoder2")
IDS_BK = torch.randint(4, 250, (2, LONG), generator=torch.Generator().manual_seed(0))
MASK_BK = torch.tensor([[1] * LONG, [1] * 17 + [0] * 7])


def _adapted(folder, part="auto", **numbers):
    backbone = load_backbone(BackboneConfig(name=folder, part=part))
    return _shaken(adapt(backbone, PrefixTuningConfig(length=P, **numbers), ["a"]).eval())


def _shaken(model):
    """With keys and values large enough to be felt."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.copy_(torch.randn(p.shape, generator=generator))
    return model


def _layers(model) -> list[PrefixLayer]:
    return [m for m in model.modules() if isinstance(m, PrefixLayer)]


def _answer(model, mask_BK, ids_BK=IDS_BK):
    inputs = {"input_ids": ids_BK} | ({} if mask_BK is None else {"attention_mask": mask_BK})
    if any(name.endswith("decoder.block") for name, _ in model.named_modules()):
        inputs["decoder_input_ids"] = IDS_BK[:, :11]
    with torch.no_grad():
        return model(**inputs).last_hidden_state


def by_hand(module, query_BAQD, key_BHKD, value_BHKD, mask, prefixed_call, scaling, **rest):
    """softmax over [prefix; text], with visibility worked out from the network's description instead of its mask."""
    groups = query_BAQD.shape[1] // key_BHKD.shape[1]
    key_BAKD, value_BAKD = key_BHKD.repeat_interleave(groups, 1), value_BHKD.repeat_interleave(groups, 1)
    prefix_2APD = prefixed_call.prefix_2HPD.repeat_interleave(groups, 1)
    text_BAQK = scaling * torch.einsum("baqd,bakd->baqk", query_BAQD, key_BAKD)
    prefix_BAQP = scaling * torch.einsum("baqd,apd->baqp", query_BAQD, prefix_2APD[0])
    if (cap := rest.get("softcap")) is not None:
        text_BAQK, prefix_BAQP = cap * torch.tanh(text_BAQK / cap), cap * torch.tanh(prefix_BAQP / cap)
    if (bias := rest.get("position_bias")) is not None:
        text_BAQK = text_BAQK + bias
    back_QK = torch.arange(text_BAQK.shape[2])[:, None] - torch.arange(text_BAQK.shape[3])[None]
    hidden_QK = torch.zeros_like(back_QK, dtype=torch.bool)
    if module.is_causal:
        hidden_QK |= back_QK < 0
    if (window := rest.get("sliding_window")) is not None:
        hidden_QK |= back_QK.abs() >= window
    hidden_BAQK = hidden_QK[None, None]
    if text_BAQK.shape[3] == LONG:  # and not the unpadded text of T5's decoder
        hidden_BAQK = hidden_BAQK | (MASK_BK == 0)[:, None, None]
    text_BAQK = text_BAQK.masked_fill(hidden_BAQK, float("-inf"))
    weights = torch.softmax(torch.cat([prefix_BAQP, text_BAQK], -1), -1)
    out_BAQD = torch.einsum("baqp,apd->baqd", weights[..., :P], prefix_2APD[1]) + weights[..., P:] @ value_BAKD
    prefixed_call.done = True
    return out_BAQD.transpose(1, 2), weights


@pytest.mark.parametrize("projection", [None, 7])
@pytest.mark.parametrize("family", [*ALL_FAMILIES, "t5 whole"])
def test_it_is_what_the_paper_says(family, projection, backbone_folder):
    name, _, part = family.partition(" ")
    model = _adapted(backbone_folder(name), part or "auto", projection=projection)
    found = _answer(model, MASK_BK)
    AttentionInterface.register("by_hand", by_hand)
    for layer in _layers(model):
        layer.base_layer.config._attn_implementation = "by_hand"
    expected = _answer(model, MASK_BK)
    if not part:
        found, expected = found[MASK_BK.bool()], expected[MASK_BK.bool()]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", [*ALL_FAMILIES, "t5 whole"])
def test_padding_changes_nothing(family, backbone_folder):
    name, _, part = family.partition(" ")
    model = _adapted(backbone_folder(name), part or "auto")
    padded = _answer(model, MASK_BK)
    for row, length in enumerate(MASK_BK.sum(1).tolist()):
        ids_BK = IDS_BK[row : row + 1, :length]
        inputs = {"input_ids": ids_BK} | ({"decoder_input_ids": IDS_BK[row : row + 1, :11]} if part else {})
        with torch.no_grad():
            alone = model(**inputs, attention_mask=torch.ones_like(ids_BK)).last_hidden_state[0]
            unmasked = model(**inputs).last_hidden_state[0]
        torch.testing.assert_close(padded[row, : len(alone)], alone, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(unmasked, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", [family for family in ALL_FAMILIES if family != "gemma2"])
def test_sdpa_and_eager_agree_even_when_changed_later(family, backbone_folder):
    model = _adapted(backbone_folder(family))
    found = _answer(model, None)
    model.base_model.model.set_attn_implementation("eager")
    torch.testing.assert_close(_answer(model, None), found, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", DECODERS)
def test_decoders_do_not_look_ahead(family, backbone_folder):
    model = _adapted(backbone_folder(family))
    changed_BK = IDS_BK.clone()
    changed_BK[:, -1] = 7
    before, after = _answer(model, None), _answer(model, None, changed_BK)
    assert torch.equal(before[:, :-1], after[:, :-1])
    assert not torch.equal(before[:, -1], after[:, -1])


@pytest.mark.parametrize("family", ["llama", "gemma2", "mistral"])
def test_a_cache_of_keys_gives_the_same_answer_token_by_token(family, backbone_folder):
    model = _adapted(backbone_folder(family))
    whole, cache = _answer(model, None), None
    parts = []
    for ids_BK in (IDS_BK[:, :15], *IDS_BK[:, 15:].split(1, dim=1)):
        with torch.no_grad():
            out = model(input_ids=ids_BK, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        parts.append(out.last_hidden_state)
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("family", "keys"), [("bert", 32), ("modernbert", 32), ("t5", 16), ("llama", 16)])
@pytest.mark.parametrize("projection", [None, 7])
def test_parameters(family, keys, projection, backbone_folder):
    model = _adapted(backbone_folder(family), projection=projection)
    one = 2 * P * keys if projection is None else P * HIDDEN + (HIDDEN + 1) * 7 + (7 + 1) * 2 * keys
    assert len(_layers(model)) == LAYERS
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == LAYERS * one


@pytest.mark.parametrize("projection", [None, 7])
def test_at_the_start_it_is_near_the_backbone_and_everything_learns(projection, backbone_folder):
    backbone = load_backbone(BackboneConfig(name=backbone_folder("gemma2")))
    model = adapt(backbone, PrefixTuningConfig(length=P, projection=projection), ["a"]).eval()
    assert not METHODS["prefix_tuning"].equal_at_start
    for layer in _layers(model):
        assert 0 < layer.keys_values().std() < 0.6
    out = model(input_ids=IDS_BK, attention_mask=MASK_BK).last_hidden_state
    assert out.isfinite().all()
    (out * torch.randn(out.shape, generator=torch.Generator().manual_seed(0))).sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("family", ["bert", "t5", "mistral"])
def test_gradients_are_the_same_when_recomputed(family, backbone_folder):
    found = []
    for checkpointed in (False, True):
        model = _adapted(backbone_folder(family), projection=7)
        for part in model.modules():
            if isinstance(part, nn.Dropout):
                part.p = 0.0
        if checkpointed:
            model.base_model.model.gradient_checkpointing_enable({"use_reentrant": False})
        for part in model.modules():  # checkpointing works in training mode only, where T5 drops attention weights
            part.training = True
            if hasattr(part, "dropout") and isinstance(part.dropout, float):
                part.dropout = 0.0
        model(input_ids=IDS_BK, attention_mask=MASK_BK).last_hidden_state.square().sum().backward()
        found.append([p.grad for p in model.parameters() if p.requires_grad])
    for plain, again in zip(*found, strict=True):
        torch.testing.assert_close(again, plain, rtol=1e-4, atol=1e-6)


def test_two_networks_of_one_configuration_do_not_disturb_each_other(backbone_folder):
    one, two = (load_backbone(BackboneConfig(name=backbone_folder("llama"))) for _ in range(2))
    for part in two.model.modules():
        if getattr(part, "config", None) is not None:
            part.config = one.model.config
    plain = _answer(two.model.eval(), MASK_BK)
    first = _shaken(adapt(one, PrefixTuningConfig(length=P), ["a"]).eval())
    with_prefix = _answer(first, MASK_BK)
    assert torch.equal(_answer(two.model, MASK_BK), plain)
    _shaken(adapt(two, PrefixTuningConfig(length=P), ["a"])).unload()
    assert torch.equal(_answer(first, MASK_BK), with_prefix)


def test_other_attention_is_refused_and_never_passed_over(backbone_folder):
    model = _adapted(backbone_folder("bert"))
    model.base_model.model.config._attn_implementation = "flex_attention"
    with pytest.raises(UserError, match="sdpa and eager attention, the backbone is set to flex_attention"):
        _layers(model)[0](torch.zeros(1, 4, HIDDEN))
    model = _adapted(backbone_folder("bert"))
    _layers(model)[0].base_layer.config._attn_implementation = "sdpa"
    with pytest.raises(RuntimeError, match="BertSelfAttention does not call"):
        _answer(model, MASK_BK)


def test_what_is_not_an_attention_module_is_named(backbone_folder):
    with pytest.raises(UserError, match=r"layer\.0\.attention\.output\.dense is a Linear"):
        _adapted(backbone_folder("bert"), targets=["output.dense"])
