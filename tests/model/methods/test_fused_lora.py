"""The fused layer computes what peft's own does, forward and backward, and steps aside where it cannot."""

from __future__ import annotations

import peft
import pytest
import torch
from peft.tuners.lora.layer import Linear
from torch import nn

from manyskills.model.methods import fused_lora
from manyskills.model.methods.fused_lora import FusedLoraLinear, FusedUpdate, use_fused_layers

# Shape legend: B sequences, T tokens, I input size, O output size
B, T, I, O = 2, 5, 6, 4  # noqa: E741


class _Network(nn.Module):
    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.site = nn.Linear(I, O, bias=bias)

    def forward(self, x_BTI: torch.Tensor) -> torch.Tensor:
        return self.site(x_BTI)


def _pair(*, bias: bool = True, **options: object) -> tuple[peft.PeftModel, peft.PeftModel]:
    """The same network with fused layers and with peft's."""
    models = []
    for fused in (True, False):
        torch.manual_seed(0)
        config = peft.LoraConfig(r=3, lora_alpha=5, target_modules=["site"], **options)
        if fused:
            use_fused_layers(config)
        models.append(peft.get_peft_model(_Network(bias), config))
    for model in models:
        torch.manual_seed(1)
        with torch.no_grad():
            for _, p in sorted(model.named_parameters()):
                if p.requires_grad:
                    p.normal_()
    assert isinstance(models[0].base_model.model.site, FusedLoraLinear)
    assert type(models[1].base_model.model.site) is Linear
    return models[0], models[1]


def _run(model: peft.PeftModel, x_BTI: torch.Tensor) -> list[torch.Tensor]:
    x_BTI = x_BTI.clone().requires_grad_(True)
    model.zero_grad()
    torch.manual_seed(2)
    y_BTO = model(x_BTI)
    (y_BTO * torch.linspace(-1, 1, y_BTO.numel()).view_as(y_BTO)).sum().backward()
    gradients = [p.grad for _, p in sorted(model.named_parameters()) if p.grad is not None]
    assert x_BTI.grad is not None and len(gradients) >= 2
    return [y_BTO.detach(), x_BTI.grad, *gradients]


@pytest.fixture
def calls(monkeypatch):
    """How often the fused update ran."""
    seen = []
    apply = FusedUpdate.apply
    monkeypatch.setattr(fused_lora.FusedUpdate, "apply", lambda *a: seen.append(1) or apply(*a))
    return seen


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_the_same_values_and_gradients(bias, dropout, calls):
    fused, plain = _pair(bias=bias, lora_dropout=dropout)
    x_BTI = torch.randn(B, T, I)
    for found, expected in zip(_run(fused, x_BTI), _run(plain, x_BTI), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert calls == [1]


def test_gradients_are_those_of_finite_differences():
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    x, dropped, a, b = (random(*shape).requires_grad_(True) for shape in ((T, I), (T, I), (3, I), (O, 3)))
    weight, bias = random(O, I), random(O)
    assert torch.autograd.gradcheck(FusedUpdate.apply, (x, None, weight, bias, a, b, 0.7))
    assert torch.autograd.gradcheck(FusedUpdate.apply, (x, dropped, weight, bias, a, b, 0.7))


@pytest.mark.parametrize("case", ["disabled", "merged", "dora", "trained base", "lora bias", "autocast"])
def test_it_steps_aside(case, calls):
    options = {"dora": {"use_dora": True}, "lora bias": {"lora_bias": True}}.get(case, {})
    fused, plain = _pair(**options)
    x_BTI = torch.randn(B, T, I)
    outputs = []
    for model in (fused, plain):
        if case == "merged":
            model.merge_adapter()
        if case == "trained base":
            model.base_model.model.site.get_base_layer().weight.requires_grad_(True)
        with torch.autocast("cpu", torch.bfloat16, enabled=case == "autocast"):
            if case == "disabled":
                with model.disable_adapter():
                    outputs.append(model(x_BTI))
            else:
                outputs.append(model(x_BTI))
    torch.testing.assert_close(*outputs)
    assert not calls


def test_a_second_adapter_is_added(calls):
    fused, plain = _pair()
    x_BTI = torch.randn(B, T, I)
    for model in (fused, plain):
        torch.manual_seed(3)
        model.add_adapter("other", peft.LoraConfig(r=2, target_modules=["site"], init_lora_weights=False))
        model.base_model.set_adapter(["default", "other"])
    torch.testing.assert_close(fused(x_BTI), plain(x_BTI))
    assert not calls


def test_what_is_saved_is_peft_s(tmp_path):
    fused, plain = _pair()
    for name, model in (("fused", fused), ("plain", plain)):
        model.save_pretrained(tmp_path / name)
    files = {path.name for path in (tmp_path / "plain").iterdir()}
    assert {path.name for path in (tmp_path / "fused").iterdir()} == files
    assert (tmp_path / "fused/adapter_config.json").read_text() == (tmp_path / "plain/adapter_config.json").read_text()
    loaded = peft.PeftModel.from_pretrained(_Network(), str(tmp_path / "fused"))
    loaded.base_model.model.site.get_base_layer().load_state_dict(
        plain.base_model.model.site.get_base_layer().state_dict()
    )
    x_BTI = torch.randn(B, T, I)
    torch.testing.assert_close(loaded(x_BTI), plain(x_BTI))
