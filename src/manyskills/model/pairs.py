"""Prompts and answers as an encoder-decoder reads them: several pairs in one row, none of which sees another.

Shape legend: B pairs, S sequences, T tokens of all of them, R rows, E encoder positions, D decoder positions.

T5 knows positions by distances only (Raffel et al. 2020, arXiv 1910.10683, section 2.1), so a pair that begins in the
middle of a row is read as it would be alone, once masks keep the pairs apart: in the encoder, in the decoder, and
between the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

ROOMS = (1, 128, 256)
"""Tokens that rows have on each side at most, but for the longest pair, which always has room: with 1 it decides alone.
Wide rows leave less padding, and attention costs more in them; the cheapest are taken."""


@dataclass(frozen=True, slots=True)
class Pairs:
    """A chunk of prompts and answers in rows.

    Attributes:
        encoder_ids_RE: Prompts, padded.
        encoder_owners_RE: Which pair a token is of; -1 is padding.
        decoder_ids_RD: Start token and answers without their last tokens, padded.
        decoder_owners_RD: Which pair a token is of; -1 is padding.
        answers_T: Where the tokens of the answers are on the axis of all decoder positions, pair after pair.
        packed: Some row may hold several pairs.
    """

    encoder_ids_RE: torch.Tensor
    encoder_owners_RE: torch.Tensor
    decoder_ids_RD: torch.Tensor
    decoder_owners_RD: torch.Tensor
    answers_T: torch.Tensor
    packed: bool

    def encoder_inputs(self) -> dict[str, Any]:
        """What the encoder is called with."""
        owners_RE = self.encoder_owners_RE
        mask = _same_owner(owners_RE, owners_RE) if self.packed else (owners_RE >= 0).long()
        return {"input_ids": self.encoder_ids_RE, "attention_mask": mask}

    def decoder_inputs(self) -> dict[str, Any]:
        """What the network is called with besides what the encoder made."""
        owners_RD = self.decoder_owners_RD
        if not self.packed:
            seen_RE, mask = (self.encoder_owners_RE >= 0).long(), (owners_RD >= 0).long()
        else:
            seen_RE = _same_owner(owners_RD, self.encoder_owners_RE)
            mask = _same_owner(owners_RD, owners_RD).tril()
        return {"attention_mask": seen_RE, "decoder_input_ids": self.decoder_ids_RD, "decoder_attention_mask": mask}


def _same_owner(queries_RQ: torch.Tensor, keys_RK: torch.Tensor) -> torch.Tensor:
    """True where a token may be seen: with four axes, which transformers leaves alone. Padding sees padding."""
    return (queries_RQ[:, :, None] == keys_RK[:, None])[:, None]


def lay_out(
    prompts: Sequence[np.ndarray],
    inputs: Sequence[np.ndarray],
    pad_id: int,
    device: torch.device,
    *,
    hidden_size: int | None,
) -> Pairs:
    """These pairs in rows.

    Args:
        prompts: Ids of each.
        inputs: Ids that the decoder reads for each.
        pad_id: Fills the rows.
        device: Where the network is.
        hidden_size: Of a network that may read several pairs in one row; None: each has its own, in their order.
    """
    lengths_2B = np.array([[len(ids) for ids in side] for side in (prompts, inputs)])
    rows_B = _rows(lengths_2B, hidden_size)
    encoder_ids_RE, encoder_owners_RE, _ = _side(prompts, rows_B, pad_id)
    decoder_ids_RD, decoder_owners_RD, starts_B = _side(inputs, rows_B, pad_id)
    answers_T = np.concatenate([start + np.arange(n) for start, n in zip(starts_B, lengths_2B[1], strict=True)])
    parts = (encoder_ids_RE, encoder_owners_RE, decoder_ids_RD, decoder_owners_RD, answers_T)
    return Pairs(*(torch.from_numpy(part).to(device) for part in parts), packed=hidden_size is not None)


def laid_out_tokens(lengths_2B: np.ndarray, hidden_size: int | None) -> int:
    """Tokens of the rows that `lay_out` makes of pairs of these lengths, both sides, padding included."""
    rows_B = _rows(lengths_2B, hidden_size)
    return (int(rows_B.max()) + 1) * sum(_widths(lengths_2B, rows_B))


def cheapest_rows(lengths_2B: np.ndarray, hidden_size: int) -> np.ndarray:
    """Row of each pair, numbered from 0: as many pairs in a row as make the whole cheapest.

    Args:
        lengths_2B: Tokens of each pair's two sides.
        hidden_size: Of the network: what a token costs besides attention is about twice as much as so many tokens to
            attend to (measured on a processor's core; in multiplications it would be six times as much).
    """
    layouts = [fill_rows(lengths_2B, room) for room in ROOMS]
    return min(layouts, key=lambda rows_B: _cost(lengths_2B, rows_B, 2 * hidden_size))


def _cost(lengths_2B: np.ndarray, rows_B: np.ndarray, token_cost: int) -> int:
    """Of rows that are padded to the longest, in tokens that are attended to."""
    rows = int(rows_B.max()) + 1
    return sum(rows * width * (token_cost + width) for width in _widths(lengths_2B, rows_B))


def _rows(lengths_2B: np.ndarray, hidden_size: int | None) -> np.ndarray:
    return np.arange(lengths_2B.shape[1]) if hidden_size is None else cheapest_rows(lengths_2B, hidden_size)


def _widths(lengths_2B: np.ndarray, rows_B: np.ndarray) -> list[int]:
    """Tokens of the longest row on each side."""
    return [int(np.bincount(rows_B, lengths_B).max()) for lengths_B in lengths_2B]


def fill_rows(lengths_2B: np.ndarray, room: int) -> np.ndarray:
    """Row of each pair: the longest first, each into the first row that has room for both of its sides.

    Args:
        lengths_2B: Tokens of each pair's two sides.
        room: Tokens of a row on each side, at most; but a row has room for the longest pair.
    """
    room_2 = np.maximum(lengths_2B.max(1), room)
    rows_B = np.empty(lengths_2B.shape[1], dtype=np.int64)
    filled_2R = np.zeros((2, len(rows_B)), dtype=np.int64)
    for pair in np.argsort(-lengths_2B.sum(0), kind="stable"):
        added_2R = filled_2R + lengths_2B[:, pair, None]
        row = int((added_2R <= room_2[:, None]).all(0).argmax())  # an empty row always fits
        rows_B[pair], filled_2R[:, row] = row, added_2R[:, row]
    return rows_B


def _side(sequences: Sequence[np.ndarray], rows_B: np.ndarray, pad_id: int) -> tuple[np.ndarray, ...]:
    """Ids and owners of one side, and where each sequence begins on the axis of all positions."""
    lengths_B = np.array([len(ids) for ids in sequences])
    width = int(np.bincount(rows_B, lengths_B).max())
    ids = np.full((int(rows_B.max()) + 1, width), pad_id, dtype=np.int64)
    owners = np.full_like(ids, -1)
    starts_B = np.empty(len(rows_B), dtype=np.int64)
    filled = np.zeros(len(ids), dtype=np.int64)
    for pair, row in enumerate(rows_B):
        place = slice(filled[row], filled[row] + lengths_B[pair])
        ids[row, place], owners[row, place] = sequences[pair], pair
        starts_B[pair], filled[row] = row * width + filled[row], place.stop
    return ids, owners, starts_B
