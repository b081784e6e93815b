"""Vectors of token sequences on disk: float32, found by content, in a folder that is kept within a limit.

Shape legend: B sequences, D size of a vector.

Each network has a folder of its own, with a `RowStore` of one row a sequence. The note of a sequence is a checksum of
its key and its vector, looked at whenever it is read: what was changed on the disk is `DamageError`, never a vector.
The folder's file `used` is touched when somebody opens it and locked while somebody has it open, so that the folders
unused for longest make room for others, and none goes that is in use.
"""

from __future__ import annotations

import errno
import os
import shutil
import weakref
import zlib
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

import numpy as np

from manyskills.data.row_store import SPAN, DamageError, RowStore

USED_FILE = "used"
REMOVED = ".removed-"
"""In the name of a folder that is being removed, before the process that does so."""

ATTEMPTS = 3
"""To open a folder that others remove in the same instant."""


class VectorStore:
    """The vectors of one network.

    Every method raises `OSError` where the system refuses, and `DamageError`.

    Args:
        folder: Made if it is not there.
        size: D.
    """

    def __init__(self, folder: Path, size: int) -> None:
        self.folder, self.size = folder, size
        weakref.finalize(self, os.close, _mark_used(folder))
        self._rows = RowStore(folder, "vectors.bin", size * 4)

    @property
    def free_bytes(self) -> int:
        """Room on the file system."""
        return self._rows.free_bytes

    def read(self, keys: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
        """vectors_BD of these sequences, and known_B: where one is there; the other rows are zero."""
        spans_B = self._rows.find(keys)
        known_B = spans_B["start"] >= 0
        vectors_BD = np.zeros((len(keys), self.size), dtype="<f4")
        vectors_BD[known_B] = self._rows.rows().view("<f4")[spans_B["start"][known_B]]
        known = [key for key, is_known in zip(keys, known_B, strict=True) if is_known]
        if not np.array_equal(_checksums(known, vectors_BD[known_B]), spans_B["note"][known_B]):
            raise DamageError("a vector was changed")
        return vectors_BD, known_B

    def add(self, keys: Sequence[bytes], vectors_BD: np.ndarray) -> None:
        """Keep the vectors of these sequences, all of them or, if the process dies before the end, none.

        Args:
            keys: One a sequence, no key twice; those that are there already stay as they are.
            vectors_BD: float32.
        """
        vectors_BD = np.ascontiguousarray(vectors_BD, dtype="<f4")
        spans_B = np.zeros(len(keys), dtype=SPAN)
        spans_B["length"], spans_B["note"] = 1, _checksums(keys, vectors_BD)
        self._rows.add(keys, spans_B, vectors_BD)


def _checksums(keys: Sequence[bytes], vectors_BD: np.ndarray) -> np.ndarray:
    """One a sequence, int32."""
    sums = (zlib.crc32(vector_D, zlib.crc32(key)) for key, vector_D in zip(keys, vectors_BD, strict=True))
    return np.fromiter(sums, dtype=np.uint32, count=len(keys)).view(np.int32)


def _mark_used(folder: Path) -> int:
    """Make the folder if it is not there; a descriptor that says, while it is open, that it is in use."""
    import fcntl  # not there on every system (`manyskills.data.row_store.SUPPORTED`)

    for _ in range(ATTEMPTS):
        folder.mkdir(parents=True, exist_ok=True)
        use = os.open(folder / USED_FILE, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(use, fcntl.LOCK_SH | fcntl.LOCK_NB)  # refused to who comes while the folder is being removed
            os.utime(use)
        except OSError:
            os.close(use)
            raise
        if _is_of(use, folder):
            return use
        os.close(use)
    raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(folder))


def _is_of(use: int, folder: Path) -> bool:
    """Whether this file is the folder's, now that it is locked: before, the folder may have been removed."""
    try:
        return os.path.samestat(os.fstat(use), (folder / USED_FILE).stat())
    except OSError:
        return False


def make_room(parent: Path, wanted: int, limit: int) -> bool:
    """Remove folders of vectors, those unused for longest first, until so many bytes more are within the limit.

    None is removed if all that are not in use would not be enough.

    Args:
        parent: Holds the folders.
        wanted: Bytes that are to be added.
        limit: Bytes that all folders together may have.

    Returns:
        Whether there is room now; folders in use stay.
    """
    if wanted > limit:
        return False
    folders = sorted((path for path in parent.iterdir() if path.is_dir()), key=_last_used)
    kept = [folder for folder in folders if REMOVED not in folder.name]
    for folder in set(folders).difference(kept):  # by a process that was killed at it
        shutil.rmtree(folder, ignore_errors=True)
    sizes = {folder: _size(folder) for folder in kept}
    excess = sum(sizes.values()) + wanted - limit
    with ExitStack() as locks:
        unneeded: list[Path] = []
        for folder in kept:
            if excess > 0 and _lock_unused(folder, locks):
                unneeded.append(folder)
                excess -= sizes[folder]
        return excess <= 0 and all(remove(folder) for folder in unneeded)


def remove(folder: Path) -> bool:
    """Remove a folder of vectors as a whole, whoever uses it: they go on with the removed files.

    Returns:
        Whether it could be.
    """
    aside = folder.with_name(f"{folder.name}{REMOVED}{os.getpid()}")
    try:
        folder.rename(aside)
    except OSError:
        return False
    shutil.rmtree(aside, ignore_errors=True)
    return True


def _lock_unused(folder: Path, locks: ExitStack) -> bool:
    """Keep others from opening a folder until the locks are let go of; False if somebody has it open."""
    import fcntl

    try:
        use = os.open(folder / USED_FILE, os.O_RDWR)
    except OSError:  # somebody is making it, or it is no folder of vectors
        return False
    locks.callback(os.close, use)
    try:
        fcntl.flock(use, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return _is_of(use, folder)


def _last_used(folder: Path) -> float:
    with suppress(OSError):
        return (folder / USED_FILE).stat().st_mtime
    return 0.0


def _size(folder: Path) -> int:
    with suppress(OSError):  # somebody else may be removing it
        return sum(path.stat().st_size for path in folder.iterdir())
    return 0
