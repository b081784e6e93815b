"""Hidden states of token sequences on disk: half precision, memory-mapped, found by content, only ever added to.

Shape legend: B sequences, T tokens of the longest, R tokens of all sequences one after another, H hidden size.

A folder holds `states.bin` (rows of H float16) and `index.bin`. The index is a row of batches, each with its length and
a checksum in front, and a batch is written when its states are on the disk already. So whatever instant a process dies
at, what the index says is there and right, and a batch is there as a whole or not at all: a torn one is not read, and
the next writer writes over it. Writers take turns by a lock on the file `lock`, which the system lets go of when a
process dies; readers need none. The first states of a sequence stay: who computed them a second time reads the first.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from manyskills.data.tokens import TokenStore
from manyskills.errors import UserError
from manyskills.files import is_no_space

KEY_BYTES = 16
STATE_BYTES = 2
LARGEST = float(np.finfo(np.float16).max)

_HEADER = struct.Struct("<II")  # records of the batch, checksum of the records
_RECORD = np.dtype([("key", f"V{KEY_BYTES}"), ("start", "<i8"), ("length", "<i4"), ("exponent", "<i4")])


def content_key(ids_T: np.ndarray) -> bytes:
    """What a token sequence is found by: a hash of its ids, and so of text, tokenizer and truncation."""
    return hashlib.blake2b(np.ascontiguousarray(ids_T, dtype="<i4").tobytes(), digest_size=KEY_BYTES).digest()


def different_tokens(store: TokenStore, indices_N: np.ndarray) -> int:
    """Tokens of these texts, those of texts that are read as the same sequence counted once."""
    sequences_S = store.pieces(indices_N).sequences_S
    lengths = {content_key(store.sequence(index)): int(store.lengths_S[index]) for index in sequences_S}
    return sum(lengths.values())


@dataclass(frozen=True, slots=True)
class Padded:
    """States of some sequences, zero behind each one's end.

    Attributes:
        states_BTH: float16.
        exponents_B: The states are 2 ** exponent times as large; not 0 only where float16 could not hold them.
    """

    states_BTH: np.ndarray
    exponents_B: np.ndarray


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
            folder.mkdir(parents=True, exist_ok=True)
            for file in (self._data, self._index, self._lock):
                file.touch()
        self._entries: dict[bytes, int] = {}
        self._spans: list[tuple[int, int, int]] = []  # of each entry: first row, tokens, exponent
        self._read_to = 0
        self._rows = 0
        self._mapped = np.empty((0, width), dtype="<f2")

    @property
    def _data(self) -> Path:
        return self.folder / "states.bin"

    @property
    def _index(self) -> Path:
        return self.folder / "index.bin"

    @property
    def _lock(self) -> Path:
        return self.folder / "lock"

    def __len__(self) -> int:
        """Sequences known to this process."""
        return len(self._entries)

    def find(self, keys: Sequence[bytes]) -> np.ndarray:
        """The entry of each key, for `read`; -1 where nobody has added it yet."""
        if any(key not in self._entries for key in keys):
            self._refresh()  # another process may have added it
        return np.fromiter((self._entries.get(key, -1) for key in keys), dtype=np.int64, count=len(keys))

    def read(self, entries_B: np.ndarray) -> Padded:
        """States of these entries, padded to the longest."""
        if len(self._mapped) < self._rows:
            self._mapped = np.memmap(self._data, dtype="<f2", mode="r", shape=(self._rows, self.width))
        spans = [self._spans[entry] for entry in entries_B.tolist()]
        states_BTH = np.zeros((len(spans), max(length for _, length, _ in spans), self.width), dtype=np.float16)
        for position, (start, length, _) in enumerate(spans):
            states_BTH[position, :length] = self._mapped[start : start + length]
        return Padded(states_BTH, np.array([exponent for _, _, exponent in spans], dtype=np.int32))

    def add(self, keys: Sequence[bytes], lengths_B: np.ndarray, states_RH: np.ndarray) -> None:
        """Keep the states of these sequences, all of them or, if the process dies before the end, none.

        Args:
            keys: One a sequence, no key twice.
            lengths_B: Tokens of each.
            states_RH: float32, the sequences one after another.

        Raises:
            UserError: A state is not finite, or there is no space left. Going on without the store would be the
                alternative, but a disk that this filled up has no room for the next checkpoint either.
        """
        starts_B = np.cumsum(lengths_B) - lengths_B
        exponents_B = _exponents(states_RH, starts_B)
        with _explained(self.folder), self._locked():
            self._refresh()
            new = [number for number, key in enumerate(keys) if key not in self._entries]
            if not new:
                return
            parts = [
                np.ldexp(states_RH[starts_B[n] : starts_B[n] + lengths_B[n]], -exponents_B[n]).astype("<f2")
                for n in new
            ]
            records = np.empty(len(new), dtype=_RECORD)
            records["key"] = np.frombuffer(b"".join(keys[n] for n in new), dtype=f"V{KEY_BYTES}")
            records["length"], records["exponent"] = lengths_B[new], exponents_B[new]
            records["start"] = self._rows + np.cumsum(records["length"]) - records["length"]
            self._append(np.concatenate(parts), records)
            self._refresh()

    def _append(self, states_RH: np.ndarray, records: np.ndarray) -> None:
        """States, then the index; each on the disk before what follows. Both may hold a dead process's rest."""
        _write_at(self._data, self._rows * self.width * STATE_BYTES, states_RH.tobytes())
        payload = records.tobytes()
        _write_at(self._index, self._read_to, _HEADER.pack(len(records), zlib.crc32(payload)) + payload)

    def _refresh(self) -> None:
        """Take in the batches that were added since."""
        if self._index.stat().st_size <= self._read_to:
            return
        with self._index.open("rb") as file:
            file.seek(self._read_to)
            content = file.read()
        rows_on_disk = self._data.stat().st_size // (self.width * STATE_BYTES)
        for size, records in _whole_batches(content):
            rows = int((records["start"] + records["length"]).max())
            if rows > rows_on_disk:
                return
            for key, start, length, exponent in records.tolist():
                self._entries[key] = len(self._spans)
                self._spans.append((start, length, exponent))
            self._rows = rows
            self._read_to += size

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with self._lock.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _whole_batches(content: bytes) -> Iterator[tuple[int, np.ndarray]]:
    """Size in bytes and records of each batch, up to the first that is not whole."""
    at = 0
    while at + _HEADER.size <= len(content):
        count, checksum = _HEADER.unpack_from(content, at)
        size = _HEADER.size + count * _RECORD.itemsize
        payload = content[at + _HEADER.size : at + size]
        if not count or at + size > len(content) or zlib.crc32(payload) != checksum:
            return
        yield size, np.frombuffer(payload, dtype=_RECORD)
        at += size


def _exponents(states_RH: np.ndarray, starts_B: np.ndarray) -> np.ndarray:
    """Per sequence, the power of two to divide by so that float16 holds every state: 0 nearly always.

    T5, Gemma and others have states beyond 65,504 in some dimensions.
    """
    largest_B = np.maximum.reduceat(np.abs(states_RH).max(1), starts_B)
    if not np.isfinite(largest_B).all():
        hint = "check the backbone's weights, or set backbone.dtype=float32"
        raise UserError("the activations of the lower layers are not finite numbers", hint)
    return np.ceil(np.log2(np.maximum(largest_B / LARGEST, 1))).astype(np.int32)


def _write_at(path: Path, offset: int, content: bytes) -> None:
    """Write here and forget what is behind; on return it is on the disk. If that fails the file ends at the offset."""
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.ftruncate(descriptor, offset)
        try:
            view, at = memoryview(content), offset
            while view:
                written = os.pwrite(descriptor, view, at)
                view, at = view[written:], at + written
            os.fsync(descriptor)
        except OSError:
            with suppress(OSError):
                os.ftruncate(descriptor, offset)
            raise
    finally:
        os.close(descriptor)


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    """Turn the system's refusals into a `UserError`."""
    try:
        yield
    except OSError as error:
        what = "no space left on device" if is_no_space(error) else f"cannot write: {error.strerror or error}"
        hint = "free some space, set the variable MANYSKILLS_CACHE to another folder, or set activation_cache=false"
        raise UserError(f"activations in {folder}: {what}", hint) from error
