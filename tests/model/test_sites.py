"""LoRA attaches at every site of every layer and nowhere else."""

from __future__ import annotations

import re

import pytest
from torch import nn

from manyskills.config import BackboneConfig, LoraConfig
from manyskills.errors import UserError
from manyskills.model.backbones import load_backbone
from manyskills.model.methods import adapt
from manyskills.model.sites import SITES, matching_modules, target_pattern
from tests.conftest import FAMILIES

LAYERS = 2
EXPECTED = {  # sites of one layer
    "bert": {"attention": 2, "all-linear": 6},
    "roberta": {"attention": 2, "all-linear": 6},
    "modernbert": {"attention": 1, "all-linear": 4},
    "t5": {"attention": 2, "all-linear": 7},
    "llama": {"attention": 2, "all-linear": 7},
    "qwen2": {"attention": 2, "all-linear": 7},
}


def _backbone(folder):
    return load_backbone(BackboneConfig(name=folder), weights=False)


def _changed(model):
    from peft.tuners.lora import LoraLayer

    return [name for name, module in model.named_modules() if isinstance(module, LoraLayer)]


@pytest.mark.parametrize("target", ["attention", "all-linear"])
@pytest.mark.parametrize("family", FAMILIES)
def test_sites_are_layers_times_sites(family, target, backbone_folder):
    backbone = _backbone(backbone_folder(family))
    linear = [n for n, m in backbone.model.named_modules() if isinstance(m, nn.Linear) and re.search(r"\d", n)]
    model = adapt(backbone, LoraConfig(r=2, target=target))
    changed = [name.removeprefix("base_model.model.") for name in _changed(model)]
    assert len(changed) == LAYERS * EXPECTED[family][target]
    assert target == "attention" or sorted(changed) == sorted(linear), "all-linear is every linear layer of a layer"
    per_layer = [re.sub(r"\.\d+\.", ".N.", name, count=1) for name in changed]
    assert {per_layer.count(name) for name in per_layer} == {LAYERS}
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert len(trainable) == 2 * len(changed)
    assert all("lora_" in name for name in trainable)


def test_output_dense_does_not_take_attention_output_dense(backbone_folder, monkeypatch):
    from dataclasses import replace

    sites = SITES["bert"]
    monkeypatch.setitem(SITES, "bert", replace(sites, attention=("output.dense",)))
    model = adapt(_backbone(backbone_folder("bert")), LoraConfig(r=2))
    assert [name.split("layer.")[1] for name in _changed(model)] == ["0.output.dense", "1.output.dense"]


def test_unknown_architecture_says_what_to_do():
    with pytest.raises(UserError, match=r"'quokka'(.|\n)*method\.target_modules=\["):
        target_pattern("quokka", "attention")


def test_named_modules_are_taken_by_whole_components(backbone_folder):
    model = adapt(_backbone(backbone_folder("bert")), LoraConfig(r=2, target_modules=["query", "intermediate.dense"]))
    assert len(_changed(model)) == 2 * LAYERS


@pytest.mark.parametrize("wrong", ["quary", "uery", "layer", "LayerNorm"])
def test_a_wrong_name_is_an_error_that_lists_the_right_ones(wrong, backbone_folder):
    with pytest.raises(UserError) as error:
        adapt(_backbone(backbone_folder("bert")), LoraConfig(r=2, target_modules=["query", wrong]))
    assert f"{wrong!r} is the name of no linear layer" in error.value.message
    assert "encoder.layer.N.attention.self.query" in str(error.value.hint)


def test_matches_must_be_the_same_number_in_each_layer(backbone_folder):
    network = _backbone(backbone_folder("bert")).model
    with pytest.raises(UserError, match="not the same number in each of 2 layers"):
        matching_modules(network, r"encoder\.layer\.0\.attention\.self\.query", LAYERS)
    with pytest.raises(UserError, match="would change 0 modules"):
        matching_modules(network, "nothing", LAYERS)
