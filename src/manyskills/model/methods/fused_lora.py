"""LoRA's linear layer with the update written into the base layer's output: the same numbers, less memory traffic.

Shape legend: N tokens, I input size, O output size, R rank.

peft computes W x + b, the update, its multiple and their sum in memory of their own, and the backward pass goes through
each of them again. On a CPU, where a layer of a small encoder is bound by memory as much as by arithmetic, that costs
a tenth of a step. Here the products add up in place, and the backward pass is written out.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora import LoraConfig
from peft.tuners.lora.layer import Linear
from torch import nn
from torch.autograd.function import once_differentiable

from manyskills.model.precision import autocasts


class FusedUpdate(torch.autograd.Function):
    """y = x W^T + b + s (z A^T) B^T with frozen W and b; z is x, or what dropout leaves of it."""

    @staticmethod
    def forward(
        ctx: Any,
        x_NI: torch.Tensor,
        dropped_NI: torch.Tensor | None,
        weight_OI: torch.Tensor,
        bias_O: torch.Tensor | None,
        a_RI: torch.Tensor,
        b_OR: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        input_NI = x_NI if dropped_NI is None else dropped_NI
        inner_NR = input_NI @ a_RI.t()
        y_NO = x_NI @ weight_OI.t() if bias_O is None else torch.addmm(bias_O, x_NI, weight_OI.t())
        y_NO.addmm_(inner_NR, b_OR.t(), alpha=scale)
        ctx.save_for_backward(input_NI, inner_NR, weight_OI, a_RI, b_OR)
        ctx.scale, ctx.dropout = scale, dropped_NI is not None
        return y_NO

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_NO: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        input_NI, inner_NR, weight_OI, a_RI, b_OR = ctx.saved_tensors
        x_wanted, dropped_wanted, _, _, a_wanted, b_wanted, _ = ctx.needs_input_grad
        grad_inner_NR = (grad_NO @ b_OR).mul_(ctx.scale)
        grad_x_NI = grad_NO @ weight_OI if x_wanted else None
        grad_dropped_NI = None
        if ctx.dropout:
            grad_dropped_NI = grad_inner_NR @ a_RI if dropped_wanted else None
        elif grad_x_NI is not None:
            grad_x_NI.addmm_(grad_inner_NR, a_RI)
        grad_a_RI = grad_inner_NR.t() @ input_NI if a_wanted else None
        grad_b_OR = (grad_NO.t() @ inner_NR).mul_(ctx.scale) if b_wanted else None
        return grad_x_NI, grad_dropped_NI, None, None, grad_a_RI, grad_b_OR, None


class FusedLoraLinear(Linear):
    """peft's layer, with its sum fused where it is that of one plain adapter on a frozen layer of one number format."""

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """As peft's."""
        name = self.active_adapters[0] if len(self.active_adapters) == 1 else None
        if args or kwargs or name is None or not self._can_fuse(x, name):
            return super().forward(x, *args, **kwargs)
        dropout = self.lora_dropout[name]
        drops = dropout.training and isinstance(dropout, nn.Dropout) and dropout.p > 0
        flat_NI = x.flatten(0, -2)
        base = self.get_base_layer()
        y_NO = FusedUpdate.apply(
            flat_NI,
            dropout(flat_NI) if drops else None,
            base.weight,
            base.bias,
            self.lora_A[name].weight,
            self.lora_B[name].weight,
            self.scaling[name],
        )
        return y_NO.unflatten(0, x.shape[:-1])  # pyright: ignore[reportOptionalMemberAccess]

    def _can_fuse(self, x: torch.Tensor, name: str) -> bool:
        """Whether the layer's value is W x + b + s B A x in one number format, with W and b frozen."""
        base = self.get_base_layer()
        if type(base) is not nn.Linear or base.weight.requires_grad or self.disable_adapters or self.merged:
            return False
        if name not in self.lora_A or name in self.lora_variant or self.lora_bias.get(name):
            return False
        if torch.compiler.is_compiling() or autocasts(x.device.type):
            return False
        return x.dtype == base.weight.dtype == self.lora_A[name].weight.dtype


def use_fused_layers(config: LoraConfig) -> None:
    """Let peft put `FusedLoraLinear` where it would put its own layer; what is saved does not differ."""
    config._register_custom_module({nn.Linear: FusedLoraLinear})
