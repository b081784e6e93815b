"""Texts as pieces of one flat array of tokens, and which pieces each step holds.

Shape legend: T tokens of all texts together, P pieces, N tokens of some pieces.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from manyskills.data.tokens import encodable

BATCH = 1024
"""Texts that are tokenised at once."""


@dataclass(frozen=True, slots=True)
class Pieces:
    """Texts one behind another, cut into pieces.

    Attributes:
        ids_T: Token ids, int32; the end token behind each text for next-token prediction.
        starts_P: Where each piece begins.
        lengths_P: Tokens of each; a piece never leaves its text. For next-token prediction the token behind a piece is
            still its text's: what the piece's last token is to predict.
    """

    ids_T: np.ndarray
    starts_P: np.ndarray
    lengths_P: np.ndarray

    def __len__(self) -> int:
        """How many pieces."""
        return len(self.starts_P)

    @property
    def tokens(self) -> int:
        """Of all pieces."""
        return int(self.lengths_P.sum())

    def positions(self, pieces: np.ndarray) -> np.ndarray:
        """Where in `ids_T` the tokens of these pieces are, piece after piece, shape (N,)."""
        lengths = self.lengths_P[pieces]
        ends = np.cumsum(lengths)
        return np.repeat(self.starts_P[pieces] - (ends - lengths), lengths) + np.arange(int(lengths.sum()))

    def piece(self, index: int) -> np.ndarray:
        """The ids of one piece."""
        return self.ids_T[self.starts_P[index] : self.starts_P[index] + self.lengths_P[index]]


def next_token_pieces(texts: Sequence[str], tokenizer: Any, max_length: int) -> Pieces:
    """Pieces whose every token predicts the next one of its text; the end token is predicted and never read."""
    ids_T, lengths = _tokenize(texts, tokenizer, [tokenizer.eos_token_id])
    return _cut(ids_T, lengths, lengths - 1, max_length, least=1)


def span_pieces(texts: Sequence[str], tokenizer: Any, max_length: int) -> Pieces:
    """Pieces for span corruption: one token less than max_length, which the end token needs; two at least."""
    ids_T, lengths = _tokenize(texts, tokenizer, [])
    return _cut(ids_T, lengths, lengths, max_length - 1, least=2)


def _tokenize(texts: Sequence[str], tokenizer: Any, suffix: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """All ids one behind another, and how many each text has with its suffix."""
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True  # what looks like a special token in a text is text
    parts: list[np.ndarray] = []
    try:
        for start in range(0, len(texts), BATCH):
            batch = [encodable(text) for text in texts[start : start + BATCH]]
            for encoding in backend.encode_batch_fast(batch, add_special_tokens=False):
                parts.append(np.array([*encoding.ids, *suffix], dtype=np.int32))  # noqa: PERF401
    finally:
        backend.encode_special_tokens = False
    lengths = np.array([len(part) for part in parts], dtype=np.int64)
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.int32), lengths


def _cut(ids_T: np.ndarray, lengths: np.ndarray, used: np.ndarray, longest: int, *, least: int) -> Pieces:
    """The first `used` tokens of each text in pieces of like size, as few as `longest` allows."""
    counts = -(-used // longest)
    text_of = np.repeat(np.arange(len(used)), counts)
    number = np.arange(len(text_of)) - np.repeat(np.cumsum(counts) - counts, counts)
    first = number * used[text_of] // counts[text_of]
    after = (number + 1) * used[text_of] // counts[text_of]
    starts_P, lengths_P = (np.cumsum(lengths) - lengths)[text_of] + first, after - first
    kept = lengths_P >= least
    return Pieces(ids_T, starts_P[kept], lengths_P[kept])


@dataclass(frozen=True)
class Batches:
    """Which pieces each step holds: a pure function of the seed and the step.

    An epoch is a permutation of all pieces, cut where another `batch_tokens` tokens are full.

    Attributes:
        lengths_P: Tokens of each piece.
        batch_tokens: Tokens a step, about.
        seed: Of the permutations.
    """

    lengths_P: np.ndarray
    batch_tokens: int
    seed: int

    @cached_property
    def steps_per_epoch(self) -> int:
        """Steps that one pass takes."""
        return max(1, round(int(self.lengths_P.sum()) / self.batch_tokens))

    def pieces(self, step: int) -> tuple[np.ndarray, np.random.Generator]:
        """The pieces of a step, counted from 0, and the random numbers that belong to it."""
        epoch, place = divmod(step, self.steps_per_epoch)
        order, borders = self._epoch(epoch)
        return order[borders[place] : borders[place + 1]], np.random.default_rng([self.seed, 1, step])

    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        known = self.__dict__.setdefault("_known", {})
        if epoch not in known:
            known.clear()
            order = np.random.default_rng([self.seed, 0, epoch]).permutation(len(self.lengths_P))
            ends = np.cumsum(self.lengths_P[order])
            wanted = np.arange(1, self.steps_per_epoch) * (ends[-1] / self.steps_per_epoch)
            known[epoch] = order, np.array([0, *np.searchsorted(ends, wanted), len(order)])
        return known[epoch]
