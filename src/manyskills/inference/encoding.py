"""Texts to vectors with a graph, several chunks at a time.

Shape legend: N texts, S sequences they are read as, D size of a vector.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from manyskills.data.text_set import pad_chunk, plan_chunks
from manyskills.data.tokens import TokenStore
from manyskills.data.windows import Pieces
from manyskills.inference.graph import Graph

CHUNK_TOKENS = 512
"""Padded tokens of a chunk: so few that what is computed of them stays near the core. Measured: docs/export.md."""

CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")
"""What a container may use of a period of time, summed over cores, and the period; `max`: no limit (cgroup v2)."""


def usable_cores() -> int:
    """Cores that this process may use, where the system tells; else all. A container's quota counts as so many cores,
    rounded up."""
    if sys.version_info >= (3, 13):
        cores = os.process_cpu_count() or 1
    elif hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    return min(cores, _quota() or cores)


def _quota() -> int | None:
    """Cores that the quota is worth; None: there is none that can be read."""
    try:
        share, period = map(int, CPU_QUOTA.read_text(encoding="ascii").split())
    except (OSError, ValueError):
        return None
    return max(-(-share // period), 1) if period > 0 else None


def encode_texts(graph: Graph, store: TokenStore, indices_N: np.ndarray, jobs: int) -> np.ndarray:
    """Vectors of these texts, each encoded once; of a text in windows, the mean of its windows' vectors.

    Args:
        graph: Gives the vectors; one thread a call.
        store: Holds the token sequences.
        indices_N: Which ones; repeats are encoded again, so pass unique ones.
        jobs: Threads that take chunks. The chunks, and so the vectors, are the same for every number.

    Returns:
        vectors_ND, float32.
    """
    pieces = store.pieces(indices_N)
    vectors_SD = np.empty((len(pieces.sequences_S), graph.facts.vector_size), dtype=np.float32)

    def encode(chunk: np.ndarray) -> None:
        vectors_SD[chunk] = graph.encode(*pad_chunk(store, pieces.sequences_S[chunk], graph.facts.pad_id))

    chunks = plan_chunks(store.lengths_S[pieces.sequences_S], CHUNK_TOKENS)[::-1]
    if jobs == 1 or len(chunks) <= 1:
        for chunk in chunks:
            encode(chunk)
    else:
        _in_threads(encode, chunks, jobs)
    return _pool_pieces(vectors_SD, pieces)


def _in_threads(act: Callable[[np.ndarray], None], chunks: Sequence[np.ndarray], jobs: int) -> None:
    """Longest sequences first, so that at the end no thread waits for a large chunk of another."""
    threads = ThreadPoolExecutor(min(jobs, len(chunks)), thread_name_prefix="encode")
    try:
        for _ in threads.map(act, chunks):  # raises what a thread raised
            pass
    finally:
        threads.shutdown(cancel_futures=True)


def _pool_pieces(vectors_SD: np.ndarray, pieces: Pieces) -> np.ndarray:
    """vectors_ND of texts from the vectors of their pieces."""
    if pieces.whole:
        return vectors_SD
    firsts_N = np.cumsum(pieces.counts_N) - pieces.counts_N
    return np.add.reduceat(vectors_SD * pieces.shares_S[:, None], firsts_N, axis=0)
