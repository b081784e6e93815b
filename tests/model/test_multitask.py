"""The model as a whole: what trains, what is in which mode, and that equal seeds give equal weights."""

from __future__ import annotations

import pytest
import torch
from peft.tuners.lora import LoraLayer
from torch import nn

from manyskills.model.multitask import build_model
from tests.conftest import FAMILIES
from tests.training.helpers import CPU, gradients, small_config, warmed_up

LORA = {"name": "lora", "r": 2, "lora_dropout": 0.2}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_pre_trained_network_is_in_evaluation_mode_while_the_methods_dropout_trains(
    family, backbone_folder, data_dir
):
    model = build_model(small_config(backbone_folder(family), data_dir, method=LORA), CPU)
    model.train()
    training = {name for name, module in model.backbone.named_modules() if module.training}
    dropouts = {name for name, module in model.backbone.named_modules() if "lora_dropout" in name}
    assert dropouts <= training
    attention = {name for name, module in model.backbone.named_modules() if isinstance(module, LoraLayer)}
    assert all("lora_" in name or name in attention for name in training), "nothing of the pre-trained network"
    assert any(isinstance(m, nn.Dropout) and m.p == 0.2 for n, m in model.backbone.named_modules() if n in dropouts)
    assert all(module.training for module in model.heads.modules())
    model.eval()
    assert not any(module.training for module in model.modules())


def test_trunk_dropout_on_request(backbone_folder, data_dir):
    model = build_model(small_config(backbone_folder("bert"), data_dir, trunk_dropout=True), CPU)
    assert all(module.training for module in model.train().backbone.modules())


@pytest.mark.parametrize("cached", [False, True])
def test_dropout_depends_on_the_seed_alone(cached, backbone_folder, data_dir):
    config = small_config(backbone_folder("bert"), data_dir, method=LORA)
    model, prepared = warmed_up(config)
    torch.manual_seed(5)
    _, one = gradients(model, prepared, config, cached=cached, budget=200, seed=1)
    torch.manual_seed(6)
    _, two = gradients(model, prepared, config, cached=cached, budget=200, seed=1)
    _, other = gradients(model, prepared, config, cached=cached, budget=200, seed=2)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("method", ["frozen", "full", "lora"])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_trains_and_that_all_of_it_gets_a_gradient(family, method, backbone_folder, data_dir):
    """Several processes sum gradients and count absent ones as zero: that is the same only if none is absent."""
    config = small_config(backbone_folder(family), data_dir, method=method)
    model, prepared = warmed_up(config)
    shared = {name for name, _ in model.shared_parameters()}
    everything = {name for name, _ in model.backbone.named_parameters()}
    lora = {name for name in everything if "lora_" in name}
    assert shared == {"frozen": set(), "full": everything, "lora": lora}[method]
    assert model.trains_backbone == (method != "frozen")
    if model.trains_backbone:
        _, found = gradients(model, prepared, config, cached=False, budget=200)
        assert found.keys() == {name for name, p in model.named_parameters() if p.requires_grad}


def test_full_training_of_half_precision_weights_happens_in_float32(backbone_folder, data_dir):
    backbone = {"name": backbone_folder("bert"), "dtype": "bfloat16"}
    model = build_model(small_config(backbone, data_dir, method="full"), CPU)
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_lora_on_a_half_precision_backbone_trains(backbone_folder, data_dir):
    config = small_config({"name": backbone_folder("bert"), "dtype": "bfloat16"}, data_dir, bf16=True)
    model, prepared = warmed_up(config)
    _, found = gradients(model, prepared, config, cached=True, budget=200)
    assert {p.dtype for _, p in model.shared_parameters()} == {torch.float32}
    assert all(torch.isfinite(gradient).all() for gradient in found.values())


@pytest.mark.parametrize("method", ["frozen", "lora"])
def test_the_seed_decides_the_weights(method, backbone_folder, data_dir):
    def weights(seed):
        torch.manual_seed(torch.seed())
        config = small_config(backbone_folder("bert"), data_dir, method=method, seed=seed)
        return {name: p.clone() for name, p in build_model(config, CPU).named_parameters()}

    one, two, other = weights(0), weights(0), weights(1)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


def test_building_leaves_the_callers_random_numbers_alone(backbone_folder, data_dir):
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    build_model(small_config(backbone_folder("bert"), data_dir), CPU)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_checkpointing_keeps_less_and_drops_nothing_of_the_trunk(family, backbone_folder, data_dir):
    kept: dict[bool, int] = {}
    for on in (False, True):
        config = small_config(backbone_folder(family), data_dir, method=LORA, gradient_checkpointing=on)
        model = build_model(config, CPU).train()
        ids_BT = torch.randint(3, 250, (2, 30), generator=torch.Generator().manual_seed(0))
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, sizes=sizes: sizes.append(t.numel()) or t, lambda t: t):
            model.encode(ids_BT, torch.ones_like(ids_BT))
        kept[on] = sum(sizes)
        trunk = [m for m in model.backbone.modules() if isinstance(m, nn.Dropout) and m.p != 0.2]
        assert not any(module.training for module in trunk)
    assert kept[True] < 0.5 * kept[False]
