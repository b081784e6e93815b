"""Token states to one vector a sequence.

Shape legend: B sequences, T tokens, N tokens of all sequences, H hidden size.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch

Pooling = Literal["cls", "mean", "last"]


def pool(states_BTH: torch.Tensor, mask_BT: torch.Tensor, how: Pooling) -> torch.Tensor:
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


def pool_unpadded(states_NH: torch.Tensor, lengths_B: np.ndarray, how: Pooling) -> torch.Tensor:
    """One vector a sequence, from the states of sequences one behind another.

    Args:
        states_NH: Last hidden states.
        lengths_B: Tokens of each sequence, at least one.
        how: As for `pool`.

    Returns:
        vectors_BH in float32.
    """
    if how == "mean":
        counts_B = torch.from_numpy(lengths_B).to(states_NH.device)
        return torch.segment_reduce(states_NH.float(), "mean", lengths=counts_B, axis=0)
    ends_B = np.cumsum(lengths_B)
    at_B = ends_B - lengths_B if how == "cls" else ends_B - 1
    return states_NH[torch.from_numpy(at_B).to(states_NH.device)].float()
