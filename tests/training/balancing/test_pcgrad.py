"""`pcgrad` against algorithm 1, worked on the gradients themselves."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
import pytest

from tests.training.balancing.helpers import NAMES, combined, direction, make

GENERATOR = np.random.default_rng(0)


def surgery(gradients, orders):
    """Algorithm 1 with these orders of the other tasks, averaged."""
    projected = []
    for i, order in enumerate(orders):
        g = gradients[i].copy()
        for j in order:
            if g @ gradients[j] < 0:
                g -= (g @ gradients[j]) / (gradients[j] @ gradients[j]) * gradients[j]
        projected.append(g)
    return np.mean(projected, axis=0)


def outcomes(gradients):
    """The results of all orders that three tasks can be gone through in."""
    others = [list(permutations([j for j in range(3) if j != i])) for i in range(3)]
    return np.array([surgery(gradients, orders) for orders in product(*others)])


@pytest.mark.parametrize("case", range(6))
def test_it_is_algorithm_1_in_some_random_order(case):
    gradients = np.random.default_rng(case).standard_normal((3, 3))
    possible, rule = outcomes(gradients), make("pcgrad", seed=case)
    seen = set()
    for _ in range(60):
        distances = np.abs(possible - direction(rule, gradients)).max(axis=1)
        assert distances.min() < 1e-9
        seen.add(int(distances.argmin()))
    assert len(seen) == len(np.unique(possible.round(9), axis=0))  # every order comes up


def test_two_tasks_in_conflict_lose_what_they_conflict_by():
    for _ in range(20):
        u, v = GENERATOR.standard_normal((2, 5))
        v -= max(u @ v + 0.1, 0) / (u @ u) * u  # now they conflict
        expected = ((u - (u @ v) / (v @ v) * v) + (v - (u @ v) / (u @ u) * u)) / 2
        found = direction(make("pcgrad"), [u, v])
        np.testing.assert_allclose(found, expected, atol=1e-9)
        assert found @ u >= -1e-9
        assert found @ v >= -1e-9


def test_without_conflict_it_is_the_mean():
    gradients = GENERATOR.uniform(0, 1, (3, 4))
    found = combined(make("pcgrad"), gradients)
    np.testing.assert_allclose(found.gradient_P.numpy(), gradients.mean(axis=0))
    assert found.factors == pytest.approx(dict.fromkeys(NAMES, 1 / 3))
    assert found.head_factors == pytest.approx(dict.fromkeys(NAMES, 1 / 3))


def test_the_seed_and_the_step_decide_the_order():
    gradients = np.array([[1.0, 0.1, 0.0], [-0.5, 1.0, 0.3], [-0.6, -0.8, 0.2]])  # each conflicts with both others
    runs = [[direction(rule, gradients).tolist() for _ in range(10)]
            for rule in (make("pcgrad", seed=1), make("pcgrad", seed=1), make("pcgrad", seed=2))]  # fmt: skip
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]
    assert len({tuple(found) for found in runs[0]}) > 1
