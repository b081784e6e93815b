"""Keys and values of the tokens that were read, kept with room behind them.

Shape legend: B sequences, H key heads, T tokens, D head size.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, EncoderDecoderCache

ROOM = 64
"""Tokens that fit behind those that are there before everything is copied to a larger place."""


class RoomyLayer(DynamicLayer):
    """A layer's keys and values as the first part of a larger tensor, so that one more token is written in place.

    transformers' own layer copies all of them for each token.
    """

    def __init__(self) -> None:
        super().__init__()
        self.places: tuple[torch.Tensor, torch.Tensor] | None = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add tokens; returns keys and values of all, shape (B, H, T, D)."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = key_states[:, :, :0], value_states[:, :, :0]
        assert self.keys is not None
        start = self.keys.shape[2]
        end = start + key_states.shape[2]
        if self.places is None or end > self.places[0].shape[2]:
            self._move(end + ROOM, None)
        assert self.places is not None
        keys, values = self.places
        keys[:, :, start:end] = key_states
        values[:, :, start:end] = value_states
        self.keys, self.values = keys[:, :, :end], values[:, :, :end]
        return self.keys, self.values

    def get_seq_length(self) -> int:
        """How many tokens there are."""
        return 0 if self.keys is None else self.keys.shape[2]

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Each sequence so many times, side by side."""
        assert self.keys is not None
        rows = torch.arange(len(self.keys), device=self.keys.device)
        self.batch_select_indices(rows.repeat_interleave(repeats))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """These sequences only."""
        self._move(self.get_seq_length() + ROOM, indices)

    def _move(self, room: int, rows: torch.Tensor | None) -> None:
        assert self.keys is not None
        assert self.values is not None
        keys, values = (_with_room(old, room, rows) for old in (self.keys, self.values))
        length = self.get_seq_length()
        self.places = keys, values
        self.keys, self.values = keys[:, :, :length], values[:, :, :length]


def _with_room(old_BHTD: torch.Tensor, room: int, rows: torch.Tensor | None) -> torch.Tensor:
    """A copy of all rows or of these, with room for so many tokens."""
    count, heads, length, size = old_BHTD.shape
    new = old_BHTD.new_empty(count if rows is None else len(rows), heads, room, size)
    new[:, :, :length] = old_BHTD if rows is None else old_BHTD.index_select(0, rows)
    return new


def decoder_cache() -> Cache:
    """An empty cache of a decoder. Sliding windows are a matter of masks: everything is kept."""
    return Cache(layer_class_to_replicate=RoomyLayer)


def encoder_decoder_cache() -> EncoderDecoderCache:
    """An empty cache of an encoder-decoder; what the decoder sees of the source is computed once."""
    return EncoderDecoderCache(decoder_cache(), DynamicCache())


def select_rows(cache: Cache | EncoderDecoderCache, rows: torch.Tensor) -> None:
    """Keep these sequences, in this order; a sequence may come several times."""
    if isinstance(cache, EncoderDecoderCache):
        cache.self_attention_cache.batch_select_indices(rows)
        cache.cross_attention_cache.batch_select_indices(rows)
    else:
        cache.batch_select_indices(rows)
