"""What peft promises of any tuner, for ours that wrap modules: several adapters, files, disabling, unloading."""

from __future__ import annotations

import copy
import json

import peft
import pytest
import torch
from torch import nn

from manyskills.config import BackboneConfig, ParallelAdapterConfig, PrefixTuningConfig, SerialAdapterConfig
from manyskills.errors import UserError
from manyskills.model.backbones import load_backbone
from manyskills.model.methods import METHODS, adapt
from manyskills.model.methods.plugin import register
from manyskills.model.methods.wrapping import WrappingLayer
from tests.conftest import ALL_FAMILIES

CONFIGS = {
    "serial": SerialAdapterConfig(bottleneck=5, dropout=0.3),
    "parallel": ParallelAdapterConfig(bottleneck=5, scale=2.0),
    "prefix": PrefixTuningConfig(length=3),
    "projected prefix": PrefixTuningConfig(length=3, projection=7),
}
IDS_BT = torch.randint(4, 250, (2, 12), generator=torch.Generator().manual_seed(0))
MASK_BT = torch.tensor([[1] * 12, [1] * 8 + [0] * 4])

every_method = pytest.mark.parametrize("method", CONFIGS)
one_of_each_kind = pytest.mark.parametrize("family", ["bert", "modernbert", "t5", "t5 whole", "llama", "gemma2"])


@pytest.fixture
def backbone(backbone_folder):
    """Loads a family's backbone afresh."""

    def load(family: str, **changes):
        name, _, part = family.partition(" ")
        return load_backbone(BackboneConfig(name=backbone_folder(name), part=part or "auto", **changes))

    return load


def answer(network: nn.Module) -> torch.Tensor:
    """The network's vectors of a fixed padded batch, in eval mode; padded positions left out."""
    inputs = {"input_ids": IDS_BT, "attention_mask": MASK_BT}
    if any(name.endswith("decoder.block") for name, _ in network.named_modules()):
        inputs["decoder_input_ids"] = IDS_BT
    with torch.no_grad():
        return network.eval()(**inputs).last_hidden_state[MASK_BT.bool()].float()


def shaken(network: nn.Module, seed: int, adapter: str = "default") -> nn.Module:
    """With noise on one adapter, so that nothing hides behind zeros."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in network.named_parameters():
            if f".{adapter}" in name:
                p.copy_(torch.randn(p.shape, generator=generator) * 0.3)
    return network


def second(model: peft.PeftModel, adapter: str) -> peft.PeftModel:
    """With another adapter of the same kind."""
    model.add_adapter(adapter, copy.deepcopy(model.peft_config["default"]))
    return shaken(model, 2, adapter)


@every_method
@pytest.mark.parametrize("family", [*ALL_FAMILIES, "t5 whole"])
def test_disabled_and_unloaded_it_is_the_backbone(family, method, backbone):
    loaded = backbone(family)
    before, config = answer(loaded.model), loaded.model.config.to_dict()
    names = [name for name, _ in loaded.model.named_modules()]
    model = shaken(adapt(loaded, CONFIGS[method], ["a"]), 1)
    adapted = answer(model)
    assert (adapted - before).abs().max() > 1e-3
    with model.disable_adapter():
        torch.testing.assert_close(answer(model), before, rtol=0, atol=2e-6)
    assert torch.equal(answer(model), adapted)
    network = model.unload()
    torch.testing.assert_close(answer(network), before, rtol=0, atol=2e-6)
    assert network.config.to_dict() == config
    assert [name for name, _ in network.named_modules()] == names
    assert {m.config._attn_implementation for m in network.modules() if hasattr(m, "config")} == {
        loaded.model.config._attn_implementation
    }


@every_method
@one_of_each_kind
def test_saved_and_loaded_into_a_fresh_backbone(family, method, backbone, tmp_path):
    model = shaken(adapt(backbone(family), CONFIGS[method], ["a"]), 1)
    expected = answer(model)
    model.save_pretrained(str(tmp_path), save_embedding_layers=False)
    loaded = peft.PeftModel.from_pretrained(backbone(family).model, str(tmp_path))
    torch.testing.assert_close(answer(loaded), expected, rtol=1e-6, atol=1e-6)
    assert not any(p.requires_grad for p in loaded.parameters())
    again = peft.PeftModel.from_pretrained(backbone(family).model, str(tmp_path), low_cpu_mem_usage=True)
    torch.testing.assert_close(answer(again), expected, rtol=1e-6, atol=1e-6)
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    assert saved["peft_type"] == model.peft_type
    state = peft.get_peft_model_state_dict(model, save_embedding_layers=False)
    assert len(state) == sum(p.requires_grad for p in model.parameters())
    assert not any("default" in name for name in state)


@every_method
@one_of_each_kind
def test_adapters_side_by_side(family, method, backbone, tmp_path):
    model = shaken(adapt(backbone(family), CONFIGS[method], ["a"]), 1)
    first = answer(model)
    model = second(model, "other")
    assert torch.equal(answer(model), first), "adding changes nothing"
    model.set_adapter("other")
    other = answer(model)
    assert (other - first).abs().max() > 1e-3
    assert all(p.requires_grad == (".other" in name) for name, p in model.named_parameters())
    model.base_model.set_adapter(["default", "other"])
    both = answer(model)
    assert min((both - other).abs().max(), (both - first).abs().max()) > 1e-3
    model.save_pretrained(str(tmp_path), save_embedding_layers=False)
    model.set_adapter("default")
    assert torch.equal(answer(model), first)
    model.delete_adapter("other")
    assert not any(".other" in name for name, _ in model.named_parameters())
    assert torch.equal(answer(model), first)
    model.load_adapter(str(tmp_path / "other"), "third")
    model.set_adapter("third")
    torch.testing.assert_close(answer(model), other, rtol=1e-6, atol=1e-6)


@every_method
def test_an_adapter_of_fewer_layers_beside_one_of_all(method, backbone):
    loaded = backbone("bert")
    before = answer(loaded.model)
    top = CONFIGS[method].model_copy(update={"layers": "last 1"})
    lower = adapt(backbone("bert"), CONFIGS[method], ["a"]).peft_config["default"].target_modules
    model = shaken(adapt(loaded, top, ["a"]), 1)
    first = answer(model)
    wide = copy.deepcopy(model.peft_config["default"])
    wide.target_modules = lower
    model.add_adapter("wide", wide)
    assert torch.equal(answer(model), first)
    with pytest.warns(UserWarning, match="Setting active adapter to wide"):
        model.delete_adapter("default")
    assert model.active_adapters == ["wide"]
    assert (answer(model) - first).abs().max() > 1e-4
    model.delete_adapter("wide")
    assert torch.equal(answer(model.unload()), before)


@every_method
def test_copied_it_is_another_network(method, backbone):
    model = shaken(adapt(backbone("llama"), CONFIGS[method], ["a"]), 1)
    expected = answer(model)
    copied = copy.deepcopy(model)
    shaken(model, 5)
    assert torch.equal(answer(copied), expected)
    assert (answer(model) - expected).abs().max() > 1e-3


@every_method
def test_merging_is_refused(method, backbone):
    model = adapt(backbone("bert"), CONFIGS[method], ["a"])
    assert not METHODS[CONFIGS[method].name].mergeable
    for merge in (model.merge_and_unload, model.merge_adapter):
        with pytest.raises(UserError, match="cannot be merged"):
            merge()
    assert any(isinstance(m, WrappingLayer) for m in model.modules()), "nothing was taken out"


@every_method
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("family", ["bert", "t5", "gemma2"])
def test_adapters_of_half_precision_backbones_are_float32(family, dtype, method, backbone):
    model = shaken(adapt(backbone(family, dtype=dtype), CONFIGS[method], ["a"]), 1)
    trainable = [p for p in model.parameters() if p.requires_grad]
    assert {p.dtype for p in trainable} == {torch.float32}
    plain = shaken(adapt(backbone(family), CONFIGS[method], ["a"]), 1)
    expected = answer(plain)
    torch.testing.assert_close(answer(model), expected, rtol=0.1, atol=0.15 * expected.abs().max().item())
    out = model(input_ids=IDS_BT, attention_mask=MASK_BT).last_hidden_state
    assert out.dtype == getattr(torch, dtype)
    out.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in trainable)


@every_method
def test_under_autocast(method, backbone):
    model = shaken(adapt(backbone("bert"), CONFIGS[method], ["a"]), 1)
    expected = answer(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(answer(model), expected, rtol=0.05, atol=0.1)


@every_method
@pytest.mark.parametrize("family", ["bert", "t5", "qwen2"])
def test_on_a_4_bit_backbone(family, method, backbone):
    bnb = pytest.importorskip("bitsandbytes")
    model = shaken(adapt(backbone(family, quantize="nf4"), CONFIGS[method], ["a"]), 1)
    trainable = [p for p in model.parameters() if p.requires_grad]
    assert {p.dtype for p in trainable} == {torch.float32}
    found = answer(model)
    model(input_ids=IDS_BT, attention_mask=MASK_BT).last_hidden_state.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in trainable)
    for name, layer in list(model.named_modules()):
        if isinstance(layer, bnb.nn.Linear4bit):
            plain = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
            plain.weight = nn.Parameter(bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state))
            plain.bias = layer.bias
            model.set_submodule(name, plain)
    torch.testing.assert_close(found, answer(model), rtol=1e-4, atol=1e-4)


@every_method
@pytest.mark.parametrize("family", ["bert", "t5", "starcoder2"])
def test_planned_on_the_meta_device(family, method, backbone, backbone_folder):
    planned = load_backbone(BackboneConfig(name=backbone_folder(family)), weights=False)
    model = adapt(planned, CONFIGS[method], ["a"])
    real = adapt(backbone(family), CONFIGS[method], ["a"])
    sizes = {name: p.shape for name, p in real.named_parameters() if p.requires_grad}
    assert {name: p.shape for name, p in model.named_parameters() if p.requires_grad} == sizes
    assert all(p.device.type == "meta" for p in model.parameters())


def test_peft_keeps_its_own_methods():
    config, tuner = peft.LoraConfig, peft.LoraModel
    fake = type("FakeTuner", (tuner,), {"__module__": "elsewhere"})
    with pytest.raises(RuntimeError, match="already has a method LORA"):
        register("LORA", config, fake, "fake_")
    with pytest.raises(RuntimeError, match="already belongs"):
        register("FAKE", config, fake, "bottleneck_")
