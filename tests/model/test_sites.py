"""Methods attach at every site of every layer and nowhere else."""

from __future__ import annotations

import re

import pytest
from torch import nn

from manyskills.config import BackboneConfig, LoraConfig, SerialAdapterConfig
from manyskills.errors import UserError
from manyskills.model.backbones import load_backbone
from manyskills.model.methods import adapt
from manyskills.model.sites import SITES, find_sites, find_targets
from tests.conftest import ALL_FAMILIES

LAYERS = 2
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


@pytest.mark.parametrize("kind", ["query_value", "linear", "key_value", "attention_block", "ffn_output", "attention"])
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


def test_matches_must_be_the_same_number_in_each_layer(backbone_folder):
    network = _backbone(backbone_folder("bert")).model
    with pytest.raises(UserError, match="not the same number in each of 2 layers"):
        find_targets(network, ["layer.0.attention.self.query"], None, LAYERS)


def test_more_layers_than_there_are(backbone_folder):
    with pytest.raises(UserError, match="last 3 wanted, the backbone has 2"):
        adapt(_backbone(backbone_folder("bert")), LoraConfig(r=2, layers="last 3"), TASKS)
