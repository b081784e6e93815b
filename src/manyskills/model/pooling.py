"""Token states to one vector a sequence.

Shape legend: B sequences, T tokens, H hidden size.
"""

from __future__ import annotations

from typing import Literal

import torch


def pool(states_BTH: torch.Tensor, mask_BT: torch.Tensor, how: Literal["cls", "mean", "last"]) -> torch.Tensor:
    """One vector a sequence, from right-padded states.

    Args:
        states_BTH: Last hidden states.
        mask_BT: 1 for tokens, 0 for padding; every sequence has at least one token.
        how: cls: the first token; mean: over the tokens; last: the last token.

    Returns:
        vectors_BH in float32: sums over hundreds of tokens lose digits in half precision.
    """
    if how == "cls":
        return states_BTH[:, 0].float()
    if how == "last":
        last_B = mask_BT.sum(1) - 1
        return states_BTH[torch.arange(len(last_B), device=last_B.device), last_B].float()
    weights_BT1 = mask_BT.unsqueeze(-1).float()
    return (states_BTH.float() * weights_BT1).sum(1) / weights_BT1.sum(1)
