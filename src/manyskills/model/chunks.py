"""The token sequences of one chunk as the network reads them: padded to the longest, or one behind another.

Shape legend: B sequences, T tokens of the longest, N tokens of all, H hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from manyskills.data.text_set import join_chunk, pad_chunk
from manyskills.data.tokens import TokenStore
from manyskills.model.pooling import Pooling, pool, pool_unpadded
from manyskills.model.unpadded import NO_MASK_SHAPE, Bounds


class Chunk(Protocol):
    """Sequences in a layout; states of a network have the same first two axes as `ids`."""

    @property
    def ids(self) -> torch.Tensor:
        """Token ids, two axes."""
        ...

    def inputs(self) -> dict[str, Any]:
        """What the network is called with."""
        ...

    def pool(self, states: torch.Tensor, how: Pooling) -> torch.Tensor:
        """vectors_BH of the sequences from the last states."""
        ...

    def rows(self, states: torch.Tensor) -> torch.Tensor:
        """The states of tokens, sequence after sequence, shape (N, H)."""
        ...

    def states(self, rows_NH: torch.Tensor) -> torch.Tensor:
        """The states that have these rows; the inverse of `rows`."""
        ...


@dataclass(frozen=True, slots=True)
class PaddedChunk:
    """Right-padded sequences.

    Attributes:
        ids: Shape (B, T).
        mask_BT: 1 for tokens; None: no padding. A ready-made mask of four axes is passed on, but cannot be pooled by.
    """

    ids: torch.Tensor
    mask_BT: torch.Tensor | None

    def inputs(self) -> dict[str, Any]:
        """Ids and mask."""
        return {"input_ids": self.ids, "attention_mask": self.mask_BT}

    def pool(self, states: torch.Tensor, how: Pooling) -> torch.Tensor:
        """By the mask."""
        return pool(states, self._mask(), how)

    def rows(self, states: torch.Tensor) -> torch.Tensor:
        """Those that the mask marks."""
        return states[self._mask().bool()]

    def states(self, rows_NH: torch.Tensor) -> torch.Tensor:
        """Zero in the padding."""
        states_BTH = rows_NH.new_zeros(*self.ids.shape, rows_NH.shape[1])
        states_BTH[self._mask().bool()] = rows_NH
        return states_BTH

    def _mask(self) -> torch.Tensor:
        return torch.ones_like(self.ids) if self.mask_BT is None else self.mask_BT


@dataclass(frozen=True, slots=True)
class UnpaddedChunk:
    """Sequences one behind another.

    Attributes:
        ids: Shape (1, N).
        bounds: Where each one is.
        first_position: What the network numbers a sequence's first token with.
    """

    ids: torch.Tensor
    bounds: Bounds
    first_position: int = 0

    def inputs(self) -> dict[str, Any]:
        """Ids, positions that start anew in each sequence, and the bounds."""
        return {
            "input_ids": self.ids,
            "position_ids": self.bounds.positions + self.first_position,
            "attention_mask": torch.empty(NO_MASK_SHAPE, device=self.ids.device),
            "bounds": self.bounds,
        }

    def pool(self, states: torch.Tensor, how: Pooling) -> torch.Tensor:
        """By the bounds."""
        return pool_unpadded(states[0], self.bounds.lengths_S, how)

    def rows(self, states: torch.Tensor) -> torch.Tensor:
        """All."""
        return states[0]

    def states(self, rows_NH: torch.Tensor) -> torch.Tensor:
        """All."""
        return rows_NH[None]


def padded_chunk(store: TokenStore, indices_B: np.ndarray, pad_id: int, device: torch.device) -> PaddedChunk:
    """These sequences of a store, padded."""
    ids_BT, mask_BT = pad_chunk(store, indices_B, pad_id)
    return PaddedChunk(torch.from_numpy(ids_BT).to(device), torch.from_numpy(mask_BT).to(device))


def unpadded_chunk(
    store: TokenStore, indices_B: np.ndarray, first_position: int, device: torch.device
) -> UnpaddedChunk:
    """These sequences of a store, one behind another."""
    ids_1N = torch.from_numpy(join_chunk(store, indices_B))[None].to(device)
    return UnpaddedChunk(ids_1N, Bounds(store.lengths_S[indices_B], device), first_position)
