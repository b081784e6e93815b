"""Texts to vectors without gradients: the one path of validation, evaluation, prediction and frozen training.

Shape legend: N texts, D size of a vector, B sequences of a chunk, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from manyskills.data.text_set import pad_chunk, plan_chunks
from manyskills.data.tokens import TokenStore
from manyskills.model.multitask import MultiTaskModel

Report = Callable[[int], None]
"""Is told how many more tokens are done."""


def chunk_tensors(
    store: TokenStore, indices_B: np.ndarray, pad_id: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """ids_BT and mask_BT of these sequences on the device."""
    ids_BT, mask_BT = pad_chunk(store, indices_B, pad_id)
    return torch.from_numpy(ids_BT).to(device), torch.from_numpy(mask_BT).to(device)


@torch.no_grad()
def encode_texts(
    model: MultiTaskModel,
    store: TokenStore,
    indices_N: np.ndarray,
    token_budget: int,
    *,
    share: tuple[int, int] = (0, 1),
    report: Report | None = None,
) -> torch.Tensor:
    """Vectors of these sequences, each encoded once.

    Args:
        model: Put into evaluation mode.
        store: Holds the sequences.
        indices_N: Which ones; repeats are encoded again, so pass unique ones.
        token_budget: Padded tokens in one chunk.
        share: (rank, processes): only every so-manieth chunk is encoded, the other rows stay zero.
        report: Called after each chunk.

    Returns:
        vectors_ND, float32, on the CPU so that the number of texts is not bounded by the device.
    """
    model.eval()
    vectors_ND = torch.zeros(len(indices_N), model.architecture.hidden_size)
    lengths_N = store.lengths_N[indices_N]
    rank, processes = share
    for chunk in plan_chunks(lengths_N, token_budget)[rank::processes]:
        ids_BT, mask_BT = chunk_tensors(store, indices_N[chunk], model.architecture.pad_id, model.device)
        vectors_ND[torch.from_numpy(chunk)] = model.encode(ids_BT, mask_BT).cpu()
        if report is not None:
            report(int(lengths_N[chunk].sum()))
    return vectors_ND
