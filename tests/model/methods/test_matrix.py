"""Every method on every family: attached where it is meant to be, and nothing else changed.

Expected numbers are worked out here from the families' sizes, not from the table of sites.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, replace

import pytest
import torch
from transformers.modeling_layers import GradientCheckpointingLayer

from manyskills.config import FrozenConfig, TrainConfig
from manyskills.model.backbones import load_backbone
from manyskills.model.checkpoint import load_model, save_model
from manyskills.model.methods import METHODS
from manyskills.model.multitask import MultiTaskModel, build_model, stored_as
from tests.conftest import ALL_FAMILIES

CPU = torch.device("cpu")
HIDDEN, INNER, LAYERS = 32, 48, 2
TASKS = ["defect_detection", "code_search", "flaky_tests"]
FAMILIES = (*ALL_FAMILIES, "t5 whole")

CONFIGS = {
    "frozen": {"name": "frozen"},
    "full": {"name": "full"},
    "lora": {"name": "lora", "r": 3},
    "lora everywhere": {"name": "lora", "r": 3, "target": "all-linear"},
    "dora": {"name": "dora", "r": 3},
    "qlora": {"name": "qlora", "r": 3},
    "ia3": {"name": "ia3"},
    "serial_adapter": {"name": "serial_adapter", "bottleneck": 5},
    "parallel_adapter": {"name": "parallel_adapter", "bottleneck": 5},
    "parallel_adapter ffn": {"name": "parallel_adapter", "bottleneck": 5, "where": "ffn", "scale": 4.0},
    "prefix_tuning": {"name": "prefix_tuning", "length": 4},
    "mtl_lora": {"name": "mtl_lora", "r": 3, "experts": 2},
}
WITHOUT_LAYERS = ("frozen", "full")
NO_DROPOUT = ("lora", "dora", "qlora", "mtl_lora")


@dataclass(frozen=True)
class Layer:
    """Sizes (in, out) of the linear layers of one transformer layer, and size of all keys."""

    query_value: list[tuple[int, int]]
    linear: list[tuple[int, int]]
    key_value: list[tuple[int, int]]
    attentions: int = 1
    keys: int = HIDDEN


_H = (HIDDEN, HIDDEN)
_UP, _DOWN = (HIDDEN, INNER), (INNER, HIDDEN)
_BERT = Layer([_H, _H], [_H, _H, _H, _H, _UP, _DOWN], [_H, _H])
_KV = (HIDDEN, 16)
_LLAMA = Layer([_H, _KV], [_H, _KV, _KV, _H, _UP, _UP, _DOWN], [_KV, _KV], keys=16)
_FUSED = (HIDDEN, 3 * HIDDEN)
_WIDE, _WIDE_KV = (HIDDEN, 2 * 24), (HIDDEN, 24)  # heads of 24, which is not hidden size / heads
_QWEN3 = Layer([_WIDE, _WIDE_KV], [_WIDE, _WIDE_KV, _WIDE_KV, _WIDE[::-1], _UP, _UP, _DOWN], [_WIDE_KV] * 2, keys=24)
_T = (HIDDEN, 16)  # T5's heads: two of 8
_T5 = Layer([_T, _T], [_T, _T, _T, _T[::-1], _UP, _DOWN], [_T, _T], keys=16)
_GATED = replace(_T5, linear=[*_T5.linear, _UP])
_CROSSED = Layer([_T] * 4, [*[_T, _T, _T, _T[::-1]] * 2, _UP, _UP, _DOWN], [_T] * 4, attentions=2, keys=16)

STACKS = {
    "bert": [_BERT],
    "roberta": [_BERT],
    "modernbert": [Layer([_FUSED], [_FUSED, _H, (HIDDEN, 2 * INNER), _DOWN], [_FUSED])],
    "t5": [_GATED],
    "codet5": [_T5],
    "t5 whole": [_GATED, _CROSSED],
    "starcoder2": [replace(_LLAMA, linear=[*_LLAMA.linear[:4], _UP, _DOWN])],
    **{family: [_LLAMA] for family in ("llama", "qwen2", "mistral")},
    **{family: [_QWEN3] for family in ("qwen3", "gemma", "gemma2", "gemma3_text")},
}


def expected(method: str, layer: Layer) -> tuple[int, int]:
    """Changed modules and trainable parameters of one layer."""
    blocks = layer.attentions + 1
    adapter = 2 * HIDDEN * 5 + 5 + HIDDEN

    def low_rank(sizes: list[tuple[int, int]], extra: int = 0) -> tuple[int, int]:
        return len(sizes), sum(3 * (d_in + d_out) + extra * d_out for d_in, d_out in sizes)

    match method:
        case "lora":
            return low_rank(layer.query_value)
        case "lora everywhere" | "qlora":
            return low_rank(layer.linear)
        case "dora":
            return low_rank(layer.query_value, extra=1)
        case "ia3":
            return len(layer.key_value) + 1, sum(d_out for _, d_out in layer.key_value) + INNER
        case "serial_adapter" | "parallel_adapter":
            return blocks, blocks * adapter
        case "parallel_adapter ffn":
            return 1, adapter
        case "prefix_tuning":
            return layer.attentions, layer.attentions * 2 * 4 * layer.keys
        case "mtl_lora":
            tasks = len(TASKS)
            each = (3 * d_in + 2 * 3 * d_out + tasks * MTL_LAMBDA + tasks * 2 for d_in, d_out in layer.query_value)
            return len(layer.query_value), sum(each)
    return 0, 0


MTL_LAMBDA = 3
"""Parameters of a task's own transformation: a diagonal of rank 3."""


@pytest.fixture
def config(backbone_folder):
    """Makes the configuration of a method and a family."""

    def make(method: str, family: str, **changes) -> TrainConfig:
        part = "whole" if family.endswith("whole") else "auto"
        section = dict(CONFIGS[method])
        if section["name"] in NO_DROPOUT:
            section["lora_dropout"] = 0.0
        return TrainConfig.model_validate({
            "backbone": {"name": backbone_folder(family.split()[0]), "part": part},
            "method": section | changes,
            "tasks": TASKS,
        })  # fmt: skip

    return make


def batch(model: MultiTaskModel, lengths: list[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Random right-padded sequences; the tasks take turns."""
    generator = torch.Generator().manual_seed(5)
    ids_BT = torch.randint(3, 250, (len(lengths), max(lengths)), generator=generator)
    mask_BT = (torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]).long()
    ids_BT[mask_BT == 0] = model.architecture.pad_id
    routes_B = torch.arange(len(lengths)) % len(TASKS)
    return ids_BT, mask_BT, routes_B


def unsettled(model: MultiTaskModel) -> MultiTaskModel:
    """With noise on what trains, so that nothing is hidden behind a matrix of zeros."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(torch.randn(p.shape, generator=generator) * 0.1)
    return model


def gradients(model: MultiTaskModel, lengths: list[int]) -> dict[str, torch.Tensor]:
    """Of a fixed function of the vectors, with respect to the shared module."""
    model.train().zero_grad()
    ids_BT, mask_BT, routes_B = batch(model, lengths)
    with model.routed(routes_B):  # around the backward pass too: checkpointed layers run again there
        vectors_BD = model.encode(ids_BT, mask_BT)
        weights = torch.randn(vectors_BD.shape, generator=torch.Generator().manual_seed(1))
        (vectors_BD * weights).sum().backward()
    return {name: p.grad.clone() for name, p in model.shared_parameters() if p.grad is not None}


@pytest.mark.parametrize("method", [name for name in CONFIGS if name != "full"])
@pytest.mark.parametrize("family", FAMILIES)
def test_attached_at_every_site_and_nowhere_else(family, method, config):
    wanted = config(method, family)
    model = build_model(wanted, CPU)
    kind = METHODS[wanted.method.name]
    sites, parameters = (sum(values) for values in zip(*(expected(method, s) for s in STACKS[family]), strict=True))
    trainable = dict(model.shared_parameters())
    assert sum(p.numel() for p in trainable.values()) == LAYERS * parameters
    changed = {name.rsplit(".base_layer", 1)[0] for name, _ in model.backbone.named_modules() if "base_layer" in name}
    assert len(changed) == LAYERS * sites
    numbers = [int(number.group(1)) for name in changed if (number := re.search(r"\.(\d+)\.", name))]
    assert all(numbers.count(n) * LAYERS == len(changed) for n in set(numbers)), "the same in each layer"
    backbone = stored_as(wanted)
    plain = dict(load_backbone(backbone).model.named_parameters())
    frozen = {name: p for name, p in model.backbone.named_parameters() if name not in trainable}
    assert not any(p.requires_grad for p in frozen.values())
    assert len(frozen) == len(plain), "nothing of the backbone was lost or added"
    if kind.equal_at_start:
        ids_BT, mask_BT, routes_B = batch(model, [9, 14, 20])
        bare = build_model(wanted.model_copy(update={"method": FrozenConfig(), "backbone": backbone}), CPU)
        model.eval()
        bare.eval()
        with torch.no_grad():
            torch.testing.assert_close(model.encode(ids_BT, mask_BT, routes_B), bare.encode(ids_BT, mask_BT))


@pytest.mark.parametrize("method", [name for name in CONFIGS if name != "frozen"])
@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_reach_everything_and_survive_checkpointing(family, method, config):
    model = unsettled(build_model(config(method, family), CPU))
    found = gradients(model, [9, 14, 20])
    for name, _ in model.shared_parameters():
        assert name in found, f"no gradient reaches {name}"
        # of all weights, the keys' biases have a gradient of zero: softmax does not see them
        assert method == "full" or found[name].abs().sum() > 0, f"the gradient of {name} is zero"
    model.checkpoint_gradients()
    runs = count_runs(model)
    again = gradients(model, [9, 14, 20])
    assert set(runs.values()) == {2}, "each layer once forward, and once more in the backward pass"
    assert len(runs) == LAYERS * len(STACKS[family])
    assert again.keys() == found.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(again[name], gradient, rtol=1e-4, atol=1e-6)


def count_runs(model: MultiTaskModel) -> Counter[str]:
    """How often a norm of each checkpointed layer runs from now on."""
    runs: Counter[str] = Counter()
    for name, layer in model.backbone.named_modules():
        if isinstance(layer, GradientCheckpointingLayer):
            inner = next(module for part, module in layer.named_modules() if "norm" in part.lower())
            inner.register_forward_hook(lambda *_, name=name: runs.update([name]))
    return runs


@pytest.mark.parametrize("method", CONFIGS)
@pytest.mark.parametrize("family", FAMILIES)
def test_saved_and_loaded_it_answers_the_same_whatever_the_batch(family, method, config, tmp_path):
    wanted = config(method, family)
    model = unsettled(build_model(wanted, CPU)).eval()
    ids_BT, mask_BT, routes_B = batch(model, [9, 30, 20])
    with torch.no_grad():
        vectors_BD = model.encode(ids_BT, mask_BT, routes_B)
        for row, length in enumerate((9, 30, 20)):
            alone = model.encode(
                ids_BT[row : row + 1, :length], mask_BT[row : row + 1, :length], routes_B[row : row + 1]
            )
            torch.testing.assert_close(alone[0], vectors_BD[row], rtol=1e-4, atol=2e-6)
        save_model(model, tmp_path, wanted)
        loaded = load_model(tmp_path, CPU)
        torch.testing.assert_close(loaded.encode(ids_BT, mask_BT, routes_B), vectors_BD, rtol=0, atol=1e-6)
    for name, p in model.heads.named_parameters():
        assert torch.equal(p, loaded.heads.get_parameter(name))


@pytest.mark.parametrize("method", [name for name in CONFIGS if name not in WITHOUT_LAYERS])
@pytest.mark.parametrize("family", FAMILIES)
def test_only_the_last_layer(family, method, config):
    model = build_model(config(method, family, layers="last 1"), CPU)
    parameters = sum(expected(method, stack)[1] for stack in STACKS[family])
    assert sum(p.numel() for _, p in model.shared_parameters()) == parameters
    assert all(".1." in name for name, _ in model.shared_parameters())
