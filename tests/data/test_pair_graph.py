"""The order of pairs: every pair once, whatever the graph, and neighbours that share texts."""

from __future__ import annotations

import numpy as np
import pytest

from manyskills.data.pair_graph import local_order


def random_graph(seed):
    """Self loops, duplicates and mirrored pairs included."""
    generator = np.random.default_rng(seed)
    pairs = generator.integers(0, int(generator.integers(1, 60)), (int(generator.integers(1, 200)), 2))
    extra = pairs[generator.integers(0, len(pairs), 5)]
    loops = np.repeat(generator.integers(0, 60, (3, 1)), 2, axis=1)
    return np.concatenate([pairs, extra, extra[:, ::-1], loops])


@pytest.mark.parametrize("cluster", [1, 2, 16, 10**6])
@pytest.mark.parametrize("seed", range(12))
def test_every_pair_occurs_once(seed, cluster):
    pairs_E2 = random_graph(seed)
    order = local_order(pairs_E2, np.random.default_rng(seed), cluster)
    assert sorted(order.tolist()) == list(range(len(pairs_E2)))


def test_one_pair_and_only_self_loops():
    assert local_order(np.array([[3, 4]]), np.random.default_rng(0)).tolist() == [0]
    assert sorted(local_order(np.array([[1, 1], [1, 1], [2, 2]]), np.random.default_rng(0)).tolist()) == [0, 1, 2]


def test_the_generator_alone_decides():
    pairs_E2 = random_graph(3)
    one, two, other = (local_order(pairs_E2, np.random.default_rng(seed)).tolist() for seed in (1, 1, 2))
    assert one == two != other


@pytest.mark.parametrize("seed", range(3))
def test_neighbours_share_texts(seed):
    generator = np.random.default_rng(seed)
    pairs_E2 = generator.integers(0, 120, (2400, 2))
    local = local_order(pairs_E2, generator)
    shuffled = generator.permutation(len(pairs_E2))

    def texts_of_32_pairs(order):
        return np.mean([len(np.unique(pairs_E2[order[i : i + 32]])) for i in range(0, len(order), 32)])

    assert texts_of_32_pairs(local) < 0.4 * texts_of_32_pairs(shuffled)
