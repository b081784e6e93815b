from __future__ import annotations

import pytest
import torch

from manyskills.model.pooling import pool

LENGTHS = (5, 1, 3)


@pytest.fixture
def states():
    states_BTH = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
    mask_BT = torch.tensor([[int(t < length) for t in range(5)] for length in LENGTHS])
    states_BTH[mask_BT == 0] = float("inf")  # whatever padding holds must not matter
    return states_BTH, mask_BT


@pytest.mark.parametrize(
    ("how", "naive"),
    [
        ("cls", lambda tokens: tokens[0]),
        ("last", lambda tokens: tokens[-1]),
    ],
)
def test_one_token(states, how, naive):
    states_BTH, mask_BT = states
    expected = torch.stack([naive(states_BTH[b, :length]) for b, length in enumerate(LENGTHS)])
    torch.testing.assert_close(pool(states_BTH, mask_BT, how), expected)


def test_mean_over_the_tokens(states):
    states_BTH, mask_BT = states
    expected = torch.stack([states_BTH[b, :length].mean(0) for b, length in enumerate(LENGTHS)])
    states_BTH = torch.where(mask_BT[..., None] == 1, states_BTH, 1e6)
    torch.testing.assert_close(pool(states_BTH, mask_BT, "mean"), expected)


@pytest.mark.parametrize("how", ["cls", "last", "mean"])
def test_half_precision_becomes_float32(states, how):
    states_BTH, mask_BT = states
    assert pool(states_BTH.bfloat16(), mask_BT, how).dtype == torch.float32


def test_mean_is_summed_in_float32():
    states_BTH = torch.full((1, 3000, 1), 1.0, dtype=torch.bfloat16)
    assert pool(states_BTH, torch.ones(1, 3000, dtype=torch.long), "mean").item() == 1.0
