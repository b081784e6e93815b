"""Chunks in threads: every text once, nothing depends on the number of threads, what goes wrong is told."""

from __future__ import annotations

import os
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from manyskills.data.tokens import TokenStore
from manyskills.data.windows import Windows
from manyskills.inference import encoding
from manyskills.inference.encoding import encode_texts, usable_cores
from manyskills.model.pieces import pool_pieces

SIZE = 5
LENGTHS = [3, 40, 7, 7, 21, 1, 30, 12, 9, 26]


class _Sums:
    """A network whose vector of a sequence is made of its ids alone."""

    facts = SimpleNamespace(vector_size=SIZE, pad_id=0)

    def __init__(self):
        self.sequences, self.threads, self.broken = [], set(), False

    def encode(self, ids_BT, mask_BT):
        if self.broken:
            raise MemoryError("no more")
        self.sequences += [tuple(ids_T[mask_T == 1]) for ids_T, mask_T in zip(ids_BT, mask_BT, strict=True)]
        self.threads.add(threading.get_ident())
        return (np.sin((ids_BT * mask_BT).sum(1))[:, None] * np.arange(1, SIZE + 1)).astype(np.float32)


def _store(windows=None):
    starts_S = np.concatenate([[0], np.cumsum(LENGTHS)])
    ids_T = np.random.default_rng(0).integers(1, 90, starts_S[-1]).astype(np.int32)
    texts = len(LENGTHS) if windows is None else len(windows.firsts_N) - 1
    return TokenStore(ids_T, starts_S, np.ones(texts, np.int32), np.zeros(len(LENGTHS), np.int64), windows)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(encoding, "CHUNK_TOKENS", 30)


@pytest.mark.parametrize("jobs", [1, 2, 5, 100])
def test_every_text_once_at_its_place(jobs):
    graph, store = _Sums(), _store()
    indices_N = np.array([0, 2, 3, 4, 6, 9])
    vectors_ND = encode_texts(graph, store, indices_N, jobs)
    wanted = [np.sin(int(store.sequence(i).sum())) * np.arange(1, SIZE + 1) for i in indices_N]
    np.testing.assert_allclose(vectors_ND, wanted, rtol=1e-5)
    assert vectors_ND.dtype == np.float32
    assert sorted(graph.sequences) == sorted(tuple(store.sequence(i)) for i in indices_N)
    here = threading.get_ident()
    assert graph.threads == {here} if jobs == 1 else here not in graph.threads


def test_chunks_are_computed_at_the_same_time(monkeypatch):
    graph, both, waiting = _Sums(), threading.Barrier(2), [True, True]
    encode = graph.encode

    def meet_and_encode(ids_BT, mask_BT):
        if waiting:
            waiting.pop()
            both.wait(timeout=20)  # breaks unless another thread comes here meanwhile
        return encode(ids_BT, mask_BT)

    monkeypatch.setattr(graph, "encode", meet_and_encode)
    encode_texts(graph, _store(), np.arange(len(LENGTHS)), 2)
    assert len(graph.sequences) == len(LENGTHS)


def test_windows_are_averaged_as_torch_does():
    counts = [[3], [20, 5, 5], [7], [7, 14], [1], [30], [6]]
    windows = Windows.of(counts)
    store = _store(windows)
    indices_N = np.array([0, 1, 3, 6])
    found_ND = encode_texts(_Sums(), store, indices_N, 2)
    pieces = store.pieces(indices_N)
    each_SD = np.stack([encode_texts(_Sums(), _store(), np.array([i]), 1)[0] for i in pieces.sequences_S])
    np.testing.assert_allclose(found_ND, pool_pieces(torch.from_numpy(each_SD), pieces).numpy(), rtol=1e-6)


@pytest.mark.parametrize("jobs", [1, 3])
def test_what_a_thread_raises_is_raised(jobs):
    graph = _Sums()
    graph.broken = True
    with pytest.raises(MemoryError, match="no more"):
        encode_texts(graph, _store(), np.arange(len(LENGTHS)), jobs)


def test_nothing_to_encode():
    assert encode_texts(_Sums(), _store(), np.empty(0, np.int64), 2).shape == (0, SIZE)


@pytest.mark.parametrize(
    ("said", "cores"),
    [("max 100000", 8), ("150000 100000", 2), ("200000 100000", 2), ("1000 100000", 1), ("900000 100000", 8),
     ("", 8), ("some 100000", 8), ("100000 0", 8), (None, 8)],
)  # fmt: skip
def test_a_containers_quota_counts(said, cores, tmp_path, monkeypatch):
    for name in ("process_cpu_count", "cpu_count"):
        monkeypatch.setattr(os, name, lambda: 8, raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    monkeypatch.setattr(encoding, "CPU_QUOTA", tmp_path / "cpu.max")
    if said is not None:
        (tmp_path / "cpu.max").write_text(f"{said}\n")
    assert usable_cores() == cores
