"""The same promises on a CUDA device. Not run where there is none; `pytest -m gpu` runs only these."""

from __future__ import annotations

import pytest
import torch

from manyskills.api import load
from manyskills.model import unpadded
from manyskills.model.attention import UNPADDED
from manyskills.model.encoding import encode_texts
from manyskills.model.multitask import build_model
from manyskills.training.balancing import build_balancing
from manyskills.training.forward import Sources
from manyskills.training.optimizer import Optimizer
from manyskills.training.processes import Processes
from manyskills.training.run import load_inputs, train
from manyskills.training.run_folder import RunFolder
from manyskills.training.step import accumulate_gradients
from manyskills.training.vectors import BackboneVectors
from tests.training.helpers import TASKS, small_config

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
        balancing = build_balancing(config.balancing, list(config.tasks), config.seed)
        accumulate_gradients(model, Sources(source), prepared.examples["train"], balancing, 1)
        found.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["uniform", "cagrad", "db_mtl"])
def test_each_tasks_gradient_is_that_of_the_cpu(name, backbone_folder, data_dir):
    config = small_config(
        backbone_folder("bert"), data_dir, bf16=False, balancing=name, trunk_dropout=False,
        method={"name": "lora", "r": 2, "lora_dropout": 0.0}, tasks={task: {"head_dropout": 0.0} for task in TASKS},
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    found, weights = {}, {}
    for place in ("cpu", "cuda"):
        device = torch.device(place)
        model, prepared = load_inputs(config, device)
        with torch.no_grad():
            for key, p in model.named_parameters():
                if p.requires_grad:
                    weights.setdefault(key, 0.1 * torch.randn(p.shape, generator=generator))
                    p.add_(weights[key].to(device))
        model.train()
        source = BackboneVectors(model, prepared.store, 200, cached=False, processes=Processes(0, 1, device))
        rule = build_balancing(config.balancing, list(config.tasks), config.seed)
        result = accumulate_gradients(model, Sources(source), prepared.examples["train"], rule, 1, measure=True)
        assert result.gradients is not None
        assert result.gradients.values_KP.device.type == place
        rule.restore(rule.state())  # the averages of db_mtl come back from the CPU
        accumulate_gradients(model, Sources(source), prepared.examples["train"], rule, 1)
        gradients = torch.cat([p.grad.flatten().cpu() for _, p in model.shared_parameters() if p.grad is not None])
        found[place] = (result, gradients)
    (cpu, cpu_P), (gpu, gpu_P) = found["cpu"], found["cuda"]
    torch.testing.assert_close(gpu.gradients.values_KP.cpu(), cpu.gradients.values_KP, rtol=1e-2, atol=1e-4)
    assert gpu.gradients.norms() == pytest.approx(cpu.gradients.norms(), rel=1e-2)
    assert gpu.factors == pytest.approx(cpu.factors, rel=2e-2, abs=1e-3)
    assert torch.nn.functional.cosine_similarity(cpu_P, gpu_P, dim=0) > 0.999


@pytest.mark.parametrize("method", ["lora", "full", "frozen"])
def test_a_run_on_the_gpu_answers_on_the_cpu(method, backbone_folder, data_dir, tmp_path):
    config = small_config(backbone_folder("qwen2"), data_dir, tmp_path / "run", method=method, heads_first=True)
    run = train(config)
    rows = [{"code": f"int f{n}(int *p) {{ return *p; }}"} for n in range(4)]
    on_gpu = load(run.path, device="cuda").predict_proba("defect_detection", rows)
    on_cpu = load(run.path, device="cpu").predict_proba("defect_detection", rows)
    assert on_gpu == pytest.approx(on_cpu, abs=0.05)


def _codes(model):
    return [p for p in model.parameters() if getattr(p, "quant_state", None) is not None]


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_a_4_bit_backbone_computes_in_bf16_on_the_codes_of_the_cpu(family, backbone_folder, data_dir):
    pytest.importorskip("bitsandbytes")
    config = small_config(backbone_folder(family), data_dir, method="qlora")
    on_gpu, on_cpu = (build_model(config, torch.device(place)) for place in ("cuda", "cpu"))
    assert {p.device.type for p in on_gpu.parameters()} == {"cuda"}
    assert on_gpu.autocast_dtype == torch.bfloat16
    frozen = {p.dtype for p in on_gpu.backbone.parameters() if not p.requires_grad}
    assert frozen == {torch.bfloat16, torch.uint8}
    assert {p.dtype for _, p in on_gpu.shared_parameters()} == {torch.float32}
    for a, b in zip(_codes(on_gpu), _codes(on_cpu), strict=True):
        assert (a.cpu() == b).float().mean() > 0.999  # kernels may round a tie apart
        assert a.quant_state.dtype == torch.bfloat16
    ids_BT = torch.randint(4, 250, (3, 11), generator=torch.Generator().manual_seed(0))
    found = [
        model.eval().encode(ids_BT.to(model.device), torch.ones_like(ids_BT).to(model.device)).cpu()
        for model in (on_gpu, on_cpu)
    ]
    torch.testing.assert_close(found[0], found[1], rtol=0.05, atol=0.05)


@pytest.mark.parametrize("optim", ["adamw_torch", "adamw_bnb_8bit", "paged_adamw_32bit", "paged_adamw_8bit"])
def test_qlora_learns_on_the_gpu_and_answers_on_the_cpu(optim, backbone_folder, data_dir, tmp_path):
    pytest.importorskip("bitsandbytes")
    method = {"name": "qlora", "r": 4}
    config = small_config(backbone_folder("llama"), data_dir, tmp_path / "run", method=method, optim=optim, max_steps=8)
    run = train(config)
    losses = [sum(r["loss"].values()) for r in RunFolder(run.path).read_metrics() if r["kind"] == "train"]
    assert losses[-1] < losses[0]
    rows = [{"code": f"int f{n}(int *p) {{ return *p; }}"} for n in range(4)]
    on_gpu = load(run.path, device="cuda").predict_proba("defect_detection", rows)
    on_cpu = load(run.path, device="cpu").predict_proba("defect_detection", rows)
    assert on_gpu == pytest.approx(on_cpu, abs=0.05)


@pytest.mark.parametrize("optim", ["adamw_bnb_8bit", "paged_adamw_32bit", "paged_adamw_8bit"])
def test_a_paged_state_survives_the_disk_and_stays_paged(optim, backbone_folder, data_dir, tmp_path):
    pytest.importorskip("bitsandbytes")
    method = {"name": "lora", "r": 4096}  # bitsandbytes pages moments of 100,000 values and more
    config = small_config(backbone_folder("llama"), data_dir, method=method, optim=optim)
    device, found = torch.device("cuda"), []
    for saved in (False, True):
        model = build_model(config, device)
        optimizer = Optimizer(model, config, 10)
        for step in range(4):
            if saved and step == 2:
                optimizer.save(tmp_path / "optimizer.safetensors")
                optimizer = Optimizer(model, config, 10)
                optimizer.load(tmp_path / "optimizer.safetensors")
            for number, p in enumerate(p for p in model.parameters() if p.requires_grad):
                generator = torch.Generator(device).manual_seed(100 * step + number)
                p.grad = torch.randn(p.shape, generator=generator, device=device)
            optimizer.update(step)
        large = [p for _, p in model.shared_parameters() if p.numel() >= 100_000]
        states = [optimizer.adamw.state[p]["state1"] for p in large]
        assert states and all(getattr(s, "is_paged", False) == optim.startswith("paged") for s in states)
        found.append([p.detach().clone() for p in model.parameters() if p.requires_grad])
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("family", UNPADDED)
@pytest.mark.parametrize("method", [{"name": "lora", "r": 2, "lora_dropout": 0.0}, "full"], ids=["lora", "full"])
def test_variable_length_attention_gives_the_padded_vectors(family, method, backbone_folder, data_dir, monkeypatch):
    """In bf16, with grouped heads (the decoders) and sliding windows (ModernBERT, Mistral); float32 weights too."""
    calls = []
    by_bounds = unpadded._by_bounds
    monkeypatch.setattr(unpadded, "_by_bounds", lambda *a: calls.append(1) or by_bounds(*a))
    config = small_config(backbone_folder(family), data_dir, bf16=True, attention="unpadded", method=method)
    model, prepared = load_inputs(config, torch.device("cuda"))
    indices_N = prepared.used_texts("train")
    found = {}
    for layout in ("unpadded", "padded"):
        model.attention = layout
        vectors_ND = encode_texts(model, prepared.store, indices_N, 2000)
        assert bool(calls) == (layout == "unpadded")
        model.train()
        model.zero_grad()
        source = BackboneVectors(
            model, prepared.store, 2000, cached=False, processes=Processes(0, 1, torch.device("cuda"))
        )
        source.forward(indices_N, 0)
        source.backward(torch.ones(len(indices_N), vectors_ND.shape[1], device="cuda"))
        gradients = torch.cat([p.grad.flatten() for _, p in model.shared_parameters() if p.grad is not None])
        found[layout] = (vectors_ND, gradients)
        calls.clear()
    similar = torch.nn.functional.cosine_similarity
    assert similar(found["unpadded"][0], found["padded"][0]).min() > 0.999
    assert similar(found["unpadded"][1], found["padded"][1], dim=0) > 0.99


@pytest.mark.parametrize(("bf16", "found"), [(True, "unpadded"), (False, "padded")])
def test_auto_is_unpadded_where_there_is_variable_length_attention(bf16, found, backbone_folder, data_dir):
    config = small_config(backbone_folder("qwen2"), data_dir, bf16=bf16)
    assert build_model(config, torch.device("cuda")).attention == found
