"""4-bit backbones: which layers, the same answer as their own weights brought back, gradients, training, counting."""

from __future__ import annotations

import importlib
import math

import pytest
import torch
from torch import nn

from manyskills.api import load
from manyskills.config import BackboneConfig
from manyskills.errors import UserError
from manyskills.model.backbones import load_backbone
from manyskills.model.methods import METHODS
from manyskills.model.multitask import build_model, stored_as
from manyskills.model.quantization import layers_to_quantize, nf4_bytes, parameter_count, saved_bytes, settle
from manyskills.model.sites import find_sites
from manyskills.training.plan import make_plan
from manyskills.training.run import train
from tests.conftest import ALL_FAMILIES, FAMILIES
from tests.training.helpers import CPU, TASKS, small_config

bnb = pytest.importorskip("bitsandbytes")


def _load(folder, quantize="nf4", **changes):
    return load_backbone(BackboneConfig(name=folder, quantize=quantize, **changes))


def _quantized(model):
    return {name: module for name, module in model.named_modules() if isinstance(module, bnb.nn.Linear4bit)}


def _bring_back(model):
    """Replace each 4-bit layer by an ordinary one with the same weights."""
    for name, layer in _quantized(model).items():
        plain = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
        plain.weight = nn.Parameter(bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state))
        plain.bias = layer.bias
        model.set_submodule(name, plain)


def _inputs():
    ids_BT = torch.randint(4, 250, (3, 11), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids_BT, "attention_mask": torch.ones_like(ids_BT)}


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_every_linear_layer_of_the_table_and_nothing_else(family, backbone_folder):
    backbone = _load(backbone_folder(family))
    found = set(_quantized(backbone.model))
    table = set(find_sites(backbone.model, backbone.architecture.model_type, ["linear"]).names)
    left_out = {name for name in table if family in ("t5", "codet5") and name.endswith(".wo")}
    assert found == table - left_out
    for layer in _quantized(backbone.model).values():
        assert (layer.weight.quant_type, layer.weight.quant_state.nested) == ("nf4", True)
        assert layer.compute_dtype == torch.float32
        assert not layer.weight.requires_grad


def test_both_stacks_of_a_whole_encoder_decoder(backbone_folder):
    names = set(_quantized(_load(backbone_folder("t5"), part="whole").model))
    assert {name.split(".")[0] for name in names} == {"encoder", "decoder"}
    assert "decoder.block.1.layer.1.EncDecAttention.q" in names


def test_a_linear_layer_outside_the_layers_is_left_alone():
    model = nn.ModuleDict(
        {"project": nn.Linear(4, 4), "layers": nn.ModuleList([nn.ModuleDict({"q": nn.Linear(4, 4)})])}
    )
    assert layers_to_quantize(model) == ["layers.0.q"]


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_and_gradients_are_those_of_its_own_weights(family, backbone_folder):
    model = _load(backbone_folder(family)).model
    inputs, found = _inputs(), []
    mask_BT = inputs["attention_mask"]
    for _ in range(2):
        with torch.no_grad():  # evaluation first: on some processors bitsandbytes would repack the weights for good
            states = model(**inputs).last_hidden_state
        embedded = model.get_input_embeddings()(inputs["input_ids"]).detach().requires_grad_(True)
        model(inputs_embeds=embedded, attention_mask=mask_BT).last_hidden_state.square().sum().backward()
        found.append((states, embedded.grad))
        _bring_back(model)
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-4, atol=1e-4)
    assert found[0][1].abs().max() > 0


def test_differs_from_the_published_weights_a_little(backbone_folder):
    folder = backbone_folder("bert")
    with torch.no_grad():
        exact, rounded = (_load(folder, q).model(**_inputs()).last_hidden_state for q in (None, "nf4"))
    assert 1e-4 < (exact - rounded).abs().max() < 0.2


def test_what_is_not_quantized_is_brought_to_the_number_format_of_the_computation(backbone_folder):
    model = _load(backbone_folder("t5")).model
    codes = {name: layer.weight.clone() for name, layer in _quantized(model).items()}
    settle(model, torch.float16)
    formats = {p.dtype for name, p in model.named_parameters() if "wo" not in name.split(".")}
    assert formats == {torch.float16, torch.uint8}
    assert {p.dtype for name, p in model.named_parameters() if "wo" in name.split(".")} == {torch.float32}
    for name, layer in _quantized(model).items():
        assert layer.weight.quant_state.dtype == torch.float16
        assert torch.equal(layer.weight, codes[name])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_codes_do_not_depend_on_the_number_format(dtype, backbone_folder):
    exact, low = (_load(backbone_folder("qwen2"), dtype=d).model for d in ("float32", dtype))
    assert {p.dtype for p in low.parameters()} == {getattr(torch, dtype), torch.uint8}
    for a, b in zip(_quantized(exact).values(), _quantized(low).values(), strict=True):
        assert torch.equal(a.weight, b.weight)
        assert b.compute_dtype == getattr(torch, dtype)


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_parameters_and_bytes_are_counted_as_they_are(family, backbone_folder):
    plain, quantized = (_load(backbone_folder(family), q).model for q in (None, "nf4"))
    assert parameter_count(quantized) == parameter_count(plain) == sum(p.numel() for p in plain.parameters())
    before = sum(p.nbytes for p in plain.parameters())
    after = sum(p.nbytes for p in quantized.parameters())
    for layer in _quantized(quantized).values():
        state = layer.weight.quant_state
        after += state.absmax.nbytes + state.state2.absmax.nbytes
        assert layer.weight.nbytes + state.absmax.nbytes + state.state2.absmax.nbytes == nf4_bytes(
            math.prod(state.shape)
        )
    assert before - after == saved_bytes(plain) > 0


def test_bytes_of_a_large_layer():
    assert nf4_bytes(4096 * 4096) == 4096 * 4096 * (1 / 2 + 1 / 64 + 4 / (64 * 256))


def test_without_bitsandbytes_loading_says_what_to_install_and_a_plan_still_works(
    backbone_folder, data_dir, tmp_path, monkeypatch
):
    real = importlib.import_module

    def missing(name, *package):
        if name == "bitsandbytes":
            raise ModuleNotFoundError(f"No module named {name!r}")
        return real(name, *package)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(UserError, match=r"bitsandbytes is not installed(.|\n)*manyskills\[quant\]"):
        _load(backbone_folder("bert"))
    config = small_config(backbone_folder("bert"), data_dir, tmp_path / "run", method="qlora")
    with pytest.raises(UserError, match="bitsandbytes is not installed"):
        train(config)
    assert not (tmp_path / "run").exists()
    make_plan(config)


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_a_plan_counts_quantized_layers_in_4_bits(family, backbone_folder, data_dir):
    plan = {
        name: make_plan(small_config(backbone_folder(family), data_dir, method={"name": name, "target": "all-linear"}))
        for name in ("lora", "qlora")
    }
    saved = saved_bytes(_load(backbone_folder(family), None).model)
    assert plan["lora"].memory["cached"].weights - plan["qlora"].memory["cached"].weights == saved
    assert plan["lora"].memory["cached"].training == plan["qlora"].memory["cached"].training
    assert plan["lora"].memory["cached"].activations == plan["qlora"].memory["cached"].activations


def test_only_qlora_changes_how_the_backbone_is_stored(backbone_folder, data_dir):
    kinds = {name: small_config("b", data_dir, method=name) for name in ("frozen", "lora", "qlora", "full")}
    assert [stored_as(config).quantize for config in kinds.values()] == [None, None, "nf4", None]
    chosen = small_config({"name": "b", "quantize": "nf4"}, data_dir, method="ia3")
    assert stored_as(chosen).quantize == "nf4"


@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if method.trains != "backbone"])
@pytest.mark.parametrize("family", ["bert", "t5", "llama"])
def test_methods_start_from_the_quantized_backbone_and_train_only_themselves(family, method, backbone_folder, data_dir):
    folder = backbone_folder(family)
    backbone = folder if method == "qlora" else {"name": folder, "quantize": "nf4"}
    model = build_model(small_config(backbone, data_dir, method=method, tasks=TASKS[:3]), CPU).train()
    plain = build_model(small_config({"name": folder, "quantize": "nf4"}, data_dir, method="frozen"), CPU)
    assert model.backbone_parameters == plain.backbone_parameters == parameter_count(_load(folder).model)
    ids_BT, mask_BT = _inputs().values()
    vectors_BD = model.encode(ids_BT, mask_BT, torch.arange(3))
    if METHODS[method].equal_at_start:
        torch.testing.assert_close(vectors_BD, plain.encode(ids_BT, mask_BT), rtol=1e-5, atol=1e-5)
    own = dict(model.shared_parameters())
    assert not any(name.endswith(("base_layer.weight", "base_layer.bias")) for name in own)
    assert {p.dtype for p in own.values()} <= {torch.float32}
    if own:
        vectors_BD.square().sum().backward()
        assert all(p.grad is not None for p in own.values())
    assert len(_quantized(model)) == len(_quantized(plain))


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_a_run_learns_resumes_and_answers_the_same_after_loading(
    family, backbone_folder, data_dir, tmp_path, monkeypatch
):
    method = {"name": "qlora", "r": 4}
    changes = {"method": method, "max_steps": 8, "eval_steps": 4, "tasks": ["defect_detection", "flaky_tests"]}
    config = small_config(backbone_folder(family), data_dir, tmp_path / "run", **changes)
    run = train(config)
    losses = [record["loss"] for record in _records(run.path) if record["kind"] == "train"]
    assert sum(losses[-1].values()) < sum(losses[0].values())
    assert run.results["training"]["backbone_parameters"] == parameter_count(_load(backbone_folder(family), None).model)
    assert run.results["config"]["backbone"]["quantize"] is None

    rows = [{"code": f"int f{n}(int *p) {{ return *p; }}"} for n in range(4)]
    answers = load(run.path / "last", device="cpu").predict_proba("defect_detection", rows)
    again = load(run.path / "last", device="cpu").predict_proba("defect_detection", rows)
    assert again == pytest.approx(answers, abs=1e-6)

    other = config.model_copy(update={"output_dir": str(tmp_path / "killed")})
    _train_until_killed(other, 5, monkeypatch)
    resumed = load(train(other, resume=True).path / "last", device="cpu")
    assert resumed.predict_proba("defect_detection", rows) == pytest.approx(answers, abs=1e-6)


def _train_until_killed(config, step, monkeypatch):
    from manyskills.training import loop

    real = loop.accumulate_gradients
    steps = iter(range(step))

    def dying(*arguments, **options):
        if next(steps, None) is None:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    monkeypatch.setattr(loop, "accumulate_gradients", dying)
    with pytest.raises(KeyboardInterrupt):
        train(config)
    monkeypatch.setattr(loop, "accumulate_gradients", real)


def _records(path):
    from manyskills.training.run_folder import RunFolder

    return RunFolder(path).read_metrics()
