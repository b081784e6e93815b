"""Long texts in overlapping windows: how they are cut, and which sequences each text is read as.

Shape legend: N texts, S sequences.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


class Window(NamedTuple):
    """A piece of a text.

    Attributes:
        start: Its first token.
        stop: The token after its last.
        new: How many of its tokens no earlier window holds.
    """

    start: int
    stop: int
    new: int


def cut_windows(length: int, room: int, overlap: float) -> list[Window]:
    """Windows that hold every token of a text and are all of the same length.

    Each begins where the one before has `overlap` of its tokens left; only the last may share more, because it ends
    with the text and is full all the same: a short rest alone would be read without context.

    Args:
        length: Tokens of the text.
        room: Tokens of a window, at least 1.
        overlap: Share of a window that the next one repeats, from 0 to less than 1.

    Returns:
        One window if the text has room in it (also for an empty text). The `new` tokens of all sum to `length`.
    """
    if length <= room:
        return [Window(0, length, length)]
    stride = room - min(round(room * overlap), room - 1)
    windows: list[Window] = []
    held = 0
    for start in (*range(0, length - room, stride), length - room):
        windows.append(Window(start, start + room, start + room - held))
        held = start + room
    return windows


@dataclass(frozen=True, slots=True)
class Windows:
    """Which sequences each text of a store is read as.

    Attributes:
        firsts_N: Each text's first sequence, int64, with the end appended (N + 1 values).
        shares_S: What each sequence's vector counts for in its text's, float32; those of a text sum to 1.
    """

    firsts_N: np.ndarray
    shares_S: np.ndarray

    @classmethod
    def of(cls, new_by_text: list[list[int]]) -> Windows:
        """From the tokens that each window of each text brings."""
        firsts_N = np.zeros(len(new_by_text) + 1, dtype=np.int64)
        np.cumsum([len(new) for new in new_by_text], out=firsts_N[1:])
        shares = [count / sum(new) if len(new) > 1 else 1.0 for new in new_by_text for count in new]
        return cls(firsts_N, np.asarray(shares, dtype=np.float32))

    def select(self, indices_N: np.ndarray) -> Pieces:
        """The sequences of these texts."""
        counts_N = self.firsts_N[indices_N + 1] - self.firsts_N[indices_N]
        ends_N = np.cumsum(counts_N)
        within_S = np.arange(counts_N.sum()) - np.repeat(ends_N - counts_N, counts_N)
        sequences_S = np.repeat(self.firsts_N[indices_N], counts_N) + within_S
        return Pieces(sequences_S, counts_N, self.shares_S[sequences_S])


@dataclass(frozen=True, slots=True)
class Pieces:
    """The sequences that some texts (N) are read as, text by text.

    Attributes:
        sequences_S: Indices of the sequences in the store.
        counts_N: How many of them each text has.
        shares_S: What each counts for in its text's vector, float32; those of a text sum to 1.
    """

    sequences_S: np.ndarray
    counts_N: np.ndarray
    shares_S: np.ndarray

    @classmethod
    def one_each(cls, indices_N: np.ndarray) -> Pieces:
        """Of texts that are one sequence each, under the same index."""
        return cls(indices_N, np.ones(len(indices_N), dtype=np.int64), np.ones(len(indices_N), dtype=np.float32))

    @property
    def whole(self) -> bool:
        """Whether each text is one sequence."""
        return len(self.sequences_S) == len(self.counts_N)
