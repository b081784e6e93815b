"""Vectors from the cache are those that were computed, each sequence once, and a broken cache costs nothing else."""

from __future__ import annotations

import errno
import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from manyskills.data.tokens import TokenStore
from manyskills.data.vector_store import VectorStore
from manyskills.model import vector_cache as module
from manyskills.model.encoding import WholeBackbone, encode_texts
from manyskills.model.vector_cache import cached_vectors, published_vector_cache, vector_cache
from manyskills.training.run import load_inputs
from tests.training.helpers import CPU, small_config, warmed_up

# Shape legend: N texts, D size of a vector
BUDGET = 160


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(module, "LEAST_TOKENS_ON_CPU", 1)
    monkeypatch.setattr(module, "SPARE", 0)


@pytest.fixture
def warm(backbone_folder, data_dir):
    def make(family="bert", **changes):
        return warmed_up(small_config(backbone_folder(family), data_dir, **changes))

    return make


@pytest.fixture
def encoded(monkeypatch):
    """Token sequences that were encoded, in order."""
    seen: list[bytes] = []
    call = WholeBackbone.__call__

    def counting(self, indices_B):
        seen.extend(self.store.sequence(index).tobytes() for index in indices_B)
        return call(self, indices_B)

    monkeypatch.setattr(WholeBackbone, "__call__", counting)
    return seen


def _cache(model):
    cache = vector_cache(model, 1000)
    assert cache is not None
    return cache


@pytest.mark.parametrize("long", ["truncate", "window"])
def test_each_sequence_is_encoded_once_whoever_asks(long, warm, encoded):
    tasks = {name: {"long": long, "max_length": 20} for name in ("defect_detection", "flaky_tests")}
    model, prepared = warm(tasks=tasks)
    train_N, both_N = prepared.used_texts("train"), np.arange(len(prepared.store))
    expected_ND = encode_texts(model, prepared.store, both_N, BUDGET)
    encoded.clear()
    first_ND = cached_vectors(model, prepared.store, train_N, BUDGET, _cache(model))
    all_ND = cached_vectors(model, prepared.store, both_N, BUDGET, _cache(model))
    torch.testing.assert_close(all_ND, expected_ND)
    assert torch.equal(first_ND, all_ND[train_N])
    sequences = {prepared.store.sequence(n).tobytes() for n in range(len(prepared.store.starts_S) - 1)}
    assert sorted(encoded) == sorted(sequences)
    encoded.clear()
    assert torch.equal(cached_vectors(model, prepared.store, both_N[::-1], BUDGET, _cache(model)), all_ND.flip(0))
    assert not encoded


def test_an_empty_cache_changes_no_bit(warm):
    model, prepared = warm()
    indices_N = prepared.used_texts("valid")
    sequences = {prepared.store.sequence(index).tobytes() for index in indices_N}
    assert len(sequences) == len(indices_N)
    expected_ND = encode_texts(model, prepared.store, indices_N, BUDGET)
    assert torch.equal(cached_vectors(model, prepared.store, indices_N, BUDGET, _cache(model)), expected_ND)
    assert torch.equal(cached_vectors(model, prepared.store, indices_N, BUDGET, None), expected_ND)


def test_texts_that_are_read_alike_have_one_vector(warm, encoded):
    model, _ = warm()
    ids = np.array([0, 9, 8, 2, 0, 9, 8, 2, 0, 7, 2], dtype=np.int32)
    store = TokenStore(ids, np.array([0, 4, 8, 11]), np.array([9, 7, 3]), np.zeros(3, dtype=np.int64))
    vectors_ND = cached_vectors(model, store, np.array([2, 1, 0]), BUDGET, _cache(model))
    assert torch.equal(vectors_ND[1], vectors_ND[2])
    assert len(encoded) == 2
    torch.testing.assert_close(vectors_ND, encode_texts(model, store, np.array([2, 1, 0]), BUDGET))


def test_other_weights_find_nothing(warm, encoded):
    model, prepared = warm()
    indices_N = prepared.used_texts("valid")
    before_ND = cached_vectors(model, prepared.store, indices_N, BUDGET, _cache(model))
    with torch.no_grad():
        next(p for _, p in model.shared_parameters()).add_(0.5)
    encoded.clear()
    after_ND = cached_vectors(model, prepared.store, indices_N, BUDGET, _cache(model))
    assert encoded
    assert not torch.equal(before_ND, after_ND)
    torch.testing.assert_close(after_ND, encode_texts(model, prepared.store, indices_N, BUDGET))


def test_each_task_of_a_routed_method_has_its_own_vectors(warm):
    tasks = ["defect_detection", "flaky_tests"]
    model, _ = warm(tasks=tasks, method={"name": "mtl_lora", "r": 2, "experts": 2})
    ids = np.array([0, 9, 8, 2, 0, 9, 8, 2], dtype=np.int32)
    store = TokenStore(ids, np.array([0, 4, 8]), np.array([4, 4]), np.array([0, 1]))
    indices_N = np.arange(2)
    for _ in range(2):
        vectors_ND = cached_vectors(model, store, indices_N, BUDGET, _cache(model))
        assert not torch.equal(vectors_ND[0], vectors_ND[1])
        torch.testing.assert_close(vectors_ND, encode_texts(model, store, indices_N, BUDGET))
    published = published_vector_cache(model, 1000)
    assert published is not None
    assert len(set(published.keys(store, indices_N))) == 1


@pytest.mark.parametrize("method", ["lora", "serial_adapter", "mtl_lora"])
def test_runs_on_one_backbone_share_its_vectors(method, backbone_folder, data_dir, encoded):
    plain, prepared = load_inputs(small_config(backbone_folder("bert"), data_dir, method="frozen"), CPU)
    indices_N = prepared.used_texts("valid")
    first_ND = cached_vectors(plain, prepared.store, indices_N, BUDGET, published_vector_cache(plain, 1000))
    encoded.clear()
    model, prepared = load_inputs(small_config(backbone_folder("bert"), data_dir, method=method, seed=5), CPU)
    indices_N = prepared.used_texts("valid")
    found_ND = cached_vectors(model, prepared.store, indices_N, BUDGET, published_vector_cache(model, 1000))
    assert not encoded
    torch.testing.assert_close(found_ND, encode_texts(model, prepared.store, indices_N, BUDGET))
    assert found_ND.shape[0] >= first_ND.shape[0]


def test_no_cache_where_it_does_not_pay_or_the_vectors_are_not_the_backbones(warm, monkeypatch, tmp_path):
    prefixed, _ = warm(method={"name": "prefix_tuning", "length": 2})
    assert published_vector_cache(prefixed, 1000) is None
    assert vector_cache(prefixed, 1000) is not None
    monkeypatch.setattr(module, "LEAST_TOKENS_ON_CPU", 1001)
    assert vector_cache(prefixed, 1000) is None
    monkeypatch.setattr(module, "LEAST_TOKENS_ON_CPU", 1)
    with monkeypatch.context() as patched:
        patched.setattr(type(prefixed), "device", torch.device("meta"))
        assert vector_cache(prefixed, 1000) is None, "elsewhere than on a CPU"
    monkeypatch.setattr(module, "SUPPORTED", False)
    assert vector_cache(prefixed, 1000) is None


def test_the_folder_says_what_it_is(warm, tmp_path):
    model, _ = warm()
    cache = _cache(model)
    assert cache.folder.parent == tmp_path / "vectors"
    assert json.loads((cache.folder / "about.json").read_text())["method"] == "lora"


@pytest.mark.parametrize("damage", ["changed", "cut", "index", "foreign"])
def test_damaged_files_are_made_anew(damage, warm, encoded):
    model, prepared = warm()
    indices_N = prepared.used_texts("valid")
    expected_ND = cached_vectors(model, prepared.store, indices_N, BUDGET, _cache(model))
    file = _cache(model).folder / ("index.bin" if damage == "index" else "vectors.bin")
    content = bytearray(file.read_bytes())
    content[40] ^= 1
    file.write_bytes({"changed": content, "index": content, "cut": content[:50], "foreign": b"\0" * 9999}[damage])
    encoded.clear()
    for attempt in range(3):
        found_ND = cached_vectors(model, prepared.store, indices_N, BUDGET, _cache(model))
        assert torch.equal(found_ND, expected_ND), "computed again, in the same chunks"
        assert bool(encoded) == (attempt == 0)
        encoded.clear()


@pytest.mark.parametrize("call", ["open", "pwrite", "fsync", "pread", "fstatvfs", "utime"])
def test_a_disk_that_refuses_costs_only_the_cache(call, warm, monkeypatch):
    model, prepared = warm()
    indices_N = prepared.used_texts("valid")
    expected_ND = encode_texts(model, prepared.store, indices_N, BUDGET)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, call, full)
        cache = _cache(model)
        assert cache.usable == (call not in ("open", "utime"))
        for _ in range(2):
            assert torch.equal(cached_vectors(model, prepared.store, indices_N, BUDGET, cache), expected_ND)
    assert torch.equal(cached_vectors(model, prepared.store, indices_N, BUDGET, _cache(model)), expected_ND)


def test_a_place_that_is_no_folder_costs_only_the_cache(warm, tmp_path):
    (tmp_path / "vectors").write_text("")
    model, prepared = warm()
    indices_N = prepared.used_texts("valid")
    found_ND = cached_vectors(model, prepared.store, indices_N, BUDGET, _cache(model))
    assert torch.equal(found_ND, encode_texts(model, prepared.store, indices_N, BUDGET))


def test_what_the_limit_or_the_disk_has_no_room_for_is_not_kept(warm, monkeypatch):
    model, prepared = warm()
    indices_N = prepared.used_texts("valid")
    for name, value in (("LIMIT", 100), ("SPARE", 1 << 62)):
        with monkeypatch.context() as patched:
            patched.setattr(module, name, value)
            cached_vectors(model, prepared.store, indices_N, BUDGET, _cache(model))
        assert (_cache(model).folder / "vectors.bin").stat().st_size == 0


def test_vectors_of_networks_unused_for_longest_make_room(warm, monkeypatch, tmp_path):
    old = VectorStore(tmp_path / "vectors" / "old", 32)
    old.add([bytes([n]) * 16 for n in range(1, 101)], np.ones((100, 32), dtype=np.float32))
    model, prepared = warm()
    monkeypatch.setattr(module, "LIMIT", 100 * 32 * 4 + 500)
    cached_vectors(model, prepared.store, prepared.used_texts("valid"), BUDGET, _cache(model))
    assert old.folder.exists(), "it is in use"
    del old
    cached_vectors(model, prepared.store, prepared.used_texts("valid"), BUDGET, _cache(model))
    assert not (tmp_path / "vectors" / "old").exists()
    assert (_cache(model).folder / "vectors.bin").stat().st_size > 0


class Together:
    """One of several threads that stand for processes."""

    def __init__(self, rank, parts, barrier):
        self.share, self.is_main, self.parts, self.barrier = (rank, len(parts)), rank == 0, parts, barrier

    def sum(self, tensor):
        self.parts[self.share[0]] = tensor.clone()
        self.barrier.wait()
        total = sum(self.parts)
        self.barrier.wait()
        return tensor.copy_(total)


@pytest.mark.parametrize("known", [0, 5, 100])
def test_processes_share_what_is_missing_and_all_get_everything(known, warm, encoded):
    model, prepared = warm()
    indices_N = prepared.used_texts("train")
    expected_ND = encode_texts(model, prepared.store, indices_N, BUDGET)
    cached_vectors(model, prepared.store, indices_N[:known], BUDGET, _cache(model))
    encoded.clear()
    parts, barrier = [None, None], threading.Barrier(2, timeout=60)

    def work(rank):
        processes = Together(rank, parts, barrier)
        return cached_vectors(model, prepared.store, indices_N, BUDGET, _cache(model), processes=processes)

    with ThreadPoolExecutor(2) as pool:
        one_ND, two_ND = pool.map(work, (0, 1))
    assert torch.equal(one_ND, two_ND)
    torch.testing.assert_close(one_ND, expected_ND)
    assert len(encoded) == max(len(indices_N) - known, 0)
    assert torch.equal(cached_vectors(model, prepared.store, indices_N, BUDGET, _cache(model)), one_ND)


def test_progress_counts_every_token_once(warm):
    model, prepared = warm()
    indices_N = prepared.used_texts("train")
    tokens = int(prepared.store.lengths_N[indices_N].sum())
    for _ in range(2):
        done: list[int] = []
        cached_vectors(model, prepared.store, indices_N, BUDGET, _cache(model), report=done.append)
        assert sum(done) == tokens
