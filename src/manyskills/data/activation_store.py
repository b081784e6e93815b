"""Hidden states of token sequences on disk: half precision, memory-mapped, found by content, only ever added to.

Shape legend: B sequences, T tokens of the longest, R tokens of all sequences one after another, H hidden size.

A folder holds `states.bin` (rows of H float16) and `index.bin`. The index is a row of batches, each with its length and
a checksum in front, and a batch is written when its states are on the disk already. So whatever instant a process dies
at, what the index says is there and right, and a batch is there as a whole or not at all: a torn one is not read, and
the next writer writes over it. Writers take turns by a lock on the file `lock`, which the system lets go of when a
process dies; readers need none. The first states of a sequence stay: who computed them a second time reads the first.

The files are opened once. When somebody removes the folder, who has it open goes on with the removed files, and who
opens it afterwards starts anew; neither sees the other.
"""

from __future__ import annotations

import hashlib
import importlib.util
import mmap
import os
import struct
import weakref
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
_KEY = np.dtype(f"S{KEY_BYTES}")
_SPAN = np.dtype([("start", "<i8"), ("length", "<i4"), ("exponent", "<i4")])
_RECORD = np.dtype([("key", _KEY), ("span", _SPAN)])

ABSENT = np.array((-1, 0, 0), dtype=_SPAN)
"""What `ActivationStore.find` gives for a sequence that is not there: its start is negative."""

SUPPORTED = importlib.util.find_spec("fcntl") is not None
"""Whether this system has what the store needs: locks on files, as POSIX systems do."""


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

    @classmethod
    def of(cls, states_RH: np.ndarray, spans_B: np.ndarray) -> Padded:
        """Of the sequences that these spans are in the rows."""
        states_BTH = np.zeros((len(spans_B), spans_B["length"].max(), states_RH.shape[1]), dtype=np.float16)
        for position, (start, length, _) in enumerate(spans_B.tolist()):
            states_BTH[position, :length] = states_RH[start : start + length]
        return cls(states_BTH, spans_B["exponent"].copy())


def to_half(states_RH: np.ndarray, lengths_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """States as float16, and where each sequence is among them: start, length, exponent.

    The exponent is the power of two to divide by so that float16 holds every state of the sequence: 0 nearly always,
    but T5, Gemma and others have states beyond 65,504 in some dimensions.

    Args:
        states_RH: float32, the sequences one after another.
        lengths_B: Tokens of each.

    Raises:
        UserError: A state is not finite.
    """
    spans_B = np.empty(len(lengths_B), dtype=_SPAN)
    spans_B["length"], spans_B["start"] = lengths_B, np.cumsum(lengths_B) - lengths_B
    largest_B = np.maximum.reduceat(np.abs(states_RH).max(1), spans_B["start"])
    if not np.isfinite(largest_B).all():
        hint = "check the backbone's weights, or set backbone.dtype=float32"
        raise UserError("the activations of the lower layers are not finite numbers", hint)
    spans_B["exponent"] = np.ceil(np.log2(np.maximum(largest_B / LARGEST, 1)))
    exponents_R1 = np.repeat(spans_B["exponent"], lengths_B)[:, None]
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
        self.folder, self.width, self._row_bytes = folder, width, width * STATE_BYTES
        with _explained(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._data, self._index, self._lock = (
                _open(self, folder / name) for name in ("states.bin", "index.bin", "lock")
            )
        self._keys, self._spans = np.empty(0, dtype=_KEY), np.empty(0, dtype=_SPAN)  # both in the order of the keys
        self._read_to = 0
        self._rows = 0
        self._mapped = np.empty((0, width), dtype="<f2")

    def __len__(self) -> int:
        """Sequences known to this process."""
        return len(self._keys)

    @property
    def free_bytes(self) -> int:
        """Room on the file system."""
        system = os.fstatvfs(self._data)
        return system.f_bavail * system.f_frsize

    def find(self, keys: Sequence[bytes]) -> np.ndarray:
        """Where each sequence is, for `read`; `ABSENT` where nobody has added it yet.

        Raises:
            UserError: The files cannot be read.
        """
        spans_B = self._look_up(keys)
        if (spans_B["start"] < 0).any():  # another process may have added it
            with _explained(self.folder):
                self._refresh()
            spans_B = self._look_up(keys)
        return spans_B

    def read(self, spans_B: np.ndarray) -> Padded:
        """States of these sequences, padded to the longest.

        Raises:
            UserError: The files cannot be read.
        """
        if len(self._mapped) < self._rows:
            with _explained(self.folder):
                self._require_rows(self._rows)
                mapped = mmap.mmap(self._data, self._rows * self._row_bytes, access=mmap.ACCESS_READ)
            self._mapped = np.frombuffer(mapped, dtype="<f2").reshape(-1, self.width)
        return Padded.of(self._mapped, spans_B)

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
        with _explained(self.folder), self._locked():
            self._refresh()
            self._refuse_damage()
            new_B = self._look_up(keys)["start"] < 0
            if not new_B.any():
                return
            records = np.empty(new_B.sum(), dtype=_RECORD)
            records["key"], records["span"] = _joined(keys)[new_B], spans_B[new_B]
            lengths = records["span"]["length"]
            records["span"]["start"] = self._rows + np.cumsum(lengths) - lengths
            self._append(half_RH[np.repeat(new_B, lengths_B)], records)
            self._refresh()

    def _append(self, states_RH: np.ndarray, records: np.ndarray) -> None:
        """States, then the index; each on the disk before what follows. Both may hold a dead process's rest."""
        _write_at(self._data, self._rows * self._row_bytes, states_RH.tobytes())
        payload = records.tobytes()
        _write_at(self._index, self._read_to, _HEADER.pack(len(records), zlib.crc32(payload)) + payload)

    def _look_up(self, keys: Sequence[bytes]) -> np.ndarray:
        spans_B = np.full(len(keys), ABSENT)
        if len(self._keys):
            keys_B = _joined(keys)
            at_B = np.searchsorted(self._keys, keys_B) % len(self._keys)
            found_B = self._keys[at_B] == keys_B
            spans_B[found_B] = self._spans[at_B[found_B]]
        return spans_B

    def _refresh(self) -> None:
        """Take in the batches that were added since."""
        batches = list(_whole_batches(self._unread()))
        if not batches:
            return
        records = np.concatenate(batches)
        records = records[np.argsort(records["key"])]
        rows = int((records["span"]["start"] + records["span"]["length"]).max())
        self._require_rows(rows)
        at = np.searchsorted(self._keys, records["key"])
        self._keys = np.insert(self._keys, at, records["key"])
        self._spans = np.insert(self._spans, at, records["span"])
        self._rows = rows
        self._read_to += len(batches) * _HEADER.size + records.nbytes

    def _refuse_damage(self) -> None:
        """Nothing is missing, and behind the last batch is at most a torn one: others may have read a whole one."""
        self._require_rows(self._rows)
        unread = self._unread()
        later = range(_HEADER.size, len(unread), _HEADER.size)
        if any(True for at in later for _ in _whole_batches(unread[at:])):
            raise self._damaged()

    def _require_rows(self, rows: int) -> None:
        """What the index says is there, is there."""
        if rows * self._row_bytes > os.fstat(self._data).st_size:
            raise self._damaged()

    def _damaged(self) -> UserError:
        return UserError(f"the activations in {self.folder} are damaged", "remove that folder; they are computed anew")

    def _unread(self) -> memoryview:
        """What is in the index behind the batches that this process knows."""
        size = os.fstat(self._index).st_size - self._read_to
        if size < 0:
            raise self._damaged()
        return memoryview(os.pread(self._index, size, self._read_to))

    @contextmanager
    def _locked(self) -> Iterator[None]:
        import fcntl  # not there on every system (`SUPPORTED`)

        fcntl.flock(self._lock, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._lock, fcntl.LOCK_UN)


def _open(owner: ActivationStore, path: Path) -> int:
    """A descriptor for reading and writing, closed with its owner."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    weakref.finalize(owner, os.close, descriptor)
    return descriptor


def _joined(keys: Sequence[bytes]) -> np.ndarray:
    return np.frombuffer(b"".join(keys), dtype=_KEY)


def _whole_batches(content: memoryview) -> Iterator[np.ndarray]:
    """The records of each batch, up to the first that is not whole."""
    at = 0
    while at + _HEADER.size <= len(content):
        count, checksum = _HEADER.unpack_from(content, at)
        size = _HEADER.size + count * _RECORD.itemsize
        payload = content[at + _HEADER.size : at + size]
        if not count or at + size > len(content) or zlib.crc32(payload) != checksum:
            return
        yield np.frombuffer(payload, dtype=_RECORD)
        at += size


def _write_at(descriptor: int, offset: int, content: bytes) -> None:
    """Write here and forget what is behind; on return it is on the disk. If it cannot be written as a whole, the file
    ends at the offset again."""
    os.ftruncate(descriptor, offset)
    view, at = memoryview(content), offset
    try:
        while view:
            written = os.pwrite(descriptor, view, at)
            view, at = view[written:], at + written
    except OSError:
        with suppress(OSError):
            os.ftruncate(descriptor, offset)
        raise
    os.fsync(descriptor)  # where this fails it stays: others may have read it


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    """Turn the system's refusals into a `UserError`."""
    try:
        yield
    except OSError as error:
        what = "no space left on device" if is_no_space(error) else f"cannot read or write: {error.strerror or error}"
        hint = "free some space, set the variable MANYSKILLS_CACHE to another folder, or set activation_cache=false"
        raise UserError(f"activations in {folder}: {what}", hint) from error
