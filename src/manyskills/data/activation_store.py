"""Hidden states of token sequences on disk: half precision, memory-mapped, found by content, only ever added to.

Shape legend: B sequences, R tokens of all sequences one after another, H hidden size.

A folder holds `states.bin` (rows of H float16) and the index of a `RowStore`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from manyskills.data.row_store import ABSENT, SPAN, SUPPORTED, DamageError, RowStore, content_key
from manyskills.data.tokens import TokenStore
from manyskills.errors import UserError
from manyskills.files import is_no_space

__all__ = [
    "ABSENT",
    "STATE_BYTES",
    "SUPPORTED",
    "ActivationStore",
    "Halves",
    "content_key",
    "different_tokens",
    "to_half",
]

STATE_BYTES = 2
LARGEST = float(np.finfo(np.float16).max)


def different_tokens(store: TokenStore, indices_N: np.ndarray) -> int:
    """Tokens of these texts, those of texts that are read as the same sequence counted once."""
    sequences_S = store.pieces(indices_N).sequences_S
    lengths = {content_key(store.sequence(index)): int(store.lengths_S[index]) for index in sequences_S}
    return sum(lengths.values())


@dataclass(frozen=True, slots=True)
class Halves:
    """States of some sequences, one behind another, in half precision.

    Attributes:
        states_RH: float16.
        exponents_B: A sequence's states are 2 ** exponent times as large; not 0 only where float16 could not hold them.
        lengths_B: Tokens of each.
    """

    states_RH: np.ndarray
    exponents_B: np.ndarray
    lengths_B: np.ndarray

    @classmethod
    def of(cls, states_RH: np.ndarray, spans_B: np.ndarray) -> Halves:
        """Of the sequences that these spans are in the rows."""
        parts = [states_RH[start : start + length] for start, length, _ in spans_B.tolist()]
        return cls(np.concatenate(parts), spans_B["note"].copy(), spans_B["length"].astype(np.int64))


def to_half(states_RH: np.ndarray, lengths_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """States as float16, and where each sequence is among them: start, length, and as its note the exponent.

    The exponent is the power of two to divide by so that float16 holds every state of the sequence: 0 nearly always,
    but T5, Gemma and others have states beyond 65,504 in some dimensions.

    Args:
        states_RH: float32, the sequences one after another.
        lengths_B: Tokens of each.

    Raises:
        UserError: A state is not finite.
    """
    spans_B = np.empty(len(lengths_B), dtype=SPAN)
    spans_B["length"], spans_B["start"] = lengths_B, np.cumsum(lengths_B) - lengths_B
    largest_B = np.maximum.reduceat(np.abs(states_RH).max(1), spans_B["start"])
    if not np.isfinite(largest_B).all():
        hint = "check the backbone's weights, or set backbone.dtype=float32"
        raise UserError("the activations of the lower layers are not finite numbers", hint)
    spans_B["note"] = np.ceil(np.log2(np.maximum(largest_B / LARGEST, 1)))
    exponents_R1 = np.repeat(spans_B["note"], lengths_B)[:, None]
    return np.ldexp(states_RH, -exponents_R1).astype("<f2"), spans_B


class ActivationStore:
    """The states of one network's lower layers.

    Args:
        folder: Made if it is not there.
        width: H.

    Raises:
        UserError: The folder cannot be written.
    """

    def __init__(self, folder: Path, width: int) -> None:
        self.folder, self.width = folder, width
        with _explained(folder):
            self._rows = RowStore(folder, "states.bin", width * STATE_BYTES)

    def __len__(self) -> int:
        """Sequences known to this process."""
        return len(self._rows)

    @property
    def free_bytes(self) -> int:
        """Room on the file system."""
        return self._rows.free_bytes

    def find(self, keys: Sequence[bytes]) -> np.ndarray:
        """Where each sequence is, for `read`; `ABSENT` where nobody has added it yet.

        Raises:
            UserError: The files cannot be read.
        """
        with _explained(self.folder):
            return self._rows.find(keys)

    def read(self, spans_B: np.ndarray) -> Halves:
        """States of these sequences.

        Raises:
            UserError: The files cannot be read.
        """
        with _explained(self.folder):
            rows = self._rows.rows()
        return Halves.of(rows.view("<f2"), spans_B)

    def add(self, keys: Sequence[bytes], lengths_B: np.ndarray, states_RH: np.ndarray) -> None:
        """Keep the states of these sequences, all of them or, if the process dies before the end, none.

        Args:
            keys: One a sequence, no key twice.
            lengths_B: Tokens of each.
            states_RH: float32, the sequences one after another.

        Raises:
            UserError: A state is not finite, the files are damaged, or there is no space left. Going on without the
                store would be the alternative, but a disk that this filled up has no room for the next checkpoint
                either.
        """
        half_RH, spans_B = to_half(states_RH, lengths_B)
        with _explained(self.folder):
            self._rows.add(keys, spans_B, half_RH)


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    """Turn damage and the system's refusals into a `UserError`."""
    try:
        yield
    except DamageError as error:
        hint = "remove that folder; they are computed anew"
        raise UserError(f"the activations in {folder} are damaged", hint) from error
    except OSError as error:
        what = "no space left on device" if is_no_space(error) else f"cannot read or write: {error.strerror or error}"
        hint = "free some space, set the variable MANYSKILLS_CACHE to another folder, or set activation_cache=false"
        raise UserError(f"activations in {folder}: {what}", hint) from error
