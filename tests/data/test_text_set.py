"""Sets of texts: each once, views that lead back to the right text, chunks that hold everything and little padding."""

from __future__ import annotations

import numpy as np
import pytest

from manyskills.data.text_set import Examples, gather, pad_chunk, plan_chunks
from manyskills.data.tokens import TokenStore
from manyskills.tasks import get_task


def store_of(*sequences):
    lengths = [len(sequence) for sequence in sequences]
    ids_T = np.array([i for sequence in sequences for i in sequence], dtype=np.int32)
    starts_S = np.concatenate([[0], np.cumsum(lengths)])
    return TokenStore(ids_T, starts_S, np.array(lengths, dtype=np.int32), np.zeros(len(lengths), dtype=np.int64))


def random_batch(generator):
    clones = generator.choice(100, (30, 2)) * 3
    defects = generator.choice(100, (25, 1)) * 2
    search = generator.choice(1000, (20, 2))
    return {
        "clone_detection": Examples(get_task("clone_detection"), clones, generator.integers(0, 2, 30).astype("f4")),
        "defect_detection": Examples(get_task("defect_detection"), defects, np.zeros(25, "f4")),
        "code_search": Examples(get_task("code_search"), search, None),
    }


@pytest.mark.parametrize("seed", range(5))
def test_views_lead_back_to_the_texts(seed):
    batch = random_batch(np.random.default_rng(seed))
    texts = gather(batch)
    assert len(np.unique(texts.unique_N)) == len(texts.unique_N)
    assert set(texts.unique_N.tolist()) == {int(i) for part in batch.values() for i in part.texts_EK.ravel()}
    assert texts.views.keys() == batch.keys()
    for name, part in batch.items():
        view = texts.views[name]
        np.testing.assert_array_equal(texts.unique_N[view.members_M[view.texts_EK]], part.texts_EK)
        assert len(np.unique(view.members_M)) == len(view.members_M)
        assert set(view.texts_EK.ravel().tolist()) == set(range(len(view.members_M)))
        assert view.labels_E is part.labels_E


def test_nothing_gathers_to_nothing():
    assert len(gather({}).unique_N) == 0
    assert plan_chunks(np.empty(0, dtype=np.int64), 10) == []


def test_taking_rows_keeps_texts_and_labels_together():
    part = random_batch(np.random.default_rng(0))["clone_detection"]
    rows = np.array([5, 2, 2])
    taken = part.take(rows)
    np.testing.assert_array_equal(taken.texts_EK, part.texts_EK[rows])
    np.testing.assert_array_equal(taken.labels_E, part.labels_E[rows])


@pytest.mark.parametrize("budget", [1, 50, 400, 10**9])
@pytest.mark.parametrize("seed", range(4))
def test_chunks_are_a_partition_sorted_by_length_within_the_budget(seed, budget):
    lengths_N = np.random.default_rng(seed).integers(1, 60, 137)
    chunks = plan_chunks(lengths_N, budget)
    assert sorted(np.concatenate(chunks).tolist()) == list(range(137))
    in_order = lengths_N[np.concatenate(chunks)]
    assert (np.diff(in_order) >= 0).all()
    for chunk in chunks:
        assert len(chunk) == 1 or len(chunk) * lengths_N[chunk].max() <= budget


def _cost(lengths, chunks, chunk_cost):
    return sum(len(chunk) * max(lengths[i] for i in chunk) + chunk_cost for chunk in chunks)


def _partitions(items):
    if not items:
        yield []
    for size in range(1, len(items) + 1):
        for rest in _partitions(items[size:]):
            yield [items[:size], *rest]


@pytest.mark.parametrize("seed", range(6))
def test_no_cut_into_chunks_costs_less(seed):
    generator = np.random.default_rng(seed)
    lengths = np.sort(generator.integers(1, 40, 9))
    budget, chunk_cost = int(generator.integers(40, 200)), int(generator.integers(1, 60))
    allowed = (
        cut for cut in _partitions(list(range(9))) if all(len(c) == 1 or len(c) * lengths[c[-1]] <= budget for c in cut)
    )
    best = min(_cost(lengths, cut, chunk_cost) for cut in allowed)
    assert _cost(lengths, plan_chunks(lengths, budget, chunk_cost), chunk_cost) == best


def test_sorted_chunks_pad_far_less_than_batches_as_they_come():
    lengths_N = np.random.default_rng(0).lognormal(4.7, 0.8, 2000).astype(int).clip(3, 512)
    padded = sum(len(chunk) * lengths_N[chunk].max() for chunk in plan_chunks(lengths_N, 8192))
    as_they_come = sum(16 * lengths_N[start : start + 16].max() for start in range(0, 2000, 16))
    assert padded < 1.1 * lengths_N.sum() < 0.6 * as_they_come


@pytest.mark.parametrize("pad_id", [0, 1, 7])
def test_the_mask_comes_from_the_lengths_even_where_the_pad_id_is_a_token(pad_id):
    store = store_of([7, 1, 0], [5], [0, 0], [7, 7, 7, 7])
    ids_BT, mask_BT = pad_chunk(store, np.array([3, 1, 2]), pad_id)
    assert mask_BT.tolist() == [[1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 0, 0]]
    assert ids_BT.tolist() == [[7, 7, 7, 7], [5, pad_id, pad_id, pad_id], [0, 0, pad_id, pad_id]]
    assert ids_BT.dtype == mask_BT.dtype == np.int64
