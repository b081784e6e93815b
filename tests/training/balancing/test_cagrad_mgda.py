"""`cagrad` and `mgda` against brute force over the simplex."""

from __future__ import annotations

import numpy as np
import pytest

from manyskills.training.balancing.min_norm import coordinates, min_norm_weights
from tests.training.balancing.helpers import NAMES, combined, cosine, direction, make, simplex

GRID = simplex(400)
CASES = [np.random.default_rng(case).standard_normal((3, 4)) for case in range(8)]
CASES += [case * np.array([[10.0], [1.0], [0.01]]) for case in CASES[:4]]


def dual(gradients, c):
    """min over the simplex of g_w . g_0 + c |g_0| |g_w|."""
    mean, mixtures = gradients.mean(axis=0), GRID @ gradients
    return (mixtures @ mean + c * np.linalg.norm(mean) * np.linalg.norm(mixtures, axis=1)).min()


@pytest.mark.parametrize("c", [0.1, 0.4, 0.9])
@pytest.mark.parametrize("case", range(len(CASES)))
def test_cagrad_has_the_best_worst_improvement_of_the_ball(case, c):
    """No direction of the ball does better than the dual's minimum, and the one found does as well."""
    gradients = CASES[case]
    mean = gradients.mean(axis=0)
    found, scale = direction(make("cagrad", c=c), gradients), np.linalg.norm(gradients, axis=1).max() ** 2
    assert np.linalg.norm(found - mean) <= c * np.linalg.norm(mean) * (1 + 1e-6)
    best = dual(gradients, c)
    assert (gradients @ found).min() == pytest.approx(best, abs=1e-4 * scale)
    assert (gradients @ found).min() <= best + 1e-9 * scale


def test_cagrad_of_two_tasks_in_the_plane_is_the_best_of_all_directions():
    angles, radii = np.meshgrid(np.linspace(0, 2 * np.pi, 2001), np.linspace(0, 1, 101))
    ball = np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=-1).reshape(-1, 2)
    for case in range(6):
        gradients = np.random.default_rng(case).standard_normal((2, 2))
        mean = gradients.mean(axis=0)
        tried = mean + 0.5 * np.linalg.norm(mean) * ball
        best = tried[(tried @ gradients.T).min(axis=1).argmax()]
        np.testing.assert_allclose(direction(make("cagrad", c=0.5), gradients), best, atol=0.02 * np.linalg.norm(mean))


def test_cagrad_is_the_mean_gradient_for_c_0_and_where_there_is_no_mean():
    np.testing.assert_allclose(direction(make("cagrad", c=0), CASES[0]), CASES[0].mean(axis=0))
    np.testing.assert_allclose(direction(make("cagrad"), [[1.0, 2.0], [-1.0, -2.0]]), 0, atol=1e-12)


def test_cagrad_inside_of_the_ball():
    """Opposite gradients and one across: only what the first two do not lose by is left of the mean."""
    found = direction(make("cagrad", c=0.6), [[1.0, 0.0], [-0.5, 0.0], [0.0, 1.0]])
    assert found[0] == pytest.approx(0, abs=1e-3)
    assert found[1] > 1 / 3 - 1e-6


def test_equal_gradients_leave_cagrad_and_mgda_the_direction():
    equal = np.tile([3.0, 4.0], (3, 1))
    np.testing.assert_allclose(direction(make("mgda"), equal), [3, 4])
    assert combined(make("mgda"), equal).factors == pytest.approx(dict.fromkeys(NAMES, 1 / 3), abs=0.01)
    np.testing.assert_allclose(direction(make("cagrad", c=0.5), equal), [4.5, 6])


@pytest.mark.parametrize("case", range(len(CASES)))
def test_mgda_is_the_shortest_vector_of_the_hull(case):
    gradients = CASES[case]
    found = combined(make("mgda"), gradients)
    vector, weights = found.gradient_P.numpy(), np.array(list(found.factors.values()))
    assert weights.sum() == pytest.approx(1)
    assert (weights >= 0).all()
    shortest = np.linalg.norm(GRID @ gradients, axis=1).min()
    assert np.linalg.norm(vector) <= shortest + 1e-5 * np.abs(gradients).max()
    # the condition of optimality: every task improves by at least |d|^2
    assert (gradients @ vector).min() >= vector @ vector - 1e-5 * np.abs(gradients).max() ** 2


def test_mgda_of_two_tasks_is_the_closed_form():
    """w = clip((v - u) . v / |u - v|^2, 0, 1) (Sener & Koltun 2018, equation 4)."""
    for case in range(20):
        u, v = np.random.default_rng(case).standard_normal((2, 6)) * [[1.0], [2.0]]
        w = np.clip((v - u) @ v / ((u - v) @ (u - v)), 0, 1)
        assert combined(make("mgda"), [u, v]).factors["a"] == pytest.approx(w, abs=1e-6)


def test_mgda_weighs_the_shortest_gradient_most_and_stops_at_a_pareto_stationary_point():
    factors = combined(make("mgda"), [[10.0, 0.0], [0.0, 1.0]]).factors
    assert factors["b"] > 0.98
    np.testing.assert_allclose(direction(make("mgda"), [[1.0, 1.0], [-3.0, -3.0]]), 0, atol=1e-5)


def test_the_shortest_vector_among_ten():
    vectors = np.random.default_rng(5).standard_normal((10, 30)) + 0.3
    weights = min_norm_weights(coordinates(vectors @ vectors.T))
    shortest = weights @ vectors
    assert (vectors @ shortest).min() >= shortest @ shortest - 1e-6
    assert cosine(shortest, vectors.mean(axis=0)) > 0.5
