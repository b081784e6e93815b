"""The same promises on a CUDA device. Not run where there is none; `pytest -m gpu` runs only these."""

from __future__ import annotations

import pytest
import torch

from manyskills.api import load
from manyskills.training.balancing import build_balancing
from manyskills.training.processes import Processes
from manyskills.training.run import load_inputs, train
from manyskills.training.step import accumulate_gradients
from manyskills.training.vectors import BackboneVectors
from tests.training.helpers import small_config

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.mark.parametrize("family", ["bert", "modernbert", "t5", "qwen2"])
@pytest.mark.parametrize("bf16", [False, True])
def test_cached_equals_single_pass(family, bf16, backbone_folder, data_dir):
    config = small_config(backbone_folder(family), data_dir, bf16=bf16)
    device = torch.device("cuda")
    model, prepared = load_inputs(config, device)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(torch.randn_like(p) * 0.1)
    found = []
    for cached in (False, True):
        model.train()
        model.zero_grad()
        source = BackboneVectors(model, prepared.store, 200, cached=cached, processes=Processes(0, 1, device))
        balancing = build_balancing(config.balancing, list(config.tasks), device)
        accumulate_gradients(model, source, prepared.examples["train"], balancing, 1)
        found.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("method", ["lora", "full", "frozen"])
def test_a_run_on_the_gpu_answers_on_the_cpu(method, backbone_folder, data_dir, tmp_path):
    config = small_config(backbone_folder("qwen2"), data_dir, tmp_path / "run", method=method, heads_first=True)
    run = train(config)
    rows = [{"code": f"int f{n}(int *p) {{ return *p; }}"} for n in range(4)]
    on_gpu = load(run.path, device="cuda").predict_proba("defect_detection", rows)
    on_cpu = load(run.path, device="cpu").predict_proba("defect_detection", rows)
    assert on_gpu == pytest.approx(on_cpu, abs=0.05)
