"""Rows of token sequences on disk: memory-mapped, found by content, only ever added to.

Shape legend: B sequences, R rows of all sequences one after another.

A folder holds a file of rows, all of the same size, and `index.bin`. The index is a row of batches, each with its
length and a checksum in front, and a batch is written when its rows are on the disk already. So whatever instant a
process dies at, what the index says is there and right, and a batch is there as a whole or not at all: a torn one is
not read, and the next writer writes over it. Writers take turns by a lock on the file `lock`, which the system lets go
of when a process dies; readers need none. The first rows of a sequence stay: who computed them a second time reads the
first.

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
from pathlib import Path

import numpy as np

KEY_BYTES = 16

_HEADER = struct.Struct("<II")  # records of the batch, checksum of the records
_KEY = np.dtype(f"S{KEY_BYTES}")
SPAN = np.dtype([("start", "<i8"), ("length", "<i4"), ("note", "<i4")])
"""Where a sequence is among the rows, and a number that the owner of the store keeps with it."""

_RECORD = np.dtype([("key", _KEY), ("span", SPAN)])

ABSENT = np.array((-1, 0, 0), dtype=SPAN)
"""What `RowStore.find` gives for a sequence that is not there: its start is negative."""

SUPPORTED = importlib.util.find_spec("fcntl") is not None
"""Whether this system has what the store needs: locks on files, as POSIX systems do."""


class DamageError(Exception):
    """The files are not what was written, and not only torn at their ends."""


def content_key(ids_T: np.ndarray, route: int = 0) -> bytes:
    """What a token sequence is found by: a hash of its ids, and so of text, tokenizer and truncation.

    Args:
        ids_T: The sequence.
        route: Which task reads it, where what is kept depends on that.
    """
    content = np.ascontiguousarray(ids_T, dtype="<i4").tobytes()
    return hashlib.blake2b(content, digest_size=KEY_BYTES, salt=route.to_bytes(8, "little")).digest()


class RowStore:
    """Rows of one kind, with their index.

    Every method raises `OSError` where the system refuses, and `DamageError`.

    Args:
        folder: Made if it is not there.
        name: Of the file of rows.
        row_bytes: Size of a row.
    """

    def __init__(self, folder: Path, name: str, row_bytes: int) -> None:
        self.row_bytes = row_bytes
        folder.mkdir(parents=True, exist_ok=True)
        place = os.open(folder, os.O_RDONLY)  # all files are this folder's, whatever is put into its place meanwhile
        try:
            self._data, self._index, self._lock = (_open(self, file, place) for file in (name, "index.bin", "lock"))
        finally:
            os.close(place)
        self._keys, self._spans = np.empty(0, dtype=_KEY), np.empty(0, dtype=SPAN)  # both in the order of the keys
        self._read_to = 0
        self._rows = 0
        self._mapped = np.empty((0, row_bytes), dtype=np.uint8)

    def __len__(self) -> int:
        """Sequences known to this process."""
        return len(self._keys)

    @property
    def free_bytes(self) -> int:
        """Room on the file system."""
        system = os.fstatvfs(self._data)
        return system.f_bavail * system.f_frsize

    def find(self, keys: Sequence[bytes]) -> np.ndarray:
        """spans_B of these sequences; `ABSENT` where nobody has added it yet."""
        spans_B = self._look_up(keys)
        if (spans_B["start"] < 0).any():  # another process may have added it
            self._refresh()
            spans_B = self._look_up(keys)
        return spans_B

    def rows(self) -> np.ndarray:
        """All rows that this process knows of, uint8, shape (R, row_bytes), memory-mapped and not to be written."""
        if len(self._mapped) < self._rows:
            self._require_rows(self._rows)
            mapped = mmap.mmap(self._data, self._rows * self.row_bytes, access=mmap.ACCESS_READ)
            self._mapped = np.frombuffer(mapped, dtype=np.uint8).reshape(-1, self.row_bytes)
        return self._mapped

    def add(self, keys: Sequence[bytes], spans_B: np.ndarray, rows_R: np.ndarray) -> None:
        """Keep the rows of these sequences, all of them or, if the process dies before the end, none.

        Args:
            keys: One a sequence, no key twice.
            spans_B: Their lengths and notes; the starts are found here.
            rows_R: The sequences' rows one after another, `row_bytes` each.
        """
        with self._locked():
            self._refresh()
            self._refuse_damage()
            new_B = self._look_up(keys)["start"] < 0
            if not new_B.any():
                return
            records = np.empty(new_B.sum(), dtype=_RECORD)
            records["key"], records["span"] = _joined(keys)[new_B], spans_B[new_B]
            lengths = records["span"]["length"]
            records["span"]["start"] = self._rows + np.cumsum(lengths) - lengths
            self._append(rows_R[np.repeat(new_B, spans_B["length"])], records)
            self._refresh()

    def _append(self, rows_R: np.ndarray, records: np.ndarray) -> None:
        """Rows, then the index; each on the disk before what follows. Both may hold a dead process's rest."""
        _write_at(self._data, self._rows * self.row_bytes, rows_R.tobytes())
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
            raise DamageError("a batch of the index was changed")

    def _require_rows(self, rows: int) -> None:
        """What the index says is there, is there."""
        if rows * self.row_bytes > os.fstat(self._data).st_size:
            raise DamageError("rows are missing")

    def _unread(self) -> memoryview:
        """What is in the index behind the batches that this process knows."""
        size = os.fstat(self._index).st_size - self._read_to
        if size < 0:
            raise DamageError("batches of the index are missing")
        return memoryview(os.pread(self._index, size, self._read_to))

    @contextmanager
    def _locked(self) -> Iterator[None]:
        import fcntl  # not there on every system (`SUPPORTED`)

        fcntl.flock(self._lock, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._lock, fcntl.LOCK_UN)


def _open(owner: RowStore, name: str, place: int) -> int:
    """A descriptor for reading and writing, closed with its owner."""
    descriptor = os.open(name, os.O_RDWR | os.O_CREAT, 0o666, dir_fd=place)
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
