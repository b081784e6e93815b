"""Cross-entropy over a large vocabulary: the logits of all tokens are never there at once.

Shape legend: R rows (tokens to predict), H hidden size, V vocabulary, C rows of a block.

At a vocabulary of 151,936 the float32 logits of 4,096 tokens take 2.3 GiB, and plain automatic differentiation holds
several such tensors at once. Here a block of rows is taken through logits, losses and gradients before the next one
begins. The gradients of the sum of losses are known by then, so the backward pass only multiplies them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from manyskills.model.precision import autocasts

BLOCK_BYTES = {"cpu": 128 * 2**20, "cuda": 256 * 2**20}
"""Of the float32 logits of a block, by device type: on a CPU products with a quarter of it were slower, and with twice
as much hardly faster."""


def linear_cross_entropy(
    rows_RH: torch.Tensor,
    weight_VH: torch.Tensor,
    targets_R: torch.Tensor,
    *,
    bias_V: torch.Tensor | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
    block_rows: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum over rows of -log softmax(cap(scale * row @ weight.T + bias))[target], cap(x) = softcap * tanh(x / softcap).

    Products are computed in the number format of autocast, else in the weight's; everything after them in float32 at
    least. A weight's gradient is summed over blocks in the weight's own format, or in float32 if that is lower.

    Args:
        rows_RH: States; R may be 0.
        weight_VH: Of the output layer.
        targets_R: The right tokens, int64.
        bias_V: Of the output layer.
        scale: Of the rows.
        softcap: Bound of the logits (Gemma Team 2024, arXiv 2408.00118, section 2); None: there is none.
        block_rows: Rows whose logits are there at once; default: as many as `BLOCK_BYTES` hold.

    Returns:
        The sum, a scalar of float32 (of float64 where the products are), differentiable once by rows, weight and bias;
        and each row's loss, shape (R,), without graph.
    """
    product = torch.get_autocast_dtype(rows_RH.device.type) if autocasts(rows_RH.device.type) else weight_VH.dtype
    rule = _Rule(product, scale, softcap, block_rows or _block_rows(rows_RH, len(weight_VH)))
    if not torch.is_grad_enabled():
        losses_R, *_ = _walk(rows_RH, weight_VH, bias_V, targets_R, rule, (False, False, False))
        return losses_R.sum(), losses_R
    return _LinearCrossEntropy.apply(rows_RH, weight_VH, bias_V, targets_R, rule)  # pyright: ignore


def _block_rows(rows_RH: torch.Tensor, vocabulary: int) -> int:
    """Of blocks of like size: a small rest would cost a pass over the weight of its own."""
    held = BLOCK_BYTES.get(rows_RH.device.type, BLOCK_BYTES["cpu"])
    rows, most = max(len(rows_RH), 1), max(held // (4 * vocabulary), 1)
    return -(-rows // -(-rows // most))


@dataclass(frozen=True, slots=True)
class _Rule:
    """How logits are computed."""

    product: torch.dtype
    scale: float
    softcap: float | None
    block_rows: int

    @property
    def precise(self) -> torch.dtype:
        """The number format of everything but products."""
        return torch.promote_types(self.product, torch.float32)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        rows_RH: torch.Tensor,
        weight_VH: torch.Tensor,
        bias_V: torch.Tensor | None,
        targets_R: torch.Tensor,
        rule: _Rule,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        losses_R, *gradients = _walk(rows_RH, weight_VH, bias_V, targets_R, rule, ctx.needs_input_grad[:3])
        ctx.save_for_backward(*gradients)
        ctx.mark_non_differentiable(losses_R)
        return losses_R.sum(), losses_R

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] - of the decorated one the names are lost
        ctx: Any, of_sum: torch.Tensor, _: torch.Tensor
    ) -> tuple[torch.Tensor | None, ...]:
        # of one dimension, so that a product with half precision is in float32: the factor itself must not be rounded
        of_sum_1 = of_sum[None]
        return *(None if x is None else (x * of_sum_1).to(x.dtype) for x in ctx.saved_tensors), None, None


def _walk(
    rows_RH: torch.Tensor,
    weight_VH: torch.Tensor,
    bias_V: torch.Tensor | None,
    targets_R: torch.Tensor,
    rule: _Rule,
    wanted: tuple[bool, bool, bool],
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
    """losses_R and the wanted gradients of their sum (by rows, weight, bias), block after block."""
    of_rows_RH = torch.empty_like(rows_RH) if wanted[0] else None
    of_weight_VH = _zeros_like(weight_VH) if wanted[1] else None
    of_bias_V = _zeros_like(bias_V) if bias_V is not None and wanted[2] else None
    losses_R = torch.empty(len(rows_RH), dtype=rule.precise, device=rows_RH.device)
    scaled_RH, weight_VH = _scaled(rows_RH.to(rule.product), rule.scale), weight_VH.to(rule.product)
    with torch.autocast(rows_RH.device.type, enabled=False):
        for start in range(0, len(rows_RH), rule.block_rows):
            block = slice(start, start + rule.block_rows)
            logits_CV = torch.mm(scaled_RH[block], weight_VH.T).to(rule.precise)
            if bias_V is not None:
                logits_CV += bias_V
            losses_R[block] = _losses(logits_CV, targets_R[block], rule.softcap, gradient=any(wanted))
            if not any(wanted):
                continue
            if of_bias_V is not None:
                of_bias_V += logits_CV.sum(0)
            of_logits_CV = logits_CV.to(rule.product)
            if of_rows_RH is not None:
                of_rows_RH[block] = _scaled(of_logits_CV @ weight_VH, rule.scale)
            if of_weight_VH is not None:
                _add_product(of_weight_VH, of_logits_CV.T, scaled_RH[block])
    return losses_R, of_rows_RH, of_weight_VH, of_bias_V


def _losses(logits_CV: torch.Tensor, targets_C: torch.Tensor, softcap: float | None, *, gradient: bool) -> torch.Tensor:
    """losses_C; the logits are written over, with the gradient of the sum of losses by them if it is wanted."""
    slope_CV = None
    if softcap is not None:
        logits_CV.div_(softcap).tanh_()
        slope_CV = 1 - logits_CV.square() if gradient else None
        logits_CV *= softcap
    logits_CV -= logits_CV.amax(1, keepdim=True)
    of_targets_C1 = logits_CV.gather(1, targets_C[:, None])
    sums_C1 = logits_CV.exp_().sum(1, keepdim=True)
    if gradient:
        logits_CV /= sums_C1
        logits_CV.scatter_add_(1, targets_C[:, None], torch.full_like(of_targets_C1, -1.0))
        if slope_CV is not None:
            logits_CV *= slope_CV
    return (sums_C1.log() - of_targets_C1)[:, 0]


def _zeros_like(parameter: torch.Tensor) -> torch.Tensor:
    """To sum many blocks in: not in half precision."""
    return torch.zeros_like(parameter, dtype=torch.promote_types(parameter.dtype, torch.float32))


def _scaled(x: torch.Tensor, scale: float) -> torch.Tensor:
    return x if scale == 1.0 else x * scale


def _add_product(sum_VH: torch.Tensor, left_VC: torch.Tensor, right_CH: torch.Tensor) -> None:
    if sum_VH.dtype == left_VC.dtype:
        sum_VH.addmm_(left_VC, right_CH)
    else:
        sum_VH += left_VC @ right_CH
