from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from manyskills.model.cross_entropy import linear_cross_entropy

# Shape legend: R rows, H hidden size, V vocabulary
ROWS, HIDDEN, VOCABULARY = 13, 8, 37


def _case(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows, weight and bias that take gradients, and targets that hold the first and the last token."""
    torch.manual_seed(0)
    rows_RH = torch.randn(ROWS, HIDDEN, dtype=dtype) * 2
    weight_VH, bias_V = torch.randn(VOCABULARY, HIDDEN, dtype=dtype), torch.randn(VOCABULARY, dtype=dtype)
    targets_R = torch.randint(VOCABULARY, (ROWS,))
    targets_R[:3] = torch.tensor([0, VOCABULARY - 1, 0])
    return rows_RH.requires_grad_(), weight_VH.requires_grad_(), bias_V.requires_grad_(), targets_R


def _plain(rows_RH: Any, weight_VH: Any, targets_R: Any, bias_V: Any, scale: float, softcap: float | None) -> Any:
    """The losses as a network with an output layer and PyTorch compute them."""
    logits_RV = F.linear(rows_RH * scale, weight_VH, bias_V)
    if softcap is not None:
        logits_RV = softcap * torch.tanh(logits_RV / softcap)
    return F.cross_entropy(logits_RV.float(), targets_R, reduction="none")


def _gradients(loss: torch.Tensor, *leaves: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return torch.autograd.grad(loss, leaves)


@pytest.mark.parametrize("block_rows", [1, 5, None])
@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize(("scale", "biased"), [(1.0, True), (0.25, False), (0.25, True)])
def test_loss_and_gradients_are_those_of_plain_cross_entropy(scale, biased, softcap, block_rows):
    rows_RH, weight_VH, bias_V, targets_R = _case()
    bias = bias_V if biased else None
    leaves = (rows_RH, weight_VH, *([bias_V] if biased else []))
    expected_R = _plain(rows_RH, weight_VH, targets_R, bias, scale, softcap)
    total, losses_R = linear_cross_entropy(
        rows_RH, weight_VH, targets_R, bias_V=bias, scale=scale, softcap=softcap, block_rows=block_rows
    )
    assert total.shape == () and not losses_R.requires_grad
    torch.testing.assert_close(losses_R, expected_R.detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(total.detach(), expected_R.sum().detach(), rtol=1e-5, atol=1e-6)
    for mine, theirs in zip(_gradients(total * 0.3, *leaves), _gradients(expected_R.sum() * 0.3, *leaves), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("softcap", [None, 2.0])
def test_gradients_are_those_of_finite_differences(softcap):
    rows_RH, weight_VH, bias_V, targets_R = _case(torch.float64)

    def loss(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        total, _ = linear_cross_entropy(rows, weight, targets_R, bias_V=bias, scale=0.7, softcap=softcap, block_rows=4)
        return total

    assert torch.autograd.gradcheck(loss, (rows_RH, weight_VH, bias_V), eps=1e-6, atol=1e-6)


def test_autocast_computes_products_in_half_precision_and_the_rest_in_float32():
    rows_RH, weight_VH, _, targets_R = _case()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = _plain(rows_RH, weight_VH, targets_R, None, 1.0, None).sum()
        total, losses_R = linear_cross_entropy(rows_RH, weight_VH, targets_R, block_rows=5)
    assert total.dtype == losses_R.dtype == torch.float32
    torch.testing.assert_close(total, expected, rtol=1e-6, atol=1e-5)
    for mine, theirs in zip(
        _gradients(total, rows_RH, weight_VH), _gradients(expected, rows_RH, weight_VH), strict=True
    ):
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine, theirs, rtol=0.02, atol=0.02 * float(theirs.abs().max()))


def test_half_precision_weights_take_gradients_in_their_format():
    rows_RH, weight_VH, _, targets_R = (x.detach().bfloat16() if x.is_floating_point() else x for x in _case())
    rows_RH.requires_grad_()
    weight_VH.requires_grad_()
    total, _ = linear_cross_entropy(rows_RH, weight_VH, targets_R, block_rows=5)
    exact, _ = linear_cross_entropy(rows_RH.double(), weight_VH.double(), targets_R)
    assert total.dtype == torch.float32
    torch.testing.assert_close(total.double(), exact, rtol=0.01, atol=0)
    for mine, theirs in zip(_gradients(total, rows_RH, weight_VH), _gradients(exact, rows_RH, weight_VH), strict=True):
        assert mine.dtype == torch.bfloat16
        torch.testing.assert_close(mine, theirs, rtol=0.05, atol=0.02 * float(theirs.abs().max()))


def test_a_frozen_output_layer_gets_no_gradient():
    rows_RH, weight_VH, _, targets_R = _case()
    weight_VH.requires_grad_(False)
    total, _ = linear_cross_entropy(rows_RH, weight_VH, targets_R)
    total.backward()
    assert rows_RH.grad is not None and weight_VH.grad is None


def test_frozen_rows_need_no_gradient():
    rows_RH, weight_VH, _, targets_R = _case()
    total, _ = linear_cross_entropy(rows_RH.detach(), weight_VH, targets_R)
    total.backward()
    assert weight_VH.grad is not None


def test_without_gradients_there_are_only_losses():
    rows_RH, weight_VH, _, targets_R = _case()
    expected = linear_cross_entropy(rows_RH, weight_VH, targets_R)
    with torch.no_grad():
        total, losses_R = linear_cross_entropy(rows_RH, weight_VH, targets_R)
    assert not total.requires_grad
    torch.testing.assert_close(total, expected[0].detach())
    torch.testing.assert_close(losses_R, expected[1])


def test_no_rows_lose_nothing_and_keep_the_graph():
    rows_RH, weight_VH, _, _ = _case()
    empty_RH = rows_RH[:0]
    total, losses_R = linear_cross_entropy(empty_RH, weight_VH, torch.empty(0, dtype=torch.int64))
    assert total.item() == 0.0 and losses_R.shape == (0,) and total.requires_grad
    of_rows, of_weight = _gradients(total, rows_RH, weight_VH)
    assert not of_rows.any() and not of_weight.any()


def test_huge_logits_stay_finite():
    rows_RH, weight_VH, _, targets_R = _case()
    total, losses_R = linear_cross_entropy(rows_RH * 1e4, weight_VH, targets_R)
    assert losses_R.isfinite().all()
    assert _gradients(total, rows_RH)[0].isfinite().all()


def test_every_backward_pass_gives_the_same():
    rows_RH, weight_VH, _, targets_R = _case()
    total, _ = linear_cross_entropy(rows_RH, weight_VH, targets_R)
    first = torch.autograd.grad(total * 0.5, rows_RH, retain_graph=True)[0]
    second = torch.autograd.grad(total * 0.5, rows_RH)[0]
    assert torch.equal(first, second)


def test_what_the_sum_is_multiplied_by_is_not_rounded():
    """Each gradient of a task would be off by the same part: bfloat16 makes 1/1358.4 of 1/1361."""
    _assert_factor_is_exact(torch.device("cpu"))


def _assert_factor_is_exact(device: torch.device) -> None:
    torch.manual_seed(0)
    rows_RH = torch.randn(400, HIDDEN, device=device).bfloat16().requires_grad_()
    weight_VH = torch.randn(VOCABULARY, HIDDEN, device=device).bfloat16().requires_grad_()
    targets_R = torch.randint(VOCABULARY, (400,), device=device)
    total, _ = linear_cross_entropy(rows_RH, weight_VH, targets_R)
    of_sum = _gradients(total, rows_RH, weight_VH)
    total, _ = linear_cross_entropy(rows_RH, weight_VH, targets_R)
    of_mean = _gradients(total / 1361, rows_RH, weight_VH)
    for mine, whole in zip(of_mean, of_sum, strict=True):
        assert mine.dtype == torch.bfloat16
        kept = whole.double().flatten()
        factor = torch.dot(mine.double().flatten(), kept) / torch.dot(kept, kept)
        assert float(factor) == pytest.approx(1 / 1361, rel=5e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_half_precision_on_a_gpu_gives_what_float64_gives_on_the_cpu():
    rows_RH, weight_VH, bias_V, targets_R = (x.detach().bfloat16() if x.is_floating_point() else x for x in _case())
    leaves = [x.cuda().requires_grad_() for x in (rows_RH, weight_VH, bias_V)]
    exact = [x.double().requires_grad_() for x in (rows_RH, weight_VH, bias_V)]
    for softcap in (None, 3.0):
        found, losses_R = linear_cross_entropy(
            leaves[0], leaves[1], targets_R.cuda(), bias_V=leaves[2], softcap=softcap, block_rows=5
        )
        expected, _ = linear_cross_entropy(exact[0], exact[1], targets_R, bias_V=exact[2], softcap=softcap)
        assert found.dtype == losses_R.dtype == torch.float32
        torch.testing.assert_close(found.double().cpu(), expected, rtol=0.01, atol=0)
        for mine, theirs in zip(_gradients(found, *leaves), _gradients(expected, *exact), strict=True):
            assert mine.dtype == torch.bfloat16
            bound = 0.02 * float(theirs.abs().max())
            torch.testing.assert_close(mine.double().cpu(), theirs, rtol=0.05, atol=bound)
    _assert_factor_is_exact(torch.device("cuda"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_what_the_cpu_gives():
    rows_RH, weight_VH, bias_V, targets_R = _case()
    expected, _ = linear_cross_entropy(rows_RH, weight_VH, targets_R, bias_V=bias_V)
    found, _ = linear_cross_entropy(rows_RH.cuda(), weight_VH.cuda(), targets_R.cuda(), bias_V=bias_V.cuda())
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-4, atol=1e-4)
    for mine, theirs in zip(
        _gradients(found, rows_RH, weight_VH), _gradients(expected, rows_RH, weight_VH), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-3)
