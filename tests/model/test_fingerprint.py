"""The same vectors, the same name; whatever changes a vector changes the name."""

from __future__ import annotations

import pytest
import torch

from manyskills.config import TrainConfig
from manyskills.model.fingerprint import fingerprint, published_fingerprint
from manyskills.model.methods import METHODS
from manyskills.model.multitask import MultiTaskModel, build_model

CPU = torch.device("cpu")
METHOD_CONFIGS = {
    name: {"name": name} for name in METHODS if name not in ("full", "qlora")
}  # full stores float32, qlora 4 bits: other numbers


@pytest.fixture
def build(backbone_folder):
    def make(family: str = "bert", **changes) -> MultiTaskModel:
        values = {"backbone": backbone_folder(family), "method": "lora", "tasks": ["defect_detection", "code_search"]}
        return build_model(TrainConfig.model_validate(values | changes), CPU)

    return make


@pytest.mark.parametrize("method", METHOD_CONFIGS)
@pytest.mark.parametrize("family", ["bert", "t5"])
def test_every_adapter_leaves_the_backbones_name(method, family, build):
    plain = build(family, method="frozen", attention="padded")
    adapted = build(family, method=method, attention="padded")
    assert published_fingerprint(adapted) == published_fingerprint(plain)
    assert (fingerprint(adapted) == published_fingerprint(adapted)) == (method == "frozen")


def test_the_same_weights_have_the_same_name_whatever_the_heads(build):
    one, two = build(), build()
    assert fingerprint(one) == fingerprint(two)
    with torch.no_grad():
        for _, p in two.head_parameters():
            p.add_(1)
    assert fingerprint(one) == fingerprint(two)
    assert fingerprint(build(seed=1)) != fingerprint(one), "the adapter's first weights are another seed's"
    assert published_fingerprint(build(seed=1)) == published_fingerprint(one)


def test_each_weight_counts(build):
    model = build()
    names = {published_fingerprint(model)}
    tensors = [p for name, p in model.network.named_parameters() if "lora" not in name]
    for p in tensors:
        with torch.no_grad():
            p.view(-1)[-1] += 1
        names.add(published_fingerprint(model))
    assert len(names) == len(tensors) + 1
    adapted = {fingerprint(model)}
    shared = [p for _, p in model.shared_parameters()]
    for p in shared:
        with torch.no_grad():
            p.view(-1)[0] += 1
        adapted.add(fingerprint(model))
    assert len(adapted) == len(shared) + 1


@pytest.mark.parametrize(
    "changes",
    [
        {"method": {"name": "lora", "lora_alpha": 7}},
        {"method": {"name": "lora", "r": 3}},
        {"backbone": {"pooling": "last"}},
        {"backbone": {"dtype": "bfloat16"}},
        {"bf16": True},
        {"attention": "padded"},
    ],
)
def test_what_changes_a_vector_without_a_weight(changes, build, backbone_folder):
    base = build(attention="unpadded")
    if "backbone" in changes:
        changes = {"backbone": {"name": backbone_folder("bert")} | changes["backbone"]}
    assert fingerprint(build(**({"attention": "unpadded"} | changes))) != fingerprint(base)


def test_another_version_or_configuration_is_another_name(build, monkeypatch):
    model = build(method="frozen")
    names = {fingerprint(model)}
    model.network.config.layer_norm_eps = 1e-3
    names.add(fingerprint(model))
    monkeypatch.setattr("transformers.configuration_utils.__version__", "0.0")
    assert len({*names, fingerprint(model)}) == 3
