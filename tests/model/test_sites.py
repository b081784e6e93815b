"""Methods attach at every site of every layer and nowhere else."""

from __future__ import annotations

import re
from dataclasses import fields

import pytest
import torch
from torch import nn

from manyskills.config import BackboneConfig, Ia3Config, LoraConfig, ParallelAdapterConfig, SerialAdapterConfig
from manyskills.errors import UserError
from manyskills.model.backbones import load_backbone
from manyskills.model.methods import adapt
from manyskills.model.sites import SITES, Sites, find_sites, find_targets
from tests.conftest import ALL_FAMILIES

LAYERS = 2
KINDS = [field.name for field in fields(Sites) if field.name != "layer"]
TASKS = ["a"]


def _backbone(folder):
    return load_backbone(BackboneConfig(name=folder), weights=False)


def _changed(model):
    from peft.tuners.lora import LoraLayer

    return [name for name, module in model.named_modules() if isinstance(module, LoraLayer)]


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_all_linear_is_every_linear_layer_of_a_layer(family, backbone_folder):
    backbone = _backbone(backbone_folder(family))
    linear = [n for n, m in backbone.model.named_modules() if isinstance(m, nn.Linear) and re.search(r"\d", n)]
    match = find_sites(backbone.model, backbone.architecture.model_type, ["linear"])
    assert sorted(match.names) == sorted(linear)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_the_pattern_matches_exactly_the_names(family, kind, backbone_folder):
    backbone = _backbone(backbone_folder(family))
    for last in (None, 1):
        match = find_sites(backbone.model, backbone.architecture.model_type, [kind], last)
        found = [name for name, _ in backbone.model.named_modules() if re.fullmatch(match.pattern, name)]
        assert sorted(found) == sorted(match.names)
        assert {int(re.findall(r"\.(\d+)\.", name)[0]) for name in found} == ({1} if last else {0, 1})


def test_output_dense_does_not_take_attention_output_dense(backbone_folder, monkeypatch):
    from dataclasses import replace

    monkeypatch.setitem(SITES, "bert", (replace(SITES["bert"][0], query_value=("output.dense",)),))
    model = adapt(_backbone(backbone_folder("bert")), LoraConfig(r=2), TASKS)
    assert [name.split("layer.")[1] for name in _changed(model)] == ["0.output.dense", "1.output.dense"]


def test_unknown_architecture_lists_the_modules_and_takes_targets(backbone_folder, monkeypatch):
    monkeypatch.delitem(SITES, "bert")
    with pytest.raises(UserError, match=r"'bert'(.|\n)*method\.targets=\[(.|\n)*attention\.self\.query \(32 -> 32\)"):
        adapt(_backbone(backbone_folder("bert")), LoraConfig(r=2), TASKS)
    model = adapt(_backbone(backbone_folder("bert")), LoraConfig(r=2, targets=["query"]), TASKS)
    assert len(_changed(model)) == LAYERS
    adapter = SerialAdapterConfig(bottleneck=2, targets=["intermediate.dense"])
    names = [name for name, _ in adapt(_backbone(backbone_folder("bert")), adapter, TASKS).named_parameters()]
    assert sum("intermediate.dense" in name and "bottleneck" in name for name in names) == 4 * LAYERS


def test_a_network_that_is_not_built_as_the_table_says(backbone_folder, monkeypatch):
    network = _backbone(backbone_folder("bert")).model
    del network.encoder.layer[1].attention.self.query
    with pytest.raises(UserError, match="not the same in each layer"):
        find_sites(network, "bert", ["query_value"])


def test_named_modules_are_taken_by_whole_components(backbone_folder):
    config = LoraConfig(r=2, targets=["query", "intermediate.dense"])
    assert len(_changed(adapt(_backbone(backbone_folder("bert")), config, TASKS))) == 2 * LAYERS
    config = LoraConfig(r=2, targets=["query", "intermediate.dense"], layers="last 1")
    changed = _changed(adapt(_backbone(backbone_folder("bert")), config, TASKS))
    assert len(changed) == 2
    assert all(".1." in name for name in changed)


@pytest.mark.parametrize("wrong", ["quary", "uery"])
def test_a_wrong_name_is_an_error_that_lists_the_right_ones(wrong, backbone_folder):
    with pytest.raises(UserError) as error:
        adapt(_backbone(backbone_folder("bert")), LoraConfig(r=2, targets=["query", wrong]), TASKS)
    assert f"{wrong!r} is the name of no module" in error.value.message
    assert "encoder.layer.N.attention.self.query" in str(error.value.hint)


@pytest.mark.parametrize("wrong", ["layer", "LayerNorm", "attention"])
def test_modules_that_cannot_carry_the_method(wrong, backbone_folder):
    with pytest.raises(UserError, match=r"method\.targets"):
        adapt(_backbone(backbone_folder("bert")), LoraConfig(r=2, targets=[wrong]), TASKS)


def test_what_is_not_linear_is_named(backbone_folder):
    with pytest.raises(UserError, match=r"attention\.self is a BertSelfAttention, lora wanted a linear layer"):
        adapt(_backbone(backbone_folder("bert")), LoraConfig(r=2, targets=["attention.self"]), TASKS)


def test_one_target_inside_another_is_refused(backbone_folder):
    config = ParallelAdapterConfig(bottleneck=2, targets=["attention", "output"])
    with pytest.raises(UserError, match=r"layer\.0\.attention\.output lies inside encoder\.layer\.0\.attention"):
        adapt(_backbone(backbone_folder("bert")), config, TASKS)


def test_matches_must_be_the_same_number_in_each_layer(backbone_folder):
    network = _backbone(backbone_folder("bert")).model
    with pytest.raises(UserError, match="not the same number in each of 2 layers"):
        find_targets(network, ["layer.0.attention.self.query"])
    with pytest.raises(UserError, match="outside of layers"):
        find_targets(network, ["embeddings.word_embeddings"])


def test_each_stack_of_an_encoder_decoder_counts_its_own_layers():
    from transformers import T5Config, T5Model

    config = T5Config(vocab_size=20, d_model=8, d_kv=4, d_ff=8, num_layers=3, num_decoder_layers=2, num_heads=2)
    network = T5Model(config)
    assert len(find_targets(network, ["EncDecAttention.q"]).names) == 2
    assert find_targets(network, ["SelfAttention.q"], last=1).names == (
        "encoder.block.2.layer.0.SelfAttention.q",
        "decoder.block.1.layer.0.SelfAttention.q",
    )


def test_more_layers_than_there_are(backbone_folder):
    for targets in (None, ["query"]):
        with pytest.raises(UserError, match="last 3 wanted, the backbone has 2"):
            adapt(_backbone(backbone_folder("bert")), LoraConfig(r=2, layers="last 3", targets=targets), TASKS)


@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_ia3_scales_the_input_of_what_leads_back_to_the_hidden_size(family, backbone_folder):
    names = {"bert": ["attention.output.dense", "intermediate.dense", "layer.0.output.dense", "layer.1.output.dense"],
             "modernbert": ["attn.Wo", "mlp.Wo"]}[family]  # fmt: skip
    model = adapt(_backbone(backbone_folder(family)), Ia3Config(targets=names), TASKS)
    shapes = {name.split(".ia3_l")[0].split("layer")[-1].split(".", 2)[-1]: tuple(p.shape)
              for name, p in model.named_parameters() if "ia3_l" in name}  # fmt: skip
    expected = {"bert": {"attention.output.dense": (32, 1), "intermediate.dense": (48, 1), "output.dense": (1, 48)},
                "modernbert": {"attn.Wo": (32, 1), "mlp.Wo": (1, 48)}}[family]  # fmt: skip
    assert shapes == expected


@pytest.mark.parametrize("targets", [["intermediate"], ["intermediate.dense"]])
def test_a_parallel_adapter_goes_beside_what_keeps_its_size(targets, backbone_folder):
    backbone = _backbone(backbone_folder("bert"))
    with pytest.raises(UserError, match=r"method\.targets"):
        model = adapt(backbone, ParallelAdapterConfig(bottleneck=2, targets=targets), TASKS)
        model(input_ids=torch.zeros(1, 4, dtype=torch.long, device="meta"))
