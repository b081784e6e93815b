"""Bottleneck adapters: where they sit, what they compute, how many parameters they have."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from manyskills.config import BackboneConfig, ParallelAdapterConfig, SerialAdapterConfig
from manyskills.errors import UserError
from manyskills.model.backbones import load_backbone
from manyskills.model.methods import METHODS, adapt, train_own_dropout
from manyskills.model.methods.bottleneck import BottleneckLayer

HIDDEN, LAYERS, B = 32, 2, 5
IDS_BT = torch.randint(4, 250, (2, 12), generator=torch.Generator().manual_seed(0))


def _adapted(folder, config, part="auto"):
    torch.manual_seed(0)
    return adapt(load_backbone(BackboneConfig(name=folder, part=part)), config, ["a"]).eval()


def _shaken(model):
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.normal_(std=0.3)
    return model


def _layers(model) -> dict[str, BottleneckLayer]:
    return {
        name.removeprefix("base_model.model."): m for name, m in model.named_modules() if isinstance(m, BottleneckLayer)
    }


def _by_hand(layer, x, activation=functional.relu):
    down, up = layer.bottleneck_down["default"], layer.bottleneck_up["default"]
    return activation(x @ down.weight.T + down.bias) @ up.weight.T + up.bias


@pytest.mark.parametrize("config", [SerialAdapterConfig, ParallelAdapterConfig])
@pytest.mark.parametrize(("where", "sites"), [("both", 2), ("attention", 1), ("ffn", 1)])
def test_the_formula_holds_at_every_choice_of_sites(where, sites, config, backbone_folder):
    model = _adapted(backbone_folder("roberta"), config(bottleneck=B, where=where))
    parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert len(_layers(model)) == LAYERS * sites
    assert parameters == LAYERS * sites * (2 * HIDDEN * B + B + HIDDEN)
    assert METHODS[config().name].formula == "2 h b + b + h a site"
    assert ("attention" in METHODS[config().name].where(config(where=where))) == (where != "ffn")


def test_serial_is_added_to_a_sublayers_output(backbone_folder):
    model = _shaken(_adapted(backbone_folder("modernbert"), SerialAdapterConfig(bottleneck=B, activation="silu")))
    for name, layer in _layers(model).items():
        assert name.endswith(".Wo")
        x = torch.randn(2, 3, layer.in_features)
        y = layer.base_layer(x)
        torch.testing.assert_close(layer(x), y + _by_hand(layer, y, functional.silu))


@pytest.mark.parametrize(("family", "names"), [("llama", ("self_attn", "mlp")), ("modernbert", ("attn", "mlp"))])
def test_parallel_reads_what_its_block_reads(family, names, backbone_folder):
    model = _shaken(_adapted(backbone_folder(family), ParallelAdapterConfig(bottleneck=B, scale=4.0)))
    seen: dict[str, tuple] = {}
    for name, layer in _layers(model).items():
        assert name.endswith(names)

        def note(module, args, kwargs, output, name=name):
            value = args[0] if args else kwargs["hidden_states"]
            seen.setdefault(name, (value, output[0] if isinstance(output, tuple) else output))

        layer.base_layer.register_forward_hook(note, with_kwargs=True)
        layer.register_forward_hook(
            lambda module, args, output, name=name: seen.update(
                {name: (*seen[name], output[0] if isinstance(output, tuple) else output)}
            )
        )
    with torch.no_grad():
        model(input_ids=IDS_BT, attention_mask=torch.ones_like(IDS_BT))
        for name, layer in _layers(model).items():
            x, plain, out = seen[name]
            torch.testing.assert_close(out, plain + 4.0 * _by_hand(layer, x), rtol=1e-4, atol=1e-5)


def test_parallel_in_bert_is_added_before_the_layer_norm(backbone_folder):
    model = _shaken(_adapted(backbone_folder("bert"), ParallelAdapterConfig(bottleneck=B, scale=2.0)))
    for layer in _layers(model).values():
        hidden = torch.randn(2, 3, layer.dense.in_features)
        residual = torch.randn(2, 3, HIDDEN)
        expected = layer.LayerNorm(layer.dense(hidden) + residual + 2.0 * _by_hand(layer, residual))
        torch.testing.assert_close(layer(hidden, residual), expected)
        torch.testing.assert_close(layer(hidden_states=hidden, input_tensor=residual), expected)


def test_cross_attention_of_t5_has_adapters_too(backbone_folder):
    for config in (SerialAdapterConfig(bottleneck=B), ParallelAdapterConfig(bottleneck=B)):
        model = _shaken(_adapted(backbone_folder("t5"), config, part="whole"))
        crossed = [layer for name, layer in _layers(model).items() if "EncDecAttention" in name]
        assert len(crossed) == LAYERS
        out = model(input_ids=IDS_BT, decoder_input_ids=IDS_BT[:, :4]).last_hidden_state
        out.sum().backward()
        assert all(p.grad.abs().sum() > 0 for layer in crossed for p in layer.parameters() if p.requires_grad)


@pytest.mark.parametrize("config", [SerialAdapterConfig, ParallelAdapterConfig])
def test_it_starts_at_the_backbone_and_learns_at_once(config, backbone_folder):
    model = _adapted(backbone_folder("qwen2"), config(bottleneck=B))
    out = model(input_ids=IDS_BT).last_hidden_state
    with model.disable_adapter(), torch.no_grad():
        torch.testing.assert_close(out, model(input_ids=IDS_BT).last_hidden_state, rtol=0, atol=1e-6)
    out.square().sum().backward()
    for layer in _layers(model).values():
        assert layer.bottleneck_up["default"].weight.grad.abs().sum() > 0
        assert layer.bottleneck_down["default"].weight.abs().sum() > 0


def test_only_the_adapters_own_dropout_drops(backbone_folder):
    model = _shaken(_adapted(backbone_folder("bert"), SerialAdapterConfig(bottleneck=64, dropout=0.5)))
    with torch.no_grad():
        still = model(input_ids=IDS_BT).last_hidden_state
        assert torch.equal(model(input_ids=IDS_BT).last_hidden_state, still)
        train_own_dropout(model)
        assert {m.training for m in model.modules() if isinstance(m, nn.LayerNorm)} == {False}
        one, two = (model(input_ids=IDS_BT).last_hidden_state for _ in range(2))
        assert not torch.equal(one, two)


def test_gradients_are_the_same_when_recomputed(backbone_folder):
    found = []
    for checkpointed in (False, True):
        torch.manual_seed(1)
        model = _shaken(_adapted(backbone_folder("modernbert"), ParallelAdapterConfig(bottleneck=B)))
        if checkpointed:
            model.base_model.model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()
        model(input_ids=IDS_BT).last_hidden_state.square().sum().backward()
        found.append([p.grad for p in model.parameters() if p.requires_grad])
    for plain, again in zip(*found, strict=True):
        torch.testing.assert_close(again, plain)


def test_what_a_serial_adapter_cannot_wrap_is_named(backbone_folder):
    with pytest.raises(UserError, match=r"encoder\.layer\.0\.attention is a BertAttention"):
        _adapted(backbone_folder("bert"), SerialAdapterConfig(targets=["attention"]))


def test_serial_and_parallel_do_not_mix(backbone_folder):
    model = _adapted(backbone_folder("bert"), SerialAdapterConfig(bottleneck=B))
    other = copy.deepcopy(model.peft_config["default"])
    other.placement = "parallel"
    with pytest.raises(UserError, match="serial and parallel"):
        model.add_adapter("other", other)
