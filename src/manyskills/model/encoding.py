"""Texts to vectors without gradients: the one path of validation, evaluation, prediction and frozen training.

Shape legend: N texts, S sequences they are read as, D size of a vector, B sequences of a chunk, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

import numpy as np
import torch

from manyskills.data.tokens import TokenStore
from manyskills.model.multitask import MultiTaskModel
from manyskills.model.pieces import pool_pieces

Report = Callable[[int], None]
"""Is told how many more tokens are done."""


class ChunkEncoder(Protocol):
    """Encodes some sequences of a store at once: the seam between a set of texts and the network."""

    def __call__(self, indices_B: np.ndarray) -> torch.Tensor:
        """vectors_BD, float32, on the model's device, with a graph if gradients are on."""
        ...

    def plan(self, lengths_S: np.ndarray, token_budget: int) -> list[np.ndarray]:
        """Positions of the sequences of each chunk, each chunk within the budget, shorter sequences first."""
        ...

    def routed(self, indices_B: np.ndarray) -> AbstractContextManager[None]:
        """Within it, the network is set for the tasks that read these sequences: for back-propagating them.

        A layer that gradient checkpointing computes again would else read them for another chunk's tasks.
        """
        ...


class WholeBackbone:
    """Every layer for every sequence.

    Args:
        model: Gives the vectors.
        store: Holds the sequences.
    """

    def __init__(self, model: MultiTaskModel, store: TokenStore) -> None:
        self.model, self.store = model, store

    def __call__(self, indices_B: np.ndarray) -> torch.Tensor:
        """Lay out and encode."""
        with self.routed(indices_B):
            return self.model.vectors(self.model.chunk(self.store, indices_B))

    def plan(self, lengths_S: np.ndarray, token_budget: int) -> list[np.ndarray]:
        """As the model's layout wants it."""
        return self.model.plan(lengths_S, token_budget)

    def routed(self, indices_B: np.ndarray) -> AbstractContextManager[None]:
        """The network set for the tasks of these sequences."""
        return self.model.routed_for(self.store, indices_B)


@torch.no_grad()
def encode_texts(
    model: MultiTaskModel,
    store: TokenStore,
    indices_N: np.ndarray,
    token_budget: int,
    *,
    share: tuple[int, int] = (0, 1),
    report: Report | None = None,
    encoder: ChunkEncoder | None = None,
) -> torch.Tensor:
    """Vectors of these texts, each encoded once; of a text in windows, the mean of its windows' vectors.

    Args:
        model: Put into evaluation mode.
        store: Holds the token sequences.
        indices_N: Which ones; repeats are encoded again, so pass unique ones.
        token_budget: Tokens in one chunk, padding included.
        share: (rank, processes): only every so-manieth chunk is encoded, the other rows stay zero.
        report: Called after each chunk.
        encoder: How a chunk is encoded; default: by the whole backbone.

    Returns:
        vectors_ND, float32, on the CPU so that the number of texts is not bounded by the device.
    """
    model.eval()
    encoder = encoder or WholeBackbone(model, store)
    pieces = store.pieces(indices_N)
    vectors_SD = torch.zeros(len(pieces.sequences_S), model.architecture.hidden_size)
    lengths_S = store.lengths_S[pieces.sequences_S]
    rank, processes = share
    for chunk in encoder.plan(lengths_S, token_budget)[rank::processes]:
        vectors_SD[torch.from_numpy(chunk)] = encoder(pieces.sequences_S[chunk]).cpu()
        if report is not None:
            report(int(lengths_S[chunk].sum()))
    return pool_pieces(vectors_SD, pieces)
