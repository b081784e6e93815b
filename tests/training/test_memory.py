"""Estimates of memory against what autograd keeps, and where a run will train."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from manyskills.model.attention import choose_attention
from manyskills.model.backbones import load_backbone
from manyskills.model.chunks import UnpaddedChunk
from manyskills.model.multitask import MultiTaskModel, build_model, stored_as
from manyskills.model.unpadded import Bounds
from manyskills.training.memory import Place, kept_for_backward, saved_storages
from manyskills.training.plan import make_plan
from tests.training.helpers import CPU, small_config

NEED_GPU = {"optim": "adamw_bnb_8bit"}


def really_kept(model, sequences):
    """Bytes that a forward pass of so many sequences keeps."""
    ids_1N = torch.zeros(1, 32 * sequences, dtype=torch.long)
    with saved_storages(model) as saved, model.autocast():
        states = model.states(UnpaddedChunk(ids_1N, Bounds(np.full(sequences, 32), CPU), 0))
    total = sum(storage.nbytes() for storage in saved.values())
    del states
    return total


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize(
    ("method", "dtype"), [({"name": "lora", "r": 2, "target": "all-linear"}, "bfloat16"), ("full", "float32")]
)
def test_a_network_without_weights_tells_what_is_kept(method, dtype, bf16, backbone_folder, data_dir):
    config = small_config(backbone_folder("qwen2"), data_dir, method=method, bf16=bf16)
    config = config.model_copy(update={"backbone": config.backbone.model_copy(update={"dtype": dtype})})
    model = build_model(config, CPU).train()
    few, many = really_kept(model, 2), really_kept(model, 4)
    loaded = load_backbone(stored_as(config), weights=False)
    loaded.model.to(getattr(torch, dtype))
    planned = MultiTaskModel(loaded, config.method, config.tasks)
    choose_attention(planned, "auto")
    found = kept_for_backward(planned, bf16=bf16)
    assert found.a_token == pytest.approx((many - few) / 64, rel=0.15)
    assert found.a_chunk == pytest.approx(2 * few - many, rel=0.15, abs=2000)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(
    ("changes", "device", "bf16"),
    [({}, "cpu", False), ({"bf16": True}, "cpu", True), (NEED_GPU, "cuda", True),
     (NEED_GPU | {"bf16": False}, "cuda", False)],
)  # fmt: skip
def test_what_needs_a_gpu_is_planned_for_one(changes, device, bf16, backbone_folder, data_dir):
    config = small_config(backbone_folder("qwen2"), data_dir, **changes)
    assert Place.of(config) == Place(device, bf16)
    weights = make_plan(config).memory["single_pass"].weights
    network = sum(p.numel() for p in build_model(small_config(backbone_folder("qwen2"), data_dir), CPU).parameters())
    assert (weights < 3 * network) == (device == "cuda")


def test_checkpointed_layers_take_less(backbone_folder, data_dir):
    plans = [
        make_plan(small_config(backbone_folder("qwen2"), data_dir, method="full", gradient_checkpointing=on))
        for on in (False, True)
    ]
    kept, again = (plan.memory["single_pass"].activations for plan in plans)
    assert 0 < again < kept
